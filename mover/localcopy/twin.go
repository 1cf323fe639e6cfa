package localcopy

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// content is what an image's staged files have in common, whatever sites they are for.
type content struct {
	id     string
	size   int64
	digest digest.Digest
}

// twins knows, of each image, a staged file that was made by a copy. For another site that
// gets a second name: it takes no space, and the DTN reads the image from its disk once.
type twins struct {
	mu  sync.Mutex // guards what follows
	all map[content]*twin
}

// twin is a content's file.
type twin struct {
	turn  chan struct{} // holds one, taken while a file is made
	users int           // that make one, or wait for their turn
	names []string      // in the outbox
}

// enter waits until nobody else makes a file of this content. leave is called after.
func (t *twins) enter(ctx context.Context, c content) (*twin, error) {
	t.mu.Lock()
	w := t.all[c]
	if w == nil {
		w = &twin{turn: make(chan struct{}, 1)}
		w.turn <- struct{}{}
		if t.all == nil {
			t.all = map[content]*twin{}
		}
		t.all[c] = w
	}
	w.users++
	t.mu.Unlock()
	select {
	case <-w.turn:
		return w, nil
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		w.users--
		t.drop()
		return nil, ctx.Err()
	}
}

// leave gives the turn to the next one; made is the file that there is now, empty: none.
func (t *twins) leave(w *twin, made string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if made != "" {
		w.names = append(w.names, made)
	}
	w.users--
	w.turn <- struct{}{}
	t.drop()
}

// forget has no more names made of the file that has this one, which is removed: it may
// have been found to be damaged.
func (t *twins) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.all {
		if slices.Contains(w.names, name) {
			w.names = nil
		}
	}
	t.drop()
}

// drop forgets the contents that nobody asks for and that have no file. The caller holds mu.
func (t *twins) drop() {
	for c, w := range t.all {
		if w.users == 0 && len(w.names) == 0 {
			delete(t.all, c)
		}
	}
}

// of returns a name of the file of w; empty: there is none.
func (t *twins) of(w *twin) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(w.names) == 0 {
		return ""
	}
	return w.names[0]
}

// linkTwin gives the file that was staged for another site a name for this one.
func linkTwin(_ context.Context, t *task) error {
	if t.twin == "" {
		return unix.ENOTSUP
	}
	info, err := t.box.Lstat(t.twin)
	if err != nil || !info.Mode().IsRegular() || info.Size() != t.file.Size {
		return fmt.Errorf("%s is not what was staged (%w, %w)", t.twin, err, unix.ENOTSUP)
	}
	if err := t.box.Link(t.twin, t.temp); err != nil {
		return fmt.Errorf("%w: %w", unix.ENOTSUP, err)
	}
	t.report(t.file.Size)
	return nil
}
