package stream

import (
	"fmt"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// maxTries is how often a block may arrive damaged.
const maxTries = 4

// queue deals the blocks of one file to the lanes that ask for them, lowest
// first. A lane that dies gives back what was not proven.
type queue struct {
	size  int64
	stall time.Duration

	mu      sync.Mutex // guards what follows, and what lane says it does
	changed sync.Cond
	todo    bitmap
	next    uint32 // no block below it is in todo
	left    int    // blocks not proven
	moved   int64  // bytes proven
	told    int64  // the most that was reported; at first, what was there before
	tries   map[uint32]int
	lanes   map[*lane]bool // true: may send; false: being dialled
	err     error          // why all is over
}

// newQueue expects as many lanes as will join or leave.
func newQueue(size int64, have bitmap, stall time.Duration) *queue {
	q := &queue{size: size, stall: stall, tries: map[uint32]int{}, lanes: map[*lane]bool{}}
	q.changed.L = &q.mu
	q.fill(have)
	q.told = q.moved
	return q
}

// fill starts over with the blocks that are not in have.
func (q *queue) fill(have bitmap) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := blockCount(q.size)
	q.todo, q.next, q.left, q.moved = newBitmap(n), 0, 0, 0
	for i := range n {
		if have.has(i) {
			q.moved += int64(blockLen(q.size, i))
			continue
		}
		q.todo.add(i)
		q.left++
	}
	q.changed.Broadcast()
}

// expect announces a lane; join lets it send, leave takes it out again.
func (q *queue) expect(l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes[l] = false
}

func (q *queue) join(l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lanes[l] = true
	q.changed.Broadcast()
}

// leave puts back what l has not proven. With the last lane all is over.
func (q *queue) leave(l *lane, why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range l.flight {
		q.put(i)
	}
	clear(l.flight)
	delete(q.lanes, l)
	if len(q.lanes) == 0 && q.err == nil {
		q.err = why
	}
	q.changed.Broadcast()
}

func (q *queue) put(i uint32) {
	q.todo.add(i)
	q.next = min(q.next, i)
}

// quit stops dealing to l.
func (q *queue) quit(l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.quit = true
	q.changed.Broadcast()
}

// fail ends all for the reason err.
func (q *queue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.changed.Broadcast()
}

// take waits for a block that l may send. It returns false when there will be none.
func (q *queue) take(l *lane) (uint32, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.err != nil || l.quit {
			return 0, false
		}
		if i, ok := q.lowest(); ok && len(l.flight) < l.window {
			q.todo.remove(i)
			l.flight[i] = true
			if len(l.flight) == 1 {
				q.watch(l)
			}
			return i, true
		}
		q.changed.Wait()
	}
}

func (q *queue) lowest() (uint32, bool) {
	for n := blockCount(q.size); q.next < n; q.next++ {
		if q.todo.has(q.next) {
			return q.next, true
		}
	}
	return 0, false
}

// answered takes the receiver's word on block i, which l sent.
func (q *queue) answered(l *lane, i uint32, ok bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !l.flight[i] {
		return fmt.Errorf("the receiver answers for block %d, which was not sent to it", i)
	}
	delete(l.flight, i)
	q.watch(l)
	q.changed.Broadcast()
	if ok {
		q.left--
		q.moved += int64(blockLen(q.size, i))
		return nil
	}
	q.put(i)
	if q.tries[i]++; q.tries[i] == maxTries && q.err == nil {
		q.err = mover.Coded(mover.CodeContent, fmt.Errorf("block %d arrived damaged %d times; check the memory of both DTNs", i, maxTries))
	}
	return nil
}

// watch lets l's reader fail when no answer comes while some are owed.
func (q *queue) watch(l *lane) {
	var end time.Time
	if len(l.flight) > 0 {
		end = time.Now().Add(q.stall)
	}
	if !l.quit {
		_ = l.conn.SetReadDeadline(end) // fails when the connection is closed: the reader notices
	}
}

// wait returns nil when every block is proven. It tells report how far it is, and
// never less than before. Only one goroutine may call it.
func (q *queue) wait(report func(moved int64)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil {
		if moved := q.moved; moved > q.told {
			q.told = moved
			q.mu.Unlock()
			report(moved)
			q.mu.Lock()
			continue
		}
		if q.left == 0 {
			return nil
		}
		q.changed.Wait()
	}
	return q.err
}

// any waits for a lane that may send.
func (q *queue) any() (*lane, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil {
		for l, open := range q.lanes {
			if open && !l.quit {
				return l, nil
			}
		}
		q.changed.Wait()
	}
	return nil, q.err
}
