package stream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
)

func TestConformanceOfACallback(t *testing.T) {
	for _, p := range protections {
		t.Run(string(p), func(t *testing.T) {
			movertest.Run(t, func(t *testing.T) movertest.Rig { return newCallbackRig(t, p).rig.rig })
		})
	}
}

// callbackRig is a rig whose receiver takes no connections: it connects to site A.
type callbackRig struct {
	*rig
	a      *Receiver // site A's
	door   string    // its address
	shut   func()    // ends it
	caller *Caller
	path   func(net.Conn) net.Conn // site B's connections go over it; nil: as they are
}

func newCallbackRig(t testing.TB, p mover.Protection) *callbackRig {
	t.Helper()
	r := prepareCallback(t, p)
	r.openDoor(t, "127.0.0.1:0")
	r.call(t)
	return r
}

// prepareCallback makes a rig of which neither site has started.
func prepareCallback(t testing.TB, p mover.Protection) *callbackRig {
	t.Helper()
	r := &callbackRig{rig: prepare(t), shut: func() {}}
	t.Cleanup(func() { r.shut() })
	e := r.rig.rig.Engine.(*Engine)
	e.Callbacks, e.Protection, r.opts.Protection = new(Callbacks), p, p
	r.rig.rig.Address = mover.CallbackAddress("B")
	r.rig.rig.Restart = func(t *testing.T) {
		r.stop()
		r.call(t)
	}
	const here = "github.com/glance-dtn/glance-dtn/mover/stream."
	r.rig.rig.Own = []string{here + "(*Caller).Run", here + "(*Caller).keep", here + "(*standby).speak", here + "(*Callbacks).host"}
	return r
}

// openDoor has site A take connections.
func (r *callbackRig) openDoor(t testing.TB, address string) {
	t.Helper()
	state := filepath.Join(filepath.Dir(r.state), "state-a")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	r.a, err = NewReceiver(roottest.Open(t, r.rig.rig.Source), roottest.Open(t, state), ReceiverOptions{
		TLS:       serverTLS(r.ca, r.issue(t, "A", pki.DTN)),
		Check:     r.opts.Check,
		Callbacks: r.rig.rig.Engine.(*Engine).Callbacks,
	})
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener = r.pipes
	if r.pipes == nil {
		l = nettest.Listen(t, address)
		r.door = l.Addr().String()
	} else {
		r.door = "127.0.0.1:9"
	}
	r.shut = run(t, func(ctx context.Context) error { return r.a.Serve(ctx, tapped{l, r.wires}) })
}

// call has site B keep a connection to site A.
func (r *callbackRig) call(t testing.TB) {
	t.Helper()
	recv, err := NewReceiver(roottest.Open(t, r.rig.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	cert := r.issue(t, "B", pki.DTN)
	e := &Engine{TLS: func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: r.ca.Pool()} }}
	if r.pipes != nil {
		e.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := r.pipes.dial(ctx)
			if err == nil && r.path != nil {
				c = r.path(c)
			}
			return c, err
		}
	}
	caller := NewCaller(recv, e, []string{r.door})
	stop := run(t, caller.Run)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receiver, r.caller, r.stop = recv, caller, stop
}

// run runs a part of a rig until it is stopped, which may be more than once.
func run(t testing.TB, part func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// tapped has wires count and cut what is accepted.
type tapped struct {
	net.Listener
	wires *wires
}

func (l tapped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wires.add(c), nil
}

// stands waits until site B stands by at site A.
func (r *callbackRig) stands(t *testing.T) *presence {
	t.Helper()
	cs := r.callbacks()
	for {
		p, news := cs.site("B")
		if p != nil {
			return p
		}
		select {
		case <-news:
		case <-time.After(time.Minute):
			t.Fatal("nobody stands by")
		}
	}
}

func (r *callbackRig) callbacks() *Callbacks { return r.engine().Callbacks }
func (r *callbackRig) engine() *Engine       { return r.rig.rig.Engine.(*Engine) }

// TestACallbackSendsAsTheKernelCan moves over what the engine sees to be TCP.
func TestACallbackSendsAsTheKernelCan(t *testing.T) {
	for _, p := range protections {
		r := prepareCallback(t, p)
		r.wires.plain = true
		r.openDoor(t, "127.0.0.1:0")
		r.call(t)
		f := r.stage(t, "image", 9*mover.BlockSize+1)
		f.Digest = digest.Digest{}
		if err := r.moves(t, f, 2); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		r.came(t, f)
	}
}

// TestLanesGoOnWithoutTheStandingConnection ends that in the middle of a move whose lanes
// carry little, so that more have to be asked for.
func TestLanesGoOnWithoutTheStandingConnection(t *testing.T) {
	r := newCallbackRig(t, mover.Private)
	r.engine().laneBlocks = 4
	f := r.stage(t, "image", 24*mover.BlockSize)
	first := r.stands(t)
	req := r.request(t, f)
	req.PCP = mover.PCP{Parallelism: 1, Pipelining: 1}
	err := r.engine().Move(t.Context(), req, func(p mover.Progress) {
		if p.Moved >= f.Size/2 {
			cut(first.conn)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.came(t, f)
	if r.stands(t) == first {
		t.Error("the first connection stands")
	}
}

// TestTheSenderIsRestarted ends site A's side, and starts it where it was.
func TestTheSenderIsRestarted(t *testing.T) {
	r := newCallbackRig(t, mover.Private)
	for range 2 {
		r.stands(t)
		r.shut()
		r.engine().Callbacks = new(Callbacks) // as in a new process
		r.openDoor(t, r.door)
		f := r.stage(t, "image", 2*mover.BlockSize)
		if err := r.moves(t, f, 1); err != nil {
			t.Fatal(err)
		}
		r.came(t, f)
	}
}

// TestASiteThatAsksTooMuchIsNotRead has one ask for connections without end, and read nothing.
func TestASiteThatAsksTooMuchIsNotRead(t *testing.T) {
	bubble(t, func(t *testing.T, r *callbackRig) {
		r.opts.PerSite, r.door = 2, "127.0.0.1:9"
		l := tls.NewListener(r.pipes, serverTLS(r.ca, r.issue(t, "A", pki.DTN)))
		r.call(t)
		defer r.stop()
		hub := must(l.Accept())
		defer hub.Close()
		if _, err := readHello(hub); err != nil {
			t.Fatal(err)
		}
		write(t, hub, answer{}.bytes(0))
		synctest.Wait()
		before := runtime.NumGoroutine()
		var asking sync.WaitGroup
		defer asking.Wait()
		asking.Go(func() {
			_ = hub.SetWriteDeadline(time.Now().Add(10 * time.Second))
			for range 1000 {
				if _, err := hub.Write(header{kind: kindCall}.with(call{Name: rand.Text()})); err != nil {
					return
				}
			}
		})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if more, most := runtime.NumGoroutine()-before, r.opts.PerSite+refusals+4; more > most {
			t.Errorf("its calls make %d goroutines, want %d at most", more, most)
		}
	})
}

// bubble runs test with a rig of pipes of which neither site has started, in a bubble.
func bubble(t *testing.T, test func(t *testing.T, r *callbackRig)) {
	synctest.Test(t, func(t *testing.T) {
		r := prepareCallback(t, mover.Private)
		r.pipes = make(pipes)
		test(t, r)
	})
}

// TestAReceiverThatConnectsHasBases, too: it makes their indexes.
func TestAReceiverThatConnectsHasBases(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	r.opts.Delta, r.engine().offerAll = 1<<30, true
	r.openDoor(t, "127.0.0.1:0")
	r.call(t)
	old := noise(1, deltaSize)
	r.base(t, "old", old)
	f := r.put(t, "new", update(old))
	if sent := r.move(t, f); sent > deltaMost {
		t.Errorf("%d bytes were sent, want at most %d", sent, deltaMost)
	}
	r.came(t, f)
}

func TestAMoveWaitsForASiteToStandBy(t *testing.T) {
	bubble(t, func(t *testing.T, r *callbackRig) {
		r.openDoor(t, "")
		req := r.request(t, r.stage(t, "image", mover.BlockSize))
		begin := time.Now()
		err := r.engine().Move(t.Context(), req, func(mover.Progress) {})
		if err == nil || !strings.Contains(err.Error(), "see callback in dtn.yaml") || mover.CodeOf(err) != mover.CodeOther {
			t.Errorf("nobody stands by: %v", err)
		}
		if took := time.Since(begin); took != standbyLate {
			t.Errorf("it waited for %v", took)
		}
		moved := make(chan error)
		go func() { moved <- r.engine().Move(t.Context(), req, func(mover.Progress) {}) }()
		time.Sleep(standbyLate / 2)
		r.call(t)
		if err := <-moved; err != nil {
			t.Error(err)
		}
	})
}

func TestADTNThatTakesNoConnectionsCannotSendToAnother(t *testing.T) {
	r := newCallbackRig(t, mover.Private)
	r.engine().Callbacks = nil
	if err := r.moves(t, r.stage(t, "image", 1), 1); err == nil || !strings.Contains(err.Error(), "neither does this one") {
		t.Errorf("got %v", err)
	}
}

// answer connects to site A with an answer to the call, and returns what site A says to it.
func (r *callbackRig) answer(t *testing.T, cert tls.Certificate, h hello) (*tls.Conn, error) {
	t.Helper()
	nc, err := net.Dial("tcp", r.door)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(nc, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: r.ca.Pool(), ServerName: "127.0.0.1"})
	t.Cleanup(func() { nc.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c, introduce(c, h)
}

// TestACallIsAnsweredByWhomItIsFor holds that nobody gets between a call and its answer.
func TestACallIsAnsweredByWhomItIsFor(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	r.openDoor(t, "127.0.0.1:0")
	b, err := r.answer(t, r.issue(t, "B", pki.DTN), hello{Standby: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		c, _, err := r.callbacks().dial(t.Context(), "B")
		if err == nil {
			if site, _ := dtnOf(c.ConnectionState()); site != "B" {
				t.Errorf("the connection is that of site %s", site)
			}
			cut(c)
		}
		got <- err
	}()
	asked, err := newStandby(b).hear()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cert tls.Certificate
		h    hello
		says string
	}{
		"another site":        {r.issue(t, "C", pki.DTN), hello{Answers: asked.Name}, "nobody waits"},
		"an agent":            {r.issue(t, "B", pki.Agent), hello{Answers: asked.Name}, "not a dtn"},
		"another call":        {r.issue(t, "B", pki.DTN), hello{Answers: "x"}, "nobody waits"},
		"an agent standing":   {r.issue(t, "B", pki.Agent), hello{Standby: true}, "not a dtn"},
		"without certificate": {tls.Certificate{}, hello{Answers: asked.Name}, "certificate"},
	} {
		if _, err := r.answer(t, c.cert, c.h); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.answer(t, r.issue(t, "B", pki.DTN), hello{Answers: asked.Name}); err != nil {
		t.Errorf("the site that was asked: %v", err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if _, err := r.answer(t, r.issue(t, "B", pki.DTN), hello{Answers: asked.Name}); err == nil {
		t.Error("a call was answered twice")
	}
}

// TestACallThatIsNotAnsweredEnds has a site stand by and not connect.
func TestACallThatIsNotAnsweredEnds(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	r.openDoor(t, "127.0.0.1:0")
	b, err := r.answer(t, r.issue(t, "B", pki.DTN), hello{Standby: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var names []string
	site := newStandby(b)
	go func() {
		defer cancel()
		k, _ := site.hear()
		names = append(names, k.Name)
	}()
	if _, _, err := r.callbacks().dial(ctx, "B"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that is given up: %v", err)
	}
	if _, err := r.answer(t, r.issue(t, "B", pki.DTN), hello{Answers: names[0]}); err == nil {
		t.Error("a call that was given up was answered")
	}
	go func() {
		k, _ := site.hear()
		write(t, b, header{kind: kindCall}.with(call{Name: k.Name, Error: "no route to host"}))
	}()
	if _, _, err := r.callbacks().dial(t.Context(), "B"); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("a call that cannot be answered: %v", err)
	}
	if n := len(r.callbacks().calls); n != 0 {
		t.Errorf("%d calls are kept", n)
	}
}

// TestASenderThatIsFullSaysWhereToLook has it take no more connections.
func TestASenderThatIsFullSaysWhereToLook(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	r.openDoor(t, "127.0.0.1:0")
	r.shut()
	r.a.opts.PerSite = 0
	l := nettest.Listen(t, r.door)
	defer run(t, func(ctx context.Context) error { return r.a.Serve(ctx, l) })()
	if _, err := r.answer(t, r.issue(t, "B", pki.DTN), hello{Standby: true}); err == nil || !strings.Contains(err.Error(), "see its log") {
		t.Errorf("got %v", err)
	}
}

// TestTheLastToStandByIsAsked has a second process with the site's certificate, and tells
// the first.
func TestTheLastToStandByIsAsked(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	r.openDoor(t, "127.0.0.1:0")
	cert := r.issue(t, "B", pki.DTN)
	first, err := r.answer(t, cert, hello{Standby: true})
	if err != nil {
		t.Fatal(err)
	}
	r.stands(t)
	if _, err := r.answer(t, cert, hello{Standby: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := newStandby(first).hear(); err == nil || !strings.Contains(err.Error(), "if two run") {
		t.Errorf("the first hears %v", err)
	}
	if sites := r.callbacks().Standing(); !maps.Equal(sites, map[string]bool{"B": true}) {
		t.Errorf("sites: %v", sites)
	}
}

// TestAPeerThatVanishesIsNoticed has the path carry nothing any more, at both ends.
func TestAPeerThatVanishesIsNoticed(t *testing.T) {
	bubble(t, func(t *testing.T, r *callbackRig) {
		way := &way{}
		r.path = way.over
		r.openDoor(t, "")
		r.call(t)
		r.stands(t)
		time.Sleep(2 * standbyDead) // nothing but pings
		synctest.Wait()
		was := r.caller.Callbacks()[0]
		if !was.Connected || was.Site != "A" || was.Trouble() != "" || time.Since(was.Since) < standbyDead {
			t.Errorf("the connection that stands: %+v", was)
		}
		way.down.Store(true)
		time.Sleep(standbyDead + standbyPing + time.Second)
		synctest.Wait()
		now := r.caller.Callbacks()[0]
		if now.Connected || !now.Since.After(was.Since) || !strings.Contains(now.Trouble(), "so nothing comes from there") {
			t.Errorf("a connection that carries nothing: %+v", now)
		}
		if sites := r.callbacks().Standing(); !maps.Equal(sites, map[string]bool{"B": false}) {
			t.Errorf("sites: %v", sites)
		}
		way.down.Store(false)
		time.Sleep(dialTime + maxRetry)
		synctest.Wait()
		if now := r.caller.Callbacks()[0]; !now.Connected {
			t.Errorf("the path is back: %+v", now)
		}
	})
}

// way is a network path that can lose all that is sent.
type way struct{ down atomic.Bool }

type wayConn struct {
	net.Conn
	way *way
}

func (w *way) over(c net.Conn) net.Conn { return wayConn{c, w} }

func (c wayConn) Write(b []byte) (int, error) {
	if c.way.down.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c wayConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.way.down.Load() {
			return n, err
		}
	}
}

// TestAPeerIsTriedAgainAndAgain has nobody listen for a while, and then somebody who
// does not speak.
func TestAPeerIsTriedAgainAndAgain(t *testing.T) {
	bubble(t, func(t *testing.T, r *callbackRig) {
		var tries atomic.Int32
		var mute atomic.Bool
		r.path = func(c net.Conn) net.Conn {
			tries.Add(1)
			if !mute.Load() {
				c.Close()
			}
			return c
		}
		said := new(lines)
		r.opts.Log = slog.New(said)
		go func() { // nobody speaks at the other end
			for {
				c, err := r.pipes.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
			}
		}()
		t.Cleanup(func() { r.stop(); close(r.pipes) })
		r.door = "127.0.0.1:9"
		r.call(t)
		begin := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := tries.Load(); n < int32(time.Hour/maxRetry) || n > int32(2*time.Hour/maxRetry)+8 {
			t.Errorf("%d tries in an hour", n)
		}
		now := r.caller.Callbacks()[0]
		if now.Connected || now.Error == "" || !now.Since.Equal(begin) {
			t.Errorf("a peer that is not there: %+v", now)
		}
		if n := said.n.Load(); n != 1 {
			t.Errorf("%d lines of one and the same trouble", n)
		}
		mute.Store(true)
		time.Sleep(maxRetry + dialTime + time.Second)
		synctest.Wait()
		if now := r.caller.Callbacks()[0]; now.Error != "no answer" || !now.Since.Equal(begin) {
			t.Errorf("a peer that does not speak: %+v", now)
		}
	})
}

// lines counts what is logged.
type lines struct{ n atomic.Int32 }

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lines) WithGroup(string) slog.Handler            { return l }
func (l *lines) Handle(context.Context, slog.Record) error {
	l.n.Add(1)
	return nil
}

// TestAStandingConnectionIsRenewed holds that it does not outlive its certificates for long.
func TestAStandingConnectionIsRenewed(t *testing.T) {
	bubble(t, func(t *testing.T, r *callbackRig) {
		r.openDoor(t, "")
		r.call(t)
		first, since := r.stands(t), r.caller.Callbacks()[0].Since
		time.Sleep(standbyLife + time.Second)
		synctest.Wait()
		if now := r.caller.Callbacks()[0]; !now.Connected || !now.Since.Equal(since) {
			t.Errorf("a renewed connection: %+v", now)
		}
		if r.stands(t) == first {
			t.Error("the first connection stands")
		}
	})
}

// TestACallerOpensNoMoreThanItIsAllowed has site A ask for more connections than site B
// opens to one site.
func TestACallerOpensNoMoreThanItIsAllowed(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	r.opts.PerSite = 2
	r.openDoor(t, "127.0.0.1:0")
	r.call(t)
	for i := range 4 {
		c, _, err := r.callbacks().dial(t.Context(), "B")
		if (err == nil) != (i < 2) || err != nil && !strings.Contains(err.Error(), "2 of these to site A") {
			t.Errorf("connection %d: %v", i, err)
		}
		if err == nil {
			defer cut(c)
		}
	}
}
