package stream

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/glance-dtn/glance-dtn/internal/delta"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// A packed block is the digest of its bytes, and a Zstandard frame (RFC 8878) of them, or
// of those that the receiver's bases do not have. The lane's proof is over what is on the wire; the digest tells that what came out at
// the other end is what went in here.
const sumSize = len(digest.Block{})

var (
	// The fastest level packs programs to 0.37 of their size, the default one to 0.35 in
	// twice the time (BenchmarkPack).
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(mover.BlockSize), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err) // the options do not depend on anything
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(mover.BlockSize), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// pack appends to dst a packed block, of which literal is what has to come.
func pack(dst, block, literal []byte) []byte {
	sum := digest.OfBlock(block)
	return encoder().EncodeAll(literal, append(dst, sum[:]...))
}

// unpack fills the beginning of block with what came of a packed one, and returns how much
// that is, and the digest of the whole. Whatever the frame claims, it takes no more memory
// than block has.
func unpack(block, packed []byte) (int, digest.Block, error) {
	if len(packed) < sumSize {
		return 0, digest.Block{}, errors.New("a packed block without its digest")
	}
	got, err := decoder().DecodeAll(packed[sumSize:], block[:0:len(block)])
	return len(got), digest.Block(packed), err
}

// What compression goes by.
const (
	sampleSize    = 64 << 10
	sampleEvery   = 16 // blocks, while they are not compressed: 0.4 % of the bytes
	measureBlocks = 8  // answered for, or two of each lane, make a measurement
	settledRounds = 16 // measurements before what the path takes is asked again
)

// compression decides whether a link's blocks are compressed. That pays where what is
// saved would take a lane longer to send than it takes to save:
//
//	bytes saved in a second of compressing > bytes that a lane brings there in a second
//
// Samples tell the left side, and the blocks themselves once they are compressed. The
// right side is the pace of the receiver's answers while something is under way. Where
// the compressor itself sets that pace, a measurement without it tells what the path takes.
type compression struct {
	fixed bool // nothing is decided: on stays what it is

	mu      sync.Mutex // guards what follows
	on      bool
	settled int // measurements until the compressor may be doubted again
	blocks  int // that were sent while it was off

	// What compressing brought lately.
	in, out float64 // bytes
	took    float64 // seconds

	// The measurement under way.
	since    time.Time
	flying   int   // blocks sent and not answered for
	skip     int   // of them, those from before it
	answered int64 // bytes of blocks
	sent     int64 // bytes of blocks
	wire     int64 // bytes that they were on the wire
	busy     float64
	pace     float64 // of the last one: bytes on the wire in a second
}

// next tells how the next block is sent: compressed, or not but a sample of it taken.
func (c *compression) next() (compress, sample bool) {
	if c == nil {
		return false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying++
	if c.on || c.fixed {
		return c.on, false
	}
	c.blocks++
	return false, c.blocks%sampleEvery == 1
}

// saved takes note that the compressor made out bytes of in.
func (c *compression) saved(in, out int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in, c.out, c.took = c.in+float64(in), c.out+float64(out), c.took+took.Seconds()
	c.busy += took.Seconds()
}

// went takes note that a block of that many bytes was as many on the wire.
func (c *compression) went(block, wire int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent, c.wire = c.sent+block, c.wire+wire
}

// rest takes note that nothing is under way: a measurement begins with the next block.
func (c *compression) rest(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying, c.skip = 0, 0
	c.begin(now)
}

// lost takes note of blocks under way of which no answer will be heard.
func (c *compression) lost(blocks int, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying = max(0, c.flying-blocks)
	if c.skip > 0 && c.flying < c.skip {
		if c.skip = c.flying; c.skip == 0 {
			c.begin(now)
		}
	}
}

// begin begins a measurement. The caller holds mu.
func (c *compression) begin(now time.Time) {
	c.since, c.answered, c.sent, c.wire, c.busy = now, 0, 0, 0, 0
}

// rest takes note that a lane has nothing under way, if none has. The caller holds mu.
func (l *link) rest(now time.Time) {
	for n := range l.lanes {
		if len(n.flight) > 0 {
			return
		}
	}
	l.compression.rest(now)
}

// heard takes note of the answer for a block, on a link with so many lanes.
func (c *compression) heard(block int64, lanes int, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying = max(0, c.flying-1)
	if c.skip > 0 {
		if c.skip--; c.skip == 0 {
			c.begin(now)
		}
		return
	}
	if c.answered += block; c.answered < int64(max(measureBlocks, 2*lanes))*mover.BlockSize {
		return
	}
	was, took := c.on, now.Sub(c.since).Seconds()
	if took > 0 {
		c.pace = c.brought() / took
	}
	if !c.fixed {
		c.decide(took * float64(lanes))
	}
	if c.begin(now); c.on != was {
		c.skip = c.flying
	}
}

// decide ends a measurement that took so many seconds of all lanes. The caller holds mu.
func (c *compression) decide(seconds float64) {
	c.settled = max(0, c.settled-1)
	if c.on && c.busy > seconds/2 && c.settled == 0 {
		c.on, c.settled = false, settledRounds
		return
	}
	c.on = c.out < c.in*7/8 && (c.in-c.out)*seconds > c.brought()*c.took
	c.in, c.out, c.took = c.in/2, c.out/2, c.took/2
}

// brought is how many bytes on the wire were answered for. The caller holds mu.
func (c *compression) brought() float64 {
	if c.sent == 0 {
		return float64(c.answered)
	}
	return float64(c.answered) * float64(c.wire) / float64(c.sent)
}

// rate is how fast the path was lately, in bytes on the wire per second; 0: nobody knows.
func (c *compression) rate() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pace
}

// sample compresses a part of block h of f, and throws it away.
func (l *lane) sample(f *outgoing, h header) {
	block := frames.Get().(*frame)
	defer frames.Put(block)
	n := min(sampleSize, int64(h.length))
	b := block[:n]
	if readBlock(f.source.File, b, blockStart(h.index)+(int64(h.length)-n)/2) != nil || zero(b) {
		return // who sends it finds out
	}
	l.compress(block[n:n], b)
}

// compress is pack of a whole block, and takes note of what that brings.
func (l *lane) compress(dst, block []byte) []byte {
	begin := time.Now()
	packed := pack(dst, block, block)
	l.compression.saved(len(block), len(packed)-len(dst), time.Since(begin))
	return packed
}

// sendPacked sends block h of f packed, unless it is not worth it; partly, only what is
// missing of it at the receiver.
func (l *lane) sendPacked(f *outgoing, h header, missing []delta.Span, partly bool) error {
	block := frames.Get().(*frame)
	defer frames.Put(block)
	b := block[:h.length]
	if err := readBlock(f.source.File, b, blockStart(h.index)); err != nil {
		return sourceError(err)
	}
	if zero(b) {
		return l.sendHole(h)
	}
	if l.packed == nil {
		l.packed = make([]byte, 0, headerSize+mover.BlockSize+mover.BlockSize/16+proofSize)
	}
	var m []byte
	if partly {
		literal := frames.Get().(*frame)
		m = pack(l.packed[:headerSize], b, delta.Join(literal[:0], b, blockStart(h.index), missing))
		frames.Put(literal)
	} else {
		m = l.compress(l.packed[:headerSize], b)
	}
	if n := uint32(len(m) - headerSize); n < h.length-h.length/16 {
		h.kind, h.length = kindPacked, n
	} else {
		m = append(m[:headerSize], b...)
	}
	l.packed = m[:0]
	return l.sendWhole(h, m)
}

// sendWhole sends m, which has room for h and then h's payload.
func (l *lane) sendWhole(h header, m []byte) error {
	h.put(m)
	l.proof.begin(h)
	for piece := range slices.Chunk(m[headerSize:], pieceSize) {
		l.proof.add(piece)
	}
	for piece := range slices.Chunk(l.proof.end(m), pieceSize) {
		if err := l.write(piece); err != nil {
			return err
		}
	}
	return l.flush()
}

// unpack unpacks what was read of a packed block, into another frame, which is the lane's from
// then on, and reports whether that is the block.
func (b *blocks) unpack(h header, a *arrival) bool {
	packed := b.frame
	defer giveBack(packed)
	b.frame = borrow()
	plain := b.frame[:blockLen(a.File.Size, h.index)]
	literal, sum, err := unpack(plain, packed[:h.length])
	if err == nil && literal < len(plain) {
		err = b.link.lends(h.file).Fill(plain, blockStart(h.index), literal)
	}
	if err != nil {
		return false
	}
	b.proof.sum.Reset()
	_, _ = b.proof.sum.Write(plain) // never fails
	return b.proof.sum.Sum() == sum
}
