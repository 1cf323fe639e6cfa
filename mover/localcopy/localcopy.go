// Package localcopy is the first and the last leg of an image's way on the
// agent's side: it puts the store's file into the outbox of the DTN's export, and
// reads arrivals from its inbox. The export is a directory here, on NFS as a rule.
//
// A visible name in the outbox is always a whole file: it was linked, or was made
// under a hidden name, proven and synced, and then renamed.
package localcopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Mode chooses the ways in which Stage may make a copy.
type Mode string

// The modes.
const (
	Auto Mode = "auto" // hard link, else reflink, else server-side copy, else copy
	Copy Mode = "copy" // copy, which proves the content before the DTN sees it
)

// How Stage made a copy. Only the last way brings the bytes here and proves them; of the
// others the DTN proves the content as it sends. A link shares its bytes with the store:
// the DTN must never write to the outbox.
const (
	hardLink   = "hard link"
	reflink    = "reflink"
	serverSide = "server-side copy"
	copied     = "copy"
	twinned    = "second name of another site's copy"
	before     = "staged before" // it was there already
)

// Options are what a Copier needs.
type Options struct {
	// Open opens the root of the export. Whatever it has made sure of holds for all that
	// one call of a Copier's method does.
	Open func() (*os.Root, error)
	Mode Mode
	// Find returns the path and size of an image's file in the store. An error that
	// is an fs.ErrNotExist means that there is none, and that the store is there.
	Find func(id string) (path string, size int64, err error)
	// CopyAtOnce returns how many bytes the NFS server under the export copies by itself in
	// one call; an error where it copies none. Nil: there is no such server.
	CopyAtOnce func() (int64, error)
	// Settle has the DTN sync a file of the outbox, by its base name, and tells what its
	// own disk has of the blocks from one on: what was written through NFS outlives a
	// power cut of the DTN only then, whatever an export that is async says. Nil: the
	// export is a disk of this machine, which keeps what it has synced.
	Settle settler
}

// Copier makes local copies on an export. Its methods may be called at once, but
// not for the same file. It opens the export anew in every call, so that a remount
// is seen.
type Copier struct {
	export func() (*os.Root, error)
	ways   []way
	find   func(id string) (string, int64, error)
	free   func(*os.File) (int64, error)
	atOnce func() (int64, error) // Options.CopyAtOnce
	settle settler
	twins  twins
}

// New returns a Copier. It does not look at the export.
func New(o Options) *Copier {
	c := &Copier{export: o.Open, find: o.Find, free: free, atOnce: o.CopyAtOnce, settle: o.Settle, ways: []way{{twinned, linkTwin}, {copied, copyFile}}}
	if o.Mode == Copy {
		return c
	}
	c.ways = []way{{hardLink, linkFile}, {twinned, linkTwin}, {reflink, cloneFile}, {copied, copyFile}}
	if c.atOnce != nil {
		c.ways = slices.Insert(c.ways, 3, way{serverSide, serverCopy})
	}
	return c
}

// Stage puts the image's file into the outbox under f.Name, durable when it
// returns nil, and says how. It may be repeated; a file that is there with the right
// size stays. A link has the size f.Size; a copy has been proven against f.Digest
// too. On an error no part of a file is left behind. report is called with the bytes
// copied so far, never at once.
//
// The errors are mover.ErrNoFile, mover.ErrTruncated, *digest.MismatchError,
// mover.ErrSpace, mover.ErrNotStaged, mover.ErrUnreadable, ctx's, and what the
// filesystems say.
func (c *Copier) Stage(ctx context.Context, id string, f mover.File, report func(moved int64)) (how string, err error) {
	if err := mover.CheckName(mover.Outbox, f.Name); err != nil {
		return "", failure.Permanently(err)
	}
	name := path.Base(f.Name)
	box, err := c.box(mover.Outbox)
	if err != nil {
		return "", err
	}
	defer box.Close()
	if err := sweep(box, name); err != nil {
		return "", err
	}
	there, err := staged(box, name, f.Size)
	if err != nil {
		return "", err
	}
	if there {
		err := durable.SyncDir(box, ".")
		if err == nil {
			err = kept(ctx, c.settle, name, f.Size, 0) // nothing is lost by asking later
		}
		if err == nil {
			report(f.Size)
			return before, nil
		}
		if !useless(err) {
			return "", err
		}
		if err := durable.Remove(box, name); err != nil {
			return "", err
		}
	}
	src, err := c.source(id, f.Size)
	if err != nil {
		return "", err
	}
	defer src.Close()
	dir, err := box.Open(".")
	if err != nil {
		return "", err
	}
	defer dir.Close()
	w, err := c.twins.enter(ctx, content{id, f.Size, f.Digest})
	if err != nil {
		return "", err
	}
	made := ""
	defer func() { c.twins.leave(w, made) }()
	t := &task{file: f, twin: c.twins.of(w), src: src, box: box, dir: dir, temp: tempName(name), free: c.free, atOnce: c.atOnce, settle: c.settle, report: report}
	for _, w := range c.ways {
		var next bool
		if how, next, err = t.place(ctx, w, name); err == nil {
			made = name
			return how, nil
		}
		if !next {
			break
		}
	}
	return "", t.explain(err)
}

// staged reports whether name is in the outbox with the right size. A file of
// another size is removed.
func staged(box *os.Root, name string, size int64) (bool, error) {
	info, err := box.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		return false, failure.Permanently(fmt.Errorf("%s in the outbox is not a regular file; find out who put it there and remove it", name))
	}
	if info.Size() == size {
		return true, nil
	}
	return false, durable.Remove(box, name)
}

// source opens the image's file in the store and checks its size.
func (c *Copier) source(id string, size int64) (*os.File, error) {
	name, _, err := c.find(id)
	if err == nil {
		var f *os.File
		if f, err = openStored(name, size); err == nil {
			return f, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", mover.ErrNoFile, err)
	}
	return nil, err
}

func openStored(name string, size int64) (*os.File, error) {
	root, err := os.OpenRoot(filepath.Dir(name))
	if err != nil { // that there is no datadir says nothing about the file
		return nil, fmt.Errorf("open the datadir; is it mounted? %v", err)
	}
	defer root.Close()
	f, err := openRegular(root, filepath.Base(name))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%w: want %d bytes, %s has %d", mover.ErrTruncated, size, name, info.Size())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openRegular opens a regular file, never through a symbolic link.
func openRegular(root *os.Root, name string) (*os.File, error) {
	is, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !is.Mode().IsRegular() {
		return nil, failure.Permanently(fmt.Errorf("%s is not a regular file", filepath.Join(root.Name(), name)))
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	if opened, err := f.Stat(); err != nil || !os.SameFile(is, opened) {
		return nil, errors.Join(fmt.Errorf("%s was replaced while it was opened", f.Name()), err, f.Close())
	}
	return f, nil
}

// Unstage removes the file from the outbox, with whatever an interrupted Stage
// left of it; nil when there is nothing.
func (c *Copier) Unstage(ctx context.Context, name string) error {
	if err := mover.CheckName(mover.Outbox, name); err != nil {
		return failure.Permanently(err)
	}
	box, err := c.box(mover.Outbox)
	if err != nil {
		return fmt.Errorf("unstage %s: %w", name, err)
	}
	defer box.Close()
	c.twins.forget(path.Base(name))
	err = errors.Join(ctx.Err(), sweep(box, path.Base(name)))
	if err == nil {
		err = durable.Remove(box, path.Base(name))
	}
	if err != nil {
		return fmt.Errorf("unstage %s: %w", name, err)
	}
	return nil
}

var jobName = regexp.MustCompile(`^[0-9a-f]{20}$`)

// Staged lists the jobs' files in the outbox by the names that Unstage takes. What
// else lies there is somebody else's.
func (c *Copier) Staged(ctx context.Context) ([]string, error) {
	box, err := c.box(mover.Outbox)
	if err != nil {
		return nil, fmt.Errorf("list the outbox: %w", err)
	}
	defer box.Close()
	names, err := list(box)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, fmt.Errorf("list the outbox: %w", err)
	}
	var jobs []string
	for _, n := range names {
		if jobName.MatchString(n) {
			jobs = append(jobs, mover.Outbox+"/"+n)
		}
	}
	return jobs, nil
}

// Open opens a file of the inbox or the outbox, one under a hidden name included,
// for reading at random: nothing is read ahead, because what comes after the part
// that is asked for may not be written yet, and would be remembered as empty.
func (c *Copier) Open(name string) (*Reader, error) {
	dir, base := path.Split(name)
	if path.Clean(name) != name || dir != mover.Inbox+"/" && dir != mover.Outbox+"/" || base == "" {
		return nil, failure.Permanently(fmt.Errorf("open %q: not a name in %s or %s", name, mover.Inbox, mover.Outbox))
	}
	root, err := c.export()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := openRegular(root, name)
	if err != nil {
		return nil, fmt.Errorf("open %s on the export: %w", name, err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s on the export without read-ahead: %w", name, err), f.Close())
	}
	return &Reader{file: f}, nil
}

// Reader is a file of the export that is read once, from its start to its end: what
// was read is not kept in this machine's page cache, where it would displace what
// others need.
type Reader struct {
	file      *os.File
	forgotten int64 // bytes from the start
}

// How far behind the last read the page cache is given back, and in what pieces. The
// distance leaves the disk time to take what the DTN wrote: a page that is still
// dirty cannot be given back.
const (
	forgetBehind = 32 << 20
	forgetPiece  = 8 << 20
)

// ReadAt is for one goroutine at a time.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.file.ReadAt(p, off)
	for off-r.forgotten >= forgetBehind+forgetPiece {
		r.forget(forgetPiece)
	}
	return n, err
}

// forget gives n bytes more back, 0: all. It is a hint.
func (r *Reader) forget(n int64) {
	disk.Drop(r.file, r.forgotten, n)
	r.forgotten += n
}

func (r *Reader) Close() error {
	r.forget(0)
	return r.file.Close()
}

func (c *Copier) box(name string) (*os.Root, error) {
	root, err := c.export()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return openBox(root, name)
}

// openBox opens a folder of the export. It never makes one: that is the DTN's affair.
func openBox(root *os.Root, name string) (*os.Root, error) {
	is, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the export has no %s; the DTN makes it, or says on its /readyz why not", name)
	}
	if err != nil {
		return nil, fmt.Errorf("look at the export: %w", err)
	}
	if !is.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", filepath.Join(root.Name(), name))
	}
	box, err := root.OpenRoot(name)
	if err != nil {
		return nil, denied(root, name, fmt.Errorf("open the export's %s: %w", name, err))
	}
	return box, nil
}

func list(box *os.Root) ([]string, error) {
	d, err := box.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

const (
	tempSuffix = ".stage"
	// stale is the age at which an unfinished copy is nobody's any more: one that
	// goes on changes all the time.
	stale = 24 * time.Hour
)

// tempName is a hidden name for an unfinished copy. It is never used twice: a
// worker that lost its job and does not know yet must not rename its successor's.
func tempName(name string) string {
	return fmt.Sprintf(".%s.%016x%s", name, rand.Uint64(), tempSuffix)
}

// sweep removes unfinished copies of the name, and stale ones of any. A hard link is as
// old as its image, and stays as long as that does: it takes no space until then.
func sweep(box *os.Root, name string) error {
	names, err := list(box)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if !strings.HasPrefix(n, ".") || !strings.HasSuffix(n, tempSuffix) {
			continue
		}
		info, err := box.Lstat(n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && (strings.HasPrefix(n, "."+name+".") || time.Since(info.ModTime()) > stale && !linked(info)) {
			err = durable.Remove(box, n)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// linked reports whether the file has another name, too.
func linked(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}
