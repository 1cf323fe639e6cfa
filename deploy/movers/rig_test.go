package movers

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Where files are on their machines, in memory.
const (
	outDir = "/run/out"
	inDir  = "/run/in"
)

// patience is how long a server may take to start.
const patience = time.Minute

// host is a machine whose processes are counted.
type host struct {
	*lab.Machine
	group   *os.File        // directory of the control group of a run
	daemons []chan struct{} // closed when they have ended
}

// rig is two hosts with a path between them and the files of one load.
type rig struct {
	tb         testing.TB
	hosts      []*host
	send, recv *host
	relay      *host  // whose DTN passes files on; nil: there is none
	dir        string // for configurations and logs; all hosts see it
	groups     string // where control groups are made
	settings   string // further lines of the DTNs' configurations
	files      []mover.File
	size       int64 // of all files
}

// newRig makes the hosts, connects them, and makes the files at the sender.
func newRig(tb testing.TB, p path, l load) *rig {
	tb.Helper()
	r := newHosts(tb, "10.0.0.1 send\n10.0.0.2 recv\n", "send", "recv")
	r.send, r.recv = r.hosts[0], r.hosts[1]
	p.connect(tb, r.send.Machine, r.recv.Machine)
	for h, peer := range map[*host]*host{r.send: r.recv, r.recv: r.send} {
		// By the route: a network namespace may have less congestion controls as its default.
		h.Run(tb, "ip", "route", "replace", "10.0.0.0/24", "dev", peer.Name, "src", h.Addr.String(), "congctl", p.control)
		h.Run(tb, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1",
			"net.ipv4.tcp_rmem=4096 131072 67108864", "net.ipv4.tcp_wmem=4096 131072 67108864")
	}
	r.fill(l)
	return r
}

// newHosts makes hosts of these names without a network, whose /etc/hosts has these lines.
func newHosts(tb testing.TB, lines string, names ...string) *rig {
	tb.Helper()
	// Not tb.TempDir, whose name is the benchmark's: sshd(8) would expand a percent sign.
	dir, err := os.MkdirTemp("", "movers-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // XRootD reads its configuration as nobody
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{tb: tb, dir: dir}
	hosts := filepath.Join(r.dir, "hosts")
	write(tb, hosts, "127.0.0.1 localhost\n"+lines)
	for _, name := range names {
		m := lab.NewMachine(tb, name)
		m.Run(tb, "mount", "--bind", hosts, "/etc/hosts")
		m.Run(tb, "mount", "-t", "tmpfs", "-o", "size=100%", "tmpfs", "/run")
		r.hosts = append(r.hosts, &host{Machine: m})
	}
	r.makeGroups()
	return r
}

// makeGroups mounts the hierarchy of cgroups(7), version 2, on the first host, and makes
// a group that is this process's. What a run that was killed has left is removed.
func (r *rig) makeGroups() {
	r.tb.Helper()
	const dir = "/run/cgroup"
	r.hosts[0].Run(r.tb, "mkdir", dir)
	r.hosts[0].Run(r.tb, "mount", "-t", "cgroup2", "none", dir)
	const prefix = "movers-"
	old, err := filepath.Glob(filepath.Join(r.hosts[0].Path(dir), prefix+"*"))
	if err != nil {
		r.tb.Fatal(err)
	}
	for _, name := range old {
		pid := strings.TrimPrefix(filepath.Base(name), prefix)
		if _, err := os.Stat(filepath.Join("/proc", pid)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		_ = os.WriteFile(filepath.Join(name, "cgroup.kill"), []byte("1"), 0)
		subs, _ := os.ReadDir(name)
		for _, sub := range subs {
			if sub.IsDir() {
				_ = os.Remove(filepath.Join(name, sub.Name())) // what is still dying the next run removes
			}
		}
		_ = os.Remove(name)
	}
	r.groups = filepath.Join(r.hosts[0].Path(dir), prefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(r.groups, 0o755); err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() {
		if err := os.Remove(r.groups); err != nil {
			r.tb.Error(err)
		}
	})
}

// begin gives each host a control group. It is for one run: what is started in one
// that was killed is killed as well by some kernels.
func (r *rig) begin() {
	r.tb.Helper()
	for _, h := range r.hosts {
		name := filepath.Join(r.groups, h.Name)
		if err := os.Mkdir(name, 0o755); err != nil {
			r.tb.Fatal(err)
		}
		var err error
		if h.group, err = os.Open(name); err != nil {
			r.tb.Fatal(err)
		}
	}
}

// end kills whatever runs on the hosts, and removes their control groups.
func (r *rig) end() {
	r.tb.Helper()
	for _, h := range r.hosts {
		if err := h.kill(); err != nil {
			r.tb.Error(err)
		}
		for _, ended := range h.daemons {
			<-ended
		}
		h.daemons = nil
		for end := time.Now().Add(patience); len(h.processes(r.tb)) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				r.tb.Fatalf("%s: processes %v are not gone", h.Name, h.processes(r.tb))
			}
		}
		if err := errors.Join(h.group.Close(), os.Remove(h.group.Name())); err != nil {
			r.tb.Fatal(err)
		}
	}
}

// fill makes the load's files, of random bytes that no mover can compress.
func (r *rig) fill(l load) {
	dir := r.send.Path(outDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.tb.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	for i := range l.count {
		name := fmt.Sprintf("image-%05d", i)
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			r.tb.Fatal(err)
		}
		h := sha512.New()
		_, err = io.CopyN(io.MultiWriter(f, h), random, l.size)
		if err := errors.Join(err, f.Close()); err != nil {
			r.tb.Fatal(err)
		}
		r.files = append(r.files, mover.File{
			Name: name, Size: l.size, Digest: digest.Digest{Algo: "sha512", Value: hex.EncodeToString(h.Sum(nil))},
		})
		r.size += l.size
	}
}

// command is a command on a host, in its group, with the least environment.
func (r *rig) command(ctx context.Context, h *host, env []string, name string, args ...string) *exec.Cmd {
	cmd := h.Command(ctx, name, args...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run", "LC_ALL=C.UTF-8"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(h.group.Fd())}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs a client to its end. The error has the last that it said.
func (r *rig) run(ctx context.Context, h *host, env []string, name string, args ...string) error {
	cmd := r.command(ctx, h, env, name, args...)
	cmd.Cancel = h.kill // what it has started included
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(said.String())
		return fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-500):])
	}
	return nil
}

// serve starts a server on a host and waits until it takes connections on a port.
func (r *rig) serve(h *host, env []string, port int, name string, args ...string) error {
	log, err := os.Create(filepath.Join(r.dir, fmt.Sprintf("%s-%s.log", h.Name, filepath.Base(name))))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := r.command(context.Background(), h, env, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	h.daemons = append(h.daemons, ended)
	late := time.After(patience)
	for {
		c, err := h.dial("tcp", net.JoinHostPort(h.Addr.String(), strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
		why := "does not listen"
		select {
		case <-time.After(20 * time.Millisecond):
			continue
		case <-ended:
			why = "has ended" // one that goes into the background is not for this
		case <-late:
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s %s, its port is %d: %s", name, why, port, text[max(0, len(text)-500):])
	}
}

func (h *host) dial(network, address string) (c net.Conn, err error) {
	if entered := h.Enter(func() { c, err = net.DialTimeout(network, address, patience) }); entered != nil {
		return nil, entered
	}
	return c, err
}

// kill kills all processes of the host's group.
func (h *host) kill() error {
	return os.WriteFile(filepath.Join(h.group.Name(), "cgroup.kill"), []byte("1"), 0)
}

func (h *host) processes(tb testing.TB) []string {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(h.group.Name(), "cgroup.procs"))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Fields(string(text))
}

// cpu is the time that the host's processes have been on a processor, those that
// have ended included.
func (h *host) cpu(tb testing.TB) float64 {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join(h.group.Name(), "cpu.stat"))
	if err != nil {
		tb.Fatal(err)
	}
	var usec float64
	if _, err := fmt.Sscanf(string(text), "usage_usec %g", &usec); err != nil {
		tb.Fatalf("cpu.stat: %v in %q", err, text)
	}
	return usec / 1e6
}

// memory is what the host's processes have resident now, in bytes. One that ends
// meanwhile has nothing.
func (h *host) memory(tb testing.TB) (n int64) {
	tb.Helper()
	for _, pid := range h.processes(tb) {
		text, _ := os.ReadFile(filepath.Join("/proc", pid, "statm"))
		var all, resident int64
		if _, err := fmt.Sscan(string(text), &all, &resident); err == nil {
			n += resident * int64(os.Getpagesize())
		}
	}
	return n
}

// retransmits is TcpRetransSegs of nstat(8).
func (h *host) retransmits(tb testing.TB) (n int64) {
	tb.Helper()
	const name = "TcpRetransSegs"
	text := h.Run(tb, "nstat", "-asz", name)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("nstat has no %s: %q", name, text)
	return 0
}

// watch follows the memory of both hosts until it is told to stop, and then says
// how much was the most.
func (r *rig) watch() (stop func() (send, recv int64)) {
	quit := make(chan struct{})
	done := make(chan struct{})
	var send, recv int64
	go func() {
		defer close(done)
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			send, recv = max(send, r.send.memory(r.tb)), max(recv, r.recv.memory(r.tb))
			select {
			case <-tick.C:
			case <-quit:
				tick.Stop()
				return
			}
		}
	}()
	return func() (int64, int64) {
		close(quit)
		<-done
		return max(send, r.send.memory(r.tb)), max(recv, r.recv.memory(r.tb))
	}
}

// measure runs a mover once.
func (r *rig) measure(m peer, limit time.Duration) (out run) {
	out.Mover = m.name
	in := r.recv.Path(inDir)
	if err := errors.Join(os.RemoveAll(in), os.Mkdir(in, 0o755)); err != nil {
		r.tb.Fatal(err)
	}
	r.begin()
	defer r.end()
	move, err := m.start(r)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	lab.Touch(r.tb, r.size+r.size/4)
	ctx, cancel := context.WithTimeout(r.tb.Context(), limit)
	defer cancel()
	sendCPU, recvCPU, again := r.send.cpu(r.tb), r.recv.cpu(r.tb), r.send.retransmits(r.tb)+r.recv.retransmits(r.tb)
	most := r.watch()
	begin := time.Now()
	err = move(ctx)
	out.Seconds = time.Since(begin).Seconds()
	out.SendMemory, out.RecvMemory = most()
	out.SendCPU, out.RecvCPU = r.send.cpu(r.tb)-sendCPU, r.recv.cpu(r.tb)-recvCPU
	out.Retransmits = r.send.retransmits(r.tb) + r.recv.retransmits(r.tb) - again
	out.Bytes, out.Finished = r.size, err == nil
	switch {
	case err == nil && !m.discards:
		err = r.compare(filepath.Join(in, m.arrivals))
	case ctx.Err() != nil:
		if s, told := errors.AsType[*stopped](err); told {
			out.Bytes, err = s.moved, nil
			break
		}
		out.Bytes, err = arrived(in)
		out.Bytes = min(out.Bytes, r.size)
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}

// compare holds that all files have arrived in dir as they were sent.
func (r *rig) compare(dir string) error {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, f := range r.files {
		if err := same(filepath.Join(r.send.Path(outDir), f.Name), filepath.Join(dir, f.Name), a, b); err != nil {
			return fmt.Errorf("what arrived is not what was sent: %w", err)
		}
	}
	return nil
}

func same(x, y string, a, b []byte) error {
	fx, err := os.Open(x)
	if err != nil {
		return err
	}
	defer fx.Close()
	fy, err := os.Open(y)
	if err != nil {
		return err
	}
	defer fy.Close()
	for {
		n, errX := io.ReadFull(fx, a)
		m, errY := io.ReadFull(fy, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("%s has other bytes, or another size", y)
		}
		if errX != nil || errY != nil {
			return nil // equal, so both ended
		}
	}
}

// arrived is how many bytes of memory the files in dir take: a file that is long and
// empty has not arrived.
func arrived(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	return n, err
}

func write(tb testing.TB, name, text string) string {
	tb.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	return name
}
