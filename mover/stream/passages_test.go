package stream

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// TestAPassageIsToldAndGoesOnAsItCame has a file with a priority and a PCP of its own stop
// half way behind the relay: it is on the next link with both, and is told.
func TestAPassageIsToldAndGoesOnAsItCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const passed, blocks = 20, 64
		r := newRelayPipeRig(t, mover.StoreForward)
		s := newSluice(passed * mover.BlockSize)
		r.opts.Engine.Stall = time.Hour
		r.opts.Engine.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.out.dial(ctx, network, address)
			return sluiced{c, s}, err
		}
		r.startRelay(t, "")
		req := r.request(t, r.stage(t, "image", blocks*mover.BlockSize))
		req.Priority, req.PCP = mover.PriorityHigh, mover.PCP{Pipelining: 3, Concurrency: 7, Parallelism: 5}
		ended := make(chan error, 1)
		go func() { ended <- r.rig.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, l := range r.opts.Engine.links {
			l.mu.Lock()
			for _, f := range l.files {
				if f.rank != mover.PriorityHigh.Rank() || f.window != 3 || f.files != 7 || f.lanes != 5 {
					t.Errorf("it goes on with rank %d, %d blocks on a lane, %d files and %d lanes", f.rank, f.window, f.files, f.lanes)
				}
			}
			l.mu.Unlock()
		}
		all := r.relay.Passages()
		if len(all) != 1 {
			t.Fatalf("told of are %v", all)
		}
		p := all[0]
		if p.From != "A" || p.To != "B" || p.Mode != mover.StoreForward || p.State != mover.Running || p.Priority != mover.PriorityHigh ||
			p.Here != blocks*mover.BlockSize || p.Moved == 0 || p.Moved > passed*mover.BlockSize {
			t.Errorf("it is told as %+v", p)
		}
		s.open()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		r.same(t, "image")
		if all := r.relay.Passages(); len(all) != 0 {
			t.Errorf("when it has gone, told of are %v", all)
		}
		want := mover.Passed{From: "A", To: "B", Files: 1, Bytes: blocks * mover.BlockSize}
		if got := r.relay.Passed(); len(got) != 1 || got[0] != want {
			t.Errorf("passed on were %+v, want %+v", got, want)
		}
		r.stopR()
		r.stop()
	})
}

// TestRelayKeepsWhatAWindowHolds has the way on shut for two days when half of a file is
// stored: it stays, and says why; another file gets its room, but not within relayRest.
func TestRelayKeepsWhatAWindowHolds(t *testing.T) {
	r := prepareRelay(t, newRigIn(t, mover.Private), mover.Private, mover.StoreForward)
	pacer := pace.New(mover.Send, nil)
	r.opts.Engine.Pacer, r.opts.Space = pacer, 60*mover.BlockSize
	r.startRelay(t, "127.0.0.1:0")
	f := r.stage(t, "image", 40*mover.BlockSize)
	r.part(t, r.request(t, f), 20*mover.BlockSize, errEnough)
	y := r.relay.relay
	pacer.Set(mover.Limits{{Site: "B", Send: 0, Receive: mover.Unlimited}})
	if err := r.rig.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); waits(err) == nil {
		t.Fatal("it does not wait for the window:", err)
	}
	y.forget(time.Now().Add(48 * time.Hour))
	all := r.relay.Passages()
	if len(all) != 1 || all[0].State != mover.Queued || !strings.Contains(all[0].Waiting, "a limit lets nothing go to site B") || all[0].Here == 0 || all[0].From != "A" || all[0].To != "B" {
		t.Fatalf("after two days told of are %+v", all)
	}
	pacer.Set(nil)
	other := r.request(t, r.stage(t, "other", 39*mover.BlockSize))
	if err := r.rig.rig.Engine.Move(t.Context(), other, func(mover.Progress) {}); mover.CodeOf(err) != mover.CodeSpace {
		t.Fatal("at once another file gets its room:", err)
	}
	y.mu.Lock()
	for name, of := range y.rests {
		y.rests[name] = rest{of.since.Add(-relayRest), errors.New("long ago")}
	}
	y.mu.Unlock()
	if err := r.rig.rig.Engine.Move(t.Context(), other, func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	r.same(t, "other")
}
