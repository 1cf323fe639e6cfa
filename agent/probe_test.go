package agent

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// probe ranges over a probe to its end, and returns how often it told how far it was.
func probe(t *testing.T, a *Agent, site string) (told int, path *SitePath, err error) {
	t.Helper()
	for e, failed := range a.Probe(t.Context(), site, 3*time.Second, 1000) {
		switch {
		case path != nil || err != nil:
			t.Errorf("after its end it tells %+v, %v", e, failed)
		case failed != nil:
			err = failed
		case e.Path != nil:
			path = e.Path
		default:
			told++
		}
	}
	return told, path, err
}

func TestAPathIsProbedWithThePeersTicket(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a, b := w.a.agent(), w.b.agent()
		told, path, err := probe(t, a, "B")
		if err != nil || told != 3 || path == nil || path.Address != "dtn-B" || !slices.Equal(path.Sites, []string{"B"}) {
			t.Fatalf("%d, %+v, %v", told, path, err)
		}
		r := w.a.probes[0]
		var tk mover.Ticket
		if err := json.Unmarshal([]byte(r.Destination.Ticket), &tk); err != nil {
			t.Fatal(err)
		}
		if r.Time != 3*time.Second || r.Bytes != 1000 || !tk.Probe || tk.From != "A" || tk.Site != "B" || tk.Via != "" || tk.ID == "" || tk.File != (mover.File{}) {
			t.Errorf("%+v with the ticket %+v", r, tk)
		}
		all, err := a.Paths(t.Context())
		if err != nil || len(all) != 1 || !slices.Equal(all[0].Sites, []string{"B"}) {
			t.Errorf("paths are %+v, %v", all, err)
		}
		if _, _, err := probe(t, a, "X"); !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "which has B") {
			t.Errorf("a site that is no peer: %v", err)
		}
		if _, err := b.ProbeTicket(t.Context(), "X", ""); !errors.Is(err, ErrForbidden) || strings.Contains(err.Error(), "which has") {
			t.Errorf("asked by one that is no peer: %v", err)
		}
		for range a.Probe(t.Context(), "B", 0, 0) {
			break // it is not wanted any more
		}
	})
}

func TestAProbeThroughARelayIsThePeersToAllow(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		a, b := w.a.agent(), w.b.agent()
		via := mover.Relay{Site: "R", Address: "dtn-r.example.org:7444", Mode: mover.CutThrough}
		change := func(a *Agent, do func(*PeerSite)) {
			s := *a.settings.Load()
			s.Peers = slices.Clone(s.Peers)
			do(&s.Peers[0])
			if err := a.Reload(s); err != nil {
				t.Fatal(err)
			}
		}
		change(a, func(p *PeerSite) { p.Via = via })
		if _, _, err := probe(t, a, "B"); !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "peers: relays") {
			t.Errorf("%v", err)
		}
		change(b, func(p *PeerSite) { p.Relays = []string{"R"} })
		_, path, err := probe(t, a, "B")
		if err != nil || path.Address != via.Address || !slices.Equal(path.Sites, []string{"B"}) {
			t.Fatalf("%+v, %v", path, err)
		}
		var tk mover.Ticket
		if err := json.Unmarshal([]byte(w.a.probes[0].Destination.Ticket), &tk); err != nil || tk.Via != "R" || w.a.probes[0].Destination.Via != via {
			t.Errorf("%+v, %v", w.a.probes[0], err)
		}
	})
}

// TestWhereTheAgentChoosesAllPathsAreProbed measures what it needs for a choice; one that
// cannot be measured does not keep the others from it.
func TestWhereTheAgentChoosesAllPathsAreProbed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(0, 0, 0)
		w.locked(func() { w.a.seen = nil })
		probes := func() (addresses []string, failed error) {
			for e, err := range w.a.agent().Probe(t.Context(), "B", time.Second, 1000) {
				if failed != nil {
					t.Errorf("after its end it tells %+v, %v", e, err)
				}
				failed = err
				if e.Path != nil {
					addresses = append(addresses, e.Path.Address)
					if !slices.Equal(e.Path.Sites, []string{"B"}) {
						t.Errorf("%+v", e.Path)
					}
				}
			}
			return addresses, failed
		}
		if got, err := probes(); err != nil || !slices.Equal(got, []string{"dtn-B", relayR.Address}) {
			t.Fatalf("%v, %v", got, err)
		}
		for i, via := range []mover.Relay{{}, {Site: "R", Address: relayR.Address, Mode: mover.CutThrough}} {
			var tk mover.Ticket
			d := w.a.probes[i].Destination
			if err := json.Unmarshal([]byte(d.Ticket), &tk); err != nil || tk.Via != via.Site || d.Via != via {
				t.Errorf("%+v, %v", d, err)
			}
		}
		all, err := w.a.agent().Paths(t.Context())
		if err != nil || len(all) != 2 || !slices.Equal(all[0].Sites, []string{"B"}) || !slices.Equal(all[1].Sites, []string{"B"}) {
			t.Errorf("paths are %+v, %v", all, err)
		}
		w.b.set(func(p *PeerSite) { p.Relays = nil })
		if got, err := probes(); !errors.Is(err, ErrForbidden) || !slices.Equal(got, []string{"dtn-B"}) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestAGridFTPServerIsNotProbed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.address = "gsiftp://dtn-b.example.org:2811/export/glance" })
		_, _, err := probe(t, w.a.agent(), "B")
		if !failure.IsPermanent(err) || !strings.Contains(err.Error(), "cannot be probed") || len(w.a.probes) > 0 {
			t.Errorf("%v", err)
		}
	})
}
