package agent

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// elsewhere has another agent of the site, which dies with ctx, have claimed a job; w.mu is held.
func (s *site) elsewhere(ctx context.Context, id JobID, slot string) {
	c := &claim{s: s, id: id, slot: slot, owner: ctx}
	c.ctx, c.cancel = context.WithCancel(ctx)
	s.claims[id] = c
}

// asked returns how many claims the site's agent asks for in this time.
func (s *site) asked(d time.Duration) (n int) {
	s.w.locked(func() { n = -s.counts["store.Claim"] })
	time.Sleep(d)
	s.w.locked(func() { n += s.counts["store.Claim"] })
	return n
}

// TestASlotThatAnotherAgentFillsIsAskedForSeldom has jobs wait for one of its two places.
func TestASlotThatAnotherAgentFillsIsAskedForSeldom(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		other, dies := context.WithCancel(t.Context())
		w.locked(func() {
			w.a.elsewhere(other, "1", "send/B")
			w.a.elsewhere(other, "2", "send/B")
		})
		var ids []JobID
		for i := range 100 {
			jobs, err := w.a.agent().Push(t.Context(), string(w.a.upload(fmt.Sprint(i), bytesOf(1000+i))), []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, jobs[0].ID)
			time.Sleep(time.Second) // oldest first
		}
		const long = 10 * time.Minute
		if got, most := w.a.asked(long), 2*int(long/fullAgain+1); got > most {
			t.Errorf("%d claims were asked for, want at most %d: one a place", got, most)
		}
		free := time.Now()
		dies()
		j := w.a.await(ids[0], Verified)
		at := slices.IndexFunc(j.History, func(c Change) bool { return c.State == Offered })
		if d := j.History[at].At.Sub(free); d > fullAgain+time.Second {
			t.Errorf("a place was taken %v after it was free", d)
		}
		w.a.await(ids[99], Verified)
	})
}

// TestAJobThatAnotherAgentHasIsAskedForSeldom has that one die without a change of the jobs.
func TestAJobThatAnotherAgentHasIsAskedForSeldom(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		other, dies := context.WithCancel(t.Context())
		const jobs = 100
		w.locked(func() {
			for range jobs {
				id := newImageID()
				j := Job{Kind: Receive, Peer: "A", ID: JobID(randomID()), Created: time.Now(), DeliverAs: id, Image: glance.Image{ID: id}}
				w.b.elsewhere(other, j.ID, "light")
				w.b.put(j.Enter(Expected, time.Now(), ""))
			}
		})
		const long = 10 * time.Minute
		if got, most := w.b.asked(long), jobs*int(long/claimLasts+1); got > most {
			t.Errorf("%d claims were asked for, want at most %d", got, most)
		}
		dies()
		time.Sleep(claimLasts*4/3 + time.Second)
		w.locked(func() {
			for id, c := range w.b.claims {
				if c.owner == other {
					t.Errorf("job %s is not taken over", id)
				}
			}
			if len(w.b.claims) != jobs {
				t.Errorf("%d jobs are worked on, want %d", len(w.b.claims), jobs)
			}
		})
	})
}
