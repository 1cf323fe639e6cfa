package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

// The peer API of a site that takes no connections goes over those that its agent opens to
// the other sites' agents: with a request to upgrade each, after which the two change
// their roles in HTTP. Who is who they know by each other's certificates as ever.
const (
	callbackPath     = "/v1/callbacks"
	callbackProtocol = "glance-dtn-callback"

	callbackReady = 2                // connections that wait for a request, at each site's agent
	callbackMost  = 16               // of one site that are kept
	callbackLife  = 5 * time.Minute  // of one without a request; then there is another
	callbackLate  = 30 * time.Second // for one to come; longer than maxRetry
	callbackDial  = 30 * time.Second // for opening one

	minRetry, maxRetry = time.Second, 15 * time.Second
)

// Callbacks are the connections of agents that take none. A PeerServer takes them in, and
// clients of NewCallbackClient ask over them. Its zero value is ready, and expects none.
type Callbacks struct {
	mu    sync.Mutex // guards what follows
	sites []string
	idle  map[string][]net.Conn // by site, the newest last
	more  chan struct{}         // closed when one comes; nil: nobody waits
}

// Expect says which sites' agents connect here because they take no connections.
func (cs *Callbacks) Expect(sites []string) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.sites = sites
}

// Close closes the connections that nobody uses.
func (cs *Callbacks) Close() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, conns := range cs.idle {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	cs.idle = nil
}

// ServeHTTP takes the connection of a request, whose caller is known.
func (cs *Callbacks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	site := caller(r.Context())
	cs.mu.Lock()
	expected := slices.Contains(cs.sites, site)
	cs.mu.Unlock()
	if !expected {
		p := problemOf(fmt.Errorf("%w: the agent here connects to that of site %s itself; where it cannot, write url: callback for %s under its peers", agent.ErrForbidden, site, site))
		answerJSON(w, p.Status, problemMedia, p)
		return
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p := problemOf(err)
		answerJSON(w, p.Status, problemMedia, p)
		return
	}
	_ = c.SetDeadline(time.Now().Add(callbackDial))
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+callbackProtocol+"\r\n\r\n"); err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	cs.add(site, c)
}

func (cs *Callbacks) add(site string, c net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.idle == nil {
		cs.idle = map[string][]net.Conn{}
	}
	conns := append(cs.idle[site], c)
	if len(conns) > callbackMost { // the oldest are the likeliest to be dead
		_ = conns[0].Close()
		conns = conns[1:]
	}
	cs.idle[site] = conns
	if cs.more != nil {
		close(cs.more)
		cs.more = nil
	}
}

// take returns the newest connection of the site, or what is closed when one comes.
func (cs *Callbacks) take(site string) (net.Conn, <-chan struct{}) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if conns := cs.idle[site]; len(conns) > 0 {
		cs.idle[site] = conns[:len(conns)-1]
		return conns[len(conns)-1], nil
	}
	if cs.more == nil {
		cs.more = make(chan struct{})
	}
	return nil, cs.more
}

// dial returns a connection to the site's agent. It waits for a while where there is none.
func (cs *Callbacks) dial(ctx context.Context, site string) (net.Conn, error) {
	late := time.NewTimer(callbackLate)
	defer late.Stop()
	for {
		c, more := cs.take(site)
		if c != nil {
			if open(c) {
				return c, nil
			}
			_ = c.Close()
			continue
		}
		select {
		case <-more:
		case <-late.C:
			return nil, errors.New("it takes no connections and keeps none to this agent: see callback under peers in its agent.yaml, and its /readyz")
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// open reports whether a connection on which the other end waits was not closed by it.
func open(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	n, err := c.Read(make([]byte, 1))
	timeout, ok := errors.AsType[net.Error](err)
	_ = c.SetReadDeadline(time.Time{})
	return n == 0 && ok && timeout.Timeout()
}

// NewCallbackClient returns a client of the site's agent that asks over connections which
// that one has opened.
func NewCallbackClient(site string, cs *Callbacks) *PeerClient {
	return newPeerClient(site, "https://callback", "", &http.Client{Transport: &http.Transport{
		DialTLSContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return cs.dial(ctx, site) },
		IdleConnTimeout: time.Minute, // before the other end's
	}})
}

// Caller serves the peer API to another site's agent that cannot connect here, over
// connections that it opens to that one.
type Caller struct {
	site   string
	base   *url.URL
	conf   func() *tls.Config
	server *http.Server
	log    *slog.Logger

	free    chan struct{} // a place for each connection that waits for a request
	waiting sync.Map      // these connections
	closed  chan struct{}
	close   func()

	mu      sync.Mutex // guards what follows
	trouble error      // why no connection can be opened
	since   time.Time
}

// NewCaller makes one for the site's agent at baseURL, https://host:port. conf is that of
// a client that expects this agent, and is asked for each connection.
func NewCaller(a Agent, site, baseURL string, conf func() *tls.Config, log *slog.Logger) (*Caller, error) {
	base, err := url.Parse(baseURL)
	if err != nil {
		return nil, err
	}
	c := &Caller{
		site: site, base: base, conf: conf, log: log, free: make(chan struct{}, callbackReady),
		closed: make(chan struct{}), trouble: errors.New("it was not tried yet"), since: time.Now(),
	}
	c.close = sync.OnceFunc(func() { close(c.closed) })
	c.server = newServer(onlyAgents(peerRoutes(a)), peerTime, log)
	c.server.ReadHeaderTimeout, c.server.ReadTimeout = callbackLife, 0 // they count from when it begins to wait
	c.server.ConnState = func(nc net.Conn, s http.ConnState) {
		if s == http.StateNew {
			return
		}
		if _, waited := c.waiting.LoadAndDelete(nc); waited {
			<-c.free
		}
	}
	return c, nil
}

// Run opens connections and serves them until ctx is done, and returns nil.
func (c *Caller) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.close()
		_ = c.server.Close()
	})
	defer stop()
	if err := c.server.Serve(calls{c, ctx}); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve site %s: %w", c.site, err)
	}
	return nil
}

// Check tells whether the other agent can ask this one. That it cannot may be its own fault.
func (c *Caller) Check() agent.Check {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := agent.Check{Name: "callback " + c.site, OK: true}
	if c.trouble != nil {
		k.Note = fmt.Sprintf("no connection to the agent of site %s since %s, so it cannot offer images: %v", c.site, c.since.UTC().Format(time.RFC3339), c.trouble)
	}
	return k
}

// calls is a listener whose connections a Caller opens.
type calls struct {
	*Caller
	ctx context.Context
}

func (c calls) Addr() net.Addr { return &net.TCPAddr{} }
func (c calls) Close() error   { c.close(); return nil }

// Accept opens a connection when fewer than callbackReady wait for a request.
func (c calls) Accept() (net.Conn, error) {
	select {
	case c.free <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		nc, err := c.dial(c.ctx)
		if c.ctx.Err() != nil {
			if err == nil {
				_ = nc.Close()
			}
			return nil, net.ErrClosed
		}
		c.note(err)
		if err == nil {
			c.waiting.Store(nc, true)
			return nc, nil
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): // not all at once, when an agent is back
		case <-c.closed:
			return nil, net.ErrClosed
		}
	}
}

// dial opens a connection on which the other agent asks.
func (c *Caller) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callbackDial, errTooSlow)
	defer cancel()
	port := c.base.Port()
	if port == "" {
		port = "443"
	}
	nc, err := (&tls.Dialer{Config: c.conf()}).DialContext(ctx, "tcp", net.JoinHostPort(c.base.Hostname(), port))
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	if err = c.upgrade(nc); !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = nc.Close()
		return nil, causeOf(ctx, err)
	}
	return nc, nil
}

// upgrade asks the other agent to take the connection. It reads no byte of what comes after.
func (c *Caller) upgrade(nc net.Conn) error {
	req, err := http.NewRequest(http.MethodPost, c.base.JoinPath(callbackPath).String(), http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", callbackProtocol)
	if err := req.Write(nc); err != nil {
		return err
	}
	var head []byte
	for b := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, b...) {
		if len(head) >= 4<<10 {
			return errors.New("the answer to a callback has no end")
		}
		if _, err := io.ReadFull(nc, b); err != nil {
			return err
		}
	}
	res, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head), nc)), req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusSwitchingProtocols {
		return readProblem(req.Method, callbackPath, res)
	}
	return nil
}

// note logs once what is new.
func (c *Caller) note(err error) {
	c.mu.Lock()
	was := c.trouble
	if (was == nil) != (err == nil) {
		c.since = time.Now()
	}
	c.trouble = err
	c.mu.Unlock()
	switch {
	case err == nil && was != nil:
		c.log.Info("this agent can be asked", "site", c.site)
	case err != nil && (was == nil || was.Error() != err.Error()):
		c.log.Warn("no connection to an agent that cannot connect here; it is tried again and again", "site", c.site, "err", err)
	}
}
