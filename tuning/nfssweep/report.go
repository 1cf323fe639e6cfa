package nfssweep

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Report is what observations tell: one curve for each corner.
type Report struct {
	Curves []Curve `json:"curves"`
}

// Curve is the rate of one corner by size.
type Curve struct {
	Corner
	Points []Point `json:"points"` // those that were measured, in ascending order of size
	// Knee is the smallest size that is within 5 % of the best one with a confidence
	// of 95 %, if Sure. Otherwise one size alone was measured, or the measurements are too
	// few, or differ too much among themselves: then it is the largest that may well be.
	Knee int64 `json:"knee"`
	Sure bool  `json:"sure"`
	Best int64 `json:"best"` // size of the highest median
}

// Point is one size of a curve. Rates are in bits per second.
type Point struct {
	// Size was in force: what the kernel and the server made of the sizes that were Asked
	// for, where the measurement tells it.
	Size   int64     `json:"size"`
	Asked  []int64   `json:"asked"`     // in ascending order
	Rates  []float64 `json:"rates_bps"` // in the order of time
	Median float64   `json:"median_bps"`
	Low    float64   `json:"low_bps"`  // the slowest of them
	High   float64   `json:"high_bps"` // the fastest of them
	// Confidence is that with which this size's true rate is within 5 % of the best.
	Confidence float64 `json:"confidence"`
}

// At returns the point of a size.
func (c Curve) At(size int64) (Point, bool) {
	i := slices.IndexFunc(c.Points, func(p Point) bool { return p.Size == size })
	if i < 0 {
		return Point{}, false
	}
	return c.Points[i], true
}

// Name says what tells the curve apart from those of other corners of its operation.
func (c Corner) Name() string {
	if p := c.parts(); len(p) > 0 {
		return strings.Join(p, ", ")
	}
	return "as mounted"
}

// Headings returns what all curves have in common, as in client async, and what tells
// each apart from the others.
func Headings(curves []Curve) (common string, each []string) {
	shared := func(part string) bool {
		return !slices.ContainsFunc(curves, func(c Curve) bool { return !slices.Contains(c.parts(), part) })
	}
	for i, c := range curves {
		var own, all []string
		for _, p := range c.parts() {
			if shared(p) {
				all = append(all, p)
			} else {
				own = append(own, p)
			}
		}
		if i == 0 {
			common = strings.Join(all, ", ")
		}
		each = append(each, cmp.Or(strings.Join(own, ", "), "as mounted"))
	}
	return common, each
}

func compare(a, b Corner) int {
	return cmp.Or(
		cmp.Compare(b.Op, a.Op), cmp.Compare(b.Server, a.Server), cmp.Compare(a.Client, b.Client),
		cmp.Compare(a.Version, b.Version), cmp.Compare(a.NConnect, b.NConnect), cmp.Compare(a.Data, b.Data),
	)
}

// Analyse makes curves and knees of what Sweep or Search observed in a space: writes
// before reads, sync servers before async ones, few connections before many.
func Analyse(s Space, seen []Observation) Report {
	var r Report
	for _, e := range estimates(seen) {
		knee, sure := e.knee(s.Sizes)
		c := Curve{Corner: e.corner, Knee: e.points[knee].size, Sure: sure, Best: e.points[e.best()].size}
		for _, l := range e.points {
			p := Point{Size: l.size, Asked: l.asked, Confidence: l.sure}
			for _, o := range seen {
				if o.Corner == e.corner && o.inForce() == l.size {
					p.Rates = append(p.Rates, o.Rate)
				}
			}
			p.Median, p.Low, p.High = median(slices.Clone(p.Rates)), slices.Min(p.Rates), slices.Max(p.Rates)
			c.Points = append(c.Points, p)
		}
		r.Curves = append(r.Curves, c)
	}
	slices.SortFunc(r.Curves, func(a, b Curve) int { return compare(a.Corner, b.Corner) })
	return r
}

// Advice says what to mount with, and why.
type Advice struct {
	RSize int64 `json:"rsize,omitempty"` // in bytes; 0: reads were not measured
	WSize int64 `json:"wsize,omitempty"` // in bytes; 0: writes were not measured
	// Version and NConnect are empty where none was set, or which is best is not sure.
	Version  string `json:"vers,omitempty"`
	NConnect int    `json:"nconnect,omitempty"`
	// AsyncGain is by what share writes are faster where the server is async than where
	// it is sync, each at its knee, or the only size; 0 where not both are known and sure,
	// or async is not surely more than 5 % faster.
	AsyncGain float64 `json:"async_gain,omitempty"`
	// Sure says that all of it has the confidence that Curve.Knee wants.
	Sure bool `json:"sure"`
	// Says is the advice in sentences, for a person.
	Says []string `json:"says"`
}

// risk is what async costs.
const risk = "a server with async acknowledges what its disk has not got: a crash of it loses writes that every program but glance-dtn, whose DTN settles each staged file before it counts, believes to be safe"

// Advise answers for a server and a client in these modes, those in force, which it
// does not advise to change: what async risks is for a person to decide. Among
// versions and numbers of connections it takes the lowest that is surely within 5 % of
// the best; where none is, the sizes are those of the lowest.
func (r Report) Advise(server, client Mode) Advice {
	var a Advice
	var base []Curve // those in force; of data, the first kind
	for _, c := range r.Curves {
		if c.Server == server && c.Client == client && c.Data == r.Curves[0].Data {
			base = append(base, c)
		}
	}
	if len(base) == 0 {
		return a
	}
	mount, sure, compared := bestMount(base)
	a.Sure = sure
	if sure {
		a.Version, a.NConnect = mount.Version, mount.NConnect
	}
	doubt, once := false, true
	for _, c := range base {
		if c.Version != mount.Version || c.NConnect != mount.NConnect {
			continue
		}
		option := "wsize"
		if c.Op == Read {
			option, a.RSize = "rsize", c.Knee
		} else {
			a.WSize = c.Knee
		}
		a.Sure = a.Sure && c.Sure
		if !c.Sure && len(c.Points) > 1 {
			doubt = true
			once = once && !slices.ContainsFunc(c.Points, func(p Point) bool { return len(p.Rates) > 1 })
		}
		a.Says = append(a.Says, c.says(option))
		if most := c.Points[len(c.Points)-1]; most.Asked[len(most.Asked)-1] > most.Size {
			a.Says = append(a.Says, fmt.Sprintf("No %s above %d is granted: whatever asked for more was measured with that.", option, most.Size))
		}
	}
	if compared != "" {
		a.Says = append(a.Says, compared)
	}
	switch {
	case doubt && once:
		a.Says = append(a.Says, "No size was measured twice, so nothing is sure: measure with more repetitions.")
	case doubt:
		a.Says = append(a.Says, "Not sure: the measurements are too few, or differ too much; measure when the machines are quiet, or with more repetitions.")
	}
	sync, async := r.writes(Sync, client, mount), r.writes(Async, client, mount)
	switch {
	case len(sync.Rates) > 0 && len(async.Rates) > 0:
		a.AsyncGain = gain(sync, async)
		but := "but"
		if a.AsyncGain == 0 {
			but = "which is not surely more than 5 % faster, and"
		}
		a.Says = append(a.Says, fmt.Sprintf("Writes have %s where the server is async and %s where it is sync, %s %s.", MBs(async.Median), MBs(sync.Median), but, risk))
	case slices.ContainsFunc(r.Curves, func(c Curve) bool { return c.Server == Async }):
		a.Says = append(a.Says, strings.ToUpper(risk[:1])+risk[1:]+".")
	}
	return a
}

// says is the knee in a sentence.
func (c Curve) says(option string) string {
	knee, _ := c.At(c.Knee)
	best, _ := c.At(c.Best)
	is := fmt.Sprintf("%s=%d", option, c.Knee)
	switch {
	case len(c.Points) == 1:
		return fmt.Sprintf("%s is the only size that was measured (%s): there is nothing to compare it with.", is, MBs(knee.Median))
	case !c.Sure && c.Knee != c.Best:
		return fmt.Sprintf("%s is likely as good as any (%s), and %d was the fastest (%s).", is, MBs(knee.Median), c.Best, MBs(best.Median))
	case !c.Sure:
		return fmt.Sprintf("%s is likely the best (%s).", is, MBs(knee.Median))
	case c.Knee != c.Best:
		return fmt.Sprintf("%s is the knee: %s, and the fastest, %d, has %s.", is, MBs(knee.Median), c.Best, MBs(best.Median))
	case c.Knee == c.Points[0].Size:
		return fmt.Sprintf("%s is the fastest (%s); no smaller size was measured.", is, MBs(knee.Median))
	}
	return fmt.Sprintf("%s is the fastest (%s); smaller sizes are more than 5 %% slower, or may be.", is, MBs(knee.Median))
}

// MBs prints bits per second as dd(1) does, in units of 10^6 bytes per second.
func MBs(rate float64) string {
	v := rate / 8e6
	if v < 10 {
		return fmt.Sprintf("%.1f MB/s", v)
	}
	return fmt.Sprintf("%.0f MB/s", v)
}

// bestMount returns the version and connections of the first kind of mount whose writes
// and reads at their knees are, in the geometric mean, surely within 5 % of the best; where
// none is, of the first. It tests as estimate.judge and walks as estimate.knee, and says
// what it found, if there is anything to compare.
func bestMount(curves []Curve) (mount Corner, sure bool, says string) {
	type score struct {
		Corner
		log, variance float64 // of the mean, the latter in units of the noise
		n             float64
	}
	var all []score
	var squares float64
	free := 0
	for _, c := range curves {
		m := Corner{Version: c.Version, NConnect: c.NConnect}
		i := slices.IndexFunc(all, func(s score) bool { return s.Corner == m })
		if i < 0 {
			i, all = len(all), append(all, score{Corner: m})
		}
		knee, _ := c.At(c.Knee)
		rates := logs(knee.Rates)
		at := mean(rates)
		for _, r := range rates {
			squares += (r - at) * (r - at)
		}
		free += len(rates) - 1
		all[i].log += at
		all[i].variance += 1 / float64(len(rates))
		all[i].n++
	}
	if len(all) == 1 {
		return all[0].Corner, true, ""
	}
	best := 0
	var names []string
	for i := range all {
		s := &all[i]
		s.log /= s.n
		s.variance /= s.n * s.n
		if s.log > all[best].log {
			best = i
		}
		names = append(names, fmt.Sprintf("%s has %s", s.Name(), MBs(math.Exp(s.log))))
	}
	noise := max(tiny, math.Sqrt(squares/float64(max(free, 1))))
	holds := func(i int) bool {
		for j, other := range all {
			off := noise * math.Sqrt(all[i].variance+other.variance)
			if i != j && (free == 0 || student((all[i].log-other.log-tolerance)/off, free) < confidence) {
				return false
			}
		}
		return true
	}
	figures := strings.Join(names, ", ") + " (geometric means of what is written and read)"
	i := best
	if !holds(i) {
		return all[0].Corner, false, fmt.Sprintf("%s: which is better is not sure, so none is advised; the sizes are for %s.", figures, all[0].Name())
	}
	for i > 0 && holds(i-1) {
		i--
	}
	return all[i].Corner, true, fmt.Sprintf("%s: %s is the lowest that is surely within 5 %% of the best.", figures, all[i].Name())
}

// writes is the point of writes at the knee, with a server in that mode; without rates if
// none was measured or the knee, of several sizes, is not sure.
func (r Report) writes(server, client Mode, mount Corner) Point {
	for _, c := range r.Curves {
		if c.Op == Write && (c.Sure || len(c.Points) == 1) && c.Data == r.Curves[0].Data && c.Server == server && c.Client == client && c.Version == mount.Version && c.NConnect == mount.NConnect {
			p, _ := c.At(c.Knee)
			return p
		}
	}
	return Point{}
}

// gain is by what share the rates of b are higher than those of a, in the geometric mean; 0
// where a may well be within 5 % of b, or nothing was measured twice.
func gain(a, b Point) float64 {
	e := estimate{points: []level{{rates: logs(a.Rates)}, {rates: logs(b.Rates)}}}
	e.judge()
	if len(a.Rates)+len(b.Rates) <= 2 || e.points[0].sure > 1-confidence {
		return 0
	}
	return math.Exp(mean(e.points[1].rates)-mean(e.points[0].rates)) - 1
}

// WriteCSV writes the observations in the order of time, with a header: rates in bits
// per second, sizes in bytes, empty for what was not said.
func WriteCSV(w io.Writer, seen []Observation) error {
	out := csv.NewWriter(w)
	rows := [][]string{{"time", "op", "server", "client", "vers", "nconnect", "data", "size", "granted", "bits_per_second"}}
	for _, o := range seen {
		granted := ""
		if o.Granted != 0 {
			granted = strconv.FormatInt(o.Granted, 10)
		}
		rows = append(rows, []string{
			o.Time.UTC().Format(time.RFC3339Nano), string(o.Op), string(o.Server), string(o.Client), o.Version, o.connections(), string(o.Data),
			strconv.FormatInt(o.Size, 10), granted, strconv.FormatFloat(o.Rate, 'f', 0, 64),
		})
	}
	return out.WriteAll(rows)
}
