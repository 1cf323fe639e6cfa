package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// ErrRestarted says that the write verifier has changed: the server has restarted,
// and what was not committed may be lost (RFC 1813 section 3.3.7). Write it again.
var ErrRestarted = errors.New("the server has restarted and may have lost uncommitted data")

// ErrContent says that the server returned other bytes than were written to it.
var ErrContent = errors.New("the server returned wrong content")

// ScratchPrefix is what the names of scratch files begin with. One that is older
// than a probe runs was left by a probe that was killed, and may be removed; see
// Options.Making.
const ScratchPrefix = ".glance-dtn-probe-"

// Bounds of a test.
const (
	MaxSize     = 64 << 20 // bytes of one READ or WRITE
	MaxDepth    = 1024
	maxInFlight = 1 << 30 // bytes of all outstanding calls
)

// Data is what a test writes.
type Data int

const (
	// Random data can neither be compressed nor deduplicated, and differs in each
	// scratch file.
	Random Data = iota
	// Zero is zeros, which some servers do not store.
	Zero
)

// WriteTest is Total bytes from the file's start, in WRITEs of Size bytes (the last
// one may be smaller), Depth of them outstanding, and one COMMIT at the end if so wished.
type WriteTest struct {
	Size      int   // 1 to MaxSize; beyond wtmax the server may write less at a time, or hang up as Linux does
	Total     int64 // at least 1
	Depth     int   // 1 to MaxDepth
	Stability Stability
	Commit    bool
	Data      Data
}

// ReadTest is Total bytes from the file's start, in READs of Size bytes, Depth of them outstanding.
type ReadTest struct {
	Size  int   // 1 to MaxSize; beyond rtmax the server may read less at a time
	Total int64 // at least 1, at most what the last Write wrote
	Depth int   // 1 to MaxDepth
}

// Result is what a test measured.
type Result struct {
	Bytes   int64
	Elapsed time.Duration // from the first call to the last answer, COMMIT included
	Calls   Latency       // of each READ or WRITE, with the time that it waited behind others
	Commit  time.Duration // of the COMMIT alone; 0 without
	// Committed is the least that an answer to a WRITE promised.
	Committed Stability
	// Verifier is the one in all the answers to a WriteTest.
	Verifier Verifier
}

// Rate is in bits per second; 0 if nothing was measured.
func (r Result) Rate() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return 8 * float64(r.Bytes) / r.Elapsed.Seconds()
}

// File is a scratch file on the server. Its methods are for one goroutine.
type File struct {
	p    *Probe
	fh   []byte
	seed [32]byte
	text text // of the last Write
	size int64

	uncommitted bool // verifier is that of data that may be in memory only
	verifier    Verifier
}

// Scratch makes a new file in the exported directory, named ScratchPrefix and 16
// hexadecimal digits, lets use have it, and removes it, also when use fails or ctx
// is cancelled, for which it takes 10 s at most. What removing it fails with is joined to the error of use.
func (p *Probe) Scratch(ctx context.Context, use func(*File) error) (err error) {
	name := fmt.Sprintf("%s%016x", ScratchPrefix, rand.Uint64())
	f := &File{p: p}
	if p.opt.Making != nil {
		if err := p.opt.Making(name); err != nil {
			return fmt.Errorf("make scratch file %s: %w", name, err)
		}
	}
	gone := func() error {
		if p.opt.Gone == nil {
			return nil
		}
		return p.opt.Gone(name)
	}
	c, err := p.conn(ctx, 0)
	if err != nil {
		return errors.Join(err, gone())
	}
	f.fh, err = c.create(ctx, p.root, name)
	created := err == nil
	if err != nil {
		err = fmt.Errorf("make scratch file %s: %w", name, err)
		if !inDoubt(err) {
			return errors.Join(err, gone())
		}
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultTimeout)
		defer cancel()
		e := p.Remove(ctx, name)
		if e != nil {
			e = fmt.Errorf("remove scratch file %s: %w", name, e)
		} else {
			e = gone()
		}
		err = errors.Join(err, e)
	}()
	if created && f.fh == nil {
		f.fh, err = c.lookup(ctx, p.root, name)
	}
	if err != nil {
		return err
	}
	for i := range f.seed {
		f.seed[i] = byte(rand.Uint32())
	}
	return use(f)
}

// inDoubt reports whether the server may have done what a call asked for that
// failed with err.
func inDoubt(err error) bool {
	return errors.Is(err, ErrLost) || errors.Is(err, ErrProtocol) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// Remove removes a file of the exported directory, such as a probe that was killed has
// left, and is nil where it is not there.
func (p *Probe) Remove(ctx context.Context, name string) error {
	c, err := p.conn(ctx, 0)
	if err != nil {
		return err
	}
	err = c.remove(ctx, p.root, name)
	if errors.Is(err, fs.ErrPermission) { // which servers say before they look
		if _, e := c.lookup(ctx, p.root, name); errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// On returns the same file, with the same content, as another probe of the same export
// writes and reads it.
func (f *File) On(p *Probe) *File {
	other := *f
	other.p = p
	return &other
}

// Write runs a test. ErrRestarted when two answers, or an answer and data of an
// earlier Write that is not yet committed, have different verifiers. On an error
// the result is of no use, and the file has to be written again before it is read.
func (f *File) Write(ctx context.Context, t WriteTest) (Result, error) {
	if err := checkTest(t.Size, t.Total, t.Depth); err != nil {
		return Result{}, err
	}
	if t.Stability > FileSync || t.Data != Random && t.Data != Zero {
		return Result{}, fmt.Errorf("write test: stability %v, data %d are not known", t.Stability, t.Data)
	}
	f.size = 0
	f.text = newText(t.Data, f.seed, t.Size)
	var mu sync.Mutex // guards f and r
	r := Result{Bytes: t.Total, Committed: FileSync}
	start := time.Now()
	calls, err := f.p.each(ctx, t.Size, t.Total, t.Depth, func(ctx context.Context, c *conn, offset int64, size int) (int, error) {
		w, err := c.writeAt(ctx, f.fh, offset, t.Stability, f.text.at(offset, size))
		if err != nil {
			return 0, err
		}
		mu.Lock()
		defer mu.Unlock()
		r.Committed = min(r.Committed, w.Committed)
		return int(w.Count), f.see(w.Verifier)
	})
	if err == nil && t.Commit {
		began := time.Now()
		err = f.Commit(ctx)
		r.Commit = time.Since(began)
	}
	r.Elapsed, r.Calls = time.Since(start), latency(calls)
	if err == nil {
		err = f.checkSize(ctx, t.Total)
	}
	if errors.Is(err, ErrRestarted) {
		f.uncommitted = false
	}
	if err != nil {
		return r, fmt.Errorf("write test: %w", err)
	}
	r.Verifier = f.verifier
	f.uncommitted = r.Committed == Unstable && !t.Commit
	f.size = t.Total
	return r, nil
}

// Commit makes stable what was written. ErrRestarted when the server that answers is
// not the one that took the data.
func (f *File) Commit(ctx context.Context) error {
	c, err := f.p.conn(ctx, 0)
	if err != nil {
		return err
	}
	v, err := c.commit(ctx, f.fh)
	if err != nil {
		return err
	}
	err = f.see(v)
	f.uncommitted = false
	if err != nil {
		f.size = 0
	}
	return err
}

// see compares a verifier with that of the data before.
func (f *File) see(v Verifier) error {
	if f.uncommitted && v != f.verifier {
		return fmt.Errorf("%w: its write verifier was %x and is %x", ErrRestarted, f.verifier, v)
	}
	f.uncommitted, f.verifier = true, v
	return nil
}

// checkSize asks whether the server has what it said it has written.
func (f *File) checkSize(ctx context.Context, want int64) error {
	c, err := f.p.conn(ctx, 0)
	if err != nil {
		return err
	}
	attr, err := c.getattr(ctx, f.fh)
	if err == nil && clamp(attr.Filesize) < want {
		err = fmt.Errorf("%w: the file has %d bytes after %d were written", ErrContent, attr.Filesize, want)
	}
	return err
}

// Read runs a test, and compares each byte with what was written; ErrContent. The
// server most likely has them in memory.
func (f *File) Read(ctx context.Context, t ReadTest) (Result, error) {
	if err := checkTest(t.Size, t.Total, t.Depth); err != nil {
		return Result{}, err
	}
	if t.Total > f.size {
		return Result{}, fmt.Errorf("read test: Total is %d, and the file has %d bytes: write them first", t.Total, f.size)
	}
	want := newText(f.text.data, f.seed, t.Size)
	start := time.Now()
	calls, err := f.p.each(ctx, t.Size, t.Total, t.Depth, func(ctx context.Context, c *conn, offset int64, size int) (int, error) {
		got, _, err := c.readAt(ctx, f.fh, offset, size)
		switch {
		case err != nil:
			return 0, err
		case len(got) == 0:
			return 0, fmt.Errorf("%w: it ends at byte %d of %d", ErrContent, offset, f.size)
		case !bytes.Equal(got, want.at(offset, len(got))):
			return 0, fmt.Errorf("%w in %d bytes at %d", ErrContent, len(got), offset)
		}
		return len(got), nil
	})
	if err != nil {
		return Result{}, fmt.Errorf("read test: %w", err)
	}
	return Result{Bytes: t.Total, Elapsed: time.Since(start), Calls: latency(calls)}, nil
}

func checkTest(size int, total int64, depth int) error {
	switch {
	case size < 1 || size > MaxSize:
		return fmt.Errorf("size %d: want 1 to %d bytes", size, MaxSize)
	case total < 1:
		return fmt.Errorf("total %d: want 1 byte at least", total)
	case depth < 1 || depth > MaxDepth:
		return fmt.Errorf("depth %d: want 1 to %d", depth, MaxDepth)
	case int64(size)*int64(depth) > maxInFlight:
		return fmt.Errorf("%d calls of %d bytes: want %d bytes in flight at most", depth, size, maxInFlight)
	}
	return nil
}

// each goes through total bytes in blocks of size, depth of them at a time, spread
// over the connections. io may do the first part of what it is given; it is called
// again for the rest. The first error stops all; each returns when all have ended.
func (p *Probe) each(ctx context.Context, size int, total int64, depth int,
	io func(ctx context.Context, c *conn, offset int64, size int) (int, error),
) ([]time.Duration, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	durations := make([][]time.Duration, depth)
	worker := func(i int) error {
		for {
			offset := next.Add(int64(size)) - int64(size)
			end := min(offset+int64(size), total)
			if offset >= total {
				return nil
			}
			for offset < end {
				c, err := p.conn(ctx, i)
				if err != nil {
					return err
				}
				err = timed(&durations[i], func() error {
					n, err := io(ctx, c, offset, int(end-offset))
					offset += int64(n)
					return err
				})
				if err != nil {
					return err
				}
			}
		}
	}
	var workers sync.WaitGroup
	for i := range depth {
		workers.Go(func() {
			if err := worker(i); err != nil {
				stop(err)
			}
		})
	}
	workers.Wait()
	var all []time.Duration
	for _, d := range durations {
		all = append(all, d...)
	}
	return all, context.Cause(ctx)
}

// text is the content of a file: a sequence that repeats after period bytes.
type text struct {
	data   Data
	bytes  []byte // the first period, and as much more as a call has
	period int64
}

// textPeriod is odd, so that no two aligned blocks of 4 KiB or more are alike in the
// first 4 GiB.
const textPeriod = 1<<20 + 7

// newText returns the content of which at gives size bytes at a time.
func newText(data Data, seed [32]byte, size int) text {
	if data == Zero {
		return text{data, make([]byte, size), 1}
	}
	b := make([]byte, textPeriod+size)
	_, _ = rand.NewChaCha8(seed).Read(b[:textPeriod]) // never fails
	for n := textPeriod; n < len(b); {
		n += copy(b[n:], b[:n])
	}
	return text{data, b, textPeriod}
}

// at returns the content from offset on. Nobody may change it.
func (t text) at(offset int64, size int) []byte {
	start := offset % t.period
	return t.bytes[start:][:size]
}
