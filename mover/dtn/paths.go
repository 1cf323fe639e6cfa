package dtn

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Bounds of what is kept of paths.
const (
	maxPaths = 256 // destinations with figures of their own; the others share one
	maxLinks = 8   // of a destination: for each site behind it, and after a break
)

// otherPath stands for the destinations beyond maxPaths.
const otherPath = "other"

// paths counts what goes to each destination.
type paths struct {
	moved, wire, resent *prometheus.CounterVec

	mu      sync.Mutex                     // guards what follows
	links   map[string]map[time.Time]int64 // bytes sent again, by destination and when its link began
	advised map[string]bool                // destinations for which advice was given
}

func newPaths() *paths {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "glance_dtn_dtn_path_" + name, Help: help}, []string{"destination"})
	}
	return &paths{
		moved:  counter("moved_bytes_total", "Bytes proven at a destination."),
		wire:   counter("wire_bytes_total", "Bytes that transfers to a destination have put on the wire, blocks that were sent again included."),
		resent: counter("retransmitted_bytes_total", "Bytes that TCP has sent again to a destination."),
		links:  map[string]map[time.Time]int64{}, advised: map[string]bool{},
	}
}

// add takes what a transfer's report tells. Transfers that share a path tell the same of it.
func (p *paths) add(address string, moved, wire int64, path mover.Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.links[address]
	if known == nil && len(p.links) >= maxPaths {
		address = otherPath
		known = p.links[address]
	}
	if known == nil {
		known = map[time.Time]int64{}
		p.links[address] = known
	}
	p.moved.WithLabelValues(address).Add(float64(max(0, moved)))
	p.wire.WithLabelValues(address).Add(float64(max(0, wire)))
	if path.Since.IsZero() {
		return
	}
	p.resent.WithLabelValues(address).Add(float64(max(0, path.Retransmits-known[path.Since])))
	known[path.Since] = max(path.Retransmits, known[path.Since])
	for len(known) > maxLinks {
		oldest := path.Since
		for t := range known {
			if t.Before(oldest) {
				oldest = t
			}
		}
		delete(known, oldest)
	}
}

// advises reports whether there is advice for a destination that was not given yet.
func (p *paths) advises(address, advice string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if advice == "" || p.links[address] == nil || p.advised[address] {
		return false
	}
	p.advised[address] = true
	return true
}

var (
	descRTT   = prometheus.NewDesc("glance_dtn_dtn_path_rtt_seconds", "Round trip time to a destination that transfers run to.", []string{"destination"}, nil)
	descLanes = prometheus.NewDesc("glance_dtn_dtn_path_lanes", "Connections to a destination that carry blocks.", []string{"destination"}, nil)
)

// Describe tells what collect collects.
func (p *paths) Describe(ch chan<- *prometheus.Desc) {
	p.moved.Describe(ch)
	p.wire.Describe(ch)
	p.resent.Describe(ch)
	ch <- descRTT
	ch <- descLanes
}

// collect collects what was counted, and how the paths of the transfers that run are.
func (p *paths) collect(ch chan<- prometheus.Metric, running []mover.Status) {
	p.moved.Collect(ch)
	p.wire.Collect(ch)
	p.resent.Collect(ch)
	slices.SortFunc(running, func(a, b mover.Status) int { // the newest path of each
		return cmp.Or(cmp.Compare(a.Address, b.Address), b.Way.Path.Since.Compare(a.Way.Path.Since))
	})
	running = slices.CompactFunc(running, func(a, b mover.Status) bool { return a.Address == b.Address })
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range running {
		if p.links[s.Address] == nil || s.Way.Path.Since.IsZero() {
			continue
		}
		ch <- prometheus.MustNewConstMetric(descRTT, prometheus.GaugeValue, s.Way.Path.RTT.Seconds(), s.Address)
		ch <- prometheus.MustNewConstMetric(descLanes, prometheus.GaugeValue, float64(s.Way.Lanes), s.Address)
	}
}

// running returns the transfers that run.
func (t *table) running() (all []mover.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range t.byID {
		if tr.Status.State == mover.Running {
			all = append(all, t.status(tr))
		}
	}
	return all
}
