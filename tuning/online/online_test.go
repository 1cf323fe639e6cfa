package online

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	seeds = 20
	noise = 0.05 // of a second's throughput
)

// What one large file is moved with.
var (
	least     = mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}
	fours     = mover.PCP{Pipelining: 4, Concurrency: 4, Parallelism: 4}
	oneFile   = mover.PCP{Concurrency: 1}
	unlimited = mover.PCP{Pipelining: mover.MaxPipelining, Concurrency: mover.MaxConcurrency, Parallelism: mover.MaxParallelism}
)

// TestFromOneOfEachToTheBestIn20Seconds holds the mean of each path to 95 % of the best
// fixed PCP from then on, steps that are tried and taken back included, and every single run
// to little less.
func TestFromOneOfEachToTheBestIn20Seconds(t *testing.T) {
	for _, p := range paths {
		mean, worst := 0.0, math.Inf(1)
		for seed := range uint64(seeds) {
			r, decide := newRun(p, least, seed, noise), corrected(New(oneFile))
			r.until(20*time.Second, decide)
			got := r.until(40*time.Second, decide) / p.best()
			mean, worst = mean+got/seeds, min(worst, got)
		}
		t.Logf("%-14s %.3f of the best from 20 s on, at worst %.3f", p.name, mean, worst)
		if mean < 0.95 || worst < 0.85 {
			t.Errorf("%s: %.3f of the best, at worst %.3f; want 0.95, and never less than 0.85", p.name, mean, worst)
		}
	}
}

// TestCorrectionBeatsWhatOthersDo starts at one of each, the others where they like, and
// moves for five minutes.
func TestCorrectionBeatsWhatOthersDo(t *testing.T) {
	const lasts = 5 * time.Minute
	others := []struct {
		name  string
		start mover.PCP
		rule  func() policy
	}{
		{"FTS3's optimiser", mover.PCP{Pipelining: 8, Concurrency: 1, Parallelism: 2}, ladderOfFTS},
		{"Globus", globus, fixed(globus)},
		{"4/4/4", fours, fixed(fours)},
	}
	for _, o := range others {
		gain := 0.0
		for seed, p := range paths {
			ours := newRun(p, least, uint64(seed), noise).until(lasts, corrected(New(oneFile)))
			theirs := newRun(p, o.start, uint64(seed), noise).until(lasts, o.rule())
			t.Logf("%-16s %-14s %.2f", o.name, p.name, ours/theirs)
			if ours < 0.93*theirs {
				t.Errorf("on path %q %s moves %.2f times as much", p.name, o.name, theirs/ours)
			}
			gain += math.Log(ours/theirs) / float64(len(paths))
		}
		if gain = math.Exp(gain); gain < 1.05 {
			t.Errorf("against %s: %.2f times as much, want 1.05", o.name, gain)
		}
	}
}

func TestAGoodStartIsLeftSoon(t *testing.T) {
	p := paths[4] // which 16 connections are hardly enough for
	r, decide := newRun(p, mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 16}, 1, noise), corrected(New(oneFile))
	if got := r.until(time.Minute, decide) / p.best(); got < 0.95 {
		t.Errorf("%.3f of the best, trying included", got)
	}
}

// TestNothingIsTriedWithoutEnd draws paths, limits and starts.
func TestNothingIsTriedWithoutEnd(t *testing.T) {
	for seed := range uint64(60) {
		draw := rand.New(rand.NewPCG(seed, 2))
		between := func(low, high float64) float64 { return low + (high-low)*draw.Float64() }
		p := path{
			rate:     math.Pow(10, between(6, 11)),
			rtt:      time.Duration(between(100, 400_000)) * time.Microsecond,
			loss:     []float64{0, 1e-5, 1e-3, 0.05}[draw.IntN(4)],
			window:   math.Exp2(between(16, 30)),
			crowding: between(0, 0.2),
		}
		limits := drawPCP(draw)
		start := drawPCP(draw)
		r, c := newRun(p, start, seed, noise), New(limits)
		check := func(at time.Time, told mover.Progress) mover.PCP {
			q, why := c.Correct(at, told)
			if q != within(q, limits) || min(q.Pipelining, q.Concurrency, q.Parallelism) < 1 || why == "" {
				t.Fatalf("seed %d: asks for %v, limits are %v: %q", seed, q, limits, why)
			}
			return q
		}
		r.until(3*time.Minute, check)
		if !c.Settled() {
			t.Fatalf("seed %d: still tries %v after 3 minutes: %v", seed, r.pcp, r.changes)
		}
		settled := len(r.changes)
		r.until(15*time.Minute, check)
		if n := len(r.changes) - settled; n > 0 {
			t.Errorf("seed %d: %d changes in a quarter of an hour of which no minute differs from another: %v", seed, n, r.changes[settled:])
		}
	}
}

func drawPCP(draw *rand.Rand) mover.PCP {
	return mover.PCP{
		Pipelining:  1 + draw.IntN(mover.MaxPipelining),
		Concurrency: 1 + draw.IntN(mover.MaxConcurrency),
		Parallelism: 1 + draw.IntN(mover.MaxParallelism),
	}
}

func within(p, limits mover.PCP) mover.PCP {
	return mover.PCP{
		Pipelining:  min(p.Pipelining, limits.Pipelining),
		Concurrency: min(p.Concurrency, limits.Concurrency),
		Parallelism: min(p.Parallelism, limits.Parallelism),
	}
}

func TestWhenThePathChangesItIsSearchedAnew(t *testing.T) {
	near := path{rate: 100e6, rtt: 20 * time.Millisecond, window: 1 << 20, crowding: 0.05}
	far := path{rate: 10e9, rtt: 50 * time.Millisecond, window: 8 << 20, crowding: 0.05}
	r, c := newRun(near, least, 3, noise), New(oneFile)
	r.until(2*time.Minute, corrected(c))
	before := r.pcp
	r.path, r.told.Way.Path.RTT = far, far.rtt
	r.until(4*time.Minute, corrected(c))
	rate, _ := far.steady(r.pcp)
	if rate < 0.95*far.best() || !c.Settled() {
		t.Errorf("%v, then %v, with %.2f of the best", before, r.pcp, rate/far.best())
	}
}

// TestGrowingLossBacksOff has other traffic come and take most of the line, so that as many
// connections as before only lose packets.
func TestGrowingLossBacksOff(t *testing.T) {
	free := path{rate: 1e9, rtt: 50 * time.Millisecond, window: 1 << 20, crowding: 0.02}
	r, c := newRun(free, least, 5, noise), New(oneFile)
	r.until(2*time.Minute, corrected(c))
	before := r.pcp
	r.path = path{rate: 100e6, rtt: 50 * time.Millisecond, window: 1 << 20, crowding: 0.3, lossOfCrowd: 0.02}
	r.until(4*time.Minute, corrected(c))
	if _, loss := r.steady(r.pcp); r.pcp.Parallelism > before.Parallelism/2 || loss > 0.02 {
		t.Errorf("%v, then %v, of whose bytes %.1f %% are sent again", before, r.pcp, 100*loss)
	}
}

// TestADiskIsNotHelpedByConnections holds that nothing grows while the network is not what
// is waited for.
func TestADiskIsNotHelpedByConnections(t *testing.T) {
	p := path{rate: 1e9, rtt: 100 * time.Millisecond, window: 64 << 10}
	for _, b := range []mover.Bottleneck{
		{Place: mover.DestinationDisk, Share: 0.9}, {Place: mover.Limited, Share: 0.9}, {Place: mover.Network, From: "R", Share: 0.9},
	} {
		r, c := newRun(p, fours, 1, noise), New(mover.PCP{})
		r.until(time.Minute, func(at time.Time, told mover.Progress) mover.PCP {
			told.Way.Bottleneck = b
			q, _ := c.Correct(at, told)
			if q.Pipelining > 4 || q.Concurrency > 4 || q.Parallelism > 4 {
				t.Fatalf("%v: asks for %v", b, q)
			}
			return q
		})
	}
}

func TestWhatSomebodyElseSetsIsWhereItGoesOn(t *testing.T) {
	p := paths[4]
	r, c := newRun(p, least, 1, noise), New(oneFile)
	r.until(time.Minute, corrected(c))
	r.pcp = least
	var q mover.PCP
	var why string
	r.until(61*time.Second, func(at time.Time, told mover.Progress) mover.PCP {
		q, why = c.Correct(at, told)
		return q
	})
	if q != least || why != "as it was set" {
		t.Errorf("%v, %s", q, why)
	}
	r.until(2*time.Minute, corrected(c))
	if rate, _ := p.steady(r.pcp); rate < 0.95*p.best() {
		t.Errorf("%v, with %.2f of the best", r.pcp, rate/p.best())
	}
}

// TestAnEngineThatDoesNotFollowIsNotAskedForEver has one that opens two connections at most.
func TestAnEngineThatDoesNotFollowIsNotAskedForEver(t *testing.T) {
	p := paths[4]
	r, c := newRun(p, least, 1, noise), New(oneFile)
	asked := map[mover.PCP]bool{}
	r.until(10*time.Minute, func(at time.Time, told mover.Progress) mover.PCP {
		q, _ := c.Correct(at, told)
		asked[q] = true
		q.Parallelism = min(q.Parallelism, 2)
		return q
	})
	if !c.Settled() || len(asked) > 16 {
		t.Errorf("settled: %v; asked for %v", c.Settled(), asked)
	}
}

// TestReportsAsOftenAsOneLikes has reports between two looks at the path, too, which tell of
// the path what the last one did.
func TestReportsAsOftenAsOneLikes(t *testing.T) {
	p := paths[1]
	one, many := newRun(p, least, 1, noise), newRun(p, least, 1, noise)
	few, often := New(oneFile), New(oneFile)
	one.until(time.Minute, corrected(few))
	var seen mover.Progress
	many.until(time.Minute, func(at time.Time, told mover.Progress) mover.PCP {
		seen.Moved = told.Moved
		often.Correct(at.Add(-50*time.Millisecond), seen)
		seen = told
		p, _ := often.Correct(at, told)
		often.Correct(at.Add(50*time.Millisecond), told)
		return p
	})
	if one.pcp != many.pcp || len(one.changes) != len(many.changes) {
		t.Errorf("%v after %v, and %v after %v", one.pcp, one.changes, many.pcp, many.changes)
	}
}

func TestAnotherBeginningIsNotMeasuredAcross(t *testing.T) {
	p := paths[1]
	r, c := newRun(p, least, 1, noise), New(oneFile)
	r.until(time.Minute, corrected(c))
	settled := r.pcp
	r.told.Way.Path.Since = epoch.Add(r.now) // other connections
	r.told.Way.Path.Sent, r.told.Way.Path.Retransmits = 0, 0
	r.until(61*time.Second, corrected(c))
	if r.pcp != settled || c.Settled() {
		t.Errorf("%v, settled: %v; want %v to be measured anew", r.pcp, c.Settled(), settled)
	}
}

func TestMoreThanIsAllowedIsTakenBack(t *testing.T) {
	c := New(mover.PCP{Parallelism: 4})
	got, why := c.Correct(epoch, mover.Progress{Way: mover.Way{PCP: mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 16}}})
	if got != (mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 4}) || why != "as much of it as is allowed" {
		t.Errorf("%v: %s", got, why)
	}
}

func TestNoLimitsAreTheGreatestPCP(t *testing.T) {
	for _, limits := range []mover.PCP{{}, {Pipelining: 1000, Concurrency: 1000, Parallelism: 1000}} {
		if got := New(limits).limits; got != unlimited {
			t.Errorf("%v: %v, want %v", limits, got, unlimited)
		}
	}
}

func TestTheLadderIsClimbedRungByRung(t *testing.T) {
	for _, c := range []struct{ n, rungs, top, want int }{
		{1, 2, 16, 3}, {8, 2, 16, 16}, {16, 2, 16, 16}, {16, 2, 64, 32}, {64, 2, 64, 64},
		{5, 1, 16, 6}, {5, -1, 16, 4}, {1, -1, 16, 1}, {2, -2, 16, 1}, {9, 2, 10, 10},
	} {
		if got := climb(c.n, c.rungs, c.top); got != c.want {
			t.Errorf("climb(%d, %d, %d) = %d, want %d", c.n, c.rungs, c.top, got, c.want)
		}
	}
}
