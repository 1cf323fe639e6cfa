package localcopy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/mover"
)

// probeOf begins the hidden names of files that only try whether one can be written.
const probeOf = "check"

// Try makes sure that the export has both boxes, and that files can be written to the
// outbox: mover.ErrSpace when it is full, mover.ErrOutbox when it is that alone which
// cannot be used. It may hang as long as the export does.
func Try(export *os.Root) error {
	inbox, err := openBox(export, mover.Inbox)
	if err != nil {
		return err
	}
	defer inbox.Close()
	err = tryOutbox(export)
	errno, told := errors.AsType[unix.Errno](err)
	if err == nil || told && !slices.Contains([]unix.Errno{unix.EROFS, unix.EACCES, unix.EPERM}, errno) {
		return err // of the whole export, or full
	}
	return fmt.Errorf("%w: %w", mover.ErrOutbox, err)
}

// tryOutbox writes a file. Its name is new and nothing is written through what has it
// already: the DTN's user may write to the outbox too, and could have put a link to one
// of this user's files there.
func tryOutbox(export *os.Root) error {
	outbox, err := openBox(export, mover.Outbox)
	if err != nil {
		return err
	}
	defer outbox.Close()
	if err := sweep(outbox, ""); err != nil { // what a killed agent left, not what another one uses
		return fmt.Errorf("remove an old probe from the export: %w", err)
	}
	name := tempName(probeOf)
	if err := probe(outbox, name); err != nil {
		return nameless{err, name}
	}
	return nil
}

// nameless is an error without the probe's name, by which every look would tell
// something new.
type nameless struct {
	error
	name string
}

func (n nameless) Error() string { return strings.ReplaceAll(n.error.Error(), n.name, "a file") }
func (n nameless) Unwrap() error { return n.error }

func probe(outbox *os.Root, name string) error {
	f, err := newFile(outbox, name)
	if err != nil {
		return notWritten(err)
	}
	_, err = f.WriteString("x")
	if closed := f.Close(); err == nil {
		err = closed
	}
	removed := outbox.Remove(name)
	switch {
	case err != nil:
		return notWritten(err)
	case removed != nil && !errors.Is(removed, fs.ErrNotExist):
		return fmt.Errorf("remove from the export: %w", removed)
	}
	return nil
}

func notWritten(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %w", mover.ErrSpace, err)
	}
	return fmt.Errorf("write to the export: %w", err)
}
