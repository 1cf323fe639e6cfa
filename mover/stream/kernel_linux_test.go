package stream

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestFarPathsUseBBR holds that the kernel is asked for it on every connection of a link
// whose receiver is not near.
func TestFarPathsUseBBR(t *testing.T) {
	r := newRig(t)
	r.wires.plain = true
	e := r.rig.Engine.(*Engine)
	dial := e.Dial
	var mu sync.Mutex
	var conns []*net.TCPConn
	e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			mu.Lock()
			conns = append(conns, c.(*net.TCPConn))
			mu.Unlock()
			time.Sleep(2 * near) // fake
		}
		return c, err
	}
	f := r.stage(t, "image", 40*mover.BlockSize)
	var once sync.Once
	var used []string
	err := e.Move(t.Context(), r.request(t, f), func(n int64) {
		if n == 0 {
			return
		}
		once.Do(func() {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range conns {
				used = append(used, controlOf(t, c))
			}
			if !congestion(conns[0], bbr) {
				used = nil
				t.Log("this kernel, or its owner, does not let us have it")
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range used {
		if name != bbr {
			t.Errorf("a connection of %d uses %s", len(used), name)
		}
	}
}

// controlOf is the name of the algorithm that controls c's congestion.
func controlOf(t *testing.T, c *net.TCPConn) (name string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		})
	}
	if err != nil {
		t.Error(err)
	}
	return name
}
