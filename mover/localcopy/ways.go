package localcopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
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
	twin   string // a file in the box of the same content; empty: none
	free   func(*os.File) (int64, error)
	atOnce func() (int64, error)
	settle settler // nil: no need
	report func(moved int64)

	sums    []digest.Block // of the blocks that were copied
	safe    int64          // blocks from the start that the DTN's disk has
	written int64          // bytes that are not holes
	again   int            // blocks that were written once more
}

// place makes the file under its hidden name, and renames it to name. On an error
// the hidden name is gone, and name too when the file is of no use; next says whether
// another way may do better.
func (t *task) place(ctx context.Context, w way, name string) (how string, next bool, err error) {
	t.sums, t.safe, t.written, t.again = nil, 0, 0, 0
	err = w.make(ctx, t)
	next = unsupported(err)
	if err == nil {
		err = t.box.Rename(t.temp, name)
	}
	if err != nil {
		return "", next, errors.Join(err, t.discard(t.temp))
	}
	if err = durable.SyncDir(t.box, "."); err == nil {
		err = kept(ctx, t.settle, name, t.file.Size, 0)
	}
	if useless(err) {
		err = errors.Join(err, durable.Remove(t.box, name))
	}
	return t.how(w), errors.Is(err, mover.ErrUnreadable), err
}

// discard removes a name that may be there.
func (t *task) discard(name string) error {
	if err := t.box.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// useless reports whether the DTN said of a staged file that it has to be made anew: it
// may not read it, or its disk did not take it, which it is told of once.
func useless(err error) bool {
	return errors.Is(err, mover.ErrUnreadable) || mover.CodeOf(err) == mover.CodeContent
}

// how names the way, what of the file is holes, and what had to be done twice.
func (t *task) how(w way) string {
	how := w.how
	if holes := 100 * (t.file.Size - t.written) / max(t.file.Size, 1); holes > 0 && w.how != hardLink && w.how != reflink && w.how != twinned {
		how += fmt.Sprintf(", %d %% holes", holes)
	}
	if t.again > 0 {
		how += fmt.Sprintf(", %d blocks that the DTN had lost written again", t.again)
	}
	return how
}

// explain makes mover.ErrSpace of what a full filesystem or quota says, and tells whose
// file handle is stale and what to do: the errors of an NFS mount come in numbers then.
func (t *task) explain(err error) error {
	if errors.Is(err, unix.ESTALE) {
		stale, dir := "the export", filepath.Dir(t.box.Name())
		if at, ok := errors.AsType[*fs.PathError](err); ok && at.Path == t.src.Name() {
			stale, dir = "the datadir's file", filepath.Dir(t.src.Name())
		}
		return fmt.Errorf("%s was not staged, because the NFS server of %s removed what was open there, or exports another file system in its place: %w; if it stays so, mount anew: umount --lazy %[4]s && mount %[4]s",
			t.src.Name(), stale, unix.ESTALE, dir)
	}
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

// create makes the hidden file, lets fill fill it, and syncs it.
func (t *task) create(fill func(dst *os.File) error) error {
	dst, err := newFile(t.box, t.temp)
	if err != nil {
		return err
	}
	if err = fill(dst); err == nil {
		err = dst.Sync()
	}
	disk.Drop(dst, 0, 0)
	if closed := dst.Close(); err == nil { // it repeats what a write has said
		err = closed
	}
	return err
}

// newFile makes a file that the DTN may read: one of mode 0640, whatever the umask,
// that has the box's owner or group. It is the DTN that made the box.
func newFile(box *os.Root, name string) (*os.File, error) {
	f, err := box.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return nil, denied(box, ".", err)
	}
	if err := shared(box, f); err != nil {
		return nil, errors.Join(err, f.Close(), box.Remove(name))
	}
	return f, nil
}

// denied adds to an error that is fs.ErrPermission who may use the directory, and what to do.
func denied(root *os.Root, dir string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	info, e := root.Stat(dir)
	if e != nil {
		return errors.Join(err, e)
	}
	is := info.Sys().(*syscall.Stat_t)
	cure := fmt.Sprintf("make this user a member of group %d", is.Gid)
	if os.Geteuid() == 0 {
		cure = fmt.Sprintf("the NFS server makes nobody of root (root_squash): run the agent as glance, a member of group %d", is.Gid)
	}
	return fmt.Errorf("%w: the directory belongs to %d:%d with mode %v, this agent is uid %d; %s", err, is.Uid, is.Gid, info.Mode(), os.Geteuid(), cure)
}

// shared returns nil when the DTN may read f, which is new in the box.
func shared(box *os.Root, f *os.File) error {
	info, err := f.Stat()
	if err == nil && info.Mode().Perm() != 0o640 {
		err = f.Chmod(0o640)
	}
	if err != nil {
		return err
	}
	dir, err := box.Stat(".")
	if err != nil {
		return err
	}
	is, in := info.Sys().(*syscall.Stat_t), dir.Sys().(*syscall.Stat_t)
	if is.Uid == in.Uid || is.Gid == in.Gid {
		return nil
	}
	cure := fmt.Sprintf("give what is made there its group: chmod g+s, and chgrp to the DTN's group, on the outbox (now %v)", dir.Mode())
	if int(is.Uid) != os.Geteuid() {
		cure = "the NFS server makes another user of this one (root_squash, all_squash): run the agent as glance, without all_squash in the export"
	}
	return fmt.Errorf("the DTN could not read what this agent (uid %d) writes: it belongs to %d:%d, the outbox to %d:%d; %s",
		os.Geteuid(), is.Uid, is.Gid, in.Uid, in.Gid, cure)
}

// free returns the bytes that this user can still write to dir's filesystem.
func free(dir *os.File) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil {
		return 0, fmt.Errorf("ask for free space: %w", err)
	}
	return int64(s.Bavail) * s.Frsize, nil
}
