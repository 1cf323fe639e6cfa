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
	told  map[agent.JobID]told
	noted string
}

type told struct {
	until  time.Time // the history up to here has been printed
	reason string
}

func (l *lines) job(j agent.Job) {
	t := l.told[j.ID]
	for _, h := range lastRun(j) {
		if h.At.After(t.until) {
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

// line prints the time of day, the seconds since the job began, and what happened.
func (l *lines) line(at time.Time, j agent.Job, word, note string) {
	text := fmt.Sprintf("%s %8.1f s  %s  %-10s  %s", at.Local().Format(time.TimeOnly), at.Sub(began(j)).Seconds(), route(j), word, note)
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
