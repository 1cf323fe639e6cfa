package hosttcp

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/tuning"
)

// Sources of what is planned.
const (
	ipSysctl    = "kernel: networking/ip-sysctl"
	netSysctl   = "kernel: admin-guide/sysctl/net"
	esnet       = "fasterdata.es.net/host-tuning/linux"
	esnet100G   = "fasterdata.es.net/host-tuning/linux/100g-tuning"
	esnetPacing = "fasterdata.es.net/host-tuning/packet-pacing"
	kisti       = "SaaS OverCloud #11 (KISTI, 2017), table 1"
)

// The settings that are planned, in the order in which they are set: a congestion
// control that is not loaded yet is loaded by being chosen, and may be allowed then.
const (
	keyCongestion = "net.ipv4.tcp_congestion_control"
	keyAllowed    = "net.ipv4.tcp_allowed_congestion_control"
	keyAvailable  = "net.ipv4.tcp_available_congestion_control" // read alone
	keyQdisc      = "net.core.default_qdisc"
	keyTCPMem     = "net.ipv4.tcp_mem"
)

// Status is what becomes of one setting.
type Status string

// The answers of a kernel, and what else there is to say of a setting.
const (
	ToSet        Status = "to set"        // Apply sets it
	Kept         Status = "kept"          // it is good as it is
	Set          Status = "set"           // Apply has set it
	Absent       Status = "absent"        // this kernel, or this network namespace, has no such setting
	ReadOnly     Status = "read-only"     // nobody can change it here, as in a container or a network namespace
	NotPermitted Status = "not permitted" // this user may not
	Refused      Status = "refused"       // the kernel does not take the value
)

// Change is one setting: what it is, what it should be, and why.
type Change struct {
	Key    string `json:"key"`
	From   string `json:"from"` // what holds, as the kernel writes it
	To     string `json:"to"`   // the same as From where nothing better is known
	Status Status `json:"status"`
	KISTI  string `json:"kisti,omitempty"` // what that document says for this path
	ESnet  string `json:"esnet,omitempty"` // what ESnet advises for data transfer hosts today
	Reason string `json:"reason"`
	Source string `json:"source"`

	// Files are those of others that set it, too; Later those of them that are read after
	// our own when the host starts, and win.
	Files []string `json:"files,omitempty"`
	Later []string `json:"later,omitempty"`
	// Error is the kernel's word where it did not take the value.
	Error string `json:"error,omitempty"`
}

// Options are wishes beside the path.
type Options struct {
	Congestion string // congestion control to choose; empty: the best there is for the path
}

// Limits of one connection.
const (
	maxWindow = 1 << 30       // RFC 7323, 2.3: the window scale is at most 14
	maxBuffer = math.MaxInt32 // of SO_RCVBUF, and of net.core.rmem_max
	minWindow = 1 << 20
)

// Buffers are the sizes that follow from a path, in bytes.
type Buffers struct {
	BDP int64 `json:"bdp"`
	// Socket is what has to fit into a connection's buffer: the BDP, rounded up to a power of two.
	Socket int64 `json:"socket"`
	// System is twice that. The kernel counts its bookkeeping in, for which it takes half
	// of a buffer (tcp_adv_win_scale), so this holds Socket bytes of data.
	System int64 `json:"system"`
	// Limited says why they are smaller than the path asks for.
	Limited string `json:"limited,omitempty"`
}

// Fit returns the buffers for a path on a host with so many bytes of memory; 0: not known.
func Fit(p tuning.Path, memory int64) Buffers {
	b := Buffers{BDP: int64(math.Ceil(min(p.BDP(), math.MaxInt64/2))), Socket: minWindow}
	for b.Socket < b.BDP && b.Socket < maxWindow {
		b.Socket *= 2
	}
	if b.BDP > maxWindow {
		b.Limited = "a TCP window holds 1 GiB at most (RFC 7323): use several connections"
	}
	for memory > 0 && b.Socket > minWindow && 2*b.Socket > memory/8 {
		b.Socket /= 2
		b.Limited = fmt.Sprintf("no connection gets more than an eighth of this host's %d MiB of memory: use several connections", memory>>20)
	}
	b.System = min(2*b.Socket, maxBuffer)
	return b
}

// near is the RTT up to which a path is local: a lost packet is made good in no time there.
const near = 2 * time.Millisecond

// fast is the bandwidth from which packets come faster than a kernel's defaults are made for.
const fast = 10e9

// packet is the size that budgets and backlogs count with: the smallest that a full
// segment has on Ethernet.
const packet = 1500

// maxBacklog is what 100 Gbit/s bring in 30 ms: more would hold packets that nobody waits for any more.
const maxBacklog = 250_000

// setting is how one sysctl is planned.
type setting struct {
	key                          string
	want                         func(was string) string // what it should be, by what it was before Apply
	kisti, esnet, reason, source string
}

// Plan returns every setting that the path asks something of, also those that are good
// already or cannot be set, and says which is which. It takes nothing away: a setting
// that is larger than the path needs stays, unless an earlier Apply has made it so.
func Plan(p tuning.Path, s State, o Options) ([]Change, error) {
	if !(p.Bandwidth > 0) || math.IsInf(p.Bandwidth, 1) || p.RTT <= 0 {
		return nil, fmt.Errorf("a path has a bandwidth and a round trip time, both above 0, not %v bit/s and %v", p.Bandwidth, p.RTT)
	}
	congestion, why, err := congestion(p, s, o)
	if err != nil {
		return nil, err
	}
	b := Fit(p, s.Memory)
	kisti256 := Fit(p, 0) // as that document counts
	half := fmt.Sprintf("a connection has %s on its way on the full path, and half of a buffer is the kernel's own", size(b.Socket))
	if b.Limited != "" {
		half = b.Limited
	}
	third := func(n int64) func(string) string { return func(was string) string { return raise(was, 2, n) } }
	first := func(n int64) func(string) string { return func(was string) string { return raise(was, 0, n) } }
	const esnetCore, esnetTCP = "2147483647", "1073741824"
	is := func(to string) func(string) string { return func(string) string { return to } }
	table := []setting{
		{
			key: keyCongestion, want: func(was string) string { return cmp.Or(congestion, was) },
			kisti: "htcp", reason: why, source: "ACM Queue 14(5) 2016 (BBR); Leith, Shorten: H-TCP, PFLDnet 2004; RFC 9438 (CUBIC)",
		}, {
			key: keyAllowed, want: func(was string) string { return with(was, congestion) },
			reason: "so that programs without privilege may choose it for a connection, as the DTN does", source: ipSysctl,
		}, {
			key: keyQdisc, want: func(was string) string { return qdisc(was, s) }, esnet: "fq",
			reason: "packets leave at the connection's pace, not in bursts that a queue on the path drops; for interfaces that come up later, see the advice for those that are", source: esnetPacing,
		}, {
			key: "net.core.rmem_max", want: first(b.System), kisti: fmt.Sprint(kisti256.System), esnet: esnetCore,
			reason: "what a program may ask for, as GridFTP does: " + half, source: kisti + "; " + esnet,
		}, {
			key: "net.core.wmem_max", want: first(b.System), kisti: fmt.Sprint(kisti256.System), esnet: esnetCore,
			reason: "as rmem_max, for sending", source: kisti + "; " + esnet,
		}, {
			key: "net.ipv4.tcp_rmem", want: third(min(b.System, maxWindow)),
			kisti: fmt.Sprintf("4096 87380 %d", kisti256.Socket), esnet: "4096 131072 " + esnetTCP,
			reason: "how far the kernel lets a receive buffer grow by itself: " + half, source: kisti + "; " + esnet + "; " + ipSysctl,
		}, {
			key: "net.ipv4.tcp_wmem", want: third(min(b.System, maxWindow)),
			kisti: fmt.Sprintf("4096 65536 %d", kisti256.Socket), esnet: "4096 16384 " + esnetTCP,
			reason: "as tcp_rmem, for sending: what is not acknowledged stays in it", source: kisti + "; " + esnet + "; " + ipSysctl,
		}, {
			key: keyTCPMem, want: func(was string) string { return pages(was, 2*b.System, s.Memory/4, s.Page) },
			reason: "all connections together, in pages: below the second value, room for two that are full, nothing is held back", source: ipSysctl,
		}, {
			key: "net.ipv4.tcp_mtu_probing", want: first(1), kisti: "1", esnet: "1",
			reason: "where ICMP is dropped on the path TCP finds its MTU itself (RFC 4821), instead of standing still", source: kisti + "; " + esnet,
		}, {
			key: "net.ipv4.tcp_no_metrics_save", want: is("1"), esnet: "1",
			reason: "a connection that has met losses does not slow down the next ones to that host", source: esnet + "; " + ipSysctl,
		},
	}
	for key, why := range map[string]string{
		"net.ipv4.tcp_window_scaling":  "without it no window is larger than 64 KiB (RFC 7323)",
		"net.ipv4.tcp_timestamps":      "round trip times are measured by it, and large windows are safe only with it (RFC 7323)",
		"net.ipv4.tcp_sack":            "without it a window with several losses takes a round trip for each (RFC 2018)",
		"net.ipv4.tcp_moderate_rcvbuf": "without it the receive buffer does not grow by itself",
	} {
		table = append(table, setting{key: key, want: first(1), reason: why, source: ipSysctl})
	}
	if backlog := int64(min(p.Bandwidth/8/packet*0.03, maxBacklog)); backlog > 0 {
		table = append(table, setting{
			key: "net.core.netdev_max_backlog", want: first(backlog),
			reason: "holds what arrives in 30 ms, in packets of 1500 bytes, while a CPU does something else", source: netSysctl,
		})
	}
	if p.Bandwidth >= fast {
		table = append(table, setting{
			key: "net.core.netdev_budget", want: first(600),
			reason: "packets that one round of receiving may take: the default of 300 gives up too early at 10 Gbit/s (third column of /proc/net/softnet_stat)", source: netSysctl,
		}, setting{
			key: "net.core.netdev_budget_usecs", want: first(8000),
			reason: "how long such a round may take", source: netSysctl,
		})
	}
	changes := make([]Change, 0, len(table))
	slices.SortStableFunc(table, func(a, b setting) int { return slices.Index(keys, a.key) - slices.Index(keys, b.key) })
	for _, t := range table {
		changes = append(changes, t.plan(s))
	}
	return changes, nil
}

func (t setting) plan(s State) Change {
	c := Change{Key: t.key, KISTI: t.kisti, ESnet: t.esnet, Reason: t.reason, Source: t.source, Status: Absent}
	c.Files, c.Later = s.Files[t.key], s.Later[t.key]
	v, found := s.Values[t.key]
	if !found || v.Status == Absent {
		return c
	}
	was := v.Text
	if v.Before != nil {
		was = *v.Before
	}
	c.From, c.To, c.Status = v.Text, t.want(was), ToSet
	switch {
	case same(t.key, c.From, c.To):
		c.To, c.Status = c.From, Kept
	case v.Status != "":
		c.Status = v.Status
	}
	return c
}

// congestion chooses the congestion control, and says why. Empty: what is there stays.
func congestion(p tuning.Path, s State, o Options) (name, why string, err error) {
	reasons := map[string]string{
		"bbr":   "it goes by the rate that arrives, so that single losses do not slow down a long path",
		"htcp":  "it takes a long path back sooner after a loss than cubic, and this kernel has no bbr",
		"cubic": "this kernel has neither bbr nor htcp",
	}
	switch {
	case o.Congestion != "" && !slices.Contains(s.controls(), o.Congestion):
		return "", "", fmt.Errorf("this kernel has no congestion control %s: it has %s", o.Congestion, strings.Join(s.controls(), ", "))
	case o.Congestion != "":
		return o.Congestion, "it was asked for", nil
	case p.RTT < near:
		return "", fmt.Sprintf("on a path of less than %v any will do", near), nil
	}
	for _, name := range []string{"bbr", "htcp", "cubic"} {
		if slices.Contains(s.controls(), name) {
			return name, reasons[name], nil
		}
	}
	return "", "this kernel has neither bbr nor htcp nor cubic", nil
}

// qdisc returns fq where the kernel has it and something else would be lost by nothing.
func qdisc(was string, s State) string {
	plain := []string{"pfifo_fast", "pfifo", "fq_codel", "bfifo"} // fq_codel shares out fairly, too, but does not pace
	if slices.Contains(plain, was) && s.paces() {
		return "fq"
	}
	return was
}

// paces reports whether the kernel has fq, or would load it.
func (s State) paces() bool { return slices.Contains(s.Modules, "sch_fq") }

// controls are the congestion controls that can be chosen.
func (s State) controls() []string {
	all := strings.Fields(s.Values[keyAvailable].Text)
	for _, m := range s.Modules {
		if name, ok := strings.CutPrefix(m, "tcp_"); ok && m != "tcp_diag" && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// raise returns the value with its i-th number at least n.
func raise(was string, i int, n int64) string {
	f := strings.Fields(was)
	if i >= len(f) {
		return was
	}
	if now, err := strconv.ParseInt(f[i], 10, 64); err != nil || now >= n {
		return was
	}
	f[i] = strconv.FormatInt(n, 10)
	return strings.Join(f, " ")
}

// pages returns tcp_mem with so many bytes below its second value, the pressure, but no
// more than the limit (0: none), and the others in the proportion that the kernel gives
// them, none lower than it was.
func pages(was string, n, limit, page int64) string {
	if limit > 0 {
		n = min(n, limit)
	}
	n /= page
	var low, pressure, high int64
	if _, err := fmt.Sscan(was, &low, &pressure, &high); err != nil || pressure >= n {
		return was
	}
	return fmt.Sprintf("%d %d %d", max(low, n/4*3), n, max(high, n/4*6))
}

// with returns the list with a word; an empty one is in all.
func with(list, word string) string {
	if all := strings.Fields(list); word != "" && !slices.Contains(all, word) {
		return strings.Join(append(all, word), " ")
	}
	return list
}

// same reports whether two values of a setting are the same to the kernel.
func same(key, a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	if key == keyAllowed { // in the order in which modules were loaded
		slices.Sort(x)
		slices.Sort(y)
	}
	return slices.Equal(x, y)
}

// size returns n for a sentence.
func size(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
