package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// What a receiver lets the probes of others take.
const (
	maxProbes = 2 // at once, of one site one

	// probeRest is how many times as long as a probe took its site has to wait for the next.
	probeRest = 3

	// probeSetup is how long a probe may take without load, probeGrace how much longer than
	// it said with: what connections take that are opened beside one that sends, and what the
	// last counts of each phase do.
	probeSetup = 2 * probePatience
	probeGrace = 4 * probeLate

	// maxEchoes are more than a sender asks for.
	maxEchoes = 1000
)

// probes are those that a Receiver is the far end of. The zero value is ready.
type probes struct {
	mu      sync.Mutex           // guards what follows
	running map[string]*probed   // by the sender's site and the name it chose
	rests   map[string]time.Time // until which a site has to wait
}

// probed is the receiving end of a probe.
type probed struct {
	probing
	site       string
	protection mover.Protection
	pacer      *pace.Pacer
	ctx        context.Context
	end        context.CancelCauseFunc
	began      time.Time
	arrived    atomic.Int64
	overdue    func() // begins the time of the load, once
	writing    sync.Mutex

	lanes int // the probes' mutex guards it
}

// serve serves a connection whose hello says that it is a probe's. It returns nil when that
// has ended, an error before the hello is answered.
func (ps *probes) serve(ctx context.Context, r *Receiver, c *tls.Conn, h hello) error {
	site, err := dtnOf(c.ConnectionState())
	if err != nil {
		return mover.Coded(mover.CodeAuth, err)
	}
	welcome := r.welcome(site)
	welcome.Probe = true
	name := site + " " + h.Link
	if h.Lane {
		p, err := ps.join(name, h.Protection)
		if err != nil {
			return err
		}
		defer ps.part(p)
		if _, err := c.Write(welcome.bytes(0)); err == nil {
			p.swallow(c)
		}
		return nil
	}
	if _, err := c.Write(welcome.bytes(0)); err != nil {
		return nil
	}
	q, err := readProbing(c) // Receiver.Handshake bounds it
	var p *probed
	if err == nil {
		p, err = ps.admit(ctx, r, name, site, h.Protection, q)
	}
	if err != nil {
		r.log.Warn("probe refused", "site", site, "err", err)
		_ = c.SetDeadline(time.Now().Add(r.opts.Idle))
		_, _ = c.Write(refusal(err).bytes(0)) // the sender sees the connection end
		linger(c)
		return nil
	}
	r.log.Info("a path is probed", "site", site, "time", p.Time, "peer", c.RemoteAddr().String())
	err = p.run(c)
	ps.leave(name, p)
	r.log.Info("a path was probed", "site", site, "bytes", p.arrived.Load(), "took", time.Since(p.began), "err", err)
	return nil
}

func readProbing(c *tls.Conn) (q probing, err error) {
	h, err := readHeader(c)
	if err == nil && h.kind != kindProbe {
		err = fmt.Errorf("the sender asks for no probe, but says something of kind %d", h.kind)
	}
	if err == nil {
		err = readJSON(c, h.length, maxOpen, &q)
	}
	return q, err
}

// admit lets a probe in, or tells why not.
func (ps *probes) admit(ctx context.Context, r *Receiver, name, site string, protection mover.Protection, q probing) (*probed, error) {
	if err := r.checkProbe(site, q); err != nil {
		return nil, err
	}
	if q.Time <= 0 || q.Time > mover.MaxProbeTime || q.Bytes <= 0 || q.Bytes > mover.MaxProbeBytes {
		return nil, fmt.Errorf("a probe of %v and %d bytes; %v and %d are the most", q.Time, q.Bytes, mover.MaxProbeTime, int64(mover.MaxProbeBytes))
	}
	now := time.Now()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for other, until := range ps.rests {
		if !now.Before(until) {
			delete(ps.rests, other)
		}
	}
	until, waits := ps.rests[site]
	for _, p := range ps.running {
		if p.site == site || len(ps.running) >= maxProbes {
			until, waits = now.Add(q.Time), true
		}
	}
	if waits {
		return nil, &mover.Wait{Until: until, Reason: fmt.Sprintf("it is probed already, or was of late: site %s may do so again in %s", site, mover.Span(until.Sub(now)))}
	}
	p := &probed{probing: q, site: site, protection: protection, pacer: r.opts.Pacer, began: now}
	ctx, stop := context.WithTimeoutCause(ctx, probeSetup+q.Time, errors.New("the probe has taken too long"))
	p.ctx, p.end = context.WithCancelCause(ctx)
	context.AfterFunc(p.ctx, stop)
	p.overdue = sync.OnceFunc(func() {
		t := time.AfterFunc(q.Time+probeGrace, func() { p.end(errors.New("the probe's time is over")) })
		context.AfterFunc(p.ctx, func() { t.Stop() })
	})
	if ps.running == nil {
		ps.running, ps.rests = map[string]*probed{}, map[string]time.Time{}
	}
	ps.running[name] = p
	return p, nil
}

// checkProbe reports a probe that its ticket does not allow.
func (r *Receiver) checkProbe(site string, q probing) error {
	check := func(token string) (mover.Ticket, error) { return r.opts.Check(token, site) }
	if q.Relay {
		if r.relay == nil {
			return errNoRelay
		}
		check = r.relay.Check
	}
	t, err := check(q.Ticket)
	switch {
	case err != nil:
		return ticketError(err)
	case !t.Probe:
		return mover.Coded(mover.CodeTicket, errors.New("ticket: it is for a file, and for no probe"))
	case t.From != site:
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: it lets site %q probe, the sender is of site %q", t.From, site))
	case q.Relay:
		return r.relay.permits(site, t)
	}
	return nil
}

// leave takes note that a probe is over.
func (ps *probes) leave(name string, p *probed) {
	p.end(errOver)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.running, name)
	now := time.Now()
	ps.rests[p.site] = now.Add(max(probeRest*now.Sub(p.began), time.Second))
}

func (ps *probes) join(name string, protection mover.Protection) (*probed, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.running[name]
	switch {
	case p == nil || p.protection != protection:
		return nil, errOver
	case p.lanes >= mover.MaxParallelism:
		return nil, errors.New("too many connections for one probe")
	}
	p.lanes++
	p.overdue()
	return p, nil
}

func (ps *probes) part(p *probed) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.lanes--
}

// run answers what the sender says on the control connection, and tells what arrives, until
// one of the two has ended, and says why.
func (p *probed) run(c *tls.Conn) error {
	var telling sync.WaitGroup
	defer cut(c)
	defer linger(c) // what was said last is not lost
	defer telling.Wait()
	_ = c.SetDeadline(time.Time{})
	telling.Go(func() { p.tell(c) })
	err := p.say(c, answer{}.bytes(0))
	for range maxEchoes {
		var h header
		if err == nil {
			h, err = readHeader(c)
		}
		if err == nil && h.kind != kindPing {
			err = fmt.Errorf("the sender of a probe says something of kind %d", h.kind)
		}
		if err == nil {
			err = p.say(c, h.bytes())
		}
		if err != nil {
			p.end(err)
			if errors.Is(context.Cause(p.ctx), err) { // the sender has gone
				return nil
			}
			return context.Cause(p.ctx)
		}
	}
	p.end(errors.New("the sender of a probe asks for too many echoes"))
	return context.Cause(p.ctx)
}

// tell tells what arrives until the probe is over, and then why it is, if it is this end
// that has ended it.
func (p *probed) tell(c *tls.Conn) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for p.ctx.Err() == nil {
		select {
		case <-p.ctx.Done():
		case <-tick.C:
			if w := p.pacer.Shut(p.site); w != nil {
				p.end(w)
			}
			n := count{p.arrived.Load(), time.Since(p.began)}
			if err := p.say(c, header{kind: kindProbe}.with(n)); err != nil {
				p.end(err)
			}
		}
	}
	_ = p.say(c, refusal(context.Cause(p.ctx)).bytes(0)) // the sender may have gone
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))    // it reads that and goes
}

func (p *probed) say(c *tls.Conn, b []byte) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	_ = c.SetWriteDeadline(time.Now().Add(lingerTime))
	_, err := c.Write(b)
	return err
}

// swallow takes what comes over a lane and throws it away, as fast as the limits allow,
// until the probe is over.
func (p *probed) swallow(c *tls.Conn) {
	defer cut(c)
	stop := context.AfterFunc(p.ctx, func() { cut(c) })
	defer stop()
	in := c.NetConn().(*gather) // as each connection is
	var conn net.Conn = c
	if p.protection != mover.Private {
		conn = in
	}
	_ = conn.SetDeadline(time.Time{})
	t := &pace.Toll{Pacer: p.pacer, Site: p.site, Waits: in.meter.limited, Alive: p.ctx.Err}
	f := frames.Get().(*frame)
	defer frames.Put(f)
	for p.ctx.Err() == nil {
		n, err := conn.Read(f[:t.Step(pieceSize)])
		if p.arrived.Add(int64(n)) > p.Bytes {
			p.end(fmt.Errorf("more than the %d bytes that the probe was to have", p.Bytes))
		}
		if err != nil || t.Take(n) != nil {
			return
		}
	}
}
