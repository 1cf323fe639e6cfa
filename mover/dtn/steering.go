package dtn

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Corrector finds a better PCP for what moves to one destination, while it moves.
type Corrector interface {
	// Correct takes what a move that uses the destination's connections reports at a time,
	// and returns the PCP that all of them are to use from now on and why, for a person.
	Correct(at time.Time, p mover.Progress) (mover.PCP, string)
}

// Correction begins when a destination was moved to for busyFor, or when what moves there
// has as much as goes in longFor before it; what ends sooner is left alone.
const (
	busyFor = 10 * time.Second
	longFor = 20 * time.Second
	seenFor = 3 * time.Second // until it can be told how long it will take
)

// asSet is why a PCP is not corrected.
const asSet = "not corrected: somebody has set it, or that of a transfer which shares its connections"

// steering has a Corrector for each destination that is moved to. Where somebody has said
// how one transfer is to move, the others that share its connections are left alone, too.
type steering struct {
	begin func() Corrector

	mu     sync.Mutex // guards what follows
	groups map[course]*group
}

// course is what transfers with connections in common have in common.
type course struct {
	engine, address string
}

func courseOf(r mover.Request) course {
	return course{r.Engine, cmp.Or(r.Destination.Via.Address, r.Destination.Address)}
}

// group is the transfers on one course.
type group struct {
	since     time.Time
	moves     []*member // by when they began
	corrector Corrector // nil: it is not worth it yet
	why       string
}

type member struct {
	key    string
	engine mover.Adjuster
	size   int64
	began  time.Time
	before int64     // bytes that were there
	first  mover.PCP // that it used before it was corrected
	told   mover.PCP // that it uses
	set    mover.PCP // what somebody has said of it
}

func (m *member) fixed() bool { return m.set != mover.PCP{} }

// report takes what a move of r reports, and has all that share its connections changed if
// that is better. What somebody has set for it is asked for while nothing can be changed
// meanwhile. It returns why their PCP is as it is; empty: it was not worth a correction yet.
func (s *steering) report(r mover.Request, e mover.Adjuster, set func() mover.PCP, p mover.Progress) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	g := s.groups[courseOf(r)]
	if g == nil {
		g = &group{since: now}
		s.groups[courseOf(r)] = g
	}
	m := g.move(r.Key)
	if m == nil {
		m = &member{key: r.Key, engine: e, size: r.Source.Size, began: now, before: p.Moved, first: p.Way.PCP, told: p.Way.PCP}
		g.moves = append(g.moves, m)
	}
	m.set = set()
	if slices.ContainsFunc(g.moves, (*member).fixed) {
		g.leave()
		return asSet
	}
	if g.corrector == nil {
		if !g.worthIt(m, p.Moved, now) {
			return ""
		}
		g.corrector = s.begin()
	}
	if m == g.moves[0] { // what it sees of the connections is what the others see
		var to mover.PCP
		to, g.why = g.corrector.Correct(now, p)
		g.use(to)
	} else {
		g.use(g.moves[0].told)
	}
	return g.why
}

// fix takes note that somebody has set what a move of r uses, before its engine is told.
func (s *steering) fix(r mover.Request, set func() mover.PCP) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.groups[courseOf(r)]; g != nil {
		if m := g.move(r.Key); m != nil {
			m.set = set()
			g.leave()
		}
	}
}

// left takes note that a move of r has ended.
func (s *steering) left(r mover.Request) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[courseOf(r)]
	if g == nil {
		return
	}
	g.moves = slices.DeleteFunc(g.moves, func(m *member) bool { return m.key == r.Key })
	if len(g.moves) == 0 {
		delete(s.groups, courseOf(r))
	}
}

func (g *group) move(key string) *member {
	if i := slices.IndexFunc(g.moves, func(m *member) bool { return m.key == key }); i >= 0 {
		return g.moves[i]
	}
	return nil
}

// worthIt reports whether correction is, now that m has moved so far.
func (g *group) worthIt(m *member, moved int64, now time.Time) bool {
	if now.Sub(g.since) >= busyFor {
		return true
	}
	took := now.Sub(m.began)
	return took >= seenFor && float64(m.size-moved)*took.Seconds() >= float64(moved-m.before)*longFor.Seconds()
}

// use has all moves use p.
func (g *group) use(p mover.PCP) {
	for _, m := range g.moves {
		m.use(p)
	}
}

// leave ends the correction, if there is one: all moves use what they did before, but for
// what somebody has set. What was being tried need not have been any good.
func (g *group) leave() {
	if g.corrector == nil {
		return
	}
	g.corrector = nil
	for _, m := range g.moves {
		m.use(m.first.With(m.set))
	}
}

func (m *member) use(p mover.PCP) {
	if m.told != p {
		m.told = p
		m.engine.Adjust(m.key, p)
	}
}
