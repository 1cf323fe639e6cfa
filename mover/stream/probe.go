package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

// A probe is a link that carries no files but bytes, which the receiver counts and throws
// away. What it measures is what a transfer would meet: the same connections, protection,
// congestion control and limits, without the disks.

const (
	// probePatience is how long the other end of a probe may owe an answer: longer than it
	// takes to find out that a site which takes no connections keeps none.
	probePatience = standbyLate + 15*time.Second

	// probeLate is how long a probe waits for what is late under load: the connections that
	// join the first one, without those that are later, and the counts of a phase.
	probeLate = 5 * time.Second

	// countEvery is how often the receiver tells what has arrived.
	countEvery = 100 * time.Millisecond

	// maxCounts are more than a receiver tells.
	maxCounts = 4000

	// idleEchoes are enough for one that nothing has held up.
	idleEchoes = 5

	// oneTime and oneBytes are the parts of a probe's time and bytes that one connection has
	// before the others join it.
	oneTime, oneBytes = 0.4, 0.25
)

var (
	errNoProbes = errors.New("the DTN there is of a version that knows no probes; run the same release on both")
	errBusy     = errors.New("files move on this path")
	errLate     = errors.New("the connection is late")
)

// probing is what the sender of a probe asks for.
type probing struct {
	Ticket string        `json:"ticket"`
	Relay  bool          `json:"relay,omitempty"` // of the DTN that passes files on to where the ticket is for
	Time   time.Duration `json:"time"`            // of load
	Bytes  int64         `json:"bytes"`
}

// count is what has arrived of a probe so far.
type count struct {
	Bytes int64         `json:"bytes"`
	At    time.Duration `json:"at"` // by the receiver's clock
}

// probe is the sending end of one.
type probe struct {
	*link
	probing
	report func(mover.Probing)
	fail   context.CancelCauseFunc // ends all of it

	asked uint32      // echoes
	echo  chan uint32 // those that have come

	load    context.Context // that the lanes send in
	unload  context.CancelCauseFunc
	sending sync.WaitGroup
	loaded  time.Time // when there was load first

	// The link's mutex guards what follows; changed tells of most.
	sent, most int64 // bytes: most may be sent for now
	counts     []count
	settled    mover.Path // what was counted in the second halves of phases
	lost       error      // of the last lane that has died

	short bool // the last phase was over before its time was
}

// Probe implements mover.Prober.
func (e *Engine) Probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.Probed, error) {
	address := cmp.Or(r.Destination.Via.Address, r.Destination.Address)
	long := min(cmp.Or(r.Time, mover.DefaultProbeTime), mover.MaxProbeTime)
	ctx, stop := context.WithTimeoutCause(ctx, probeSetup+long+probeGrace, errors.New("the probe has taken too long"))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	p := &probe{
		link: &link{
			engine: e, key: linkKey{address, cmp.Or(e.Protection, mover.Private), r.Destination.Via.Site}, probe: true,
			stall: min(cmp.Or(e.Stall, DefaultStall), probePatience), name: rand.Text(), lanes: map[*lane]bool{},
		},
		probing: probing{
			Ticket: r.Destination.Ticket, Relay: r.Destination.Via != mover.Relay{},
			Time:  long,
			Bytes: min(cmp.Or(r.Bytes, mover.DefaultProbeBytes), mover.MaxProbeBytes),
		},
		report: report, fail: cancel, echo: make(chan uint32, idleEchoes),
	}
	p.changed.L = &p.mu
	found, err := p.run(ctx, r)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil) // cuts what is left of its connections
	p.work.Wait()
	if err != nil {
		return mover.Probed{}, fmt.Errorf("probe the path to %s: %w", address, crowded(err))
	}
	return found, nil
}

func (p *probe) run(ctx context.Context, r mover.ProbeRequest) (found mover.Probed, err error) {
	if err := errors.Join(mover.CheckAddress(p.key.address), r.Destination.Via.Validate(mover.Stream)); err != nil {
		return found, err
	}
	if p.Bytes < mover.MinProbeBytes {
		return found, fmt.Errorf("%d bytes tell nothing of a path: let it be %d or more", p.Bytes, mover.MinProbeBytes)
	}
	p.tellHow(mover.ProbeConnect)
	if err := p.open(ctx); err != nil {
		return found, err
	}
	p.work.Go(func() { p.fail(p.listen()) })
	p.tellHow(mover.ProbeIdle)
	found.At, found.Site = time.Now().UTC(), p.site
	if found.Idle, err = p.idle(ctx); err != nil {
		return found, err
	}
	p.load, p.unload = context.WithCancelCause(ctx)
	defer p.sending.Wait()
	defer p.unload(nil)
	context.AfterFunc(p.load, func() {
		p.mu.Lock() // or who is about to wait misses it
		defer p.mu.Unlock()
		p.changed.Broadcast()
	})
	err = p.phases(&found, clamp(r.Parallelism, p.parallelism(), mover.MaxParallelism))
	found.Short = p.short
	if found.Busy = errors.Is(context.Cause(p.load), errBusy); found.Busy {
		err = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found.Path = p.paths()
	found.Path = found.Path.Plus(since(p.settled, found.Path))
	if sent := p.settled.Sent; sent > 0 {
		found.Loss = float64(p.settled.Retransmits) / float64(sent)
	}
	if n := len(p.counts); n > 0 {
		found.Bytes = p.counts[n-1].Bytes
	}
	return found, err
}

// open opens the control connection, and has the receiver agree.
func (p *probe) open(ctx context.Context) error {
	if w := p.engine.Pacer.Shut(""); w != nil {
		return w
	}
	c, _, rtt, err := p.dial(ctx, false)
	if err != nil {
		return err
	}
	p.control, p.rtt = c, rtt
	p.steer(bare(c))
	p.bbr = rtt >= near && fastInLoss(bare(c))
	p.site, _ = dtnOf(c.ConnectionState()) // the handshake has made sure of it
	if w := p.engine.Pacer.Shut(p.site); w != nil {
		return w
	}
	if err := p.tell(header{kind: kindProbe}.with(p.probing)); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(p.stall))
	h, err := readHeader(c)
	if err != nil {
		return err
	}
	if h.kind != kindAnswer {
		return fmt.Errorf("the receiver answers a probe with kind %d", h.kind)
	}
	a, err := readAnswer(c, h.length)
	return errors.Join(err, a.err())
}

// listen takes what the receiver says until that ends, and tells why.
func (p *probe) listen() error {
	for {
		_ = p.control.SetReadDeadline(time.Now().Add(p.stall))
		h, err := readHeader(p.control)
		switch {
		case err != nil:
		case h.kind == kindPing:
			select {
			case p.echo <- h.index:
			default: // it was not asked for
			}
		case h.kind == kindProbe:
			var n count
			if err = readJSON(p.control, h.length, maxTimes, &n); err == nil {
				err = p.note(n)
			}
		case h.kind == kindAnswer:
			var a answer
			if a, err = readAnswer(p.control, h.length); err == nil {
				return cmp.Or(a.err(), errors.New("the receiver has ended the probe"))
			}
		default:
			err = fmt.Errorf("the receiver says something of kind %d", h.kind)
		}
		if err != nil {
			return fmt.Errorf("the connection ended: %w", err)
		}
	}
}

// note takes the receiver's word on what has arrived, which cannot be more than was sent.
func (p *probe) note(n count) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := count{}
	if len(p.counts) > 0 {
		last = p.counts[len(p.counts)-1]
	}
	if n.Bytes < last.Bytes || n.At < last.At || n.Bytes > p.sent || len(p.counts) >= maxCounts {
		return fmt.Errorf("the receiver has counted %d bytes of %d after %v, and %d after %v", n.Bytes, p.sent, n.At, last.Bytes, last.At)
	}
	p.counts = append(p.counts, n)
	return nil
}

// idle is the least round trip time, which the kernel tells where there is TCP.
func (p *probe) idle(ctx context.Context) (least time.Duration, err error) {
	for i := range idleEchoes {
		d, err := p.trip(ctx)
		if err != nil {
			return 0, err
		}
		if i == 0 || d < least {
			least = d
		}
	}
	if path, ok := tcp.PathOf(bare(p.control)); ok {
		least = cmp.Or(path.MinRTT, least)
	}
	return least, nil
}

// loadedTrip is the round trip time of what the lanes send, which an echo stands for where
// the kernel does not tell.
func (p *probe) loadedTrip(ctx context.Context) (time.Duration, error) {
	p.mu.Lock()
	d := p.paths().RTT
	p.mu.Unlock()
	if d > 0 {
		return d, nil
	}
	return p.trip(ctx)
}

// trip is how long an echo takes.
func (p *probe) trip(ctx context.Context) (time.Duration, error) {
	p.asked++
	sent := time.Now()
	if err := p.tell(header{kind: kindPing, index: p.asked}.bytes()); err != nil {
		return 0, err
	}
	for {
		select {
		case i := <-p.echo:
			if i == p.asked {
				return time.Since(sent), nil
			}
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// phases measures one connection and then some, as many as a transfer would have.
func (p *probe) phases(found *mover.Probed, some int) (err error) {
	if p.engine.moves(p.key.address) {
		p.unload(errBusy)
		return errBusy
	}
	p.mu.Lock()
	limit := min(p.engine.Pacer.Rate(p.site), p.theirs)
	p.mu.Unlock()
	some = min(some, lanesFor(limit))
	first, part, bytes := mover.ProbeOne, oneTime, oneBytes
	if some == 1 {
		first, part, bytes = mover.ProbeAll, 1, 1
	}
	if found.One, found.Loaded, err = p.phase(first, 1, limit, part, bytes); err != nil {
		return err
	}
	if found.Connections = 1; some == 1 {
		found.All = found.One
		return nil
	}
	if found.All, found.Loaded, err = p.phase(mover.ProbeAll, some, limit, 1-part, 1); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found.Connections = len(p.lanes)
	return nil
}

// phase has so many connections send for a part of the time, or until a part of the bytes
// has arrived, and takes note of its second half: the first is slow start's. It returns the
// rate, and the median of the round trip times meanwhile.
func (p *probe) phase(name mover.ProbePhase, lanes int, limit mover.Rate, part, bytes float64) (rate float64, loaded time.Duration, err error) {
	if err := p.hire(lanes, limit); err != nil {
		return 0, 0, err
	}
	if p.loaded.IsZero() {
		p.loaded = time.Now()
	}
	p.mu.Lock()
	p.most = int64(bytes * float64(p.Bytes))
	from, had := max(0, len(p.counts)-1), p.arrived()
	half := p.paths()
	p.changed.Broadcast()
	p.mu.Unlock()
	began, long := time.Now(), time.Duration(part*float64(p.Time))
	limited, end := context.WithTimeout(p.load, long)
	defer end()
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	var trips []time.Duration
	for halfway := false; !p.enough(from, time.Since(began), long); {
		if d, err := p.loadedTrip(limited); err == nil {
			trips = append(trips, d)
		}
		p.tellHow(name)
		if w := p.engine.Pacer.Shut(p.site); w != nil {
			return 0, 0, w
		}
		if !halfway && time.Since(began) >= long/2 {
			halfway = true
			p.mu.Lock()
			half = p.paths()
			p.mu.Unlock()
		}
		select {
		case <-p.load.Done():
		case <-tick.C:
		}
	}
	if p.load.Err() != nil {
		return 0, 0, context.Cause(p.load)
	}
	took := time.Since(began)
	p.short = took < long
	p.mu.Lock()
	defer p.mu.Unlock()
	if rate = rateWithin(p.counts[from:], took); rate == 0 { // all within one count
		rate = 8 * float64(p.arrived()-had) / took.Seconds()
	}
	if rate <= 0 {
		return 0, 0, cmp.Or(p.lost, errors.New("nothing has arrived at the receiver"))
	}
	p.settled = p.settled.Plus(since(p.paths(), half))
	slices.Sort(trips)
	if n := len(trips); n > 0 {
		loaded = trips[n/2]
	}
	return rate, loaded, nil
}

// enough reports whether a phase that has taken so long is over: its time is, and some
// counts have come since that one and tell of bytes, or its bytes have arrived.
func (p *probe) enough(from int, took, long time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.counts)
	all := p.sent+pieceSize > p.most && n > 0 && p.arrived() >= p.sent
	return p.load.Err() != nil || all || took >= long && (n >= from+3 && rateOf(p.counts[from:]) > 0 || took >= long+probeLate)
}

// arrived is how many bytes the receiver has last told of. The caller holds mu.
func (p *probe) arrived() int64 {
	if n := len(p.counts); n > 0 {
		return p.counts[n-1].Bytes
	}
	return 0
}

// since is what was counted on connections after they were as in before.
func since(p, before mover.Path) mover.Path {
	return mover.Path{
		Sent: p.Sent - before.Sent, Retransmits: p.Retransmits - before.Retransmits,
		Busy: p.Busy - before.Busy, SendLimited: p.SendLimited - before.SendLimited, RecvLimited: p.RecvLimited - before.RecvLimited,
	}
}

// rateOf is the rate of the second half of what the receiver has counted.
func rateOf(counts []count) float64 {
	if len(counts) < 2 {
		return 0
	}
	last := counts[len(counts)-1]
	half := slices.IndexFunc(counts, func(c count) bool { return c.At >= (counts[0].At+last.At)/2 })
	half = min(half, len(counts)-2)
	took := last.At - counts[half].At
	if took <= 0 {
		return 0
	}
	return 8 * float64(last.Bytes-counts[half].Bytes) / took.Seconds()
}

// rateWithin is the rate of what the receiver has counted while so much time went by here. Its
// clock is believed as far as that goes: all may have arrived in the second half.
func rateWithin(counts []count, took time.Duration) float64 {
	rate := rateOf(counts)
	if rate == 0 {
		return 0
	}
	return min(rate, 8*float64(counts[len(counts)-1].Bytes-counts[0].Bytes)/(took/2).Seconds())
}

// hire opens lanes until there are so many. It does with fewer where no more can be had, or
// not soon.
func (p *probe) hire(lanes int, limit mover.Rate) error {
	var opening sync.WaitGroup
	var failed error
	patience := probeLate
	if len(p.lanes) == 0 {
		patience = p.stall // there is none to do with
	}
	for range lanes - len(p.lanes) { // they are added by this goroutine's alone
		opening.Go(func() {
			ctx, cancel := context.WithCancelCause(p.load) // of all its life
			late := time.AfterFunc(patience, func() { cancel(errLate) })
			n, err := p.lane(ctx)
			if !late.Stop() && err == nil {
				err = errLate
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			if t, ok := n.out.Conn.(*net.TCPConn); ok {
				_ = t.SetLinger(0) // what is on its way at the end is of no use
			}
			n.smooth(limit)
			p.lanes[n] = true
			p.sending.Go(func() { p.send(n) })
		})
	}
	opening.Wait()
	if len(p.lanes) == 0 {
		return failed
	}
	return nil
}

// send sends over n what may be sent, until the load ends. A probe has the lowest rank: it
// goes out of the way of files.
func (p *probe) send(n *lane) {
	piece := make([]byte, pieceSize)
	_, _ = mathrand.NewChaCha8([32]byte{}).Read(piece) // whoever compresses on the way gains nothing
	for p.take(pieceSize) {
		if p.engine.moves(p.key.address) {
			p.unload(errBusy)
			return
		}
		err := n.write(piece)
		if err == nil {
			err = n.flush()
		}
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lost = err
			return
		}
	}
}

// take waits until n more bytes may be sent; false: none will.
func (p *probe) take(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.load.Err() == nil && p.sent+n > p.most {
		p.changed.Wait()
	}
	p.sent += n
	return p.load.Err() == nil
}

// moves reports whether files move to an address.
func (e *Engine) moves(address string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k := range e.links {
		if k.address == address {
			return true
		}
	}
	return false
}

// paths is what the kernel knows of the lanes, together. The caller holds mu.
func (p *probe) paths() (all mover.Path) {
	seen := 0
	for n := range p.lanes {
		if n.look() {
			all = joined(all, n.path, seen)
			seen++
		}
	}
	return all
}

// tellHow tells how far the probe is.
func (p *probe) tellHow(phase mover.ProbePhase) {
	p.mu.Lock()
	at := mover.Probing{Phase: phase, Connections: len(p.lanes), Time: p.Time}
	if !p.loaded.IsZero() {
		at.Loaded = min(time.Since(p.loaded), p.Time)
	}
	p.paths() // so that they are known when the lanes have been cut
	if n := len(p.counts); n > 0 {
		at.Bytes = p.counts[n-1].Bytes
		at.Rate = rateOf(p.counts[max(0, n-5):])
	}
	p.mu.Unlock()
	p.report(at)
}
