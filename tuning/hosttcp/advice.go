package hosttcp

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/glance-dtn/glance-dtn/tuning"
)

// Advice is something that a person may do, since no file of settings keeps it.
type Advice struct {
	About   string   `json:"about"`
	Now     string   `json:"now"`
	Want    string   `json:"want"`
	Reason  string   `json:"reason"`
	Source  string   `json:"source"`
	Command []string `json:"command"`        // what does it, one a line
	Undo    []string `json:"undo,omitempty"` // what takes exactly that back
	Keep    string   `json:"keep,omitempty"` // how it outlives a restart
}

const (
	link   = "in a file of systemd.link(5)"
	netdev = "in a script of ifup(8), networkd-dispatcher(8) or NetworkManager-dispatcher(8)"
)

// Advise tells what else the path asks of the host. It is for the NIC as it is: none is
// given about what its driver does not tell.
func Advise(p tuning.Path, s State) []Advice {
	n := s.NIC
	var all []Advice
	add := func(wrong bool, a Advice) {
		if wrong {
			all = append(all, a)
		}
	}
	sh := func(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }
	rate := func(bits float64) string { return fmt.Sprintf("%.0f Mbit/s", bits/1e6) }

	if n.Name != "" {
		add(n.Speed > 0 && float64(n.Speed) < p.Bandwidth, Advice{
			About: "link", Now: rate(float64(n.Speed)), Want: rate(p.Bandwidth),
			Reason: "the path is no faster than the NIC: plan with its bandwidth, or use a faster one", Source: esnet,
			Command: sh("ethtool %s", n.Name),
		})
		add(slices.Contains([]string{"pfifo_fast", "fq_codel", "pfifo"}, n.Qdisc) && s.paces(), qdiscAdvice(n))
		add((s.paces() || n.Qdisc == "fq") && float64(n.Speed) > 1.05*p.Bandwidth, Advice{
			About: "pacing", Now: rate(float64(n.Speed)), Want: rate(p.Bandwidth),
			Reason: "the NIC is faster than the path, whose queues overflow before TCP hears of it. limits: in dtn.yaml paces the DTN's own connections; this paces each connection of every program",
			Source: esnetPacing, Command: sh("tc qdisc replace dev %s root fq maxrate %.0fmbit", n.Name, p.Bandwidth/1e6),
			Undo: oldQdisc(n), Keep: netdev,
		})
		// Of a queue that fq keeps the length is its own.
		const queue = 10000
		add(p.Bandwidth >= fast && strings.HasPrefix(n.Qdisc, "pfifo") && n.QueueLength < queue && !s.paces(), Advice{
			About: "txqueuelen", Now: fmt.Sprint(n.QueueLength), Want: fmt.Sprint(queue),
			Reason: "pfifo drops what is longer, before it has left this host", Source: esnet,
			Command: sh("ip link set dev %s txqueuelen %d", n.Name, queue), Undo: sh("ip link set dev %s txqueuelen %d", n.Name, n.QueueLength),
			Keep: fmt.Sprintf("TransmitQueueLength=%d %s", queue, link),
		})
		add(n.RxRing < n.RxRingMax || n.TxRing < n.TxRingMax, Advice{
			About: "rings", Now: fmt.Sprintf("rx %d tx %d", n.RxRing, n.TxRing), Want: fmt.Sprintf("rx %d tx %d", n.RxRingMax, n.TxRingMax),
			Reason: "packets that come faster than a CPU takes them wait there, or are lost", Source: esnet100G,
			Command: sh("ethtool -G %s rx %d tx %d", n.Name, n.RxRingMax, n.TxRingMax), Undo: sh("ethtool -G %s rx %d tx %d", n.Name, n.RxRing, n.TxRing),
			Keep: fmt.Sprintf("RxBufferSize=%d and TxBufferSize=%d %s", n.RxRingMax, n.TxRingMax, link),
		})
		const jumbo = 9000
		add(p.Bandwidth >= fast && n.MTU < jumbo, Advice{
			About: "MTU", Now: fmt.Sprint(n.MTU), Want: fmt.Sprint(jumbo),
			Reason: "a sixth of the packets for the same bytes. Only where every switch and router of the path takes them: ping -M do -s 8972 HOST tells", Source: "fasterdata.es.net/network-tuning/mtu-issues",
			Command: sh("ip link set dev %s mtu %d", n.Name, jumbo), Undo: sh("ip link set dev %s mtu %d", n.Name, n.MTU),
			Keep: fmt.Sprintf("MTUBytes=%d %s", jumbo, link),
		})
		if p.Bandwidth >= fast {
			add(n.CanCoalesce && !n.Adaptive, Advice{
				About: "interrupts", Now: "fixed coalescing", Want: "adaptive coalescing",
				Reason: "an interrupt for many packets where many come", Source: esnet100G,
				Command: sh("ethtool -C %s adaptive-rx on", n.Name), Undo: sh("ethtool -C %s adaptive-rx off", n.Name),
				Keep: "UseAdaptiveRxCoalesce=yes " + link,
			})
			add(n.CanPause && !(n.RxPause && n.TxPause), Advice{
				About: "pause frames", Now: "rx " + onOff(n.RxPause) + " tx " + onOff(n.TxPause), Want: "rx on tx on",
				Reason: "the switch holds back what a full ring would lose", Source: esnet100G,
				Command: sh("ethtool -A %s rx on tx on", n.Name), Undo: sh("ethtool -A %s rx %s tx %s", n.Name, onOff(n.RxPause), onOff(n.TxPause)),
				Keep: "RxFlowControl=yes and TxFlowControl=yes " + link,
			})
		}
		if a, far := irqAdvice(n); far {
			all = append(all, a)
		}
	}
	add(s.Governor != "" && s.Governor != "performance" && p.Bandwidth >= fast, Advice{
		About: "CPU governor", Now: s.Governor, Want: "performance",
		Reason: "a clock that follows the load is slow when a burst comes", Source: esnet100G,
		Command: sh("cpupower frequency-set -g performance"), Undo: sh("cpupower frequency-set -g %s", s.Governor),
		Keep: "systemctl enable cpupower, where the distribution has that unit",
	})
	return all
}

// oldQdisc returns what makes the NIC's root qdisc again: mq gives its queues the default.
func oldQdisc(n NIC) []string {
	if n.MultiQueue {
		return []string{fmt.Sprintf("sysctl -w %s=%s", keyQdisc, n.Qdisc), fmt.Sprintf("tc qdisc replace dev %s root handle 2: mq", n.Name)}
	}
	return []string{fmt.Sprintf("tc qdisc replace dev %s root %s", n.Name, n.Qdisc)}
}

// qdiscAdvice is about an interface that is up: default_qdisc is for those that come. The
// queues of a NIC with several are given the new default when mq is made anew.
func qdiscAdvice(n NIC) Advice {
	a := Advice{
		About: "qdisc", Now: n.Qdisc, Want: "fq",
		Reason: "default_qdisc is for interfaces that come up later: this one keeps what it has until then", Source: esnetPacing,
		Command: []string{fmt.Sprintf("tc qdisc replace dev %s root fq", n.Name)},
		Undo:    oldQdisc(n),
		Keep:    "net.core.default_qdisc",
	}
	if n.MultiQueue {
		a.Command = []string{fmt.Sprintf("tc qdisc replace dev %s root handle 1: mq", n.Name)}
		a.Reason += "; after net.core.default_qdisc is set, mq made anew gives each of its queues that"
	}
	return a
}

// irqAdvice is about a NIC whose interrupts go to CPUs of another NUMA node.
func irqAdvice(n NIC) (Advice, bool) {
	local, all := cpus(n.LocalCPUs), cpus(n.AllCPUs)
	if len(local) == 0 || !slices.ContainsFunc(all, func(c int) bool { return !slices.Contains(local, c) }) {
		return Advice{}, false // one node, or none that is told
	}
	a := Advice{
		About: "IRQ affinity", Want: n.LocalCPUs,
		Reason: "what arrives is then in the cache of a CPU beside the NIC. irqbalance(1) would move them again: stop it, or name them with --banirq", Source: esnet100G,
		Keep: "a unit of systemd.service(5) that runs these commands",
	}
	far := 0
	for _, irq := range n.Interrupts {
		if irq.CPUs == "" || !slices.ContainsFunc(cpus(irq.CPUs), func(c int) bool { return !slices.Contains(local, c) }) {
			continue
		}
		far++
		a.Command = append(a.Command, fmt.Sprintf("echo %s >/proc/irq/%d/smp_affinity_list", n.LocalCPUs, irq.Number))
		a.Undo = append(a.Undo, fmt.Sprintf("echo %s >/proc/irq/%d/smp_affinity_list", irq.CPUs, irq.Number))
	}
	a.Now = fmt.Sprintf("%d of %d on other nodes' CPUs too", far, len(n.Interrupts))
	return a, far > 0
}

// cpus reads a list of CPUs as the kernel writes it: 0-3,8.
func cpus(list string) (all []int) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := strconv.Atoi(first)
		to, errTo := strconv.Atoi(last)
		if err != nil || errTo != nil || to-from > 1<<16 {
			return nil
		}
		for c := from; c <= to; c++ {
			all = append(all, c)
		}
	}
	return all
}

func onOff(is bool) string {
	if is {
		return "on"
	}
	return "off"
}
