package host

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// UnitName returns the name of the mount unit that systemd has for a mount point,
// a clean absolute path, by the rules of systemd.unit(5), "String escaping for
// inclusion in unit names".
func UnitName(point string) string {
	name := strings.Trim(point, "/")
	if name == "" {
		return "-.mount"
	}
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c == '/':
			b.WriteByte('-')
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == ':', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + ".mount"
}

// mountUnit returns a unit that mounts e, also with the options that unseen says of
// it, in the form that units have; see systemd.mount(5).
func mountUnit(e nfs.Entry, unseen nfs.Options) (string, error) {
	var faults []error
	value := func(s string) string {
		v, err := unitValue(s)
		faults = append(faults, err)
		return v
	}
	text := fmt.Sprintf("[Unit]\nDescription=NFS mount %[1]s\n\n[Mount]\nWhat=%[2]s\nWhere=%[1]s\nType=%[3]s\nOptions=%[4]s\n\n[Install]\nWantedBy=%[5]s\n",
		value(e.Point), value(e.Source), e.Type, joined(value(e.Options.String()), unseen), wantedBy)
	return text, errors.Join(faults...)
}

// mountDropIn returns the drop-in that gives a unit other options, and unseen as
// mountUnit does.
func mountDropIn(o, unseen nfs.Options) (string, error) {
	v, err := unitValue(o.String())
	return "[Mount]\nOptions=" + joined(v, unseen) + "\n", err
}

func joined(options string, unseen nfs.Options) string {
	return strings.Join(append([]string{options}, unseen...), ",")
}

// wantedBy is what mounts our own units when the host starts, once they are enabled.
const wantedBy = "remote-fs.target"

// unitValue returns a value as a unit file says it: nothing in it ends the line, goes
// on with the next one or is expanded; see systemd.syntax(7). It fails where there
// is no way to say it.
func unitValue(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") || strings.HasSuffix(s, `\`) || strings.TrimSpace(s) != s || !utf8.ValidString(s) {
		return "", fmt.Errorf("a unit file of systemd has no way to say %q: no value has a line break or other bytes than UTF-8, begins or ends with a blank, or ends with a backslash", s)
	}
	return strings.ReplaceAll(s, "%", "%%"), nil
}

// unitOptions returns the mount options that unit files say, one behind the other in
// the order in which systemd reads them: the last Options= of [Mount] holds.
func unitOptions(text string) nfs.Options {
	var section, begun, options string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue // also between the parts of a line
		}
		part, goesOn := strings.CutSuffix(line, `\`)
		if goesOn {
			begun += part + " "
			continue
		}
		line, begun = begun+part, ""
		key, value, _ := strings.Cut(line, "=")
		if strings.HasPrefix(line, "[") {
			section = line
		} else if section == "[Mount]" && strings.TrimSpace(key) == "Options" {
			options = strings.TrimSpace(value)
		}
	}
	return nfs.ParseOptions(options)
}
