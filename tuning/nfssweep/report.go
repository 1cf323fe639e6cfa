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
	// of 95 %, if Sure. Otherwise the measurements are too few, or differ too much
	// among themselves, for any size: then it is the largest that may well be.
	Knee int64 `json:"knee"`
	Sure bool  `json:"sure"`
	Best int64 `json:"best"` // size of the highest median
}

// Point is one size of a curve. Rates are in bits per second.
type Point struct {
	// Size was in force: what the kernel and the server made of the sizes that were Asked
	// for, where the measurement tells it.
	Size   int64     `json:"size"`
	Asked  []int64   `json:"asked"` // in ascending order
	Rates  []float64 `json:"rates"` // in the order of time
	Median float64   `json:"median"`
	Low    float64   `json:"low"`  // the slowest of them
	High   float64   `json:"high"` // the fastest of them
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
	RSize    int64  `json:"rsize,omitempty"` // in bytes; 0: reads were not measured
	WSize    int64  `json:"wsize,omitempty"` // in bytes; 0: writes were not measured
	Version  string `json:"vers,omitempty"`
	NConnect int    `json:"nconnect,omitempty"`
	// AsyncGain is by what share writes are faster where the server is async than where
	// it is sync, each at its knee; 0 where not both are known and sure.
	AsyncGain float64 `json:"async_gain,omitempty"`
	// Sure says that both sizes are knees with the confidence that Curve.Knee wants.
	Sure bool `json:"sure"`
	// Says is the advice in sentences, for a person.
	Says []string `json:"says"`
}

// risk is what async costs.
const risk = "a server with async acknowledges what its disk has not got: a crash of it loses writes that every program but glance-dtn, whose DTN settles each staged file before it counts, believes to be safe"

// Advise answers for a server and a client in these modes, those in force, which it
// does not advise to change: what async risks is for a person to decide. Among
// versions and numbers of connections it takes the lowest that is within 5 % of the
// best.
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
	mount := bestMount(base)
	a.Version, a.NConnect, a.Sure = mount.Version, mount.NConnect, true
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
		a.Says = append(a.Says, c.says(option))
		if most := c.Points[len(c.Points)-1]; most.Asked[len(most.Asked)-1] > most.Size {
			a.Says = append(a.Says, fmt.Sprintf("No %s above %d is granted: whatever asked for more was measured with that.", option, most.Size))
		}
	}
	if mount.Version != "" || mount.NConnect != 0 {
		a.Says = append(a.Says, fmt.Sprintf("Of the mounts that were compared, %s is the lowest within 5 %% of the best.",
			Corner{Version: mount.Version, NConnect: mount.NConnect}.Name()))
	}
	sync, async := r.writes(Sync, client, mount), r.writes(Async, client, mount)
	switch {
	case sync > 0 && async > 0:
		a.AsyncGain = async/sync - 1
		a.Says = append(a.Says, fmt.Sprintf("Writes have %s where the server is async and %s where it is sync, but %s.", MBs(async), MBs(sync), risk))
	case slices.ContainsFunc(r.Curves, func(c Curve) bool { return c.Server == Async }):
		a.Says = append(a.Says, strings.ToUpper(risk[:1])+risk[1:]+".")
	}
	return a
}

// says is the knee in a sentence.
func (c Curve) says(option string) string {
	knee, _ := c.At(c.Knee)
	best, _ := c.At(c.Best)
	if !c.Sure {
		return fmt.Sprintf("%s=%d is as good as these measurements can tell (%s): they are too few, or differ too much among themselves, to say that a smaller size is within 5 %% of the best; measure when the machines are quiet, or with more repetitions.",
			option, c.Knee, MBs(knee.Median))
	}
	if c.Knee == c.Best {
		return fmt.Sprintf("%s=%d is the fastest (%s), and no smaller size is surely within 5 %% of it.", option, c.Knee, MBs(knee.Median))
	}
	return fmt.Sprintf("%s=%d is the knee: %s, and the fastest, %d, has %s.", option, c.Knee, MBs(knee.Median), c.Best, MBs(best.Median))
}

// MBs prints bits per second as dd(1) does, in units of 10^6 bytes per second.
func MBs(rate float64) string {
	v := rate / 8e6
	if v < 10 {
		return fmt.Sprintf("%.1f MB/s", v)
	}
	return fmt.Sprintf("%.0f MB/s", v)
}

// bestMount returns the version and connections of the first kind of mount whose
// reads and writes at their knees are, in the geometric mean, within 5 % of the best.
func bestMount(curves []Curve) Corner {
	type score struct {
		Corner
		log float64
		n   int
	}
	var all []score
	for _, c := range curves {
		m := Corner{Version: c.Version, NConnect: c.NConnect}
		i := slices.IndexFunc(all, func(s score) bool { return s.Corner == m })
		if i < 0 {
			i, all = len(all), append(all, score{Corner: m})
		}
		knee, _ := c.At(c.Knee)
		all[i].log += math.Log(knee.Median)
		all[i].n++
	}
	best := math.Inf(-1)
	for _, s := range all {
		best = max(best, s.log/float64(s.n))
	}
	i := slices.IndexFunc(all, func(s score) bool { return s.log/float64(s.n) >= best+tolerance })
	return all[i].Corner
}

// writes is the median rate of writes at the knee, with a server in that mode; 0 if
// none was measured or the knee is not sure.
func (r Report) writes(server, client Mode, mount Corner) float64 {
	for _, c := range r.Curves {
		if c.Op == Write && c.Sure && c.Data == r.Curves[0].Data && c.Server == server && c.Client == client && c.Version == mount.Version && c.NConnect == mount.NConnect {
			p, _ := c.At(c.Knee)
			return p.Median
		}
	}
	return 0
}

// WriteCSV writes the observations in the order of time, with a header: rates in bits
// per second, sizes in bytes, empty for what was not said.
func WriteCSV(w io.Writer, seen []Observation) error {
	out := csv.NewWriter(w)
	rows := [][]string{{"op", "server", "client", "vers", "nconnect", "data", "size", "granted", "bits_per_second"}}
	for _, o := range seen {
		granted := ""
		if o.Granted != 0 {
			granted = strconv.FormatInt(o.Granted, 10)
		}
		rows = append(rows, []string{
			string(o.Op), string(o.Server), string(o.Client), o.Version, o.connections(), string(o.Data),
			strconv.FormatInt(o.Size, 10), granted, strconv.FormatFloat(o.Rate, 'f', 0, 64),
		})
	}
	return out.WriteAll(rows)
}
