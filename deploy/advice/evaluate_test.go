package advice

import (
	"fmt"
	"math"
	"slices"

	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/pcp"
)

// choice is what one method chose in one condition of a path that it had not seen.
type choice struct {
	method string
	path   int
	tuning.Observation
	share float64 // of the best throughput of the grid
}

// result is what an evaluation found.
type result struct {
	name    string
	file    string // of the report, without its ending
	paths   [][]*conditions
	rows    int
	methods []method
	choices []choice

	// Of the fuzzy model, over all cells of all paths when they were held out.
	predicted, observed []float64 // bits per second
	bandwidth           []float64 // that either is a share of
	inside              int       // observed ones within their intervals
	confidence          float64   // that is promised of that
	models              []pcp.Quality
}

// evaluate holds out the paths of each fold in turn; as many folds as paths: each path alone.
func evaluate(name, file string, paths [][]*conditions, folds int) (*result, error) {
	r := &result{name: name, file: file, paths: paths, confidence: pcp.Confidence, rows: len(observations(paths))}
	r.methods = append([]method{{name: ours, about: "the fuzzy model's PCP"}}, methods()...)
	folds = min(folds, len(paths))
	for f := range folds {
		var held, rest [][]*conditions
		var numbers []int
		for i, path := range paths {
			if i%folds == f {
				held, numbers = append(held, path), append(numbers, i)
			} else {
				rest = append(rest, path)
			}
		}
		if err := r.fold(numbers, held, observations(rest)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *result) fold(numbers []int, held [][]*conditions, history []tuning.Observation) error {
	choose := func(method string, number int, c *conditions, x cell) {
		r.choices = append(r.choices, choice{method, number, tuning.Observation{Condition: c.Condition, PCP: x.pcp, Throughput: x.truth}, x.truth / c.best})
	}
	model, err := pcp.Fit(history)
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	r.models = append(r.models, model.Quality())
	for i, path := range held {
		for _, c := range path {
			best, _ := model.Best(c.Condition, c.pcps())
			choose(ours, numbers[i], c, c.nearest(best))
			for _, x := range c.cells {
				p := model.Predict(c.Condition, x.pcp)
				r.predicted, r.observed, r.bandwidth = append(r.predicted, p.Throughput), append(r.observed, x.observed), append(r.bandwidth, c.Bandwidth)
				if p.Low <= x.observed && x.observed <= p.High {
					r.inside++
				}
			}
		}
	}
	for _, m := range r.methods[1:] {
		chosen := m.learn(history)
		for i, path := range held {
			for _, c := range path {
				choose(m.name, numbers[i], c, c.nearest(chosen(c)))
			}
		}
	}
	return nil
}

// shares are those of one method, in ascending order.
func (r *result) shares(method string) (all []float64) {
	for _, c := range r.choices {
		if c.method == method {
			all = append(all, c.share)
		}
	}
	slices.Sort(all)
	return all
}

// quantile of values in ascending order.
func quantile(sorted []float64, q float64) float64 { return sorted[int(q*float64(len(sorted)-1))] }

// hits is the share of values that are good enough.
func hits(sorted []float64, enough float64) float64 {
	n := 0
	for _, v := range sorted {
		if v >= enough {
			n++
		}
	}
	return float64(n) / float64(len(sorted))
}

// r2 is the coefficient of determination of some function of what was observed.
func (r *result) r2(of func(rate, bandwidth float64) float64) float64 {
	mean := 0.0
	for i, o := range r.observed {
		mean += of(o, r.bandwidth[i]) / float64(len(r.observed))
	}
	var off, all float64
	for i, o := range r.observed {
		y := of(o, r.bandwidth[i])
		e := y - of(r.predicted[i], r.bandwidth[i])
		off += e * e
		all += (y - mean) * (y - mean)
	}
	return 1 - off/all
}

func logarithm(rate, _ float64) float64      { return math.Log2(rate) }
func utilisation(rate, line float64) float64 { return rate / line }
func (r *result) coverage() float64          { return float64(r.inside) / float64(len(r.observed)) }

func (r *result) mape() float64 {
	sum := 0.0
	for i, o := range r.observed {
		sum += math.Abs(r.predicted[i]/o - 1)
	}
	return sum / float64(len(r.observed))
}
