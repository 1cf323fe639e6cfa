package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// TestAHalfMadeImageIsSentAgain has a job end, or be lost, behind its offer: the peer has the
// empty record then, and no job that goes on.
func TestAHalfMadeImageIsSentAgain(t *testing.T) {
	for name, ends := range map[string]func(t *testing.T, w *world, id glance.ImageID, job JobID){
		"replicated after a person's cancel": func(t *testing.T, w *world, id glance.ImageID, job JobID) {
			if _, err := w.a.agent().Cancel(t.Context(), job); err != nil {
				t.Fatal(err)
			}
			w.a.await(job, Cancelled)
			time.Sleep(time.Hour) // full passes
			if j := w.a.job(id); j.State != Cancelled {
				t.Fatalf("what a person has cancelled is %s without one", j.State)
			}
			for _, c := range []struct {
				dry bool
				job JobID
			}{{true, ""}, {false, job}, {true, job}} { // it can still not be staged
				all, err := w.a.agent().Replicate(t.Context(), Match{Names: []string{"x"}}, []string{"B"}, "", c.dry)
				if err != nil || len(all) != 1 || !all[0].Planned || all[0].Job != c.job || all[0].Detail != "at B: half made" {
					t.Fatalf("%+v: %+v, %v", c, all, err)
				}
			}
			w.locked(func() { w.a.refuseStage = nil })
		},
		"its store was lost": func(t *testing.T, w *world, _ glance.ImageID, job JobID) {
			w.a.halt()
			w.locked(func() {
				delete(w.a.jobs, job)
				w.a.refuseStage = nil
			})
			w.a.boot()
		},
		"the image seemed to be gone": func(t *testing.T, w *world, id glance.ImageID, job JobID) {
			var r *record
			w.locked(func() {
				r = w.a.images[id]
				delete(w.a.images, id)
			})
			w.a.agent().Hint(glance.Hint{ID: id})
			w.a.await(job, Cancelled)
			w.locked(func() { w.a.images[id], w.a.refuseStage = r, nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.a.settings.Rules = []Rule{{Name: "some", Match: Match{Names: []string{"x"}}, To: []string{"B"}}}
				w.a.halt()
				w.a.boot()
				w.locked(func() { w.a.refuseStage = ErrSpace })
				data := bytesOf(40_000)
				id := w.a.upload("x", data)
				job := NewJobID(Send, id, sum(data), "B")
				w.a.agent().Hint(glance.Hint{ID: id})
				time.Sleep(time.Second)
				w.a.await(job, Offered)
				time.Sleep(time.Minute)
				w.a.upload("other", nil) // no listing of what has changed has x after this one
				ends(t, w, id, job)
				time.Sleep(time.Minute)
				w.a.await(job, Verified)
				w.wantDelivered(id, data)
			})
		})
	}
}

// TestAHalfMadeImageIsNotSentOn has site A get an image that another site sends it, and that is
// active and hidden for as long.
func TestAHalfMadeImageIsNotSentOn(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := w.a.upload("x", bytesOf(1000))
		w.locked(func() {
			w.a.images[id].Hidden = true
			w.a.images[id].Properties = map[string]string{glance.PropJob: randomID()}
		})
		all, err := w.a.agent().Replicate(t.Context(), Match{}, []string{"B"}, "", false)
		if err != nil || len(all) != 1 || all[0].Planned || all[0].Relation != Unready || all[0].Detail != "here: half made" {
			t.Errorf("replicated: %+v, %v", all, err)
		}
		for _, image := range []string{"x", string(id)} {
			if jobs, err := w.a.agent().Push(t.Context(), image, []string{"B"}, ""); !errors.Is(err, ErrBadState) {
				t.Errorf("pushed as %s: %+v, %v", image, jobs, err)
			}
		}
	})
}

// TestAnUploadThatBrokeOffHasItsOwnTime interrupts the uploads of a file that comes slowly,
// each when it has run for longer than an image may be stuck: its id is not given up for that.
func TestAnUploadThatBrokeOffHasItsOwnTime(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.b.settings.OnDeletedID = OnDeletedNewID
		w.b.halt()
		w.b.boot()
		w.locked(func() { w.pace, w.b.late = 40*time.Second, 10*time.Second })
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, err := w.a.agent().Push(t.Context(), "x", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.b.await(NewJobID(Receive, id, sum(data), "A"), Arriving)
		for range 2 {
			time.Sleep(110 * time.Minute)
			w.locked(func() {
				if r := w.b.images[id]; r == nil || r.Status != glance.Saving {
					t.Errorf("the image is %+v, want it to be uploaded", r)
				}
				w.b.store = time.Minute // the next time
			})
			w.b.halt()
			w.b.boot()
		}
		time.Sleep(time.Minute)
		w.locked(func() { w.b.store = time.Millisecond })
		if j := w.a.await(jobs[0].ID, Verified); j.DeliverAs != id {
			t.Errorf("delivered as %s, want %s", j.DeliverAs, id)
		}
		w.wantDelivered(id, data)
	})
}

// TestAnUploadThatEndsBesideItsCancelIsFinished has Glance get the last byte before the
// connection is cut, and call the image active a while later.
func TestAnUploadThatEndsBesideItsCancelIsFinished(t *testing.T) {
	for _, at := range []string{"A", "B"} {
		t.Run(at, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.locked(func() { w.b.store, w.b.late = time.Minute, 10*time.Second })
				data := bytesOf(10_000) // which Glance is given at once
				id := w.a.upload("x", data)
				jobs, err := w.a.agent().Push(t.Context(), "x", []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				w.a.await(jobs[0].ID, Moved)
				time.Sleep(10 * time.Second)
				s := map[string]*site{"A": w.a, "B": w.b}[at]
				if _, err := s.agent().Cancel(t.Context(), s.job(id).ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if d, err := w.b.agent().Delivery(t.Context(), "A", w.b.job(id).ID); err != nil || d.State != Cancelling || !strings.HasPrefix(d.Reason, "cancelled by ") || !strings.Contains(d.Reason, "still saving") {
					t.Errorf("A is told %+v, %v; want why it is cancelled, and what is waited for", d, err)
				}
				w.b.await(w.b.job(id).ID, Verified)
				if at == "B" { // A has asked before it was active, and is told when it asks again
					w.a.await(jobs[0].ID, Parked)
					w.retried(jobs[0].ID, id, data)
					return
				}
				if j := w.a.await(jobs[0].ID, Verified, Cancelled); j.State != Verified || j.Stopped {
					t.Errorf("A's job is %s, stopped %v, want it verified as B's is", j.State, j.Stopped)
				}
				w.wantDelivered(id, data)
			})
		})
	}
}

// TestAnImageThatACancelledDeliveryLeftIsReported among others that a delivery will go on with,
// or has told of.
func TestAnImageThatACancelledDeliveryLeftIsReported(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		want := map[glance.ImageID]bool{}
		w.locked(func() {
			for _, c := range []struct {
				image  glance.Status
				job    State
				wanted bool
			}{
				{glance.Active, Cancelled, true}, {glance.Saving, Cancelled, true}, {glance.Active, "", true},
				{glance.Active, Parked, false}, {glance.Queued, Cancelled, false},
			} {
				id, job, now := newImageID(), JobID(randomID()), time.Now()
				want[id] = c.wanted
				w.b.images[id] = &record{Image: glance.Image{ID: id, Status: c.image, Hidden: true, UpdatedAt: now, Properties: map[string]string{glance.PropJob: string(job)}}}
				if c.job != "" {
					w.b.put(Job{Kind: Receive, Peer: "A", ID: job, Created: now, DeliverAs: id, Image: glance.Image{ID: id}}.Enter(c.job, now, ""))
				}
			}
		})
		time.Sleep(2 * time.Hour)
		o, err := w.b.agent().Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := map[glance.ImageID]bool{}
		for _, f := range o.Store {
			got[f.ID] = true
			if strings.Contains(f.Note, "delete ") || !strings.Contains(f.Note, "new-id here, then push it again") {
				t.Errorf("image %s: %q, want its id kept", f.ID, f.Note)
			}
		}
		for id, wanted := range want {
			if got[id] != wanted {
				t.Errorf("image %+v is reported: %v, want %v", w.b.images[id].Image, got[id], wanted)
			}
		}
	})
}

// TestWhatACancelLeavesIsTold with what to do, at both sites, as long as nothing goes on with it.
func TestWhatACancelLeavesIsTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.a.refuseStage = ErrSpace })
		id := w.a.upload("x", bytesOf(4000))
		push := func() JobID {
			t.Helper()
			jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			w.a.await(jobs[0].ID, Offered)
			return jobs[0].ID
		}
		job := push()
		tells := func(s *site, peer, why string) {
			t.Helper()
			want := ""
			if why != "" {
				want = why + "; its empty record stays at site B, hidden, for the next delivery; if site A has the image and does not offer it again by itself, there: glance-dtn push " +
					string(id) + " --to B; if the image is not wanted, leave the record: site B removes it when no peer has the image and the job is older than keep"
			}
			o, err := s.agent().Overview(t.Context())
			if err != nil || len(o.Images) != 1 || o.Images[0].Sites[peer].Relation != Unready {
				t.Fatalf("status: %+v, %v", o.Images, err)
			}
			told := o.Images[0].Sites[peer].Reason
			if peer == "A" {
				_, told, _ = strings.Cut(o.Images[0].Note, ": ")
			}
			all, err := s.agent().Compare(t.Context(), []string{peer}, Match{})
			if err != nil || len(all) != 1 {
				t.Fatalf("compare: %+v, %v", all, err)
			}
			switch detail := all[0].Detail; {
			case want == "" && (strings.Contains(told, "empty record") || !strings.HasSuffix(detail, ": half made")):
				t.Errorf("status tells %q, compare %q, of an image on its way", told, detail)
			case want != "" && (told != want || detail != want):
				t.Errorf("status tells %q, compare %q, want %q", told, detail, want)
			}
		}
		tells(w.a, "B", "")
		tells(w.b, "A", "")
		if _, err := w.a.agent().Cancel(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		w.a.await(job, Cancelled)
		w.b.await(NewJobID(Receive, id, sum(bytesOf(4000)), "A"), Cancelled)
		tells(w.a, "B", "cancelled by an operator at site A")
		tells(w.b, "A", "cancelled by site A")
		push()
		tells(w.a, "B", "")
		if _, err := w.a.agent().Cancel(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		w.a.await(job, Cancelled)
		w.locked(func() { delete(w.a.jobs, job) })
		tells(w.a, "B", "no job of site A goes on with it")
		w.locked(func() { w.b.images[id].Properties[glance.PropJob] = randomID() }) // of a third site, which brings it
		tells(w.a, "B", "")
	})
}

// TestAnotherHashAlgorithmBurnsNoID has site B's Glance hash with sha256 until an operator
// mends that.
func TestAnotherHashAlgorithmBurnsNoID(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.algo = "sha256" })
		data, more := bytesOf(50_000), bytesOf(60_000)
		first, second, third := w.a.upload("first", data), w.a.upload("second", more), w.a.upload("third", bytesOf(70_000))
		push := func(id glance.ImageID) JobID {
			t.Helper()
			jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			if j := w.a.await(jobs[0].ID, Parked, Verified); j.State != Parked || !strings.Contains(j.Reason, "hashes with sha256") || !strings.Contains(j.Reason, "hashing_algorithm") {
				t.Fatalf("job is %s: %q, want parked, and both algorithms named", j.State, j.Reason)
			}
			return jobs[0].ID
		}
		sent := func(want int) {
			t.Helper()
			w.locked(func() {
				if n := len(w.a.moves); n != want {
					t.Errorf("%d files were sent, want %d", n, want)
				}
			})
		}
		one, two, three := push(first), push(second), push(third)
		sent(1)
		if push(first) != one || push(second) != two { // a person's wish does not mend it
			t.Error("other jobs were made")
		}
		sent(1)
		time.Sleep(hashedFor)
		for range 2 { // the first has its hash, and tells nothing new
			push(first)
			push(second)
			push(third)
		}
		sent(2)
		w.locked(func() { w.b.algo = "" }) // mended
		push(third)
		time.Sleep(hashedFor)
		if _, err := w.a.agent().Retry(t.Context(), three); err != nil {
			t.Fatal(err)
		}
		w.a.await(three, Verified)
		w.locked(func() {
			if r := w.b.images[first]; r == nil || r.Status != glance.Active || !r.Hidden || string(r.data) != string(data) {
				t.Errorf("the image is %+v, want it kept, and hidden", r)
			}
		})
		s := w.b.settings
		s.OnDeletedID = OnDeletedNewID
		if err := w.b.agent().Reload(s); err != nil {
			t.Fatal(err)
		}
		for _, id := range []JobID{one, two} {
			if _, err := w.a.agent().Retry(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			w.a.await(id, Verified)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		r := w.b.images[w.a.jobs[one].DeliverAs]
		if r == nil || string(r.data) != string(data) || r.SourceID() != first || r.Properties[glance.PropJob] != "" {
			t.Errorf("the first is %+v", r)
		}
		if r := w.b.images[w.a.jobs[two].DeliverAs]; r == nil || string(r.data) != string(more) || len(w.b.images) != 3 {
			t.Errorf("the second is %+v, of %d images", r, len(w.b.images))
		}
	})
}

// TestAJobSaysWhatItsDeliveryWaitsFor while the peer's Glance takes the image, and while it
// does not let it be finished.
func TestAJobSaysWhatItsDeliveryWaitsFor(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.refuseUpload, w.b.refuseFinish = errors.New("no room"), errors.New("503") })
		w.a.upload("debian", bytesOf(300_000))
		var watching sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		watching.Go(func() {
			for ev := range w.a.agent().Watch(ctx) {
				if ev.Job != nil && ev.Job.Site != "A" {
					t.Errorf("a job of site %q", ev.Job.Site)
				}
			}
		})
		defer watching.Wait()
		defer stop()
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			state State
			says  string
		}{{Moved, "no room"}, {Delivered, "503"}, {Verified, ""}} {
			w.a.await(jobs[0].ID, c.state)
			time.Sleep(time.Second)
			j, err := w.a.agent().Job(t.Context(), jobs[0].ID)
			if err != nil || j.State != c.state || j.Attempts != 0 || j.Site != "A" {
				t.Errorf("%s: the job of site %q is %s after %d failures, %v", c.state, j.Site, j.State, j.Attempts, err)
			}
			if !strings.Contains(j.Reason, c.says) || strings.HasPrefix(j.Reason, "site B: ") != (c.says != "") {
				t.Errorf("%s: the job says %q, want what site B does: %q", c.state, j.Reason, c.says)
			}
			o, err := w.a.agent().Overview(t.Context())
			if err != nil || o.Images[0].Sites["B"].Reason != j.Reason {
				t.Errorf("%s: the overview says %+v, %v", c.state, o.Images, err)
			}
			w.locked(func() {
				switch c.state {
				case Moved:
					w.b.refuseUpload = nil
				case Delivered:
					w.b.refuseFinish = nil
				}
			})
		}
	})
}
