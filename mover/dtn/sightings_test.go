package dtn

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
)

const second = time.Second

// wayOf is what a transfer reports of a path on which so many bytes were sent.
func wayOf(since time.Time, sent, resent int64, rtt time.Duration) mover.Way {
	return mover.Way{Lanes: 2, Path: mover.Path{
		Since: since, Congestion: "cubic", MSS: 1448, RTT: rtt + time.Millisecond, MinRTT: rtt, Sent: sent, Retransmits: resent,
		Busy: time.Duration(sent), RecvLimited: time.Duration(sent / 4), // for the sake of it
	}}
}

func seenPaths(t *testing.T, s *Server) (all []mover.SeenPath) {
	t.Helper()
	a := ask(t, s, "GET", "/v1/paths", nil)
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a.decode(t, &all)
	return all
}

func TestWhatTransfersSeeOfAPathIsToldAlsoAfterARestart(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		since := time.Now()
		r.engine.scripts["k"] = func(ctx context.Context, report func(mover.Progress)) error {
			for i := range int64(13) {
				sent := 1e6 * i // 8 Mbit/s, of which a tenth is sent again
				if i > 6 {
					sent += 1e6 * (i - 6) // and then twice as much
				}
				report(mover.Progress{Moved: i, Way: wayOf(since, sent, sent/10, time.Duration(50-i)*time.Millisecond)})
				time.Sleep(second)
			}
			return untilStopped(ctx, report)
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		if all := seenPaths(t, s); len(all) > 0 {
			t.Errorf("before the first transfer: %+v", all)
		}
		via := request("k")
		via.Destination.Via = mover.Relay{Address: "dtn-r.example.org:7444", Site: "R", Mode: mover.CutThrough}
		submit(t, s, via)
		time.Sleep(20 * second)
		synctest.Wait()
		all := seenPaths(t, s)
		if len(all) != 1 {
			t.Fatalf("%+v, want the path to the relay alone", all)
		}
		p := all[0]
		if p.Address != "dtn-r.example.org:7444" || p.MinRTT != 38*time.Millisecond || p.RTT != 39*time.Millisecond || p.Congestion != "cubic" || p.Connections != 2 || !p.Seen.Equal(since.Add(12*second)) {
			t.Errorf("%+v", p)
		}
		if math.Abs(p.Loss-0.1) > 0.001 || math.Abs(p.RecvLimited-0.25) > 0.001 || p.SendLimited != 0 {
			t.Errorf("loss %v, waited for receive windows %v", p.Loss, p.RecvLimited)
		}
		if want := 0.9 * 8e6 * 9 / 5; math.Abs(p.Rate-want) > 1e4 || p.Best != p.Rate { // seconds 5 to 10
			t.Errorf("%v bit/s, at best %v, want %v", p.Rate, p.Best, want)
		}
		if p != p.Bounded() {
			t.Errorf("bounds are not told: %+v", p)
		}
		stop()
		synctest.Wait()
		if again := seenPaths(t, r.server(t)); len(again) != 1 || again[0].Best != p.Best || again[0].MinRTT != p.MinRTT {
			t.Errorf("after a restart %+v, want %+v", again, p)
		}
	})
}

func TestOtherConnectionsAreAnotherBeginning(t *testing.T) {
	s := newSightings(t, roottest.Open(t, t.TempDir()))
	at := time.Now()
	s.add(at, "b", wayOf(at, 1e9, 0, second))
	s.add(at.Add(5*second), "b", wayOf(at.Add(second), 1e6, 0, second))
	s.add(at.Add(10*second), "b", wayOf(at.Add(second), 2e6, 0, second))
	s.add(at.Add(15*second), "b", wayOf(at.Add(second), 1e6, 0, second)) // less than before
	if p := s.all()[0]; p.Best != 8e6/5.0 {
		t.Errorf("%v bit/s at best", p.Best)
	}
}

// TestLinksToOneAddressAreMeasuredEach also after more of them than are kept in mind.
func TestLinksToOneAddressAreMeasuredEach(t *testing.T) {
	s := newSightings(t, roottest.Open(t, t.TempDir()))
	at := time.Now()
	for i := range int64(3 * maxLinks) {
		s.add(at, "b", wayOf(at.Add(time.Duration(i)*time.Minute), 1, 0, second))
	}
	if n := len(s.paths["b"].links); n != maxLinks {
		t.Errorf("%d links are kept in mind", n)
	}
	one, other := at.Add(time.Hour), at.Add(2*time.Hour)
	for i := range int64(13) {
		at := other.Add(time.Duration(i) * second)
		s.add(at, "b", wayOf(one, 1e6*i, 0, second))
		s.add(at, "b", wayOf(other, 5e6*i, 1e6*i, second))
	}
	if p := s.all()[0]; p.Best != 4*8e6 || math.Abs(p.Loss-1.0/6) > 0.01 {
		t.Errorf("%v bit/s at best, loss %v", p.Best, p.Loss)
	}
}

func TestOldLossIsForgiven(t *testing.T) {
	s := newSightings(t, roottest.Open(t, t.TempDir()))
	at := time.Now()
	var sent, resent int64
	tell := func(windows int, loss float64) float64 {
		for range windows {
			at, sent, resent = at.Add(5*second), sent+1e6, resent+int64(1e6*loss)
			s.add(at, "b", wayOf(epoch, sent, resent, second))
		}
		return s.all()[0].Loss
	}
	if bad := tell(10, 0.2); bad < 0.19 {
		t.Errorf("loss %v, want 0.2", bad)
	}
	if good := tell(200, 0); good > 0.01 {
		t.Errorf("after a thousand seconds without any it is still %v", good)
	}
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestThePathsThatWereUsedLastAreKept(t *testing.T) {
	dir := roottest.Open(t, t.TempDir())
	s := newSightings(t, dir)
	for i := range maxPaths + 10 {
		at := epoch.Add(time.Duration(i) * time.Minute)
		for j := range int64(3) {
			s.add(at.Add(time.Duration(j)*5*second), fmt.Sprintf("dtn-%03d", i), wayOf(epoch, 1e6*j, 0, second))
		}
		if i == maxPaths-1 {
			if err := s.save(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if err := s.records.Close(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*sightings{s, newSightings(t, dir)} {
		if all := s.all(); len(all) != maxPaths || all[0].Address != "dtn-010" {
			t.Errorf("%d paths from %s on", len(all), all[0].Address)
		}
	}
}

// TestWhatCouldNotBeStoredIsStoredNext also what is to be forgotten.
func TestWhatCouldNotBeStoredIsStoredNext(t *testing.T) {
	dir := roottest.Open(t, t.TempDir())
	s := newSightings(t, dir)
	probe := func(i int) {
		s.probed(mover.Destination{Address: fmt.Sprintf("dtn-%03d", i)}, mover.Probed{At: epoch.Add(time.Duration(i) * time.Minute)})
	}
	for i := range maxPaths {
		probe(i)
	}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if err := s.records.Close(); err != nil {
		t.Fatal(err)
	}
	probe(maxPaths)
	if err := s.save(); err == nil {
		t.Fatal("what is closed was written")
	}
	s.records = newSightings(t, dir).records
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if err := s.records.Close(); err != nil {
		t.Fatal(err)
	}
	again := newSightings(t, dir)
	if all := again.all(); len(all) != maxPaths || all[0].Address != "dtn-001" || again.paths[fmt.Sprintf("dtn-%03d", maxPaths)] == nil {
		t.Errorf("%d paths from %s on", len(all), all[0].Address)
	}
}

func newSightings(t *testing.T, dir *os.Root) *sightings {
	t.Helper()
	s, err := openSightings(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
