package dtn

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// steered is an engine whose moves can be changed.
type steered struct {
	mover.Engine
	mu   sync.Mutex
	pcps []string // what each Move and each Adjust said

	ranks []string // what each Move and each Prioritise did
}

func (e *steered) say(what, key string, p mover.PCP) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pcps = append(e.pcps, fmt.Sprint(what, " ", key, " ", p))
}

func (e *steered) Move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	e.say("move", r.Key, r.PCP)
	e.Prioritise(r.Key, r.Priority)
	return e.Engine.Move(ctx, r, report)
}

func (e *steered) Adjust(key string, p mover.PCP) { e.say("adjust", key, p) }

func (e *steered) Prioritise(key string, p mover.Priority) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ranks = append(e.ranks, key+" "+string(p))
}

func (e *steered) said() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Sprint(e.pcps)
}

// steer gives the rig's servers an engine whose moves can be changed.
func (r *rig) steer(t *testing.T) (*Server, *steered) {
	s, e := r.server(t), &steered{Engine: r.engine}
	s.opt.Engines = map[string]mover.Engine{mover.Stream: e}
	return s, e
}

func TestATransferIsChangedWhileItRunsAndWhileItWaits(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		began := make(chan struct{})
		r.engine.scripts["k"] = func(ctx context.Context, report func(mover.Progress)) error {
			<-began
			report(mover.Progress{})
			return untilStopped(ctx, report)
		}
		s, e := r.steer(t)
		req := request("k")
		req.PCP = mover.PCP{Pipelining: 2, Parallelism: 2}
		id := submit(t, s, req)
		path := "/v1/transfers/" + string(id)
		if a := ask(t, s, "PATCH", path, mover.PCP{Parallelism: 3}); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		stop := run(t, s)
		synctest.Wait()
		ask(t, s, "PATCH", path, mover.PCP{Parallelism: 4}) // before the move can be told
		close(began)
		synctest.Wait()
		ask(t, s, "PATCH", path, mover.PCP{Concurrency: 9})
		if got, want := e.said(), "[adjust k {0 0 3} move k {2 0 3} adjust k {0 0 4} adjust k {0 0 4} adjust k {0 9 0}]"; got != want {
			t.Errorf("the engine was told %s, want %s", got, want)
		}
		stop()

		s, e = r.steer(t) // as stored
		stop = run(t, s)
		defer stop()
		synctest.Wait()
		if got, want := e.said(), "[move k {2 9 4}]"; got != want {
			t.Errorf("after a restart the engine was told %s, want %s", got, want)
		}
		if a := ask(t, s, "POST", "/v1/transfers", req); a.status != http.StatusOK {
			t.Errorf("the same request again: %d %s", a.status, a.body)
		}
	})
}

func TestWhatCannotBeChangedIsSaid(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["runs"] = untilStopped
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		ended, runs := submit(t, s, request("ended")), submit(t, s, request("runs"))
		synctest.Wait()
		faster := mover.PCP{Parallelism: 8}
		wantProblem(t, ask(t, s, "PATCH", "/v1/transfers/"+string(ended), faster), 422, mover.ProblemInvalid)
		wantProblem(t, ask(t, s, "PATCH", "/v1/transfers/"+string(runs), faster), 422, mover.ProblemInvalid)
		wantProblem(t, ask(t, s, "PATCH", "/v1/transfers/"+string(runs), mover.PCP{}), 422, mover.ProblemInvalid)
		wantProblem(t, ask(t, s, "PATCH", "/v1/transfers/"+string(runs), mover.PCP{Parallelism: 17}), 422, mover.ProblemInvalid)
		wantProblem(t, ask(t, s, "PATCH", "/v1/transfers/nobody", faster), 404, mover.ProblemNotFound)
	})
}

func TestAStatusTellsTheWay(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		way := mover.Way{
			Wire: 700, Lanes: 3, PCP: mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 3}, Origin: "default",
			Path:       mover.Path{Since: time.Now().UTC(), Congestion: "bbr", RTT: 50 * time.Millisecond, Sent: 800, Retransmits: 20},
			Bottleneck: mover.Bottleneck{Place: mover.Network, Share: 0.82},
			Advice:     "raise a limit",
		}
		r.engine.scripts["k"] = func(_ context.Context, report func(mover.Progress)) error {
			report(mover.Progress{Moved: 300})
			report(mover.Progress{Moved: 500, Way: way})
			time.Sleep(time.Minute)
			return nil
		}
		r.engine.scripts["beside"] = r.engine.scripts["k"]
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		id := submit(t, s, request("k"))
		submit(t, s, request("beside"))
		synctest.Wait()
		if st := wantState(t, s, id, mover.Running); st.Way != way {
			t.Errorf("%+v, want %+v", st.Way, way)
		}
		for name, want := range map[string]float64{
			"glance_dtn_dtn_path_moved_bytes_total":         2 * 200,
			"glance_dtn_dtn_path_wire_bytes_total":          2 * 700,
			"glance_dtn_dtn_path_retransmitted_bytes_total": 20, // of the one path
			"glance_dtn_dtn_path_rtt_seconds":               0.05,
			"glance_dtn_dtn_path_lanes":                     3,
		} {
			if got := metric(t, s, name); got != want {
				t.Errorf("%s = %v, want %v", name, got, want)
			}
		}
		if n := strings.Count(r.logs.String(), `"advice":"raise a limit"`); n != 1 {
			t.Errorf("the advice was logged %d times, want once", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, s := range []*Server{s, r.server(t)} {
			if st := wantState(t, s, id, mover.Done); st.Way != way {
				t.Errorf("at the end: %+v, want %+v", st.Way, way)
			}
		}
	})
}

func TestPathsAreBounded(t *testing.T) {
	p := newPaths()
	at := time.Now()
	for i := range 3 * maxPaths {
		p.add(fmt.Sprintf("dtn-%d.example.org:7444", i), 1, 1, mover.Path{Since: at, Retransmits: 1})
	}
	if got, want := len(p.links), maxPaths+1; got != want {
		t.Errorf("%d destinations, want %d", got, want)
	}
	for i := range 3 * maxLinks {
		p.add("dtn-0.example.org:7444", 1, 1, mover.Path{Since: at.Add(time.Duration(i) * time.Second), Retransmits: 1})
	}
	if got := len(p.links["dtn-0.example.org:7444"]); got != maxLinks {
		t.Errorf("%d links of a destination, want %d", got, maxLinks)
	}
}

// TestAPriorityIsChangedWhileATransferRunsAndWhileItWaits has one place, which the highest takes.
func TestAPriorityIsChangedWhileATransferRunsAndWhileItWaits(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		for _, key := range []string{"first", "second", "third"} {
			r.engine.scripts[key] = func(ctx context.Context, report func(mover.Progress)) error {
				report(mover.Progress{})
				return untilStopped(ctx, report)
			}
		}
		s, e := r.steer(t)
		stop := run(t, s)
		var ids []mover.TransferID
		for _, key := range []string{"first", "second", "third"} {
			ids = append(ids, submit(t, s, request(key)))
			time.Sleep(time.Second)
		}
		rank := func(s *Server, id mover.TransferID, p mover.Priority) {
			t.Helper()
			a := ask(t, s, "PATCH", "/v1/transfers/"+string(id), mover.Change{Priority: p})
			if a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
		}
		rank(s, ids[2], mover.PriorityHigh) // takes the place of the first
		if st := wantState(t, s, ids[2], mover.Running); st.Priority != mover.PriorityHigh {
			t.Errorf("it says %q", st.Priority)
		}
		rank(s, ids[2], mover.PriorityLow) // gives it to the oldest
		wantState(t, s, ids[0], mover.Running)
		rank(s, ids[0], mover.PriorityHigh) // on its connections, too
		if got, want := fmt.Sprint(slices.Compact(e.ranks)), "[first  third high third low first  first high]"; got != want {
			t.Errorf("the engine was told %s, want %s", got, want)
		}
		wantProblem(t, ask(t, s, "PATCH", "/v1/transfers/"+string(ids[0]), mover.Change{Priority: "urgent"}), 422, mover.ProblemInvalid)
		stop()

		s, e = r.steer(t) // as stored
		stop = run(t, s)
		defer stop()
		synctest.Wait()
		if got, want := fmt.Sprint(e.ranks), "[first high]"; got != want {
			t.Errorf("after a restart the engine was told %s, want %s", got, want)
		}
		if a := ask(t, s, "POST", "/v1/transfers", request("third")); a.status != http.StatusOK {
			t.Errorf("the same request again: %d %s", a.status, a.body)
		}
	})
}
