package pcp

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"
	"gonum.org/v1/gonum/stat"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// Model is a first-order Takagi-Sugeno-Kang fuzzy model of throughput (Takagi and Sugeno,
// IEEE Trans. SMC 15(1), 1985; Sugeno and Kang, Fuzzy Sets and Systems 28, 1988): rules of
// the form
//
//	if x is near centre i then y = a_i + b_i · x
//
// whose conclusions are averaged by how well their premises hold. x describes condition
// and PCP, y is the logarithm of throughput by bandwidth, beyond what is expected of x. It
// does not change.
type Model struct {
	features int
	scale    scale
	bases    [][]rule // each rule base is made of other clusters; what they say is averaged
	mean     float64  // of y
	bounds            // of y without its mean
	low      []float64
	high     []float64 // of x, of history
	quantile float64   // of held-out errors, in units of what the rules expect
	quality  Quality
}

type rule struct {
	centre, width []float64
	narrow        []float64 // 1 / width
	conclusion    []float64 // a, then b
	spread        float64   // typical error of y where the rule holds, when held out
}

// Quality is how well a model predicts what was held out, path by path.
type Quality struct {
	Rows     int
	Groups   int     // of rows that were held out together
	Rules    int     // chosen by it
	Features string  // chosen by it
	R2       float64 // coefficient of determination, of the logarithm of throughput by bandwidth
	MAPE     float64 // mean absolute error, as a share of the throughput
}

// String is for a person.
func (q Quality) String() string {
	return fmt.Sprintf("%d rules from %d rows, %s; R² %.2f and a mean error of %.0f %% on rows held out in %d groups", q.Rules, q.Rows, q.Features, q.R2, 100*q.MAPE, q.Groups)
}

// Confidence is that with which the interval of a Prediction holds the throughput.
const Confidence = 0.9

// What a model needs at least.
const (
	minRows   = 60
	minPCPs   = 6
	minGroups = 3
	minR2     = 0.5
)

// sizes are numbers of rules to choose from; ridges, how strongly conclusions are held small.
var (
	sizes  = []int{1, 4, 10, 20, 30}
	ridges = []float64{1e-5, 1e-3, 1e-2, 0.1, 1}
)

// Fit makes a model of history, with the features, the number of rules and the
// regularisation that predict best what is held out. Where history is too thin, or what it
// holds out cannot be predicted from the rest, it says so. The same history makes the same
// model.
func Fit(history []tuning.Observation) (*Model, error) {
	rows := make([]tuning.Observation, 0, len(history))
	pcps := map[mover.PCP]bool{}
	for _, o := range history {
		if o.Validate() == nil {
			rows = append(rows, o)
			pcps[o.PCP] = true
		}
	}
	rows = thinned(rows, maxRows)
	of, n := groups(rows, maxGroups)
	switch {
	case len(rows) < minRows:
		return nil, fmt.Errorf("history has %d rows, a fuzzy model needs %d", len(rows), minRows)
	case len(pcps) < minPCPs:
		return nil, fmt.Errorf("history has %d different PCPs, a fuzzy model needs %d", len(pcps), minPCPs)
	case n < minGroups:
		return nil, fmt.Errorf("history has %d different conditions, a fuzzy model needs %d", n, minGroups)
	}
	var best *fitted
	try := func(t *training, size int) {
		if size > 1 && size*(len(t.scale.mean)+1) > len(rows)/4 {
			return
		}
		if f := t.fit(size, 0); f != nil && (best == nil || f.quality.R2 > best.quality.R2) {
			best = f
		}
	}
	for f := range features { // with few rules, all have enough rows
		t := newTraining(f, rows, of, n)
		for _, size := range sizes[:2] {
			try(t, size)
		}
	}
	if best == nil {
		return nil, errors.New("no rules can be fitted to history")
	}
	t := newTraining(best.features, rows, of, n)
	for _, size := range sizes[2:] {
		try(t, size)
	}
	m := t.model(best)
	if m.quality.R2 < minR2 {
		return nil, fmt.Errorf("what is held out of history cannot be predicted from the rest (R² %.2f, a fuzzy model needs %.1f)", m.quality.R2, minR2)
	}
	return m, nil
}

// Quality returns how well the model predicts what was held out.
func (m *Model) Quality() Quality { return m.quality }

// Prediction is a throughput, in bits per second. It is from Low to High with Confidence.
type Prediction struct{ Throughput, Low, High float64 }

// Predict returns the throughput that a PCP is expected to have. All three are finite,
// above 0 and in order; the condition and the PCP must be valid.
func (m *Model) Predict(c tuning.Condition, p mover.PCP) Prediction {
	var s scratch
	return m.predict(c, p, &s)
}

// scratch is memory that one prediction leaves to the next.
type scratch struct{ x, firing []float64 }

func (m *Model) predict(c tuning.Condition, p mover.PCP, s *scratch) Prediction {
	s.x = features[m.features].of(c, p, s.x[:0])
	expected := features[m.features].expected(s.x)
	s.x = m.scale.apply(s.x)
	y, spread := 0.0, 0.0
	for _, rules := range m.bases {
		s.firing = fire(rules, s.x, s.firing[:0])
		for i, w := range s.firing {
			r := &rules[i]
			y += w * conclude(r.conclusion, s.x)
			spread += w * r.spread
		}
	}
	y /= float64(len(m.bases))
	spread /= float64(len(m.bases))
	y = min(max(expected+m.mean+m.bound(y), -60), 60)
	off := min(m.quantile*spread, 30)
	return Prediction{c.Bandwidth * math.Exp2(y), c.Bandwidth * math.Exp2(y-off), c.Bandwidth * math.Exp2(y+off)}
}

// bound keeps what the rules say to what history has seen: a first-order conclusion knows
// no end where few rows hold it.
func (b bounds) bound(y float64) float64 { return min(max(y, b[0]), b[1]) }

// bounds are the least and the greatest y of history, but for one of a thousand rows.
type bounds [2]float64

func boundsOf(y []float64) bounds {
	sorted := slices.Sorted(slices.Values(y))
	few := len(sorted) / 1000
	return bounds{sorted[few], sorted[len(sorted)-1-few]}
}

func conclude(conclusion, x []float64) float64 {
	y := conclusion[0]
	for j, v := range x {
		y += conclusion[j+1] * v
	}
	return y
}

// enough is the share of the best throughput that is as good as it: further connections
// cost both hosts and everybody else on the path.
const enough = 0.97

// Best returns, of those PCPs whose throughput is expected to be within 3 % of the
// highest, the one with the fewest connections, and of several the one that is expected to
// be the fastest, and what it is expected to have. There must be one candidate at least.
func (m *Model) Best(c tuning.Condition, candidates []mover.PCP) (mover.PCP, Prediction) {
	var s scratch
	all := make([]Prediction, len(candidates))
	highest := 0.0
	for i, p := range candidates {
		all[i] = m.predict(c, p, &s)
		highest = max(highest, all[i].Throughput)
	}
	best := -1
	for i, p := range candidates {
		if all[i].Throughput < enough*highest {
			continue
		}
		if best < 0 || cmp.Or(
			cmp.Compare(connections(p), connections(candidates[best])),
			-cmp.Compare(all[i].Throughput, all[best].Throughput),
		) < 0 {
			best = i
		}
	}
	return candidates[best], all[best]
}

func connections(p mover.PCP) int { return p.Concurrency * p.Parallelism }

// Knows reports whether a condition lies within what the model was made of, or so little
// beyond that its rules still say something; if not, what does not.
func (m *Model) Knows(c tuning.Condition) (why string, ok bool) {
	names := []string{"file size", "number of files", "bandwidth", "round trip time", "buffer", "loss"}
	at := logFeatures(c, mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}, nil)
	for j, name := range names {
		slack := max(1, (m.high[j]-m.low[j])/4)
		if at[j] < m.low[j]-slack || at[j] > m.high[j]+slack {
			return name, false
		}
	}
	return "", true
}

// scale maps features to a mean of 0 and a deviation of 1. What does not differ is 0.
type scale struct{ mean, by []float64 }

func (s scale) apply(x []float64) []float64 {
	for j := range x {
		x[j] = min(max((x[j]-s.mean[j])*s.by[j], -far), far)
	}
	return x
}

const (
	far       = 10    // deviations; nothing is further from the mean
	maxRows   = 12000 // that a model is made of: more make it slower and hardly better
	maxGroups = 8     // that are held out
	sample    = 1500  // rows that clusters are made of
)

// training is history as one set of features describes it.
type training struct {
	features int
	rows     []tuning.Observation
	group    []int
	groups   int
	scale    scale
	x        [][]float64
	expected []float64
	y        []float64 // beyond what is expected, without their mean
	mean     float64
}

func newTraining(f int, rows []tuning.Observation, group []int, n int) *training {
	t := &training{features: f, rows: rows, group: group, groups: n}
	for _, o := range rows {
		t.x = append(t.x, features[f].of(o.Condition, o.PCP, nil))
		t.expected = append(t.expected, features[f].expected(t.x[len(t.x)-1]))
		t.y = append(t.y, math.Log2(o.Throughput/o.Bandwidth)-t.expected[len(t.y)])
	}
	column := make([]float64, len(rows))
	for j := range t.x[0] {
		for i, x := range t.x {
			column[i] = x[j]
		}
		mean, deviation := stat.PopMeanStdDev(column, nil)
		by := 0.0
		if deviation > 1e-9*math.Abs(mean) {
			by = 1 / deviation
		}
		t.scale.mean, t.scale.by = append(t.scale.mean, mean), append(t.scale.by, by)
	}
	for i := range t.x {
		t.x[i] = t.scale.apply(t.x[i])
	}
	t.mean = stat.Mean(t.y, nil)
	for i := range t.y {
		t.y[i] -= t.mean
	}
	return t
}

// fitted is a rule base, and by how much it is off on rows when they are held out.
type fitted struct {
	features int
	size     int
	rules    []rule
	firing   [][]float64 // of each row
	held     []float64
	quality  Quality
}

// bases is how many rule bases a model has: clusters depend on where they begin, and what
// one base says of a path that it has not seen on its clusters (Breiman, Bagging Predictors,
// Machine Learning 24, 1996).
const bases = 3

// model makes one of a rule base and others like it.
func (t *training) model(first *fitted) *Model {
	all := []*fitted{first}
	for seed := uint64(1); first.size > 1 && seed < bases; seed++ {
		if f := t.fit(first.size, seed); f != nil {
			all = append(all, f)
		}
	}
	held := make([]float64, len(t.y))
	for _, f := range all {
		for i, e := range f.held {
			held[i] += e / float64(len(all))
		}
	}
	m := &Model{features: t.features, scale: t.scale, mean: t.mean, bounds: boundsOf(t.y), quality: t.quality(held)}
	m.quality.Rules = len(first.rules)
	m.interval(all, held)
	m.low, m.high = ranges(t.rows)
	return m
}

// fit makes a base of so many rules; nil: their equations have no solution.
//
// Conclusions are the least squares of all rules together (Takagi and Sugeno 1985), with
// a ridge (Hoerl and Kennard, Technometrics 12(1), 1970) that keeps them defined whatever
// the rows are. The normal equations of each group are kept apart, so that holding one out
// is to take its equations away.
func (t *training) fit(size int, seed uint64) *fitted {
	rules := clusters(thinned(t.x, sample), size, seed)
	wide := len(t.x[0]) + 1
	total := newEquations(len(rules) * wide)
	each := make([]equations, t.groups)
	for g := range each {
		each[g] = newEquations(len(rules) * wide)
	}
	firing := make([][]float64, len(t.x))
	block := mat.NewDense(blockRows, len(rules)*wide, nil)
	for g := range each { // row by row, gathered into blocks
		n := 0
		flush := func() {
			each[g].add(block.Slice(0, n, 0, len(rules)*wide).(*mat.Dense))
			n = 0
		}
		for i, x := range t.x {
			if t.group[i] != g {
				continue
			}
			firing[i] = fire(rules, x, nil)
			regressors(firing[i], x, block.RawRowView(n))
			each[g].addTarget(block.RawRowView(n), t.y[i])
			if n++; n == blockRows {
				flush()
			}
		}
		if n > 0 {
			flush()
		}
		total.plus(each[g])
	}

	var best *fitted
	known := boundsOf(t.y)
	for _, ridge := range ridges {
		all := total.solve(nil, ridge)
		if all == nil {
			continue
		}
		held := make([]float64, len(t.x)) // errors of rows when they are held out
		solved := true
		for g := range each {
			without := total.solve(&each[g], ridge)
			if solved = without != nil; !solved {
				break
			}
			for i, x := range t.x {
				if t.group[i] != g {
					continue
				}
				y := 0.0
				for r, w := range firing[i] {
					y += w * conclude(without[r*wide:(r+1)*wide], x)
				}
				held[i] = t.y[i] - known.bound(y)
			}
		}
		if !solved {
			continue
		}
		q := t.quality(held)
		if best == nil || q.R2 > best.quality.R2 {
			best = &fitted{features: t.features, size: size, rules: slices.Clone(rules), firing: firing, held: held, quality: q}
			for i := range best.rules {
				best.rules[i].conclusion = all[i*wide : (i+1)*wide]
			}
		}
	}
	return best
}

// thinned returns at most so many of all, evenly taken.
func thinned[T any](all []T, most int) []T {
	if len(all) <= most {
		return all
	}
	thin := make([]T, most)
	for i := range thin {
		thin[i] = all[shuffled(i, len(all))]
	}
	return thin
}

// shuffled spreads i over 0 to n by the golden ratio, which no regular order of rows
// resounds with (Weyl's equidistribution).
func shuffled(i, n int) int {
	_, part := math.Modf(float64(i+1) * math.Phi)
	return min(int(part*float64(n)), n-1)
}

func (t *training) quality(held []float64) Quality {
	var off, all, share, mean float64
	for i, y := range t.y {
		mean += (y + t.expected[i]) / float64(len(held))
	}
	for i, e := range held {
		y := t.y[i] + t.expected[i] - mean
		off += e * e
		all += y * y
		share += math.Abs(math.Exp2(-e) - 1)
	}
	q := Quality{Rows: len(held), Groups: t.groups, Features: features[t.features].name, MAPE: share / float64(len(held))}
	if all > 0 {
		q.R2 = 1 - off/all
	}
	return q
}

// interval makes the held-out errors into what a prediction may be off by: the expected
// error is that of the rules which hold, and the quantile of errors in units of it makes
// an interval of the wanted confidence whatever their distribution is (Lei, G'Sell,
// Rinaldo, Tibshirani and Wasserman, JASA 113, 2018, section 5.2).
func (m *Model) interval(all []*fitted, held []float64) {
	square := 0.0
	for _, e := range held {
		square += e * e / float64(len(held))
	}
	spreads := make([]float64, len(held))
	for _, f := range all {
		weights := make([]float64, len(f.rules))
		for i, e := range held {
			for r, w := range f.firing[i] {
				f.rules[r].spread += w * e * e
				weights[r] += w
			}
		}
		for r := range f.rules {
			// A rule that few rows support has the spread of all.
			f.rules[r].spread = math.Sqrt((f.rules[r].spread+square)/(weights[r]+1)) + 1e-6
		}
		for i := range spreads {
			for r, w := range f.firing[i] {
				spreads[i] += w * f.rules[r].spread / float64(len(all))
			}
		}
		m.bases = append(m.bases, f.rules)
	}
	ratios := make([]float64, len(held))
	for i, e := range held {
		ratios[i] = math.Abs(e) / spreads[i]
	}
	slices.Sort(ratios)
	m.quantile = ratios[min(int(math.Ceil(Confidence*float64(len(ratios)+1)))-1, len(ratios)-1)]
}

// ranges returns the least and the greatest of each factor's logarithm.
func ranges(rows []tuning.Observation) (low, high []float64) {
	for _, o := range rows {
		x := logFeatures(o.Condition, o.PCP, nil)
		if low == nil {
			low, high = slices.Clone(x), slices.Clone(x)
		}
		for j, v := range x {
			low[j], high[j] = min(low[j], v), max(high[j], v)
		}
	}
	return low, high
}

const blockRows = 256

// regressors fills row with what the conclusions of all rules are multiplied with.
func regressors(firing, x, row []float64) {
	wide := len(x) + 1
	for r, w := range firing {
		row[r*wide] = w
		for j, v := range x {
			row[r*wide+1+j] = w * v
		}
	}
}

// equations are the normal equations of least squares.
type equations struct {
	left  *mat.SymDense
	right []float64
	rows  float64
}

func newEquations(n int) equations {
	return equations{left: mat.NewSymDense(n, nil), right: make([]float64, n)}
}

func (e *equations) add(block *mat.Dense) {
	e.left.SymRankK(e.left, 1, block.T())
	n, _ := block.Dims()
	e.rows += float64(n)
}

func (e *equations) addTarget(row []float64, y float64) {
	for i, v := range row {
		e.right[i] += v * y
	}
}

func (e *equations) plus(o equations) {
	e.left.AddSym(e.left, o.left)
	for i, v := range o.right {
		e.right[i] += v
	}
	e.rows += o.rows
}

// solve returns the conclusions of all rows but those of without; nil: there are none.
func (e *equations) solve(without *equations, ridge float64) []float64 {
	n := len(e.right)
	left, right, rows := mat.NewSymDense(n, nil), mat.NewVecDense(n, slices.Clone(e.right)), e.rows
	left.CopySym(e.left)
	if without != nil {
		rows -= without.rows
		for i := range n {
			for j := i; j < n; j++ {
				left.SetSym(i, j, left.At(i, j)-without.left.At(i, j))
			}
			right.SetVec(i, right.AtVec(i)-without.right[i])
		}
	}
	for i := range n {
		left.SetSym(i, i, left.At(i, i)+ridge*rows+1e-9)
	}
	var factor mat.Cholesky
	if !factor.Factorize(left) {
		return nil
	}
	var out mat.VecDense
	if err := factor.SolveVecTo(&out, right); err != nil {
		if _, poor := errors.AsType[mat.Condition](err); !poor {
			return nil
		}
	}
	for _, v := range out.RawVector().Data {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil
		}
	}
	return out.RawVector().Data
}
