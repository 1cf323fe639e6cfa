package nfssweep

import (
	"cmp"
	"math"
	"slices"
)

const (
	within     = 0.95 // of the best rate is what the advice has at least,
	confidence = 0.95 // with this probability
	// chance is the probability that a size must have where none has confidence. The
	// largest one is taken, for few servers are slower with a larger size, but none that
	// was seen to be: its median is within twice 5 % of the best.
	chance = 0.4
	// wide is how many sizes make a plateau, which hides no peak.
	wide = 3
	// settled is how often a search measures the knee and the best size at least: who looks
	// after each round, and stops once it is sure, is sure too soon by chance.
	settled = 3
	tiny    = 1e-6 // noise is not less: rates may be equal to the last digit
)

// tolerance is within, as a difference of logarithms.
var tolerance = math.Log(within)

// estimate is what is known of one curve: logarithms of rates, so that a share of
// the best is a difference.
type estimate struct {
	corner Corner
	points []level // ascending sizes in force, those that were measured
}

type level struct {
	size  int64
	asked []int64   // the sizes that were granted as this one, ascending
	rates []float64 // natural logarithms of bits per second
	mid   float64   // their median
	// sure is the probability that the true rate is within 5 % of that of every
	// other size.
	sure float64
}

func (e estimate) measured() (n int) {
	for _, p := range e.points {
		n += len(p.rates)
	}
	return n
}

// best is the index of the highest median.
func (e estimate) best() int {
	b := 0
	for i, p := range e.points {
		if p.mid > e.points[b].mid {
			b = i
		}
	}
	return b
}

// knee is the index of the smallest size that is surely within 5 % of the best. It goes
// down from the best one and ends before the first that is not sure, so that many sizes
// are not many chances to be wrong (a test in a fixed sequence: Maurer, Hothorn and
// Lehmacher 1995). Where the noise leaves not even the best one sure, it is that, or the
// largest that has a fair chance. Nothing is sure while a size that may be a peak was not
// measured.
func (e estimate) knee(sizes []int64) (i int, sure bool) {
	i = e.best()
	if len(e.points) == 1 { // nothing to compare it with
		return i, false
	}
	if _, some := e.hidden(sizes); !some && e.points[i].sure >= confidence {
		for i > 0 && e.points[i-1].sure >= confidence {
			i--
		}
		return i, true
	}
	best := e.points[i].mid
	for k := i; k < len(e.points); k++ {
		if e.points[k].sure >= chance && e.points[k].mid >= best+2*tolerance {
			i = k
		}
	}
	return i, false
}

// plateau returns the index of its smallest size, and how many were measured on it.
func (e estimate) plateau() (edge, width int) {
	best := e.best()
	for i, p := range slices.Backward(e.points) {
		if p.mid >= e.points[best].mid+tolerance {
			edge = i
			width++
		}
	}
	return edge, width
}

// between returns the middle one of the sizes that may be tried between those of two
// neighbouring points; of the first and the one before it: below the first.
func (e estimate) between(sizes []int64, i int) (size int64, some bool) {
	last := -1
	if i > 0 {
		last = slices.Index(sizes, e.points[i-1].asked[len(e.points[i-1].asked)-1])
	}
	gap := slices.Index(sizes, e.points[i].asked[0]) - last
	if gap <= 1 {
		return 0, false
	}
	return sizes[last+gap/2], true
}

// hidden returns a size that was not measured and may be a peak: beside the best one of a
// plateau that is narrow.
func (e estimate) hidden(sizes []int64) (size int64, some bool) {
	if _, width := e.plateau(); width >= wide {
		return 0, false
	}
	best := e.best()
	for i := min(best+1, len(e.points)-1); i >= best; i-- {
		if size, some := e.between(sizes, i); some {
			return size, true
		}
	}
	return 0, false
}

// next returns the sizes that a search measures next, the most telling first: none
// when the curve is settled.
func (e estimate) next(sizes []int64) []int64 {
	best, p := e.best(), e.points
	if size, some := e.hidden(sizes); some {
		return []int64{size, p[best].asked[0]}
	}
	edge, _ := e.plateau()
	if size, some := e.between(sizes, edge); some { // the knee may be there
		return []int64{size, p[best].asked[0]}
	}

	// Every size that counts has been seen: now those in doubt, the least known first.
	knee, sure := e.knee(sizes)
	doubt := -1
	for i, l := range p {
		if sure && (i > knee || i == knee && len(l.rates) >= settled) {
			break
		}
		if i != best && l.sure >= 1-confidence && (doubt < 0 || len(l.rates) < len(p[doubt].rates)) {
			doubt = i
		}
	}
	switch {
	case doubt >= 0:
		return []int64{p[doubt].asked[0], p[best].asked[0]}
	case sure && len(p[best].rates) >= settled:
		return nil
	}
	return []int64{p[best].asked[0]}
}

// estimates returns one estimate for each corner that was observed, in the order of
// first sight.
func estimates(seen []Observation) []estimate {
	var all []estimate
	for _, o := range seen {
		at := slices.IndexFunc(all, func(e estimate) bool { return e.corner == o.Corner })
		if at < 0 {
			at, all = len(all), append(all, estimate{corner: o.Corner})
		}
		e := &all[at]
		k, found := slices.BinarySearchFunc(e.points, o.inForce(), func(p level, size int64) int { return cmp.Compare(p.size, size) })
		if !found {
			e.points = slices.Insert(e.points, k, level{size: o.inForce()})
		}
		p := &e.points[k]
		if k, found := slices.BinarySearch(p.asked, o.Size); !found {
			p.asked = slices.Insert(p.asked, k, o.Size)
		}
		p.rates = append(p.rates, math.Log(o.Rate))
	}
	for _, e := range all {
		for i := range e.points {
			e.points[i].mid = median(slices.Clone(e.points[i].rates))
		}
		e.judge()
	}
	return all
}

// judge sets sure of each point: that a size is within 5 % of all others is claimed
// with the confidence of the least certain of the claims for one other (an
// intersection-union test: Berger, Technometrics 24, 1982). Each of these is Student's
// t test of a difference of means, with the noise of all sizes pooled.
func (e estimate) judge() {
	var squares float64
	free := 0 // degrees of freedom
	means := make([]float64, len(e.points))
	for i, p := range e.points {
		means[i] = mean(p.rates)
		free += len(p.rates) - 1
		for _, r := range p.rates {
			squares += (r - means[i]) * (r - means[i])
		}
	}
	if free == 0 { // nothing was measured twice: nothing is sure
		return
	}
	noise := max(math.Sqrt(squares/float64(free)), tiny)
	for i, p := range e.points {
		e.points[i].sure = 1
		for j, other := range e.points {
			if i != j {
				off := noise * math.Sqrt(1/float64(len(p.rates))+1/float64(len(other.rates)))
				e.points[i].sure = min(e.points[i].sure, student((means[i]-means[j]-tolerance)/off, free))
			}
		}
	}
}

// student is the distribution function of Student's t (Abramowitz and Stegun, 26.7.3
// and 26.7.4).
func student(t float64, free int) float64 {
	angle := math.Atan(t / math.Sqrt(float64(free)))
	sin, cos := math.Sincos(angle)
	term := sin // of the series
	if free%2 == 1 {
		term *= cos
	}
	sum := 0.0
	for k := 2 + free%2; k <= free; k += 2 {
		sum += term
		term *= cos * cos * float64(k-1) / float64(k)
	}
	if free%2 == 1 {
		return 0.5 + (angle+sum)/math.Pi
	}
	return 0.5 + sum/2
}

// median sorts the values and returns the middle one, 0 of none.
func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return 0
	}
	slices.Sort(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// logs are the natural logarithms of the values.
func logs(values []float64) []float64 {
	all := make([]float64, len(values))
	for i, v := range values {
		all[i] = math.Log(v)
	}
	return all
}

func mean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
