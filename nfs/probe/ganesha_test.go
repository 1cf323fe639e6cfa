package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
)

// NFS-Ganesha, a real server in user space, runs where GLANCE_DTN_REAL is set. It
// registers with a portmapper, so the tests have the port 111 of a network of their
// own: the test binary starts itself again in new namespaces of network, mounts and
// processes, and all that it has started ends with it.
const (
	insideVariable = "GLANCE_DTN_PROBE_INSIDE"
	ganeshaNFS     = 22049
	ganeshaMount   = 22048
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(insideVariable) != "":
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv("GLANCE_DTN_REAL") != "" && os.Geteuid() == 0 && !guest.Inside():
		os.Exit(again())
	}
	goleak.VerifyTestMain(m)
}

// again runs this binary in new namespaces and returns its exit code.
func again() int {
	runtime.LockOSThread() // the child dies with this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err := install()
	if err == nil {
		err = cmd.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func install() error {
	var missing error
	for _, name := range []string{"ganesha.nfsd", "rpcbind", "ip"} {
		_, err := exec.LookPath(name)
		missing = errors.Join(missing, err)
	}
	if missing == nil {
		return nil
	}
	out, err := exec.Command("../../deploy/sandbox/sandbox", "install", "nfs-ganesha", "nfs-ganesha-vfs", "rpcbind", "iproute2").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s: %w", missing, out, err)
	}
	return nil
}

// enter makes the new namespaces fit to live in. Besides lo there has to be an
// address, for Ganesha looks its own up with AI_ADDRCONFIG.
func enter() error {
	for _, m := range []struct {
		target, kind string
		flags        uintptr
	}{
		{"/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"/run", "tmpfs", 0},
		{"/proc", "proc", 0},
	} {
		if err := syscall.Mount("none", m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Mkdir("/run/rpcbind", 0o755); err != nil {
		return err
	}
	for _, args := range []string{
		"link set lo up", "link add v0 type veth peer name v1", "addr add 192.0.2.1/24 dev v0", "link set v0 up", "link set v1 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

// ganesha is one server; its exports are /export, /commit, where each write is made
// stable, and /reserved, for clients from reserved ports.
type ganesha struct {
	t    testing.TB
	dir  string // of the exports
	conf string
	log  string
	cmd  *exec.Cmd

	started time.Time
}

// rpcbind is one for all tests: it cannot be started twice, and ends with the namespace.
var rpcbind = sync.OnceValue(func() error {
	if out, err := exec.Command("rpcbind", "-w").CombinedOutput(); err != nil { // returns when it listens
		return fmt.Errorf("rpcbind: %w: %s", err, out)
	}
	return nil
})

func startGanesha(t testing.TB) *ganesha {
	t.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs NFS-Ganesha and root; `make test` runs it")
	}
	if os.Getenv(insideVariable) == "" {
		t.Fatal("NFS-Ganesha needs root")
	}
	if err := rpcbind(); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	g := &ganesha{t: t, dir: filepath.Join(work, "files"), conf: filepath.Join(work, "ganesha.conf"), log: filepath.Join(work, "log")}
	if err := errors.Join(os.Mkdir(g.dir, 0o777), os.Chmod(g.dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	const core = `
NFS_CORE_PARAM { Protocols = 3; NFS_Port = %d; MNT_Port = %d; Bind_addr = 127.0.0.1; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = true; }
EXPORT_DEFAULTS { Access_Type = RW; Squash = No_Root_Squash; SecType = sys; Protocols = 3; Transports = TCP; }
LOG { Default_Log_Level = EVENT; }
`
	const export = `
EXPORT { Export_Id = %d; Path = %s; Pseudo = /%s; %s FSAL { Name = VFS; } }
`
	conf := fmt.Sprintf(core, ganeshaNFS, ganeshaMount) +
		fmt.Sprintf(export, 1, g.dir, "export", "MaxRead = 1048576; MaxWrite = 1048576; PrefRead = 1048576; PrefWrite = 1048576;") +
		fmt.Sprintf(export, 2, g.dir, "commit", "NFS_Commit = true; MaxRead = 1048576; MaxWrite = 524288; PrefRead = 262144; PrefWrite = 131072;") +
		fmt.Sprintf(export, 3, g.dir, "reserved", "PrivilegedPort = true;")
	if err := os.WriteFile(g.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	g.start()
	t.Cleanup(func() {
		g.stop()
		if log, err := os.ReadFile(g.log); t.Failed() {
			t.Logf("%s %v", log, err)
		}
	})
	return g
}

// start returns when the server answers. Its write verifier is the second in which
// it started, so a second start waits for the next one.
func (g *ganesha) start() {
	g.t.Helper()
	time.Sleep(time.Until(g.started.Truncate(time.Second).Add(time.Second)))
	g.started = time.Now()
	g.cmd = exec.Command("ganesha.nfsd", "-F", "-f", g.conf, "-L", g.log, "-p", filepath.Join(filepath.Dir(g.conf), "pid"))
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	for every := time.NewTicker(20 * time.Millisecond); ; {
		p, err := Dial(ctx, g.options("/export"))
		if err == nil {
			p.Close()
			return
		}
		select {
		case <-ctx.Done():
			g.t.Fatalf("NFS-Ganesha does not answer: %v", err)
		case <-every.C:
		}
	}
}

func (g *ganesha) stop() {
	_ = g.cmd.Process.Kill() // no clean exit: it takes a second and more
	_ = g.cmd.Wait()
}

func (g *ganesha) options(export string) Options {
	return Options{Host: "127.0.0.1", Export: export, NFSPort: ganeshaNFS, MountPort: ganeshaMount, UID: 65534, GID: 65534, Timeout: 30 * time.Second}
}

func (g *ganesha) dial(export string, change ...func(*Options)) *Probe {
	g.t.Helper()
	o := g.options(export)
	for _, c := range change {
		c(&o)
	}
	p, err := Dial(g.t.Context(), o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { p.Close() })
	return p
}

func TestGanesha(t *testing.T) {
	g := startGanesha(t)
	for name, test := range map[string]func(t *testing.T){
		"measure": func(t *testing.T) {
			_, report := measure(t, g.dial("/export", func(o *Options) { o.Connections = 2 }))
			want(t, report.Committed, Unstable)
			if report.Class == Async {
				t.Errorf("%v: %s", report.Class, report.Reason)
			}
		},
		"each write is made stable": func(t *testing.T) {
			p := g.dial("/commit")
			info, err := p.Info(t.Context(), infoCalls)
			if err != nil {
				t.Fatal(err)
			}
			l := info.Limits
			want(t, [4]int64{l.ReadMax, l.WriteMax, l.ReadPref, l.WritePref}, [4]int64{1 << 20, 512 << 10, 256 << 10, 128 << 10})
			err = p.Scratch(t.Context(), func(f *File) error {
				r, err := f.Write(t.Context(), WriteTest{Size: 1 << 16, Total: 1 << 20, Depth: 4, Stability: Unstable})
				want(t, r.Committed, FileSync)
				return err
			})
			want(t, err, nil)
		},
		"portmapper and exports": func(t *testing.T) {
			byPortmapper := func(o *Options) { o.NFSPort, o.MountPort = 0, 0 }
			g.dial("/export", byPortmapper)
			o := g.options("")
			byPortmapper(&o)
			exports, err := Exports(t.Context(), o)
			if err != nil || len(exports) != 3 {
				t.Errorf("exports %v, %v", exports, err)
			}
		},
		"no such export": func(t *testing.T) {
			_, err := Dial(t.Context(), g.options("/elsewhere"))
			wantError(t, err, os.ErrPermission, "insecure") // it does not tell "not there" from "not for you"
		},
		"reserved port": func(t *testing.T) {
			_, err := Dial(t.Context(), g.options("/reserved"))
			if _, ok := errors.AsType[*AuthError](err); !ok || !strings.Contains(err.Error(), "reserved port") {
				t.Errorf("got %v", err)
			}
			p := g.dial("/reserved", func(o *Options) { o.ReservedPort = true })
			if port := p.conns[0].c.nc.LocalAddr().(*net.TCPAddr).Port; port < 512 || port > 1023 {
				t.Errorf("from port %d", port)
			}
		},
		"stopped and continued": func(t *testing.T) {
			p := g.dial("/export", func(o *Options) { o.Timeout = 5 * time.Second })
			c := p.conns[0].c
			if err := g.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			_, err := p.Info(t.Context(), infoCalls)
			if e := g.cmd.Process.Signal(syscall.SIGCONT); e != nil {
				t.Fatal(e)
			}
			wantError(t, err, context.DeadlineExceeded, "no answer in 5")
			c.timeout = 30 * time.Second
			if _, err := p.Info(t.Context(), infoCalls); err != nil || p.conns[0].c != c {
				t.Errorf("after it went on: %v", err)
			}
		},
		"restarted": func(t *testing.T) {
			err := g.dial("/export").Scratch(t.Context(), func(f *File) error {
				test := WriteTest{Size: 1 << 16, Total: 1 << 20, Depth: 4}
				if _, err := f.Write(t.Context(), test); err != nil {
					return err
				}
				g.stop()
				g.start()
				wantError(t, f.retryLost(t.Context()), ErrRestarted)
				test.Commit = true
				_, err := f.Write(t.Context(), test)
				return err
			})
			want(t, err, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			test(t)
			left, err := os.ReadDir(g.dir)
			if err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
