package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/glance-dtn/glance-dtn/agent"
)

// session is what a command talks to: an agent that answers on the control socket,
// or one that lives in this process for as long as the command does.
type session struct {
	control
	runJobs func(ctx context.Context, ids []agent.JobID) error // nil: somebody else works
	close   func() error
}

// open returns the daemon's session; with --once, when no daemon answers, one of its own.
func (c *cli) open(ctx context.Context, w waiting) (*session, error) {
	if !w.once || answers(c.socket) {
		return &session{control: c.daemon(), close: func() error { return nil }}, nil
	}
	a, closeAll, err := inProcess(ctx, w.config, c.err)
	if err != nil {
		return nil, fmt.Errorf("no agent answers on %s, and none can run here: %w", c.socket, err)
	}
	return &session{control: a, runJobs: a.RunJobs, close: closeAll}, nil
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
