package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestTheSlowestPlaceOfTheWholeWayIsNamed makes one place after the other slow, and asks
// both sites' jobs what that was.
func TestTheSlowestPlaceOfTheWholeWayIsNamed(t *testing.T) {
	const slow = 100 * time.Millisecond
	for name, c := range map[string]struct {
		slow     func(w *world)
		place    mover.Place // as A tells it
		delivery mover.Place // as B does
	}{
		"Glance":             {func(w *world) { w.b.store = slow }, mover.Glance, mover.Glance},
		"reading the export": {func(w *world) { w.b.read = 64 * slow }, mover.DestinationExport, mover.DestinationExport},
		"the move":           {func(w *world) { w.pace = slow }, mover.Network, mover.Coming},
		"the local copy": {func(w *world) {
			w.a.hang = make(chan struct{})
			time.AfterFunc(time.Minute, func() { close(w.a.hang) })
		}, mover.LocalCopy, mover.Glance},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.locked(func() { c.slow(w) })
				id := w.a.upload("debian", bytesOf(3*mover.BlockSize))
				jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				var shown [2]mover.Bottleneck
				w.b.await(NewJobID(Receive, id, jobs[0].Image.Hash, "A"), Arriving)
				for j := w.a.job(id); j.State != Verified; j = w.a.job(id) {
					time.Sleep(100 * time.Millisecond)
					for i, a := range []*Agent{w.a.agent(), w.b.agent()} {
						a.mu.Lock()
						for _, p := range a.progress {
							if p.State == Moved || p.State == Arriving {
								shown[i] = p.Bottleneck
							}
						}
						a.mu.Unlock()
					}
				}
				here, there := w.a.job(id), w.b.job(id)
				if here.Waited.Place != c.place || here.Waited.For < time.Second {
					t.Errorf("A: %+v, want the %s", here.Waited, c.place)
				}
				if name == "the local copy" { // beside which the rest is short
					return
				}
				if there.Waited.Place != c.delivery || there.Waited.For < time.Second {
					t.Errorf("B: %+v, want the %s", there.Waited, c.delivery)
				}
				for _, j := range []Job{here, there} {
					legs := j.Legs()
					if note := legs[len(legs)-1].Note; !strings.HasPrefix(note, "upload, each block checked; bottleneck: "+string(c.delivery)+", ") {
						t.Errorf("the job at %s notes %q", j.Peer, note)
					}
				}
				if b := shown[1]; b.Place != c.delivery {
					t.Errorf("B told of %+v on its way", b)
				}
				if b := shown[0]; name == "Glance" && b.Place != mover.Glance {
					t.Errorf("A told of %+v on its way", b)
				}
			})
		})
	}
}

// TestAGlanceThatTakesNothingIsNamed at both sites while it is so, not when it is over.
func TestAGlanceThatTakesNothingIsNamed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.store = time.Hour })
		id := w.a.upload("debian", bytesOf(3*mover.BlockSize))
		jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Moved)
		time.Sleep(5 * time.Second)
		for _, s := range []*site{w.a, w.b} {
			a, j := s.agent(), s.job(id)
			a.mu.Lock()
			if b := a.progress[j.ID].Bottleneck; b != (mover.Bottleneck{Place: mover.Glance, Share: 1}) {
				t.Errorf("site %s tells of %+v", s.name, b)
			}
			a.mu.Unlock()
		}
	})
}

// TestAnUploadThatIsOverIsWaitedForNoMore has Glance refuse to make the image visible then.
func TestAnUploadThatIsOverIsWaitedForNoMore(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.locked(func() { w.b.store, w.b.refuseFinish = 100*time.Millisecond, errors.New("503") })
		id := w.a.upload("debian", bytesOf(3*mover.BlockSize))
		jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		there := NewJobID(Receive, id, jobs[0].Image.Hash, "A")
		tell := func() Delivery {
			d, err := w.b.agent().Delivery(t.Context(), "A", there)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		w.b.await(there, Arriving)
		time.Sleep(5 * time.Second)
		if d := tell(); d.State != Arriving || d.Bottleneck.Place != mover.Glance {
			t.Errorf("while it is uploaded B tells of %+v", d)
		}
		w.b.await(there, Delivered)
		if d := tell(); d.Bottleneck != (mover.Bottleneck{}) {
			t.Errorf("afterwards B tells of %+v", d.Bottleneck)
		}
	})
}

// TestProgressOfADeliveryGoesForwards though whoever is told takes a while: he is told of
// one thing after the other.
func TestProgressOfADeliveryGoesForwards(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		data := bytesOf(20 * 16 << 10)
		id := w.a.upload("debian", data)
		to := newImageID()
		w.locked(func() {
			w.a.store = 130 * time.Millisecond
			w.a.images[to] = &record{Image: glance.Image{ID: to, Status: glance.Queued}}
		})
		var mu sync.Mutex
		var told []int64
		_, _, err := w.a.agent().upload(t.Context(), Job{ID: "j", LocalCopy: id, Image: glance.Image{ID: id, Size: int64(len(data)), Hash: sum(data)}}, to, func(n, _ int64) {
			if !mu.TryLock() {
				t.Errorf("told of %d bytes before %v were heard", n, told)
				return
			}
			defer mu.Unlock()
			time.Sleep(200 * time.Millisecond)
			told = append(told, n)
		})
		if err != nil || len(told) == 0 || !slices.IsSorted(told) {
			t.Errorf("told of %v bytes, %v", told, err)
		}
	})
}
