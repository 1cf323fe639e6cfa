package dtn

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestTheLastEndIsToldAtOnce has it take a while to tell of something, after which nothing is
// told for longer.
func TestTheLastEndIsToldAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		began := time.Now()
		for i, ends := range []time.Duration{25, 40} {
			key := fmt.Sprint("k", i)
			r.engine.scripts[key] = func(context.Context, func(mover.Progress)) error {
				time.Sleep(ends * time.Millisecond)
				return nil
			}
			submit(t, s, request(key))
		}
		stop := run(t, s)
		defer stop()
		synctest.Wait()
		told := map[string]time.Duration{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s.followAll(ctx, nil, func(m sse.Message) error {
			for _, st := range m.Data.([]mover.Status) {
				if st.State.Final() {
					told[st.Key] = time.Since(began)
				}
			}
			if len(told) == 2 {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
			return nil
		})
		if told["k1"] != 40*time.Millisecond || told["k0"] != told["k1"] {
			t.Errorf("told %v after the beginning, want the first end with the last, at once", told)
		}
	})
}

// TestWhatHasChangedSinceIsTold changes transfers in another order than they were made in.
func TestWhatHasChangedSinceIsTold(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	for _, key := range []string{"a", "b", "c"} {
		submit(t, s, request(key))
	}
	keys := func(all []mover.Status) (keys string) {
		for _, st := range all {
			keys += st.Key
		}
		return keys
	}
	all, seq, _ := s.table.since(0)
	if got := keys(all); got != "abc" {
		t.Errorf("all: %q", got)
	}
	for _, key := range []string{"c", "a"} {
		if _, err := s.table.cancel(transferID(key)); err != nil {
			t.Fatal(err)
		}
	}
	all, seq, _ = s.table.since(seq)
	if got := keys(all); got != "ac" {
		t.Errorf("since then %q has changed, want a and c", got)
	}
	if all, _, _ = s.table.since(seq); len(all) != 0 {
		t.Errorf("nothing has changed since, but %q", keys(all))
	}
	s.table.limits.finished = 1
	s.table.changing.Lock()
	s.table.forget(time.Now())
	s.table.changing.Unlock()
	all, _, _ = s.table.since(0)
	if got := keys(all); got != "ab" && got != "bc" {
		t.Errorf("%q is known after one was forgotten", got)
	}
}
