package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// What is open at once is bounded: at the sender a source for each move, maxFiles on a
// link, MaxParallelism lanes of it with their buffers; at the receiver Conns connections
// with a frame each, the frames in hot and those that are borrowed, Files arrivals with two
// open files each, and each base from which something is taken, once. What is beyond waits.

// crowdedTime is how soon what found too much open is tried again.
const crowdedTime = 5 * time.Second

var errCrowded = errors.New("as many files arrive as may at once, in all or of one site")

// crowded returns err, or, where it is that too much is open, that it is to be tried
// again soon.
func crowded(err error) error {
	switch {
	case waits(err) != nil:
		return err
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		err = fmt.Errorf("too many files are open; raise LimitNOFILE of the DTN's service: %w", err)
	case !errors.Is(err, errCrowded):
		return err
	}
	return &mover.Wait{Until: time.Now().Add(crowdedTime), Reason: err.Error()}
}

// room waits until the link has room for another file, which open then takes.
func (l *link) room(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.files)+l.coming >= cmp.Or(l.engine.linkFiles, maxFiles) {
		if l.err != nil {
			return l.err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l.changed.Wait()
	}
	l.coming++
	return nil
}

// occupy opens the arrival's files, if there is a place for it and for what is of a site. The
// caller holds mu.
func (a *arrival) occupy(site string) error {
	if a.places != nil && !a.places.enter(site) {
		return crowded(errCrowded)
	}
	a.site = site
	open := a.open
	if a.small {
		open = a.openSmall
	}
	err := open()
	if err != nil {
		a.unoccupy()
	}
	return err
}

func (a *arrival) unoccupy() {
	if a.places != nil {
		a.places.leave(a.site)
	}
}

// passing reports an error of accept that is not the listener's end.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause is a moment for what passes by itself.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}
