package localcopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	// inFlight is how many blocks of a copy are in memory at once: one is read, one
	// hashed, one written, and one waits.
	inFlight = 4
	// grain is the least run of zeros that becomes a hole: a cluster of qcow2.
	grain = 64 << 10
	// writeBackEvery is after how many bytes the kernel is told to begin to write them: by
	// itself it waits until memory runs short, and the network or the disk idles meanwhile.
	writeBackEvery = 8 << 20
	// syncEvery is after how many bytes the destination is synced beside the copy, and
	// both files' page cache is given back. Pages that are dirty, or that an NFS server
	// has not committed, would stay.
	syncEvery = 32 << 20
)

// copyFile copies and proves the content in one pass. It does not begin when the
// space will not do.
func copyFile(ctx context.Context, t *task) error {
	if err := t.fits(); err != nil {
		return err
	}
	return t.create(func(dst *os.File) error {
		if err := t.copyData(ctx, dst, t.src); err != nil || t.settle == nil {
			return err
		}
		return t.settled(ctx, dst)
	})
}

// fits returns nil when there is room for what is not a hole of the source.
func (t *task) fits() error {
	var src unix.Stat_t
	if err := unix.Fstat(int(t.src.Fd()), &src); err != nil {
		return fmt.Errorf("copy %s: %w", t.src.Name(), err)
	}
	n, err := t.free(t.dir)
	if err == nil && n < min(t.file.Size, src.Blocks*512) {
		err = fmt.Errorf("copy %s: %w", t.src.Name(), unix.ENOSPC)
	}
	return err
}

// block is a part of the file on its way, mover.BlockSize bytes but for the last.
type block struct {
	off  int64
	data []byte
}

// copyData copies the file's size bytes of src to dst, which is empty, and proves
// them. Reading, hashing and writing go on side by side, and so does asking the DTN what
// its disk has, while that is in its memory still. Holes of src are not read, and zeros
// are not written.
func (t *task) copyData(ctx context.Context, dst, src *os.File) error {
	h, err := digest.New(t.file.Digest.Algo)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	spare, read, hashed := make(chan []byte, inFlight), make(chan block, inFlight), make(chan block, inFlight)
	for range inFlight {
		spare <- make([]byte, mover.BlockSize)
	}
	synced := make(chan int64, 1)
	t.sums = make([]digest.Block, (t.file.Size+mover.BlockSize-1)/mover.BlockSize)
	g.Go(func() error {
		defer close(read)
		return t.read(ctx, src, spare, read)
	})
	g.Go(func() error {
		defer close(hashed)
		for b := range read {
			h.Write(b.data)
			if t.settle != nil {
				t.sums[b.off/mover.BlockSize] = digest.OfBlock(b.data)
			}
			hashed <- b
		}
		return nil
	})
	g.Go(func() error {
		defer close(synced)
		return t.write(ctx, dst, hashed, spare, synced)
	})
	g.Go(func() error {
		for n := range synced {
			if err := dst.Sync(); err != nil {
				return err
			}
			disk.Drop(dst, 0, n)
			disk.Drop(src, 0, n)
			if t.settle == nil {
				continue
			}
			lost, err := t.lost(ctx, n/mover.BlockSize)
			if err != nil {
				return err
			}
			if len(lost) == 0 {
				t.safe = n / mover.BlockSize
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := digest.Check(t.file.Digest, digest.Of(t.file.Digest.Algo, h)); err != nil {
		return err
	}
	return dst.Truncate(t.file.Size) // when it ends with a hole
}

// read sends every block, in order. Each takes a spare buffer's place.
func (t *task) read(ctx context.Context, src *os.File, spare <-chan []byte, out chan<- block) error {
	_ = unix.Fadvise(int(src.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // reads further ahead; a hint
	in := extents{file: src}
	for off := int64(0); off < t.file.Size; off += mover.BlockSize {
		var buf []byte
		select {
		case buf = <-spare:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		buf = buf[:min(mover.BlockSize, t.file.Size-off)]
		data, _, err := in.next(off)
		if err != nil {
			return err
		}
		if data >= off+int64(len(buf)) {
			clear(buf)
		} else if n, err := src.ReadAt(buf, off); n < len(buf) {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: want %d bytes, it ends after %d", mover.ErrTruncated, t.file.Size, off+int64(n))
			}
			return err
		}
		out <- block{off, buf}
	}
	return t.unchanged(src)
}

// unchanged returns mover.ErrTruncated when the source has another size than it had.
func (t *task) unchanged(src *os.File) error {
	info, err := src.Stat()
	if err == nil && info.Size() != t.file.Size {
		err = fmt.Errorf("%w: want %d bytes, it has %d now", mover.ErrTruncated, t.file.Size, info.Size())
	}
	return err
}

// write writes the blocks that come in, gives their buffers back, and tells every
// syncEvery bytes how far it is, unless the last time is not over.
func (t *task) write(ctx context.Context, dst *os.File, in <-chan block, spare chan<- []byte, synced chan<- int64) error {
	var told int64
	for b := range in {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := t.writeData(dst, b); err != nil {
			return err
		}
		done := b.off + int64(len(b.data))
		spare <- b.data[:cap(b.data)]
		if done%writeBackEvery == 0 {
			disk.WriteBack(dst, done-writeBackEvery, writeBackEvery)
		}
		t.report(done)
		if done-told >= syncEvery {
			select {
			case synced <- done:
				told = done
			default:
			}
		}
	}
	return nil
}

// writeData writes a block without its grains of zeros, in as few pieces as there are.
func (t *task) writeData(dst *os.File, b block) error {
	for at := 0; at < len(b.data); {
		end := at
		for end < len(b.data) && !zero(b.data[end:min(end+grain, len(b.data))]) {
			end = min(end+grain, len(b.data))
		}
		if end > at {
			if _, err := dst.WriteAt(b.data[at:end], b.off+int64(at)); err != nil {
				return err
			}
			t.written += int64(end - at)
		}
		at = end + grain // which is zeros, or beyond the end
	}
	return nil
}

var zeros [grain]byte

func zero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// extents finds where a file has data: lseek(2), SEEK_DATA and SEEK_HOLE.
type extents struct {
	file       *os.File
	data, hole int64 // the one found last
}

// next returns the first extent of data that does not end before off: it has data at
// data, and no hole before hole. Behind the last one both are the largest offset.
func (e *extents) next(off int64) (data, hole int64, err error) {
	if off < e.hole {
		return e.data, e.hole, nil
	}
	fd := int(e.file.Fd())
	e.data, err = unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == nil:
		e.hole, err = unix.Seek(fd, e.data, unix.SEEK_HOLE)
	case errors.Is(err, unix.ENXIO): // nothing but a hole up to the end
		e.data, e.hole, err = math.MaxInt64, math.MaxInt64, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP): // this filesystem does not tell
		e.data, e.hole, err = off, math.MaxInt64, nil
	}
	if err != nil {
		return 0, 0, &fs.PathError{Op: "find the holes of", Path: e.file.Name(), Err: err}
	}
	return e.data, e.hole, nil
}

// serverCopy has the NFS server copy the file (NFS 4.2's COPY, RFC 7862, 15.2): no byte
// of it comes here, and what is copied is proven as that of a link is. Where the server
// does not, copy_file_range(2) reads and writes without a word, which copyFile does better:
// what it has written is in the page cache then, and that ends this way.
func serverCopy(ctx context.Context, t *task) error {
	piece, err := t.atOnce()
	if err != nil {
		return fmt.Errorf("server-side copy of %s: %w: %w", t.src.Name(), unix.ENOTSUP, err)
	}
	if err := t.fits(); err != nil {
		return err
	}
	return t.create(func(dst *os.File) error {
		written, err := t.box.Open(t.temp) // dst cannot be read
		if err != nil {
			return err
		}
		defer written.Close()
		in := extents{file: t.src}
		for off := int64(0); off < t.file.Size; {
			data, hole, err := in.next(off)
			if err != nil {
				return err
			}
			off = max(off, data)
			for hole = min(hole, t.file.Size); off < hole; {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				from, to := off, off
				n, err := unix.CopyFileRange(int(t.src.Fd()), &from, int(dst.Fd()), &to, int(min(piece, hole-off)), 0)
				if err != nil {
					return fmt.Errorf("server-side copy of %s: %w", t.src.Name(), elsewise(err))
				}
				if n == 0 {
					return fmt.Errorf("%w: want %d bytes, it ends after %d", mover.ErrTruncated, t.file.Size, off)
				}
				if here, err := cached(written, off, int64(n)); err != nil || here {
					return errors.Join(fmt.Errorf("server-side copy of %s: %w: the kernel copies itself", t.src.Name(), unix.ENOTSUP), err)
				}
				t.written += int64(n)
				off += int64(n)
				t.report(off)
			}
		}
		t.report(t.file.Size)
		if err := t.unchanged(t.src); err != nil {
			return err
		}
		return dst.Truncate(t.file.Size)
	})
}

// cached reports whether any of a file's n bytes from off on is in the page cache of
// this machine, by mincore(2).
func cached(f *os.File, off, n int64) (bool, error) {
	page := int64(os.Getpagesize())
	first := off - off%page
	m, err := unix.Mmap(int(f.Fd()), first, int(off+n-first), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return false, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	defer unix.Munmap(m)
	pages := make([]byte, (int64(len(m))+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		return false, fmt.Errorf("look for %s in the page cache: %w", f.Name(), errno)
	}
	return slices.ContainsFunc(pages, func(b byte) bool { return b&1 != 0 }), nil
}

// elsewise makes any failure of a server's copy one after which the next way is tried, but
// for those that it would meet too.
func elsewise(err error) error {
	for _, too := range []error{unix.ENOSPC, unix.EDQUOT, unix.ESTALE} {
		if errors.Is(err, too) {
			return err
		}
	}
	return fmt.Errorf("%w (%w)", err, unix.ENOTSUP)
}
