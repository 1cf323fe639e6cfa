package localcopy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// node is a DTN that loses, before it answers, what harm takes from the file.
type node struct {
	site
	asked int
	harm  func(asked int, f *os.File) error // nil: nothing
}

// settle tells two blocks at a time.
func (n *node) settle(_ context.Context, name string, from int64) (told mover.Settled, err error) {
	n.asked++
	f, err := os.OpenFile(filepath.Join(n.export, "outbox", name), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return told, mover.ErrNotStaged
	}
	if err != nil {
		return told, err
	}
	defer f.Close()
	if n.harm != nil {
		if err := n.harm(n.asked, f); err != nil {
			return told, err
		}
	}
	data, err := os.ReadFile(f.Name())
	told.Size = int64(len(data))
	for i := from; i < from+2 && i*mover.BlockSize < told.Size; i++ {
		told.Sums = append(told.Sums, digest.OfBlock(data[i*mover.BlockSize:min(told.Size, (i+1)*mover.BlockSize)]))
	}
	return told, err
}

func newNode(t *testing.T) *node {
	n := &node{site: newSite(t, Copy)}
	n.site.Copier.settle = n.settle
	return n
}

// wipe overwrites the first bytes of a block.
func wipe(f *os.File, block int64) error {
	_, err := f.WriteAt(make([]byte, 512), block*mover.BlockSize)
	return err
}

func TestWhatTheDTNLostIsWrittenAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		harm func(asked int, f *os.File) error
		how  string
	}{
		"nothing": {nil, "copy"},
		"two blocks": {func(asked int, f *os.File) error {
			if asked == 1 {
				return errors.Join(wipe(f, 1), wipe(f, 4))
			}
			return nil
		}, "copy, 2 blocks that the DTN had lost written again"},
		"one twice": {func(asked int, f *os.File) error {
			if asked == 1 || asked == 4 { // three calls tell all five blocks
				return wipe(f, 0)
			}
			return nil
		}, "copy, 2 blocks that the DTN had lost written again"},
		"the end": {func(asked int, f *os.File) error {
			if asked == 1 {
				return f.Truncate(3*mover.BlockSize + 17)
			}
			return nil
		}, "copy, 2 blocks that the DTN had lost written again"},
		"everything": {func(asked int, f *os.File) error {
			if asked == 1 {
				return f.Truncate(0)
			}
			return nil
		}, "copy, 5 blocks that the DTN had lost written again"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.harm = tc.harm
			data := random(4*mover.BlockSize + 1000)
			f := n.put(t, data)
			n.stage(t, f, tc.how)
			if got, err := os.ReadFile(filepath.Join(n.export, f.Name)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes are staged, or other ones (%v)", len(got), err)
			}
		})
	}
}

// What the DTN's disk did not take when it was asked under the file's name is not staged.
func TestADiskThatDidNotTakeTheFile(t *testing.T) {
	n := &node{site: newSite(t, Auto)}
	n.Copier.ways = []way{{hardLink, linkFile}}
	fails := true
	n.Copier.settle = func(ctx context.Context, base string, from int64) (mover.Settled, error) {
		if fails {
			fails = false
			return mover.Settled{}, mover.Coded(mover.CodeContent, errors.New("sync: input/output error"))
		}
		return n.settle(ctx, base, from)
	}
	f := n.put(t, random(1000))
	if err := n.fails(t, f); mover.CodeOf(err) != mover.CodeContent {
		t.Errorf("got %v, want that the disk did not take it", err)
	}
	n.stage(t, f, hardLink) // anew, not "staged before"
}

// A hard link has Glance's owner and mode: where the DTN may not read it, a copy has ours.
func TestALinkThatTheDTNMayNotReadIsNone(t *testing.T) {
	for name, there := range map[string]bool{"linked now": false, "linked before a crash": true} {
		t.Run(name, func(t *testing.T) {
			n := &node{site: newSite(t, Auto)}
			n.Copier.ways = []way{{hardLink, linkFile}, {copied, copyFile}}
			n.Copier.settle = func(ctx context.Context, base string, from int64) (mover.Settled, error) {
				info, err := os.Stat(filepath.Join(n.export, "outbox", base))
				if err == nil && info.Sys().(*syscall.Stat_t).Nlink > 1 {
					return mover.Settled{}, mover.ErrUnreadable
				}
				return n.settle(ctx, base, from)
			}
			f := n.put(t, random(1000))
			if there {
				if err := os.Link(filepath.Join(n.store, image), filepath.Join(n.export, f.Name)); err != nil {
					t.Fatal(err)
				}
			}
			n.stage(t, f, "copy")
		})
	}
}

// A large file is asked for while it is copied, and what the disk has is not asked for
// again; what was lost by then is found at the end.
func TestALargeFileSettlesOnTheWay(t *testing.T) {
	data := random(syncEvery + 3*mover.BlockSize + 17)
	for name, tc := range map[string]struct {
		lost bool
		how  string
		from int64 // the block that is asked for when all is copied
	}{
		"nothing lost": {false, "copy", syncEvery / mover.BlockSize},
		"a block lost": {true, "copy, 1 blocks that the DTN had lost written again", 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			f := n.put(t, data)
			var asked []int64
			n.Copier.settle = func(_ context.Context, base string, from int64) (told mover.Settled, err error) {
				f, err := os.OpenFile(filepath.Join(n.export, "outbox", base), os.O_RDWR, 0)
				if err != nil {
					return told, err
				}
				defer f.Close()
				if tc.lost && len(asked) == 0 {
					err = wipe(f, 1)
				}
				asked = append(asked, from)
				block := make([]byte, mover.BlockSize)
				for i := from; err == nil; i++ {
					var k int
					if k, err = f.ReadAt(block, i*mover.BlockSize); k > 0 {
						told.Sums = append(told.Sums, digest.OfBlock(block[:k]))
					}
				}
				if info, e := f.Stat(); e == nil && errors.Is(err, io.EOF) {
					told.Size, err = info.Size(), nil
				}
				return told, err
			}
			n.stage(t, f, tc.how)
			if len(asked) < 2 || asked[0] != 0 || asked[1] != tc.from {
				t.Errorf("asked for blocks %v, want 0, then %d", asked, tc.from)
			}
		})
	}
}

func TestAnEmptyFileSettles(t *testing.T) {
	n := newNode(t)
	n.stage(t, n.put(t, nil), "copy")
	if n.asked == 0 {
		t.Error("the DTN was not asked")
	}
}

func TestADTNThatLosesAlwaysIsGivenUp(t *testing.T) {
	n := newNode(t)
	n.harm = func(_ int, f *os.File) error { return wipe(f, 0) }
	err := n.fails(t, n.put(t, random(2*mover.BlockSize)))
	if !strings.Contains(err.Error(), "check the disk of the DTN") || len(n.outbox(t)) != 0 {
		t.Errorf("got %v, and %v in the outbox", err, n.outbox(t))
	}
	if n.asked != mendings+1 {
		t.Errorf("it was asked %d times, want %d", n.asked, mendings+1)
	}
}

func TestAnImageThatChangesIsNotMended(t *testing.T) {
	n := newNode(t)
	n.harm = func(_ int, f *os.File) error {
		return errors.Join(wipe(f, 1), os.WriteFile(filepath.Join(n.store, image), random(2*mover.BlockSize-1), 0o640))
	}
	if err := n.fails(t, n.put(t, random(2*mover.BlockSize))); err == nil || len(n.outbox(t)) != 0 {
		t.Errorf("got %v, and %v in the outbox", err, n.outbox(t))
	}
}

func TestADTNThatIsAwayIsWaitedFor(t *testing.T) {
	away := errors.New("connection refused")
	for name, tc := range map[string]struct {
		err   error
		lasts time.Duration
		gives bool
	}{
		"a minute":                  {away, time.Minute, false},
		"for good":                  {away, time.Hour, true},
		"it has not got the file":   {mover.ErrNotStaged, time.Hour, true},
		"it will never tell of one": {failure.Permanently(away), time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				began := time.Now()
				n.Copier.settle = func(ctx context.Context, name string, from int64) (mover.Settled, error) {
					if time.Since(began) < tc.lasts {
						return mover.Settled{}, tc.err
					}
					return n.settle(ctx, name, from)
				}
				f := n.put(t, random(100))
				if !tc.gives {
					n.stage(t, f, "copy")
					return
				}
				if err := n.fails(t, f); !errors.Is(err, tc.err) || len(n.outbox(t)) != 0 {
					t.Errorf("got %v, and %v in the outbox", err, n.outbox(t))
				}
				if took, most := time.Since(began), awayLimit+time.Second; took > most {
					t.Errorf("it took %v, want at most %v", took, most)
				}
			})
		})
	}
}

// TestADiskThatDidNotTakeTheFileIsNotAskedAgain: the kernel tells of a failed write once,
// and the next question would find all well.
func TestADiskThatDidNotTakeTheFileIsNotAskedAgain(t *testing.T) {
	n := newNode(t)
	n.harm = func(asked int, _ *os.File) error {
		if asked == 1 {
			return mover.Coded(mover.CodeContent, errors.New("sync: input/output error"))
		}
		return nil
	}
	if err := n.fails(t, n.put(t, random(2*mover.BlockSize))); mover.CodeOf(err) != mover.CodeContent || n.asked != 1 {
		t.Errorf("asked %d times: %v", n.asked, err)
	}
	if len(n.outbox(t)) != 0 {
		t.Errorf("%v is left in the outbox", n.outbox(t))
	}
}

// TestALinkTellsAtOnceThatTheDTNIsAway: it is there, so that nothing is lost by asking
// later, and the job says until then what it waits for.
func TestALinkTellsAtOnceThatTheDTNIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{site: newSite(t, Auto)}
		away := errors.New("connection refused")
		n.Copier.settle = func(context.Context, string, int64) (mover.Settled, error) { return mover.Settled{}, away }
		f, began := n.put(t, random(100)), time.Now()
		for range 2 {
			if _, err := n.Copier.Stage(t.Context(), image, f, func(int64) {}); !errors.Is(err, away) || time.Since(began) > time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
		}
		n.Copier.settle = n.settle
		n.stage(t, f, before)
	})
}
