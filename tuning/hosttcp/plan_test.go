package hosttcp

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/tuning"
)

// debian is a host as Debian 12 starts it, with the modules of its kernel.
func debian() State {
	s := State{
		Values: map[string]Value{}, Memory: 64 << 30, Page: 4096,
		Modules: []string{"sch_fq", "sch_fq_codel", "tcp_bbr", "tcp_diag", "tcp_htcp"},
	}
	for key, text := range map[string]string{
		keyCongestion: "cubic", keyAllowed: "reno cubic", keyAvailable: "reno cubic", keyQdisc: "fq_codel",
		"net.core.rmem_max": "212992", "net.core.wmem_max": "212992",
		"net.ipv4.tcp_rmem": "4096\t131072\t6291456", "net.ipv4.tcp_wmem": "4096\t16384\t4194304", keyTCPMem: "767313\t1023084\t1534626",
		"net.ipv4.tcp_mtu_probing": "0", "net.ipv4.tcp_no_metrics_save": "0",
		"net.ipv4.tcp_window_scaling": "1", "net.ipv4.tcp_timestamps": "1", "net.ipv4.tcp_sack": "1", "net.ipv4.tcp_moderate_rcvbuf": "1",
		"net.core.netdev_max_backlog": "1000", "net.core.netdev_budget": "300", "net.core.netdev_budget_usecs": "2000",
	} {
		s.Values[key] = Value{Text: text}
	}
	return s
}

func wan(gbits float64, rtt time.Duration) tuning.Path {
	return tuning.Path{Bandwidth: gbits * 1e9, RTT: rtt}
}

func plan(t testing.TB, p tuning.Path, s State, o Options) map[string]Change {
	t.Helper()
	changes, err := Plan(p, s, o)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Change{}
	for _, c := range changes {
		if _, twice := all[c.Key]; twice {
			t.Errorf("%s is planned twice", c.Key)
		}
		all[c.Key] = c
	}
	return all
}

func TestBuffersFollowTheBDP(t *testing.T) {
	const limited = true
	for _, c := range []struct {
		gbits               float64
		rtt                 time.Duration
		memory              int64
		bdp, socket, system int64
		limited             bool
	}{
		{10, 200 * time.Millisecond, 64 << 30, 250e6, 256 << 20, 512 << 20, !limited}, // SaaS OverCloud #11, table 1
		{10, 200 * time.Millisecond, 0, 250e6, 256 << 20, 512 << 20, !limited},
		{10, 200 * time.Millisecond, 2 << 30, 250e6, 128 << 20, 256 << 20, limited},
		{1, 50 * time.Millisecond, 64 << 30, 6_250_000, 8 << 20, 16 << 20, !limited},
		{10, 100 * time.Millisecond, 64 << 30, 125e6, 128 << 20, 256 << 20, !limited},
		{100, 80 * time.Millisecond, 256 << 30, 1e9, 1 << 30, math.MaxInt32, !limited},
		{400, 200 * time.Millisecond, 512 << 30, 10e9, 1 << 30, math.MaxInt32, limited},
		{0.1, 100 * time.Microsecond, 1 << 30, 1250, 1 << 20, 2 << 20, !limited},
	} {
		got := Fit(wan(c.gbits, c.rtt), c.memory)
		if got.BDP != c.bdp || got.Socket != c.socket || got.System != c.system || (got.Limited != "") != c.limited {
			t.Errorf("%v Gbit/s, %v, %d MiB: %+v, want %d, %d, %d, limited %v", c.gbits, c.rtt, c.memory>>20, got, c.bdp, c.socket, c.system, c.limited)
		}
	}
}

// TestTable1 holds that the document's path gets at least what the document gives it, and
// that both columns beside the plan are those documents' values.
func TestTable1(t *testing.T) {
	got := plan(t, wan(10, 200*time.Millisecond), debian(), Options{})
	for key, want := range map[string]Change{
		"net.core.rmem_max":            {To: "536870912", KISTI: "536870912", ESnet: "2147483647", Status: ToSet},
		"net.core.wmem_max":            {To: "536870912", KISTI: "536870912", ESnet: "2147483647", Status: ToSet},
		"net.ipv4.tcp_rmem":            {To: "4096 131072 536870912", KISTI: "4096 87380 268435456", ESnet: "4096 131072 1073741824", Status: ToSet},
		"net.ipv4.tcp_wmem":            {To: "4096 16384 536870912", KISTI: "4096 65536 268435456", ESnet: "4096 16384 1073741824", Status: ToSet},
		keyTCPMem:                      {To: "767313\t1023084\t1534626", Status: Kept},
		keyCongestion:                  {To: "bbr", KISTI: "htcp", Status: ToSet},
		keyAllowed:                     {To: "reno cubic bbr", Status: ToSet},
		keyQdisc:                       {To: "fq", ESnet: "fq", Status: ToSet},
		"net.ipv4.tcp_mtu_probing":     {To: "1", KISTI: "1", ESnet: "1", Status: ToSet},
		"net.ipv4.tcp_no_metrics_save": {To: "1", ESnet: "1", Status: ToSet},
		"net.ipv4.tcp_window_scaling":  {To: "1", Status: Kept},
		"net.ipv4.tcp_timestamps":      {To: "1", Status: Kept},
		"net.ipv4.tcp_sack":            {To: "1", Status: Kept},
		"net.ipv4.tcp_moderate_rcvbuf": {To: "1", Status: Kept},
		"net.core.netdev_max_backlog":  {To: "25000", Status: ToSet},
		"net.core.netdev_budget":       {To: "600", Status: ToSet},
		"net.core.netdev_budget_usecs": {To: "8000", Status: ToSet},
	} {
		c, found := got[key]
		if !found || c.To != want.To || c.KISTI != want.KISTI || c.ESnet != want.ESnet || c.Status != want.Status {
			t.Errorf("%s: %+v, want %+v", key, c, want)
		}
		if c.Reason == "" || c.Source == "" {
			t.Errorf("%s has no reason or no source: %+v", key, c)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		t.Errorf("there are more settings: %v", got)
	}
}

func TestTheCongestionControlIsOneThatTheKernelHas(t *testing.T) {
	far, lan := wan(10, 50*time.Millisecond), wan(10, 300*time.Microsecond)
	for _, c := range []struct {
		name      string
		path      tuning.Path
		available string
		modules   []string
		wish      string
		want      string // empty: it is refused
	}{
		{"bbr is a module", far, "reno cubic", []string{"tcp_bbr", "tcp_htcp"}, "", "bbr"},
		{"bbr is built in", far, "reno bbr cubic", nil, "", "bbr"},
		{"no bbr", far, "reno cubic", []string{"tcp_htcp"}, "", "htcp"},
		{"neither", far, "reno cubic", nil, "", "cubic"},
		{"nothing but reno", far, "reno", nil, "", "reno"},
		{"a local path", lan, "reno bbr cubic", nil, "", "reno"},
		{"a wish", far, "reno cubic", []string{"tcp_bbr", "tcp_htcp"}, "htcp", "htcp"},
		{"a wish that the kernel has not", far, "reno bbr cubic", []string{"tcp_diag"}, "htcp", ""},
		{"a module that is none", far, "reno", []string{"tcp_diag"}, "diag", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := debian()
			s.Modules = c.modules
			s.Values[keyAvailable] = Value{Text: c.available}
			s.Values[keyCongestion] = Value{Text: "reno"}
			changes, err := Plan(c.path, s, Options{Congestion: c.wish})
			if c.want == "" {
				if err == nil || !strings.Contains(err.Error(), "it has "+strings.ReplaceAll(c.available, " ", ", ")) {
					t.Errorf("%v, want what the kernel has", err)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if got := changes[0]; got.Key != keyCongestion || got.To != c.want {
				t.Errorf("%+v, want %s", got, c.want)
			}
			if allowed := strings.Fields(changes[1].To); c.want != "reno" && !slices.Contains(allowed, c.want) {
				t.Errorf("%s is allowed, want %s too", allowed, c.want)
			}
		})
	}
}

func TestAbsentReadOnlyAndNotPermittedAreThreeAnswers(t *testing.T) {
	s := debian()
	s.Values["net.core.rmem_max"] = Value{Text: "212992", Status: ReadOnly}
	s.Values["net.core.wmem_max"] = Value{Text: "212992", Status: NotPermitted}
	s.Values["net.ipv4.tcp_sack"] = Value{Text: "1", Status: NotPermitted}
	s.Values[keyQdisc] = Value{Status: Absent}
	delete(s.Values, keyTCPMem)
	got := plan(t, wan(10, 200*time.Millisecond), s, Options{})
	for key, want := range map[string]Status{
		"net.core.rmem_max": ReadOnly, "net.core.wmem_max": NotPermitted, keyQdisc: Absent, keyTCPMem: Absent,
		"net.ipv4.tcp_sack": Kept, "net.ipv4.tcp_rmem": ToSet,
	} {
		if got[key].Status != want {
			t.Errorf("%s is %q, want %q", key, got[key].Status, want)
		}
	}
	if c := got["net.core.rmem_max"]; c.From != "212992" || c.To != "536870912" {
		t.Errorf("what cannot be set is told as %+v, want what it should be too", c)
	}
}

func TestWhatIsLargerStaysUnlessApplyHasMadeItSo(t *testing.T) {
	s := debian()
	before := "4096\t131072\t6291456"
	s.Values["net.ipv4.tcp_rmem"] = Value{Text: "4096\t131072\t536870912", Before: &before}
	s.Values["net.ipv4.tcp_wmem"] = Value{Text: "4096\t16384\t536870912"}
	got := plan(t, wan(1, 50*time.Millisecond), s, Options{})
	if c := got["net.ipv4.tcp_rmem"]; c.To != "4096 131072 16777216" {
		t.Errorf("of an earlier Apply: %+v, want the smaller path's", c)
	}
	if c := got["net.ipv4.tcp_wmem"]; c.Status != Kept {
		t.Errorf("of somebody else: %+v, want it kept", c)
	}
}

func TestAPathNeedsBandwidthAndRTT(t *testing.T) {
	for _, p := range []tuning.Path{{}, wan(10, 0), wan(0, time.Second), wan(-1, time.Second), wan(math.NaN(), time.Second), wan(math.Inf(1), time.Second), wan(1, -1)} {
		if c, err := Plan(p, debian(), Options{}); err == nil {
			t.Errorf("%+v gives %v, want an error", p, c)
		}
	}
}

// TestPlansAreWithinTheKernelsLimits holds for any path and host, and that a plan made
// after one that was carried out has nothing left to set.
func TestPlansAreWithinTheKernelsLimits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		p := tuning.Path{Bandwidth: math.Exp(40 * random.Float64()), RTT: time.Duration(math.Exp(40 * random.Float64()))}
		s := debian()
		s.Memory = random.Int64N(1 << random.IntN(46))
		changes, err := Plan(p, s, Options{})
		if err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		for _, c := range changes {
			for i, f := range strings.Fields(c.To) {
				if n, err := strconv.ParseInt(f, 10, 64); err == nil && (n < 0 || n > math.MaxInt32 && c.Key != keyTCPMem) {
					t.Errorf("%+v, %d bytes: %s has %d for its number %d", p, s.Memory, c.Key, n, i)
				}
			}
			was := s.Values[c.Key].Text
			s.Values[c.Key] = Value{Text: c.To, Before: &was}
		}
		again, err := Plan(p, s, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range again {
			if c.Status != Kept {
				t.Errorf("%+v, %d bytes, planned again: %+v", p, s.Memory, c)
			}
		}
	}
}

func TestAdviceIsExactAndCanBeTakenBack(t *testing.T) {
	s := debian()
	s.Governor = "powersave"
	s.NIC = NIC{
		Name: "eth0", Speed: 100e9, MTU: 1500, QueueLength: 1000, Qdisc: "fq_codel",
		RxRing: 512, RxRingMax: 8192, TxRing: 1024, TxRingMax: 8192, CanCoalesce: true, CanPause: true, RxPause: true,
		LocalCPUs: "0-3,8", AllCPUs: "0-15", Interrupts: []IRQ{{40, "0-15"}, {41, "2"}, {42, "9"}},
	}
	got := map[string]Advice{}
	for _, a := range Advise(wan(10, 200*time.Millisecond), s) {
		if a.Reason == "" || a.Source == "" || a.Now == "" || a.Want == "" {
			t.Errorf("advice says too little: %+v", a)
		}
		got[a.About] = a
	}
	for about, want := range map[string][2][]string{
		"qdisc":        {{"tc qdisc replace dev eth0 root fq"}, {"tc qdisc replace dev eth0 root fq_codel"}},
		"pacing":       {{"tc qdisc replace dev eth0 root fq maxrate 10000mbit"}, {"tc qdisc replace dev eth0 root fq_codel"}},
		"rings":        {{"ethtool -G eth0 rx 8192 tx 8192"}, {"ethtool -G eth0 rx 512 tx 1024"}},
		"MTU":          {{"ip link set dev eth0 mtu 9000"}, {"ip link set dev eth0 mtu 1500"}},
		"interrupts":   {{"ethtool -C eth0 adaptive-rx on"}, {"ethtool -C eth0 adaptive-rx off"}},
		"pause frames": {{"ethtool -A eth0 rx on tx on"}, {"ethtool -A eth0 rx on tx off"}},
		"IRQ affinity": {
			{"echo 0-3,8 >/proc/irq/40/smp_affinity_list", "echo 0-3,8 >/proc/irq/42/smp_affinity_list"},
			{"echo 0-15 >/proc/irq/40/smp_affinity_list", "echo 9 >/proc/irq/42/smp_affinity_list"},
		},
		"CPU governor": {{"cpupower frequency-set -g performance"}, {"cpupower frequency-set -g powersave"}},
	} {
		a := got[about]
		if !slices.Equal(a.Command, want[0]) || !slices.Equal(a.Undo, want[1]) {
			t.Errorf("%s: %q, taken back by %q, want %q", about, a.Command, a.Undo, want)
		}
		delete(got, about)
	}
	if len(got) > 0 {
		t.Errorf("there is more advice: %+v", got)
	}
}

func TestThereIsNoAdviceOnWhatIsGoodOrNotTold(t *testing.T) {
	good := debian()
	good.Governor = "performance"
	good.NIC = NIC{
		Name: "eth0", Speed: 10e9, MTU: 9000, QueueLength: 1000, Qdisc: "fq", RxRing: 8192, RxRingMax: 8192, TxRing: 8192, TxRingMax: 8192,
		CanCoalesce: true, Adaptive: true, CanPause: true, RxPause: true, TxPause: true,
		LocalCPUs: "0-15", AllCPUs: "0-15", Interrupts: []IRQ{{40, "0-15"}},
	}
	silent := debian()
	silent.NIC = NIC{Name: "eth0", MTU: 9000, Qdisc: "noqueue"}
	for name, s := range map[string]State{"good": good, "a driver that tells nothing": silent, "no NIC": debian()} {
		if a := Advise(wan(10, 200*time.Millisecond), s); len(a) > 0 {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestNoPartOfTCPMemFalls(t *testing.T) {
	if got := pages("100 200 100000", 400<<12, 0, 1<<12); got != "300 400 100000" {
		t.Errorf("%q", got)
	}
}

func TestQueuesOfANICAreMadeAnew(t *testing.T) {
	s := debian()
	s.NIC = NIC{Name: "eth0", MTU: 1500, Qdisc: "pfifo_fast", MultiQueue: true, QueueLength: 1000}
	a := Advise(wan(1, 200*time.Millisecond), s)
	if len(a) != 1 || a[0].Command[0] != "tc qdisc replace dev eth0 root handle 1: mq" || a[0].Undo[0] != "sysctl -w net.core.default_qdisc=pfifo_fast" {
		t.Errorf("%+v, want mq anew", a)
	}
	s.NIC.Speed = 100e9 // faster than the path: it is paced
	for _, a := range Advise(wan(1, 200*time.Millisecond), s) {
		if (a.About == "qdisc" || a.About == "pacing") && (len(a.Undo) != 2 || a.Undo[0] != "sysctl -w net.core.default_qdisc=pfifo_fast") {
			t.Errorf("%s is taken back by %q, which leaves the queues what they have", a.About, a.Undo)
		}
	}
	s.Modules = nil
	if a := Advise(wan(10, 200*time.Millisecond), s); !slices.ContainsFunc(a, func(a Advice) bool { return a.About == "txqueuelen" }) {
		t.Errorf("without fq in the kernel: %+v, want a longer queue", a)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("# a\n;b\nnet.ipv4.tcp_rmem = 1 2 3\n-net/core/rmem_max=1\nnet.ipv4.conf.eth0/1.forwarding=1\n = \n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, key := range settings(text) {
			if strings.ContainsAny(key, "\n=") {
				t.Errorf("%q is no setting", key)
			}
		}
	})
}

func TestFilesOfSysctlDAreRead(t *testing.T) {
	got := settings("# net.a = 1\n; net.b = 1\n\nnet.ipv4.tcp_rmem = 1 2 3\n-net/core/rmem_max=1\nnet.core.wmem_max=2 # x\nnet/ipv4/conf/eth0.1/forwarding=1\nnonsense\n")
	want := []string{"net.ipv4.tcp_rmem", "net.core.rmem_max", "net.core.wmem_max", "net.ipv4.conf.eth0/1.forwarding"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
