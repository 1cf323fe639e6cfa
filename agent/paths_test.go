package agent

import (
	"slices"
	"testing"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestAPathIsToldWithItsSites(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		id := w.a.upload("debian", bytesOf(3_000_000))
		a := w.a.agent()
		jobs, err := a.Push(t.Context(), string(id), []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		var j Job
		for j.Offer.Address == "" {
			w.a.await(jobs[0].ID, Offered, Staged, Moved)
			if j, err = a.Job(t.Context(), jobs[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		w.locked(func() {
			clear(w.a.moves)
			w.a.moves["own"] = &move{st: mover.Status{ID: "own", Address: j.Offer.Address}}
			w.a.moves["other"] = &move{st: mover.Status{ID: "other", Address: "elsewhere:1"}}
		})
		all, err := a.Paths(t.Context())
		if err != nil || len(all) != 2 {
			t.Fatalf("%+v, %v", all, err)
		}
		for _, p := range all {
			if p.Address == j.Offer.Address && !slices.Equal(p.Sites, []string{"B"}) || p.Address != j.Offer.Address && p.Sites != nil {
				t.Errorf("%+v", p)
			}
		}
	})
}
