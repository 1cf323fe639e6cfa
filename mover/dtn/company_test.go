package dtn

import (
	"context"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestTransfersOfOneFileRunTogether has a file staged for three sites, one of them by a
// copy of its own, and others submitted in between.
func TestTransfersOfOneFileRunTogether(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		s := r.server(t)
		stage := func(key string) {
			if err := r.opt.Export.WriteFile(mover.Outbox+"/"+key, []byte(key), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.opt.Export.Mkdir(mover.Outbox, 0o700); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		for _, key := range []string{"image-b", "x", "y", "image-d"} {
			stage(key)
		}
		if err := r.opt.Export.Link(mover.Outbox+"/image-b", mover.Outbox+"/image-c"); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"image-b", "x", "gone", "image-d", "y", "image-c"} {
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
		if got, want := sorted(r.engine.started()), []string{"image-b", "image-c"}; !slices.Equal(got, want) {
			t.Errorf("%v run first, want %v", got, want)
		}
		time.Sleep(time.Hour)
		if got, want := r.engine.started()[2:], []string{"x", "gone", "image-d", "y"}; !slices.Equal(sorted(got[:2]), sorted(want[:2])) || !slices.Equal(sorted(got), sorted(want)) {
			t.Errorf("then %v, want %v", got, want)
		}
	})
}
