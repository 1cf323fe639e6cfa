// Package tuning holds the nouns of tuning a transfer: the path that it takes, the
// load that it moves, what came of it, and what is advised for the next one. It does
// no I/O.
package tuning

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Path is what lies between two DTNs.
type Path struct {
	Bandwidth float64       `json:"bandwidth" doc:"bits per second that its slowest part carries"`
	RTT       time.Duration `json:"rtt_ns" doc:"least round trip time"`
	Buffer    int64         `json:"buffer" doc:"bytes, the most that one connection may have in flight: the smaller of the sender's and the receiver's largest TCP buffer"`
	// Loss is what mover.Path tells as Retransmits by Sent.
	Loss       float64 `json:"loss,omitempty" doc:"share of the bytes that had to be sent again, 0 to 1; 0: none that anybody saw"`
	Congestion string  `json:"congestion,omitempty" doc:"congestion control of the sender, as in tcp_congestion_control; empty: not known"`
}

// BDP returns the bandwidth-delay product: the bytes in flight that fill the path.
func (p Path) BDP() float64 { return p.Bandwidth / 8 * p.RTT.Seconds() }

// MSS is the payload of a packet on Ethernet, with TCP's timestamps: bytes.
const MSS = 1448

// LossWindow returns the bytes that losses let one connection have in flight; infinite
// where they do not matter. Reno: Mathis, Semke, Mahdavi and Ott, CCR 27(3), 1997, with
// C = sqrt(3/2). CUBIC: RFC 9438, equation 5, and never less than Reno; H-TCP and others
// are taken for the same. BBR takes no loss for congestion: Cardwell et al., ACM Queue
// 14(5), 2016.
func (p Path) LossWindow() float64 {
	if p.Loss <= 0 || strings.HasPrefix(p.Congestion, "bbr") {
		return math.Inf(1)
	}
	window := math.Sqrt(1.5 / p.Loss)
	if p.Congestion != "reno" {
		const c, beta = 0.4, 0.7
		window = max(window, math.Pow(c*(3+beta)/(4*(1-beta)), 0.25)*math.Pow(p.RTT.Seconds()/p.Loss, 0.75))
	}
	return window * MSS
}

// Load is what is moved together.
type Load struct {
	Files int   `json:"files"`
	Size  int64 `json:"size" doc:"bytes, mean of the files"`
}

// Condition is all that is known before a transfer starts.
type Condition struct {
	Path
	Load
}

// Validate reports a condition that there cannot be.
func (c Condition) Validate() error {
	const most = 1 << 60
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.Bandwidth > 0 && c.Bandwidth <= math.MaxFloat32, "bandwidth %g: must be bits per second, above 0", c.Bandwidth)
	check(c.RTT > 0 && c.RTT <= time.Hour, "rtt %s: must be above 0, up to an hour", c.RTT)
	check(c.Buffer > 0 && c.Buffer <= most, "buffer %d: must be bytes, above 0", c.Buffer)
	check(c.Loss >= 0 && c.Loss <= 1, "loss %g: must be from 0 to 1", c.Loss)
	check(c.Files > 0 && c.Files <= most, "files %d: must be above 0", c.Files)
	check(c.Size > 0 && c.Size <= most, "size %d: must be bytes, above 0", c.Size)
	return errors.Join(faults...)
}

// Observation is what one PCP achieved in one condition.
type Observation struct {
	Condition
	PCP        mover.PCP `json:"pcp"`
	Throughput float64   `json:"throughput" doc:"bits per second"`
}

// Validate reports an observation that nobody can have made.
func (o Observation) Validate() error {
	err := o.Condition.Validate()
	if !(o.Throughput > 0 && o.Throughput <= math.MaxFloat32) {
		err = errors.Join(err, fmt.Errorf("throughput %g: must be bits per second, above 0", o.Throughput))
	}
	return errors.Join(err, checkPCP(o.PCP))
}

func checkPCP(p mover.PCP) error {
	if min(p.Pipelining, p.Concurrency, p.Parallelism) < 1 {
		return fmt.Errorf("pcp %d/%d/%d: all three must be above 0", p.Pipelining, p.Concurrency, p.Parallelism)
	}
	return nil
}

// Outcome is what became of one transfer, or of several that shared their connections:
// what these achieve is theirs together.
type Outcome struct {
	ID     string    `json:"id" doc:"names the transfer among all of all sites, as SITE/TRANSFER/TIME; the same one is kept once"`
	Ended  time.Time `json:"ended"`
	Engine string    `json:"engine" doc:"that moved it, as in mover.Request"`
	Condition
	Steps []Step `json:"steps" doc:"in the order of time, a new one wherever the PCP changed"`
}

// Site is the site whose DTN has seen it: what stands before the first slash of its ID.
func (o Outcome) Site() string {
	site, _, _ := strings.Cut(o.ID, "/")
	return site
}

// Step is a part of a transfer with one PCP in force.
type Step struct {
	PCP         mover.PCP     `json:"pcp"`
	Lasted      time.Duration `json:"lasted_ns"`
	Bytes       int64         `json:"bytes" doc:"of the files that arrived meanwhile; what of them was on the wire, where that was less"`
	Retransmits int64         `json:"retransmits,omitempty" doc:"bytes sent again meanwhile"`
	Bottleneck  mover.Place   `json:"bottleneck,omitempty" doc:"what it waited for most of the time; empty: not known"`
}

// Throughput is in bits per second.
func (s Step) Throughput() float64 {
	if s.Lasted <= 0 {
		return 0
	}
	return float64(s.Bytes) * 8 / s.Lasted.Seconds()
}

// Validate reports an outcome that nothing can be learnt from.
func (o Outcome) Validate() error {
	err := o.Condition.Validate()
	if o.ID == "" || len(o.ID) > 256 || !utf8.ValidString(o.ID) {
		err = errors.Join(err, fmt.Errorf("id %q: must be text of 1 to 256 bytes", o.ID))
	}
	if year := o.Ended.UTC().Year(); year < 1970 || year > 9999 {
		err = errors.Join(err, fmt.Errorf("ended %s: must be the time when the transfer ended", o.Ended))
	}
	if len(o.Steps) == 0 {
		err = errors.Join(err, errors.New("it has no steps"))
	}
	for i, s := range o.Steps {
		fault := checkPCP(s.PCP)
		if s.Lasted <= 0 || s.Bytes < 0 || s.Retransmits < 0 {
			fault = errors.Join(fault, fmt.Errorf("%d bytes and %d sent again in %s: none may be negative, and the time must be above 0", s.Bytes, s.Retransmits, s.Lasted))
		}
		if fault != nil {
			err = errors.Join(err, fmt.Errorf("step %d: %w", i+1, fault))
		}
	}
	return err
}

// Observations returns one for each step in which bytes moved for as long as at least.
// Shorter ones tell of a connection's start, not of a PCP; but an only step is the whole
// transfer, whose start is a part of it, and it counts however short.
func (o Outcome) Observations(atLeast time.Duration) []Observation {
	var seen []Observation
	for _, s := range o.Steps {
		if s.Bytes > 0 && s.Lasted > 0 && (s.Lasted >= atLeast || len(o.Steps) == 1) {
			seen = append(seen, Observation{Condition: o.Condition, PCP: s.PCP, Throughput: s.Throughput()})
		}
	}
	return seen
}

// Method is how an advice was found.
type Method string

// The methods, the one that needs the most history first.
const (
	TSK       Method = "tsk"       // a fuzzy model of history
	Nearest   Method = "nearest"   // the best that was seen in the most similar condition
	Heuristic Method = "heuristic" // published rules, no history
)

// Advice is the PCP to use in a condition. Low and High hold the throughput with the
// confidence that the method promises; without one that promises any all three are 0.
type Advice struct {
	PCP        mover.PCP `json:"pcp"`
	Throughput float64   `json:"throughput,omitempty" doc:"bits per second, expected"`
	Low        float64   `json:"low,omitempty" doc:"bits per second"`
	High       float64   `json:"high,omitempty" doc:"bits per second"`
	By         Method    `json:"by" enum:"tsk,nearest,heuristic"`
	Why        string    `json:"why" doc:"why by this method, for a person"`
}
