package probe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/nfs/nfstest"
)

// measure runs every kind of test of a probe, and returns what it learnt.
func measure(t *testing.T, p *Probe) (Info, SyncReport) {
	t.Helper()
	ctx := t.Context()
	info, err := p.Info(ctx, infoCalls)
	if err != nil {
		t.Fatal(err)
	}
	if info.Limits.ReadMax < 1024 || info.Limits.WriteMax < 1024 || info.Null.Median <= 0 {
		t.Errorf("info %+v", info)
	}
	t.Logf("%+v", info)
	if access, err := p.Access(ctx); err != nil || access&AccessWrite != AccessWrite {
		t.Errorf("access %b, %v", access, err)
	}
	err = p.Scratch(ctx, func(f *File) error {
		for _, size := range []int{1000, 64 << 10, 1 << 20} {
			for _, how := range []Stability{Unstable, DataSync, FileSync} {
				for _, depth := range []int{1, 8} {
					total := int64(min(size*16+1, 4<<20))
					w, err := f.Write(ctx, WriteTest{Size: size, Total: total, Depth: depth, Stability: how, Commit: how == Unstable})
					if err != nil {
						return err
					}
					if w.Committed < how {
						t.Errorf("%v to %v WRITEs of %d bytes", w.Committed, how, size)
					}
					r, err := f.Read(ctx, ReadTest{Size: size, Total: total, Depth: depth})
					if err != nil {
						return err
					}
					t.Logf("%8d bytes, %v, depth %d: write %.0f Mbit/s (%v, COMMIT %v, is %v), read %.0f Mbit/s (%v)",
						size, how, depth, w.Rate()/1e6, w.Calls.Median, w.Commit, w.Committed, r.Rate()/1e6, r.Calls.Median)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	report, err := p.SyncClass(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %s", report.Class, report.Reason)
	return info, report
}

// Another implementation of the protocol, in this process: it always answers
// FILE_SYNC, and has no CREATE EXCLUSIVE.
func TestGoNFS(t *testing.T) {
	dir := t.TempDir()
	port, stop, err := nfstest.Serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	p, err := Dial(t.Context(), Options{Host: "127.0.0.1", Export: "/", NFSPort: port, MountPort: port, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, report := measure(t, p)
	want(t, report.Class, SyncUnknown)
	want(t, report.Committed, FileSync)
	scratchFiles(t, p, dir)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// scratchFiles holds that a scratch file is told before it is made, can be used through
// two probes, and can be removed by its name alone.
func scratchFiles(t *testing.T, p *Probe, dir string) {
	t.Helper()
	o := p.opt
	var told []string
	o.Making = func(name string) error {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is told when it is there: %v", name, err)
		}
		told = append(told, name)
		return nil
	}
	second, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	err = second.Scratch(t.Context(), func(f *File) error {
		if _, err := f.Write(t.Context(), WriteTest{Size: 4096, Total: 1 << 20, Depth: 2, Commit: true}); err != nil {
			return err
		}
		if _, err := f.On(p).Read(t.Context(), ReadTest{Size: 8192, Total: 1 << 20, Depth: 2}); err != nil {
			return err
		}
		for range 2 {
			if err := p.Remove(t.Context(), told[0]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(told) != 1 || !strings.HasPrefix(told[0], ScratchPrefix) {
		t.Errorf("told %q, %v", told, err)
	}
	refused := errors.New("no room for names")
	o.Making = func(string) error { return refused }
	third, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if err := third.Scratch(t.Context(), func(*File) error { t.Error("a file was made"); return nil }); !errors.Is(err, refused) {
		t.Errorf("the error is %v, want %v", err, refused)
	}
}
