package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/glance-dtn/glance-dtn/glance"
)

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// run starts w and returns its hints and a function that ends it.
func run(t *testing.T, w *Watcher) (hints <-chan glance.Hint, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ch := make(chan glance.Hint, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx, func(h glance.Hint) { ch <- h }); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return ch, stop
}

// until waits for a condition that others bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// scanned waits until w has finished a scan that starts after the call.
func scanned(t *testing.T, w *Watcher) {
	t.Helper()
	since := func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.scanning
	}
	called, began := time.Now(), time.Time{}
	until(t, "a scan", func() bool { began = since(); return began.After(called) })
	until(t, "its end", func() bool { return !since().Equal(began) })
}

func expect(t *testing.T, hints <-chan glance.Hint, want glance.Hint) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case got := <-hints:
			if got == want {
				return
			}
			if got.ID != want.ID {
				t.Fatalf("got hint %+v, want %+v", got, want)
			}
		case <-deadline:
			t.Fatalf("no hint %+v", want)
		}
	}
}

func TestAWriteGivesAHint(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, string(id3), "there before")
	w := &Watcher{Dirs: []string{dir}, ScanEvery: time.Hour, Log: discard()}
	hints, stop := run(t, w)
	until(t, "the first scan", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.broken != nil })
	put(t, dir, "not-an-image", "x")
	put(t, dir, string(id1), "data")
	expect(t, hints, glance.Hint{ID: id1, From: "inotify"})
	if err := os.Remove(filepath.Join(dir, string(id3))); err != nil {
		t.Fatal(err)
	}
	expect(t, hints, glance.Hint{ID: id3, From: "inotify"})
	if err := os.Rename(filepath.Join(dir, "not-an-image"), filepath.Join(dir, string(id2))); err != nil {
		t.Fatal(err)
	}
	expect(t, hints, glance.Hint{ID: id2, From: "inotify"})
	stop()
	if len(hints) > 0 {
		t.Errorf("got %+v more", <-hints)
	}
}

func TestAScanFindsWhatInotifyDoesNotSee(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, string(id1), "one")
	put(t, dir, string(id2), "two")
	w := &Watcher{Dirs: []string{dir}, ScanEvery: time.Hour, Log: discard()}
	before := w.scan(nil).dirs[dir]
	if got := changed(nil, before); got != nil {
		t.Errorf("the first scan: got %v, want nothing", got)
	}
	put(t, dir, string(id2), "longer")
	put(t, dir, string(id3), "new")
	got := map[glance.ImageID]bool{}
	for _, id := range changed(before, w.scan(nil).dirs[dir]) {
		got[id] = true
	}
	if want := map[glance.ImageID]bool{id2: true, id3: true}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestADatadirThatComesBackIsWatchedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	put(t, dir, string(id1), "one")
	var log bytes.Buffer
	w := &Watcher{Dirs: []string{dir}, ScanEvery: 10 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))}
	hints, stop := run(t, w)
	scanned(t, w)
	if err := w.Healthy(); err != nil {
		t.Fatalf("a datadir that is there: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	until(t, "Healthy to tell that the datadir is gone", func() bool {
		err := w.Healthy()
		return err != nil && strings.Contains(err.Error(), dir)
	})
	scanned(t, w) // says nothing new
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	until(t, "Healthy to tell that it is back", func() bool { return w.Healthy() == nil })
	scanned(t, w)
	put(t, dir, string(id2), "two")
	got := map[string]bool{}
	until(t, "hints from both", func() bool {
		for len(hints) > 0 {
			if h := <-hints; h.ID == id2 {
				got[h.From] = true
			}
		}
		return got["inotify"] && got["scan"]
	})
	stop()
	for message, want := range map[string]int{"datadir cannot be read": 1, "datadir can be read again": 1} {
		if n := strings.Count(log.String(), message); n != want {
			t.Errorf("%q was logged %d times, want %d:\n%s", message, n, want, &log)
		}
	}
}

func TestBurstsGiveFewHints(t *testing.T) {
	start := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	b := bursts{}
	var given []time.Duration
	take := func(at time.Duration) {
		ids, _ := b.take(start.Add(at))
		for range ids {
			given = append(given, at)
		}
	}
	var at time.Duration
	for ; at <= 12*time.Second; at += 100 * time.Millisecond { // an upload of 12 s
		b.touch(id1, start.Add(at))
		take(at)
	}
	for ; at <= 20*time.Second; at += 100 * time.Millisecond {
		take(at)
	}
	want := []time.Duration{5 * time.Second, 10 * time.Second, 12300 * time.Millisecond}
	if !reflect.DeepEqual(given, want) {
		t.Errorf("hints at %v, want %v", given, want)
	}
	if len(b) != 0 {
		t.Errorf("left over: %v", b)
	}
}

func TestBurstsTellWhenTheNextHintIsDue(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	b := bursts{}
	b.touch(id1, now)
	b.touch(id2, now.Add(100*time.Millisecond))
	if ids, next := b.take(now.Add(200 * time.Millisecond)); len(ids) != 0 || !next.Equal(now.Add(quiet)) {
		t.Errorf("got %v, %v, want nothing until %v", ids, next, now.Add(quiet))
	}
	if ids, next := b.take(now.Add(quiet)); !reflect.DeepEqual(ids, []glance.ImageID{id1}) || !next.Equal(now.Add(400*time.Millisecond)) {
		t.Errorf("got %v, %v, want %s", ids, next, id1)
	}
	if ids, next := b.take(now.Add(time.Second)); !reflect.DeepEqual(ids, []glance.ImageID{id2}) || !next.IsZero() {
		t.Errorf("got %v, %v, want %s and nothing more", ids, next, id2)
	}
}

// bubble runs w.loop with events, errors and scans that the test controls.
func bubble(t *testing.T, scan func() survey, test func(events chan<- fsnotify.Event, errs chan<- error, hints func() []glance.Hint, w *Watcher)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		events, errs, given := make(chan fsnotify.Event), make(chan error), make(chan glance.Hint, 100)
		w := &Watcher{Dirs: []string{"/store"}, ScanEvery: time.Minute, Log: discard()}
		var wg sync.WaitGroup
		wg.Go(func() { w.loop(ctx, events, errs, scan, func(h glance.Hint) { given <- h }) })
		hints := func() (all []glance.Hint) {
			synctest.Wait()
			for len(given) > 0 {
				all = append(all, <-given)
			}
			return all
		}
		if h := hints(); h != nil {
			t.Errorf("got %v from the first scan, want none", h)
		}
		test(events, errs, hints, w)
		cancel()
		wg.Wait()
	})
}

func TestTheLoopWaitsUntilAnImageIsQuiet(t *testing.T) {
	empty := func() survey { return survey{dirs: map[string]content{"/store": {}}} }
	bubble(t, empty, func(events chan<- fsnotify.Event, _ chan<- error, hints func() []glance.Hint, _ *Watcher) {
		events <- fsnotify.Event{Name: "/store/" + string(id1), Op: fsnotify.Create}
		for range 29 {
			time.Sleep(100 * time.Millisecond)
			events <- fsnotify.Event{Name: "/store/" + string(id1), Op: fsnotify.Write}
		}
		events <- fsnotify.Event{Name: "/store/" + string(id2), Op: fsnotify.Chmod}
		events <- fsnotify.Event{Name: "/store/lost+found", Op: fsnotify.Create}
		time.Sleep(quiet - 1)
		if h := hints(); h != nil {
			t.Errorf("got %v while writes go on", h)
		}
		time.Sleep(1 * time.Nanosecond)
		if h := hints(); !reflect.DeepEqual(h, []glance.Hint{{ID: id1, From: "inotify"}}) {
			t.Errorf("got %v, want one hint", h)
		}
		events <- fsnotify.Event{Name: "/store/" + string(id2), Op: fsnotify.Remove}
		time.Sleep(quiet)
		if h := hints(); !reflect.DeepEqual(h, []glance.Hint{{ID: id2, From: "inotify"}}) {
			t.Errorf("got %v, want a second image's hint", h)
		}
	})
}

func TestAnOverflowScansAtOnce(t *testing.T) {
	var scans atomic.Int64
	scan := func() survey {
		c := content{}
		if n := scans.Add(1); n > 1 {
			c[id1] = stamp{size: n}
		}
		return survey{dirs: map[string]content{"/store": c}}
	}
	bubble(t, scan, func(_ chan<- fsnotify.Event, errs chan<- error, hints func() []glance.Hint, _ *Watcher) {
		errs <- fsnotify.ErrEventOverflow
		if h := hints(); !reflect.DeepEqual(h, []glance.Hint{{ID: id1, From: "scan"}}) || scans.Load() != 2 {
			t.Errorf("got %v after %d scans, want a hint from a second", h, scans.Load())
		}
		time.Sleep(time.Minute)
		if h := hints(); len(h) != 1 || scans.Load() != 3 {
			t.Errorf("got %v after %d scans, want a third a minute later", h, scans.Load())
		}
	})
}

func TestAnOverflowDuringAScanScansOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var scans atomic.Int64
		release := make(chan struct{})
		scan := func() survey {
			scans.Add(1)
			<-release
			return survey{}
		}
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error)
		w := &Watcher{Dirs: []string{"/store"}, ScanEvery: time.Hour, Log: discard()}
		var wg sync.WaitGroup
		wg.Go(func() { w.loop(ctx, nil, errs, scan, nil) })
		synctest.Wait()
		errs <- fsnotify.ErrEventOverflow
		errs <- errors.New("inotify is broken")
		synctest.Wait()
		if scans.Load() != 1 {
			t.Errorf("%d scans at once", scans.Load())
		}
		if err := w.Healthy(); err != nil {
			t.Errorf("a scan that just began: %v", err)
		}
		time.Sleep(2 * stalled)
		if err := w.Healthy(); err == nil {
			t.Error("a scan that hangs is healthy")
		}
		release <- struct{}{}
		synctest.Wait()
		if scans.Load() != 2 {
			t.Errorf("%d scans, want one more", scans.Load())
		}
		release <- struct{}{}
		synctest.Wait()
		if err := w.Healthy(); scans.Load() != 2 || err != nil {
			t.Errorf("%d scans, %v, want 2 and health", scans.Load(), err)
		}
		cancel()
		wg.Wait()
	})
}

func TestABrokenDatadirIsScannedAgainSoonAndKeepsItsFiles(t *testing.T) {
	var scans atomic.Int64
	scan := func() survey {
		if scans.Add(1) == 2 {
			return survey{broken: map[string]error{"/store": errors.New("stale file handle")}}
		}
		return survey{dirs: map[string]content{"/store": {id1: {size: 1}}}}
	}
	bubble(t, scan, func(events chan<- fsnotify.Event, _ chan<- error, hints func() []glance.Hint, w *Watcher) {
		events <- fsnotify.Event{Name: "/store", Op: fsnotify.Remove}
		if h := hints(); h != nil || scans.Load() != 2 || w.Healthy() == nil {
			t.Errorf("got %v after %d scans, %v, want a second scan and no health", h, scans.Load(), w.Healthy())
		}
		time.Sleep(again)
		if h := hints(); h != nil || scans.Load() != 3 || w.Healthy() != nil {
			t.Errorf("got %v after %d scans, %v, want a third and nothing new in it", h, scans.Load(), w.Healthy())
		}
	})
}

// TestAnUploadWakesUsInTurns has something write every millisecond.
func TestAnUploadWakesUsInTurns(t *testing.T) {
	empty := func() survey { return survey{dirs: map[string]content{"/store": {}}} }
	bubble(t, empty, func(events chan<- fsnotify.Event, _ chan<- error, hints func() []glance.Hint, _ *Watcher) {
		taken, longest, last := 0, time.Duration(0), time.Now()
		for began := last; time.Since(began) < time.Second; {
			time.Sleep(time.Millisecond)
			events <- fsnotify.Event{Name: "/store/" + string(id1), Op: fsnotify.Write}
			taken++
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		if longest < rest || longest > rest+time.Millisecond || taken < 30 || taken > 100 {
			t.Errorf("%d events in a second, and at the longest %v between two; want a rest of %v after each %v", taken, longest, rest, listen)
		}
		time.Sleep(quiet)
		if h := hints(); !reflect.DeepEqual(h, []glance.Hint{{ID: id1, From: "inotify"}}) {
			t.Errorf("got %v, want one hint", h)
		}
	})
}
