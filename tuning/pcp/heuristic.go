package pcp

import (
	"math"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// Heuristics returns the PCP that published rules give without any history: Arslan, Ross
// and Kosar, Dynamic Protocol Tuning Algorithms for High Performance Data Transfers,
// Euro-Par 2013, as in the authors' own client (github.com/earslan10/AdaptiveGridFTPClient):
//
//	pipelining  = BDP / file size
//	concurrency = BDP / file size, at least 2, at most one for each file
//	parallelism = min(⌈BDP / buffer⌉, ⌈file size / buffer⌉)
//
// so a small file (by the BDP) is asked for early and beside others, and a large one is
// parted where one buffer does not fill the path. Where losses leave a connection less
// than its buffer, that takes the buffer's place (Hacker, Athey and Noble, IPDPS 2002: n
// connections stand n times the loss). Nothing is more than most.
func Heuristics(c tuning.Condition, most mover.PCP) mover.PCP {
	size, files := float64(c.Size), float64(c.Files)
	fill := math.Round(c.BDP() / size)
	window := min(float64(c.Buffer), c.LossWindow())
	return within(fill, min(max(fill, 2), files), min(math.Ceil(c.BDP()/window), math.Ceil(size/window)), most)
}

// within makes a PCP that asks for at least 1 and at most most of each.
func within(pipelining, concurrency, parallelism float64, most mover.PCP) mover.PCP {
	clamp := func(v float64, most int) int { return int(max(1, min(v, float64(most)))) }
	return mover.PCP{
		Pipelining:  clamp(pipelining, most.Pipelining),
		Concurrency: clamp(concurrency, most.Concurrency),
		Parallelism: clamp(parallelism, most.Parallelism),
	}
}
