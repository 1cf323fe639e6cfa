package dtn

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/glance-dtn/glance-dtn/mover"
)

// metrics are what is counted; what can be looked up is looked up by Collect.
type metrics struct {
	moved   prometheus.Counter
	waited  *prometheus.CounterVec
	ends    *prometheus.CounterVec
	seconds prometheus.Histogram
	paths   *paths
}

func newMetrics() *metrics {
	return &metrics{
		paths: newPaths(),
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "glance_dtn_dtn_moved_bytes_total",
			Help: "Bytes proven at destinations by transfers of this DTN.",
		}),
		waited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "glance_dtn_dtn_waited_seconds_total",
			Help: "Time that transfers of this DTN have waited for what was their bottleneck, by its place.",
		}, []string{"place"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "glance_dtn_dtn_transfers_ended_total",
			Help: "Transfers that ended, by final state and, of the failed ones, by code.",
		}, []string{"state", "code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "glance_dtn_dtn_transfer_seconds",
			Help:    "Time that the transfers which were done have run.",
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
		m.seconds.Observe(s.Ran.Seconds())
	}
}

var (
	descTransfers = prometheus.NewDesc("glance_dtn_dtn_transfers", "Transfers this DTN knows, by state.", []string{"state"}, nil)
	descArrivals  = prometheus.NewDesc("glance_dtn_dtn_arrivals", "Files in the inbox, by state.", []string{"state"}, nil)
	descFree      = prometheus.NewDesc("glance_dtn_dtn_free_bytes", "Bytes of the export that new arrivals may take.", nil, nil)
	descCallback  = prometheus.NewDesc("glance_dtn_dtn_callback_connected", "Whether this DTN, which takes no connections, has one to this one that files come from.", []string{"peer"}, nil)
	descStanding  = prometheus.NewDesc("glance_dtn_dtn_callback_standing", "Whether the DTN of this site, which takes no connections, has one to this one.", []string{"site"}, nil)
	descLimit     = prometheus.NewDesc("glance_dtn_dtn_limit_bits_per_second", "What may move now between this DTN and a site, or, where site is empty, all sites together; +Inf: there is no limit.", []string{"site", "direction"}, nil)
	descPassages  = prometheus.NewDesc("glance_dtn_dtn_passages", "Files that this DTN passes on from one site to another (running), or keeps for that (queued).", []string{"from", "to", "state"}, nil)
	descPassed    = prometheus.NewDesc("glance_dtn_dtn_passed_files_total", "Files that this DTN has passed on.", []string{"from", "to"}, nil)
	descPassedOn  = prometheus.NewDesc("glance_dtn_dtn_passed_bytes_total", "Bytes of files that this DTN has passed on, proven at their destination.", []string{"from", "to"}, nil)
	descTotal     = prometheus.NewDesc("glance_dtn_dtn_size_bytes", "Size of the export's filesystem.", nil, nil)
	descNotAfter  = prometheus.NewDesc("glance_dtn_dtn_certificate_not_after_timestamp_seconds", "When the DTN's certificate expires.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	s.metrics.moved.Describe(ch)
	s.metrics.waited.Describe(ch)
	s.metrics.ends.Describe(ch)
	s.metrics.seconds.Describe(ch)
	s.metrics.paths.Describe(ch)
	for _, d := range []*prometheus.Desc{descTransfers, descArrivals, descFree, descTotal, descCallback, descStanding, descLimit, descPassages, descPassed, descPassedOn, descNotAfter} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. When the export cannot be asked its
// space is left out; Health says why.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	s.metrics.moved.Collect(ch)
	s.metrics.waited.Collect(ch)
	s.metrics.ends.Collect(ch)
	s.metrics.seconds.Collect(ch)
	s.metrics.paths.collect(ch, s.table.running())

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
	for _, c := range s.callbacks() {
		ch <- prometheus.MustNewConstMetric(descCallback, prometheus.GaugeValue, truth(c.Connected), c.Address)
	}
	if s.opt.Standing != nil {
		for site, stands := range s.opt.Standing() {
			ch <- prometheus.MustNewConstMetric(descStanding, prometheus.GaugeValue, truth(stands), site)
		}
	}
	if s.opt.Certificate != nil {
		ch <- prometheus.MustNewConstMetric(descNotAfter, prometheus.GaugeValue, float64(s.opt.Certificate.NotAfter().Unix()))
	}
	s.collectPassages(ch)
	s.collectLimits(ch, time.Now())
	if c, err := s.capabilities(); err == nil {
		ch <- prometheus.MustNewConstMetric(descFree, prometheus.GaugeValue, float64(c.Free))
		ch <- prometheus.MustNewConstMetric(descTotal, prometheus.GaugeValue, float64(c.Total))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// collectPassages tells what passes, and has passed.
func (s *Server) collectPassages(ch chan<- prometheus.Metric) {
	if s.opt.Relay == nil {
		return
	}
	now := map[[3]string]int{}
	for _, p := range s.opt.Relay.Passages() {
		now[[3]string{p.From, p.To, string(p.State)}]++
	}
	for labels, n := range now {
		ch <- prometheus.MustNewConstMetric(descPassages, prometheus.GaugeValue, float64(n), labels[:]...)
	}
	for _, p := range s.opt.Relay.Passed() {
		ch <- prometheus.MustNewConstMetric(descPassed, prometheus.CounterValue, float64(p.Files), p.From, p.To)
		ch <- prometheus.MustNewConstMetric(descPassedOn, prometheus.CounterValue, float64(p.Bytes), p.From, p.To)
	}
}

// collectLimits tells the limits in force, of each site that has one.
func (s *Server) collectLimits(ch chan<- prometheus.Metric, now time.Time) {
	if s.opt.Limits == nil {
		return
	}
	ls := s.opt.Limits()
	told := map[string]bool{}
	for _, l := range ls {
		if told[l.Site] {
			continue
		}
		told[l.Site] = true
		for _, d := range []mover.Direction{mover.Send, mover.Receive} {
			ch <- prometheus.MustNewConstMetric(descLimit, prometheus.GaugeValue, float64(ls.At(now, l.Site, d)), l.Site, string(d))
		}
	}
}
