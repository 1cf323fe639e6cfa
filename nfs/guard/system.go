package guard

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// export is what is remembered of an export that was well.
type export struct {
	Dir    string `json:"dir"`
	Path   string `json:"path"` // Dir without symbolic links
	Marker Marker `json:"marker"`
	Point  string `json:"point"` // where the file system is mounted
	Source string `json:"source"`
	Type   string `json:"type"`
	FSID   string `json:"fsid"` // of statfs(2), in hex; of NFS, which has none there, the server's
}

// seen is what a look has found: the export, and the mount that it lies on.
type seen struct {
	export
	mount nfs.Mount
}

// remounted reports whether s lies on another mount than old. Of an earlier run of the
// machine the numbers mean nothing.
func (s seen) remounted(old seen) bool {
	return s.export != old.export || old.mount.ID != 0 && (s.mount.ID != old.mount.ID || s.mount.Device != old.mount.Device)
}

// system is what the guard asks of the kernel.
type system struct {
	open   func(dir string) (*os.Root, error)
	mounts func() ([]nfs.Mount, error)
	handle func(root *os.Root) (handle, error)
}

// handle is where an open directory is.
type handle struct {
	mount int // its mount's id
	path  string
	fsid  string
}

var host = system{open: os.OpenRoot, mounts: readMounts, handle: handleOf}

// identify tells what the root lies on. It is told by the handle, and holds for it
// whatever is mounted and unmounted meanwhile.
func (y system) identify(root *os.Root) (seen, error) {
	h, err := y.handle(root)
	if err != nil {
		return seen{}, err
	}
	mounts, err := y.mounts()
	if err != nil {
		return seen{}, err
	}
	byID := map[int]nfs.Mount{}
	for _, m := range mounts {
		byID[m.ID] = m
	}
	m, found := byID[h.mount]
	if !found {
		return seen{}, fmt.Errorf("it was unmounted this moment: %w", syscall.ENODEV)
	}
	s := seen{export{Path: h.path, Source: m.Source, Type: m.Type, FSID: h.fsid}, m}
	at := m
	for range mounts {
		up, found := byID[at.Parent]
		if !found || up.ID == at.ID || !ontoItself(at, up) {
			break
		}
		at = up
	}
	s.Point = at.Point
	if nfs.IsNFS(m.Type) {
		s.FSID = serverFSID(m.Device)
	}
	return s, nil
}

// ontoItself reports whether a mount shows what the one that it lies on shows there, as
// a directory that is bound onto itself does: systemd makes such for ReadWritePaths=.
// That the device is the same does not say so: another directory of an NFS server, or
// another subvolume of btrfs, can have it too.
func ontoItself(m, up nfs.Mount) bool {
	below, found := strings.CutPrefix(m.Point, strings.TrimSuffix(up.Point, "/"))
	return found && m.Device == up.Device && path.Clean(shown(m)) == path.Join(shown(up), below)
}

// shown is the directory of the file system that the mount shows. Of NFS the source tells
// it, and the root is always /.
func shown(m nfs.Mount) string {
	if nfs.IsNFS(m.Type) {
		return m.Source
	}
	return m.Root
}

func readMounts() ([]nfs.Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return nfs.ParseMountinfo(f)
}

func handleOf(root *os.Root) (handle, error) {
	d, err := root.Open(".")
	if err != nil {
		return handle{}, err
	}
	defer d.Close()
	fd := strconv.Itoa(int(d.Fd()))
	info, err := os.ReadFile("/proc/self/fdinfo/" + fd)
	if err != nil {
		return handle{}, err
	}
	var h handle
	for line := range bytes.Lines(info) {
		if id, ok := strings.CutPrefix(string(line), "mnt_id:"); ok {
			h.mount, err = strconv.Atoi(strings.TrimSpace(id))
		}
	}
	if err != nil {
		return handle{}, fmt.Errorf("fdinfo: %w", err)
	}
	if h.path, err = os.Readlink("/proc/self/fd/" + fd); err != nil {
		return handle{}, err
	}
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(d.Fd()), &st); err != nil {
		return handle{}, err
	}
	h.fsid = fmt.Sprintf("%08x%08x", uint32(st.Fsid.X__val[0]), uint32(st.Fsid.X__val[1]))
	return h, nil
}

// serverFSID returns what /proc/fs/nfsfs/volumes says of a device, "" if it says nothing.
func serverFSID(device string) string {
	f, err := os.Open("/proc/fs/nfsfs/volumes")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// NV SERVER PORT DEV FSID FSC
		if w := strings.Fields(lines.Text()); len(w) >= 5 && w[3] == device {
			return w[4]
		}
	}
	return ""
}
