package pcp

import (
	"math"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// part is a share of history that is held out, and the rest.
type part struct {
	seen []seen
	rest []tuning.Observation
}

// seen is what history knows of one condition.
type seen struct {
	condition tuning.Condition
	rows      []tuning.Observation
	best      float64 // throughput
}

// share returns the throughput of a PCP by that of the best one; of a PCP that was not
// seen in the condition, that of the one most similar to it.
func (s seen) share(p mover.PCP) float64 {
	nearest := s.rows[0]
	for _, o := range s.rows[1:] {
		if apart(o.PCP, p) < apart(nearest.PCP, p) {
			nearest = o
		}
	}
	return nearest.Throughput / s.best
}

// apart is how many doublings are between two PCPs.
func apart(a, b mover.PCP) float64 {
	octaves := func(a, b int) float64 { return math.Abs(math.Log2(float64(max(a, 1)) / float64(max(b, 1)))) }
	return octaves(a.Pipelining, b.Pipelining) + octaves(a.Concurrency, b.Concurrency) + octaves(a.Parallelism, b.Parallelism)
}

// byCondition gathers rows, in the order in which their conditions came.
func byCondition(rows []tuning.Observation) []seen {
	var all []seen
	at := map[tuning.Condition]int{}
	for _, o := range rows {
		i, known := at[o.Condition]
		if !known {
			i = len(all)
			at[o.Condition] = i
			all = append(all, seen{condition: o.Condition})
		}
		all[i].rows = append(all[i].rows, o)
		all[i].best = max(all[i].best, o.Throughput)
	}
	return all
}

// groups returns the number of each row's group, and how many groups there are, at most
// so many. Rows of one path are in one group, so that what is held out is of paths that
// the rest has not seen; where there are not three paths, rows of one condition are.
func groups(rows []tuning.Observation, most int) (of []int, n int) {
	number := func(key func(tuning.Observation) any) {
		known := map[any]int{}
		of = of[:0]
		for _, o := range rows {
			k := key(o)
			if _, ok := known[k]; !ok {
				known[k] = len(known)
			}
			of = append(of, known[k]%most)
		}
		n = min(len(known), most)
	}
	if number(func(o tuning.Observation) any { return similar(o.Path) }); n < 3 {
		number(func(o tuning.Observation) any { return o.Condition })
	}
	return of, n
}

// similar returns what paths have in common that are the same as far as measuring tells. A
// buffer is the hosts', or what the loss of the day leaves of it.
func similar(p tuning.Path) [2]int {
	half := func(v float64) int { return int(math.Round(2 * math.Log2(v))) }
	return [2]int{half(p.Bandwidth), half(p.RTT.Seconds())}
}

// holdOut parts history into as many as most parts; none if it cannot be parted.
func holdOut(rows []tuning.Observation, most int) []part {
	of, n := groups(rows, most)
	if n < 2 {
		return nil
	}
	parts := make([]part, n)
	held := make([][]tuning.Observation, n)
	for i, o := range rows {
		for g := range parts {
			if g == of[i] {
				held[g] = append(held[g], o)
			} else {
				parts[g].rest = append(parts[g].rest, o)
			}
		}
	}
	for g := range parts {
		parts[g].seen = byCondition(held[g])
	}
	return parts
}
