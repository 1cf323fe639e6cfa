package lab_test

import (
	"fmt"
	"testing"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
)

// TestKernelNetemComesToTheSame holds the kernel's own emulator, tc-netem(8), to what
// TestAPathComesToTheFigures holds ours to. It runs in the guest since few kernels
// have netem; ours runs outside, where a system call is not as dear as ten.
func TestKernelNetemComesToTheSame(t *testing.T) {
	guest.Need(t)
	for _, f := range figures() {
		if f.path.MTU > 0 || f.want > 50e6 {
			continue // a guest may have a quarter of a processor, and its cable packets of 1500 bytes
		}
		t.Run(f.name, func(t *testing.T) {
			a, b := throughNetem(t, f.path)
			f.hold(t, a, b)
		})
	}
}

// throughNetem returns two machines with a third between them, whose netem treats
// packets as they are on the wire: what TCP gives to the qdisc of its own machine are
// large segments, whatever ethtool(8) is told.
func throughNetem(t *testing.T, p wan.Path) (a, b *lab.Machine) {
	t.Helper()
	a, b = lab.NewMachine(t, "a"), lab.NewMachine(t, "b")
	router := lab.NewMachine(t, "router")
	lab.Connect(t, a, "10.0.1.1/24", router, "10.0.1.254/24")
	lab.Connect(t, b, "10.0.2.1/24", router, "10.0.2.254/24")
	router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	queue := float64(p.Queue)
	if queue == 0 {
		queue = p.Rate / 8 * 2 * p.Delay.Seconds()
	}
	travelling := p.Rate / 8 * p.Delay.Seconds() // netem counts these as waiting too
	for _, m := range []*lab.Machine{a, b} {
		m.Run(t, "ip", "route", "add", "default", "via", map[*lab.Machine]string{a: "10.0.1.254", b: "10.0.2.254"}[m])
		m.Run(t, "ethtool", "-K", router.Name, "tso", "off", "gso", "off", "gro", "off")
		router.Run(t, "ethtool", "-K", m.Name, "tso", "off", "gso", "off", "gro", "off")
		router.Run(t, "tc", "qdisc", "replace", "dev", m.Name, "root", "netem",
			"delay", p.Delay.String(), "loss", "random", fmt.Sprintf("%g%%", p.Loss*100),
			"rate", fmt.Sprintf("%.0fbit", p.Rate), "24", // the rest of the frame; the Ethernet header it counts itself
			"limit", fmt.Sprintf("%.0f", (queue+travelling)/1538))
	}
	return a, b
}
