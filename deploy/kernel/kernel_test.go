package kernel

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	linux   = "/usr/bin/linux.uml"
	modules = "/usr/lib/uml/modules"
	memory  = "1G"
	disks   = 2       // as package guest has them
	disk    = 4 << 30 // sparse
	// When a guest is killed; what runs in it ends by itself a minute before. The
	// longest, that of cmd/glance-dtn, may take four where the host has other work.
	tooLong      = 20 * time.Minute
	tooLongBench = 45 * time.Minute
)

// TestGuests runs, for each package whose tests import package guest, its
// TestKernel tests in a guest.
func TestGuests(t *testing.T) {
	need(t)
	found := output(t, "../..", "go", "list", "-f", `{{range .TestImports}}{{$.ImportPath}} {{$.Dir}} {{.}}
{{end}}{{range .XTestImports}}{{$.ImportPath}} {{$.Dir}} {{.}}
{{end}}`, "./...")
	ran := 0
	binary := filepath.Join(t.TempDir(), "glance-dtn")
	output(t, "../..", "go", "build", "-o", binary, "./cmd/glance-dtn")
	const longest = "/deploy/kernel/world " // begins first, or the others have ended long before
	lines := strings.SplitAfter(found, "\n")
	slices.SortStableFunc(lines, func(a, b string) int {
		return cmp.Compare(strings.Index(b, longest), strings.Index(a, longest))
	})
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) == 3 && strings.HasSuffix(f[2], "/deploy/kernel/guest") {
			ran++
			t.Run(strings.TrimPrefix(f[0], "github.com/glance-dtn/glance-dtn/"), func(t *testing.T) { inGuest(t, f[0], f[1], binary) })
		}
	}
	if ran == 0 {
		t.Errorf("no package has tests for the guest; go list said:\n%s", found)
	}
}

// need skips where nothing real is asked for, and fails where a guest cannot run.
func need(t testing.TB) {
	t.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs user-mode-linux and root; `make test-kernel` runs it")
	}
	if os.Geteuid() != 0 {
		t.Fatal("a guest has the rights of the user who boots it: run `make test-kernel` as root")
	}
	for _, name := range []string{linux, "/usr/sbin/rpc.nfsd", "/usr/sbin/mount.nfs", "/usr/sbin/rpcbind", "/usr/sbin/ethtool", "/usr/sbin/mkfs.xfs"} {
		if _, err := os.Stat(name); err != nil {
			t.Fatalf("%v: `make test-kernel` installs it", err)
		}
	}
}

// BenchmarkGuests runs the benchmarks of cmd/glance-dtn each in a guest of its own, and
// puts the files that they make into dist/nfs.
func BenchmarkGuests(b *testing.B) {
	need(b)
	dir, err := filepath.Abs("../../cmd/glance-dtn")
	if err != nil {
		b.Fatal(err)
	}
	results := filepath.Join("..", "..", "dist", "nfs")
	if err := os.RemoveAll(results); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"Sweep", "Advice"} {
		b.Run(name, func(b *testing.B) {
			work := b.TempDir()
			output(b, dir, "go", "build", "-o", filepath.Join(work, "glance-dtn"), ".")
			binary := filepath.Join(work, "test")
			output(b, dir, "go", "test", "-c", "-o", binary, ".")
			for b.Loop() {
				console, err := boot(b, work, tooLongBench, "RUN=BenchmarkKernel"+name, "WORK="+work, "BINARY="+binary, "DIR="+dir, "MODULES="+modules)
				said, _ := os.ReadFile(filepath.Join(work, "output"))
				if status, _ := os.ReadFile(filepath.Join(work, "status")); strings.TrimSpace(string(status)) != "0" {
					b.Fatalf("the benchmark ended with status %q: %v\n%s\nthe guest's console:\n%s", status, err, said, console)
				}
				_, report, _ := bytes.Cut(said, []byte("cpu: ")) // before it the daemons spoke
				b.Logf("%s", report)
			}
			if err := os.CopyFS(results, os.DirFS(filepath.Join(work, "results"))); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// output runs a command that has to succeed.
func output(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("%s: %v\n%s", cmd, err, ee.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// inGuest runs the TestKernel tests of the package in dir.
func inGuest(t *testing.T, pkg, dir, glanceDTN string) {
	t.Parallel() // a guest has one processor, and waits most of its time
	work := t.TempDir()
	if err := os.Link(glanceDTN, filepath.Join(work, "glance-dtn")); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(work, "test")
	output(t, dir, "go", "test", "-c", "-o", binary, ".")
	console, err := boot(t, work, tooLong, "RUN=tests", "WORK="+work, "BINARY="+binary, "DIR="+dir, "MODULES="+modules)
	said, _ := os.ReadFile(filepath.Join(work, "output")) // none when the guest did not come so far
	status, statusErr := os.ReadFile(filepath.Join(work, "status"))
	results, rest := parse(t, pkg, said)
	for _, r := range results {
		t.Run(r.name, func(t *testing.T) { r.report(t) })
	}
	switch {
	case errors.Is(statusErr, fs.ErrNotExist):
		t.Errorf("the guest did not end its tests: %v\n%s\nits console:\n%s", err, rest, console)
	case strings.TrimSpace(string(status)) != "0" && !t.Failed():
		t.Errorf("the tests ended with status %s:\n%s\nthe guest's console:\n%s", status, rest, console)
	case len(results) == 0:
		t.Errorf("%s imports package guest and has no test named TestKernel", pkg)
	}
}

// boot runs a guest until it powers off and returns what its console said. No
// process of it outlives timeout(1), the first of its namespace of process ids,
// which does not outlive this process.
func boot(t testing.TB, work string, limit time.Duration, words ...string) (console []byte, err error) {
	t.Helper()
	init, err := filepath.Abs("init")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"mem=" + memory, "umid=guest", "uml_dir=" + work + "/", "quiet", "selinux=0", "con=null", "con0=null,fd:1", "ssl=null",
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + init,
	}
	for i := range disks {
		image := filepath.Join(work, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, disk); err != nil {
			t.Fatal(err)
		}
		args = append(args, fmt.Sprintf("ubd%d=%s", i, image))
	}
	args = append(args, fmt.Sprintf("TIMEOUT=%v", limit-time.Minute))
	cmd := exec.CommandContext(t.Context(), "timeout", slices.Concat(
		[]string{"--signal=KILL", fmt.Sprintf("%.0f", limit.Seconds()), linux}, args, words)...)
	cmd.Dir = work
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	start := time.Now()
	console, err = cmd.CombinedOutput()
	took := time.Since(start)
	if p := cmd.ProcessState; p != nil {
		t.Logf("the guest ran for %.1f s, %.1f s of them on a processor", took.Seconds(), (p.UserTime() + p.SystemTime()).Seconds())
	}
	if took >= limit {
		err = fmt.Errorf("it was killed after %v: %w", limit, err)
	}
	return console, err
}

// result is what became of one test in the guest, its subtests included.
type result struct {
	name, action string
	output       strings.Builder
}

func (r *result) report(t *testing.T) {
	t.Logf("in the guest: %s\n%s", r.action, r.output.String())
	if r.action != "pass" {
		t.Fail() // in the guest nothing is missing, so nothing is skipped either
	}
}

// parse returns the tests of a binary that ran with -test.v=test2json, in their
// order, and what it said outside of them.
func parse(t *testing.T, pkg string, said []byte) (results []*result, rest string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "test2json", "-p", pkg)
	cmd.Stdin = bytes.NewReader(said)
	events, err := cmd.Output()
	if err != nil {
		t.Fatalf("test2json: %v", err)
	}
	var outside strings.Builder
	for d := json.NewDecoder(bytes.NewReader(events)); d.More(); {
		var e struct{ Action, Test, Output string }
		if err := d.Decode(&e); err != nil {
			t.Fatalf("test2json: %v", err)
		}
		if e.Test == "" {
			outside.WriteString(e.Output)
			continue
		}
		name, sub, isSub := strings.Cut(e.Test, "/")
		i := slices.IndexFunc(results, func(r *result) bool { return r.name == name })
		if i < 0 {
			i = len(results)
			results = append(results, &result{name: name, action: "did not end"})
		}
		r := results[i]
		r.output.WriteString(e.Output)
		switch {
		case e.Action == "skip":
			r.action = strings.TrimSpace("skip " + sub)
		case !isSub && (e.Action == "pass" || e.Action == "fail") && !strings.HasPrefix(r.action, "skip"):
			r.action = e.Action
		}
	}
	return results, outside.String()
}

func TestParse(t *testing.T) {
	const mark = "\x16" // as -test.v=test2json has it
	results, rest := parse(t, "p", []byte("daemon: hello\n"+
		mark+"=== RUN   TestA\n"+mark+"=== RUN   TestA/x\n    a_test.go:1: why\n"+
		mark+"--- PASS: TestA/x (0.10s)\n"+mark+"--- PASS: TestA (0.20s)\n"+
		mark+"=== RUN   TestB\n"+mark+"--- FAIL: TestB (0.00s)\n"+
		mark+"=== RUN   TestC\n"+mark+"=== RUN   TestC/x\n"+mark+"--- SKIP: TestC/x (0.00s)\n"+mark+"--- PASS: TestC (0.00s)\n"+
		mark+"=== RUN   TestD\n"))
	var got []string
	for _, r := range results {
		got = append(got, r.name+": "+r.action)
	}
	want := []string{"TestA: pass", "TestB: fail", "TestC: skip x", "TestD: did not end"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if said := results[0].output.String(); !strings.Contains(said, "why") {
		t.Errorf("TestA said %q, want what its subtest said too", said)
	}
	if !strings.Contains(rest, "hello") {
		t.Errorf("outside of the tests: %q, want what a daemon said", rest)
	}
}
