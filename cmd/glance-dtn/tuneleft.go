package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
)

// leftovers is what tune nfs has made outside of its process, known durably before it is
// made, so that a run that is killed leaves nothing for good: the next one, and --undo,
// clear it away. It has the state directory locked: two sweeps at once would measure each
// other, and undo each other's changes.
type leftovers struct {
	state  string
	lock   *os.File
	files  []scratchFiles
	beyond []scratchFiles // noted too, and not removed again: their server is away
}

// scratchFiles are names of files in the directory that a source has.
type scratchFiles struct {
	Source  string      `json:"source"`
	Options nfs.Options `json:"options"`
	Dir     string      `json:"dir,omitempty"` // the directory itself, where this host exports it
	Names   []string    `json:"names"`
}

// takeLeftovers locks the state directory and reads what is left there. Close is needed
// if, and only if, the error is nil.
func takeLeftovers(state string) (*leftovers, error) {
	lock, err := durable.LockDir(filepath.Join(state, "running"))
	switch {
	case errors.Is(err, durable.ErrLocked):
		return nil, fmt.Errorf("another tune nfs runs on this host, with the state in %s: two at once would measure each other: wait until it has ended", state)
	case err != nil:
		return nil, fmt.Errorf("use the state directory %s (--state names another one): %w", state, err)
	}
	l := &leftovers{state: state, lock: lock}
	if l.files, err = readScratchFiles(state); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return l, nil
}

func (l *leftovers) Close() error { return l.lock.Close() }

const scratchFilesName = "files.json"

func readScratchFiles(state string) (all []scratchFiles, err error) {
	name := filepath.Join(state, scratchFilesName)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields() // of a newer version: what it noted must not be dropped
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("%s, the list of scratch files, cannot be read: %w: remove by hand what it names, then remove it", name, err)
	}
	return all, nil
}

func (l *leftovers) write() error {
	root, err := os.OpenRoot(l.state)
	if err != nil {
		return err
	}
	defer root.Close()
	all := slices.Concat(l.beyond, l.files)
	if len(all) == 0 {
		return durable.Remove(root, scratchFilesName)
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(root, scratchFilesName, append(text, '\n'), 0o600)
}

// at is the index of what is noted of the target; below 0: nothing.
func (l *leftovers) at(t nfsTarget) int {
	return slices.IndexFunc(l.files, func(o scratchFiles) bool { return o.Source == t.source && slices.Equal(o.Options, t.options) })
}

// making notes a file that is about to be made in the target's directory.
func (l *leftovers) making(t nfsTarget) func(name string) error {
	return func(name string) error {
		f := scratchFiles{Source: t.source, Options: t.options}
		if t.export != nil {
			f.Dir = t.dir
		}
		i := l.at(t)
		if i < 0 {
			i, l.files = len(l.files), append(l.files, f)
		}
		l.files[i].Names = append(l.files[i].Names, name)
		if err := l.write(); err != nil {
			return fmt.Errorf("note %s, to be removed: %w", name, err)
		}
		return nil
	}
}

// gone takes back the note of a file that is not in the target's directory.
func (l *leftovers) gone(t nfsTarget) func(name string) error {
	return func(name string) error {
		i := l.at(t)
		if i < 0 {
			return nil
		}
		names := slices.DeleteFunc(l.files[i].Names, func(n string) bool { return n == name })
		l.files[i].Names = names
		if len(names) == 0 {
			l.files = slices.Delete(l.files, i, i+1)
		}
		return l.write()
	}
}

// forget drops the notes of all files, wherever they are, and says which.
func (l *leftovers) forget() (did []string, err error) {
	for _, f := range slices.Concat(l.beyond, l.files) {
		for _, name := range f.Names {
			did = append(did, fmt.Sprintf("Forget %s in %s.", name, f.Source))
		}
	}
	l.beyond, l.files = nil, nil
	if len(did) == 0 {
		return nil, nil
	}
	return did, l.write()
}

// remove removes the files, and says which. Those that it cannot remove stay noted, for
// another process: one that is told so once does not wait for their server again.
func (l *leftovers) remove(ctx context.Context, h *host.Host) (did []string, err error) {
	if len(l.files) == 0 {
		return nil, nil
	}
	var faults []error
	for _, f := range l.files {
		if err := f.remove(ctx, h); err != nil {
			l.beyond = append(l.beyond, f)
			faults = append(faults, fmt.Errorf("remove %q from %s (glance-dtn tune nfs --undo tries again, with --force it forgets them): %w", f.Names, f.Source, err))
			continue
		}
		did = append(did, f.says()...)
	}
	l.files = nil
	return did, errors.Join(append(faults, l.write())...)
}

func (f scratchFiles) says() (all []string) {
	for _, name := range f.Names {
		all = append(all, fmt.Sprintf("Remove %s from %s.", name, f.Source))
	}
	return all
}

// removeTime is how long a server is waited for that may be away.
const removeTime = 10 * time.Second

// remove removes the files by the nearest way to them: those of this host by their names,
// those of a server with the protocol alone, or, as root, through a mount.
func (f scratchFiles) remove(ctx context.Context, h *host.Host) error {
	each := func(remove func(name string) error) error {
		var all []error
		for _, name := range f.Names {
			all = append(all, remove(name))
		}
		return errors.Join(all...)
	}
	in := func(dir string) error {
		return each(func(name string) error { return removeIfThere(filepath.Join(dir, name)) })
	}
	if f.Dir != "" {
		return in(f.Dir)
	}
	byProbe := func() error {
		ctx, cancel := context.WithTimeout(ctx, removeTime)
		defer cancel()
		p, err := nfsTarget{source: f.Source, options: f.Options}.dial(ctx, 1, nil)
		if err != nil {
			return err
		}
		return errors.Join(each(func(name string) error { return p.Remove(ctx, name) }), p.Close())
	}
	err := byProbe()
	if err != nil && os.Geteuid() == 0 {
		err = h.Scratch(ctx, f.Source, f.Options.With("rw"), in)
	}
	return err
}

// recover puts back what a killed run has left of the export and of mounts. It goes on
// after an error.
func (l *leftovers) recover(ctx context.Context, h *host.Host) (did []string, err error) {
	did, err = host.New(sweepState(l.state)).Undo(ctx, false)
	if err != nil {
		err = fmt.Errorf("put back the export that an earlier sweep has changed (glance-dtn tune nfs --undo tries again): %w", err)
	}
	more, mountErr := h.Unscratch(ctx, false)
	return append(did, more...), errors.Join(err, mountErr)
}

// sweepState is where a sweep keeps what it changes meanwhile: apart from what
// --apply has changed for good.
func sweepState(dir string) string { return filepath.Join(dir, "sweep") }

// recoverable says what recover would do.
func recoverable(ctx context.Context, state string) (says []string, err error) {
	says, err = host.New(sweepState(state)).Undoable()
	mounts, mountErr := host.New(state).Unscratch(ctx, true)
	files, fileErr := readScratchFiles(state)
	says = append(says, mounts...)
	for _, f := range files {
		says = append(says, f.says()...)
	}
	return says, errors.Join(err, mountErr, fileErr)
}
