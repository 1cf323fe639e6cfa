package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// By which way a job's file goes to a peer that has relays to choose from is decided when
// its move begins, and whenever that begins anew: from what this site's DTN has seen of the
// paths to the peer and to each relay, and each relay of its own path to the peer. A way that
// failed is left out for a while, the present one stays unless another is worth a change
// (Options.Choose), and what was not measured is not guessed: then files go straight. What was
// seen last counts however long ago that is: else the present way, the only one that goes on
// being measured, would be all that is known after a while.

// Bounds of what is believed of ways.
const (
	surveyFor  = 30 * time.Second // what was told of paths counts for the next files
	muteFor    = 2 * time.Minute  // a relay that did not tell is not asked again, so that not every file waits for that
	setBackMin = time.Minute      // a way that has failed is left out, first
	setBackMax = 6 * time.Hour    // and at most, where it fails again and again
)

// Route is by which way a job's file goes to the peer's DTN.
type Route struct {
	Relay mover.Relay `json:"relay,omitzero" doc:"the DTN that passes the file on; left out: it goes straight"`
	Why   string      `json:"why,omitempty" doc:"where it was chosen from several: which, and why"`
	Round int         `json:"round,omitempty" doc:"the job's, for which it was chosen"`
}

// Journey is a file that is to go to another site, and what was measured of the ways there.
type Journey struct {
	From, To string
	Size     int64
	Hops     []mover.Hop  // of ways that may be taken, one at most for each two sites
	Present  *mover.Relay // by which files went last, the zero Relay: straight; nil: by none yet
}

// Ways is what is known of the ways to a site.
type Ways struct {
	From    string       `json:"from"`
	To      string       `json:"to"`
	Chosen  bool         `json:"chosen" doc:"the agent chooses for each file; else its configuration says the way"`
	Hops    []mover.Hop  `json:"hops" doc:"what was measured of ways that may be taken"`
	Unknown []string     `json:"unknown" doc:"ways that cannot be taken or predicted now, and why"`
	Present *mover.Relay `json:"present,omitempty" doc:"by which files went last; of one that went straight, an empty one"`
	Size    int64        `json:"size" doc:"bytes of the file that was asked for"`
	Route   Route        `json:"route,omitzero" doc:"that such a file would take now"`
}

// Ways tells what is known now of the ways to a site, and which one a file would take: one
// of that size or, if one is named by its id or unique name, an image. How the peer takes its
// files it says when they are offered: those to one that takes them by GridFTP go straight,
// whatever is told here. ErrNoPeer, ErrNoImage, ErrAmbiguous.
func (a *Agent) Ways(ctx context.Context, to, image string, size int64) (Ways, error) {
	p, err := a.named(to)
	if err != nil {
		return Ways{}, err
	}
	w := Ways{From: a.Site, To: to, Chosen: len(p.Among) > 0, Hops: []mover.Hop{}, Unknown: []string{}, Size: size}
	if image != "" {
		img, err := a.find(ctx, image)
		if err != nil {
			return Ways{}, err
		}
		w.Size = img.Size
	}
	s, err := a.survey(ctx, p, 0)
	if err != nil {
		return Ways{}, err
	}
	w.Hops = append(w.Hops, s.hops(true)...)
	for _, l := range append([]leg{s.direct}, s.relays...) {
		w.Unknown = append(w.Unknown, l.why...)
		if l.failure != "" {
			w.Unknown[len(w.Unknown)-1] += ": " + l.failure
		}
	}
	w.Present = a.present(p.Name)
	if w.Chosen {
		w.Route = a.pick(s, p, w.Size, w.Present)
	} else {
		w.Route, w.Present = Route{Relay: p.Via}, &p.Via
	}
	return w, nil
}

// leg is a way as far as it was measured. It may be taken where there is nothing against it.
type leg struct {
	relay   mover.Relay // zero: straight
	hops    []mover.Hop
	why     []string // it cannot be taken or predicted
	failure string   // of late: the last of why
}

// survey is what is known of all ways to a peer.
type survey struct {
	direct leg
	relays []leg
}

// hops are those of the ways that may be taken, and of the direct one if it is wanted.
func (s survey) hops(direct bool) []mover.Hop {
	var all []mover.Hop
	if direct && len(s.direct.why) == 0 {
		all = slices.Clone(s.direct.hops)
	}
	for _, r := range s.relays {
		if len(r.why) == 0 {
			all = append(all, r.hops...)
		}
	}
	return all
}

// survey looks at the ways to a peer. What was asked for no longer than old ago need not be
// asked again. The error is that of this site's DTN.
func (a *Agent) survey(ctx context.Context, p PeerSite, old time.Duration) (s survey, err error) {
	own, err := a.seen(ctx, mover.Relay{}, old)
	if err != nil {
		return s, err
	}
	s.direct.add(own, a.Site, p.Name)
	relays := p.Among
	if len(relays) == 0 && p.Via != (mover.Relay{}) {
		relays = []mover.Relay{p.Via}
	}
	s.relays = make([]leg, len(relays))
	var asking sync.WaitGroup
	for i, r := range relays {
		asking.Go(func() {
			l := leg{relay: r}
			l.add(own, a.Site, r.Site)
			onward, err := a.seen(ctx, r, old)
			if err != nil {
				l.why = append(l.why, fmt.Sprintf("the DTN of site %s cannot be asked: %s", r.Site, plain(err)))
			} else {
				l.add(onward, r.Site, p.Name)
			}
			s.relays[i] = l
		})
	}
	asking.Wait()
	if len(p.Among) == 0 { // its way is taken whatever has failed
		return s, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.direct.recall(a.trails[p.Name])
	for i := range s.relays {
		s.relays[i].recall(a.trails[p.Name])
	}
	return s, ctx.Err()
}

// plain is what a DTN says of an error, without the call.
func plain(err error) string {
	if p, ok := errors.AsType[*mover.Problem](err); ok {
		return p.Detail
	}
	return err.Error()
}

// add adds the hop between two sites, or why there is none.
func (l *leg) add(seen []mover.Hop, from, to string) {
	var last mover.Hop
	for _, h := range seen {
		if h.Site == to && h.Seen.After(last.Seen) {
			last = h
		}
	}
	if last.Best <= 0 || last.MinRTT <= 0 {
		l.why = append(l.why, fmt.Sprintf("%s → %s is not measured", from, to))
		return
	}
	last.From = from
	l.hops = append(l.hops, last)
}

// recall adds that the way has failed of late.
func (l *leg) recall(t *trail) {
	if t == nil {
		return
	}
	if f, ok := t.failed[l.relay.Site]; ok && time.Now().Before(f.until) {
		name := "the direct way"
		if l.relay.Site != "" {
			name = "the way through " + l.relay.Site
		}
		l.failure = f.why
		l.why = append(l.why, fmt.Sprintf("%s has failed and is left out for %s", name, mover.Span(time.Until(f.until))))
	}
}

// asked is what a DTN has told of the paths that it has seen.
type asked struct {
	at   time.Time
	hops []mover.Hop
	err  error
}

// seen asks a relay, or with the zero Relay this site's DTN, what it has seen of its paths,
// unless it was asked no longer than old ago, or a relay just in vain; 0: in any case. One
// asks at a time, so that jobs that begin together have one answer.
func (a *Agent) seen(ctx context.Context, r mover.Relay, old time.Duration) ([]mover.Hop, error) {
	r.Mode = ""
	a.mu.Lock()
	turn := a.asking[r]
	if turn == nil {
		turn = make(chan struct{}, 1)
		a.asking[r] = turn
	}
	a.mu.Unlock()
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	a.mu.Lock()
	known, ok := a.asked[r]
	a.mu.Unlock()
	if ok && (time.Since(known.at) < old || old > 0 && known.err != nil && time.Since(known.at) < muteFor) {
		return known.hops, known.err
	}
	now := asked{}
	if r == (mover.Relay{}) {
		var paths []mover.SeenPath
		paths, now.err = a.Mover.Paths(ctx)
		for _, p := range paths {
			now.hops = append(now.hops, mover.Hop{SeenPath: p})
		}
	} else {
		now.hops, now.err = a.Mover.Onward(ctx, r)
	}
	if now.err != nil && (ctx.Err() != nil || r == (mover.Relay{})) { // without the own DTN nothing moves
		return nil, now.err
	}
	now.at = time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.asked, func(_ mover.Relay, o asked) bool { return time.Since(o.at) > muteFor })
	a.asked[r] = now
	return now.hops, now.err
}

// trail is what this agent remembers of the ways to a peer. It is not durable: after a
// restart each way may be tried once more.
type trail struct {
	last   *mover.Relay
	failed map[string]setback // by the relay's site; empty: the direct way
}

// setback is a way's failure.
type setback struct {
	until time.Time
	wait  time.Duration
	why   string
}

// trail returns what is remembered of the ways to a peer. The caller holds mu.
func (a *Agent) trail(peer string) *trail {
	t := a.trails[peer]
	if t == nil {
		t = &trail{failed: map[string]setback{}}
		a.trails[peer] = t
	}
	return t
}

// present is the way that files to a peer went last.
func (a *Agent) present(peer string) *mover.Relay {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.trails[peer]; t != nil {
		return t.last
	}
	return nil
}

// went takes note that a file has arrived by the way. If that one had failed, too, what kept
// files from arriving may not have been the ways: then each may be tried again.
func (a *Agent) went(peer string, by mover.Relay) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.trail(peer)
	if _, failed := t.failed[by.Site]; failed {
		clear(t.failed)
	}
}

// setBack leaves a way out for a while, for longer each time that it has failed since a
// file arrived by it, and returns for how long.
func (a *Agent) setBack(peer string, by mover.Relay, why string) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.trail(peer)
	wait := setBackMin
	if old, ok := t.failed[by.Site]; ok {
		wait = old.wait
		if time.Now().After(old.until) { // and not another file of the same time
			wait = min(2*wait, setBackMax)
		}
	}
	t.failed[by.Site] = setback{time.Now().Add(wait), wait, why}
	return wait
}

// choose returns by which way the job's file goes now, one of those that the peer has to
// choose from. The error is that of this site's DTN, which does not answer.
func (a *Agent) choose(ctx context.Context, j Job, p PeerSite) (Route, error) {
	if engine := mover.EngineFor(j.Offer.Address); engine != mover.Stream {
		return straight(fmt.Sprintf("site %s takes files by %s, which goes through no relay", p.Name, engine)), nil
	}
	s, err := a.survey(ctx, p, surveyFor)
	if err != nil {
		return Route{}, fmt.Errorf("ask the DTN of site %s for its paths: %w", a.Site, err)
	}
	present := a.present(p.Name)
	if j.Route.Why != "" { // of an earlier round: what is on the way there is of use there alone
		present = &j.Route.Relay
	}
	return a.pick(s, p, j.Image.Size, present), nil
}

func straight(why string) Route { return Route{Why: "direct: " + why} }

// pick picks one of the ways to a peer for a file of a size.
func (a *Agent) pick(s survey, p PeerSite, size int64, present *mover.Relay) Route {
	var against []string
	for _, r := range s.relays {
		against = append(against, r.why...)
	}
	switch {
	case len(against) > 0 && len(s.hops(false)) == 0:
		return straight(strings.Join(against, "; "))
	case len(s.direct.why) > 0 && s.direct.failure == "":
		return straight(strings.Join(s.direct.why, "; "))
	}
	w, err := a.Choose(Journey{From: a.Site, To: p.Name, Size: size, Hops: s.hops(true), Present: present})
	if err != nil {
		return straight(err.Error())
	}
	if s.direct.failure != "" {
		w.Why += "; " + strings.Join(s.direct.why, "; ")
	}
	if w.Relay == (mover.Relay{}) {
		return w
	}
	i := slices.IndexFunc(p.Among, func(r mover.Relay) bool { return r.Site == w.Relay.Site })
	if i < 0 {
		return straight(fmt.Sprintf("site %s, which was chosen, is no relay of peer %s", w.Relay.Site, p.Name))
	}
	w.Relay.Address = p.Among[i].Address
	return w
}

// takeRoute decides by which way the job's file goes, and gets the ticket for that.
func (a *Agent) takeRoute(ctx context.Context, j Job, p PeerSite) (Job, error) {
	w, err := a.choose(ctx, j, p)
	if err != nil {
		return j, err
	}
	if w.Relay != (mover.Relay{}) {
		g, err := p.Peer.Offer(ctx, Offer{Image: j.Image, Via: w.Relay.Site, Priority: j.Priority})
		switch {
		case err != nil:
			return j, fmt.Errorf("offer to site %s by way of site %s: %w", j.Peer, w.Relay.Site, err)
		case g.Verdict == Refuse: // the way, if it takes the image straight
			why := fmt.Sprintf("site %s refuses: %s", j.Peer, g.Reason)
			if g, err = p.Peer.Offer(ctx, Offer{Image: j.Image, Priority: j.Priority}); err != nil {
				return j, fmt.Errorf("offer to site %s: %w", j.Peer, err)
			}
			if g.Verdict != Accept || g.Ticket == "" {
				return granted(j, g)
			}
			a.setBack(j.Peer, w.Relay, why)
			w = straight(fmt.Sprintf("asked for a way through %s, %s", w.Relay.Site, why))
			j.Offer, j.DeliverAs = g, g.ImageID
		case g.Verdict != Accept || g.Ticket == "":
			return granted(j, g)
		default:
			j.Offer, j.DeliverAs = g, g.ImageID
		}
	}
	a.mu.Lock()
	a.trail(p.Name).last = new(w.Relay)
	a.mu.Unlock()
	if w.Why != j.Route.Why {
		a.JobLog.Info("a job's way", "job", j.ID, "image", j.Image.ID, "name", j.Image.Name, "site", j.Peer, "note", w.Why)
	}
	j.Route, j.Route.Round = w, j.Round
	return j, nil
}

// blame leaves the way out by which a transfer has failed, if it was chosen and may be the
// reason, and says so. other tells that the next try goes by another one, whatever the code.
func (a *Agent) blame(j Job, st mover.Status, err error) (_ error, other bool) {
	relayed := j.Route.Relay != mover.Relay{}
	switch {
	case j.Route.Why == "", st.Code == mover.CodeSource, !relayed && st.Code != mover.CodeOther:
		return err, false
	case !relayed:
		a.setBack(j.Peer, j.Route.Relay, st.Error)
		return err, false
	}
	wait := a.setBack(j.Peer, j.Route.Relay, st.Error)
	return fmt.Errorf("by way of site %s: %w; that way is left out for %s", j.Route.Relay.Site, err, mover.Span(wait)), true
}
