package guard

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/durable"
)

// MarkerFile is the name of the marker at an export's root.
const MarkerFile = ".glance-dtn-export"

// memoryFile holds, in a daemon's state directory, what it knows of its export.
const memoryFile = "export.json"

// Marker says which export a directory is the root of. The DTN makes it once, and keeps it
// there; a copy of the export has it too.
type Marker struct {
	Site string `json:"site"`
	ID   string `json:"id"` // random
}

// noted is what a DTN keeps of its export.
type noted struct {
	Marker
	// Born tells the export's directory from every other: its inode number, and when it
	// was made. Empty: its file system does not say.
	Born string `json:"born,omitempty"`
}

// Mark returns the marker of a DTN's export, which it makes at the first start of
// the DTN. state remembers it, and the directory that has it: there a marker that was
// lost is put back. Any other directory without it, or with another one, is refused,
// because its disk is not mounted or another one is. So is one of another site. It is
// for one process at a time.
func Mark(export, state *os.Root, site string) (Marker, error) {
	var known noted
	err := recall(state, &known)
	if err != nil {
		return Marker{}, err
	}
	now := noted{}
	if now.Born, err = born(export); err != nil {
		return Marker{}, fmt.Errorf("mark the export: %w", err)
	}
	now.Marker, err = readMarker(export)
	meant := fmt.Sprintf("mount its disk; if the export is a new one, remove %s/%s and start again", state.Name(), memoryFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && known.ID == "":
		now.Marker, err = Marker{Site: site, ID: rand.Text()}, nil
	case errors.Is(err, fs.ErrNotExist) && now.Born != "" && now.Born == known.Born && known.Site == site:
		now.Marker, err = known.Marker, nil
	case errors.Is(err, fs.ErrNotExist):
		return now.Marker, fmt.Errorf("export %s has no %s, and is not known to be the directory that had it when this DTN ran last; %s", export.Name(), MarkerFile, meant)
	}
	switch {
	case err != nil:
		return now.Marker, fmt.Errorf("export %s: %w", export.Name(), err)
	case now.Site != site:
		return now.Marker, fmt.Errorf("export %s belongs to site %s, this DTN to site %s; give each its own, or remove %s there if the directory has changed hands", export.Name(), now.Site, site, MarkerFile)
	case known.ID != "" && known.ID != now.ID:
		return now.Marker, fmt.Errorf("export %s is another one (%s) than when this DTN ran last (%s); %s", export.Name(), now.ID, known.ID, meant)
	}
	if _, err := Keep(export, now.Marker); err != nil {
		return now.Marker, err
	}
	if known != now {
		err = writeJSON(state, memoryFile, now, 0o600)
	}
	return now.Marker, err
}

// Keep returns nil when export is still the directory at its path and bears the marker.
// One that is missing it puts back, and says so. export is the handle that Mark was
// given: it stays on the export's disk, whatever is mounted and unmounted over the path.
// Calls must not overlap.
func Keep(export *os.Root, m Marker) (put bool, err error) {
	opened, err := export.Stat(".")
	var there os.FileInfo
	if err == nil {
		there, err = os.Stat(export.Name())
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("export %s is not there any more; mount its disk again", export.Name())
	case err != nil:
		return false, fmt.Errorf("look at the export: %w", err)
	case !os.SameFile(opened, there):
		return false, fmt.Errorf("export %s is not the directory that this DTN has opened; mount its disk again, or restart the DTN if this is the right one", export.Name())
	}
	switch now, err := readMarker(export); {
	case errors.Is(err, fs.ErrNotExist):
		if err := writeJSON(export, MarkerFile, m, 0o644); err != nil {
			return false, fmt.Errorf("export %s has lost its %s, and it cannot be put back: %w", export.Name(), MarkerFile, err)
		}
		put = true
	case err != nil:
		return false, fmt.Errorf("export %s: %w", export.Name(), err)
	case now != m:
		return false, fmt.Errorf("export %s bears the marker of another export, %s of site %s; remove %s there, and this DTN puts its own back", export.Name(), now.ID, now.Site, MarkerFile)
	}
	if err := readable(export); err != nil {
		return put, fmt.Errorf("export %s: %w", export.Name(), err)
	}
	return put, nil
}

// born is noted.Born of a directory.
func born(dir *os.Root) (string, error) {
	d, err := dir.Open(".")
	if err != nil {
		return "", err
	}
	defer d.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(d.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", os.NewSyscallError("statx", err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return "", nil
	}
	return fmt.Sprintf("%d %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}

// readable lets everyone read the marker, whatever the umask that it was made with: who
// mounts the export has another user.
func readable(export *os.Root) error {
	info, err := export.Lstat(MarkerFile)
	if err == nil && info.Mode().Perm()&0o444 != 0o444 {
		err = export.Chmod(MarkerFile, 0o644)
	}
	return err
}

// errNoMarker is what a file in the marker's place is that the DTN has not made.
var errNoMarker = errors.New(MarkerFile + " is not a marker; remove it, and the DTN puts its own there")

// readMarker returns the marker at the root; an error that is an fs.ErrNotExist when
// there is none. It never waits for what somebody has put in its place.
func readMarker(root *os.Root) (Marker, error) {
	f, err := root.OpenFile(MarkerFile, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Marker{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Marker{}, err
	}
	if !info.Mode().IsRegular() {
		return Marker{}, errNoMarker
	}
	data, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return Marker{}, err
	}
	var m Marker
	if json.Unmarshal(data, &m) != nil || m.Site == "" || m.ID == "" {
		return Marker{}, errNoMarker
	}
	return m, nil
}

// recall reads what is remembered in a state directory into v, if anything is.
func recall(state *os.Root, v any) error {
	data, err := state.ReadFile(memoryFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("what is known of the export: %s/%s: %w; remove the file if it is damaged", state.Name(), memoryFile, err)
	}
	return nil
}

func writeJSON(root *os.Root, name string, v any, perm os.FileMode) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return err
	}
	return durable.WriteFile(root, name, b.Bytes(), perm)
}
