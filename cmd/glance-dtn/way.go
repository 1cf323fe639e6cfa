package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/routing"
)

// chooseWay picks by which way a file goes, from what was seen of the paths.
func chooseWay(j agent.Journey) (agent.Route, error) {
	q := routing.Question{From: j.From, To: j.To, Size: j.Size, Present: wayOf(j.Present)}
	segments, odd := segmentsOf(j.Hops)
	without := ""
	if len(odd) > 0 {
		without = "; left out: " + strings.Join(odd, "; ")
	}
	d, err := routing.Plan(segments, q)
	if err != nil {
		return agent.Route{}, fmt.Errorf("%w%s", err, without)
	}
	r := agent.Route{Why: d.Brief() + without}
	if len(d.Way.Via) > 0 { // one: a question's default
		r.Relay = mover.Relay{Site: d.Way.Via[0], Mode: d.Way.Mode}
	}
	return r, nil
}

// wayOf is a relay as a way; nil: none is known.
func wayOf(r *mover.Relay) *routing.Way {
	switch {
	case r == nil:
		return nil
	case r.Site == "":
		return &routing.Way{}
	}
	return &routing.Way{Via: []string{r.Site}, Mode: r.Mode}
}

// segmentsOf is what was seen of paths as segments of ways. A path carries what it brought
// of late at best, over as many connections as there were. What another site tells that
// makes no sense is left out, and odd says why: nothing else is to suffer from it.
//
// That rate arrived in spite of the loss. What TCP had to send again counts what it has lost
// in bursts, too, to its own slow start and in queues that it has filled, and slows down for
// once: of a loss with which so much cannot have arrived only so much is taken for chance.
func segmentsOf(hops []mover.Hop) (all []routing.Segment, odd []string) {
	for _, h := range hops {
		s := routing.Segment{From: h.From, To: h.Site, Streams: h.Connections, Path: tuning.Path{
			Bandwidth: cmp.Or(h.Recent, h.Best), RTT: h.MinRTT, Loss: h.Loss, Congestion: h.Congestion,
		}}
		if err := s.Validate(); err != nil {
			odd = append(odd, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		for s.Loss > 0 && float64(max(1, s.Streams))*s.LossWindow() < s.BDP() {
			s.Loss /= 2
		}
		all = append(all, s)
	}
	return all, odd
}
