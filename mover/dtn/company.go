package dtn

import (
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// lookAhead is how far down the queue a transfer may be that goes first, because its file
// is being read already.
const lookAhead = 64

// joining returns the transfer to be run instead of first: one of the same priority whose
// file goes to another site right now, for what that one reads from the disk is in the page
// cache. Otherwise it is first. The caller holds changing.
func (t *table) joining(first *transfer, now time.Time) *transfer {
	if t.look == nil || len(t.large.all) == 1 {
		return first
	}
	var running []fs.FileInfo
	for _, tr := range t.byID {
		if tr.Status.State == mover.Running && !t.isSmall(tr.Request) {
			if info := t.source(tr); info != nil {
				running = append(running, info)
			}
		}
	}
	if len(running) == 0 {
		return first
	}
	left := lookAhead
	for _, tr := range t.large.all {
		if tr.priority().Rank() != first.priority().Rank() || t.held(tr, now) {
			continue
		}
		info := t.source(tr)
		if info != nil && slices.ContainsFunc(running, func(r fs.FileInfo) bool { return os.SameFile(r, info) }) {
			return tr
		}
		if left--; left == 0 {
			break
		}
	}
	return first
}

// source is a transfer's file, if this DTN reads it: nil where another server does, or
// where it is not there, which its engine will tell.
func (t *table) source(tr *transfer) fs.FileInfo {
	if tr.Request.Engine != mover.Stream {
		return nil
	}
	info, err := t.look(tr.Request.Source.Name)
	if err != nil {
		return nil
	}
	return info
}
