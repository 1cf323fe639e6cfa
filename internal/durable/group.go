package durable

import "sync"

// Group does for many callers at once what costs one of them as much as all, such as a
// sync: whatever comes while it is being done waits, and is then done together (group
// commit). Nobody waits for others to come.
type Group[T any] struct {
	do func([]T) error

	mu   sync.Mutex // guards next
	next *round[T]  // that is not being done yet; nil: there is none

	doing sync.Mutex // held over do
}

type round[T any] struct {
	items []T
	done  chan struct{} // closed once err holds
	err   error
}

// NewGroup returns a Group. Calls of do do not overlap; what it gets is in the order in
// which it came.
func NewGroup[T any](do func([]T) error) *Group[T] { return &Group[T]{do: do} }

// Do has the items done, perhaps together with those of other callers. The error is that
// of all of them.
func (g *Group[T]) Do(items ...T) error {
	r, first := g.join(items)
	if first {
		return g.run(r)
	}
	<-r.done
	return r.err
}

// Add has the items done as Do has, and does not wait. If it returns a function, the caller
// has to see that it is called, in any goroutine: else nobody's items are ever done. If it
// returns nil, another caller's function does them.
func (g *Group[T]) Add(items ...T) (run func() error) {
	r, first := g.join(items)
	if !first {
		return nil
	}
	return func() error { return g.run(r) }
}

// run does a round, once nothing else is being done.
func (g *Group[T]) run(r *round[T]) error {
	g.doing.Lock()
	defer g.doing.Unlock()
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
	r.err = g.do(r.items)
	close(r.done)
	return r.err
}

// join adds items to the next round. The first to do so has to see to it.
func (g *Group[T]) join(items []T) (r *round[T], first bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if first = g.next == nil; first {
		g.next = &round[T]{done: make(chan struct{})}
	}
	g.next.items = append(g.next.items, items...)
	return g.next, first
}
