package dtn

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Bounds of what becomes a row of history.
const (
	loadLasts  = 10 * time.Minute       // one that goes on longer is told in parts
	maxSteps   = 16                     // of a part
	leastLoad  = time.Second            // what is over sooner tells of its connections' opening
	leastStep  = time.Second            // a PCP in force for less belongs to the next one
	tellEvery  = time.Minute            // of loads that are over sooner and have used one and the same PCP, one is told
	turnTakes  = 100 * time.Millisecond // from the end of a transfer to the start of one that waits
	adviceGoes = time.Second            // for transfers that start so soon after each other one advice does
)

// loads follows what moves to each destination, and tells what that came to. A nil one
// does nothing.
type loads struct {
	site  string
	known func(address string) (mover.SeenPath, bool)
	found func(address string, f found)         // what a load tells of its path
	queue func(course) (files int, bytes int64) // what waits to move there, too
	limit func(now time.Time) mover.Rate        // on what is sent
	log   *slog.Logger
	ended chan Load

	mu   sync.Mutex // guards what follows
	open map[course]*load
	told map[course]told // of late
}

// told is when a load was told, and the PCP that was in force.
type told struct {
	at  time.Time
	pcp mover.PCP
}

// load is a Load that goes on.
type load struct {
	course course
	id     string // of the transfer that began it
	moves  map[string]*haul
	pcps   map[mover.PCP]int // in force, and for how many of moves
	rests  *time.Timer       // ends it while nothing of it runs

	// Of this part of it:
	began, looked time.Time
	mixed         bool // some of it was passed on by a relay, on whose other side nobody looks
	files         int
	bytes         int64 // of these files, that were not there
	steps         []Step
	wire          int64                         // by the last step, and what was ahead of proof as it began
	silent        time.Duration                 // since bytes last arrived: not counted if none follow
	places        map[mover.Place]time.Duration // waited for in the last step
	links         map[time.Time]int64           // bytes sent again so far, by when a link began

	// The latest advice.
	asked  time.Time
	advice mover.PCP
	origin string
}

// haul is a transfer of a load.
type haul struct {
	size        int64 // bytes that were not there
	moved, wire int64
	relayed     bool
	reported    bool
	pcp         mover.PCP
}

// begin takes note that a run of r starts.
func (ls *loads) begin(r mover.Request, now time.Time) {
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	c := courseOf(r)
	l := ls.open[c]
	if l == nil {
		l = &load{course: c, id: string(transferID(r.Key)), moves: map[string]*haul{}, pcps: map[mover.PCP]int{}}
		l.reset(now)
		ls.open[c] = l
	}
	if l.rests != nil {
		l.rests.Stop()
	}
	h := &haul{size: r.Source.Size, relayed: r.Destination.Via != mover.Relay{}}
	l.mixed = l.mixed || h.relayed
	l.moves[r.Key] = h
	l.files++
	l.bytes += h.size
}

// reset begins a part of a load with what is under way.
func (l *load) reset(now time.Time) {
	l.began, l.looked, l.files, l.bytes, l.steps, l.silent = now, now, len(l.moves), 0, nil, 0
	l.places, l.mixed = map[mover.Place]time.Duration{}, false
	for _, h := range l.moves {
		l.bytes += h.size
		l.mixed = l.mixed || h.relayed
	}
}

// report takes what a run of r reports.
func (ls *loads) report(r mover.Request, p mover.Progress, now time.Time) {
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[courseOf(r)]
	h := l.moves[r.Key]
	if !h.reported {
		h.reported, h.moved = true, p.Moved
		h.size -= p.Moved
		l.bytes -= p.Moved
	}
	l.use(h, p.Way.PCP)
	if len(l.steps) == 0 {
		l.step()
	}
	fresh, wire := max(0, p.Moved-h.moved), max(0, p.Way.Wire-h.wire)
	h.moved, h.wire = p.Moved, p.Way.Wire
	l.pass(now, p.Way.Bottleneck.Place, fresh > 0)
	if len(l.steps) > 0 {
		s := &l.steps[len(l.steps)-1]
		s.Bytes += fresh
		s.Retransmits += l.resent(p.Way.Path)
		l.wire += wire
	}
	l.step()
	if now.Sub(l.began) >= loadLasts || len(l.steps) > maxSteps {
		ls.tell(l)
		l.reset(now)
		l.step()
	}
}

// pass books the time since the last look: for what was waited for, and, when something
// has arrived, in the step. What ends a load is silence, which no PCP has made.
func (l *load) pass(now time.Time, waited mover.Place, arrived bool) {
	took := now.Sub(l.looked)
	l.looked = now
	l.places[waited] += took
	l.silent += took
	if arrived {
		l.settle()
	}
}

// settle counts the time in which nothing arrived.
func (l *load) settle() {
	if len(l.steps) > 0 {
		l.steps[len(l.steps)-1].Lasted += l.silent
		l.silent = 0
	}
}

// resent is how many bytes of a path were sent again since the last look at it.
func (l *load) resent(p mover.Path) int64 {
	if p.Since.IsZero() {
		return 0
	}
	was, known := l.links[p.Since]
	if l.links == nil || len(l.links) >= maxLinks {
		l.links = map[time.Time]int64{} // the others are over
	}
	l.links[p.Since] = p.Retransmits
	if !known && p.Since.Before(l.began) {
		return 0
	}
	return max(0, p.Retransmits-was)
}

// use has h counted by the PCP that is in force for it; the zero PCP: by none.
func (l *load) use(h *haul, p mover.PCP) {
	if h.pcp == p {
		return
	}
	if l.pcps[h.pcp]--; l.pcps[h.pcp] <= 0 {
		delete(l.pcps, h.pcp)
	}
	if h.pcp = p; p != (mover.PCP{}) {
		l.pcps[p]++
	}
}

// step begins another step where the PCP is another.
func (l *load) step() {
	var p mover.PCP
	for q := range l.pcps {
		p = mover.PCP{
			Pipelining:  max(p.Pipelining, q.Pipelining),
			Concurrency: max(p.Concurrency, q.Concurrency),
			Parallelism: max(p.Parallelism, q.Parallelism),
		}
	}
	n := len(l.steps)
	switch {
	case p == mover.PCP{} || n > 0 && l.steps[n-1].PCP == p:
		return
	case n > 1 && l.brief() && l.steps[n-2].PCP == p: // it was another one for a moment
		l.close()
		last := l.steps[n-1]
		l.steps = l.steps[:n-1]
		s := &l.steps[n-2]
		s.Lasted, s.Bytes, s.Retransmits = s.Lasted+last.Lasted, s.Bytes+last.Bytes, s.Retransmits+last.Retransmits
		l.wire += s.Bytes
		l.places[s.Bottleneck] = s.Lasted
	case n > 0 && l.brief():
		l.steps[n-1].PCP = p
	default:
		l.settle()
		l.close()
		l.steps = append(l.steps, Step{PCP: p})
	}
}

// brief reports whether the last step is too short to be one.
func (l *load) brief() bool { return l.steps[len(l.steps)-1].Lasted+l.silent < leastStep }

// close ends the last step.
func (l *load) close() {
	if n := len(l.steps); n > 0 {
		s := &l.steps[n-1]
		moved := s.Bytes
		s.Bytes = min(moved, l.wire)
		l.wire = max(0, l.wire-moved)
		most := time.Duration(0)
		for place, waited := range l.places {
			if place != "" && waited > most {
				s.Bottleneck, most = place, waited
			}
		}
	}
	clear(l.places)
}

// left takes note that a run of r has ended: one that never reported has moved nothing. Its
// load goes on if more of it follows at once.
func (ls *loads) left(r mover.Request) {
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[courseOf(r)]
	h := l.moves[r.Key]
	if !h.reported {
		l.files--
		l.bytes -= h.size
	}
	l.use(h, mover.PCP{})
	delete(l.moves, r.Key)
	if len(l.moves) > 0 {
		return
	}
	l.rests = time.AfterFunc(turnTakes, func() {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		if len(l.moves) == 0 {
			ls.end(l)
		}
	})
}

// end ends a load, once. The caller holds mu.
func (ls *loads) end(l *load) {
	if ls.open[l.course] == l {
		ls.tell(l)
		delete(ls.open, l.course)
	}
}

// close ends all loads. No run follows.
func (ls *loads) close() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.open {
		l.rests.Stop()
		ls.end(l)
	}
	close(ls.ended)
}

// tell hands on what a part of a load came to, if anything can be learnt from it. The
// caller holds mu.
func (ls *loads) tell(l *load) {
	now := l.looked
	l.close()
	steps := slices.DeleteFunc(l.steps, func(s Step) bool { return s.Lasted <= 0 })
	lasted, fastest := time.Duration(0), 0.0
	var sent, resent int64
	for _, s := range steps {
		lasted, sent, resent = lasted+s.Lasted, sent+s.Bytes+s.Retransmits, resent+s.Retransmits
		if s.Lasted >= leastStep {
			fastest = max(fastest, 8*float64(s.Bytes)/s.Lasted.Seconds())
		}
	}
	if lasted < leastLoad || fastest == 0 || l.mixed {
		return
	}
	ls.found(l.course.address, found{fastest, lasted, sent, resent})
	c, ok := ls.condition(l.course, l.files, l.bytes, now)
	if !ok {
		return
	}
	if last := ls.told[l.course]; len(steps) == 1 && steps[0].PCP == last.pcp && now.Sub(last.at) < tellEvery {
		return
	}
	maps.DeleteFunc(ls.told, func(_ course, t told) bool { return now.Sub(t.at) >= tellEvery })
	ls.told[l.course] = told{now, steps[len(steps)-1].PCP}
	done := Load{
		ID:    fmt.Sprintf("%s/%s/%d", ls.site, l.id, l.began.UnixMicro()),
		Ended: now.UTC(), Engine: l.course.engine, Condition: c, Steps: steps,
	}
	select {
	case ls.ended <- done:
	default:
		ls.log.Warn("what transfers achieved cannot be kept: the disk is too slow", "to", l.course.address)
	}
}

// condition is that of some files, and of what waits to join them, if their path was seen.
// The caller holds mu.
func (ls *loads) condition(c course, files int, bytes int64, now time.Time) (Condition, bool) {
	seen, ok := ls.known(c.address)
	more, moreBytes := ls.queue(c)
	files, bytes = files+more, bytes+moreBytes
	found := Condition{
		Bandwidth: min(seen.Best, float64(ls.limit(now))), RTT: seen.MinRTT, Loss: seen.Loss, Congestion: seen.Congestion,
		Files: files, Size: int64(math.Ceil(float64(bytes) / float64(max(1, files)))),
	}
	return found, ok && found.Bandwidth > 0 && found.RTT > 0 && found.Size > 0
}
