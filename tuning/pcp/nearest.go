package pcp

import (
	"math"
	"slices"

	"github.com/glance-dtn/glance-dtn/tuning"
)

// factors are what conditions are compared by: file size, number of files, bandwidth,
// round trip time and buffer size.
const factors = 5

func factorsOf(c tuning.Condition) [factors]float64 {
	return [factors]float64{float64(c.Size), float64(c.Files), c.Bandwidth, c.RTT.Seconds(), float64(c.Buffer)}
}

// Weights say how much each difference between two conditions counts.
type Weights struct {
	// Sum is the weight coefficient: with 1 the sum of all error rates counts, with 0 the
	// greatest of them.
	Sum float64
	// Factor is what each factor's error rate is multiplied with.
	Factor [factors]float64
	// Log has factors compared by their logarithms: 1 to 2 is as far as 10 to 20.
	Log bool
}

// Plain are the weights of the paper, which leaves the coefficient to be adjusted and
// names no number: the middle.
func Plain() Weights { return Weights{Sum: 0.5, Factor: [factors]float64{1, 1, 1, 1, 1}} }

// Matcher finds the condition of history that is most similar to one that is given, and
// so the PCP that was best in it. It is the algorithm of the paper that this package's
// comment names:
//
//  1. error = |factor of the row − factor that is given|, for each factor and row;
//  2. the greatest error of each factor, of all rows;
//  3. error rate = error / greatest error of its factor, so that scales do not matter;
//  4. SumER of a row = sum of its error rates;
//  5. MaxER of a row = the greatest of them;
//  6. final error rate = w·SumER + (1−w)·MaxER;
//  7. the row with the least final error rate is the most similar; of several, the first.
//
// The rows are those that the paper's preprocessing leaves: of each condition (equal in
// all five factors) the one with the highest throughput.
type Matcher struct {
	weights   Weights
	rows      []tuning.Observation
	at        [][factors]float64 // of each row
	low, high [factors]float64   // of all rows
	tree      tree
}

// NewMatcher returns a Matcher for history. It keeps what it needs of it.
func NewMatcher(history []tuning.Observation, w Weights) *Matcher {
	m := &Matcher{weights: w}
	best := map[[factors]float64]int{}
	for _, o := range history {
		f := factorsOf(o.Condition)
		i, seen := best[f]
		switch {
		case !seen:
			best[f] = len(m.rows)
			m.rows = append(m.rows, o)
			m.at = append(m.at, m.scaled(f))
		case o.Throughput > m.rows[i].Throughput:
			m.rows[i] = o
		}
	}
	for i, at := range m.at {
		for f, v := range at {
			if i == 0 || v < m.low[f] {
				m.low[f] = v
			}
			if i == 0 || v > m.high[f] {
				m.high[f] = v
			}
		}
	}
	m.tree = newTree(m.at)
	return m
}

func (m *Matcher) scaled(f [factors]float64) [factors]float64 {
	if m.weights.Log {
		for i := range f {
			f[i] = math.Log2(f[i])
		}
	}
	return f
}

// Conditions is how many different ones there are to be matched.
func (m *Matcher) Conditions() int { return len(m.rows) }

// Match returns the best observation of the most similar condition, and its final error
// rate: 0 where it is the same one. Without history there is none.
func (m *Matcher) Match(c tuning.Condition) (best tuning.Observation, errorRate float64, ok bool) {
	if len(m.rows) == 0 {
		return tuning.Observation{}, 0, false
	}
	given := m.scaled(factorsOf(c))
	row, rate := m.tree.nearest(m.errorRate(given), given)
	return m.rows[row], rate, true
}

// errorRate returns the function that gives the final error rate of a place. The greatest
// error of a factor is that of its lowest or highest row.
func (m *Matcher) errorRate(given [factors]float64) func(at *[factors]float64) float64 {
	var greatest [factors]float64
	for f, v := range given {
		greatest[f] = max(math.Abs(m.low[f]-v), math.Abs(m.high[f]-v))
	}
	return func(at *[factors]float64) float64 {
		var sum, most float64
		for f, v := range at {
			if greatest[f] == 0 { // every row is equal to what is given
				continue
			}
			rate := m.weights.Factor[f] * math.Abs(v-given[f]) / greatest[f]
			sum += rate
			most = max(most, rate)
		}
		return m.weights.Sum*sum + (1-m.weights.Sum)*most
	}
}

// FitWeights returns the weights with which the matches of conditions that were held out,
// path by path, have the highest share of the best throughput seen there (the objective
// function that the paper leaves to future work): whether logarithms are compared, the
// coefficient, and each factor's weight, one after the other until none helps. With less
// than two groups to hold out there is nothing to fit on, and they are the plain ones.
func FitWeights(history []tuning.Observation) Weights {
	var held []matched
	for _, p := range holdOut(history, 5) {
		logs := Plain()
		logs.Log = true
		held = append(held, matched{thinned(p.seen, asked), NewMatcher(p.rest, Plain()), NewMatcher(p.rest, logs)})
	}
	best, score := Plain(), share(held, Plain())
	try := func(w Weights) bool {
		s := share(held, w)
		if s <= score+1e-9 {
			return false
		}
		best, score = w, s
		return true
	}
	for _, log := range []bool{false, true} {
		for _, sum := range []float64{0, 0.25, 0.5, 0.75, 1} {
			w := Plain()
			w.Log, w.Sum = log, sum
			try(w)
		}
	}
	for better := true; better; {
		better = false
		for f := range factors {
			from := best
			for _, times := range []float64{0, 0.25, 0.5, 2, 4} {
				w := from
				w.Factor[f] = min(w.Factor[f]*times, 64)
				better = try(w) || better
			}
		}
	}
	return best
}

// asked is how many conditions of a part that was held out are asked for.
const asked = 100

// matched is a part that is held out, and matchers of the rest.
type matched struct {
	seen       []seen
	plain, log *Matcher
}

// share is the mean share of the best throughput that matches have.
func share(held []matched, w Weights) float64 {
	sum, n := 0.0, 0
	for _, h := range held {
		m := *h.plain
		if w.Log {
			m = *h.log
		}
		m.weights = w
		for _, s := range h.seen {
			if best, _, ok := m.Match(s.condition); ok {
				sum += s.share(best.PCP)
				n++
			}
		}
	}
	return sum / max(1, float64(n))
}

// tree is a k-d tree (Bentley, CACM 18(9), 1975) over places, with the box that holds
// each node's places. Its search wants of an error rate only that it does not fall when
// any factor's error grows, so one tree serves all that are asked for.
type tree struct {
	places [][factors]float64
	order  []int // of places, as the leaves have them
	nodes  []node
}

type node struct {
	low, high   [factors]float64
	from, to    int // in order
	left, right int // in nodes; 0: a leaf
}

const leaf = 8

func newTree(places [][factors]float64) tree {
	t := tree{places: places, order: make([]int, len(places))}
	for i := range t.order {
		t.order[i] = i
	}
	if len(places) > 0 {
		t.build(0, len(places))
	}
	return t
}

func (t *tree) build(from, to int) int {
	n := node{low: t.places[t.order[from]], high: t.places[t.order[from]], from: from, to: to}
	for _, i := range t.order[from:to] {
		for f, v := range t.places[i] {
			n.low[f], n.high[f] = min(n.low[f], v), max(n.high[f], v)
		}
	}
	at := len(t.nodes)
	t.nodes = append(t.nodes, n)
	if to-from <= leaf {
		return at
	}
	// The factor that is widest, as a share of the whole tree's width.
	by, widest := 0, -1.0
	for f := range factors {
		if all := t.nodes[0].high[f] - t.nodes[0].low[f]; all > 0 && (n.high[f]-n.low[f])/all > widest {
			by, widest = f, (n.high[f]-n.low[f])/all
		}
	}
	slices.SortStableFunc(t.order[from:to], func(a, b int) int {
		switch va, vb := t.places[a][by], t.places[b][by]; {
		case va < vb:
			return -1
		case va > vb:
			return 1
		}
		return a - b
	})
	middle := (from + to) / 2
	left := t.build(from, middle)
	right := t.build(middle, to)
	t.nodes[at].left, t.nodes[at].right = left, right
	return at
}

// nearest returns the first place with the least error rate.
func (t *tree) nearest(rate func(*[factors]float64) float64, given [factors]float64) (place int, least float64) {
	place, least = -1, math.Inf(1)
	bound := func(at int) float64 { // the rate of the box's place that is nearest
		n := &t.nodes[at]
		nearest := given
		for f := range nearest {
			nearest[f] = min(max(nearest[f], n.low[f]), n.high[f])
		}
		return rate(&nearest)
	}
	var search func(at int, bounded float64)
	search = func(at int, bounded float64) {
		if bounded > least {
			return
		}
		n := &t.nodes[at]
		if n.left == 0 {
			for _, i := range t.order[n.from:n.to] {
				if r := rate(&t.places[i]); r < least || r == least && i < place {
					place, least = i, r
				}
			}
			return
		}
		left, right := bound(n.left), bound(n.right)
		if left <= right {
			search(n.left, left)
			search(n.right, right)
		} else {
			search(n.right, right)
			search(n.left, left)
		}
	}
	search(0, bound(0))
	return place, least
}
