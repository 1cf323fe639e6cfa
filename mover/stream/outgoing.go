package stream

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
)

// maxTries is how often a block may arrive damaged.
const maxTries = 4

// outgoing is a file on a link, from its Move's beginning to its end. The link's mutex
// guards it, but for what never changes.
type outgoing struct {
	id     uint32
	size   int64
	source *source
	wire   atomic.Int64 // bytes of it that lanes have written, those around its blocks included
	window int          // blocks in flight on one lane
	lanes  int          // that the link should have
	files  int          // whose blocks should take turns
	onward *passage     // that brings the blocks; nil: they are all in source
	relay  bool         // the receiver is one, and passes it on
	rank   int          // of its priority

	changed  sync.Cond // what its Move waits for
	opened   bool      // the receiver has answered
	answered bool      // for the last time
	done     bool      // it has the file
	err      error
	todo     bitmap
	next     uint32 // no block below it is in todo
	room     uint32 // blocks below it may be sent; 0: all
	ready    int    // blocks in todo
	left     int    // blocks not proven, those in flight included
	moved    int64  // bytes proven
	before   int64  // of them, those that were there
	onwards  passed // what the receiver, a relay, tells of the way on
	tries    map[uint32]int
	offer    *offer // nil: the receiver is told nothing of the file's chunks
	held     bitmap // blocks that wait for the receiver's answer to it
	freed    uint32 // no block below it does

	heard time.Time // when there was a sign of progress
	busy  uint32    // the last sign of life

	dealt  atomic.Uint32 // no block from it on was sent
	lately atomic.Int64  // when one was, in Unix nanoseconds
}

// over reports whether the file needs nothing more of the link.
func (f *outgoing) over() bool { return f.done || f.err != nil }

// fill has every block sent that is not in have.
func (f *outgoing) fill(have bitmap) {
	n := blockCount(f.size)
	f.todo, f.next, f.ready, f.left, f.moved = newBitmap(n), 0, 0, 0, 0
	for i := range n {
		if have.has(i) {
			f.moved += int64(blockLen(f.size, i))
			continue
		}
		if f.onward == nil {
			f.left++
			f.put(i)
		}
	}
}

// put has block i sent, perhaps again.
func (f *outgoing) put(i uint32) {
	if !f.todo.has(i) {
		f.todo.add(i)
		f.ready++
	}
	f.next = min(f.next, i)
}

// drop has block i not sent.
func (f *outgoing) drop(i uint32) {
	f.todo.remove(i)
	f.ready--
}

// deal returns the lowest block that is to be sent. There is one.
func (f *outgoing) deal() uint32 {
	for !f.todo.has(f.next) {
		f.next++
	}
	f.drop(f.next)
	f.dealt.Store(max(f.dealt.Load(), f.next+1))
	f.lately.Store(time.Now().UnixNano())
	return f.next
}

// full reports whether no block may be sent for now. There is one to be sent.
func (f *outgoing) full() bool {
	if f.room == 0 {
		return false
	}
	for !f.todo.has(f.next) {
		f.next++
	}
	return f.next >= f.room
}

// hear takes the receiver's answer.
func (f *outgoing) hear(a answer) error {
	f.err, f.done = a.err(), a.Done
	switch f.answered = f.over(); {
	case f.done:
		f.moved = f.size
	case f.answered:
	case f.opened:
		return errors.New("the receiver answers what was not asked")
	case f.todo == nil:
		f.fill(a.Have)
		f.onward.answered(a.Have)
	}
	f.room = a.Room
	if !f.opened {
		f.opened, f.before = true, f.moved
	}
	return nil
}

// waits reports whether the next word is the receiver's.
func (f *outgoing) waits(lanes map[*lane]bool) bool {
	if !f.opened {
		return true
	}
	if f.ready > 0 && !f.full() || f.onward != nil && f.moved < f.size {
		return false
	}
	for n := range lanes {
		for b := range n.flight {
			if b.file == f {
				return false
			}
		}
	}
	return true
}

// proven takes the receiver's word that it has block i, which was in flight.
func (f *outgoing) proven(i uint32) {
	f.left--
	f.moved += int64(blockLen(f.size, i))
	f.onward.passed(i)
}

// again sends block i once more: it was damaged on its way, or what the receiver had
// of it from before was.
func (f *outgoing) again(i uint32, flew bool) {
	if f.tries[i]++; f.tries[i] == maxTries {
		f.err = mover.Coded(mover.CodeContent, fmt.Errorf("block %d arrived damaged %d times; check the memory of both DTNs", i, maxTries))
		return
	}
	if !flew && !f.todo.has(i) { // it was there
		f.moved -= int64(blockLen(f.size, i))
		if f.onward != nil {
			f.onward.lost(i)
			return
		}
		f.left++
	}
	f.put(i)
}

// source is the staged file, open for as long as the Move or a lane needs it.
type source struct {
	*os.File
	size    int64
	sparse  bool
	cold    bool // it lay on the disk alone
	users   atomic.Int32
	company *company // of other sources of the file; nil: that cannot be told
}

// newSource makes a source of e's with one user.
func newSource(e *Engine, f *os.File, size int64) *source {
	s := &source{File: f, size: size, sparse: disk.Sparse(f, size), company: e.company(f)}
	s.users.Store(1)
	s.cold = s.isCold()
	return s
}

func (s *source) use() { s.users.Add(1) }

// release closes the file after its last user, and drops what is left of it in the page
// cache unless others are about to read that.
func (s *source) release() {
	if s.users.Add(-1) == 0 {
		if s.cold && s.company.alone() {
			disk.Drop(s.File, 0, s.size)
		}
		s.company.disband()
		_ = s.Close() // it was only read
	}
}
