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

// The first thread of the process stays with the first goroutine: it cannot end, and on
// a machine it would take with it what /proc/self says of all.
func init() { runtime.LockOSThread() }

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
	m.mount(t, "sysfs", "/sys") // shows the interfaces of the namespace that mounts it
	m.mount(t, "tmpfs", "/run")
	m.Within(t, func() {
		if err := unix.Sethostname([]byte(name)); err != nil {
			t.Errorf("name machine %s: %v", name, err)
		}
	})
	m.ip(t, "link set lo up")
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
	return m.output("", name, args...)
}

func (m *Machine) output(stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = time.Second
	var err error
	if entered := m.enter(func() { err = cmd.Run() }); entered != nil {
		return "", entered
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", m.Name, cmd, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
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

// Within calls do on the machine. A socket that do makes stays in the machine's
// network; a goroutine that do starts is not on the machine.
func (m *Machine) Within(t testing.TB, do func()) {
	t.Helper()
	if err := m.enter(do); err != nil {
		t.Fatal(err)
	}
}

// enter calls do on a thread that is in the machine's namespaces, see setns(2),
// unless there is an error.
func (m *Machine) enter(do func()) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine and serves no other
		err := m.setns()
		if err == nil {
			do()
		}
		done <- err
	}()
	return <-done
}

func (m *Machine) setns() error {
	var files []*os.File
	for _, kind := range []string{"net", "uts", "mnt"} {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.pid), "ns", kind))
		if err != nil {
			return fmt.Errorf("enter machine %s: %w", m.Name, err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// A thread that shares its root directory with others cannot change its mounts.
	err := unix.Unshare(unix.CLONE_FS)
	for _, f := range files {
		if err == nil {
			err = unix.Setns(int(f.Fd()), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("enter machine %s: %w", m.Name, err)
	}
	return nil
}

// mount mounts a file system without a device on the machine, at a directory that
// it makes when missing.
func (m *Machine) mount(t testing.TB, fs, dir string) {
	t.Helper()
	m.Within(t, func() {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = unix.Mount(fs, dir, fs, 0, "")
		}
		if err != nil {
			t.Errorf("mount %s on %s of %s: %v", fs, dir, m.Name, err)
		}
	})
}

func (m *Machine) unmount(t testing.TB, dir string) {
	t.Helper()
	m.Within(t, func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s of %s: %v", dir, m.Name, err)
		}
	})
}

// ip runs these commands of ip(8).
func (m *Machine) ip(t testing.TB, commands ...string) {
	t.Helper()
	if _, err := m.output(strings.Join(commands, "\n")+"\n", "ip", "-batch", "-"); err != nil {
		t.Fatal(err)
	}
}

// Connect lays a cable between two machines. Its end in a has b's name and the
// address at, in the form of 10.0.0.1/24, and the other way round.
func Connect(t testing.TB, a *Machine, at string, b *Machine, bt string) {
	t.Helper()
	a.ip(t, fmt.Sprintf("link add %s type veth peer name %s netns %d", b.Name, a.Name, b.pid))
	for _, end := range []struct {
		m        *Machine
		dev, net string
	}{{a, b.Name, at}, {b, a.Name, bt}} {
		end.m.ip(t, "addr add "+end.net+" dev "+end.dev, "link set "+end.dev+" up")
		if end.m.Addr.IsLoopback() {
			end.m.Addr = netip.MustParsePrefix(end.net).Addr()
		}
	}
	if a.pid == os.Getpid() {
		t.Cleanup(func() { a.ip(t, "link delete "+b.Name) })
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
