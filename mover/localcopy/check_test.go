package localcopy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestTryLeavesNothing(t *testing.T) {
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
		if err := s.try(t); err != nil {
			t.Fatal(err)
		}
	}
	if names := s.outbox(t); !slices.Equal(names, []string{others}) {
		t.Errorf("left: %v, want %s", names, others)
	}
}

// The DTN's user may write to the outbox, too.
func TestTryWritesThroughNoLink(t *testing.T) {
	s := newSite(t, Auto)
	f := s.put(t, random(10))
	for _, n := range []string{".check", "." + probeOf, "." + probeOf + tempSuffix, tempName(probeOf)} {
		for what, link := range map[string]func(string, string) error{"symbolic": os.Symlink, "hard": os.Link} {
			planted := filepath.Join(s.export, "outbox", n)
			if err := link(filepath.Join(s.store, image), planted); err != nil {
				t.Fatal(err)
			}
			if err := s.try(t); err != nil {
				t.Errorf("%s link at %s: %v", what, n, err)
			}
			if got, err := os.ReadFile(filepath.Join(s.store, image)); err != nil || fileOf(got) != f {
				t.Errorf("%s link at %s: the store's file holds %q, %v", what, n, got, err)
			}
			os.Remove(planted)
		}
	}
}

func (s site) try(t *testing.T) error {
	t.Helper()
	root, err := os.OpenRoot(s.export)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return Try(root)
}

func TestABoxIsNotMade(t *testing.T) {
	for _, missing := range []string{"outbox", "inbox"} {
		s := newSite(t, Auto)
		f := s.put(t, random(10))
		if err := os.Remove(filepath.Join(s.export, missing)); err != nil {
			t.Fatal(err)
		}
		errs := map[string]error{"Try": s.try(t)}
		if missing == "outbox" {
			_, errs["Stage"] = s.Stage(t.Context(), image, f, ignore)
			_, errs["Staged"] = s.Staged(t.Context())
			errs["Unstage"] = s.Unstage(t.Context(), name)
		}
		if outbox := errors.Is(errs["Try"], mover.ErrOutbox); outbox != (missing == "outbox") {
			t.Errorf("no %s: Try says %v, of the outbox alone %v", missing, errs["Try"], outbox)
		}
		for what, err := range errs {
			if want := "the export has no " + missing + "; the DTN makes it"; err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, mover.ErrNoFile) || failure.IsPermanent(err) {
				t.Errorf("%s: got %v, want %q, an error that passes", what, err, want)
			}
		}
		if _, err := os.Stat(filepath.Join(s.export, missing)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made: %v", missing, err)
		}
	}
}

func TestTryTellsWhatIsNotADirectory(t *testing.T) {
	s := newSite(t, Auto)
	outbox := filepath.Join(s.export, "outbox")
	if err := errors.Join(os.Remove(outbox), os.WriteFile(outbox, nil, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := s.try(t); err == nil || !strings.Contains(err.Error(), "outbox") {
		t.Errorf("got %v, want an error that names the outbox", err)
	}
}

// What is wrong is the same as long as nothing changes: who waits for another answer
// is not woken.
func TestTryTellsTheSameTwice(t *testing.T) {
	s := newSite(t, Auto)
	err := errors.Join(os.Chmod(s.export, 0o755), os.Chmod(filepath.Join(s.export, "inbox"), 0o755), os.Chmod(filepath.Join(s.export, "outbox"), 0o555))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(s.export)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var said [2]error
	look := func() { said = [2]error{Try(root), Try(root)} }
	if os.Geteuid() == 0 {
		as(1, 1, look)
	} else {
		look()
	}
	for _, err := range said {
		if !errors.Is(err, fs.ErrPermission) || !errors.Is(err, mover.ErrOutbox) || err.Error() != said[0].Error() {
			t.Errorf("got %v, after %v", err, said[0])
		}
	}
}

// TestALinkInTheMakingIsNotSwept: it is as old as its image, and another look at the export
// must not take it away; that of an image that is gone takes space, and goes.
func TestALinkInTheMakingIsNotSwept(t *testing.T) {
	s := newSite(t, Auto)
	s.stage(t, s.put(t, random(100)), hardLink)
	file, link := filepath.Join(s.store, "old"), filepath.Join(s.export, mover.Outbox, tempName("other"))
	old := time.Now().Add(-2 * stale)
	err := errors.Join(os.WriteFile(file, nil, 0o640), os.Chtimes(file, old, old), os.Link(file, link))
	if err != nil {
		t.Fatal(err)
	}
	look := func() error {
		if err := s.try(t); err != nil {
			t.Fatal(err)
		}
		_, err := os.Lstat(link)
		return err
	}
	if err := look(); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := look(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link is there: %v", err)
	}
}

func TestAnyFailureOfAServersCopyLeadsToTheNextWay(t *testing.T) {
	for err, next := range map[error]bool{unix.EIO: true, unix.EREMOTEIO: true, unix.EOPNOTSUPP: true, unix.ENOSPC: false, unix.EDQUOT: false, unix.ESTALE: false} {
		if got := elsewise(err); unsupported(got) != next || !errors.Is(got, err) {
			t.Errorf("%v becomes %v; next way %v, want %v", err, got, unsupported(got), next)
		}
	}
}
