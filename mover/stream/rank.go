package stream

import (
	"math"
	"slices"
	"time"
)

// behindEvery says which blocks are for the files behind those of the highest priority, so
// that they go on and nobody takes them for still. It is a prime: they take turns, too.
const behindEvery = 17

// sends reports whether a block of the file may be sent now.
func (f *outgoing) sends() bool {
	return !f.over() && f.ready > 0 && !f.full() && !f.source.company.holds(f, time.Now())
}

// inTurn returns the files that may send the next block, those with the highest priority
// that have one to send; or all others when it is their turn. The caller holds mu.
func (l *link) inTurn() []*outgoing {
	if !slices.ContainsFunc(l.files, func(f *outgoing) bool { return f.rank != l.files[0].rank }) {
		return l.files
	}
	least, most := math.MaxInt, math.MinInt
	for _, f := range l.files {
		if f.sends() {
			least, most = min(least, f.rank), max(most, f.rank)
		}
	}
	if least >= most {
		return l.files
	}
	behind := l.turn%behindEvery == 0
	return slices.DeleteFunc(slices.Clone(l.files), func(f *outgoing) bool { return (f.rank < most) != behind })
}
