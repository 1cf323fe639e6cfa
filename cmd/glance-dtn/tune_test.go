package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
	"github.com/glance-dtn/glance-dtn/nfs/mounted"
	"github.com/glance-dtn/glance-dtn/nfs/nfstest"
	"github.com/glance-dtn/glance-dtn/tuning/nfssweep"
)

// A new mount is refused only where no measurement of it reaches any of the old one.
func TestSlower(t *testing.T) {
	old := trial{writes: []float64{80e6, 88e6, 96e6}, reads: []float64{800e6, 808e6, 816e6}}
	for _, c := range []struct {
		name  string
		after trial
		want  string
	}{
		{"the same", old, ""},
		{"one of three as fast", trial{[]float64{8e6, 8e6, 80e6}, old.reads}, ""},
		{"writes", trial{[]float64{8e6, 16e6, 72e6}, old.reads}, "the fastest write has 9.0 MB/s, the slowest one had 10 MB/s"},
		{"reads", trial{old.writes, []float64{8e6, 8e6, 8e6}}, "the fastest read has 1.0 MB/s, the slowest one had 100 MB/s"},
	} {
		err := old.slower(c.after)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// exportedDir is a directory that a server in this process exports, and the target that is.
func exportedDir(t *testing.T) (dir string, target nfsTarget) {
	t.Helper()
	dir = t.TempDir()
	port, stop, err := nfstest.Serve(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return dir, nfsTarget{source: "127.0.0.1:/", options: nfs.ParseOptions(fmt.Sprintf("port=%d,mountport=%d", port, port))}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func leftoversOf(t *testing.T, state string) *leftovers {
	t.Helper()
	l, err := takeLeftovers(state)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTwoSweepsAtOnceAreRefused(t *testing.T) {
	_, target := exportedDir(t)
	state := t.TempDir()
	first := leftoversOf(t, state)
	if err := first.making(target)("a"); err != nil { // undo has something to do, then
		t.Fatal(err)
	}
	for _, args := range [][]string{{target.source, "--way", "probe"}, {"--undo"}} {
		text, err := exec.Command("glance-dtn", append([]string{"tune", "nfs", "--state", state}, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(text), "another tune nfs runs on this host") {
			t.Errorf("%q beside another sweep: %v, %s", args, err, text)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	leftoversOf(t, state).Close()
}

// What a newer version has noted is not dropped by an older one.
func TestNotesOfANewerVersionAreLeftAlone(t *testing.T) {
	state := t.TempDir()
	const text = `[{"source": "dtn:/export", "options": null, "names": ["a"], "colour": "red"}]`
	write(t, filepath.Join(state, scratchFilesName), text)
	if _, err := takeLeftovers(state); err == nil || !strings.Contains(err.Error(), `unknown field "colour": remove by hand what it names`) {
		t.Errorf("got error %v", err)
	}
	if left, err := os.ReadFile(filepath.Join(state, scratchFilesName)); err != nil || string(left) != text {
		t.Errorf("left %s, %v", left, err)
	}
}

// sweeping starts a sweep that does not end by itself, and returns once it has made a file
// in the export.
func sweeping(t *testing.T, dir, state string, target nfsTarget) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("glance-dtn", "tune", "nfs", target.source, "--way", "probe", "--options", target.options.String(),
		"--size", "16MiB", "--reps", "100000", "--search", "exhaustive", "--state", state)
	startUntil(t, cmd, dir, unix.IN_CREATE)
	return cmd
}

// startUntil starts a command and returns once something has happened in a directory.
func startUntil(t *testing.T, cmd *exec.Cmd, dir string, what uint32) {
	t.Helper()
	startUntilTimes(t, cmd, dir, what, 1)
}

// startUntilTimes is startUntil of what has happened at least so many times.
func startUntilTimes(t *testing.T, cmd *exec.Cmd, dir string, what uint32, times int) {
	t.Helper()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, what); err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	ready := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}
	events := make([]byte, 64<<10)
	for times > 0 {
		n, err := unix.Poll(ready, int(daemonTime.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 {
			t.Fatalf("nothing has happened in %s (%v): %s", dir, err, cmd.Stderr)
		}
		if _, err := unix.Read(watch, events); err != nil {
			t.Fatal(err)
		}
		times--
	}
}

// What a killed sweep has left in the export is removed by --undo, and by the next one.
func TestFilesOfAKilledSweepAreRemoved(t *testing.T) {
	dir, target := exportedDir(t)
	for _, next := range [][]string{
		{"--undo"},
		{target.source, "--way", "probe", "--options", target.options.String(), "--size", "1MiB", "--sizes", "64K", "--reps", "1"},
	} {
		state := t.TempDir()
		cmd := sweeping(t, dir, state, target)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		was := names(t, dir)
		if len(was) == 0 {
			t.Fatal("a killed sweep has left nothing: this test shows nothing")
		}
		undo := []string{"tune", "nfs", "--undo", "--state", state}
		text, err := exec.Command("glance-dtn", append(undo, "--dry-run")...).CombinedOutput()
		if err != nil || !strings.Contains(string(text), "Remove "+was[0]+" from 127.0.0.1:/.") || !slices.Equal(names(t, dir), was) {
			t.Errorf("a dry run: %v, %s; left %q", err, text, names(t, dir))
		}
		if text, err := exec.Command("glance-dtn", append([]string{"tune", "nfs", "--state", state}, next...)...).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, text)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("%q after a killed sweep leaves %q", next, left)
		}
		if text, err := exec.Command("glance-dtn", undo...).CombinedOutput(); err != nil || !strings.Contains(string(text), "nothing to undo") {
			t.Errorf("undo once more: %v, %s", err, text)
		}
	}
}

// A terminal that goes away ends a sweep as SIGTERM does: nothing is left.
func TestASweepThatIsInterruptedLeavesNothing(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("SIGHUP is ignored here, as by nohup")
	}
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		dir, target := exportedDir(t)
		state := t.TempDir()
		cmd := sweeping(t, dir, state, target)
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the exit code says it
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || fmt.Sprint(cmd.Stderr) != "glance-dtn: interrupted\n" {
			t.Errorf("exit code %d after %v: %s", code, s, cmd.Stderr)
		}
		if left := append(names(t, dir), names(t, state)...); !slices.Equal(left, []string{"running"}) {
			t.Errorf("%v leaves %q", s, left)
		}
	}
}

// What was measured before an interrupt is told.
func TestASweepThatIsInterruptedTellsWhatItHas(t *testing.T) {
	dir, target := exportedDir(t)
	table := filepath.Join(t.TempDir(), "a.csv")
	cmd := exec.Command("glance-dtn", "tune", "nfs", target.source, "--way", "probe", "--options", target.options.String(),
		"--size", "1MiB", "--sizes", "64K", "--limit", "0", "--reps", "100000", "--search", "exhaustive", "--csv", table, "--state", t.TempDir())
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	// 17 for a file to read, 16 for each measurement of writes, fewer than 200 before those
	startUntilTimes(t, cmd, dir, unix.IN_CLOSE_WRITE, 600)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code says it
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || fmt.Sprint(cmd.Stderr) != "glance-dtn: interrupted\n" {
		t.Errorf("exit code %d: %s", code, cmd.Stderr)
	}
	for _, want := range []string{"; INCOMPLETE: interrupted\n", "Writes in MB/s", "Written to " + table + "."} {
		if !strings.Contains(stdout.String(), want) || strings.Contains(stdout.String(), "Advice for") {
			t.Errorf("%s\nwant %q, and no advice", &stdout, want)
		}
	}
	if rows, err := os.ReadFile(table); err != nil || strings.Count(string(rows), "\n") < 2 {
		t.Errorf("the CSV has %s, %v", rows, err)
	}
}

// What was put back is told also where something else cannot be.
func TestUndoTellsWhatItHasDone(t *testing.T) {
	dir, target := exportedDir(t)
	state := t.TempDir()
	name := mounted.Prefix + "1"
	if err := errors.Join(os.WriteFile(filepath.Join(dir, name), nil, 0o600), os.WriteFile(filepath.Join(state, "undo.json"), []byte("no record"), 0o600)); err != nil {
		t.Fatal(err)
	}
	l := leftoversOf(t, state)
	if err := errors.Join(l.making(target)(name), l.Close()); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("glance-dtn", "tune", "nfs", "--undo", "--state", state, "-o", "json")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var told struct{ Done []string }
	if err == nil || json.Unmarshal(stdout.Bytes(), &told) != nil || !slices.Equal(told.Done, []string{"Remove " + name + " from 127.0.0.1:/."}) || !strings.Contains(stderr.String(), "undo record") {
		t.Errorf("%v: %s%s", err, &stdout, &stderr)
	}
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// Files that cannot be removed now stay noted, and those of other servers go.
func TestLeftoversOfAServerThatIsAwayStayNoted(t *testing.T) {
	dir, target := exportedDir(t)
	away := nfsTarget{source: "127.0.0.1:/", options: nfs.ParseOptions("port=1,mountport=1")}
	local := nfsTarget{source: "127.0.0.1:/export", dir: t.TempDir(), export: nfs.Options{"rw"}}
	l := leftoversOf(t, t.TempDir())
	defer l.Close()
	for at, in := range map[string]nfsTarget{dir: target, "": away, local.dir: local} {
		name := mounted.Prefix + "1"
		if at != "" {
			if err := os.WriteFile(filepath.Join(at, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.making(in)(name); err != nil {
			t.Fatal(err)
		}
	}
	did, err := l.remove(t.Context(), host.New(l.state))
	if err == nil || !strings.Contains(err.Error(), "--undo tries again") || len(did) != 2 {
		t.Errorf("did %q, %v", did, err)
	}
	if left := append(names(t, dir), names(t, local.dir)...); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	if kept, err := readScratchFiles(l.state); err != nil || len(kept) != 1 || !slices.Equal(kept[0].Options, away.options) {
		t.Errorf("noted %+v, %v, want the one that is away", kept, err)
	}
}

// A file that was not made is not noted; one that cannot be removed is forgotten on demand.
func TestFilesThatWereNotMadeAreNotNoted(t *testing.T) {
	dir, target := exportedDir(t)
	state := t.TempDir()
	l := leftoversOf(t, state)
	if mode, notes := target.server(t.Context(), l); mode != "" || len(names(t, dir)) > 0 {
		t.Errorf("%q, %q; left %q", mode, notes, names(t, dir))
	}
	if all, err := readScratchFiles(state); len(all) > 0 || err != nil {
		t.Errorf("%+v are noted of what was removed, %v", all, err)
	}
	away := nfsTarget{source: "127.0.0.1:/away", options: nfs.ParseOptions("port=1,mountport=1")}
	for _, name := range []string{"a", "b", "c"} {
		if err := l.making(away)(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.gone(away)("b"), l.gone(away)("d"), l.Close()); err != nil {
		t.Fatal(err)
	}
	if all, err := readScratchFiles(state); err != nil || len(all) != 1 || !slices.Equal(all[0].Names, []string{"a", "c"}) {
		t.Errorf("noted %+v, %v, want a and c", all, err)
	}
	text, err := exec.Command("glance-dtn", "tune", "nfs", "--undo", "--state", state).CombinedOutput()
	if err == nil || !strings.Contains(string(text), "with --force it forgets them") {
		t.Errorf("%v: %s", err, text)
	}
	text, err = exec.Command("glance-dtn", "tune", "nfs", "--undo", "--force", "--state", state).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "Forget a in 127.0.0.1:/away.") {
		t.Errorf("%v: %s", err, text)
	}
	if all, err := readScratchFiles(state); len(all) > 0 || err != nil {
		t.Errorf("%+v are noted after --force, %v", all, err)
	}
}

// A server that is away is no fault of a sweep of another one, and is not waited for twice.
func TestASweepGoesOnWhereAnotherServerIsAway(t *testing.T) {
	dir, target := exportedDir(t)
	away := nfsTarget{source: "127.0.0.1:/away", dir: filepath.Join(t.TempDir(), "file"), export: nfs.Options{"rw"}}
	if err := os.WriteFile(away.dir, nil, 0o600); err != nil { // nothing can be removed below a file
		t.Fatal(err)
	}
	state, name := t.TempDir(), mounted.Prefix+"1"
	l := leftoversOf(t, state)
	if err := errors.Join(l.making(away)(name), l.Close()); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("glance-dtn", "tune", "nfs", target.source, "--way", "probe", "--options", target.options.String(), "--size", "1MiB", "--sizes", "64K", "--reps", "1", "--state", state)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || !strings.Contains(stdout.String(), "Files of an earlier sweep are left: remove") {
		t.Errorf("%v: %s%s", err, &stdout, &stderr)
	}
	if kept, err := readScratchFiles(state); err != nil || len(kept) != 1 || kept[0].Dir != away.dir || len(names(t, dir)) > 0 {
		t.Errorf("noted %+v, %v, want the one that is away; left %q", kept, err, names(t, dir))
	}
}

// The export is for a group: the probe has those of its user, as a mount has.
func TestTheProbeHasTheGroupsOfItsUser(t *testing.T) {
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // who often has none
		was := groups
		groups = []int{1066, 1067}
		if err := syscall.Setgroups(groups); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Setgroups(was); err != nil {
				t.Error(err)
			}
		}()
	}
	var want []uint32
	for _, g := range groups[:min(len(groups), 16)] {
		want = append(want, uint32(g))
	}
	if o, err := (nfsTarget{source: "dtn:/export"}).probeOptions(); err != nil || !slices.Equal(o.GIDs, want) {
		t.Errorf("%d, %v, want %d", o.GIDs, err, want)
	}
}

// One file to write to and one to read for each kind of data, whatever the number of
// connections, as README says.
func TestTheProbesShareTheirFiles(t *testing.T) {
	dir, target := exportedDir(t)
	l := leftoversOf(t, t.TempDir())
	defer l.Close()
	f := &nfsTuning{bytes: 1 << 20, left: l, space: nfssweep.Space{NConnect: []int{1, 2, 4}, Data: []nfssweep.Data{nfssweep.Random, nfssweep.Zero}}}
	err := f.byProbe(t.Context(), nil, target, func(measure nfssweep.Measure) error {
		for _, n := range f.space.NConnect {
			for _, op := range []nfssweep.Op{nfssweep.Write, nfssweep.Read} {
				for _, data := range f.space.Data {
					if s, err := measure(t.Context(), nfssweep.Setting{Corner: nfssweep.Corner{Op: op, NConnect: n, Data: data}, Size: 64 << 10}); err != nil || s.Rate <= 0 {
						t.Errorf("%s with %d connections, %s: %+v, %v", op, n, data, s, err)
					}
				}
			}
		}
		if got := names(t, dir); len(got) != 3 {
			t.Errorf("%d files, want 3: %q", len(got), got)
		}
		return nil
	})
	if err != nil || len(names(t, dir)) > 0 {
		t.Errorf("%v; left %q", err, names(t, dir))
	}
}

// A measurement that would take longer than the limit moves less.
func TestTheLimitBoundsWhatIsMoved(t *testing.T) {
	for _, c := range []struct {
		perMiB, limit time.Duration
		want          []int64
	}{
		{time.Second, 0, []int64{64}},
		{time.Second, 64 * time.Second, []int64{4, 64}},
		{time.Second, 63 * time.Second, []int64{4}},
	} {
		var moved []int64
		_, err := bounded(&nfsTuning{bytes: 64 << 20, limit: c.limit}, func(total int64) (time.Duration, error) {
			moved = append(moved, total>>20)
			return time.Duration(total>>20) * c.perMiB, nil
		}, func(d time.Duration) time.Duration { return d })
		if err != nil || !slices.Equal(moved, c.want) {
			t.Errorf("limit %v: moved %d MiB, %v, want %d", c.limit, moved, err, c.want)
		}
	}
}

// The mode of a client or a server becomes async by --accept-async alone.
func TestWhatTheTargetCannotHaveIsRefused(t *testing.T) {
	mount := func(sync bool) nfsTarget {
		target := nfsTarget{source: "dtn:/export", dir: "/mnt", mount: true, granted: nfs.MountOptions{Sync: sync}}
		if sync {
			target.options = nfs.Options{"sync"}
		}
		return target
	}
	exported := nfsTarget{source: "127.0.0.1:/export", dir: "/export", export: nfs.Options{"sync"}}
	both, sync, async := []string{"sync", "async"}, []string{"sync"}, []string{"async"}
	for _, c := range []struct {
		name   string
		target nfsTarget
		flags  nfsTuning
		want   string // in the refusal; empty: there is none
		option string // that --apply adds
	}{
		{"as it is", mount(false), nfsTuning{apply: true}, "", ""},
		{"async to sync", mount(false), nfsTuning{apply: true, clients: sync}, "", "sync"},
		{"both measured", mount(false), nfsTuning{apply: true, clients: both}, "", ""},
		{"sync to async", mount(true), nfsTuning{apply: true, clients: async}, "--apply --client async: /mnt is mounted sync", "async"},
		{"sync to async, only measured", mount(true), nfsTuning{clients: async}, "", "async"},
		{"sync to async, accepted", mount(true), nfsTuning{apply: true, async: true, clients: async}, "", "async"},
		{"sync, both measured", mount(true), nfsTuning{apply: true, clients: both}, "", ""},
		{"nothing to accept", mount(false), nfsTuning{apply: true, async: true, clients: sync}, "--accept-async is for the DTN", "sync"},
		{"a mount's server", mount(false), nfsTuning{servers: both}, "--server: only the DTN itself", ""},
		{"an export", exported, nfsTuning{apply: true, servers: both}, "the export is made async by --accept-async alone", ""},
		{"an export, accepted", exported, nfsTuning{apply: true, async: true, servers: both}, "", ""},
		{"an export, half measured", exported, nfsTuning{apply: true, async: true, servers: async}, "--accept-async: measure both", ""},
		{"a source, accepted", nfsTarget{source: "dtn:/export"}, nfsTuning{async: true}, "--accept-async is for the DTN", ""},
	} {
		err := c.target.allows(c.flags)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if !c.target.mount {
			continue
		}
		want := nfs.Options{"rsize=8192", "wsize=4096"}
		if c.option != "" {
			want = append(want, c.option)
		}
		if w := c.target.wishes(&c.flags, nfssweep.Advice{RSize: 8192, WSize: 4096}); len(w) != 1 || !slices.Equal(w[0].Options, want) {
			t.Errorf("%s: wishes %v, want %v", c.name, w, want)
		}
	}
}

// An export is not changed where exportfs does not tell all of it.
func TestTheServerHasToRun(t *testing.T) {
	table := filepath.Join(t.TempDir(), "exports")
	if err := serverRuns(table); err == nil || !strings.Contains(err.Error(), "start it first") {
		t.Errorf("without a server: %v", err)
	}
	if err := errors.Join(os.WriteFile(table, nil, 0o600), serverRuns(table)); err != nil {
		t.Error(err)
	}
}

// The probe, which speaks NFS 3, asks for the port of a server that is mounted with 4.
func TestTheProbeDoesNotTakeThePortOfVersion4(t *testing.T) {
	for options, want := range map[string]int{"vers=4.2": 0, "vers=3": 0, "vers=3,port=2050": 2050} {
		if o, err := (nfsTarget{source: "dtn:/export", options: nfs.ParseOptions(options)}).probeOptions(); err != nil || o.NFSPort != want {
			t.Errorf("%s: port %d, %v, want %d", options, o.NFSPort, err, want)
		}
	}
}

func TestTheLargestFileIsSoughtForABoundedTime(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int64{"a": enough, "b": enough + 1, "c": 0} {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), nil, 0o600), os.Truncate(filepath.Join(dir, name), size)); err != nil {
			t.Fatal(err)
		}
	}
	if name, err := largest(t.Context(), dir); err != nil || filepath.Base(name) != "b" {
		t.Errorf("%s, %v, want b", name, err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if name, err := largest(over, dir); err == nil || !strings.Contains(err.Error(), "no readable file of 16.0 MiB or more was found") {
		t.Errorf("after the time is over: %s, %v", name, err)
	}
}

// An interrupt hides no failure to put something back.
func TestBesidesAnInterrupt(t *testing.T) {
	end, fault := errors.New("signal"), errors.New("the export is still async")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"nothing", fmt.Errorf("write 8K: %w", end), ""},
		{"only the context", errors.Join(fmt.Errorf("write 8K: %w", end), context.Canceled), ""},
		{"a fault", errors.Join(fmt.Errorf("write 8K: %w", end), fmt.Errorf("put back: %w", fault)), "put back: the export is still async"},
		{"a fault in one line", fmt.Errorf("%w; and not everything could be put back: %w", end, fault), "the export is still async"},
	} {
		got := ""
		if err := besides(end, c.err); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
