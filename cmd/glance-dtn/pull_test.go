package main

import (
	"context"
	"errors"
	"iter"
	"testing"

	"github.com/glance-dtn/glance-dtn/agent"
)

// streaming is a control whose Watch yields these events and then breaks.
type streaming struct {
	control
	events []agent.Event
	broken error
}

func (s streaming) Watch(context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) {
		for _, ev := range s.events {
			if !yield(ev, nil) {
				return
			}
		}
		yield(agent.Event{}, s.broken)
	}
}

func (s streaming) Pulled(_ context.Context, from string, id agent.JobID) (agent.Job, error) {
	if from != "B" {
		return agent.Job{}, agent.ErrNoPeer
	}
	return agent.Job{ID: id, State: agent.Moved}, nil
}

func TestUploadHereIsShownAsProgressOfTheirJob(t *testing.T) {
	theirs := agent.Job{ID: "theirs", State: agent.Pending}
	here := agent.NewJobID(agent.Receive, theirs.Image.ID, theirs.Image.Hash, "B")
	other := agent.Job{ID: "other"}
	broken := errors.New("the stream broke")
	p := newPulled(streaming{broken: broken, events: []agent.Event{
		{Job: &other}, {Gone: "theirs"}, {Progress: &agent.Progress{Job: "other", Moved: 1}},
		{Progress: &agent.Progress{Job: here, State: agent.Arriving, Moved: 3, Total: 9}},
	}}, "B", theirs)
	if j, err := p.Job(t.Context(), "theirs"); err != nil || j.State != agent.Moved {
		t.Fatalf("Job = %+v, %v; want the job at site B, moved", j, err)
	}
	var got []agent.Progress
	var last error
	for ev, err := range p.Watch(t.Context()) {
		if last = err; err == nil {
			got = append(got, *ev.Progress)
		}
	}
	want := agent.Progress{Job: "theirs", State: agent.Moved, Moved: 3, Total: 9}
	if len(got) != 1 || got[0] != want || last != broken {
		t.Errorf("Watch yields %+v and ends with %v; want %+v and %v", got, last, want, broken)
	}
}
