package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
)

// behind is site B, whose agent takes no connections, and A, to whose agent it connects.
type behind struct {
	*peering
	a, b    *fakeAgent
	cs      *Callbacks
	address string
	asks    *PeerClient // of A, for B
}

func newBehind(t *testing.T) *behind {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	noError(t, err)
	r := &behind{peering: &peering{ca: ca}, a: newFake(), b: newFake(), cs: new(Callbacks)}
	r.cs.Expect([]string{"B"})
	r.asks = NewCallbackClient("B", r.cs)
	t.Cleanup(r.cs.Close)
	t.Cleanup(r.asks.c.hc.CloseIdleConnections)
	r.address = "127.0.0.1:0"
	return r
}

// listens has A's agent run until it is stopped.
func (r *behind) listens(t *testing.T) (stop func()) {
	t.Helper()
	l := nettest.Listen(t, r.address)
	r.address = l.Addr().String()
	s := PeerServer(r.a, r.cs, slog.New(slog.DiscardHandler))
	serve(t, s, tls.NewListener(l, r.keyring(t, siteA, 0).ServerTLS(nil)))
	return func() {
		noError(t, s.Close())
		r.cs.Close()
	}
}

// calls has an agent keep connections to A's agent.
func (r *behind) calls(t *testing.T, as pki.Identity) *Caller {
	t.Helper()
	ring := r.keyring(t, as, 0)
	c, err := NewCaller(r.b, "A", "https://"+r.address, func() *tls.Config { return ring.ClientTLS(siteA) }, slog.New(slog.DiscardHandler))
	noError(t, err)
	ran := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ran <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		noError(t, <-ran)
	})
	return c
}

// eventually waits until what is wrong is "".
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		what := wrong()
		if what == "" {
			return
		}
		if time.Since(begin) > time.Minute {
			t.Fatal(what)
		}
	}
}

// TestAnAgentThatTakesNoConnectionsIsAsked also has it answer many requests at once, over
// more connections than it keeps, and after A's agent was restarted.
func TestAnAgentThatTakesNoConnectionsIsAsked(t *testing.T) {
	r := newBehind(t)
	stop := r.listens(t)
	c := r.calls(t, siteB)
	for range 2 {
		answers := make(chan error)
		const many = 4 * callbackReady
		for i := range many {
			go func() {
				g, err := r.asks.Offer(t.Context(), agent.Offer{Image: image(10+i, "")})
				if err == nil && g.Verdict != agent.Accept {
					err = errors.New(string(g.Verdict))
				}
				answers <- err
			}()
		}
		for range many {
			noError(t, <-answers)
		}
		n := 0
		for _, err := range r.asks.Inventory(t.Context()) {
			noError(t, err)
			n++
		}
		if n == 0 {
			t.Error("the inventory is empty")
		}
		eventually(t, func() string { // connections of before may have answered all of it
			if k := c.Check(); !k.OK || k.Note != "" {
				return "it is called down: " + k.Note + k.Error
			}
			return ""
		})
		stop()
		r.asks.c.hc.CloseIdleConnections()
		eventually(t, func() string {
			if k := c.Check(); !strings.Contains(k.Note, "no connection to the agent of site A since") {
				return "nothing is said of an agent that is away: " + k.Note
			}
			return ""
		})
		stop = r.listens(t)
	}
	for _, j := range r.b.jobs {
		if j.Peer != "A" {
			t.Errorf("an offer is taken for that of site %s", j.Peer)
		}
	}
}

// TestOnlyExpectedAgentsMayWait has agents connect that have no business there.
func TestOnlyExpectedAgentsMayWait(t *testing.T) {
	for name, c := range map[string]struct {
		as   pki.Identity
		says string
	}{
		"a site that is connected to": {pki.Identity{Site: "C", Role: pki.Agent}, "write url: callback for C under its peers"},
		"a DTN":                       {pki.Identity{Site: "B", Role: pki.DTN}, "only agents may"},
	} {
		r := newBehind(t)
		r.listens(t)
		caller := r.calls(t, c.as)
		eventually(t, func() string {
			if k := caller.Check(); !strings.Contains(k.Note, c.says) {
				return name + ": " + k.Note
			}
			return ""
		})
		if conn, _ := r.cs.take(c.as.Site); conn != nil {
			t.Errorf("%s waits", name)
		}
	}
}

// TestAnAgentThatIsNotThereIsWaitedFor has no agent connect, and then one that has gone.
func TestAnAgentThatIsNotThereIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cs := new(Callbacks)
		begin := time.Now()
		_, err := NewCallbackClient("B", cs).Delivery(t.Context(), "x")
		if err == nil || !strings.HasPrefix(err.Error(), "site B's agent does not answer: it takes no connections") || !strings.Contains(err.Error(), "see callback under peers") || time.Since(begin) != callbackLate {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		var theirs []net.Conn
		for range callbackMost + 2 {
			ours, other := net.Pipe()
			cs.add("B", ours)
			theirs = append(theirs, other)
		}
		for i, c := range theirs[:2] {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("connection %d is kept", i)
			}
		}
		for _, c := range theirs[3:] {
			c.Close()
		}
		got, err := cs.dial(t.Context(), "B")
		noError(t, err)
		go got.Write([]byte("?"))
		if _, err := theirs[2].Read(make([]byte, 1)); err != nil {
			t.Errorf("the one that is open was not taken: %v", err)
		}
		got.Close()
	})
}

func TestACallerEndsWhileItWaits(t *testing.T) {
	r := newBehind(t)
	r.address = "127.0.0.1:1"
	c := r.calls(t, siteB)
	eventually(t, func() string {
		if k := c.Check(); !strings.Contains(k.Note, "refused") {
			return k.Note
		}
		return ""
	})
}

// TestAnAnswerToAnUpgradeIsBounded has the other end never end its answer.
func TestAnAnswerToAnUpgradeIsBounded(t *testing.T) {
	c, err := NewCaller(newFake(), "A", "https://dtn.example.org", nil, slog.New(slog.DiscardHandler))
	noError(t, err)
	for answer, want := range map[string]string{
		strings.Repeat("x", 5<<10):             "has no end",
		"HTTP/1.1 404 Not Found\r\n\r\n":       "no agent's",
		"HTTP/1.1 101 Switching Protocols":     "EOF",
		"nonsense\r\n\r\n":                     "malformed",
		"HTTP/1.1 101 x\r\nUpgrade: y\r\n\r\n": "",
	} {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
				_, _ = theirs.Write([]byte(answer))
			}
		}()
		err := c.upgrade(ours)
		ours.Close()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", answer, err, want)
		}
	}
}
