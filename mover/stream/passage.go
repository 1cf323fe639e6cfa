package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
)

// passage is a file's way through the relay, from an opening to its end.
type passage struct {
	relay   *relay
	seat    seat // on the link that brings the file
	opening opening
	ticket  mover.Ticket
	file    mover.File // as it is in the box
	ctx     context.Context
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when nothing of it runs
	since   time.Time
	moved   atomic.Int64 // bytes at the destination

	// Its goroutine's alone.
	link    *link // to the destination
	out     *outgoing
	arrival *arrival
	there   bitmap // blocks at the destination
	first   uint32 // no block below it is missing there
	passing bool   // blocks that are here may go on

	mu     sync.Mutex // guards what follows; nothing else is locked while it is held
	events []event
	drop   bool  // what came of it is worthless
	onward *link // what link is, for others
	woken  chan struct{}
}

// event is what one of a passage's two links has heard, for its goroutine: neither may
// wait for the other.
type event struct {
	kind  eventKind
	index uint32
	have  bitmap
}

type eventKind byte

const (
	eventAnswered eventKind = iota // the destination has the blocks in have
	eventHere                      // block index is proven here
	eventWhole                     // all blocks are here, and right
	eventPassed                    // block index is proven at the destination
	eventLost                      // it is not, though the destination thought so
)

func (p *passage) stores() bool { return p.opening.Relay == mover.StoreForward }

func (p *passage) add(e event) {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.events = append(p.events, e)
	p.mu.Unlock()
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (p *passage) answered(have bitmap) { p.add(event{kind: eventAnswered, have: have}) }
func (p *passage) here(i uint32)        { p.add(event{kind: eventHere, index: i}) }
func (p *passage) passed(i uint32)      { p.add(event{kind: eventPassed, index: i}) }
func (p *passage) lost(i uint32)        { p.add(event{kind: eventLost, index: i}) }

// abandon ends the passage; with drop, what came of it is removed.
func (p *passage) abandon(drop bool, why error) {
	p.mu.Lock()
	p.drop = p.drop || drop
	p.mu.Unlock()
	p.cancel(why)
}

// drops reports whether what came of the passage is worthless.
func (p *passage) drops() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drop
}

// run passes the file on, tells the sender the end, and returns when all is over.
func (p *passage) run() {
	defer close(p.done)
	var life sync.WaitGroup
	life.Go(p.showLife)
	if !p.relay.begin(p) {
		life.Wait()
		return
	}
	err := p.pass()
	unread := errors.Is(err, errSource)
	if unread { // this DTN's copy, which the sender need not know of
		err = mover.Coded(mover.CodeOther, err)
	}
	if err != nil {
		err = p.says(err)
	}
	log := p.relay.receiver.log.With("from", p.ticket.From, "to", p.ticket.Site, "file", p.ticket.File.Name)
	reply := answer{Done: true}
	if err != nil {
		reply = refusal(err)
	}
	at := p.seat
	if p.arrival != nil {
		at = p.arrival.finished(err)
	}
	if endErr := p.relay.end(p, err, err == nil || unread || mover.CodeOf(err) == mover.CodeContent); endErr != nil {
		log.Warn("what is no more needed of a file on its way cannot be removed", "err", endErr)
	}
	if err == nil {
		p.count(1, 0)
	}
	if at.link != nil {
		at.end(reply)
	}
	p.cancel(err)
	life.Wait()
	if err != nil {
		log.Warn("file not passed on", "err", err)
		return
	}
	log.Info("file passed on", "bytes", p.file.Size)
}

// says is what the sender is told of an error: which site's it is.
func (p *passage) says(err error) error {
	return fmt.Errorf("site %s, which passes it on to site %s: %w", p.relay.Site, p.ticket.Site, err)
}

// showLife vouches for the passage, so that the sender need not ask itself whether the
// way on has come to rest: this DTN does, and gives up when it has. It tells how far that is.
func (p *passage) showLife() {
	tick := time.NewTicker(p.relay.receiver.opts.Busy)
	defer tick.Stop()
	for n := uint32(1); ; n++ {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
			if p.seat.link.say.full() {
				continue
			}
			p.seat.tell(kindBusy, n)
			p.seat.link.say.add(header{kind: kindPassed, file: p.seat.file}.with(p.way()))
		}
	}
}

// way is what the sender is told of the way on.
func (p *passage) way() passed {
	w := passed{Blocks: blockCount(p.moved.Load())}
	p.mu.Lock()
	onward := p.onward
	p.mu.Unlock()
	if onward != nil {
		onward.mu.Lock()
		defer onward.mu.Unlock()
		w.Bottleneck = onward.sight.bottleneck
	}
	return w
}

// pass returns nil when the destination has the file.
func (p *passage) pass() error {
	e := p.relay.Engine
	protection := cmp.Or(e.Protection, mover.Private)
	if ours := p.seat.link.protection; ours.AtLeast(protection) { // not weaker than on the way here
		protection = ours
	}
	p.link = e.join(linkKey{p.ticket.Address, protection, p.ticket.Site})
	defer e.leave(p.link)
	p.mu.Lock()
	p.onward = p.link
	p.mu.Unlock()
	select {
	case <-p.link.ready:
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	r := mover.Request{
		Source:      p.file,
		Destination: mover.Destination{Ticket: p.opening.Ticket},
		Priority:    p.opening.Priority,
		PCP:         p.opening.PCP,
	}
	if err := p.link.room(p.ctx); err != nil {
		return err
	}
	f, err := p.link.open(r, nil, p)
	if err != nil {
		return err
	}
	p.out = f
	ended := make(chan error, 1)
	p.relay.receiver.work.Go(func() { ended <- p.link.await(f, p.sighted) })
	stop := context.AfterFunc(p.ctx, func() { p.link.end(f, context.Cause(p.ctx)) })
	defer stop()
	err = p.follow(ended)
	p.link.quit(f, mover.CodeOf(err) == mover.CodeContent)
	if f.source != nil {
		f.source.release()
	}
	return err
}

// follow does what there is to do at each event until the file's end at the destination.
func (p *passage) follow(ended <-chan error) error {
	for {
		select {
		case err := <-ended:
			for _, e := range p.heard() {
				if e.kind == eventPassed { // it counts though nothing comes of it any more
					_ = p.take(e)
				}
			}
			return err
		case <-p.woken:
		}
		for _, e := range p.heard() {
			if err := p.take(e); err != nil {
				p.link.end(p.out, err)
				return errors.Join(err, drain(ended))
			}
		}
	}
}

// heard returns the events since the last time.
func (p *passage) heard() []event {
	p.mu.Lock()
	defer p.mu.Unlock()
	events := p.events
	p.events = nil
	return events
}

// drain waits for the end, which is known.
func drain(ended <-chan error) error {
	<-ended
	return nil
}

func (p *passage) take(e event) error {
	switch e.kind {
	case eventAnswered:
		return p.enter(e.have)
	case eventHere:
		if p.passing {
			p.feed(e.index)
		}
	case eventWhole:
		if p.passing {
			return nil
		}
		p.passing = true
		for i := range p.arrival.blocks {
			if !p.there.has(i) {
				p.feed(i)
			}
		}
	case eventPassed:
		p.there.add(e.index)
		p.moved.Add(int64(blockLen(p.file.Size, e.index)))
		p.count(0, int64(blockLen(p.file.Size, e.index)))
		p.advance()
		if !p.stores() {
			p.arrival.letGo(e.index)
			p.arrival.widen(p.room(), max(1, p.relay.window()/8))
		}
	case eventLost:
		p.there.remove(e.index)
		p.moved.Add(-int64(blockLen(p.file.Size, e.index)))
		p.first = min(p.first, e.index)
		if p.passing && p.arrival.has(e.index) {
			p.feed(e.index)
		}
	}
	return nil
}

// feed has a block sent that is here.
func (p *passage) feed(i uint32) {
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	if !p.out.over() && !p.out.todo.has(i) {
		p.out.left++
		p.out.put(i)
		p.link.changed.Broadcast()
	}
}

// advance counts the blocks that the destination has from the start.
func (p *passage) advance() {
	for p.first < blockCount(p.file.Size) && p.there.has(p.first) {
		p.first++
	}
}

// room is the block that the sender may not send yet; 0: there is none.
func (p *passage) room() uint32 {
	n := p.first + p.relay.window()
	if p.stores() || n >= blockCount(p.file.Size) {
		return 0
	}
	return n
}

// enter has the sender bring what is not here, once the destination has told what it has.
func (p *passage) enter(have bitmap) error {
	a, err := p.relay.arrival(p)
	if err != nil {
		return err
	}
	p.there = newBitmap(a.blocks)
	copy(p.there, have)
	p.advance()
	for i := range a.blocks {
		if p.there.has(i) {
			p.moved.Add(int64(blockLen(p.file.Size, i)))
		}
	}
	p.passing = !p.stores()
	if err := a.pass(p); err != nil {
		return err
	}
	p.arrival = a
	file, err := p.relay.Box.Open(a.part)
	if err != nil {
		return err
	}
	src := newSource(p.link.engine, file, p.file.Size)
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	p.out.source = src
	return nil
}

// pass is enter for a file that is passed on by p.
func (a *arrival) pass(p *passage) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return errGone
	}
	if !a.followed {
		if err := a.occupy(p.seat.link.site); err != nil {
			return noSpace(err)
		}
		a.followed = true
		a.spawn(a.follow)
	}
	a.lastErr, a.fault, a.passage, a.room = "", nil, p, p.room()
	var told bitmap
	for i := range a.blocks {
		if !p.stores() && p.there.has(i) {
			a.unclaim(i)
			if a.proven.has(i) && !a.let.has(i) {
				_ = disk.Punch(a.data, blockStart(i), int64(blockLen(a.File.Size, i))) // else it takes room for a while
			}
			a.let.add(i)
			a.prove(i, nil)
			continue
		}
		if a.let.has(i) { // the destination had it, and lost it
			a.disprove(i)
		}
		if a.proven.has(i) {
			p.here(i)
		}
	}
	told = slices.Clone(a.proven)
	for i, claims := range a.claims {
		told[i] |= claims
	}
	if !p.seat.link.enter(p, a) {
		return errLeft
	}
	a.holder = p.seat
	reply := answer{Have: told, Room: a.room}.bytes(p.seat.file)
	if there := p.moved.Load(); there > 0 { // at once, else it would seem to have come since
		reply = append(header{kind: kindPassed, file: p.seat.file}.with(passed{Blocks: blockCount(there)}), reply...)
	}
	p.seat.link.say.add(reply)
	a.due()
	return nil
}

// passing returns the passage of a; nil: there is none.
func (a *arrival) passing() *passage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.passage
}

// disprove makes block i one that was not brought. The caller holds mu.
func (a *arrival) disprove(i uint32) {
	a.let.remove(i)
	a.proven.remove(i)
	a.count--
	a.prefix = min(a.prefix, i)
}

// letGo frees the room of block i, which the destination has.
func (a *arrival) letGo(i uint32) {
	a.mu.Lock() // all the time: without it the file may be closed, and its descriptor another file's
	defer a.mu.Unlock()
	a.let.add(i)
	_ = disk.Punch(a.data, blockStart(i), int64(blockLen(a.File.Size, i))) // else it takes room for a while
}

// has reports whether block i is here. If the destination had it instead, the sender is
// to send it again; one that has gone cannot, and the passage ends.
func (a *arrival) has(i uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.let.has(i) {
		return a.proven.has(i)
	}
	a.disprove(i)
	switch {
	case a.holder.link != nil:
		a.holder.tell(kindAgain, i)
	case a.passage != nil:
		a.passage.cancel(errLeft)
	}
	return false
}

// widen lets the sender send the blocks below room, 0: all. It is told of steps only.
func (a *arrival) widen(room, step uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.room == 0 || room != 0 && room < a.room+step {
		return
	}
	a.room = room
	if a.holder.link != nil {
		a.holder.tell(kindRoom, cmp.Or(room, a.blocks))
	}
}

// pass begins a passage of a file that was opened.
func (l *incoming) pass(file uint32, o opening) {
	p, err := l.receiver.relay.admit(l.site, o)
	if err == nil && int(l.running.Load()) >= 2*l.receiver.opts.linkFiles {
		err = fmt.Errorf("files that site %s has closed still end here: %w", l.site, errCrowded)
	}
	if !l.admitted(file, err) {
		return
	}
	p.seat = seat{l, file}
	p.ctx, p.cancel = context.WithCancelCause(l.ctx)
	l.mu.Lock()
	if l.passages == nil {
		l.passages = map[uint32]*passage{}
	}
	l.passages[file] = p
	l.mu.Unlock()
	l.note(file, nil)
	l.running.Add(1)
	l.receiver.work.Go(func() {
		defer l.running.Add(-1)
		p.run()
	})
}

// enter lets the file of a passage in, unless the sender has gone meanwhile.
func (l *incoming) enter(p *passage, a *arrival) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.passages[p.seat.file] != p {
		return false
	}
	delete(l.passages, p.seat.file)
	l.files[p.seat.file] = a
	return true
}

// close ends a file whose end the sender does not wait for; drop: what came of it is worthless.
func (l *incoming) close(file uint32, drop bool) error {
	l.mu.Lock()
	a, p := l.files[file], l.passages[file]
	l.endLoan(file)
	delete(l.files, file)
	delete(l.passages, file)
	l.mu.Unlock()
	if p != nil {
		p.abandon(drop, errLeft)
	}
	if a == nil {
		return nil
	}
	if a.relayed && drop {
		if p := a.passing(); p != nil {
			p.abandon(true, errLeft)
		}
	}
	a.leave(seat{l, file}, errLeft)
	if a.relayed || !drop {
		return nil
	}
	l.receiver.admin.Lock()
	defer l.receiver.admin.Unlock()
	return l.receiver.discard(a)
}

// closing is what a sender says of a file whose end it does not wait for.
func closing(f *outgoing, drop bool) []byte {
	h := header{kind: kindClose, file: f.id}
	if drop {
		h.index = 1
	}
	return h.bytes()
}

// via makes the announcement of a file one to the relay that it goes through, which sends it
// on as this one would.
func (o opening) via(r mover.Request) opening {
	if o.Relay = r.Destination.Via.Mode; o.Relay != "" {
		o.Priority, o.PCP = r.Priority, r.PCP
	}
	return o
}
