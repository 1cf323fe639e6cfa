package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Step does one leg of a job: it returns the job as it is to be stored, mostly
// in its next state. It is safe to repeat from whatever an earlier try left
// behind. With an error the job stays in its state, or goes where the returned job
// says, and is tried again: later and later, after the time that failure.After
// asks for, or not before a person has retried it (failure.Permanently).
type Step func(ctx context.Context, j Job, report func(moved, total int64)) (Job, error)

// pipeline returns the step for a job; final states have none.
func (a *Agent) pipeline(j Job) Step {
	switch j.Kind {
	case Send:
		return map[State]Step{
			Pending:    a.offer,
			Offered:    a.stage,
			Staged:     a.move,
			Moved:      a.awaitDelivery,
			Delivered:  a.finishSend,
			Cancelling: a.undoSend,
		}[j.State]
	case Receive:
		return map[State]Step{
			Expected:   a.awaitArrival,
			Arriving:   a.deliver,
			Delivered:  a.finishDelivery,
			Cancelling: a.undoDelivery,
		}[j.State]
	}
	return nil
}

// slot returns which of the site's places a job takes in its state, and how many of
// those there are. Each priority has its own: a job keeps its place while its transfer
// waits for one of a higher priority, whose job needs a place to submit it.
func (a *Agent) slot(j Job) (name string, limit int) {
	switch {
	case j.State == Cancelling, j.State == Expected:
		return "light", 10000
	case j.Kind == Receive: // by peer, so that one whose path is slow does not hold up the others
		name, limit = "deliver/"+j.Peer, a.settings.Load().DeliverJobs
	default:
		p, _ := a.peer(j.Peer)
		name, limit = "send/"+j.Peer, p.Jobs
	}
	if j.Priority.Rank() != 0 {
		name = string(j.Priority) + "/" + name
	}
	return name, max(1, limit)
}

// errReplaced ends a step whose job was changed by somebody else.
var errReplaced = errors.New("the job was changed")

// workers is the state of runWorkers; only its goroutine touches it.
type workers struct {
	jobs    map[JobID]Job // not final
	running map[JobID]*running
	used    map[string]int       // places taken by this agent, by slot
	full    map[string]time.Time // slots whose places other agents have: not before
	held    map[JobID]time.Time  // claimed elsewhere: not before
	wanted  map[JobID]bool       // RunJobs: end when all of these are final; nil: never
}

type running struct {
	slot     string
	state    State
	priority mover.Priority
	cancel   context.CancelCauseFunc
}

// worked tells that work on a job has ended, and the error of its claim.
type worked struct {
	id  JobID
	err error
}

// runWorkers works on every due job of the Store until ctx ends, or, when ids are
// given, on these until all are final.
func (a *Agent) runWorkers(ctx context.Context, ids []JobID) error {
	ctx, stop := context.WithCancel(ctx)
	events := make(chan Event)
	failed := make(chan error, 1)
	done := make(chan worked)
	w := &workers{jobs: map[JobID]Job{}, running: map[JobID]*running{}, used: map[string]int{}, full: map[string]time.Time{}, held: map[JobID]time.Time{}}
	if ids != nil {
		w.wanted = map[JobID]bool{}
		for _, id := range ids {
			w.wanted[id] = true
		}
	}
	_ = a.gate.Check(ctx) // before the first leg
	var watching sync.WaitGroup
	watching.Go(func() { a.gate.watch(ctx) })
	go func() { failed <- a.feed(ctx, events) }()
	defer func() {
		stop()
		defer a.tidying.Wait()
		defer watching.Wait()
		for len(w.running) > 0 {
			delete(w.running, (<-done).id)
		}
		<-failed
	}()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if w.wanted != nil && len(w.wanted) == 0 {
			return nil
		}
		timer.Reset(a.start(ctx, w, done))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			failed <- err
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		case e := <-events:
			a.note(ctx, w, e)
		case e := <-done:
			w.end(e)
		case <-a.gate.changed:
		case <-timer.C:
		}
	}
}

// feed sends every job of the Store and then every event to ch, until ctx ends or the Store fails.
func (a *Agent) feed(ctx context.Context, ch chan<- Event) error {
	send := func(e Event) bool {
		select {
		case ch <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	events := a.Store.Watch(ctx) // before the listing, so that nothing falls between
	if err := a.eachJob(ctx, func(j Job) error {
		send(Event{Job: &j})
		return ctx.Err()
	}); err != nil {
		return err
	}
	for e, err := range events {
		if e.Job != nil && err != nil {
			a.unreadable(e.Job.ID, err)
			continue
		}
		if err != nil {
			return err
		}
		if !send(e) {
			break
		}
	}
	return ctx.Err()
}

// eachJob calls f for every job of the Store until it returns an error. A record that
// cannot be read is left to a person; it holds nothing else up.
func (a *Agent) eachJob(ctx context.Context, f func(Job) error) error {
	for j, err := range a.Store.All(ctx) {
		if err != nil && j.ID != "" {
			a.unreadable(j.ID, err)
			continue
		}
		if err == nil {
			err = f(j)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) unreadable(id JobID, err error) {
	a.Log.Error("a job's record cannot be read; it is left alone", "job", id, "err", err)
}

func (a *Agent) note(ctx context.Context, w *workers, e Event) {
	switch {
	case e.Progress != nil:
		a.setProgress(*e.Progress)
	case e.Gone != "":
		delete(w.jobs, e.Gone)
		delete(w.wanted, e.Gone)
		a.over(e.Gone)
	case e.Job != nil:
		j := *e.Job
		if old, ok := w.jobs[j.ID]; ok && old.Rev > j.Rev {
			return
		}
		if r := w.running[j.ID]; r != nil && (r.state != j.State && (j.State == Cancelling || j.State == Parked) || r.priority != j.Priority && (j.State == Staged || j.State == Moved)) {
			r.cancel(errReplaced)
		}
		delete(w.held, j.ID)
		if j.State.Final() {
			if _, open := w.jobs[j.ID]; open && j.State == Verified && w.wanted == nil {
				a.tidying.Go(func() { a.tidy(ctx, j) })
			}
			delete(w.jobs, j.ID)
			delete(w.wanted, j.ID)
			a.over(j.ID)
			return
		}
		if j.Kind == Receive {
			a.receives(j)
		}
		w.jobs[j.ID] = j
	}
}

// end gives the job's place back. What another agent has is not asked for again and again:
// every change of a job comes as an event, only a claim ends without one.
func (w *workers) end(e worked) {
	slot := w.running[e.id].slot
	w.used[slot]--
	delete(w.running, e.id)
	switch now := time.Now(); {
	case errors.Is(e.err, ErrFull): // the slot rests, not this one of its jobs
		w.full[slot] = now.Add(fullAgain)
		delete(w.held, e.id)
	case errors.Is(e.err, ErrBusy):
		w.held[e.id] = now.Add(claimLasts + rand.N(claimLasts/3))
	default:
		delete(w.full, slot)
	}
}

// start starts what is due and has a place, the higher priority and then the oldest first, and returns how long until the next is due.
func (a *Agent) start(ctx context.Context, w *workers, done chan<- worked) time.Duration {
	now, next := time.Now(), time.Hour
	due := make([]Job, 0, len(w.jobs))
	for _, j := range w.jobs {
		if w.running[j.ID] != nil || w.wanted != nil && !w.wanted[j.ID] {
			continue
		}
		if j.Paused {
			if shut := a.gate.closed(j.box()); shut != nil && j.Reason == shut.Error() { // until the gate changes
				continue
			}
		}
		at := j.NotBefore
		if h := w.held[j.ID]; h.After(at) {
			at = h
		}
		if at.After(now) {
			next = min(next, at.Sub(now))
			continue
		}
		due = append(due, j)
	}
	slices.SortFunc(due, func(x, y Job) int {
		return cmp.Or(cmp.Compare(y.Priority.Rank(), x.Priority.Rank()), x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
	})
	for _, j := range due {
		slot, limit := a.slot(j)
		if w.used[slot] >= limit {
			continue
		}
		if at := w.full[slot]; at.After(now) {
			next = min(next, at.Sub(now))
			continue
		}
		w.used[slot]++
		// Whatever happens, this job is not tried again at once with what is known of it now.
		w.held[j.ID] = now.Add(2 * time.Second)
		next = min(next, 2*time.Second)
		jobCtx, cancel := context.WithCancelCause(ctx)
		w.running[j.ID] = &running{slot: slot, state: j.State, priority: j.Priority, cancel: cancel}
		go func() {
			err := a.work(jobCtx, j, slot, limit)
			cancel(nil)
			done <- worked{j.ID, err}
		}()
	}
	return next
}

// work claims one job and does its steps until it is final, has to wait, or needs a
// place of another slot. It returns why the job could not be claimed.
func (a *Agent) work(ctx context.Context, j Job, slot string, limit int) error {
	claim, err := a.Store.Claim(ctx, j, slot, limit)
	if err != nil {
		if !errors.Is(err, ErrBusy) && !errors.Is(err, ErrStale) && ctx.Err() == nil {
			a.Log.Warn("job not claimed", "job", j.ID, "err", err)
		}
		return err
	}
	defer claim.Release()
	if j.Paused && a.gate.closed(j.box()) == nil {
		j = resumed(j)
		if j, err = claim.Update(ctx, j); err != nil {
			return nil
		}
	}
	for {
		next, err := a.try(claim, j)
		if err != nil && claim.Context().Err() != nil {
			return nil // lost, replaced or shut down: the store tells what is next
		}
		next = a.settle(j, next, err)
		// A leg that is done is recorded even while shutting down.
		recCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		stored, uerr := claim.Update(recCtx, next)
		cancel()
		if uerr != nil {
			if !errors.Is(uerr, ErrStale) && !errors.Is(uerr, ErrLost) {
				a.Log.Warn("job not recorded; its step will be repeated", "job", j.ID, "state", next.State, "err", uerr)
			}
			return nil
		}
		a.logChange(j, stored)
		j = stored
		newSlot, _ := a.slot(j)
		if j.State.Final() || !j.NotBefore.IsZero() || newSlot != slot || ctx.Err() != nil {
			return nil
		}
	}
}

// tidy removes the copy that a verified job leaves on this site's export. What it does not
// get to, because the agent ends or the DTN stays away, a full pass sweeps up.
func (a *Agent) tidy(ctx context.Context, j Job) {
	for d := tidyAfter; d < time.Minute && pause(ctx, d); d *= 2 {
		if now, err := a.Store.Get(ctx, j.ID); err == nil && now.State != Verified {
			return // it was begun anew, and needs its copy
		}
		err := a.removeCopy(ctx, j)
		if err == nil || ctx.Err() != nil {
			return
		}
		a.Log.Warn("the copy of a verified job is not removed yet", "job", j.ID, "file", j.FileName(), "err", err)
	}
}

func (a *Agent) removeCopy(ctx context.Context, j Job) error {
	if j.Kind == Send {
		return a.Stager.Unstage(ctx, j.FileName())
	}
	return a.dropArrived(ctx, j.FileName())
}

// try runs the job's step. A panic is a failure that a person must see, not the end of the daemon.
func (a *Agent) try(claim Claim, j Job) (next Job, err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("a step panicked", "job", j.ID, "state", j.State, "err", p, "stack", string(debug.Stack()))
			next, err = j, failure.Permanently(fmt.Errorf("internal fault in state %s: %v; please report it with the agent's log", j.State, p))
		}
	}()
	step := a.pipeline(j)
	if step == nil {
		return j, failure.Permanently(fmt.Errorf("this version does not know the state %q of a %s job", j.State, j.Kind))
	}
	report := func(moved, total int64) {
		w := a.waiting(j.ID)
		claim.Progress(Progress{Job: j.ID, State: j.State, Moved: moved, Total: total, At: time.Now().UTC(), Waiting: w.reason, Bottleneck: w.bottleneck})
	}
	defer a.waits(j.ID, legWaits{})
	next, err = step(claim.Context(), j, report)
	if waits, why, ok := halted(j, err); ok {
		return waits, why
	}
	next.Paused = false
	return next, err
}

// settle returns the job to store after a step that was given j returned next and err.
func (a *Agent) settle(j, next Job, err error) Job {
	now := time.Now().UTC()
	next.Updated = now
	if err == nil {
		if next.State == j.State { // a step in two: go on at once
			next = resumed(next)
			next.Attempts = 0
		}
		return next
	}
	if failure.IsPermanent(err) {
		next = next.Enter(Parked, now, err.Error())
		next.Reason = err.Error()
		return next
	}
	next.Reason = err.Error()
	if d, ok := failure.Delay(err); ok {
		next.NotBefore = now.Add(max(d, time.Millisecond))
		return next
	}
	next.Attempts++
	s := a.settings.Load()
	next.NotBefore = now.Add(backoff(max(next.Attempts, next.Round), s.RetryMin, s.RetryMax))
	return next
}

// backoff doubles from lo to hi and adds up to a quarter, so that the jobs of a peer that was away do not come all at once.
func backoff(attempt int, lo, hi time.Duration) time.Duration {
	d := lo
	for range attempt - 1 {
		if d = 2 * d; d >= hi {
			d = hi
			break
		}
	}
	return d + rand.N(d/4+1)
}

func (a *Agent) logChange(old, j Job) {
	attrs := []any{"job", j.ID, "image", j.Image.ID, "name", j.Image.Name, "site", j.Peer, "state", j.State}
	switch {
	case j.State == Parked:
		a.JobLog.Error("a job needs a person", append(attrs, "err", j.Reason, "next", "glance-dtn retry "+string(j.ID))...)
	case j.Attempts > old.Attempts:
		a.JobLog.Warn("a leg failed and will be repeated", append(attrs, "attempts", j.Attempts, "err", j.Reason, "at", j.NotBefore)...)
	case j.Reason != "" && j.Reason != old.Reason && !j.State.Final():
		a.JobLog.Info("a job waits", append(attrs, "err", j.Reason, "at", j.NotBefore)...)
	case old.State != j.State:
		attrs = append(attrs, "bytes", j.Image.Size)
		if note := j.Note(); note != "" {
			attrs = append(attrs, "note", note)
		}
		a.JobLog.Info("job", attrs...)
	}
}
