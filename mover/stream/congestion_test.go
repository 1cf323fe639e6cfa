package stream

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestAPathThatLosesPacketsIsNamed(t *testing.T) {
	const s = time.Second
	lossy := mover.Path{Congestion: "cubic", Busy: 10 * s, Sent: 1e9, Retransmits: 1e6}
	for name, c := range map[string]struct {
		path   mover.Path
		rtt    time.Duration
		chosen string
		want   string // of the advice
	}{
		"lossy":        {lossy, near, "", "0.1 % of the bytes were sent again), each of which cubic takes for congestion"},
		"by default":   {lossy, near, AutoCongestion, "with bbr in net.ipv4.tcp_allowed_congestion_control"},
		"the host's":   {lossy, near, HostCongestion, "congestion: auto instead of host into dtn.yaml"},
		"chosen":       {lossy, near, "cubic", "congestion: auto instead of cubic into dtn.yaml"},
		"near":         {lossy, near - 1, "", ""},
		"nearly clean": {mover.Path{Congestion: "cubic", Busy: 10 * s, Sent: 1e9, Retransmits: 1e4}, near, "", ""},
		"too early":    {mover.Path{Congestion: "cubic", Busy: 2 * s, Sent: 1e9, Retransmits: 1e6}, near, "", ""},
		"BBR":          {mover.Path{Congestion: "bbr", Busy: 10 * s, Sent: 1e9, Retransmits: 1e6}, near, "", ""},
		"its second":   {mover.Path{Congestion: "bbr2", Busy: 10 * s, Sent: 1e9, Retransmits: 1e6}, near, "", ""},
		"unknown":      {mover.Path{Busy: 10 * s, Sent: 1e9, Retransmits: 1e6}, near, "", ""},
	} {
		got := lossAdvice(c.path, c.rtt, c.chosen)
		if !strings.Contains(got, c.want) || got == "" != (c.want == "") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if byDefault := c.chosen == "" || c.chosen == AutoCongestion; byDefault && strings.Contains(got, "dtn.yaml") {
			t.Errorf("%s: %q, though nobody has chosen", name, got)
		}
	}
}

// TestLanesDoNotWaitForAFilesAnswer has a file announced: the lanes for it are wanted at once,
// but at a relay that stores it first.
func TestLanesDoNotWaitForAFilesAnswer(t *testing.T) {
	for _, c := range []struct {
		blocks  int64
		via     mover.Relay
		passage *passage
		want    int
	}{
		{1, mover.Relay{}, nil, 1},
		{3, mover.Relay{}, nil, 3},
		{40, mover.Relay{}, nil, 5},
		{40, mover.Relay{Address: "relay:1", Site: "C", Mode: mover.StoreForward}, nil, 5},
		{40, mover.Relay{}, &passage{opening: opening{Relay: mover.CutThrough}}, 5},
		{40, mover.Relay{}, &passage{opening: opening{Relay: mover.StoreForward}}, 0},
	} {
		ours, theirs := net.Pipe()
		theirs.Close()
		l := &link{engine: &Engine{}, control: tls.Client(ours, &tls.Config{ServerName: "x"})}
		l.changed.L = &l.mu
		r := mover.Request{Source: mover.File{Size: c.blocks * mover.BlockSize}, Destination: mover.Destination{Via: c.via}, PCP: mover.PCP{Parallelism: 5}}
		if _, err := l.open(r, nil, c.passage); err != nil {
			t.Fatal(err)
		}
		if got := l.wanted(); got != c.want {
			t.Errorf("%d blocks via %q: %d lanes are wanted, want %d", c.blocks, c.via.Site, got, c.want)
		}
	}
}
