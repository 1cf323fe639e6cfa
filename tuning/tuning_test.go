package tuning

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

var some = Condition{
	Path: Path{Bandwidth: 10e9, RTT: 200 * time.Millisecond, Buffer: 256e6, Congestion: "cubic"},
	Load: Load{Files: 3, Size: 1e9},
}

// TestTheBDPOfTheSeed: 10 Gbit/s and 200 ms hold 250 MB, for which DTNs have buffers of 256.
func TestTheBDPOfTheSeed(t *testing.T) {
	if got := some.BDP(); got != 250e6 {
		t.Errorf("BDP %v, want 250 MB", got)
	}
}

// TestLossWindowsOfThePublishedTables compares with RFC 9438's table 2 (RTT 0.1 s, in
// packets), and with Mathis' formula.
func TestLossWindowsOfThePublishedTables(t *testing.T) {
	for _, c := range []struct {
		congestion string
		loss       float64
		packets    float64
	}{
		{"cubic", 1e-4, 187}, {"cubic", 1e-5, 1054}, {"cubic", 1e-6, 5926}, {"cubic", 1e-7, 33325},
		{"htcp", 1e-5, 1054}, {"", 1e-5, 1054},
		{"reno", 1e-4, 122.5}, {"reno", 1.5e-6, 1000},
		{"cubic", 1e-2, 12.2}, // no less than Reno
		{"bbr", 1e-3, math.Inf(1)}, {"bbr3", 1e-3, math.Inf(1)}, {"cubic", 0, math.Inf(1)},
	} {
		p := Path{RTT: 100 * time.Millisecond, Loss: c.loss, Congestion: c.congestion}
		if got := p.LossWindow() / MSS; got != c.packets && math.Abs(got/c.packets-1) > 0.01 {
			t.Errorf("%s with a loss of %g has %.1f packets in flight, want %v", c.congestion, c.loss, got, c.packets)
		}
	}
}

func TestEveryFaultIsReported(t *testing.T) {
	if err := some.Validate(); err != nil {
		t.Error(err)
	}
	err := Outcome{Condition: Condition{Path: Path{Loss: math.NaN()}, Load: Load{Size: math.MaxInt64}}, Steps: []Step{{Lasted: -1}}}.Validate()
	for _, want := range []string{"bandwidth 0", "rtt 0s", "buffer 0", "loss NaN", "files 0", "size 9223372036854775807", `id ""`, "ended 0001", "step 1: pcp 0/0/0", "in -1ns"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to name %q", err, want)
		}
	}
	one := mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}
	if err := (Observation{some, one, 1}).Validate(); err != nil {
		t.Error(err)
	}
	for _, o := range []Observation{{some, one, 0}, {some, one, math.NaN()}, {some, one, math.Inf(1)}, {some, mover.PCP{Pipelining: 1, Concurrency: 1}, 1}} {
		if o.Validate() == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	if err := (Outcome{ID: "x", Ended: time.Unix(1e9, 0), Condition: some}).Validate(); err == nil || !strings.Contains(err.Error(), "no steps") {
		t.Errorf("without steps: %v", err)
	}
}

func TestEachStepIsAnObservation(t *testing.T) {
	o := Outcome{ID: "a", Ended: time.Unix(1e9, 0), Condition: some, Steps: []Step{
		{PCP: mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}, Lasted: time.Second, Bytes: 1e9},
		{PCP: mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 2}, Lasted: 4 * time.Second, Bytes: 1e9},
		{PCP: mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 4}, Lasted: 4 * time.Second},
	}}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	got := o.Observations(2 * time.Second)
	if len(got) != 1 || got[0] != (Observation{some, o.Steps[1].PCP, 2e9}) {
		t.Errorf("observations %+v, want the second step alone, at 2 Gbit/s", got)
	}
	if got := o.Observations(0); len(got) != 2 {
		t.Errorf("%d observations, want those two in which bytes moved", len(got))
	}
	o.Steps = o.Steps[:1]
	if got := o.Observations(time.Hour); len(got) != 1 {
		t.Errorf("%d observations, want the only step, which is the whole transfer", len(got))
	}
}
