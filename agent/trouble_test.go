package agent

import (
	"context"
	"errors"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Glance does not let the agent publish the image until an admin grants the role.
func TestFinishRefusedAndThenRetried(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() {
			w.b.refuseFinish = failure.Permanently(errors.New("403: needs the role that publicize_image asks for"))
		})
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if j := w.a.await(jobs[0].ID, Parked, Verified); j.State != Parked || !strings.Contains(j.Reason, "publicize_image") {
			t.Fatalf("job is %s: %q, want parked with what B said", j.State, j.Reason)
		}
		w.locked(func() {
			if r := w.b.images[id]; r.Visibility != "private" || !r.Hidden {
				t.Errorf("an unfinished image is visible: %+v", r.Image)
			}
		})
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Cancelled) // what is active at B is B's to deal with
		w.b.await(w.b.job(id).ID, Parked)
		w.locked(func() { w.b.refuseFinish = nil })
		w.retried(jobs[0].ID, id, data)
	})
}

// A quota that Glance tells of makes the image wait before a byte moves.
func TestQuotaThatIsToldWaits(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.refuseRoom = ErrQuota })
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * waitForRoom)
		j, err := w.a.agent().Store.Get(t.Context(), jobs[0].ID)
		if err != nil || j.State != Pending || !strings.Contains(j.Reason, "site B: quota") {
			t.Errorf("job is %s: %q (%v), want it to wait for the quota", j.State, j.Reason, err)
		}
		w.locked(func() { w.b.refuseRoom = nil })
		w.a.await(j.ID, Verified)
		w.wantDelivered(id, data)
	})
}

func TestFullGlanceIsParkedAfterAFewUploads(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.refuseUpload = ErrQuota })
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if j := w.a.await(jobs[0].ID, Parked, Verified); j.State != Parked || !strings.Contains(j.Reason, "raise the quota") {
			t.Fatalf("job is %s: %q", j.State, j.Reason)
		}
		o, err := w.b.agent().Overview(t.Context())
		if err != nil || len(o.Parked) != 1 || o.Parked[0].Image != id || o.Parked[0].Peer != "A" || !strings.Contains(o.Parked[0].Reason, "raise the quota") {
			t.Errorf("site B tells of %+v, %v", o.Parked, err)
		}
		w.locked(func() {
			if n := w.b.counts["catalog.Upload"]; n != fullMax {
				t.Errorf("%d uploads, want %d", n, fullMax)
			}
			w.b.refuseUpload = nil
		})
		w.retried(jobs[0].ID, id, data)
	})
}

// The image at B that should have the same bytes has not, or is gone: they are sent.
func TestBadLocalCopyIsNotTakenAgain(t *testing.T) {
	for name, spoil := range map[string]func(w *world, twin glance.ImageID){
		"corrupt": func(w *world, twin glance.ImageID) { w.b.images[twin].data = bytesOf(200_000 - 1) },
		"gone":    func(w *world, twin glance.ImageID) { w.b.vanish = twin },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				data := bytesOf(200_000)
				id, twin := w.a.upload("copy", data), w.b.upload("original", data)
				w.locked(func() { spoil(w, twin) })
				jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if j := w.a.await(jobs[0].ID, Verified, Parked); j.State != Verified {
					t.Fatalf("job is %s: %s", j.State, j.Reason)
				}
				w.locked(func() {
					if r := w.b.images[id]; r == nil || string(r.data) != string(data) {
						t.Errorf("image at B: %+v", r)
					}
				})
			})
		})
	}
}

// An operator at B does not want the image: A's offers do not bring it back, a person at A does.
func TestCancelAtTheReceivingSiteHolds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Staged)
		receive := NewJobID(Receive, id, sum(data), "A")
		w.b.await(receive, Arriving)
		if _, err := w.b.agent().Cancel(t.Context(), receive); err != nil {
			t.Fatal(err)
		}
		if j := w.a.await(jobs[0].ID, Parked, Verified); j.State != Parked || !strings.Contains(j.Reason, "cancelled") {
			t.Fatalf("job at A is %s: %q", j.State, j.Reason)
		}
		if j := w.b.await(receive, Cancelled); !strings.Contains(j.Reason, "operator at site B") {
			t.Errorf("job at B: %q", j.Reason)
		}
		w.retried(jobs[0].ID, id, data)
	})
}

func TestRetryAtOnceAfterCancel(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Staged)
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Cancelled)
		if _, err := w.a.agent().Retry(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		if j := w.a.await(jobs[0].ID, Verified, Parked); j.State != Verified {
			t.Fatalf("job is %s: %s", j.State, j.Reason)
		}
		w.wantDelivered(id, data)
	})
}

// A "wait" in the middle of a transfer does not make A forget what B has begun.
func TestCancelReachesThePeerAfterItSaidWait(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Staged)
		receive := NewJobID(Receive, id, sum(data), "A")
		w.b.await(receive, Arriving)
		w.locked(func() { // the ticket is refused from now on, and B's DTN is away
			for _, m := range w.a.moves {
				w.b.spent[ticketID(m.req.Destination.Ticket)] = true
			}
		})
		w.inject(func(o op, after bool) fate {
			if o.name == "landing.Capabilities" {
				return fail
			}
			return live
		})
		for w.a.job(id).State != Pending || w.a.job(id).Reason == "" {
			time.Sleep(100 * time.Millisecond)
		}
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Cancelled)
		w.b.await(receive, Cancelled)
		w.locked(func() {
			if len(w.b.inbox) > 0 {
				t.Error("the partial file stays at B")
			}
		})
	})
}

// The sender goes away for good in the middle of a file.
func TestArrivalWithoutASenderIsGivenUp(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Staged)
		receive := NewJobID(Receive, id, sum(data), "A")
		w.b.await(receive, Arriving)
		w.a.halt()
		w.locked(func() {
			for _, m := range w.a.moves {
				m.stop()
			}
		})
		if j := w.b.await(receive, Cancelled); !strings.Contains(j.Reason, "stopped sending") {
			t.Errorf("job at B: %q", j.Reason)
		}
		w.locked(func() {
			if len(w.b.inbox) > 0 {
				t.Error("the partial file stays at B")
			}
		})
		w.a.boot()
	})
}

// Two sites send the same image: one delivers it, the other has nothing to do.
func TestTwoSitesSendTheSameImage(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		var img glance.Image
		w.locked(func() { img = clone(w.a.images[id].Image) })
		s := w.b.settings
		s.Peers = append(slices.Clone(s.Peers), PeerSite{Name: "C", Jobs: 1})
		if err := w.b.agent().Reload(s); err != nil {
			t.Fatal(err)
		}
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.b.await(NewJobID(Receive, id, sum(data), "A"), Arriving)
		time.Sleep(200 * time.Millisecond)
		if g, err := w.b.agent().Offer(t.Context(), "C", Offer{Image: img}); err != nil || g.Verdict != Wait {
			t.Errorf("an offer of what is arriving from A: %+v, %v; want wait", g, err)
		}
		w.a.await(jobs[0].ID, Verified)
		if g, err := w.b.agent().Offer(t.Context(), "C", Offer{Image: img}); err != nil || g.Verdict != Have {
			t.Errorf("an offer of what has arrived from A: %+v, %v; want have", g, err)
		}
	})
}

// What a cancelled delivery left in Glance is taken over by the next, from wherever it comes.
func TestShellOfACancelledJobIsTakenOver(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(40_000)
		id := w.a.upload("x", data)
		w.locked(func() {
			shell := clone(w.a.images[id].Image)
			shell.Status, shell.Size, shell.Hash = glance.Queued, 0, digest.Digest{}
			shell.Properties[glance.PropJob] = "0123456789abcdef0123"
			w.b.images[id] = &record{Image: shell}
		})
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

// A cancelled delivery is known, and its empty record kept, as long as its image may come
// again: deleting the record burns the id.
func TestCancelledDeliveryIsForgottenWithItsImage(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.a.refuseStage = ErrSpace })
		id := w.a.upload("x", bytesOf(4000))
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Offered)
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Cancelled)
		receive := NewJobID(Receive, id, jobs[0].Image.Hash, "A")
		w.b.await(receive, Cancelled)
		time.Sleep(31 * 24 * time.Hour)
		if _, err := w.b.agent().Store.Get(t.Context(), receive); err != nil {
			t.Errorf("the delivery is forgotten while A has its image: %v", err)
		}
		w.locked(func() {
			if r := w.b.images[id]; r == nil || r.Status != glance.Queued {
				t.Errorf("its record is %+v, want it kept", r)
			}
			delete(w.a.images, id)
		})
		time.Sleep(time.Hour)
		if _, err := w.b.agent().Store.Get(t.Context(), receive); !errors.Is(err, ErrNoJob) {
			t.Errorf("got %v, want ErrNoJob: its image is gone", err)
		}
		w.locked(func() {
			if w.b.images[id] != nil {
				t.Error("its record is left in Glance")
			}
		})
	})
}

func TestListingMakesJobs(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		w.a.halt()
		w.a.boot()
		time.Sleep(20 * time.Second)
		data := bytesOf(4000)
		id := w.a.upload("x", data) // and nobody gives a hint
		time.Sleep(time.Minute)
		w.a.await(NewJobID(Send, id, sum(data), "B"), Verified)
		w.wantDelivered(id, data)
	})
}

func TestQueuedForeverIsReported(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		w.a.halt()
		w.a.boot()
		id := w.a.upload("queued", nil)
		w.locked(func() { w.a.images[id].Status = glance.Queued })
		w.a.agent().Hint(glance.Hint{ID: id})
		time.Sleep(2 * time.Hour)
		w.locked(func() { w.a.counts["catalog.Image"] = 0 })
		time.Sleep(time.Hour)
		w.locked(func() {
			if n := w.a.counts["catalog.Image"]; n > 20 {
				t.Errorf("Glance was asked %d times in an hour for an image that stays queued", n)
			}
		})
		o, err := w.a.agent().Overview(t.Context())
		if err != nil || len(o.Store) != 1 || !strings.Contains(o.Store[0].Note, "queued since") {
			t.Errorf("faults %+v, %v", o.Store, err)
		}
	})
}

func TestExportFullAtTheSender(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.a.refuseStage = ErrSpace })
		data := bytesOf(4000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		time.Sleep(5 * time.Minute)
		if j := w.a.job(id); j.State != Offered || !strings.Contains(j.Reason, "export of site A") {
			t.Errorf("job is %s: %q, want waiting, and the site named", j.State, j.Reason)
		}
		w.locked(func() { w.a.refuseStage = nil })
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

func TestAnAsyncExportIsNoFaultAndIsTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for ack, want := range map[mover.Ack]string{mover.AckAsync: asyncNote, mover.AckSync: "", mover.AckUnknown: ""} {
			w.locked(func() { w.a.ack = ack })
			checks := w.a.agent().Checks(t.Context())
			i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == "dtn" })
			if got := checks[i]; !got.OK || got.Note != want {
				t.Errorf("%s: %+v, want it to be well, with the note %q", ack, got, want)
			}
		}
	})
}

// The DTN of a site without inbound connections tells which it keeps, and its agent which it lacks.
func TestAConnectionThatTheDTNLacksIsTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		lacks := mover.Callback{Address: "dtn-b:7444", Error: "no route to host"}
		w.locked(func() {
			w.a.callbacks = []mover.Callback{{Address: "dtn-c:7444", Connected: true}, lacks}
		})
		checks := w.a.agent().Checks(t.Context())
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == "dtn" })
		if got := checks[i]; !got.OK || got.Note != lacks.Trouble() {
			t.Errorf("%+v, want it to be well, with the note %q", got, lacks.Trouble())
		}
	})
}

func TestFilesWithoutAJobAreSwept(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		orphan := "0123456789abcdef0123"
		w.locked(func() {
			w.a.outbox[mover.Outbox+"/"+orphan] = []byte("x")
			w.b.inbox[mover.Inbox+"/"+orphan] = &arrival{file: mover.File{Name: mover.Inbox + "/" + orphan}, since: time.Now()}
		})
		time.Sleep(2 * time.Hour)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.a.outbox)+len(w.b.inbox) > 0 {
			t.Errorf("left over: outbox %d, inbox %d", len(w.a.outbox), len(w.b.inbox))
		}
	})
}

// TestParkedJobsAreUndoneWithTheirImages, which were deleted together: the jobs are read once.
func TestParkedJobsAreUndoneWithTheirImages(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.refuseUpload = failure.Permanently(errors.New("never")) })
		var images []glance.ImageID
		var ids []JobID
		for i := range 3 {
			images = append(images, w.a.upload("x", bytesOf(50_000+i)))
			jobs, err := w.a.agent().Push(t.Context(), string(images[i]), []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, jobs[0].ID)
			w.a.await(ids[i], Parked)
		}
		at := time.Now().Add(time.Second)
		w.locked(func() {
			if len(w.a.outbox) != 3 || len(w.b.inbox) != 3 {
				t.Errorf("parked with %d files in the outbox and %d in the inbox, want 3 and 3", len(w.a.outbox), len(w.b.inbox))
			}
			for _, id := range images {
				w.a.remove(id)
			}
			w.a.counts["store.All"] = 0
		})
		for _, id := range images {
			w.a.agent().hints.add(id, at)
		}
		for i, id := range ids {
			w.a.await(id, Cancelled)
			w.b.await(NewJobID(Receive, images[i], sum(bytesOf(50_000+i)), "A"), Cancelled)
		}
		w.locked(func() {
			if n := w.a.counts["store.All"]; n != 1 {
				t.Errorf("the jobs were read %d times, want once", n)
			}
			if len(w.a.outbox)+len(w.b.inbox) > 0 {
				t.Errorf("left over: outbox %d, inbox %d", len(w.a.outbox), len(w.b.inbox))
			}
		})
	})
}

// TestARecordThatCannotBeReadHoldsUpNothingElse is of a job that a newer agent has written.
func TestARecordThatCannotBeReadHoldsUpNothingElse(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("newer", data)
		newer := Job{ID: NewJobID(Send, id, sum(data), "B"), Kind: Send}.FileName()
		w.locked(func() {
			w.a.newer = map[JobID]bool{JobID(path.Base(newer)): true}
			w.a.jobs[JobID(path.Base(newer))] = Job{ID: JobID(path.Base(newer))}
			w.a.outbox[newer] = data
			for range 10 {
				w.a.outbox[mover.Outbox+"/"+randomID()] = data
			}
		})
		s := w.a.settings
		s.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		if err := w.a.agent().Reload(s); err != nil {
			t.Fatal(err)
		}
		next := w.a.upload("next", bytesOf(900))
		time.Sleep(time.Minute)
		w.a.await(NewJobID(Send, next, sum(bytesOf(900)), "B"), Verified)
		a := w.a.agent()
		if err := a.reconcile(t.Context()); err != nil {
			t.Errorf("full pass: %v", err)
		}
		if all, err := a.Transfers(t.Context()); err != nil || len(all) != 1 || all[0].Image != "next" {
			t.Errorf("transfers: %+v, %v", all, err)
		}
		if all, err := a.Paths(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("paths: %+v, %v", all, err)
		}
		w.locked(func() {
			if len(w.a.outbox) != 1 || w.a.outbox[newer] == nil {
				t.Errorf("the outbox has %d files, want that of the job alone", len(w.a.outbox))
			}
		})
	})
}

// unheard is a site that is not heard, which shows after a minute.
type unheard struct {
	peerOf
	asked *int
}

func (p unheard) Inventory(ctx context.Context) iter.Seq2[glance.Image, error] {
	return func(yield func(glance.Image, error) bool) {
		p.w.locked(func() { *p.asked++ })
		pause(ctx, time.Minute)
		yield(glance.Image{}, errInjected)
	}
}

func (p unheard) Offer(context.Context, Offer) (Grant, error) { return Grant{}, errInjected }

// TestSitesThatAreAwayHoldUpNothingElse: two of three, in a full pass.
func TestSitesThatAreAwayHoldUpNothingElse(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second) // the pass at the start is done
		asked := 0
		s := w.a.settings
		s.Peers = []PeerSite{{Name: "C", Peer: unheard{peerOf{w.a}, &asked}, Jobs: 1}, {Name: "D", Peer: unheard{peerOf{w.a}, new(int)}, Jobs: 1}, s.Peers[0]}
		s.Rules = []Rule{{Name: "all", To: []string{"B", "C", "D"}}}
		sent := func(what string, content []byte, within time.Duration) {
			t.Helper()
			time.Sleep(within)
			w.locked(func() {
				if !slices.ContainsFunc(slices.Collect(maps.Values(w.b.images)), func(r *record) bool { return r.Status == glance.Active && string(r.data) == string(content) }) {
					t.Errorf("%s: the image is not at B after %v", what, within)
				}
			})
		}
		w.a.upload("known", bytesOf(1000))
		queued := w.a.upload("queued", nil)
		w.locked(func() {
			r := w.a.images[queued]
			r.Status, r.UpdatedAt = glance.Queued, time.Now().Add(-2*time.Hour)
		})
		if err := w.a.agent().Reload(s); err != nil {
			t.Fatal(err)
		}
		sent("full pass", bytesOf(1000), 10*time.Second)
		w.a.agent().mu.Lock()
		if f := w.a.agent().faults; len(f) != 1 || f[0].ID != queued {
			t.Errorf("faults %+v, want that of image %s", f, queued)
		}
		w.a.agent().mu.Unlock()

		w.a.agent().Hint(glance.Hint{ID: w.a.upload("hinted", bytesOf(2000))})
		sent("hint", bytesOf(2000), 10*time.Second)

		time.Sleep(45 * time.Second) // that pass is over
		w.a.upload("listed", bytesOf(3000))
		sent("listing", bytesOf(3000), s.Listing+10*time.Second)
		w.locked(func() {
			if asked != 1 {
				t.Errorf("the site was asked %d times in a pass and half a minute, want once", asked)
			}
		})
	})
}

func TestPulledJobIsSeenByWhoPulled(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := w.a.upload("x", bytesOf(1000))
		w.locked(func() { delete(w.a.files, string(id)) })
		j, err := w.b.agent().Pull(t.Context(), "x", "A")
		if err != nil {
			t.Fatal(err)
		}
		w.a.await(j.ID, Parked)
		got, err := w.b.agent().Pulled(t.Context(), "A", j.ID)
		if err != nil || got.State != Parked || got.Reason == "" {
			t.Errorf("the job at A, seen from B: %s %q, %v", got.State, got.Reason, err)
		}
		if _, err := w.a.agent().Sending(t.Context(), "C", j.ID); !errors.Is(err, ErrNoJob) {
			t.Errorf("seen by another site: %v, want ErrNoJob", err)
		}
	})
}

// A pipeline without a daemon, and stopped the moment its job is seen to be verified.
func TestRunJobsLeavesNothing(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(30_000)
		id := w.a.upload("x", data)
		w.a.halt()
		w.locked(func() { // its mechanisms work again, for the same agent, without Run
			l := *w.a.life
			l.ctx, l.die = context.WithCancel(t.Context())
			w.a.life = &l
		})
		jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.a.agent().RunJobs(ctx, []JobID{jobs[0].ID}) }()
		w.a.await(jobs[0].ID, Verified)
		cancel()
		<-ended
		w.wantDelivered(id, data)
	})
}

// TestARecordIsTakenOverWithItsMark has a delivery from a third site take over the record
// that a cancelled one left: nobody may take it for an empty one after that.
func TestARecordIsTakenOverWithItsMark(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		long := time.Now().Add(-1000 * time.Hour)
		id, content := newImageID(), sum(bytesOf(1000))
		was, is := NewJobID(Receive, id, content, "A"), NewJobID(Receive, id, content, "C")
		var next Job
		image := glance.Image{ID: id, Status: glance.Active, Size: 1000, Hash: content, Properties: map[string]string{"os_distro": "debian"}}
		w.locked(func() {
			w.b.put(Job{Kind: Receive, Peer: "A", ID: was, Created: long, DeliverAs: id, Image: image}.Enter(Cancelled, long, ""))
			next = Job{Kind: Receive, Peer: "C", ID: is, Created: time.Now(), DeliverAs: id, Image: image}.Enter(Expected, time.Now(), "")
			w.b.put(next)
			w.b.images[id] = &record{Image: glance.Image{ID: id, Status: glance.Queued, Properties: map[string]string{glance.PropJob: string(was)}}}
		})
		got, _, err := w.b.agent().shell(t.Context(), next)
		if want := map[string]string{"os_distro": "debian", glance.PropJob: string(is)}; err != nil || !maps.Equal(got.Properties, want) {
			t.Errorf("the record has %v, %v; want %v", got.Properties, err, want)
		}
		time.Sleep(time.Hour) // full passes
		w.locked(func() {
			if w.b.jobs[was].ID != "" || w.b.images[id] == nil {
				t.Errorf("the old job is there: %v, the record: %v; want the record alone", w.b.jobs[was].ID != "", w.b.images[id] != nil)
			}
		})
	})
}

func TestARecordIsRemovedThoughGlanceFailsOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		long := time.Now().Add(-1000 * time.Hour)
		id, job := newImageID(), JobID(randomID())
		w.locked(func() {
			w.b.put(Job{Kind: Receive, Peer: "A", ID: job, Created: long, DeliverAs: id, Image: glance.Image{ID: id}}.Enter(Cancelled, long, ""))
			w.b.images[id] = &record{Image: glance.Image{ID: id, Status: glance.Queued, Properties: map[string]string{glance.PropJob: string(job)}}}
		})
		failed := false
		w.inject(func(o op, _ bool) fate {
			if o.site == "B" && o.name == "catalog.Delete" && !failed {
				failed = true
				return fail
			}
			return live
		})
		time.Sleep(24 * time.Hour)
		w.locked(func() {
			if !failed || w.b.images[id] != nil || w.b.jobs[job].ID != "" {
				t.Errorf("delete failed once: %v; a day later the record is there: %v, its job: %v", failed, w.b.images[id] != nil, w.b.jobs[job].ID != "")
			}
		})
	})
}

func TestASilentPeerIsAskedOnceAPass(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		time.Sleep(time.Second) // the pass at the start is done
		long := time.Now().Add(-1000 * time.Hour)
		w.locked(func() {
			for range 20 {
				id := newImageID()
				w.b.put(Job{Kind: Receive, Peer: "A", ID: JobID(randomID()), Created: long, DeliverAs: id, Image: glance.Image{ID: id}}.Enter(Cancelled, long, ""))
			}
		})
		asked := 0
		w.inject(func(o op, _ bool) fate {
			if o.site == "B" && o.name == "peer.Inventory" {
				asked++
				return fail
			}
			return live
		})
		a := w.b.agent()
		if err := a.purge(t.Context(), a.inventories(t.Context(), map[string]told{})); err != nil || asked != 1 {
			t.Errorf("the peer was asked %d times, %v", asked, err)
		}
		asked = 0
		known := map[string]told{"A": {site: "A", err: errInjected}}
		if err := a.purge(t.Context(), a.inventories(t.Context(), known)); err != nil || asked != 0 {
			t.Errorf("the peer was asked %d times beyond the comparison, %v", asked, err)
		}
		w.inject(nil)
		w.locked(func() {
			if len(w.b.jobs) != 20 {
				t.Errorf("%d jobs are left, want all 20: their peer may have the images", len(w.b.jobs))
			}
		})
	})
}

// TestQuotaCountsNoRecordTwice sends an image again whose record a cancelled job left.
func TestQuotaCountsNoRecordTwice(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.b.await(NewJobID(Receive, id, sum(data), "A"), Arriving)
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Cancelled)
		w.locked(func() { w.b.refuseRoom = ErrQuota }) // as many images as the limit, this one's record among them
		if _, err := w.a.agent().Retry(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

// TestACancelOfAnImageThatWasLostThereHolds: site B has no room for it the second time, and
// knows that its own job has brought it once.
func TestACancelOfAnImageThatWasLostThereHolds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := w.a.upload("x", bytesOf(50_000))
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		if err := w.a.agent().Reload(w.a.settings); err != nil {
			t.Fatal(err)
		}
		job := NewJobID(Send, id, sum(bytesOf(50_000)), "B")
		w.a.await(job, Verified)
		w.locked(func() {
			w.b.remove(id)
			w.b.refuseRoom = ErrQuota
		})
		w.a.await(job, Pending)
		time.Sleep(time.Minute)
		if _, err := w.a.agent().Cancel(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if j := w.a.await(job, Cancelled, Verified); j.State != Cancelled || !j.Stopped {
				t.Fatalf("it is %s, stopped %v: %+v", j.State, j.Stopped, j.History)
			}
			time.Sleep(time.Hour) // full passes
		}
	})
}

// TestACancelByAPersonHolds: the sender had cancelled it first, and offers it anew later.
func TestACancelByAPersonHolds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		receive := NewJobID(Receive, id, sum(data), "A")
		w.b.await(receive, Arriving)
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Cancelled)
		w.b.await(receive, Cancelled)
		if j, err := w.b.agent().Cancel(t.Context(), receive); err != nil || !j.Stopped {
			t.Fatalf("%+v, %v", j, err)
		}
		g, err := w.b.agent().Offer(t.Context(), "A", Offer{Image: w.a.images[id].Image})
		if err != nil || g.Verdict != Refuse {
			t.Errorf("offered again: %+v, %v; want it refused", g, err)
		}
	})
}
