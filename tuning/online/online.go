// Package online corrects a transfer's PCP while it runs, from what it achieves. It does
// no I/O and reads no clock: the same samples lead to the same decisions.
//
// A Corrector climbs towards the PCP with the highest utility in steps on a ladder, each
// rung √2 times the one below, keeps a step that pays and takes back one that does not. A
// PCP that was measured is not tried again, so a search ends; then the PCP stays until what
// it achieves has been another for long.
package online

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// sample is what a running transfer has come to.
type sample struct {
	at          time.Time
	since       time.Time // when what follows was 0
	bytes       int64     // acknowledged
	sent        int64     // on the wire, what was sent again included
	resent      int64     // of sent
	connections int       // now
	rtt         time.Duration
	pcp         mover.PCP // in force
	elsewhere   bool      // it waits for a disk, a CPU, a limit or the network behind a relay more than for this network
}

// sampleOf goes by what TCP tells of the path, which blocks and what they are compressed to
// do not disturb.
func sampleOf(at time.Time, p mover.Progress) sample {
	w := p.Way
	s := sample{
		at: at, since: w.Path.Since, bytes: p.Moved, sent: w.Path.Sent, resent: w.Path.Retransmits,
		connections: w.Lanes, rtt: w.Path.RTT, pcp: w.PCP,
		elsewhere: w.Bottleneck.Place != "" && (w.Bottleneck.Place != mover.Network || w.Bottleneck.From != ""),
	}
	if !s.since.IsZero() {
		s.bytes = s.sent - s.resent
	}
	return s
}

// The utility of a PCP is that of Falcon (Arifuzzaman and Arslan, SC'21), T/Kⁿ − T·L·B
// with throughput T, n connections and the share L of bytes sent again, as a logarithm:
// ln T − n·ln K − B·L. So a path that loses the same whatever the PCP cannot turn its sign,
// and what counts is that loss grows. Both prices are less than theirs: their K settles on a
// tenth less than a path carries where the knee of its throughput is round, and their B takes
// what BBR loses in the first seconds of a new connection for the path's answer to it.
const (
	perConnection = 0.01 // ln K
	perLoss       = 2.0  // B
)

// worth is by how much utility has to grow for a step to be kept.
const worth = 0.02

// Bounds of a measurement.
const (
	lookEvery    = 900 * time.Millisecond // at least between two samples that count: reports come
	lookedLate   = 3 * time.Second        // more often than the path is looked at, which is so late at most
	settling     = time.Second            // after a change, and as long as some round trips:
	settlingRTTs = 10
	fewest       = 3    // samples until a step is judged
	most         = 8    // samples after which it is, even if throughput still rises
	rising       = 0.08 // by how much it does then
	evident      = 0.3  // growth of utility that need not be measured longer
)

// Bounds of what is seen of a settled transfer.
const (
	another     = 0.3              // change of ln T that makes it another path
	moreLoss    = 0.01             // growth of loss that does
	lately      = 10               // samples that are looked at, and of which all have to say so
	firstRest   = 30 * time.Second // from the end of a search to the next one, at least
	longestRest = 16 * time.Minute // doubled each time that a search has led nowhere, up to this
)

// Corrector finds the PCP of one transfer, or of several that share their connections. It
// is not safe for concurrent use.
type Corrector struct {
	limits mover.PCP

	asked   mover.PCP // in force as soon as the engine has followed
	why     string
	last    sample
	changed time.Time // when asked came into force
	rates   []measure // since then

	state  state
	best   result
	tried  map[mover.PCP]bool // in this search
	moves  []move             // that are left of it; the first one is being tried
	origin mover.PCP          // from which this search began

	settled time.Time     // when the last search ended
	rest    time.Duration // until the next one may begin
	normal  result        // what the settled transfer achieves
}

type state int // of a Corrector

const (
	measuring state = iota // what is in force: the search begins with it
	trying                 // a step
	resting                // settled
)

// measure is what happened between two samples.
type measure struct {
	rate         float64 // bits per second
	sent, resent int64
	connections  int
}

// result is what a PCP was found to achieve.
type result struct {
	pcp     mover.PCP
	rate    float64
	loss    float64
	utility float64
}

// move is a way to go: along some of the three numbers, up or down, so many rungs at a time.
type move struct {
	pipelining, concurrency, parallelism bool
	rungs                                int
}

// New returns a corrector that goes no further than limits; what is zero there is limited
// by mover's greatest PCP.
func New(limits mover.PCP) *Corrector {
	top := mover.PCP{Pipelining: mover.MaxPipelining, Concurrency: mover.MaxConcurrency, Parallelism: mover.MaxParallelism}
	c := &Corrector{limits: top, rest: firstRest}
	c.limits = c.limited(top.With(limits))
	return c
}

// Correct takes what a transfer, or one of several that share their connections, reports
// at a time, as often as the caller likes. It returns the PCP to use from now on and why,
// for a person: until enough was seen that is the one in force.
func (c *Corrector) Correct(at time.Time, p mover.Progress) (mover.PCP, string) {
	s := sampleOf(at, p)
	switch {
	case !s.since.Equal(c.last.since) || s.bytes < c.last.bytes || c.last.at.IsZero():
		c.begin(s)
	case s.pcp != c.last.pcp && s.pcp != c.asked:
		c.begin(s) // somebody else has set it
	case s.at.Sub(c.last.at) >= lookEvery && (s.sent != c.last.sent || s.since.IsZero() || s.at.Sub(c.last.at) >= lookedLate):
		c.take(s)
	}
	return c.asked, c.why
}

// limited is p within the limits.
func (c *Corrector) limited(p mover.PCP) mover.PCP {
	return mover.PCP{
		Pipelining:  min(p.Pipelining, c.limits.Pipelining),
		Concurrency: min(p.Concurrency, c.limits.Concurrency),
		Parallelism: min(p.Parallelism, c.limits.Parallelism),
	}
}

// Settled reports whether nothing is being tried.
func (c *Corrector) Settled() bool { return c.state == resting }

// begin starts afresh with what is in force.
func (c *Corrector) begin(s sample) {
	c.last = s
	c.search(s, nil)
	if c.ask(c.limited(s.pcp), "as it was set"); c.asked != s.pcp {
		c.why = "as much of it as is allowed"
	}
}

// unheard gives up what the engine does not do.
func (c *Corrector) unheard(s sample) {
	if s.at.Sub(c.changed) < settle(s.rtt) {
		return
	}
	if c.state == trying {
		c.decide(result{pcp: c.asked, utility: math.Inf(-1)}, s)
		return
	}
	c.ask(s.pcp, "as far as the engine goes")
}

// search begins a search, with all moves where none are given: first what is in force is
// measured.
func (c *Corrector) search(s sample, moves []move) {
	if moves == nil {
		moves = []move{
			{true, true, true, 2},
			{parallelism: true, rungs: -1},
			{concurrency: true, rungs: 2},
		}
	}
	c.state, c.moves = measuring, moves
	c.tried = map[mover.PCP]bool{s.pcp: true}
	c.origin = s.pcp
	c.changed, c.rates = s.at, nil
}

func (c *Corrector) ask(p mover.PCP, why string) { c.asked, c.why = p, why }

// take looks at one more sample with the same PCP.
func (c *Corrector) take(s sample) {
	took := s.at.Sub(c.last.at)
	m := measure{
		rate: float64(s.bytes-c.last.bytes) * 8 / took.Seconds(),
		sent: s.sent - c.last.sent, resent: max(0, s.resent-c.last.resent), connections: s.connections,
	}
	c.last = s
	if s.pcp != c.asked {
		c.unheard(s)
		return
	}
	if m.rate == 0 { // a stop is none of the PCP's doing
		c.changed, c.rates = s.at, nil
		return
	}
	c.rates = append(c.rates, m)
	if c.state == resting {
		c.watch(s)
		return
	}
	if r, ok := c.judged(s); ok {
		c.decide(r, s)
	}
}

// settle is how long a change needs to show: connections are opened, and their windows
// double in each round trip.
func settle(rtt time.Duration) time.Duration {
	return settling + settlingRTTs*min(rtt, 500*time.Millisecond)
}

// judged is what the PCP in force achieves; ok: enough was seen.
func (c *Corrector) judged(s sample) (r result, ok bool) {
	n := len(c.rates)
	if n < 2 {
		return r, false
	}
	if r = c.resultOf(s.pcp, c.rates[n-1:]); c.state == trying && r.utility > c.best.utility+evident {
		return r, true
	}
	enough := n >= fewest && s.at.Sub(c.changed) >= settle(s.rtt)
	rises := n < most && c.rates[n-1].rate > (1+rising)*c.rates[n-2].rate
	return c.resultOf(s.pcp, c.rates[n-2:]), enough && !rises
}

// resultOf is what some measures come to.
func (c *Corrector) resultOf(p mover.PCP, some []measure) result {
	var rate, connections float64
	var sent, resent int64
	for _, m := range some {
		rate += m.rate / float64(len(some))
		connections += float64(m.connections) / float64(len(some))
		sent, resent = sent+m.sent, resent+m.resent
	}
	r := result{pcp: p, rate: rate, loss: share(resent, sent)}
	r.utility = math.Log(max(rate, 1)) - perConnection*connections - perLoss*r.loss
	return r
}

func share(part, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return min(1, float64(part)/float64(of))
}

// decide takes the result of what was tried, and tries the next step or settles.
func (c *Corrector) decide(r result, s sample) {
	switch {
	case c.state == measuring:
		c.best = r
	case r.utility > c.best.utility+worth:
		c.best = r
	default:
		c.drop(r)
	}
	for len(c.moves) > 0 {
		m := c.moves[0]
		p := m.from(c.best.pcp, c.limits)
		if m.rungs > 0 && s.elsewhere || p == c.best.pcp || c.tried[p] {
			c.moves = c.moves[1:]
			continue
		}
		c.tried[p] = true
		c.state = trying
		c.change(p, s, fmt.Sprintf("tried: %s brought %s", text(c.best.pcp), mover.Rate(c.best.rate).Brief()))
		return
	}
	c.settle(s)
}

// drop ends the first move, whose last step came to r. Where all three together brought
// something, if too little for so many connections, fewer more may be worth it; where they
// did harm, a larger window alone may not.
func (c *Corrector) drop(r result) {
	m := c.moves[0]
	c.moves = c.moves[1:]
	switch gain := r.rate/c.best.rate - 1; {
	case !m.together():
	case gain > worth:
		c.moves = slices.Insert(c.moves, 0, move{parallelism: true, rungs: 1})
	case gain < -worth:
		c.moves = append(c.moves, move{pipelining: true, rungs: 2})
	}
}

// change asks for another PCP.
func (c *Corrector) change(p mover.PCP, s sample, why string) {
	if p != c.asked {
		c.changed, c.rates = s.at, nil
	}
	c.ask(p, why)
}

// settle ends the search with the best of what was tried.
func (c *Corrector) settle(s sample) {
	c.state, c.settled, c.normal = resting, s.at, result{}
	if c.best.pcp == c.origin {
		c.rest = min(2*c.rest, longestRest)
	} else {
		c.rest = firstRest
	}
	c.change(c.best.pcp, s, fmt.Sprintf("the best of %d that were tried, with %s", len(c.tried), mover.Rate(c.best.rate).Brief()))
	c.rates = nil
}

// watch looks whether a settled transfer achieves what it did, and searches anew where it
// has not for long.
func (c *Corrector) watch(s sample) {
	if s.elsewhere || s.at.Sub(c.settled) < settle(s.rtt) {
		c.rates = nil
		return
	}
	if len(c.rates) < lately {
		return
	}
	c.rates = c.rates[len(c.rates)-lately:]
	now, rested := c.resultOf(s.pcp, c.rates), s.at.Sub(c.settled)
	switch {
	case c.normal == (result{}):
		c.normal, c.rates = now, nil
	case now.loss > c.normal.loss+moreLoss && rested >= c.rest/3:
		c.search(s, []move{{parallelism: true, rungs: -2}})
	case rested >= c.rest && !slices.ContainsFunc(c.rates, c.usual):
		c.search(s, nil)
	}
}

// usual reports whether m is what the settled transfer achieves.
func (c *Corrector) usual(m measure) bool {
	return math.Abs(math.Log(max(m.rate, 1)/max(c.normal.rate, 1))) < another
}

func (m move) together() bool { return m.pipelining && m.parallelism }

// from is where the move leads from p, within the limits.
func (m move) from(p, limits mover.PCP) mover.PCP {
	step := func(move bool, n, top int) int {
		if !move {
			return n
		}
		return climb(n, m.rungs, max(1, top))
	}
	return mover.PCP{
		Pipelining:  step(m.pipelining, p.Pipelining, limits.Pipelining),
		Concurrency: step(m.concurrency, p.Concurrency, limits.Concurrency),
		Parallelism: step(m.parallelism, p.Parallelism, limits.Parallelism),
	}
}

// text is a PCP for a person.
func text(p mover.PCP) string {
	return fmt.Sprintf("pipelining %d, concurrency %d, parallelism %d", p.Pipelining, p.Concurrency, p.Parallelism)
}

// ladder holds the values that a number of a PCP may take, each about √2 times the one before.
var ladder = []int{1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64}

// climb returns the value some rungs above or below n, within 1 and top.
func climb(n, rungs, top int) int {
	at := 0
	for at < len(ladder)-1 && ladder[at+1] <= n {
		at++
	}
	if rungs < 0 && ladder[at] < n {
		at++ // between two rungs
	}
	return min(max(1, ladder[min(max(at+rungs, 0), len(ladder)-1)]), top)
}
