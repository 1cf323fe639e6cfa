package dtn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secret is the ticket of every request; it must turn up nowhere.
const secret = "ticket-that-nobody-may-see"

func request(key string) mover.Request {
	return mover.Request{
		Key:         key,
		Engine:      mover.Stream,
		Source:      mover.File{Name: "outbox/" + key, Size: 1000, Digest: digest.Digest{Algo: "md5", Value: strings.Repeat("ab", 16)}},
		Destination: mover.Destination{Address: "dtn-b.example.org:7444", Ticket: secret},
	}
}

// fakeEngine does what the script for a request's key says; without one it moves
// everything at once.
type fakeEngine struct {
	scripts map[string]func(ctx context.Context, report func(mover.Progress)) error

	mu        sync.Mutex
	runs      []string // keys in the order of their start
	now, most int
}

func (e *fakeEngine) Move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	e.mu.Lock()
	e.runs = append(e.runs, r.Key)
	e.now++
	e.most = max(e.most, e.now)
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.now--
		e.mu.Unlock()
	}()
	if f := e.scripts[r.Key]; f != nil {
		return f(ctx, report)
	}
	report(mover.Progress{})
	report(mover.Progress{Moved: r.Source.Size})
	return nil
}

func (e *fakeEngine) started() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.runs)
}

// untilStopped is a run that goes on until its context ends.
func untilStopped(ctx context.Context, _ func(mover.Progress)) error {
	<-ctx.Done()
	return ctx.Err()
}

type fakeArrivals struct {
	byName   map[string]mover.Arrival
	promised int64
	broken   error

	mu      sync.Mutex    // guards what follows, and byName while streams follow it
	changed chan struct{} // closed by the next change
	next    func()        // a change of byName right after the next look at it
}

// change does what changes byName, before the eyes of those who follow it.
func (a *fakeArrivals) change(do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *fakeArrivals) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *fakeArrivals) Arrivals() (all []mover.Arrival) {
	a.mu.Lock()
	for _, x := range a.byName {
		all = append(all, x)
	}
	do := a.next
	a.next = nil
	a.mu.Unlock()
	if do != nil {
		a.change(do)
	}
	return all
}

func (a *fakeArrivals) Arrival(name string) (mover.Arrival, error) {
	if x, ok := a.byName[name]; ok {
		return x, a.broken
	}
	return mover.Arrival{}, mover.ErrNoArrival
}

func (a *fakeArrivals) Drop(name string) error {
	if _, ok := a.byName[name]; !ok {
		return mover.ErrNoArrival
	}
	delete(a.byName, name)
	return a.broken
}

func (a *fakeArrivals) Promised() int64 { return a.promised }

func (a *fakeArrivals) Blocks(name string, from int64) (mover.Blocks, error) {
	if _, err := a.Arrival(name); err != nil {
		return mover.Blocks{}, err
	}
	return mover.Blocks{Sums: []digest.Block{digest.OfBlock(fmt.Append(nil, from))}}, nil
}

// logs keeps what was logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// rig is what outlives a Server: its directories, and the fakes around it.
type rig struct {
	engine   *fakeEngine
	arrivals *fakeArrivals
	logs     *logs
	opt      Options
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		engine:   &fakeEngine{scripts: map[string]func(context.Context, func(mover.Progress)) error{}},
		arrivals: &fakeArrivals{byName: map[string]mover.Arrival{}, changed: make(chan struct{})},
		logs:     &logs{},
	}
	r.opt = Options{
		Site: "A", Version: "test", Address: "dtn-a.example.org:7444", Marker: "one",
		Engines:   map[string]mover.Engine{mover.Stream: r.engine},
		Arrivals:  r.arrivals,
		Export:    roottest.Open(t, t.TempDir()),
		State:     roottest.Open(t, t.TempDir()),
		Transfers: 2,
		Keep:      DefaultKeep,
		Log:       slog.New(slog.NewJSONHandler(r.logs, nil)),
	}
	t.Cleanup(func() {
		if strings.Contains(r.logs.String(), secret) {
			t.Errorf("the log holds a ticket:\n%s", r.logs)
		}
	})
	return r
}

// server is a new Server on the rig's state, as after a restart.
func (r *rig) server(t *testing.T) *Server {
	t.Helper()
	s, err := New(r.opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run starts s; the returned function stops it and waits.
func run(t *testing.T, s *Server) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// bubble runs f, in which time is fake and synctest.Wait waits for all to settle.
func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) { f(t, newRig(t)) })
}

// answer is a response whose body was read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) decode(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
}

// ask sends a request to s past the authorisation. The body is JSON text or a
// value to encode.
func ask(t *testing.T, s *Server, method, path string, body any) answer {
	t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(data)
	}
	req := httptest.NewRequestWithContext(t.Context(), method, path, in)
	w := httptest.NewRecorder()
	s.api.ServeHTTP(w, req)
	if strings.Contains(w.Body.String(), secret) {
		t.Errorf("%s %s answers with the ticket: %s", method, path, w.Body)
	}
	return answer{w.Code, w.Header(), w.Body.String()}
}

// submit submits r and wants it to be new.
func submit(t *testing.T, s *Server, r mover.Request) mover.TransferID {
	t.Helper()
	a := ask(t, s, "POST", "/v1/transfers", r)
	if a.status != http.StatusAccepted {
		t.Fatalf("submit %s: %d %s, want 202", r.Key, a.status, a.body)
	}
	var st mover.Status
	a.decode(t, &st)
	return st.ID
}

func status(t *testing.T, s *Server, id mover.TransferID) mover.Status {
	t.Helper()
	var st mover.Status
	a := ask(t, s, "GET", "/v1/transfers/"+string(id), nil)
	if a.status != http.StatusOK {
		t.Fatalf("status of %s: %d %s", id, a.status, a.body)
	}
	a.decode(t, &st)
	return st
}

func wantState(t *testing.T, s *Server, id mover.TransferID, want mover.TransferState) mover.Status {
	t.Helper()
	st := status(t, s, id)
	if st.State != want {
		t.Fatalf("transfer %s is %s (%s), want %s", st.Key, st.State, st.Error, want)
	}
	return st
}

// wantProblem checks a refusal and returns it.
func wantProblem(t *testing.T, a answer, status int, kind string) mover.Problem {
	t.Helper()
	var p mover.Problem
	a.decode(t, &p)
	if a.status != status || p.Status != status || p.Type != kind || a.header.Get("Content-Type") != mover.ProblemMedia {
		t.Errorf("got %d %s %s, want %d %s as %s", a.status, a.header.Get("Content-Type"), a.body, status, kind, mover.ProblemMedia)
	}
	return p
}

// stream is the client's end of an event stream.
type stream struct {
	header http.Header
	code   int
	pipe   *io.PipeWriter
	lines  chan string // events' data, each prefixed with its name and a blank
}

// follow opens an event stream; it ends with the test, or by itself.
func follow(t *testing.T, s *Server, path string) *stream {
	t.Helper()
	in, out := io.Pipe()
	st := &stream{header: http.Header{}, pipe: out, lines: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer out.Close()
		s.api.ServeHTTP(st, httptest.NewRequestWithContext(ctx, "GET", path, nil))
	})
	wg.Go(func() {
		defer close(st.lines)
		all := make([]byte, 0, 4096)
		buf := make([]byte, 4096)
		for {
			n, err := in.Read(buf)
			all = append(all, buf[:n]...)
			for {
				one, rest, ok := bytes.Cut(all, []byte("\n\n"))
				if !ok {
					break
				}
				name, data, _ := strings.Cut(strings.TrimPrefix(string(one), "event: "), "\ndata: ")
				st.lines <- name + " " + strings.TrimSpace(data)
				all = slices.Clone(rest)
			}
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); in.CloseWithError(errors.New("the reader left")); wg.Wait() })
	return st
}

func (s *stream) Header() http.Header              { return s.header }
func (s *stream) WriteHeader(code int)             { s.code = code }
func (s *stream) Write(p []byte) (int, error)      { return s.pipe.Write(p) }
func (s *stream) Flush()                           {}
func (s *stream) SetWriteDeadline(time.Time) error { return nil }

// told returns the events that have come by now.
func (s *stream) told(t *testing.T) (events []string, open bool) {
	t.Helper()
	synctest.Wait()
	for {
		select {
		case e, ok := <-s.lines:
			if !ok {
				return events, false
			}
			events = append(events, e)
		default:
			return events, true
		}
	}
}

// inboxes returns the changes in inbox events.
func inboxes(t *testing.T, events []string) (all []mover.InboxChanges) {
	t.Helper()
	for _, e := range events {
		data, ok := strings.CutPrefix(e, "inbox ")
		var c mover.InboxChanges
		if err := json.Unmarshal([]byte(data), &c); err != nil || !ok {
			t.Fatalf("%q: %v", e, err)
		}
		all = append(all, c)
	}
	return all
}

// states returns the states that events of transfers tell.
func states(t *testing.T, events []string) (all []mover.TransferState) {
	t.Helper()
	for _, e := range events {
		var some []mover.Status
		if data, ok := strings.CutPrefix(e, "transfers "); ok {
			if err := json.Unmarshal([]byte(data), &some); err != nil {
				t.Fatalf("%q: %v", e, err)
			}
		}
		if data, ok := strings.CutPrefix(e, "status "); ok {
			some = make([]mover.Status, 1)
			if err := json.Unmarshal([]byte(data), &some[0]); err != nil {
				t.Fatalf("%q: %v", e, err)
			}
		}
		for _, s := range some {
			all = append(all, s.State)
		}
	}
	return all
}
