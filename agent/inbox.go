package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/outage"
	"github.com/glance-dtn/glance-dtn/mover"
)

// inbox is what this site's DTN has announced of its arrivals.
type inbox struct {
	mu       sync.Mutex
	heard    bool                     // the DTN announces changes
	silent   *Silence                 // why it cannot be heard; nil while it can, and before that is known
	arrivals map[string]mover.Arrival // by name; none while it is not heard
	changed  chan struct{}            // closed by the next tell; nil while nobody waits
}

// tell replaces what is known, and wakes those who wait. It reports whether the DTN is
// heard and was not, or the other way round.
func (b *inbox) tell(arrivals map[string]mover.Arrival, heard bool) (turned bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	turned = b.heard != heard
	b.heard, b.arrivals = heard, arrivals
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
	return turned
}

// note keeps why the DTN cannot be heard; nil: it can.
func (b *inbox) note(err error) {
	if out, ok := errors.AsType[*outage.Error](err); ok {
		err = out // it says all
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.silent = nil
	case b.silent == nil:
		b.silent = &Silence{Since: time.Now().UTC(), Error: err.Error()}
	default:
		b.silent = &Silence{Since: b.silent.Since, Error: err.Error()}
	}
}

// silence returns since when and why the DTN cannot be heard, nil while it can.
func (b *inbox) silence() *Silence {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.silent
}

// look returns what was announced of a file, the zero Arrival when nothing was, and a
// channel that is closed when this may not hold any more.
func (b *inbox) look(name string) (arr mover.Arrival, heard bool, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.arrivals[name], b.heard, b.changed
}

// watchInbox hears what the DTN announces until ctx ends.
func (a *Agent) watchInbox(ctx context.Context) {
	said := false
	for arrivals, err := range a.Landing.Watch(ctx) {
		turned := a.inbox.tell(arrivals, err == nil)
		a.inbox.note(err)
		switch {
		case said && !turned:
		case err == nil:
			a.Log.Info("the DTN announces arrivals")
		default:
			a.Log.Warn("the DTN's announcements of arrivals are not heard; until they are, it is asked again and again", "err", err)
		}
		said = true
	}
}

// sight is one file of the inbox as this site's DTN tells it. It is for one goroutine.
type sight struct {
	inbox   *inbox
	landing Landing
	name    string
	every   time.Duration // between questions to a DTN that is not heard
	most    time.Duration // that every may become

	told mover.Arrival // the last announcement that was looked at
	seen mover.Arrival // what next returned last
	at   time.Time     // when it did
}

func (a *Agent) sight(name string, most time.Duration) *sight {
	return &sight{inbox: &a.inbox, landing: a.Landing, name: name, every: pollMin, most: most}
}

// next returns what the DTN knows of the file, mover.ErrNoArrival when it has none: the
// first time at once, then when that has, or may have, changed. The first answer is asked
// for, and so is one after pollSafe without news; from a DTN that is not heard every one
// is, after pollMin, later and later while nothing moves.
//
// An announcement is an answer only if it is of the arrival that was seen last, and else a
// reason to ask: it may have been on its way while that file was dropped and sent anew.
func (s *sight) next(ctx context.Context) (mover.Arrival, error) {
	for {
		told, heard, changed := s.inbox.look(s.name)
		wait := s.every
		if heard {
			wait = pollSafe
		}
		news := heard && told != s.told
		s.told = told
		if news && !told.Since.IsZero() && told.Since.Equal(s.seen.Since) {
			s.seen, s.at = told, time.Now()
			return told, nil
		}
		if wait = time.Until(s.at.Add(wait)); news || wait <= 0 {
			return s.ask(ctx)
		}
		select {
		case <-ctx.Done():
			return mover.Arrival{}, ctx.Err()
		case <-changed:
		case <-time.After(wait):
		}
	}
}

func (s *sight) ask(ctx context.Context) (mover.Arrival, error) {
	arr, err := s.landing.Arrival(ctx, s.name)
	if arr.Moved != s.seen.Moved {
		s.every = pollMin
	} else if !s.at.IsZero() {
		s.every = min(s.every*5/4, s.most)
	}
	s.seen, s.at = arr, time.Now()
	return arr, err
}
