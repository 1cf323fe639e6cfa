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

	"github.com/glance-dtn/glance-dtn/mover"
)

// lane is one of a link's connections for blocks, at the sender.
type lane struct {
	tls   *tls.Conn
	conn  net.Conn // what blocks are written to
	out   *gather  // below tls, in private
	proof *proof
	buf   []byte       // a header, a piece, a proof
	wrote atomic.Int64 // when the connection last took something, in Unix nanoseconds

	// The link's mutex guards what follows.
	flight  map[flying]bool // sent or about to be, not answered
	sending bool            // a block, perhaps of a file that has ended since
	quit    bool            // takes no more blocks
	worked  bool            // a block of it was answered for
	blocks  int             // that it has sent
	heard   time.Time       // when the last one was
}

// flying is a block on its way.
type flying struct {
	file  *outgoing
	index uint32
}

// newLane makes a lane of a connection that the receiver has welcomed as one.
func newLane(c *tls.Conn, out *gather, p mover.Protection) (*lane, error) {
	proof, err := newProof(p, c.ConnectionState(), false)
	if err != nil {
		return nil, err
	}
	l := &lane{tls: c, conn: c, out: out, proof: proof, flight: map[flying]bool{}}
	if p == mover.Private {
		out.hold()
	} else {
		l.conn = bare(c)
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
	if f.source.hole(off, int64(h.length)) {
		return l.sendHole(h)
	}
	if l.proof.protection == mover.Clear {
		if tcp, ok := l.conn.(*net.TCPConn); ok {
			return l.sendDirect(tcp, f, h)
		}
	}
	if l.buf == nil {
		l.buf = make([]byte, headerSize+pieceSize+proofSize)
	}
	for at := int64(0); at < int64(h.length); {
		piece := l.buf[headerSize:][:min(pieceSize, int64(h.length)-at)]
		if err := readBlock(f.source.File, piece, off+at); err != nil {
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

// write is the connection's, and notes that it went on.
func (l *lane) write(b []byte) error {
	_, err := l.conn.Write(b)
	l.wrote.Store(time.Now().UnixNano())
	return err
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
	if err := l.write(h.bytes()); err != nil {
		return err
	}
	for at := int64(0); at < int64(h.length); {
		want := min(pieceSize, int64(h.length)-at)
		n, err := sendFile(c, f.source.File, blockStart(h.index)+at, want)
		l.wrote.Store(time.Now().UnixNano())
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

func (l *lane) flush() error {
	if l.out == nil {
		return nil
	}
	return l.out.flush()
}

func sourceError(err error) error { return fmt.Errorf("%w: %w", errSource, err) }

var zeros [pieceSize]byte

func zero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

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
// itself. It may also write when it reads, to answer the peer or to complain of it.
type gather struct {
	net.Conn
	mu  sync.Mutex // guards what follows
	buf []byte     // nil: writes go through
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
		return g.Conn.Write(b)
	}
	g.buf = append(g.buf, b...)
	return len(b), nil
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
	_, err := g.Conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}
