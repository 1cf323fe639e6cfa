package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

const (
	refreshEvery = 2 * time.Second // how late a change is seen when no event tells it
	agentMayRest = time.Minute     // how long an agent may not answer, for instance while it restarts
)

// view shows how jobs advance. It is called from one goroutine.
type view interface {
	job(j agent.Job)
	progress(p agent.Progress)
	note(text string)
	close()
}

// follow shows the jobs until all are final, and returns them as they were seen
// last, in the order of ids; also beside an error. Events only make it quick: what
// counts is what the agent answers when asked.
func follow(ctx context.Context, c control, ids []agent.JobID, v view) ([]agent.Job, error) {
	defer v.close()
	f := &following{ids: ids, last: map[agent.JobID]agent.Job{}, open: map[agent.JobID]bool{}, view: v}
	for _, id := range ids {
		f.open[id] = true
	}
	sub, cancel := context.WithCancel(ctx)
	events, ended := make(chan agent.Event), make(chan struct{})
	go func() { defer close(ended); subscribe(sub, c, events) }()
	defer func() { cancel(); <-ended }()

	err := f.until(ctx, c, events)
	return f.result(), err
}

// subscribe hands events on until ctx ends, and asks again when the stream breaks.
func subscribe(ctx context.Context, c control, to chan<- agent.Event) {
	for ctx.Err() == nil {
		for ev, err := range c.Watch(ctx) {
			if err != nil {
				break
			}
			select {
			case to <- ev:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

type following struct {
	ids  []agent.JobID
	last map[agent.JobID]agent.Job
	open map[agent.JobID]bool // not final yet
	view view
}

func (f *following) until(ctx context.Context, c control, events <-chan agent.Event) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	answered := time.Now()
	for {
		err := f.refresh(ctx, c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			answered = time.Now()
		case time.Since(answered) > agentMayRest || len(f.last) == 0:
			return err
		default:
			f.view.note("the agent does not answer; the jobs go on when it does")
		}
		for refresh := false; !refresh; {
			if len(f.open) == 0 {
				return nil
			}
			select {
			case ev := <-events:
				f.event(ev)
			case <-tick.C:
				refresh = true
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// refresh asks for the open jobs: one by one when they are few.
func (f *following) refresh(ctx context.Context, c control) error {
	if len(f.open) <= 4 {
		for id := range f.open {
			j, err := c.Job(ctx, id)
			switch {
			case errors.Is(err, agent.ErrNoJob) && f.last[id].ID != "":
				delete(f.open, id)
			case err != nil:
				return fmt.Errorf("follow job %s: %w", id, err)
			default:
				f.see(j)
			}
		}
		return nil
	}
	for j, err := range c.Jobs(ctx) {
		if err != nil && j.ID != "" && !f.open[j.ID] {
			continue // another job's record, which cannot be read
		}
		if err != nil {
			return fmt.Errorf("follow %d jobs: %w", len(f.open), err)
		}
		f.see(j)
	}
	return nil
}

func (f *following) event(ev agent.Event) {
	switch {
	case ev.Job != nil:
		f.see(*ev.Job)
	case ev.Progress != nil && f.open[ev.Progress.Job]:
		f.view.progress(*ev.Progress)
	case ev.Gone != "":
		delete(f.open, ev.Gone)
	}
}

// see takes note of a job, unless what is known of it is newer.
func (f *following) see(j agent.Job) {
	if !f.open[j.ID] || j.Updated.Before(f.last[j.ID].Updated) {
		return
	}
	f.last[j.ID] = j
	f.view.job(j)
	if j.State.Final() {
		delete(f.open, j.ID)
	}
}

func (f *following) result() []agent.Job {
	jobs := make([]agent.Job, 0, len(f.ids))
	for _, id := range f.ids {
		if j, ok := f.last[id]; ok {
			jobs = append(jobs, j)
		}
	}
	return jobs
}
