// Package guest is what a test may ask of the user-mode-linux guest that
// deploy/kernel boots for it: machines with networks between them, kernel NFS
// servers on disks of their own, mounts, a server that is stopped and one that
// loses its power.
//
// A test for the guest is named TestKernel... and begins with [Need]. Whatever it
// makes goes away with it. All commands are run with arguments, never by a shell.
package guest

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long one command or one condition may take in a guest whose
// host has other work.
const patience = 60 * time.Second

// Need skips the test outside the guest.
func Need(t testing.TB) {
	t.Helper()
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !bytes.Contains(cpu, []byte("User Mode Linux")) {
		t.Skip("needs a kernel of its own; `make test-kernel` runs it")
	}
}

// Machine is a computer as far as networks and file systems can tell: a network,
// a mount and a UTS namespace. Its root directory is the guest's, but /run is its
// own, and so is every mount that it makes.
type Machine struct {
	Name string
	// Addr is the first address that [Connect] gave it, 127.0.0.1 before.
	Addr netip.Addr
	pid  int // of a process in the namespaces
}

// Here returns the machine that the test itself runs in.
func Here() *Machine {
	return &Machine{Name: "guest", Addr: netip.MustParseAddr("127.0.0.1"), pid: os.Getpid()}
}

// NewMachine returns a machine without a network but lo.
func NewMachine(t testing.TB, name string) *Machine {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	if err := holder.Start(); err != nil {
		t.Fatalf("machine %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	m := &Machine{Name: name, Addr: netip.MustParseAddr("127.0.0.1"), pid: holder.Process.Pid}
	m.Run(t, "mount", "-t", "sysfs", "sysfs", "/sys") // shows the interfaces of the namespace that mounts it
	m.Run(t, "mount", "-t", "tmpfs", "tmpfs", "/run")
	m.Run(t, "hostname", name)
	m.Run(t, "ip", "link", "set", "lo", "up")
	return m
}

// Command is [exec.CommandContext] on the machine. The process is the command
// itself, so signals reach it.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(m.pid), "--net", "--mount", "--uts", "--wdns=/", "--", name}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// Output runs a command to its end and returns what it wrote. The error has what
// it wrote to stderr.
func (m *Machine) Output(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := m.Command(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w: %s", m.Name, name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}

// Run is Output for a command that has to succeed.
func (m *Machine) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := m.Output(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Path returns the path by which the test, wherever it runs, reaches an absolute
// path of the machine.
func (m *Machine) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(m.pid), "root", path)
}

// Within calls do in the machine's network. A socket that do makes stays in it; a
// goroutine that do starts is not in it.
func (m *Machine) Within(t testing.TB, do func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine and serves no other.
		runtime.LockOSThread()
		network, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.pid), "ns/net"))
		if err == nil {
			err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET)
			_ = network.Close()
		}
		if err == nil {
			do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter the network of %s: %v", m.Name, err)
	}
}

// Connect lays a cable between two machines. Its end in a has b's name and the
// address at, in the form of 10.0.0.1/24, and the other way round.
func Connect(t testing.TB, a *Machine, at string, b *Machine, bt string) {
	t.Helper()
	a.Run(t, "ip", "link", "add", b.Name, "type", "veth", "peer", "name", a.Name, "netns", strconv.Itoa(b.pid))
	for _, end := range []struct {
		m        *Machine
		dev, net string
	}{{a, b.Name, at}, {b, a.Name, bt}} {
		end.m.Run(t, "ip", "addr", "add", end.net, "dev", end.dev)
		end.m.Run(t, "ip", "link", "set", end.dev, "up")
		if end.m.Addr.IsLoopback() {
			end.m.Addr = netip.MustParsePrefix(end.net).Addr()
		}
	}
	if a.pid == os.Getpid() {
		t.Cleanup(func() { a.Run(t, "ip", "link", "delete", b.Name) })
	}
}

// Mount mounts a [Server.Source] or [Server.Root] with the options of nfs(5), at a
// new mount point, and unmounts it after the test even if the server is gone. The
// mount point is the machine's; see [Machine.Path].
func (m *Machine) Mount(t testing.TB, source, options string) string {
	t.Helper()
	dir := t.TempDir()
	m.Run(t, "mount", "-t", "nfs", "-o", options, source, dir)
	t.Cleanup(func() { m.Run(t, "umount", "--force", "--lazy", dir) })
	return dir
}

// MountOptions returns the options in effect on a mount point, as /proc/mounts
// has them: what the client and the server have agreed upon.
func (m *Machine) MountOptions(t testing.TB, dir string) []string {
	t.Helper()
	mounts, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.pid), "mounts"))
	if err != nil {
		t.Fatal(err)
	}
	var options []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[1] == dir {
			options = strings.Split(f[3], ",") // the last one is on top
		}
	}
	if options == nil {
		t.Fatalf("nothing is mounted on %s of %s", dir, m.Name)
	}
	return options
}

// await waits until the condition holds.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
