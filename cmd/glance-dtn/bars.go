package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

// bars is the view for a terminal: one bar for each job, showing the leg that runs.
type bars struct {
	all  *mpb.Progress
	jobs map[agent.JobID]*bar
}

type bar struct {
	*mpb.Bar
	mu  sync.Mutex // the drawing goroutine reads leg
	leg leg
}

func newBars(w io.Writer) *bars {
	return &bars{all: mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh()), jobs: map[agent.JobID]*bar{}}
}

func (b *bars) add(j agent.Job) *bar {
	x := &bar{}
	text := func(part func(leg, time.Time) string) decor.DecorFunc {
		return func(decor.Statistics) string {
			x.mu.Lock()
			defer x.mu.Unlock()
			return part(x.leg, time.Now())
		}
	}
	x.Bar = b.all.New(0, mpb.BarStyle().Rbound("] "),
		mpb.BarWidth(32),
		mpb.PrependDecorators(
			decor.Name(string(harmless([]byte(route(j)))), decor.WCSyncSpaceR),
			decor.Any(text(leg.title), decor.WC{W: 10, C: decor.DindentRight}),
		),
		mpb.AppendDecorators(decor.Any(text(leg.numbers))),
	)
	b.jobs[j.ID] = x
	return x
}

func (b *bars) job(j agent.Job) {
	x, ok := b.jobs[j.ID]
	if !ok {
		x = b.add(j)
	}
	x.set(func(l leg) leg { return l.enter(j, time.Now()) })
	switch {
	case j.State == agent.Verified:
		x.SetTotal(max(j.Image.Size, 1), true)
	case j.State.Final():
		x.Abort(false)
	}
}

func (b *bars) progress(p agent.Progress) {
	if x, ok := b.jobs[p.Job]; ok {
		x.set(func(l leg) leg { return l.advance(p, time.Now()) })
	}
}

func (b *bars) note(string) {}

func (b *bars) close() {
	for _, x := range b.jobs {
		x.Abort(false)
	}
	b.all.Wait()
}

func (x *bar) set(next func(leg) leg) {
	x.mu.Lock()
	x.leg = next(x.leg)
	l := x.leg
	x.mu.Unlock()
	x.SetTotal(l.total, false)
	x.SetCurrent(l.moved)
}

// leg is the part of a job's way that a bar shows.
type leg struct {
	state        agent.State
	reason       string
	moved, total int64
	bottleneck   string
	speed        mover.Speed
	since        time.Time // when we first heard of the leg
}

// enter returns the leg that follows from the job.
func (l leg) enter(j agent.Job, now time.Time) leg {
	if l.state != j.State {
		l = leg{state: j.State, total: j.Image.Size, since: now}
	}
	l.reason = j.Reason
	return l
}

// advance returns the leg after a report of progress. One of another state is old.
func (l leg) advance(p agent.Progress, now time.Time) leg {
	if p.State != l.state || p.Total == 0 {
		return l
	}
	l.moved, l.total, l.bottleneck = p.Moved, p.Total, p.Bottleneck.Name()
	if p.Moved > 0 { // else nobody knows yet what an earlier attempt has moved
		l.speed = l.speed.At(now, p.Moved)
	}
	return l
}

// doing names what happens in a state.
var doing = map[agent.State]string{
	agent.Pending:    "offer",
	agent.Offered:    "stage",
	agent.Staged:     "move",
	agent.Moved:      "deliver",
	agent.Delivered:  "verify",
	agent.Expected:   "expect",
	agent.Arriving:   "deliver",
	agent.Cancelling: "undo",
	agent.Verified:   "active",
	agent.Parked:     "parked",
	agent.Cancelled:  "cancelled",
}

func (l leg) title(time.Time) string { return doing[l.state] }

// numbers tells what was moved, how fast, how long the rest takes, and the bottleneck; or
// what the job waits for.
func (l leg) numbers(now time.Time) string {
	switch {
	case l.state.Final():
		return ""
	case l.reason != "":
		return l.reason
	case l.moved == 0:
		return span(now.Sub(l.since))
	}
	text := fmt.Sprintf("%s / %s", size(l.moved), size(l.total))
	bits := l.speed.Rate(now)
	if bits <= 0 {
		return text
	}
	rest := time.Duration(8 * float64(l.total-l.moved) / bits * float64(time.Second))
	return strings.TrimRight(fmt.Sprintf("%s  %s  ETA %s  %s", text, rate(int64(bits/8), time.Second), eta(rest), l.bottleneck), " ")
}

// eta is span without the pretence of tenths of a second.
func eta(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return span(d)
}
