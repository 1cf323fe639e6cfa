package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// content is what goes into Glance, and the proof that it is what it should be.
type content struct {
	io.Reader
	io.Closer
	proof func() error  // to be asked when all has been read
	how   func() string // for the job's history, when all has been read
}

// hashed is r with the whole content's own digest as its proof: a *digest.MismatchError.
func hashed(r io.ReadCloser, want digest.Digest) (content, error) {
	h, err := digest.New(want.Algo)
	if err != nil {
		return content{}, errors.Join(err, r.Close())
	}
	return content{
		io.TeeReader(r, h), r,
		func() error { return digest.Check(want, digest.Of(want.Algo, h)) },
		func() string { return "upload, the whole hashed" },
	}, nil
}

// arriving is a file of the inbox. Where the DTN tells the digests of its blocks, each
// block is compared with them, and the proof is that the DTN has found the whole to
// have the right digest and has synced it; where it does not, we hash the file ourselves.
func (a *Agent) arriving(ctx context.Context, f mover.File, p *pace) (content, error) {
	r, err := a.follow(ctx, f, p)
	if err != nil {
		return content{}, err
	}
	if r.check == nil {
		return hashed(r, f.Digest)
	}
	return content{r, r, func() error { return r.wait(func() bool { return r.arrived }) }, r.how}, nil
}

// follower reads a file of the inbox while the DTN is still writing it. It reads only
// blocks that the DTN has proven, so that no gap can be seen; and what this machine had
// cached of the file before they were there does not stand the comparison with their
// digests, and is read anew.
type follower struct {
	ctx     context.Context
	sight   *sight
	stager  Stager
	name    string
	size    int64
	file    ReaderAtCloser
	check   func(ctx context.Context, index int64, block []byte) error // nil: the DTN tells no digests
	since   time.Time                                                  // when the arrival began: another one of that name is another file
	path    string                                                     // the name that it has now
	proven  int64
	arrived bool
	off     int64  // of the first byte not in rest
	rest    []byte // read, and not handed out yet
	block   []byte
	again   int // blocks that were read once more
	pace    *pace
}

// follow opens an arriving, or arrived, file and reads its first block.
func (a *Agent) follow(ctx context.Context, file mover.File, p *pace) (*follower, error) {
	f := &follower{ctx: ctx, pace: p, sight: a.sight(file.Name, pollBusy), stager: a.Stager, name: file.Name, size: file.Size, check: a.Landing.BlockCheck(file.Name),
		block: make([]byte, min(file.Size, mover.BlockSize))}
	if _, err := f.look(); err != nil {
		return nil, err
	}
	if err := f.open(); err != nil {
		return nil, err
	}
	if f.size == 0 {
		f.check = nil
		return f, nil
	}
	err := f.fill()
	if errors.Is(err, mover.ErrNoDigests) {
		f.check, f.off = nil, 0
		err = f.fill()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// open opens the file, or opens it anew. An NFS client asks the server then what its
// cache of the file is worth (close-to-open consistency, nfs(5)); meanwhile it may show
// pages as they were a minute ago.
func (f *follower) open() error {
	file, err := f.stager.Open(f.path)
	if err != nil { // it may have got its final name this moment
		if _, err := f.look(); err != nil {
			return err
		}
		file, err = f.stager.Open(f.path)
	}
	if err != nil {
		return fmt.Errorf("open %s on the export: %w; is the DTN's export the one that is mounted here?", f.name, err)
	}
	if f.file != nil {
		err = f.file.Close()
	}
	f.file = file
	return err
}

// look returns what the DTN knows next of the file, and keeps what is proven;
// mover.ErrNoArrival when the file was dropped, though it may be coming anew.
func (f *follower) look() (mover.Arrival, error) {
	arr, err := f.sight.next(f.ctx)
	if err != nil {
		return arr, fmt.Errorf("ask the DTN for %s: %w", f.name, err)
	}
	if f.since.IsZero() {
		f.since = arr.Since
	}
	if !arr.Since.Equal(f.since) {
		return arr, fmt.Errorf("%w: %s was dropped, and comes anew", mover.ErrNoArrival, f.name)
	}
	f.path, f.proven, f.arrived = arr.Path, arr.Proven, arr.State == mover.Arrived
	if f.arrived {
		f.proven = f.size
	}
	return arr, nil
}

// wait looks until ok holds. It gives up when nothing new is proven for stallLimit.
func (f *follower) wait(ok func() bool) error {
	defer f.pace.begin(f.pace.begin(coming))
	moved, since := int64(-1), time.Now()
	for !ok() {
		arr, err := f.look()
		if err != nil {
			return err
		}
		if arr.Moved != moved {
			moved, since = arr.Moved, time.Now()
		}
		if time.Since(since) > stallLimit {
			return fmt.Errorf("nothing of %s arrived for %s (%s of %s so far)", f.name, mover.Span(stallLimit), mover.Size(arr.Moved), mover.Size(f.size))
		}
	}
	return nil
}

// fill reads the next block once it is proven, and compares it with its digest.
func (f *follower) fill() error {
	end := min(f.off+mover.BlockSize, f.size)
	if err := f.wait(func() bool { return f.proven >= end }); err != nil {
		return err
	}
	defer f.pace.begin(f.pace.begin(reading))
	block := f.block[:end-f.off]
	err := f.read(block)
	if _, differs := errors.AsType[*digest.MismatchError](err); differs || errors.Is(err, io.EOF) {
		f.again++
		if err = f.open(); err == nil {
			err = f.read(block)
		}
	}
	if err != nil {
		return err
	}
	f.rest, f.off = block, end
	return nil
}

// read reads a block at the offset and compares it with its digest.
func (f *follower) read(block []byte) error {
	if n, err := f.file.ReadAt(block, f.off); n < len(block) {
		return fmt.Errorf("read %s at %d: %w", f.name, f.off, err)
	}
	if f.check == nil {
		return nil
	}
	return f.check(f.ctx, f.off/mover.BlockSize, block)
}

// how says how the file was read.
func (f *follower) how() string {
	how := "upload, each block checked"
	if f.again > 0 {
		how += fmt.Sprintf("; %d read anew, which this host had cached before they arrived", f.again)
	}
	return how
}

func (f *follower) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		if f.off >= f.size {
			return 0, io.EOF
		}
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *follower) Close() error { return f.file.Close() }

// holdBack is how much of an image is kept from Glance until all of it is proven.
const holdBack = 64 << 10

// heldReader passes size bytes of a content on, and hands out the last holdBack of
// them only when the proof holds.
type heldReader struct {
	content
	left   int64  // not read yet, without the tail
	tail   []byte // what is held back
	proven bool
	passed int64
	report func(passed int64)
}

func held(c content, size int64, report func(int64)) *heldReader {
	tail := min(size, holdBack)
	return &heldReader{content: c, left: size - tail, tail: make([]byte, tail), report: report}
}

// Read returns the proof's error instead of the tail.
func (h *heldReader) Read(p []byte) (n int, err error) {
	defer func() {
		h.passed += int64(n)
		h.report(h.passed)
	}()
	if h.left > 0 {
		n, err := h.content.Read(p[:min(int64(len(p)), h.left)])
		h.left -= int64(n)
		if err == io.EOF && h.left > 0 {
			err = io.ErrUnexpectedEOF
		} else if err == io.EOF {
			err = nil
		}
		return n, err
	}
	if !h.proven {
		if _, err := io.ReadFull(h.content, h.tail); err != nil {
			return 0, err
		}
		if err := h.proof(); err != nil {
			return 0, err
		}
		h.proven = true
	}
	if len(h.tail) == 0 {
		return 0, io.EOF
	}
	n = copy(p, h.tail)
	h.tail = h.tail[n:]
	return n, nil
}
