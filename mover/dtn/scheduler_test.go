package dtn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestTransfersRunInOrderAtMostSoManyAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		var want []string
		for i := range 7 {
			key := fmt.Sprint("k", i)
			want = append(want, key)
			r.engine.scripts[key] = func(context.Context, func(mover.Progress)) error {
				time.Sleep(time.Minute)
				return nil
			}
			submit(t, s, request(key))
			time.Sleep(time.Second) // a later time of creation
		}
		stop := run(t, s)
		defer stop()
		synctest.Wait()
		if got := s.table.counts(); got[mover.Running] != 2 || got[mover.Queued] != 5 {
			t.Errorf("states %v, want 2 running and 5 queued", got)
		}
		time.Sleep(time.Hour)
		if got := r.engine.started(); !slices.Equal(sorted(got), want) || r.engine.most != 2 {
			t.Errorf("ran %v, %d at once, want %v, 2 at once", got, r.engine.most, want)
		}
		for i, key := range r.engine.started() { // two run side by side: a key is at most one off its place
			if at := slices.Index(want, key); at < i-1 || at > i+1 {
				t.Errorf("%s ran as number %d, want about %d", key, i, at)
			}
		}
		if got := s.table.counts(); got[mover.Done] != 7 {
			t.Errorf("states %v, want 7 done", got)
		}
	})
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func TestARestartTakesUpWhatHadNotEnded(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		for _, key := range []string{"running", "waiting"} {
			r.engine.scripts[key] = untilStopped
		}
		s := r.server(t)
		stop := run(t, s)
		done := submit(t, s, request("done"))
		synctest.Wait()
		running := submit(t, s, request("running"))
		time.Sleep(time.Second)
		waiting := submit(t, s, request("waiting"))
		synctest.Wait()
		wantState(t, s, running, mover.Running)
		wantState(t, s, waiting, mover.Queued)
		stop()
		before := wantState(t, s, done, mover.Done)

		clear(r.engine.scripts)
		s = r.server(t)
		if after := wantState(t, s, done, mover.Done); after != before {
			t.Errorf("the restart changed what had ended:\n got %+v\nwant %+v", after, before)
		}
		wantState(t, s, running, mover.Queued)
		wantState(t, s, waiting, mover.Queued)
		stop = run(t, s)
		defer stop()
		synctest.Wait()
		wantState(t, s, running, mover.Done)
		wantState(t, s, waiting, mover.Done)
		if got, want := r.engine.started(), []string{"done", "running", "running", "waiting"}; !slices.Equal(got, want) {
			t.Errorf("ran %v, want %v", got, want)
		}
		a := ask(t, s, "POST", "/v1/transfers", request("running"))
		if a.status != http.StatusOK {
			t.Errorf("the same request after a restart: %d %s, want 200", a.status, a.body)
		}
	})
}

func TestWhatWasDoneWhileTheDTNStoppedIsDone(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["k"] = func(ctx context.Context, report func(mover.Progress)) error {
			<-ctx.Done()
			return nil // the last acknowledgement came in time
		}
		s := r.server(t)
		stop := run(t, s)
		id := submit(t, s, request("k"))
		synctest.Wait()
		stop()
		wantState(t, r.server(t), id, mover.Done)
	})
}

func TestAFailureKeepsItsCodeAndText(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["before"] = func(context.Context, func(mover.Progress)) error {
			return mover.Coded(mover.CodeTicket, errors.New("ticket expired"))
		}
		r.engine.scripts["after"] = func(_ context.Context, report func(mover.Progress)) error {
			report(mover.Progress{})
			report(mover.Progress{Moved: 1000})
			return errors.New("connection reset")
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		before, after := submit(t, s, request("before")), submit(t, s, request("after"))
		synctest.Wait()
		for _, s := range []*Server{s, r.server(t)} {
			st := wantState(t, s, before, mover.Failed)
			if st.Code != mover.CodeTicket || st.Error != "ticket expired" || st.Moved != 0 || st.Ended.IsZero() {
				t.Errorf("failed before: %+v", st)
			}
			st = wantState(t, s, after, mover.Failed)
			if st.Code != mover.CodeOther || st.Error != "connection reset" || st.Moved != 1000 {
				t.Errorf("failed after: %+v", st)
			}
		}
	})
}

func TestProgressCountsWhatThisRunMoved(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["k"] = func(_ context.Context, report func(mover.Progress)) error {
			report(mover.Progress{Moved: 600}) // was there before
			time.Sleep(2 * time.Second)
			report(mover.Progress{Moved: 800})
			time.Sleep(2 * time.Second)
			report(mover.Progress{Moved: 1000})
			return nil
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		id := submit(t, s, request("k"))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := wantState(t, s, id, mover.Running); st.Moved != 800 || int(st.Rate) != 200*8/3 {
			t.Errorf("after 3 s: moved %d at %.0f bit/s, want 800 at %d", st.Moved, st.Rate, 200*8/3)
		}
		time.Sleep(time.Minute)
		if st := wantState(t, s, id, mover.Done); st.Moved != 1000 || st.Rate != 400*8/4 || st.Ended.Sub(st.Started) != 4*time.Second {
			t.Errorf("at the end: %+v, want 1000 bytes at %d bit/s in 4 s", st, 400*8/4)
		}
		if got := metric(t, s, "glance_dtn_dtn_moved_bytes_total"); got != 400 {
			t.Errorf("moved %v bytes in all, want 400", got)
		}
	})
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		r.engine.scripts["running"] = untilStopped
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		finished := submit(t, s, request("finished"))
		synctest.Wait()
		running := submit(t, s, request("running"))
		synctest.Wait()
		queued := submit(t, s, request("queued"))
		for range 2 { // the second time nothing changes
			for _, c := range []struct {
				id   mover.TransferID
				want mover.TransferState
			}{{finished, mover.Done}, {queued, mover.Cancelled}, {running, mover.Cancelled}} {
				a := ask(t, s, "DELETE", "/v1/transfers/"+string(c.id), nil)
				var st mover.Status
				a.decode(t, &st)
				if a.status != http.StatusOK || st.State != c.want {
					t.Errorf("cancel: %d %s, want %s", a.status, a.body, c.want)
				}
			}
		}
		again := r.server(t)
		wantState(t, again, finished, mover.Done)
		wantState(t, again, queued, mover.Cancelled)
		wantState(t, again, running, mover.Cancelled)
		if got, want := r.engine.started(), []string{"finished", "running"}; !slices.Equal(got, want) {
			t.Errorf("ran %v, want %v", got, want)
		}
		wantProblem(t, ask(t, s, "DELETE", "/v1/transfers/unknown", nil), http.StatusNotFound, mover.ProblemNotFound)
	})
}

func TestACancelOutlivesACrash(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		r.engine.scripts["k"] = func(context.Context, func(mover.Progress)) error {
			<-release // deaf
			return errors.New("stopped at last")
		}
		s := r.server(t)
		stop := run(t, s)
		id := submit(t, s, request("k"))
		synctest.Wait()
		start := time.Now()
		ask(t, s, "DELETE", "/v1/transfers/"+string(id), nil)
		if waited := time.Since(start); waited != cancelWait {
			t.Errorf("cancel waited %v for a deaf engine, want %v", waited, cancelWait)
		}
		wantState(t, s, id, mover.Running)
		wantState(t, r.server(t), id, mover.Cancelled) // as after SIGKILL
		close(release)
		synctest.Wait()
		wantState(t, s, id, mover.Cancelled)
		stop()
	})
}

func TestAnEngineThatIsGoneFailsItsTransfers(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Engines["gridftp"] = r.engine
		req := request("k")
		req.Engine = "gridftp"
		id := submit(t, r.server(t), req)
		delete(r.opt.Engines, "gridftp")
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		synctest.Wait()
		if st := wantState(t, s, id, mover.Failed); !strings.Contains(st.Error, "gridftp") {
			t.Errorf("error %q does not name the engine", st.Error)
		}
	})
}

func TestADiskThatFailsAcceptsNothingAndLosesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		finish := make(chan struct{})
		r.engine.scripts["running"] = func(context.Context, func(mover.Progress)) error { <-finish; return nil }
		r.opt.Transfers = 1
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		running := submit(t, s, request("running"))
		synctest.Wait()
		queued := submit(t, s, request("queued"))
		s.table.records.Close() // every write fails from now on

		wantProblem(t, ask(t, s, "POST", "/v1/transfers", request("new")), http.StatusInternalServerError, mover.ProblemInternal)
		wantProblem(t, ask(t, s, "GET", "/v1/transfers/"+string(transferID("new")), nil), http.StatusNotFound, mover.ProblemNotFound)
		for _, id := range []mover.TransferID{running, queued} {
			wantProblem(t, ask(t, s, "DELETE", "/v1/transfers/"+string(id), nil), http.StatusInternalServerError, mover.ProblemInternal)
		}
		wantState(t, s, running, mover.Running)
		wantState(t, s, queued, mover.Queued)
		r.engine.scripts["queued"] = untilStopped
		close(finish)
		synctest.Wait()
		wantState(t, s, running, mover.Done)
		if !strings.Contains(r.logs.String(), "could not be stored") {
			t.Errorf("no word in the log:\n%s", r.logs)
		}
		stop()
		wantState(t, r.server(t), running, mover.Queued) // moved again, which costs little
	})
}
