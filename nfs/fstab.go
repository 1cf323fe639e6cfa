package nfs

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Entry is one line of fstab(5), whose form /proc/mounts has too.
type Entry struct {
	Source  string // a device; for NFS, host:path
	Point   string // absolute; "none" or "swap" for what is not mounted
	Type    string
	Options Options // none: defaults
	Freq    int     // for dump(8)
	Pass    int     // for fsck(8)
}

// String returns the line without its line feed.
func (e Entry) String() string {
	options := e.Options.field()
	if options == "" {
		options = "defaults"
	}
	return fmt.Sprintf("%s %s %s %s %d %d", escape(e.Source, mountSpecial), escape(e.Point, mountSpecial), escape(e.Type, mountSpecial), options, e.Freq, e.Pass)
}

// ParseFstab reads fstab(5) or /proc/mounts, as mount(8) does: options may be missing, and
// what follows the sixth field does not count. Comments and empty lines have no entry.
func ParseFstab(r io.Reader) ([]Entry, error) {
	var entries []Entry
	err := eachLine(r, func(line string) error {
		f := fields(line)
		if len(f) == 0 || f[0][0] == '#' {
			return nil
		}
		e, err := parseEntry(f)
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fstab: %w", err)
	}
	return entries, nil
}

func parseEntry(f []string) (Entry, error) {
	if len(f) < 3 {
		return Entry{}, fmt.Errorf("want source, mount point, type, options and two numbers, or the first three of them at least, got %q", f)
	}
	e := Entry{Source: unescape(f[0]), Point: unescape(f[1]), Type: unescape(f[2])}
	if len(f) > 3 {
		e.Options = parseField(f[3])
	}
	if !strings.HasPrefix(e.Point, "/") && e.Point != "none" && e.Point != "swap" {
		return Entry{}, fmt.Errorf("mount point %q is not an absolute path", e.Point)
	}
	if slices.Equal(e.Options, Options{"defaults"}) {
		e.Options = nil
	}
	for i, to := range []*int{&e.Freq, &e.Pass} {
		if len(f) <= 4+i {
			break
		}
		n, err := strconv.Atoi(f[4+i])
		if err != nil {
			return Entry{}, fmt.Errorf("field %d, %q, is not a number", 5+i, f[4+i])
		}
		*to = n
	}
	return e, nil
}

// parseField reads a field of options. They are split before they are unescaped,
// because a value can have an escaped comma.
func parseField(field string) Options {
	o := ParseOptions(field)
	for i := range o {
		o[i] = unescape(o[i])
	}
	return o
}

// field is the inverse of parseField.
func (o Options) field() string {
	f := make([]string, len(o))
	for i, option := range o {
		special := mountSpecial
		if strings.Count(option, `"`)%2 != 0 || !slices.Equal(ParseOptions(option), Options{option}) {
			special += `,"` // its quotes do not hold it together
		}
		f[i] = escape(option, special)
	}
	return strings.Join(f, ",")
}
