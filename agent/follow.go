package agent

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// follower reads a file of the inbox while the DTN is still writing it. It reads only
// ranges that the DTN has proven, each once, so that neither a gap nor a page that
// NFS read too early can be seen.
type follower struct {
	ctx     context.Context
	landing Landing
	name    string
	file    ReaderAtCloser
	off     int64
	size    int64
	proven  int64
}

// follow opens an arriving, or arrived, file. whole makes it wait until the file has
// arrived in full first.
func (a *Agent) follow(ctx context.Context, name string, size int64, whole bool) (*follower, error) {
	f := &follower{ctx: ctx, landing: a.Landing, name: name, size: size}
	arr, err := f.wait(func(arr mover.Arrival) bool { return arr.State == mover.Arrived || !whole })
	if err != nil {
		return nil, err
	}
	if f.file, err = a.Stager.Open(arr.Path); err != nil {
		// It may have got its final name this moment.
		if arr, err = a.Landing.Arrival(ctx, name); err == nil {
			f.file, err = a.Stager.Open(arr.Path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open %s on the export: %w; is the DTN's export the one that is mounted here?", name, err)
	}
	return f, nil
}

// wait asks the DTN until ok holds, and keeps what is proven. It gives up when
// nothing new is proven for stallLimit.
func (f *follower) wait(ok func(mover.Arrival) bool) (mover.Arrival, error) {
	moved, since := int64(-1), time.Now()
	for range polling(f.ctx) {
		arr, err := f.landing.Arrival(f.ctx, f.name)
		if err != nil {
			return arr, fmt.Errorf("ask the DTN for %s: %w", f.name, err)
		}
		f.proven = arr.Proven
		if arr.State == mover.Arrived {
			f.proven = f.size
		}
		if ok(arr) {
			return arr, nil
		}
		if arr.Moved != moved {
			moved, since = arr.Moved, time.Now()
		}
		if time.Since(since) > stallLimit {
			return arr, fmt.Errorf("nothing of %s arrived for %v (%d of %d bytes so far)", f.name, stallLimit, arr.Moved, f.size)
		}
	}
	return mover.Arrival{}, f.ctx.Err()
}

func (f *follower) Read(p []byte) (int, error) {
	if f.off >= f.size {
		return 0, io.EOF
	}
	if f.off >= f.proven {
		if _, err := f.wait(func(mover.Arrival) bool { return f.proven > f.off }); err != nil {
			return 0, err
		}
	}
	p = p[:min(int64(len(p)), f.proven-f.off)]
	n, err := f.file.ReadAt(p, f.off)
	f.off += int64(n)
	if errors.Is(err, io.EOF) && f.off < f.size {
		err = fmt.Errorf("%s is %d bytes long on the export, want %d", f.name, f.off, f.size)
	} else if err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *follower) Close() error { return f.file.Close() }

// holdBack is how much of an image is kept from Glance until all of it is proven.
const holdBack = 64 << 10

// readSize is how much is read from the export at once, whatever the HTTP client asks for.
const readSize = 1 << 20

// proofReader passes size bytes of r on, and hands out the last holdBack of them only
// when the whole has the digest it should have.
type proofReader struct {
	r      io.Reader
	left   int64 // not read yet, without the tail
	tail   []byte
	proven bool
	want   digest.Digest
	h      hash.Hash
	size   int64
	report func(int64)
}

func newProofReader(r io.Reader, size int64, want digest.Digest, report func(int64)) (*proofReader, error) {
	h, err := digest.New(want.Algo)
	if err != nil {
		return nil, err
	}
	tail := min(size, holdBack)
	return &proofReader{r: r, left: size - tail, tail: make([]byte, tail), want: want, h: h, size: size, report: report}, nil
}

// Read returns a *digest.MismatchError instead of the tail when the content is wrong.
func (p *proofReader) Read(b []byte) (int, error) {
	if p.left > 0 {
		n, err := p.r.Read(b[:min(int64(len(b)), p.left)])
		p.h.Write(b[:n])
		p.left -= int64(n)
		p.report(p.size - p.left - int64(len(p.tail)))
		if err == io.EOF && p.left > 0 {
			err = io.ErrUnexpectedEOF
		} else if err == io.EOF {
			err = nil
		}
		return n, err
	}
	if !p.proven {
		if _, err := io.ReadFull(p.r, p.tail); err != nil {
			return 0, err
		}
		p.h.Write(p.tail)
		if err := digest.Check(p.want, digest.Of(p.want.Algo, p.h)); err != nil {
			return 0, err
		}
		p.proven = true
	}
	if len(p.tail) == 0 {
		p.report(p.size)
		return 0, io.EOF
	}
	n := copy(b, p.tail)
	p.tail = p.tail[n:]
	return n, nil
}
