package dtn

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestARateLeavesOutPauses has a transfer wait for an hour in its middle.
func TestARateLeavesOutPauses(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		runs := 0
		r.engine.scripts["k"] = func(_ context.Context, report func(mover.Progress)) error {
			if runs++; runs == 1 {
				report(mover.Progress{Moved: 100}) // were there
				time.Sleep(2 * time.Second)
				report(mover.Progress{Moved: 300})
				return &mover.Wait{Until: time.Now().Add(time.Hour), Reason: "a limit"}
			}
			report(mover.Progress{Moved: 200}) // some were lost
			time.Sleep(6 * time.Second)
			report(mover.Progress{Moved: 1000})
			time.Sleep(2 * time.Second)
			return nil
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		id := submit(t, s, request("k"))
		time.Sleep(time.Minute)
		if st := wantState(t, s, id, mover.Queued); st.Ran != 2*time.Second || st.Rate != 200*8/2 || st.Present != 0 {
			t.Errorf("while it waits: %v at %.0f bit/s, %.0f at present", st.Ran, st.Rate, st.Present)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if st := wantState(t, s, id, mover.Done); st.Ran != 10*time.Second || st.Rate != (200+800)*8/10 || st.Present != 0 {
			t.Errorf("at the end: %v at %.0f bit/s, %.0f at present", st.Ran, st.Rate, st.Present)
		}
	})
}

func TestThePresentRateIsThatOfTheLastSeconds(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["k"] = func(_ context.Context, report func(mover.Progress)) error {
			for i := range int64(60) {
				report(mover.Progress{Moved: 1 * i})
				time.Sleep(time.Second)
			}
			for i := range int64(11) {
				report(mover.Progress{Moved: 100 + 50*i})
				time.Sleep(time.Second)
			}
			return nil
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		id := submit(t, s, request("k"))
		time.Sleep(70 * time.Second)
		synctest.Wait()
		if st := wantState(t, s, id, mover.Running); st.Present != 50*8 || int(st.Rate) != 600*8/70 {
			t.Errorf("%.1f bit/s at present, %.1f on average", st.Present, st.Rate)
		}
		time.Sleep(time.Minute)
	})
}

// TestAnEndedTransferTellsWhatItHasWaitedForLongest is not what its last second was spent with.
func TestAnEndedTransferTellsWhatItHasWaitedForLongest(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["k"] = func(_ context.Context, report func(mover.Progress)) error {
			for i, b := range []mover.Bottleneck{
				{}, {},
				{Place: mover.Limited, Limit: "8Mbit/s to site B, set at site A", Share: 0.5},
				{Place: mover.Network, Share: 0.9},
				{Place: mover.Limited, Limit: "9Mbit/s to site B, set at site A", Share: 1},
				{Place: mover.DestinationCPU, Share: 1},
			} {
				time.Sleep(time.Second)
				report(mover.Progress{Moved: int64(i), Way: mover.Way{Bottleneck: b}})
			}
			return nil
		}
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		id := submit(t, s, request("k"))
		time.Sleep(time.Minute)
		synctest.Wait()
		want := mover.Bottleneck{Place: mover.Limited, Limit: "9Mbit/s to site B, set at site A", Share: 1.5 / 4}
		if st := wantState(t, s, id, mover.Done); st.Way.Bottleneck != want {
			t.Errorf("%+v, want %+v", st.Way.Bottleneck, want)
		}
		if got := metric(t, s, "glance_dtn_dtn_waited_seconds_total"); math.Abs(got-(0.5+0.9+1+1)) > 1e-9 {
			t.Errorf("all places were waited for %v s", got)
		}
	})
}
