package stream

import (
	"crypto/tls"
	"errors"
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
	tube  *tube  // made when it is first needed
	toll  *pace.Toll
}

// lane takes blocks from c, which was welcomed as a lane, until it ends.
func (l *incoming) lane(c *tls.Conn) (err error) {
	p, err := newProof(l.protection, c.ConnectionState(), true)
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
	defer func() { err = errors.Join(err, b.close()) }()
	for {
		if err := b.take(); err != nil {
			return err
		}
	}
}

func (b *blocks) close() error {
	if b.frame != nil {
		frames.Put(b.frame)
	}
	if b.tube != nil {
		return b.tube.Close()
	}
	return nil
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

// store takes a block that is reserved for it.
func (b *blocks) store(a *arrival, at seat, h header) error {
	var sum *digest.Block
	whole := true
	var failed, err error // the disk's, the connection's
	if c, ok := b.direct(a, h); ok {
		failed, err = b.pass(a, c, h)
	} else {
		w := &part{a: a, h: h, meter: &b.in.meter}
		whole, err = b.read(h, w)
		s := b.proof.sum.Sum()
		sum, failed = &s, w.err
	}
	switch {
	case err != nil:
		a.release(h.index)
		return err
	case !whole:
		a.release(h.index)
		at.tell(kindAgain, h.index)
		return nil
	}
	return b.stored(a, at, h, sum, failed)
}

// stored notes a block that was written, unless that failed. An error is the connection's.
func (b *blocks) stored(a *arrival, at seat, h header, sum *digest.Block, failed error) error {
	switch {
	case failed == nil && a.small:
		b.frame = a.took(at, sum, b.frame, h.kind == kindBlock && sum != nil)
		return nil
	case failed == nil:
		failed = b.in.meter.disk(writing, func() error { return a.note(h.index, sum) })
	}
	if failed != nil {
		a.release(h.index)
		a.fail(at, noSpace(fmt.Errorf("write block %d: %w", h.index, failed)))
		return nil
	}
	at.tell(kindProven, h.index)
	if h.kind != kindHole && sum != nil {
		b.in.meter.begin(behind)
		b.frame = a.keep(h.index, b.frame)
		b.in.meter.begin(computing)
	}
	return nil
}

// direct reports whether the kernel may take the block by itself: nobody here wants to
// see its bytes.
func (b *blocks) direct(a *arrival, h header) (*net.TCPConn, bool) {
	c, ok := b.in.Conn.(*net.TCPConn)
	if !ok || b.proof.protection != mover.Clear || h.kind != kindBlock || !a.File.Digest.IsZero() {
		return nil, false
	}
	if b.tube == nil {
		var err error
		if b.tube, err = newTube(&b.in.meter); err != nil {
			return nil, false
		}
	}
	return c, true
}

// read reads what follows a header, writes it to w, and reports whether its proof
// holds. Without w it throws it away.
func (b *blocks) read(h header, w *part) (whole bool, err error) {
	b.proof.begin(h)
	if b.frame == nil {
		b.frame = frames.Get().(*frame)
	}
	if h.kind == kindHole {
		return b.hole(h, w)
	}
	if h.kind == kindPacked && w != nil {
		return b.unpack(h, w)
	}
	for at := 0; at < int(h.length); {
		n := min(pieceSize, int(h.length)-at)
		room := b.frame[:]
		if w != nil && (w.a.kept() || w.held) {
			room = b.frame[at:]
		}
		last := 0
		if at+n == int(h.length) {
			last = b.proof.size()
		}
		if err := b.fill(room[:n+last]); err != nil {
			return false, err
		}
		b.proof.add(room[:n])
		w.write(room[:n], int64(at))
		if at += n; last > 0 {
			whole = b.proof.check(room[n : n+last])
		}
	}
	return whole || b.proof.size() == 0, nil
}

func (b *blocks) hole(h header, w *part) (bool, error) {
	room := b.frame[:b.proof.size()]
	if _, err := io.ReadFull(b.conn, room); err != nil || !b.proof.check(room) {
		return false, err
	}
	if w == nil {
		return true, nil
	}
	if !w.held {
		w.punch()
	}
	b.proof.sum.Reset()
	for n := int64(h.length); n > 0; n -= pieceSize {
		_, _ = b.proof.sum.Write(zeros[:min(n, pieceSize)])
	}
	return true, nil
}

// patience is how long the sender may take for the next block, or for a piece of this one.
// An error means that the connection has ended.
func (b *blocks) patience() error {
	return b.conn.SetReadDeadline(time.Now().Add(b.link.receiver.opts.Idle))
}

// part is where a block is written. It keeps the first error. A nil one takes nothing.
type part struct {
	a     *arrival
	h     header
	meter *meter
	held  bool // nothing is written yet
	err   error
}

// writeAt is a file's. Tests put a slow disk in its place.
var writeAt = (*os.File).WriteAt

func (p *part) write(b []byte, at int64) {
	if p != nil && p.err == nil && !p.held {
		p.err = p.meter.disk(writing, func() error {
			_, err := writeAt(p.a.data, b, blockStart(p.h.index)+at)
			return err
		})
	}
}

// punch makes the block zeros, whatever an earlier attempt has left there.
func (p *part) punch() {
	if disk.Punch(p.a.data, blockStart(p.h.index), int64(p.h.length)) == nil {
		return
	}
	for at := int64(0); at < int64(p.h.length); at += pieceSize {
		p.write(zeros[:min(pieceSize, int64(p.h.length)-at)], at)
	}
}
