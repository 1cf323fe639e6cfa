package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

// route names a job for a person: its image, and where it goes or comes from.
func route(j agent.Job) string {
	name := j.Image.Name
	if name == "" {
		name = string(j.Image.ID)
	}
	if j.Kind == agent.Receive {
		return name + " ← " + j.Peer
	}
	return name + " → " + j.Peer
}

// lastRun is the history of the job since it was made, or taken up again after an end.
func lastRun(j agent.Job) []agent.Change {
	first := 0
	for i := range j.History {
		if i > 0 && j.History[i-1].State.Final() {
			first = i
		}
	}
	return j.History[first:]
}

// began is when the job's last run began.
func began(j agent.Job) time.Time {
	if run := lastRun(j); len(run) > 0 {
		return run[0].At
	}
	return j.Created
}

// verdict says what became of a job, and what a person has to do.
func verdict(j agent.Job) string {
	switch j.State {
	case agent.Verified:
		return verified(j)
	case agent.Parked:
		return fmt.Sprintf("%s is parked: %s\n  %s", about(j), j.Reason, goOn(j))
	case agent.Cancelled, agent.Cancelling:
		j.Reason = j.Note()
	}
	text := fmt.Sprintf("%s is %s", about(j), j.State)
	if j.Reason != "" {
		text += ": " + j.Reason
	}
	return text
}

// goOn says how a parked job of this site goes on once its cause is cured.
func goOn(j agent.Job) string {
	if j.Kind == agent.Receive {
		return fmt.Sprintf("then, at site %s: glance-dtn push %s --to %s", j.Peer, j.Image.ID, cmp.Or(j.Site, "SITE"))
	}
	return "then: glance-dtn retry " + string(j.ID)
}

// about is route with the image's id.
func about(j agent.Job) string {
	arrow := "→"
	if j.Kind == agent.Receive {
		arrow = "←"
	}
	return fmt.Sprintf("%s %s %s", j.Image.Label(), arrow, j.Peer)
}

// leastWait is how long an image's way has to wait for one place before that is worth a word.
const leastWait = time.Second

func verified(j agent.Job) string {
	where := "at " + j.Peer
	if j.Kind == agent.Receive {
		where = "here"
	}
	if j.DeliverAs != "" && j.DeliverAs != j.Image.ID {
		where += " as " + string(j.DeliverAs)
	}
	text := fmt.Sprintf("%s is active %s, %s %s…, %s", j.Image.Label(), where, j.Image.Hash.Algo, j.Image.Hash.Short(), size(j.Image.Size))
	if !travelled(j) {
		return text + ", nothing had to be moved"
	}
	took := j.Updated.Sub(began(j))
	text = fmt.Sprintf("%s in %s (%s)", text, span(took), rate(j.Image.Size, took))
	if w := j.Waited; w.For >= leastWait {
		text += fmt.Sprintf("; bottleneck: %s, %s of it", w.Name(), span(w.For))
	}
	return text
}

// travelled reports whether the image's bytes came over the network.
func travelled(j agent.Job) bool {
	leg := agent.Staged
	if j.Kind == agent.Receive {
		leg = agent.Arriving
	}
	return j.LocalCopy == "" && slices.ContainsFunc(lastRun(j), func(h agent.Change) bool { return h.State == leg })
}

// codeFor returns the exit code that tells what became of the jobs.
func codeFor(jobs []agent.Job) int {
	var t tally
	for _, j := range jobs {
		t.add(j.State == agent.Verified, j.State == agent.Parked)
	}
	return t.code()
}

// tally counts what is as it should be, what needs a person, and all.
type tally struct{ all, done, parked int }

func (t *tally) add(done, parked bool) {
	t.all++
	if done {
		t.done++
	}
	if parked {
		t.parked++
	}
}

func (t tally) code() int {
	switch {
	case t.done == t.all:
		return exitDone
	case t.done > 0:
		return exitPartly
	case t.parked > 0:
		return exitPerson
	}
	return exitFailed
}

// waitFor is await for the agent's own jobs.
func (c *cli) waitFor(ctx context.Context, from control, ids []agent.JobID, timeout time.Duration) error {
	rest := "it goes on by itself: glance-dtn jobs --watch "
	if s, ok := from.(*session); ok && s.runJobs != nil {
		rest = "it goes on when an agent runs, or with: glance-dtn push --once; its job is "
	}
	return c.await(ctx, from, ids, timeout, func(jobs []agent.Job) error {
		return writeVerdicts(c.out, jobs, rest)
	})
}

// await follows the jobs and tells what became of them. The error carries the exit code.
func (c *cli) await(ctx context.Context, from control, ids []agent.JobID, timeout time.Duration, tell func([]agent.Job) error) error {
	followed, cancel := ctx, func() {}
	if timeout > 0 {
		followed, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
	}
	defer cancel()
	jobs, err := follow(followed, from, ids, c.newView(len(ids)))
	if perr := c.print(jobs, func() error { return tell(jobs) }); perr != nil {
		return perr
	}
	switch {
	case ctx.Err() != nil:
		return errInterrupted
	case errors.Is(err, errTimeout):
		return &codeError{code: max(codeFor(jobs), exitFailed), err: fmt.Errorf("%w of %s", errTimeout, span(timeout))}
	case err != nil:
		return err
	}
	return withCode(codeFor(jobs))
}

var errTimeout = errors.New("not done within --timeout")

// writeVerdicts adds rest, and the id, to the verdict of a job that has not ended.
func writeVerdicts(w io.Writer, jobs []agent.Job, rest string) error {
	for _, j := range jobs {
		text := verdict(j)
		if !j.State.Final() {
			text += "\n  " + rest + string(j.ID)
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}
