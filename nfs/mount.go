package nfs

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Mount is one line of /proc/PID/mountinfo, as proc(5) describes it.
type Mount struct {
	ID      int      // unique among the mounts of now
	Parent  int      // the mount that holds Point; of the root, a mount that is not listed, or itself
	Device  string   // major:minor
	Root    string   // what of the file system is mounted here
	Point   string   // where, relative to the root of the process
	Options Options  // of this mount
	Tags    []string // optional fields: shared:N, master:N, ...
	Type    string   // of the file system, with its subtype: nfs4, fuse.sshfs
	Source  string   // a device; for NFS, host:path
	Super   Options  // of the file system, which its other mounts share
}

// Effective returns the options that hold for the mount, as /proc/mounts lists them:
// its own and those of the file system, read-only where one of them says so.
func (m Mount) Effective() Options {
	all := slices.Concat(m.Options, m.Super)
	access := either(slices.Contains(all, "ro"), "ro", "rw")
	all = slices.DeleteFunc(all, func(option string) bool { return option == "ro" || option == "rw" })
	return slices.Insert(all, 0, access)
}

// Again returns the options with which the file system can be mounted once more:
// Effective without what the client or the server filled in. The port of the MOUNT
// service stays only beside one of NFS, since a client that was not told the latter
// has asked the portmapper for both, and mountd may come back at another.
func (m Mount) Again() Options {
	all := m.Effective()
	_, fixed := all.Get("port")
	return slices.DeleteFunc(all, func(option string) bool {
		switch name, _, _ := strings.Cut(option, "="); name {
		case "addr", "clientaddr", "mountaddr", "mountvers", "namlen", "seclabel":
			return true
		case "mountport", "mountproto":
			return !fixed
		}
		return false
	})
}

// String returns the line without its line feed.
func (m Mount) String() string {
	f := []string{strconv.Itoa(m.ID), strconv.Itoa(m.Parent), m.Device, escape(m.Root, mountSpecial), escape(m.Point, mountSpecial), m.Options.field()}
	f = append(f, m.Tags...)
	f = append(f, "-", escape(m.Type, mountSpecial), escape(m.Source, mountSpecial), m.Super.field())
	return strings.Join(f, " ")
}

// ParseMountinfo reads /proc/PID/mountinfo. Prefer it to /proc/mounts: only it tells
// which mount hides which.
func ParseMountinfo(r io.Reader) ([]Mount, error) {
	var mounts []Mount
	err := eachLine(r, func(line string) error {
		if line == "" {
			return nil
		}
		m, err := parseMount(line)
		mounts = append(mounts, m)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	return mounts, nil
}

// parseMount splits at single spaces, because a source can be empty.
func parseMount(line string) (Mount, error) {
	f := strings.Split(line, " ")
	if len(f) < 10 {
		return Mount{}, fmt.Errorf("want at least 10 fields, got %q", line)
	}
	dash := slices.Index(f[6:], "-")
	if dash < 0 || len(f)-6-dash < 4 {
		return Mount{}, fmt.Errorf("want - and three fields behind it, got %q", line)
	}
	id, err := strconv.Atoi(f[0])
	if err != nil {
		return Mount{}, fmt.Errorf("mount id %q is not a number", f[0])
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return Mount{}, fmt.Errorf("parent's mount id %q is not a number", f[1])
	}
	m := Mount{
		ID: id, Parent: parent, Device: f[2],
		Root: unescape(f[3]), Point: unescape(f[4]), Options: parseField(f[5]),
	}
	m.Tags = append(m.Tags, f[6:6+dash]...)
	f = f[6+dash+1:]
	m.Type, m.Source = unescape(f[0]), unescape(f[1])
	m.Super = parseField(strings.Join(f[2:], " ")) // some file systems do not escape their options
	return m, nil
}

// Covering returns the mount that a clean absolute path lies on, symbolic links
// aside: the last one on the longest part of the path, unless a later mount further
// up hides it. It is false where no mount holds the path.
func Covering(mounts []Mount, name string) (Mount, bool) {
	listed := map[int]bool{}
	for _, m := range mounts {
		listed[m.ID] = true
	}
	on := -1
	passed := make([]bool, len(mounts)) // each once, so that ids without sense end too
	// climb goes on to the mount that lies at point on the one reached so far.
	climb := func(point string) bool {
		next := -1
		for i, m := range mounts {
			root := m.Parent == m.ID || !listed[m.Parent]
			if m.Point == point && !passed[i] && (on < 0 && root || on >= 0 && m.Parent == mounts[on].ID) {
				next = i
			}
		}
		if next < 0 {
			return false
		}
		on, passed[next] = next, true
		return true
	}
	for _, point := range prefixes(path.Clean(name)) {
		for climb(point) {
		}
	}
	if on < 0 {
		return Mount{}, false
	}
	return mounts[on], true
}

// prefixes returns /, /a, /a/b for /a/b.
func prefixes(name string) []string {
	p := []string{"/"}
	for i := 1; i < len(name); i++ {
		if name[i] == '/' {
			p = append(p, name[:i])
		}
	}
	if len(name) > 1 {
		p = append(p, name)
	}
	return p
}

// IsNFS reports whether the kernel's NFS client serves file systems of this type.
// An NFS client in user space has a type of fuse.NAME, and is none.
func IsNFS(fstype string) bool { return fstype == "nfs" || fstype == "nfs4" }

// CopyAtOnce returns up to how many bytes of one copy_file_range(2) the client asks the
// server to copy before it answers, where the mount that a clean absolute path lies on has
// the COPY of NFS 4.2 (RFC 7862, 15.2): twice rsize (fs/nfs/nfs4file.c of Linux). Of a
// longer one a callback tells the end, and may be lost. It fails where it has none.
func CopyAtOnce(mounts []Mount, name string) (int64, error) {
	m, _ := Covering(mounts, name)
	if version, _ := m.Super.Get("vers"); !IsNFS(m.Type) || version != "4.2" {
		return 0, fmt.Errorf("%s does not lie on a mount of NFS 4.2, whose servers copy by themselves", name)
	}
	rsize, _ := m.Super.Get("rsize")
	n, err := strconv.ParseInt(rsize, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("rsize of the mount on %s: %w", m.Point, err)
	}
	return 2 * n, nil
}

// SplitSource splits the source of an NFS mount, host:path or [address]:path, into
// the host without brackets and the absolute path. What would be an option of the
// commands that take a source, -o:/dir, is none.
func SplitSource(source string) (host, dir string, err error) {
	host, dir, found := strings.Cut(source, ":/")
	if inner, bracketed := strings.CutPrefix(source, "["); bracketed {
		if host, dir, found = strings.Cut(inner, "]:/"); !strings.Contains(host, ":") {
			found = false
		}
	} else if strings.Contains(host, ":") {
		found = false
	}
	if !found || host == "" || host[0] == '-' || strings.ContainsAny(host, "/[]") {
		return "", "", fmt.Errorf("%q is not the source of an NFS mount: want host:/path, or [address]:/path for IPv6", source)
	}
	return host, "/" + dir, nil
}

// JoinSource is the inverse of SplitSource.
func JoinSource(host, dir string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + dir
}
