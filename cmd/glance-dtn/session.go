package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/mover"
)

// session is what a command talks to: an agent that answers on the control socket,
// or one that lives in this process for as long as the command does.
type session struct {
	control
	runJobs func(ctx context.Context, ids []agent.JobID) error // nil: somebody else works
	close   func() error
}

// open returns the daemon's session; with --once, when no daemon answers on the control
// socket or on that of the configuration, one of its own.
func (c *cli) open(ctx context.Context, w waiting) (*session, error) {
	if !w.once || answers(c.socket) {
		return sharedSession(c.daemon()), nil
	}
	none := func(err error) error {
		return fmt.Errorf("no agent answers on %s, and none can run here: %w", c.socket, err)
	}
	conf, err := config.LoadAgent(w.config, os.Getenv)
	if err != nil {
		return nil, badConfig(none(err))
	}
	if answers(conf.Control) {
		return sharedSession(api.NewControlClient(conf.Control)), nil
	}
	a, closeAll, err := inProcess(ctx, conf, c.err)
	if err != nil {
		return nil, none(err)
	}
	return ownSession(a, closeAll), nil
}

// sharedSession is the session of a daemon, which goes on after it.
func sharedSession(d control) *session {
	return &session{control: d, close: func() error { return nil }}
}

// worker is an agent in this process.
type worker interface {
	control
	RunJobs(ctx context.Context, ids []agent.JobID) error
}

// ownSession is the session of an agent that nobody else talks to.
func ownSession(w worker, closeAll func() error) *session {
	return &session{control: ticketless{w}, runJobs: w.RunJobs, close: closeAll}
}

// ticketless is an agent in this process as the control API shows one: the ticket in a
// job is for the DTN alone.
type ticketless struct{ control }

func (t ticketless) Push(ctx context.Context, image string, to []string, p mover.Priority) ([]agent.Job, error) {
	jobs, err := t.control.Push(ctx, image, to, p)
	for i, j := range jobs {
		jobs[i] = j.WithoutTicket()
	}
	return jobs, err
}

func (t ticketless) Pull(ctx context.Context, image, from string) (agent.Job, error) {
	j, err := t.control.Pull(ctx, image, from)
	return j.WithoutTicket(), err
}

func (t ticketless) Jobs(ctx context.Context) iter.Seq2[agent.Job, error] {
	return func(yield func(agent.Job, error) bool) {
		for j, err := range t.control.Jobs(ctx) {
			if !yield(j.WithoutTicket(), err) {
				return
			}
		}
	}
}

func (t ticketless) Job(ctx context.Context, id agent.JobID) (agent.Job, error) {
	j, err := t.control.Job(ctx, id)
	return j.WithoutTicket(), err
}

func (t ticketless) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) {
		for ev, err := range t.control.Watch(ctx) {
			if ev.Job != nil {
				ev.Job = new(ev.Job.WithoutTicket())
			}
			if !yield(ev, err) {
				return
			}
		}
	}
}

func (t ticketless) Cancel(ctx context.Context, id agent.JobID) (agent.Job, error) {
	j, err := t.control.Cancel(ctx, id)
	return j.WithoutTicket(), err
}

func (t ticketless) Retry(ctx context.Context, id agent.JobID) (agent.Job, error) {
	j, err := t.control.Retry(ctx, id)
	return j.WithoutTicket(), err
}

// use calls f and ends the session.
func (s *session) use(ctx context.Context, f func(context.Context) error) error {
	return errors.Join(f(ctx), s.close())
}

// working calls f while the session works on the jobs. f's error counts; the
// worker's stands for it when the worker ended first.
func (s *session) working(ctx context.Context, ids []agent.JobID, f func(context.Context) error) error {
	if s.runJobs == nil {
		return f(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.runJobs(ctx, ids); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	err := f(ctx)
	broken := context.Cause(ctx)
	cancel(nil)
	wg.Wait()
	if err != nil && broken != nil && !errors.Is(err, errInterrupted) {
		return broken
	}
	return err
}
