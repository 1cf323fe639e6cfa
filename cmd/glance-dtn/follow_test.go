package main

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
)

// jobsOnly is an agent of which only the reading of jobs is asked.
type jobsOnly struct {
	control
	mu     sync.Mutex
	jobs   map[agent.JobID]agent.Job
	down   bool
	events chan agent.Event // nil: the stream breaks at once
}

var errDown = errors.New("no agent answers")

func (f *jobsOnly) Job(_ context.Context, id agent.JobID) (agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, ok := f.jobs[id]
	switch {
	case f.down:
		return j, errDown
	case !ok:
		return j, agent.ErrNoJob
	}
	return j, nil
}

func (f *jobsOnly) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) {
		if f.events == nil {
			yield(agent.Event{}, errDown)
			return
		}
		for {
			select {
			case ev := <-f.events:
				if !yield(ev, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *jobsOnly) set(down bool, jobs ...agent.Job) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
	for _, j := range jobs {
		f.jobs[j.ID] = j
	}
}

func newJob(id agent.JobID) agent.Job {
	j := agent.Job{ID: id, Kind: agent.Send, Peer: "B", Image: glance.Image{Name: "debian-12", Size: 1 << 20}, Created: time.Now()}
	return j.Enter(agent.Pending, time.Now(), "")
}

func quiet() view { return &lines{w: &bytes.Buffer{}, told: map[agent.JobID]told{}} }

func TestFollowEndsWithoutAnyEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &jobsOnly{jobs: map[agent.JobID]agent.Job{}}
		j := newJob("1")
		a.set(false, j)
		time.AfterFunc(10*time.Second, func() { a.set(false, j.Enter(agent.Verified, time.Now(), "")) })
		jobs, err := follow(t.Context(), a, []agent.JobID{"1"}, quiet())
		if err != nil || len(jobs) != 1 || jobs[0].State != agent.Verified {
			t.Errorf("got %v, %v; want the verified job", jobs, err)
		}
	})
}

func TestFollowOutlivesARestartOfTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &jobsOnly{jobs: map[agent.JobID]agent.Job{}}
		j := newJob("1")
		a.set(false, j)
		time.AfterFunc(5*time.Second, func() { a.set(true) })
		time.AfterFunc(50*time.Second, func() { a.set(false, j.Enter(agent.Verified, time.Now(), "")) })
		jobs, err := follow(t.Context(), a, []agent.JobID{"1"}, quiet())
		if err != nil || len(jobs) != 1 || jobs[0].State != agent.Verified {
			t.Errorf("got %v, %v; want the verified job", jobs, err)
		}
	})
}

func TestFollowGivesUpOnAnAgentThatStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &jobsOnly{jobs: map[agent.JobID]agent.Job{}}
		a.set(false, newJob("1"))
		time.AfterFunc(time.Second, func() { a.set(true) })
		start := time.Now()
		jobs, err := follow(t.Context(), a, []agent.JobID{"1"}, quiet())
		if !errors.Is(err, errDown) || len(jobs) != 1 {
			t.Errorf("got %v, %v; want the job as it was seen last, and %v", jobs, err, errDown)
		}
		if waited := time.Since(start); waited < agentMayRest || waited > 2*agentMayRest {
			t.Errorf("gave up after %v, want about %v", waited, agentMayRest)
		}
	})
}

func TestFollowTakesAnEventAtOnceAndNoOlderAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &jobsOnly{jobs: map[agent.JobID]agent.Job{}, events: make(chan agent.Event, 2)}
		j := newJob("1")
		a.set(false, j)
		time.Sleep(time.Second)
		a.events <- agent.Event{Job: new(j.Enter(agent.Verified, time.Now(), ""))}
		start := time.Now()
		jobs, err := follow(t.Context(), a, []agent.JobID{"1"}, quiet())
		if err != nil || jobs[0].State != agent.Verified || time.Since(start) >= refreshEvery {
			t.Errorf("got %v, %v after %v; want the verified job at once", jobs, err, time.Since(start))
		}
	})
}

func TestFollowReturnsWhatIsKnownWhenTimeIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &jobsOnly{jobs: map[agent.JobID]agent.Job{}, events: make(chan agent.Event)}
		a.set(false, newJob("1"))
		ctx, cancel := context.WithTimeoutCause(t.Context(), 7*time.Second, errTimeout)
		defer cancel()
		jobs, err := follow(ctx, a, []agent.JobID{"1"}, quiet())
		if !errors.Is(err, errTimeout) || len(jobs) != 1 || jobs[0].State != agent.Pending {
			t.Errorf("got %v, %v; want the pending job and %v", jobs, err, errTimeout)
		}
	})
}

// A job's reason to be parked is told once: by the verdict that follows, or by lines that stand alone.
func TestLinesLeaveWhyToTheVerdict(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 3, 4, 0, time.Local)
	j := agent.Job{ID: "0123456789abcdef", Kind: agent.Send, Peer: "B", Image: glance.Image{Name: "debian-12"}, Created: at}
	j = j.Enter(agent.Pending, at, "").Enter(agent.Parked, at.Add(time.Second), "no room")
	j.Reason = "no room"
	for _, c := range []struct {
		lines lines
		want  string
	}{
		{lines{}, "12:03:04      0.0 s  debian-12 → B  pending\n12:03:05      1.0 s  debian-12 → B  parked\n"},
		{lines{alone: true, since: at}, "12:03:05      1.0 s  0123456789  debian-12 → B  parked      no room\n"},
	} {
		var b bytes.Buffer
		c.lines.w, c.lines.told = &b, map[agent.JobID]told{}
		c.lines.job(j)
		if b.String() != c.want {
			t.Errorf("got\n%swant\n%s", b.String(), c.want)
		}
	}
}

// jobs --watch tells what push --wait does: the reasons to wait too. What was before
// it began, and states that are not asked for, it does not.
func TestWatchTellsWhatJobsWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newJob("0000000000")
		time.Sleep(time.Minute)
		after := func(s int) time.Time { return time.Now().Add(time.Duration(s) * time.Second) }
		old = old.Enter(agent.Offered, after(1), "")
		staged := old.Enter(agent.Staged, after(2), "copy")
		waits := staged
		waits.Reason, waits.Updated = "site B does not answer", after(3)
		parked := staged.Enter(agent.Parked, after(4), "no room")
		ended := errors.New("ended")
		for _, c := range []struct {
			keep func(agent.Job) bool
			want []string
		}{
			{func(agent.Job) bool { return true }, []string{"offered", "staged      copy", "waits       site B does not answer", "parked      no room"}},
			{func(j agent.Job) bool { return j.State == agent.Parked }, []string{"parked      no room"}},
		} {
			var b bytes.Buffer
			err := (&cli{out: &b, format: "table"}).watchAll(t.Context(), streaming{broken: ended, events: []agent.Event{
				{Job: &old}, {Job: &staged}, {Job: &waits}, {Job: &waits}, {Job: &parked},
			}}, c.keep)
			if err != ended {
				t.Errorf("ends with %v, want %v", err, ended)
			}
			var got []string
			for line := range strings.Lines(b.String()) {
				_, what, _ := strings.Cut(line, "0000000000  debian-12 → B  ")
				got = append(got, strings.TrimSpace(what))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q in\n%s", got, c.want, b.String())
			}
		}
		for format, want := range map[string]string{
			"json": `{"job":{"id":"0000000000",`, "yaml": "---\njob:\n  id: \"0000000000\"\n",
		} {
			var b bytes.Buffer
			err := (&cli{out: &b, format: format}).watchAll(t.Context(), streaming{broken: ended, events: []agent.Event{
				{Job: &staged}, {Progress: &agent.Progress{Job: staged.ID, State: agent.Staged, Moved: 1}}, {Job: &parked},
			}}, func(j agent.Job) bool { return j.State == agent.Parked })
			if err != ended || !strings.HasPrefix(b.String(), want) || strings.Count(b.String(), "0000000000") != 1 {
				t.Errorf("-o %s: %v, after\n%s", format, err, b.String())
			}
		}
	})
}

func TestLinesTellEachStateAndEachReasonOnce(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 3, 4, 0, time.Local)
	j := agent.Job{ID: "1", Kind: agent.Send, Peer: "B", Image: glance.Image{Name: "debian-12"}, Created: at}
	var b bytes.Buffer
	l := &lines{w: &b, told: map[agent.JobID]told{}}

	j = j.Enter(agent.Pending, at, "")
	l.job(j)
	l.job(j)
	j = j.Enter(agent.Offered, at.Add(200*time.Millisecond), "").Enter(agent.Staged, at.Add(900*time.Millisecond), "hard link")
	l.job(j)
	j.Reason = "the DTN of site B does not answer"
	j.Updated = at.Add(2 * time.Second)
	l.job(j)
	l.job(j)
	l.job(j.Enter(agent.Moved, at.Add(61*time.Second), ""))

	want := `12:03:04      0.0 s  debian-12 → B  pending
12:03:04      0.2 s  debian-12 → B  offered
12:03:04      0.9 s  debian-12 → B  staged      hard link
12:03:06      2.0 s  debian-12 → B  waits       the DTN of site B does not answer
12:04:05     61.0 s  debian-12 → B  moved
`
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
