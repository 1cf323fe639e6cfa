package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
)

// Connect lays a cable between two machines. Its end in a has b's name and the
// address at, in the form of 10.0.0.1/24, and the other way round.
func Connect(t testing.TB, a *Machine, at string, b *Machine, bt string) {
	t.Helper()
	a.ip(t, fmt.Sprintf("link add name %s type veth peer name %s netns %d", b.Name, a.Name, b.pid))
	a.plug(t, b.Name, at)
	b.plug(t, a.Name, bt)
	if a.pid == os.Getpid() {
		t.Cleanup(func() { a.ip(t, "link delete dev "+b.Name) })
	}
}

// ConnectOver lays a wide area path between two machines, with ends as those of
// [Connect]. The emulator is a thread of the test's process.
func ConnectOver(t testing.TB, p wan.Path, a *Machine, at string, b *Machine, bt string) *wan.Emulator {
	t.Helper()
	var ends [2]*wan.TUN
	for i, end := range []struct{ m, peer *Machine }{{a, b}, {b, a}} {
		var err error
		end.m.Within(t, func() { ends[i], err = wan.OpenTUN(end.peer.Name) })
		if err != nil {
			t.Fatalf("the path from %s to %s: %v", end.m.Name, end.peer.Name, err)
		}
		end.m.ip(t, fmt.Sprintf("link set dev %s mtu %d txqueuelen 10000", end.peer.Name, p.Packet()))
	}
	e, err := wan.New(p, ends[0], ends[1])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the path between %s and %s: %v", a.Name, b.Name, err)
		}
		_ = ends[0].Close()
		_ = ends[1].Close()
	})
	a.plug(t, b.Name, at)
	b.plug(t, a.Name, bt)
	return e
}

// plug gives an interface its address, in the form of 10.0.0.1/24, and sets it up.
func (m *Machine) plug(t testing.TB, dev, address string) {
	t.Helper()
	m.ip(t, "addr add "+address+" dev "+dev, "link set dev "+dev+" up")
	if m.Addr.IsLoopback() {
		m.Addr = netip.MustParsePrefix(address).Addr()
	}
}
