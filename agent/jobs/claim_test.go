package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

// shortTTL is a lease that a test can outlive, and a busy machine can renew.
const shortTTL = 9 * time.Second

func TestASlotHoldsItsLimitOverAllAgents(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		const limit, each = 3, 6
		agents := []*Store{open(t, claimTTL), open(t, claimTTL)}
		var jobs []agent.Job
		for n := range each {
			jobs = append(jobs, create(t, agents[0], n))
		}
		var mu sync.Mutex
		var claims []agent.Claim
		var workers sync.WaitGroup
		for _, s := range agents {
			for _, j := range jobs {
				workers.Go(func() {
					c, err := s.Claim(t.Context(), j, "send/B", limit)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						claims = append(claims, c)
					} else if !errors.Is(err, agent.ErrBusy) {
						t.Errorf("claim: %v", err)
					}
				})
			}
		}
		workers.Wait()
		if len(claims) != limit {
			t.Errorf("got %d claims, want %d", len(claims), limit)
		}
		other := create(t, agents[0], each)
		_, err := agents[0].Claim(t.Context(), other, "send/B", limit-1)
		wantErr(t, "claim after the limit was lowered", err, agent.ErrFull)
		c, err := agents[0].Claim(t.Context(), other, "send/C", 1)
		if err != nil {
			t.Fatalf("claim in another slot: %v", err)
		}
		for _, c := range append(claims, c) {
			c.Release()
			c.Release()
		}
		if c, err = agents[1].Claim(t.Context(), other, "send/B", 1); err != nil {
			t.Fatalf("claim after release: %v", err)
		}
		c.Release()
	})
}

func TestAClaimFencesItsUpdates(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s, person, ctx := open(t, claimTTL), open(t, claimTTL), t.Context()
		j := create(t, s, 1)
		_, err := s.Claim(ctx, sample(2), "send/B", 1)
		wantErr(t, "claim a job that is not there", err, agent.ErrNoJob)
		c := claimJob(t, s, j)
		_, err = person.Claim(ctx, j, "send/B", 100)
		wantErr(t, "claim a claimed job", err, agent.ErrBusy)
		_, err = person.Claim(ctx, j, "send/B", 1)
		if errors.Is(err, agent.ErrFull) {
			t.Errorf("claim a claimed job whose slot is full: %v", err)
		}

		if j, err = c.Update(ctx, j.Enter(agent.Offered, oclock, "")); err != nil {
			t.Fatal(err)
		}
		cancelled, err := person.Update(ctx, j.Enter(agent.Cancelling, oclock, "by a person"))
		if err != nil {
			t.Fatalf("a person's change of a claimed job: %v", err)
		}
		_, err = c.Update(ctx, j.Enter(agent.Staged, oclock, ""))
		wantErr(t, "worker's update after a person's", err, agent.ErrStale)
		if cancelled, err = c.Update(ctx, cancelled.Enter(agent.Cancelled, oclock, "")); err != nil {
			t.Fatalf("worker's update after reading anew: %v", err)
		}

		c.Release()
		_, err = c.Update(ctx, cancelled)
		wantErr(t, "update after release", err, agent.ErrLost)
		_, err = person.Claim(ctx, j, "send/B", 100)
		wantErr(t, "claim an old revision", err, agent.ErrStale)
		claimJob(t, person, cancelled)
		_, err = c.Update(ctx, cancelled)
		wantErr(t, "update while another has the claim", err, agent.ErrLost)
	})
}

func TestAClaimLastsUntilItIsReleasedOrRevoked(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s := open(t, shortTTL)
		j := create(t, s, 1)
		c := claimJob(t, s, j)
		select {
		case <-c.Context().Done():
			t.Fatalf("the claim ended: %v", context.Cause(c.Context()))
		case <-time.After(shortTTL): // what is tested is that nothing happens
		}
		_, err := open(t, shortTTL).Claim(t.Context(), j, "send/B", 100)
		wantErr(t, "claim a job whose claim is renewed", err, agent.ErrBusy)

		if _, err := s.etcd.Revoke(t.Context(), c.(*claim).lease); err != nil {
			t.Fatal(err)
		}
		_, err = c.Update(t.Context(), j)
		wantErr(t, "update without the lease", err, agent.ErrLost)
		wantErr(t, "cause of the claim's end", end(t, c), agent.ErrLost)
	})
}

func TestAClaimEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := embedded(t)(t, claimTTL)
	j := create(t, s, 1)
	ctx, cancel := context.WithCancel(t.Context())
	c, err := s.Claim(ctx, j, "send/B", 1)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	wantErr(t, "cause of the claim's end", end(t, c), context.Canceled)
	c.Release() // although its context has ended
	claimJob(t, s, j)
}

func TestAWorkerStopsBeforeAnotherMayClaim(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	s := e.open(t, shortTTL)
	j := create(t, s, 1)
	c := claimJob(t, s, j)
	before := time.Now()
	if err := e.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "cause of the claim's end", end(t, c), agent.ErrLost)
	if d := time.Since(before); d > shortTTL-500*time.Millisecond {
		t.Errorf("the claim ended after %v, its lease could end after %v", d, shortTTL)
	}
	if err := e.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	next := takeOver(t, e, j)
	next.Release()
	_, err := c.Update(t.Context(), j)
	wantErr(t, "update after another had the claim", err, agent.ErrLost)
}

// takeOver claims j through a new store as soon as it is free.
func takeOver(t *testing.T, e *external, j agent.Job) (c agent.Claim) {
	s := e.open(t, claimTTL)
	await(t, "the job is free", func() (ok bool) {
		var err error
		c, err = s.Claim(t.Context(), j, "send/B", 1)
		if err != nil && !errors.Is(err, agent.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil
	})
	return c
}

func TestProgressIsStoredAtMostOnceASecond(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s := open(t, claimTTL)
		j := create(t, s, 1)
		watch := s.Watch(t.Context())
		c := claimJob(t, s, j)
		began := time.Now()
		for n := range int64(1000) {
			c.Progress(agent.Progress{State: agent.Pending, Moved: n, Total: 999, At: oclock})
		}
		if d := time.Since(began); d > time.Minute { // they wait for nothing: it would be a second each
			t.Errorf("1000 reports took %v", d)
		}
		reports := 0
		for e, err := range watch {
			if err != nil || e.Progress == nil {
				t.Fatalf("got event %+v, error %v", e, err)
			}
			if reports++; e.Progress.Moved == 999 {
				if want := (agent.Progress{Job: j.ID, State: agent.Pending, Moved: 999, Total: 999, At: oclock}); *e.Progress != want {
					t.Errorf("got %+v, want %+v", *e.Progress, want)
				}
				break
			}
		}
		if most := 1 + int(time.Since(began)/progressEvery); reports > most {
			t.Errorf("%d reports in %v", reports, time.Since(began))
		}
		c.Release()
		r, err := s.etcd.Get(t.Context(), s.progress(j.ID))
		if err != nil || len(r.Kvs) != 0 {
			t.Errorf("progress outlives its claim: %v %v", r, err)
		}
	})
}

func BenchmarkClaim(b *testing.B) {
	s := embedded(b)(b, claimTTL)
	j := create(b, s, 1)
	for n := 0; b.Loop(); n++ {
		c, err := s.Claim(b.Context(), j, "send/B", 1)
		if err != nil {
			b.Fatal(fmt.Errorf("claim %d: %w", n, err))
		}
		c.Release()
	}
}
