package main

import (
	"bytes"
	"context"
	"encoding/json"
	"iter"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

const ticketText = "eyJhbGciOiJFZERTQSJ9"

// ticketed is an agent that has a ticket for every job.
type ticketed struct{ *fakeAgent }

func (t ticketed) job() agent.Job {
	return agent.Job{ID: "aaaaaaaaaaaaaaaaaaaa", Kind: agent.Send, Peer: "B", State: agent.Verified, Offer: agent.Grant{Verdict: agent.Accept, Ticket: ticketText}}
}

func (t ticketed) Push(context.Context, string, []string, mover.Priority) ([]agent.Job, error) {
	return []agent.Job{t.job()}, nil
}
func (t ticketed) Pull(context.Context, string, string) (agent.Job, error) { return t.job(), nil }
func (t ticketed) Job(context.Context, agent.JobID) (agent.Job, error)     { return t.job(), nil }
func (t ticketed) Cancel(context.Context, agent.JobID) (agent.Job, error)  { return t.job(), nil }
func (t ticketed) Retry(context.Context, agent.JobID) (agent.Job, error)   { return t.job(), nil }
func (t ticketed) RunJobs(context.Context, []agent.JobID) error            { return nil }

func (t ticketed) Jobs(context.Context) iter.Seq2[agent.Job, error] {
	return func(yield func(agent.Job, error) bool) { yield(t.job(), nil) }
}

func (t ticketed) Watch(context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) { yield(agent.Event{Job: new(t.job())}, nil) }
}

// With --once the jobs come from this process, past the control API that strips them.
func TestOnceShowsNoTicket(t *testing.T) {
	s := ownSession(ticketed{}, func() error { return nil })
	var out bytes.Buffer
	c := &cli{out: &out, err: &out, format: "json"}
	jobs, err := s.Push(t.Context(), "debian-12", []string{"B"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.finish(t.Context(), s, jobs, waiting{once: true}); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, `"aaaaaaaaaaaaaaaaaaaa"`) || strings.Contains(text, ticketText) {
		t.Errorf("push --once -o json says\n%s", text)
	}
}

func TestNothingThatTellsAJobTellsItsTicket(t *testing.T) {
	ctx, s := t.Context(), ownSession(ticketed{}, nil)
	var told []any
	add := func(j agent.Job, err error) {
		if err != nil {
			t.Error(err)
		}
		told = append(told, j)
	}
	jobs, err := s.Push(ctx, "", nil, "")
	add(jobs[0], err)
	add(s.Pull(ctx, "", ""))
	add(s.Job(ctx, ""))
	add(s.Cancel(ctx, ""))
	add(s.Retry(ctx, ""))
	for j, err := range s.Jobs(ctx) {
		add(j, err)
	}
	for ev, err := range s.Watch(ctx) {
		add(*ev.Job, err)
	}
	text, err := json.Marshal(told)
	if err != nil || strings.Count(string(text), `"aaaaaaaaaaaaaaaaaaaa"`) != 7 || strings.Contains(string(text), ticketText) {
		t.Errorf("got %s, %v", text, err)
	}
}
