package dtn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// fakeProber probes as it is told.
type fakeProber struct {
	*fakeEngine
	do func(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.Probed, error)
}

func (e fakeProber) Probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.Probed, error) {
	return e.do(ctx, r, report)
}

// probeEvents are what a probe of an address tells.
func probeEvents(t *testing.T, s *Server, d mover.Destination) (all []mover.ProbeEvent) {
	t.Helper()
	d.Ticket = secret
	a := ask(t, s, "POST", "/v1/probes", mover.ProbeRequest{Destination: d})
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for line := range strings.Lines(a.body) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			var e mover.ProbeEvent
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
		}
	}
	return all
}

func TestWhatAProbeFindsIsKeptBesideWhatTransfersSee(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		found := mover.Probed{
			At: time.Now().UTC(), Site: "B", Idle: 40 * time.Millisecond, Loaded: 60 * time.Millisecond, One: 8e6, All: 80e6, Connections: 16, Bytes: 1e7, Loss: 0.01,
			Path: mover.Path{Congestion: "cubic", MSS: 1448, RTT: 50 * time.Millisecond, Sent: 1e6, Retransmits: 1e4, Busy: 4 * second, RecvLimited: second},
		}
		r.opt.Engines[mover.Stream] = fakeProber{r.engine, func(_ context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.Probed, error) {
			if r.Destination.Ticket != secret {
				t.Errorf("%+v", r)
			}
			report(mover.Probing{Phase: mover.ProbeIdle})
			time.Sleep(eventEvery + second/2)
			report(mover.Probing{Phase: mover.ProbeAll, Connections: 16})
			return found, nil
		}}
		s := r.server(t)
		d := mover.Destination{Address: "dtn-b.example.org:7444", Via: mover.Relay{Site: "R", Address: "dtn-r.example.org:7444", Mode: mover.CutThrough}}
		events := probeEvents(t, s, d)
		if len(events) != 4 {
			t.Fatalf("%+v", events)
		}
		for i, phase := range []mover.ProbePhase{mover.ProbeIdle, mover.ProbeIdle, mover.ProbeAll} {
			if e := events[i]; e.Progress == nil || e.Progress.Phase != phase {
				t.Errorf("event %d is %+v, want phase %s", i, e, phase)
			}
		}
		p := *events[3].Path
		if p.Address != d.Via.Address || p.MinRTT != found.Idle || p.RTT != 50*time.Millisecond || p.Best != 80e6 || p.Rate != 80e6 || p.Connections != 16 || p.Congestion != "cubic" ||
			math.Abs(p.Loss-0.01) > 1e-9 || p.RecvLimited != 0.25 || !p.Seen.Equal(found.At) || p.BDP != 400_000 || p.Bound <= 0 {
			t.Errorf("%+v", p)
		}
		s.sightings.add(time.Now(), d.Via.Address, wayOf(epoch, 0, 0, 30*time.Millisecond))
		s.sightings.add(time.Now().Add(5*second), d.Via.Address, wayOf(epoch, 99e6, 0, 30*time.Millisecond))
		want := found
		want.Path = mover.Path{}
		for _, s := range []*Server{s, r.server(t)} {
			all := seenPaths(t, s)
			if len(all) != 1 || all[0].Probe == nil || *all[0].Probe != want {
				t.Fatalf("%+v", all)
			}
		}
		if p := seenPaths(t, s)[0]; p.MinRTT != 30*time.Millisecond || p.Loss > 0.001 || p.Best < 158e6 {
			t.Errorf("after a transfer: %+v", p)
		}
		found = mover.Probed{At: time.Now().UTC(), Site: "B", Idle: 35 * time.Millisecond, Busy: true}
		before := seenPaths(t, s)[0]
		events = probeEvents(t, s, d)
		if told := events[len(events)-1].Path; told == nil || !told.Probe.Busy || told.Best != before.Best {
			t.Errorf("who asked for a probe without load is told %+v", told)
		}
		after := seenPaths(t, s)[0]
		if *after.Probe != *before.Probe || after.Best != before.Best || after.Rate != before.Rate || after.Loss != before.Loss || after.RTT != before.RTT || after.Connections != before.Connections {
			t.Errorf("a probe without load makes %+v of %+v", after, before)
		}
	})
}

// TestAProbeOfLessShowsNoSlowerPath than is known: it had fewer connections, or no time.
func TestAProbeOfLessShowsNoSlowerPath(t *testing.T) {
	d := mover.Destination{Address: "dtn-b.example.org:7444"}
	whole := mover.Probed{At: epoch, Idle: second, One: 8e6, All: 80e6, Connections: 16}
	for name, c := range map[string]struct {
		change func(*mover.Probed)
		want   float64
		over   int
	}{
		"a file came":         {func(p *mover.Probed) { p.All, p.Connections, p.Busy = 0, 1, true }, 80e6, 16},
		"few bytes":           {func(p *mover.Probed) { p.All, p.Connections, p.Short = 20e6, 8, true }, 80e6, 16},
		"few bytes, but fast": {func(p *mover.Probed) { p.All, p.Short = 90e6, true }, 90e6, 16},
		"all of it":           {func(p *mover.Probed) { p.All, p.Connections = 20e6, 8 }, 20e6, 8},
	} {
		s := newSightings(t, roottest.Open(t, t.TempDir()))
		next := whole
		c.change(&next)
		if p := s.probed(d, next); p.Recent != max(next.One, next.All) || p.Rate != p.Recent || p.Connections != next.Connections {
			t.Errorf("%s, and nothing else is known: %+v", name, p)
		}
		s.probed(d, whole)
		if p := s.probed(d, next); p.Recent != c.want || p.Best < 80e6 || p.Connections != c.over {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// TestWhoGivesAProbeUpIsNoWarning to the operator.
func TestWhoGivesAProbeUpIsNoWarning(t *testing.T) {
	for _, gone := range []bool{true, false} {
		bubble(t, func(t *testing.T, r *rig) {
			var log bytes.Buffer
			r.opt.Log = slog.New(slog.NewTextHandler(&log, nil))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r.opt.Engines[mover.Stream] = fakeProber{r.engine, func(ctx context.Context, _ mover.ProbeRequest, _ func(mover.Probing)) (mover.Probed, error) {
				if gone {
					cancel()
				}
				return mover.Probed{}, errors.New("it has ended")
			}}
			in := &probeInput{mover.ProbeRequest{Destination: mover.Destination{Address: "dtn-b.example.org:7444"}}}
			r.server(t).probePath(ctx, in, func(sse.Message) error { return nil })
			if warned := strings.Contains(log.String(), "a path was not probed"); warned == gone {
				t.Errorf("who asked is gone %v: %s", gone, log.String())
			}
		})
	}
}

func TestOneProbeAtATime(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		r.opt.Engines[mover.Stream] = fakeProber{r.engine, func(ctx context.Context, _ mover.ProbeRequest, _ func(mover.Probing)) (mover.Probed, error) {
			<-release
			return mover.Probed{At: time.Now()}, nil
		}}
		s := r.server(t)
		d := mover.Destination{Address: "dtn-b.example.org:7444"}
		first := make(chan []mover.ProbeEvent)
		go func() { first <- probeEvents(t, s, d) }()
		synctest.Wait()
		events := probeEvents(t, s, d)
		if e := events[len(events)-1]; e.Problem == nil || e.Problem.Status != http.StatusServiceUnavailable || !strings.Contains(e.Problem.Detail, "probes a path already") {
			t.Errorf("the second: %+v", e)
		}
		close(release)
		if events := <-first; events[len(events)-1].Path == nil {
			t.Errorf("the first: %+v", events)
		}
	})
}

func TestWhyAPathIsNotProbed(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var why error
		r.opt.Engines[mover.Stream] = fakeProber{r.engine, func(context.Context, mover.ProbeRequest, func(mover.Probing)) (mover.Probed, error) {
			return mover.Probed{}, why
		}}
		r.opt.Engines[mover.GridFTP] = r.engine
		s := r.server(t)
		for _, c := range []struct {
			address string
			why     error
			want    mover.Problem
		}{
			{"gsiftp://dtn-b.example.org:2811/export/glance", nil, mover.Problem{Status: 422, Detail: "engine gridftp moves files only"}},
			{"dtn-b.example.org:7444", mover.Coded(mover.CodeAuth, errors.New("not accepted")), mover.Problem{Status: 502, Detail: "not accepted", Code: mover.CodeAuth}},
			{"dtn-b.example.org:7444", &mover.Wait{Reason: "a limit until noon"}, mover.Problem{Status: 503, Detail: "a limit until noon", Code: mover.CodeOther}},
		} {
			why = c.why
			events := probeEvents(t, s, mover.Destination{Address: c.address})
			p := events[len(events)-1].Problem
			if p == nil || p.Status != c.want.Status || !strings.Contains(p.Detail, c.want.Detail) || p.Code != c.want.Code {
				t.Errorf("%s, %v: %+v", c.address, c.why, p)
			}
		}
		_, err := s.probe(t.Context(), mover.ProbeRequest{Destination: mover.Destination{Address: "dtn-b.example.org:7444"}, Bytes: mover.MinProbeBytes - 1}, nil)
		if p, ok := errors.AsType[*mover.Problem](err); !ok || p.Status != 422 || !strings.Contains(p.Detail, "tell nothing of a path") {
			t.Errorf("too few bytes: %v", err)
		}
		if all := seenPaths(t, s); len(all) > 0 {
			t.Errorf("%+v", all)
		}
	})
}
