package dtn

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// scout is an engine that asks a relay.
type scout struct {
	*fakeEngine
	asked []mover.Relay
	hops  []mover.Hop
	err   error
}

func (s *scout) Onward(_ context.Context, r mover.Relay) ([]mover.Hop, error) {
	s.asked = append(s.asked, r)
	return s.hops, s.err
}

// TestAnAgentAsksARelayThroughItsOwnDTN holds what is asked, told, and said of what fails.
func TestAnAgentAsksARelayThroughItsOwnDTN(t *testing.T) {
	r := newRig(t)
	const path = "/v1/relays/R/paths?address=dtn-r.example.org:7444"
	if a := ask(t, r.server(t), "GET", path, nil); a.status != http.StatusUnprocessableEntity {
		t.Errorf("without an engine that can ask: %d %s", a.status, a.body)
	}
	e := &scout{fakeEngine: r.engine, hops: []mover.Hop{{From: "R", SeenPath: mover.SeenPath{Site: "B", Best: 1e9}}}}
	r.opt.Engines = map[string]mover.Engine{mover.Stream: e}
	s := r.server(t)
	var hops []mover.Hop
	ask(t, s, "GET", path, nil).decode(t, &hops)
	if len(hops) != 1 || hops[0] != e.hops[0] {
		t.Errorf("told are %+v", hops)
	}
	if len(e.asked) != 1 || e.asked[0].Site != "R" || e.asked[0].Address != "dtn-r.example.org:7444" {
		t.Errorf("asked is %+v", e.asked)
	}
	e.hops, e.err = nil, mover.Coded(mover.CodeAuth, errors.New("this DTN is no relay"))
	if a := ask(t, s, "GET", path, nil); a.status != http.StatusBadGateway || !strings.Contains(a.body, "is no relay") || !strings.Contains(a.body, string(mover.CodeAuth)) {
		t.Errorf("a relay that refuses: %d %s", a.status, a.body)
	}
	e.err = nil
	if a := ask(t, s, "GET", path, nil); a.status != http.StatusOK || strings.TrimSpace(a.body) != "[]" {
		t.Errorf("a relay that knows nothing: %d %s", a.status, a.body)
	}
	for _, wrong := range []string{"gsiftp://host/path", "nothing"} {
		if a := ask(t, s, "GET", "/v1/relays/R/paths?address="+wrong, nil); a.status != http.StatusUnprocessableEntity {
			t.Errorf("address %s: %d %s", wrong, a.status, a.body)
		}
	}
}

// TestWhatPassesOnIsSeenToo has a path's site come from the connections, and stay over a
// restart.
func TestWhatPassesOnIsSeenToo(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		stop := run(t, s)
		since := time.Now()
		for i := range int64(3) {
			w := wayOf(since, 1e6*i, 0, second)
			w.Site = "B"
			s.Sighted("dtn-b.example.org:7444", w)
			time.Sleep(sightEvery)
		}
		if all := s.Seen(); len(all) != 1 || all[0].Site != "B" || all[0].Best == 0 {
			t.Errorf("seen is %+v", all)
		}
		stop()
		synctest.Wait()
		if all := seenPaths(t, r.server(t)); len(all) != 1 || all[0].Site != "B" {
			t.Errorf("after a restart %+v", all)
		}
	})
}
