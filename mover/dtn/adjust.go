package dtn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

type adjustInput struct {
	ID   mover.TransferID `path:"id" maxLength:"64"`
	Body mover.Change
}

var (
	errEnded = errors.New("it has ended")
	errFixed = errors.New("its engine cannot change what runs; cancel it and submit it anew")
)

func (s *Server) adjust(_ context.Context, in *adjustInput) (*output[mover.Status], error) {
	if in.Body == (mover.Change{}) {
		return nil, problem(http.StatusUnprocessableEntity, "", "nothing is to be changed: say pipelining, concurrency, parallelism or priority")
	}
	r, known, err := s.table.adjust(in.ID, in.Body, s.adjuster)
	switch {
	case !known:
		return nil, noTransfer(in.ID)
	case errors.Is(err, errEnded) || errors.Is(err, errFixed):
		return nil, problem(http.StatusUnprocessableEntity, "", fmt.Sprintf("transfer %s: %v", in.ID, err))
	case err != nil:
		return nil, problem(http.StatusInternalServerError, "", err.Error())
	}
	e := s.adjuster(r)
	if in.Body.PCP != (mover.PCP{}) {
		s.steering.fix(r, s.asked(in.ID, r))
		if e != nil {
			e.Adjust(r.Key, in.Body.PCP)
		}
	}
	if in.Body.Priority != "" && e != nil {
		e.Prioritise(r.Key, in.Body.Priority)
	}
	return s.get(context.Background(), &transferInput{in.ID})
}

// adjuster is the engine of a request if it can change what runs; nil otherwise.
func (s *Server) adjuster(r mover.Request) mover.Adjuster {
	e, _ := s.opt.Engines[r.Engine].(mover.Adjuster)
	return e
}

// adjust sets what a transfer uses, also after a restart. The error is errEnded, errFixed,
// or that of the disk.
func (t *table) adjust(id mover.TransferID, c mover.Change, able func(mover.Request) mover.Adjuster) (r mover.Request, known bool, err error) {
	t.changing.Lock()
	defer t.changing.Unlock()
	tr := t.byID[id]
	switch {
	case tr == nil:
		return r, false, nil
	case tr.Status.State.Final():
		return r, true, errEnded
	case c.PCP != (mover.PCP{}) && tr.Status.State == mover.Running && able(tr.Request) == nil:
		return r, true, errFixed
	}
	rec := t.copyOf(tr)
	rec.PCP, rec.Priority = rec.PCP.With(c.PCP), cmp.Or(c.Priority, rec.Priority)
	if err := t.store(rec); err != nil {
		return r, true, err
	}
	t.publish(tr, func() {
		tr.PCP, tr.Priority = rec.PCP, rec.Priority
		if c.PCP != (mover.PCP{}) {
			tr.Status.Way.PCP, tr.Status.Way.Tuned = tr.Status.Way.PCP.With(rec.PCP), asSet
		}
		if q := t.queueOf(t.isSmall(tr.Request)); c.Priority != "" {
			q.sort()
			q.wake()
		}
	})
	t.log.Info("transfer changed", "transfer", id, "file", rec.Request.Source.Name, "pcp", rec.PCP, "priority", cmp.Or(rec.priority(), mover.PriorityNormal))
	return tr.Request, true, nil
}

// set returns what was set for a transfer since it was submitted.
func (t *table) set(id mover.TransferID) mover.PCP {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id].PCP
}

// rank returns a transfer's priority.
func (t *table) rank(id mover.TransferID) mover.Priority {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id].priority()
}

// asked returns what tells the PCP that was asked for with r, and what was set since.
func (s *Server) asked(id mover.TransferID, r mover.Request) func() mover.PCP {
	return func() mover.PCP { return r.PCP.With(s.table.set(id)) }
}

// progress returns what takes the reports of a run of r, whose PCP has that origin. With
// the first one the engine can be told what was set while the run began.
func (s *Server) progress(id mover.TransferID, r mover.Request, origin string) func(mover.Progress) {
	begun := false
	return func(p mover.Progress) {
		if e := s.adjuster(r); !begun && e != nil && r.PCP.With(s.table.set(id)) != r.PCP {
			e.Adjust(r.Key, s.table.set(id))
		}
		if e, rank := s.adjuster(r), s.table.rank(id); !begun && e != nil && rank != r.Priority {
			e.Prioritise(r.Key, rank)
		}
		begun = true
		p.Way.Origin = origin
		if s.metrics.paths.advises(r.Destination.Address, p.Way.Advice) {
			s.opt.Log.Info("transfers could go faster", "to", r.Destination.Address, "advice", p.Way.Advice)
		}
		if e := s.adjuster(r); e != nil && s.steering != nil && !s.table.isSmall(r) {
			p.Way.Tuned = s.steering.report(r, e, s.asked(id, r), p)
		}
		s.loads.report(r, p, time.Now())
		s.sightings.add(time.Now(), cmp.Or(r.Destination.Via.Address, r.Destination.Address), p.Way)
		fresh, wire, waited := s.table.progress(id, p)
		if waited > 0 {
			s.metrics.waited.WithLabelValues(string(p.Way.Bottleneck.Place)).Add(waited.Seconds())
		}
		s.metrics.moved.Add(float64(fresh))
		s.metrics.paths.add(r.Destination.Address, fresh, wire, p.Way.Path)
	}
}
