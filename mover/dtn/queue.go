package dtn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// holdTime is how long a route is held at most before one transfer tries it again:
// what holds it may have changed at the other end.
const holdTime = 5 * time.Minute

// preemptEvery is how soon after a transfer has given way another one has to.
const preemptEvery = time.Second

// firstPatience is for how long a transfer that could not move, although it had a place,
// pushes out only those whose route meets its own. It doubles with each such run, up to holdTime.
const firstPatience = 10 * time.Second

// errYields is the cause of the end of a run that gives way: it goes on later, and what has
// come of it is to be kept, see mover.ErrCancelled.
var errYields = errors.New("it gives way to a transfer with a higher priority")

// turn is what a queued transfer waits for when nothing else is in its way.
const turn = "its turn"

// route is where the connections of a transfer go, to a relay if there is one, and where its
// file goes. What a relay says of one destination does not hold for others, nor for other
// ways to that one.
type route struct{ hop, address string }

func routeOf(r mover.Request) route { return route{courseOf(r).address, r.Destination.Address} }

// meets reports whether what goes by one of the two may be in the way of the other's.
func (a route) meets(b route) bool { return a.hop == b.hop || a.address == b.address }

// hold is why nothing goes by a route for a while.
type hold struct {
	until  time.Time
	reason string
}

// before orders transfers: the higher priority first, then the older one.
func before(a, b *transfer) int {
	return cmp.Or(
		cmp.Compare(b.priority().Rank(), a.priority().Rank()),
		a.Status.Created.Compare(b.Status.Created), cmp.Compare(a.Status.ID, b.Status.ID),
	)
}

// queue holds transfers that wait to be run. What is guarded with a table's states is.
type queue struct {
	all  []*transfer   // as before orders them
	more chan struct{} // closed and replaced when one is added, or when nothing is held any more
}

func newQueue() queue { return queue{more: make(chan struct{})} }

func (q *queue) sort() { slices.SortFunc(q.all, before) }

// wake has those look again who have found nothing to run.
func (q *queue) wake() {
	close(q.more)
	q.more = make(chan struct{})
}

// remove takes a transfer out, which is near the front unless it was cancelled.
func (q *queue) remove(tr *transfer) {
	if i := slices.Index(q.all, tr); i >= 0 {
		q.all = slices.Delete(q.all, i, i+1)
	}
}

// queueOf returns the queue of the small transfers or that of the others.
func (t *table) queueOf(small bool) *queue {
	if small {
		return &t.small
	}
	return &t.large
}

// enqueue adds transfers to their queues. The caller holds changing, and mu.
func (t *table) enqueue(some ...*transfer) {
	for _, q := range []*queue{&t.small, &t.large} {
		n := len(q.all)
		for _, tr := range some {
			if t.queueOf(t.isSmall(tr.Request)) == q {
				q.all = append(q.all, tr)
			}
		}
		if len(q.all) > n {
			q.sort()
			q.wake()
		}
	}
}

// best returns the queued transfer to be run next, of the small ones or of the others; nil:
// none, and when, if that is known, there may be one. The caller holds changing.
func (t *table) best(small bool, now time.Time) (first *transfer, wake time.Time) {
	for _, tr := range t.queueOf(small).all {
		switch {
		case !t.held(tr, now) && small:
			return tr, wake
		case !t.held(tr, now):
			return t.joining(tr, now), wake
		default:
			if until := t.holds[routeOf(tr.Request)].until; wake.IsZero() || until.Before(wake) {
				wake = until
			}
		}
	}
	return nil, wake
}

// held reports whether nothing may move by a transfer's route now. The caller holds changing.
func (t *table) held(tr *transfer, now time.Time) bool {
	return now.Before(t.holds[routeOf(tr.Request)].until)
}

// requeue puts a transfer that has run back into the queue: it goes on later with what is
// proven there. The caller holds changing.
func (t *table) requeue(tr *transfer, why string) {
	t.publish(tr, func() {
		tr.rest(time.Now())
		tr.Status.State, tr.Status.Started, tr.Status.Waiting, tr.stop, tr.yields = mover.Queued, time.Time{}, why, nil, ""
		t.enqueue(tr)
	})
	t.log.Info("transfer waits", "transfer", tr.Status.ID, "file", tr.Request.Source.Name, "bytes", tr.Status.Moved, "for", why)
}

// await puts a transfer back that cannot move now, and holds its route. The caller holds
// changing.
func (t *table) await(tr *transfer, w *mover.Wait) {
	now := time.Now()
	until := w.Until
	if last := now.Add(holdTime); until.After(last) {
		until = last
	}
	t.mu.Lock()
	for by, h := range t.holds {
		if !now.Before(h.until) {
			delete(t.holds, by)
		}
	}
	t.holds[routeOf(tr.Request)] = hold{until, w.Reason}
	tr.patience = min(max(2*tr.patience, firstPatience), holdTime)
	tr.patient = until.Add(tr.patience)
	t.mu.Unlock()
	t.requeue(tr, turn)
}

// waits returns what err waits for; nil: it is a failure.
func waits(err error) *mover.Wait {
	w, _ := errors.AsType[*mover.Wait](err)
	return w
}

// release holds no route any more.
func (t *table) release() {
	t.changing.Lock()
	defer t.changing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.holds)
	for _, tr := range t.large.all {
		tr.patience, tr.patient = 0, time.Time{}
	}
	t.small.wake()
	t.large.wake()
	close(t.changed)
	t.changed = make(chan struct{})
}

// waiting is what a queued transfer waits for. The caller holds mu.
func (t *table) waiting(tr *transfer) string {
	if tr.Status.State != mover.Queued {
		return ""
	}
	if h, ok := t.holds[routeOf(tr.Request)]; ok && time.Now().Before(h.until) {
		return h.reason
	}
	return cmp.Or(tr.Status.Waiting, turn)
}

// preempting has transfers give way to higher ones that wait, until ctx is done.
func (t *table) preempting(ctx context.Context, places int) {
	for ctx.Err() == nil {
		changed, wake := t.preempt(places)
		select {
		case <-changed:
		case <-wake:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(preemptEvery):
		case <-ctx.Done():
		}
	}
}

// preempt stops the lowest of the running transfers, the last one to start, if all places
// are taken and a higher one waits that would get on in its place. It returns what to wait
// for before the next look.
func (t *table) preempt(places int) (changed <-chan struct{}, wake <-chan time.Time) {
	t.changing.Lock()
	defer t.changing.Unlock()
	if len(t.large.all) == 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.changed, nil
	}
	now := time.Now()
	var running []*transfer
	for _, tr := range t.byID {
		if tr.Status.State == mover.Running && !t.isSmall(tr.Request) { // those have places of their own
			running = append(running, tr)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	changed = t.changed
	if len(running) < places || slices.ContainsFunc(running, func(tr *transfer) bool { return tr.yields != "" || tr.Cancel }) {
		return changed, nil // there is a place, or there soon will be
	}
	slices.SortFunc(running, func(a, b *transfer) int {
		return cmp.Or(cmp.Compare(a.priority().Rank(), b.priority().Rank()), b.Status.Started.Compare(a.Status.Started))
	})
	higher, lower, at := t.pressing(running, now)
	if higher != nil {
		lower.yields = fmt.Sprintf("its turn: it gave way to %s, whose priority is %s", higher.Request.Source.Name, cmp.Or(higher.priority(), mover.PriorityNormal))
		lower.stop(errYields)
	}
	return changed, after(at)
}

// pressing returns the best queued transfer for which one of those that run, the lowest
// first, has to give way, and that one; or none, and when, if that is known, there may be
// one. A transfer whose last run could not move has only those in its way for a while whose
// route meets its own: the places of others it would leave unused. The caller holds
// changing, and mu.
func (t *table) pressing(running []*transfer, now time.Time) (higher, lower *transfer, wake time.Time) {
	later := func(at time.Time) {
		if wake.IsZero() || at.Before(wake) {
			wake = at
		}
	}
	for _, tr := range t.large.all {
		rank, by := tr.priority().Rank(), routeOf(tr.Request)
		if running[0].priority().Rank() >= rank {
			break // as are all that follow
		}
		if t.held(tr, now) {
			later(t.holds[by].until)
			continue
		}
		for _, r := range running {
			if r.priority().Rank() < rank && (!now.Before(tr.patient) || routeOf(r.Request).meets(by)) {
				return tr, r, wake
			}
		}
		later(tr.patient)
	}
	return nil, nil, wake
}

// after is time.After of a time; of the zero time it never comes.
func after(at time.Time) <-chan time.Time {
	if at.IsZero() {
		return nil
	}
	return time.After(time.Until(at))
}
