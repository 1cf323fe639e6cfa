package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

var errMount = errors.New("export /mnt/dtn is not mounted; mount it")

// breakExport has every call to the site's export fail until it is mended.
func (s *site) breakExport(err error) { s.w.locked(func() { s.export = err }) }

func (s *site) mendExport() { s.breakExport(nil) }

// soon is when what waited for the export has to have gone on.
const soon = 5 * time.Second

// wantPaused fails unless the job waits for the export, without a failure.
func (s *site) wantPaused(id JobID, state State) {
	s.w.t.Helper()
	s.wantWaiting(id, state, errMount)
}

func (s *site) wantWaiting(id JobID, state State, why error) {
	s.w.t.Helper()
	j, err := s.agent().Job(s.w.t.Context(), id)
	if err != nil || j.State != state || !j.Paused || j.Reason != why.Error() || j.Attempts != 0 {
		s.w.t.Errorf("job at %s: %s, paused %v, reason %q, %d attempts (%v), want %s, waiting for the export", s.name, j.State, j.Paused, j.Reason, j.Attempts, err, state)
	}
}

// wantExport fails unless the site says of its export what it should.
func (s *site) wantExport(want error) {
	s.w.t.Helper()
	checks := s.agent().Checks(s.w.t.Context())
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == "export" })
	if ok := want == nil; checks[i].OK != ok || !ok && checks[i].Error != want.Error() {
		s.w.t.Errorf("site %s says of its export %+v, want %v", s.name, checks[i], want)
	}
	if got := s.agent().ExportTrouble(); got != want {
		s.w.t.Errorf("site %s: legs wait because of %v, want %v", s.name, got, want)
	}
}

// A leg waits for the export as long as it takes, costs nothing meanwhile, and goes on
// by itself.
func TestStagingWaitsForTheExport(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.breakExport(errMount)
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Offered)
		time.Sleep(time.Minute)
		w.a.wantPaused(jobs[0].ID, Offered)
		w.a.wantExport(errMount)
		w.b.wantExport(nil)
		if o, err := w.a.agent().Overview(t.Context()); err != nil || len(o.Images) != 1 || !o.Images[0].Sites["B"].Paused {
			t.Errorf("the overview says %+v (%v), want an image that waits for the export", o.Images, err)
		}
		cost := func() (n int) {
			w.locked(func() { n = w.a.counts["store.Claim"] + w.a.counts["claim.Update"] + w.a.counts["stager.Stage"] })
			return n
		}
		before := cost()
		time.Sleep(time.Hour)
		if n := cost() - before; n > 0 {
			t.Errorf("an hour of waiting took %d claims, updates and copies", n)
		}
		w.a.mendExport()
		time.Sleep(soon)
		if j := w.a.await(jobs[0].ID, Verified); j.Since().After(time.Now()) || j.Paused || j.Reason != "" {
			t.Errorf("job is %s, paused %v: %q", j.State, j.Paused, j.Reason)
		}
		w.a.wantExport(nil)
		w.wantDelivered(id, data)
	})
}

// The reason that a job waited for is gone as soon as its leg goes on.
func TestALegThatGoesOnDoesNotSayThatItWaits(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.breakExport(errMount)
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Offered)
		time.Sleep(time.Minute)
		hang := make(chan struct{})
		w.locked(func() { w.a.hang, w.a.export = hang, nil })
		time.Sleep(soon)
		if j, err := w.a.agent().Job(t.Context(), jobs[0].ID); err != nil || j.State != Offered || j.Paused || j.Reason != "" {
			t.Errorf("a copy that is being made: %s, paused %v, %q, %v", j.State, j.Paused, j.Reason, err)
		}

		// It hangs: nothing can be recorded, and all the same it is told.
		w.locked(func() { w.a.export = errMount })
		time.Sleep(2 * lookWell)
		if j, err := w.a.agent().Job(t.Context(), jobs[0].ID); err != nil || !j.Paused || j.Reason != errMount.Error() {
			t.Errorf("a copy that hangs: %s, paused %v, %q, %v", j.State, j.Paused, j.Reason, err)
		}
		w.locked(func() { w.a.hang, w.a.export = nil, nil })
		close(hang)
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

// The export goes away while each of its calls is made, before and after its effect.
func TestALegThatTheExportFailsWaits(t *testing.T) {
	for _, c := range []struct {
		site, call string
		state      State
	}{
		{"A", "stager.Stage", Offered},
		{"B", "stager.Open", Arriving},
		{"B", "landing.BlockCheck", Arriving}, // between two reads
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %s %v", c.site, c.call, after), func(t *testing.T) {
				run(t, func(t *testing.T, w *world) {
					s := map[string]*site{"A": w.a, "B": w.b}[c.site]
					broke := false
					w.inject(func(o op, a bool) fate {
						if o.site == c.site && o.name == c.call && a == after && !broke {
							broke, s.export = true, errMount
							if strings.HasPrefix(c.call, "stager.") {
								return fail
							}
						}
						return live
					})
					data := bytesOf(1_500_000)
					id := w.a.upload("x", data)
					jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
					time.Sleep(time.Minute)
					s.wantPaused(s.job(id).ID, c.state)
					s.mendExport()
					time.Sleep(soon)
					if j := s.job(id); j.Paused {
						t.Errorf("%v after the export is well again the job waits: %s", soon, j.Reason)
					}
					if j := w.a.await(jobs[0].ID, Verified, Parked); j.State != Verified {
						t.Errorf("job is %s: %s", j.State, j.Reason)
					}
					w.wantDelivered(id, data)
				})
			})
		}
	}
}

// A site whose export is not well takes nothing new, and finishes what is on its way.
func TestOffersWaitForTheExport(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		first, second := bytesOf(4_000_000), bytesOf(50_000)
		one := w.a.upload("one", first)
		w.a.agent().Push(t.Context(), string(one), []string{"B"}, "")
		for w.b.job(one).State != Arriving {
			time.Sleep(time.Millisecond)
		}
		w.b.breakExport(errMount)
		time.Sleep(2 * lookWell)
		two := w.a.upload("two", second)
		w.a.agent().Push(t.Context(), string(two), []string{"B"}, "")
		time.Sleep(time.Minute)
		if j := w.a.job(two); j.State != Pending || j.Reason != "site B: "+errMount.Error() || j.Attempts != 0 {
			t.Errorf("an offer: %s %q, %d attempts, want it to wait for B's export", j.State, j.Reason, j.Attempts)
		}
		if j := w.b.job(two); j.ID != "" {
			t.Errorf("B has accepted it: it is %s", j.State)
		}
		if j := w.a.job(one); j.State != Moved { // the transfer needs no mount
			t.Errorf("the first image is %s at A: %s", j.State, j.Reason)
		}
		w.b.wantPaused(w.b.job(one).ID, Arriving)
		w.b.mendExport()
		w.a.await(w.a.job(one).ID, Verified)
		w.a.await(w.a.job(two).ID, Verified)
	})
}

// What moves no byte needs no export.
func TestALocalCopyDoesNotWaitForTheExport(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(200_000)
		id := w.a.upload("copy", data)
		w.b.upload("original", data)
		w.b.breakExport(errMount)
		time.Sleep(2 * lookWell)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Verified)
	})
}

func TestUndoingWaitsForTheExportAfterThePeerWasTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := w.a.upload("x", bytesOf(4_000_000))
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Staged)
		w.a.breakExport(errMount)
		if _, err := w.a.agent().Cancel(t.Context(), jobs[0].ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.a.wantPaused(jobs[0].ID, Cancelling)
		if j := w.b.job(id); j.State != Cancelled {
			t.Errorf("B's job is %s, want it cancelled", j.State)
		}
		w.a.mendExport()
		time.Sleep(soon)
		w.a.await(jobs[0].ID, Cancelled)
		w.locked(func() {
			if len(w.a.outbox) > 0 {
				t.Errorf("the copy is left behind")
			}
		})
	})
}

// What frees space has to go on.
func TestAFullExportDoesNotStopItsCleaning(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.breakExport(fmt.Errorf("write to the export: %w", ErrSpace))
		time.Sleep(2 * lookWell)
		a := w.a.agent()
		if i := slices.IndexFunc(a.Checks(t.Context()), func(c Check) bool { return c.Name == "export" && !c.OK }); i < 0 {
			t.Error("nobody is told that it is full")
		}
		if err := a.ExportTrouble(); err != nil {
			t.Errorf("legs wait: %v", err)
		}
	})
}

// An agent that dies while its jobs wait goes on with them.
func TestAPausedJobOutlivesItsAgent(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.a.breakExport(errMount)
		data := bytesOf(50_000)
		id := w.a.upload("x", data)
		jobs, _ := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		w.a.await(jobs[0].ID, Offered)
		time.Sleep(time.Minute)
		w.a.halt()
		w.a.boot()
		time.Sleep(time.Minute)
		w.a.wantPaused(jobs[0].ID, Offered)
		w.a.mendExport()
		time.Sleep(soon)
		w.a.await(jobs[0].ID, Verified)
		w.wantDelivered(id, data)
	})
}

// Deliveries only read the inbox.
func TestDeliveriesDoNotWaitForTheOutbox(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		trouble := fmt.Errorf("%w: read-only file system", ErrOutbox)
		w.b.breakExport(errMount)
		id := w.a.upload("in", bytesOf(50_000))
		w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		outgoing := w.b.upload("out", bytesOf(60_000))
		jobs, err := w.b.agent().Push(t.Context(), string(outgoing), []string{"A"}, "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.b.breakExport(trouble)
		w.a.await(w.a.job(id).ID, Verified)
		w.b.wantExport(trouble)
		time.Sleep(time.Minute)
		w.b.wantWaiting(jobs[0].ID, Offered, trouble)
		w.b.mendExport()
		time.Sleep(soon)
		w.b.await(jobs[0].ID, Verified)
	})
}

// looked is a Stager whose calls fail, and whose looks a test answers.
type looked struct {
	Stager
	look func() error
}

func (l looked) Check(context.Context) error           { return l.look() }
func (l looked) Unstage(context.Context, string) error { return errBroken }

// A leg that shuts the gate may do so right after a look that was well.
func TestAGateThatALegHasShutIsLookedAtSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var trouble atomic.Pointer[error]
		g := newGate(looked{look: func() error {
			if err := trouble.Load(); err != nil {
				return *err
			}
			return nil
		}}, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go g.watch(ctx)
		time.Sleep(lookWell + time.Millisecond)
		trouble.Store(&errMount)
		if err := g.Unstage(ctx, "outbox/x"); !errors.Is(err, errMount) {
			t.Errorf("got %v, want a leg that waits", err)
		}
		synctest.Wait()
		trouble.Store(nil)
		time.Sleep(lookTrouble)
		synctest.Wait()
		if err := g.closed(mover.Outbox); err != nil {
			t.Errorf("%v after the export is well again: %v", lookTrouble, err)
		}
	})
}

// What a look has found is old when a later one has told.
func TestALookThatWasOvertakenDoesNotCount(t *testing.T) {
	for _, first := range []error{errMount, nil} {
		later := errMount
		if first != nil {
			later = nil
		}
		synctest.Test(t, func(t *testing.T) {
			slow, n := make(chan struct{}), 0
			g := newGate(looked{look: func() error {
				if n++; n > 1 {
					return later
				}
				<-slow
				return first
			}}, slog.New(slog.DiscardHandler))
			go g.Check(t.Context())
			synctest.Wait()
			if err := g.Check(t.Context()); err != later {
				t.Errorf("got %v, want %v", err, later)
			}
			close(slow)
			synctest.Wait()
			if err := g.closed(mover.Outbox); err != later {
				t.Errorf("the gate is shut because of %v, want what the later look found: %v", err, later)
			}
		})
	}
}
