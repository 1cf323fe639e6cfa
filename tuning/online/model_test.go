package online

import (
	"cmp"
	"math"
	"math/rand/v2"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// path is a model of a path, of what crosses it, and of the engine: a block is proven a
// round trip after its last byte was sent, and a connection has pipelining of them in flight.
type path struct {
	name     string
	rate     float64 // bits per second that it carries
	rtt      time.Duration
	loss     float64 // of packets, at random: Mathis et al., CCR 27(3), 1997
	window   float64 // bytes, the most of a connection
	perLink  float64 // bits per second of a connection at most, a core; 0: any
	lossless bool    // the congestion control takes no loss for congestion
	crowding float64 // share of the rate that each doubling of too many connections costs

	lossOfCrowd float64 // of the packets, that each doubling has dropped; 0: 0.002
}

const blockBits, mss = float64(mover.BlockSize * 8), 1448.0

// steady is what a PCP achieves in bits per second, and the share that is sent again.
func (p path) steady(q mover.PCP) (rate, loss float64) {
	rtt := p.rtt.Seconds()
	one := p.window * 8 / rtt
	if p.perLink > 0 {
		one = min(one, p.perLink)
	}
	if p.loss > 0 && !p.lossless {
		one = min(one, math.Sqrt(1.5/p.loss)*mss*8/rtt)
	}
	one = min(one, p.rate)
	one = min(one, float64(q.Pipelining)*blockBits/(blockBits/one+rtt))
	n := float64(q.Parallelism)
	surplus := math.Log2(max(1, n*one/p.rate))
	line := p.rate * math.Exp(-p.crowding*surplus)
	return line * n * one / math.Pow(math.Pow(line, 8)+math.Pow(n*one, 8), 1.0/8), min(0.9, p.loss+cmp.Or(p.lossOfCrowd, 0.002)*surplus)
}

// best is the most that any fixed PCP achieves.
func (p path) best() (most float64) {
	for pipelining := 1; pipelining <= mover.MaxPipelining; pipelining++ {
		for parallelism := 1; parallelism <= mover.MaxParallelism; parallelism++ {
			rate, _ := p.steady(mover.PCP{Pipelining: pipelining, Concurrency: 1, Parallelism: parallelism})
			most = max(most, rate)
		}
	}
	return most
}

// paths are those of ordinary sites: near, across a country, across an ocean, lossy, with
// small buffers, and with a fast line that no connection fills.
var paths = []path{
	{name: "metro", rate: 10e9, rtt: 3 * time.Millisecond, window: 16 << 20, perLink: 4e9, crowding: 0.01},
	{name: "country", rate: 1e9, rtt: 25 * time.Millisecond, window: 16 << 20, crowding: 0.02},
	{name: "ocean", rate: 1e9, rtt: 100 * time.Millisecond, window: 4 << 20, crowding: 0.02},
	{name: "ocean, tuned", rate: 10e9, rtt: 100 * time.Millisecond, window: 128 << 20, perLink: 4e9, crowding: 0.01},
	{name: "lossy", rate: 1e9, rtt: 50 * time.Millisecond, loss: 1e-4, window: 16 << 20, crowding: 0.03},
	{name: "very lossy", rate: 1e9, rtt: 100 * time.Millisecond, loss: 1e-3, window: 16 << 20},
	{name: "lossy, BBR", rate: 1e9, rtt: 100 * time.Millisecond, loss: 1e-2, window: 64 << 20, lossless: true, crowding: 0.05},
	{name: "small buffers", rate: 1e9, rtt: 80 * time.Millisecond, window: 1 << 20, crowding: 0.02},
	{name: "slow", rate: 100e6, rtt: 40 * time.Millisecond, window: 4 << 20, crowding: 0.05},
}

// policy says which PCP to use from now on.
type policy func(time.Time, mover.Progress) mover.PCP

// run is a transfer of one large file on a path, in virtual time.
type run struct {
	path
	noise *rand.Rand
	sigma float64 // of the noise of a second; the next one shares half of it

	now     time.Duration
	pcp     mover.PCP
	rate    float64 // of the connections there are
	wobble  float64
	told    mover.Progress
	changes []time.Duration
	asked   []mover.PCP // at these
}

func newRun(p path, start mover.PCP, seed uint64, sigma float64) *run {
	return &run{path: p, pcp: start, noise: rand.New(rand.NewPCG(seed, 1)), sigma: sigma, told: mover.Progress{Way: mover.Way{Path: mover.Path{Since: epoch, RTT: p.rtt}}}}
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// until goes on until the run has lasted d, and returns the mean rate meanwhile.
func (r *run) until(d time.Duration, decide policy) float64 {
	const tick = 100 * time.Millisecond
	began, had := r.now, r.told.Moved
	for ; r.now < d; r.now += tick {
		if r.now%time.Second == 0 {
			r.wobble = 0.5*r.wobble + r.sigma*math.Sqrt(0.75)*r.noise.NormFloat64()
			r.told.Way.PCP, r.told.Way.Lanes = r.pcp, r.pcp.Parallelism
			if p := decide(epoch.Add(r.now), r.told); p != r.pcp {
				if fewer := float64(p.Parallelism) / float64(r.pcp.Parallelism); fewer < 1 {
					r.rate *= fewer
				}
				r.pcp, r.changes, r.asked = p, append(r.changes, r.now), append(r.asked, p)
			}
		}
		target, loss := r.steady(r.pcp)
		r.rate = min(r.rate, target) // windows of new connections open in some round trips
		r.rate += (target - r.rate) * (1 - math.Exp(-tick.Seconds()/(0.1+4*r.rtt.Seconds())))
		bytes := r.rate / 8 * tick.Seconds() * math.Exp(r.wobble)
		r.told.Moved += int64(bytes)
		r.told.Way.Path.Sent += int64(bytes / (1 - loss))
		r.told.Way.Path.Retransmits += int64(bytes/(1-loss)) - int64(bytes)
	}
	return float64(r.told.Moved-had) * 8 / (r.now - began).Seconds()
}

// corrected is the policy of a Corrector.
func corrected(c *Corrector) policy {
	return func(at time.Time, told mover.Progress) mover.PCP {
		p, _ := c.Correct(at, told)
		return p
	}
}

// fixed is the policy of whoever sets a PCP once.
func fixed(p mover.PCP) func() policy {
	return func() policy { return func(time.Time, mover.Progress) mover.PCP { return p } }
}

// globus is what Globus transfers files of more than 250 MB with (Allen et al., CACM
// 55(2), 2012, as given by Yildirim, Arslan, Kim and Kosar, TCC 4(1), 2016).
var globus = mover.PCP{Pipelining: 5, Concurrency: 2, Parallelism: 8}

// ladderOfFTS is FTS3's optimiser: from two on, one connection more at each look, which is
// once a minute, while the smoothed throughput does not fall, else one less. It leaves
// pipelining to the engine.
func ladderOfFTS() policy {
	const every, weight = time.Minute, 0.1
	var ema, before, moved float64
	var last time.Time
	p := mover.PCP{Pipelining: 8, Concurrency: 1, Parallelism: 2}
	return func(at time.Time, told mover.Progress) mover.PCP {
		if last.IsZero() {
			last = at
		}
		took := at.Sub(last)
		if took < every {
			return p
		}
		rate := (float64(told.Moved) - moved) / took.Seconds()
		if ema == 0 {
			ema = rate
		}
		ema = weight*rate + (1-weight)*ema
		if ema >= before {
			p.Parallelism = min(p.Parallelism+1, mover.MaxParallelism)
		} else {
			p.Parallelism = max(p.Parallelism-1, 2)
		}
		before, moved, last = ema, float64(told.Moved), at
		return p
	}
}
