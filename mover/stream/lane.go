package stream

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

// lane is one of a link's connections for blocks, at the sender.
type lane struct {
	tls   *tls.Conn
	conn  net.Conn // what blocks are written to
	out   *gather  // below tls
	proof *proof
	buf   []byte       // a header, a piece, a proof
	wrote atomic.Int64 // when the connection last took something or waited for a limit, in Unix nanoseconds
	toll  *pace.Toll

	compression *compression // its link's; nil: none
	packed      []byte       // a header, a packed block, a proof

	// The link's mutex guards what follows.
	flight  map[flying]time.Time // sent or about to be since, not answered
	sending bool                 // a block, perhaps of a file that has ended since
	quit    bool                 // takes no more blocks
	leaving bool                 // nor when those in flight have been answered for
	worked  bool                 // a block of it was answered for
	blocks  int                  // that it has sent
	heard   time.Time            // when the last one was; before that, when the lane was opened
	path    mover.Path           // when it was looked at last
}

// flying is a block on its way.
type flying struct {
	file  *outgoing
	index uint32
}

// newLane makes a lane of a connection that the receiver has welcomed as one.
func newLane(c *tls.Conn, out *gather, p mover.Protection) (*lane, error) {
	proof, err := newProof(p, c.ConnectionState())
	if err != nil {
		return nil, err
	}
	l := &lane{tls: c, conn: c, out: out, proof: proof, flight: map[flying]time.Time{}, heard: time.Now()}
	if p == mover.Private {
		out.hold()
	} else {
		l.conn = out
	}
	return l, nil
}

// cut closes l at once, without a word to the peer.
func (l *lane) cut() { cut(l.tls) }

// maxLaneBlocks is how much a lane carries: 256 GiB. AES-GCM does not want more under
// one key (RFC 8446, 5.5), and another lane is soon there.
const maxLaneBlocks = 256 << 10

// moved is when there was a last sign of it.
func (l *lane) moved() time.Time {
	if wrote := time.Unix(0, l.wrote.Load()); wrote.After(l.heard) {
		return wrote
	}
	return l.heard
}

// ended waits until the lane's connection ends, on which the receiver says nothing.
func (l *lane) ended() error {
	var b [1]byte
	_, err := l.conn.Read(b[:])
	if err == nil {
		return errors.New("the receiver speaks on a lane")
	}
	return fmt.Errorf("the connection ended: %w", err)
}

// errSource is why a lane ends whose block could not be read to its end.
var errSource = errors.New("the source could not be read")

// send sends block i of f. An error that is errSource is the source's.
func (l *lane) send(f *outgoing, i uint32) error {
	h := header{kind: kindBlock, file: f.id, index: i, length: blockLen(f.size, i)}
	off := blockStart(i)
	if f.source.sparse && disk.Hole(f.source.File, off, int64(h.length)) {
		return l.sendHole(h)
	}
	compress, sample := l.compression.next()
	missing, partly := f.offer.missing(h.index, off, int64(h.length))
	if compress || partly {
		return l.sendPacked(f, h, missing, partly)
	}
	if sample {
		l.sample(f, h)
	}
	if l.proof.protection == mover.Clear {
		if c, ok := l.out.Conn.(*net.TCPConn); ok {
			return l.sendDirect(c, f, h)
		}
	}
	if l.buf == nil {
		l.buf = make([]byte, headerSize+pieceSize+proofSize)
	}
	for at := int64(0); at < int64(h.length); {
		piece := l.buf[headerSize:][:min(pieceSize, int64(h.length)-at)]
		if err := l.out.meter.disk(reading, func() error { return readBlock(f.source.File, piece, off+at) }); err != nil {
			return sourceError(err)
		}
		b := piece
		if at == 0 {
			if zero(piece) {
				if f.source.zero(l.buf[headerSize:][:pieceSize], off, int64(h.length)) {
					return l.sendHole(h)
				}
				clear(piece) // others were read to where it was
			}
			l.proof.begin(h)
			h.put(l.buf)
			b = l.buf[:headerSize+len(piece)]
		}
		l.proof.add(piece)
		if at += int64(len(piece)); at == int64(h.length) {
			b = l.proof.end(b)
		}
		if err := l.write(b); err != nil {
			return err
		}
	}
	return l.flush()
}

// write is the connection's, as fast as the limits allow, and notes that it went on.
func (l *lane) write(b []byte) error {
	for {
		n := l.toll.Step(len(b))
		if err := l.toll.Take(n); err != nil {
			return err
		}
		_, err := l.conn.Write(b[:n])
		l.wrote.Store(time.Now().UnixNano())
		if b = b[n:]; err != nil || len(b) == 0 {
			return err
		}
		if err := l.flush(); err != nil {
			return err
		}
	}
}

func (l *lane) sendHole(h header) error {
	h.kind = kindHole
	l.proof.begin(h)
	if err := l.write(l.proof.end(h.bytes())); err != nil {
		return err
	}
	return l.flush()
}

// sendDirect has the kernel send the block from its cache.
func (l *lane) sendDirect(c *net.TCPConn, f *outgoing, h header) error {
	if err := l.toll.Take(headerSize); err != nil {
		return err
	}
	if err := l.out.more(c, h.bytes()); err != nil {
		return err
	}
	for at := int64(0); at < int64(h.length); {
		want := min(pieceSize, int64(h.length)-at)
		want = int64(l.toll.Step(int(want)))
		if err := l.toll.Take(int(want)); err != nil {
			return err
		}
		n, err := sendFile(c, f.source.File, blockStart(h.index)+at, want, &l.out.meter)
		l.wrote.Store(time.Now().UnixNano())
		l.out.wire.Add(n)
		if at += n; err == nil && n < want {
			return sourceError(errShort)
		}
		if err != nil { // the kernel does not tell whose fault it is
			var b [1]byte
			if err := readBlock(f.source.File, b[:], blockStart(h.index)+at); err != nil {
				return sourceError(err)
			}
			return err
		}
	}
	return nil
}

func (l *lane) flush() error { return l.out.flush() }

func sourceError(err error) error { return fmt.Errorf("%w: %w", errSource, err) }

var zeros [pieceSize]byte

func zero(b []byte) bool {
	for len(b) > pieceSize {
		if !bytes.Equal(b[:pieceSize], zeros[:]) {
			return false
		}
		b = b[pieceSize:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// zero reports whether a part of the file is nothing but zeros. It uses buf.
func (s *source) zero(buf []byte, off, n int64) bool {
	for ; n > 0; n -= pieceSize {
		b := buf[:min(n, pieceSize)]
		if readBlock(s.File, b, off) != nil || !zero(b) {
			return false
		}
		off += int64(len(b))
	}
	return true
}

// gather makes few long writes of many short ones: TLS writes each of its records by
// itself. It may also write when it reads, to answer the peer or to complain of it. It
// measures how the time goes of who sends over it or takes from it.
type gather struct {
	net.Conn
	closed func() // told of each Close; nil: nobody is
	meter  meter
	wire   atomic.Int64 // bytes written
	taking bool         // the meter is the reader's

	mu  sync.Mutex // guards what follows
	buf []byte     // nil: writes go through
}

func (g *gather) Close() error {
	if g.closed != nil {
		g.closed()
	}
	return g.Conn.Close()
}

// hold begins to gather.
func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.buf = make([]byte, 0, pieceSize+pieceSize/8)
}

func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.buf)+len(b) > cap(g.buf) {
		if err := g.empty(); err != nil {
			return 0, err
		}
	}
	if len(b) > cap(g.buf) {
		return g.through(b)
	}
	g.buf = append(g.buf, b...)
	return len(b), nil
}

func (g *gather) Read(b []byte) (int, error) {
	if g.taking {
		was := g.meter.begin(carrying)
		defer g.meter.begin(was)
	}
	return g.Conn.Read(b)
}

func (g *gather) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.empty()
}

// empty is flush for who holds mu.
func (g *gather) empty() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.through(g.buf)
	g.buf = g.buf[:0]
	return err
}

// more writes to the connection itself, which c is, what goes with what is written next.
func (g *gather) more(c *net.TCPConn, b []byte) error {
	was := g.meter.begin(carrying)
	defer g.meter.begin(was)
	n, err := tcp.WriteMore(c, b)
	g.wire.Add(int64(n))
	return err
}

// through writes to the connection itself.
func (g *gather) through(b []byte) (int, error) {
	was := g.meter.begin(carrying)
	defer g.meter.begin(was)
	n, err := g.Conn.Write(b)
	g.wire.Add(int64(n))
	return n, err
}
