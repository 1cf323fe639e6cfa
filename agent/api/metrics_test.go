package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

func get(t *testing.T, s *http.Server, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	return w.Code, w.Body.String()
}

func wantLines(t *testing.T, page string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(page, "\n"+l+"\n") {
			name, _, _ := strings.Cut(l, "{")
			var near []string
			for have := range strings.Lines(page) {
				if strings.HasPrefix(have, name) {
					near = append(near, have)
				}
			}
			t.Errorf("no line %q among:\n%s", l, strings.Join(near, ""))
		}
	}
}

func TestMetricsFollowJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := newFake(), NewMetrics()
		log := slog.New(slog.DiscardHandler)
		server := MetricsServer(f, m, shown{notAfter: epoch}, log)
		old := f.make(agent.Receive, image(1, "before"), "B")
		f.put(old.Enter(agent.Arriving, epoch.Add(time.Hour), "").Enter(agent.Delivered, epoch.Add(2*time.Hour), ""))

		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := m.Run(ctx, f, log); err != nil {
				t.Error(err)
			}
		})
		tell := func(j agent.Job) {
			f.mu.Lock()
			f.put(j)
			f.mu.Unlock()
			synctest.Wait()
		}
		synctest.Wait()
		_, page := get(t, server, "/metrics")
		wantLines(t, page,
			`glance_dtn_agent_jobs{kind="receive",state="delivered"} 1`,
			`glance_dtn_agent_jobs{kind="send",state="parked"} 0`,
			`glance_dtn_agent_delivered_bytes_total 0`) // it was so before we looked

		j := agent.Job{ID: "s", Kind: agent.Send, Peer: "B", Image: image(3, "x")}.Enter(agent.Pending, epoch, "")
		tell(j)
		j = j.Enter(agent.Offered, epoch.Add(2*time.Second), "")
		tell(j)
		j.Attempts, j.Updated = 3, epoch.Add(3*time.Second)
		tell(j)                                                  // no new state: counted once
		j = j.Enter(agent.Parked, epoch.Add(90*time.Second), "") // not the next of its way
		tell(j)
		j = j.Enter(agent.Offered, epoch.Add(100*time.Second), "").Enter(agent.Staged, epoch.Add(107*time.Second), "")
		tell(j) // two changes seen as one
		r := agent.Job{ID: "r", Kind: agent.Receive, Peer: "B", Image: image(3, "x")}.Enter(agent.Expected, epoch, "").
			Enter(agent.Arriving, epoch.Add(time.Second), "").Enter(agent.Delivered, epoch.Add(4*time.Second), "")
		tell(r)
		tell(r.Enter(agent.Verified, epoch.Add(5*time.Second), ""))
		_, page = get(t, server, "/metrics")
		wantLines(t, page,
			`glance_dtn_agent_jobs{kind="send",state="staged"} 1`,
			`glance_dtn_agent_jobs{kind="send",state="parked"} 0`,
			`glance_dtn_agent_jobs{kind="receive",state="delivered"} 1`,
			`glance_dtn_agent_jobs{kind="receive",state="verified"} 1`,
			`glance_dtn_agent_delivered_bytes_total 3.145728e+06`,
			`glance_dtn_agent_leg_seconds_sum{kind="send",state="pending"} 2`,
			`glance_dtn_agent_leg_seconds_count{kind="send",state="pending"} 1`,
			`glance_dtn_agent_leg_seconds_sum{kind="send",state="offered"} 7`,
			`glance_dtn_agent_leg_seconds_sum{kind="receive",state="arriving"} 3`,
			`glance_dtn_agent_leg_seconds_count{kind="receive",state="delivered"} 1`)
		if strings.Contains(page, `state="parked"} 1`) || strings.Contains(page, `leg_seconds_count{kind="send",state="parked"}`) {
			t.Error("being parked was counted as a leg")
		}

		f.mu.Lock()
		f.tell(agent.Event{Gone: "r"})
		f.mu.Unlock()
		synctest.Wait()
		_, page = get(t, server, "/metrics")
		wantLines(t, page, `glance_dtn_agent_jobs{kind="receive",state="verified"} 0`)
		cancel()
		wg.Wait()
	})
}

func TestMetricsBeginAnewWhenTheStoreWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := newFake(), NewMetrics()
		f.fail = agent.ErrForbidden // any error
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = m.Run(ctx, f, slog.New(slog.DiscardHandler)) })
		time.Sleep(2500 * time.Millisecond)
		f.mu.Lock()
		f.fail = nil
		f.make(agent.Send, image(1, "x"), "B")
		f.mu.Unlock()
		time.Sleep(followAgain)
		_, page := get(t, MetricsServer(f, m, shown{}, slog.New(slog.DiscardHandler)), "/metrics")
		wantLines(t, page, `glance_dtn_agent_jobs{kind="send",state="pending"} 1`)
		cancel()
		wg.Wait()
	})
}

func TestGlanceRequestsAndTheCertificateAreMeasured(t *testing.T) {
	m := NewMetrics()
	m.Glance("GET", "/v2/images/{id}", 200, 20*time.Millisecond)
	m.Glance("GET", "/v2/images/{id}", 0, time.Second)
	_, page := get(t, MetricsServer(newFake(), m, shown{notAfter: time.Unix(1234, 0)}, slog.New(slog.DiscardHandler)), "/metrics")
	wantLines(t, page,
		`glance_dtn_agent_glance_requests_total{code="200",method="GET",route="/v2/images/{id}"} 1`,
		`glance_dtn_agent_glance_requests_total{code="0",method="GET",route="/v2/images/{id}"} 1`,
		`glance_dtn_agent_glance_request_seconds_count{method="GET",route="/v2/images/{id}"} 2`,
		`glance_dtn_agent_certificate_not_after_timestamp_seconds 1234`)
}

func TestWhetherTheExportCanBeUsedIsMeasured(t *testing.T) {
	f := newFake()
	server := MetricsServer(f, NewMetrics(), shown{}, slog.New(slog.DiscardHandler))
	for trouble, want := range map[error]string{nil: "1", errors.New("not mounted"): "0"} {
		f.trouble = trouble
		_, page := get(t, server, "/metrics")
		wantLines(t, page, "glance_dtn_agent_export_up "+want)
	}
}

// shown is what is told of a certificate.
type shown struct {
	notAfter time.Time
	fault    error
}

func (w shown) NotAfter() time.Time { return w.notAfter }
func (w shown) Fault() error        { return w.fault }

func TestReadyOnlyWhenEveryCheckPasses(t *testing.T) {
	f := newFake()
	for _, c := range []struct {
		check  agent.Check
		cert   error
		status int
		fault  string
	}{
		{agent.Check{Name: "dtn", OK: true}, nil, 200, ""},
		{agent.Check{Name: "dtn", Error: "connection refused"}, nil, 503, "dtn: connection refused"},
		{agent.Check{Name: "dtn", OK: true}, errors.New("expired"), 503, "certificate: expired"},
	} {
		f.checks = []agent.Check{{Name: "glance", OK: true}, c.check}
		server := MetricsServer(f, NewMetrics(), shown{fault: c.cert}, slog.New(slog.DiscardHandler))
		status, body := get(t, server, "/readyz")
		var checks []agent.Check
		noError(t, json.Unmarshal([]byte(body), &checks))
		fault := ""
		for _, c := range checks {
			if !c.OK {
				fault = c.Name + ": " + c.Error
			}
		}
		if status != c.status || len(checks) != 3 || !strings.HasPrefix(fault, c.fault) || c.fault == "" && fault != "" {
			t.Errorf("readyz: %d %s; want %d and %q", status, body, c.status, c.fault)
		}
		if status, _ := get(t, server, "/healthz"); status != 200 {
			t.Errorf("healthz: %d, want 200", status)
		}
	}
}
