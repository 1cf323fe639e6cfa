package localcopy

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestCheckLeavesNothing(t *testing.T) {
	s := newSite(t, Auto)
	old, others := tempName(probeOf), tempName(probeOf) // of an agent that was killed, and of one that runs
	for _, n := range []string{old, others} {
		if err := os.WriteFile(filepath.Join(s.export, "outbox", n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	yesterday := time.Now().Add(-stale - time.Minute)
	if err := os.Chtimes(filepath.Join(s.export, "outbox", old), yesterday, yesterday); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if names := s.outbox(t); !slices.Equal(names, []string{others}) {
		t.Errorf("left: %v, want %s", names, others)
	}
}

// The DTN's user may write to the outbox, too.
func TestCheckWritesThroughNoLink(t *testing.T) {
	s := newSite(t, Auto)
	f := s.put(t, random(10))
	for _, n := range []string{".check", "." + probeOf, "." + probeOf + tempSuffix, tempName(probeOf)} {
		for what, link := range map[string]func(string, string) error{"symbolic": os.Symlink, "hard": os.Link} {
			planted := filepath.Join(s.export, "outbox", n)
			if err := link(filepath.Join(s.store, image), planted); err != nil {
				t.Fatal(err)
			}
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("%s link at %s: %v", what, n, err)
			}
			if got, err := os.ReadFile(filepath.Join(s.store, image)); err != nil || fileOf(got) != f {
				t.Errorf("%s link at %s: the store's file holds %q, %v", what, n, got, err)
			}
			os.Remove(planted)
		}
	}
}

func TestABoxIsNotMade(t *testing.T) {
	for _, missing := range []string{"outbox", "inbox"} {
		s := newSite(t, Auto)
		f := s.put(t, random(10))
		if err := os.Remove(filepath.Join(s.export, missing)); err != nil {
			t.Fatal(err)
		}
		errs := map[string]error{"Check": s.Check(t.Context())}
		if missing == "outbox" {
			_, errs["Stage"] = s.Stage(t.Context(), image, f, ignore)
			_, errs["Staged"] = s.Staged(t.Context())
			errs["Unstage"] = s.Unstage(t.Context(), name)
		}
		for what, err := range errs {
			if want := s.export + " has no " + missing + ": is the DTN's export mounted there?"; err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, mover.ErrNoFile) || failure.IsPermanent(err) {
				t.Errorf("%s: got %v, want %q, an error that passes", what, err, want)
			}
		}
		if _, err := os.Stat(filepath.Join(s.export, missing)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made: %v", missing, err)
		}
	}
}

func TestCheckTellsWhatIsNotADirectory(t *testing.T) {
	s := newSite(t, Auto)
	outbox := filepath.Join(s.export, "outbox")
	if err := errors.Join(os.Remove(outbox), os.WriteFile(outbox, nil, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "outbox") {
		t.Errorf("got %v, want an error that names the outbox", err)
	}
}

func TestCheckReturnsWhileTheExportHangs(t *testing.T) {
	s := newSite(t, Auto)
	hang, answer := make(chan struct{}), s.touch
	s.touch = func() error { <-hang; return answer() }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Check(ctx); err == nil {
		t.Error("an export that hangs is well")
	}
	hanging := s.look()
	if err := s.Check(ctx); err == nil || s.look() != hanging {
		t.Errorf("got %v, and another look at the export while one hangs", err)
	}
	close(hang)
	<-hanging.done
	if hanging.err != nil {
		t.Error(hanging.err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("an export that answers again: %v", err)
	}
}
