package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// size returns n bytes for a person: 1.0 GiB.
func size(n int64) string { return mover.Size(n) }

// rate returns the speed of n bytes in d, disks included, in decimal units: 131 MB/s. That
// of a network is a mover.Rate.
func rate(n int64, d time.Duration) string {
	if d <= 0 {
		return "- MB/s"
	}
	v := float64(n) / d.Seconds() / 1e6
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.2f GB/s", v/1000)
	case v >= 10:
		return fmt.Sprintf("%.0f MB/s", v)
	}
	return fmt.Sprintf("%.1f MB/s", v)
}

// span returns d in the units that matter: 8.2 s, 3 min 12 s.
func span(d time.Duration) string { return mover.Span(d) }

// millis is a round trip time: 50.1 ms, 38 µs.
func millis(d time.Duration) string { return mover.Millis(d) }

// inRow is the reason of a job without what the row of its table says already: which
// image it is, and which site refuses it.
func inRow(reason, peer string, image glance.ImageID) string {
	reason = strings.TrimPrefix(reason, "site "+peer+" refuses: ")
	return strings.Replace(reason, "image "+string(image), "the image", 1)
}
