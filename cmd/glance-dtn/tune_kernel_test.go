package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/nfs/mounted"
	"github.com/glance-dtn/glance-dtn/tuning/nfssweep"
)

// tuneNFS runs the command on the machine and returns what it found.
func tuneNFS(t testing.TB, m *guest.Machine, args ...string) tuned {
	t.Helper()
	var out tuned
	text := m.Run(t, os.Getenv("GLANCE_DTN"), append([]string{"tune", "nfs", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

// exported returns whether the server's export is sync or async.
func exported(t *testing.T, s *guest.Server) string {
	t.Helper()
	text := s.Run(t, "exportfs", "-v")
	if strings.Contains(text, "(async,") {
		return "async"
	}
	return "sync"
}

// left fails if a sweep has left files in the export or mounts.
func left(t *testing.T, s *guest.Server, state string) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), mounted.Prefix) || strings.HasPrefix(e.Name(), ".glance-dtn-probe-") {
			t.Errorf("%s was left", e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || strings.Contains(string(mounts), state) {
		t.Errorf("a scratch mount was left (%v):\n%s", err, mounts)
	}
}

// TestKernelTuneNFS runs tune nfs as root, on real mounts and exports.
func TestKernelTuneNFS(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	t.Run("four corners", func(t *testing.T) { fourCorners(t, server) })
	t.Run("accept async", func(t *testing.T) { acceptAsync(t, server) })
	t.Run("apply and undo", func(t *testing.T) { applyAndUndo(t, server) })
	t.Run("another mode of the client", func(t *testing.T) { anotherMode(t, server) })
	t.Run("killed", func(t *testing.T) { killed(t, server) })
	t.Run("live", func(t *testing.T) { live(t, server) })
	t.Run("squashed", func(t *testing.T) { squashed(t, server) })
}

// fourCorners runs the whole experiment on the DTN, small.
func fourCorners(t *testing.T, server *guest.Server) {
	state, files := t.TempDir(), t.TempDir()
	csv, svg := filepath.Join(files, "sweep.csv"), filepath.Join(files, "sweep.svg")
	out := tuneNFS(t, server.Machine, server.Dir, "--way", "scratch", "--server", "sync,async", "--client", "sync,async",
		"--sizes", "64K", "--size", "1MiB", "--reps", "1", "--search", "exhaustive", "--options", "vers=3,nolock",
		"--state", state, "--csv", csv, "--svg", svg)
	if out.Server != nfssweep.Sync || out.Client != nfssweep.Async {
		t.Errorf("server %q, client %q in force, want sync, async", out.Server, out.Client)
	}
	corners := map[nfssweep.Corner]bool{}
	for _, c := range out.Curves {
		corners[c.Corner] = true
		for _, p := range c.Points {
			if len(p.Rates) != 1 || !slices.Equal(p.Asked, []int64{p.Size}) {
				t.Errorf("%v, %d bytes: %d rates, asked for %d", c.Corner, p.Size, len(p.Rates), p.Asked)
			}
		}
	}
	if len(corners) != 8 {
		t.Errorf("%d corners, want 2 × 2 of writes and of reads: %v", len(corners), corners)
	}
	if out.Advice.RSize == 0 || out.Advice.WSize == 0 || !strings.Contains(strings.Join(out.Advice.Says, " "), "async acknowledges what its disk has not got") {
		t.Errorf("advice %+v", out.Advice)
	}
	rows, err := os.ReadFile(csv)
	if n := strings.Count(string(rows), "\n"); err != nil || n != 1+8 {
		t.Errorf("the CSV has %d lines, %v, want a header and %d", n, err, 8)
	}
	if drawn, err := os.ReadFile(svg); err != nil || !strings.HasPrefix(string(drawn), "<svg") {
		t.Errorf("the plot: %v", err)
	}
	if got := exported(t, server); got != "sync" {
		t.Errorf("the export is %s after the sweep, was sync", got)
	}
	left(t, server, state)
}

// acceptAsync has the export become async if, and only if, that was faster.
func acceptAsync(t *testing.T, server *guest.Server) {
	state := t.TempDir()
	out := tuneNFS(t, server.Machine, server.Dir, "--way", "scratch", "--server", "sync,async", "--client", "sync",
		"--sizes", "4K", "--size", "1MiB", "--reps", "2", "--options", "vers=3,nolock", "--state", state, "--apply", "--accept-async")
	want := "sync"
	if out.Advice.AsyncGain > 0.05 {
		want = "async"
	}
	if got := exported(t, server); got != want || len(out.Applied) != len(out.Changes) || (len(out.Changes) == 1) != (want == "async") {
		t.Errorf("the export is %s, %d changes, %d applied, async gains %.2f", got, len(out.Changes), len(out.Applied), out.Advice.AsyncGain)
	}
	server.Run(t, os.Getenv("GLANCE_DTN"), "tune", "nfs", "--undo", "--state", state)
	if got := exported(t, server); got != "sync" {
		t.Errorf("the export is %s after undo, was sync", got)
	}
	left(t, server, state)
}

// applyAndUndo has a mount take the advice, and lose it again.
func applyAndUndo(t *testing.T, server *guest.Server) {
	state := t.TempDir()
	dir := server.Mount(t, server.Source(), "vers=3,nolock,port=2049,mountport=20048,rsize=1024,wsize=1024")
	sizes := func() []string {
		return slices.DeleteFunc(server.MountOptions(t, dir), func(o string) bool {
			return !strings.HasPrefix(o, "rsize=") && !strings.HasPrefix(o, "wsize=")
		})
	}
	small := []string{"rsize=1024", "wsize=1024"}
	sweep := []string{dir, "--sizes", "64K", "--size", "2MiB", "--reps", "1", "--state", state, "--search", "exhaustive"}

	out := tuneNFS(t, server.Machine, append(sweep, "--dry-run")...)
	if len(out.Changes) != 1 || len(out.Applied) != 0 || !slices.Equal(sizes(), small) {
		t.Errorf("a dry run: %d changes, %d applied, %q", len(out.Changes), len(out.Applied), sizes())
	}
	out = tuneNFS(t, server.Machine, append(sweep, "--apply", "--way", "probe")...)
	want := []string{"rsize=" + strconv.FormatInt(out.Advice.RSize, 10), "wsize=" + strconv.FormatInt(out.Advice.WSize, 10)}
	if len(out.Applied) != 1 || !slices.Equal(sizes(), want) {
		t.Errorf("applied %+v: mounted with %q, want %q", out.Applied, sizes(), want)
	}
	server.Run(t, os.Getenv("GLANCE_DTN"), "tune", "nfs", "--undo", "--dry-run", "--state", state)
	if !slices.Equal(sizes(), want) {
		t.Errorf("a dry run has undone it: %q", sizes())
	}
	server.Run(t, os.Getenv("GLANCE_DTN"), "tune", "nfs", "--undo", "--state", state)
	if !slices.Equal(sizes(), small) {
		t.Errorf("mounted with %q after undo, want %q", sizes(), small)
	}
	if text := server.Run(t, os.Getenv("GLANCE_DTN"), "tune", "nfs", "--undo", "--state", state); !strings.Contains(text, "nothing to undo") {
		t.Errorf("a second undo: %q", text)
	}

	covered := t.TempDir()
	for _, mount := range [][]string{{"-t", "tmpfs", "tmpfs"}, {"--bind", dir}} {
		server.Run(t, "mount", append(mount, covered)...)
		defer server.Run(t, "umount", covered)
	}
	refused, err := server.Command(t.Context(), os.Getenv("GLANCE_DTN"), append([]string{"tune", "nfs", covered, "--apply"}, sweep[1:]...)...).CombinedOutput()
	if err == nil || !strings.HasPrefix(string(refused), "glance-dtn: tmpfs of type tmpfs is mounted at "+covered+" too") {
		t.Errorf("a mount that cannot be changed is not refused before the sweep: %v, %s", err, refused)
	}
	left(t, server, state)
}

// anotherMode has a mount become sync, because that is what was measured, and async again.
func anotherMode(t *testing.T, server *guest.Server) {
	state := t.TempDir()
	dir := server.Mount(t, server.Source(), "vers=3,nolock,port=2049,mountport=20048")
	isSync := func() bool { return slices.Contains(server.MountOptions(t, dir), "sync") }
	sweep := []string{dir, "--way", "probe", "--sizes", "64K", "--size", "1MiB", "--reps", "1", "--state", state, "--apply"}
	out := tuneNFS(t, server.Machine, append(sweep, "--client", "sync")...)
	if !isSync() || !strings.Contains(strings.Join(out.Notes, " "), "The advice is for a mount that is sync") {
		t.Errorf("mounted sync: %v, notes %q", isSync(), out.Notes)
	}
	refused := server.Command(t.Context(), os.Getenv("GLANCE_DTN"), append([]string{"tune", "nfs", "--client", "async"}, sweep...)...)
	if text, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(text), "say --accept-async") || !isSync() {
		t.Errorf("async without a word: %v, %s; mounted sync: %v", err, text, isSync())
	}
	tuneNFS(t, server.Machine, append(sweep, "--client", "async", "--accept-async")...)
	if isSync() {
		t.Error("mounted sync after --accept-async")
	}
	server.Run(t, os.Getenv("GLANCE_DTN"), "tune", "nfs", "--undo", "--state", state)
	left(t, server, state)
}

// killed has --undo, and the next sweep, clear away a mount, files and the mode of the
// export that a sweep had when it was killed.
func killed(t *testing.T, server *guest.Server) {
	again := []string{server.Dir, "--way", "scratch", "--server", "async", "--sizes", "64K", "--size", "1MiB", "--limit", "0", "--options", "vers=3,nolock"}
	for _, next := range [][]string{{"--undo"}, append(again, "--reps", "1")} {
		state := t.TempDir()
		cmd := server.Command(t.Context(), os.Getenv("GLANCE_DTN"), append(append([]string{"tune", "nfs"}, again...), "--reps", "100000", "--state", state)...)
		startUntil(t, cmd, server.Dir, unix.IN_DELETE) // of a file that was written: the export is async
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if entries, err := os.ReadDir(server.Dir); exported(t, server) != "async" || err != nil || len(entries) == 0 {
			t.Errorf("a sweep that was killed has left the export %s and %d files (%v): this test shows nothing", exported(t, server), len(entries), err)
		}
		server.Run(t, os.Getenv("GLANCE_DTN"), append([]string{"tune", "nfs", "--state", state}, next...)...)
		if got := exported(t, server); got != "sync" {
			t.Errorf("the export is %s after %q, was sync", got, next)
		}
		left(t, server, state)
	}
}

// squashed says why root may not measure, and what to do.
func squashed(t *testing.T, server *guest.Server) {
	server.Export(t, "sync,root_squash")
	t.Cleanup(func() { server.Export(t, "sync") })
	for _, way := range []string{"probe", "scratch"} {
		state := t.TempDir()
		text, err := server.Command(t.Context(), os.Getenv("GLANCE_DTN"), "tune", "nfs", server.Source(), "--way", way, "--options", "vers=3,nolock", "--state", state).CombinedOutput()
		if err == nil || !strings.Contains(string(text), "makes nobody of root (root_squash)") || strings.Contains(string(text), "--undo") {
			t.Errorf("%s: %v, %s", way, err, text)
		}
		if noted, err := readScratchFiles(state); err != nil || len(noted) > 0 {
			t.Errorf("%s: noted %+v, %v, want nothing: nothing was made", way, noted, err)
		}
	}
}

// live reads through the mount that is there, which is read-only.
func live(t *testing.T, server *guest.Server) {
	if err := os.WriteFile(filepath.Join(server.Dir, "image"), make([]byte, 20<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := server.Mount(t, server.Source(), "vers=3,nolock,rsize=32768,ro")
	out := tuneNFS(t, server.Machine, dir, "--way", "live", "--state", t.TempDir())
	if len(out.Curves) != 1 || out.Curves[0].Op != nfssweep.Read || out.Curves[0].Knee != 32<<10 || len(out.Curves[0].Points[0].Rates) != 3 {
		t.Errorf("%+v, want three reads of 32768", out.Curves)
	}
	if len(out.Advice.Says) != 0 {
		t.Errorf("advice %q of one size", out.Advice.Says)
	}
}

// BenchmarkKernelSweep is the experiment of rsize and wsize from 1 KiB to 1 MiB in all
// four corners of sync and async, on the kernel's server and client, in the files
// table, sweep.csv and sweep.svg: with the smart search, and then exhaustive.
func BenchmarkKernelSweep(b *testing.B) {
	guest.Need(b)
	server := guest.Here().Serve(b, "sync")
	for b.Loop() {
		for _, search := range []string{"smart", "exhaustive"} {
			dir := filepath.Join(os.Getenv("RESULTS"), search)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			cmd := server.Command(b.Context(), os.Getenv("GLANCE_DTN"), "tune", "nfs", server.Dir, "--way", "scratch",
				"--server", "sync,async", "--client", "sync,async", "--search", search, "--size", "64MiB", "--limit", "1s",
				"--options", "vers=3,nolock", "--state", b.TempDir(), "--csv", filepath.Join(dir, "sweep.csv"), "--svg", filepath.Join(dir, "sweep.svg"))
			cmd.Stderr = os.Stderr
			table, err := cmd.Output()
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "table"), table, 0o644)
			}
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(time.Since(start).Seconds(), "s/"+search)
		}
	}
}

// BenchmarkKernelAdvice has the smart search and the exhaustive sweep take turns, ten
// times, and compares what each search advises with the best size of all the exhaustive
// sweeps together: which rate their median gives the advised size, as a share of that of
// the fastest. The file advice has a line for each.
func BenchmarkKernelAdvice(b *testing.B) {
	guest.Need(b)
	const repetitions = 10
	server := guest.Here().Serve(b, "sync")
	for b.Loop() {
		rates := map[nfssweep.Op]map[int64][]float64{nfssweep.Write: {}, nfssweep.Read: {}}
		var advised []nfssweep.Curve
		for i := range repetitions {
			for _, search := range []string{"exhaustive", "smart"} {
				out := tuneNFS(b, server.Machine, server.Dir, "--way", "scratch", "--server", "sync", "--client", "async",
					"--search", search, "--seed", strconv.Itoa(i), "--size", "64MiB", "--limit", "1s",
					"--options", "vers=3,nolock", "--state", b.TempDir())
				for _, c := range out.Curves {
					if search == "smart" {
						advised = append(advised, c)
						continue
					}
					for _, p := range c.Points {
						rates[c.Op][p.Size] = append(rates[c.Op][p.Size], p.Rates...)
					}
				}
			}
		}
		median := func(op nfssweep.Op, size int64) float64 {
			all := slices.Sorted(slices.Values(rates[op][size]))
			return all[len(all)/2]
		}
		var table strings.Builder
		good := map[nfssweep.Op]int{}
		for _, c := range advised {
			var best float64
			for size := range rates[c.Op] {
				best = max(best, median(c.Op, size))
			}
			share := median(c.Op, c.Knee) / best
			if share >= 0.95 {
				good[c.Op]++
			}
			fmt.Fprintf(&table, "%-5v  advised %7d  sure %-5v  %.2f of the best\n", c.Op, c.Knee, c.Sure, share)
		}
		for _, op := range []nfssweep.Op{nfssweep.Write, nfssweep.Read} {
			for _, size := range slices.Sorted(maps.Keys(rates[op])) {
				fmt.Fprintf(&table, "%-5v  %7d  %4.0f MB/s\n", op, size, median(op, size)/8e6)
			}
			b.ReportMetric(float64(good[op]), fmt.Sprintf("%vs-within-5%%", op))
		}
		if err := errors.Join(os.MkdirAll(os.Getenv("RESULTS"), 0o755),
			os.WriteFile(filepath.Join(os.Getenv("RESULTS"), "advice"), []byte(table.String()), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
}
