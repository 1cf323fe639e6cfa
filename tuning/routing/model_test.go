package routing

import (
	"math"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/tuning"
)

// window is the mean window, in packets, of one long connection on a path without end.
func window(congestion string, rtt time.Duration, loss float64) float64 {
	p := tuning.Path{Bandwidth: 1e15, RTT: rtt, Loss: loss, Congestion: congestion}
	const size = 1 << 50
	f := flowOf(p, 1, size)
	return size / mss / (1 - loss) / f.seconds * rtt.Seconds()
}

// The mean window of reno is that of Mathis, Semke, Mahdavi and Ott, 1997, whose constant
// for periodic losses and no delayed acknowledgements is sqrt(3/2).
func TestRenoHasTheWindowOfMathis(t *testing.T) {
	for _, loss := range []float64{1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7} {
		for _, rtt := range []time.Duration{time.Millisecond, 100 * time.Millisecond} {
			got, want := window("reno", rtt, loss), math.Sqrt(1.5/loss)
			if math.Abs(got/want-1) > 0.05 {
				t.Errorf("loss %g, round trip %s: a window of %.1f packets, want %.1f", loss, rtt, got, want)
			}
		}
	}
}

// The mean window of cubic is that of tables 1 and 2 of RFC 9438, with C = 0.4.
func TestCubicHasTheWindowOfItsRFC(t *testing.T) {
	for _, c := range []struct {
		rtt  time.Duration
		loss float64
		want float64
	}{
		{100 * time.Millisecond, 1e-2, 12},
		{100 * time.Millisecond, 1e-3, 38},
		{100 * time.Millisecond, 1e-4, 187},
		{100 * time.Millisecond, 1e-5, 1054},
		{100 * time.Millisecond, 1e-6, 5926},
		{100 * time.Millisecond, 1e-7, 33325},
		{100 * time.Millisecond, 1e-8, 187400},
		{10 * time.Millisecond, 1e-2, 12},
		{10 * time.Millisecond, 1e-3, 38},
		{10 * time.Millisecond, 1e-4, 120},
		{10 * time.Millisecond, 1e-5, 379},
		{10 * time.Millisecond, 1e-6, 1200},
		{10 * time.Millisecond, 1e-7, 5926},
		{10 * time.Millisecond, 1e-8, 33325},
	} {
		if got := window("cubic", c.rtt, c.loss); math.Abs(got/c.want-1) > 0.12 {
			t.Errorf("loss %g, round trip %s: a window of %.0f packets, want %.0f", c.loss, c.rtt, got, c.want)
		}
	}
}

// What iperf3 measured in 10 s over an emulated path of 1 Gbit/s and 50 ms with random
// losses, by 1, 4, 8 and 16 connections. A window that was lost more than once in a round
// trip opens again later than the fluid's.
func TestRatesThatWereMeasured(t *testing.T) {
	for _, c := range []struct {
		control string
		loss    float64
		rates   [4]float64 // Mbit/s
		most    float64    // by which factor the prediction may be too high
	}{
		{"cubic", 0, [4]float64{961, 965, 965, 965}, 1},
		{"bbr", 0, [4]float64{887, 952, 940, 911}, 1.01},
		{"cubic", 1e-4, [4]float64{90, 176, 450, 935}, 2.5},
		{"bbr", 1e-4, [4]float64{861, 919, 958, 922}, 1.05},
		{"cubic", 1e-3, [4]float64{7.9, 43, 88, 177}, 2.1},
		{"bbr", 1e-3, [4]float64{948, 946, 950, 963}, 1},
	} {
		for i, streams := range []int{1, 4, 8, 16} {
			p := tuning.Path{Bandwidth: 1e9, RTT: 50 * time.Millisecond, Buffer: 64 << 20, Loss: c.loss, Congestion: c.control}
			size := int64(1 << 20)
			for flowOf(p, streams, size).seconds < 10 {
				size += size / 100
			}
			got := float64(size) * 8 / flowOf(p, streams, size).seconds / 1e6
			if ratio := got / c.rates[i]; ratio < 0.9 || ratio > c.most {
				t.Errorf("%d connections of %s, loss %g: %.0f Mbit/s, %.2f times the measured %.0f", streams, c.control, c.loss, got, ratio, c.rates[i])
			}
		}
	}
}

func TestEachLimitIsNamed(t *testing.T) {
	wide := tuning.Path{Bandwidth: 1e9, RTT: 100 * time.Millisecond, Congestion: "cubic"}
	with := func(change func(*tuning.Path)) tuning.Path {
		p := wide
		change(&p)
		return p
	}
	for _, c := range []struct {
		name string
		path tuning.Path
		size int64
		want Limit
	}{
		{"a large file", wide, 4 << 30, ByLine},
		{"a small file", wide, 4 << 20, ByStart},
		{"a buffer of 1 MiB", with(func(p *tuning.Path) { p.Buffer = 1 << 20 }), 4 << 30, ByBuffer},
		{"a buffer that is large enough", with(func(p *tuning.Path) { p.Buffer = 64 << 20 }), 4 << 30, ByLine},
		{"losses", with(func(p *tuning.Path) { p.Loss = 1e-3 }), 4 << 30, ByLoss},
		{"losses and bbr", with(func(p *tuning.Path) { p.Loss, p.Congestion = 1e-3, "bbr" }), 4 << 30, ByLine},
		{"no distance", with(func(p *tuning.Path) { p.RTT, p.Loss = 0, 1e-3 }), 4 << 30, ByLine},
	} {
		f := flowOf(c.path, 1, c.size)
		if f.limit != c.want {
			t.Errorf("%s: %v, want %s", c.name, f, c.want)
		}
	}
	// A window of 1 MiB each 100 ms.
	p := with(func(p *tuning.Path) { p.Buffer = 1 << 20 })
	if got, want := flowOf(p, 1, 1<<30).seconds, 1024*0.1; math.Abs(got/want-1) > 0.02 {
		t.Errorf("1 GiB with a buffer of 1 MiB takes %.1f s, want %.1f", got, want)
	}
	if got, want := flowOf(wide, 1, 8<<30).seconds, 8*(1<<30)*8/(1e9*goodput); got < want || got > want+1.5 {
		t.Errorf("8 GiB takes %.1f s, want %.1f and some slow start", got, want)
	}
}

func TestNoPathTakesForever(t *testing.T) {
	for _, control := range []string{"reno", "cubic", "htcp", "bbr"} {
		for _, p := range []tuning.Path{
			{Bandwidth: 1, RTT: time.Hour, Loss: 0.9, Buffer: 1},
			{Bandwidth: 1e15, RTT: time.Hour, Loss: 1e-12},
			{Bandwidth: 1e15, RTT: 1},
			{Bandwidth: 1, Loss: 0.9},
		} {
			p.Congestion = control
			for _, size := range []int64{0, 1, math.MaxInt64} {
				if got := flowOf(p, 1024, size).seconds; !(got >= 0) || got > 1e26 || (got == 0) != (size == 0) {
					t.Errorf("%+v, %d bytes: %v s", p, size, got)
				}
			}
		}
	}
}

// H-TCP opens its window as reno does in the first second, and much faster later.
func TestHTCPIsRenoOnShortPaths(t *testing.T) {
	near, far := window("htcp", time.Millisecond, 1e-4), window("htcp", 100*time.Millisecond, 1e-6)
	if want := math.Sqrt(1.8 / 1e-4); math.Abs(near/want-1) > 0.05 { // an increase of 0.4, a decrease to 0.8
		t.Errorf("a window of %.0f packets at 1 ms, want %.0f", near, want)
	}
	if reno := window("reno", 100*time.Millisecond, 1e-6); far < 3*reno {
		t.Errorf("a window of %.0f packets at 100 ms and loss 1e-6, where reno has %.0f", far, reno)
	}
}
