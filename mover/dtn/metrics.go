package dtn

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/glance-dtn/glance-dtn/mover"
)

// metrics are what is counted; what can be looked up is looked up by Collect.
type metrics struct {
	moved   prometheus.Counter
	ends    *prometheus.CounterVec
	seconds prometheus.Histogram
}

func newMetrics() *metrics {
	return &metrics{
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "glance_dtn_dtn_moved_bytes_total",
			Help: "Bytes proven at destinations by transfers of this DTN.",
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "glance_dtn_dtn_transfers_ended_total",
			Help: "Transfers that ended, by final state and, of the failed ones, by code.",
		}, []string{"state", "code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "glance_dtn_dtn_transfer_seconds",
			Help:    "Time from the start to the end of the transfers that were done.",
			Buckets: prometheus.ExponentialBuckets(0.25, 4, 10), // to 18 hours
		}),
	}
}

// ended counts a transfer's end; one that is queued again has not ended.
func (m *metrics) ended(s mover.Status) {
	if !s.State.Final() {
		return
	}
	m.ends.WithLabelValues(string(s.State), string(s.Code)).Inc()
	if s.State == mover.Done {
		m.seconds.Observe(s.Ended.Sub(s.Started).Seconds())
	}
}

var (
	descTransfers = prometheus.NewDesc("glance_dtn_dtn_transfers", "Transfers this DTN knows, by state.", []string{"state"}, nil)
	descArrivals  = prometheus.NewDesc("glance_dtn_dtn_arrivals", "Files in the inbox, by state.", []string{"state"}, nil)
	descFree      = prometheus.NewDesc("glance_dtn_dtn_free_bytes", "Bytes of the export that new arrivals may take.", nil, nil)
	descTotal     = prometheus.NewDesc("glance_dtn_dtn_size_bytes", "Size of the export's filesystem.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	s.metrics.moved.Describe(ch)
	s.metrics.ends.Describe(ch)
	s.metrics.seconds.Describe(ch)
	for _, d := range []*prometheus.Desc{descTransfers, descArrivals, descFree, descTotal} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. When the export cannot be asked its
// space is left out; Health says why.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	s.metrics.moved.Collect(ch)
	s.metrics.ends.Collect(ch)
	s.metrics.seconds.Collect(ch)

	transfers := s.table.counts()
	for _, state := range []mover.TransferState{mover.Queued, mover.Running, mover.Done, mover.Failed, mover.Cancelled} {
		ch <- prometheus.MustNewConstMetric(descTransfers, prometheus.GaugeValue, float64(transfers[state]), string(state))
	}
	arrivals := map[mover.ArrivalState]int{}
	for _, a := range s.opt.Arrivals.Arrivals() {
		arrivals[a.State]++
	}
	for _, state := range []mover.ArrivalState{mover.Arriving, mover.Arrived} {
		ch <- prometheus.MustNewConstMetric(descArrivals, prometheus.GaugeValue, float64(arrivals[state]), string(state))
	}
	if c, err := s.capabilities(); err == nil {
		ch <- prometheus.MustNewConstMetric(descFree, prometheus.GaugeValue, float64(c.Free))
		ch <- prometheus.MustNewConstMetric(descTotal, prometheus.GaugeValue, float64(c.Total))
	}
}
