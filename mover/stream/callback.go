package stream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// How two DTNs keep the connection on which one stands by.
const (
	standbyPing = 15 * time.Second
	standbyDead = 3 * standbyPing
	// standbyLate is longer than a Caller waits before it tries again.
	standbyLate = 2 * maxRetry
)

// Callbacks are the DTNs that take no connections. Each of them stands by on one that it
// keeps to this DTN's Receiver, and is asked over it for those that the Engine needs.
// A Receiver and an Engine share it. The zero value is ready.
type Callbacks struct {
	news news // of sites

	mu    sync.Mutex           // guards what follows
	sites map[string]*presence // that have stood by; nil: it does no more
	calls map[string]*pending  // not answered yet, by name
}

// presence is a site that stands by.
type presence struct {
	*standby
	replace context.CancelCauseFunc
}

// pending is who waits for the answer to a call.
type pending struct {
	site  string
	reply chan reply // has room for one
}

type reply struct {
	conn *tls.Conn
	err  error
}

// call asks for a connection, or says why there will be none.
type call struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"`
}

func (h hello) callback() bool { return h.Standby || h.Answers != "" }

var errReplaced = errors.New("the DTN of this site stands by on another connection; if two run with its certificate, stop one")

// serve serves a connection that another DTN has opened because it takes none. It
// returns nil when that has ended, an error before the hello is answered.
func (cs *Callbacks) serve(ctx context.Context, c *tls.Conn, h hello, log *slog.Logger) error {
	site, err := dtnOf(c.ConnectionState())
	if err != nil {
		return mover.Coded(mover.CodeAuth, err)
	}
	if cs == nil {
		return errors.New("this DTN sends nothing to those that take no connections")
	}
	if h.Standby {
		return cs.host(ctx, c, site, log)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.NetConn().(*gather).closed = cancel
	if !cs.settle(h.Answers, site, reply{conn: c}) {
		return errors.New("nobody waits for this connection")
	}
	<-ctx.Done() // the engine has closed it
	return nil
}

// settle gives the reply to who waits for it, once, and only the site's that was asked.
func (cs *Callbacks) settle(name, site string, r reply) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	p := cs.calls[name]
	if p == nil || p.site != site {
		return false
	}
	delete(cs.calls, name)
	p.reply <- r
	return true
}

// host has the site stand by on c until that ends. The last to come replaces those before:
// a DTN that has restarted knows better than we which of its connections are dead.
func (cs *Callbacks) host(ctx context.Context, c *tls.Conn, site string, log *slog.Logger) error {
	if _, err := c.Write(answer{}.bytes(0)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &presence{newStandby(c), cancel}
	cs.mu.Lock()
	if old := cs.sites[site]; old != nil {
		old.replace(errReplaced)
	}
	if cs.sites == nil {
		cs.sites = map[string]*presence{}
	}
	cs.sites[site] = p
	cs.mu.Unlock()
	cs.news.tell()
	log.Info("a DTN stands by", "site", site, "peer", c.RemoteAddr().String())
	err := p.run(ctx, func(_ context.Context, k call) {
		cs.settle(k.Name, site, reply{err: fmt.Errorf("the DTN of site %s was asked to connect and did not: %s", site, mover.Told(k.Error))})
	})
	cs.mu.Lock()
	if cs.sites[site] == p {
		cs.sites[site] = nil
	}
	cs.mu.Unlock()
	close(p.gone)
	log.Info("a DTN stands by no more", "site", site, "err", err)
	return nil
}

// Standing tells of each site that has stood by whether it does now.
func (cs *Callbacks) Standing() map[string]bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	sites := map[string]bool{}
	for site, p := range cs.sites {
		sites[site] = p != nil
	}
	return sites
}

func (cs *Callbacks) site(name string) (*presence, <-chan struct{}) {
	news := cs.news.wait()
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.sites[name], news
}

// dial returns a connection that the site's DTN was asked for. If it stands by no more
// before it has answered, the one that comes back is asked again.
func (cs *Callbacks) dial(ctx context.Context, site string) (*tls.Conn, *gather, error) {
	if cs == nil {
		return nil, nil, fmt.Errorf("the DTN of site %s takes no connections, and neither does this one: give one of the two an address that the other can reach", site)
	}
	name, p := rand.Text(), &pending{site, make(chan reply, 1)}
	cs.mu.Lock()
	if cs.calls == nil {
		cs.calls = map[string]*pending{}
	}
	cs.calls[name] = p
	cs.mu.Unlock()
	r := cs.ask(ctx, site, name, p)
	cs.mu.Lock()
	delete(cs.calls, name)
	cs.mu.Unlock()
	if r.err != nil {
		select {
		case late := <-p.reply:
			if late.conn != nil {
				cut(late.conn)
			}
		default:
		}
		return nil, nil, r.err
	}
	if _, err := r.conn.Write(answer{}.bytes(0)); err != nil { // Receiver.Handshake bounds it
		cut(r.conn)
		return nil, nil, err
	}
	return r.conn, r.conn.NetConn().(*gather), nil
}

func (cs *Callbacks) ask(ctx context.Context, site, name string, p *pending) reply {
	late := time.NewTimer(standbyLate)
	defer late.Stop()
	for {
		s, news := cs.site(site)
		if s == nil {
			select {
			case <-news:
				continue
			case r := <-p.reply:
				return r
			case <-late.C:
				return reply{err: fmt.Errorf("the DTN of site %s takes no connections and keeps none to this one: on it, see callback in dtn.yaml, and /readyz", site)}
			case <-ctx.Done():
				return reply{err: context.Cause(ctx)}
			}
		}
		s.tell(ctx, call{Name: name})
		select {
		case r := <-p.reply:
			return r
		case <-s.gone:
		case <-ctx.Done():
			return reply{err: context.Cause(ctx)}
		}
		late.Reset(standbyLate)
	}
}

// standby is either end of a connection on which a DTN stands by.
type standby struct {
	conn *tls.Conn
	says chan call
	gone chan struct{} // closed when it is over
}

func newStandby(c *tls.Conn) *standby { return &standby{c, make(chan call), make(chan struct{})} }

// tell says k to the other end, unless that has gone.
func (s *standby) tell(ctx context.Context, k call) {
	select {
	case s.says <- k:
	case <-s.gone:
	case <-ctx.Done():
	}
}

// run hands what the other end says to take, until the connection ends or ctx is done,
// and tells why. take's context ends with either, and so does take.
func (s *standby) run(ctx context.Context, take func(context.Context, call)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var speaking sync.WaitGroup
	speaking.Go(func() {
		s.speak(ctx)
		cancel(errors.New("the connection ended: the other end takes nothing any more"))
	})
	for {
		k, err := s.hear()
		if err != nil {
			cancel(err)
			speaking.Wait()
			return context.Cause(ctx)
		}
		take(ctx, k)
	}
}

// hear returns the next call.
func (s *standby) hear() (k call, err error) {
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(standbyDead))
		h, err := readHeader(s.conn)
		if err != nil {
			return k, fmt.Errorf("the connection ended: %w", err)
		}
		switch h.kind {
		case kindPing:
		case kindCall:
			err := readJSON(s.conn, h.length, maxHello, &k)
			return k, err
		case kindAnswer:
			a, err := readAnswer(s.conn, h.length)
			return k, errors.Join(err, a.err())
		default:
			return k, fmt.Errorf("the other DTN says something of kind %d", h.kind)
		}
	}
}

// speak says what there is to say until ctx is done, and then ends the connection.
func (s *standby) speak(ctx context.Context) {
	defer cut(s.conn)
	tick := time.NewTicker(standbyPing)
	defer tick.Stop()
	for {
		var b []byte
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); errors.Is(err, errReplaced) {
				_ = s.write(refusal(err).bytes(0))
			}
			return
		case <-tick.C:
			b = header{kind: kindPing}.bytes()
		case k := <-s.says:
			b = header{kind: kindCall}.with(k)
		}
		if s.write(b) != nil {
			return
		}
	}
}

func (s *standby) write(b []byte) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(standbyPing))
	_, err := s.conn.Write(b)
	return err
}
