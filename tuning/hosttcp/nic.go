package hosttcp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NIC is a network interface. What the driver does not tell is zero.
type NIC struct {
	Name        string `json:"name,omitempty"` // empty: there is none
	Speed       int64  `json:"speed_bps,omitempty"`
	MTU         int    `json:"mtu,omitempty"`
	QueueLength int    `json:"txqueuelen,omitempty"`
	Qdisc       string `json:"qdisc,omitempty"` // of the queues, where the root is mq
	RxRing      int    `json:"rx_ring,omitempty"`
	RxRingMax   int    `json:"rx_ring_max,omitempty"`
	TxRing      int    `json:"tx_ring,omitempty"`
	TxRingMax   int    `json:"tx_ring_max,omitempty"`
	MultiQueue  bool   `json:"multi_queue,omitempty"`
	LocalCPUs   string `json:"local_cpus,omitempty"` // those of its NUMA node, as in 0-7,16-23
	AllCPUs     string `json:"all_cpus,omitempty"`   // of the host
	Interrupts  []IRQ  `json:"interrupts,omitempty"`
	Adaptive    bool   `json:"adaptive_rx,omitempty"`
	CanCoalesce bool   `json:"can_coalesce,omitempty"`
	CanPause    bool   `json:"can_pause,omitempty"`
	RxPause     bool   `json:"rx_pause,omitempty"`
	TxPause     bool   `json:"tx_pause,omitempty"`
}

// IRQ is an interrupt of a NIC.
type IRQ struct {
	Number int    `json:"number"`
	CPUs   string `json:"cpus"` // that it may go to
}

// readNIC asks the kernel for an interface, over netlink and by ethtool's ioctls.
func (h *Host) readNIC(name string) (n NIC, err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return NIC{}, fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	link, err := findLink(nl, name)
	if err != nil || link == nil {
		return NIC{}, err
	}
	a := link.Attrs()
	n = NIC{Name: a.Name, MTU: a.MTU, QueueLength: a.TxQLen}
	if n.Qdisc, n.MultiQueue, err = readQdisc(nl, link); err != nil {
		return NIC{}, fmt.Errorf("qdiscs of %s: %w", n.Name, err)
	}
	dir := path.Join("/sys/class/net", n.Name)
	if mbits, err := strconv.ParseInt(h.line(path.Join(dir, "speed")), 10, 64); err == nil && mbits > 0 {
		n.Speed = mbits * 1e6
	}
	n.LocalCPUs, n.AllCPUs = h.line(path.Join(dir, "device/local_cpulist")), h.line("/sys/devices/system/cpu/online")
	irqs, _ := os.ReadDir(h.path(path.Join(dir, "device/msi_irqs"))) // none: virtual, or not by PCI
	for _, e := range irqs {
		if number, err := strconv.Atoi(e.Name()); err == nil {
			n.Interrupts = append(n.Interrupts, IRQ{number, h.line(path.Join("/proc/irq", e.Name(), "smp_affinity_list"))})
		}
	}
	et, err := ethtool.NewEthtool()
	if err != nil {
		return NIC{}, fmt.Errorf("open ethtool: %w", err)
	}
	defer et.Close()
	if r, err := et.GetRing(n.Name); err == nil { // else its driver has none to tell
		n.RxRing, n.RxRingMax, n.TxRing, n.TxRingMax = int(r.RxPending), int(r.RxMaxPending), int(r.TxPending), int(r.TxMaxPending)
	}
	if c, err := et.GetCoalesce(n.Name); err == nil {
		n.CanCoalesce, n.Adaptive = true, c.UseAdaptiveRxCoalesce != 0
	}
	if p, err := et.GetPause(n.Name); err == nil {
		n.CanPause, n.RxPause, n.TxPause = true, p.RxPause != 0, p.TxPause != 0
	}
	return n, nil
}

// findLink returns the interface of that name, or that of the default route; nil where
// there is none.
func findLink(nl *netlink.Handle, name string) (netlink.Link, error) {
	if name != "" {
		link, err := nl.LinkByName(name)
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			return nil, fmt.Errorf("this host has no network interface %s", name)
		}
		return link, err
	}
	for _, anywhere := range []net.IP{net.IPv4zero, net.IPv6unspecified} {
		family := netlink.FAMILY_V6
		if anywhere.To4() != nil {
			family = netlink.FAMILY_V4
		}
		routes, err := nl.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("read the routes: %w", err)
		}
		for _, r := range routes {
			if isDefault := r.Dst == nil || strings.HasSuffix(r.Dst.String(), "/0"); isDefault && r.LinkIndex > 0 {
				return nl.LinkByIndex(r.LinkIndex)
			}
		}
	}
	return nil, nil
}

// readQdisc returns the queueing discipline by which packets leave: where each of the
// NIC's queues has one, that of the queues.
func readQdisc(nl *netlink.Handle, link netlink.Link) (kind string, multi bool, err error) {
	all, err := nl.QdiscList(link)
	if err != nil {
		return "", false, err
	}
	for _, q := range all {
		if q.Attrs().Parent == netlink.HANDLE_ROOT {
			kind = q.Type()
		}
	}
	if kind != "mq" {
		return kind, false, nil
	}
	for _, q := range all {
		if q.Type() != "mq" {
			return q.Type(), true, nil
		}
	}
	return kind, true, nil
}
