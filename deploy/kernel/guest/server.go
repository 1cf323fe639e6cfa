package guest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// ExportsFile is where a server's one export stands, on the server's own
// /etc/exports.d; see exports(5).
const ExportsFile = "/etc/exports.d/guest.exports"

// exported are the options that every export has besides those that a test gives.
const exported = "rw,no_root_squash,no_subtree_check,insecure,fsid=0,"

// Server is a kernel NFS server on a machine, with one exported directory on a
// disk of its own, ext4 as a rule. It speaks NFS 3 and 4 on port 2049 and MOUNT 3 on 20048;
// no lock manager runs, so clients of NFS 3 mount with nolock.
type Server struct {
	*Machine
	Dir  string // the directory, as the server's machine names it
	disk string
}

// disks has the block devices that no server uses. The test of deploy/kernel gives
// the guest as many.
var disks = struct {
	sync.Mutex
	free []string
}{free: []string{"/dev/ubda", "/dev/ubdb"}}

// Serve makes an empty directory on a fresh disk and exports it to everyone with
// the given options of exports(5), "sync" or "async" at least. A machine serves
// once.
func (m *Machine) Serve(t testing.TB, options string) *Server {
	t.Helper()
	return m.serve(t, options, "mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1")
}

// ServeXFS is Serve with XFS, whose files can share blocks. CutPower is not for it.
func (m *Machine) ServeXFS(t testing.TB, options string) *Server {
	t.Helper()
	return m.serve(t, options, "mkfs.xfs", "-q", "-f", "-K")
}

func (m *Machine) serve(t testing.TB, options, mkfs string, args ...string) *Server {
	t.Helper()
	s := &Server{Machine: m, Dir: "/srv/glance", disk: takeDisk(t)}
	m.Run(t, mkfs, append(args, s.disk)...)
	s.mountDisk(t)
	t.Cleanup(func() { m.Run(t, "umount", s.Dir) })
	for _, fs := range [][2]string{
		{"tmpfs", "/var/lib/nfs"}, {"tmpfs", "/etc/exports.d"}, {"nfsd", "/proc/fs/nfsd"}, {"rpc_pipefs", "/run/rpc_pipefs"},
	} {
		m.mount(t, fs[0], fs[1])
		t.Cleanup(func() { m.Run(t, "umount", fs[1]) })
	}
	for _, dir := range []string{"/var/lib/nfs/nfsdcld", "/run/rpcbind"} {
		if err := os.MkdirAll(m.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etab", "rmtab"} {
		if err := os.WriteFile(m.Path(filepath.Join("/var/lib/nfs", name)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The sizes that a server of today has by itself; this guest's memory would give it 128 KiB.
	if err := os.WriteFile(m.Path("/proc/fs/nfsd/max_block_size"), []byte("1048576"), 0); err != nil {
		t.Fatal(err)
	}
	m.daemon(t, "nfsdcld", "--foreground") // else each start of nfsd waits for it in vain
	m.daemon(t, "rpcbind", "-f")
	await(t, "rpcbind of "+m.Name, func() bool {
		c, err := net.Dial("unix", m.Path("/run/rpcbind.sock"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	s.Export(t, options)
	m.daemon(t, "rpc.mountd", "--foreground", "--port", "20048")
	await(t, "rpc.mountd of "+m.Name, func() bool {
		_, err := m.Output("rpcinfo", "-t", "127.0.0.1", "mountd", "3")
		return err == nil
	})
	s.Start(t)
	t.Cleanup(func() {
		s.Stop(t)
		m.Run(t, "exportfs", "-ua")
	})
	return s
}

func takeDisk(t testing.TB) string {
	t.Helper()
	disks.Lock()
	defer disks.Unlock()
	if len(disks.free) == 0 {
		t.Fatal("all disks of the guest are in use")
	}
	disk := disks.free[0]
	disks.free = disks.free[1:]
	t.Cleanup(func() {
		disks.Lock()
		defer disks.Unlock()
		disks.free = append(disks.free, disk)
	})
	return disk
}

// daemon starts a process that is killed after the test.
func (m *Machine) daemon(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := m.Command(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func (s *Server) mountDisk(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(s.Path(s.Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Run(t, "mount", s.disk, s.Dir)
}

// Source is what a client of NFS 3 mounts.
func (s *Server) Source() string { return fmt.Sprintf("%s:%s", s.Addr, s.Dir) }

// Root is what a client of NFS 4 mounts: the export is the root of the server's
// pseudo file system (RFC 7530, 7.3).
func (s *Server) Root() string { return fmt.Sprintf("%s:/", s.Addr) }

// Export gives the export other options. Clients notice nothing.
func (s *Server) Export(t testing.TB, options string) {
	t.Helper()
	line := fmt.Sprintf("%s *(%s%s)\n", s.Dir, exported, options)
	if err := os.WriteFile(s.Path(ExportsFile), []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Run(t, "exportfs", "-ra")
}

// Stop ends nfsd: clients are refused, and those of a hard mount wait.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.Run(t, "rpc.nfsd", "0")
}

// Start begins nfsd anew, with another write verifier (RFC 1813, 3.3.7). Clients
// of NFS 4 have 10 s to reclaim what they had open.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.Run(t, "rpc.nfsd", "--lease-time", "10", "--grace-time", "10", "8")
}

// CutPower takes from the server what is not on its disk, as a power cut does, and
// starts it again. Nothing but nfsd may have a file open there.
//
// The disk is cut off by ext4's shutdown with EXT4_GOING_FLAGS_NOLOGFLUSH: from
// then on neither pages nor journal are written. The next mount replays what was
// committed before.
func (s *Server) CutPower(t testing.TB) {
	t.Helper()
	dir, err := os.Open(s.Path(s.Dir))
	if err != nil {
		t.Fatal(err)
	}
	const shutdown, withoutFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN of fs/ext4/ext4.h
	err = unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, withoutFlush)
	_ = dir.Close()
	if err != nil {
		t.Fatalf("shut down %s: %v", s.disk, err)
	}
	s.Stop(t)
	s.Run(t, "umount", s.Dir)
	s.mountDisk(t)
	s.Start(t)
}
