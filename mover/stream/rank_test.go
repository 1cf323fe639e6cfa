package stream

import (
	"testing"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestBlocksOfHigherFilesGoFirst deals blocks to one lane.
func TestBlocksOfHigherFilesGoFirst(t *testing.T) {
	l := &link{lanes: map[*lane]bool{}}
	add := func(p mover.Priority, blocks int64) *outgoing {
		f := &outgoing{size: blocks * mover.BlockSize, tries: map[uint32]int{}, rank: p.Rank(), source: &source{}, files: 4, window: 8}
		f.fill(nil)
		l.files = append(l.files, f)
		return f
	}
	deal := func(n int, f *outgoing) (got int) {
		for range n {
			g := l.next(&lane{})
			g.deal()
			if g == f {
				got++
			}
		}
		return got
	}
	low, normal := add(mover.PriorityLow, 1000), add(mover.PriorityNormal, 1000)
	high, other := add(mover.PriorityHigh, 1000), add(mover.PriorityHigh, 1000)
	if got := deal(340, high); got != 160 {
		t.Errorf("one of two high ones has %d of 340 blocks, want 160", got)
	}
	lower := 2000 - low.ready - normal.ready
	if lower != 340/behindEvery || low.ready == 1000 || normal.ready == 1000 {
		t.Errorf("the lower ones have %d blocks, want %d", lower, 340/behindEvery)
	}
	high.err, other.done = errGone, true
	if got := deal(170, normal); got != 160 {
		t.Errorf("a normal one has %d of 170 blocks beside a low one, want 160", got)
	}
	normal.done = true
	if got := deal(100, low); got != 100 {
		t.Errorf("the only one has %d of 100 blocks", got)
	}
}

// TestAFileThatMovesIsGivenAnotherPriority has it deal all blocks but the others' share then.
func TestAFileThatMovesIsGivenAnotherPriority(t *testing.T) {
	l, e := &link{}, &Engine{}
	for range 2 {
		f := &outgoing{size: 1000 * mover.BlockSize, files: 2, window: 8, source: &source{}}
		f.fill(nil)
		l.files = append(l.files, f)
	}
	end := e.adjustable("key", l, l.files[1])
	e.Prioritise("other", mover.PriorityLow)
	e.Prioritise("key", mover.PriorityHigh)
	for range 170 {
		l.next(&lane{}).deal()
	}
	if left := l.files[1].ready; left != 1000-160 {
		t.Errorf("%d blocks of the higher one are left", left)
	}
	end()
	e.Prioritise("key", mover.PriorityLow)
	if rank := l.files[1].rank; rank != mover.PriorityHigh.Rank() {
		t.Errorf("once it has ended its rank is %d", rank)
	}
}

// TestEqualFilesTakeTurns holds that priorities change nothing where there are none.
func TestEqualFilesTakeTurns(t *testing.T) {
	l := &link{}
	for range 3 {
		f := &outgoing{size: 100 * mover.BlockSize, files: 2, window: 8, source: &source{}, rank: mover.PriorityLow.Rank()}
		f.fill(nil)
		l.files = append(l.files, f)
	}
	for range 100 {
		l.next(&lane{}).deal()
	}
	if a, b, c := l.files[0].ready, l.files[1].ready, l.files[2].ready; a != 50 || b != 50 || c != 100 {
		t.Errorf("%d, %d and %d blocks are left", a, b, c)
	}
}
