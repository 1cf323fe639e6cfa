package guest

import "testing"

// Sites is the whole picture of ARCHITECTURE.md in one guest: two sites, each a
// controller and a DTN on a network of their own, and the wide area between the
// DTNs.
//
//	CtrlA 10.1.1.2 — 10.1.1.1 DTNA 10.1.0.1 — WAN — 10.2.0.1 DTNB 10.2.1.1 — 10.2.1.2 CtrlB
//
// The controllers reach each other and every DTN too, through the DTNs and the WAN.
type Sites struct {
	CtrlA, DTNA, WAN, DTNB, CtrlB *Machine
}

// NewSites connects the five machines. The WAN adds nothing until [Sites.Shape].
func NewSites(t testing.TB) *Sites {
	t.Helper()
	s := &Sites{
		CtrlA: NewMachine(t, "ctrlA"), DTNA: NewMachine(t, "dtnA"), WAN: NewMachine(t, "wan"),
		DTNB: NewMachine(t, "dtnB"), CtrlB: NewMachine(t, "ctrlB"),
	}
	Connect(t, s.CtrlA, "10.1.1.2/24", s.DTNA, "10.1.1.1/24")
	Connect(t, s.CtrlB, "10.2.1.2/24", s.DTNB, "10.2.1.1/24")
	Connect(t, s.DTNA, "10.1.0.1/24", s.WAN, "10.1.0.254/24")
	Connect(t, s.DTNB, "10.2.0.1/24", s.WAN, "10.2.0.254/24")
	for _, route := range []struct {
		m       *Machine
		to, via string
	}{
		{s.CtrlA, "default", "10.1.1.1"}, {s.DTNA, "default", "10.1.0.254"}, {s.WAN, "10.1.1.0/24", "10.1.0.1"},
		{s.CtrlB, "default", "10.2.1.1"}, {s.DTNB, "default", "10.2.0.254"}, {s.WAN, "10.2.1.0/24", "10.2.0.1"},
	} {
		route.m.Run(t, "ip", "route", "add", route.to, "via", route.via)
	}
	for _, m := range []*Machine{s.DTNA, s.WAN, s.DTNB} {
		m.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	}
	return s
}

// Shape has the WAN treat both directions with the parameters of tc-netem(8), as
// in "delay", "25ms", "rate", "100mbit". Packets are those of the wire, 1,500
// bytes at most, so that a loss is the loss of one.
func (s *Sites) Shape(t testing.TB, netem ...string) {
	t.Helper()
	for _, dtn := range []*Machine{s.DTNA, s.DTNB} {
		for _, end := range []struct {
			m   *Machine
			dev string
		}{{dtn, s.WAN.Name}, {s.WAN, dtn.Name}} {
			end.m.Run(t, "ethtool", "-K", end.dev, "tso", "off", "gso", "off", "gro", "off")
		}
		qdisc := []string{"qdisc", "replace", "dev", dtn.Name, "root", "netem", "limit", "100000"}
		s.WAN.Run(t, "tc", append(qdisc, netem...)...)
	}
}
