package agent

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// set changes what the site's agent knows of the other site.
func (s *site) set(change func(*PeerSite)) {
	s.w.t.Helper()
	now := *s.agent().settings.Load()
	now.Peers = slices.Clone(now.Peers)
	change(&now.Peers[0])
	if err := s.agent().Reload(now); err != nil {
		s.w.t.Fatal(err)
	}
}

// TestByWayOfARelay has B's agent refuse a relay that it was not told of.
func TestByWayOfARelay(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		via := mover.Relay{Site: "R", Address: "dtn-r.example.org:7444", Mode: mover.CutThrough}
		w.a.set(func(p *PeerSite) { p.Via = via })
		w.b.set(func(p *PeerSite) { p.Relays = []string{"S"} })
		data := bytesOf(200_000)
		id := w.a.upload("debian", data)
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		if j := w.a.await(jobs[0].ID, Verified, Parked); j.State != Parked || !strings.Contains(j.Reason, "by way of site R: set peers: relays there") {
			t.Fatalf("the job is %s: %s", j.State, j.Reason)
		}
		w.b.set(func(p *PeerSite) { p.Relays = []string{"S", "R"} })
		w.retried(jobs[0].ID, id, data)
		w.locked(func() {
			for _, m := range w.a.moves {
				var tk mover.Ticket
				if err := json.Unmarshal([]byte(m.req.Destination.Ticket), &tk); err != nil {
					t.Fatal(err)
				}
				if m.req.Destination.Via != via || tk.Via != "R" || tk.Address != m.req.Destination.Address || tk.From != "A" {
					t.Errorf("the transfer goes by way of %+v, its ticket lets %q send by way of %q", m.req.Destination.Via, tk.From, tk.Via)
				}
			}
			if len(w.a.moves) == 0 {
				t.Error("there was no transfer")
			}
		})
	})
}

// TestHaveNeedsNoRelay offers what is there already by way of a relay that B does not take
// files from: none comes.
func TestHaveNeedsNoRelay(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.upload("debian", bytesOf(1000))
		push := func() Job {
			jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			return w.a.await(jobs[0].ID, Verified, Parked)
		}
		push()
		w.a.set(func(p *PeerSite) { p.Via = mover.Relay{Site: "R", Address: "r:1", Mode: mover.StoreForward} })
		time.Sleep(time.Minute)
		if j := push(); j.State != Verified {
			t.Errorf("the job is %s: %s", j.State, j.Reason)
		}
	})
}
