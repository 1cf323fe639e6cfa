package agent

import (
	"errors"
	"testing"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestATransferIsToldWithItsJobAndChanged(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := w.a.upload("debian", bytesOf(3_000_000))
		a := w.a.agent()
		jobs, err := a.Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		w.a.await(jobs[0].ID, Staged, Moved)
		w.locked(func() { // one of somebody else's
			w.a.moves["other"] = &move{st: mover.Status{ID: "other", Key: "other.1", State: mover.Done}}
		})
		var own Transfer
		for own.ID == "" {
			list, err := a.Transfers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				switch {
				case s.ID == "other" && s.Job+JobID(s.Image)+JobID(s.To) != "":
					t.Errorf("a transfer of nobody: %+v", s)
				case s.ID != "other":
					own = s
				}
			}
			w.a.await(jobs[0].ID, Staged, Moved)
		}
		if own.Job != jobs[0].ID || own.Image != "debian" || own.To != "B" {
			t.Errorf("%+v, want job %s", own, jobs[0].ID)
		}
		w.locked(func() {
			w.a.passes = []mover.Passage{{ID: "feed", File: mover.File{Name: "inbox/C~B~x"}, From: "B", To: "C", State: mover.Queued, Waiting: "noon"}}
		})
		list, err := a.Transfers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := list[len(list)-1]; got.ID != "feed" || got.From != "B" || got.To != "C" || got.Job != "" || got.State != mover.Queued || got.Waiting != "noon" {
			t.Errorf("what passes through is told as %+v", got)
		}
		w.locked(func() { w.a.moves[own.ID].st.State = mover.Running })
		got, err := a.Adjust(t.Context(), own.ID[:10], mover.PCP{Parallelism: 8})
		if err != nil || got.Way.PCP.Parallelism != 8 || got.Job != own.Job {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := a.Adjust(t.Context(), "oth", mover.PCP{Parallelism: 8}); !errors.Is(err, mover.ErrNoTransfer) {
			t.Errorf("of one that has ended, by the beginning of its id: %v", err)
		}
		w.locked(func() {
			again := *w.a.moves[own.ID]
			again.st.ID += "0"
			w.a.moves[again.st.ID] = &again
		})
		if _, err := a.Adjust(t.Context(), own.ID[:10], mover.PCP{Parallelism: 8}); !errors.Is(err, ErrShortID) {
			t.Errorf("of two: %v", err)
		}
		if _, err := a.Adjust(t.Context(), own.ID, mover.PCP{Parallelism: 9}); err == nil {
			w.locked(func() { delete(w.a.moves, own.ID+"0") })
		} else {
			t.Errorf("by the whole id: %v", err)
		}
	})
}
