package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// socketPath is short enough for a unix socket, which a path under t.TempDir need not be.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "agent.sock")
}

func serve(t *testing.T, s *http.Server, l net.Listener) {
	t.Helper()
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

func startControl(t *testing.T) (*fakeAgent, *ControlClient) {
	t.Helper()
	f, path := newFake(), socketPath(t)
	l, err := ListenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ControlServer(f, slog.New(slog.DiscardHandler)), l)
	return f, NewControlClient(path)
}

// raw sends a request as it is, and returns the answer with its body read.
func raw(t *testing.T, hc *http.Client, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestControlClientSeesWhatTheAgentDoes(t *testing.T) {
	f, c := startControl(t)
	ctx := t.Context()

	jobs, err := c.Push(ctx, "debian", []string{"B", "C"}, mover.PriorityLow)
	noError(t, err)
	if len(jobs) != 2 || jobs[0].Peer != "B" || jobs[1].Peer != "C" || jobs[1].Priority != mover.PriorityLow {
		t.Fatalf("Push = %+v, want jobs of low priority for B and C", jobs)
	}
	jobs[0].Priority = "" // the fake does not keep it
	same(t, "the job's image", jobs[0].Image, image(1, "debian"))

	stored, err := c.Job(ctx, jobs[0].ID)
	noError(t, err)
	same(t, "Job", stored, jobs[0])

	pulled, err := c.Pull(ctx, string(imageID(2)), "D")
	noError(t, err)
	if pulled.Peer != "D" || pulled.Image.ID != imageID(2) {
		t.Errorf("Pull = %+v, want image 2 for site D", pulled)
	}

	theirs, err := c.Pulled(ctx, "D", pulled.ID)
	noError(t, err)
	same(t, "Pulled", theirs, pulled)

	seen := map[agent.JobID]bool{}
	for j, err := range c.Jobs(ctx) {
		noError(t, err)
		seen[j.ID] = true
	}
	if want := map[agent.JobID]bool{jobs[0].ID: true, jobs[1].ID: true, pulled.ID: true}; !reflect.DeepEqual(seen, want) {
		t.Errorf("Jobs yields %v, want %v", seen, want)
	}

	cancelled, err := c.Cancel(ctx, jobs[0].ID)
	noError(t, err)
	retried, err2 := c.Retry(ctx, jobs[0].ID)
	noError(t, err2)
	if cancelled.State != agent.Cancelled || retried.State != agent.Pending {
		t.Errorf("Cancel gives %s and Retry %s, want cancelled and pending", cancelled.State, retried.State)
	}

	f.Moving = []agent.Transfer{{Status: mover.Status{ID: "aaaa", State: mover.Running, Moved: 5}, Job: pulled.ID, Image: "debian", To: "B"}}
	transfers, err := c.Transfers(ctx)
	noError(t, err)
	same(t, "Transfers", transfers, f.Moving)
	f.Seen = []agent.SitePath{{SeenPath: mover.SeenPath{Address: "dtn-b.example.org:7444", Loss: 0.5}, Sites: []string{"B"}}}
	paths, err := c.Paths(ctx)
	noError(t, err)
	same(t, "Paths", paths, f.Seen)
	f.Known = "a,\"b\"\n1,2\n"
	csv, err := c.History(ctx)
	noError(t, err)
	same(t, "History", csv, f.Known)
	imported, err := c.ImportHistory(ctx, strings.Repeat("1,\"2\"\n", 4<<20))
	noError(t, err)
	if imported != (mover.Imported{Outcomes: 2, New: 1}) || f.Known != strings.Repeat("1,\"2\"\n", 4<<20) {
		t.Errorf("ImportHistory gives %+v, and the agent was told %d bytes", imported, len(f.Known))
	}
	forgotten, err := c.ForgetHistory(ctx, "B")
	noError(t, err)
	if forgotten.Outcomes != 7 || f.Known != "without B" {
		t.Errorf("ForgetHistory gives %+v, and the agent was told %q", forgotten, f.Known)
	}
	var probed *agent.SitePath
	for e, err := range c.Probe(ctx, "B", time.Second, 3) {
		noError(t, err)
		if probed = e.Path; probed == nil {
			same(t, "Probe", e, agent.ProbeEvent{Progress: &mover.Probing{Phase: mover.ProbeAll, Time: time.Second, Bytes: e.Progress.Bytes}})
		}
	}
	same(t, "the path that was probed", *probed, f.Seen[0])
	for _, err := range c.Probe(ctx, "X", 0, 0) {
		if !errors.Is(err, agent.ErrNoPeer) {
			t.Errorf("Probe of no peer: %v", err)
		}
	}
	for _, err := range c.Probe(ctx, "B", 31*time.Second, 0) {
		if err == nil || !strings.Contains(err.Error(), "body.time_ns") {
			t.Errorf("Probe for too long: %v", err)
		}
	}
	for range c.Probe(ctx, "B", 0, 0) { // without end
		break
	}
	if site := <-f.probed; site != "B" {
		t.Errorf("the probe of site %s has ended", site)
	}
	f.ways = map[string]agent.Ways{
		"B ":            {From: "A", To: "B", Size: 7, Hops: []mover.Hop{{From: "A", SeenPath: mover.SeenPath{Site: "B", Best: 1e9}}}, Unknown: []string{}},
		"B debian 12/x": {From: "A", To: "B", Chosen: true, Size: 7, Present: &mover.Relay{}, Hops: []mover.Hop{}, Unknown: []string{"A → R is not measured"}},
	}
	for _, image := range []string{"", "debian 12/x"} {
		ways, err := c.Ways(ctx, "B", image, 7)
		noError(t, err)
		same(t, "Ways", ways, f.ways["B "+image])
	}
	if _, err := c.Ways(ctx, "Z", "", 7); !errors.Is(err, agent.ErrNoPeer) {
		t.Errorf("Ways to no peer: %v", err)
	}
	adjusted, err := c.Adjust(ctx, "aa", mover.PCP{Parallelism: 8})
	noError(t, err)
	if f.Moving[0].Way.PCP = (mover.PCP{Parallelism: 8}); adjusted != f.Moving[0] {
		t.Errorf("Adjust gives %+v, want %+v", adjusted, f.Moving[0])
	}
	if _, err := c.Adjust(ctx, "bb", mover.PCP{Parallelism: 8}); !errors.Is(err, mover.ErrNoTransfer) {
		t.Errorf("Adjust of no transfer: %v", err)
	}

	overview, err := c.Overview(ctx)
	noError(t, err)
	want, err := f.Overview(ctx)
	noError(t, err)
	same(t, "Overview", overview, want)

	checks, err := c.Checks(ctx)
	noError(t, err)
	same(t, "Checks", checks, f.checks)
}

func TestCompareAndReplicateKeepEveryFieldOfTheMatch(t *testing.T) {
	f, c := startControl(t)
	m := agent.Match{
		Names: []string{"deb.*", "a,b&c"}, IDs: []glance.ImageID{imageID(1)}, Tags: []string{"a"}, Visibility: []string{"public", "private"},
		Owners: []string{"o"}, Properties: map[string]string{"os_distro": "debian", "k": "x=y,z"}, MaxSize: 7 << 20,
	}
	if _, err := c.Compare(t.Context(), []string{"B", "C"}, m); err != nil {
		t.Fatal(err)
	}
	same(t, "Compare's match", f.asked, m)
	if _, err := c.Replicate(t.Context(), m, []string{"B"}, "", true); err != nil {
		t.Fatal(err)
	}
	same(t, "Replicate's match", f.asked, m)

	all, err := c.Compare(t.Context(), []string{"B", "C"}, agent.Match{Tags: []string{"b"}})
	noError(t, err)
	if len(all) != 6 {
		t.Errorf("Compare gives %d lines, want 3 images at 2 sites", len(all))
	}
	planned, err := c.Replicate(t.Context(), agent.Match{}, []string{"B"}, "", true)
	noError(t, err)
	sent, err := c.Replicate(t.Context(), agent.Match{}, []string{"B"}, "", false)
	noError(t, err)
	if planned[0].Job != "" || sent[0].Job == "" || !sent[0].Planned {
		t.Errorf("dry run gives %+v, run %+v; want a job of the second alone", planned[0], sent[0])
	}
}

func TestErrorsKeepTheirIdentityAndText(t *testing.T) {
	f, c := startControl(t)
	peer := startPeer(t, f, siteB).client(t)
	sentinels := []error{agent.ErrNoJob, agent.ErrNoPeer, agent.ErrAmbiguous, agent.ErrForbidden, agent.ErrBadState, agent.ErrNoImage}
	for _, fail := range append(sentinels, errors.New("some other trouble"), context.DeadlineExceeded) {
		for _, permanent := range []bool{false, true} {
			f.fail = fmt.Errorf("do it: %w", fail)
			if permanent {
				f.fail = failure.Permanently(f.fail)
			}
			_, controlErr := c.Job(t.Context(), "x")
			_, pulledErr := c.Pulled(t.Context(), "B", "x")
			_, peerErr := peer.Request(t.Context(), "x")
			_, sendingErr := peer.Sending(t.Context(), "x")
			var jobsErr, inventoryErr error
			for _, err := range c.Jobs(t.Context()) {
				jobsErr = err
			}
			for _, err := range peer.Inventory(t.Context()) {
				inventoryErr = err
			}
			for what, err := range map[string]error{"Job": controlErr, "Pulled": pulledErr, "Request": peerErr, "Sending": sendingErr, "Jobs": jobsErr, "Inventory": inventoryErr} {
				if what == "Job" && errors.Is(fail, agent.ErrNoJob) {
					continue // the job is looked for by a prefix then, and that fails
				}
				if err == nil || !strings.HasSuffix(err.Error(), f.fail.Error()) {
					t.Errorf("%s: text %q, want the server's %q", what, err, f.fail)
				}
				for _, s := range sentinels {
					if got, want := errors.Is(err, s), errors.Is(f.fail, s); got != want {
						t.Errorf("%s failing with %q: errors.Is(err, %q) = %v, want %v", what, f.fail, s, got, want)
					}
				}
				if got := failure.IsPermanent(err); got != permanent {
					t.Errorf("%s failing with %q: permanent = %v, want %v", what, f.fail, got, permanent)
				}
			}
		}
	}
}

func TestWrongRequestsAreRefusedWithTheirPlace(t *testing.T) {
	f, c := startControl(t)
	for _, r := range []struct {
		method, path, body string
		status             int
		kind, place        string
	}{
		{"POST", "/v1/push", `{"image":"debian","to":["B"],"tu":["C"]}`, 422, typeInvalid, "body.tu"},
		{"POST", "/v1/push", `{"image":"debian"}`, 422, typeInvalid, "property to"},
		{"POST", "/v1/push", `{"image":"debian","to":[]}`, 422, typeInvalid, "body.to"},
		{"POST", "/v1/push", `{"image":"","to":["B"]}`, 422, typeInvalid, "body.image"},
		{"POST", "/v1/push", `{"image":`, 400, typeInvalid, "body"},
		{"POST", "/v1/push", ``, 400, typeInvalid, "body is required"},
		{"POST", "/v1/push", `{"image":"` + strings.Repeat("x", maxBody) + `","to":["B"]}`, 413, typeLarge, "too large"},
		{"POST", "/v1/replicate", `{"to":["B"],"match":{"nmaes":["x"]}}`, 422, typeInvalid, "body.match.nmaes"},
		{"POST", "/v1/replicate", `{"to":["B"],"match":{"names":["("]}}`, 422, typeInvalid, "body.match"},
		{"GET", "/v1/compare?per=B", "", 422, typeInvalid, "query.per"},
		{"GET", "/v1/compare?name=(", "", 422, typeInvalid, `name "("`},
		{"GET", "/v1/compare?property=x", "", 422, typeInvalid, "key=value"},
		{"GET", "/v1/jobs?state=gone", "", 422, typeInvalid, "query.state"},
	} {
		res, body := raw(t, c.c.hc, r.method, c.c.base+r.path, r.body)
		var p Problem
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Fatalf("%s %s: %v in %s", r.method, r.path, err, body)
		}
		if media := res.Header.Get("Content-Type"); res.StatusCode != r.status || p.Status != r.status || p.Type != r.kind || media != problemMedia || !strings.Contains(p.Error(), r.place) {
			t.Errorf("%s %s %.40s: %d %s %+v; want %d, %s with %q", r.method, r.path, r.body, res.StatusCode, media, p, r.status, r.kind, r.place)
		}
	}
	if len(f.jobs) != 0 {
		t.Errorf("refused requests made jobs: %+v", f.jobs)
	}
}

func TestInvalidRequestIsPermanent(t *testing.T) {
	_, c := startControl(t)
	if _, err := c.Push(t.Context(), "debian", nil, ""); !failure.IsPermanent(err) {
		t.Errorf("Push to nobody = %v, want a permanent error", err)
	}
}

func TestJobIsFoundByTheBeginningOfItsID(t *testing.T) {
	f, c := startControl(t)
	for _, id := range []agent.JobID{"aab1", "aac2", "aac2d"} {
		f.put(agent.Job{ID: id, Kind: agent.Send, State: agent.Pending})
	}
	for _, x := range []struct {
		id, want agent.JobID
		err      error
	}{
		{"aab", "aab1", nil},
		{"aac2", "aac2", nil}, // an id counts before what begins like it
		{"aac2d", "aac2d", nil},
		{"aac", "", agent.ErrAmbiguous},
		{"b", "", agent.ErrNoJob},
		{"aab1x", "", agent.ErrNoJob},
		{"../overview", "", agent.ErrNoJob},
	} {
		j, err := c.Job(t.Context(), x.id)
		if j.ID != x.want || !errors.Is(err, x.err) {
			t.Errorf("Job(%s) = %q, %v; want %q, %v", x.id, j.ID, err, x.want, x.err)
		}
	}
	if j, err := c.Cancel(t.Context(), "aab"); err != nil || j.ID != "aab1" || j.State != agent.Cancelled {
		t.Errorf("Cancel(aab) = %+v, %v; want aab1 cancelled", j, err)
	}
}

func TestJobsAreFilteredByStateAndKind(t *testing.T) {
	f, c := startControl(t)
	f.put(agent.Job{ID: "1", Kind: agent.Send, State: agent.Parked})
	f.put(agent.Job{ID: "2", Kind: agent.Receive, State: agent.Parked})
	f.put(agent.Job{ID: "3", Kind: agent.Send, State: agent.Moved})
	for query, want := range map[string]string{"": "123", "?state=parked": "12", "?kind=send": "13", "?state=parked&kind=send": "1", "?state=verified": ""} {
		res, body := raw(t, c.c.hc, "GET", c.c.base+"/v1/jobs"+query, "")
		var ids []string
		for d := json.NewDecoder(strings.NewReader(body)); d.More(); {
			var j agent.Job
			noError(t, d.Decode(&j))
			ids = append(ids, string(j.ID))
		}
		got := strings.Join(ids, "")
		if media := res.Header.Get("Content-Type"); got != want || res.StatusCode != 200 || media != linesMedia {
			t.Errorf("jobs%s: %d %s %s, want jobs %s", query, res.StatusCode, media, got, want)
		}
	}
}

func TestRecordThatCannotBeReadDoesNotHideTheOthers(t *testing.T) {
	f, c := startControl(t)
	bad := errors.New("the record cannot be read")
	for _, id := range []agent.JobID{"1", "2", "3"} {
		f.put(agent.Job{ID: id, Kind: agent.Send, State: agent.Parked})
	}
	for broken := range 3 {
		f.broken = func(i int) error {
			if i == broken {
				return bad
			}
			return nil
		}
		var ids, errs []string
		for j, err := range c.Jobs(t.Context()) {
			ids = append(ids, string(j.ID))
			if err != nil {
				errs = append(errs, string(j.ID)+": "+err.Error())
			}
		}
		same(t, "jobs", ids, []string{"1", "2", "3"})
		same(t, "errors", errs, []string{fmt.Sprint(broken+1) + ": " + bad.Error()})
	}
}

func TestTicketNeverLeavesTheControlAPI(t *testing.T) {
	f, c := startControl(t)
	j, err := c.Push(t.Context(), "debian", []string{"B"}, "")
	noError(t, err)
	if f.jobs[0].Offer.Ticket != secret {
		t.Fatal("the fake's job has no ticket")
	}
	id := string(j[0].ID)
	for _, r := range []struct{ method, path, body string }{
		{"POST", "/v1/push", `{"image":"debian","to":["B"]}`},
		{"POST", "/v1/pull", `{"image":"debian","from":"B"}`},
		{"GET", "/v1/pulls/B/" + id, ""},
		{"GET", "/v1/jobs", ""},
		{"GET", "/v1/jobs/" + id, ""},
		{"POST", "/v1/jobs/" + id + "/cancel", ""},
		{"POST", "/v1/jobs/" + id + "/retry", ""},
	} {
		res, body := raw(t, c.c.hc, r.method, c.c.base+r.path, r.body)
		if res.StatusCode != 200 || !strings.Contains(body, id) || strings.Contains(body, secret) {
			t.Errorf("%s %s: %d %s", r.method, r.path, res.StatusCode, body)
		}
	}
	watched(t, f, c, func(ctx context.Context) {
		f.put(f.jobs[0])
	}, func(ev agent.Event, err error) bool {
		if err != nil || ev.Job.Offer.Ticket != "" {
			t.Errorf("event %+v, %v; want a job without ticket", ev.Job, err)
		}
		return false
	})
}

// watched ranges over c.Watch and calls act once the agent has a watcher. It returns
// when the agent has none any more.
func watched(t *testing.T, f *fakeAgent, c *ControlClient, act func(context.Context), see func(agent.Event, error) bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	acted := make(chan struct{})
	go func() {
		defer close(acted)
		<-f.watching
		f.mu.Lock()
		defer f.mu.Unlock()
		act(ctx)
	}()
	for ev, err := range c.Watch(ctx) {
		if !see(ev, err) {
			break
		}
	}
	<-acted
	cancel()
	if n := <-f.watching; n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestWatchTellsEveryKindOfEvent(t *testing.T) {
	f, c := startControl(t)
	progress := agent.Progress{Job: "1", State: agent.Moved, Moved: 5, Total: 9, At: epoch}
	n := 0
	watched(t, f, c, func(context.Context) {
		f.put(agent.Job{ID: "1", Kind: agent.Send, State: agent.Pending, Reason: "two\nlines\r\n\ndata: x"})
		f.tell(agent.Event{Progress: &progress})
		f.tell(agent.Event{Job: &agent.Job{ID: "2"}}) // the fake's record that cannot be read
		f.tell(agent.Event{Gone: "1"})
	}, func(ev agent.Event, err error) bool {
		n++
		switch n {
		case 1:
			if err != nil || ev.Job.ID != "1" || ev.Job.Reason != "two\nlines\r\n\ndata: x" {
				t.Errorf("event 1 = %+v, %v; want job 1", ev.Job, err)
			}
		case 2:
			if err != nil || ev.Progress == nil || *ev.Progress != progress {
				t.Errorf("event 2 = %+v, %v; want %+v", ev.Progress, err, progress)
			}
		case 3:
			if err == nil || err.Error() != "job 2: the record cannot be read" || ev.Job == nil || ev.Job.ID != "2" {
				t.Errorf("event 3 = %+v, %v; want an error beside job 2", ev.Job, err)
			}
		case 4:
			if err != nil || ev.Gone != "1" {
				t.Errorf("event 4 = %+v, %v; want job 1 gone", ev, err)
			}
		}
		return n < 4
	})
}

func TestWatchEndsWithItsContextAndWithoutError(t *testing.T) {
	f, c := startControl(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-f.watching
		cancel()
	}()
	for ev, err := range c.Watch(ctx) {
		t.Errorf("got %+v, %v; want nothing", ev, err)
	}
	if n := <-f.watching; n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestWatchAnswersBeforeTheFirstEvent(t *testing.T) {
	f, c := startControl(t)
	ctx, cancel := context.WithCancel(t.Context())
	res, err := c.c.send(ctx, http.MethodGet, "/v1/events", nil)
	noError(t, err)
	if n := <-f.watching; n != 1 {
		t.Errorf("%d watchers when the answer has begun, want 1", n)
	}
	cancel()
	_ = res.Body.Close()
	<-f.watching
}

func TestStreamsOutlastTheTimeOfAnAnswer(t *testing.T) {
	f, path := newFake(), socketPath(t)
	l, err := ListenControl(path)
	noError(t, err)
	serve(t, newServer(controlRoutes(f), time.Nanosecond, slog.New(slog.DiscardHandler)), l)
	c := NewControlClient(path)
	if _, err := c.Overview(t.Context()); err == nil {
		t.Fatal("an ordinary answer came in spite of its time")
	}
	for _, err := range c.Jobs(t.Context()) {
		t.Errorf("Jobs: %v, want nothing", err)
	}
	for id := range 1000 {
		f.put(agent.Job{ID: agent.JobID(fmt.Sprintf("%04d", id)), Image: image(1, "x")})
	}
	n := 0
	for _, err := range c.Jobs(t.Context()) {
		noError(t, err)
		n++
	}
	if n != 1000 {
		t.Errorf("%d jobs, want 1000", n)
	}
	watched(t, f, c, func(context.Context) { f.tell(agent.Event{Gone: "0001"}) }, func(ev agent.Event, err error) bool {
		if err != nil || ev.Gone != "0001" {
			t.Errorf("got %+v, %v; want a job gone", ev, err)
		}
		return false
	})
}

func TestNoAgentSaysWhatToDo(t *testing.T) {
	missing := socketPath(t)
	stale := socketPath(t)
	leaveStale(t, stale)
	for _, path := range []string{missing, stale} {
		_, err := NewControlClient(path).Overview(t.Context())
		if !errors.Is(err, ErrNoAgent) || !strings.HasPrefix(err.Error(), "no agent answers on "+path+" (") || !strings.HasSuffix(err.Error(), "): start `glance-dtn agent`") {
			t.Errorf("got %v, want that no agent answers on %s, why, and what to do", err, path)
		}
		for _, err := range NewControlClient(path).Watch(t.Context()) {
			if err == nil || !strings.HasPrefix(err.Error(), "no agent answers on ") {
				t.Errorf("Watch: got %v", err)
			}
		}
	}
}

// leaveStale leaves a socket at path as a killed agent does.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := ListenControl(path)
	noError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	noError(t, l.Close())
}

func TestControlSocketIsForItsOwnerFromTheFirstMoment(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := socketPath(t)
	for _, when := range []string{"new", "in the place of a stale one"} {
		l, err := ListenControl(path)
		noError(t, err)
		i, err := os.Lstat(path)
		noError(t, err)
		if i.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: mode %v, want a socket of mode 0600", when, i.Mode())
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		noError(t, l.Close())
	}
	if i, err := os.Stat(filepath.Dir(path)); err != nil || i.Mode().Perm() != 0o750 {
		t.Errorf("directory: %v, %v; want mode 0750", i.Mode(), err)
	}
}

func TestListenControlRemovesNothingButAStaleSocket(t *testing.T) {
	path := socketPath(t)
	l, err := ListenControl(path)
	noError(t, err)
	defer l.Close()
	if _, err := ListenControl(path); err == nil || !strings.Contains(err.Error(), "another agent answers there") {
		t.Errorf("beside a living agent: %v", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the living agent's socket is gone: %v", err)
	}
	defer c.Close()

	file := filepath.Join(filepath.Dir(path), "file")
	noError(t, os.WriteFile(file, []byte("precious"), 0o600))
	if _, err := ListenControl(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("in the place of a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, []byte("precious")) {
		t.Errorf("the file holds %q, %v", b, err)
	}
	if _, err := ListenControl(file + strings.Repeat("x", 108)); err == nil || !strings.Contains(err.Error(), "longer than the 107 bytes") {
		t.Errorf("with a long path: %v", err)
	}
}

func TestOpenAPIIsServed(t *testing.T) {
	_, c := startControl(t)
	res, body := raw(t, c.c.hc, "GET", c.c.base+"/openapi.json", "")
	if res.StatusCode != 200 || !strings.Contains(body, "/v1/jobs/{id}/cancel") || strings.Contains(body, "ErrorModel") {
		t.Errorf("openapi.json: %d %.200s", res.StatusCode, body)
	}
	if res, body = raw(t, c.c.hc, "GET", c.c.base+"/openapi.yaml", ""); res.StatusCode != 200 || !strings.HasPrefix(body, "components:") {
		t.Errorf("openapi.yaml: %d %.200s", res.StatusCode, body)
	}
	if res, _ = raw(t, c.c.hc, "GET", c.c.base+"/docs", ""); res.StatusCode != 404 {
		t.Errorf("/docs: %d, want 404", res.StatusCode)
	}
}

// TestStreamsOutlastTheTimesOfTheServer has the agent say nothing for much longer than the
// server's timeouts, while jobs are followed, and be asked to probe for as long.
func TestStreamsOutlastTheTimesOfTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		s := ControlServer(f, slog.New(slog.DiscardHandler))
		c := &ControlClient{&client{base: "http://agent", hc: nettest.Piped(t, s), say: func(err error) error { return err }}}
		long := 10 * max(s.ReadTimeout, s.WriteTimeout)
		watched(t, f, c, func(context.Context) {
			time.Sleep(long)
			f.tell(agent.Event{Gone: "1"})
		}, func(ev agent.Event, err error) bool {
			if err != nil || ev.Gone != "1" {
				t.Errorf("got %+v, %v; want a job gone", ev, err)
			}
			return false
		})
		f.Seen = []agent.SitePath{{}}
		began := time.Now()
		for _, err := range c.Probe(t.Context(), "B", time.Second, 0) {
			if err != nil {
				t.Errorf("the probe breaks after %v: %v", time.Since(began), err)
			}
			if time.Since(began) > long {
				break
			}
			time.Sleep(writeTime / 2)
		}
		<-f.probed
	})
}
