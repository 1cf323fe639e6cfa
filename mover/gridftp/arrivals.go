package gridftp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// tell says that Arrivals tells something else. The caller holds mu.
func (b *Inbox) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Changed returns a channel that is closed when Arrivals tells something else than it
// does now, or may do so.
func (b *Inbox) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *Inbox) lookup(name string) *arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.arrivals[name]
}

// snapshot returns copies of the arrivals.
func (b *Inbox) snapshot() []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []arrival
	for _, a := range b.arrivals {
		all = append(all, *a)
	}
	return all
}

// missing is how much of the disk it will still take.
func (a arrival) missing() int64 {
	if a.arrived {
		return 0
	}
	return max(0, a.File.Size-a.written)
}

func (a arrival) status() mover.Arrival {
	if a.arrived {
		return mover.Arrival{File: a.File, State: mover.Arrived, Path: a.File.Name, Proven: a.File.Size, Moved: a.File.Size, Since: a.Since}
	}
	return mover.Arrival{File: a.File, State: mover.Arriving, Path: partName(a.File.Name), Moved: a.written, Error: a.lastErr, Since: a.Since}
}

// Arrivals returns what arrives and has arrived, by name. Nothing of a file is proven
// before all of it is; until then Moved is what lies there.
func (b *Inbox) Arrivals() []mover.Arrival {
	var all []mover.Arrival
	for _, a := range b.snapshot() {
		all = append(all, a.status())
	}
	slices.SortFunc(all, func(a, b mover.Arrival) int { return strings.Compare(a.File.Name, b.File.Name) })
	return all
}

// Arrival returns the one whose File.Name is name; mover.ErrNoArrival.
func (b *Inbox) Arrival(name string) (mover.Arrival, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.arrivals[name]; a != nil {
		return a.status(), nil
	}
	return mover.Arrival{}, fmt.Errorf("%s: %w", name, mover.ErrNoArrival)
}

// Blocks tells the digests of an arrived file's blocks from the one given on, if it was
// proven by this process; mover.ErrNoArrival.
func (b *Inbox) Blocks(name string, from int64) (mover.Blocks, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.arrivals[name]
	if a == nil {
		return mover.Blocks{}, fmt.Errorf("%s: %w", name, mover.ErrNoArrival)
	}
	first := min(max(from, 0), int64(len(a.sums)))
	last := min(first+blocksAtOnce, int64(len(a.sums)))
	return mover.Blocks{Sums: append([]digest.Block{}, a.sums[first:last]...)}, nil
}

// Promised is the space that the files under way will still take.
func (b *Inbox) Promised() int64 {
	var n int64
	for _, a := range b.snapshot() {
		n += a.missing()
	}
	return n
}
