package stream

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// frame holds a block and its proof.
type frame [mover.BlockSize + proofSize]byte

// frames are buffers, so that memory is bounded by what is in use at once.
var frames = sync.Pool{New: func() any { return new(frame) }}

// hot bounds the frames that are kept for hashes, whatever files were begun and not gone
// on with: 96 MiB. A hash reads back what was not kept.
var hot = make(chan struct{}, 96)

// borrowed bounds the frames that are taken for no longer than the processor and the disks
// need, to unpack a block or to read one back: 32 MiB. Who has one waits neither for another
// one nor for a peer, so there is one soon.
var borrowed = make(chan struct{}, 32)

func borrow() *frame {
	borrowed <- struct{}{}
	return frames.Get().(*frame)
}

// giveBack gives back a frame for one that was borrowed.
func giveBack(f *frame) {
	frames.Put(f)
	<-borrowed
}

// blocks is the receiving end of a lane.
type blocks struct {
	link  *incoming
	conn  net.Conn
	in    *gather // below it
	cut   func()  // ends the lane
	proof *proof
	frame *frame // taken when it is first needed
	toll  *pace.Toll
}

// lane takes blocks from c, which was welcomed as a lane, until it ends.
func (l *incoming) lane(c *tls.Conn) error {
	p, err := newProof(l.protection, c.ConnectionState())
	if err != nil {
		return err
	}
	in := c.NetConn().(*gather) // as each connection is
	in.taking = true
	b := &blocks{link: l, conn: c, in: in, cut: func() { cut(c) }, proof: p}
	if l.protection != mover.Private {
		b.conn = in
	}
	b.toll = &pace.Toll{Pacer: l.receiver.opts.Pacer, Site: l.site, Waits: in.meter.limited, Alive: b.patience}
	in.meter.begin(computing)
	defer b.close()
	for {
		if err := b.take(); err != nil {
			return err
		}
	}
}

func (b *blocks) close() {
	if b.frame != nil {
		frames.Put(b.frame)
	}
}

// take takes one block. An error is the connection's.
func (b *blocks) take() error {
	_ = b.patience()
	h, err := readHeader(b.conn)
	if err != nil {
		return err
	}
	if h.kind != kindBlock && h.kind != kindHole && h.kind != kindPacked || h.length > mover.BlockSize {
		return fmt.Errorf("a lane carries %d bytes of kind %d", h.length, h.kind)
	}
	a, err := b.link.await(h.file)
	if err != nil {
		return err
	}
	b.link.say.room()
	_ = b.patience()
	if a == nil { // it has ended: this was on its way
		_, err := b.read(h, nil)
		return err
	}
	if err := h.fits(a.File.Size); err != nil {
		return err
	}
	at := seat{b.link, h.file}
	if a.begun(at, h.index) {
		return b.second(a, at, h)
	}
	mine, there := a.reserve(at, h.index, b.cut)
	if !mine {
		_, err := b.read(h, nil)
		if there && err == nil {
			at.tell(kindProven, h.index)
		}
		return err
	}
	return b.store(a, at, h)
}

// store takes a block that is reserved for it. An error is the connection's.
func (b *blocks) store(a *arrival, at seat, h header) error {
	whole, err := b.read(h, a)
	switch {
	case err != nil:
		a.release(h.index)
		return err
	case !whole:
		a.release(h.index)
		at.tell(kindAgain, h.index)
		return nil
	}
	b.put(a, at, h)
	return nil
}

// put writes a block that was read, and notes it, unless that fails. One lane does so at a
// time: at a local file system's lock of the file lanes would keep processors busy instead.
// Who waits is not waiting for the disk: the lane that writes is.
func (b *blocks) put(a *arrival, at seat, h header) {
	a.came(h.index)
	var sum *digest.Block // nil: nobody knows
	if b.proof.summing {
		s := b.proof.sum.Sum()
		sum = &s
	}
	b.in.meter.begin(resting)
	a.pen <- struct{}{}
	b.in.meter.begin(computing)
	failed := b.in.meter.disk(writing, func() error { return a.write(h, b.frame) })
	<-a.pen
	switch {
	case failed == nil && a.small:
		b.frame = a.took(at, sum, b.frame, h.kind == kindBlock && sum != nil)
		return
	case failed == nil:
		failed = b.in.meter.disk(writing, func() error { return a.note(h.index, sum) })
	}
	if failed != nil {
		a.release(h.index)
		a.fail(at, noSpace(fmt.Errorf("write block %d: %w", h.index, failed)))
		return
	}
	at.tell(kindProven, h.index)
	if h.kind != kindHole && sum != nil {
		b.in.meter.begin(behind)
		b.frame = a.keep(h.index, b.frame)
		b.in.meter.begin(computing)
	}
}

// read reads what follows a header into the frame, and reports whether its proof holds. A
// block of a is unpacked there; without a it is thrown away. Its sum is computed where that is
// the proof, or somebody looks at it.
func (b *blocks) read(h header, a *arrival) (whole bool, err error) {
	b.proof.begin(h)
	looked := a != nil && (b.proof.protection == mover.Safe || h.kind != kindBlock || !a.File.Digest.IsZero())
	b.proof.summing = looked || b.proof.protection == mover.Private
	if b.frame == nil {
		b.frame = frames.Get().(*frame)
	}
	n, proof := int(h.length), b.proof.size()
	if h.kind == kindHole {
		n = 0
		_, err = io.ReadFull(b.conn, b.frame[:proof])
	}
	for at := 0; at < n && err == nil; at += pieceSize {
		end := min(at+pieceSize, n)
		last := 0
		if end == n {
			last = proof
		}
		if err = b.fill(b.frame[at : end+last]); err == nil {
			b.proof.add(b.frame[at:end])
		}
	}
	if err != nil || !b.proof.check(b.frame[n:n+proof]) {
		return false, err
	}
	switch {
	case a == nil:
	case h.kind == kindPacked:
		return b.unpack(h, a), nil
	case h.kind == kindHole:
		b.proof.sum.Reset()
		for n := int64(h.length); n > 0; n -= pieceSize {
			_, _ = b.proof.sum.Write(zeros[:min(n, pieceSize)])
		}
	}
	return true, nil
}

// patience is how long the sender may take for the next block, or for a piece of this one.
// An error means that the connection has ended.
func (b *blocks) patience() error {
	return b.conn.SetReadDeadline(time.Now().Add(b.link.receiver.opts.Idle))
}

// writeAt is a file's. Tests put a slow disk in its place.
var writeAt = (*os.File).WriteAt

// write writes the block that is at the front of a frame, or makes it zeros, whatever an
// earlier attempt has left there. Its caller has the pen.
func (a *arrival) write(h header, block *frame) error {
	n, at := int64(blockLen(a.File.Size, h.index)), blockStart(h.index)
	if h.kind != kindHole {
		_, err := writeAt(a.data, block[:n], at)
		return err
	}
	if disk.Punch(a.data, at, n) == nil {
		return nil
	}
	for end := at + n; at < end; at += pieceSize {
		if _, err := writeAt(a.data, zeros[:min(pieceSize, end-at)], at); err != nil {
			return err
		}
	}
	return nil
}
