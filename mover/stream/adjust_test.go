package stream

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// lateConn hears everything a while after it was said.
type lateConn struct{ net.Conn }

func (c lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	time.Sleep(3 * time.Second)
	return n, err
}

// TestLanesFollowWhatIsAskedFor changes a move's PCP where answers take longer than blocks.
func TestLanesFollowWhatIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		e := r.rig.Engine.(*Engine)
		dial, control := e.Dial, true
		e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if !control {
				return c, err
			}
			control = false
			return lateConn{c}, err
		}
		r.start(t, "")
		defer r.stop()
		req := r.request(t, r.stage(t, "image", 200*mover.BlockSize))
		req.Key, req.PCP = "key", mover.PCP{Parallelism: 2, Pipelining: 2, Concurrency: 1}
		steps := []mover.PCP{{Parallelism: 8}, {Parallelism: 1}, {Pipelining: 20}, {Parallelism: 3, Concurrency: 7}}
		want := []mover.PCP{req.PCP}
		for _, s := range steps {
			want = append(want, want[len(want)-1].With(s))
		}
		reached, sent := 0, int64(0)
		err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
			sent = p.Way.Wire
			if reached == len(want) || p.Way.PCP != want[reached] || p.Way.Lanes != want[reached].Parallelism {
				return
			}
			if reached < len(steps) {
				e.Adjust("other", mover.PCP{Parallelism: 16})
				e.Adjust("key", steps[reached])
			}
			reached++
		})
		if err != nil {
			t.Fatal(err)
		}
		if reached != len(want) {
			t.Errorf("%d of %v were seen", reached, want)
		}
		if sent > 200*mover.BlockSize+mover.BlockSize/2 {
			t.Errorf("%d bytes were sent for 200 blocks", sent)
		}
		if e.Adjust("key", steps[0]); len(e.moving) != 0 {
			t.Errorf("%d moves are remembered", len(e.moving))
		}
	})
}
