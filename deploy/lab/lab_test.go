package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
)

func need(t testing.TB) {
	t.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs root and network namespaces; `make test` runs it")
	}
}

// two returns two machines with a path between them.
func two(t testing.TB, p wan.Path) (a, b *lab.Machine, e *wan.Emulator) {
	t.Helper()
	a, b = lab.NewMachine(t, "a"), lab.NewMachine(t, "b")
	e = lab.ConnectOver(t, p, a, "10.0.0.1/24", b, "10.0.0.2/24")
	return a, b, e
}

// roomy gives sockets room for what a path holds.
func roomy(t testing.TB, machines ...*lab.Machine) {
	t.Helper()
	for _, m := range machines {
		m.Run(t, "sysctl", "-qw", "net.ipv4.tcp_rmem=4096 131072 67108864", "net.ipv4.tcp_wmem=4096 131072 67108864",
			"net.ipv4.tcp_no_metrics_save=1")
	}
}

// serve accepts connections on a machine and does that with each, until the test ends.
func serve(t testing.TB, m *lab.Machine, do func(net.Conn)) string {
	t.Helper()
	var l net.Listener
	var err error
	m.Within(t, func() { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(m.Addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				do(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		served.Wait()
	})
	return l.Addr().String()
}

// dial connects from a machine, with that congestion control.
func dial(t testing.TB, m *lab.Machine, address, control string) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	d := net.Dialer{Timeout: 20 * time.Second, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, control)
		}), err)
	}}
	m.Within(t, func() { c, err = d.Dial("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// rate is what TCP connections from a to b carry together, in bits per second of
// their payload, for a time after another to get under way, and the median of the round
// trips that they saw.
func rate(t testing.TB, a, b *lab.Machine, control string, connections int, warm, span time.Duration) (bits float64, rtt time.Duration) {
	t.Helper()
	var arrived atomic.Int64
	address := serve(t, b, func(c net.Conn) {
		buf := make([]byte, 1<<20)
		for {
			n, err := c.Read(buf)
			arrived.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	var sending sync.WaitGroup
	var all []net.Conn
	for range connections {
		c := dial(t, a, address, control)
		all = append(all, c)
		sending.Go(func() {
			buf := make([]byte, 1<<20)
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		})
	}
	time.Sleep(warm)
	begin, n := time.Now(), arrived.Load()
	const looks = 50
	var trips []time.Duration
	for range looks {
		time.Sleep(span / looks)
		for _, c := range all {
			trips = append(trips, roundTripOf(t, c))
		}
	}
	slices.Sort(trips)
	took, n := time.Since(begin), arrived.Load()-n
	for _, c := range all {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	sending.Wait()
	return float64(n) * 8 / took.Seconds(), trips[len(trips)/2]
}

// roundTripOf is what the kernel believes of a connection.
func roundTripOf(t testing.TB, c net.Conn) time.Duration {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if ctl := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); ctl != nil || err != nil {
		t.Fatal(ctl, err)
	}
	return time.Duration(info.Rtt) * time.Microsecond
}

// roundTrip is the shortest time of many in which one byte went there and came back.
func roundTrip(t *testing.T, a, b *lab.Machine) time.Duration {
	t.Helper()
	c := dial(t, a, serve(t, b, func(c net.Conn) { _, _ = io.Copy(c, c) }), "cubic")
	defer c.Close()
	shortest := time.Hour
	for range 20 {
		begin := time.Now()
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		shortest = min(shortest, time.Since(begin))
	}
	return shortest
}

// BenchmarkPath tells what a path of 1 Gbit/s and 50 ms carries, of 941 Mbit/s, and
// what the emulator and both ends, which are this process, cost.
func BenchmarkPath(b *testing.B) {
	need(b)
	for b.Loop() {
		x, y, e := two(b, wan.Path{Delay: 25 * time.Millisecond, Rate: 1e9})
		roomy(b, x, y)
		begin := cpu(b)
		got, _ := rate(b, x, y, "cubic", 4, 4*time.Second, 10*time.Second)
		there, _ := e.Counts()
		b.ReportMetric(got/1e6, "Mbit/s")
		b.ReportMetric((cpu(b)-begin).Seconds()/float64(there.Sent*1448)*(1<<30), "cpu-s/GiB")
	}
}

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestAPathTakesItsTime(t *testing.T) {
	need(t)
	for _, delay := range []time.Duration{0, 500 * time.Microsecond, 25 * time.Millisecond} {
		a, b, _ := two(t, wan.Path{Delay: delay, Rate: 1e9})
		if got := roundTrip(t, a, b); got < 2*delay || got > 2*delay+5*time.Millisecond {
			t.Errorf("a round trip takes %v, want %v and little more", got, 2*delay)
		}
	}
}

// TestAPathGoesBeforeItsHosts holds that the emulator's thread is a real-time one while it
// runs, and none is afterwards.
func TestAPathGoesBeforeItsHosts(t *testing.T) {
	need(t)
	needRealTime(t)
	before := realTime(t)
	t.Run("path", func(t *testing.T) {
		a, b, _ := two(t, wan.Path{})
		roundTrip(t, a, b)
		if n := realTime(t) - before; n != 1 {
			t.Errorf("%d threads are real-time ones, want 1", n)
		}
	})
	if n := realTime(t) - before; n != 0 {
		t.Errorf("%d threads are left real-time ones", n)
	}
}

// needRealTime skips a test where the emulator goes on without a real-time thread, because
// it may have none.
func needRealTime(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	}
	if err != nil {
		t.Skipf("no thread may be a real-time one here: %v", err)
	}
	if err := unix.SchedSetAttr(0, before, 0); err != nil {
		t.Fatal(err)
	}
}

// realTime counts this process's threads that are scheduled first in, first out.
func realTime(t *testing.T) (n int) {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, fields, _ := strings.Cut(string(text), ") ") // see proc_pid_stat(5): the third field is next
		if f := strings.Fields(fields); len(f) > 38 && f[38] == strconv.Itoa(unix.SCHED_FIFO) {
			n++
		}
	}
	return n
}

// figure is what TCP makes of a path.
type figure struct {
	name        string
	path        wan.Path
	control     string
	connections int
	want        float64 // bits per second
}

// figures are those of an Ethernet, full but for headers and gaps, and of TCP Reno
// with random loss p: MSS/RTT × √(3/2)/√p, from Mathis, Semke, Mahdavi and Ott, "The
// macroscopic behavior of the TCP congestion avoidance algorithm", CCR 27(3), 1997.
// Linux opens its window by what was acknowledged, however many acknowledgements told
// it, so the constant is that without delayed ones.
func figures() (all []figure) {
	full := func(name string, p wan.Path) {
		payload := p.Packet() - 52 // headers of IP, and of TCP with a timestamp
		all = append(all, figure{name, p, "cubic", 4, p.Rate * float64(payload) / float64(p.Packet()+38)})
	}
	// The queue is longer than a host that has other work is away.
	full("20 Mbit/s", wan.Path{Delay: 10 * time.Millisecond, Rate: 20e6, Queue: 4 << 20})
	full("100 Mbit/s, jumbo frames", wan.Path{Delay: 10 * time.Millisecond, Rate: 100e6, Queue: 4 << 20, MTU: 9000})
	lossy := func(loss float64) {
		p := wan.Path{Delay: 20 * time.Millisecond, Rate: 1e9, Queue: 64 << 20, Loss: loss}
		const connections, mss = 8, 1448
		all = append(all, figure{fmt.Sprintf("Mathis, loss %g", loss), p, "reno", connections,
			connections * mss * 8 / (2 * p.Delay.Seconds()) * math.Sqrt(1.5/loss)})
	}
	lossy(0.001)
	lossy(0.004)
	return all
}

// hold fails the test where TCP from a to b comes to another rate. A window that was
// halved for a loss is short of packets until it is mended, so Reno comes to less
// than the formula, not to more.
func (f figure) hold(t *testing.T, a, b *lab.Machine) {
	t.Helper()
	roomy(t, a, b)
	got, rtt := rate(t, a, b, f.control, f.connections, 4*time.Second, 10*time.Second)
	want, low, high := f.want, 0.8, 1.02
	if f.path.Loss > 0 {
		want *= 2 * float64(f.path.Delay) / float64(rtt) // hosts that have other work add to it
		low, high = 0.75, 1.2
	}
	t.Logf("round trip %v; %.1f Mbit/s, want %.1f, ratio %.2f", rtt, got/1e6, want/1e6, got/want)
	if got < low*want || got > high*want {
		t.Errorf("%s: %.1f Mbit/s, want %.1f", f.name, got/1e6, want/1e6)
	}
}

func TestAPathComesToTheFigures(t *testing.T) {
	need(t)
	for _, f := range figures() {
		t.Run(f.name, func(t *testing.T) {
			a, b, e := two(t, f.path)
			f.hold(t, a, b)
			there, _ := e.Counts()
			share := float64(there.Lost) / float64(there.Sent)
			if math.Abs(share-f.path.Loss) > 5*math.Sqrt(f.path.Loss/float64(there.Sent)) {
				t.Errorf("%.5f of the packets were lost, want %v", share, f.path.Loss)
			}
			if f.path.Loss > 0 && there.Overflowed > 0 {
				t.Errorf("%d packets found the queue full, want random loss alone", there.Overflowed)
			}
		})
	}
}

// TestALossIsARetransmission holds that what the hosts hand over as one packet of
// 64 KiB loses single packets of the wire.
func TestALossIsARetransmission(t *testing.T) {
	need(t)
	a, b, e := two(t, wan.Path{Delay: time.Millisecond, Rate: 1e9, Loss: 0.002})
	const size = 64 << 20
	done := make(chan int64, 1)
	address := serve(t, b, func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		done <- n
	})
	c := dial(t, a, address, "cubic")
	defer c.Close()
	buf := make([]byte, 1<<20)
	for range size / len(buf) {
		if _, err := c.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	if got := <-done; got != size {
		t.Errorf("%d bytes arrived, want %d", got, size)
	}
	there, _ := e.Counts()
	retransmitted := counter(t, a, "TcpRetransSegs")
	t.Logf("%d retransmissions, %+v", retransmitted, there)
	if least := int64(size / 1448); there.Sent < least {
		t.Errorf("%d packets for %d bytes, want %d at least", there.Sent, size, least)
	}
	missing := there.Lost + there.Overflowed
	if retransmitted < missing-3 || retransmitted > missing+missing/4+20 {
		t.Errorf("%d packets were sent again, want the %d that went missing, but for bare acknowledgements, and few more", retransmitted, missing)
	}
}

// counter reads one of nstat(8) on a machine.
func counter(t *testing.T, m *lab.Machine, name string) (n int64) {
	t.Helper()
	for line := range strings.Lines(m.Run(t, "nstat", "-az", name)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			for _, digit := range f[1] {
				n = n*10 + int64(digit-'0')
			}
		}
	}
	return n
}

// TestAPathThatIsForwardedKeepsItsBytes sends over two paths and a cable, with a
// machine between each two that forwards.
func TestAPathThatIsForwardedKeepsItsBytes(t *testing.T) {
	need(t)
	a, b, c, d := lab.NewMachine(t, "a"), lab.NewMachine(t, "b"), lab.NewMachine(t, "c"), lab.NewMachine(t, "d")
	lab.ConnectOver(t, wan.Path{Delay: 2 * time.Millisecond, Rate: 500e6, Loss: 0.001}, a, "10.0.1.1/24", b, "10.0.1.2/24")
	lab.Connect(t, b, "10.0.2.1/24", c, "10.0.2.2/24")
	lab.ConnectOver(t, wan.Path{Delay: 2 * time.Millisecond, Rate: 200e6}, c, "10.0.3.1/24", d, "10.0.3.2/24")
	for _, route := range []struct {
		m       *lab.Machine
		to, via string
	}{
		{a, "default", "10.0.1.2"}, {b, "10.0.3.0/24", "10.0.2.2"}, {c, "10.0.1.0/24", "10.0.2.1"}, {d, "default", "10.0.3.1"},
	} {
		route.m.Run(t, "ip", "route", "add", route.to, "via", route.via)
	}
	for _, m := range []*lab.Machine{b, c} {
		m.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
		m.Run(t, "ethtool", "-K", map[*lab.Machine]string{b: "c", c: "b"}[m], "tx", "off") // checksums are computed and looked at
	}
	type seen struct{ n, wrong int }
	done := make(chan seen, 1)
	address := serve(t, d, func(c net.Conn) {
		var s seen
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			for _, x := range buf[:n] {
				if x != pattern(s.n) {
					s.wrong++
				}
				s.n++
			}
			if err != nil {
				done <- s
				return
			}
		}
	})
	const size = 16 << 20
	conn := dial(t, a, address, "cubic")
	data := make([]byte, size)
	for i := range data {
		data[i] = pattern(i)
	}
	if _, err := conn.Write(data); err != nil {
		t.Error(err)
	}
	_ = conn.Close()
	if got := <-done; got.n != size || got.wrong > 0 {
		t.Errorf("%d bytes arrived, %d of them wrong, want %d", got.n, got.wrong, size)
	}
	if n := counter(t, d, "TcpInCsumErrors"); n > 0 {
		t.Errorf("%d packets came with a wrong checksum", n)
	}
}

// pattern has no period that a lost or doubled packet could hide behind.
func pattern(i int) byte { return byte(i ^ i>>8 ^ i>>16) }

func TestAPathLosesWhatComesToADeviceThatIsDown(t *testing.T) {
	need(t)
	a, b, _ := two(t, wan.Path{Delay: 20 * time.Millisecond})
	if got := roundTrip(t, a, b); got < 40*time.Millisecond {
		t.Errorf("a round trip of %v", got)
	}
	b.Run(t, "ip", "link", "set", "dev", "a", "down")
	if _, err := a.Output("ping", "-c", "1", "-W", "1", b.Addr.String()); err == nil {
		t.Error("a device that is down answers")
	}
	b.Run(t, "ip", "link", "set", "dev", "a", "up")
	if got := roundTrip(t, a, b); got < 40*time.Millisecond {
		t.Errorf("a round trip of %v", got)
	}
}

// TestAFirewallLetsOneEndOpenConnections also has bytes go both ways over them.
func TestAFirewallLetsOneEndOpenConnections(t *testing.T) {
	need(t)
	a, b, e := two(t, wan.Path{Firewall: true})
	echo := func(c net.Conn) { _, _ = io.Copy(c, c) }
	d := net.Dialer{Timeout: time.Second}
	address := serve(t, b, echo)
	a.Within(t, func() {
		if c, err := d.Dial("tcp", address); err == nil {
			_ = c.Close()
			t.Error("the firewall lets the first end open a connection")
		}
	})
	if there, _ := e.Counts(); there.Refused == 0 {
		t.Errorf("%+v, want packets that were refused", there)
	}
	c := dial(t, b, serve(t, a, echo), "cubic")
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err := c.Write([]byte("?"))
	if _, readErr := io.ReadFull(c, make([]byte, 1)); err != nil || readErr != nil {
		t.Errorf("the second end: %v, %v", err, readErr)
	}
}

func TestAMachineIsApart(t *testing.T) {
	need(t)
	var gone string
	t.Run("while it is there", func(t *testing.T) {
		m := lab.NewMachine(t, "apart")
		if got := strings.TrimSpace(m.Run(t, "hostname")); got != "apart" {
			t.Errorf("its name is %q", got)
		}
		if got := m.Run(t, "ip", "-br", "link"); strings.Count(got, "\n") != 1 {
			t.Errorf("its interfaces are %q, want lo alone", got)
		}
		for _, dir := range []string{"/run", t.TempDir()} {
			if dir != "/run" {
				m.Run(t, "mount", "-t", "tmpfs", "tmpfs", dir)
			}
			m.Run(t, "touch", filepath.Join(dir, "lab-test-file"))
			if _, err := os.Stat(filepath.Join(dir, "lab-test-file")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("what it makes in %s is here too: %v", dir, err)
			}
			if _, err := os.Stat(m.Path(filepath.Join(dir, "lab-test-file"))); err != nil {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cmd := m.Command(ctx, "sleep", "infinity")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = cmd.Wait()
		gone = m.Path("/")
	})
	if _, err := os.Stat(gone); err == nil {
		t.Errorf("%s is there after the test", gone)
	}
}
