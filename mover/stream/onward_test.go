package stream

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestARelayTellsASenderOfItsOwnRoutesAlone asks what a relay knows of its paths: those
// over which it passes the asker's files on, without addresses, and no others.
func TestARelayTellsASenderOfItsOwnRoutesAlone(t *testing.T) {
	r := prepareRelay(t, newRigIn(t, mover.Private), mover.Private, mover.CutThrough)
	seen := time.Now().UTC().Add(-time.Hour)
	r.opts.Seen = func() []mover.SeenPath {
		return []mover.SeenPath{
			{Site: "B", Address: "b:1", Since: seen.Add(-time.Hour), Seen: seen, Best: 1e9, MinRTT: time.Second, Loss: 0.01},
			{Site: "C", Address: "c:1", Seen: seen, Best: 2e9},
			{Site: "A", Address: "a:1", Seen: seen, Best: 3e9},
			{Address: "nobody:1", Seen: seen, Best: 4e9},
		}
	}
	r.startRelay(t, "127.0.0.1:0")
	e := r.rig.rig.Engine.(viaRelay).Engine.(*Engine)
	ask := func() ([]mover.Hop, error) {
		return e.Onward(t.Context(), mover.Relay{Site: r.via.Site, Address: r.via.Address})
	}
	want := mover.Hop{From: "R", SeenPath: mover.SeenPath{Site: "B", Since: seen, Seen: seen, Best: 1e9, MinRTT: time.Second, Loss: 0.01}}
	if hops, err := ask(); err != nil || len(hops) != 1 || hops[0] != want {
		t.Errorf("told are %+v, %v; want %+v alone", hops, err, want)
	}
	r.allow.Store(false)
	if hops, err := ask(); err != nil || len(hops) != 0 {
		t.Errorf("a site without a route is told %+v, %v", hops, err)
	}
	r.via.Site = "B"
	if hops, err := ask(); mover.CodeOf(err) != mover.CodeAuth || !strings.Contains(err.Error(), "is the DTN of site R, not of site B") {
		t.Errorf("what another site's DTN says is taken for the relay's: %+v, %v", hops, err)
	}
	r.via = mover.Relay{Site: "B", Address: r.rig.rig.Address}
	if hops, err := ask(); mover.CodeOf(err) != mover.CodeAuth || !strings.Contains(err.Error(), "is no relay") {
		t.Errorf("what is no relay tells %+v, %v", hops, err)
	}
	r.via = mover.Relay{Site: "R", Address: "callback://R"}
	if _, err := ask(); err == nil {
		t.Error("a relay is asked that takes no connections, and so can be none")
	}
}

// TestARelayThatTellsTooMuchIsNotHeard has one tell more than any DTN knows.
func TestARelayThatTellsTooMuchIsNotHeard(t *testing.T) {
	r := prepareRelay(t, newRigIn(t, mover.Private), mover.Private, mover.CutThrough)
	var n atomic.Int64
	r.opts.Seen = func() []mover.SeenPath {
		return slices.Repeat([]mover.SeenPath{{Site: "B", Best: 1e9}}, int(n.Load()))
	}
	r.startRelay(t, "127.0.0.1:0")
	e := r.rig.rig.Engine.(viaRelay).Engine.(*Engine)
	for want := range 2 {
		n.Store(int64(want))
		if hops, err := e.Onward(t.Context(), r.via); err != nil || len(hops) != want {
			t.Errorf("of %d paths %d are told, %v", want, len(hops), err)
		}
	}
	n.Store(2000)
	if hops, err := e.Onward(t.Context(), r.via); err == nil || !strings.Contains(err.Error(), "bytes of JSON where at most") {
		t.Errorf("%d are told, %v", len(hops), err)
	}
}

// TestWhatPassesSeesThePathOn has a relay hear of the path to the destination from the file
// that it passes on, by the site whose certificate is there.
func TestWhatPassesSeesThePathOn(t *testing.T) {
	r := prepareRelay(t, newRigIn(t, mover.Private), mover.Private, mover.CutThrough)
	var mu sync.Mutex
	sites := map[string]bool{}
	r.opts.Sighted = func(address string, w mover.Way) {
		mu.Lock()
		defer mu.Unlock()
		sites[address+" "+w.Site] = true
	}
	r.startRelay(t, "127.0.0.1:0")
	var own string
	err := r.rig.rig.Engine.Move(t.Context(), r.request(t, r.stage(t, "image", 3*mover.BlockSize)), func(p mover.Progress) { own = p.Way.Site })
	if err != nil {
		t.Fatal(err)
	}
	r.stopR()
	mu.Lock()
	defer mu.Unlock()
	if want := r.rig.rig.Address + " B"; len(sites) != 1 || !sites[want] {
		t.Errorf("the relay has seen %v, want %q", sites, want)
	}
	if own != "R" {
		t.Errorf("the sender's connections lead to site %q, want R", own)
	}
}

// TestAskingLeavesNoLink holds that neither end keeps anything of a question.
func TestAskingLeavesNoLink(t *testing.T) {
	r := newRelayRig(t, mover.Private, mover.CutThrough)
	e := r.engine(t, r.rig.rig.Source, r.issue(t, "A", pki.DTN))
	if _, err := e.Onward(t.Context(), r.via); err != nil {
		t.Fatal(err)
	}
	if len(e.links) != 0 {
		t.Errorf("the engine keeps %d links", len(e.links))
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.relay.mu.Lock()
		n := len(r.relay.links)
		r.relay.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the relay keeps %d links", n)
		}
	}
}
