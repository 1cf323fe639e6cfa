package dtn

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// climber asks for one connection more with each report.
type climber struct{ to mover.PCP }

func (c *climber) Correct(_ time.Time, p mover.Progress) (mover.PCP, string) {
	if c.to == (mover.PCP{}) {
		c.to = p.Way.PCP
	}
	c.to.Parallelism++
	return c.to, fmt.Sprintf("climbed to %d", c.to.Parallelism)
}

// reporting is a run that reports every second: so many bytes each, with two connections.
func reporting(each int64) func(ctx context.Context, report func(mover.Progress)) error {
	return func(ctx context.Context, report func(mover.Progress)) error {
		way := mover.Way{PCP: mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 2}}
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for moved := int64(0); ; moved += each {
			report(mover.Progress{Moved: moved, Way: way})
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// steering gives the rig's servers correction.
func (r *rig) steering(t *testing.T) (*Server, *steered, *int) {
	begun := 0
	r.opt.Correct = func() Corrector { begun++; return &climber{} }
	s, e := r.steer(t)
	return s, e, &begun
}

func TestALongTransferIsCorrected(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["long"] = reporting(1)
		s, e, _ := r.steering(t)
		defer run(t, s)()
		id := submit(t, s, request("long")) // 1000 bytes
		time.Sleep(5*time.Second + time.Millisecond)
		synctest.Wait()
		want := "[move long {0 0 0} adjust long {8 4 3} adjust long {8 4 4} adjust long {8 4 5}]"
		if got := e.said(); got != want {
			t.Errorf("the engine was told %s, want %s", got, want)
		}
		if got := status(t, s, id).Way.Tuned; got != "climbed to 5" {
			t.Errorf("its status says %q", got)
		}
		var set mover.Status
		ask(t, s, "PATCH", "/v1/transfers/"+string(id), mover.PCP{Parallelism: 9}).decode(t, &set)
		if set.Way.Tuned != asSet || set.Way.PCP.Parallelism != 9 {
			t.Errorf("once somebody has set it, it is %+v", set.Way)
		}
	})
}

func TestAShortTransferIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["short"] = reporting(100)
		s, e, begun := r.steering(t)
		defer run(t, s)()
		submit(t, s, request("short"))
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if *begun > 0 || strings.Contains(e.said(), "adjust") {
			t.Errorf("it is corrected: %s", e.said())
		}
	})
}

// TestTransfersThatShareTheirConnectionsAreCorrectedTogether also has short ones, one after
// the other.
func TestTransfersThatShareTheirConnectionsAreCorrectedTogether(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["a"], r.engine.scripts["b"], r.engine.scripts["elsewhere"] = reporting(1), reporting(500), reporting(500)
		s, e, begun := r.steering(t)
		s.opt.Transfers = 3
		defer run(t, s)()
		a := submit(t, s, request("a"))
		synctest.Wait()
		submit(t, s, request("b"))
		other := request("elsewhere")
		other.Destination.Address = "dtn-c.example.org:7444"
		submit(t, s, other)
		time.Sleep(3*time.Second + time.Millisecond)
		synctest.Wait()
		got := e.said()
		for _, want := range []string{"adjust a {8 4 3}", "adjust b {8 4 3}"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("the engine was told %s, want %s once", got, want)
			}
		}
		if *begun != 1 || strings.Contains(got, "adjust elsewhere") {
			t.Errorf("%d are corrected: %s", *begun, got)
		}
		ask(t, s, "DELETE", "/v1/transfers/"+string(a), nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := e.said(); *begun != 1 || !strings.HasSuffix(got, "adjust b {8 4 4} adjust b {8 4 5}]") {
			t.Errorf("without the first of two: %d begun, the engine was told %s", *begun, got)
		}
	})
}

func TestWhatAPersonHasSetIsNotCorrected(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		for _, key := range []string{"asked", "set", "beside"} {
			r.engine.scripts[key] = reporting(1)
		}
		s, e, begun := r.steering(t)
		s.opt.Transfers = 3
		defer run(t, s)()
		asked := request("asked")
		asked.PCP.Parallelism = 2
		asked.Destination.Address = "dtn-c.example.org:7444"
		ids := []mover.TransferID{submit(t, s, asked), submit(t, s, request("set")), submit(t, s, request("beside"))}
		synctest.Wait()
		if a := ask(t, s, "PATCH", "/v1/transfers/"+string(ids[1]), mover.PCP{Pipelining: 3}); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		s.opt.Engines[mover.Stream].(*steered).Adjust("mark", mover.PCP{})
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, since, _ := strings.Cut(e.said(), "mark"); *begun > 0 || strings.Contains(since, "adjust") {
			t.Errorf("corrected: %s", e.said())
		}
		for _, id := range ids {
			if st := status(t, s, id); st.State != mover.Running || st.Way.Tuned != asSet {
				t.Errorf("%s is %s and says %q", st.Key, st.State, st.Way.Tuned)
			}
		}
	})
}

// TestWhatAPersonSetsEndsTheCorrection also when it is the neighbour that reports first.
func TestWhatAPersonSetsEndsTheCorrection(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["a"], r.engine.scripts["b"] = reporting(1), reporting(1)
		s, e, _ := r.steering(t)
		defer run(t, s)()
		ids := []mover.TransferID{submit(t, s, request("a"))}
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		ids = append(ids, submit(t, s, request("b")))
		time.Sleep(4500 * time.Millisecond)
		synctest.Wait()
		_, before, _ := strings.Cut(e.said(), "move b {0 0 0} ")
		if want := "adjust a {8 4 3} adjust b {8 4 3} adjust a {8 4 4} adjust b {8 4 4}]"; before != want {
			t.Fatalf("the engine was told %s, want %s", before, want)
		}
		if a := ask(t, s, "PATCH", "/v1/transfers/"+string(ids[1]), mover.PCP{Pipelining: 3}); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		_, since, _ := strings.Cut(e.said(), "adjust b {8 4 4} ")
		if want := "adjust a {8 4 2} adjust b {3 4 2} adjust b {3 0 0}]"; since != want {
			t.Errorf("then the engine was told %s, want %s", since, want)
		}
		for _, id := range ids {
			if st := status(t, s, id); st.State != mover.Running || st.Way.Tuned != asSet {
				t.Errorf("%s is %s and says %q", st.Key, st.State, st.Way.Tuned)
			}
		}
	})
}

func TestSteeringForgetsWhatHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s, _, _ := r.steering(t)
		stop := run(t, s)
		for i := range 20 {
			req := request(fmt.Sprint("k", i))
			req.Destination.Address = fmt.Sprintf("dtn-%d.example.org:7444", i)
			submit(t, s, req)
		}
		synctest.Wait()
		stop()
		if n := len(s.steering.groups); n > 0 {
			t.Errorf("%d groups have no member", n)
		}
	})
}
