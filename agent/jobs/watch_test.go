package jobs

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/glance-dtn/glance-dtn/agent"
)

// until reads a watch until done says that it has seen enough.
func until(t *testing.T, watch iter.Seq2[agent.Event, error], done func(e agent.Event) bool) {
	t.Helper()
	for e, err := range watch {
		if err != nil {
			t.Fatal(err)
		}
		if done(e) {
			return
		}
	}
	t.Fatal("the watch ended")
}

func TestWatchThenAllMissesNothing(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		const writers, each = 4, 25
		s := open(t, claimTTL)
		var writing sync.WaitGroup
		for w := range writers {
			writing.Go(func() {
				for n := range each {
					if err := s.Create(t.Context(), sample(w*each+n)); err != nil {
						t.Errorf("create: %v", err)
					}
				}
			})
		}
		defer writing.Wait()
		await(t, "some jobs are there", func() bool { keys, _, err := s.list(t.Context()); return err != nil || len(keys) > 5 })

		watch := s.Watch(t.Context())
		seen := map[agent.JobID]bool{}
		for j, err := range s.All(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			seen[j.ID] = true
		}
		if len(seen) < writers*each {
			until(t, watch, func(e agent.Event) bool {
				seen[e.Job.ID] = true
				return len(seen) == writers*each
			})
		}
	})
}

func TestWatchYieldsEveryKindOfChange(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s, ctx := open(t, claimTTL), t.Context()
		old := create(t, s, 0)
		watch := s.Watch(ctx)
		next, stop := iter.Pull2(watch)
		defer stop()
		event := func() string {
			e, err, ok := next()
			switch {
			case err != nil || !ok:
				t.Fatalf("watch: %v %v", err, ok)
			case e.Job != nil:
				return fmt.Sprintf("%s is %s at %d", e.Job.ID, e.Job.State, e.Job.Rev)
			case e.Gone != "":
				return fmt.Sprintf("%s is gone", e.Gone)
			}
			return fmt.Sprintf("%s moved %d", e.Progress.Job, e.Progress.Moved)
		}
		want := func(s string) {
			t.Helper()
			if got := event(); got != s {
				t.Errorf("got %q, want %q", got, s)
			}
		}
		j := create(t, s, 1)
		want(fmt.Sprintf("%s is pending at %d", j.ID, j.Rev))
		c := claimJob(t, s, j)
		c.Progress(agent.Progress{Moved: 5})
		want(fmt.Sprintf("%s moved 5", j.ID))
		c.Release() // the claim, its place and the report go: not a job's change
		old, err := s.Update(ctx, old.Enter(agent.Cancelled, oclock, ""))
		if err != nil {
			t.Fatal(err)
		}
		want(fmt.Sprintf("%s is cancelled at %d", old.ID, old.Rev))
		if err := s.Delete(ctx, old); err != nil {
			t.Fatal(err)
		}
		want(fmt.Sprintf("%s is gone", old.ID))
	})
}

func TestASlowReaderGetsTheLatest(t *testing.T) {
	t.Parallel()
	s := embedded(t)(t, claimTTL)
	ctx := t.Context()
	first, j := create(t, s, 0), create(t, s, 1)
	watch := s.Watch(ctx)
	if _, err := s.Update(ctx, first); err != nil {
		t.Fatal(err)
	}
	jobs := 0
	until(t, watch, func(e agent.Event) bool {
		if e.Job.ID == first.ID { // while this one is looked at, the other changes a lot
			for range 200 {
				var err error
				if j, err = s.Update(ctx, j); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Update(ctx, get(t, s, first.ID)); err != nil {
				t.Fatal(err)
			}
			return jobs > 0
		}
		jobs++
		return e.Job.Rev == j.Rev
	})
	if jobs > 20 {
		t.Errorf("got %d events for one job", jobs)
	}
}

func TestAWatchThatFellBehindTellsWhatIsThere(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s, ctx := open(t, claimTTL), t.Context()
		kept, removed := create(t, s, 1), create(t, s, 2)
		watch := s.Watch(ctx)
		removed, err := s.Update(ctx, removed.Enter(agent.Parked, oclock, ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, removed); err != nil {
			t.Fatal(err)
		}
		made := create(t, s, 3)
		if _, err := s.etcd.Compact(ctx, made.Rev, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		want := map[agent.JobID]string{kept.ID: "here", removed.ID: "gone", made.ID: "here"}
		var later agent.Job
		until(t, watch, func(e agent.Event) bool {
			if e.Job != nil && want[e.Job.ID] == "here" {
				delete(want, e.Job.ID)
			} else if want[e.Gone] == "gone" {
				delete(want, e.Gone)
			}
			if len(want) == 0 && later.ID == "" {
				later = create(t, s, 4) // and it goes on
			}
			return e.Job != nil && e.Job.ID == later.ID
		})
	})
}

func TestAWatchReportsARecordThatCannotBeReadAndGoesOn(t *testing.T) {
	t.Parallel()
	s := embedded(t)(t, claimTTL)
	watch := s.Watch(t.Context())
	if _, err := s.etcd.Put(t.Context(), s.job("newer"), `{"v":2}`); err != nil {
		t.Fatal(err)
	}
	j := create(t, s, 1)
	failed := false
	for e, err := range watch {
		if err != nil {
			failed = e.Job != nil && e.Job.ID == "newer"
		} else if e.Job.ID == j.ID {
			break
		}
	}
	if !failed {
		t.Error("the record was not reported")
	}
}

func TestAWatchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := embedded(t)(t, claimTTL)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := s.Watch(ctx)
	create(t, s, 1)
	for _, err := range watch {
		if err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	for e, err := range s.Watch(ctx) {
		t.Errorf("got %+v, %v", e, err)
	}
}
