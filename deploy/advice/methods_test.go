package advice

import (
	"math"
	"math/rand/v2"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/pcp"
)

// method chooses a PCP for a condition. Only learn sees history, of other paths.
type method struct {
	name, about string
	learn       func(history []tuning.Observation) func(c *conditions) mover.PCP
}

// fixed is a method that learns nothing.
func fixed(choose func(c *conditions) mover.PCP) func([]tuning.Observation) func(*conditions) mover.PCP {
	return func([]tuning.Observation) func(*conditions) mover.PCP { return choose }
}

func matching(weights func([]tuning.Observation) pcp.Weights) func([]tuning.Observation) func(*conditions) mover.PCP {
	return func(history []tuning.Observation) func(*conditions) mover.PCP {
		m := pcp.NewMatcher(history, weights(history))
		return func(c *conditions) mover.PCP {
			best, _, _ := m.Match(c.Condition)
			return best.PCP
		}
	}
}

const ours = "TSK"

// methods are all but ours, which needs the model for more than its choice.
func methods() []method {
	random := rand.New(rand.NewPCG(3, 4))
	most := mover.PCP{Pipelining: mover.MaxPipelining, Concurrency: mover.MaxConcurrency, Parallelism: mover.MaxParallelism}
	return []method{
		{"nearest, fitted", "the most similar condition of history, weights fitted by cross-validation", matching(pcp.FitWeights)},
		{"nearest", "the same with the paper's algorithm as it stands, w = 0.5", matching(func([]tuning.Observation) pcp.Weights { return pcp.Plain() })},
		{"heuristics", "published rules by BDP and file size (Arslan, Ross and Kosar, Euro-Par 2013)", fixed(func(c *conditions) mover.PCP { return pcp.Heuristics(c.Condition, most) })},
		{"FTS3 ladder", "FTS3's optimizer: one transfer more or less at a time by the moving average of the throughput; it measures the path itself, for 500 rounds, which cost nothing here", fixed(ladder)},
		{"Globus", "by file size, as the Globus service was described (Allen et al., CACM 55(2), 2012)", fixed(globus)},
		{"globus-url-copy", "1/1/1, without options", fixed(func(*conditions) mover.PCP { return mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1} })},
		{"4/4/4", "always", fixed(func(*conditions) mover.PCP { return mover.PCP{Pipelining: 4, Concurrency: 4, Parallelism: 4} })},
		{"random", "any of the grid", fixed(func(c *conditions) mover.PCP { return c.cells[random.IntN(len(c.cells))].pcp })},
	}
}

// globus: file sizes below 50 MB, above 250 MB, and between.
func globus(c *conditions) mover.PCP {
	switch {
	case c.Size < 50e6:
		return mover.PCP{Pipelining: 20, Concurrency: 2, Parallelism: 2}
	case c.Size > 250e6:
		return mover.PCP{Pipelining: 5, Concurrency: 2, Parallelism: 8}
	}
	return mover.PCP{Pipelining: 10, Concurrency: 2, Parallelism: 4}
}

// ladder is FTS3's optimizer where every transfer succeeds
// (src/server/services/optimizer/OptimizerConnections.cpp): it begins with 2 active
// transfers of one stream, and adds one while the exponential moving average of the
// throughput, with alpha 0.1, does not fall; where it falls, one is taken away. What the
// grid has between two numbers of transfers is interpolated, with the noise of a measurement.
func ladder(c *conditions) mover.PCP {
	random := rand.New(rand.NewPCG(5, 6))
	at := func(active float64) float64 {
		below, above := c.nearest(mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}), cell{}
		for _, x := range c.cells {
			if x.pcp.Pipelining != below.pcp.Pipelining || x.pcp.Parallelism != below.pcp.Parallelism {
				continue
			}
			n := float64(x.pcp.Concurrency)
			if n <= active && n >= float64(below.pcp.Concurrency) {
				below = x
			}
			if n > active && (above.truth == 0 || n < float64(above.pcp.Concurrency)) {
				above = x
			}
		}
		rate := below.truth
		if above.truth > 0 {
			low, high := float64(below.pcp.Concurrency), float64(above.pcp.Concurrency)
			rate += (above.truth - below.truth) * max(0, active-low) / (high - low)
		}
		return rate * math.Exp(noise*random.NormFloat64())
	}
	active, most := 2.0, float64(c.most.Concurrency)
	average := at(active)
	sum := 0.0
	const rounds, settled = 500, 100
	for i := range rounds {
		next := 0.1*at(active) + 0.9*average
		if next < average {
			active--
		} else {
			active++
		}
		active = min(max(active, 2), most)
		average = next
		if i >= rounds-settled {
			sum += active
		}
	}
	return mover.PCP{Pipelining: 1, Concurrency: int(math.Round(sum / settled)), Parallelism: 1}
}
