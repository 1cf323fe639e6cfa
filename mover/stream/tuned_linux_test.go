package stream

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning/online"
)

// TestARealPathIsClimbed moves over a path that one block at a time leaves half empty, and
// has the correction of tuning/online follow what the kernel tells.
func TestARealPathIsClimbed(t *testing.T) {
	r := newFarRig(t, wan.Path{Delay: 20 * time.Millisecond, Rate: 100e6, Loss: 0.005})
	e := r.rig.Engine.(*Engine)
	req := r.request(t, r.stage(t, "image", 512<<20))
	req.PCP = mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	c, used := online.New(mover.PCP{Concurrency: 1}), req.PCP
	err := e.Move(ctx, req, func(p mover.Progress) {
		to, why := c.Correct(time.Now(), p)
		if to != used {
			t.Logf("%v: %s", to, why)
			used = to
			e.Adjust(req.Key, to)
		}
		if c.Settled() {
			stop()
		}
	})
	if !errors.Is(err, context.Canceled) || used == req.PCP {
		t.Errorf("it ends at %v: %v", used, err)
	}
}
