package stream

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/mover"
)

// newFarRig makes a rig whose ends are two machines with a path between them.
func newFarRig(t *testing.T, p wan.Path) *rig {
	t.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs root and network namespaces; `make test` runs it")
	}
	a, b := lab.NewMachine(t, "a"), lab.NewMachine(t, "b")
	lab.ConnectOver(t, p, a, "10.0.0.1/24", b, "10.0.0.2/24")
	r := prepare(t)
	e := r.rig.Engine.(*Engine)
	e.Dial = func(ctx context.Context, network, address string) (c net.Conn, err error) {
		if entered := a.Enter(func() { c, err = new(net.Dialer).DialContext(ctx, network, address) }); entered != nil {
			return nil, entered
		}
		return c, err
	}
	conf := e.TLS
	e.TLS = func() *tls.Config {
		c := conf()
		c.ServerName = "127.0.0.1" // as the certificate says
		return c
	}
	b.Within(t, func() { r.start(t, "10.0.0.2:0") })
	t.Cleanup(func() { r.stop() })
	return r
}

// TestAWideAreaIsTold moves between two machines over a path that is narrow and loses
// packets.
func TestAWideAreaIsTold(t *testing.T) {
	const delay, blocks = 20 * time.Millisecond, 32
	r := newFarRig(t, wan.Path{Delay: delay, Rate: 100e6, Loss: 0.01})
	req := r.request(t, r.stage(t, "image", blocks*mover.BlockSize))
	req.PCP.Parallelism = 4
	var last mover.Progress
	named := map[mover.Place]int{}
	err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
		last = p
		named[p.Way.Bottleneck.Place]++
	})
	if err != nil {
		t.Fatal(err)
	}
	w := last.Way
	t.Logf("%+v", w)
	if w.Bottleneck.Place != mover.Network {
		t.Errorf("the bottleneck is the %v, want the network; on the way %v", w.Bottleneck, named)
	}
	if p := w.Path; p.MinRTT < 2*delay || p.RTT < p.MinRTT || p.Retransmits <= 0 || p.Sent < blocks*mover.BlockSize || p.Rate <= 0 || p.Busy <= 0 {
		t.Errorf("the path is %+v", p)
	}
}
