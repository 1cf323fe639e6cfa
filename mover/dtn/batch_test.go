package dtn

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// submitAll submits a batch and wants it to be answered.
func submitAll(t *testing.T, s *Server, body any) (answers []mover.Submitted) {
	t.Helper()
	a := ask(t, s, "POST", "/v1/batches", body)
	if a.status != http.StatusOK {
		t.Fatalf("%d %s, want 200", a.status, a.body)
	}
	a.decode(t, &answers)
	return answers
}

func requests(n int) (all []mover.Request) {
	for i := range n {
		all = append(all, request(fmt.Sprintf("k%04d", i)))
	}
	return all
}

// TestABatchIsJudgedOneByOne holds that each request of a batch is answered as it would be
// alone.
func TestABatchIsJudgedOneByOne(t *testing.T) {
	bodies := map[string]string{"good": "", "good again": "", "not an object": "7", "null": "null"}
	change := func(name string, do func(r map[string]any)) {
		data, err := json.Marshal(request(strings.ReplaceAll(name, " ", "-")))
		if err != nil {
			t.Fatal(err)
		}
		r := map[string]any{}
		if err := json.Unmarshal(data, &r); err != nil {
			t.Fatal(err)
		}
		do(r)
		if data, err = json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		bodies[name] = string(data)
	}
	change("good", func(map[string]any) {})
	bodies["good again"] = bodies["good"]
	change("other for good", func(r map[string]any) { r["key"] = "good"; r["pcp"] = map[string]any{"parallelism": 2} })
	change("unknown field", func(r map[string]any) { r["colour"] = "red" })
	change("no source", func(r map[string]any) { delete(r, "source") })
	change("bad key", func(r map[string]any) { r["key"] = "a/b" })
	change("bad parallelism", func(r map[string]any) { r["pcp"] = map[string]any{"parallelism": 99} })
	change("protection", func(r map[string]any) { r["protection"] = "clear" }) // is the operator's to say
	change("bad name", func(r map[string]any) { r["source"].(map[string]any)["name"] = "inbox/x" })
	change("bad type", func(r map[string]any) { r["destination"] = []any{secret} })
	change("bad engine", func(r map[string]any) { r["engine"] = "steam" })
	names := []string{"good", "good again", "other for good"} // in this order
	for name := range bodies {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	alone, r := newRig(t).server(t), newRig(t)
	s := r.server(t)
	var list []string
	for _, name := range names {
		list = append(list, bodies[name])
	}
	answers := submitAll(t, s, "["+strings.Join(list, ",")+"]")
	if len(answers) != len(names) {
		t.Fatalf("%d answers to %d requests", len(answers), len(names))
	}
	for i, name := range names {
		one, got := ask(t, alone, "POST", "/v1/transfers", bodies[name]), answers[i]
		if one.status/100 == 2 {
			if got.Status == nil || got.Problem != nil || got.Status.ID != answers[0].Status.ID {
				t.Errorf("%s: %+v, alone %s", name, got, one.body)
			}
			continue
		}
		var want mover.Problem
		one.decode(t, &want)
		if got.Problem == nil || got.Status != nil || got.Problem.Status != want.Status || got.Problem.Type != want.Type || got.Problem.Code != want.Code {
			t.Errorf("%s: %+v, alone %s", name, got.Problem, one.body)
		} else if !slices.Equal(got.Problem.Errors, want.Errors) {
			t.Errorf("%s: faults %q, alone %q", name, got.Problem.Errors, want.Errors)
		}
	}
	for _, s := range []*Server{s, r.server(t)} {
		if all, _, _ := s.table.since(0); len(all) != 1 {
			t.Errorf("%d transfers, want the good one alone", len(all))
		}
	}
}

// TestABatchIsOneDurableStep holds that a crash leaves all of a batch or none of it, and
// that it may be repeated.
func TestABatchIsOneDurableStep(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	submit(t, s, request("before"))
	before, err := r.opt.State.ReadFile(recordsName)
	if err != nil {
		t.Fatal(err)
	}
	all := requests(300)
	answers := submitAll(t, s, all)
	whole, err := r.opt.State.ReadFile(recordsName)
	if lines := strings.Count(string(whole[len(before):]), "\n"); err != nil || lines != 1 {
		t.Errorf("a batch is %d lines, %v", lines, err)
	}
	for _, n := range []int{len(before), len(before) + 1, (len(before) + len(whole)) / 2, len(whole) - 1, len(whole)} {
		if err := r.opt.State.WriteFile(recordsName, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 1
		if n == len(whole) {
			want += len(all)
		}
		s = r.server(t)
		if got := s.table.counts()[mover.Queued]; got != want {
			t.Errorf("cut at %d of %d bytes: %d transfers, want %d", n, len(whole), got, want)
		}
		again := submitAll(t, s, all)
		for i := range again {
			if again[i].Status == nil || again[i].Status.ID != answers[i].Status.ID {
				t.Fatalf("repeated: %+v, want transfer %s", again[i], answers[i].Status.ID)
			}
		}
		keys := func() (keys []string) {
			for {
				one, _, _, ok := s.table.take(false, func(error) {})
				if !ok {
					return keys
				}
				keys = append(keys, one.Key)
			}
		}()
		if len(keys) != 301 || keys[0] != "before" || !slices.IsSorted(keys[1:]) {
			t.Errorf("cut at %d: they run in another order: %v", n, keys)
		}
	}
	s.table.records.Close()
	for _, a := range submitAll(t, s, requests(301)[299:]) {
		if a.Problem != nil && a.Problem.Status != http.StatusInternalServerError {
			t.Errorf("on a disk that fails: %+v", a.Problem)
		}
		if known := a.Status != nil; known != (a.Status != nil && a.Status.Key == "k0299") {
			t.Errorf("on a disk that fails a new transfer is accepted: %+v", a.Status)
		}
	}
}

func TestABatchIsBounded(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	wantProblem(t, ask(t, s, "POST", "/v1/batches", "[]"), http.StatusUnprocessableEntity, mover.ProblemInvalid)
	wantProblem(t, ask(t, s, "POST", "/v1/batches", "{"), http.StatusBadRequest, mover.ProblemInvalid)
	wantProblem(t, ask(t, s, "POST", "/v1/batches", requests(mover.MaxBatch+1)), http.StatusUnprocessableEntity, mover.ProblemInvalid)
	wantProblem(t, ask(t, s, "POST", "/v1/batches", "["+strings.Repeat(" ", mover.MaxBatchBytes)+"]"), http.StatusRequestEntityTooLarge, mover.ProblemTooLarge)
	s.table.limits.unfinished = mover.MaxBatch - 1
	answers := submitAll(t, s, requests(mover.MaxBatch))
	for i, a := range answers {
		if full := i == mover.MaxBatch-1; full && (a.Problem == nil || a.Problem.Type != mover.ProblemBusy) || !full && a.Status == nil {
			t.Errorf("number %d: %+v", i, a)
		}
	}
}

// TestSmallTransfersHavePlacesOfTheirOwn has large ones take all of the others.
func TestSmallTransfersHavePlacesOfTheirOwn(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers, r.opt.Small = 2, 50
		r.opt.Engines[mover.GridFTP] = r.engine
		s := r.server(t)
		var all []mover.Request
		add := func(key string, size int64, engine string) {
			one := request(key)
			one.Source.Size, one.Engine = size, engine
			all = append(all, one)
			r.engine.scripts[key] = func(context.Context, func(mover.Progress)) error {
				time.Sleep(time.Minute)
				return nil
			}
		}
		for i := range 3 {
			add(fmt.Sprint("large", i), mover.BlockSize+1, mover.Stream)
		}
		add("foreign", 5, mover.GridFTP) // each is a process
		for i := range 120 {
			add(fmt.Sprintf("small%03d", i), mover.BlockSize, mover.Stream)
		}
		submitAll(t, s, all)
		stop := run(t, s)
		defer stop()
		running := func() (large, small int) {
			synctest.Wait()
			now, _, _ := s.table.since(0)
			for _, st := range now {
				if st.State == mover.Running && strings.HasPrefix(st.Key, "small") {
					small++
				} else if st.State == mover.Running {
					large++
				}
			}
			return large, small
		}
		for minute, want := range [][2]int{{2, 50}, {2, 50}, {0, 20}, {0, 0}} {
			if large, small := running(); large != want[0] || small != want[1] {
				t.Errorf("after %d minutes %d large and %d small ones run, want %v", minute, large, small, want)
			}
			time.Sleep(time.Minute)
		}
		var small []string
		for _, key := range r.engine.started() {
			if strings.HasPrefix(key, "small") {
				small = append(small, key)
			}
		}
		for i, key := range small {
			var n int
			if _, err := fmt.Sscanf(key, "small%d", &n); err != nil || n/50 != i/50 {
				t.Errorf("%s ran as number %d", key, i)
			}
		}
		if got := s.table.counts(); got[mover.Done] != len(all) {
			t.Errorf("states %v, want %d done", got, len(all))
		}
		again := r.server(t).table.counts()
		if again[mover.Done] != len(all) {
			t.Errorf("after a restart: states %v, want %d done", again, len(all))
		}
	})
}
