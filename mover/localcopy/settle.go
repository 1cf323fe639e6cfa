package localcopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// settler is Options.Settle.
type settler = func(ctx context.Context, name string, from int64) (mover.Settled, error)

const (
	mendings  = 3                      // times that lost blocks are written again
	awayLimit = 2 * time.Minute        // how long a DTN may be away, restarting, before a copy is given up
	awayPause = 500 * time.Millisecond // between two questions meanwhile
)

// kept returns nil when the DTN's disk has the file under its name. What it holds was
// settled before, or was never written through NFS by us. A DTN that is away is waited
// for as long as limit.
func kept(ctx context.Context, settle settler, name string, size int64, limit time.Duration) error {
	if settle == nil {
		return nil
	}
	told, err := ask(ctx, settle, name, size/mover.BlockSize+1, limit) // of no block
	if err != nil {
		return fmt.Errorf("ask the DTN whether its disk has the file: %w", err)
	}
	if told.Size != size {
		return fmt.Errorf("%s has %d bytes on the DTN's disk, want %d", name, told.Size, size)
	}
	return nil
}

// settled returns nil when the DTN's own disk has every block of dst, which was
// copied. What the DTN lost, because it crashed before its disk had what NFS had
// acknowledged, is written again.
func (t *task) settled(ctx context.Context, dst *os.File) error {
	for n := 0; ; n++ {
		if err := dst.Truncate(t.file.Size); err != nil {
			return err
		}
		if err := dst.Sync(); err != nil {
			return err
		}
		lost, err := t.lost(ctx, int64(len(t.sums)))
		if err != nil {
			return err
		}
		if len(lost) == 0 {
			return kept(ctx, t.settle, t.temp, t.file.Size, awayLimit)
		}
		if n == mendings {
			return fmt.Errorf("the DTN's disk has other bytes than were written, after %d repairs; check the disk of the DTN", mendings)
		}
		t.again += len(lost)
		for _, i := range lost {
			if err := t.mend(dst, i); err != nil {
				return err
			}
		}
	}
}

// lost asks for the blocks before one, but for those that are safe, and returns those
// that the DTN's disk has not got.
func (t *task) lost(ctx context.Context, before int64) (lost []int64, err error) {
	for from := t.safe; from < before; {
		told, err := ask(ctx, t.settle, t.temp, from, awayLimit)
		if errors.Is(err, mover.ErrNotStaged) { // the file itself is lost
			return nil, fmt.Errorf("%w: it was written, and is not on the DTN's disk; copying it anew", err)
		}
		if err != nil {
			return nil, fmt.Errorf("ask the DTN what its disk has: %w", err)
		}
		for k, sum := range told.Sums {
			if i := from + int64(k); i < before && sum != t.sums[i] {
				lost = append(lost, i)
			}
		}
		from += int64(len(told.Sums))
		for len(told.Sums) == 0 && from < before { // the file ends too early
			lost = append(lost, from)
			from++
		}
	}
	return lost, nil
}

// ask asks until the DTN answers, or was away for longer than limit.
func ask(ctx context.Context, settle settler, name string, from int64, limit time.Duration) (told mover.Settled, err error) {
	for began := time.Now(); ; {
		told, err = settle(ctx, name, from)
		wait, busy := failure.Delay(err)
		if busy { // it is there
			began = time.Now()
		}
		final := failure.IsPermanent(err) || errors.Is(err, mover.ErrNotStaged) || errors.Is(err, mover.ErrUnreadable) || mover.CodeOf(err) == mover.CodeContent
		if err == nil || final || !busy && time.Since(began) >= limit {
			return told, err
		}
		select {
		case <-ctx.Done():
			return told, context.Cause(ctx)
		case <-time.After(cmp.Or(wait, awayPause)):
		}
	}
}

// mend writes block i anew. It is the block that was copied, or none: the image's
// file is read once more.
func (t *task) mend(dst *os.File, i int64) error {
	off := i * mover.BlockSize
	block := make([]byte, min(mover.BlockSize, t.file.Size-off))
	if _, err := t.src.ReadAt(block, off); err != nil {
		return fmt.Errorf("read block %d again: %w", i, err)
	}
	if digest.OfBlock(block) != t.sums[i] {
		return fmt.Errorf("the image's file was changed while it was copied, at block %d", i)
	}
	_, err := dst.WriteAt(block, off)
	return err
}
