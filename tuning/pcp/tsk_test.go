package pcp

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// kneed is a world of one mechanism: connections add up until the path is full, and cost
// a little beyond that.
func kneed(c tuning.Condition, p mover.PCP) float64 {
	streams := float64(p.Concurrency * p.Parallelism)
	full := c.BDP() / float64(c.Buffer)
	return c.Bandwidth * min(1, streams/full) * math.Pow(max(1, streams/full), -0.1)
}

// paths returns observations of so many paths, all PCPs of a small grid on each.
func paths(seed uint64, n int, world func(tuning.Condition, mover.PCP) float64, noise float64) (history []tuning.Observation) {
	random := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high float64) float64 { return low * math.Pow(high/low, random.Float64()) }
	for range n {
		c := condition(int64(between(1e8, 1e10)), int(between(50, 1000)), between(1e9, 1e10), time.Duration(between(1e7, 1e8)), int64(between(1e6, 1e7)))
		for _, p := range candidates(least, mover.PCP{Pipelining: 2, Concurrency: 16, Parallelism: 8}) {
			history = append(history, observed(c, p, world(c, p)*math.Exp(noise*random.NormFloat64())))
		}
	}
	return history
}

func fit(t *testing.T, history []tuning.Observation) *Model {
	t.Helper()
	m, err := Fit(history)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAModelPredictsPathsThatItHasNotSeen(t *testing.T) {
	m := fit(t, paths(1, 16, kneed, 0.05))
	var off, all, mean float64
	inside, shares := 0, 0.0
	unseen := paths(2, 8, kneed, 0.05)
	for _, o := range unseen {
		mean += math.Log2(o.Throughput) / float64(len(unseen))
	}
	for _, o := range unseen {
		p := m.Predict(o.Condition, o.PCP)
		off += math.Pow(math.Log2(o.Throughput/p.Throughput), 2)
		all += math.Pow(math.Log2(o.Throughput)-mean, 2)
		if p.Low <= o.Throughput && o.Throughput <= p.High {
			inside++
		}
	}
	for _, s := range byCondition(unseen) {
		best, _ := m.Best(s.condition, candidates(least, mover.PCP{Pipelining: 2, Concurrency: 16, Parallelism: 8}))
		shares += s.share(best) / 8
	}
	if r2 := 1 - off/all; r2 < 0.95 {
		t.Errorf("R² is %.3f, want 0.95 at least", r2)
	}
	if covered := float64(inside) / float64(len(unseen)); covered < 0.8 || covered > 0.99 {
		t.Errorf("%.2f of what was observed is within its interval, want about %v", covered, Confidence)
	}
	if shares < 0.9 {
		t.Errorf("the PCPs that it chooses have %.2f of the best throughput, want 0.9", shares)
	}
	if q := m.Quality(); q.Groups != maxGroups || q.Rows != 16*2*5*4 || q.R2 < 0.95 || !strings.Contains(q.String(), "R² 0.9") {
		t.Errorf("quality: %+v: %s", q, q)
	}
}

// shared is a world as package mover/stream's: all files share the connections, of which
// each has as many blocks in flight as are pipelined, whatever the concurrency is.
func shared(c tuning.Condition, p mover.PCP) float64 {
	inFlight := float64(p.Parallelism * p.Pipelining * mover.BlockSize)
	return min(0.94*c.Bandwidth, inFlight*8/(c.RTT.Seconds()+mover.BlockSize*8/c.Bandwidth))
}

// TestAModelKnowsSharedConnections holds that few paths are enough for what the model's
// features describe.
func TestAModelKnowsSharedConnections(t *testing.T) {
	const few = 8
	m := fit(t, paths(1, few, shared, 0.02))
	if q := m.Quality(); q.R2 < 0.95 || !strings.Contains(q.Features, "shared") {
		t.Errorf("quality: %+v: %s", q, q)
	}
	for _, s := range byCondition(paths(2, few, shared, 0.02)) {
		best, _ := m.Best(s.condition, candidates(least, mover.PCP{Pipelining: 2, Concurrency: 16, Parallelism: 8}))
		if got := s.share(best); got < 0.85 || best.Concurrency > 1 {
			t.Errorf("%+v: %+v has %.2f of the best throughput", s.condition, best, got)
		}
	}
}

// TestOfAsFewConnectionsTheFastestIsBest has a world in which connections bring nothing and
// pipelining little: less of it saves nobody anything.
func TestOfAsFewConnectionsTheFastestIsBest(t *testing.T) {
	history := paths(1, 8, func(c tuning.Condition, p mover.PCP) float64 {
		return 0.5 * c.Bandwidth * math.Pow(float64(p.Pipelining), 0.01)
	}, 0)
	want := mover.PCP{Pipelining: 2, Concurrency: 1, Parallelism: 1}
	if best, _ := fit(t, history).Best(history[0].Condition, candidates(least, mover.PCP{Pipelining: 2, Concurrency: 16, Parallelism: 8})); best != want {
		t.Errorf("the best is %+v, want %+v", best, want)
	}
}

// TestOneRuleIsLeastSquares: a model of one rule is the linear regression that a world of
// products has.
func TestOneRuleIsLeastSquares(t *testing.T) {
	world := func(c tuning.Condition, p mover.PCP) float64 {
		return 1e3 * math.Sqrt(c.Bandwidth) * math.Pow(float64(p.Concurrency), 0.5) * math.Pow(float64(p.Parallelism), 0.25)
	}
	history := paths(1, 8, world, 0)
	of, n := groups(history, maxGroups)
	training := newTraining(1, history, of, n)
	m := training.model(training.fit(1, 0))
	for _, o := range history {
		if p := m.Predict(o.Condition, o.PCP); math.Abs(p.Throughput/o.Throughput-1) > 0.001 {
			t.Fatalf("%+v: predicted %.0f, want %.0f", o, p.Throughput, o.Throughput)
		}
	}
}

// TestMembershipsByHand: the rows lie at 1 and 3 of two centres at 0 and 4, so d² is 1 and
// 9 for the first, and u = 1 / (1 + (1/9)^(1/(m−1))).
func TestMembershipsByHand(t *testing.T) {
	u := make([]float64, 2)
	memberships([]float64{1}, [][]float64{{0}, {4}}, u)
	if want := 1 / (1 + math.Pow(1.0/9, 1/(fuzziness-1))); math.Abs(u[0]-want) > 1e-12 || math.Abs(u[0]+u[1]-1) > 1e-12 {
		t.Errorf("memberships %v, want %v and the rest", u, want)
	}
	memberships([]float64{4}, [][]float64{{0}, {4}}, u)
	if u[0] != 0 || u[1] != 1 {
		t.Errorf("a row at a centre has memberships %v", u)
	}
}

func TestClustersAreFound(t *testing.T) {
	var x [][]float64
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 300 {
		x = append(x, []float64{float64(10*(i%3)) + random.NormFloat64(), random.NormFloat64()})
	}
	found := map[int]bool{}
	for _, r := range clusters(x, 3, 0) {
		if i := math.Round(r.centre[0] / 10); math.Abs(r.centre[0]-10*i) < 1 && math.Abs(r.width[0]-1) < 0.3 {
			found[int(i)] = true
		}
	}
	if len(found) != 3 {
		t.Errorf("clusters: %+v, want three around 0, 10 and 20 of width 1", clusters(x, 3, 0))
	}
	if rules := clusters([][]float64{{1, 1}, {1, 1}, {1, 1}}, 5, 0); len(rules) != 1 {
		t.Errorf("equal rows have %d clusters", len(rules))
	}
}

func TestThinHistoryIsRefusedWithAReason(t *testing.T) {
	whole := paths(1, 16, kneed, 0.05)
	random := rand.New(rand.NewPCG(1, 1))
	var one, noise []tuning.Observation
	for _, o := range whole {
		o.Throughput = 1e6 * math.Exp(3*random.NormFloat64())
		noise = append(noise, o)
		o.PCP = mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}
		one = append(one, o)
	}
	for _, c := range []struct {
		history []tuning.Observation
		says    string
	}{
		{nil, "history has 0 rows, a fuzzy model needs 60"},
		{whole[:59], "history has 59 rows"},
		{make([]tuning.Observation, 100), "history has 0 rows"},
		{one, "history has 1 different PCPs"},
		{paths(1, 2, kneed, 0), "history has 2 different conditions"},
		{noise, "cannot be predicted"},
	} {
		if m, err := Fit(c.history); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%d rows: %v, %v, want an error that says %q", len(c.history), m, err, c.says)
		}
	}
}

// TestDegenerateHistoryHasFinitePredictions repeats rows, and leaves some out.
func TestDegenerateHistoryHasFinitePredictions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole := paths(rapid.Uint64Range(0, 100).Draw(t, "seed"), rapid.IntRange(3, 5).Draw(t, "paths"), kneed, 0)
		kept := whole[:0]
		every := rapid.IntRange(1, 3).Draw(t, "every")
		for i, o := range whole {
			if i%every == 0 {
				for range 1 + i%rapid.IntRange(1, 3).Draw(t, "times") {
					kept = append(kept, o)
				}
			}
		}
		m, err := Fit(kept)
		if err != nil {
			t.Skip(err)
		}
		for range 20 {
			checkPrediction(t, m, conditions().Draw(t, "condition"), pcps().Draw(t, "pcp"))
		}
	})
}

func pcps() *rapid.Generator[mover.PCP] {
	return rapid.Custom(func(t *rapid.T) mover.PCP {
		return mover.PCP{
			Pipelining:  rapid.IntRange(1, mover.MaxPipelining).Draw(t, "pipelining"),
			Concurrency: rapid.IntRange(1, mover.MaxConcurrency).Draw(t, "concurrency"),
			Parallelism: rapid.IntRange(1, mover.MaxParallelism).Draw(t, "parallelism"),
		}
	})
}

func checkPrediction(t interface{ Errorf(string, ...any) }, m *Model, c tuning.Condition, pcp mover.PCP) {
	p := m.Predict(c, pcp)
	if !(p.Low > 0 && p.Low <= p.Throughput && p.Throughput <= p.High && p.High <= math.MaxFloat64) {
		t.Errorf("%+v %v: %+v", c, pcp, p)
	}
}

func FuzzAdvise(f *testing.F) {
	advisors := []*Advisor{
		NewAdvisor(paths(1, 6, kneed, 0.05), mover.PCP{}),
		NewAdvisor(paths(1, 1, kneed, 0.05), mover.PCP{Pipelining: 5, Concurrency: 1, Parallelism: 3}),
		NewAdvisor(nil, mover.PCP{}),
	}
	f.Add(int64(1e9), 100, 1e10, int64(5e7), int64(4e6), 0.0)
	f.Add(int64(1), 1, 1.0, int64(1), int64(1), 1.0)
	f.Add(int64(math.MaxInt64), math.MaxInt64, math.MaxFloat64, int64(math.MaxInt64), int64(math.MaxInt64), math.NaN())
	f.Add(int64(1<<60), 1<<60, 1e38, int64(time.Hour), int64(1<<60), 1e-300)
	f.Fuzz(func(t *testing.T, size int64, files int, bandwidth float64, rtt, buffer int64, loss float64) {
		c := condition(size, files, bandwidth, time.Duration(rtt), buffer)
		c.Loss = loss
		for _, a := range advisors {
			advice, err := a.Advise(c)
			if (err == nil) != (c.Validate() == nil) {
				t.Fatalf("%+v: %v", c, err)
			}
			if err != nil {
				continue
			}
			p := advice.PCP
			if min(p.Pipelining, p.Concurrency, p.Parallelism) < 1 || p.Pipelining > a.most.Pipelining || p.Concurrency > a.most.Concurrency || p.Parallelism > a.most.Parallelism {
				t.Errorf("%+v: advised %+v, the most is %+v", c, p, a.most)
			}
			if ordered := 0 < advice.Low && advice.Low <= advice.Throughput && advice.Throughput <= advice.High && advice.High <= math.MaxFloat64; ordered != (advice.By == tuning.TSK) {
				t.Errorf("%+v: %+v", c, advice)
			}
			if a.model != nil {
				checkPrediction(t, a.model, c, p)
			}
		}
	})
}

func TestTheAdvisorTakesTheBestMethodThatHistoryIsEnoughFor(t *testing.T) {
	whole := paths(1, 16, kneed, 0.05)
	strange := whole[0].Condition
	strange.RTT, strange.Size = 1000, 1
	some := whole[0].Condition
	for _, c := range []struct {
		history []tuning.Observation
		given   tuning.Condition
		by      tuning.Method
		says    string
	}{
		{whole, some, tuning.TSK, "R² "},
		{whole, strange, tuning.Heuristic, "nothing like this file size"},
		{whole[:40], some, tuning.Nearest, "history has 40 rows, a fuzzy model needs 60; the best of the most similar condition, "},
		{whole[:40], strange, tuning.Heuristic, "needs 60"},
		{nil, some, tuning.Heuristic, "history has 0 rows"},
	} {
		a, err := NewAdvisor(c.history, mover.PCP{}).Advise(c.given)
		if err != nil || a.By != c.by || !strings.Contains(a.Why, c.says) {
			t.Errorf("%d rows: %+v, %v, want %s and %q", len(c.history), a, err, c.by, c.says)
		}
	}
	if _, err := NewAdvisor(nil, mover.PCP{}).Advise(tuning.Condition{}); err == nil || !strings.Contains(err.Error(), "bandwidth 0: must be") {
		t.Errorf("nothing was given: %v", err)
	}
	nearest, _ := NewAdvisor(whole[:40], mover.PCP{}).Advise(some)
	best := whole[0]
	for _, o := range whole[:40] {
		if o.Throughput > best.Throughput {
			best = o
		}
	}
	if nearest.PCP != best.PCP {
		t.Errorf("advised %+v, and %+v was the best in this condition", nearest.PCP, best.PCP)
	}
}

var least = mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}

// TestNoAdviceGoesBeyondWhatHistoryHasSeen: the throughput grows with all three numbers.
func TestNoAdviceGoesBeyondWhatHistoryHasSeen(t *testing.T) {
	var history []tuning.Observation
	for _, o := range paths(1, 16, kneed, 0.05) {
		if p := o.PCP; p.Pipelining == 2 && p.Concurrency > 2 && p.Parallelism < 8 {
			o.PCP.Pipelining = 3 // no power of two
			history = append(history, o)
		}
	}
	a := NewAdvisor(history, mover.PCP{Parallelism: 4})
	for _, o := range history {
		got, err := a.Advise(o.Condition)
		if p := got.PCP; err != nil || got.By != tuning.TSK || p.Pipelining != 3 || p.Concurrency < 4 || p.Concurrency > 16 || p.Parallelism > 4 {
			t.Fatalf("%+v, %v, want a PCP of 3/4/1 to 3/16/4", got, err)
		}
	}
}

// TestALuckyTransferIsNotWhatIsBest: one of a PCP that is slower else was the fastest of all.
func TestALuckyTransferIsNotWhatIsBest(t *testing.T) {
	given := condition(1e9, 4, 1e9, 50*time.Millisecond, 4e6)
	few, many := mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 2}, mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 16}
	history := []tuning.Observation{
		observed(given, few, 3e8), observed(given, few, 9e8), observed(given, few, 3.1e8),
		observed(given, many, 7e8), observed(given, many, 8e8), observed(given, many, 7.5e8),
	}
	got, err := NewAdvisor(history, mover.PCP{}).Advise(given)
	if err != nil || got.PCP != many {
		t.Errorf("%+v, %v, want %v", got, err, many)
	}
}

// TestHeuristicsByHand: 10 Gbit/s and 80 ms have a BDP of 100 MB.
func TestHeuristicsByHand(t *testing.T) {
	most := mover.PCP{Pipelining: 64, Concurrency: 32, Parallelism: 16}
	for _, c := range []struct {
		about  string
		size   int64
		files  int
		buffer int64
		loss   float64
		want   mover.PCP
	}{
		{"small files", 10e6, 1000, 25e6, 0, mover.PCP{Pipelining: 10, Concurrency: 10, Parallelism: 1}},
		{"tiny files", 1e3, 1000, 25e6, 0, mover.PCP{Pipelining: 64, Concurrency: 32, Parallelism: 1}},
		{"few tiny files", 1e3, 3, 25e6, 0, mover.PCP{Pipelining: 64, Concurrency: 3, Parallelism: 1}},
		{"large files, small buffers", 10e9, 5, 25e6, 0, mover.PCP{Pipelining: 1, Concurrency: 2, Parallelism: 4}},
		{"a file of two buffers", 50e6, 5, 25e6, 0, mover.PCP{Pipelining: 2, Concurrency: 2, Parallelism: 2}},
		{"one file, large buffers", 10e9, 1, 200e6, 0, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}},
		{"losses", 10e9, 1, 200e6, 1e-4, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 16}},
	} {
		given := condition(c.size, c.files, 10e9, 80*time.Millisecond, c.buffer)
		given.Loss = c.loss
		if got := Heuristics(given, most); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.about, got, c.want)
		}
	}
}

func BenchmarkAdvise(b *testing.B) {
	history := paths(1, 125, kneed, 0.05)
	for len(history) < 100000 {
		history = append(history, manyConditions(100000-len(history))...)
	}
	model := NewAdvisor(paths(1, 16, kneed, 0.05), mover.PCP{})
	model.matcher = NewMatcher(history, Plain())
	nearest := *model
	nearest.model, nearest.noModel = nil, errors.New("history is thin")
	for name, a := range map[string]*Advisor{"tsk": model, "nearest": &nearest} {
		b.Run(name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				a.Advise(history[i*7919%len(history)].Condition)
				i++
			}
		})
	}
}
