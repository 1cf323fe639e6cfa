package stream

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// limited runs test in a bubble, in which time is fake, on a rig whose both ends have a
// Pacer with these limits.
func limited(t *testing.T, send, receive mover.Limits, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		r.rig.Engine.(*Engine).Site, r.rig.Engine.(*Engine).Pacer = "A", pace.New(mover.Send, send)
		r.opts.Pacer = pace.New(mover.Receive, receive)
		r.start(t, "")
		test(t, r)
		r.stop()
	})
}

// always limits a site, or all together, at all times.
func always(site string, send, receive mover.Rate) mover.Limits {
	return mover.Limits{{Site: site, Send: send, Receive: receive}}
}

// lasts moves files side by side and returns how long that takes.
func (r *rig) lasts(t *testing.T, parallelism int, files ...mover.File) time.Duration {
	t.Helper()
	begin := time.Now()
	var moves sync.WaitGroup
	for _, f := range files {
		moves.Go(func() {
			if err := r.moves(t, f, parallelism); err != nil {
				t.Error(err)
			}
		})
	}
	moves.Wait()
	return time.Since(begin)
}

// about reports whether moving n bytes took as long as it does at a rate.
func about(d time.Duration, n int64, r mover.Rate) bool {
	want := time.Duration(float64(n) * 8 / float64(r) * float64(time.Second))
	return d > want*97/100 && d < want*103/100+obeyEvery
}

func TestLanesAndFilesShareALimit(t *testing.T) {
	const rate = 80e6
	for name, c := range map[string]struct{ send, receive mover.Limits }{
		"to the site":      {send: always("B", rate, mover.Unlimited)},
		"to all sites":     {send: always("", rate, mover.Unlimited)},
		"the strictest":    {send: append(always("", 2*rate, mover.Unlimited), always("B", rate, mover.Unlimited)...)},
		"from the site":    {receive: always("A", mover.Unlimited, rate)},
		"from all sites":   {receive: always("", mover.Unlimited, rate)},
		"at both ends":     {send: always("B", rate, 0), receive: always("A", 0, 2*rate)},
		"of another site":  {send: append(always("C", 1, 1), always("B", rate, 1)...)},
		"where none sends": {send: always("B", rate, mover.Unlimited), receive: always("C", 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			limited(t, c.send, c.receive, func(t *testing.T, r *rig) {
				a, b := r.stage(t, "a", 20*mover.BlockSize), r.stage(t, "b", 20*mover.BlockSize)
				if d := r.lasts(t, 4, a, b); !about(d, a.Size+b.Size, rate) {
					t.Errorf("%d bytes took %v at %v", a.Size+b.Size, d, mover.Rate(rate))
				}
				r.came(t, a)
				r.came(t, b)
			})
		})
	}
}

// TestALimitIsNamedAsTheBottleneck also where the path could take no more than ten times that.
func TestALimitIsNamedAsTheBottleneck(t *testing.T) {
	for want, c := range map[string]struct{ send, receive mover.Limits }{
		"8Mbit/s to site B, set at site A":      {send: append(always("", 80e6, 0), always("B", 8e6, 0)...)},
		"8Mbit/s to all sites, set at site A":   {send: append(always("", 8e6, 0), always("B", 80e6, 0)...)},
		"8Mbit/s from site A, set at site B":    {receive: always("A", 0, 8e6)},
		"8Mbit/s from all sites, set at site B": {receive: append(always("", 0, 8e6), always("A", 0, 80e6)...), send: always("B", 80e6, 0)},
	} {
		t.Run(want, func(t *testing.T) {
			limited(t, c.send, c.receive, func(t *testing.T, r *rig) {
				req := r.request(t, r.stage(t, "image", 10*mover.BlockSize))
				req.PCP = mover.PCP{Parallelism: 2}
				var last mover.Progress
				if err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) { last = p }); err != nil {
					t.Fatal(err)
				}
				if b := last.Way.Bottleneck; b.Place != mover.Limited || b.Limit != want || b.Share < 0.6 || b.Share > 1 {
					t.Errorf("%+v, want the limit of %s", b, want)
				}
			})
		})
	}
}

// TestALimitHoldsForPackedBlocks has half of each block packed away.
func TestALimitHoldsForPackedBlocks(t *testing.T) {
	const rate = 20e6
	for name, c := range map[string]struct{ send, receive mover.Limits }{
		"sender":   {send: always("B", rate, 0)},
		"receiver": {receive: always("A", 0, rate)},
	} {
		t.Run(name, func(t *testing.T) {
			limited(t, c.send, c.receive, func(t *testing.T, r *rig) {
				r.rig.Engine.(*Engine).compressAll = true
				const blocks = 10
				b := bytes.Repeat([]byte("x"), blocks*mover.BlockSize)
				for i := range blocks {
					copy(b[i*mover.BlockSize:], noise(byte(i), mover.BlockSize/2))
				}
				f := r.put(t, "image", b)
				if d := r.lasts(t, 2, f); !about(d, f.Size/2, rate) {
					t.Errorf("%d bytes on the wire took %v at %v", f.Size/2, d, mover.Rate(rate))
				}
				r.came(t, f)
			})
		})
	}
}

// TestNoBurstsWhereLittleMayGo watches what leaves at a low rate.
func TestNoBurstsWhereLittleMayGo(t *testing.T) {
	for _, p := range protections {
		limited(t, always("B", 1e6, mover.Unlimited), nil, func(t *testing.T, r *rig) {
			r.rig.Engine.(*Engine).Protection, r.opts.Protection = p, p
			r.stop()
			r.pipes = make(pipes)
			r.wires.pipes = r.pipes
			r.start(t, "")
			e := r.rig.Engine.(*Engine)
			f := r.stage(t, "a", 2*mover.BlockSize)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var move sync.WaitGroup
			move.Go(func() {
				if err := e.Move(ctx, r.request(t, f), func(mover.Progress) {}); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(2 * time.Second)
			synctest.Wait()
			before := r.wires.sent.Load()
			for range 10 {
				time.Sleep(500 * time.Millisecond) // 62.5 kB
				synctest.Wait()
				now := r.wires.sent.Load()
				if sent := now - before; sent < 30_000 || sent > 95_000 {
					t.Errorf("%s: %d bytes left within half a second at 1 Mbit/s", p, sent)
				}
				before = now
			}
			move.Wait()
		})
	}
}

func TestAChangedLimitActsOnWhatRuns(t *testing.T) {
	limited(t, always("B", 1e6, 0), nil, func(t *testing.T, r *rig) {
		f := r.stage(t, "image", 20*mover.BlockSize)
		p := r.rig.Engine.(*Engine).Pacer
		time.AfterFunc(20*time.Second, func() { p.Set(always("B", 80e6, 0)) })
		// 2.5 MB come in the first 20 s, the rest in 1.9 s.
		if d := r.lasts(t, 8, f); d < 21*time.Second || d > 24*time.Second {
			t.Errorf("it took %v", d)
		}
		time.AfterFunc(time.Second, func() { p.Set(always("B", 8e6, 0)) })
		// 10 MB come in the first second, the rest, 10.97 MB, in 11 s.
		f = r.stage(t, "other", 20*mover.BlockSize+1)
		if d := r.lasts(t, 8, f); d < 11*time.Second || d > 14*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestAChangedLimitOfTheReceiverIsTold holds the lanes, and what the kernel paces them to,
// to what the receiver takes by now.
func TestAChangedLimitOfTheReceiverIsTold(t *testing.T) {
	limited(t, nil, always("A", 0, 1e6), func(t *testing.T, r *rig) {
		e := r.rig.Engine.(*Engine)
		f := r.stage(t, "image", 20*mover.BlockSize)
		var move sync.WaitGroup
		move.Go(func() {
			if err := r.moves(t, f, 8); err != nil {
				t.Error(err)
			}
		})
		for _, want := range []mover.Rate{1e6, 2e6, mover.Unlimited} {
			r.opts.Pacer.Set(always("A", 0, want))
			time.Sleep(2 * time.Second)
			e.mu.Lock()
			for _, l := range e.links {
				l.mu.Lock()
				if l.limit != want {
					t.Errorf("the sender goes by %v, the limit is %v", l.limit, want)
				}
				l.mu.Unlock()
			}
			e.mu.Unlock()
		}
		move.Wait()
	})
}

// TestAWindowThatBeginsActsOnWhatRuns has it be so by the clock alone.
func TestAWindowThatBeginsActsOnWhatRuns(t *testing.T) {
	w, err := mover.ParseWindow("", "00:01-00:02", "UTC") // a bubble begins at midnight
	if err != nil {
		t.Fatal(err)
	}
	ls := append(always("B", 1e6, 0), mover.Limit{Window: w, Send: 0})
	limited(t, ls, nil, func(t *testing.T, r *rig) {
		f := r.stage(t, "image", 20*mover.BlockSize)
		err := r.moves(t, f, 4)
		wait := waits(err)
		if wait == nil || !strings.Contains(wait.Reason, "to any site until Sat 00:02 UTC") || !wait.Until.Equal(time.Date(2000, 1, 1, 0, 2, 0, 0, time.UTC)) {
			t.Fatalf("it ended with %v, %+v", err, wait)
		}
		if at := time.Since(time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC)); at < 0 || at > time.Second {
			t.Errorf("it ended %v after the window began", at)
		}
		sent := r.wires.sent.Load()
		if err := r.moves(t, f, 4); waits(err) == nil || r.wires.sent.Load() != sent {
			t.Errorf("%d bytes were sent in the window: %v", r.wires.sent.Load()-sent, err)
		}
		time.Sleep(time.Until(wait.Until))
		first := int64(-1)
		err = r.rig.Engine.Move(t.Context(), r.request(t, f), func(p mover.Progress) {
			if first < 0 {
				first = p.Moved
			}
		})
		if err != nil || first < 4*mover.BlockSize {
			t.Errorf("it goes on with %d bytes there: %v", first, err)
		}
		r.came(t, f)
	})
}

// TestAReceiverThatTakesNothingNow tells the sender until when, and takes the file then.
func TestAReceiverThatTakesNothingNow(t *testing.T) {
	limited(t, nil, always("A", 0, 1e6), func(t *testing.T, r *rig) {
		f := r.stage(t, "image", 20*mover.BlockSize)
		time.AfterFunc(30*time.Second, func() {
			w, err := mover.ParseWindow("", "00:00-01:00", "UTC")
			if err != nil {
				t.Error(err)
			}
			r.opts.Pacer.Set(mover.Limits{{Site: "A", Window: w}})
		})
		opening := time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC)
		for _, what := range []string{"what runs", "a new link"} {
			err := r.moves(t, f, 4)
			w := waits(err)
			if w == nil || w.Until.Sub(opening).Abs() > time.Second || !strings.Contains(w.Reason, "the destination: a limit lets nothing go from site A until Sat 01:00 UTC") {
				t.Fatalf("%s ended with %v, %+v", what, err, w)
			}
		}
		if now := time.Since(time.Date(2000, 1, 1, 0, 0, 30, 0, time.UTC)); now > 2*time.Second {
			t.Errorf("it ended %v after the limit", now)
		}
		time.Sleep(time.Until(opening))
		if err := r.moves(t, f, 4); err != nil {
			t.Error(err)
		}
		r.came(t, f)
	})
}

// TestWhoWaitsForALimitIsNotStill has a block take longer than a connection may be still
// or rest, at either end.
func TestWhoWaitsForALimitIsNotStill(t *testing.T) {
	const rate = 64e3 // a block takes 131 s
	for name, c := range map[string]struct{ send, receive mover.Limits }{
		"sender":   {send: always("B", rate, 0)},
		"receiver": {receive: always("A", 0, rate)},
	} {
		t.Run(name, func(t *testing.T) {
			limited(t, c.send, c.receive, func(t *testing.T, r *rig) {
				r.rig.Engine.(*Engine).Stall = 2 * time.Minute
				f := r.stage(t, "image", 4*mover.BlockSize)
				sent := r.wires.sent.Load()
				if d := r.lasts(t, 16, f); !about(d, f.Size, rate) {
					t.Errorf("it took %v", d)
				}
				if n := r.wires.sent.Load() - sent; n > f.Size*11/10 {
					t.Errorf("%d bytes were sent for %d", n, f.Size)
				}
			})
		})
	}
}

func TestFewLanesWhereLittleMayGo(t *testing.T) {
	for rate, want := range map[mover.Rate]int{64e3: 1, 1e6: 1, 5e6: 5, 1e9: 2 * mover.MaxParallelism, mover.Unlimited: 2 * mover.MaxParallelism} {
		if got := lanesFor(rate); got != want {
			t.Errorf("%v is enough for %d lanes, want %d", rate, got, want)
		}
	}
	limited(t, nil, nil, func(t *testing.T, r *rig) {
		e := r.rig.Engine.(*Engine)
		f := r.stage(t, "image", 40*mover.BlockSize)
		e.Pacer.Set(always("B", 40e6, 0))
		var link *link
		lanes := func() (n int) {
			e.mu.Lock()
			for _, link = range e.links {
			}
			e.mu.Unlock()
			link.mu.Lock()
			defer link.mu.Unlock()
			return len(link.lanes)
		}
		var move sync.WaitGroup
		move.Go(func() {
			if err := r.moves(t, f, 8); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		if n := lanes(); n != 8 {
			t.Errorf("%d lanes at 40 Mbit/s, want 8", n)
		}
		sent := r.wires.sent.Load()
		e.Pacer.Set(always("B", 1e6, 0))
		time.Sleep(2 * time.Minute)
		if n := lanes(); n != 1 {
			t.Errorf("%d lanes at 1 Mbit/s, want 1", n)
		}
		e.Pacer.Set(nil)
		move.Wait()
		if n := r.wires.sent.Load() - sent; n > f.Size {
			t.Errorf("%d bytes were sent", n)
		}
	})
}

// TestAMoveThatWaitsForALimitCanBeGivenUp bounds how long that takes.
func TestAMoveThatWaitsForALimitCanBeGivenUp(t *testing.T) {
	for name, c := range map[string]struct{ send, receive mover.Limits }{
		"sender":   {send: always("B", 64e3, 0)},
		"receiver": {receive: always("A", 0, 64e3)},
	} {
		t.Run(name, func(t *testing.T) {
			limited(t, c.send, c.receive, func(t *testing.T, r *rig) {
				f := r.stage(t, "image", 4*mover.BlockSize)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begin := time.Now()
				err := r.rig.Engine.Move(ctx, r.request(t, f), func(mover.Progress) {})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("it ended with %v", err)
				}
				r.stop()
				if d := time.Since(begin); d > 31*time.Second {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

// TestTheKernelKeepsTheLimitToo moves files that neither end looks at: what is sent is
// never more than the rate and one burst allow.
func TestTheKernelKeepsTheLimitToo(t *testing.T) {
	const rate = 160e6
	for name, c := range map[string]struct{ send, receive mover.Limits }{
		"sender":   {send: always("B", rate, 0)},
		"receiver": {receive: always("A", 0, rate)},
	} {
		r := prepare(t)
		r.opts.Protection, r.rig.Engine.(*Engine).Protection = mover.Clear, mover.Clear
		r.wires.plain = true
		r.rig.Engine.(*Engine).Pacer = pace.New(mover.Send, c.send)
		r.opts.Pacer = pace.New(mover.Receive, c.receive)
		r.start(t, "127.0.0.1:0")
		f := r.stage(t, "image", 10*mover.BlockSize)
		f.Digest = digest.Digest{}
		least := time.Duration(float64(f.Size-pieceSize-proofSize) * 8 / rate * float64(time.Second))
		if d := r.lasts(t, 4, f); d < least {
			t.Errorf("%s: %d bytes took %v, less than %v", name, f.Size, d, least)
		}
		r.came(t, f)
		r.stop()
	}
}
