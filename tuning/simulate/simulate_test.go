package simulate

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

func rate(p tuning.Path, l tuning.Load, pipelining, concurrency, parallelism int) float64 {
	return Throughput(Ordinary(), tuning.Condition{Path: p, Load: l}, mover.PCP{Pipelining: pipelining, Concurrency: concurrency, Parallelism: parallelism})
}

// TestEachLimitHolds looks at each mechanism where it alone matters.
func TestEachLimitHolds(t *testing.T) {
	long := tuning.Load{Files: 1, Size: 1e13}
	path := tuning.Path{Bandwidth: 1e9, RTT: 50 * time.Millisecond, Buffer: 64 << 20, Congestion: "cubic"}
	lossy, small, fast := path, path, path
	lossy.Loss = 1e-4
	small.Buffer = 1 << 20
	fast.Bandwidth, fast.RTT = 400e9, time.Millisecond
	for _, c := range []struct {
		about     string
		got, want float64
	}{
		{"a path alone", rate(path, long, 1, 1, 1), 1e9 * goodput},
		{"a buffer", rate(small, long, 1, 1, 1), float64(8<<20) / 0.05},
		{"two buffers", rate(small, long, 1, 1, 2), 2 * float64(8<<20) / 0.05},
		{"losses", rate(lossy, long, 1, 1, 1), lossy.LossWindow() * 8 / 0.05},
		{"four with losses", rate(lossy, long, 1, 1, 4), 4 * lossy.LossWindow() * 8 / 0.05},
		{"a core", rate(fast, long, 1, 1, 1), Ordinary().Connection},
	} {
		if math.Abs(c.got/c.want-1) > 0.05 {
			t.Errorf("%s: %.3g bit/s, want %.3g", c.about, c.got, c.want)
		}
	}

	// Small files wait for round trips and for the disks.
	files := tuning.Load{Files: 10000, Size: 1000}
	seconds := func(bits float64) float64 { return 10000 * 8000 / bits }
	if got, want := seconds(rate(path, files, 1, 1, 1)), 10000*(0.05+Ordinary().PerFile); math.Abs(got/want-1) > 0.05 {
		t.Errorf("small files one after the other take %.0f s, want %.0f", got, want)
	}
	if got, want := seconds(rate(path, files, 64, 1, 1)), 10000*(0.05/64+Ordinary().PerFile); math.Abs(got/want-1) > 0.05 {
		t.Errorf("pipelined small files take %.0f s, want %.0f", got, want)
	}
}

// TestMoreIsNotAlwaysBetter holds what there is to be learnt: the best is in between.
func TestMoreIsNotAlwaysBetter(t *testing.T) {
	path := tuning.Path{Bandwidth: 10e9, RTT: 50 * time.Millisecond, Buffer: 4 << 20, Congestion: "cubic"}
	large, few := tuning.Load{Files: 64, Size: 10e9}, tuning.Load{Files: 64, Size: 1e9}
	if some, many := rate(path, large, 1, 2, 8), rate(path, large, 1, 64, 16); many > 0.9*some {
		t.Errorf("1024 connections have %.3g bit/s, 16 have %.3g", many, some)
	}
	if one, all := rate(path, few, 1, 8, 1), rate(path, few, 64, 8, 1); all > 0.5*one {
		t.Errorf("with all files asked for on one channel eight have %.3g bit/s, otherwise %.3g", all, one)
	}
}

func TestARateIsFiniteAndBelowThePath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := tuning.Path{
			Bandwidth:  rapid.Float64Range(1e3, 1e12).Draw(t, "bandwidth"),
			RTT:        time.Duration(rapid.Int64Range(1e3, 1e10).Draw(t, "rtt")),
			Buffer:     rapid.Int64Range(1, 1<<40).Draw(t, "buffer"),
			Loss:       rapid.Float64Range(0, 0.5).Draw(t, "loss"),
			Congestion: rapid.SampledFrom([]string{"cubic", "reno", "bbr"}).Draw(t, "congestion"),
		}
		l := tuning.Load{Files: rapid.IntRange(1, 1e7).Draw(t, "files"), Size: rapid.Int64Range(1, 1<<45).Draw(t, "size")}
		got := rate(p, l, rapid.IntRange(1, 64).Draw(t, "pipelining"), rapid.IntRange(1, 64).Draw(t, "concurrency"), rapid.IntRange(1, 16).Draw(t, "parallelism"))
		if !(got > 0 && got <= p.Bandwidth) {
			t.Errorf("%+v %+v: %v bit/s", p, l, got)
		}
	})
}
