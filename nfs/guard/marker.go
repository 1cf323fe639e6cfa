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

	"github.com/glance-dtn/glance-dtn/internal/durable"
)

// MarkerFile is the name of the marker at an export's root.
const MarkerFile = ".glance-dtn-export"

// memoryFile holds, in a daemon's state directory, what it knows of its export.
const memoryFile = "export.json"

// Marker says which export a directory is the root of. The DTN makes it once; a
// copy of the export has it too.
type Marker struct {
	Site string `json:"site"`
	ID   string `json:"id"` // random
}

// Mark returns the marker of a DTN's export, which it makes at the first start of
// the DTN. state remembers it: an export whose marker is missing later, or is
// another one, is refused, because its disk is not mounted or another one is. So is
// one of another site. It is for one process at a time.
func Mark(export, state *os.Root, site string) (Marker, error) {
	var known Marker
	err := recall(state, &known)
	if err != nil {
		return Marker{}, err
	}
	m, err := readMarker(export)
	meant := fmt.Sprintf("is the right disk mounted there? If this is meant, remove %s/%s and start again", state.Name(), memoryFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && known.ID != "":
		return m, fmt.Errorf("export %s has no %s, and had one when this DTN ran last; %s", export.Name(), MarkerFile, meant)
	case errors.Is(err, fs.ErrNotExist):
		m = Marker{Site: site, ID: rand.Text()}
		if err := writeJSON(export, MarkerFile, m, 0o644); err != nil {
			return m, fmt.Errorf("mark the export: %w", err)
		}
	case err != nil:
		return m, fmt.Errorf("export %s: %w", export.Name(), err)
	case m.Site != site:
		return m, fmt.Errorf("export %s belongs to site %s, this DTN to site %s; give each its own, or remove %s there if the directory has changed hands", export.Name(), m.Site, site, MarkerFile)
	case known.ID != "" && known.ID != m.ID:
		return m, fmt.Errorf("export %s is another one (%s) than when this DTN ran last (%s); %s", export.Name(), m.ID, known.ID, meant)
	}
	if err := readable(export); err != nil {
		return m, fmt.Errorf("mark the export: %w", err)
	}
	if known != m {
		err = writeJSON(state, memoryFile, m, 0o600)
	}
	return m, err
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
var errNoMarker = errors.New("is not a marker that glance-dtn dtn has made; remove it and restart the DTN")

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
		return Marker{}, fmt.Errorf("%s %w", MarkerFile, errNoMarker)
	}
	data, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return Marker{}, err
	}
	var m Marker
	if json.Unmarshal(data, &m) != nil || m.Site == "" || m.ID == "" {
		return Marker{}, fmt.Errorf("%s %w", MarkerFile, errNoMarker)
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
