package routing

import (
	"math"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/tuning"
)

const (
	mss = 1448 // bytes of payload of a packet on Ethernet with TCP's timestamps
	// goodput is the payload's share of the line: 1448 of 1538 bytes, preamble and gap
	// included.
	goodput = mss / 1538.0
	// initialWindow is that of RFC 6928, in packets.
	initialWindow = 10
	// leastWindow is what no loss takes away, in packets.
	leastWindow = 1
	// queued is how many bandwidth-delay products may wait before the slowest part: the
	// rule of thumb of Villamizar and Song, "High performance TCP in ANSNET", CCR 24(5), 1994.
	queued = 1
	// greeting is how many round trips a connection takes to open: TCP, TLS and its hello.
	// That for control comes first; then those for blocks open while the file is announced,
	// which takes one. ending is the answer to its last byte.
	greeting, announcing, ending = 3, 1, 1
	// followed is how many connections are followed, at most, each with a first loss of its own.
	followed = 8
	// mostSteps bounds how much of a transfer is followed step by step. What is left has
	// the mean rate of the second half of them.
	mostSteps = 20000
)

// control is how a congestion control's window, in packets, moves on one connection.
type control interface {
	// lost returns the window after a loss.
	lost(w float64) float64
	// grown returns the window after a part of it, 0 to 1, was acknowledged within a time
	// in seconds. It is not asked during slow start.
	grown(w, part, seconds float64) float64
}

// controlOf is the model of a congestion control by its name in the kernel. One that is
// not known is taken for cubic, the default of Linux.
func controlOf(p tuning.Path) control {
	switch name := p.Congestion; {
	case strings.HasPrefix(name, "bbr") && p.Loss <= bbrBears:
		return bbr{}
	case strings.HasPrefix(name, "bbr"), name == "reno":
		return reno{}
	case name == "htcp":
		return &htcp{}
	}
	return &cubic{}
}

// reno is RFC 5681. With a loss in every 1/p packets its mean window is sqrt(3/2/p):
// Mathis, Semke, Mahdavi and Ott, "The macroscopic behavior of the TCP congestion
// avoidance algorithm", CCR 27(3), 1997, without delayed acknowledgements, which Linux
// makes up for.
type reno struct{}

func (reno) lost(w float64) float64           { return w / 2 }
func (reno) grown(w, part, _ float64) float64 { return w + part }

// cubic is RFC 9438. With a loss in every 1/p packets its mean window is that of section
// 5.1, or that of reno where it is larger.
type cubic struct {
	most  float64 // W_max
	prior float64 // window at the last loss
	k     float64 // seconds from a loss until the window is most again
	since float64 // seconds from the last loss
	est   float64 // W_est: the window that reno would have
}

const (
	cubicC    = 0.4
	cubicBeta = 0.7
)

func (c *cubic) lost(w float64) float64 {
	most := w
	if w < c.most { // fast convergence, section 4.7
		most = w * (1 + cubicBeta) / 2
	}
	after := w * cubicBeta
	*c = cubic{most: most, prior: w, est: after, k: math.Cbrt(max(0, most-after) / cubicC)}
	return after
}

func (c *cubic) grown(w, part, seconds float64) float64 {
	if c.most == 0 { // slow start ended without a loss
		*c = cubic{most: w, prior: w, est: w}
	}
	c.since += seconds
	alpha := 1.0
	if c.est < c.prior { // section 4.3
		alpha = 3 * (1 - cubicBeta) / (1 + cubicBeta)
	}
	c.est += alpha * part
	target := cubicC*math.Pow(c.since-c.k, 3) + c.most
	// In a round trip it grows by half at most, section 4.2.
	return max(w, c.est, min(target, w*(1+part/2)))
}

// htcp is Leith and Shorten, "H-TCP: TCP congestion control for high bandwidth-delay
// product paths", draft-leith-tcp-htcp-06, 2008. Losses without a queue leave it 0.8 of its
// window.
type htcp struct{ since float64 }

const htcpBeta = 0.8

func (h *htcp) lost(w float64) float64 {
	h.since = 0
	return w * htcpBeta
}

func (h *htcp) grown(w, part, seconds float64) float64 {
	h.since += seconds
	alpha := 1.0
	if late := h.since - 1; late > 0 {
		alpha = 1 + 10*late + late*late/4
	}
	return w + 2*(1-htcpBeta)*alpha*part
}

// bbr goes by the bandwidth that it measures: Cardwell, Cheng, Gunn, Yeganeh and Jacobson,
// "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016. A loss does not
// change its window, as long as sending a quarter more, as it does now and then, makes up
// for what is lost. In slow start the window does not grow in the first round trip after a loss
// (packet conservation, draft-cardwell-iccrg-bbr-congestion-control).
type bbr struct{}

const (
	bbrBears = 0.2
	// bbrProbes is the share of the time in which it does not measure the round trip
	// time with an empty window: all but 200 ms in 10 s.
	bbrProbes = 0.98
)

func (bbr) lost(w float64) float64           { return w }
func (bbr) grown(w, part, _ float64) float64 { return w * (1 + part) }

// Limit is what holds a transfer on a segment for most of the time.
type Limit string

// The limits.
const (
	ByLine   Limit = "line"       // its bandwidth
	ByBuffer Limit = "buffer"     // the buffer of each connection
	ByLoss   Limit = "loss"       // the congestion control's answer to losses
	ByStart  Limit = "slow start" // the window, which has not opened yet
)

// flow is the data of one transfer on one segment.
type flow struct {
	seconds float64
	limit   Limit
}

// flowOf follows connections that share a path evenly, in the manner of the papers above:
// fluids, in which every 1/p packets one is lost. How large a window becomes before its
// first loss decides much of what a connection carries, so that loss comes at quantiles of
// the exponential distribution. Who is faster carries more of the blocks.
func flowOf(p tuning.Path, n int, size int64) flow {
	k := min(n, followed)
	if p.Loss == 0 {
		k = 1
	}
	var shares float64
	var times [3]float64
	var held Limit
	for i := range k {
		one := connection(p, n, size, -math.Log(1-(float64(i)+0.5)/float64(k)))
		total := one.seconds()
		if total == 0 {
			return flow{limit: one.held}
		}
		shares += 1 / total
		for j := range times {
			times[j] += one.times[j] / total
		}
		held = one.held
	}
	longest := slices.Index(times[:], slices.Max(times[:]))
	return flow{float64(k) / shares, []Limit{ByStart, ByLoss, held}[longest]}
}

// course is how a connection spent its time: seconds by what held it, 0 slow start,
// 1 losses, 2 line or buffer.
type course struct {
	times [3]float64
	held  Limit // which of the two
}

func (c course) seconds() float64 { return c.times[0] + c.times[1] + c.times[2] }

// connection follows one of n that share a path. Its first loss comes after that share
// of the mean gap between losses.
func connection(p tuning.Path, n int, size int64, first float64) course {
	cc := controlOf(p)
	_, paced := cc.(bbr)
	full := p.Bandwidth * goodput / float64(n) / (8 * mss) // packets per second that the line carries
	if paced {
		full *= bbrProbes
	}
	left := float64(size) / mss / float64(n) / (1 - p.Loss) // packets, what is lost is sent again
	rtt := p.RTT.Seconds()
	bdp := max(full*rtt, leastWindow)
	room := (1 + queued) * bdp
	held := ByLine
	if p.Buffer > 0 && float64(p.Buffer)/mss < room {
		if room = max(float64(p.Buffer)/mss, leastWindow); room < bdp {
			held = ByBuffer
		}
	}
	gap := math.Inf(1)
	if p.Loss > 0 {
		gap = 1 / p.Loss
	}

	w, starting := min(initialWindow, room), true
	var recovers, spared float64 // packets until a window doubles again after a loss, and from there on until one may hinder it again
	untilLoss := first * gap
	var sent, sentBefore float64
	var times, before [3]float64 // seconds by what held it: 0 slow start, 1 losses, 2 line or buffer
	for step := 0; left > 0; step++ {
		switch step {
		case mostSteps / 2:
			before, sentBefore = times, sent
		case mostSteps:
			for i := range times {
				times[i] += (times[i] - before[i]) * left / (sent - sentBefore)
			}
			left = 0
			continue
		}
		rate, by := full, 2
		if w < bdp && rtt > 0 {
			rate = w / rtt
			switch {
			case starting:
				by = 0
			case w < room:
				by = 1
			}
		}
		part := min(w, left, untilLoss)
		if recovers > 0 {
			part = min(part, recovers)
		}
		took := part / rate
		times[by] += took
		sent, left, untilLoss = sent+part, left-part, untilLoss-part
		switch {
		case recovers > 0:
			recovers -= part
		case starting:
			w += part
			spared = max(0, spared-part)
		default:
			w = cc.grown(w, part/w, took)
		}
		if untilLoss <= 0 {
			if starting && paced && recovers+spared <= 0 {
				recovers, spared = w, w
			}
			w, untilLoss = max(cc.lost(w), leastWindow), gap
			starting = starting && paced
		}
		if w >= room {
			w, starting = room, false
		}
	}
	if p.Loss > 0 { // what is lost of the last window comes a round trip later
		times[1] += rtt * -math.Expm1(float64(n)*min(w, float64(size)/mss/float64(n))*math.Log1p(-p.Loss))
	}
	return course{times, held}
}
