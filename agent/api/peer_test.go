package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

var (
	siteA = pki.Identity{Site: "A", Role: pki.Agent}
	siteB = pki.Identity{Site: "B", Role: pki.Agent}
)

// peering is a peer API over mutual TLS, and a caller with a certificate.
type peering struct {
	ca     *pki.CA
	url    string
	caller pki.Identity
}

func startPeer(t *testing.T, a Agent, caller pki.Identity) *peering {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	noError(t, err)
	p := &peering{ca: ca, caller: caller}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	noError(t, err)
	p.url = "https://" + l.Addr().String()
	serve(t, PeerServer(a, new(Callbacks), slog.New(slog.DiscardHandler)), tls.NewListener(l, p.keyring(t, siteA, 0).ServerTLS(nil)))
	return p
}

// keyring issues a certificate and loads it as a daemon does.
func (p *peering) keyring(t *testing.T, id pki.Identity, life time.Duration) *pki.Keyring {
	t.Helper()
	cert, err := p.ca.Issue(id, []string{"127.0.0.1"}, life)
	noError(t, err)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	noError(t, err)
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		noError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	k, err := pki.Files{
		CA:   write("ca.pem", "CERTIFICATE", p.ca.Certificate().Raw),
		Cert: write("own.pem", "CERTIFICATE", cert.Certificate[0]),
		Key:  write("own.key", "PRIVATE KEY", key),
	}.Load(func(err error) { t.Error(err) })
	noError(t, err)
	return k
}

func (p *peering) client(t *testing.T) *PeerClient {
	t.Helper()
	tr := p.keyring(t, p.caller, 0).Transport(siteA)
	t.Cleanup(tr.CloseIdleConnections)
	return NewPeerClient("A", p.url, &http.Client{Transport: tr})
}

func TestPeersBringAnImageOverMutualTLS(t *testing.T) {
	f := newFake()
	p := startPeer(t, f, siteB).client(t)
	ctx := t.Context()

	bare := image(7, "")
	bare.Tags, bare.Properties, bare.Visibility = nil, nil, ""
	rich := image(8, "rich")
	for i := range 128 {
		rich.Properties[fmt.Sprintf("property_%d", i)] = strings.Repeat("v", 255)
	}
	for _, img := range []agent.Offer{{Image: bare}, {Image: rich}} {
		g, err := p.Offer(ctx, img)
		noError(t, err)
		j, err := f.Job(ctx, g.Delivery)
		noError(t, err)
		same(t, "the image that the agent was offered", j.Image, img.Image)
		if g.Verdict != agent.Accept || g.Ticket != secret || j.Peer != "B" {
			t.Errorf("grant %+v for site %s; want one with a ticket for B", g, j.Peer)
		}
		d, err := p.Delivery(ctx, g.Delivery)
		noError(t, err)
		same(t, "Delivery", d, agent.Delivery{ID: j.ID, State: agent.Expected, ImageID: img.Image.ID})
		noError(t, p.CancelDelivery(ctx, g.Delivery))
		if j, _ = f.Job(ctx, g.Delivery); j.State != agent.Cancelled {
			t.Errorf("the job is %s, want cancelled", j.State)
		}
	}
	j, err := p.Request(ctx, "debian")
	noError(t, err)
	if j.Peer != "B" || j.Kind != agent.Send || j.Offer.Ticket != "" {
		t.Errorf("Request = %+v, want a job that sends to B, without ticket", j)
	}
	now, err := p.Sending(ctx, j.ID)
	noError(t, err)
	same(t, "Sending", now, j) // without its ticket, too
	d, err := p.ProbeTicket(ctx, "R")
	noError(t, err)
	same(t, "ProbeTicket", d, mover.Destination{Address: "dtn-B:1", Ticket: "via R"})
}

func TestSiteSeesItsOwnJobsOnly(t *testing.T) {
	f := newFake()
	p := startPeer(t, f, siteB)
	g, err := p.client(t).Offer(t.Context(), agent.Offer{Image: image(1, "x")})
	noError(t, err)
	j, err := p.client(t).Request(t.Context(), "debian")
	noError(t, err)
	p.caller.Site = "C"
	other := p.client(t)
	if d, err := other.Delivery(t.Context(), g.Delivery); !errors.Is(err, agent.ErrNoJob) {
		t.Errorf("another site sees %+v, %v; want %v", d, err, agent.ErrNoJob)
	}
	if j, err := other.Sending(t.Context(), j.ID); !errors.Is(err, agent.ErrNoJob) {
		t.Errorf("another site sees %+v, %v; want %v", j, err, agent.ErrNoJob)
	}
}

func TestInventoryIsStreamed(t *testing.T) {
	f := newFake()
	f.images = nil
	for i := range 5000 {
		f.images = append(f.images, image(i, "image"))
	}
	p := startPeer(t, f, siteB).client(t)
	n := 0
	for img, err := range p.Inventory(t.Context()) {
		noError(t, err)
		if n == 4321 {
			same(t, "an image", img, f.images[n])
		}
		n++
	}
	if n != len(f.images) {
		t.Errorf("%d images, want %d", n, len(f.images))
	}
	for range p.Inventory(t.Context()) {
		break // goleak sees to it that nothing is left
	}
}

func TestHealthIsToldToTheSiteThatAsks(t *testing.T) {
	h, err := startPeer(t, newFake(), siteB).client(t).Health(t.Context())
	noError(t, err)
	same(t, "its DTN", *h.DTN, agent.Silence{Since: epoch, Error: "not heard, says site A to site B"})
}

func TestInventoryThatFailsOnTheWayIsNotTakenForWhole(t *testing.T) {
	f := newFake()
	last := len(f.images) - 1
	f.broken = func(i int) error {
		if i == last {
			return agent.ErrForbidden
		}
		return nil
	}
	var n int
	var failed error
	for _, err := range startPeer(t, f, siteB).client(t).Inventory(t.Context()) {
		if n++; err != nil {
			failed = err
		}
	}
	if n != len(f.images) || !errors.Is(failed, agent.ErrForbidden) {
		t.Errorf("%d items, then %v; want %d and %v", n, failed, len(f.images), agent.ErrForbidden)
	}
}

func TestOnlyAgentsMayCall(t *testing.T) {
	f := newFake()
	p := startPeer(t, f, siteB)
	for _, id := range []pki.Identity{{Site: "B", Role: pki.DTN}, {Site: "A", Role: pki.Operator}, {Site: "stranger", Role: pki.Agent}} {
		p.caller = id
		_, err := p.client(t).Offer(t.Context(), agent.Offer{Image: image(1, "x")})
		if !errors.Is(err, agent.ErrForbidden) || !strings.Contains(err.Error(), "site A ("+p.url+")") || !strings.Contains(err.Error(), "site "+id.Site) {
			t.Errorf("the %v: %v, want %v of site A, which names the site that asked", id, err, agent.ErrForbidden)
		}
	}
	if len(f.jobs) != 0 {
		t.Errorf("they made jobs: %+v", f.jobs)
	}
}

func TestHandshakeNeedsAValidCertificate(t *testing.T) {
	p := startPeer(t, newFake(), siteB)
	expired, err := p.ca.Issue(siteB, nil, -time.Minute)
	noError(t, err)
	for want, certs := range map[string][]tls.Certificate{"(certificate required)": nil, "takes this host's certificate for expired": {expired}} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool(), Certificates: certs}}
		_, err := NewPeerClient("A", p.url, &http.Client{Transport: tr}).Request(t.Context(), "debian")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want that it %s", err, want)
		}
		tr.CloseIdleConnections()
	}
}

func TestPeerAPIWithoutTLSRefusesEveryone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	noError(t, err)
	serve(t, PeerServer(newFake(), new(Callbacks), slog.New(slog.DiscardHandler)), l)
	for _, path := range []string{"/v1/inventory", "/openapi.json", "/nothing"} {
		res, body := raw(t, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "GET", "http://"+l.Addr().String()+path, "")
		if res.StatusCode != http.StatusForbidden || !strings.Contains(body, "client certificate") {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
}

func TestOfferWithUnknownFieldIsRefused(t *testing.T) {
	f := newFake()
	p := startPeer(t, f, siteB).client(t)
	_, err := ask[agent.Grant](t.Context(), p.c, "POST", "/v1/offers", map[string]any{"image": image(1, "x"), "force": true})
	if err == nil || !strings.Contains(err.Error(), "body.force") || len(f.jobs) != 0 {
		t.Errorf("got %v and jobs %+v; want a refusal of force", err, f.jobs)
	}
}

// While sites are brought to a new version one after the other, offers wait.
func TestRequestThatAnOlderPeerDoesNotUnderstandIsRetried(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity} {
		p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
			answerJSON(w, status, problemMedia, newProblem(status, "validation failed", "body.force: unexpected property"))
		})
		_, err := p.Offer(t.Context(), agent.Offer{Image: image(1, "x")})
		if err == nil || failure.IsPermanent(err) || !strings.HasPrefix(err.Error(), "site B's agent (http://") ||
			!strings.HasSuffix(err.Error(), "does not understand this request: is its version older? validation failed: body.force: unexpected property") {
			t.Errorf("%d: %v, permanent %v; want one that asks for the peer's version and may be retried", status, err, failure.IsPermanent(err))
		}
	}
}

// answering is a client of a server that is no agent's.
func answering(t *testing.T, h http.HandlerFunc) *PeerClient {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return NewPeerClient("B", s.URL, s.Client())
}

func TestAnswerOfAnotherServerIsNotTakenForTheAgents(t *testing.T) {
	p := answering(t, http.NotFound)
	_, err := p.Delivery(t.Context(), "1")
	if err == nil || errors.Is(err, agent.ErrNoJob) || !strings.Contains(err.Error(), "404 Not Found and no agent's") {
		t.Errorf("got %v; a page that is missing is no missing job", err)
	}
	p = answering(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })
	if _, err := p.Delivery(t.Context(), "1"); err == nil || !strings.Contains(err.Error(), "site B (http://") {
		t.Errorf("got %v, want an error that names the site", err)
	}
}

func TestInventoryThatIsCutOffIsAnError(t *testing.T) {
	p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "{\"id\":%q}\n", imageID(1))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	var last error
	n := 0
	for _, err := range p.Inventory(t.Context()) {
		n, last = n+1, err
	}
	if n != 2 || last == nil || !strings.Contains(last.Error(), "cut off") {
		t.Errorf("%d items, the last with %v; want an image and an error", n, last)
	}
}

// TestAPeersAnswerIsBounded has one that never ends.
func TestAPeersAnswerIsBounded(t *testing.T) {
	p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"dtn":{"error":"`)
		for more := strings.Repeat("x", 1<<20); ; {
			if _, err := io.WriteString(w, more); err != nil {
				return
			}
		}
	})
	if _, err := p.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "the answer is longer than 8 MiB") {
		t.Errorf("got %v, want that it is too long", err)
	}
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	p := answering(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	p.c.timeout = time.Millisecond
	var last error
	for _, err := range p.Inventory(t.Context()) {
		last = err
	}
	_, err := p.Delivery(t.Context(), "1")
	for what, err := range map[string]error{"Inventory": last, "Delivery": err} {
		if !errors.Is(err, errTooSlow) || !strings.HasPrefix(err.Error(), "site B's agent at 127.0.0.1:") {
			t.Errorf("%s: got %v, want %v of site B", what, err, errTooSlow)
		}
	}
}

// pipe is a transport whose answer a test writes.
type pipe struct{ *io.PipeReader }

func (p pipe) RoundTrip(r *http.Request) (*http.Response, error) {
	context.AfterFunc(r.Context(), func() { _ = p.CloseWithError(r.Context().Err()) })
	return &http.Response{StatusCode: http.StatusOK, Body: p}, nil
}

func TestSlowInventoryIsWaitedForAsLongAsItGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		go func() {
			for range 4 {
				time.Sleep(peerPatience - time.Second)
				_, _ = io.WriteString(w, "{}\n")
			}
		}()
		n := 0
		var last error
		for _, err := range NewPeerClient("B", "https://b.example.org", &http.Client{Transport: pipe{r}}).Inventory(t.Context()) {
			n, last = n+1, err
			if n == 2 {
				time.Sleep(2 * peerPatience) // our own slowness is not the peer's
			}
		}
		if n != 5 || !errors.Is(last, errTooSlow) {
			t.Errorf("%d items, the last with %v; want 4 images and %v", n, last, errTooSlow)
		}
	})
}

func TestPeerThatIsDownIsNamed(t *testing.T) {
	l := nettest.Listen(t, "127.0.0.1:0")
	url := "https://" + l.Addr().String()
	noError(t, l.Close())
	_, err := NewPeerClient("B", url, &http.Client{Transport: &http.Transport{}}).Request(t.Context(), "x")
	want := "site B's agent at " + strings.TrimPrefix(url, "https://") + " does not answer: connection refused; on its host: systemctl status glance-dtn-agent"
	if !errors.Is(err, syscall.ECONNREFUSED) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func FuzzDecode(f *testing.F) {
	for _, line := range []string{`{"id":"x"}`, `{"problem":{"type":"urn:glance-dtn:problem:no-job","detail":"d"},"item":{"id":"x"}}`,
		`{"problem":null}`, `{"problem":{},"item":null}`, `null`, ``, `{"problem":`} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if i, err := decode[agent.Job](line); strings.HasPrefix(string(line), problemLineStart) && err == nil {
			t.Errorf("%q is a problem, and was taken for %+v", line, i)
		}
	})
}
