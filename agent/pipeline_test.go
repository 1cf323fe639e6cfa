package agent

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestPushDelivers(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(200_000)
		id := w.a.upload("debian", data)
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		j := w.a.await(jobs[0].ID, Verified, Parked)
		var way []State
		for _, c := range j.History {
			way = append(way, c.State)
		}
		if want := Send.Way(); !slices.Equal(way, want) {
			t.Errorf("the job went %v, want %v", way, want)
		}
		w.wantDelivered(id, data)
	})
}

// The failure matrix: every call of every mechanism on the way of one image, failed
// before or after its effect, or with its agent killed before or after; and again where its
// transfer waits for so long that it gets another ticket.
func TestEveryFailureEndsVerifiedOnce(t *testing.T) {
	data := bytesOf(150_000)
	way := func(t *testing.T, waits time.Duration, fault func(op, bool) fate) []op {
		var ops []op
		run(t, func(t *testing.T, w *world) {
			w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
			w.a.halt()
			w.a.boot()
			synctest.Wait()
			time.Sleep(time.Second)
			w.locked(func() { w.ops, w.a.counts, w.b.counts = nil, map[string]int{}, map[string]int{} })
			w.inject(fault)
			id := w.a.upload("debian", data)
			if waits > 0 {
				w.locked(func() { w.a.waits, w.pace = "noon", time.Second })
				time.AfterFunc(waits, func() { w.locked(func() { w.a.waits = "" }) })
			}
			w.a.agent().Hint(glance.Hint{ID: id, From: "inotify"})
			time.Sleep(waits)
			for range 10000 {
				time.Sleep(100 * time.Millisecond)
				if s := w.a.job(id).State; s.Final() {
					break
				}
			}
			if j := w.a.job(id); j.State != Verified {
				t.Fatalf("job is %s: %s; history %v", j.State, j.Reason, j.History)
			}
			w.locked(func() { ops = slices.Clone(w.ops) })
			w.wantDelivered(id, data)
		})
		return ops
	}
	each := func(t *testing.T, waits time.Duration, ops []op) {
		seen := map[op]bool{}
		for _, o := range ops {
			if seen[o] {
				continue
			}
			seen[o] = true
			for _, f := range []fate{fail, kill} {
				for _, after := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v/%s/%s", o, map[fate]string{fail: "fails", kill: "killed"}[f], map[bool]string{false: "before", true: "after"}[after]), func(t *testing.T) {
						struck := false
						way(t, waits, func(got op, gotAfter bool) fate {
							if got == o && gotAfter == after && !struck {
								struck = true
								return f
							}
							return live
						})
					})
				}
			}
		}
	}
	ops := way(t, 0, nil)
	if len(ops) < 30 {
		t.Fatalf("only %d calls on the way: the fakes are not used", len(ops))
	}
	// Polls beyond the second of a kind differ from it in nothing.
	each(t, 0, slices.DeleteFunc(ops, func(o op) bool { return o.nth > 3 }))
	t.Run("renewed", func(t *testing.T) {
		const waits = renewAfter + 5*time.Minute
		ops := way(t, waits, nil)
		from := slices.IndexFunc(ops, func(o op) bool { return o.name == "mover.Cancel" })
		to := slices.IndexFunc(ops, func(o op) bool { return o.name == "mover.Submit" && o.nth == 1 })
		if from < 0 || to < from {
			t.Fatalf("it was not submitted anew: calls %d to %d of %d", from, to, len(ops))
		}
		each(t, waits, ops[from:to+1])
	})
}

func TestHintedImageIsWaitedForUntilActive(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		w.a.halt()
		w.a.boot()
		data := bytesOf(5000)
		id := w.a.add("slow", data, glance.Saving)
		w.a.agent().Hint(glance.Hint{ID: id})
		time.Sleep(3 * time.Second)
		if j := w.a.job(id); j.ID != "" {
			t.Fatalf("a job was made for an image that is saving: %+v", j)
		}
		w.locked(func() { w.a.images[id].Status = glance.Active })
		time.Sleep(5 * time.Second)
		w.a.await(NewJobID(Send, id, sum(data), "B"), Verified)
		w.wantDelivered(id, data)
	})
}

func TestStuckImageIsReported(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		w.a.halt()
		w.a.boot()
		id := w.a.add("stuck", bytesOf(10), glance.Saving)
		time.Sleep(2 * time.Hour)
		o, err := w.a.agent().Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(o.Store) != 1 || o.Store[0].Fault != "stuck" || o.Store[0].ID != id {
			t.Errorf("faults %+v, want image %s stuck", o.Store, id)
		}
		if j := w.a.job(id); j.ID != "" {
			t.Errorf("a job was made for it: %+v", j)
		}
	})
}

func TestImageDeletedInFlightIsUndone(t *testing.T) {
	for _, when := range []State{Offered, Staged, Moved} {
		t.Run(string(when), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				data := bytesOf(3_000_000)
				id := w.a.upload("gone", data)
				deleted := false
				w.inject(func(o op, after bool) fate {
					if o.name == "claim.Update" && o.site == "A" && after && !deleted {
						for _, j := range w.a.jobs {
							if j.State == when {
								deleted = true
							}
						}
						if deleted {
							w.a.remove(id)
							w.a.life.agent.Hint(glance.Hint{ID: id})
						}
					}
					return live
				})
				jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				j := w.a.await(jobs[0].ID, Cancelled, Verified, Parked)
				if when != Moved && (j.State != Cancelled || !strings.Contains(j.Reason, "deleted")) {
					t.Errorf("job is %s (%s), want cancelled because the image was deleted", j.State, j.Reason)
				}
				time.Sleep(time.Minute)
				w.mu.Lock()
				defer w.mu.Unlock()
				if len(w.a.outbox)+len(w.b.inbox) > 0 {
					t.Errorf("left over: outbox %d, inbox %d", len(w.a.outbox), len(w.b.inbox))
				}
				if r := w.b.images[id]; j.State == Cancelled && r != nil && (r.Status == glance.Active && r.Visibility != "public") {
					t.Errorf("B keeps a half-made active image: %+v", r.Image)
				}
			})
		})
	}
}

func TestDamagedSourceIsParked(t *testing.T) {
	tests := map[string]func(w *world, id glance.ImageID){
		"no file":   func(w *world, id glance.ImageID) { delete(w.a.files, string(id)) },
		"truncated": func(w *world, id glance.ImageID) { w.a.files[string(id)] = w.a.files[string(id)][:10] },
		"corrupt": func(w *world, id glance.ImageID) {
			b := slices.Clone(w.a.files[string(id)])
			b[7] ^= 1
			w.a.files[string(id)] = b
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				id := w.a.upload("bad", bytesOf(5000))
				w.locked(func() { damage(w, id) })
				jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				if j := w.a.await(jobs[0].ID, Parked, Verified); j.State != Parked || !strings.Contains(j.Reason, "restore the file") {
					t.Errorf("job is %s: %q, want parked with what to do", j.State, j.Reason)
				}
				w.locked(func() {
					if r := w.b.images[id]; r != nil && r.Status == glance.Active {
						t.Error("it became active at B")
					}
				})
			})
		})
	}
}

// The export hands over other bytes than the DTN proved: Glance must never have them active.
func TestWrongBytesOnTheExportNeverBecomeActive(t *testing.T) {
	for _, digests := range []bool{true, false} {
		for _, times := range []int{1, mismatchMax} {
			t.Run(fmt.Sprintf("digests %v, %d times", digests, times), func(t *testing.T) {
				run(t, func(t *testing.T, w *world) {
					w.locked(func() { w.b.corrupt, w.b.digests = times, digests })
					data := bytesOf(3_000_000)
					id := w.a.upload("debian", data)
					w.inject(func(o op, after bool) fate {
						if r := w.b.images[id]; r != nil && r.Status == glance.Active && string(r.data) != string(data) {
							t.Error("a wrong byte is active at B")
						}
						return live
					})
					jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
					if err != nil {
						t.Fatal(err)
					}
					j := w.a.await(jobs[0].ID, Parked, Verified)
					if times < mismatchMax {
						w.wantDelivered(id, data)
					} else if j.State != Parked || !strings.Contains(j.Reason, "NFS mount") {
						t.Errorf("job is %s: %q, want parked", j.State, j.Reason)
					}
				})
			})
		}
	}
}

func TestLegsAreThoseThatWereDone(t *testing.T) {
	j := Job{Kind: Send}
	for _, c := range []Change{
		{State: Pending}, {State: Offered}, {State: Staged, Note: "hard link"}, {State: Staged, Note: "connection refused"},
		{State: Parked, Note: "a ticket"}, {State: Pending, Note: "retried"}, {State: Offered},
		{State: Staged, Note: "copy"}, {State: Moved, Note: "2 Mbit/s"}, {State: Staged, Note: "copy, 9 % holes"}, {State: Staged, Note: "reset"},
		{State: Moved, Note: "5 Mbit/s"}, {State: Delivered}, {State: Verified, Note: "as another"},
	} {
		j = j.Enter(c.State, time.Now(), c.Note)
	}
	var got []string
	for _, l := range j.Legs() {
		got = append(got, l.Note)
	}
	if want := []string{"copy, 9 % holes", "5 Mbit/s"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A transfer that found all bytes there has none of its time to tell a rate of.
func TestAMoveTellsTheRateOfWhatItBrought(t *testing.T) {
	slow := mover.Way{Bottleneck: mover.Bottleneck{Place: mover.Network, Share: 0.9}}
	for _, c := range []struct {
		st   mover.Status
		want string
	}{
		{mover.Status{Moved: 1e9, Rate: 2e6, Ran: time.Second, Way: slow}, "2 Mbit/s; bottleneck: network, 90 %"},
		{mover.Status{Moved: 1e9, Rate: 2e6, Ran: time.Second}, "2 Mbit/s"},
		{mover.Status{Moved: 1e9, Ran: 10 * time.Millisecond, Way: slow}, "bottleneck: network, 90 %"},
		{mover.Status{Moved: 1e9, Ran: 10 * time.Millisecond}, ""},
	} {
		c.st.Source.Size = 1e9
		if got := moved(c.st); got != c.want {
			t.Errorf("%+v: %q, want %q", c.st, got, c.want)
		}
	}
}

// NFS shows what it cached of the file, its pages or its size, until it is opened anew.
func TestAStaleCacheIsReadAnew(t *testing.T) {
	for name, stale := range map[string]func(p []byte, n int) (int, error){
		"pages": func(p []byte, n int) (int, error) { clear(p); return n, nil },
		"size":  func(p []byte, n int) (int, error) { return 0, io.EOF },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.locked(func() { w.b.stale = stale })
				data := bytesOf(3_000_000)
				id := w.a.upload("debian", data)
				jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				j := w.a.await(jobs[0].ID, Parked, Verified)
				w.wantDelivered(id, data)
				w.mu.Lock()
				defer w.mu.Unlock()
				here := w.b.jobs[j.Offer.Delivery]
				if n := w.b.counts["catalog.Upload"]; n != 1 || here.Mismatch != 0 {
					t.Errorf("%d uploads, %d mismatches; want one upload", n, here.Mismatch)
				}
				if legs := here.Legs(); len(legs) != 1 || !strings.Contains(legs[0].Note, "1 read anew") {
					t.Errorf("B's legs are %v, want one block read anew", legs)
				}
				if legs := j.Legs(); len(legs) != 3 || legs[0].Note != "copy" || !strings.Contains(legs[1].Note, "Mbit/s") || legs[2].Note != here.Legs()[0].Note {
					t.Errorf("A's legs are %v, want the copy, the transfer and B's", legs)
				}
			})
		})
	}
}

func TestPeerHasItAlready(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(5000)
		id := w.a.upload("x", data)
		w.locked(func() { w.b.images[id] = &record{Image: clone(w.a.images[id].Image), data: data} })
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Verified)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.a.moves) != 0 || w.a.counts["stager.Stage"] != 0 {
			t.Errorf("%d transfers, %d copies; want none", len(w.a.moves), w.a.counts["stager.Stage"])
		}
	})
}

func TestSameContentUnderAnotherIDMovesNoByte(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(200_000)
		id := w.a.upload("copy", data)
		w.b.upload("original", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Verified)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.a.moves) != 0 || w.a.counts["stager.Stage"] != 0 {
			t.Errorf("%d transfers, %d copies; want none", len(w.a.moves), w.a.counts["stager.Stage"])
		}
		if r := w.b.images[id]; r == nil || r.Status != glance.Active || string(r.data) != string(data) || r.Name != "copy" {
			t.Errorf("image at B: %+v", r)
		}
	})
}

// A conflict is parked, and its reason says what cures it.
func TestConflictIsParked(t *testing.T) {
	for _, status := range []glance.Status{glance.Active, glance.Queued} {
		t.Run(string(status), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				data := bytesOf(5000)
				id := w.a.upload("x", data)
				other := bytesOf(600)
				w.locked(func() {
					w.b.images[id] = &record{Image: glance.Image{ID: id, Status: status, Size: 600, Hash: sum(other), Properties: map[string]string{}}, data: other}
				})
				jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				j := w.a.await(jobs[0].ID, Parked, Verified)
				if j.State != Parked || !strings.Contains(j.Reason, "conflict") || !strings.Contains(j.Reason, "set deliver.on_deleted_id: new-id at site B, delete it there, then retry") {
					t.Errorf("job is %s: %q", j.State, j.Reason)
				}
				w.locked(func() {
					if string(w.b.images[id].data) != string(other) {
						t.Error("the image at B was touched")
					}
				})
				w.b.settings.OnDeletedID = OnDeletedNewID
				w.b.halt()
				w.b.boot()
				w.locked(func() { w.b.remove(id) })
				if _, err := w.a.agent().Retry(t.Context(), j.ID); err != nil {
					t.Fatal(err)
				}
				j = w.a.await(j.ID, Parked, Verified)
				w.locked(func() {
					if r := w.b.images[j.DeliverAs]; j.State != Verified || r == nil || string(r.data) != string(data) {
						t.Errorf("after that the job is %s: %q, and B has %+v", j.State, j.Reason, r)
					}
				})
			})
		})
	}
}

func TestDeletedIDIsParkedOrRenamed(t *testing.T) {
	for _, policy := range []string{OnDeletedPark, OnDeletedNewID} {
		t.Run(policy, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.b.settings.OnDeletedID = policy
				w.b.halt()
				w.b.boot()
				data := bytesOf(50_000)
				id := w.a.upload("x", data)
				w.locked(func() { w.b.used[id] = true })
				jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				j := w.a.await(jobs[0].ID, Parked, Verified)
				if policy == OnDeletedPark {
					if j.State != Parked || !strings.Contains(j.Reason, "new-id") {
						t.Errorf("job is %s: %q, want parked and the option named", j.State, j.Reason)
					}
					for _, c := range j.History {
						if c.State == Offered {
							t.Errorf("it was accepted: %+v; want it refused before a byte moves", j.History)
						}
					}
					if d, err := w.b.agent().Store.Get(t.Context(), NewJobID(Receive, id, j.Image.Hash, "A")); err != nil || d.State != Parked || d.Reason == "" {
						t.Errorf("B's job is %s: %q (%v), want it parked, too", d.State, d.Reason, err)
					}
					return
				}
				w.locked(func() {
					r := w.b.images[j.DeliverAs]
					if j.DeliverAs == id || r == nil || r.Properties[glance.PropSourceID] != string(id) || string(r.data) != string(data) {
						t.Errorf("delivered as %s: %+v", j.DeliverAs, r)
					}
				})
				// And it is known again under that name: nothing moves a second time.
				if _, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, ""); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				w.a.await(j.ID, Verified)
				w.locked(func() {
					if len(w.b.images) != 1 {
						t.Errorf("B has %d images, want 1", len(w.b.images))
					}
				})
			})
		})
	}
}

func TestNoSpaceWaits(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.free = 100 })
		data := bytesOf(5000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		time.Sleep(3 * time.Minute)
		if j := w.a.job(id); j.State != Pending || !strings.Contains(j.Reason, "no space") {
			t.Errorf("job is %s: %q, want waiting for space", j.State, j.Reason)
		}
		w.locked(func() { w.b.free = 1 << 30 })
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

// The peer is away at each leg, for ten minutes.
func TestPeerDownAtEachLeg(t *testing.T) {
	for _, when := range []State{Pending, Offered, Staged, Moved, Delivered} {
		t.Run(string(when), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				data := bytesOf(500_000)
				id := w.a.upload("x", data)
				down := func() {
					w.b.down = true
					time.AfterFunc(10*time.Minute, func() { w.locked(func() { w.b.down = false }) })
				}
				struck := false
				w.inject(func(o op, after bool) fate {
					for _, j := range w.a.jobs {
						if j.State == when && !struck {
							struck = true
							down()
						}
					}
					return live
				})
				jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				w.a.await(jobs[0].ID, Verified)
				w.locked(func() {
					if !struck {
						t.Error("the peer was never away")
					}
				})
				w.wantDelivered(id, data)
			})
		})
	}
}

func TestOperatorCancelAndRetry(t *testing.T) {
	for _, when := range []State{Offered, Staged} {
		t.Run(string(when), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				data := bytesOf(3_000_000)
				id := w.a.upload("x", data)
				jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				w.a.await(jobs[0].ID, Offered, Staged)
				if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
					t.Fatal(err)
				}
				w.a.await(jobs[0].ID, Cancelled)
				time.Sleep(time.Minute)
				w.locked(func() {
					if len(w.a.outbox)+len(w.b.inbox) > 0 {
						t.Errorf("left over: outbox %d, inbox %d", len(w.a.outbox), len(w.b.inbox))
					}
				})
				w.retried(jobs[0].ID, id, data)
				if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); !errors.Is(err, ErrBadState) {
					t.Errorf("cancel of a verified job: %v, want ErrBadState", err)
				}
			})
		})
	}
}

func TestTicketExpiredIsRenewed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		struck := false
		w.inject(func(o op, after bool) fate {
			if o.name == "stager.Stage" && !after && !struck {
				struck = true
				for _, j := range w.a.jobs {
					w.b.spent[ticketID(j.Offer.Ticket)] = true
				}
			}
			return live
		})
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		j := w.a.await(jobs[0].ID, Verified)
		if j.Round == 0 {
			t.Error("the job did not begin anew")
		}
		w.wantDelivered(id, data)
	})
}

func TestConcurrencyPerSite(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		var ids []JobID
		for i := range 6 {
			id := w.a.upload("x", bytesOf(100_000+i))
			j, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, j[0].ID)
		}
		most := 0
		for range 3000 {
			n := 0
			w.locked(func() {
				for _, c := range w.a.claims {
					if c.slot == "send/B" {
						n++
					}
				}
			})
			most = max(most, n)
			time.Sleep(10 * time.Millisecond)
		}
		for _, id := range ids {
			w.a.await(id, Verified)
		}
		if most != 2 {
			t.Errorf("%d jobs ran at once, want 2", most)
		}
	})
}

func TestFullPassMakesWhatIsMissing(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "debian", Match: Match{Names: []string{"debian.*"}}, To: []string{"B"}}}
		w.a.halt()
		data := bytesOf(900)
		yes, no := w.a.upload("debian-12", data), w.a.upload("windows", bytesOf(901))
		w.a.boot()
		w.a.await(NewJobID(Send, yes, sum(data), "B"), Verified)
		if j := w.a.job(no); j.ID != "" {
			t.Errorf("a job was made for an image that no rule selects: %+v", j)
		}
		w.wantDelivered(yes, data)
	})
}

func TestThousandImagesAndNothingToDo(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}}
		w.a.halt()
		for i := range 1000 {
			data := bytesOf(100 + i)
			id := w.a.upload(fmt.Sprint("image-", i), data)
			w.locked(func() { w.b.images[id] = &record{Image: clone(w.a.images[id].Image), data: data} })
		}
		w.a.boot()
		time.Sleep(5 * time.Second)
		w.locked(func() { w.ops = nil })
		if err := w.a.agent().reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		calls := map[string]int{}
		for _, o := range w.ops {
			if strings.HasPrefix(o.name, "catalog.") {
				calls[o.site]++
			}
		}
		if calls["A"] > 2 || calls["B"] > 2 {
			t.Errorf("one pass asked Glance %v times, want at most 2 listings a site", calls)
		}
		if len(w.a.jobs) != 0 {
			t.Errorf("%d jobs made, want none", len(w.a.jobs))
		}
	})
}

func TestOneImageFoundOftenIsOneJob(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.settings.Rules = []Rule{{Name: "all", To: []string{"B"}}, {Name: "again", To: []string{"B"}}}
		w.a.halt()
		w.a.boot()
		data := bytesOf(70_000)
		id := w.a.upload("x", data)
		for range 50 {
			w.a.agent().Hint(glance.Hint{ID: id})
			time.Sleep(20 * time.Millisecond)
		}
		if _, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, ""); err != nil {
			t.Fatal(err)
		}
		w.a.await(NewJobID(Send, id, sum(data), "B"), Verified)
		w.locked(func() {
			if len(w.a.jobs) != 1 || len(w.a.moves) != 1 {
				t.Errorf("%d jobs, %d transfers; want one each", len(w.a.jobs), len(w.a.moves))
			}
		})
		w.wantDelivered(id, data)
	})
}

func TestPullNeedsPermission(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(1000)
		id := w.a.upload("x", data)
		if _, err := w.b.agent().Pull(t.Context(), "x", "A"); err != nil {
			t.Fatal(err)
		}
		w.a.await(NewJobID(Send, id, sum(data), "B"), Verified)
		w.wantDelivered(id, data)
		s := w.a.settings
		s.Peers = slices.Clone(s.Peers)
		s.Peers[0].MayPull = false
		if err := w.a.agent().Reload(s); err != nil {
			t.Fatal(err)
		}
		if _, err := w.b.agent().Pull(t.Context(), "x", "A"); !errors.Is(err, ErrForbidden) {
			t.Errorf("pull without permission: %v, want ErrForbidden", err)
		}
	})
}

func TestStrangerIsRefused(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if _, err := w.b.agent().Offer(t.Context(), "C", Offer{}); !errors.Is(err, ErrForbidden) {
			t.Errorf("an offer of an unknown site: %v, want ErrForbidden", err)
		}
		data := bytesOf(3_000_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Staged)
		if _, err := collect(w.b.agent().Inventory(t.Context(), "C")); !errors.Is(err, ErrForbidden) {
			t.Errorf("the inventory for an unknown site: %v, want ErrForbidden", err)
		}
		if _, err := w.b.agent().Delivery(t.Context(), "C", NewJobID(Receive, id, sum(data), "A")); !errors.Is(err, ErrNoJob) {
			t.Errorf("another site's delivery: %v, want ErrNoJob", err)
		}
		w.a.await(jobs[0].ID, Verified)
	})
}

// glance-api dies while it takes the data: its image stays in saving for ever.
func TestImageStuckInSavingIsParkedOrRenamed(t *testing.T) {
	for _, policy := range []string{OnDeletedPark, OnDeletedNewID} {
		t.Run(policy, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.b.settings.OnDeletedID = policy
				w.b.halt()
				w.b.boot()
				data := bytesOf(300_000)
				id := w.a.upload("x", data)
				struck := false
				w.inject(func(o op, after bool) fate {
					if o.name == "catalog.Upload" && after && !struck {
						struck = true
						r := w.b.images[id]
						r.Status, r.Size, r.Hash, r.data = glance.Saving, 0, digest.Digest{}, nil
						return fail
					}
					return live
				})
				jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				j := w.a.await(jobs[0].ID, Parked, Verified)
				if policy == OnDeletedPark {
					if j.State != Parked || !strings.Contains(j.Reason, "stuck in saving") || strings.Contains(j.Reason, "delete the image") {
						t.Errorf("job is %s: %q, want parked and what to do", j.State, j.Reason)
					}
					w.b.settings.OnDeletedID = OnDeletedNewID
					w.b.halt()
					w.b.boot()
					if _, err := w.a.agent().Retry(t.Context(), j.ID); err != nil {
						t.Fatal(err)
					}
					j = w.a.await(j.ID, Parked, Verified)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				r := w.b.images[j.DeliverAs]
				if j.State != Verified || j.DeliverAs == id || r == nil || string(r.data) != string(data) || len(w.b.images) != 1 {
					t.Errorf("job is %s: %q, delivered as %s: %+v", j.State, j.Reason, j.DeliverAs, r)
				}
			})
		})
	}
}
