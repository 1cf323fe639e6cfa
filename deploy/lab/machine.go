// Package lab is what a test may build on one computer to have several: machines,
// which are namespaces of this kernel, with cables between them, or with wide area
// paths of a given delay, rate, queue and loss (package wan).
//
// It needs root, and ip(8) and nsenter(1). Whatever it makes goes away with the
// test, or with the process of the test when that is killed. All commands are run
// with arguments, never by a shell.
package lab

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

// patience is how long one command may take on a computer that has other work.
const patience = 60 * time.Second

// Machine is a computer as far as networks and file systems can tell: a network,
// a mount and a UTS namespace. Its root directory is that of the test, but /run is
// its own, and so is every mount that it makes.
type Machine struct {
	Name string
	// Addr is the first address that it was given, 127.0.0.1 before.
	Addr netip.Addr
	pid  int // of a process in the namespaces
}

// Here returns the machine that the test itself runs in.
func Here() *Machine {
	return &Machine{Name: "here", Addr: netip.MustParseAddr("127.0.0.1"), pid: os.Getpid()}
}

// NewMachine returns a machine without a network but lo. Its name is that of a
// network interface too: 15 characters at most.
func NewMachine(t testing.TB, name string) *Machine {
	t.Helper()
	holder := exec.Command("cat") // ends with its input, so with this process
	// Unlike clone(2), unshare(2) as the syscall package has it keeps the mounts to itself.
	holder.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	input, err := holder.StdinPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatalf("machine %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		_ = holder.Wait()
	})
	m := &Machine{Name: name, Addr: netip.MustParseAddr("127.0.0.1"), pid: holder.Process.Pid}
	m.Within(t, func() {
		for _, fs := range [][2]string{{"sysfs", "/sys"}, {"tmpfs", "/run"}} { // sysfs shows the interfaces of the namespace that mounts it
			if err := unix.Mount(fs[0], fs[1], fs[0], 0, ""); err != nil {
				t.Errorf("mount %s on %s of %s: %v", fs[0], fs[1], name, err)
			}
		}
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
	if entered := m.Enter(func() { err = cmd.Run() }); entered != nil {
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
	if err := m.Enter(do); err != nil {
		t.Fatal(err)
	}
}

// Enter calls do on a thread that is in the machine's namespaces, see setns(2),
// unless there is an error.
func (m *Machine) Enter(do func()) error {
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

// ip runs these commands of ip(8).
func (m *Machine) ip(t testing.TB, commands ...string) {
	t.Helper()
	if _, err := m.output(strings.Join(commands, "\n")+"\n", "ip", "-batch", "-"); err != nil {
		t.Fatal(err)
	}
}
