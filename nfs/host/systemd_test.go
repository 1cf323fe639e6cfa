package host_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
)

// sourceUnderSystemd names, in the environment of TestUnderSystemd, what to mount.
const sourceUnderSystemd = "GLANCE_DTN_TEST_SOURCE"

// TestKernelSystemd boots a systemd as the first process of a machine, and has it
// make the mounts.
func TestKernelSystemd(t *testing.T) {
	guest.Need(t)
	dtn, ctrl := guest.NewMachine(t, "dtn"), guest.NewMachine(t, "ctrl")
	guest.Connect(t, dtn, "10.0.0.1/24", ctrl, "10.0.0.2/24")
	server := dtn.Serve(t, "sync")
	ctrl.Run(t, "mount", "-t", "cgroup2", "none", "/sys/fs/cgroup")
	ctrl.Run(t, "modprobe", "autofs4")
	// Nothing that the host has installed: a daemon-reload reads all of it, and the guest is slow.
	for _, dir := range []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/usr/lib/systemd/system-generators"} {
		ctrl.Run(t, "mkdir", "-p", dir)
		ctrl.Run(t, "mount", "-t", "tmpfs", "tmpfs", dir)
	}
	write(t, ctrl.Path("/etc/systemd/system/test.target"), "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n")
	systemd := exec.Command("unshare", "--mount", "--mount-proc", "env", "container=test", "/lib/systemd/systemd", "--unit=test.target", "--show-status=false", "--log-target=kmsg")
	systemd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	ctrl.Within(t, func() {
		if err := systemd.Start(); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	t.Cleanup(func() {
		_ = systemd.Process.Kill()
		_ = systemd.Wait()
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	inside := func(command ...string) *exec.Cmd {
		enter := []string{"--target", strconv.Itoa(systemd.Process.Pid), "--pid", "--mount", "--net", "--uts", "--"}
		return exec.CommandContext(ctx, "nsenter", append(enter, command...)...)
	}
	for end := time.Now().Add(time.Minute); inside("systemctl", "is-active", "--quiet", "test.target").Run() != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			out, err := inside("systemctl", "status", "--no-pager").CombinedOutput()
			t.Fatalf("systemd is not up after a minute: %v: %s", err, out)
		}
	}
	test := inside(self, "-test.run=^TestUnderSystemd$", "-test.v")
	test.Env = append(test.Environ(), sourceUnderSystemd+"="+server.Source())
	out, err := test.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUnderSystemd") {
		t.Errorf("the test under systemd: %v", err)
	}
}

// TestUnderSystemd is what TestKernelSystemd runs under that systemd.
func TestUnderSystemd(t *testing.T) {
	source := os.Getenv(sourceUnderSystemd)
	if source == "" {
		t.Skip("TestKernelSystemd runs it")
	}
	const dir = "/srv/mnt-dtn 1"
	unit := host.UnitName(dir)
	h := host.New("/run/glance-dtn-test")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	now := func() (nfs.Options, host.State) {
		t.Helper()
		s, err := h.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.At(dir)
		if err != nil {
			t.Fatal(err)
		}
		return m.Again(), s
	}
	ours := func() []string {
		t.Helper()
		var files []string
		for _, pattern := range []string{"/etc/systemd/system/*mnt*", "/etc/systemd/system/*/*mnt*"} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, found...)
		}
		return files
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The operator's own unit, as systemd makes one of a line of fstab too; then none.
	operators := filepath.Join("/run/systemd/system", unit)
	const options = "vers=3,nolock,rsize=32768,wsize=32768,_netdev,nofail,retry=1,x-glance-dtn.test=50%%"
	ordered := func() string { return run("systemctl", "show", "--property=Before", unit) }
	write(t, operators, "[Mount]\nWhat="+source+"\nWhere="+dir+"\nType=nfs\nOptions="+options+"\n")
	run("systemctl", "daemon-reload")
	run("systemctl", "start", unit)
	if strings.Contains(ordered(), "remote-fs.target") {
		t.Errorf("%s although it has nofail", ordered())
	}
	for _, file := range []string{"/etc/systemd/system/" + unit + ".d/zz-glance-dtn.conf", "/etc/systemd/system/" + unit} {
		byHand := !strings.HasSuffix(file, ".conf")
		before, s := now()
		if !byHand {
			if got := s.Units[dir].Options.String(); got != options {
				t.Errorf("the unit mounts with %s, want %s", got, options)
			}
			// A mount that does not come about, and is not waited for.
			hurry, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			_, err := h.Apply(hurry, planned(t, h, host.Wish{Mount: dir, Options: nfs.Options{"port=1"}}), host.Options{})
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "everything is as it was") {
				t.Errorf("a mount that hangs: %v", err)
			}
			if jobs := run("systemctl", "list-jobs", "--no-legend"); jobs != "" {
				t.Errorf("systemd goes on with %s", jobs)
			}
			if got, _ := now(); !slices.Equal(got, before) {
				t.Errorf("it has %s, want %s", got, before)
			}
		}
		if !s.Systemd || s.Units[dir].Ours || (s.Units[dir].Path == "") != byHand {
			t.Fatalf("systemd %v, unit %+v", s.Systemd, s.Units[dir])
		}
		if r := applied(t, h, host.Wish{Mount: dir, Options: nfs.Options{"rsize=8192"}}, host.Options{}); r.File != file {
			t.Errorf("the change is in %s, want %s", r.File, file)
		}
		if got, s := now(); !slices.Contains(got, "rsize=8192") || s.Units[dir].Ours != byHand {
			t.Errorf("it has %s, unit %+v", got, s.Units[dir])
		}
		if byHand {
			run("systemctl", "enable", unit)
			if c := planned(t, h, host.Wish{Mount: dir, Options: nfs.Options{"rsize=16384"}}); !c[0].Lasts {
				t.Errorf("planned %+v, want it to last, as the unit is enabled", c)
			}
		} else { // what a boot would do
			if strings.Contains(ordered(), "remote-fs.target") {
				t.Errorf("%s: nofail is lost", ordered())
			}
			if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), ",_netdev,nofail,retry=1,x-glance-dtn.test=50%%\n") {
				t.Errorf("%s has %q, %v", file, text, err)
			}
			run("systemctl", "restart", unit)
			if got, _ := now(); !slices.Contains(got, "rsize=8192") {
				t.Errorf("after a restart of the unit it has %s", got)
			}
			if err := os.Remove(operators); err != nil {
				t.Fatal(err)
			}
		}
		undone(t, h)
		if got, s := now(); !slices.Equal(got, before) || s.Units[dir].Path != "" || len(ours()) > 0 {
			t.Errorf("undone, it has %s, want %s; unit %+v, files %q", got, before, s.Units[dir], ours())
		}
	}
	if state := run("systemctl", "is-active", unit); state != "active" {
		t.Errorf("the unit is %s", state)
	}
	run("umount", dir)

	// x-systemd.automount, which mounts what is used, while it is used.
	write(t, operators, "[Mount]\nWhat="+source+"\nWhere="+dir+"\nType=nfs\nOptions="+options+"\n")
	automount := strings.TrimSuffix(unit, ".mount") + ".automount"
	write(t, filepath.Join("/run/systemd/system", automount), "[Automount]\nWhere="+dir+"\n")
	run("systemctl", "daemon-reload")
	run("systemctl", "start", automount)
	if s, err := h.Read(t.Context()); err != nil {
		t.Error(err)
	} else if _, err := s.At(dir); err == nil || !strings.Contains(err.Error(), "use it once") {
		t.Errorf("an automount that was not used: %v", err)
	}
	use := func() {
		t.Helper()
		if _, err := os.ReadDir(dir); err != nil {
			t.Error(err)
		}
	}
	use()
	before, _ := now()
	applied(t, h, host.Wish{Mount: dir, Options: nfs.Options{"rsize=8192"}}, host.Options{})
	for range 2 {
		if got, _ := now(); !slices.Contains(got, "rsize=8192") {
			t.Errorf("automounted, it has %s", got)
		}
		run("umount", dir)
		use()
	}
	undone(t, h)
	if got, _ := now(); !slices.Equal(got, before) || len(ours()) > 0 {
		t.Errorf("undone, it has %s, want %s; files %q", got, before, ours())
	}
	if state := run("systemctl", "is-active", automount); state != "active" {
		t.Errorf("the automount is %s", state)
	}
	run("systemctl", "stop", automount)
}
