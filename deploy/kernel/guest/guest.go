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
	"os"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
)

// patience is how long one command or one condition may take in a guest whose
// host has other work.
const patience = 60 * time.Second

// Inside tells whether this process runs in the guest.
func Inside() bool {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(cpu, []byte("User Mode Linux"))
}

// Need skips the test outside the guest.
func Need(t testing.TB) {
	t.Helper()
	if !Inside() {
		t.Skip("needs a kernel of its own; `make test-kernel` runs it")
	}
}

// Machine is a [lab.Machine] that may serve NFS and mount it.
type Machine struct{ *lab.Machine }

// Here returns the machine that the test itself runs in.
func Here() *Machine { return &Machine{lab.Here()} }

// NewMachine returns a machine without a network but lo.
func NewMachine(t testing.TB, name string) *Machine {
	t.Helper()
	return &Machine{lab.NewMachine(t, name)}
}

// Connect is [lab.Connect].
func Connect(t testing.TB, a *Machine, at string, b *Machine, bt string) {
	t.Helper()
	lab.Connect(t, a.Machine, at, b.Machine, bt)
}

// mount mounts a file system without a device on the machine, at a directory that
// it makes when missing.
func (m *Machine) mount(t testing.TB, fs, dir string) {
	t.Helper()
	m.Run(t, "mkdir", "-p", dir)
	m.Run(t, "mount", "-t", fs, fs, dir)
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
	var options []string
	for line := range strings.Lines(m.Run(t, "cat", "/proc/self/mounts")) {
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
