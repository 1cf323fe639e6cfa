package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"

	"github.com/glance-dtn/glance-dtn/mover"
)

// A sender that may choose between a relay and the direct way asks the relay, before it
// opens anything there, what that one has seen of its ways on. It is told by the answer to a
// hello, and of the sites alone to which the relay passes the asker's files on.

var _ mover.Scout = (*Engine)(nil)

// Onward implements mover.Scout. It opens a connection of its own, which carries nothing.
func (e *Engine) Onward(ctx context.Context, r mover.Relay) ([]mover.Hop, error) {
	r.Mode = mover.CutThrough
	if err := r.Validate(mover.Stream); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &link{
		engine: e, key: linkKey{r.Address, cmp.Or(e.Protection, mover.Private), r.Site}, stall: cmp.Or(e.Stall, DefaultStall),
		name: rand.Text(), asks: true,
	}
	c, _, _, err := l.dial(ctx, false)
	if err != nil {
		return nil, err
	}
	cut(c)
	for i := range l.onward {
		l.onward[i].From = r.Site
	}
	return l.onward, nil
}

// onward is what a sender of a site is told, in JSON.
func (y *relay) onward(from string) json.RawMessage {
	if y.Seen == nil {
		return nil
	}
	var hops []mover.Hop
	for _, p := range y.Seen() {
		if p.Site == "" || !y.Allow(from, p.Site) {
			continue
		}
		p.Address, p.Since, p.Probe = "", p.Seen, nil // where that DTN is, and what else is known of it, is not the asker's
		hops = append(hops, mover.Hop{From: y.Site, SeenPath: p})
	}
	told, err := json.Marshal(hops)
	if err != nil {
		return nil // a number that JSON has not: nothing is known
	}
	return told
}

// sighted takes what a passage sees of its way on.
func (p *passage) sighted(g mover.Progress) {
	if s := p.relay.Sighted; s != nil {
		s(p.ticket.Address, g.Way)
	}
}
