package stream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

// pingEvery keeps a link from being taken for one that nobody uses. As often it tries
// for lanes that could not be had.
const pingEvery = 30 * time.Second

// maxFruitless is how many lanes in a row may die without having brought anything.
const maxFruitless = 3

type linkKey struct {
	address    string
	protection mover.Protection
	site       string // that the DTN there has to be of; empty: any
}

// link is what joins this DTN to another one while files are moved there.
type link struct {
	engine *Engine
	key    linkKey
	users  int // the engine's mutex guards it
	stall  time.Duration
	probe  bool // of a probe: it carries no files
	work   sync.WaitGroup
	cancel context.CancelCauseFunc
	ready  chan struct{} // closed when the control connection is there, or cannot be

	name    string
	control *tls.Conn
	rtt     time.Duration // the least round trip of opening it; where the kernel does not tell, how long that took
	bbr     bool          // controls it, and the path is not near
	site    string        // of the other DTN, as its certificate says
	asks    bool          // a relay what it has seen of its ways on, and carries nothing
	onward  []mover.Hop   // its answer
	writing sync.Mutex    // held while control is written to

	saying sync.Mutex // guards what follows; taken after writing, before mu
	unsaid []byte     // what goes to control next
	spare  []byte     // for what goes after that
	ticket string     // in what is said last

	compression compression

	mu        sync.Mutex // guards what follows
	changed   sync.Cond
	err       error // why all is over
	last      uint32
	files     []*outgoing // by number
	coming    int         // files that have room and are not among them, yet or any more
	turn      int         // whose is next
	lanes     map[*lane]bool
	dialling  int
	enough    int        // lanes, since no more could be had lately; 0: that is not known
	fruitless int        // lanes that brought nothing, one after the other
	most      int        // lanes that the limits of both DTNs are enough for
	theirs    mover.Rate // the receiver's limit, as it last told
	limit     mover.Rate // of both DTNs
	sight     sight
	away      absence
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
		l.control, l.rtt = c, rtt
		l.steer(bare(c))
		l.bbr = rtt >= near && fastInLoss(bare(c))
		l.site, _ = dtnOf(c.ConnectionState()) // the handshake has made sure of it
		if l.obey() {
			l.work.Go(func() { l.obeying(ctx) })
		}
		l.mu.Lock()
		l.compression.fixed = l.swift() || e.Compression == mover.Off || e.compressAll
		l.mu.Unlock()
		l.compression.on = e.compressAll
		close(l.ready)
		l.work.Go(l.listen)
		l.work.Go(func() { l.watch(ctx) })
		l.work.Go(func() { l.looking(ctx) })
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
	l.wakeAll()
}

// wakeAll wakes whoever waits for a change of the link. The caller holds mu.
func (l *link) wakeAll() {
	l.changed.Broadcast()
	for _, f := range l.files {
		f.changed.Broadcast()
	}
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
	if site, _ := dtnOf(c.ConnectionState()); l.key.site != "" && site != l.key.site {
		cut(c)
		return nil, nil, 0, mover.Coded(mover.CodeAuth, fmt.Errorf("at %s is the DTN of site %s, not of site %s", l.key.address, site, l.key.site))
	}
	context.AfterFunc(ctx, func() { cut(c) })
	begin := time.Now()
	if err := l.greet(c, lane); err != nil {
		cut(c) // ctx may have closed it already
		return nil, nil, 0, fmt.Errorf("open a session: %w", err)
	}
	rtt = cmp.Or(rtt, time.Since(begin))
	if p, ok := tcp.PathOf(bare(c)); ok && p.MinRTT > 0 {
		rtt = min(rtt, p.MinRTT) // which a busy host does not make longer
	}
	return c, out, rtt, nil
}

func (l *link) greet(c *tls.Conn, lane bool) error {
	_ = c.SetDeadline(time.Now().Add(l.stall))
	h := hello{Version: version, Link: l.name, Lane: lane, Protection: l.key.protection, Probe: l.probe, Onward: l.asks}
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
	if l.probe && !a.Probe {
		return errNoProbes
	}
	l.told(a.Rate)
	if l.asks && a.Onward != nil {
		if err := readJSON(bytes.NewReader(a.Onward), uint32(len(a.Onward)), maxOnward, &l.onward); err != nil {
			return err
		}
	}
	if a.Block != mover.BlockSize {
		return fmt.Errorf("the receiver wants blocks of %d bytes, this DTN sends %d; run the same release on both", a.Block, mover.BlockSize)
	}
	return c.SetDeadline(time.Time{})
}

// move sends one file.
func (l *link) move(ctx context.Context, r mover.Request, src *source, report func(mover.Progress)) error {
	if err := l.room(ctx); err != nil {
		return err
	}
	f, err := l.open(r, src, nil)
	if err != nil {
		return err
	}
	defer src.company.leave(f)
	stop := context.AfterFunc(ctx, func() { l.end(f, context.Cause(ctx)) })
	defer stop()
	defer l.engine.adjustable(r.Key, l, f)()
	err = l.await(f, report)
	relayed := r.Destination.Via != mover.Relay{}
	l.quit(f, relayed && errors.Is(context.Cause(ctx), mover.ErrCancelled))
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// open announces a file. One of a single block is sent with it: an answer that there
// is no need comes too late to be worth the wait. That of a passage comes in the course
// of it, and one to a relay after its destination's answer.
func (l *link) open(r mover.Request, src *source, p *passage) (*outgoing, error) {
	o := opening{Ticket: r.Destination.Ticket, Size: r.Source.Size, Digest: r.Source.Digest, Sparse: src == nil || src.sparse}.via(r)
	f := &outgoing{
		onward: p, relay: o.Relay != "", size: r.Source.Size, source: src, rank: r.Priority.Rank(), tries: map[uint32]int{}, heard: time.Now(),
		window: clamp(r.PCP.Pipelining, DefaultPipelining, mover.MaxPipelining),
		lanes:  clamp(r.PCP.Parallelism, l.parallelism(), mover.MaxParallelism),
		files:  clamp(r.PCP.Concurrency, DefaultConcurrency, mover.MaxConcurrency),
	}
	f.changed.L = &l.mu
	full, err := l.announce(f, o)
	if err != nil {
		return nil, err
	}
	if !full {
		runtime.Gosched() // those who are about to open files go with this one
	}
	_ = l.flush() // await sees the link fail
	return f, nil
}

// announce numbers f, has its blocks sent, and says what it is. It reports whether as much is
// unsaid as goes at once.
func (l *link) announce(f *outgoing, o opening) (full bool, err error) {
	l.saying.Lock() // numbers go upwards
	defer l.saying.Unlock()
	l.mu.Lock()
	l.coming--
	if l.err != nil {
		defer l.mu.Unlock()
		return false, l.err
	}
	l.last++
	f.id = l.last
	l.files = append(l.files, f)
	if f.source != nil {
		f.source.company.join(f, l)
	}
	switch n := blockCount(f.size); {
	case f.onward == nil && !f.relay && n == 1:
		f.fill(nil)
	case f.onward == nil || !f.onward.stores():
		f.left = int(n) // that the answer finds lanes that are there
	}
	l.changed.Broadcast()
	l.mu.Unlock()
	l.unsaid = append(l.unsaid, o.after(l.ticket).bytes(f.id)...)
	l.ticket = o.Ticket
	return len(l.unsaid) >= saidAtOnce, nil
}

// saidAtOnce is as much as one record of TLS holds.
const saidAtOnce = 16 << 10

// tell writes to the control connection.
func (l *link) tell(b []byte) error {
	l.saying.Lock()
	l.unsaid = append(l.unsaid, b...)
	l.saying.Unlock()
	return l.flush()
}

// flush writes what is unsaid to the control connection. When it returns that was written, by
// whomever, or the link has failed.
func (l *link) flush() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.saying.Lock()
	text := l.unsaid
	l.unsaid, l.spare = l.spare[:0], text
	l.saying.Unlock()
	if len(text) == 0 {
		return nil
	}
	_ = l.control.SetWriteDeadline(time.Now().Add(l.stall))
	_, err := l.control.Write(text)
	if err != nil {
		l.fail(fmt.Errorf("the connection ended: %w", err))
	}
	return err
}

// swift reports whether the path takes bytes sooner than they could be made fewer: it is
// near, and no limit is set. The caller holds mu.
func (l *link) swift() bool {
	return l.rtt < near && l.limit == mover.Unlimited
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
func (l *link) await(f *outgoing, report func(mover.Progress)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	told, seen, last := int64(-1), l.sight.looks, false
	for {
		if err := cmp.Or(f.err, l.err); err != nil && !f.done {
			return err
		}
		at := f.moved
		if told < 0 {
			at = f.before
		}
		if f.opened && !last && (at > told || seen != l.sight.looks || f.done) {
			told, last = max(told, at), f.done && at == f.moved
			p := mover.Progress{Moved: told, Way: l.way(f)}
			seen = l.sight.looks
			l.mu.Unlock()
			report(p)
			l.mu.Lock()
			continue
		}
		if f.done {
			return nil
		}
		f.changed.Wait()
	}
}

// end ends a file for the reason err.
func (l *link) end(f *outgoing, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !f.over() {
		f.err = err
	}
	f.changed.Broadcast()
	l.changed.Broadcast()
}

// quit takes a file off the link; drop: what came of it is worthless. The receiver counts it
// until it knows, so nothing is opened in its place before; who quits does not wait for one
// that does not listen.
func (l *link) quit(f *outgoing, drop bool) {
	if !l.forget(f) {
		return
	}
	told := make(chan struct{})
	l.work.Go(func() {
		_ = l.tell(closing(f, drop)) // a receiver that is gone knows
		close(told)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.coming--
		l.changed.Broadcast()
	})
	select {
	case <-told:
	case <-time.After(lingerTime):
	}
}

// forget takes a file off the link, and reports whether the receiver should know: its
// place is still taken then.
func (l *link) forget(f *outgoing) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.offer.end()
	l.files = slices.DeleteFunc(l.files, func(g *outgoing) bool { return g == f })
	if f.left > 0 { // else nothing of it is in flight
		lost := 0
		for n := range l.lanes {
			for b := range n.flight {
				if b.file == f {
					delete(n.flight, b)
					lost++
				}
			}
		}
		l.compression.lost(lost, time.Now())
	}
	l.changed.Broadcast()
	if l.err != nil || f.answered {
		return false
	}
	l.coming++
	return true
}

// listen takes what the receiver says until the control connection ends.
func (l *link) listen() {
	for {
		h, err := readHeader(l.control)
		var a answer
		switch {
		case err != nil:
		case h.kind == kindAnswer:
			a, err = readAnswer(l.control, h.length)
		case h.kind == kindPassed:
			err = readJSON(l.control, h.length, maxTimes, &a.passed)
		case h.kind == kindTimes:
			if err = l.hearTimes(h); err == nil {
				continue
			}
		}
		if err == nil && h.kind == kindHad {
			a.Have, err = readHad(l.control, h.length)
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
	defer f.changed.Broadcast()
	switch h.kind {
	case kindProven, kindAgain:
		return l.answered(f, h.index, h.kind == kindProven, now)
	case kindBusy:
		if h.index != f.busy {
			f.busy, f.heard = h.index, now
		}
	case kindPassed:
		if !f.relay {
			break // there is no way on
		}
		if f.onwards = a.passed; !a.passed.Bottleneck.OfMove() {
			f.onwards.Bottleneck = mover.Bottleneck{}
		}
	case kindRoom:
		f.heard, f.room = now, h.index
	case kindAnswer:
		f.heard = now
		first := !f.opened && f.todo == nil
		if err := f.hear(a); err != nil || !first || !a.Bases || f.over() || !l.worthOffering(f) {
			return err
		}
		l.offer(f)
	case kindHad:
		f.heard = now
		return l.chunksHad(f, a.Have)
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
	flew := l.landed(flying{f, i}, now)
	switch {
	case !ok:
		f.offer.refuse(i)
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
	defer n.out.meter.begin(computing)
	n.sending = false
	for l.err == nil && !n.quit && !l.leaves(n) {
		f, i, wait := l.choose(n)
		if f != nil {
			if len(n.flight) == 0 {
				n.heard = time.Now()
				l.rest(n.heard)
			}
			n.flight[flying{f, i}], n.sending = time.Now(), true
			n.blocks++
			f.source.use()
			return f, i, true
		}
		n.out.meter.begin(l.waits(n))
		l.pause(wait)
	}
	return nil, 0, false
}

// choose returns the block that n should send now; nil: none, see hedge. The caller holds mu.
func (l *link) choose(n *lane) (*outgoing, uint32, time.Duration) {
	f := l.next(n)
	switch {
	case n.leaving:
		return nil, 0, 0
	case f != nil:
		return f, f.deal(), 0
	}
	return l.hedge(n, time.Now())
}

// next is the file whose block n should send now; nil: none. As many files take turns
// as one of them asks for, the first to come before the others, of those that inTurn
// tells. The caller holds mu.
func (l *link) next(n *lane) *outgoing {
	var ready []*outgoing
	limit, window := 0, 0
	for _, f := range l.inTurn() {
		if !f.sends() {
			continue
		}
		limit, window = max(limit, f.files), max(window, f.window)
		if ready = append(ready, f); len(ready) >= limit {
			break
		}
	}
	if len(ready) == 0 || n.full(window) {
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
	if l.most > 0 {
		lanes = min(lanes, l.most)
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
	n.smooth(l.limit)
	l.changed.Broadcast()
	l.mu.Unlock()
	l.drive(n)
}

func (l *link) lane(ctx context.Context) (*lane, error) {
	c, out, _, err := l.dial(ctx, true)
	if err != nil {
		return nil, err
	}
	l.steer(bare(c))
	n, err := newLane(c, out, l.key.protection)
	if err != nil {
		cut(c)
		return nil, err
	}
	n.toll, n.compression = l.toll(n), &l.compression
	return n, nil
}

// lost takes note of a lane that brought nothing: those that are left have to do, and
// without one it cannot go on like this for long. The caller holds mu.
func (l *link) lost(err error) {
	l.enough = len(l.lanes)
	if l.fruitless++; l.enough == 0 && l.fruitless > maxFruitless && l.err == nil {
		l.err = fmt.Errorf("no connection for blocks lasts: %w", err)
	}
	l.wakeAll()
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
	l.part(n)
	n.cut()
	reading.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lanes, n)
	for b := range n.flight {
		if len(l.carriers(b)) == 0 {
			b.file.put(b.index)
		}
	}
	l.compression.lost(len(n.flight), time.Now())
	l.sight.ended = l.sight.ended.Plus(n.path)
	rested := n.blocks == 0 && time.Since(n.heard) >= l.stall // waiting for a relay's answer, or for what comes to one
	if !n.worked && !n.leaving && !rested && !errors.Is(sendErr, errSource) {
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
		wire := n.out.wire.Load()
		err := n.send(f, i)
		f.source.company.passed(f)
		f.source.sent(i)
		wire = n.out.wire.Load() - wire
		l.compression.went(int64(blockLen(f.size, i)), wire)
		f.wire.Add(wire)
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
			f.changed.Broadcast()
			l.changed.Broadcast()
		}
	}
}
