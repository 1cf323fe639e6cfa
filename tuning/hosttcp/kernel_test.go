package hosttcp_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/tuning/hosttcp"
)

// everywhere are files that no network namespace has.
var everywhere = []string{
	"core/rmem_max", "core/wmem_max", "core/default_qdisc", "core/netdev_max_backlog", "core/netdev_budget", "core/netdev_budget_usecs",
	"ipv4/tcp_mem", "ipv4/tcp_allowed_congestion_control",
}

// TestKernelAWholeHost is set and put back with modules that are loaded by it.
func TestKernelAWholeHost(t *testing.T) {
	guest.Need(t)
	h := hosttcp.New(t.TempDir())
	before := map[string]string{}
	for _, file := range append(everywhere, inNamespace...) {
		before[file] = sysctl(t, file)
	}
	changes := plan(t, h, far, hosttcp.Options{})
	done, err := h.Apply(t.Context(), changes)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range done {
		t.Logf("%s: %q, %s", c.Key, c.To, c.Status)
		if c.Status != hosttcp.Set && c.Status != hosttcp.Kept {
			t.Errorf("%+v, want it set", c)
		}
	}
	for file, want := range map[string]string{
		"ipv4/tcp_congestion_control": "bbr\n", "core/default_qdisc": "fq\n", "core/netdev_max_backlog": "25000\n",
	} {
		if got := sysctl(t, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := sysctl(t, "ipv4/tcp_allowed_congestion_control"); !strings.Contains(got, "bbr") {
		t.Errorf("%q is allowed", got)
	}
	// What the host's next start does. procps asks for the settings one by one, in the file's order.
	for file, text := range before {
		guest.Here().Run(t, "sysctl", "-qw", "net."+strings.ReplaceAll(file, "/", ".")+"="+strings.TrimSpace(text))
	}
	guest.Here().Run(t, "sysctl", "-qp", "/etc/sysctl.d/zz-glance-dtn.conf")
	for _, c := range plan(t, h, far, hosttcp.Options{}) {
		if c.Status != hosttcp.Kept {
			t.Errorf("after a restart: %+v", c)
		}
	}
	if did, err := h.Undo(); err != nil {
		t.Errorf("%q, %v", did, err)
	}
	for file, want := range before {
		got := sysctl(t, file)
		if file == "ipv4/tcp_allowed_congestion_control" { // in the order in which modules were loaded
			if len(got) == len(want) && strings.Contains(got, "htcp") {
				continue
			}
		}
		if got != want {
			t.Errorf("%s is %q, was %q", file, got, want)
		}
	}
}

// TestKernelANamespaceMayNotAllow what the host has not: the kernel's answer is told, and
// the rest is set.
func TestKernelANamespaceMayNotAllow(t *testing.T) {
	guest.Need(t)
	h := hosttcp.New(t.TempDir())
	guest.NewMachine(t, "a").Within(t, func() {
		own(t)
		before := sysctl(t, "ipv4/tcp_rmem")
		changes := plan(t, h, far, hosttcp.Options{Congestion: "veno"})
		done, err := h.Apply(t.Context(), changes)
		if err != nil {
			t.Error(err)
			return
		}
		all := byKey(done)
		if c := all["net.ipv4.tcp_congestion_control"]; c.Status != hosttcp.NotPermitted || c.Error == "" {
			t.Errorf("%+v, want it not permitted", c)
		}
		if c := all["net.core.rmem_max"]; c.Status != hosttcp.Absent {
			t.Errorf("%+v, want it absent", c)
		}
		if c := all["net.ipv4.tcp_rmem"]; c.Status != hosttcp.Set {
			t.Errorf("%+v, want it set", c)
		}
		if _, err := h.Undo(); err != nil || sysctl(t, "ipv4/tcp_rmem") != before {
			t.Errorf("tcp_rmem is %q, was %q: %v", sysctl(t, "ipv4/tcp_rmem"), before, err)
		}
	})
}

// TestKernelTheCommand sets a host up for a path and puts it back. It runs here, since the
// guest of cmd/glance-dtn has long tests.
func TestKernelTheCommand(t *testing.T) {
	guest.Need(t)
	m, state := guest.Here(), t.TempDir()
	tune := func(args ...string) string {
		return m.Run(t, os.Getenv("GLANCE_DTN"), append([]string{"tune", "tcp", "--state", state}, args...)...)
	}
	const own = "/etc/sysctl.d/zz-glance-dtn.conf"
	path := []string{"--rtt", "20ms", "--bandwidth", "10Gbit/s"}
	before := sysctl(t, "core/rmem_max")
	if out := tune(append(path, "--dry-run")...); !strings.Contains(out, "+net.core.rmem_max = 67108864\n") || sysctl(t, "core/rmem_max") != before {
		t.Errorf("rmem_max is %q\n%s", sysctl(t, "core/rmem_max"), out)
	}
	out := tune(append(path, "--apply")...)
	text, err := os.ReadFile(own)
	if err != nil || !strings.Contains(out, "WAS") || sysctl(t, "core/rmem_max") != "67108864\n" || !strings.Contains(string(text), "net.core.rmem_max = 67108864\n") {
		t.Errorf("rmem_max is %q, %v\n%s\n%s", sysctl(t, "core/rmem_max"), err, out, text)
	}
	if out := tune(append(path, "--dry-run")...); out != "--apply would change nothing.\n" {
		t.Error(out)
	}
	out = tune("--undo")
	if _, err := os.Lstat(own); !os.IsNotExist(err) || !strings.Contains(out, "Remove "+own) || sysctl(t, "core/rmem_max") != before {
		t.Errorf("rmem_max is %q, was %q, %v\n%s", sysctl(t, "core/rmem_max"), before, err, out)
	}

	// A network namespace may not choose what the host does not allow: exit code 3.
	args := append([]string{"tune", "tcp", "--state", filepath.Join(state, "a"), "--congestion", "veno", "--apply"}, path...)
	_, err = guest.NewMachine(t, "a").Output(os.Getenv("GLANCE_DTN"), args...)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 {
		t.Errorf("%v, want exit code 3", err)
	}
}
