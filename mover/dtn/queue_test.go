package dtn

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/glance-dtn/glance-dtn/mover"
)

func ranked(key string, p mover.Priority) mover.Request {
	r := request(key)
	r.Priority = p
	return r
}

func to(address string, r mover.Request) mover.Request {
	r.Destination.Address = address
	return r
}

func TestHigherPrioritiesGoFirst(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		s := r.server(t)
		for i, p := range []mover.Priority{mover.PriorityLow, "", mover.PriorityHigh, mover.PriorityNormal, mover.PriorityHigh, mover.PriorityLow} {
			submit(t, s, ranked(fmt.Sprint("k", i), p))
			time.Sleep(time.Second)
		}
		s = r.server(t) // a restart changes nothing
		stop := run(t, s)
		defer stop()
		synctest.Wait()
		if got, want := r.engine.started(), []string{"k2", "k4", "k1", "k3", "k0", "k5"}; !slices.Equal(got, want) {
			t.Errorf("ran %v, want %v", got, want)
		}
	})
}

// TestWhatRunsDisturbsNobodyWhoWaits holds that a place is told of what it may run, and of
// nothing else: thousands of small transfers start and end while others wait.
func TestWhatRunsDisturbsNobodyWhoWaits(t *testing.T) {
	r := newRig(t)
	r.opt.Small = 1
	table := r.server(t).table
	take := func(small bool) (string, <-chan struct{}) {
		req, more, _, _ := table.take(small, func(error) {})
		return req.Key, more
	}
	told := func(more <-chan struct{}) bool {
		select {
		case <-more:
			return true
		default:
			return false
		}
	}
	add := func(req mover.Request) mover.TransferID {
		s, _, err := table.submit(req)
		if err != nil {
			t.Fatal(err)
		}
		return s.ID
	}
	_, large := take(false)
	_, small := take(true)
	id := add(request("one"))
	if !told(small) || told(large) {
		t.Errorf("of a small one that came: those for small ones know %v, the others %v", told(small), told(large))
	}
	if got, _ := take(true); got != "one" {
		t.Fatalf("%q runs, want the small one", got)
	}
	_, small = take(true)
	table.end(id, nil, false)
	if told(small) || told(large) {
		t.Error("that a transfer has ended is told to who waits for another one")
	}
	long := request("two")
	long.Source.Size = mover.BlockSize + 1
	two := add(long)
	if told(small) || !told(large) {
		t.Errorf("of one that is not small: those for small ones know %v, the others %v", told(small), told(large))
	}
	if _, err := table.cancel(two); err != nil {
		t.Fatal(err)
	}
	if got, _ := take(false); got != "" || len(table.large.all) > 0 {
		t.Errorf("%q runs, which was cancelled; %d are queued", got, len(table.large.all))
	}
}

// TestALowTransferGivesWay has all places taken when a high one comes: one low one goes
// back, no failure is counted, and it goes on with what is there.
func TestALowTransferGivesWay(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		starts := map[string]int{}
		slow := func(key string) func(context.Context, func(mover.Progress)) error {
			return func(ctx context.Context, report func(mover.Progress)) error {
				starts[key]++
				report(mover.Progress{Moved: int64(500 * (starts[key] - 1))})
				report(mover.Progress{Moved: 500})
				select {
				case <-time.After(time.Hour):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		for _, key := range []string{"first", "second", "high"} {
			r.engine.scripts[key] = slow(key)
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		first := submit(t, s, ranked("first", mover.PriorityLow))
		time.Sleep(time.Minute)
		second := submit(t, s, ranked("second", mover.PriorityLow))
		time.Sleep(time.Minute)
		high := submit(t, s, ranked("high", mover.PriorityNormal))
		time.Sleep(preemptEvery)
		synctest.Wait()
		wantState(t, s, first, mover.Running)
		wantState(t, s, high, mover.Running)
		st := wantState(t, s, second, mover.Queued)
		if want := "its turn: it gave way to outbox/high, whose priority is normal"; st.Waiting != want || st.Moved != 500 || st.Error != "" || st.Code != "" {
			t.Errorf("it says %+v, want it to wait for %q", st, want)
		}
		time.Sleep(3 * time.Hour)
		for _, id := range []mover.TransferID{first, second, high} {
			if st := wantState(t, s, id, mover.Done); st.Waiting != "" {
				t.Errorf("%s is done and waits for %s", st.Key, st.Waiting)
			}
		}
		if starts["second"] != 2 || starts["first"] != 1 || starts["high"] != 1 {
			t.Errorf("starts: %v", starts)
		}
	})
}

// TestOnlyACancelledTransferIsGivenUp holds that an engine, and with it a relay, can tell
// one that gives way from one that nobody wants any more.
func TestOnlyACancelledTransferIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		var causes []error
		for _, key := range []string{"low", "high"} {
			r.engine.scripts[key] = func(ctx context.Context, _ func(mover.Progress)) error {
				<-ctx.Done()
				causes = append(causes, context.Cause(ctx))
				return ctx.Err()
			}
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		submit(t, s, ranked("low", mover.PriorityLow))
		time.Sleep(time.Minute)
		high := submit(t, s, ranked("high", mover.PriorityHigh))
		time.Sleep(time.Minute)
		if _, err := s.table.cancel(high); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(causes) != 2 || errors.Is(causes[0], mover.ErrCancelled) || !errors.Is(causes[1], mover.ErrCancelled) {
			t.Errorf("the runs ended for %v", causes)
		}
	})
}

// TestEqualTransfersDoNotPushEachOtherOut holds for those that gave way, too.
func TestEqualTransfersDoNotPushEachOtherOut(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		keys := []string{"a", "b", "c", "d", "e", "f"}
		for _, key := range keys {
			r.engine.scripts[key] = func(ctx context.Context, _ func(mover.Progress)) error {
				select {
				case <-time.After(time.Minute):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		for _, key := range keys[:4] {
			submit(t, s, ranked(key, mover.PriorityNormal))
		}
		time.Sleep(10 * time.Second)
		for _, key := range keys[4:] {
			submit(t, s, ranked(key, mover.PriorityHigh))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := s.table.counts(); got[mover.Done] != len(keys) {
			t.Errorf("states: %v", got)
		}
		if got := len(r.engine.started()); got != len(keys)+2 {
			t.Errorf("%d runs of %d transfers, of which two had to give way once", got, len(keys))
		}
	})
}

func TestOneTransferASecondGivesWay(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 4
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		for i := range 8 {
			r.engine.scripts[fmt.Sprint("k", i)] = untilStopped
		}
		for i := range 4 {
			submit(t, s, ranked(fmt.Sprint("k", i), mover.PriorityLow))
		}
		time.Sleep(time.Minute)
		for i := range 4 {
			submit(t, s, ranked(fmt.Sprint("k", 4+i), mover.PriorityHigh))
		}
		for want := range 4 {
			synctest.Wait()
			if got := len(r.engine.started()) - 4; got < want || got > want+1 {
				t.Errorf("after %d s %d have given way", want, got)
			}
			time.Sleep(preemptEvery)
		}
	})
}

// TestATransferThatCannotMovePushesOutWhatIsInItsWay has a high transfer whose destination
// takes no more files: it does not take others' places over and over again, only those of
// the lower ones that go where it goes.
func TestATransferThatCannotMovePushesOutWhatIsInItsWay(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 3
		for _, key := range []string{"there", "elsewhere", "far"} {
			r.engine.scripts[key] = untilStopped
		}
		full := time.Now().Add(10 * time.Minute)
		r.engine.scripts["high"] = func(ctx context.Context, _ func(mover.Progress)) error {
			if time.Now().Before(full) {
				return &mover.Wait{Until: time.Now().Add(5 * time.Second), Reason: "crowded"}
			}
			return untilStopped(ctx, nil)
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		const b, c = "b.example.org:1", "c.example.org:1"
		submit(t, s, to(c, ranked("far", mover.PriorityLow)))
		time.Sleep(time.Second)
		submit(t, s, to(b, ranked("there", mover.PriorityLow)))
		time.Sleep(time.Second)
		submit(t, s, to(c, ranked("elsewhere", mover.PriorityLow)))
		time.Sleep(time.Second)
		high := submit(t, s, to(b, ranked("high", mover.PriorityHigh)))
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		starts := map[string]int{}
		for _, key := range r.engine.started() {
			starts[key]++
		}
		if got := s.table.counts(); starts["far"] != 1 || starts["elsewhere"] != 2 || starts["there"] != 1 || got[mover.Running] != 2 {
			t.Errorf("starts within 9 minutes: %v, states %v; each of those in the way gives way once", starts, got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		wantState(t, s, high, mover.Running)
	})
}

// TestATransferThatWaitsKeepsNoOtherFromItsPlace has a high transfer that could not move
// before another one, which can.
func TestATransferThatWaitsKeepsNoOtherFromItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		r.engine.scripts["low"], r.engine.scripts["normal"] = untilStopped, untilStopped
		r.engine.scripts["high"] = func(context.Context, func(mover.Progress)) error {
			return &mover.Wait{Until: time.Now().Add(time.Second), Reason: "crowded"}
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		submit(t, s, to("b.example.org:1", ranked("high", mover.PriorityHigh)))
		submit(t, s, to("c.example.org:1", ranked("low", mover.PriorityLow)))
		time.Sleep(2 * time.Second)
		normal := submit(t, s, to("c.example.org:1", ranked("normal", mover.PriorityNormal)))
		time.Sleep(2 * preemptEvery)
		synctest.Wait()
		wantState(t, s, normal, mover.Running)
	})
}

// TestATransferThatIsCancelledAsItGivesWay ends.
func TestATransferThatIsCancelledAsItGivesWay(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		release := make(chan struct{})
		r.engine.scripts["low"] = func(ctx context.Context, _ func(mover.Progress)) error {
			<-ctx.Done()
			<-release
			return ctx.Err()
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		low := submit(t, s, ranked("low", mover.PriorityLow))
		synctest.Wait()
		submit(t, s, request("k"))
		time.Sleep(2 * preemptEvery)
		if _, err := s.table.cancel(low); err != nil {
			t.Fatal(err)
		}
		close(release)
		synctest.Wait()
		wantState(t, s, low, mover.Cancelled)
	})
}

// TestWhatMayNotMoveNowTakesNoPlace has an engine say that nothing may go to one address.
func TestWhatMayNotMoveNowTakesNoPlace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		opens := time.Now().Add(12 * time.Minute)
		shut := func(context.Context, func(mover.Progress)) error {
			if time.Now().Before(opens) {
				return fmt.Errorf("move it: %w", &mover.Wait{Until: opens, Reason: "nothing until noon"})
			}
			return nil
		}
		r.engine.scripts["a"], r.engine.scripts["b"] = shut, shut
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		a := submit(t, s, to("b.example.org:1", request("a")))
		time.Sleep(time.Second)
		b := submit(t, s, to("b.example.org:1", request("b")))
		c := submit(t, s, to("c.example.org:1", request("c")))
		synctest.Wait()
		for _, id := range []mover.TransferID{a, b} {
			if st := wantState(t, s, id, mover.Queued); st.Waiting != "nothing until noon" || st.Error != "" {
				t.Errorf("%s says %+v", st.Key, st)
			}
		}
		wantState(t, s, c, mover.Done)
		time.Sleep(time.Until(opens))
		synctest.Wait()
		wantState(t, s, a, mover.Done)
		wantState(t, s, b, mover.Done)
		if got, want := r.engine.started(), []string{"a", "c", "a", "a", "a", "b"}; !slices.Equal(got, want) {
			t.Errorf("ran %v, want %v: one looks every %v", got, want, holdTime)
		}
	})
}

// TestOtherWaysToADestinationStayOpen has a relay say that nothing may go to one site.
func TestOtherWaysToADestinationStayOpen(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		const b, c = "b.example.org:1", "c.example.org:1"
		via := func(relay, address, key string) mover.Request {
			req := to(address, request(key))
			req.Destination.Via = mover.Relay{Site: relay, Address: relay + ".example.org:1", Mode: mover.CutThrough}
			return req
		}
		shut := func(context.Context, func(mover.Progress)) error {
			return &mover.Wait{Until: time.Now().Add(time.Hour), Reason: "nothing until noon"}
		}
		r.engine.scripts["first"], r.engine.scripts["second"] = shut, shut
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		first := submit(t, s, via("R", b, "first"))
		synctest.Wait()
		second := submit(t, s, via("R", b, "second"))
		open := []mover.TransferID{submit(t, s, to(b, request("straight"))), submit(t, s, via("S", b, "another")), submit(t, s, via("R", c, "elsewhere"))}
		synctest.Wait()
		for _, id := range []mover.TransferID{first, second} {
			if st := wantState(t, s, id, mover.Queued); st.Waiting != "nothing until noon" {
				t.Errorf("%s waits for %q", st.Key, st.Waiting)
			}
		}
		for _, id := range open {
			wantState(t, s, id, mover.Done)
		}
		if got, want := r.engine.started(), []string{"first", "straight", "another", "elsewhere"}; len(got) != len(want) || slices.Contains(got, "second") {
			t.Errorf("ran %v, want %v", got, want)
		}
	})
}

func TestNewLimitsAreTriedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["k"] = func(context.Context, func(mover.Progress)) error {
			return &mover.Wait{Until: time.Now().Add(time.Hour), Reason: "not now"}
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		id := submit(t, s, request("k"))
		synctest.Wait()
		wantState(t, s, id, mover.Queued)
		delete(r.engine.scripts, "k")
		s.Reconsider()
		synctest.Wait()
		wantState(t, s, id, mover.Done)
	})
}

func TestAQueuedTransferSaysWhatItWaitsFor(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Transfers = 1
		r.engine.scripts["runs"] = untilStopped
		s := r.server(t)
		stop := run(t, s)
		runs := submit(t, s, request("runs"))
		synctest.Wait()
		waits := submit(t, s, request("waits"))
		if st := wantState(t, s, waits, mover.Queued); st.Waiting != turn {
			t.Errorf("it waits for %q", st.Waiting)
		}
		if st := wantState(t, s, runs, mover.Running); st.Waiting != "" {
			t.Errorf("it runs, and waits for %q", st.Waiting)
		}
		stop()
		r.engine.scripts["runs"] = func(context.Context, func(mover.Progress)) error { return errors.New("broken") }
		s = r.server(t)
		stop = run(t, s)
		defer stop()
		synctest.Wait()
		if st := wantState(t, s, runs, mover.Failed); st.Waiting != "" {
			t.Errorf("it has failed, and waits for %q", st.Waiting)
		}
	})
}

func TestUnknownPrioritiesAreRefused(t *testing.T) {
	r := newRig(t)
	wantProblem(t, ask(t, r.server(t), "POST", "/v1/transfers", ranked("k", "urgent")), 422, mover.ProblemInvalid)
}

func TestMetricsTellTheLimitsInForce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		w, err := mover.ParseWindow("", "00:00-08:00", "UTC") // a bubble begins at midnight
		if err != nil {
			t.Fatal(err)
		}
		r.opt.Limits = func() mover.Limits {
			return mover.Limits{{Site: "B", Window: w, Send: 0, Receive: 5e6}, {Site: "B", Send: 2e8, Receive: mover.Unlimited}, {Send: 1e9, Receive: mover.Unlimited}}
		}
		s := r.server(t)
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(s)
		limits := func() string {
			var all []string
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() != "glance_dtn_dtn_limit_bits_per_second" {
					continue
				}
				for _, m := range f.GetMetric() {
					var labels []string
					for _, l := range m.GetLabel() {
						labels = append(labels, l.GetValue())
					}
					v := m.GetGauge().GetValue()
					all = append(all, fmt.Sprintf("%s=%.0f", strings.Join(labels, "/"), math.Min(v, 1e12)))
				}
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		if got, want := limits(), "receive/=1000000000000 receive/B=5000000 send/=1000000000 send/B=0"; got != want {
			t.Errorf("at night: %s, want %s", got, want)
		}
		time.Sleep(8 * time.Hour)
		if got, want := limits(), "receive/=1000000000000 receive/B=1000000000000 send/=1000000000 send/B=200000000"; got != want {
			t.Errorf("by day: %s, want %s", got, want)
		}
	})
}
