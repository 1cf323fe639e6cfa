package stream

import (
	"cmp"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

// bbr is the congestion control for a path that is not near. It goes by the path's
// bandwidth and round trip time, where the usual ones take each lost packet for
// congestion. Where no packet is lost it is as fast as they are.
// (Cardwell et al., BBR: Congestion-Based Congestion Control, ACM Queue 14(5), 2016.)
const bbr = "bbr"

// cubic is the one for a near path where the host's own is bbr: pacing costs up to a fifth of
// the rate where processors are what limits it. (RFC 9438.)
const cubic = "cubic"

// What stands for a congestion control besides the kernel's names.
const (
	AutoCongestion = "auto" // bbr where the receiver is not near and the kernel lets us use it, else the host's own, or cubic if that is bbr
	HostCongestion = "host" // the one that the host uses by itself
)

// steer has a connection of the link controlled as the engine says. Where the kernel does
// not the host's own control stays, as the link's path tells.
func (l *link) steer(c net.Conn) {
	switch name := cmp.Or(l.engine.Congestion, AutoCongestion); {
	case name == HostCongestion:
	case name != AutoCongestion:
		tcp.Control(c, name)
	case l.rtt >= near:
		tcp.Control(c, bbr)
	case fastInLoss(c):
		tcp.Control(c, cubic)
	}
}

// CheckCongestion tells why connections cannot have a congestion control.
func CheckCongestion(name string) error {
	if name == AutoCongestion || name == HostCongestion {
		return nil
	}
	if err := tcp.CheckControl(name); err != nil {
		return fmt.Errorf("this kernel does not give %s: %w; load its module, modprobe tcp_%[1]s, and put it into net.ipv4.tcp_allowed_congestion_control, "+
			"or choose one of those in net.ipv4.tcp_available_congestion_control", name, err)
	}
	return nil
}

// fastInLoss reports whether lost packets do not slow c down.
func fastInLoss(c net.Conn) bool {
	p, _ := tcp.PathOf(c)
	return strings.HasPrefix(p.Congestion, bbr) // a later version has a number
}

// leastLost is the part of the bytes sent again from which on loss is worth a word.
const leastLost = 2e-5

// lossAdvice says what to do about a path that loses packets, when connections over it were
// to have the congestion control chosen; empty: nothing. A near one is well off without BBR.
func lossAdvice(p mover.Path, rtt time.Duration, chosen string) string {
	lost := float64(p.Retransmits) / float64(max(p.Sent, 1))
	if rtt < near || p.Busy < leastBusy || lost < leastLost || p.Congestion == "" || strings.HasPrefix(p.Congestion, bbr) {
		return ""
	}
	do := "let this DTN use BBR, with modprobe tcp_bbr and with bbr in net.ipv4.tcp_allowed_congestion_control"
	if chosen = cmp.Or(chosen, AutoCongestion); chosen != AutoCongestion {
		do += fmt.Sprintf(", and put congestion: auto instead of %s into dtn.yaml", chosen)
	}
	return fmt.Sprintf("the path loses packets (%.2g %% of the bytes were sent again), each of which %s takes for congestion: %s", 100*lost, p.Congestion, do)
}
