package glance

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// defaultDatadir is where a filesystem store without a datadir option writes.
const defaultDatadir = "/var/lib/glance/images"

// maxPath is Linux's PATH_MAX.
const maxPath = 4096

// Datadirs returns the directories of the filesystem stores that a
// glance-api.conf configures, those that Glance prefers first within a store; none
// when it configures no filesystem store. It reads the subset of oslo.config that
// these options need. Files that Glance merges can be given one after the other.
func Datadirs(conf io.Reader) ([]string, error) {
	c, err := readConf(conf)
	if err != nil {
		return nil, fmt.Errorf("read glance-api.conf: %w", err)
	}
	var dirs []string
	for _, section := range c.fileStores() {
		of, err := c.datadirs(section)
		if err != nil {
			return nil, fmt.Errorf("glance-api.conf: [%s] %w", section, err)
		}
		dirs = append(dirs, of...)
	}
	return dirs, nil
}

// conf holds an option's values by section and name, in the order of the file.
type conf map[string]map[string][]string

// readConf parses sections, name = value or name: value, comments, and lines that
// go on with white space.
func readConf(r io.Reader) (conf, error) {
	c, section, last := conf{}, "DEFAULT", ""
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), " \t\r\v\f")
		switch {
		case line == "":
			last = ""
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, fmt.Errorf("line %d continues nothing", n)
			}
			v := c[section][last]
			v[len(v)-1] += "\n" + strings.TrimSpace(line)
		case line[0] == '#' || line[0] == ';':
			last = ""
		case line[0] == '[':
			if len(line) < 3 || line[len(line)-1] != ']' {
				return nil, fmt.Errorf("line %d is not a [section]", n)
			}
			section, last = line[1:len(line)-1], ""
		default:
			i := strings.IndexAny(line, "=:")
			if i < 0 || strings.TrimSpace(line[:i]) == "" {
				return nil, fmt.Errorf("line %d is not name = value", n)
			}
			last = strings.TrimSpace(line[:i])
			if c[section] == nil {
				c[section] = map[string][]string{}
			}
			c[section][last] = append(c[section][last], unquote(strings.TrimSpace(line[i+1:])))
		}
	}
	return c, lines.Err()
}

func unquote(s string) string {
	if n := len(s); n > 1 && s[0] == s[n-1] && (s[0] == '"' || s[0] == '\'') {
		return s[1 : n-1]
	}
	return s
}

// get returns an option's value, the last one where it is repeated.
func (c conf) get(section, name string) (string, bool) {
	v := c[section][name]
	if len(v) == 0 {
		return "", false
	}
	return v[len(v)-1], true
}

// fileStores names the sections that configure a filesystem store.
func (c conf) fileStores() []string {
	if backends, _ := c.get("DEFAULT", "enabled_backends"); backends != "" {
		var s []string
		for _, b := range list(backends) {
			if name, kind, _ := strings.Cut(b, ":"); strings.TrimSpace(kind) == "file" {
				s = append(s, strings.TrimSpace(name))
			}
		}
		return s
	}
	if stores, set := c.get("glance_store", "stores"); !set || slices.ContainsFunc(list(stores), isFileDriver) {
		return []string{"glance_store"}
	}
	return nil
}

func isFileDriver(name string) bool { return name == "file" || name == "glance.store.filesystem.Store" }

// list splits an option that is a list.
func list(s string) []string {
	var l []string
	for e := range strings.SplitSeq(strings.Trim(s, "[]"), ",") {
		l = append(l, strings.TrimSpace(e))
	}
	return l
}

// datadirs returns the directories of one filesystem store, the highest priority first.
func (c conf) datadirs(section string) ([]string, error) {
	type dir struct {
		path     string
		priority int
	}
	var dirs []dir
	for _, v := range c[section]["filesystem_store_datadirs"] {
		d := dir{path: v}
		if i := strings.LastIndexByte(v, ':'); i >= 0 {
			p, err := strconv.Atoi(strings.TrimSpace(v[i+1:]))
			if err != nil {
				return nil, fmt.Errorf("filesystem_store_datadirs = %s: the priority is not a number", v)
			}
			d = dir{strings.TrimSpace(v[:i]), p}
		}
		dirs = append(dirs, d)
	}
	slices.SortStableFunc(dirs, func(a, b dir) int { return cmp.Compare(b.priority, a.priority) })
	if len(dirs) == 0 {
		d, set := c.get(section, "filesystem_store_datadir")
		if !set {
			d = defaultDatadir
		}
		dirs = []dir{{path: d}}
	}
	paths := make([]string, len(dirs))
	for i, d := range dirs {
		p, err := c.expand(section, d.path, 0)
		if err != nil {
			return nil, fmt.Errorf("datadir %q: %w", d.path, err)
		}
		if !path.IsAbs(p) {
			return nil, fmt.Errorf("datadir %q is not an absolute path", d.path)
		}
		paths[i] = path.Clean(p)
	}
	return paths, nil
}

var variable = regexp.MustCompile(`\$\$|\\\$|\$(?:([_a-zA-Z][._a-zA-Z0-9]*)|\{([_a-zA-Z][._a-zA-Z0-9]*)\})`)

// expand replaces $name, ${name} and $section.name by that option's value, from
// the same section or from DEFAULT; $$ and \$ stand for a dollar sign.
func (c conf) expand(section, s string, depth int) (string, error) {
	if depth > 8 {
		return "", fmt.Errorf("its variables refer to each other without end")
	}
	var fault error
	expanded := variable.ReplaceAllStringFunc(s, func(m string) string {
		if fault != nil {
			return m
		}
		g := variable.FindStringSubmatch(m)
		name := g[1] + g[2]
		if name == "" {
			return "$"
		}
		in, value, found := c.lookup(section, name)
		if !found {
			fault = fmt.Errorf("$%s is not set in this file", name)
			return m
		}
		value, fault = c.expand(in, value, depth+1)
		return value
	})
	if fault == nil && len(expanded) > maxPath {
		fault = fmt.Errorf("its variables make it longer than a path can be")
	}
	return expanded, fault
}

func (c conf) lookup(section, name string) (in, value string, found bool) {
	if other, option, dotted := strings.Cut(name, "."); dotted {
		value, found = c.get(other, option)
		return other, value, found
	}
	if value, found = c.get(section, name); found {
		return section, value, true
	}
	value, found = c.get("DEFAULT", name)
	return "DEFAULT", value, found
}
