package nfssweep

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

const (
	within     = 0.95 // of the best rate is what the advice has at least,
	confidence = 0.95 // with this probability
	// chance is the probability that a size must have where none has confidence. The
	// largest one is taken, for few servers are slower with a larger size.
	chance = 0.3
	// wide is how many sizes make a plateau, which hides no peak.
	wide      = 3
	resamples = 500
)

// tolerance is within, as a difference of logarithms.
var tolerance = math.Log(within)

// estimate is what is known of one curve: logarithms of rates, so that a share of
// the best is a difference.
type estimate struct {
	corner Corner
	points []level // ascending sizes, those that were measured
}

type level struct {
	size  int64
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

// knee is the index of the smallest size that is surely within 5 % of the best. Where
// the noise leaves no size that sure, it is the best one, or the largest that has a
// fair chance.
func (e estimate) knee() (i int, sure bool) {
	i = slices.IndexFunc(e.points, func(p level) bool { return p.sure >= confidence })
	if i >= 0 {
		return i, true
	}
	i = e.best()
	for k := i; k < len(e.points); k++ {
		if e.points[k].sure >= chance {
			i = k
		}
	}
	return i, false
}

// next returns the sizes that a search measures next, the most telling first: none
// when the curve is settled.
func (e estimate) next(sizes []int64) []int64 {
	best, p := e.best(), e.points
	at := func(i int) int { return slices.Index(sizes, p[i].size) }
	edge, plateau := 0, 0 // its smallest size, and how many it has
	for i, l := range slices.Backward(p) {
		if l.mid >= p[best].mid+tolerance {
			edge = i
			plateau++
		}
	}

	// The knee may lie in the gap below the plateau; and where the plateau is narrow,
	// a peak may lie in the gaps around the best.
	below := -1
	if edge > 0 {
		below = at(edge - 1)
	}
	if gap := at(edge) - below; gap > 1 {
		return []int64{sizes[below+gap/2], p[best].size}
	}
	for i := max(best-1, 0); plateau < wide && i < min(best+1, len(p)-1); i++ {
		if gap := at(i+1) - at(i); gap > 1 {
			return []int64{sizes[at(i)+gap/2], p[best].size}
		}
	}

	// Every size that counts has been seen: now those in doubt, the least known first.
	knee, sure := e.knee()
	doubt := -1
	for i, l := range p {
		if sure && (i > knee || i == knee && len(l.rates) > 1) {
			break
		}
		if i != best && l.sure >= 1-confidence && (doubt < 0 || len(l.rates) < len(p[doubt].rates)) {
			doubt = i
		}
	}
	switch {
	case doubt >= 0:
		return []int64{p[doubt].size, p[best].size}
	case sure && len(p[best].rates) > 1:
		return nil
	}
	return []int64{p[best].size}
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
		k, found := slices.BinarySearchFunc(e.points, o.Size, func(p level, size int64) int { return cmp.Compare(p.size, size) })
		if !found {
			e.points = slices.Insert(e.points, k, level{size: o.Size})
		}
		e.points[k].rates = append(e.points[k].rates, math.Log(o.Rate))
	}
	for _, e := range all {
		for i := range e.points {
			e.points[i].mid = median(e.points[i].rates)
		}
		e.judge()
	}
	return all
}

// judge sets sure of each point. That a size is within 5 % of all others is claimed
// with the confidence of the least certain of the claims for one other (an
// intersection-union test: Berger, Technometrics 24, 1982). Each comes from a
// bootstrap of the medians; the second time with the medians of the sizes that may
// be on the plateau shrunk towards their mean, or else the luckiest of many equal
// sizes would pass for the best.
func (e estimate) judge() {
	noise := e.noise()
	if len(noise) == 0 { // nothing was measured twice: nothing is sure
		return
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same figures mean the same every time
	mids := make([]float64, len(e.points))
	errs := make([][]float64, len(e.points)) // of the medians
	for i, p := range e.points {
		mids[i] = p.mid
		errs[i] = make([]float64, resamples)
		again := make([]float64, len(p.rates))
		for d := range errs[i] {
			for k := range again {
				again[k] = noise[random.IntN(len(noise))]
			}
			errs[i][d] = median(again)
		}
	}
	e.compare(mids, errs)
	shrink(e.plausible(), mids, errs)
	e.compare(mids, errs)
}

// noise returns by how much single measurements are off: residuals, pooled over the
// curve and widened for the means that they are differences from (Davison and Hinkley,
// Bootstrap Methods, 1997, 3.3), and for being few, as Student's t is wider than the
// normal distribution at 95 % (Abramowitz and Stegun, table 26.10, and from there on the
// first term of 26.7.5).
func (e estimate) noise() []float64 {
	var noise []float64
	free := 0 // degrees of freedom
	for _, p := range e.points {
		n := float64(len(p.rates))
		if n > 1 {
			free += len(p.rates) - 1
			for _, r := range p.rates {
				noise = append(noise, (r-mean(p.rates))*math.Sqrt(n/(n-1)))
			}
		}
	}
	wider := 1 + 0.926/float64(free)
	if free < len(student) {
		wider = student[free] / student[0]
	}
	for i := range noise {
		noise[i] *= wider
	}
	return noise
}

// student are the 95 % points of Student's t by degrees of freedom, those of infinitely
// many first.
var student = [...]float64{1.645, 6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812}

// compare sets sure of each point by its median and the errors that it may have.
func (e estimate) compare(mids []float64, errs [][]float64) {
	for i := range e.points {
		least := resamples
		for j := range e.points {
			n := 0
			for d := range resamples {
				if mids[i]-errs[i][d] >= mids[j]-errs[j][d]+tolerance {
					n++
				}
			}
			least = min(least, n)
		}
		e.points[i].sure = float64(least) / resamples
	}
}

// plausible lists the points that are not surely below 95 % of another one.
func (e estimate) plausible() []int {
	var some []int
	for i, p := range e.points {
		if p.sure >= 1-confidence {
			some = append(some, i)
		}
	}
	return some
}

// shrink moves the medians of some points towards their mean, the more so the less
// they differ beyond their errors, which become smaller by that, as the best linear
// predictor of random effects does (Robinson, Statistical Science 6, 1991). For the
// variance of the true values it takes that of the medians, which is larger: so it
// shrinks too little rather than too much, and what is called sure stays so.
func shrink(some []int, mids []float64, errs [][]float64) {
	k := float64(len(some))
	if k <= wide { // it gains too little
		return
	}
	var values []float64
	for _, i := range some {
		values = append(values, mids[i])
	}
	centre, between := mean(values), variance(values)*k/(k-1)
	for _, i := range some {
		keep := 1.0 // of the distance to the centre
		if own := variance(errs[i]); own > 0 {
			keep = between / (between + own)
		}
		mids[i] = centre + keep*(mids[i]-centre)
		for d := range errs[i] {
			errs[i][d] *= math.Sqrt(keep + (1-keep)/k)
		}
	}
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

func mean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

func variance(values []float64) float64 {
	centre, sum := mean(values), 0.0
	for _, v := range values {
		sum += (v - centre) * (v - centre)
	}
	return sum / float64(len(values))
}
