package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/glance-dtn/glance-dtn/glance"
)

// Watcher gives hints of what changes in datadirs. Its fields are set before Run.
type Watcher struct {
	Dirs      []string
	ScanEvery time.Duration // between two scans
	Log       *slog.Logger

	unwatched map[string]bool // datadirs without inotify; touched by the running scan only

	mu       sync.Mutex
	scanning time.Time        // since when a scan runs; zero when none does
	broken   map[string]error // datadirs that the last scan could not read
}

const (
	// again is the time between two scans while a datadir cannot be read.
	again = 5 * time.Second
	// stalled is how long a scan may run before the store counts as hanging.
	stalled = time.Minute
)

// stamp is what a scan compares of a file.
type stamp struct {
	size    int64
	modTime time.Time
}

// content is what a scan saw in one datadir.
type content map[glance.ImageID]stamp

// survey is the outcome of one scan: a datadir is in one of the maps.
type survey struct {
	dirs   map[string]content
	broken map[string]error
}

// Run calls hint, never at once, until ctx ends, and then returns nil. A hint comes
// from "inotify" soon after a file was written, renamed or removed on this machine,
// and from "scan" when a file is new or changed since the scan before. The first
// scan of a datadir gives none: whoever starts a Watcher asks Glance for everything
// once. A datadir that cannot be read, or cannot be watched, does not end Run: it is
// scanned again until it can.
//
// A scan cannot be interrupted. While an NFS server does not answer, Run does not
// return.
func (w *Watcher) Run(ctx context.Context, hint func(glance.Hint)) error {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		w.Log.Warn("no inotify, changes are found by scans only; raise fs.inotify.max_user_instances", "err", err)
		w.loop(ctx, nil, nil, func() survey { return w.scan(nil) }, hint)
		return nil
	}
	w.loop(ctx, n.Events, n.Errors, func() survey { return w.scan(n) }, hint)
	return n.Close()
}

// Healthy returns nil, or why changes in the store may not be noticed now.
func (w *Watcher) Healthy() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, dir := range w.Dirs {
		errs = append(errs, w.broken[dir])
	}
	if d := time.Since(w.scanning); !w.scanning.IsZero() && d > stalled {
		errs = append(errs, fmt.Errorf("a scan of the store has been running for %.0f min; does its NFS server answer?", d.Minutes()))
	}
	return errors.Join(errs...)
}

// loop is Run with its events and its scan handed in.
func (w *Watcher) loop(ctx context.Context, events <-chan fsnotify.Event, errs <-chan error, scan func() survey, hint func(glance.Hint)) {
	var (
		wg        sync.WaitGroup
		done      = make(chan survey, 1)
		running   = false
		repeat    = false // scan once more: something happened during the scan
		seen      = map[string]content{}
		pending   = bursts{}
		next      = time.NewTimer(0)    // the next scan
		settle    = time.NewTimer(busy) // the next look at pending
		heard     = events              // nil while we rest
		listening = false               // since the last rest, an event came
		turn      = time.NewTimer(busy) // from listening to resting, and back
	)
	turn.Stop()
	defer wg.Wait()
	defer next.Stop()
	defer settle.Stop()
	defer turn.Stop()
	start := func() {
		if repeat = running; running {
			return
		}
		running = true
		w.begin()
		wg.Go(func() { done <- scan() })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-heard:
			if !listening {
				listening = true
				turn.Reset(listen)
			}
			if w.isDir(e.Name) {
				start() // the datadir itself was removed, renamed or unmounted
			} else if name := filepath.Base(e.Name); isID(name) && e.Op != fsnotify.Chmod {
				if len(pending) == 0 {
					settle.Reset(quiet)
				}
				pending.touch(glance.ImageID(name), time.Now())
			}
		case <-turn.C:
			if listening {
				listening, heard = false, nil
				turn.Reset(rest)
			} else {
				heard = events
			}
		case err := <-errs:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				w.Log.Warn("inotify failed, scanning instead", "err", err)
			}
			start()
		case <-settle.C:
			ids, at := pending.take(time.Now())
			for _, id := range ids {
				hint(glance.Hint{ID: id, From: "inotify"})
			}
			if !at.IsZero() {
				settle.Reset(time.Until(at))
			}
		case <-next.C:
			start()
		case s := <-done:
			running = false
			w.end(s.broken)
			for dir, now := range s.dirs {
				for _, id := range changed(seen[dir], now) {
					hint(glance.Hint{ID: id, From: "scan"})
				}
				seen[dir] = now
			}
			next.Reset(w.pause(s))
			if repeat {
				start()
			}
		}
	}
}

// pause is the time until the next scan.
func (w *Watcher) pause(s survey) time.Duration {
	if len(s.broken) > 0 {
		return min(again, w.ScanEvery)
	}
	return w.ScanEvery
}

// scan looks at the datadirs. It watches each of them anew before, which does
// nothing where the watch still stands, so that no change falls between watch and scan.
func (w *Watcher) scan(n *fsnotify.Watcher) survey {
	s := survey{dirs: map[string]content{}, broken: map[string]error{}}
	for _, dir := range w.Dirs {
		var unwatched error
		if n != nil {
			unwatched = n.Add(dir)
		}
		files, err := scanDir(dir)
		if err != nil {
			s.broken[dir] = err
			continue
		}
		w.watched(dir, unwatched)
		s.dirs[dir] = make(content, len(files))
		for _, f := range files {
			s.dirs[dir][f.ID] = stamp{f.Size, f.ModTime}
		}
	}
	return s
}

// watched says once that a datadir, which can be read, cannot be watched.
func (w *Watcher) watched(dir string, err error) {
	if err != nil && !w.unwatched[dir] {
		w.Log.Warn("no inotify on a datadir, its changes are found by scans only; see fs.inotify.max_user_watches", "dir", dir, "err", err)
	}
	if w.unwatched == nil {
		w.unwatched = map[string]bool{}
	}
	w.unwatched[dir] = err != nil
}

// changed lists the files of now that are new or not as before. Of a datadir that
// was not seen before, there is nothing to say.
func changed(before, now content) []glance.ImageID {
	if before == nil {
		return nil
	}
	var ids []glance.ImageID
	for id, s := range now {
		if b, ok := before[id]; !ok || b.size != s.size || !b.modTime.Equal(s.modTime) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (w *Watcher) isDir(name string) bool {
	for _, dir := range w.Dirs {
		if filepath.Clean(dir) == filepath.Clean(name) {
			return true
		}
	}
	return false
}

// begin notes that a scan starts.
func (w *Watcher) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scanning = time.Now()
}

// end notes what a scan could not read, and says once what changed in that.
func (w *Watcher) end(broken map[string]error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, dir := range w.Dirs {
		was, is := w.broken[dir], broken[dir]
		if was == nil && is != nil {
			w.Log.Warn("datadir cannot be read", "dir", dir, "err", is)
		} else if was != nil && is == nil {
			w.Log.Info("datadir can be read again", "dir", dir)
		}
	}
	w.scanning, w.broken = time.Time{}, broken
}
