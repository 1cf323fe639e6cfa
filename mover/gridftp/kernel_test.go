package gridftp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestKernelWhatAServerWritesIsSeenThroughNFS holds that an inbox on another host takes up at
// its next look what a GridFTP server has written on the DTN's disk, though the mount may
// keep what it knows for ten minutes.
func TestKernelWhatAServerWritesIsSeenThroughNFS(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	if err := os.Mkdir(filepath.Join(server.Dir, mover.Inbox), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"vers=3,nolock", "vers=4.2"} {
		t.Run(version, func(t *testing.T) {
			source := server.Root()
			if strings.HasPrefix(version, "vers=3") {
				source = server.Source()
			}
			export := guest.Here().Mount(t, source, version+",actimeo=600")
			s := &site{t: t, export: export, server: server.Dir, state: t.TempDir()}
			s.restart()
			s.looks() // and what it saw is cached
			s.seesWhatHides()
			content := strings.Repeat("content", 300_000)
			f := fileOf(content)
			s.offers("s1", "t1", f)
			s.looks()
			s.says("s1", answerOpen, "")
			tick()
			s.writes(partName(f.Name), content[:mover.BlockSize]+"wrong")
			s.looks() // measures it
			tick()
			s.offers("s2", "t2", f)
			s.looks()
			tick()
			if a := s.says("s2", answerOpen, ""); len(a.Sums) != 2 {
				t.Errorf("told %d blocks of what lies there, want 2", len(a.Sums))
			}
			s.writes(partName(f.Name), content)
			s.puts(manifestName(f.Name), manifest{Session: "s2", File: f})
			s.looks()
			s.says("s2", answerArrived, "")
			if got, err := os.ReadFile(filepath.Join(server.Dir, f.Name)); err != nil || string(got) != content {
				t.Errorf("%d bytes arrived (%v), want %d", len(got), err, len(content))
			}
			if err := s.Drop(f.Name); err != nil {
				t.Error(err)
			}
			s.has(f.Name, false)
		})
	}
}

// tick lets the server's clock for files go on, as it does between two looks.
func tick() { time.Sleep(50 * time.Millisecond) }

// seesWhatHides writes an offer within the tick of the server's clock in which the inbox
// has been changed and listed before: the directory's time does not tell of it.
func (s *site) seesWhatHides() {
	s.t.Helper()
	inbox := filepath.Join(s.server, mover.Inbox)
	changed := func() time.Time {
		info, err := os.Stat(inbox)
		if err != nil {
			s.t.Fatal(err)
		}
		return info.ModTime()
	}
	for i := range 200 {
		f := fileOf(fmt.Sprint("hidden ", i))
		session := fmt.Sprint("h", i)
		s.puts(mover.Inbox+"/.noise", i)
		before := changed()
		s.looks()
		s.offers(session, session, f)
		hidden := changed().Equal(before)
		s.looks()
		if hidden {
			s.says(session, answerOpen, "")
		}
		if err := errors.Join(s.Drop(f.Name), os.Remove(filepath.Join(inbox, ".noise"))); err != nil {
			s.t.Fatal(err)
		}
		tick()
		s.looks()
		if hidden {
			return
		}
	}
	s.t.Error("the server's clock is too fine for this test")
}
