// Package pcp predicts the pipelining, concurrency and parallelism with which a transfer
// is fastest, from what transfers before it achieved. It is arithmetic alone: history
// comes in, advice goes out.
//
// The ways are those of a paper on TSK fuzzy models of GridFTP's PCP (its abstract begins
// "The time to address the exabytes of data has come"): the [Matcher] finds the most
// similar condition of history and takes what was best there; the [Model] is a fuzzy model
// of the throughput. To them come what the paper leaves to future work, weights that are
// fitted ([FitWeights]); a throughput for any PCP, with an interval, and so the PCP
// that has the highest; and published rules ([Heuristics]) where there is no history.
package pcp

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// Advisor advises by the best method that history is enough for: the fuzzy model, the most
// similar condition, published rules. It does not change, and may be asked by several
// goroutines at once.
type Advisor struct {
	most       mover.PCP
	candidates []mover.PCP
	model      *Model
	noModel    error                // why there is none
	rows       []tuning.Observation // typical ones, for what follows
	matcher    *Matcher
}

// NewAdvisor makes one of the history of one engine, which takes no PCP of more than most;
// where that is zero, than mover's limits. It takes seconds where history is long.
// Observations that are not valid are left out.
func NewAdvisor(history []tuning.Observation, most mover.PCP) *Advisor {
	a := &Advisor{most: mover.PCP{Pipelining: mover.MaxPipelining, Concurrency: mover.MaxConcurrency, Parallelism: mover.MaxParallelism}.With(most)}
	a.model, a.noModel = Fit(history)
	var like []tuning.Observation
	for _, o := range history {
		if o.Validate() == nil {
			o.Condition = rounded(o.Condition)
			like = append(like, o)
		}
	}
	a.candidates = candidates(span(like, a.most))
	a.rows = typical(like)
	a.matcher = NewMatcher(a.rows, FitWeights(a.rows))
	return a
}

// Advise returns the PCP for a condition; an error says what is wrong with the condition.
// What it costs hardly depends on how long history is.
func (a *Advisor) Advise(c tuning.Condition) (tuning.Advice, error) {
	if err := c.Validate(); err != nil {
		return tuning.Advice{}, fmt.Errorf("advise a PCP: %w", err)
	}
	why := a.silent(c)
	if why == "" {
		best, p := a.model.Best(c, a.candidates)
		return tuning.Advice{PCP: best, Throughput: p.Throughput, Low: p.Low, High: p.High, By: tuning.TSK, Why: a.model.quality.String()}, nil
	}
	if best, _, ok := a.matcher.Match(rounded(c)); ok && alike(best.Condition, c) {
		return tuning.Advice{PCP: a.within(best.PCP), By: tuning.Nearest, Why: why + mostLike(best.Condition)}, nil
	}
	return tuning.Advice{PCP: Heuristics(c, a.most), By: tuning.Heuristic, Why: why}, nil
}

// silent is why the model says nothing of a condition; empty: it does.
func (a *Advisor) silent(c tuning.Condition) string {
	if a.model == nil {
		return a.noModel.Error()
	}
	if unlike, ok := a.model.Knows(c); !ok {
		return "history has nothing like this " + unlike
	}
	return ""
}

// within is as much of p as is allowed.
func (a *Advisor) within(p mover.PCP) mover.PCP {
	return within(float64(p.Pipelining), float64(p.Concurrency), float64(p.Parallelism), a.most)
}

// candidates are the powers of two between two PCPs, and these.
func candidates(low, high mover.PCP) []mover.PCP {
	steps := func(low, high int) (all []int) {
		all = append(all, low)
		for n := 1; n < high; n *= 2 {
			if n > low {
				all = append(all, n)
			}
		}
		if high > low {
			all = append(all, high)
		}
		return all
	}
	var all []mover.PCP
	for _, pipelining := range steps(low.Pipelining, high.Pipelining) {
		for _, concurrency := range steps(low.Concurrency, high.Concurrency) {
			for _, parallelism := range steps(low.Parallelism, high.Parallelism) {
				all = append(all, mover.PCP{Pipelining: pipelining, Concurrency: concurrency, Parallelism: parallelism})
			}
		}
	}
	return all
}

// span returns the least and the greatest of each number that history has seen, none beyond
// most: of what is further no model knows anything.
func span(history []tuning.Observation, most mover.PCP) (low, high mover.PCP) {
	low = most
	for _, o := range history {
		p := within(float64(o.PCP.Pipelining), float64(o.PCP.Concurrency), float64(o.PCP.Parallelism), most)
		low = mover.PCP{Pipelining: min(low.Pipelining, p.Pipelining), Concurrency: min(low.Concurrency, p.Concurrency), Parallelism: min(low.Parallelism, p.Parallelism)}
		high = mover.PCP{Pipelining: max(high.Pipelining, p.Pipelining), Concurrency: max(high.Concurrency, p.Concurrency), Parallelism: max(high.Parallelism, p.Parallelism)}
	}
	return low, high
}

// typical makes one row of those with one PCP in one condition, with the median of their
// throughputs: what was fast once by chance is not what is fast.
func typical(rows []tuning.Observation) []tuning.Observation {
	type key struct {
		condition [factors]float64
		pcp       mover.PCP
	}
	of := map[key][]tuning.Observation{}
	var order []key
	for _, o := range rows {
		k := key{factorsOf(o.Condition), o.PCP}
		if of[k] == nil {
			order = append(order, k)
		}
		of[k] = append(of[k], o)
	}
	all := make([]tuning.Observation, len(order))
	for i, k := range order {
		same := of[k]
		slices.SortStableFunc(same, func(a, b tuning.Observation) int { return cmp.Compare(a.Throughput, b.Throughput) })
		all[i] = same[(len(same)-1)/2]
	}
	return all
}

// rounded makes conditions equal that are the same as far as measuring tells: to a
// quarter of an octave, 19 %. Loss, which is none of the factors and another one in each
// transfer, is left out.
func rounded(c tuning.Condition) tuning.Condition {
	quarter := func(v float64) float64 { return math.Exp2(math.Round(4*math.Log2(v)) / 4) }
	c.Size = int64(math.Ceil(quarter(float64(c.Size))))
	c.Files = int(math.Ceil(quarter(float64(c.Files))))
	c.Bandwidth = quarter(c.Bandwidth)
	c.RTT = time.Duration(math.Ceil(quarter(float64(c.RTT))))
	c.Buffer = int64(math.Ceil(quarter(float64(c.Buffer))))
	c.Loss = 0
	return c
}

// alike reports whether no factor of one condition is more than four times the other's.
func alike(a, b tuning.Condition) bool {
	of := factorsOf(b)
	for f, v := range factorsOf(a) {
		if math.Abs(math.Log2(v/of[f])) > 2 {
			return false
		}
	}
	return true
}

// describe tells a condition that rounded has returned.
func describe(c tuning.Condition) string {
	files := "files"
	if c.Files == 1 {
		files = "file"
	}
	return fmt.Sprintf("about %d %s of %s over %s and %s", c.Files, files, mover.Size(c.Size), mover.Rate(c.Bandwidth).Brief(), c.RTT.Round(time.Microsecond))
}
