package client_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/dtn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine moves what it may: a transfer whose key is "slow" waits for release.
type engine struct{ release chan struct{} }

func (e engine) Move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	report(mover.Progress{})
	if r.Key == "slow" {
		select {
		case <-e.release:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.Key == "bad" {
		return mover.Coded(mover.CodeSpace, errors.New("no space at the destination"))
	}
	report(mover.Progress{Moved: r.Source.Size})
	return nil
}

func (engine) Adjust(string, mover.PCP) {}

// Probe waits for release, and says so, where it is to have one connection.
func (e engine) Probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.Probed, error) {
	report(mover.Probing{Phase: mover.ProbeIdle, Time: r.Time})
	if r.Parallelism == 1 {
		select {
		case <-e.release:
		case <-ctx.Done():
			e.release <- struct{}{}
			return mover.Probed{}, ctx.Err()
		}
	}
	if r.Bytes == mover.MinProbeBytes {
		return mover.Probed{}, mover.Coded(mover.CodeTicket, errors.New("ticket: it is for a file"))
	}
	return mover.Probed{At: time.Now(), Idle: time.Second, One: 1e6, All: 4e6, Connections: 4}, nil
}

func (engine) Prioritise(string, mover.Priority) {}

// inbox holds arrivals by name.
type inbox struct {
	sums []digest.Block // of each file
	sync.Mutex
	files   map[string]mover.Arrival
	changed chan struct{} // closed and replaced by set
}

func newInbox() *inbox {
	return &inbox{files: map[string]mover.Arrival{}, changed: make(chan struct{})}
}

// set changes the files before the eyes of those who watch.
func (b *inbox) set(change func(files map[string]mover.Arrival)) {
	b.Lock()
	defer b.Unlock()
	change(b.files)
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *inbox) Changed() <-chan struct{} {
	b.Lock()
	defer b.Unlock()
	return b.changed
}

func (b *inbox) Arrivals() (all []mover.Arrival) {
	b.Lock()
	defer b.Unlock()
	for _, a := range b.files {
		all = append(all, a)
	}
	return all
}

func (b *inbox) Arrival(name string) (mover.Arrival, error) {
	b.Lock()
	defer b.Unlock()
	a, ok := b.files[name]
	if !ok {
		return a, mover.ErrNoArrival
	}
	return a, nil
}

func (b *inbox) Drop(name string) error {
	b.Lock()
	defer b.Unlock()
	delete(b.files, name)
	return nil
}

func (b *inbox) Promised() int64 { return 0 }

// Blocks tells the digests of the file's blocks, two at a time.
func (b *inbox) Blocks(name string, from int64) (mover.Blocks, error) {
	if _, err := b.Arrival(name); err != nil {
		return mover.Blocks{}, err
	}
	return mover.Blocks{Sums: b.sums[min(int64(len(b.sums)), from):min(int64(len(b.sums)), from+2)]}, nil
}

// site is a DTN with a real listener and a CA.
type site struct {
	ca      *pki.CA
	url     string
	release chan struct{}
	inbox   *inbox
	export  *os.Root
	state   *os.Root
	http    *http.Server
	timeout time.Duration      // of a write; 0: the DTN's own
	reading time.Duration      // likewise
	stop    context.CancelFunc // ends what the server does
}

// start returns a site that serves.
func start(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.serve(t, "127.0.0.1:0")
	return s
}

func newSite(t *testing.T) *site {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return &site{ca: ca, release: make(chan struct{}), inbox: newInbox(), export: roottest.Open(t, t.TempDir()), state: roottest.Open(t, t.TempDir())}
}

// serve starts the DTN on the site's directories.
func (s *site) serve(t *testing.T, addr string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	server, err := dtn.New(dtn.Options{
		Site: "A", Version: "v1", Address: "dtn-a.example.org:7444",
		Engines:  map[string]mover.Engine{mover.Stream: engine{s.release}},
		Arrivals: s.inbox, Export: s.export, State: s.state,
		Transfers: 4, Keep: time.Hour,
		Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	s.http = dtn.NewHTTPServer(ctx, server.Handler(), &tls.Config{
		Certificates: []tls.Certificate{s.certificate(t, pki.DTN, "A")},
		ClientCAs:    s.ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}, log)
	s.http.WriteTimeout = cmp.Or(s.timeout, s.http.WriteTimeout)
	s.http.ReadTimeout = cmp.Or(s.reading, s.http.ReadTimeout)
	l := nettest.Listen(t, addr)
	s.url = "https://" + l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { server.Run(ctx) })
	h := s.http
	wg.Go(func() { h.ServeTLS(l, "", "") })
	t.Cleanup(func() { stop(); h.Close(); wg.Wait() })
}

func (s *site) certificate(t *testing.T, role, name string) tls.Certificate {
	t.Helper()
	c, err := s.ca.Issue(pki.Identity{Site: name, Role: role}, []string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *site) httpClient(t *testing.T, http2 bool, certs ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool(), Certificates: certs}, ForceAttemptHTTP2: http2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// events yields what a transfer's event stream tells until it ends.
func (s *site) events(t *testing.T, http2 bool, id mover.TransferID) iter.Seq[mover.Status] {
	return func(yield func(mover.Status) bool) {
		resp, err := s.httpClient(t, http2, s.certificate(t, pki.Operator, "A")).Get(s.url + "/v1/transfers/" + string(id) + "/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			var st mover.Status
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); !ok || json.Unmarshal([]byte(data), &st) != nil || st.ID == "" {
				continue
			}
			if !yield(st) {
				return
			}
		}
	}
}

// client is a client with these certificates.
func (s *site) client(t *testing.T, http2 bool, certs ...tls.Certificate) *client.Client {
	t.Helper()
	c, err := client.New(s.url, s.httpClient(t, http2, certs...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func request(key string) mover.Request {
	return mover.Request{
		Key:         key,
		Source:      mover.File{Name: "outbox/" + key, Size: 1000, Digest: digest.Digest{Algo: "md5", Value: strings.Repeat("ab", 16)}},
		Destination: mover.Destination{Address: "dtn-b.example.org:7444", Ticket: "secret"},
	}
}

func TestATransferIsChanged(t *testing.T) {
	s := start(t)
	c := s.client(t, true, s.certificate(t, pki.Agent, "A"))
	var ids [2]mover.TransferID
	for i, key := range []string{"slow", "quick"} {
		var err error
		if ids[i], err = c.Submit(t.Context(), request(key)); err != nil {
			t.Fatal(err)
		}
	}
	last(t, c, ids[1])
	faster := mover.PCP{Parallelism: 8}
	if _, err := c.Adjust(t.Context(), ids[1], faster); !failure.IsPermanent(err) {
		t.Errorf("one that has ended: %v, want a permanent failure", err)
	}
	if _, err := c.Adjust(t.Context(), "none", faster); !errors.Is(err, mover.ErrNoTransfer) {
		t.Errorf("none: %v", err)
	}
	if st, err := c.Adjust(t.Context(), ids[0], faster); err != nil || st.Way.PCP != faster {
		t.Errorf("one that has not: %+v, %v", st, err)
	}
	if err := c.Prioritise(t.Context(), ids[0], mover.PriorityHigh); err != nil {
		t.Error(err)
	}
	if st, err := c.Status(t.Context(), ids[0]); err != nil || st.Priority != mover.PriorityHigh || st.Way.PCP != faster {
		t.Errorf("with another priority: %+v, %v", st, err)
	}
	close(s.release)
	last(t, c, ids[0])
}

// last waits for a transfer's end.
func last(t *testing.T, c *client.Client, id mover.TransferID) mover.Status {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		st, err := c.Status(t.Context(), id)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%+v, %v", st, err)
		}
		if st.State.Final() {
			return st
		}
	}
}

func TestTransfersOverMutualTLS(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", http2), func(t *testing.T) {
			s := start(t)
			ctx := t.Context()
			c := s.client(t, http2, s.certificate(t, pki.Agent, "A"))
			id, err := c.Submit(ctx, request("k"))
			if err != nil {
				t.Fatal(err)
			}
			if st := last(t, c, id); st.State != mover.Done || st.Moved != 1000 || st.Key != "k" {
				t.Errorf("at the end %+v, want done with 1000 bytes", st)
			}
			if again, err := c.Submit(ctx, request("k")); again != id || err != nil {
				t.Errorf("again: %s, %v, want %s", again, err, id)
			}
			other := request("k")
			other.Source.Size++
			if _, err := c.Submit(ctx, other); !errors.Is(err, mover.ErrKeyConflict) {
				t.Errorf("the key with another request: %v, want %v", err, mover.ErrKeyConflict)
			}
			bad, err := c.Submit(ctx, request("bad"))
			if err != nil {
				t.Fatal(err)
			}
			if st := last(t, c, bad); st.State != mover.Failed || st.Code != mover.CodeSpace {
				t.Errorf("a transfer that fails: %+v", st)
			}
			if all, err := c.Transfers(ctx, ""); err != nil || len(all) != 2 {
				t.Errorf("all transfers: %+v, %v", all, err)
			}
			if all, err := c.Transfers(ctx, mover.Failed); err != nil || len(all) != 1 || all[0].ID != bad {
				t.Errorf("failed transfers: %+v, %v", all, err)
			}
			caps, err := c.Capabilities(ctx)
			if err != nil || caps.Site != "A" || caps.Version != "v1" || caps.Free <= 0 {
				t.Errorf("capabilities %+v, %v", caps, err)
			}
		})
	}
}

func TestAnEventStreamOutlivesTheWriteTimeout(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", http2), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.timeout = 3 * time.Second
			s.serve(t, "127.0.0.1:0")
			c := s.client(t, http2, s.certificate(t, pki.Agent, "A"))
			id, err := c.Submit(t.Context(), request("slow"))
			if err != nil {
				t.Fatal(err)
			}
			running := 0
			var end mover.TransferState
			for st := range s.events(t, http2, id) {
				if end = st.State; end == mover.Running {
					if running++; running == 7 { // one a second, after the first: two write timeouts
						close(s.release)
					}
				}
			}
			if end != mover.Done || running < 7 {
				t.Errorf("ended as %q after %d running events, want done after 7 or more", end, running)
			}
		})
	}
}

func TestShutdownDoesNotWaitForEventStreams(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "A"))
	id, err := c.Submit(t.Context(), request("slow"))
	if err != nil {
		t.Fatal(err)
	}
	for range s.events(t, false, id) {
		s.stop() // and the stream ends
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestCancelEndsARunningTransfer(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Operator, "A"))
	id, err := c.Submit(t.Context(), request("slow"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if st, err := c.Status(t.Context(), id); err != nil || st.State != mover.Cancelled {
			t.Errorf("after Cancel: %+v, %v", st, err)
		}
	}
	if err := c.Cancel(t.Context(), "unknown"); err != nil {
		t.Errorf("cancel what is not known: %v, want nil", err)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "A"))
	if _, err := c.Status(t.Context(), "unknown"); !errors.Is(err, mover.ErrNoTransfer) {
		t.Errorf("Status: %v, want %v", err, mover.ErrNoTransfer)
	}
	if _, err := c.Arrival(t.Context(), "inbox/x"); !errors.Is(err, mover.ErrNoArrival) {
		t.Errorf("Arrival: %v, want %v", err, mover.ErrNoArrival)
	}
	if err := c.Drop(t.Context(), "inbox/x"); err != nil {
		t.Errorf("Drop: %v, want nil", err)
	}
}

func TestArrivalsOverMutualTLS(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "A"))
	ctx := t.Context()
	want := mover.Arrival{File: request("x").Source, State: mover.Arriving, Path: "inbox/.x y?.part", Proven: 7, Since: time.Unix(1e9, 0).UTC()}
	want.File.Name = "inbox/x y?"
	s.inbox.files[want.File.Name] = want
	if got, err := c.Arrival(ctx, want.File.Name); err != nil || got != want {
		t.Errorf("Arrival: %+v, %v, want %+v", got, err, want)
	}
	if all, err := c.Arrivals(ctx); err != nil || !slices.Equal(all, []mover.Arrival{want}) {
		t.Errorf("Arrivals: %+v, %v, want %+v", all, err, want)
	}
	for range 2 {
		if err := c.Drop(ctx, want.File.Name); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := c.Arrivals(ctx); err != nil || len(all) != 0 {
		t.Errorf("after Drop: %+v, %v, want none", all, err)
	}
	for _, name := range []string{"x", "inbox/../outbox/x", "outbox/x", "inbox/.x", "inbox/..", ""} {
		_, err := c.Arrival(ctx, name)
		if derr := c.Drop(ctx, name); !failure.IsPermanent(err) || !failure.IsPermanent(derr) || mover.CodeOf(err) != mover.CodeName {
			t.Errorf("name %q: %v and %v, want permanent errors with code %s", name, err, derr, mover.CodeName)
		}
	}
}

// heard is the next thing that a watch yields.
type heard struct {
	inbox map[string]mover.Arrival
	err   error
}

// watch returns what a watch yields until the test ends.
func watch(t *testing.T, c *client.Client) <-chan heard {
	ctx, stop := context.WithCancel(t.Context())
	ch := make(chan heard)
	var wg sync.WaitGroup
	wg.Go(func() {
		for inbox, err := range c.Watch(ctx) {
			select {
			case ch <- heard{inbox, err}:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return ch
}

// wantInbox waits until the watch tells this inbox, which it does before it tells an error.
func wantInbox(t *testing.T, ch <-chan heard, want map[string]mover.Arrival) {
	t.Helper()
	for enough := time.After(time.Minute); ; {
		select {
		case h := <-ch:
			if h.err != nil {
				t.Fatal(h.err)
			}
			if maps.Equal(h.inbox, want) {
				return
			}
		case <-enough:
			t.Fatalf("not told of %+v", want)
		}
	}
}

func TestAWatchTellsTheInboxAcrossARestart(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", http2), func(t *testing.T) {
			s := start(t)
			now := map[string]mover.Arrival{}
			put := func(name string, state mover.ArrivalState, proven int64) {
				a := mover.Arrival{File: mover.File{Name: name, Size: 9}, State: state, Proven: proven, Since: time.Unix(1e9, 5).UTC()}
				s.inbox.set(func(files map[string]mover.Arrival) { files[name] = a })
				now[name] = a
			}
			put("inbox/a", mover.Arriving, 3)
			ch := watch(t, s.client(t, http2, s.certificate(t, pki.Agent, "A")))
			wantInbox(t, ch, now)
			put("inbox/b", mover.Arriving, 0)
			wantInbox(t, ch, now)
			put("inbox/b", mover.Arrived, 9)
			wantInbox(t, ch, now)

			s.stop()
			s.http.Close()
			for h := range ch {
				if h.err != nil {
					if !strings.Contains(h.err.Error(), s.url) {
						t.Errorf("%v: want the URL", h.err)
					}
					break
				}
			}
			put("inbox/c", mover.Arriving, 1)
			s.inbox.set(func(files map[string]mover.Arrival) { delete(files, "inbox/a") })
			delete(now, "inbox/a")
			s.serve(t, strings.TrimPrefix(s.url, "https://"))
			for h := range ch { // it may be in vain some more times
				if h.err == nil {
					if !maps.Equal(h.inbox, now) {
						t.Errorf("after the restart told %+v first, want %+v", h.inbox, now)
					}
					break
				}
			}
		})
	}
}

func TestAWatchForStrangersTellsThatTheyAre(t *testing.T) {
	s := start(t)
	ch := watch(t, s.client(t, false, s.certificate(t, pki.Agent, "B")))
	for range 2 {
		if h := <-ch; mover.CodeOf(h.err) != mover.CodeAuth || !strings.Contains(fmt.Sprint(h.err), "agent of site B") {
			t.Errorf("told %+v, want code %s and who was refused", h, mover.CodeAuth)
		}
	}
}

func TestBlocksAreComparedWithTheirDigests(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "A"))
	name := mover.Inbox + "/blocks"
	check := c.BlockCheck(name)
	if err := check(t.Context(), 0, []byte("a")); !errors.Is(err, mover.ErrNoArrival) {
		t.Errorf("check of what is not there: %v, want %v", err, mover.ErrNoArrival)
	}
	s.inbox.Lock()
	s.inbox.files[name] = mover.Arrival{File: mover.File{Name: name}}
	for _, b := range []string{"a", "b", "c"} {
		s.inbox.sums = append(s.inbox.sums, digest.OfBlock([]byte(b)))
	}
	s.inbox.Unlock()
	for i, b := range []string{"a", "b", "c"} {
		if err := check(t.Context(), int64(i), []byte(b)); err != nil {
			t.Errorf("block %d: %v", i, err)
		}
	}
	err := check(t.Context(), 1, []byte("B"))
	if _, ok := errors.AsType[*digest.MismatchError](err); !ok {
		t.Errorf("a wrong block: %v, want a mismatch", err)
	}
	if err := check(t.Context(), 3, []byte("d")); !errors.Is(err, mover.ErrNoDigests) {
		t.Errorf("a block that the DTN does not know: %v, want %v", err, mover.ErrNoDigests)
	}
}

func TestSettle(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "A"))
	data := make([]byte, mover.BlockSize+1)
	if err := errors.Join(s.export.Mkdir(mover.Outbox, 0o770), s.export.WriteFile("outbox/.copy.stage", data, 0o640)); err != nil {
		t.Fatal(err)
	}
	told, err := c.Settle(t.Context(), ".copy.stage", 1)
	if err != nil || told.Size != int64(len(data)) || !slices.Equal(told.Sums, []digest.Block{digest.OfBlock(data[mover.BlockSize:])}) {
		t.Errorf("got %+v, %v", told, err)
	}
	if _, err := c.Settle(t.Context(), "none", 0); !errors.Is(err, mover.ErrNotStaged) {
		t.Errorf("no such file: %v, want ErrNotStaged", err)
	}
	if _, err := c.Settle(t.Context(), "../inbox", 0); !failure.IsPermanent(err) {
		t.Errorf("a wrong name: %v, want a permanent error", err)
	}
}

func TestARefusedRequestFailsPermanently(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "A"))
	r := request("k")
	r.Source.Name = "outbox/../x"
	_, err := c.Submit(t.Context(), r)
	if !failure.IsPermanent(err) || mover.CodeOf(err) != mover.CodeName {
		t.Errorf("got %v, want a permanent error with code %s", err, mover.CodeName)
	}
	if text := fmt.Sprint(err); !strings.Contains(text, "body.source.name") || !strings.Contains(text, s.url) || strings.Contains(text, "secret") {
		t.Errorf("%q: want the fault and the URL, and no ticket", text)
	}
}

func TestOnlyTheRightCertificateOpensTheDoor(t *testing.T) {
	s := start(t)
	for _, c := range []struct{ role, site string }{{pki.DTN, "A"}, {pki.Agent, "B"}, {pki.Operator, "B"}} {
		_, err := s.client(t, false, s.certificate(t, c.role, c.site)).Capabilities(t.Context())
		if mover.CodeOf(err) != mover.CodeAuth || failure.IsPermanent(err) || !strings.Contains(fmt.Sprint(err), c.role+" of site "+c.site) {
			t.Errorf("%s of site %s: %v, want code %s and who was refused", c.role, c.site, err, mover.CodeAuth)
		}
	}
	if _, err := s.client(t, false).Capabilities(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
	stranger, err := pki.NewCA("stranger", 0)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := stranger.Issue(pki.Identity{Site: "A", Role: pki.Agent}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(t, false, cert).Capabilities(t.Context()); err == nil {
		t.Error("another authority's certificate was accepted")
	}
}
