package host

import (
	"fmt"
	"strings"

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

// header is the first line of each file that this package writes for others to read.
const header = "# Made by glance-dtn, which removes it when its change is undone.\n"

// mountUnit returns a unit that mounts e; see systemd.mount(5).
func mountUnit(e nfs.Entry) string {
	return fmt.Sprintf("[Unit]\nDescription=NFS mount %s\n\n[Mount]\nWhat=%s\nWhere=%s\nType=%s\nOptions=%s\n\n[Install]\nWantedBy=remote-fs.target\n",
		specifiers(e.Point), specifiers(e.Source), specifiers(e.Point), e.Type, specifiers(e.Options.String()))
}

// mountDropIn returns the drop-in that gives a unit other options.
func mountDropIn(o nfs.Options) string { return "[Mount]\nOptions=" + specifiers(o.String()) + "\n" }

// specifiers keeps systemd from expanding a percent sign.
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }
