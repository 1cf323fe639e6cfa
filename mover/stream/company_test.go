package stream

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestWhoIsHeldBack has one move of a file ahead of another.
func TestWhoIsHeldBack(t *testing.T) {
	for name, c := range map[string]struct {
		first, second uint32        // blocks sent
		since         time.Duration // how long the second has run; the first: a minute
		rest          time.Duration // since it has sent one
		want          bool
	}{
		"side by side":        {100, 90, time.Minute, 0, false},
		"as far as it may be": {116, 100, time.Minute, 0, true},
		"the disk is read":    {119, 100, time.Minute, 0, false},
		"far slower":          {20, 4, time.Minute, 0, false},
		"has just begun":      {20, 4, 10 * time.Second, 0, true},
		"is silent":           {116, 100, time.Minute, silent, false},
	} {
		now := time.Now()
		first, second := new(outgoing), new(outgoing)
		first.dealt.Store(c.first)
		second.dealt.Store(c.second)
		second.lately.Store(now.Add(-c.rest).UnixNano())
		co := &company{ahead: 16, members: map[*outgoing]*companion{
			first:  {since: now.Add(-time.Minute)},
			second: {since: now.Add(-c.since)},
		}}
		if got := co.holds(first, now); got != c.want {
			t.Errorf("%s: held back %v, want %v", name, got, c.want)
		}
		if co.holds(second, now) {
			t.Errorf("%s: the second is held back", name)
		}
	}
}

// TestNoMemoryIsLookedAtForOneBlock holds that small files, of which there are many, cost no
// look at the machine's memory, and are known to have company all the same.
func TestNoMemoryIsLookedAtForOneBlock(t *testing.T) {
	if available() == 0 {
		t.Skip("nobody knows how much memory there is")
	}
	e := new(Engine)
	for size, bounded := range map[int64]bool{mover.BlockSize: false, mover.BlockSize + 1: true} {
		f, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		c := e.company(f)
		if (c.ahead > 0) != bounded || !c.alone() {
			t.Errorf("%d bytes: %d blocks ahead, alone %v; want bounded %v, alone", size, c.ahead, c.alone(), bounded)
		}
		if e.company(f) != c || c.alone() {
			t.Errorf("%d bytes: two sources do not know of each other", size)
		}
	}
}

// TestALeaderWaits sends one file to two destinations, of which one takes a part of it,
// and then nothing for long.
func TestALeaderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead, blocks = 8, 40
		fast := newPipeRig(t)
		slow := fast.another(t)
		fast.start(t, "")
		slow.start(t, "")
		s := newSluice(6 * mover.BlockSize)
		e := fast.rig.Engine.(*Engine)
		e.ahead = ahead
		e.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			if address == "127.0.0.1:1" {
				c, err := slow.pipes.dial(ctx)
				return sluiced{c, s}, err
			}
			return fast.pipes.dial(ctx)
		}
		f := fast.stage(t, "image", blocks*mover.BlockSize)
		pcp := mover.PCP{Pipelining: 1, Parallelism: 1}
		var ended atomic.Bool // the move that its way does not hold up
		var moves sync.WaitGroup
		for _, r := range []*rig{slow, fast} {
			req := r.request(t, f)
			req.PCP = pcp
			if r == slow {
				req.Destination.Address = "127.0.0.1:1"
			}
			moves.Go(func() {
				if err := e.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
					t.Error(err)
				}
				if r == fast {
					ended.Store(true)
				}
			})
			synctest.Wait() // until nothing goes on
		}
		time.Sleep(silent / 2)
		if ended.Load() {
			t.Error("the first move was not held back")
		}
		time.Sleep(silent)
		if !ended.Load() {
			t.Error("the first move waits for one that is silent")
		}
		s.open()
		moves.Wait()
		if len(e.companies) != 0 {
			t.Errorf("%d companies are left", len(e.companies))
		}
		fast.stop()
		slow.stop()
	})
}

// another makes a rig whose files come from the same engine and go to a receiver of its
// own, which has not started.
func (r *rig) another(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	n := &rig{rig: r.rig, ca: r.ca, state: filepath.Join(dir, "state"), opts: r.opts, wires: r.wires, stop: func() {}}
	n.rig.Destination = filepath.Join(dir, "b")
	if err := errors.Join(os.Mkdir(n.state, 0o700), os.MkdirAll(filepath.Join(n.rig.Destination, mover.Inbox), 0o700)); err != nil {
		t.Fatal(err)
	}
	if r.pipes != nil {
		n.pipes = make(pipes)
	}
	t.Cleanup(func() { n.stop() })
	return n
}
