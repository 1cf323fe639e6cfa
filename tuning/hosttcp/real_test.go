package hosttcp_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/hosttcp"
)

func need(t testing.TB) {
	t.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs root and network namespaces; `make test` runs it")
	}
}

var far = tuning.Path{Bandwidth: 10e9, RTT: 200 * time.Millisecond}

// plan may be called on a machine, where a test cannot end.
func plan(t testing.TB, h *hosttcp.Host, p tuning.Path, o hosttcp.Options) []hosttcp.Change {
	t.Helper()
	s, err := h.Read(t.Context(), "")
	if err != nil {
		t.Error(err)
		return nil
	}
	changes, err := hosttcp.Plan(p, s, o)
	if err != nil {
		t.Error(err)
	}
	return changes
}

func byKey(changes []hosttcp.Change) map[string]hosttcp.Change {
	all := map[string]hosttcp.Change{}
	for _, c := range changes {
		all[c.Key] = c
	}
	return all
}

// sysctl returns a setting as the kernel writes it.
func sysctl(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc/sys/net", file))
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// own gives the machine an /etc/sysctl.d of its own.
func own(t testing.TB) {
	t.Helper()
	if err := unix.Mount("tmpfs", "/etc/sysctl.d", "tmpfs", 0, ""); err != nil {
		t.Error(err)
	}
}

var inNamespace = []string{"ipv4/tcp_rmem", "ipv4/tcp_wmem", "ipv4/tcp_mtu_probing", "ipv4/tcp_no_metrics_save", "ipv4/tcp_congestion_control"}

// TestANetworkNamespace has settings that are its own, that it shares and cannot change,
// and that it does not know.
func TestANetworkNamespace(t *testing.T) {
	need(t)
	h := hosttcp.New(t.TempDir())
	m := lab.NewMachine(t, "a")
	m.Within(t, func() {
		own(t)
		before := map[string]string{}
		for _, file := range inNamespace {
			before[file] = sysctl(t, file)
		}
		changes := plan(t, h, far, hosttcp.Options{Congestion: "reno"})
		for key, want := range map[string]hosttcp.Status{
			"net.ipv4.tcp_rmem": hosttcp.ToSet, "net.ipv4.tcp_mtu_probing": hosttcp.ToSet,
			"net.core.rmem_max": hosttcp.ReadOnly, "net.core.netdev_budget": hosttcp.Absent, "net.core.default_qdisc": hosttcp.Absent,
		} {
			if c := byKey(changes)[key]; c.Status != want {
				t.Errorf("%+v, want it %s", c, want)
			}
		}
		done, err := h.Apply(t.Context(), changes)
		if err != nil {
			t.Error(err)
			return
		}
		if got, want := sysctl(t, "ipv4/tcp_rmem"), "\t536870912\n"; byKey(done)["net.ipv4.tcp_rmem"].Status != hosttcp.Set || !strings.HasSuffix(got, want) {
			t.Errorf("tcp_rmem is %q: %+v", got, byKey(done)["net.ipv4.tcp_rmem"])
		}
		nearer := plan(t, h, tuning.Path{Bandwidth: 1e9, RTT: 50 * time.Millisecond}, hosttcp.Options{Congestion: "reno"})
		if _, err := h.Apply(t.Context(), nearer); err != nil {
			t.Error(err)
		}
		if got, want := sysctl(t, "ipv4/tcp_wmem"), "\t16777216\n"; !strings.HasSuffix(got, want) {
			t.Errorf("tcp_wmem is %q, want the second path's", got)
		}
		if did, err := h.Undo(); err != nil {
			t.Errorf("%q, %v", did, err)
		}
		for file, want := range before {
			if got := sysctl(t, file); got != want {
				t.Errorf("%s is %q, was %q", file, got, want)
			}
		}
		if rest, err := os.ReadDir("/etc/sysctl.d"); err != nil || len(rest) > 0 {
			t.Errorf("left: %v, %v", rest, err)
		}
	})
}

// TestAReadOnlyProc is what a container has.
func TestAReadOnlyProc(t *testing.T) {
	need(t)
	h := hosttcp.New(t.TempDir())
	lab.NewMachine(t, "a").Within(t, func() {
		err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, "")
		if err == nil {
			err = unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		}
		if err != nil {
			t.Error(err)
			return
		}
		changes := plan(t, h, far, hosttcp.Options{})
		if c := byKey(changes)["net.ipv4.tcp_rmem"]; c.Status != hosttcp.ReadOnly {
			t.Errorf("%+v, want it read-only", c)
		}
		if done, err := h.Apply(t.Context(), changes); err != nil || byKey(done)["net.ipv4.tcp_rmem"].Status != hosttcp.ReadOnly {
			t.Errorf("%+v, %v", done, err)
		}
		if did, err := h.Undo(); err != nil || len(did) > 0 {
			t.Errorf("undone: %q, %v", did, err)
		}
	})
}

// TestWithoutPrivilege anybody may plan.
func TestWithoutPrivilege(t *testing.T) {
	need(t)
	lab.NewMachine(t, "a").Within(t, func() {
		// Of this thread alone, which ends with the test.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
			t.Error(errno)
			return
		}
		defer func() {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); errno != 0 {
				t.Error(errno)
			}
		}()
		s, err := hosttcp.New("/nowhere").Read(t.Context(), "")
		if err != nil {
			t.Error(err)
			return
		}
		changes, err := hosttcp.Plan(far, s, hosttcp.Options{Congestion: "reno"})
		if err != nil {
			t.Error(err)
			return
		}
		for key, want := range map[string]hosttcp.Status{
			"net.ipv4.tcp_rmem": hosttcp.NotPermitted, "net.core.rmem_max": hosttcp.ReadOnly, "net.core.netdev_budget": hosttcp.Absent,
		} {
			if c := byKey(changes)[key]; c.Status != want {
				t.Errorf("%+v, want it %s", c, want)
			}
		}
	})
}

// TestTheNICOfTheDefaultRoute is found, and one by its name.
func TestTheNICOfTheDefaultRoute(t *testing.T) {
	need(t)
	a, b := lab.NewMachine(t, "a"), lab.NewMachine(t, "b")
	lab.Connect(t, a, "10.0.0.1/24", b, "10.0.0.2/24")
	h := hosttcp.New(t.TempDir())
	a.Run(t, "ip", "route", "add", "default", "via", "10.0.0.2")
	a.Run(t, "ip", "link", "set", "dev", "b", "mtu", "1400", "txqueuelen", "77")
	a.Within(t, func() {
		byRoute, err := h.Read(t.Context(), "")
		if err != nil {
			t.Error(err)
		}
		if n := byRoute.NIC; n.Name != "b" || n.MTU != 1400 || n.QueueLength != 77 || n.Qdisc == "" {
			t.Errorf("%+v", n)
		}
		byName, err := h.Read(t.Context(), "lo")
		if err != nil || byName.NIC.Name != "lo" {
			t.Errorf("%+v, %v", byName.NIC, err)
		}
		if _, err := h.Read(t.Context(), "eth9"); err == nil || err.Error() != "this host has no network interface eth9" {
			t.Errorf("%v", err)
		}
	})
	lab.NewMachine(t, "c").Within(t, func() {
		if s, err := h.Read(t.Context(), ""); err != nil || s.NIC.Name != "" {
			t.Errorf("without a route: %+v, %v", s.NIC, err)
		}
	})
}
