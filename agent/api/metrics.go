package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/internal/pki"
)

// Metrics are what an agent counts of its site. Jobs are followed, not listed at
// each scrape; where several agents share a job store each counts all jobs. It is a
// prometheus.Collector.
type Metrics struct {
	delivered prometheus.Counter
	legs      *prometheus.HistogramVec
	requests  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec

	mu   sync.Mutex // guards jobs
	jobs map[agent.JobID]seen
}

// seen is what Metrics remembers of a job.
type seen struct {
	kind  agent.Kind
	state agent.State
	at    time.Time // of its last change that was counted
}

var jobsDesc = prometheus.NewDesc("glance_dtn_agent_jobs", "Jobs in the store.", []string{"state", "kind"}, nil)

// NewMetrics returns Metrics that have counted nothing. They follow jobs while Run runs.
func NewMetrics() *Metrics {
	return &Metrics{
		jobs: map[agent.JobID]seen{},
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "glance_dtn_agent_delivered_bytes_total",
			Help: "Size of the images that this site's Glance received and proved.",
		}),
		legs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "glance_dtn_agent_leg_seconds",
			Help:    "How long jobs were in a state before they entered the next one of their way.",
			Buckets: prometheus.ExponentialBuckets(0.25, 4, 9), // to 4.5 hours
		}, []string{"state", "kind"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "glance_dtn_agent_glance_requests_total",
			Help: "Requests to Glance; code 0 is no answer.",
		}, []string{"method", "route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "glance_dtn_agent_glance_request_seconds",
			Help:    "Time until Glance's answer began.",
			Buckets: prometheus.ExponentialBuckets(0.005, 4, 8), // to 82 seconds
		}, []string{"method", "route"}),
	}
}

// Glance counts a request to Glance. The route has no ids in it.
func (m *Metrics) Glance(method, route string, code int, d time.Duration) {
	m.requests.WithLabelValues(method, route, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(method, route).Observe(d.Seconds())
}

// followAgain is the pause before a broken watch is begun anew.
const followAgain = time.Second

// Run follows the jobs until ctx ends. It returns nil.
func (m *Metrics) Run(ctx context.Context, a Agent, log *slog.Logger) error {
	for {
		if err := m.follow(ctx, a); err != nil && ctx.Err() == nil {
			log.Warn("jobs are not counted for now", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followAgain):
		}
	}
}

// follow counts from the present jobs on: the watch begins before the list.
func (m *Metrics) follow(ctx context.Context, a Agent) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := a.Watch(ctx)
	now := map[agent.JobID]seen{}
	for j, err := range a.Jobs(ctx) {
		if err != nil && j.ID == "" {
			return fmt.Errorf("list jobs: %w", err)
		}
		now[j.ID] = seen{j.Kind, j.State, j.Updated}
	}
	m.mu.Lock()
	m.jobs = now
	m.mu.Unlock()
	for ev, err := range events {
		switch {
		case err != nil && ev.Job == nil:
			return fmt.Errorf("watch jobs: %w", err)
		case ev.Job != nil && err == nil: // with an error it is a record that cannot be read
			m.changed(*ev.Job)
		case ev.Gone != "":
			m.mu.Lock()
			delete(m.jobs, ev.Gone)
			m.mu.Unlock()
		}
	}
	return nil
}

// changed counts what the job's history has since it was seen last.
func (m *Metrics) changed(j agent.Job) {
	m.mu.Lock()
	last := m.jobs[j.ID]
	m.jobs[j.ID] = seen{j.Kind, j.State, j.Updated}
	m.mu.Unlock()
	way := j.Kind.Way()
	for i, c := range j.History {
		if !c.At.After(last.at) {
			continue
		}
		if j.Kind == agent.Receive && c.State == agent.Delivered {
			m.delivered.Add(float64(j.Image.Size))
		}
		if i == 0 {
			continue
		}
		if left := j.History[i-1]; slices.Index(way, c.State) > slices.Index(way, left.State) && slices.Contains(way, left.State) {
			m.legs.WithLabelValues(string(left.State), string(j.Kind)).Observe(c.At.Sub(left.At).Seconds())
		}
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- jobsDesc
	for _, c := range m.counted() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	type labels struct {
		state agent.State
		kind  agent.Kind
	}
	n := map[labels]int{}
	m.mu.Lock()
	for _, s := range m.jobs {
		n[labels{s.state, s.kind}]++
	}
	m.mu.Unlock()
	for _, kind := range []agent.Kind{agent.Send, agent.Receive} {
		for _, state := range append(kind.Way(), agent.Cancelling, agent.Parked, agent.Cancelled) {
			ch <- prometheus.MustNewConstMetric(jobsDesc, prometheus.GaugeValue, float64(n[labels{state, kind}]), string(state), string(kind))
		}
	}
	for _, c := range m.counted() {
		c.Collect(ch)
	}
}

func (m *Metrics) counted() []prometheus.Collector {
	return []prometheus.Collector{m.delivered, m.legs, m.requests, m.seconds}
}

// MetricsServer serves /metrics; /healthz, which says that the process answers; and
// /readyz, which lists what the agent needs, with 503 when something of it fails.
// cert is the agent's certificate.
func MetricsServer(a Agent, m *Metrics, cert pki.Watched, log *slog.Logger) *http.Server {
	reg := prometheus.NewRegistry()
	reg.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "glance_dtn_agent_certificate_not_after_timestamp_seconds",
			Help: "When the agent's certificate expires.",
		}, func() float64 { return float64(cert.NotAfter().Unix()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "glance_dtn_agent_export_up",
			Help: "1 when the export of the site's DTN can be used here, 0 when the legs that need it wait.",
		}, func() float64 {
			if a.ExportTrouble() != nil {
				return 0
			}
			return 1
		}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		checks := append(a.Checks(r.Context()), certificateCheck(cert.Fault()))
		status := http.StatusOK
		if slices.ContainsFunc(checks, func(c agent.Check) bool { return !c.OK }) {
			status = http.StatusServiceUnavailable
		}
		answerJSON(w, status, "application/json", checks)
	})
	return newServer(mux, time.Minute, log)
}

func certificateCheck(fault error) agent.Check {
	c := agent.Check{Name: "certificate", OK: fault == nil}
	if fault != nil {
		c.Error = fault.Error()
	}
	return c
}
