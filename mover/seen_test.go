package mover

import (
	"math"
	"testing"
	"time"
)

// TestBoundsByHand: 1 Gbit/s and 100 ms are 12.5 MB in flight; with one packet of 10,000
// lost a connection has 1448·8/0.1·√15000 bit/s.
func TestBoundsByHand(t *testing.T) {
	p := SeenPath{Best: 1e9, MinRTT: 100 * time.Millisecond, MSS: 1448, Loss: 1e-4}.Bounded()
	if p.BDP != 12_500_000 || math.Abs(p.Bound-14_187_444) > 1 {
		t.Errorf("BDP %d, bound %.0f", p.BDP, p.Bound)
	}
	p.Loss = 0
	if p = p.Bounded(); p.Bound != 0 {
		t.Errorf("without loss the bound is %.0f", p.Bound)
	}
}
