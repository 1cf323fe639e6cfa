package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	// minRetry and maxRetry are how long a Caller waits before it tries to connect again.
	minRetry, maxRetry = time.Second, 15 * time.Second
	// dialTime is how long opening a connection may take.
	dialTime = 30 * time.Second
	// standbyLife is how long a DTN stands by on one connection: its certificate and the
	// other's are looked at again then.
	standbyLife = time.Hour
	// refusals is how many calls of one site, beyond those that may have a connection, are
	// being answered at once; the next one is not read before.
	refusals = 8
)

var errRenewed = errors.New("it is time for a new connection")

// Caller has files come to a Receiver that takes no connections. It keeps one to each of
// other sites' DTNs, the standing one, and opens more when it is asked over it. They
// carry files as those that a Receiver has accepted do.
type Caller struct {
	receiver *Receiver
	engine   *Engine // for its TLS and Dial
	peers    []*peer
	conns    sync.WaitGroup
}

// peer is a DTN that a Caller keeps a connection to.
type peer struct {
	mu    sync.Mutex // guards what follows
	state mover.Callback
}

// NewCaller makes one that keeps connections to these addresses, host:port. It opens
// them as e does, of which it uses nothing else.
func NewCaller(r *Receiver, e *Engine, addresses []string) *Caller {
	c := &Caller{receiver: r, engine: e}
	for _, a := range addresses {
		c.peers = append(c.peers, &peer{state: mover.Callback{Address: a, Since: time.Now(), Error: "it was not tried yet"}})
	}
	return c
}

// Callbacks tells how the standing connections are.
func (c *Caller) Callbacks() []mover.Callback {
	var all []mover.Callback
	for _, p := range c.peers {
		all = append(all, p.now())
	}
	return all
}

// Run keeps the connections until ctx is done, then cuts all and returns nil once
// nothing of them runs. It is called once at a time, and not beside the Receiver's Serve.
func (c *Caller) Run(ctx context.Context) error {
	known := &gate[string]{all: c.receiver.opts.Conns, each: c.receiver.opts.PerSite}
	c.receiver.tend(ctx)
	var standing sync.WaitGroup
	for _, p := range c.peers {
		standing.Go(func() { c.keep(ctx, p, known) })
	}
	standing.Wait()
	c.conns.Wait()
	c.receiver.work.Wait()
	return nil
}

// keep keeps a connection to p until ctx is done.
func (c *Caller) keep(ctx context.Context, p *peer, known *gate[string]) {
	for wait := minRetry; ; {
		begin := time.Now()
		err := c.stand(ctx, p, known)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errRenewed) {
			continue
		}
		c.lost(p, err)
		if time.Since(begin) > maxRetry {
			wait = minRetry
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): // not all at once, when a DTN is back
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, maxRetry)
	}
}

// stand opens a connection to p and answers its calls, until that ends.
func (c *Caller) stand(ctx context.Context, p *peer, known *gate[string]) error {
	address := p.now().Address
	conn, err := c.open(ctx, address, address, hello{Standby: true})
	if err != nil {
		return err
	}
	site, err := dtnOf(conn.ConnectionState())
	if err != nil { // it was verified
		cut(conn)
		return err
	}
	c.connected(p, site)
	from := conn.RemoteAddr().String() // a name may stand for several machines, of which one asks
	limit, cancel := context.WithTimeoutCause(ctx, standbyLife, errRenewed)
	defer cancel()
	s := newStandby(conn)
	defer close(s.gone)
	life := ctx // of what is answered: longer than that of this connection
	answering := make(chan struct{}, c.receiver.opts.PerSite+refusals)
	return s.run(limit, func(ctx context.Context, k call) {
		select {
		case answering <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c.conns.Go(func() {
			defer func() { <-answering }()
			if err := c.answer(life, from, address, site, k.Name, known); err != nil && life.Err() == nil {
				c.receiver.log.Warn("could not connect when asked to", "site", site, "peer", from, "err", err)
				s.tell(life, call{Name: k.Name, Error: err.Error()})
			}
		})
	})
}

// answer opens the connection that was asked for and serves it until it ends. An error
// says why there is none.
func (c *Caller) answer(ctx context.Context, to, address, site, name string, known *gate[string]) error {
	if !known.enter(site) {
		return fmt.Errorf("it has %d connections, %d of these to site %s, are the most", c.receiver.opts.Conns, c.receiver.opts.PerSite, site)
	}
	defer known.leave(site)
	conn, err := c.open(ctx, to, address, hello{Answers: name})
	if err != nil {
		return err
	}
	defer cut(conn)
	stop := context.AfterFunc(ctx, func() { cut(conn) })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(c.receiver.opts.Handshake)) // for the sender's hello
	c.receiver.handle(ctx, conn)
	return nil
}

// open connects to a DTN that is known as address, and is welcome there with h.
func (c *Caller) open(ctx context.Context, to, address string, h hello) (_ *tls.Conn, err error) {
	limit, cancel := context.WithTimeoutCause(ctx, dialTime, errors.New("no answer"))
	defer cancel()
	conn, _, _, err := dial(limit, &Engine{TLS: c.engine.TLS, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.engine.dialer()(ctx, network, to)
	}}, address)
	if err == nil {
		stop := context.AfterFunc(limit, func() { cut(conn) })
		defer stop()
		if err = introduce(conn, h); err != nil {
			cut(conn)
		}
	}
	if err != nil && limit.Err() != nil {
		err = context.Cause(limit)
	}
	return conn, err
}

// introduce sends h and waits to be welcome.
func introduce(c *tls.Conn, h hello) error {
	h.Version = version
	_, err := c.Write(h.bytes())
	var head header
	if err == nil {
		head, err = readHeader(c)
	}
	if err = authError(err); err != nil && mover.CodeOf(err) != mover.CodeAuth {
		return fmt.Errorf("it ended the connection without a word, see its log: %w", err)
	}
	if err != nil {
		return err
	}
	if head.kind != kindAnswer {
		return fmt.Errorf("it answers a hello with kind %d", head.kind)
	}
	a, err := readAnswer(c, head.length)
	return cmp.Or(err, a.err())
}

func (p *peer) now() mover.Callback {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// set notes how p is, and returns how it was.
func (p *peer) set(site string, connected bool, why string) (was mover.Callback) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was = p.state
	p.state.Site, p.state.Connected, p.state.Error = site, connected, why
	if was.Connected != connected {
		p.state.Since = time.Now()
	}
	return was
}

func (c *Caller) connected(p *peer, site string) {
	if was := p.set(site, true, ""); !was.Connected {
		c.receiver.log.Info("this DTN stands by", "peer", was.Address, "site", site)
	}
}

// lost logs once why p cannot be had.
func (c *Caller) lost(p *peer, err error) {
	now := p.now()
	if was := p.set(now.Site, false, err.Error()); was.Connected || was.Error != err.Error() {
		c.receiver.log.Warn("no connection to a DTN that files come from; it is tried again and again", "peer", was.Address, "site", was.Site, "err", err)
	}
}
