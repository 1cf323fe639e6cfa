package hosttcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/internal/sealed"
)

// record is what there was before Apply: all that is needed to put it back.
type record struct {
	Settings []saved `json:"settings"`
	NewDir   bool    `json:"new_dir,omitempty"` // /etc/sysctl.d was not there
}

// saved is one setting that Apply has changed, or was about to.
type saved struct {
	Key    string   `json:"key"`
	Before string   `json:"before"` // as the kernel wrote it
	Set    []string `json:"set"`    // what Apply may have given it instead, the newest last
}

// holds reports whether the setting has what Apply gave it.
func (s saved) holds(now string) bool {
	return slices.ContainsFunc(s.Set, func(set string) bool { return same(s.Key, set, now) })
}

const recordName = "undo.json"

// kept reads the undo record.
func (h *Host) kept() (record, error) {
	name := filepath.Join(h.dir, recordName)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	} else if err != nil {
		return record{}, fmt.Errorf("read the undo record: %w", err)
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return record{}, fmt.Errorf("undo record %s cannot be read: %w: put back by hand what it names, then remove it", name, err)
	}
	return r, nil
}

// keep replaces the undo record.
func (h *Host) keep(r record) error {
	root, err := os.OpenRoot(h.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if len(r.Settings) == 0 {
		return durable.Remove(root, recordName)
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = durable.WriteFile(root, recordName, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the undo record: %w", err)
	}
	return nil
}

// lock keeps other processes out.
func (h *Host) lock() (*os.File, error) {
	lock, err := durable.LockDir(h.dir)
	if err != nil {
		return nil, fmt.Errorf("use state directory %s: %w", h.dir, err)
	}
	return lock, nil
}

// ownFile is the file for the host's next start.
func ownFile() string { return filepath.Join(ownDir, ownName) }

// untouched is nil where nobody else has written to our own file.
func (h *Host) untouched() error {
	text, err := os.ReadFile(h.path(ownFile()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = sealed.Check(string(text))
	}
	if err != nil {
		return fmt.Errorf("%s %w", ownFile(), err)
	}
	return nil
}

// lasting has our own file say what the record's settings have by Apply; without any it
// is removed.
func (h *Host) lasting(r record) error {
	dir := h.path(ownDir)
	if len(r.Settings) == 0 {
		root, err := os.OpenRoot(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		defer root.Close()
		if err := durable.Remove(root, ownName); err != nil {
			return fmt.Errorf("in %s: %w", ownDir, err)
		}
		if rest, err := fs.ReadDir(root.FS(), "."); r.NewDir && err == nil && len(rest) == 0 {
			return os.Remove(dir)
		}
		return nil
	}
	var text bytes.Buffer
	for _, s := range r.Settings {
		fmt.Fprintf(&text, "%s = %s\n", s.Key, s.Set[len(s.Set)-1])
	}
	return durable.WritePath(filepath.Join(dir, ownName), []byte(sealed.Seal(text.String())), 0o644)
}
