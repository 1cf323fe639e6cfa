// Package stream is the mover's own data plane: one file over parallel TLS 1.3
// connections, in blocks that are proven one by one and need not be sent twice.
//
// Engine sends. Its lanes, one a connection, take blocks from one queue, so a slow
// connection holds nothing up and a dead one costs only what it had in flight.
//
// Receiver takes files in. A block is written where it belongs under a hidden
// name, then noted in a journal with its checksum, then answered for. A
// hasher follows the part without a gap, so that the whole file's digest is known
// soon after the last block. Only then is the file synced and given its name.
package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// What Engine does when nobody says otherwise.
const (
	DefaultParallelism = 4
	NearParallelism    = 2 // where the receiver is near: more connections bring nothing and cost CPU
	DefaultPipelining  = 8
	DefaultStall       = 2 * time.Minute
)

// near is a time for opening a TCP connection that no wide area path reaches.
const near = 2 * time.Millisecond

// maxCommits bounds how often a receiver may find that blocks it had are damaged.
const maxCommits = 5

// Engine sends files to a Receiver. It implements mover.Engine. Its fields are not
// changed once Move was called.
type Engine struct {
	Root *os.Root // the export

	// TLS gives the configuration of a new connection: the certificate of this
	// DTN, and the authorities. The server's name is that in the destination's address.
	TLS func() *tls.Config

	// Dial opens a TCP connection; nil: a net.Dialer with keep-alives.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Stall is how long a connection may owe an answer; 0: DefaultStall.
	Stall time.Duration
}

var _ mover.Engine = (*Engine)(nil)

func (e *Engine) dialer() func(ctx context.Context, network, address string) (net.Conn, error) {
	if e.Dial != nil {
		return e.Dial
	}
	return (&net.Dialer{Timeout: 15 * time.Second}).DialContext
}

// Move implements mover.Engine. It fails when the last of its connections has
// died, when the receiver refuses, or when the source is not what r says.
func (e *Engine) Move(ctx context.Context, r mover.Request, report func(moved int64)) error {
	if err := e.move(ctx, r, report); err != nil {
		return fmt.Errorf("move %s to %s: %w", r.Source.Name, r.Destination.Address, err)
	}
	return nil
}

func (e *Engine) move(ctx context.Context, r mover.Request, report func(moved int64)) error {
	src, err := openSource(e.Root, r.Source)
	if err != nil {
		return err
	}
	defer src.Close()
	ours, cancel := context.WithCancel(ctx)
	m := &move{
		engine: e, request: r, source: src,
		session: rand.Text(), stall: cmp.Or(e.Stall, DefaultStall),
		window: clamp(r.PCP.Pipelining, DefaultPipelining, mover.MaxPipelining),
	}
	defer m.lanes.Wait()
	defer cancel() // closes the connections
	err = m.run(ours, report)
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// clamp returns n, def where n is not said, at most limit.
func clamp(n, def, limit int) int {
	if n <= 0 {
		n = def
	}
	return min(n, limit)
}

// move is one call of Move.
type move struct {
	engine  *Engine
	request mover.Request
	source  *os.File
	session string
	window  int
	stall   time.Duration
	queue   *queue
	lanes   sync.WaitGroup
}

// lane is one connection of a move. Its queue's mutex guards flight and quit.
type lane struct {
	conn    *tls.Conn
	rtt     time.Duration // that opening it took, a name's lookup included
	window  int
	flight  map[uint32]bool // sent or about to be, not answered
	quit    bool            // takes no more blocks
	answers chan answer     // to commits
	done    chan struct{}   // closed when conn is read no more
}

// run opens the session, sends what is missing, and commits.
func (m *move) run(ctx context.Context, report func(moved int64)) error {
	size := m.request.Source.Size
	first, a, err := m.open(ctx, false)
	if err != nil {
		return err
	}
	if a.Done {
		report(size)
		return first.conn.Close()
	}
	m.queue = newQueue(size, a.Have, m.stall)
	report(m.queue.told)
	stop := context.AfterFunc(ctx, func() { m.queue.fail(context.Cause(ctx)) })
	defer stop()
	m.start(ctx, first)
	for range maxCommits {
		if err := m.queue.wait(report); err != nil {
			return err
		}
		a, err := m.commit()
		if err != nil {
			return err
		}
		if a.Done {
			report(size)
			return nil
		}
		m.queue.fill(a.Have)
	}
	return fmt.Errorf("the receiver lost proven blocks %d times; check its disk", maxCommits)
}

// start runs the first lane and as many more as the request asks for and the file can use.
func (m *move) start(ctx context.Context, first *lane) {
	n := clamp(m.request.PCP.Parallelism, parallelism(first.rtt), mover.MaxParallelism)
	n = min(n, max(1, m.queue.left))
	m.queue.expect(first)
	m.lanes.Go(func() { m.drive(first) })
	for range n - 1 {
		placeholder := new(lane)
		m.queue.expect(placeholder)
		m.lanes.Go(func() {
			l, _, err := m.open(ctx, true)
			if err == nil {
				m.queue.expect(l)
			}
			m.queue.leave(placeholder, err)
			if err == nil {
				m.drive(l)
			}
		})
	}
}

// parallelism is how many connections a file goes over when nobody says.
func parallelism(rtt time.Duration) int {
	if rtt < near {
		return NearParallelism
	}
	return DefaultParallelism
}

// open dials, and opens or joins the session. The connection is closed when ctx is done.
func (m *move) open(ctx context.Context, join bool) (*lane, answer, error) {
	limit, cancel := context.WithTimeoutCause(ctx, m.stall, errors.New("the receiver does not answer"))
	defer cancel()
	c, rtt, err := dial(limit, m.engine, m.request.Destination.Address)
	if err != nil && limit.Err() != nil {
		err = context.Cause(limit)
	}
	if err != nil {
		return nil, answer{}, err
	}
	context.AfterFunc(ctx, func() { cut(c) })
	a, err := m.greet(c, join)
	if err != nil {
		cut(c) // ctx may have closed it already
		return nil, answer{}, fmt.Errorf("open a session: %w", err)
	}
	return &lane{
		conn: c, rtt: rtt, window: m.window,
		flight: map[uint32]bool{}, answers: make(chan answer, 1), done: make(chan struct{}),
	}, a, nil
}

func (m *move) greet(c *tls.Conn, join bool) (answer, error) {
	_ = c.SetDeadline(time.Now().Add(m.stall))
	h := hello{
		Version: version, Ticket: m.request.Destination.Ticket, Session: m.session, Join: join,
		Size: m.request.Source.Size, Digest: m.request.Source.Digest,
	}
	if _, err := c.Write(h.bytes()); err != nil {
		return answer{}, authError(err)
	}
	msg, err := readMessage(c)
	if err != nil {
		return answer{}, authError(err)
	}
	if msg.kind != kindAnswer {
		return answer{}, fmt.Errorf("the receiver answers a hello with kind %d", msg.kind)
	}
	a, err := readAnswer(c, msg.value)
	if err = errors.Join(err, a.err()); err != nil {
		return answer{}, err
	}
	if a.Block != mover.BlockSize {
		return answer{}, fmt.Errorf("the receiver wants blocks of %d bytes, this DTN sends %d; run the same release on both", a.Block, mover.BlockSize)
	}
	return a, c.SetDeadline(time.Time{})
}

// drive sends and receives on l until it is not needed or has died.
func (m *move) drive(l *lane) {
	m.queue.join(l)
	var reading sync.WaitGroup
	var readErr error
	reading.Go(func() {
		readErr = m.receive(l)
		m.queue.quit(l)
		close(l.done)
		cut(l.conn)
	})
	sendErr := m.send(l)
	if sendErr != nil { // perhaps the receiver said why
		m.queue.quit(l)
		_ = l.conn.SetReadDeadline(time.Now().Add(lingerTime))
	}
	reading.Wait()
	m.queue.leave(l, cmp.Or(sendErr, readErr))
}

// send sends what the queue deals until it deals no more.
func (m *move) send(l *lane) error {
	frame := frames.Get().(*[frameSize]byte)
	defer frames.Put(frame)
	for {
		i, ok := m.queue.take(l)
		if !ok {
			return nil
		}
		n := blockLen(m.request.Source.Size, i)
		b := frame[:headerSize+n]
		if err := readBlock(m.source, b[headerSize:], blockStart(i)); err != nil {
			m.queue.fail(err)
			return err
		}
		header{kindBlock, i, n, digest.OfBlock(b[headerSize:])}.put(b)
		if _, err := l.conn.Write(b); err != nil {
			return err
		}
	}
}

// receive takes the receiver's answers until the connection ends. An answer with
// an error ends the move.
func (m *move) receive(l *lane) error {
	var progress uint32
	for {
		msg, err := readMessage(l.conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("no progress at the receiver for %v", m.stall)
		}
		if err != nil {
			return fmt.Errorf("the connection ended: %w", err)
		}
		switch msg.kind {
		case kindProven, kindAgain:
			if err := m.queue.answered(l, msg.value, msg.kind == kindProven); err != nil {
				return err
			}
		case kindBusy:
			if msg.value != progress {
				progress = msg.value
				_ = l.conn.SetReadDeadline(time.Now().Add(m.stall))
			}
		case kindAnswer:
			a, err := readAnswer(l.conn, msg.value)
			if err != nil {
				return err
			}
			if err := a.err(); err != nil {
				m.queue.fail(err)
				return err
			}
			select {
			case l.answers <- a:
			default:
				return errors.New("the receiver answers what was not asked")
			}
		default:
			return fmt.Errorf("a message of unknown kind %d", msg.kind)
		}
	}
}

// commit asks for the end on one connection after the other until one answers.
func (m *move) commit() (answer, error) {
	info, err := m.source.Stat()
	if err == nil {
		err = checkSize(info.Size(), m.request.Source.Size)
	}
	if err != nil {
		return answer{}, err
	}
	for {
		l, err := m.queue.any()
		if err != nil {
			return answer{}, err
		}
		if a, ok := m.ask(l); ok {
			return a, nil
		}
	}
}

func (m *move) ask(l *lane) (answer, bool) {
	var frame [headerSize]byte
	header{kind: kindCommit}.put(frame[:])
	_ = l.conn.SetReadDeadline(time.Now().Add(m.stall))
	if _, err := l.conn.Write(frame[:]); err != nil {
		m.queue.quit(l)
		return answer{}, false
	}
	select {
	case a := <-l.answers:
		_ = l.conn.SetReadDeadline(time.Time{})
		return a, true
	case <-l.done:
		return answer{}, false
	}
}

// frameSize is the longest frame.
const frameSize = headerSize + mover.BlockSize

// frames are buffers for both ends, so that memory is bounded by what is in use at once.
var frames = sync.Pool{New: func() any { return new([frameSize]byte) }}
