// Package routing plans by which way a file goes from one DTN to another: straight, or by
// way of others that pass it on. It computes from what was measured of each segment how
// long each way takes. All of it is pure.
package routing

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// Segment is the path from one DTN to another, in this direction, without any third DTN. A
// local copy is one, too: without a round trip time, its rate the bandwidth.
type Segment struct {
	From string `json:"from" doc:"site of the sending DTN"`
	To   string `json:"to" doc:"site of the receiving DTN"`
	tuning.Path
	Streams int `json:"streams,omitempty" doc:"connections that a transfer uses; 0: one"`
}

// Validate reports every fault of a segment from which nothing can be computed.
func (s Segment) Validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("segment from %q to %q: "+format, append([]any{s.From, s.To}, args...)...))
		}
	}
	check(s.From != "" && s.To != "" && s.From != s.To, "from and to must name two sites")
	check(s.Bandwidth >= 1 && s.Bandwidth <= 1e15, "bandwidth %g: must be bits per second, 1 to 1e15", s.Bandwidth)
	check(s.RTT >= 0 && s.RTT <= time.Hour, "rtt_ns %d: must be 0 to an hour, in nanoseconds", int64(s.RTT))
	check(s.Loss >= 0 && s.Loss <= 0.9, "loss %g: must be a share, 0 to 0.9", s.Loss)
	check(s.Buffer >= 0, "buffer %d: must be bytes; 0, without a limit", s.Buffer)
	check(s.Streams >= 0 && s.Streams <= 1024, "streams %d: must be 0 to 1024", s.Streams)
	return errors.Join(faults...)
}

// Way is how a file goes: through these DTNs in this order, all in one mode. The zero Way
// is straight.
type Way struct {
	Via  []string        `json:"via,omitempty" doc:"sites whose DTNs pass the file on, in this order; left out: none"`
	Mode mover.RelayMode `json:"mode,omitempty" enum:"store,cut" doc:"when they pass it on"`
}

// Equal reports whether both are the same way.
func (w Way) Equal(v Way) bool { return w.Mode == v.Mode && slices.Equal(w.Via, v.Via) }

// String is as in "direct", "store-and-forward through R" and "cut-through at R".
func (w Way) String() string {
	via := strings.Join(w.Via, " and ")
	switch w.Mode {
	case mover.StoreForward:
		return "store-and-forward through " + via
	case mover.CutThrough:
		return "cut-through at " + via
	}
	return "direct"
}

// Prediction is how long a way takes.
type Prediction struct {
	Way     Way     `json:"way"`
	Seconds float64 `json:"seconds" doc:"from the request to the destination's answer"`
	Rate    float64 `json:"rate" doc:"bits per second, the file's bytes by that time"`
	Hops    []Hop   `json:"hops" doc:"its segments, in order"`
}

// Hop is one segment's part of a prediction.
type Hop struct {
	From    string  `json:"from"`
	To      string  `json:"to"`
	Opening float64 `json:"opening_seconds" doc:"until the first byte, and from the last one to the answer, if there were no other segment"`
	Seconds float64 `json:"seconds" doc:"for all bytes, if nothing but this segment held them up"`
	Rate    float64 `json:"rate" doc:"bits per second meanwhile"`
	Limit   Limit   `json:"limit" enum:"line,buffer,loss,slow start" doc:"what holds it for most of the time"`

	segment Segment
}

// hopOf predicts one segment of a way.
func hopOf(s Segment, size int64) Hop {
	blocks := 1 + (size-1)/mover.BlockSize
	f := flowOf(s.Path, max(1, int(min(int64(s.Streams), blocks))), size)
	h := Hop{From: s.From, To: s.To, Seconds: f.seconds, Limit: f.limit, Opening: (2*greeting + ending) * s.RTT.Seconds(), segment: s}
	if f.seconds > 0 {
		h.Rate = float64(size) * 8 / f.seconds
	}
	return h
}

// block is how long who cuts through has to wait for the first block of a file on this
// segment: its share of the time, and its travel.
func (h Hop) block(size int64) float64 {
	return h.segment.RTT.Seconds()/2 + h.Seconds*min(1, mover.BlockSize/float64(max(size, 1)))
}

// predict is how long a file takes over these segments. One that is stored on the way takes
// the sum of the segments; one that is cut through takes the slowest one, and of the others
// the time of a block, since bytes follow each other through all of them.
func predict(w Way, hops []Hop, size int64) Prediction {
	p := Prediction{Way: w, Seconds: opening(w, hops), Hops: hops}
	var sum, slowest, fill, slowestFill float64
	for _, h := range hops {
		p.Seconds += ending * h.segment.RTT.Seconds()
		sum += h.Seconds
		fill += h.block(size)
		if h.Seconds >= slowest {
			slowest, slowestFill = h.Seconds, h.block(size)
		}
	}
	if w.Mode == mover.CutThrough {
		p.Seconds += slowest + fill - slowestFill
	} else {
		p.Seconds += sum
	}
	if p.Seconds > 0 {
		p.Rate = float64(size) * 8 / p.Seconds
	}
	return p
}

// opening is how long connections take to open on a way, until bytes follow each other
// through them. Each DTN opens the file at the next one before it says that it takes any of it.
// Connections for blocks open meanwhile; but who stores the file opens them when it has it.
func opening(w Way, hops []Hop) (seconds float64) {
	var travel, there float64 // there and back; until the file is announced at the end of the segment
	for i, h := range hops {
		rtt := h.segment.RTT.Seconds()
		travel += rtt
		there += greeting * rtt
		if i == 0 || w.Mode != mover.StoreForward {
			seconds = max(seconds, there+greeting*rtt)
		}
	}
	seconds = max(seconds, there+announcing*travel)
	if w.Mode == mover.StoreForward {
		for _, h := range hops[1:] {
			seconds += greeting * h.segment.RTT.Seconds()
		}
	}
	return seconds
}

// Question is what a plan is for.
type Question struct {
	From   string // site that has the file
	To     string // site that shall have it
	Size   int64  // bytes
	Relays int    // most DTNs between the two; 0: 1, as many as a peer's via can name

	Present *Way // by which files go now; nil: by none yet
}

// margin is the share of the present way's time that another one has to save: more than
// what two measurements of the same path differ by.
const margin = 0.1

// mostRelays bounds how many ways there are.
const mostRelays = 3

// Validate reports every fault of a question.
func (q Question) Validate() error {
	var faults []error
	if q.From == "" || q.To == "" || q.From == q.To {
		faults = append(faults, fmt.Errorf("from %q to %q: must be two sites", q.From, q.To))
	}
	if q.Size < 0 {
		faults = append(faults, fmt.Errorf("size %d: must be bytes", q.Size))
	}
	if q.Relays < 0 || q.Relays > mostRelays {
		faults = append(faults, fmt.Errorf("relays %d: must be 0 to %d", q.Relays, mostRelays))
	}
	return errors.Join(faults...)
}

// Decision is the way to take, and all that there are.
type Decision struct {
	Way  Way          `json:"way"`
	Why  string       `json:"why" doc:"for a person"`
	Ways []Prediction `json:"ways" doc:"all, the fastest first"`
}

// Plan chooses the fastest way over these segments, of which there is one at most for each
// two sites. The present way stays as long as no other one saves the margin: so a
// segment that was measured anew changes the way when that is worth it, and the measurements'
// noise does not. It is an error when a segment or the question is wrong, or no segments
// lead from one site to the other.
func Plan(segments []Segment, q Question) (Decision, error) {
	type ends struct{ from, to string }
	known := map[ends]Segment{}
	faults := []error{q.Validate()}
	for _, s := range segments {
		faults = append(faults, s.Validate())
		if _, twice := known[ends{s.From, s.To}]; twice {
			faults = append(faults, fmt.Errorf("segment from %q to %q: there are two", s.From, s.To))
		}
		known[ends{s.From, s.To}] = s
	}
	if err := errors.Join(faults...); err != nil {
		return Decision{}, err
	}

	done := map[ends]Hop{} // a segment is part of many ways
	over := func(through []Segment) (hops []Hop) {
		for _, s := range through {
			e := ends{s.From, s.To}
			if _, is := done[e]; !is {
				done[e] = hopOf(s, q.Size)
			}
			hops = append(hops, done[e])
		}
		return hops
	}

	var d Decision
	var walk func(through []Segment)
	walk = func(through []Segment) {
		at := q.From
		if len(through) > 0 {
			at = through[len(through)-1].To
		}
		if at == q.To {
			d.Ways = append(d.Ways, ways(over(through), q.Size)...)
			return
		}
		if len(through) > cmp.Or(q.Relays, 1) {
			return
		}
		for _, s := range segments {
			back := s.To == q.From || slices.ContainsFunc(through, func(t Segment) bool { return t.To == s.To })
			if s.From == at && !back {
				walk(append(slices.Clip(through), s))
			}
		}
	}
	walk(nil)
	if len(d.Ways) == 0 {
		return d, fmt.Errorf("no known segments lead from %s to %s: measure the one between them, or those to and from a DTN between", q.From, q.To)
	}
	slices.SortStableFunc(d.Ways, func(a, b Prediction) int {
		return cmp.Or(cmp.Compare(a.Seconds, b.Seconds), cmp.Compare(len(a.Way.Via), len(b.Way.Via)), cmp.Compare(a.Way.String(), b.Way.String()))
	})
	d.choose(q)
	return d, nil
}

// ways are those over these segments.
func ways(hops []Hop, size int64) []Prediction {
	var via []string
	for _, h := range hops[1:] {
		via = append(via, h.From)
	}
	if via == nil {
		return []Prediction{predict(Way{}, hops, size)}
	}
	return []Prediction{
		predict(Way{via, mover.StoreForward}, hops, size),
		predict(Way{via, mover.CutThrough}, hops, size),
	}
}

// choose takes the way, and says why.
func (d *Decision) choose(q Question) {
	best := d.Ways[0]
	d.Way = best.Way
	if q.Present == nil {
		d.Why = fmt.Sprintf("%s is the fastest way, %s", best.Way, best)
		if len(d.Ways) > 1 {
			next := d.Ways[1]
			if i := slices.IndexFunc(d.Ways, func(p Prediction) bool { return p.Way.Equal(Way{}) }); i > 0 {
				next = d.Ways[i]
			}
			d.Why += "; " + next.against(best)
		}
		return
	}
	i := slices.IndexFunc(d.Ways, func(p Prediction) bool { return p.Way.Equal(*q.Present) })
	if i < 0 {
		d.Why = fmt.Sprintf("%s is the fastest way, %s; of the present one, %s, no segments are known", best.Way, best, q.Present)
		return
	}
	present := d.Ways[i]
	switch saved := 1 - best.Seconds/max(present.Seconds, math.SmallestNonzeroFloat64); {
	case i == 0:
		d.Why = fmt.Sprintf("%s, the present way, is the fastest, %s", best.Way, best)
	case saved < margin:
		d.Way = present.Way
		d.Why = fmt.Sprintf("%s, the present way, stays, %s: %s would save %.0f %% of its time, and a change is worth it from %.0f %% on",
			present.Way, present, best.Way, 100*saved, 100*margin)
	default:
		d.Why = fmt.Sprintf("%s is the fastest way, %s; %s", best.Way, best, present.against(best))
	}
}

// Brief says the way, how long it takes, and how long the best of those takes that are not
// taken, the direct one before all others. One that is not the fastest stays because it is
// the present one. It is short enough for a list.
func (d Decision) Brief() string {
	of := func(w Way) int {
		return slices.IndexFunc(d.Ways, func(p Prediction) bool { return p.Way.Equal(w) })
	}
	taken := d.Ways[of(d.Way)]
	stays := ""
	if !taken.Way.Equal(d.Ways[0].Way) {
		stays = " stays"
	}
	text := fmt.Sprintf("%s%s, %s predicted", taken.Way, stays, seconds(taken.Seconds))
	i := of(Way{})
	if i < 0 || taken.Way.Equal(Way{}) {
		i = slices.IndexFunc(d.Ways, func(p Prediction) bool { return !p.Way.Equal(taken.Way) })
	}
	if i < 0 {
		return text
	}
	return text + fmt.Sprintf(" against %s %s", seconds(d.Ways[i].Seconds), d.Ways[i].Way)
}

// String says how long it takes, and which segment holds it.
func (p Prediction) String() string {
	return fmt.Sprintf("%s at %s (%s)", seconds(p.Seconds), mover.Rate(p.Rate).Brief(), p.narrow())
}

// against says how much longer p takes than the best, and why.
func (p Prediction) against(best Prediction) string {
	longer := p.Seconds/max(best.Seconds, math.SmallestNonzeroFloat64) - 1
	much := fmt.Sprintf("takes %s, %.1f times as long", seconds(p.Seconds), 1+longer)
	switch {
	case longer < 0.005:
		much = "takes as long"
	case longer < 0.1:
		much = fmt.Sprintf("takes %s, %.0f %% longer", seconds(p.Seconds), 100*longer)
	}
	return fmt.Sprintf("%s %s (%s)", p.Way, much, p.narrow())
}

// narrow says what holds the segment that takes the longest.
func (p Prediction) narrow() string {
	h := slices.MaxFunc(p.Hops, func(a, b Hop) int { return cmp.Compare(a.Seconds+a.Opening, b.Seconds+b.Opening) })
	s := h.segment
	if h.Opening > h.Seconds {
		return fmt.Sprintf("%s → %s: round trips of %s before the first byte", h.From, h.To, mover.Millis(s.RTT))
	}
	why := ""
	switch h.Limit {
	case ByLine:
		why = "its bandwidth of " + mover.Rate(s.Bandwidth).Brief()
	case ByBuffer:
		why = fmt.Sprintf("a buffer of %s for a bandwidth-delay product of %s", mover.Size(s.Buffer), mover.Size(int64(min(s.BDP(), math.MaxInt64/2))))
	case ByLoss:
		why = fmt.Sprintf("losses of %.3g %% at a round trip of %s, after which %s opens its window again", 100*s.Loss, mover.Millis(s.RTT), cmp.Or(s.Congestion, "cubic"))
	case ByStart:
		why = fmt.Sprintf("slow start, whose window opens with each round trip of %s", mover.Millis(s.RTT))
	}
	return fmt.Sprintf("%s → %s: %s", h.From, h.To, why)
}

func seconds(s float64) string {
	switch {
	case s < 10:
		return fmt.Sprintf("%.3g s", s)
	case s < 600:
		return fmt.Sprintf("%.0f s", s)
	case s < math.MaxInt64/1e9:
		return mover.Span(time.Duration(s * 1e9))
	}
	return "centuries"
}
