package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

// mostBars is how many jobs have a bar each; more would scroll off the screen.
const mostBars = 16

// newView returns a view of n jobs on stderr: bars on a terminal, plain lines elsewhere.
func (c *cli) newView(n int) view {
	if isTerminal(c.err) && n <= mostBars {
		return newBars(behind(c.err))
	}
	return &lines{w: c.err, told: map[agent.JobID]told{}}
}

// lines is the view for logs: one line for each state, and one whenever a job
// begins to wait for something else.
type lines struct {
	w     io.Writer
	since time.Time // nothing is told of what was before
	alone bool      // no verdict follows: the lines tell ids and why a job is parked, too
	told  map[agent.JobID]told
	noted string
}

type told struct {
	until  time.Time // the history up to here has been printed
	reason string
}

func (l *lines) job(j agent.Job) {
	t, known := l.told[j.ID]
	if !known {
		t.until = l.since
	}
	for _, h := range lastRun(j) {
		if h.At.After(t.until) {
			if h.State == agent.Parked && !l.alone {
				h.Note = ""
			}
			l.line(h.At, j, string(h.State), h.Note)
			t.until = h.At
		}
	}
	if j.Reason != t.reason && j.Reason != "" && !j.State.Final() {
		l.line(j.Updated, j, "waits", j.Reason)
	}
	t.reason = j.Reason
	l.told[j.ID] = t
	l.noted = ""
}

// skip has nothing told of how the job is now.
func (l *lines) skip(j agent.Job) { l.told[j.ID] = told{until: j.Since(), reason: j.Reason} }

// line prints the time of day, the seconds since the job began, and what happened.
func (l *lines) line(at time.Time, j agent.Job, word, note string) {
	what := route(j)
	if l.alone {
		what = shortID(j.ID) + "  " + what
	}
	text := fmt.Sprintf("%s %8.1f s  %s  %-10s  %s", at.Local().Format(time.TimeOnly), at.Sub(began(j)).Seconds(), what, word, note)
	fmt.Fprintln(l.w, strings.TrimRight(text, " "))
}

func (l *lines) progress(agent.Progress) {}

func (l *lines) note(text string) {
	if text != l.noted {
		fmt.Fprintln(l.w, text)
		l.noted = text
	}
}

func (l *lines) close() {}
