package tcp

import (
	"io"
	"math"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/nettest"
)

func TestThePathIsWhatTheKernelTells(t *testing.T) {
	ours, theirs := nettest.Pair(t)
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.CopyN(io.Discard, theirs, 1<<20) })
	if _, err := ours.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
	p, ok := PathOf(ours)
	if !ok || p.Sent < 1<<20 || p.Retransmits >= p.Sent || p.RTT <= 0 || p.MinRTT <= 0 || p.Rate <= 0 || p.Window <= 0 || p.Congestion == "" {
		t.Errorf("%+v, %v", p, ok)
	}
	ours.Close()
	if p, ok := PathOf(ours); ok {
		t.Errorf("of a closed connection: %+v", p)
	}
	if n := SendBuffer(); n <= 0 {
		t.Errorf("a send buffer may have %d bytes", n)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if p, ok := PathOf(a); ok {
		t.Errorf("of a pipe: %+v", p)
	}
}

func TestPaceIsTheKernels(t *testing.T) {
	ours, _ := nettest.Pair(t)
	for _, c := range []struct {
		rate float64
		want uint64
	}{{800e6, 100e6}, {1, 1}, {400e9, 50e9}, {0, math.MaxUint64}} {
		if !Pace(ours, c.rate) {
			t.Fatal("the kernel does not pace")
		}
		var got uint64
		var err error
		onSocket(ours, func(fd int) { got, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE) })
		if err != nil || got != c.want {
			t.Errorf("%v bit/s: the kernel has %d bytes per second, %v; want %d", c.rate, got, err, c.want)
		}
	}
}

// TestTheCongestionControlIsTheOneThatIsNamed uses reno, which every kernel has and lets
// everybody use.
func TestTheCongestionControlIsTheOneThatIsNamed(t *testing.T) {
	ours, _ := nettest.Pair(t)
	was, _ := PathOf(ours)
	if Control(ours, "nonesuch") || CheckControl("nonesuch") == nil {
		t.Error("the kernel is said to have one that nobody has made")
	}
	if p, _ := PathOf(ours); p.Congestion != was.Congestion {
		t.Errorf("what is refused changes %s to %s", was.Congestion, p.Congestion)
	}
	if err := CheckControl("reno"); err != nil || !Control(ours, "reno") {
		t.Errorf("reno is refused: %v", err)
	}
	if p, _ := PathOf(ours); p.Congestion != "reno" {
		t.Errorf("%s controls the connection, want reno", p.Congestion)
	}
	ours.Close()
	if Control(ours, "reno") || Pace(ours, 1) {
		t.Error("a closed connection is steered")
	}
}

// TestAHeaderIsNoPacketOfItsOwn counts the segments that carry a header and what follows it.
// The kernel waits for that for 200 ms only, which a busy host may let pass.
func TestAHeaderIsNoPacketOfItsOwn(t *testing.T) {
	ours, theirs := nettest.Pair(t)
	sent := func() uint32 {
		t.Helper()
		var info *unix.TCPInfo
		var err error
		if !onSocket(ours, func(fd int) { info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO) }) || err != nil {
			t.Fatal(err)
		}
		return info.Data_segs_out
	}
	least := uint32(math.MaxUint32)
	for range 10 {
		before := sent()
		if n, err := WriteMore(ours, []byte("header")); n != 6 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if _, err := ours.Write([]byte("block")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 11)
		if _, err := io.ReadFull(theirs, got); err != nil || string(got) != "headerblock" {
			t.Fatalf("%q came, %v", got, err)
		}
		least = min(least, sent()-before)
	}
	if least != 1 {
		t.Errorf("a header and what follows it are %d segments, want 1", least)
	}
	ours.Close()
	if _, err := WriteMore(ours, []byte("x")); err == nil {
		t.Error("a closed connection takes something")
	}
}
