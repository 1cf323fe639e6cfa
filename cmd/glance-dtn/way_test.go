package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/routing"
)

// seenHop is a path of 20 ms on which so many bits per second have arrived.
func seenHop(from, to string, rate float64) mover.Hop {
	return mover.Hop{From: from, SeenPath: mover.SeenPath{
		Site: to, Best: 10 * rate, Recent: rate, MinRTT: 20 * time.Millisecond, Connections: 4, Congestion: "cubic",
	}}
}

func TestWhatIsChosenFromWhatWasSeen(t *testing.T) {
	cut := mover.Relay{Site: "R", Mode: mover.CutThrough}
	slow := []mover.Hop{seenHop("A", "B", 1e7), seenHop("A", "R", 1e9), seenHop("R", "B", 1e9)}
	even := []mover.Hop{seenHop("A", "B", 1e9), seenHop("A", "R", 1.05e9), seenHop("R", "B", 1.05e9)}
	odd := []mover.Hop{seenHop("A", "B", 1e7), seenHop("A", "R", 1e9), seenHop("R", "B", math.Inf(1)), seenHop("R", "", 1), seenHop("S", "B", -1)}
	for what, c := range map[string]struct {
		hops    []mover.Hop
		present *mover.Relay
		want    mover.Relay
		why     string
	}{
		"a slow direct way":             {slow, nil, cut, "cut-through at R, "},
		"no other":                      {slow[:1], nil, mover.Relay{}, "direct, "},
		"the direct way left out":       {slow[1:], nil, cut, "cut-through at R, "},
		"a relay that is hardly better": {even, &mover.Relay{}, mover.Relay{}, "direct"},
		"one that is hardly worse":      {even, &cut, cut, "cut-through at R"},
		"what cannot be":                {odd, nil, mover.Relay{}, "direct, "},
	} {
		r, err := chooseWay(agent.Journey{From: "A", To: "B", Size: 8 << 30, Hops: c.hops, Present: c.present})
		if err != nil || r.Relay != c.want || !strings.HasPrefix(r.Why, c.why) {
			t.Errorf("%s: %+v, %v; want %+v, %q", what, r, err, c.want, c.why)
		}
	}
	r, err := chooseWay(agent.Journey{From: "A", To: "B", Size: 8 << 30, Hops: odd[:3]})
	if err != nil || !strings.Contains(r.Why, `; left out: segment from "R" to "B": bandwidth +Inf`) {
		t.Errorf("of what cannot be it says %q, %v", r.Why, err)
	}
	if _, err := chooseWay(agent.Journey{From: "A", To: "B", Size: 1}); err == nil {
		t.Error("a way is chosen though none was seen")
	}
}

// TestALossOfItsOwnMakingIsNoReasonToLeaveAPath: TCP fills queues, and loses what they
// cannot hold.
func TestALossOfItsOwnMakingIsNoReasonToLeaveAPath(t *testing.T) {
	hops := []mover.Hop{seenHop("A", "B", 9e8), seenHop("A", "R", 6e8), seenHop("R", "B", 6e8)}
	hops[0].Loss, hops[0].MinRTT, hops[0].Connections = 1e-4, 50*time.Millisecond, 8
	if r, err := chooseWay(agent.Journey{From: "A", To: "B", Size: 8 << 30, Hops: hops}); err != nil || r.Relay != (mover.Relay{}) {
		t.Errorf("%+v, %v; want the direct way", r, err)
	}
}

// TestWhatWasSeenIsPredictedAgain: the loss on a path slowed down what was seen there, too,
// and counts little beside that. Where it cannot have, it counts as little.
func TestWhatWasSeenIsPredictedAgain(t *testing.T) {
	const size = 8 << 30
	for _, loss := range []float64{0, 1e-5, 1e-4, 1e-3, 1e-2} {
		for _, streams := range []int{1, 4, 16} {
			h := seenHop("A", "B", 1e9)
			h.Loss, h.Connections, h.MinRTT = loss, streams, 50*time.Millisecond
			by := routing.Segment{From: "A", To: "B", Streams: streams, Path: tuning.Path{Bandwidth: h.Recent, RTT: h.MinRTT, Loss: loss, Congestion: h.Congestion}}
			q := routing.Question{From: "A", To: "B", Size: size}
			d, err := routing.Plan([]routing.Segment{by}, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, seen := range []float64{d.Ways[0].Rate, h.Recent} {
				h.Recent = seen
				segments, _ := segmentsOf([]mover.Hop{h})
				again, err := routing.Plan(segments, q)
				if err != nil {
					t.Fatal(err)
				}
				if got := again.Ways[0].Rate / seen; got < 0.75 || got > 1 {
					t.Errorf("loss %g, %d connections: of the %g that was seen %.2f is predicted", loss, streams, seen, got)
				}
			}
		}
	}
}
