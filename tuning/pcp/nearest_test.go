package pcp

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

func condition(size int64, files int, bandwidth float64, rtt time.Duration, buffer int64) tuning.Condition {
	return tuning.Condition{
		Path: tuning.Path{Bandwidth: bandwidth, RTT: rtt, Buffer: buffer},
		Load: tuning.Load{Size: size, Files: files},
	}
}

func observed(c tuning.Condition, p mover.PCP, throughput float64) tuning.Observation {
	return tuning.Observation{Condition: c, PCP: p, Throughput: throughput}
}

// TestTheAlgorithmByHand follows the paper's steps with numbers that a person can check.
//
//	row   size files bandwidth rtt buffer
//	A      100    10     1000  0.1     10
//	B      300    20     2000  0.2     20
//	C      500    10     1000  0.5     10
//	given  200    10     1000  0.1     10
//
//	errors      A 100  0    0  0    0    error rates  A 1/3  0  0     0  0
//	            B 100 10 1000  0.1 10                 B 1/3  1  1  0.25  1
//	            C 300  0    0  0.4  0                 C   1  0  0     1  0
//	greatest      300 10 1000  0.4 10
//
//	SumER  A 1/3, B 3.5833, C 2    MaxER  A 1/3, B 1, C 1
//	final, w = 0.5:  A 1/3, B 2.2917, C 1.5
func TestTheAlgorithmByHand(t *testing.T) {
	a, b, c := condition(100, 10, 1000, 100*time.Millisecond, 10), condition(300, 20, 2000, 200*time.Millisecond, 20), condition(500, 10, 1000, 500*time.Millisecond, 10)
	history := []tuning.Observation{
		observed(a, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}, 400),
		observed(a, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 4}, 700), // the preprocessing keeps this one
		observed(a, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 8}, 600),
		observed(b, mover.PCP{Pipelining: 2, Concurrency: 1, Parallelism: 1}, 900),
		observed(c, mover.PCP{Pipelining: 4, Concurrency: 1, Parallelism: 1}, 900),
	}
	m := NewMatcher(history, Plain())
	if m.Conditions() != 3 {
		t.Errorf("%d conditions, want 3", m.Conditions())
	}
	given := condition(200, 10, 1000, 100*time.Millisecond, 10)
	best, rate, ok := m.Match(given)
	if !ok || best != history[1] || math.Abs(rate-1.0/3) > 1e-12 {
		t.Errorf("most similar is %+v with a final error rate of %v, want %+v with 1/3", best, rate, history[1])
	}
	final := m.errorRate(factorsOf(given))
	for i, want := range []float64{1.0 / 3, 0.5*(1.0/3+3.25) + 0.5, 1.5} {
		if got := final(&m.at[i]); math.Abs(got-want) > 1e-12 {
			t.Errorf("row %d: final error rate %v, want %v", i, got, want)
		}
	}

	// The weight coefficient decides between two small errors and a greater one.
	spread, single := condition(150, 15, 1000, 100*time.Millisecond, 10), condition(160, 10, 1000, 100*time.Millisecond, 10)
	far := condition(200, 20, 1000, 100*time.Millisecond, 10)
	rows := []tuning.Observation{observed(spread, history[0].PCP, 1), observed(single, history[1].PCP, 1), observed(far, history[2].PCP, 1)}
	for w, want := range map[float64]int{0: 0, 1: 1} {
		m := NewMatcher(rows, Weights{Sum: w, Factor: Plain().Factor})
		if best, _, _ := m.Match(a); best != rows[want] {
			t.Errorf("with w = %v row %+v is the most similar, want %+v", w, best, rows[want])
		}
	}
}

func TestNoHistoryHasNoMatch(t *testing.T) {
	if _, _, ok := NewMatcher(nil, Plain()).Match(condition(1, 1, 1, 1, 1)); ok {
		t.Error("there was a match")
	}
}

// TestAMatchIsTheConditionItself is the paper's experiment: what is within 10 % of a row
// is matched with it.
func TestAMatchIsTheConditionItself(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var history []tuning.Observation
	for _, size := range []int64{1e6, 1e7, 1e8, 1e9} {
		for _, files := range []int{1, 10, 100} {
			for _, bandwidth := range []float64{1e9, 1e10} {
				for _, rtt := range []time.Duration{1e6, 1e7, 1e8} {
					history = append(history, observed(condition(size, files, bandwidth, rtt, 1<<24), mover.PCP{Pipelining: len(history) + 1, Concurrency: 1, Parallelism: 1}, 1e6))
				}
			}
		}
	}
	about := func(v float64) float64 { return v * (0.9 + 0.2*random.Float64()) }
	logs := Plain()
	logs.Log = true
	m := NewMatcher(history, logs)
	for _, o := range history {
		c := o.Condition
		c.Size, c.Bandwidth, c.RTT, c.Buffer = int64(about(float64(c.Size))), about(c.Bandwidth), time.Duration(about(float64(c.RTT))), int64(about(float64(c.Buffer)))
		if best, _, _ := m.Match(c); best != o {
			t.Errorf("%+v was matched with %+v", c, best.Condition)
		}
	}
}

func conditions() *rapid.Generator[tuning.Condition] {
	return rapid.Custom(func(t *rapid.T) tuning.Condition {
		return condition(
			rapid.Int64Range(1, 1<<40).Draw(t, "size"), rapid.IntRange(1, 1e6).Draw(t, "files"),
			rapid.Float64Range(1e3, 1e12).Draw(t, "bandwidth"), time.Duration(rapid.Int64Range(1e3, 1e9).Draw(t, "rtt")), rapid.Int64Range(1, 1<<32).Draw(t, "buffer"))
	})
}

// TestScalesDoNotMatter multiplies one factor of all conditions with the same number: the
// same row is the most similar, with the same error rate. The numbers are powers of
// two, which no float64 rounds.
func TestScalesDoNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(conditions(), 2, 40).Draw(t, "conditions")
		w := Weights{Sum: rapid.Float64Range(0, 1).Draw(t, "w"), Factor: Plain().Factor}
		times := float64(int64(1) << rapid.IntRange(0, 10).Draw(t, "doublings"))
		which := rapid.IntRange(0, 2).Draw(t, "factor")
		scaled := func(c tuning.Condition) tuning.Condition {
			switch which {
			case 0:
				c.Bandwidth *= times
			case 1:
				c.Size *= int64(times)
			case 2:
				c.Buffer *= int64(times)
			}
			return c
		}
		var rows, others []tuning.Observation
		for i, c := range all[1:] {
			p := mover.PCP{Pipelining: i + 1, Concurrency: 1, Parallelism: 1}
			rows, others = append(rows, observed(c, p, 1)), append(others, observed(scaled(c), p, 1))
		}
		one, rate, _ := NewMatcher(rows, w).Match(all[0])
		other, otherRate, _ := NewMatcher(others, w).Match(scaled(all[0]))
		if one.PCP != other.PCP || rate != otherRate {
			t.Errorf("row %d with %v becomes row %d with %v when factor %d is multiplied with %v", one.PCP.Pipelining, rate, other.PCP.Pipelining, otherRate, which, times)
		}
	})
}

// TestTheTreeFindsWhatAScanFinds compares with every row, ties included.
func TestTheTreeFindsWhatAScanFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		coarse := rapid.Bool().Draw(t, "coarse")
		var rows []tuning.Observation
		for i, c := range rapid.SliceOfN(conditions(), 1, 200).Draw(t, "rows") {
			if coarse { // many are equally far
				c = condition(1+c.Size%3, 1+c.Files%3, 1+math.Mod(math.Floor(c.Bandwidth), 3), 1+c.RTT%3, 1+c.Buffer%3)
			}
			rows = append(rows, observed(c, mover.PCP{Pipelining: i + 1, Concurrency: 1, Parallelism: 1}, 1))
		}
		w := Weights{Sum: rapid.Float64Range(0, 1).Draw(t, "w"), Log: rapid.Bool().Draw(t, "log")}
		for f := range w.Factor {
			w.Factor[f] = rapid.SampledFrom([]float64{0, 0.5, 1, 4}).Draw(t, "weight")
		}
		m := NewMatcher(rows, w)
		given := conditions().Draw(t, "given")
		best, least, ok := m.Match(given)
		rate := m.errorRate(m.scaled(factorsOf(given)))
		first := -1
		for i := range m.at {
			if first < 0 || rate(&m.at[i]) < rate(&m.at[first]) {
				first = i
			}
		}
		if !ok || best != m.rows[first] || least != rate(&m.at[first]) {
			t.Errorf("row %d with %v, want row %d with %v", best.PCP.Pipelining, least, m.rows[first].PCP.Pipelining, rate(&m.at[first]))
		}
	})
}

// manyConditions are spread evenly over their logarithms.
func manyConditions(n int) (history []tuning.Observation) {
	random := rand.New(rand.NewPCG(1, 2))
	between := func(low, high float64) float64 { return low * math.Pow(high/low, random.Float64()) }
	for range n {
		c := condition(int64(between(1e5, 1e11)), int(between(1, 1e4)), between(1e8, 1e11), time.Duration(between(1e5, 3e8)), int64(between(1e6, 1e9)))
		history = append(history, observed(c, mover.PCP{Pipelining: 1 + random.IntN(64), Concurrency: 1 + random.IntN(64), Parallelism: 1 + random.IntN(16)}, between(1e6, 1e9)))
	}
	return history
}

// TestAMatchLooksAtFewRows counts comparisons, not time: 64 times the rows may cost
// six times as many of them at most, and of 64,000 it looks at a thousand at most.
func TestAMatchLooksAtFewRows(t *testing.T) {
	cost := func(n int) float64 {
		w := Plain()
		w.Log = true
		m := NewMatcher(manyConditions(n), w)
		compared := 0
		given := manyConditions(100)
		for i := range given {
			given[i].Condition.Size++ // none is equal to a row
			at := m.scaled(factorsOf(given[i].Condition))
			rate := m.errorRate(at)
			m.tree.nearest(func(p *[factors]float64) float64 { compared++; return rate(p) }, at)
		}
		return float64(compared) / float64(len(given))
	}
	few, many := cost(1000), cost(64000)
	if many > 6*few || many > 1000 {
		t.Errorf("a match compares %.0f places of 1,000 and %.0f of 64,000", few, many)
	}
}

// TestRowsOfOnePathAreHeldOutTogether: what loss leaves of the buffer makes no other path.
func TestRowsOfOnePathAreHeldOutTogether(t *testing.T) {
	var rows []tuning.Observation
	for i := range 40 {
		c := condition(1e9, 1, 1e9, time.Duration(1+i%4)*20*time.Millisecond, 1<<20<<(i%7))
		rows = append(rows, observed(c, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1 + i}, 1e9))
	}
	of, n := groups(rows, 8)
	if n != 4 {
		t.Errorf("%d groups of 4 paths", n)
	}
	for i := range rows {
		if of[i] != of[i%4] {
			t.Errorf("row %d is in group %d, and another one of its path in %d", i, of[i], of[i%4])
		}
	}
}

// TestFittedWeightsAreBetter holds out conditions where only two factors matter, and
// their logarithms.
func TestFittedWeightsAreBetter(t *testing.T) {
	world := func(seed uint64, paths int) (history []tuning.Observation) {
		random := rand.New(rand.NewPCG(seed, 0))
		for range paths {
			rtt, bandwidth := time.Duration(1e6*math.Exp2(7*random.Float64())), 1e9*math.Exp2(7*random.Float64())
			for range 4 {
				c := condition(int64(1e6*math.Exp2(10*random.Float64())), 1+random.IntN(1000), bandwidth, rtt, 1<<24)
				right := math.Log2(c.BDP() / 1e6)
				for p := 1; p <= 16; p *= 2 {
					off := math.Log2(float64(p)) - right
					history = append(history, observed(c, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: p}, 1e9*math.Exp(-off*off)))
				}
			}
		}
		return history
	}
	score := func(w Weights) float64 {
		m := NewMatcher(world(1, 40), w)
		sum, n := 0.0, 0
		for _, s := range byCondition(world(2, 40)) {
			best, _, _ := m.Match(s.condition)
			sum += s.share(best.PCP)
			n++
		}
		return sum / float64(n)
	}
	fitted := FitWeights(world(1, 40))
	if plain, better := score(Plain()), score(fitted); better < plain+0.05 || !fitted.Log {
		t.Errorf("with the weights %+v new conditions have %.2f of the best, with the paper's %.2f", fitted, better, plain)
	}
	if w := FitWeights(nil); w != Plain() {
		t.Errorf("without history: %+v", w)
	}
}
