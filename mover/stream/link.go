package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// pingEvery keeps a link from being taken for one that nobody uses. As often it tries
// for lanes that could not be had.
const pingEvery = 30 * time.Second

// maxFruitless is how many lanes in a row may die without having brought anything.
const maxFruitless = 3

type linkKey struct {
	address    string
	protection mover.Protection
}

// link is what joins this DTN to another one while files are moved there.
type link struct {
	engine *Engine
	key    linkKey
	users  int // the engine's mutex guards it
	stall  time.Duration
	work   sync.WaitGroup
	cancel context.CancelCauseFunc
	ready  chan struct{} // closed when the control connection is there, or cannot be

	name    string
	control *tls.Conn
	rtt     time.Duration // that opening it took, a name's lookup included
	bbr     bool          // the kernel lets us use it
	writing sync.Mutex    // held while control is written to

	mu        sync.Mutex // guards what follows
	changed   sync.Cond
	err       error // why all is over
	last      uint32
	files     []*outgoing // by number
	turn      int         // whose is next
	lanes     map[*lane]bool
	dialling  int
	enough    int // lanes, since no more could be had lately; 0: that is not known
	fruitless int // lanes that brought nothing, one after the other
}

// newLink begins to open a link.
func newLink(e *Engine, k linkKey) *link {
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &link{
		engine: e, key: k, stall: cmp.Or(e.Stall, DefaultStall), cancel: cancel,
		ready: make(chan struct{}), name: rand.Text(), lanes: map[*lane]bool{},
	}
	l.changed.L = &l.mu
	l.work.Go(func() {
		c, _, rtt, err := l.dial(ctx, false)
		if err != nil {
			l.fail(err)
			close(l.ready)
			return
		}
		l.control, l.rtt, l.bbr = c, rtt, rtt >= near && congestion(bare(c), bbr)
		close(l.ready)
		l.work.Go(l.listen)
		l.work.Go(func() { l.watch(ctx) })
		l.staff(ctx)
	})
	return l
}

// close ends the link, and returns when nothing of it runs.
func (l *link) close() {
	err := errors.New("nothing more is moved")
	l.fail(err)
	l.cancel(err)
	l.work.Wait()
}

func (l *link) failed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}

// fail ends everything on the link for the reason err.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.changed.Broadcast()
}

// dial opens the link or adds a connection to it, which is closed when ctx is done.
func (l *link) dial(ctx context.Context, lane bool) (*tls.Conn, *gather, time.Duration, error) {
	limit, cancel := context.WithTimeoutCause(ctx, l.stall, errors.New("the receiver does not answer"))
	defer cancel()
	c, out, rtt, err := dial(limit, l.engine, l.key.address)
	if err != nil && limit.Err() != nil {
		err = context.Cause(limit)
	}
	if err != nil {
		return nil, nil, 0, err
	}
	context.AfterFunc(ctx, func() { cut(c) })
	if err := l.greet(c, lane); err != nil {
		cut(c) // ctx may have closed it already
		return nil, nil, 0, fmt.Errorf("open a session: %w", err)
	}
	return c, out, rtt, nil
}

func (l *link) greet(c *tls.Conn, lane bool) error {
	_ = c.SetDeadline(time.Now().Add(l.stall))
	h := hello{Version: version, Link: l.name, Lane: lane, Protection: l.key.protection}
	if _, err := c.Write(h.bytes()); err != nil {
		return authError(err)
	}
	head, err := readHeader(c)
	if err != nil {
		return authError(err)
	}
	if head.kind != kindAnswer {
		return fmt.Errorf("the receiver answers a hello with kind %d", head.kind)
	}
	a, err := readAnswer(c, head.length)
	if err = errors.Join(err, a.err()); err != nil {
		return err
	}
	if a.Block != mover.BlockSize {
		return fmt.Errorf("the receiver wants blocks of %d bytes, this DTN sends %d; run the same release on both", a.Block, mover.BlockSize)
	}
	return c.SetDeadline(time.Time{})
}

// move sends one file.
func (l *link) move(ctx context.Context, r mover.Request, src *source, report func(moved int64)) error {
	f, err := l.open(r, src)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.end(f, context.Cause(ctx)) })
	defer stop()
	err = l.await(f, report)
	if l.forget(f) {
		_ = l.tell(header{kind: kindClose, file: f.id}.bytes()) // a receiver that is gone knows
	}
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// open announces a file. One of a single block is sent with it: an answer that there
// is no need comes too late to be worth the wait.
func (l *link) open(r mover.Request, src *source) (*outgoing, error) {
	f := &outgoing{
		size: r.Source.Size, source: src, tries: map[uint32]int{}, heard: time.Now(),
		window: clamp(r.PCP.Pipelining, DefaultPipelining, mover.MaxPipelining),
		lanes:  clamp(r.PCP.Parallelism, l.parallelism(), mover.MaxParallelism),
		files:  clamp(r.PCP.Concurrency, DefaultConcurrency, mover.MaxConcurrency),
	}
	l.writing.Lock() // numbers go upwards
	defer l.writing.Unlock()
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return nil, l.err
	}
	l.last++
	f.id = l.last
	l.files = append(l.files, f)
	if blockCount(f.size) == 1 {
		f.fill(nil)
	}
	l.changed.Broadcast()
	l.mu.Unlock()
	o := opening{Ticket: r.Destination.Ticket, Size: r.Source.Size, Digest: r.Source.Digest}
	_ = l.put(header{kind: kindOpen, file: f.id}.with(o)) // await sees the link fail
	return f, nil
}

// tell writes to the control connection.
func (l *link) tell(b []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.put(b)
}

// put is tell for who holds writing.
func (l *link) put(b []byte) error {
	_ = l.control.SetWriteDeadline(time.Now().Add(l.stall))
	_, err := l.control.Write(b)
	if err != nil {
		l.fail(fmt.Errorf("the connection ended: %w", err))
	}
	return err
}

// parallelism is how many lanes a link has when nobody says.
func (l *link) parallelism() int {
	switch {
	case l.rtt < near:
		return NearParallelism
	case l.bbr:
		return BBRParallelism
	}
	return DefaultParallelism
}

// await returns nil when the receiver has the whole file. It tells report how much was
// there before, and then how far it is, never less than before.
func (l *link) await(f *outgoing, report func(moved int64)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for told := int64(-1); ; {
		if err := cmp.Or(f.err, l.err); err != nil && !f.done {
			return err
		}
		at := f.moved
		if told < 0 {
			at = f.before
		}
		if f.opened && at > told {
			told = at
			l.mu.Unlock()
			report(told)
			l.mu.Lock()
			continue
		}
		if f.done {
			return nil
		}
		l.changed.Wait()
	}
}

// end ends a file for the reason err.
func (l *link) end(f *outgoing, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !f.over() {
		f.err = err
	}
	l.changed.Broadcast()
}

// forget takes a file off the link, and reports whether the receiver should know.
func (l *link) forget(f *outgoing) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files = slices.DeleteFunc(l.files, func(g *outgoing) bool { return g == f })
	for n := range l.lanes {
		for b := range n.flight {
			if b.file == f {
				delete(n.flight, b)
			}
		}
	}
	l.changed.Broadcast()
	return l.err == nil && !f.answered
}

// listen takes what the receiver says until the control connection ends.
func (l *link) listen() {
	for {
		h, err := readHeader(l.control)
		var a answer
		if err == nil && h.kind == kindAnswer {
			a, err = readAnswer(l.control, h.length)
		}
		if err != nil {
			l.fail(fmt.Errorf("the connection ended: %w", err))
			return
		}
		if err := l.heard(h, a); err != nil {
			l.fail(err)
			return
		}
	}
}

// heard takes one thing that the receiver said.
func (l *link) heard(h header, a answer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.changed.Broadcast()
	if h.file == 0 || h.file > l.last {
		return fmt.Errorf("the receiver speaks of file %d, which was not opened", h.file)
	}
	at := slices.IndexFunc(l.files, func(f *outgoing) bool { return f.id == h.file })
	if at < 0 || l.files[at].over() {
		return nil // it has ended here
	}
	f, now := l.files[at], time.Now()
	switch h.kind {
	case kindProven, kindAgain:
		return l.answered(f, h.index, h.kind == kindProven, now)
	case kindBusy:
		if h.index != f.busy {
			f.busy, f.heard = h.index, now
		}
	case kindAnswer:
		f.heard = now
		return f.hear(a)
	default:
		return fmt.Errorf("the receiver says something of unknown kind %d", h.kind)
	}
	return nil
}

// answered takes the receiver's word on block i of f. The caller holds mu.
func (l *link) answered(f *outgoing, i uint32, ok bool, now time.Time) error {
	if f.todo == nil {
		return fmt.Errorf("the receiver answers for block %d of a file that it has not answered for", i)
	}
	if i >= blockCount(f.size) {
		return fmt.Errorf("the receiver answers for block %d of a file with %d", i, blockCount(f.size))
	}
	f.heard = now
	flew := false
	for n := range l.lanes {
		if b := (flying{f, i}); n.flight[b] {
			delete(n.flight, b)
			n.heard, n.worked, flew = now, true, true
			l.fruitless = 0
		}
	}
	switch {
	case !ok:
		f.again(i, flew)
	case flew:
		f.proven(i)
	case f.todo.has(i): // its lane died, and the block had come nevertheless
		f.drop(i)
		f.proven(i)
	} // else it came twice: over a lane that died, and over another
	return nil
}

// take waits for a block that n may send. It returns false when there will be none.
func (l *link) take(n *lane) (*outgoing, uint32, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.sending = false
	for l.err == nil && !n.quit && n.blocks < cmp.Or(l.engine.laneBlocks, maxLaneBlocks) {
		if f := l.next(n); f != nil {
			i := f.deal()
			if len(n.flight) == 0 {
				n.heard = time.Now()
			}
			n.flight[flying{f, i}], n.sending = true, true
			n.blocks++
			f.source.use()
			return f, i, true
		}
		l.changed.Wait()
	}
	return nil, 0, false
}

// next is the file whose block n should send now; nil: none. As many files take turns
// as one of them asks for, the first to come before the others. The caller holds mu.
func (l *link) next(n *lane) *outgoing {
	var ready []*outgoing
	limit, window := 0, 0
	for _, f := range l.files {
		if f.over() || f.ready == 0 {
			continue
		}
		limit, window = max(limit, f.files), max(window, f.window)
		if ready = append(ready, f); len(ready) >= limit {
			break
		}
	}
	if len(ready) == 0 || len(n.flight) >= window {
		return nil
	}
	l.turn++
	return ready[l.turn%len(ready)]
}

// staff keeps as many lanes as the files on the link are worth, until ctx is done.
func (l *link) staff(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stop := context.AfterFunc(ctx, l.changed.Broadcast)
	defer stop()
	for l.err == nil {
		if len(l.lanes)+l.dialling >= l.wanted() {
			l.changed.Wait()
			continue
		}
		l.dialling++
		l.work.Go(func() { l.hire(ctx) })
	}
}

// wanted is how many lanes there should be. The caller holds mu.
func (l *link) wanted() int {
	lanes, blocks := 0, 0
	for _, f := range l.files {
		if !f.over() {
			lanes, blocks = max(lanes, f.lanes), blocks+f.left
		}
	}
	if l.enough > 0 {
		lanes = min(lanes, l.enough)
	}
	return min(lanes, blocks)
}

// hire adds a lane and drives it until it is not needed or has died.
func (l *link) hire(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a link outlives many lanes: it must not hold on to them
	n, err := l.lane(ctx)
	l.mu.Lock()
	l.dialling--
	if err != nil {
		l.lost(err)
		l.mu.Unlock()
		return
	}
	l.lanes[n] = true
	l.changed.Broadcast()
	l.mu.Unlock()
	l.drive(n)
}

func (l *link) lane(ctx context.Context) (*lane, error) {
	c, out, _, err := l.dial(ctx, true)
	if err != nil {
		return nil, err
	}
	if l.bbr {
		congestion(bare(c), bbr) // as it let us before
	}
	n, err := newLane(c, out, l.key.protection)
	if err != nil {
		cut(c)
	}
	return n, err
}

// lost takes note of a lane that brought nothing: those that are left have to do, and
// without one it cannot go on like this for long. The caller holds mu.
func (l *link) lost(err error) {
	l.enough = len(l.lanes)
	if l.fruitless++; l.enough == 0 && l.fruitless > maxFruitless && l.err == nil {
		l.err = fmt.Errorf("no connection for blocks lasts: %w", err)
	}
	l.changed.Broadcast()
}

// drive sends over n until it is not needed or has died.
func (l *link) drive(n *lane) {
	var reading sync.WaitGroup
	var readErr error
	reading.Go(func() {
		readErr = n.ended()
		l.dismiss(n)
	})
	sendErr := l.send(n)
	n.cut()
	reading.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lanes, n)
	for b := range n.flight {
		b.file.put(b.index)
	}
	if !n.worked && !errors.Is(sendErr, errSource) {
		l.lost(cmp.Or(sendErr, readErr))
	}
	l.changed.Broadcast()
}

// dismiss gives n no more blocks.
func (l *link) dismiss(n *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.quit = true
	l.changed.Broadcast()
}

// send sends over n what there is to send.
func (l *link) send(n *lane) error {
	for {
		f, i, ok := l.take(n)
		if !ok {
			return nil
		}
		err := n.send(f, i)
		f.source.release()
		if errors.Is(err, errSource) {
			l.end(f, err)
		}
		if err != nil {
			return err
		}
	}
}

// watch ends what moves no more, and keeps the link from being taken for idle.
func (l *link) watch(ctx context.Context) {
	tick := time.NewTicker(min(l.stall/8, pingEvery))
	defer tick.Stop()
	for pinged := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if now.Sub(pinged) >= pingEvery {
				pinged = now
				_ = l.tell(header{kind: kindPing}.bytes())
				l.retry()
			}
			l.inspect(now)
		}
	}
}

// retry has more lanes tried again, where they could not be had before.
func (l *link) retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enough = 0
	l.changed.Broadcast()
}

// inspect ends what has been owed an answer for too long: a lane, if others are left
// that may do better, or a file.
func (l *link) inspect(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.lanes {
		if (n.sending || len(n.flight) > 0) && now.Sub(n.moved()) > l.stall {
			n.cut()
		}
	}
	for _, f := range l.files {
		if now.Sub(f.heard) > l.stall && f.waits(l.lanes) && !f.over() {
			f.err = fmt.Errorf("no progress at the receiver for %v", l.stall)
			l.changed.Broadcast()
		}
	}
}
