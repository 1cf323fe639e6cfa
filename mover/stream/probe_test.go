package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// probeRequest is site A's for a probe, with a fresh ticket of site B.
func (r *rig) probeRequest(t testing.TB) mover.ProbeRequest {
	t.Helper()
	return mover.ProbeRequest{
		Destination: mover.Destination{Address: r.rig.Address, Ticket: r.probeTicket(t, mover.Ticket{From: "A", Probe: true})},
		Time:        500 * time.Millisecond,
	}
}

func (r *rig) probeTicket(t testing.TB, tk mover.Ticket) string {
	t.Helper()
	tk.ID, tk.Site, tk.Expires = rand.Text(), "B", time.Now().Add(time.Hour)
	token, err := r.rig.Sign(tk)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (r *rig) probe(ctx context.Context, req mover.ProbeRequest, report func(mover.Probing)) (mover.Probed, error) {
	if report == nil {
		report = func(mover.Probing) {}
	}
	return r.rig.Engine.(*Engine).Probe(ctx, req, report)
}

// probesNow are those that the receiver serves.
func (r *rig) probesNow() int {
	ps := &r.recv().probes
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.running)
}

// awaitNoProbes returns when the receiver knows that they are over, which the sender knows
// first: what follows meets the rest that they leave.
func (r *rig) awaitNoProbes() {
	for r.probesNow() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// TestAProbeMeasuresThePath in each protection, over TCP that the engine sees.
func TestAProbeMeasuresThePath(t *testing.T) {
	for _, p := range protections {
		t.Run(string(p), func(t *testing.T) {
			r := newRigIn(t, p)
			r.wires.plain = true
			var phases []mover.ProbePhase
			got, err := r.probe(t.Context(), r.probeRequest(t), func(p mover.Probing) {
				if n := len(phases); n == 0 || phases[n-1] != p.Phase {
					phases = append(phases, p.Phase)
				}
				if p.Loaded > p.Time || p.Time != 500*time.Millisecond {
					t.Errorf("%+v", p)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got.Site != "B" || got.Idle <= 0 || got.Loaded <= 0 || got.One <= 0 || got.All <= 0 || got.Connections < NearParallelism || got.Busy || got.Bytes <= 0 || got.At.IsZero() {
				t.Errorf("%+v", got)
			}
			if got.Path.Sent <= 0 || got.Path.MSS <= 0 || got.Path.Congestion == "" {
				t.Errorf("the path is %+v", got.Path)
			}
			if want := []mover.ProbePhase{mover.ProbeConnect, mover.ProbeIdle, mover.ProbeOne, mover.ProbeAll}; !slices.Equal(phases, want) {
				t.Errorf("phases %v, want %v", phases, want)
			}
			if all := r.recv().Arrivals(); len(all) > 0 {
				t.Errorf("a probe has left %+v", all)
			}
		})
	}
}

// TestAProbeOfFewBytes is over before the receiver has counted twice.
func TestAProbeOfFewBytes(t *testing.T) {
	r := newRig(t)
	r.wires.plain = true
	req := r.probeRequest(t)
	req.Time, req.Bytes = mover.MaxProbeTime, mover.MinProbeBytes
	got, err := r.probe(t.Context(), req, nil)
	if err != nil || got.One <= 0 || got.All <= 0 || !got.Short {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestAProbeOfASiteThatTakesNoConnections goes over those that it opens.
func TestAProbeOfASiteThatTakesNoConnections(t *testing.T) {
	r := newCallbackRig(t, mover.Private)
	got, err := r.probe(t.Context(), r.probeRequest(t), nil)
	if err != nil || got.Idle <= 0 || got.One <= 0 || got.All <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestAProbeThroughARelay is one of the path to it, which its routes and the ticket allow.
func TestAProbeThroughARelay(t *testing.T) {
	r := newRelayRig(t, mover.Private, mover.CutThrough)
	e := r.rig.rig.Engine.(viaRelay).Engine.(*Engine)
	probe := func() (mover.Probed, error) {
		req := r.probeRequest(t)
		req.Destination.Via = r.via
		return e.Probe(t.Context(), req, func(mover.Probing) {})
	}
	r.allow.Store(false)
	if _, err := probe(); mover.CodeOf(err) != mover.CodeAuth || !strings.Contains(err.Error(), "passes nothing on from site A to site B") {
		t.Errorf("without a route: %v", err)
	}
	r.allow.Store(true)
	sign := r.rig.rig.Sign
	r.rig.rig.Sign = r.sign
	if _, err := probe(); mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "name the relay") {
		t.Errorf("with a ticket that names no relay: %v", err)
	}
	r.rig.rig.Sign = sign
	got, err := probe()
	if err != nil || got.Site != "R" || got.All <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if n := r.out.sent.Load(); n > 0 {
		t.Errorf("%d bytes went on from the relay", n)
	}
}

// TestAProbeKeepsTheLimits of both ends, and has fewer connections where they are low.
func TestAProbeKeepsTheLimits(t *testing.T) {
	for name, limit := range map[string]func(*rig, *pace.Pacer){
		"here":  func(r *rig, p *pace.Pacer) { r.rig.Engine.(*Engine).Pacer = p },
		"there": func(r *rig, p *pace.Pacer) { r.opts.Pacer = p },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const most = 80e6
				r := newPipeRig(t)
				d := mover.Send
				if name == "there" {
					d = mover.Receive
				}
				limit(r, pace.New(d, mover.Limits{{Send: most, Receive: most}}))
				r.start(t, "")
				req := r.probeRequest(t)
				req.Time = 10 * time.Second
				began := time.Now()
				got, err := r.probe(t.Context(), req, nil)
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < req.Time || took > req.Time+time.Second {
					t.Errorf("it took %v", took)
				}
				if got.Short {
					t.Error("its time was not over")
				}
				for _, rate := range []float64{got.One, got.All} {
					if rate < 0.9*most || rate > 1.1*most {
						t.Errorf("%v bit/s, want %v: %+v", rate, most, got)
					}
				}
				if want := int64(most / 8 * 10); got.Bytes > want*11/10 {
					t.Errorf("%d bytes have arrived, want %d", got.Bytes, want)
				}
				r.stop()
			})
		})
	}
}

// TestAProbeWaitsForLateConnections beside one that sends, but not for those that do not come.
func TestAProbeWaitsForLateConnections(t *testing.T) {
	for name, c := range map[string]struct {
		late func(ctx context.Context)
		want int
	}{
		"late":  {func(context.Context) { time.Sleep(probeLate - time.Second) }, NearParallelism},
		"never": {func(ctx context.Context) { <-ctx.Done() }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				e := r.rig.Engine.(*Engine)
				e.Pacer = pace.New(mover.Send, mover.Limits{{Send: 80e6, Receive: 80e6}})
				var dialled atomic.Int32
				e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					if dialled.Add(1) > 2 { // the control connection, and the first lane
						c.late(ctx)
					}
					return r.wires.dial(ctx, network, address)
				}
				r.start(t, "")
				defer r.stop()
				req := r.probeRequest(t)
				req.Parallelism = NearParallelism
				got, err := r.probe(t.Context(), req, nil)
				if err != nil || got.Connections != c.want || got.One <= 0 || got.All <= 0 {
					t.Errorf("%+v, %v", got, err)
				}
			})
		})
	}
}

// TestAProbeSendsNoMoreThanItMay and ends when that has arrived.
func TestAProbeSendsNoMoreThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 800e6
		r := newPipeRig(t)
		r.rig.Engine.(*Engine).Pacer = pace.New(mover.Send, mover.Limits{{Send: most, Receive: most}})
		r.start(t, "")
		defer r.stop()
		req := r.probeRequest(t)
		req.Time, req.Bytes = mover.MaxProbeTime, 256<<20
		began := time.Now()
		got, err := r.probe(t.Context(), req, nil)
		if err != nil || !got.Short || got.Bytes > req.Bytes || got.Bytes < req.Bytes-pieceSize || got.All < 0.8*most || got.All > 1.2*most || time.Since(began) > 4*time.Second {
			t.Errorf("after %v %+v, %v", time.Since(began), got, err)
		}
		req.Bytes = 1
		if _, err := r.probe(t.Context(), req, nil); err == nil || !strings.Contains(err.Error(), "tell nothing of a path") {
			t.Errorf("one byte: %v", err)
		}
	})
}

// TestAShutLimitIsToldWithItsEnd at either end, before and while there is load.
func TestAShutLimitIsToldWithItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		e := r.rig.Engine.(*Engine)
		slow := mover.Limits{{Send: 8e6, Receive: 8e6}}
		e.Pacer, r.opts.Pacer = pace.New(mover.Send, slow), pace.New(mover.Receive, slow)
		r.start(t, "")
		defer r.stop()
		now := time.Now()
		shut := func(site string) mover.Limits {
			return mover.Limits{{Site: site, Window: mover.Window{From: 0, To: 24 * time.Hour, Days: []time.Weekday{now.Weekday()}}}}
		}
		for name, ends := range map[string]struct {
			pacer *pace.Pacer
			site  string
		}{
			"here": {e.Pacer, ""}, "here for the site": {e.Pacer, "B"}, "there": {r.opts.Pacer, ""}, "there for the site": {r.opts.Pacer, "A"},
		} {
			for _, loaded := range []bool{false, true} {
				time.Sleep(5 * time.Minute) // a site rests between probes
				ends.pacer.Set(slow)
				if !loaded {
					ends.pacer.Set(shut(ends.site))
				}
				_, err := r.probe(t.Context(), r.probeRequest(t), func(p mover.Probing) {
					if p.Phase == mover.ProbeOne {
						ends.pacer.Set(shut(ends.site))
					}
				})
				if w := waits(err); w == nil || w.Until.Before(now) || !strings.Contains(err.Error(), "a limit lets nothing go") {
					t.Errorf("%s, under load %v: %v", name, loaded, err)
				}
				ends.pacer.Set(slow)
			}
		}
	})
}

// TestAProbeIsRefused with a reason, and nothing is sent.
func TestAProbeIsRefused(t *testing.T) {
	r := newRig(t)
	e := r.rig.Engine.(*Engine)
	file := mover.File{Name: "inbox/x", Size: 1}
	for name, c := range map[string]struct {
		change func(*mover.ProbeRequest)
		want   string
		code   mover.Code
	}{
		"a ticket for a file": {func(q *mover.ProbeRequest) {
			q.Destination.Ticket = r.probeTicket(t, mover.Ticket{From: "A", File: file})
		}, "for a file", mover.CodeTicket},
		"another site's": {func(q *mover.ProbeRequest) {
			q.Destination.Ticket = r.probeTicket(t, mover.Ticket{From: "C", Probe: true})
		}, `lets site "C" probe`, mover.CodeTicket},
		"no ticket": {func(q *mover.ProbeRequest) { q.Destination.Ticket = "" }, "ticket", mover.CodeTicket},
		"through what is none": {func(q *mover.ProbeRequest) {
			q.Destination.Via = mover.Relay{Site: "B", Address: q.Destination.Address, Mode: mover.CutThrough}
		}, "no relay", mover.CodeAuth},
		"another site there": {func(q *mover.ProbeRequest) {
			q.Destination.Via = mover.Relay{Site: "R", Address: q.Destination.Address, Mode: mover.CutThrough}
		}, "not of site R", mover.CodeAuth},
		"a GridFTP server": {func(q *mover.ProbeRequest) { q.Destination.Address = "gsiftp://" }, "export", mover.CodeOther},
	} {
		q := r.probeRequest(t)
		c.change(&q)
		_, err := r.probe(t.Context(), q, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || mover.CodeOf(err) != c.code {
			t.Errorf("%s: %v, code %v", name, err, mover.CodeOf(err))
		}
	}
	stranger := r.engine(t, r.rig.Source, r.issue(t, "C", pki.DTN))
	if _, err := stranger.Probe(t.Context(), r.probeRequest(t), func(mover.Probing) {}); err == nil || !strings.Contains(err.Error(), `the sender is of site "C"`) {
		t.Errorf("site C with site A's ticket: %v", err)
	}
	if sent := r.wires.sent.Load(); sent > 1<<20 {
		t.Errorf("%d bytes were sent", sent)
	}
	r.opts.Protection, e.Protection = mover.Private, mover.Clear
	if _, err := r.probe(t.Context(), r.probeRequest(t), nil); err == nil || !strings.Contains(err.Error(), "at least in private") {
		t.Errorf("in clear: %v", err)
	}
	e.Protection = mover.Private
	r.stop()
	if _, err := r.probe(t.Context(), r.probeRequest(t), nil); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestATicketForAProbeLetsNoFileIn whatever the sender says of it.
func TestATicketForAProbeLetsNoFileIn(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 1))
	req.Destination.Ticket = r.probeTicket(t, mover.Ticket{From: "A", Probe: true})
	if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "for a probe") {
		t.Errorf("%v", err)
	}
	if _, err := r.rig.Sign(mover.Ticket{ID: "x", Site: "B", From: "A", Probe: true, File: mover.File{Name: "inbox/x"}, Expires: time.Now().Add(time.Hour)}); err == nil {
		t.Error("a ticket for both was signed")
	}
}

// TestASiteProbesNowAndThen holds how often, and how many at once.
func TestASiteProbesNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		slow := pace.New(mover.Send, mover.Limits{{Send: 8e6, Receive: 8e6}})
		e := r.rig.Engine.(*Engine)
		e.Pacer = slow
		r.start(t, "")
		defer r.stop()
		req := r.probeRequest(t)
		req.Time = 4 * time.Second
		began := time.Now()
		if _, err := r.probe(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
		r.awaitNoProbes()
		_, err := r.probe(t.Context(), req, nil)
		w := waits(err)
		if w == nil || time.Until(w.Until) < 2*req.Time || time.Until(w.Until) > probeRest*time.Since(began) || !strings.Contains(err.Error(), "site A may do so again in") {
			t.Fatalf("a second one at once: %v", err)
		}
		time.Sleep(time.Until(w.Until) + time.Millisecond)
		others := map[string]*Engine{"A": e}
		for _, site := range []string{"C", "D"} {
			others[site] = r.engine(t, r.rig.Source, r.issue(t, site, pki.DTN))
			others[site].Pacer = slow
		}
		ask := func(site string) chan error {
			ended := make(chan error, 1)
			q := req
			q.Destination.Ticket = r.probeTicket(t, mover.Ticket{From: site, Probe: true})
			go func() {
				_, err := others[site].Probe(t.Context(), q, func(mover.Probing) {})
				ended <- err
			}()
			synctest.Wait()
			return ended
		}
		a := ask("A")
		if err := <-ask("A"); waits(err) == nil {
			t.Errorf("two of one site: %v", err)
		}
		c := ask("C")
		if err := <-ask("D"); waits(err) == nil {
			t.Errorf("a third: %v", err)
		}
		for _, ended := range []chan error{a, c} {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		r.awaitNoProbes()
		if err := <-ask("D"); err != nil {
			t.Errorf("when there is room again: %v", err)
		}
		time.Sleep(time.Minute)
		<-ask("A")
		synctest.Wait()
		if n := len(r.recv().probes.rests); n != 1 {
			t.Errorf("%d sites are kept in mind", n)
		}
	})
}

// TestAProbeEndsAtBothEnds when nobody wants it any more, in each of its phases.
func TestAProbeEndsAtBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		e := r.rig.Engine.(*Engine)
		e.Pacer = pace.New(mover.Send, mover.Limits{{Send: 8e6, Receive: 8e6}})
		r.start(t, "")
		defer r.stop()
		for _, phase := range []mover.ProbePhase{mover.ProbeConnect, mover.ProbeIdle, mover.ProbeAll} {
			time.Sleep(5 * time.Minute)
			ctx, cancel := context.WithCancel(t.Context())
			req := r.probeRequest(t)
			req.Time = mover.MaxProbeTime
			var began time.Time
			_, err := r.probe(ctx, req, func(p mover.Probing) {
				if p.Phase == phase {
					began = time.Now()
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", phase, err)
			}
			synctest.Wait()
			if n := r.probesNow(); n != 0 || time.Since(began) > time.Second {
				t.Errorf("%s: after %v the receiver serves %d", phase, time.Since(began), n)
			}
			cancel()
		}
	})
}

// TestAProbeGoesOutOfTheWayOfFiles that move already, and of those that begin.
func TestAProbeGoesOutOfTheWayOfFiles(t *testing.T) {
	r := newRig(t)
	e := r.rig.Engine.(*Engine)
	e.Pacer = pace.New(mover.Send, mover.Limits{{Send: 80e6, Receive: 80e6}}) // so that neither ends at once
	f := r.stage(t, "image", 4*mover.BlockSize)
	req := r.probeRequest(t)
	req.Time = mover.MaxProbeTime
	tried := false
	err := e.Move(t.Context(), r.request(t, f), func(p mover.Progress) {
		if tried || p.Moved == f.Size {
			return
		}
		tried = true
		got, err := r.probe(t.Context(), req, nil)
		if err != nil || !got.Busy || got.Idle <= 0 || got.Bytes != 0 || got.One != 0 || got.All != 0 {
			t.Errorf("beside a file: %+v, %v", got, err)
		}
	})
	if err != nil || !tried {
		t.Fatal(err, tried)
	}
	r.awaitNoProbes()
	ps := &r.recv().probes
	ps.mu.Lock()
	clear(ps.rests)
	ps.mu.Unlock()
	moved := make(chan error, 1)
	began := false
	second := r.request(t, r.stage(t, "second", 2*mover.BlockSize))
	got, err := r.probe(t.Context(), req, func(p mover.Probing) {
		if p.Phase == mover.ProbeOne && p.Bytes > 0 && !began {
			began = true
			go func() { moved <- e.Move(t.Context(), second, func(mover.Progress) {}) }()
		}
	})
	if err != nil || !got.Busy || got.All != 0 || !began {
		t.Errorf("when a file comes: %+v, %v", got, err)
	}
	if err := <-moved; err != nil {
		t.Error(err)
	}
}

// hostile is a sender that keeps to no bound. It is let in with what q says.
func (r *rig) hostile(t *testing.T, q probing) *tls.Conn {
	t.Helper()
	c := r.connect(t, r.issue(t, "A", pki.DTN))
	_ = c.SetDeadline(time.Time{})
	write(t, c, hello{Version: version, Link: "x", Protection: mover.Private, Probe: true}.bytes())
	if a := readAnswerOf(t, c); a.Code != "" || !a.Probe {
		t.Fatalf("%+v", a)
	}
	write(t, c, header{kind: kindProbe}.with(q))
	return c
}

func readAnswerOf(t *testing.T, c *tls.Conn) answer {
	t.Helper()
	for {
		h, err := readHeader(c)
		if err != nil {
			t.Fatal(err)
		}
		if h.kind == kindAnswer {
			a, err := readAnswer(c, h.length)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		if _, err := io.CopyN(io.Discard, c, int64(h.length)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheBoundsAreTheReceivers holds a sender to what it has asked for, and that to the most.
func TestTheBoundsAreTheReceivers(t *testing.T) {
	flood := func(t *testing.T, r *rig) {
		lane := r.connect(t, r.issue(t, "A", pki.DTN))
		write(t, lane, hello{Version: version, Link: "x", Lane: true, Protection: mover.Private, Probe: true}.bytes())
		if a := readAnswerOf(t, lane); a.Code != "" {
			t.Fatalf("%+v", a)
		}
		go func() {
			for piece := make([]byte, pieceSize); ; {
				if _, err := lane.Write(piece); err != nil {
					return
				}
			}
		}()
	}
	slow := mover.Limits{{Send: 80e6, Receive: 80e6}}
	for name, c := range map[string]struct {
		q    probing
		do   func(t *testing.T, r *rig, c *tls.Conn)
		want string
		took time.Duration
	}{
		"too long":       {q: probing{Time: mover.MaxProbeTime + 1, Bytes: 1}, want: "30s and"},
		"too much":       {q: probing{Time: 1, Bytes: mover.MaxProbeBytes + 1}, want: "are the most"},
		"for no time":    {q: probing{Bytes: 1}, want: "are the most"},
		"negative bytes": {q: probing{Time: 1, Bytes: -1}, want: "are the most"},
		"more than said": {q: probing{Time: mover.MaxProbeTime, Bytes: 10e6}, do: func(t *testing.T, r *rig, _ *tls.Conn) { flood(t, r) },
			want: "more than the 10000000 bytes", took: 2 * time.Second},
		"longer than said": {q: probing{Time: 5 * time.Second, Bytes: mover.MaxProbeBytes}, do: func(t *testing.T, r *rig, _ *tls.Conn) { flood(t, r) },
			want: "time is over", took: 5*time.Second + probeGrace + time.Second},
		"without load": {q: probing{Time: 5 * time.Second, Bytes: 1}, want: "too long", took: 5*time.Second + probeSetup + time.Second},
		"echoes without end": {q: probing{Time: 5 * time.Second, Bytes: 1}, do: func(_ *testing.T, _ *rig, c *tls.Conn) {
			go func() {
				for {
					if _, err := c.Write(header{kind: kindPing}.bytes()); err != nil {
						return
					}
				}
			}()
		}, want: "too many echoes", took: time.Second},
		"a file": {q: probing{Time: 5 * time.Second, Bytes: 1}, do: func(t *testing.T, _ *rig, c *tls.Conn) {
			write(t, c, opening{}.bytes(1))
		}, want: "of kind 1", took: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				r.opts.Pacer = pace.New(mover.Receive, slow)
				r.start(t, "")
				defer r.stop()
				c.q.Ticket = r.probeTicket(t, mover.Ticket{From: "A", Probe: true})
				conn := r.hostile(t, c.q)
				began := time.Now()
				a := readAnswerOf(t, conn)
				if c.took > 0 {
					if a.Code != "" {
						t.Fatalf("%+v", a)
					}
					if c.do != nil {
						c.do(t, r, conn)
					}
					a = readAnswerOf(t, conn)
				}
				if a.Code == "" || !strings.Contains(a.Error, c.want) {
					t.Errorf("%+v, want %q", a, c.want)
				}
				if took := time.Since(began); took > c.took {
					t.Errorf("it took %v", took)
				}
				conn.Close()
				synctest.Wait()
				if n := r.probesNow(); n != 0 {
					t.Errorf("the receiver serves %d", n)
				}
			})
		})
	}
}

// TestALaneNeedsItsProbe holds that nobody gets rid of bytes without one.
func TestALaneNeedsItsProbe(t *testing.T) {
	r := newRig(t)
	r.open(t, r.request(t, r.stage(t, "image", mover.BlockSize)), "s")
	for _, name := range []string{"none", "s"} { // that is a link of files
		c := r.connect(t, r.issue(t, "A", pki.DTN))
		write(t, c, hello{Version: version, Link: name, Lane: true, Protection: mover.Private, Probe: true}.bytes())
		if a := readAnswerOf(t, c); a.Code == "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// receives has a receiver of a test's own answer a probe's control connection.
func (r *rig) receives(t *testing.T, serve func(c *tls.Conn)) {
	t.Helper()
	l := nettest.Listen(t, "127.0.0.1:0")
	r.rig.Address = l.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c := tls.Server(nc, r.opts.TLS)
		defer c.Close()
		if _, err := readHello(c); err == nil {
			serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// TestAReceiverThatOnlyCounts holds nobody up for ever.
func TestAReceiverThatOnlyCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		var serving sync.WaitGroup
		serving.Go(func() {
			nc, _ := r.pipes.Accept()
			c := tls.Server(nc, r.opts.TLS)
			defer c.Close()
			if _, err := readHello(c); err != nil {
				return
			}
			_, _ = c.Write(answer{Block: mover.BlockSize, Probe: true}.bytes(0))
			_, _ = readProbing(c)
			_, err := c.Write(answer{}.bytes(0))
			serving.Go(func() { _, _ = io.Copy(io.Discard, nc) })
			for err == nil {
				time.Sleep(time.Second)
				_, err = c.Write(header{kind: kindProbe}.with(count{}))
			}
		})
		began := time.Now()
		if _, err := r.probe(t.Context(), r.probeRequest(t), nil); err == nil || !strings.Contains(err.Error(), "taken too long") || time.Since(began) > 2*time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		serving.Wait()
	})
}

// TestTheReceiversClockIsNotBelieved where it makes more of what arrived than can be.
func TestTheReceiversClockIsNotBelieved(t *testing.T) {
	steady := []count{{0, 0}, {1e6, time.Second}, {2e6, 2 * time.Second}, {3e6, 3 * time.Second}, {4e6, 4 * time.Second}}
	late := []count{{0, 0}, {0, time.Second}, {0, 2 * time.Second}, {2e6, 3 * time.Second}, {4e6, 4 * time.Second}} // slow start
	quick := []count{{0, 0}, {1e6, 1}, {2e6, 2}, {3e6, 3}, {4e6, 4}}
	for name, c := range map[string]struct {
		counts []count
		want   float64
	}{"steady": {steady, 8e6}, "late": {late, 16e6}, "quick": {quick, 16e6}, "none": {nil, 0}} {
		if got := rateWithin(c.counts, 4*time.Second); got != c.want {
			t.Errorf("%s: %v bit/s, want %v", name, got, c.want)
		}
	}
}

// TestAnOlderReceiver takes a probe's hello for that of a link, as releases before probes do.
func TestAnOlderReceiver(t *testing.T) {
	r := prepare(t)
	r.receives(t, func(c *tls.Conn) {
		_, _ = c.Write(answer{Block: mover.BlockSize}.bytes(0))
		_, _ = readHeader(c)
	})
	if _, err := r.probe(t.Context(), r.probeRequest(t), nil); !errors.Is(err, errNoProbes) {
		t.Errorf("%v", err)
	}
}

// TestAReceiverThatMiscounts is not believed, nor listened to without end.
func TestAReceiverThatMiscounts(t *testing.T) {
	told := func(n count) []byte { return header{kind: kindProbe}.with(n) }
	for name, c := range map[string]struct {
		says []byte
		want string
	}{
		"more than was sent":   {told(count{Bytes: 1}), "has counted 1 bytes of 0"},
		"less than before":     {append(told(count{At: 2}), told(count{At: 1})...), "has counted"},
		"counts without end":   {bytes.Repeat(told(count{}), maxCounts+1), "has counted"},
		"something of a file":  {header{kind: kindProven, file: 1}.bytes(), "of kind"},
		"echoes of no request": {append(bytes.Repeat(header{kind: kindPing}.bytes(), 100), told(count{Bytes: 1})...), "has counted 1 bytes"},
		"too much at once":     {header{kind: kindProbe, length: maxTimes + 1}.bytes(), "bytes of JSON"},
		"that it is over":      {answer{}.bytes(0), "has ended the probe"},
	} {
		r := prepare(t)
		r.receives(t, func(conn *tls.Conn) {
			_, _ = conn.Write(answer{Block: mover.BlockSize, Probe: true}.bytes(0))
			if _, err := readProbing(conn); err == nil {
				_, _ = conn.Write(append(answer{}.bytes(0), c.says...))
			}
			_, _ = io.Copy(io.Discard, conn)
		})
		if _, err := r.probe(t.Context(), r.probeRequest(t), nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
