package agent

import (
	"slices"
	"testing"
	"testing/synctest"
)

// TestAnImageThatIsThereIsNotPushedAgain pushes an image that its site has, then one that it
// does not answer for, and then one that it has lost.
func TestAnImageThatIsThereIsNotPushedAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(300_000)
		id := w.a.upload("debian", data)
		push := func() Job {
			t.Helper()
			jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
			if err != nil || len(jobs) != 1 {
				t.Fatalf("%+v, %v", jobs, err)
			}
			return jobs[0]
		}
		done := w.a.await(push().ID, Verified)
		legs := func(j Job) (all []string) {
			for _, l := range j.Legs() {
				all = append(all, l.Note)
			}
			return all
		}
		if len(legs(done)) != 3 {
			t.Fatalf("its legs are %q", legs(done))
		}

		again := push()
		synctest.Wait()
		if again.State != Verified || len(again.History) != len(done.History) || w.a.job(id).Rev != done.Rev {
			t.Errorf("pushed again it is %s: %+v", again.State, again.History)
		}

		w.locked(func() { w.b.down = true })
		if j := push(); j.State != Pending {
			t.Errorf("while site B does not answer it is %s", j.State)
		}
		w.locked(func() { w.b.down = false })
		if j := w.a.await(done.ID, Verified); !slices.Equal(legs(j), legs(done)) {
			t.Errorf("nothing was done, and its legs are %q, want %q", legs(j), legs(done))
		}

		w.locked(func() { w.b.remove(id) })
		if j := push(); j.State != Pending {
			t.Errorf("lost there it is %s", j.State)
		}
		w.a.await(done.ID, Parked) // an id that was deleted there is for a person to decide
	})
}
