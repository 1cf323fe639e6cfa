package localcopy

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/glance-dtn/glance-dtn/mover"
)

// jobs are the names of one image's files for several sites.
var jobs = []string{mover.Outbox + "/0000000000000000000a", mover.Outbox + "/0000000000000000000b", mover.Outbox + "/0000000000000000000c"}

// stageAs stages the image under a job's name, and returns how.
func (s site) stageAs(t *testing.T, f mover.File, job string) string {
	t.Helper()
	f.Name = job
	how, err := s.Stage(t.Context(), image, f, ignore)
	if err != nil {
		t.Fatal(err)
	}
	return how
}

func (s site) same(t *testing.T, a, b string) bool {
	t.Helper()
	is, err := os.Stat(filepath.Join(s.export, a))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Stat(filepath.Join(s.export, b))
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(is, other)
}

// TestOneCopyForAllSites stages an image for three sites, at once.
func TestOneCopyForAllSites(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(3<<20+5))
	var mu sync.Mutex
	hows := map[string]int{}
	var stages sync.WaitGroup
	for _, job := range jobs {
		stages.Go(func() {
			f := f
			f.Name = job
			how, err := s.Stage(t.Context(), image, f, ignore)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			hows[how]++
		})
	}
	stages.Wait()
	if hows[copied] != 1 || hows[twinned] != 2 || !s.same(t, jobs[0], jobs[1]) || !s.same(t, jobs[0], jobs[2]) {
		t.Errorf("staged by %v, want one copy with two names more", hows)
	}
	for _, job := range jobs[:2] {
		if err := s.Unstage(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(s.export, jobs[2])); err != nil || fileOf(got) != f {
		t.Errorf("what the third site still needs: %d bytes, %v", len(got), err)
	}
	if err := s.Unstage(t.Context(), jobs[2]); err != nil || len(s.twins.all) > 0 {
		t.Errorf("%v; what is remembered is %v", err, s.twins.all)
	}
}

// TestADamagedCopyHasNoTwin removes a file as it is done when its content is wrong.
func TestADamagedCopyHasNoTwin(t *testing.T) {
	for which := range 2 {
		s := newSite(t, Copy)
		f := s.put(t, random(1<<20))
		s.stageAs(t, f, jobs[0])
		s.stageAs(t, f, jobs[1])
		if err := s.Unstage(t.Context(), jobs[which]); err != nil {
			t.Fatal(err)
		}
		if how := s.stageAs(t, f, jobs[which]); how != copied || s.same(t, jobs[0], jobs[1]) {
			t.Errorf("staged anew by %s, want %s", how, copied)
		}
	}
}

func TestATwinThatIsNotRight(t *testing.T) {
	for name, spoil := range map[string]func(file string) error{
		"gone":    os.Remove,
		"shorter": func(file string) error { return os.Truncate(file, 7) },
	} {
		s := newSite(t, Copy)
		f := s.put(t, random(1<<20))
		s.stageAs(t, f, jobs[0])
		if err := spoil(filepath.Join(s.export, jobs[0])); err != nil {
			t.Fatal(err)
		}
		if how := s.stageAs(t, f, jobs[1]); how != copied {
			t.Errorf("%s: staged by %s, want %s", name, how, copied)
		}
	}
}

func TestStageDoesNotWaitForeverForItsTwin(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(1<<20))
	w, err := s.twins.enter(t.Context(), content{image, f.Size, f.Digest})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Stage(ctx, image, f, ignore); err == nil {
		t.Error("staged without its turn")
	}
	s.twins.leave(w, "")
	if len(s.twins.all) > 0 {
		t.Errorf("%v is remembered", s.twins.all)
	}
}
