package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/internal/sealed"
	"github.com/glance-dtn/glance-dtn/nfs"
)

func plan(t *testing.T, h *Host, wishes ...Wish) []Change {
	t.Helper()
	s, err := h.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes, err := Plan(s, wishes...)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func wantSame(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

var (
	toAsync   = Wish{Export: export, Options: nfs.Options{"async"}}
	toLarge   = Wish{Mount: point, Options: nfs.Options{"rsize=1048576", "wsize=1048576"}}
	toSync    = Wish{Mount: point, Options: nfs.Options{"sync"}}
	toUnknown = Wish{Mount: point, Options: nfs.Options{"nosuchoption"}}
)

// hosts are the kinds of hosts that differ in how a mount is changed.
var hosts = []struct {
	name  string
	setUp func(f *fake)
	file  string // that has the change of a mount
	lasts bool
}{
	{"without systemd", func(*fake) {}, "/var/lib/glance-dtn/fstab", false},
	{"a unit from fstab", func(f *fake) { f.withSystemd("/run/systemd/generator/mnt-dtn.mount") }, unitDir + "/mnt-dtn.mount.d/" + dropIn, true},
	{"an automount from fstab", (*fake).withAutomount, unitDir + "/mnt-dtn.mount.d/" + dropIn, true},
	{"a unit of the operator", func(f *fake) { f.withSystemd(unitDir + "/mnt-dtn.mount") }, unitDir + "/mnt-dtn.mount.d/" + dropIn, true},
	{"mounted by hand", func(f *fake) { f.withSystemd("") }, unitDir + "/mnt-dtn.mount", false},
}

func TestApplyAndUndo(t *testing.T) {
	for _, host := range hosts {
		t.Run(host.name, func(t *testing.T) {
			h, f := newFake(t)
			host.setUp(f)
			before := f.snapshot()
			changes := plan(t, h, toAsync, toLarge)
			if len(changes) != 2 || changes[0].Kind != KindExport || changes[1].Kind != KindMount {
				t.Fatalf("planned %+v, want an export and a mount", changes)
			}
			if c := changes[1]; c.File != host.file || c.Lasts != host.lasts {
				t.Errorf("the mount is in %s and lasts: %v; want %s, %v", c.File, c.Lasts, host.file, host.lasts)
			}
			results, err := h.Apply(t.Context(), changes, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := results[0].Granted; !slices.Contains(got, "async") {
				t.Errorf("the export has %s, want async", got)
			}
			if got := results[1].Granted; !slices.Contains(got, "rsize=1048576") || len(results[1].Differences) > 0 {
				t.Errorf("the mount has %s, differences %v", got, results[1].Differences)
			}
			own, err := os.ReadFile(h.path(host.file))
			if err != nil || !strings.HasPrefix(string(own), sealed.Header) || !strings.Contains(string(own), "rsize=1048576") {
				t.Errorf("%s has %q, %v", host.file, own, err)
			}
			if again := plan(t, h, toAsync, toLarge); len(again) > 0 {
				t.Errorf("planned again: %+v, want nothing", again)
			}
			says, err := h.Undoable()
			if err != nil || len(says) != 2 || !strings.Contains(says[1], "sync") {
				t.Errorf("what can be undone: %q, %v", says, err)
			}
			did, err := h.Undo(t.Context(), false)
			if err != nil || !slices.Equal(did, says) {
				t.Errorf("undone: %q, %v; want %q", did, err, says)
			}
			wantSame(t, f.snapshot(), before)
			f.steps = nil
			if did, err := h.Undo(t.Context(), false); err != nil || len(did)+len(f.steps) > 0 {
				t.Errorf("undone again: %q, %v, %q; want nothing to be done", did, err, f.steps)
			}
		})
	}
}

// TestEveryFaultIsPutBack lets each step of an Apply fail once, before its effect
// and after it: everything is as it was. And it lets the process die there: an Undo
// repairs.
func TestEveryFaultIsPutBack(t *testing.T) {
	for _, host := range hosts {
		t.Run(host.name, func(t *testing.T) {
			t.Parallel()
			everyFault(t, host.setUp)
		})
	}
}

func everyFault(t *testing.T, setUp func(*fake)) {
	for _, wishes := range [][]Wish{{toAsync, toLarge}, {toSync}} {
		for _, crash := range []bool{false, true} {
			for _, after := range []bool{false, true} {
				for n, more := 1, true; more; n++ {
					h, f := newFake(t)
					setUp(f)
					before := f.snapshot()
					changes := plan(t, h, wishes...)
					f.failAt, f.after, f.crash = n, after, crash
					_, err := h.Apply(t.Context(), changes, Options{})
					if more = len(f.steps) >= n; !more {
						if err != nil || n < 3 {
							t.Fatalf("%v after %d steps without a fault", err, n-1)
						}
						break
					}
					step := fmt.Sprintf("step %d, %s, failing after its effect: %v, crash: %v", n, f.steps[n-1], after, crash)
					if done := strings.HasPrefix(f.steps[n-1], "exportfs ") || strings.HasPrefix(f.steps[n-1], "umount "); err == nil && after && !crash && done {
						continue // these are judged by what they have done
					}
					if !errors.Is(err, errFault) {
						t.Fatalf("%s: the error is %v", step, err)
					}
					if crash {
						f.failAt = 0
						if _, err := h.Undo(t.Context(), false); err != nil {
							t.Errorf("%s: undo: %v", step, err)
						}
					} else if !strings.Contains(err.Error(), "everything is as it was") {
						t.Errorf("%s: %v", step, err)
					}
					if got := f.snapshot(); got != before {
						t.Errorf("%s: got\n%s\nwant\n%s", step, got, before)
					}
				}
			}
		}
	}
}

// TestUndoIsRepeated lets each step of an Undo fail: the next one completes it.
func TestUndoIsRepeated(t *testing.T) {
	for _, host := range hosts {
		for _, after := range []bool{false, true} {
			for n, more := 1, true; more; n++ {
				h, f := newFake(t)
				host.setUp(f)
				before := f.snapshot()
				if _, err := h.Apply(t.Context(), plan(t, h, toAsync, toLarge), Options{}); err != nil {
					t.Fatal(err)
				}
				f.steps, f.failAt, f.after, f.crash = nil, n, after, true
				_, err := h.Undo(t.Context(), false)
				if more = len(f.steps) >= n; more && !errors.Is(err, errFault) {
					t.Errorf("%s, %s: the error is %v", host.name, f.steps[n-1], err)
				}
				f.failAt = 0
				if _, err := h.Undo(t.Context(), false); err != nil {
					t.Errorf("%s, step %d: undo again: %v", host.name, n, err)
				}
				wantSame(t, f.snapshot(), before)
			}
		}
	}
}

// interrupted is a fake on which somebody interrupts the work during a command.
type interrupted struct {
	*fake
	during    string
	interrupt func()
}

func (i interrupted) run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := i.fake.run(ctx, name, args...)
	if name == i.during {
		i.interrupt()
	}
	return out, err
}

func TestAnInterruptedUndoLeavesNoMountPointEmpty(t *testing.T) {
	for _, host := range hosts {
		h, f := newFake(t)
		host.setUp(f)
		before := f.snapshot()
		if _, err := h.Apply(t.Context(), plan(t, h, toAsync, toLarge), Options{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		h.sys = interrupted{f, "umount", cancel}
		did, err := h.Undo(ctx, false)
		if !errors.Is(err, context.Canceled) || len(did) != 1 || f.top(point) < 0 {
			t.Errorf("%s: it did %q, %v, and something is mounted: %v; want the mount, and the export left alone", host.name, did, err, f.top(point) >= 0)
		}
		if _, err := h.Undo(t.Context(), false); err != nil {
			t.Errorf("%s: undo again: %v", host.name, err)
		}
		wantSame(t, f.snapshot(), before)
	}
}

func TestAMountThatCannotBePutBackIsTold(t *testing.T) {
	h, f := newFake(t)
	before := f.snapshot()
	if _, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{}); err != nil {
		t.Fatal(err)
	}
	f.steps, f.failAt, f.crash = nil, 3, true // the file, umount, mount
	_, err := h.Undo(t.Context(), false)
	if !errors.Is(err, errFault) || !strings.Contains(err.Error(), "nothing is mounted at "+point+" now, undo again") || f.top(point) >= 0 {
		t.Errorf("the error is %v, want that nothing is mounted, and what to do", err)
	}
	f.failAt = 0
	if _, err := h.Undo(t.Context(), false); err != nil {
		t.Error(err)
	}
	wantSame(t, f.snapshot(), before)
}

func TestUndoGoesBackToTheFirstState(t *testing.T) {
	h, f := newFake(t)
	before := f.snapshot()
	for _, w := range []Wish{toAsync, toLarge, {Mount: point, Options: nfs.Options{"rsize=8192"}}, toSync, {Export: export, Options: nfs.Options{"ro"}}} {
		if _, err := h.Apply(t.Context(), plan(t, h, w), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	middle := f.snapshot()
	refused := errors.New("slower")
	_, err := h.Apply(t.Context(), plan(t, h, Wish{Mount: point, Options: nfs.Options{"rsize=4096"}}), Options{Accept: func(context.Context) error {
		if got := f.mounts[f.top(point)].Effective(); !slices.Contains(got, "rsize=4096") {
			t.Errorf("measured with %s", got)
		}
		return refused
	}})
	if !errors.Is(err, refused) {
		t.Errorf("the error is %v, want %v", err, refused)
	}
	wantSame(t, f.snapshot(), middle)
	if _, err := h.Undo(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	wantSame(t, f.snapshot(), before)
}

// TestUndoKnowsAFileThatALaterChangeNeeds: a remount needs none.
func TestUndoKnowsAFileThatALaterChangeNeeds(t *testing.T) {
	for _, host := range hosts {
		h, f := newFake(t)
		host.setUp(f)
		before := f.snapshot()
		for _, w := range []Wish{toSync, toLarge} {
			if _, err := h.Apply(t.Context(), plan(t, h, w), Options{}); err != nil {
				t.Fatalf("%s: %v", host.name, err)
			}
		}
		says, err := h.Undoable()
		if did, undoErr := h.Undo(t.Context(), false); errors.Join(err, undoErr) != nil || len(did) != 1 || !slices.Equal(did, says) {
			t.Errorf("%s: undone: %q, %v; said before: %q, %v", host.name, did, undoErr, says, err)
		}
		wantSame(t, f.snapshot(), before)
	}
}

// TestADefaultThatIsNotShownHolds: what is applied is not planned again.
func TestADefaultThatIsNotShownHolds(t *testing.T) {
	h, f := newFake(t)
	if c := plan(t, h, Wish{Mount: point, Options: nfs.Options{"suid", "cto"}}); len(c) > 0 {
		t.Errorf("planned %+v, want nothing: both are the default", c)
	}
	f.mounts = f.mounts[:1]
	f.mount(source, point, nfs.ParseOptions("nocto,"+mount0))
	cto := Wish{Mount: point, Options: nfs.Options{"cto"}}
	r, err := h.Apply(t.Context(), plan(t, h, cto), Options{})
	if err != nil || len(r[0].Notes) > 0 || len(plan(t, h, cto)) > 0 {
		t.Errorf("applied %+v, %v, and planned again %+v; want nothing said and nothing planned", r, err, plan(t, h, cto))
	}
}

func TestVersionOrder(t *testing.T) {
	// The first line is that of strverscmp(3).
	for _, line := range []string{"000 00 01 010 09 0 1 9 10", "a a1 a2 a10 ab b", "000-a 00-a 00-b 01-a 0-a 0a 1-a 10-a"} {
		names := strings.Fields(line)
		for i, a := range names {
			for j, b := range names {
				if got := versionOrder(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
					t.Errorf("%s and %s: %d", a, b, got)
				}
			}
		}
	}
}

// TestWhatALiveMountDoesNotShowStays: it stands in the file that made the mount, and
// has to stand in the one that takes its place.
func TestWhatALiveMountDoesNotShowStays(t *testing.T) {
	const unseen = "_netdev,retry=5,nofail,x-systemd.requires=wg0.service,comment=dtn"
	for _, host := range hosts {
		h, f := newFake(t)
		host.setUp(f)
		text := "[Mount]\nOptions=vers=3,noac," + unseen + "\n"
		f.put("/etc/fstab", source+" "+point+" nfs vers=3,noac,user,"+unseen+" 0 0\n")
		switch unit := f.units[UnitName(point)]; {
		case unit != "":
			f.put(unit, text)
		case f.systemd:
			f.put("/etc/fstab", "")
			continue // nothing says more of the mount
		}
		if _, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{}); err != nil {
			t.Fatalf("%s: %v", host.name, err)
		}
		for range 2 { // also of our own file
			own, err := os.ReadFile(h.path(host.file))
			if err != nil || strings.Count(string(own), ","+unseen) != 1 || strings.Contains(string(own), "noac") || strings.Contains(string(own), "user") {
				t.Errorf("%s: %s has %q, %v; want %s in it, and else what holds", host.name, host.file, own, err, unseen)
			}
			if _, err := h.Apply(t.Context(), plan(t, h, Wish{Mount: point, Options: nfs.Options{"rsize=8192"}}), Options{}); err != nil {
				t.Fatalf("%s: %v", host.name, err)
			}
			f.steps = nil
		}
		if !f.systemd {
			f.put("/etc/fstab", "elsewhere:/export "+point+" nfs retry=7 0 0\n")
			if c := plan(t, h, toLarge); strings.Contains(c[0].Text, "retry") {
				t.Errorf("the line of another mount is in %q", c[0].Text)
			}
		}
	}
}

func TestALineOfFstabThatSystemdDoesNotKnow(t *testing.T) {
	h, f := newFake(t)
	f.withSystemd("")
	f.put("/etc/fstab", source+" "+point+" nfs vers=3 0 0\n")
	s, err := h.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Plan(s, toLarge); err == nil || !strings.Contains(err.Error(), "daemon-reload") {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestAFaultOfFstabStopsOnlyWhatNeedsIt: a unit of systemd, an export and a remount do not.
func TestAFaultOfFstabStopsOnlyWhatNeedsIt(t *testing.T) {
	for _, host := range hosts {
		h, f := newFake(t)
		host.setUp(f)
		f.put(fstabFile, "LABEL=x data xfs\n")
		plan(t, h, toAsync, toSync)
		s, err := h.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = Plan(s, toLarge)
		if f.units[UnitName(point)] == "" {
			if err == nil || !strings.Contains(err.Error(), fstabFile+": fstab: line 1") {
				t.Errorf("%s: %v", host.name, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", host.name, err)
		}
	}
}

// TestAnNFSRootIsNoOption: its unit is called -.mount.
func TestAnNFSRootIsNoOption(t *testing.T) {
	h, f := newFake(t)
	f.withSystemd("")
	f.mounts[0].Type, f.mounts[0].Source = "nfs", "boot.example.org:/root"
	f.show()
	plan(t, h, toLarge)
	f.hanging = nfs.Options{}
	if err := errors.Join(h.start(t.Context(), "/"), h.giveUp(t.Context(), "/")); err != nil || f.hanging != nil {
		t.Error(err)
	}
}

// TestWhatOthersWroteStays: a file of our own that was edited is no more ours to
// replace or to remove.
func TestWhatOthersWroteStays(t *testing.T) {
	for _, host := range hosts {
		for _, file := range []string{host.file, ownExports} {
			for _, edit := range []func(text string) string{
				func(text string) string { return text + "# mine\n" },
				func(text string) string { return strings.TrimPrefix(text, sealed.Header) },
				func(string) string { return "" },
			} {
				h, f := newFake(t)
				host.setUp(f)
				before := f.snapshot()
				if _, err := h.Apply(t.Context(), plan(t, h, toAsync, toLarge), Options{}); err != nil {
					t.Fatal(err)
				}
				text, err := os.ReadFile(h.path(file))
				if err != nil {
					t.Fatal(err)
				}
				f.put(file, edit(string(text)))
				edited := f.snapshot()
				f.steps = nil
				if _, err := h.Undo(t.Context(), true); err == nil || !strings.Contains(err.Error(), file+" is not as glance-dtn has written it") {
					t.Errorf("%s, %s: undo: %v", host.name, file, err)
				}
				changes := plan(t, h, Wish{Mount: point, Options: nfs.Options{"rsize=8192"}}, Wish{Export: export, Options: nfs.Options{"ro"}})
				if _, err := h.Apply(t.Context(), changes, Options{}); err == nil && slices.ContainsFunc(changes, func(c Change) bool { return c.File == file }) {
					t.Errorf("%s, %s: it was written over", host.name, file)
				} else if err != nil && len(f.steps) > 0 {
					t.Errorf("%s, %s: %v, and %q was done", host.name, file, err, f.steps)
				}
				if len(f.steps) == 0 {
					wantSame(t, f.snapshot(), edited)
				}
				if err := os.Remove(h.path(file)); err != nil {
					t.Fatal(err)
				}
				if _, err := h.Undo(t.Context(), false); err != nil {
					t.Errorf("%s, %s: undo without the file: %v", host.name, file, err)
				}
				wantSame(t, f.snapshot(), before)
			}
		}
	}
}

// TestWhatOthersDidToAnExportStays: undo takes back what was changed, no more.
func TestWhatOthersDidToAnExportStays(t *testing.T) {
	h, f := newFake(t)
	apply := func(w Wish) {
		t.Helper()
		if _, err := h.Apply(t.Context(), plan(t, h, w), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	undo := func(want string) {
		t.Helper()
		if did, err := h.Undo(t.Context(), false); err != nil || len(did) != 1 || !strings.Contains(did[0], want) {
			t.Errorf("undone: %q, %v; want %s", did, err, want)
		}
	}
	apply(toAsync)
	apply(Wish{Export: export, Options: nfs.Options{"sync"}})
	apply(toAsync)
	if _, err := f.run(t.Context(), "exportfs", "-i", "-o", strings.Replace(strings.Replace(table0, "sync", "async", 1), ",rw,", ",ro,", 1), "ctrl.example.org:"+export); err != nil {
		t.Fatal(err)
	}
	undo("Export " + export)
	if got := f.table[0].Clients[0].Options; !slices.Contains(got, "ro") || !slices.Contains(got, "sync") {
		t.Errorf("the export has %s, want sync again and ro still", got)
	}
	apply(toAsync)
	f.table = f.table[1:]
	undo("stays so")
	if len(f.table) != 1 {
		t.Errorf("an export that somebody has ended is back: %v", f.table)
	}
}

// TestNothingStaysOfAnEnabledUnit: systemctl enable, which the plan tells of, makes a
// link.
func TestNothingStaysOfAnEnabledUnit(t *testing.T) {
	h, f := newFake(t)
	f.withSystemd("")
	before := f.snapshot()
	if _, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{}); err != nil {
		t.Fatal(err)
	}
	unit := unitDir + "/" + UnitName(point)
	link := h.path(unitDir + "/remote-fs.target.wants/" + UnitName(point))
	if err := errors.Join(os.Mkdir(filepath.Dir(link), 0o755), os.Symlink(unit, link)); err != nil {
		t.Fatal(err)
	}
	if c := plan(t, h, toSync)[0]; !c.Lasts || c.File != unit || strings.Contains(c.Says, "systemctl enable") {
		t.Errorf("planned %+v, want it to last", c)
	}
	if _, err := h.Undo(t.Context(), false); err != nil {
		t.Error(err)
	}
	wantSame(t, f.snapshot(), before)
}

// TestAMountThatSystemdStillTriesIsGivenUp: it would come later, above the old one.
func TestAMountThatSystemdStillTriesIsGivenUp(t *testing.T) {
	for _, host := range hosts[1:] {
		for _, killed := range []bool{false, true} {
			h, f := newFake(t)
			host.setUp(f)
			before := f.snapshot()
			changes := plan(t, h, toLarge)
			f.hangs = true
			if killed {
				f.failAt, f.after, f.crash = 5, true, true // the record, the file, daemon-reload, umount, start
			}
			if _, err := h.Apply(t.Context(), changes, Options{}); err == nil || (f.hanging != nil) != killed {
				t.Errorf("%s: the error is %v, and systemd tries to mount with %s", host.name, err, f.hanging)
			}
			f.failAt = 0
			if _, err := h.Undo(t.Context(), false); err != nil || f.hanging != nil {
				t.Errorf("%s: undo: %v, and systemd tries to mount with %s", host.name, err, f.hanging)
			}
			wantSame(t, f.snapshot(), before)
		}
	}
}

func TestACancelledApplyIsPutBack(t *testing.T) {
	h, f := newFake(t)
	before := f.snapshot()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := h.Apply(ctx, plan(t, h, toAsync, toLarge), Options{Accept: func(context.Context) error { cancel(); return ctx.Err() }})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "everything is as it was") {
		t.Errorf("the error is %v", err)
	}
	wantSame(t, f.snapshot(), before)
}

func TestANewMountThatFailsIsReplacedByTheOld(t *testing.T) {
	for _, host := range hosts {
		h, f := newFake(t)
		host.setUp(f)
		before := f.snapshot()
		_, err := h.Apply(t.Context(), plan(t, h, toUnknown), Options{})
		if err == nil || !strings.Contains(err.Error(), "incorrect mount option") || !strings.Contains(err.Error(), "everything is as it was") {
			t.Errorf("%s: the error is %v", host.name, err)
		}
		wantSame(t, f.snapshot(), before)
	}
}

func TestSystemdIsAskedAgain(t *testing.T) {
	for idle, want := range map[int]bool{2: true, 99: false} {
		synctest.Test(t, func(t *testing.T) {
			h, f := newFake(t)
			f.withSystemd("/run/systemd/generator/mnt-dtn.mount")
			f.idle = idle
			_, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{})
			if (err == nil) != want {
				t.Errorf("%d times nothing is mounted: %v", idle, err)
			}
			if err != nil && (f.top(point) < 0 || !strings.Contains(err.Error(), "mounts nothing")) {
				t.Errorf("%d times nothing is mounted: %v, and the old mount is there: %v", idle, err, f.top(point) >= 0)
			}
		})
	}
}

func TestAUnitThatMountsSomethingElse(t *testing.T) {
	h, f := newFake(t)
	f.withSystemd("/run/systemd/generator/mnt-dtn.mount")
	before := f.snapshot()
	f.starts = "old.example.org:/export"
	_, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{})
	if err == nil || !strings.Contains(err.Error(), "old.example.org:/export is mounted there now") || !strings.Contains(err.Error(), "everything is as it was") {
		t.Errorf("the error is %v", err)
	}
	wantSame(t, f.snapshot(), before)
}

func TestBothFaultsAreTold(t *testing.T) {
	h, f := newFake(t)
	changes := plan(t, h, toLarge)
	f.failAt, f.crash = 4, true // the record, fstab, umount, mount
	_, err := h.Apply(t.Context(), changes, Options{})
	if err == nil || !strings.Contains(err.Error(), "undo it again") || f.top(point) >= 0 {
		t.Errorf("the error is %v, want that of the mount and that of the old mount", err)
	}
}

func TestPlan(t *testing.T) {
	h, f := newFake(t)
	const other = exportsDir + "/site.exports"
	s := func() State {
		s, err := h.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	wantSays := func(w Wish, lasts bool, file string, want ...string) {
		t.Helper()
		changes, err := Plan(s(), w)
		if err != nil || len(changes) != 1 {
			t.Errorf("%+v: %d changes, %v", w, len(changes), err)
			return
		}
		c := changes[0]
		if c.Lasts != lasts || c.File != file {
			t.Errorf("%+v: lasts %v by %q, want %v by %q", w, c.Lasts, c.File, lasts, file)
		}
		for _, part := range want {
			if !strings.Contains(c.Says, part) {
				t.Errorf("%q does not say %q", c.Says, part)
			}
		}
	}
	wantSays(toAsync, true, ownExports, "Export /export/glance to ctrl.example.org with async instead of sync", "loses power")
	wantSays(toLarge, false, "/var/lib/glance-dtn/fstab", "Unmount /mnt/dtn", "rsize=1048576,wsize=1048576 instead of rsize=131072,wsize=131072", "change the line of /etc/fstab")
	wantSays(toSync, false, "", "Remount /mnt/dtn with sync instead of the default")

	f.put(other, export+" ctrl.example.org(rw,sync,no_root_squash)\n")
	wantSays(toAsync, true, ownExports, "duplicate of the one in "+other)
	f.put(exportsDir+"/0-last.exports", export+" ctrl.example.org(rw)\n")
	wantSays(toAsync, true, ownExports, "duplicate of the one in "+exportsDir+"/0-last.exports")
	f.put(exportsDir+"/000-first.exports", export+" ctrl.example.org(rw)\n")
	wantSays(toAsync, false, "", exportsDir+"/000-first.exports exports it too")
	if err := os.Remove(h.path(exportsDir + "/000-first.exports")); err != nil {
		t.Fatal(err)
	}
	f.put(exportsDir+"/00-first.exports", export+" ctrl.example.org(rw,sync,no_root_squash)\n")
	wantSays(toAsync, false, "", exportsDir+"/00-first.exports exports it too", "write async there")
	f.put(exportsFile, export+" ctrl(rw,sync,no_root_squash)\n") // perhaps the same host
	wantSays(toAsync, false, "", exportsFile+" exports it too")
	if err := errors.Join(os.Remove(h.path(exportsDir+"/00-first.exports")), os.MkdirAll(h.path(export), 0o755), os.Symlink(h.path("/export"), h.path("/srv"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{export + "/", "/export//glance", "/srv/glance", "/srv/glance/"} {
		f.put(exportsFile, name+" ctrl(rw,sync,no_root_squash)\n")
		wantSays(toAsync, false, "", exportsFile+" exports it too")
	}

	f.mounts = append(f.mounts, nfs.Mount{ID: 50, Parent: 1, Device: f.mounts[1].Device, Root: "/", Point: "/mnt/too", Type: "nfs", Source: source, Super: f.mounts[1].Super})
	f.show()
	wantSays(toSync, false, "", "holds for /mnt/too too")

	for _, tt := range []struct {
		w    Wish
		want string
	}{
		{Wish{Mount: "/mnt/dtn/x", Options: nfs.Options{"sync"}}, "name that"},
		{Wish{Mount: "/srv", Options: nfs.Options{"sync"}}, "nothing is mounted at /srv"},
		{Wish{Mount: "/", Options: nfs.Options{"sync"}}, "type ext4"},
		{Wish{Mount: "dtn", Options: nfs.Options{"sync"}}, "absolute"},
		{Wish{Mount: point}, "no option"},
		{Wish{Mount: point, Options: nfs.Options{"rsize=x"}}, "rsize"},
		{Wish{Mount: point, Options: nfs.Options{"sync,ro"}}, "not one option"},
		{Wish{Mount: point, Options: nfs.Options{"sync\nExecStart=x"}}, "not one option"},
		{Wish{Mount: point, Options: nfs.Options{"x-systemd.automount"}}, "not about a mount that is there"},
		{Wish{Export: "/export", Options: nfs.Options{"sync"}}, "not exported to anyone: the table has ctrl.example.org:/export/glance, 192.0.2.0/24:/srv/other"},
		{Wish{Export: export, Client: "b", Options: nfs.Options{"sync"}}, "not exported to b"},
		{Wish{Export: export, Options: nfs.Options{"anonuid=x", "async"}}, "anonuid"},
	} {
		if c, err := Plan(s(), tt.w); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %+v, %v; want %q", tt.w, c, err, tt.want)
		}
	}
	if _, err := Plan(s(), toSync, toLarge); err == nil || !strings.Contains(err.Error(), "two wishes") {
		t.Errorf("two wishes for one mount: %v", err)
	}

	f.mounts[1].Root = "/sub"
	f.show()
	if _, err := Plan(s(), toSync); err == nil || !strings.Contains(err.Error(), "bind mount") {
		t.Errorf("a bind mount: %v", err)
	}
	f.mounts = slices.Insert(f.mounts, 1, nfs.Mount{ID: 51, Parent: 1, Device: "0:9", Root: "/", Point: point, Type: "autofs", Source: "/etc/auto.misc", Super: nfs.Options{"rw"}})
	f.mounts[2].Parent = 51
	f.show()
	if _, err := Plan(s(), toSync); err == nil || !strings.Contains(err.Error(), "of type autofs is mounted at /mnt/dtn too") {
		t.Errorf("a mount of automount(8): %v", err)
	}
	f.mounts = slices.Delete(f.mounts, 2, 3)
	f.show()
	if _, err := Plan(s(), toSync); err == nil || !strings.Contains(err.Error(), "nothing is mounted at /mnt/dtn now: use it once (ls /mnt/dtn)") {
		t.Errorf("an automount that was not used: %v", err)
	}
	f.put(exportsFile, "no path\n")
	if _, err := Plan(s(), toAsync); err == nil || !strings.Contains(err.Error(), exportsFile) {
		t.Errorf("exports that cannot be read: %v", err)
	}
	f.table = nil
	f.put(exportsFile, "")
	if _, err := Plan(s(), toAsync); err == nil || !strings.Contains(err.Error(), "exports nothing") {
		t.Errorf("a host without a server: %v", err)
	}
}

func TestAPlanIsForOneState(t *testing.T) {
	h, f := newFake(t)
	changes := plan(t, h, toAsync, toLarge)
	f.mounts[1].Options = nfs.Options{"ro"}
	f.show()
	before := f.snapshot()
	if _, err := h.Apply(t.Context(), changes, Options{}); err == nil || !strings.Contains(err.Error(), "plan again") {
		t.Errorf("the error is %v", err)
	}
	wantSame(t, f.snapshot(), before)
}

func TestABusyMountIsRefusedAndForced(t *testing.T) {
	h, f := newFake(t)
	f.put("/proc/4711/comm", "qemu-img\n")
	fd := h.path("/proc/4711/fd/3")
	if err := errors.Join(os.MkdirAll(filepath.Dir(fd), 0o755), os.Symlink(point+"/image", fd)); err != nil {
		t.Fatal(err)
	}
	f.put("/proc/4712/maps", "7f00-7f01 r-xp 00000000 00:29 12   /mnt/dtn-other/lib so\n")
	f.put("/proc/4713/maps", "7f00-7f01 r-xp 00000000 00:29 12   /mnt/dtn/lib so\n")
	before := f.snapshot()
	f.steps = nil
	_, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{})
	busy, is := errors.AsType[*BusyError](err)
	if !is || len(busy.Holders) != 2 || busy.Holders[0] != (Holder{4711, "qemu-img", "fd /mnt/dtn/image"}) || busy.Holders[1].What != "map /mnt/dtn/lib so" {
		t.Errorf("the error is %v", err)
	}
	if len(f.steps) > 0 {
		t.Errorf("%q was done", f.steps)
	}
	if err := os.RemoveAll(h.path("/proc/4711")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(h.path("/proc/4713")); err != nil {
		t.Fatal(err)
	}
	f.busy = true // somebody whom /proc does not show
	_, err = h.Apply(t.Context(), plan(t, h, toLarge), Options{})
	if busy, is = errors.AsType[*BusyError](err); !is || !strings.Contains(busy.Error(), "losetup") {
		t.Errorf("the error is %v", err)
	}
	wantSame(t, f.snapshot(), before)
	if _, err = h.Apply(t.Context(), plan(t, h, toLarge), Options{Force: true}); err != nil || !slices.Contains(f.steps, "umount -l "+point) {
		t.Errorf("forced: %v, %q", err, f.steps)
	}
	if _, err := h.Undo(t.Context(), false); err == nil {
		t.Error("an undo without force unmounted a busy mount")
	}
	if _, err := h.Undo(t.Context(), true); err != nil {
		t.Error(err)
	}
	wantSame(t, f.snapshot(), before)

	f.mounts = append(f.mounts, nfs.Mount{ID: 50, Parent: f.mounts[1].ID, Device: "0:9", Root: "/", Point: point + "/sub", Type: "tmpfs", Source: "tmpfs", Super: nfs.Options{"rw"}})
	f.show()
	for _, force := range []bool{false, true} {
		_, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{Force: force})
		if busy, is := errors.AsType[*BusyError](err); !is || !slices.Equal(busy.Mounts, []string{point + "/sub"}) {
			t.Errorf("a mount on the mount, force %v: %v", force, err)
		}
	}
}

func TestWhatIsGrantedIsTold(t *testing.T) {
	h, f := newFake(t)
	f.limit = "524288"
	r, err := h.Apply(t.Context(), plan(t, h, Wish{Mount: point, Options: nfs.Options{"rsize=1048576", "fsc"}}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := nfs.Difference{Option: "rsize", Asked: "1048576", Granted: "524288"}
	if !slices.Equal(r[0].Differences, []nfs.Difference{want}) || len(r[0].Notes) != 1 || !strings.Contains(r[0].Notes[0], "the server allows no more") {
		t.Errorf("differences %v, notes %q", r[0].Differences, r[0].Notes)
	}
}

// TestWhatOthersHaveMountedStays: the server of what was there first may be gone.
func TestWhatOthersHaveMountedStays(t *testing.T) {
	const other = "dtn-b.example.org:/export/glance"
	replace := func(f *fake) {
		i := f.top(point)
		f.mounts = slices.Delete(f.mounts, i, i+1)
		f.mount(other, point, nfs.ParseOptions(mount0))
		f.starts = other
	}
	leave := "Leave " + other + ", which somebody else has mounted at " + point + "."
	for _, host := range hosts {
		for _, again := range []bool{false, true} {
			h, f := newFake(t)
			host.setUp(f)
			for _, w := range []Wish{toSync, toLarge} {
				if _, err := h.Apply(t.Context(), plan(t, h, w), Options{}); err != nil {
					t.Fatalf("%s: %v", host.name, err)
				}
			}
			replace(f)
			want := leave
			if again {
				if _, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{}); err != nil {
					t.Fatalf("%s: again: %v", host.name, err)
				}
				want = "Have " + other + " mounted at " + point + " with "
				if says, err := h.Undoable(); err != nil || len(says) != 1 || !strings.HasPrefix(says[0], want) {
					t.Errorf("%s: what can be undone: %q, %v", host.name, says, err)
				}
			}
			did, err := h.Undo(t.Context(), false)
			if err != nil || len(did) != 1 || !strings.HasPrefix(did[0], want) {
				t.Errorf("%s: undone: %q, %v; want %q", host.name, did, err, want)
			}
			_, fresh := newFake(t)
			host.setUp(fresh)
			replace(fresh)
			wantSame(t, f.snapshot(), fresh.snapshot())
			if says, err := h.Undoable(); err != nil || len(says) > 0 {
				t.Errorf("%s: still to be undone: %q, %v", host.name, says, err)
			}
		}
	}

	h, f := newFake(t)
	_, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{Accept: func(context.Context) error { replace(f); return errors.New("slower") }})
	if err == nil || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), "undo it again") {
		t.Errorf("what cannot be put back: %v", err)
	}
	if did, err := h.Undo(t.Context(), false); err != nil || !slices.Equal(did, []string{leave}) {
		t.Errorf("undone: %q, %v", did, err)
	}
}

func TestADamagedRecordIsTold(t *testing.T) {
	h, f := newFake(t)
	f.put("/var/lib/glance-dtn/undo.json", `[{"kind":`)
	if _, err := h.Undo(t.Context(), false); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestOneAtATime(t *testing.T) {
	h, _ := newFake(t)
	lock, err := h.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := h.Apply(t.Context(), plan(t, h, toLarge), Options{}); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("the error is %v, want %v", err, durable.ErrLocked)
	}
}

func TestScratch(t *testing.T) {
	h, f := newFake(t)
	before := f.snapshot()
	var dir string
	fault := errors.New("measured nothing")
	err := h.Scratch(t.Context(), source, nfs.Options{"rsize=8192"}, func(d string) error {
		dir = d
		if got := f.mounts[f.top(d)]; got.Source != source || !slices.Contains(got.Super, "nosharecache") || !slices.Contains(got.Super, "rsize=8192") {
			t.Errorf("mounted %v", got)
		}
		if err := h.Scratch(t.Context(), source, nil, nil); !errors.Is(err, durable.ErrLocked) {
			t.Errorf("a second one: %v", err)
		}
		return fault
	})
	if !errors.Is(err, fault) || f.top(dir) >= 0 {
		t.Errorf("%v, and %s is mounted: %v", err, dir, f.top(dir) >= 0)
	}

	f.mount(source, dir, nil) // what a killed process left
	f.mount(source, dir, nil)
	f.busy = true
	err = h.Scratch(t.Context(), source, nil, func(string) error {
		if n := len(stack(f.mounts, dir)); n != 1 {
			t.Errorf("%d mounts at %s", n, dir)
		}
		return nil
	})
	if _, is := errors.AsType[*BusyError](err); !is || f.top(dir) >= 0 {
		t.Errorf("a file was left open: %v", err)
	}
	f.busy = false
	ctx, cancel := context.WithCancel(t.Context())
	err = h.Scratch(ctx, source, nil, func(string) error { cancel(); return ctx.Err() })
	if !errors.Is(err, context.Canceled) || f.top(dir) >= 0 {
		t.Errorf("cancelled: %v, and %s is mounted: %v", err, dir, f.top(dir) >= 0)
	}
	if err := h.Scratch(t.Context(), source, nfs.Options{"nosuchoption"}, nil); err == nil {
		t.Error("a mount that fails is no error")
	}
	if err := h.Scratch(t.Context(), "export", nil, nil); err == nil {
		t.Error("a source without a host is no error")
	}
	wantSame(t, f.snapshot(), before)
}

func TestUnscratchClearsWhatAKilledScratchHasLeft(t *testing.T) {
	h, f := newFake(t)
	if says, err := h.Unscratch(t.Context(), false); err != nil || len(says) > 0 {
		t.Errorf("where there was never a scratch mount: %q, %v", says, err)
	}
	var dir string
	err := h.Scratch(t.Context(), source, nil, func(d string) error {
		dir = d
		if _, err := h.Unscratch(t.Context(), false); !errors.Is(err, durable.ErrLocked) || f.top(dir) < 0 {
			t.Errorf("while it is in use: %v, and it is mounted: %v", err, f.top(dir) >= 0)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.mount(source, dir, nil)
	f.mount(source, dir, nil)
	f.busy = true
	want := []string{"Unmount " + dir + "."}
	for _, dryRun := range []bool{true, false} {
		says, err := h.Unscratch(t.Context(), dryRun)
		if err != nil || !slices.Equal(says, want) || (f.top(dir) >= 0) != dryRun {
			t.Errorf("dry run %v: %q, %v, want %q; mounted: %v", dryRun, says, err, want, f.top(dir) >= 0)
		}
	}
	if says, err := h.Unscratch(t.Context(), false); err != nil || len(says) > 0 {
		t.Errorf("once more: %q, %v", says, err)
	}
}

func TestCommandsAreBounded(t *testing.T) {
	if _, err := (linux{}).run(t.Context(), "glance-dtn-no-such-command"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a command that is not installed: %v", err)
	}
	if _, err := (linux{}).run(t.Context(), "cat", "/nonexistent"); err == nil || !strings.Contains(err.Error(), "cat /nonexistent: exit status 1: ") {
		t.Errorf("a command that fails: %v", err)
	}

	// xargs has a child, as mount(8) has: both end.
	const seconds = "98765.4321"
	args := filepath.Join(t.TempDir(), "args")
	if err := os.WriteFile(args, []byte(seconds), 0o644); err != nil {
		t.Fatal(err)
	}
	sleeps := func() bool {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		return slices.ContainsFunc(lines, func(name string) bool {
			line, _ := os.ReadFile(name)
			return string(line) == "sleep\x00"+seconds+"\x00"
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("it is enough")
	go func() {
		for !sleeps() && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel(cause)
	}()
	if _, err := (linux{}).run(ctx, "xargs", "-a", args, "sleep"); !errors.Is(err, cause) {
		t.Errorf("the error is %v, want %v", err, cause)
	}
	for sleeps() {
		time.Sleep(time.Millisecond)
	}
}

func TestUnitName(t *testing.T) {
	points := map[string]string{
		"/":                    "-.mount",
		"/mnt/dtn":             "mnt-dtn.mount",
		"/mnt/a-b c/.x/ü/\\q":  `mnt-a\x2db\x20c-.x-\xc3\xbc-\x5cq.mount`,
		"/.foo":                `\x2efoo.mount`,
		"/srv/A:b_c.d@%\"'\t1": `srv-A:b_c.d\x40\x25\x22\x27\x091.mount`,
	}
	for p, want := range points {
		if got := UnitName(p); got != want {
			t.Errorf("UnitName(%q) is %s, want %s", p, got, want)
		}
	}
	if _, err := exec.LookPath("systemd-escape"); err != nil {
		t.Skip("systemd-escape is not here to compare with")
	}
	for p := range points {
		out, err := exec.CommandContext(t.Context(), "systemd-escape", "--path", "--suffix=mount", p).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := UnitName(p), strings.TrimSpace(string(out)); got != want {
			t.Errorf("UnitName(%q) is %s, systemd-escape says %s", p, got, want)
		}
	}
}

// TestUnitsAreRight has systemd itself read the units.
func TestUnitsAreRight(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here")
	}
	dir := t.TempDir()
	for _, p := range []string{"/mnt/dtn", "/mnt/100% a-b"} {
		unit := filepath.Join(dir, UnitName(p))
		e := nfs.Entry{Source: "[2001:db8::1]:/export/50%", Point: p, Type: "nfs", Options: nfs.ParseOptions(`vers=3,rsize=8192,context="u:r:t:s0:c1,c2"`)}
		text, err := mountUnit(e, nfs.Options{"retry=5", "nofail", "x-systemd.requires=%H.service"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(unit, []byte(sealed.Seal(text)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput()
		if err != nil || strings.Contains(string(out), UnitName(p)) {
			t.Errorf("systemd-analyze verify: %v: %s", err, out)
		}
	}
}

func TestUnitsSayNothingElse(t *testing.T) {
	h, f := newFake(t)
	f.withSystemd("")
	for _, fault := range []string{"\n[Service]", "\r", "\\", " ", "\xff"} {
		dir := point + fault
		f.mounts = f.mounts[:1]
		f.mount(source, dir, nfs.ParseOptions(mount0))
		s, err := h.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c, err := Plan(s, Wish{Mount: dir, Options: nfs.Options{"rsize=8192"}}); err == nil || !strings.Contains(err.Error(), "no way to say") {
			t.Errorf("%q: %+v, %v; want it refused", dir, c, err)
		}
		if _, err := Plan(s, Wish{Mount: dir, Options: nfs.Options{"sync"}}); err != nil { // without a file
			t.Errorf("%q: %v", dir, err)
		}
		if _, err := mountDropIn(nfs.Options{"context=x" + fault}, nil); err == nil {
			t.Errorf("a drop-in says %q", fault)
		}
	}
	if got, err := mountDropIn(nfs.Options{"context=100%"}, nil); err != nil || !strings.HasSuffix(got, "context=100%%\n") {
		t.Errorf("a percent sign: %q, %v", got, err)
	}
}

func TestOptionsOfUnits(t *testing.T) {
	for text, want := range map[string]string{
		"[Mount]\nOptions=vers=3,retry=5\n":                              "vers=3,retry=5",
		"[Mount]\nOptions=a\n[Mount]\n Options = b,%H\n":                 "b,%H",
		"[Mount]\nOptions=a\nOptions=\n":                                 "",
		"Options=a\n[Unit]\nOptions=b\n":                                 "",
		"[Mount]\n#Options=a\n;Options=b\nWhat=x\\\nOptions=c\nType=nfs": "",
		"[Mount]\nOptions=a,\\\n# between\nb\n":                          "a, b",
	} {
		if got := unitOptions(text).String(); got != want {
			t.Errorf("%q says %q, want %q", text, got, want)
		}
	}
}
