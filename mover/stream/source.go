package stream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/glance-dtn/glance-dtn/mover"
)

// openSource opens the staged file f. Neither a link nor anything else that is not
// a plain file is followed or waited for.
func (e *Engine) openSource(f mover.File) (file *os.File, err error) {
	if err := mover.CheckName(mover.Outbox, f.Name); err != nil {
		return nil, mover.Coded(mover.CodeName, err)
	}
	if f.Size < 0 || f.Size > maxBlocks*mover.BlockSize {
		return nil, mover.Coded(mover.CodeSource, fmt.Errorf("%d bytes are not a size that can be sent", f.Size))
	}
	if err := f.CheckDigest(); err != nil {
		return nil, mover.Coded(mover.CodeSource, err)
	}
	err = e.outbox.use(e.Root, f.Name, func(dir *os.Root, base string) (err error) {
		file, err = openIn(dir, base, f)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, mover.Coded(mover.CodeSource, fmt.Errorf("it is not staged: %w", err))
	}
	return file, forbidden(f.Name, err)
}

// openIn opens the staged file f, whose name is base under root.
func openIn(root *os.Root, base string, f mover.File) (*os.File, error) {
	before, err := root.Lstat(base)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file (%v)", f.Name, before.Mode().Type()))
	}
	file, err := root.OpenFile(base, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := sameSource(file, before, f); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// forbidden gives a file that this user may not read its code: a hard link in the
// outbox has the owner and the mode of the store's file.
func forbidden(name string, err error) error {
	if !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EPERM) {
		return err
	}
	return mover.Coded(mover.CodeName, fmt.Errorf("the DTN's user may not read %s: put that user into the group that owns the image store's files (glance) "+
		"and restart the DTN, or set transfer.stage: copy in the agent's configuration: %w", name, err))
}

// sameSource reports whether the file that was opened is the one that was looked at.
func sameSource(file *os.File, before fs.FileInfo, f mover.File) error {
	now, err := file.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(before, now) {
		return mover.Coded(mover.CodeName, fmt.Errorf("%s was replaced while it was opened", f.Name))
	}
	return checkSize(now.Size(), f.Size)
}

// checkSize reports a staged file that is not as long as was said.
func checkSize(got, want int64) error {
	if got != want {
		return mover.Coded(mover.CodeSource, fmt.Errorf("the staged file has %d bytes instead of %d", got, want))
	}
	return nil
}

// readBlock fills b from off.
func readBlock(f *os.File, b []byte, off int64) error {
	_, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		return errShort
	}
	return err
}

var errShort = mover.Coded(mover.CodeSource, errors.New("the staged file became shorter while it was sent"))
