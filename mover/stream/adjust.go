package stream

import (
	"cmp"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Adjust implements mover.Adjuster. Lanes are hired, or take no more blocks and end when
// what they have in flight has been answered for: nothing is sent twice.
func (e *Engine) Adjust(key string, p mover.PCP) {
	e.mu.Lock()
	m := e.moving[key]
	e.mu.Unlock()
	if m.link != nil {
		m.link.adjust(m.file, p)
	}
}

// Prioritise implements mover.Adjuster. A relay goes on with the priority that a file came with.
func (e *Engine) Prioritise(key string, p mover.Priority) {
	e.mu.Lock()
	m := e.moving[key]
	e.mu.Unlock()
	if m.link == nil {
		return
	}
	m.link.mu.Lock()
	defer m.link.mu.Unlock()
	m.file.rank = p.Rank()
	m.link.changed.Broadcast()
}

// moving is a file on its link.
type moving struct {
	link *link
	file *outgoing
}

// adjustable lets Adjust find a move, until the returned function is called.
func (e *Engine) adjustable(key string, l *link, f *outgoing) (end func()) {
	m := moving{l, f}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.moving == nil {
		e.moving = map[string]moving{}
	}
	e.moving[key] = m
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.moving[key] == m {
			delete(e.moving, key)
		}
	}
}

func (l *link) adjust(f *outgoing, p mover.PCP) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.window = clamp(p.Pipelining, f.window, mover.MaxPipelining)
	f.files = clamp(p.Concurrency, f.files, mover.MaxConcurrency)
	f.lanes = clamp(p.Parallelism, f.lanes, mover.MaxParallelism)
	l.enough = 0
	l.changed.Broadcast()
}

// pcp is what f uses. The link's mutex guards it.
func (f *outgoing) pcp() mover.PCP {
	return mover.PCP{Pipelining: f.window, Concurrency: f.files, Parallelism: f.lanes}
}

// leaves reports whether n is not needed any more, and has nothing in flight. The caller
// holds mu.
func (l *link) leaves(n *lane) bool {
	if !n.leaving && (n.blocks >= cmp.Or(l.engine.laneBlocks, maxLaneBlocks) || l.tooMany()) {
		n.leaving = true
	}
	return n.leaving && len(n.flight) == 0
}

// tooMany reports whether there are more lanes than any file asks for, or than the limits
// are enough for. The caller holds mu.
func (l *link) tooMany() bool {
	asked, stay := 0, 0
	for _, f := range l.files {
		if !f.over() {
			asked = max(asked, f.lanes)
		}
	}
	if l.most > 0 {
		asked = min(asked, l.most)
	}
	for n := range l.lanes {
		if !n.leaving {
			stay++
		}
	}
	return asked > 0 && stay > asked
}
