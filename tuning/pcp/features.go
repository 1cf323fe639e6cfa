package pcp

import (
	"math"
	"strings"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// features are ways to describe a condition and a PCP to the fuzzy model. Which one a
// model uses is chosen by validation.
var features = []struct {
	name string
	of   func(c tuning.Condition, p mover.PCP, into []float64) []float64
	// expected is the logarithm of throughput by bandwidth that the rules correct: where
	// they know little it stands.
	expected func(x []float64) float64
}{
	{"factors", plainFeatures, nothing},
	{"logarithms of factors", logFeatures, nothing},
	{"logarithms of factors and limits", limitFeatures, together},
	{"logarithms of factors and limits of shared connections", sharedFeatures, together},
}

func nothing([]float64) float64 { return 0 }

// together is the last of the limits' features.
func together(x []float64) float64 { return -x[len(x)-1] }

// noLoss stands for a loss that nobody saw, or that the congestion control takes for none.
const noLoss = 1e-7

// lossOf returns the loss that makes the sender slow down. BBR does not take any for
// congestion (Cardwell et al., ACM Queue 14(5), 2016).
func lossOf(p tuning.Path) float64 {
	if strings.HasPrefix(p.Congestion, "bbr") {
		return noLoss
	}
	return max(p.Loss, noLoss)
}

func plainFeatures(c tuning.Condition, p mover.PCP, into []float64) []float64 {
	return append(into, float64(c.Size), float64(c.Files), c.Bandwidth, c.RTT.Seconds(), float64(c.Buffer), lossOf(c.Path),
		float64(p.Pipelining), float64(p.Concurrency), float64(p.Parallelism))
}

func logFeatures(c tuning.Condition, p mover.PCP, into []float64) []float64 {
	from := len(into)
	into = plainFeatures(c, p, into)
	for i := range into[from:] {
		into[from+i] = math.Log2(into[from+i])
	}
	return into
}

// limitFeatures are the logarithms, and how near a PCP comes to what holds a transfer
// back, each 0 from where more does not help. They know the mechanisms (Yildirim, Arslan,
// Kim and Kosar, IEEE Trans. Cloud Computing 4(1), 2016, describe them) and no host's
// figures: those are for the rules to learn.
func limitFeatures(c tuning.Condition, p mover.PCP, into []float64) []float64 {
	into = logFeatures(c, p, into)
	into = into[:len(into)-3] // of the PCP, what the load has a use for
	size, files, bdp := float64(c.Size), float64(c.Files), atLeast(c.BDP())
	// A file that was asked for on one channel is not there for another.
	channels := min(float64(p.Concurrency), math.Ceil(files/float64(p.Pipelining)))
	streams := channels * float64(p.Parallelism)
	asked := min(float64(p.Pipelining), files)

	buffers, losses := windows(c.Path, streams)
	// By the time that the path alone would take: round trips between files, and slow
	// start (RFC 5681, from the window of RFC 6928).
	between := bdp / (channels * size * asked)
	start := math.Log2(1+min(bdp, size*files)/(streams*10*tuning.MSS)) * bdp / (size * files)
	return append(into,
		buffers, losses,
		math.Log2(channels), math.Log2(float64(p.Parallelism)), math.Log2(asked),
		math.Log2(math.Ceil(files/channels)*channels/files), // of files without a channel's equal share
		math.Log2(1+between), math.Log2(1+start),
		math.Log2(math.Exp2(-min(buffers, losses))+between+start), // all together
	)
}

// sharedFeatures are limitFeatures where all files share the connections, and what is
// pipelined on each are blocks, or as many bytes of small files: as in package mover/stream. Losses hold a
// connection back once it has met several: they come 1/p packets apart, and each takes 0.3
// of the window (RFC 9438) from what slow start has left until it is the long run's.
func sharedFeatures(c tuning.Condition, p mover.PCP, into []float64) []float64 {
	into = logFeatures(c, p, into)
	into = into[:len(into)-3]
	all, bdp := float64(c.Size)*float64(c.Files), atLeast(c.BDP())
	const block = mover.BlockSize
	streams := min(float64(p.Parallelism), math.Ceil(float64(c.Size)/block)*float64(c.Files))
	asked := min(float64(p.Pipelining), math.Ceil(all/streams/block))

	buffers, losses := windows(c.Path, streams)
	loss := lossOf(c.Path)
	met := all / (streams * tuning.MSS) * loss // by each connection
	before := min(bdp/streams, 0.5/loss*tuning.MSS)
	few := 1 + max(0, math.Log(before/c.LossWindow())/math.Log(1/0.7))
	held := max(math.Exp2(-buffers), 1+max(0, 1-few/met)*(math.Exp2(-losses)-1))

	between := bdp / (streams * block * asked)
	start := math.Log2(1+min(bdp, all)/(streams*10*tuning.MSS)) * bdp / all
	opening := 4 * bdp / all // round trips: TCP and TLS 1.3 (RFC 8446), of control and of connections for data
	return append(into,
		buffers, losses, math.Log2(1+met),
		math.Log2(streams), math.Log2(asked), math.Log2(float64(p.Concurrency)),
		math.Log2(1+between), math.Log2(1+start), math.Log2(1+opening),
		math.Log2(held+between+start+opening),
	)
}

// windows are what so many connections may have in flight by buffers and by losses, as
// shares of the BDP: logarithms, 0 from where more does not help.
func windows(p tuning.Path, streams float64) (buffers, losses float64) {
	fill := func(window float64) float64 { return min(0, math.Log2(streams*window/atLeast(p.BDP()))) }
	return fill(float64(p.Buffer)), fill(p.LossWindow())
}

// atLeast is a packet: nothing less is in flight.
func atLeast(bdp float64) float64 { return max(bdp, tuning.MSS) }
