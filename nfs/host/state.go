package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/glance-dtn/glance-dtn/internal/sealed"
	"github.com/glance-dtn/glance-dtn/nfs"
)

// State is what a host does with NFS at one moment.
type State struct {
	Mounts []nfs.Mount // all mounts of this process's namespace
	// Fstab has the lines of /etc/fstab. It is empty where FstabFault says why they
	// could not be read.
	Fstab      []nfs.Entry
	FstabFault error

	// Exports is the server's table: the options in effect, in the order of
	// exportfs -s, one client each. It is empty where no server is installed, and
	// where ExportsFault says why the table or a file could not be read.
	Exports      []nfs.Export
	ExportsFault error
	// Files has /etc/exports and the files of /etc/exports.d, in the order in which
	// exportfs(8) reads them.
	Files []ExportsFile
	// MaxBlockSize is the most bytes that nfsd reads or writes at once
	// (/proc/fs/nfsd/max_block_size): the limit of its clients' rsize and wsize. 0:
	// no nfsd is there.
	MaxBlockSize int64

	Systemd bool // systemd manages this host; sd_booted(3)
	// Units has, by mount point, the files in which systemd finds the units of the
	// NFS mounts.
	Units map[string]Unit

	fstab string // the file of our own for mounts without systemd
}

// ExportsFile is a file that exportfs(8) reads.
type ExportsFile struct {
	Name    string
	Exports []nfs.Export // with the paths that the table has of them
}

// Unit is what systemd has of a mount unit; the zero value for a mount that was made
// by hand.
type Unit struct {
	Path    string      // where systemd has it from
	Ours    bool        // this package wrote it
	Enabled bool        // systemctl enable was asked to mount it when the host starts
	Options nfs.Options // with which it mounts, as its files say it: specifiers are not expanded
}

// Files of the system.
const (
	exportsFile = "/etc/exports"
	exportsDir  = "/etc/exports.d"
	ownExports  = exportsDir + "/00-glance-dtn.exports"
	fstabFile   = "/etc/fstab"
	unitDir     = "/etc/systemd/system"
	dropIn      = "zz-glance-dtn.conf" // behind override.conf, which systemctl edit makes
)

// Read tells the state of this host. It runs exportfs -s, where that is installed,
// and systemctl show, where systemd runs, and never touches a mounted file system,
// so that a server that does not answer does not hang it.
func (h *Host) Read(ctx context.Context) (State, error) {
	s := State{Units: map[string]Unit{}, fstab: h.fstab()}
	var err error
	if s.Mounts, err = h.mounts(); err != nil {
		return State{}, err
	}
	s.Fstab, s.FstabFault = parseFile(h.path(fstabFile), nfs.ParseFstab)
	if s.Exports, err = h.exports(ctx); err == nil {
		s.Files, err = h.exportsFiles(s.Mounts)
	}
	if err != nil {
		s.Exports, s.Files, s.ExportsFault = nil, nil, err
	}
	size, err := os.ReadFile(h.path("/proc/fs/nfsd/max_block_size"))
	if err == nil {
		s.MaxBlockSize, err = strconv.ParseInt(strings.TrimSpace(string(size)), 10, 64)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return State{}, fmt.Errorf("read the limit of nfsd: %w", err)
	}
	if _, err := os.Stat(h.path("/run/systemd/system")); err == nil {
		s.Systemd = true
	}
	for _, m := range s.Mounts {
		if !s.Systemd || !nfs.IsNFS(m.Type) {
			continue
		}
		if s.Units[m.Point], err = h.unit(ctx, m.Point); err != nil {
			return State{}, err
		}
	}
	return s, nil
}

// At returns the NFS mount whose mount point is dir. It fails where something else
// is there, and says what.
func (s State) At(dir string) (nfs.Mount, error) {
	if !path.IsAbs(dir) {
		return nfs.Mount{}, fmt.Errorf("mount point %q is not an absolute path", dir)
	}
	dir = path.Clean(dir)
	m, found := nfs.Covering(s.Mounts, dir)
	switch {
	case !found:
		return nfs.Mount{}, fmt.Errorf("no mount holds %s", dir)
	case m.Point != dir && nfs.IsNFS(m.Type):
		return nfs.Mount{}, fmt.Errorf("%s is no mount point: it lies on the mount of %s at %s, name that", dir, m.Source, m.Point)
	case m.Point == dir && m.Type == autofs:
		return nfs.Mount{}, fmt.Errorf("nothing is mounted at %s now: use it once (ls %[1]s), so that autofs mounts it", dir)
	case m.Point != dir:
		return nfs.Mount{}, fmt.Errorf("nothing is mounted at %s: it lies on %s at %s, of type %s", dir, m.Source, m.Point, m.Type)
	case !nfs.IsNFS(m.Type):
		return nfs.Mount{}, fmt.Errorf("%s at %s is of type %s, not a mount of the kernel's NFS client", m.Source, dir, m.Type)
	}
	return m, nil
}

// stack returns the mounts whose mount point is dir, the visible one last. An automount
// of systemd, which is not in the way of what its unit mounts on it, is none.
func stack(mounts []nfs.Mount, dir string) []nfs.Mount {
	return slices.DeleteFunc(slices.Clone(mounts), func(m nfs.Mount) bool {
		return m.Point != dir || m.Type == autofs && m.Source == "systemd-1"
	})
}

// autofs is the type of what mounts a file system once its mount point is used.
const autofs = "autofs"

// below returns the mount points of the mounts on m.
func below(mounts []nfs.Mount, m nfs.Mount) []string {
	var points []string
	for _, other := range mounts {
		if other.Parent == m.ID && other.ID != m.ID {
			points = append(points, other.Point)
		}
	}
	return points
}

func (h *Host) mounts() ([]nfs.Mount, error) {
	return parseFile(h.path("/proc/self/mountinfo"), nfs.ParseMountinfo)
}

// exports returns the server's table; none where no server is installed.
func (h *Host) exports(ctx context.Context) ([]nfs.Export, error) {
	out, err := h.sys.run(ctx, "exportfs", "-s")
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read the table of exports: %w", err)
	}
	table, err := nfs.ParseExports(strings.NewReader(out))
	if err != nil {
		return nil, fmt.Errorf("read the table of exports: exportfs -s: %w", err)
	}
	for _, e := range table {
		for i, c := range e.Clients { // exportfs shows only the default of the two
			if !slices.Contains(c.Options, "no_subtree_check") {
				e.Clients[i].Options = c.Options.With("subtree_check")
			}
		}
	}
	return table, nil
}

func (h *Host) exportsFiles(mounts []nfs.Mount) ([]ExportsFile, error) {
	names := []string{exportsFile}
	entries, err := os.ReadDir(h.path(exportsDir))
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return versionOrder(a.Name(), b.Name()) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".exports") {
			names = append(names, path.Join(exportsDir, name))
		}
	}
	var files []ExportsFile
	for _, name := range names {
		exports, err := parseFile(h.path(name), nfs.ParseExports)
		if err != nil {
			return nil, err
		}
		for i, e := range exports {
			exports[i].Path = h.inTable(e.Path, mounts)
		}
		files = append(files, ExportsFile{name, exports})
	}
	return files, nil
}

// inTable returns the path that exportfs(8) gives a directory in its table: without the
// symbolic links that a file may name it by. What lies on an NFS mount is not looked at.
func (h *Host) inTable(name string, mounts []nfs.Mount) string {
	name = path.Clean(name)
	if m, found := nfs.Covering(mounts, name); found && nfs.IsNFS(m.Type) {
		return name
	}
	if real, err := filepath.EvalSymlinks(h.path(name)); err == nil {
		return path.Join("/", strings.TrimPrefix(real, h.root))
	}
	return name
}

// versionOrder compares as strverscmp(3) does, by which exportfs(8) sorts: numbers by
// what they count, after those that begin with a zero, and of those the ones with more
// zeros first.
func versionOrder(a, b string) int {
	isDigit := func(s string, i int) bool { return i < len(s) && '0' <= s[i] && s[i] <= '9' }
	i, number := 0, 0 // where the two differ, and where the digits before that begin
	for i < min(len(a), len(b)) && a[i] == b[i] {
		if i++; !isDigit(a, i-1) {
			number = i
		}
	}
	length := func(s string) int {
		n := number
		for isDigit(s, n) {
			n++
		}
		return n - number
	}
	if strings.HasPrefix(a[number:], "0") || strings.HasPrefix(b[number:], "0") {
		if zeros := a[number:i]; zeros != "" && strings.Trim(zeros, "0") == "" && isDigit(a, i) != isDigit(b, i) {
			return either(isDigit(a, i), -1, 1)
		}
	} else if la, lb := length(a), length(b); la > 0 && lb > 0 && la != lb {
		return la - lb
	}
	return strings.Compare(a[i:], b[i:])
}

func (h *Host) unit(ctx context.Context, point string) (Unit, error) {
	name := UnitName(point)
	out, err := h.sys.run(ctx, "systemctl", "show", "--property=FragmentPath,DropInPaths,UnitFileState", "--", name) // that of / begins with a dash
	if err != nil {
		return Unit{}, fmt.Errorf("ask systemd for the unit of %s: %w", point, err)
	}
	properties := map[string]string{}
	for line := range strings.Lines(out) {
		property, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		properties[property] = value
	}
	u := Unit{Path: properties["FragmentPath"], Enabled: properties["UnitFileState"] == "enabled"}
	if u.Path == "" {
		return u, nil
	}
	var all strings.Builder
	for i, file := range append([]string{u.Path}, strings.Fields(properties["DropInPaths"])...) {
		text, err := os.ReadFile(h.path(file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Unit{}, err
		}
		if i == 0 {
			u.Ours = file == path.Join(unitDir, name) && sealed.IsOurs(string(text))
		}
		all.WriteString(string(text) + "\n")
	}
	u.Options = unitOptions(all.String())
	return u, nil
}

// path returns where a file of the system is.
func (h *Host) path(name string) string { return filepath.Join(h.root, name) }

// fstab returns the name of our own.
func (h *Host) fstab() string { return filepath.Join(h.dir, "fstab") }

// parseFile reads a file; the zero value where there is none.
func parseFile[T any](name string, parse func(io.Reader) (T, error)) (T, error) {
	var zero T
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return zero, nil
	} else if err != nil {
		return zero, err
	}
	parsed, err := parse(bytes.NewReader(text))
	if err != nil {
		return zero, fmt.Errorf("read %s: %w", name, err)
	}
	return parsed, nil
}
