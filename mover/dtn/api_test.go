package dtn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestSubmitIsIdempotentByKey(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		first := ask(t, s, "POST", "/v1/transfers", request("k"))
		var st mover.Status
		first.decode(t, &st)
		if first.status != http.StatusAccepted || st.State != mover.Queued || first.header.Get("Location") != "/v1/transfers/"+string(st.ID) {
			t.Errorf("first: %d %v %s", first.status, first.header, first.body)
		}
		noEngine := request("k")
		noEngine.Engine = "" // means the same
		otherPriority := request("k")
		otherPriority.Priority = mover.PriorityHigh // may be changed while it waits or runs, too
		otherPCP := request("k")
		otherPCP.PCP.Parallelism = 7 // likewise
		for _, same := range []mover.Request{request("k"), noEngine, otherPriority, otherPCP} {
			synctest.Wait()
			a := ask(t, s, "POST", "/v1/transfers", same)
			var again mover.Status
			a.decode(t, &again)
			if a.status != http.StatusOK || again.ID != st.ID || again.State != mover.Done {
				t.Errorf("again: %d %s, want 200, the same transfer, done", a.status, a.body)
			}
		}
		for name, change := range map[string]func(*mover.Request){
			"size":    func(r *mover.Request) { r.Source.Size++ },
			"ticket":  func(r *mover.Request) { r.Destination.Ticket = "another" },
			"address": func(r *mover.Request) { r.Destination.Address = "other:1" },
		} {
			other := request("k")
			change(&other)
			if p := wantProblem(t, ask(t, s, "POST", "/v1/transfers", other), http.StatusConflict, mover.ProblemConflict); p.Detail == "" {
				t.Errorf("another %s: no detail", name)
			}
		}
		if got := r.engine.started(); !slices.Equal(got, []string{"k"}) {
			t.Errorf("ran %v, want k once", got)
		}
	})
}

func TestWrongRequestsAreRefused(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	with := func(change func(*mover.Request)) mover.Request {
		req := request("k")
		change(&req)
		return req
	}
	text := func(from, to string) string {
		data, err := json.Marshal(request("k"))
		if err != nil || !strings.Contains(string(data), from) {
			t.Fatalf("%s is not in %s (%v)", from, data, err)
		}
		return strings.Replace(string(data), from, to, 1)
	}
	name := func(n string) mover.Request { return with(func(r *mover.Request) { r.Source.Name = n }) }
	for _, c := range []struct {
		what   string
		body   any
		status int
		kind   string
		code   mover.Code
		says   string
	}{
		{"unknown field", text(`{"key"`, `{"evil":1,"key"`), 422, mover.ProblemInvalid, "", "evil"},
		{"unknown inner field", text(`"ticket"`, `"evil":1,"ticket"`), 422, mover.ProblemInvalid, "", "evil"},
		{"no JSON", "ticket=" + secret, 400, mover.ProblemInvalid, "", ""},
		{"two documents", text(`}}`, `}}{}`), 400, mover.ProblemInvalid, "", ""},
		{"too large", `{"key":"` + strings.Repeat("k", maxBody) + `"}`, 413, mover.ProblemTooLarge, "", ""},
		{"no key", with(func(r *mover.Request) { r.Key = "" }), 422, mover.ProblemInvalid, "", "body.key"},
		{"a key with a slash", with(func(r *mover.Request) { r.Key = "a/b" }), 422, mover.ProblemInvalid, "", "body.key"},
		{"a negative size", with(func(r *mover.Request) { r.Source.Size = -1 }), 422, mover.ProblemInvalid, "", "body.source.size"},
		{"a fractional size", text(`"size":1000`, `"size":1.5`), 422, mover.ProblemInvalid, "", "body.source.size"},
		{"too much parallelism", with(func(r *mover.Request) { r.PCP.Parallelism = 65 }), 422, mover.ProblemInvalid, "", "parallelism"},
		{"up and away", name("outbox/../../etc/passwd"), 422, mover.ProblemInvalid, mover.CodeName, "body.source.name"},
		{"absolute", name("/etc/passwd"), 422, mover.ProblemInvalid, mover.CodeName, "body.source.name"},
		{"the other box", name("inbox/x"), 422, mover.ProblemInvalid, mover.CodeName, "body.source.name"},
		{"hidden", name("outbox/.x"), 422, mover.ProblemInvalid, mover.CodeName, "body.source.name"},
		{"a wrong digest", with(func(r *mover.Request) { r.Source.Digest.Value = "12" }), 422, mover.ProblemInvalid, "", "body.source.digest"},
		{"no digest", with(func(r *mover.Request) { r.Source.Digest.Algo = "" }), 422, mover.ProblemInvalid, "", "body.source.digest"},
		{"no port", with(func(r *mover.Request) { r.Destination.Address = "host" }), 422, mover.ProblemInvalid, "", "host:port"},
		{"no host", with(func(r *mover.Request) { r.Destination.Address = ":1" }), 422, mover.ProblemInvalid, "", "host:port"},
		{"a GridFTP server, without that engine", with(func(r *mover.Request) {
			r.Engine, r.Destination.Address = "", "gsiftp://dtn-b/export"
		}), 422, mover.ProblemInvalid, "", "set gridftp.url"},
		{"no URL of an export", with(func(r *mover.Request) { r.Destination.Address = "gsiftp://dtn-b/a/../b" }), 422, mover.ProblemInvalid, "", "path of an export"},
		{"no such engine", with(func(r *mover.Request) { r.Engine = "pigeon" }), 422, mover.ProblemInvalid, "", "this DTN has: stream"},
	} {
		t.Run(c.what, func(t *testing.T) {
			p := wantProblem(t, ask(t, s, "POST", "/v1/transfers", c.body), c.status, c.kind)
			if p.Code != c.code || !strings.Contains(p.Error(), c.says) {
				t.Errorf("got code %q, %q, want %q and a word about %q", p.Code, p.Error(), c.code, c.says)
			}
		})
	}
	if got := s.table.counts(); len(got) != 0 {
		t.Errorf("something was accepted: %v", got)
	}
}

func TestEveryFaultIsReportedAtOnce(t *testing.T) {
	req := request("k")
	req.Source.Name, req.Source.Digest.Value, req.Destination.Address, req.Engine = "x", "", "y", "z"
	if p := wantProblem(t, ask(t, newRig(t).server(t), "POST", "/v1/transfers", req), 422, mover.ProblemInvalid); len(p.Errors) != 4 {
		t.Errorf("got %q, want 4 faults", p.Errors)
	}
}

func TestListByState(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	keys := func(a answer) (got []string) {
		var all []mover.Status
		a.decode(t, &all)
		for _, st := range all {
			got = append(got, st.Key)
		}
		return got
	}
	if a := ask(t, s, "GET", "/v1/transfers", nil); strings.TrimSpace(a.body) != "[]" {
		t.Errorf("no transfer: %s, want []", a.body)
	}
	submit(t, s, request("one"))
	two := submit(t, s, request("two"))
	ask(t, s, "DELETE", "/v1/transfers/"+string(two), nil)
	for path, want := range map[string][]string{
		"/v1/transfers":                 {"one", "two"},
		"/v1/transfers?state=queued":    {"one"},
		"/v1/transfers?state=cancelled": {"two"},
		"/v1/transfers?state=done":      nil,
	} {
		if got := keys(ask(t, s, "GET", path, nil)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	for _, path := range []string{"/v1/transfers?state=dreaming", "/v1/transfers?stat=done"} {
		wantProblem(t, ask(t, s, "GET", path, nil), 422, mover.ProblemInvalid)
	}
}

func TestFollowTellsStatesAndProgressToTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		finish := make(chan struct{})
		r.engine.scripts["k"] = func(_ context.Context, report func(mover.Progress)) error {
			report(mover.Progress{Moved: 10})
			<-finish
			return nil
		}
		s := r.server(t)
		id := submit(t, s, request("k"))
		st := follow(t, s, "/v1/transfers/"+string(id)+"/events")
		events, _ := st.told(t)
		stop := run(t, s)
		defer stop()
		more, _ := st.told(t)
		if got, want := states(t, append(events, more...)), []mover.TransferState{mover.Queued, mover.Running}; !slices.Equal(slices.Compact(got), want) {
			t.Errorf("told %v, want %v", got, want)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		if events, _ = st.told(t); len(events) != 10 || !strings.Contains(events[9], `"moved":10`) {
			t.Errorf("told %d times in 10 s, want 10: %v", len(events), events)
		}
		close(finish)
		events, open := st.told(t)
		if got := states(t, events); !slices.Equal(got, []mover.TransferState{mover.Done}) || open {
			t.Errorf("at the end told %v, open %v, want done and closed", got, open)
		}
		if st.header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("headers %v", st.header)
		}
		wantProblem(t, ask(t, s, "GET", "/v1/transfers/unknown/events", nil), http.StatusNotFound, mover.ProblemNotFound)
	})
}

func TestFollowAllTellsWhatChanges(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		submit(t, s, request("old"))
		synctest.Wait()
		st := follow(t, s, "/v1/events")
		events, _ := st.told(t)
		if got := states(t, events); len(events) != 1 || !slices.Equal(got, []mover.TransferState{mover.Done}) {
			t.Errorf("first: %v, want one event with the one that is done", events)
		}
		time.Sleep(3*time.Second + time.Millisecond)
		if events, _ = st.told(t); len(events) != 3 || states(t, events) != nil {
			t.Errorf("3 s later: %v, want 3 of no transfer", events)
		}
		submit(t, s, request("new"))
		events, open := st.told(t) // telling takes no time here, and so neither does the rest
		if got := states(t, events); len(got) == 0 || got[len(got)-1] != mover.Done || !open {
			t.Errorf("a new transfer: told %v, open %v, want it up to done, and to stay open", events, open)
		}
		if strings.Contains(strings.Join(events, ""), `"old"`) {
			t.Errorf("told once more of one that had ended before: %v", events)
		}
	})
}

// TestManyTransfersAreToldInFewEvents has more change at once than one event may tell.
func TestManyTransfersAreToldInFewEvents(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		st := follow(t, s, "/v1/events")
		st.told(t)
		time.Sleep(inboxEvery)
		var all []*submission
		for i := range toldAtOnce + 1 {
			all = append(all, &submission{request: request(fmt.Sprint("k", i))})
		}
		if err := s.table.submits.Do(all...); err != nil {
			t.Fatal(err)
		}
		events, _ := st.told(t)
		if got := states(t, events); len(events) != 2 || len(got) != len(all) {
			t.Errorf("%d transfers told in %d events, want %d in 2", len(got), len(events), len(all))
		}
	})
}

func TestArrivals(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	if a := ask(t, s, "GET", "/v1/arrivals", nil); strings.TrimSpace(a.body) != "[]" {
		t.Errorf("no arrival: %s, want []", a.body)
	}
	want := mover.Arrival{File: mover.File{Name: "inbox/x y"}, State: mover.Arrived, Path: "inbox/x y", Proven: 5, Moved: 5}
	r.arrivals.byName["inbox/x y"] = want

	var all []mover.Arrival
	ask(t, s, "GET", "/v1/arrivals", nil).decode(t, &all)
	var one mover.Arrival
	ask(t, s, "GET", "/v1/arrivals/x%20y", nil).decode(t, &one)
	if one != want || len(all) != 1 || all[0] != want {
		t.Errorf("got %+v and %+v, want %+v", one, all, want)
	}
	wantProblem(t, ask(t, s, "GET", "/v1/arrivals/z", nil), http.StatusNotFound, mover.ProblemNotFound)
	for _, method := range []string{"GET", "DELETE"} {
		p := wantProblem(t, ask(t, s, method, "/v1/arrivals/..%2Foutbox%2Fx", nil), 422, mover.ProblemInvalid)
		if p.Code != mover.CodeName {
			t.Errorf("%s: code %q, want %q", method, p.Code, mover.CodeName)
		}
	}
	for range 2 {
		if a := ask(t, s, "DELETE", "/v1/arrivals/x%20y", nil); a.status != http.StatusNoContent {
			t.Errorf("drop: %d %s, want 204", a.status, a.body)
		}
	}
	r.arrivals.byName["inbox/bad"] = want
	r.arrivals.broken = errors.New("disk on fire")
	for _, method := range []string{"GET", "DELETE"} {
		p := wantProblem(t, ask(t, s, method, "/v1/arrivals/bad", nil), http.StatusInternalServerError, mover.ProblemInternal)
		if p.Detail != "disk on fire" {
			t.Errorf("%s: detail %q", method, p.Detail)
		}
	}
}

// arrivalOf is how far a file of 1,000 bytes has come.
func arrivalOf(name string, state mover.ArrivalState, proven int64) mover.Arrival {
	return mover.Arrival{File: mover.File{Name: name, Size: 1000}, State: state, Proven: proven, Since: time.Unix(1e9, 0).UTC()}
}

func TestFollowArrivalsTellsTheInboxAndThenItsChanges(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		old := arrivalOf("inbox/old", mover.Arrived, 1000)
		byName := r.arrivals.byName
		byName["inbox/old"] = old
		st := follow(t, r.server(t), "/v1/events/arrivals")
		told := func() []mover.InboxChanges {
			t.Helper()
			events, open := st.told(t)
			if !open {
				t.Fatalf("the stream has ended after %q", events)
			}
			return inboxes(t, events)
		}
		want := func(what string, got []mover.InboxChanges, arrivals []mover.Arrival, dropped ...string) {
			t.Helper()
			if len(got) != 1 || !slices.Equal(got[0].Arrivals, arrivals) || !slices.Equal(got[0].Dropped, dropped) {
				t.Errorf("%s: told %+v, want once %+v and dropped %q", what, got, arrivals, dropped)
			}
		}
		want("at first", told(), []mover.Arrival{old})
		for range 3 {
			time.Sleep(eventEvery)
			want("while nothing happens", told(), nil)
		}
		time.Sleep(eventEvery / 2)

		began := arrivalOf("inbox/new", mover.Arriving, 0)
		r.arrivals.change(func() { byName["inbox/new"] = began })
		want("a beginning, at once", told(), []mover.Arrival{began})
		for proven := range int64(100) {
			r.arrivals.change(func() { byName["inbox/new"] = arrivalOf("inbox/new", mover.Arriving, proven) })
		}
		if got := told(); len(got) > 0 {
			t.Errorf("progress within %v of an event is told at once: %+v", inboxEvery, got)
		}
		time.Sleep(inboxEvery)
		want("progress", told(), []mover.Arrival{arrivalOf("inbox/new", mover.Arriving, 99)})

		broken := arrivalOf("inbox/new", mover.Arriving, 99)
		broken.Error = "the sender closed the connection"
		r.arrivals.change(func() { byName["inbox/new"] = broken })
		time.Sleep(inboxEvery)
		want("a failure", told(), []mover.Arrival{broken})

		arrived := arrivalOf("inbox/new", mover.Arrived, 1000)
		r.arrivals.change(func() { byName["inbox/new"] = arrived; delete(byName, "inbox/old") })
		time.Sleep(inboxEvery)
		want("an end and a drop", told(), []mover.Arrival{arrived}, "inbox/old")

		r.arrivals.change(func() {}) // a wrong alarm
		if time.Sleep(2 * inboxEvery); len(told()) > 0 {
			t.Error("told though nothing has changed")
		}
	})
}

func TestAnArrivalBetweenTheLookAndTheWaitIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		arrived := arrivalOf("inbox/x", mover.Arrived, 1000)
		r.arrivals.byName["inbox/x"] = arrivalOf("inbox/x", mover.Arriving, 999)
		r.arrivals.next = func() { r.arrivals.byName["inbox/x"] = arrived }
		st := follow(t, r.server(t), "/v1/events/arrivals")
		st.told(t)
		time.Sleep(inboxEvery)
		events, _ := st.told(t)
		if got := inboxes(t, events); len(got) != 1 || !slices.Equal(got[0].Arrivals, []mover.Arrival{arrived}) {
			t.Errorf("told %+v, want once that it has arrived", got)
		}
	})
}

// slowReader takes nothing until it is told to, or the deadline has passed.
type slowReader struct {
	*httptest.ResponseRecorder
	take     chan struct{}
	deadline time.Time
}

func (s *slowReader) SetWriteDeadline(at time.Time) error { s.deadline = at; return nil }

func (s *slowReader) Write(p []byte) (int, error) {
	select {
	case <-s.take:
		return s.ResponseRecorder.Write(p)
	case <-time.After(time.Until(s.deadline)):
		return 0, os.ErrDeadlineExceeded
	}
}

func TestASlowReaderHoldsNobodyUp(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		listen := func(slow *slowReader) (ended chan struct{}, leave func()) {
			ctx, leave := context.WithCancel(t.Context())
			ended = make(chan struct{})
			go func() {
				defer close(ended)
				s.api.ServeHTTP(slow, httptest.NewRequestWithContext(ctx, "GET", "/v1/events/arrivals", nil))
			}()
			synctest.Wait()
			return ended, leave
		}

		slow := &slowReader{ResponseRecorder: httptest.NewRecorder(), take: make(chan struct{})}
		ended, leave := listen(slow)
		for proven := range int64(1000) {
			r.arrivals.change(func() { r.arrivals.byName["inbox/x"] = arrivalOf("inbox/x", mover.Arriving, proven) })
		}
		quick := follow(t, s, "/v1/events/arrivals")
		if events, _ := quick.told(t); len(events) != 1 || !strings.Contains(events[0], `"proven":999`) {
			t.Errorf("another stream tells %q, want the latest", events)
		}
		close(slow.take)
		time.Sleep(2 * inboxEvery)
		synctest.Wait()
		if got := strings.Count(slow.Body.String(), "event: "); got != 2 || !strings.Contains(slow.Body.String(), `"proven":999`) {
			t.Errorf("told in %d events, want the first and then the latest alone: %s", got, slow.Body)
		}
		leave()
		<-ended

		slow = &slowReader{ResponseRecorder: httptest.NewRecorder(), take: make(chan struct{})}
		ended, leave = listen(slow)
		defer leave()
		<-ended // by itself: else the bubble is stuck
		if slow.Body.Len() > 0 {
			t.Errorf("a reader that takes nothing has got %q", slow.Body)
		}
	})
}

func TestCapabilitiesTellHowTheExportAcknowledges(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		ask  func() mover.Ack
		want mover.Ack
	}{
		{nil, mover.AckUnknown},
		{func() mover.Ack { return mover.AckAsync }, mover.AckAsync},
	} {
		r.opt.Ack = c.ask
		var got mover.Capabilities
		ask(t, r.server(t), "GET", "/v1/capabilities", nil).decode(t, &got)
		if got.Ack != c.want {
			t.Errorf("told %q, want %q", got.Ack, c.want)
		}
	}
}

func TestCapabilitiesLeaveOutReserveAndPromises(t *testing.T) {
	r := newRig(t)
	free := func(s *Server) int64 {
		var c mover.Capabilities
		ask(t, s, "GET", "/v1/capabilities", nil).decode(t, &c)
		if c.Site != "A" || c.Version != "test" || c.Address != r.opt.Address || !slices.Equal(c.Engines, []string{"stream"}) || c.Total <= 0 || c.Export != "one" {
			t.Errorf("capabilities %+v", c)
		}
		return c.Free
	}
	open := free(r.server(t))
	if open <= 1<<30 {
		t.Skipf("%d bytes free: too little to compare", open)
	}
	r.arrivals.promised, r.opt.Reserve = open/2, open/4
	if got := free(r.server(t)); got > open/3 || got < open/5 { // others use the disk as well
		t.Errorf("free %d of %d with a half promised and a quarter reserved", got, open)
	}
	r.arrivals.promised = open * 2
	if got := free(r.server(t)); got != 0 {
		t.Errorf("free %d with more promised than there is, want 0", got)
	}
	r.opt.Spare = func() int64 { return open * 2 }
	if got := free(r.server(t)); got < open/2 || got > open {
		t.Errorf("free %d of %d with a quarter reserved, and as much to spare as is promised", got, open)
	}
}

func TestOnlyOurAgentAndOperatorsAreAllowed(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	for _, c := range []struct {
		id  pki.Identity
		err error
		ok  bool
	}{
		{id: pki.Identity{Site: "A", Role: pki.Agent}, ok: true},
		{id: pki.Identity{Site: "A", Role: pki.Operator}, ok: true},
		{id: pki.Identity{Site: "A", Role: pki.DTN}},
		{id: pki.Identity{Site: "B", Role: pki.Agent}},
		{id: pki.Identity{Site: "B", Role: pki.Operator}},
		{id: pki.Identity{Site: "a", Role: pki.Agent}},
		{id: pki.Identity{Site: "A", Role: pki.Agent}, err: errors.New("no identity")},
	} {
		h := authorise(s.opt.Site, func(*http.Request) (pki.Identity, error) { return c.id, c.err }, s.api)
		for _, path := range []string{"/v1/transfers", "/v1/capabilities", "/v1/events", "/v1/events/arrivals", "/openapi.yaml", "/nowhere"} {
			if c.ok && strings.HasPrefix(path, "/v1/events") {
				continue // does not end
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if refused := w.Code == http.StatusForbidden; refused == c.ok {
				t.Errorf("%v (%v) on %s: %d", c.id, c.err, path, w.Code)
			}
			if !c.ok {
				p := wantProblem(t, answer{w.Code, w.Header(), w.Body.String()}, http.StatusForbidden, mover.ProblemForbidden)
				if p.Code != mover.CodeAuth {
					t.Errorf("code %q, want %q", p.Code, mover.CodeAuth)
				}
			}
		}
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/v1/transfers", nil)) // no TLS at all
	wantProblem(t, answer{w.Code, w.Header(), w.Body.String()}, http.StatusForbidden, mover.ProblemForbidden)
}

func TestOpenAPIDescribesEveryOperation(t *testing.T) {
	s := newRig(t).server(t)
	var doc struct {
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	a := ask(t, s, "GET", "/openapi.json", nil)
	a.decode(t, &doc)
	var got []string
	for path, operations := range doc.Paths {
		for method := range operations {
			got = append(got, strings.ToUpper(method)+" "+path)
		}
	}
	want := []string{
		"DELETE /v1/arrivals/{name}", "DELETE /v1/history/{site}", "DELETE /v1/transfers/{id}", "GET /v1/arrivals", "GET /v1/arrivals/{name}", "GET /v1/arrivals/{name}/blocks",
		"GET /v1/capabilities", "GET /v1/events", "GET /v1/events/arrivals", "GET /v1/history", "GET /v1/passages", "GET /v1/paths", "GET /v1/relays/{site}/paths", "GET /v1/transfers", "GET /v1/transfers/{id}",
		"GET /v1/transfers/{id}/events", "PATCH /v1/transfers/{id}", "POST /v1/batches", "POST /v1/history", "POST /v1/outbox/{name}/settle", "POST /v1/probes", "POST /v1/transfers",
	}
	if !slices.Equal(sorted(got), want) {
		t.Errorf("operations %q, want %q", sorted(got), want)
	}
	for part := range strings.SplitSeq(a.body, `"#/components/schemas/`) {
		if name, _, ok := strings.Cut(part, `"`); ok && !strings.HasPrefix(part, "{") && doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is referred to and not there", name)
		}
	}
	responses := doc.Paths["/v1/transfers"]["post"].(map[string]any)["responses"].(map[string]any)
	for _, status := range []string{"200", "202", "default"} {
		if responses[status] == nil {
			t.Errorf("submit does not tell of its answer %s", status)
		}
	}
	if y := ask(t, s, "GET", "/openapi.yaml", nil); !strings.Contains(y.body, "/v1/transfers/{id}/events:") {
		t.Errorf("YAML: %d %.200s", y.status, y.body)
	}
}

func TestReadyzNamesWhatStandsInTheWay(t *testing.T) {
	get := func(s *Server, path string) answer {
		w := httptest.NewRecorder()
		s.Health().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return answer{w.Code, w.Header(), w.Body.String()}
	}
	for _, c := range []struct {
		broken string
		do     func(*rig)
	}{
		{"", func(*rig) {}},
		{"state", func(r *rig) { r.opt.State.Close() }},
		{"export", func(r *rig) { r.opt.Export.Close() }},
	} {
		r := newRig(t)
		s := r.server(t)
		c.do(r)
		a := get(s, "/readyz")
		var checks []check
		a.decode(t, &checks)
		bad := slices.DeleteFunc(slices.Clone(checks), func(x check) bool { return x.OK })
		if len(bad) > 1 || len(bad) == 1 && bad[0].Name != c.broken || len(checks) != 2 || (a.status == http.StatusOK) != (c.broken == "") {
			t.Errorf("with %q broken: %d %s", c.broken, a.status, a.body)
		}
		if a := get(s, "/healthz"); a.status != http.StatusOK {
			t.Errorf("with %q broken the process is said not to live: %d", c.broken, a.status)
		}
	}
	r := newRig(t)
	get(r.server(t), "/readyz")
	if _, err := r.opt.Export.Stat(probeName); err == nil {
		t.Error("the probe is left on the export")
	}
}

// watched is what is told of a certificate.
type watched struct {
	notAfter time.Time
	fault    error
}

func (w watched) NotAfter() time.Time { return w.notAfter }
func (w watched) Fault() error        { return w.fault }

func TestReadyzAndMetricsTellOfTheCertificate(t *testing.T) {
	r := newRig(t)
	var cert watched
	r.opt.Certificate = &cert
	s := r.server(t)
	for _, x := range []struct {
		cert  watched
		ready int
		want  check
	}{
		{watched{time.Unix(1<<40, 0), nil}, 200, check{Name: "certificate", OK: true}},
		{watched{time.Unix(1234, 0), errors.New("it expired")}, 503, check{Name: "certificate", Error: "it expired"}},
	} {
		cert = x.cert
		w := httptest.NewRecorder()
		s.Health().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		var checks []check
		if err := json.Unmarshal(w.Body.Bytes(), &checks); err != nil {
			t.Fatal(err)
		}
		if got := checks[len(checks)-1]; w.Code != x.ready || got != x.want {
			t.Errorf("%v: %d %+v, want %d %+v", x.cert, w.Code, got, x.ready, x.want)
		}
	}
	if got := metric(t, s, "glance_dtn_dtn_certificate_not_after_timestamp_seconds"); got != 1234 {
		t.Errorf("the metric is %v, want 1234", got)
	}
}

// What keeps files from one site only is no fault of this DTN.
func TestReadyzAndMetricsTellOfCallbacks(t *testing.T) {
	r := newRig(t)
	var now []mover.Callback
	r.opt.Callbacks = func() []mover.Callback { return now }
	r.opt.Standing = func() map[string]bool { return map[string]bool{"C": true, "D": false} }
	s := r.server(t)
	since := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	b := mover.Callback{Address: "dtn-b:7444", Site: "B", Connected: true, Since: since}
	c := mover.Callback{Address: "dtn-c:7444", Since: since, Error: "no route to host"}
	trouble := "no connection to dtn-c:7444 since 2026-11-01T12:00:00Z, so nothing comes from there: no route to host"
	for _, x := range []struct {
		callbacks []mover.Callback
		ready     int
		want      []check
	}{
		{nil, 200, nil},
		{[]mover.Callback{b, c}, 200, []check{{Name: "callback dtn-b:7444", OK: true}, {Name: "callback dtn-c:7444", OK: true, Note: trouble}}},
		{[]mover.Callback{c}, 503, []check{{Name: "callback dtn-c:7444", Error: trouble}}},
	} {
		now = x.callbacks
		w := httptest.NewRecorder()
		s.Health().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		var checks []check
		if err := json.Unmarshal(w.Body.Bytes(), &checks); err != nil {
			t.Fatal(err)
		}
		if got := checks[2:]; w.Code != x.ready || !slices.Equal(got, x.want) {
			t.Errorf("%+v: %d %+v, want %d %+v", x.callbacks, w.Code, got, x.ready, x.want)
		}
	}
	now = []mover.Callback{b, c}
	for _, name := range []string{"glance_dtn_dtn_callback_connected", "glance_dtn_dtn_callback_standing"} {
		if got := metric(t, s, name); got != 1 { // of two
			t.Errorf("%s = %v, want 1", name, got)
		}
	}
	var told mover.Capabilities
	ask(t, s, "GET", "/v1/capabilities", nil).decode(t, &told)
	if !reflect.DeepEqual(told.Callbacks, now) {
		t.Errorf("capabilities tell of %+v", told.Callbacks)
	}
}

// A DTN that runs puts back what its export has lost, and says on /readyz what it cannot.
func TestTheExportIsLookedAfter(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		put, trouble := false, error(nil)
		r.opt.Mark = func() (bool, error) { return put, trouble }
		s := r.server(t)
		defer run(t, s)()
		set := func(p bool, err error) {
			s.looking.Lock()
			defer s.looking.Unlock()
			put, trouble = p, err
		}
		logged := func(text string, n int) {
			t.Helper()
			time.Sleep(3 * lookEvery)
			synctest.Wait()
			if got := strings.Count(r.logs.String(), text); got != n {
				t.Errorf("logged %q %d times, want %d:\n%s", text, got, n, r.logs)
			}
		}
		ready := func() string {
			w := httptest.NewRecorder()
			s.Health().ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
			if ok := trouble == nil; ok != (w.Code == http.StatusOK) {
				t.Errorf("%v: /readyz says %d", trouble, w.Code)
			}
			return w.Body.String()
		}
		logged("export", 0)
		for _, box := range []string{mover.Inbox, mover.Outbox} {
			if _, err := r.opt.Export.Stat(box); err != nil {
				t.Error(err)
			}
		}
		set(true, nil)
		ready()
		set(false, nil)
		logged("lost its marker", 1)
		set(false, errors.New("another directory"))
		if body := ready(); !strings.Contains(body, trouble.Error()) {
			t.Errorf("/readyz says %s", body)
		}
		logged("another directory", 1)
		set(false, nil)
		logged("well again", 1)
		ready()
	})
}

func TestBlocksOfAnArrival(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	r.arrivals.byName["inbox/x y"] = mover.Arrival{}
	for query, block := range map[string]string{"": "0", "?from=0": "0", "?from=4096": "4096"} {
		want := digest.OfBlock([]byte(block))
		var got mover.Blocks
		ask(t, s, "GET", "/v1/arrivals/x%20y/blocks"+query, nil).decode(t, &got)
		if !slices.Equal(got.Sums, []digest.Block{want}) {
			t.Errorf("%q: got %v, want %s", query, got, want)
		}
	}
	for _, query := range []string{"?from=-1", "?from=x", "?from=99999999999999999999"} {
		wantProblem(t, ask(t, s, "GET", "/v1/arrivals/x%20y/blocks"+query, nil), 422, mover.ProblemInvalid)
	}
	wantProblem(t, ask(t, s, "GET", "/v1/arrivals/z/blocks", nil), http.StatusNotFound, mover.ProblemNotFound)
	if p := wantProblem(t, ask(t, s, "GET", "/v1/arrivals/..%2Foutbox%2Fx/blocks", nil), 422, mover.ProblemInvalid); p.Code != mover.CodeName {
		t.Errorf("a name outside: code %q, want %q", p.Code, mover.CodeName)
	}
}

func TestBoxesAreForTheGroupAndStayAsTheyAre(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o770|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	export := roottest.Open(t, dir)
	modes := func(want map[string]os.FileMode) {
		t.Helper()
		if err := MakeBoxes(export); err != nil {
			t.Fatal(err)
		}
		for box, mode := range want {
			if info, err := export.Lstat(box); err != nil || info.Mode() != os.ModeDir|mode {
				t.Errorf("%s: %v, %v, want %v", box, info.Mode(), err, os.ModeDir|mode)
			}
		}
	}
	modes(map[string]os.FileMode{"outbox": os.ModeSetgid | 0o770, "inbox": os.ModeSetgid | 0o750})
	if err := export.Chmod("outbox", 0o777); err != nil {
		t.Fatal(err)
	}
	modes(map[string]os.FileMode{"outbox": 0o777, "inbox": os.ModeSetgid | 0o750})
}

// metric gathers one metric; several series are summed.
func metric(t *testing.T, s *Server, name string) (sum float64) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(s); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		return sum
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestMetrics(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["fails"] = func(context.Context, func(mover.Progress)) error {
			return mover.Coded(mover.CodeSpace, errors.New("full"))
		}
		r.engine.scripts["runs"] = untilStopped
		r.arrivals.byName["inbox/x"] = mover.Arrival{State: mover.Arriving}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		for _, key := range []string{"one", "two", "fails", "runs"} {
			submit(t, s, request(key))
			synctest.Wait()
		}
		for name, want := range map[string]float64{
			"glance_dtn_dtn_moved_bytes_total":     2000,
			"glance_dtn_dtn_transfers_ended_total": 3,
			"glance_dtn_dtn_transfer_seconds":      2,
			"glance_dtn_dtn_transfers":             4,
			"glance_dtn_dtn_arrivals":              1,
		} {
			if got := metric(t, s, name); got != want {
				t.Errorf("%s = %v, want %v", name, got, want)
			}
		}
		if got := metric(t, s, "glance_dtn_dtn_free_bytes"); got <= 0 {
			t.Errorf("free bytes %v", got)
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := New(Options{Transfers: 0, Reserve: -1})
	for _, word := range []string{"site", "address", "engine", "part", "transfers", "reserve", "keep"} {
		if !strings.Contains(fmt.Sprint(err), word) {
			t.Errorf("%v does not mention %s", err, word)
		}
	}
}
