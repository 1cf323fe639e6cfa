package localcopy

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckMakesTheBoxes(t *testing.T) {
	s := newSite(t, Auto)
	for range 2 {
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, box := range []string{"inbox", "outbox"} {
		info, err := os.Stat(filepath.Join(s.export, box))
		if err != nil || info.Mode() != os.ModeDir|0o770 {
			t.Errorf("%s: %v, %v, want a directory with mode 0770", box, info, err)
		}
	}
	if names := s.outbox(t); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

func TestCheckTellsWhatIsNotADirectory(t *testing.T) {
	s := newSite(t, Auto)
	if err := os.WriteFile(filepath.Join(s.export, "outbox"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "outbox") {
		t.Errorf("got %v, want an error that names the outbox", err)
	}
}

// A FIFO that nobody reads hangs whoever opens it, as a dead NFS server does.
func TestCheckReturnsWhileTheExportHangs(t *testing.T) {
	s := newSite(t, Auto)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(s.export, "outbox", ".check")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Check(ctx); err == nil {
		t.Error("an export that hangs is well")
	}
	hanging := s.look()
	if err := s.Check(ctx); err == nil || s.look() != hanging {
		t.Errorf("got %v, and another look at the export while one hangs", err)
	}
	f, err := os.Open(fifo) // now it answers
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	<-hanging.done
	if hanging.err != nil {
		t.Error(hanging.err)
	}
	if _, err := io.ReadAll(f); err != nil {
		t.Error(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("an export that answers again: %v", err)
	}
}
