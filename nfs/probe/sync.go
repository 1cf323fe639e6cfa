package probe

import (
	"context"
	"fmt"
	"time"
)

// SyncClass says whether a server's acknowledgement of stable data means that its
// disk has the data: the options sync and async of exports(5).
type SyncClass int

const (
	SyncUnknown SyncClass = iota // the figures do not tell
	Sync                         // it waits for its disk
	Async                        // it does not: a crash of the server loses what it called stable
)

func (c SyncClass) String() string {
	switch c {
	case Sync:
		return "sync"
	case Async:
		return "async"
	default:
		return "unknown"
	}
}

// SyncReport is a judgement and its evidence.
type SyncReport struct {
	Class  SyncClass
	Reason string // one sentence with the figures

	Null        Latency   // of NULL
	Unstable    Latency   // of WRITEs of 4 KiB, UNSTABLE
	FileSync    Latency   // of WRITEs of 4 KiB, FILE_SYNC, alternating with those
	Committed   Stability // the least that an UNSTABLE WRITE's answer promised
	Commit      Latency   // of COMMITs of CommitBytes each that were written UNSTABLE
	CommitBytes int64
}

const (
	syncCalls  = 41
	commits    = 3
	syncSize   = 4 << 10
	commitSize = 1 << 20
	commitBulk = 32 << 20
)

// SyncClass measures, in a scratch file of 32 MiB that is written three times, whether stable writes cost what
// a disk costs, and judges by that. The protocol itself does not tell: an async
// server answers FILE_SYNC all the same.
func (p *Probe) SyncClass(ctx context.Context) (SyncReport, error) {
	var r SyncReport
	err := p.Scratch(ctx, func(f *File) (err error) {
		r, err = f.syncEvidence(ctx)
		return err
	})
	if err != nil {
		return SyncReport{}, fmt.Errorf("sync or async: %w", err)
	}
	r.Class, r.Reason = judge(r)
	return r, nil
}

func (f *File) syncEvidence(ctx context.Context) (SyncReport, error) {
	var null, unstable, fileSync []time.Duration
	r := SyncReport{Committed: FileSync, CommitBytes: commitBulk}
	small := newText(Random, f.seed, syncSize)
	c, err := f.p.conn(ctx, 0)
	if err != nil {
		return r, err
	}
	write := func(i int, how Stability, all *[]time.Duration) (w written, err error) {
		offset := int64(i) * syncSize
		err = timed(all, func() error { w, err = c.writeAt(ctx, f.fh, offset, how, small.at(offset, syncSize)); return err })
		return w, err
	}
	for i := range syncCalls {
		if err := timed(&null, func() error { return c.null(ctx) }); err != nil {
			return r, err
		}
		w, err := write(2*i, Unstable, &unstable)
		if err != nil {
			return r, err
		}
		r.Committed = min(r.Committed, w.Committed)
		if _, err := write(2*i+1, FileSync, &fileSync); err != nil {
			return r, err
		}
	}
	r.Null, r.Unstable, r.FileSync = latency(null), latency(unstable), latency(fileSync)
	var commit []time.Duration
	for range commits {
		bulk, err := f.Write(ctx, WriteTest{Size: commitSize, Total: commitBulk, Depth: 4, Stability: Unstable, Commit: true})
		if err != nil {
			return r, err
		}
		commit = append(commit, bulk.Commit)
		r.Committed = min(r.Committed, bulk.Committed)
	}
	r.Commit = latency(commit)
	return r, nil
}

// What the two signs have to differ by, each at its quickest: what else the client
// and the server do only adds. Measured on Linux 6.1, ext4 on a virtual disk, with
// sync: FILE_SYNC 0.8 ms, UNSTABLE 0.44 ms, COMMIT of 32 MiB 25 ms; with async: 0.42,
// 0.42 and 0.6 ms.
const (
	waits     = 2.0                    // FILE_SYNC ÷ UNSTABLE: a disk is in between
	waitsMore = 100 * time.Microsecond // and by that much: not the noise of two quick calls
	alike     = 1.25                   // FILE_SYNC ÷ UNSTABLE: no disk is in between
	works     = 5 * time.Millisecond   // COMMIT beyond NULL: 32 MiB go to a disk (6.7 GB/s at most)
	idle      = time.Millisecond       // COMMIT beyond NULL: there was nothing to do
)

// round leaves two or three digits, for a sentence.
func round(d time.Duration) time.Duration {
	digit := time.Duration(1)
	for ; d/digit >= 1000; digit *= 10 {
	}
	return d.Round(digit)
}

// judge decides by two signs: what FILE_SYNC costs more than UNSTABLE, and what a
// COMMIT of much data costs. One may be silent, but they may not disagree, and it
// takes both to call a server async.
func judge(r SyncReport) (SyncClass, string) {
	fileSync, unstable, commit := r.FileSync.Min, r.Unstable.Min, r.Commit.Min
	figures := fmt.Sprintf("at their quickest, a FILE_SYNC write of 4 KiB takes %v, an UNSTABLE one %v, and COMMIT of %d MiB %v",
		round(fileSync), round(unstable), r.CommitBytes>>20, round(commit))
	if r.Committed != Unstable {
		return SyncUnknown, fmt.Sprintf("the server answers %v to UNSTABLE writes, so there is nothing to compare with: %s", r.Committed, figures)
	}
	ratio := float64(fileSync) / float64(max(1, unstable))
	slower := ratio >= waits && fileSync-unstable >= waitsMore
	same := ratio <= alike
	busy := commit-r.Null.Min >= works
	free := commit-r.Null.Min <= idle
	switch {
	case slower && !free, busy && !same:
		return Sync, "stable writes wait for the disk: " + figures
	case same && free:
		return Async, "stable writes do not wait for any disk: " + figures
	default:
		return SyncUnknown, "the figures do not separate: " + figures
	}
}
