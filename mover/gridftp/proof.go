package gridftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// open opens a plain file of the export. Neither a link nor anything else is followed or waited for.
func (b *Inbox) open(name string) (*os.File, fs.FileInfo, error) {
	before, err := b.export.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, nil, mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file (%v)", name, before.Mode().Type()))
	}
	f, err := b.export.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(before, info) {
		err = fmt.Errorf("%s was replaced while it was opened", name)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// read reads a file of an arrival and returns the digests of its blocks and its size,
// feeding h too, and tells the sender now and then how far it is.
func (b *Inbox) read(ctx context.Context, a *arrival, session, name string, h hash.Hash) (sums []digest.Block, size int64, err error) {
	f, info, err := b.open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	buf := make([]byte, mover.BlockSize)
	told := time.Now()
	for size < info.Size() {
		n, err := io.ReadFull(f, buf[:min(mover.BlockSize, info.Size()-size)])
		if err != nil {
			return sums, size, fmt.Errorf("read %s back: %w", name, err)
		}
		if h != nil {
			h.Write(buf[:n])
		}
		sums = append(sums, digest.OfBlock(buf[:n]))
		size += int64(n)
		if ctx.Err() != nil || b.isGone(a, session) {
			return nil, 0, cmp.Or(context.Cause(ctx), errGone)
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			if err := b.answer(session, answer{State: answerProving, Have: size}); err != nil {
				return nil, 0, err
			}
		}
	}
	if h == nil {
		return sums, size, nil
	}
	if err := f.Sync(); err != nil { // what it has of the file, nobody knows
		return nil, 0, mover.Coded(mover.CodeContent, fmt.Errorf("the disk did not take the file: %w", err))
	}
	return sums, size, nil
}

// measure notes how much of a part the disk holds. Its size says nothing: parallel
// streams write far from the start as well.
func (b *Inbox) measure(name string) {
	info, err := b.export.Lstat(partName(name))
	if err != nil {
		return
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.arrivals[name]
	if a == nil {
		return
	}
	if n := min(st.Blocks*512, info.Size(), a.File.Size); n != a.written {
		a.written = n
		b.tell()
	}
}

// takeManifest begins to prove a file whose sender says that it is complete.
func (b *Inbox) takeManifest(ctx context.Context, work *sync.WaitGroup, name string) error {
	b.admin.Lock()
	defer b.admin.Unlock()
	if b.isProving(name) {
		return nil
	}
	var m manifest
	if ok, err := b.message(manifestName(name), &m); !ok {
		return err
	}
	a := b.lookup(name)
	if a == nil || a.Session != m.Session { // its sender is told, if it has not been
		return errors.Join(durable.Remove(b.export, manifestName(name)), b.answer(m.Session,
			answer{State: answerRefused, Error: "this session is not known any more; offer the file again"}))
	}
	b.mu.Lock()
	b.proving[name] = true
	b.mu.Unlock()
	work.Go(func() {
		b.conclude(ctx, a, m.Session)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.proving, name)
	})
	return nil
}

func (b *Inbox) isProving(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.proving[name]
}

// conclude proves a file, gives it its name and answers its sender.
func (b *Inbox) conclude(ctx context.Context, a *arrival, session string) {
	name := a.File.Name
	sums, err := b.prove(ctx, a, session)
	if ctx.Err() != nil && err != nil {
		return
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	if b.isGone(a, session) {
		return
	}
	if err == nil {
		err = b.finish(a, sums)
	}
	reply := answer{State: answerArrived, Have: a.File.Size}
	switch {
	case err == nil:
		err = durable.Remove(b.export, manifestName(name))
		b.log.Info("file arrived", "file", name, "bytes", a.File.Size)
	default:
		b.log.Warn("file refused", "file", name, "err", err)
		reply = answer{State: answerRefused, Code: mover.CodeOf(err), Error: err.Error()}
		err = b.reject(a, err)
	}
	if err = errors.Join(err, b.answer(session, reply)); err != nil {
		b.log.Error("a sender cannot be answered", "file", name, "err", err)
	}
}

// reject removes a file that is wrong. One that a fault of this host keeps from being
// proven stays, and its sender may offer it again. The caller holds admin.
func (b *Inbox) reject(a *arrival, cause error) error {
	if mover.CodeOf(cause) != mover.CodeOther {
		return b.discard(a)
	}
	b.mu.Lock()
	a.lastErr = cause.Error()
	b.tell()
	b.mu.Unlock()
	return durable.Remove(b.export, manifestName(a.File.Name))
}

// prove reads the part, or after a crash the file, and compares its digest.
func (b *Inbox) prove(ctx context.Context, a *arrival, session string) ([]digest.Block, error) {
	name := partName(a.File.Name)
	if _, err := b.export.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		name = a.File.Name
		if a.File.Size == 0 { // of it nothing is sent
			return nil, b.export.WriteFile(partName(name), nil, 0o640)
		}
	}
	h, err := digest.New(a.File.Digest.Algo)
	if err != nil {
		return nil, mover.Coded(mover.CodeTicket, err)
	}
	sums, size, err := b.read(ctx, a, session, name, h)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, mover.Coded(mover.CodeContent, fmt.Errorf("the manifest came without the data: %w", err))
	case err != nil:
		return nil, err
	case size != a.File.Size:
		return nil, mover.Coded(mover.CodeContent, fmt.Errorf("%d bytes came instead of %d", size, a.File.Size))
	}
	return sums, mover.Coded(mover.CodeContent, digest.Check(a.File.Digest, digest.Of(a.File.Digest.Algo, h)))
}

var errGone = errors.New("the arrival was removed at the destination")

// isGone reports whether the arrival was dropped, or is another session's by now.
func (b *Inbox) isGone(a *arrival, session string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return a.gone || a.Session != session
}

// finish gives a proven file its name. The caller holds admin.
func (b *Inbox) finish(a *arrival, sums []digest.Block) error {
	err := b.export.Rename(partName(a.File.Name), a.File.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has its name since before a crash
		return err
	}
	if err := durable.SyncDir(b.export, mover.Inbox); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a.arrived, a.sums, a.lastErr = true, sums, ""
	b.tell()
	return nil
}

// discard removes a with its files; the record goes last, for while it is there a restart
// knows what to clean up. The caller holds admin.
func (b *Inbox) discard(a *arrival) error {
	name := a.File.Name
	b.mu.Lock()
	a.gone = true
	b.mu.Unlock()
	err := errors.Join(
		durable.Remove(b.export, offerName(name)),
		durable.Remove(b.export, manifestName(name)),
		durable.Remove(b.export, partName(name)),
		durable.Remove(b.export, name),
		durable.Remove(b.state, recordName(name)),
	)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.arrivals, name)
	b.tell()
	return nil
}
