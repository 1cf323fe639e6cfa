package localcopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// way makes t.temp from t.src, whole and synced. An error that is unsupported
// means that the next way may do better.
type way struct {
	how  string
	make func(ctx context.Context, t *task) error
}

// task is one file to be staged.
type task struct {
	file   mover.File
	src    *os.File
	box    *os.Root
	dir    *os.File // box, opened
	temp   string
	free   func(*os.File) (int64, error)
	settle settler // nil: no need
	report func(moved int64)

	sums  []digest.Block // of the blocks that were copied
	again int            // blocks that were written once more
}

// place makes the file under its hidden name, and renames it to name. On an error
// the hidden name is gone.
func (t *task) place(ctx context.Context, w way, name string) error {
	err := w.make(ctx, t)
	if err == nil {
		err = t.box.Rename(t.temp, name)
	}
	if err == nil {
		return errors.Join(durable.SyncDir(t.box, "."), kept(ctx, t.settle, name, t.file.Size))
	}
	if e := t.box.Remove(t.temp); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// explain makes mover.ErrSpace of what a full filesystem or quota says.
func (t *task) explain(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	n, statErr := t.free(t.dir)
	return errors.Join(fmt.Errorf("%w on the export: the image needs %d bytes, %d are free: %w", mover.ErrSpace, t.file.Size, n, err), statErr)
}

// unsupported reports whether the filesystems, or this user's rights on them, do
// not allow a way.
func unsupported(err error) bool {
	for _, no := range []error{unix.EXDEV, unix.EPERM, unix.EACCES, unix.EMLINK, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL, unix.ENOTTY} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// linkFile makes a hard link.
func linkFile(_ context.Context, t *task) error {
	if err := unix.Linkat(unix.AT_FDCWD, t.src.Name(), int(t.dir.Fd()), t.temp, 0); err != nil {
		return fmt.Errorf("link %s: %w", t.src.Name(), err)
	}
	opened, err := t.src.Stat()
	if err != nil {
		return err
	}
	linked, err := t.box.Lstat(t.temp)
	if err != nil {
		return err
	}
	if !os.SameFile(opened, linked) {
		return fmt.Errorf("%s was replaced while it was linked", t.src.Name())
	}
	if err := t.src.Sync(); err != nil { // Glance does not
		return err
	}
	t.report(t.file.Size)
	return nil
}

// cloneFile makes a file that shares the store's blocks.
func cloneFile(_ context.Context, t *task) error {
	return t.create(func(dst *os.File) error {
		if err := unix.IoctlFileClone(int(dst.Fd()), int(t.src.Fd())); err != nil {
			return fmt.Errorf("reflink %s: %w", t.src.Name(), err)
		}
		info, err := dst.Stat()
		if err != nil {
			return err
		}
		if info.Size() != t.file.Size {
			return fmt.Errorf("%w: want %d bytes, got %d", mover.ErrTruncated, t.file.Size, info.Size())
		}
		t.report(t.file.Size)
		return nil
	})
}

// copyFile copies and proves the content in one pass. It does not begin when the
// space will not do.
func copyFile(ctx context.Context, t *task) error {
	var src unix.Stat_t
	if err := unix.Fstat(int(t.src.Fd()), &src); err != nil {
		return fmt.Errorf("copy %s: %w", t.src.Name(), err)
	}
	need := min(t.file.Size, src.Blocks*512) // a sparse file needs less
	n, err := t.free(t.dir)
	if err != nil {
		return err
	}
	if n < need {
		return fmt.Errorf("copy %s: %w", t.src.Name(), unix.ENOSPC)
	}
	return t.create(func(dst *os.File) error {
		if err := t.copyData(ctx, dst, t.src); err != nil || t.settle == nil {
			return err
		}
		return t.settled(ctx, dst)
	})
}

// create makes the hidden file, lets fill fill it, and syncs it.
func (t *task) create(fill func(dst *os.File) error) error {
	dst, err := t.box.OpenFile(t.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	if err = fill(dst); err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

var zeros [mover.BlockSize]byte

// copyData copies the file's size bytes of src to dst, which is empty, and proves
// them. Blocks of zeros become holes.
func (t *task) copyData(ctx context.Context, dst *os.File, src io.Reader) error {
	h, err := digest.New(t.file.Digest.Algo)
	if err != nil {
		return err
	}
	buf := make([]byte, mover.BlockSize)
	for done := int64(0); done < t.file.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		block := buf[:min(int64(len(buf)), t.file.Size-done)]
		n, err := io.ReadFull(src, block)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("%w: want %d bytes, it ends after %d", mover.ErrTruncated, t.file.Size, done+int64(n))
		}
		if err != nil {
			return err
		}
		var hashing sync.WaitGroup
		hashing.Go(func() { h.Write(block) })
		if !bytes.Equal(block, zeros[:len(block)]) {
			_, err = dst.WriteAt(block, done)
		}
		if t.settle != nil {
			t.sums = append(t.sums, digest.OfBlock(block))
		}
		hashing.Wait()
		if err != nil {
			return err
		}
		done += int64(n)
		t.report(done)
	}
	if err := digest.Check(t.file.Digest, digest.Of(t.file.Digest.Algo, h)); err != nil {
		return err
	}
	return dst.Truncate(t.file.Size) // when it ends with a hole
}

// free returns the bytes that this user can still write to dir's filesystem.
func free(dir *os.File) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil {
		return 0, fmt.Errorf("ask for free space: %w", err)
	}
	return int64(s.Bavail) * s.Frsize, nil
}
