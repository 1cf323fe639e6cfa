package dtn

import (
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Where the PCP of a transfer comes from, besides what a History says.
const (
	originAsked = "as asked"
	originNone  = "default"
	originNew   = "default: the path was not seen yet"
	originRelay = "default: of the path beyond the relay nothing is known"
)

// advise completes a request for which nobody has said a PCP, and tells where that of the
// transfer comes from. The run of r has begun.
func (s *Server) advise(r mover.Request) (_ mover.Request, origin string) {
	switch {
	case r.PCP != mover.PCP{}:
		return r, originAsked
	case s.loads == nil:
		return r, originNone
	case r.Destination.Via != mover.Relay{}:
		return r, originRelay
	}
	r.PCP, origin = s.loads.advice(r, time.Now(), s.opt.History.Advise)
	if !s.table.isSmall(r) {
		s.opt.Log.Info("transfer's PCP", "transfer", transferID(r.Key), "file", r.Source.Name, "pcp", r.PCP, "origin", origin)
	}
	return r, origin
}

// advice asks for the load that r is of. For those that start right after it, one answer does.
func (ls *loads) advice(r mover.Request, now time.Time, ask func(engine string, c Condition) (mover.PCP, string)) (mover.PCP, string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[courseOf(r)]
	if l.origin != "" && now.Sub(l.asked) < adviceGoes {
		return l.advice, l.origin
	}
	l.asked, l.advice, l.origin = now, mover.PCP{}, originNew
	bytes := int64(0)
	for _, h := range l.moves {
		bytes += h.size
	}
	if c, ok := ls.condition(l.course, len(l.moves), bytes, now); ok {
		l.advice, l.origin = ask(l.course.engine, c)
	}
	return l.advice, l.origin
}

// waitingFor is what is queued for a course.
func (t *table) waitingFor(c course) (files int, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range []*queue{&t.small, &t.large} {
		for _, tr := range q.all {
			if courseOf(tr.Request) == c {
				files++
				bytes += tr.Request.Source.Size - tr.Status.Moved
			}
		}
	}
	return files, bytes
}

// sendLimit is how much may be sent to all sites together.
func (s *Server) sendLimit(now time.Time) mover.Rate {
	if s.opt.Limits == nil {
		return mover.Unlimited
	}
	return s.opt.Limits().At(now, "", mover.Send)
}

// known returns what is known of the path to an address.
func (s *sightings) known(address string) (mover.SeenPath, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.paths[address]
	if one == nil {
		return mover.SeenPath{}, false
	}
	return one.Path, true
}

// found is what a load tells of its path.
type found struct {
	bits         float64 // per second, that arrived
	lasted       time.Duration
	sent, resent int64
}

// learn takes note of what a load tells of a path: of one that was too short for look, also
// what was lost.
func (s *sightings) learn(address string, f found) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.paths[address]
	if one == nil {
		return
	}
	one.Path.Best, one.old = max(one.Path.Best, f.bits), true
	if f.lasted < sightEvery {
		one.Sent, one.Resent = one.Sent*sightFades+float64(f.sent), one.Resent*sightFades+float64(f.resent)
		one.Path.Loss = min(1, one.Resent/max(1, one.Sent))
	}
}
