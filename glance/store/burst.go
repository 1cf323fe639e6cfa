package store

import (
	"maps"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// An upload of some GiB is thousands of writes. One hint follows when nothing was
// written for quiet, and while writes go on, one every busy.
const (
	quiet = 300 * time.Millisecond
	busy  = 5 * time.Second
)

// Every event would wake us, once for each 64 KiB that Glance writes. So we listen for
// a moment and then rest, in which the kernel merges equal events that follow each other:
// those of one upload at a time. Those of several it keeps for us, 16,384 by default.
const (
	listen = 5 * time.Millisecond
	rest   = 100 * time.Millisecond
)

// bursts turns many events of an image into few hints. It is data: the caller
// tells the time.
type bursts map[glance.ImageID]burst

type burst struct {
	since time.Time // the first event, or the last hint
	last  time.Time // the last event
}

// touch notes an event.
func (b bursts) touch(id glance.ImageID, now time.Time) {
	one, ok := b[id]
	if !ok {
		one.since = now
	}
	one.last = now
	b[id] = one
}

// due is when the burst's next hint is to be given.
func (b burst) due() time.Time {
	if q, g := b.last.Add(quiet), b.since.Add(busy); g.Before(q) {
		return g
	} else {
		return q
	}
}

// take returns the images of which a hint is due, by id, and when the next one
// will be; zero when none is waited for.
func (b bursts) take(now time.Time) (ids []glance.ImageID, next time.Time) {
	for _, id := range slices.Sorted(maps.Keys(b)) {
		one := b[id]
		if !one.due().After(now) {
			ids = append(ids, id)
			if now.Sub(one.last) >= quiet {
				delete(b, id)
				continue
			}
			one.since = now
			b[id] = one
		}
		if next.IsZero() || one.due().Before(next) {
			next = one.due()
		}
	}
	return ids, next
}
