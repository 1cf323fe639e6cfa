package stream

import (
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestAProbeFindsWhatAPathIs between two machines: its delay and rate, and on another one
// its loss.
func TestAProbeFindsWhatAPathIs(t *testing.T) {
	const delay, rate, loss = 20 * time.Millisecond, 50e6, 0.01
	for name, path := range map[string]wan.Path{
		"narrow": {Delay: delay, Rate: rate},
		"lossy":  {Delay: delay, Rate: rate, Loss: loss, Queue: 8 << 20}, // that overflows never
	} {
		t.Run(name, func(t *testing.T) {
			r := newFarRig(t, path)
			req := r.probeRequest(t)
			req.Time = 4 * time.Second
			got, err := r.probe(t.Context(), req, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", got)
			if got.Idle < 2*delay || got.Idle > 3*delay || got.Loaded < 2*delay {
				t.Errorf("round trips of %v and, under load, %v", got.Idle, got.Loaded)
			}
			for _, found := range []float64{got.One, got.All} {
				if found <= 0 || found > 1.15*rate {
					t.Errorf("%v bit/s over a path of %v", found, rate)
				}
			}
			if got.Connections != DefaultParallelism && got.Connections != BBRParallelism {
				t.Errorf("%d connections", got.Connections)
			}
			switch {
			case name == "narrow" && got.All < 0.6*rate:
				t.Errorf("%v bit/s over a path of %v", got.All, rate)
			case name == "lossy" && (got.Loss < loss/2 || got.Loss > 2*loss):
				t.Errorf("loss %v on a path of %v", got.Loss, loss)
			}
			seen := mover.SeenPath{MinRTT: got.Idle, Loss: got.Loss, MSS: got.Path.MSS, Best: got.All}.Bounded()
			if bdp := int64(got.All / 8 * got.Idle.Seconds()); seen.BDP != bdp || name == "lossy" && seen.Bound <= 0 {
				t.Errorf("%+v", seen)
			}
		})
	}
}
