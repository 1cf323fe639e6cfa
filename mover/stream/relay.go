package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// A relay takes a file in as any receiver does, block by block, each proven and noted in
// a journal, and passes it on over a link of its own. It answers for nothing: the sender's
// Move ends when the destination says so, and the destination finds the whole to be right.
// So what a relay has of a file is never synced and never gets a name.
//
// Which blocks are at the destination only that knows. A relay asks it before it answers
// the sender, and whatever was killed in between, no more is sent again on either hop
// than was in flight there.

// DefaultRelayKeep is how long a relay keeps what it has of a file that nobody brings, or
// that cannot go on: longer than a weekend, through which a limit may hold it.
const DefaultRelayKeep = 72 * time.Hour

// relayRest is how long it keeps it though another file needs the room.
const relayRest = 2 * time.Hour

// sweepEvery is how often, at least, it is made to keep nothing for longer.
const sweepEvery = 10 * time.Minute

// cutAhead is how many blocks a file may be here, cut through, that its destination does
// not have yet: as much as a PCP may have in flight on the one hop, and to even out the two.
const cutAhead = 1024

// RelayOptions are what a relay needs to know. All but Sighted, Seen and Keep are needed.
type RelayOptions struct {
	Site   string   // this DTN's
	Box    *os.Root // what is on its way; of the relay alone
	State  *os.Root // its journals; of the relay alone
	Engine *Engine  // passes it on

	// Check returns the ticket in token if the agent of the site that it names signed it.
	Check func(token string) (mover.Ticket, error)

	// Allow reports whether files of the one site may pass to the other.
	Allow func(from, to string) bool

	// Sighted is told what a file that passes sees of the path to an address; nil: nothing
	// is. Seen tells what this DTN has seen of its paths; nil: it does not.
	Sighted func(address string, w mover.Way)
	Seen    func() []mover.SeenPath

	Space int64         // that all files take at once, bytes
	Keep  time.Duration // 0: DefaultRelayKeep

	ahead uint32 // 0: cutAhead
}

// relay is the part of a Receiver that passes files on.
type relay struct {
	RelayOptions
	receiver *Receiver // whose links bring the files
	box      *Receiver // knows the files in Box, and serves nobody

	mu     sync.Mutex // guards what follows
	passes map[string]*passage
	given  map[string]int64 // space, by the name in the box
	rests  map[string]rest  // files without a passage

	counting sync.Mutex // guards what follows; not held while the disk is waited for, as mu is
	tally    map[route]mover.Passed
}

// rest is since when a file is not on its way, and why; what a restart leaves has no reason.
type rest struct {
	since time.Time
	why   error
}

func newRelay(r *Receiver, o RelayOptions) (*relay, error) {
	box, err := NewReceiver(o.Box, o.State, ReceiverOptions{})
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	o.Keep, o.ahead = cmp.Or(o.Keep, DefaultRelayKeep), cmp.Or(o.ahead, cutAhead)
	y := &relay{
		RelayOptions: o, receiver: r, box: box,
		passes: map[string]*passage{}, given: map[string]int64{}, rests: map[string]rest{}, tally: map[route]mover.Passed{},
	}
	for _, a := range box.list() {
		y.own(a)
		y.given[a.File.Name], y.rests[a.File.Name] = y.need(a.record), rest{since: time.Now()}
	}
	return y, nil
}

// own makes an arrival in the box one that is passed on. The caller has it alone.
func (y *relay) own(a *arrival) {
	a.relayed, a.small, a.let = true, false, newBitmap(a.blocks)
	a.spawn, a.complete = y.receiver.work.Go, func(_ context.Context, a *arrival) {
		a.spawn(func() { y.whole(a) })
	}
}

// window is how many blocks a file that is cut through may be ahead.
func (y *relay) window() uint32 {
	return max(1, uint32(min(int64(y.ahead), y.Space/4/mover.BlockSize)))
}

// need is the space that a file in the box may take.
func (y *relay) need(r record) int64 {
	if r.Through {
		return min(r.File.Size, blockStart(y.window()))
	}
	return r.File.Size
}

// left is the space that the files on their way may still take.
func (y *relay) left() int64 {
	n := y.Space
	for _, a := range y.box.list() {
		if info, err := y.Box.Lstat(a.part); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n -= st.Blocks * 512
			}
		}
	}
	return max(0, n)
}

// admit makes a passage of what the sender of a site has announced, or tells why not.
func (y *relay) admit(from string, o opening) (*passage, error) {
	if y == nil {
		return nil, errNoRelay
	}
	t, err := y.Check(o.Ticket)
	if err != nil {
		return nil, ticketError(err)
	}
	if t.From != from {
		return nil, mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: it lets site %q send, the sender is of site %q", t.From, from))
	}
	if err := checkTicket(t, from, o); err != nil {
		return nil, err
	}
	if err := y.permits(from, t); err != nil {
		return nil, err
	}
	if err := o.Priority.Validate(); err != nil {
		return nil, err
	}
	if err := (mover.Relay{Site: y.Site, Address: t.Address, Mode: o.Relay}).Validate(mover.Stream); err != nil {
		return nil, err
	}
	if o.Relay == mover.StoreForward && t.File.Digest.IsZero() {
		return nil, mover.Coded(mover.CodeTicket, fmt.Errorf("%s has no digest that site %s could find to be right before it passes the file on; see mode of the sender's via", t.File.Name, y.Site))
	}
	p := &passage{relay: y, opening: o, ticket: t, done: make(chan struct{}), woken: make(chan struct{}, 1), since: time.Now().UTC()}
	p.file = t.File
	p.file.Name = nameAtRelay(t)
	return p, checkName(p.file.Name)
}

var errNoRelay = mover.Coded(mover.CodeAuth, errors.New("this DTN is no relay; see relay in its configuration"))

// permits reports a ticket whose site gets nothing from that site by way of this relay.
func (y *relay) permits(from string, t mover.Ticket) error {
	if t.Via != y.Site {
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: it does not let site %q pass the file on to site %q; the agents of both ends name the relay, see via and relays of their peers", y.Site, t.Site))
	}
	if !y.Allow(from, t.Site) {
		return mover.Coded(mover.CodeAuth, fmt.Errorf("the DTN of site %s passes nothing on from site %s to site %s; see relay.routes in its configuration", y.Site, from, t.Site))
	}
	return nil
}

// begin makes p the only passage of its file: another one is of a link that the sender
// has given up. It returns false if p ends before that one has: what there is of the file
// is that one's still, and worthless if p says so.
func (y *relay) begin(p *passage) bool {
	for {
		y.mu.Lock()
		old := y.passes[p.file.Name]
		if old == nil {
			y.passes[p.file.Name] = p
			delete(y.rests, p.file.Name)
		}
		y.mu.Unlock()
		if old == nil {
			return true
		}
		old.cancel(errOver)
		select {
		case <-old.done:
		case <-p.ctx.Done():
			if p.drops() {
				y.giveUp(p.file.Name, old)
			}
			return false
		}
	}
}

// giveUp has what there is of a file removed: by old when it ends, or now if it has ended and
// no other passage has begun.
func (y *relay) giveUp(name string, old *passage) {
	y.mu.Lock()
	defer y.mu.Unlock()
	switch y.passes[name] {
	case old:
		old.abandon(true, errOver)
	case nil:
		if err := y.remove(name); err != nil {
			y.receiver.log.Warn("what is no more needed of a file on its way cannot be removed", "file", name, "err", err)
		}
	}
}

// end takes note that p is over, for the reason why, and removes what came of it if nobody
// needs that, p's sender included.
func (y *relay) end(p *passage, why error, remove bool) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.passes, p.file.Name)
	if !remove && !p.drops() {
		if y.box.lookup(p.file.Name) != nil {
			y.rests[p.file.Name] = rest{time.Now(), why}
		} else {
			delete(y.given, p.file.Name)
		}
		return nil
	}
	return y.remove(p.file.Name)
}

// remove removes what there is of a file. The caller holds mu.
func (y *relay) remove(name string) error {
	y.box.admin.Lock()
	defer y.box.admin.Unlock()
	if a := y.box.lookup(name); a != nil {
		if err := y.box.discard(a); err != nil {
			return err
		}
	}
	delete(y.given, name)
	delete(y.rests, name)
	return nil
}

// sweep removes now and then what nobody has brought for long, until ctx is done.
func (y *relay) sweep(ctx context.Context) {
	tick := time.NewTicker(max(min(y.Keep/8, sweepEvery), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			y.forget(now)
		}
	}
}

func (y *relay) forget(now time.Time) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for name, r := range maps.Clone(y.rests) {
		if now.Sub(r.since) < y.Keep {
			continue
		}
		err := y.remove(name)
		y.receiver.log.Info("what nobody brings is not kept for the next site", "file", name, "err", err)
	}
}

// arrival returns the file of p in the box, made anew if there is none, with the space for it.
func (y *relay) arrival(p *passage) (*arrival, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	f := p.file
	rec := record{File: f, Since: time.Now().UTC(), Through: !p.stores()}
	if err := y.makeRoom(f.Name, y.need(rec), time.Now()); err != nil {
		return nil, err
	}
	y.box.admin.Lock()
	defer y.box.admin.Unlock()
	a := y.box.lookup(f.Name)
	if a != nil && (a.File != f || a.Through != rec.Through) {
		if err := y.box.discard(a); err != nil {
			return nil, err
		}
		a = nil
	}
	if a == nil {
		var err error
		if a, err = y.box.begin(rec); err != nil {
			return nil, noSpace(err)
		}
		y.own(a)
	}
	y.given[f.Name] = y.need(rec)
	return a, nil
}

// makeRoom makes sure that there are n bytes for a file of that name. What rests for long
// gives way, what does for longest first, if that is enough. The caller holds mu.
func (y *relay) makeRoom(name string, n int64, now time.Time) error {
	taken := -y.given[name]
	for _, n := range y.given {
		taken += n
	}
	var old []string
	stay := taken
	for name, r := range y.rests {
		if now.Sub(r.since) >= relayRest {
			old = append(old, name)
			stay -= y.given[name]
		}
	}
	if n > y.Space-stay {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("%d bytes are needed there, and %d of the %d that it has for files on their way are taken for others", n, stay, y.Space))
	}
	slices.SortFunc(old, func(a, b string) int { return y.rests[a].since.Compare(y.rests[b].since) })
	for _, name := range old {
		if n <= y.Space-taken {
			break
		}
		taken -= y.given[name]
		if err := y.remove(name); err != nil {
			return err
		}
		y.receiver.log.Info("what could not go on gives its room to another file", "file", name)
	}
	return nil
}

// whole is what is done when every block of a was brought: one that is stored is compared
// with its digest before any of it goes on. It returns when the passage is over.
func (y *relay) whole(a *arrival) {
	p := a.passing()
	if p == nil {
		return
	}
	if p.stores() {
		got, err := a.whole(p.ctx)
		if err == nil {
			err = mover.Coded(mover.CodeContent, digest.Check(a.File.Digest, got))
		}
		if err != nil {
			p.cancel(err)
		}
	}
	p.add(event{kind: eventWhole})
	<-p.done
}
