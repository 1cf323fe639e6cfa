package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
)

func probeRequest() mover.ProbeRequest {
	return mover.ProbeRequest{Destination: mover.Destination{Address: "dtn-b.example.org:7444", Ticket: "secret"}, Time: 3 * time.Second}
}

// TestAProbeIsFollowedToItsEnd past the time that a server gives requests and answers.
func TestAProbeIsFollowedToItsEnd(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", http2), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.timeout, s.reading = 3*time.Second, 3*time.Second
			s.serve(t, "127.0.0.1:0")
			c := s.client(t, http2, s.certificate(t, pki.Agent, "A"))
			req := probeRequest()
			req.Parallelism = 1
			told := 0
			path, err := c.Probe(t.Context(), req, func(p mover.Probing) {
				if p.Phase == mover.ProbeConnect || p.Time != req.Time && p.Phase != mover.ProbeConnect {
					t.Errorf("%+v", p)
				}
				if told++; told == 8 { // one of the engine, and seven signs of life: two timeouts
					close(s.release)
				}
			})
			if err != nil || path.Address != req.Destination.Address || path.Probe == nil || path.Probe.All != 4e6 || path.Best != 4e6 || path.BDP != 500_000 || told < 8 {
				t.Errorf("%+v, %v, told %d times", path, err, told)
			}
			all, err := c.Paths(t.Context())
			if err != nil || len(all) != 1 || *all[0].Probe != *path.Probe {
				t.Errorf("%+v, %v", all, err)
			}
			req = probeRequest()
			req.Bytes = mover.MinProbeBytes
			if _, err := c.Probe(t.Context(), req, func(mover.Probing) {}); mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "for a file") {
				t.Errorf("refused: %v", err)
			}
			req.Time = mover.MaxProbeTime + 1
			if _, err := c.Probe(t.Context(), req, func(mover.Probing) {}); err == nil || !strings.Contains(err.Error(), "time_ns") {
				t.Errorf("too long: %v", err)
			}
		})
	}
}

// TestAProbeEndsWithItsClient at the DTN.
func TestAProbeEndsWithItsClient(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		s := start(t)
		c := s.client(t, http2, s.certificate(t, pki.Agent, "A"))
		ctx, cancel := context.WithCancel(t.Context())
		req := probeRequest()
		req.Parallelism = 1
		if _, err := c.Probe(ctx, req, func(mover.Probing) { cancel() }); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		select {
		case <-s.release:
		case <-time.After(time.Minute):
			t.Error("the engine goes on")
		}
	}
}

func TestADTNThatKnowsNoProbes(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	c, err := client.New(s.URL, s.Client())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Probe(t.Context(), probeRequest(), func(mover.Probing) {}); err == nil || !strings.Contains(err.Error(), "knows no probes; update it") {
		t.Errorf("%v", err)
	}
}
