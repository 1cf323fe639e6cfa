package agent

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// submitted returns the priorities of the site's transfers, by image.
func (s *site) submitted() map[glance.ImageID]mover.Priority {
	all := map[glance.ImageID]mover.Priority{}
	s.w.locked(func() {
		for _, mv := range s.moves {
			for _, j := range s.jobs {
				if j.FileName() == mv.req.Source.Name {
					all[j.Image.ID] = mv.st.Priority
				}
			}
		}
	})
	return all
}

func TestAJobHasThePriorityOfItsRuleOrOfWhoPushes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.halt()
		w.a.settings.Rules = []Rule{
			{Name: "bulk", To: []string{"B"}, Match: Match{Names: []string{".*"}}, Priority: mover.PriorityLow},
			{Name: "golden", To: []string{"B"}, Match: Match{Names: []string{"golden"}}, Priority: mover.PriorityHigh},
			{Name: "other", To: []string{"B"}, Match: Match{Names: []string{"none"}}, Priority: mover.PriorityHigh},
		}
		w.a.boot()
		w.locked(func() { w.a.waits = "noon" })
		bulk, golden := w.a.upload("bulk", bytesOf(50_000)), w.a.upload("golden", bytesOf(60_000))
		pushed, plain := w.a.upload("pushed", bytesOf(70_000)), w.a.upload("plain", bytesOf(80_000))
		jobs, err := w.a.agent().Push(t.Context(), "pushed", []string{"B"}, mover.PriorityHigh)
		if err != nil || jobs[0].Priority != mover.PriorityHigh {
			t.Fatalf("pushed: %+v, %v", jobs, err)
		}
		if _, err := w.a.agent().Push(t.Context(), "plain", []string{"B"}, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := w.a.agent().Push(t.Context(), "plain", []string{"B"}, "urgent"); err == nil {
			t.Error("a priority that there is not is accepted")
		}
		w.locked(func() { w.a.waits = "" })
		ids := []glance.ImageID{bulk, golden, pushed, plain}
		for _, id := range ids {
			for w.a.job(id).ID == "" {
				time.Sleep(time.Second)
			}
			w.a.await(w.a.job(id).ID, Verified)
		}
		want := []mover.Priority{mover.PriorityLow, mover.PriorityHigh, mover.PriorityHigh, mover.PriorityLow}
		sent := w.a.submitted()
		for i, id := range ids {
			if sent[id] != want[i] || w.a.job(id).Priority != want[i] || w.b.job(id).Priority != want[i] {
				t.Errorf("image %d: the transfer is %q, the job %q, the peer's %q, want %q", i, sent[id], w.a.job(id).Priority, w.b.job(id).Priority, want[i])
			}
		}
	})
}

// TestHigherJobsAreStartedFirst has two places of each priority, and jobs that wait for
// those of the lowest.
func TestHigherJobsAreStartedFirst(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.a.waits = "noon" })
		var ids []JobID
		for _, c := range []struct {
			name string
			p    mover.Priority
		}{{"first", mover.PriorityLow}, {"second", mover.PriorityLow}, {"low", mover.PriorityLow}, {"normal", ""}, {"late", mover.PriorityLow}} {
			w.a.upload(c.name, bytesOf(30_000+len(ids)))
			jobs, err := w.a.agent().Push(t.Context(), c.name, []string{"B"}, c.p)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, jobs[0].ID)
			time.Sleep(time.Minute)
		}
		// What a person pushes again with another priority has that from then on.
		if jobs, err := w.a.agent().Push(t.Context(), "late", []string{"B"}, mover.PriorityHigh); err != nil || jobs[0].ID != ids[4] || jobs[0].Priority != mover.PriorityHigh {
			t.Fatalf("%+v, %v", jobs, err)
		}
		w.locked(func() { w.a.waits = "" })
		var order []time.Time
		for _, i := range []int{0, 3, 4, 2} {
			j := w.a.await(ids[i], Verified)
			at := slices.IndexFunc(j.History, func(c Change) bool { return c.State == Offered })
			order = append(order, j.History[at].At)
		}
		if !slices.IsSortedFunc(order, time.Time.Compare) {
			t.Errorf("the jobs were offered at %v", order)
		}
	})
}

// TestAHigherJobPassesLowerOnes that have the places at both sites: their files have been
// moved, and are uploaded.
func TestAHigherJobPassesLowerOnes(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.store = time.Second })
		push := func(name string, size int, p mover.Priority) JobID {
			t.Helper()
			w.a.upload(name, bytesOf(size))
			jobs, err := w.a.agent().Push(t.Context(), name, []string{"B"}, p)
			if err != nil {
				t.Fatal(err)
			}
			return jobs[0].ID
		}
		var low []JobID
		for i := range 3 {
			low = append(low, push(fmt.Sprint("low", i), 3_000_000+i, mover.PriorityLow))
			time.Sleep(10 * time.Second)
		}
		w.a.await(low[1], Moved)
		high := push("high", 30_000, mover.PriorityHigh)
		w.a.await(high, Verified)
		for i, want := range []State{Moved, Moved, Pending} {
			if j := w.a.await(low[i], Pending, Offered, Staged, Moved, Delivered, Verified); j.State != want {
				t.Errorf("then low job %d is %s, want %s", i, j.State, want)
			}
		}
		w.a.await(low[2], Verified)
	})
}

// wantOneTransfer fails unless A's DTN has one transfer a minute later, of this priority.
func (w *world) wantOneTransfer(p mover.Priority) {
	w.t.Helper()
	time.Sleep(time.Minute)
	synctest.Wait()
	list, err := w.a.agent().Transfers(w.t.Context())
	if err != nil || len(list) != 1 || list[0].Priority != p {
		w.t.Errorf("%+v, %v; want one transfer, of %s priority", list, err, p)
	}
}

// TestAPriorityReachesATransfer that waits at the DTN, through an agent that is killed
// before it has told it, too.
func TestAPriorityReachesATransfer(t *testing.T) {
	for _, dies := range []bool{false, true} {
		run(t, func(t *testing.T, w *world) {
			w.locked(func() { w.a.waits = "its turn" })
			data := bytesOf(300_000)
			id := w.a.upload("debian", data)
			jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			for w.a.await(jobs[0].ID, Staged).Transfer == "" {
				time.Sleep(time.Second)
			}
			if dies {
				w.inject(func(o op, after bool) fate {
					if o.site == "A" && o.name == "mover.Prioritise" && o.nth == 0 {
						return kill
					}
					return live
				})
			}
			if _, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, mover.PriorityHigh); err != nil {
				t.Fatal(err)
			}
			w.wantOneTransfer(mover.PriorityHigh)
			if p := w.b.job(id).Priority; p != mover.PriorityHigh {
				t.Errorf("killed %v: the peer's job has the priority %q", dies, p)
			}
			w.locked(func() { w.a.waits = "" })
			w.a.await(jobs[0].ID, Verified)
			w.wantDelivered(id, data)
		})
	}
}

// TestAPriorityReachesADelivery that waits at the peer, when its file is there already, and
// when that one could not be asked at first.
func TestAPriorityReachesADelivery(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.refuseUpload = errors.New("not now") })
		data := bytesOf(300_000)
		id := w.a.upload("debian", data)
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Moved)
		for _, p := range []mover.Priority{mover.PriorityHigh, mover.PriorityLow} {
			w.locked(func() { w.b.down = p == mover.PriorityLow })
			if _, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, p); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			w.locked(func() { w.b.down = false })
			time.Sleep(time.Hour)
			synctest.Wait()
			if j := w.b.job(id); j.Priority != p || j.State != Arriving {
				t.Errorf("the peer's job is %s with the priority %q, want %q", j.State, j.Priority, p)
			}
		}
		w.locked(func() { w.b.refuseUpload = nil })
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

// TestAPriorityLeavesAnUploadAlone that runs at the peer, the first or the second.
func TestAPriorityLeavesAnUploadAlone(t *testing.T) {
	for _, second := range []bool{false, true} {
		run(t, func(t *testing.T, w *world) {
			w.locked(func() {
				w.b.store = time.Second
				if second {
					w.b.refuseUpload = errors.New("not now")
				}
			})
			id := w.a.upload("debian", bytesOf(300_000))
			jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			w.a.await(jobs[0].ID, Moved)
			for second && w.b.job(id).Attempts == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			w.locked(func() { w.b.refuseUpload = nil })
			uploading := func() (yes bool) {
				w.locked(func() { yes = w.b.images[id] != nil && w.b.images[id].Status == glance.Saving })
				return yes
			}
			for !uploading() {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(3 * time.Second)
			before := w.b.job(id)
			if _, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, mover.PriorityHigh); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			if j := w.b.job(id); !uploading() || j.Rev != before.Rev || second != (j.Attempts > 0) {
				t.Errorf("second %v: uploading %v, the peer's job is %+v", second, uploading(), j)
			}
			w.a.await(jobs[0].ID, Verified)
		})
	}
}

// TestAPriorityBeginsNoDeliveryAnew that was parked while its site could not be asked.
func TestAPriorityBeginsNoDeliveryAnew(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.refuseUpload = errors.New("not now") })
		id := w.a.upload("debian", bytesOf(300_000))
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Moved)
		w.locked(func() { w.b.down, w.b.refuseUpload = true, failure.Permanently(errors.New("never")) })
		parked := w.b.await(w.b.job(id).ID, Parked)
		if _, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, mover.PriorityHigh); err != nil {
			t.Fatal(err)
		}
		w.locked(func() { w.b.down, w.b.refuseUpload = false, nil })
		w.a.await(jobs[0].ID, Parked)
		if j := w.b.job(id); j.Rev != parked.Rev {
			t.Errorf("the parked job is %s: %+v", j.State, j.History)
		}
	})
}

// TestAPriorityReachesATransferOfWhichNothingIsRecordedYet has the DTN's answer lost, and the
// configured PCP changed before it is asked again.
func TestAPriorityReachesATransferOfWhichNothingIsRecordedYet(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.inject(func(o op, after bool) fate {
			if o.site == "A" && o.name == "mover.Submit" && o.nth == 0 && after {
				return fail
			}
			return live
		})
		w.locked(func() { w.a.waits = "its turn" })
		id := w.a.upload("debian", bytesOf(300_000))
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		for j := w.a.job(id); j.State != Staged || j.Attempts == 0; j = w.a.job(id) {
			time.Sleep(10 * time.Millisecond)
		}
		settings := w.a.settings
		settings.PCP.Parallelism = 7
		if err := w.a.agent().Reload(settings); err != nil {
			t.Fatal(err)
		}
		if _, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, mover.PriorityHigh); err != nil {
			t.Fatal(err)
		}
		w.wantOneTransfer(mover.PriorityHigh)
		w.locked(func() { w.a.waits = "" })
		w.a.await(jobs[0].ID, Verified)
	})
}

// TestAJobSaysWhatItsTransferWaitsFor follows it to the end of the wait.
func TestAJobSaysWhatItsTransferWaitsFor(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.a.waits = "a limit lets nothing go to site B until Mon 18:00 CET" })
		w.a.upload("debian", bytesOf(300_000))
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Staged)
		time.Sleep(time.Minute)
		synctest.Wait()
		j, err := w.a.agent().Job(t.Context(), jobs[0].ID)
		if want := "the transfer waits: a limit lets nothing go to site B until Mon 18:00 CET"; err != nil || j.Reason != want || j.Attempts != 0 {
			t.Errorf("the job says %q after %d failures, %v", j.Reason, j.Attempts, err)
		}
		o, err := w.a.agent().Overview(t.Context())
		if err != nil || o.Images[0].Sites["B"].Reason != j.Reason {
			t.Errorf("the overview says %+v, %v", o.Images, err)
		}
		w.locked(func() { w.a.waits = "" })
		w.a.await(jobs[0].ID, Verified)
		if j, err := w.a.agent().Job(t.Context(), jobs[0].ID); err != nil || j.Reason != "" {
			t.Errorf("it has arrived and says %q, %v", j.Reason, err)
		}
	})
}

// TestAnImageThatWaitsForLongIsNotGivenUp has the sending DTN wait for a window, before the
// first byte and behind half of the file, for longer than a ticket lasts and than the
// receiving site waits for what is still.
func TestAnImageThatWaitsForLongIsNotGivenUp(t *testing.T) {
	for _, half := range []bool{false, true} {
		run(t, func(t *testing.T, w *world) {
			data := bytesOf(400_000)
			w.locked(func() {
				if half {
					w.pace = time.Second
					w.b.refuseUpload = errors.New("not now") // the next one waits for the whole file
				} else {
					w.a.waits = "noon"
				}
			})
			id := w.a.upload("debian", data)
			jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			if half {
				for w.b.job(id).Attempts == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			w.locked(func() { w.a.waits, w.b.refuseUpload = "noon", nil })
			w.a.await(jobs[0].ID, Staged)
			if half == (w.b.job(id).State == Expected) {
				t.Errorf("the peer's job is %s", w.b.job(id).State)
			}
			before := w.b.job(id)
			time.Sleep(silentMax + renewAfter)
			synctest.Wait()
			if j := w.b.job(id); j.State != before.State || len(j.History) != len(before.History) {
				t.Errorf("the peer's job was %s and is %s: %s", before.State, j.State, j.Note())
			}
			if j := w.a.job(id); j.State != Staged || j.Round < 3 || j.Attempts != 0 {
				t.Errorf("the job is %s in round %d after %d failures", j.State, j.Round, j.Attempts)
			}
			w.locked(func() { w.a.waits = "" })
			w.a.await(jobs[0].ID, Verified)
			w.wantDelivered(id, data)
		})
	}
}
