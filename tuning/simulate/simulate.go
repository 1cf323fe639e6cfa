// Package simulate computes what a transfer would achieve, from published models of TCP
// and a simple one of hosts. It makes many thousands of observations where measuring
// that many is out of question, and knows the best PCP of each condition. What learns
// from it learns this model's world, not a network's.
//
// Its PCP is GridFTP's: concurrency is the number of channels, each with parallelism
// connections and its own files, of which pipelining are asked for at a time.
package simulate

import (
	"math"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

const (
	mss = tuning.MSS
	// goodput is the payload's share of the line: 1448 of 1538 bytes, preamble and gap
	// included.
	goodput = 1448.0 / 1538
	// initialWindow is that of RFC 6928, in packets.
	initialWindow = 10
	// sharp is the exponent of the mean in which two limits meet: at the point where they
	// are equal a transfer has 2^(-1/sharp) of either. Real knees are round, too.
	sharp = 8
)

// Host is what both ends can do.
type Host struct {
	Connection float64 // bits per second of one connection: a core
	Total      float64 // bits per second of disks and all cores together
	PerFile    float64 // seconds of a channel for each file: open, sync, rename
	Files      float64 // files per second of all channels together
	PerPart    float64 // seconds that each connection beyond the first adds to a file
	Setup      float64 // round trips until a channel may send: TCP, TLS, login
	PerStream  float64 // share of Total that each connection costs
}

// Ordinary is a DTN with fast disks, whose connections are encrypted.
func Ordinary() Host {
	return Host{Connection: 8e9, Total: 40e9, PerFile: 0.004, Files: 4000, PerPart: 0.0005, Setup: 4, PerStream: 0.002}
}

// Throughput returns bits per second, files' bytes by the time from the first to the
// last of it.
func Throughput(h Host, c tuning.Condition, p mover.PCP) float64 {
	rtt := c.RTT.Seconds()
	files, bits := float64(c.Files), float64(c.Size)*8

	// A file that was asked for on one channel does not change to another: what is
	// pipelined there is missing elsewhere.
	channels := min(float64(p.Concurrency), math.Ceil(files/float64(p.Pipelining)))
	inFlight := min(float64(p.Pipelining), files)
	perChannel := math.Ceil(files / channels)
	streams := channels * float64(p.Parallelism)

	one := stream(h, c.Path)
	line := c.Bandwidth * goodput * crowd(c.Path, streams, one) * (1 - c.Loss)
	host := h.Total * math.Exp(-h.PerStream*(streams-1))
	together := least(line, host)
	channel := least(one*float64(p.Parallelism), together)

	// Each channel for itself: a file's bytes, its overhead, and what of the round trip
	// between two files pipelining does not hide.
	perFile := h.PerFile + h.PerPart*float64(p.Parallelism-1)
	alone := perChannel * (bits/channel + perFile + rtt/inFlight)
	// All of them share the line and the hosts.
	shared := most(files*bits/together, files/h.Files)
	return files * bits / (most(alone, shared) + h.Setup*rtt + slowStart(c.Path, channel/float64(p.Parallelism), perChannel*bits/float64(p.Parallelism)))
}

// stream is the rate of one connection with the path for itself: a core, and what may be
// in flight by the round trip time.
func stream(h Host, p tuning.Path) float64 {
	rate := least(float64(p.Buffer)*8/p.RTT.Seconds(), h.Connection)
	if window := p.LossWindow(); !math.IsInf(window, 1) {
		rate = least(rate, window*8/p.RTT.Seconds())
	}
	return rate
}

// crowd is the share of the line that is left where connections could use more than
// there is: their own losses grow with their number (Hacker, Athey and Noble, IPDPS 2002;
// Yildirim, Yin and Kosar, TPDS 22(12), 2011, who measure a peak and a slow decline), and
// many windows of less than four packets mean timeouts.
func crowd(p tuning.Path, streams, one float64) float64 {
	surplus := max(0, streams*one/p.Bandwidth-1)
	windows := streams * 4 * mss / max(p.BDP(), 64*mss) // a queue of 64 packets at least
	return math.Exp(-0.01*math.Log2(1+surplus)-0.002*streams) / (1 + windows/4)
}

// slowStart is the time that a connection loses while its window doubles each round trip
// (RFC 5681), until it has its rate or nothing more to send.
func slowStart(p tuning.Path, rate, bits float64) float64 {
	rtt := p.RTT.Seconds()
	full := rate * rtt / 8 / mss // window in packets
	if full <= initialWindow {
		return 0
	}
	rounds := math.Log2(min(full/initialWindow, 1+bits/8/mss/initialWindow))
	return rtt * (rounds - initialWindow*(math.Exp2(rounds)-1)/full)
}

func least(a, b float64) float64 { return 1 / most(1/a, 1/b) }

func most(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	return a * math.Pow(1+math.Pow(b/a, sharp), 1/sharp)
}
