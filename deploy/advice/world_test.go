package advice

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/simulate"
)

// noise is the deviation of what is observed, as a share of what is true.
const noise = 0.05

// cell is one PCP in one condition: what would be, and what was observed.
type cell struct {
	pcp             mover.PCP
	truth, observed float64 // bits per second
}

// conditions is one condition with the grid of its PCPs.
type conditions struct {
	tuning.Condition
	cells []cell
	best  float64   // of truth
	most  mover.PCP // of the grid
}

func newConditions(c tuning.Condition, cells []cell) *conditions {
	all := &conditions{Condition: c, cells: cells}
	for _, x := range cells {
		all.best = max(all.best, x.truth)
		all.most = mover.PCP{
			Pipelining:  max(all.most.Pipelining, x.pcp.Pipelining),
			Concurrency: max(all.most.Concurrency, x.pcp.Concurrency),
			Parallelism: max(all.most.Parallelism, x.pcp.Parallelism),
		}
	}
	return all
}

// nearest returns the cell of the grid that is fewest doublings away.
func (c *conditions) nearest(p mover.PCP) cell {
	octaves := func(a, b int) float64 { return math.Abs(math.Log2(float64(a) / float64(b))) }
	at, least := cell{}, math.Inf(1)
	for _, x := range c.cells {
		apart := octaves(x.pcp.Pipelining, p.Pipelining) + octaves(x.pcp.Concurrency, p.Concurrency) + octaves(x.pcp.Parallelism, p.Parallelism)
		if apart < least {
			at, least = x, apart
		}
	}
	return at
}

func (c *conditions) pcps() (all []mover.PCP) {
	for _, x := range c.cells {
		all = append(all, x.pcp)
	}
	return all
}

func observations(paths [][]*conditions) (all []tuning.Observation) {
	for _, path := range paths {
		for _, c := range path {
			for _, x := range c.cells {
				all = append(all, tuning.Observation{Condition: c.Condition, PCP: x.pcp, Throughput: x.observed})
			}
		}
	}
	return all
}

// grid are powers of step, up to mover's limits.
func grid(step int) (all []mover.PCP) {
	for pipelining := 1; pipelining <= mover.MaxPipelining; pipelining *= step {
		for concurrency := 1; concurrency <= mover.MaxConcurrency; concurrency *= step {
			for parallelism := 1; parallelism <= mover.MaxParallelism; parallelism *= step {
				all = append(all, mover.PCP{Pipelining: pipelining, Concurrency: concurrency, Parallelism: parallelism})
			}
		}
	}
	return all
}

// simulated returns so many paths with so many loads each. Bandwidths, delays, buffers,
// losses and loads are spread evenly over their logarithms.
func simulated(seed uint64, paths, loads int, pcps []mover.PCP) (all [][]*conditions) {
	random := rand.New(rand.NewPCG(seed, 1))
	between := func(low, high float64) float64 { return low * math.Pow(high/low, random.Float64()) }
	host := simulate.Ordinary()
	for range paths {
		p := tuning.Path{
			Bandwidth:  between(100e6, 100e9),
			RTT:        time.Duration(between(0.2e6, 300e6)),
			Buffer:     int64(between(2<<20, 512<<20)),
			Congestion: []string{"cubic", "cubic", "cubic", "htcp", "reno", "bbr"}[random.IntN(6)],
		}
		if random.IntN(3) > 0 {
			p.Loss = between(1e-7, 1e-3)
		}
		var path []*conditions
		for range loads {
			l := tuning.Load{Size: int64(between(100e3, 20e9)), Files: int(between(1, 5000))}
			l.Files = max(1, min(l.Files, int(20e12/float64(l.Size))))
			c := tuning.Condition{Path: p, Load: l}
			var cells []cell
			for _, pcp := range pcps {
				truth := simulate.Throughput(host, c, pcp)
				cells = append(cells, cell{pcp, truth, truth * math.Exp(noise*random.NormFloat64())})
			}
			path = append(path, newConditions(c, cells))
		}
		all = append(all, path)
	}
	return all
}
