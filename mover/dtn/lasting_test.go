package dtn

import (
	"bufio"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestAnEventStreamOutlastsTheTimeOfARequest follows each over HTTP/1.1 for much longer than
// the server's timeouts, while the DTN says every second that it lives.
func TestAnEventStreamOutlastsTheTimeOfARequest(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		const long = 4 * time.Minute
		r.opt.Engines[mover.Stream] = fakeProber{r.engine, func(ctx context.Context, _ mover.ProbeRequest, _ func(mover.Probing)) (mover.Probed, error) {
			<-ctx.Done()
			return mover.Probed{}, ctx.Err()
		}}
		s := r.server(t)
		hc := nettest.Piped(t, NewHTTPServer(t.Context(), s.api, nil, slog.New(slog.DiscardHandler)))
		id := submit(t, s, request("k"))
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/v1/events", ""},
			{"GET", "/v1/events/arrivals", ""},
			{"GET", "/v1/transfers/" + string(id) + "/events", ""},
			{"POST", "/v1/probes", `{"destination": {"address": "dtn-b.example.org:7444", "ticket": "t"}}`},
		} {
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://dtn"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.body != "" {
				req.Header.Set("Content-Type", "application/json")
			}
			resp, err := hc.Do(req)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %+v, %v", c.path, resp, err)
			}
			began, lines := time.Now(), bufio.NewScanner(resp.Body)
			for time.Since(began) < long && lines.Scan() {
			}
			if lasted := time.Since(began); lasted < long {
				t.Errorf("%s breaks after %v: %v", c.path, lasted, lines.Err())
			}
			resp.Body.Close()
		}
	})
}
