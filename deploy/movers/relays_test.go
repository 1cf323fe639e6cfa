package movers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/routing"
)

// published is by how much storing at DTNs on the way was faster than legacy in the
// experiment that this one repeats: SaaS OverCloud #11, "DTN-based high-performance data
// transfer", KISTI, 2017, figure 9.
const published = 1.28

// The ways of a file between the two clients. The first two are one TCP connection, from
// end to end or hop by hop.
const (
	legacy       = "curl"
	legacyStored = "curl, stored at both DTNs"
	direct       = "glance-dtn, direct"
	stored       = "glance-dtn, stored at DTN A"
	cutThrough   = "glance-dtn, cut through at DTN A"
)

// ways are those of glance-dtn, as they are planned.
var ways = map[string]routing.Way{
	direct:     {},
	stored:     {Via: []string{"R"}, Mode: mover.StoreForward},
	cutThrough: {Via: []string{"R"}, Mode: mover.CutThrough},
}

// scene is four hosts and what lies between them: client A, an edge, DTN A, a backbone,
// DTN B, a cable, client B.
type scene struct {
	Name     string
	Edge     wan.Path
	Backbone wan.Path
	Around   wan.Path // from client A to client B without a DTN, where its rate is not 0
	Control  string
	Streams  int
	Size     int64
}

func (s scene) String() string {
	return fmt.Sprintf("%s, loss %g %%, %s", s.Name, 100*s.Edge.Loss, s.Control)
}

func (s scene) load() string {
	return fmt.Sprintf("%d MiB, parallelism %d", s.Size>>20, s.Streams)
}

// relayOptions are which scenes are measured, from the environment.
type relayOptions struct {
	rate     float64         // RELAYS_RATE, Mbit/s, of edge and backbone
	delays   []time.Duration // RELAYS_DELAYS, one way, of edge and backbone
	losses   []float64       // RELAYS_LOSSES, of the edge, percent
	controls []string        // RELAYS_CC
	streams  []int           // RELAYS_STREAMS, of glance-dtn
	sizes    []int64         // RELAYS_SIZES, MiB
	rounds   int             // RELAYS_ROUNDS
	limit    time.Duration   // RELAYS_LIMIT: a run that takes longer is stopped
}

func readRelayOptions(getenv func(string) string) (o relayOptions, err error) {
	value := func(key, standard string) string { return cmp.Or(getenv("RELAYS_"+key), standard) }
	rates, err1 := list(value("RATE", "1000"), positive)
	delays, err2 := list(value("DELAYS", "2.5ms 50ms"), time.ParseDuration)
	losses, err3 := list(value("LOSSES", "0 0.01 0.1"), func(s string) (float64, error) {
		v, err := strconv.ParseFloat(s, 64)
		if err == nil && !(v >= 0 && v <= 50) {
			err = fmt.Errorf("a loss is 0 to 50 percent, not %s", s)
		}
		return v / 100, err
	})
	controls, err4 := list(value("CC", "cubic bbr"), func(s string) (string, error) { return s, nil })
	streams, err5 := list(value("STREAMS", "4"), positive)
	sizes, err6 := list(value("SIZES", "16 64 256"), positive)
	rounds, err7 := list(value("ROUNDS", "1"), positive)
	limit, err8 := list(value("LIMIT", "1m"), time.ParseDuration)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8); err != nil {
		return o, err
	}
	if len(delays) != 2 || len(rates) != 1 || len(rounds) != 1 || len(limit) != 1 || limit[0] <= 0 {
		return o, errors.New("RELAYS_DELAYS are two, RELAYS_RATE, RELAYS_ROUNDS and RELAYS_LIMIT one, and above 0")
	}
	o = relayOptions{float64(rates[0]) * 1e6, delays, losses, controls, nil, nil, rounds[0], limit[0]}
	o.streams = streams
	for _, s := range sizes {
		o.sizes = append(o.sizes, int64(s)<<20)
	}
	return o, nil
}

func positive(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err == nil && (n < 1 || n > 1<<20) {
		err = fmt.Errorf("%d is not 1 to %d", n, 1<<20)
	}
	return n, err
}

func list[T any](text string, parse func(string) (T, error)) (all []T, err error) {
	for word := range strings.FieldsSeq(text) {
		v, err := parse(word)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// scenes are a line, for each loss and congestion control, and one in which there is a
// better way around the DTNs.
func (o relayOptions) scenes() (all []scene) {
	// A queue for the whole way: what is lost is lost at random, not by a short queue.
	queue := int(max(o.rate/8*2*(o.delays[0]+o.delays[1]).Seconds(), 1<<20))
	for _, size := range o.sizes {
		for _, streams := range o.streams {
			for _, control := range o.controls {
				for _, loss := range o.losses {
					all = append(all, scene{
						Name: "line", Control: control, Streams: streams, Size: size,
						Edge:     wan.Path{Delay: o.delays[0], Rate: o.rate, Loss: loss, Queue: queue, Seed: uint64(len(all))},
						Backbone: wan.Path{Delay: o.delays[1], Rate: o.rate, Queue: queue},
					})
				}
				around := all[len(all)-1] // of the last loss
				around.Name, around.Around = "way around", wan.Path{Delay: o.delays[1] / 2, Rate: o.rate, Queue: queue}
				all = append(all, around)
			}
		}
	}
	return all
}

// segments are the paths between the DTNs as the emulator has them. Site R is DTN A.
func (s scene) segments() []routing.Segment {
	of := func(from, to string, paths ...wan.Path) routing.Segment {
		arrives := 1.0
		out := routing.Segment{From: from, To: to, Streams: s.Streams, Path: tuning.Path{Bandwidth: math.Inf(1), Buffer: maxBuffer, Congestion: s.Control}}
		for _, p := range paths {
			out.Bandwidth = min(out.Bandwidth, p.Rate)
			out.RTT += 2 * p.Delay
			arrives *= 1 - p.Loss
		}
		out.Loss = 1 - arrives
		return out
	}
	around := []wan.Path{s.Edge, s.Backbone}
	if s.Around.Rate > 0 {
		around = []wan.Path{s.Around}
	}
	return []routing.Segment{of("A", "R", s.Edge), of("R", "B", s.Backbone), of("A", "B", around...)}
}

// maxBuffer is the largest TCP buffer of the hosts.
const maxBuffer = 64 << 20

// newLine makes the four hosts and the file. All TCP connections have the scene's
// congestion control, which their programs may change only to another than Linux's own.
func newLine(tb testing.TB, s scene) *rig {
	tb.Helper()
	r := newHosts(tb, "", "clienta", "dtna", "dtnb", "clientb")
	a, dtnA, dtnB, b := r.hosts[0], r.hosts[1], r.hosts[2], r.hosts[3]
	r.send, r.relay, r.recv = a, dtnA, b
	lab.ConnectOver(tb, s.Edge, a.Machine, "10.0.1.1/24", dtnA.Machine, "10.0.1.2/24")
	lab.ConnectOver(tb, s.Backbone, dtnA.Machine, "10.0.2.1/24", dtnB.Machine, "10.0.2.2/24")
	lab.Connect(tb, dtnB.Machine, "10.0.3.1/24", b.Machine, "10.0.3.2/24")
	control := s.Control
	if !strings.HasPrefix(control, "bbr") {
		control = "lock " + control // the engine takes bbr where it may
	}
	add := func(h *host, route string) {
		h.Run(tb, "ip", append([]string{"route", "replace"}, strings.Fields(route+" congctl "+control)...)...)
	}
	add(a, "10.0.1.0/24 dev dtna src 10.0.1.1")
	add(a, "default via 10.0.1.2")
	add(dtnA, "10.0.1.0/24 dev clienta src 10.0.1.2")
	add(dtnA, "10.0.2.0/24 dev dtnb src 10.0.2.1")
	add(dtnA, "10.0.3.0/24 via 10.0.2.2")
	add(dtnB, "10.0.2.0/24 dev dtna src 10.0.2.2")
	add(dtnB, "10.0.3.0/24 dev clientb src 10.0.3.1")
	add(dtnB, "10.0.1.0/24 via 10.0.2.1")
	add(b, "10.0.3.0/24 dev dtnb src 10.0.3.2")
	add(b, "default via 10.0.3.1")
	if s.Around.Rate > 0 {
		lab.ConnectOver(tb, s.Around, a.Machine, "10.0.4.1/24", b.Machine, "10.0.4.2/24")
		add(a, "10.0.3.2 via 10.0.4.2 src 10.0.1.1")
		add(b, "10.0.1.1 via 10.0.4.1 src 10.0.3.2")
	}
	for _, h := range r.hosts {
		buffers := fmt.Sprintf("4096 131072 %d", maxBuffer)
		h.Run(tb, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.tcp_no_metrics_save=1", "net.ipv4.tcp_rmem="+buffers, "net.ipv4.tcp_wmem="+buffers)
	}
	r.fill(load{count: 1, size: s.Size})
	return r
}

// hopByHop fetches the file to each host from the one before.
func hopByHop(r *rig) (func(context.Context) error, error) {
	const stop = "/run/stop"
	for _, h := range r.hosts[:3] {
		dir := stop
		if h == r.send {
			dir = outDir
		}
		h.Run(r.tb, "rm", "-rf", stop)
		h.Run(r.tb, "mkdir", stop)
		if err := r.nginx(h, dir); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) error {
		for i, h := range r.hosts[1:] {
			dir := stop
			if h == r.recv {
				dir = inDir
			}
			name := r.files[0].Name
			if err := r.run(ctx, h, nil, "curl", "--fail", "--silent", "--show-error",
				"--output", filepath.Join(dir, name), "http://"+r.hosts[i].near(h)+"/"+name); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// near is the address of h on the network that it shares with the next host.
func (h *host) near(next *host) string {
	return map[string]string{"dtna": "10.0.1.1", "dtnb": "10.0.2.1", "clientb": "10.0.3.1"}[next.Name]
}

// through is glance-dtn by one of its ways.
func through(mode mover.RelayMode, streams int) func(*rig) (func(context.Context) error, error) {
	return func(r *rig) (func(context.Context) error, error) {
		start, rings, err := r.install(mover.Clear)
		if err == nil {
			err = errors.Join(start(r.recv), start(r.relay), start(r.send))
		}
		if err != nil {
			return nil, err
		}
		return r.thirdParty(rings["A"], rings["B"], true, mover.PCP{Parallelism: streams}, mode)
	}
}

func (s scene) peers() []peer {
	all := []peer{
		{name: legacy, start: fromNginx(curl)},
		{name: legacyStored, start: hopByHop},
	}
	for _, name := range []string{direct, stored, cutThrough} {
		all = append(all, peer{name: name, arrivals: mover.Inbox, start: through(ways[name].Mode, s.Streams)})
	}
	return all
}

// BenchmarkRelays measures every way of every scene, asks the planner about it, and writes
// runs.json, report.md and plot.svg into dist/relay after each.
func BenchmarkRelays(b *testing.B) {
	asked(b)
	o, err := readRelayOptions(os.Getenv)
	if err != nil {
		b.Fatal(err)
	}
	const file = "/proc/sys/net/ipv4/tcp_available_congestion_control"
	available, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range o.controls {
		if !slices.Contains(strings.Fields(string(available)), c) {
			b.Fatalf("RELAYS_CC: this kernel has no %s, it has %s (%s)", c, strings.TrimSpace(string(available)), file)
		}
	}
	var runs []run
	var plans []planned
	for _, s := range o.scenes() {
		b.Run(s.String()+"/"+s.load(), func(b *testing.B) {
			for b.Loop() {
				r := newLine(b, s)
				var mine []run
				peers := s.peers()
				for round := range o.rounds {
					for i := range peers {
						m := peers[(i+round)%len(peers)]
						out := r.measure(m, o.limit)
						out.Path, out.Load, out.Round = s.String(), s.load(), round
						b.Logf("%s: %.1f Mbit/s, %+v", m.name, out.rate()/1e6, out)
						mine = append(mine, out)
					}
				}
				runs = append(runs, mine...)
				plans = append(plans, judge(b, s, mine))
			}
			if err := reportRelays(filepath.Join("..", "..", "dist", "relay"), runs, plans); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// planned is what was planned of a scene, and how it was.
type planned struct {
	Scene     string             `json:"scene"`
	Published bool               `json:"published"` // it is as the published experiment: losses on the line, and TCP that takes them for congestion
	Load      string             `json:"load"`
	Segments  []routing.Segment  `json:"segments"`
	Decision  routing.Decision   `json:"decision"`
	Measured  map[string]float64 `json:"measured"`  // seconds for the whole file, medians, by way
	Predicted map[string]float64 `json:"predicted"` // seconds, by way of glance-dtn
	Picked    string             `json:"picked"`
	Fastest   string             `json:"fastest"` // of glance-dtn's ways
	Regret    float64            `json:"regret"`  // time of the picked way by that of the fastest, less 1
}

// judge compares what was measured of a scene with what is planned for it.
func judge(tb testing.TB, s scene, runs []run) planned {
	tb.Helper()
	lossy := s.Edge.Loss > 0 && s.Around.Rate == 0 && !strings.HasPrefix(s.Control, "bbr")
	p := planned{Scene: s.String(), Published: lossy, Load: s.load(), Segments: s.segments(), Measured: map[string]float64{}, Predicted: map[string]float64{}, Regret: math.Inf(1)}
	var err error
	if p.Decision, err = routing.Plan(p.Segments, routing.Question{From: "A", To: "B", Size: s.Size}); err != nil {
		tb.Fatal(err)
	}
	for _, t := range summarise(runs, legacy) {
		for _, row := range t.rows {
			if row.rate > 0 {
				p.Measured[row.mover] = float64(s.Size) * 8 / row.rate
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		for _, w := range p.Decision.Ways {
			if w.Way.Equal(ways[name]) {
				p.Predicted[name] = w.Seconds
			}
		}
		if p.Decision.Way.Equal(ways[name]) {
			p.Picked = name
		}
		if t, ok := p.Measured[name]; ok && (p.Fastest == "" || t < p.Measured[p.Fastest]) {
			p.Fastest = name
		}
	}
	if t, ok := p.Measured[p.Picked]; ok {
		p.Regret = t/p.Measured[p.Fastest] - 1
	}
	return p
}

func reportRelays(dir string, runs []run, plans []planned) error {
	text, err := json.MarshalIndent(struct {
		Runs  []run     `json:"runs"`
		Plans []planned `json:"plans"`
	}{runs, plans}, "", "\t")
	if err != nil {
		return err
	}
	tables := summarise(runs, legacy)
	for i, t := range tables {
		at := slices.IndexFunc(t.rows, func(r row) bool { return r.mover == legacy })
		if at < 0 {
			continue
		}
		goal := row{mover: "curl and 28 %, as published", rate: published * t.rows[at].rate}
		goal.slowest, goal.fastest = goal.rate, goal.rate
		tables[i].rows = append(t.rows, goal)
		slices.SortStableFunc(tables[i].rows, func(a, b row) int { return -cmp.Compare(a.rate, b.rate) })
	}
	return errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "runs.json"), text, 0o644),
		create(filepath.Join(dir, "report.md"), func(w io.Writer) error { return writeRelays(w, plans) }),
		create(filepath.Join(dir, "plot.svg"), func(w io.Writer) error { return writeSVG(w, tables, cutThrough) }))
}

// near10 is how much slower than the fastest way another one may be and still be as good.
const near10 = 0.1

func writeRelays(w io.Writer, plans []planned) error {
	var b bytes.Buffer
	b.WriteString("# Store-and-forward and cut-through\n\n" +
		"Client A, an edge with losses, DTN A, a clean backbone, DTN B, a cable, client B; in the scenes with a way around, clients A and B have a clean path of their own, too." +
		" `curl` is one TCP connection from nginx, legacy; it is stored at both DTNs in the second column. glance-dtn goes straight, or by way of DTN A.\n\n" +
		"Seconds for the whole file, medians; in brackets what was predicted from the emulator's figures. A run that was stopped counts with its rate until then.\n\n")
	b.WriteString("| scene | file | curl | curl, stored | direct | stored | cut through | stored by curl ÷ curl, rates | cut through ÷ curl | planned | slower than the fastest |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	var gains, cuts, ours []float64
	strict, close := 0, 0
	for _, p := range plans {
		cell := func(name string) string {
			text := "–"
			if t, ok := p.Measured[name]; ok {
				text = number(t, 2)
			}
			if t, ok := p.Predicted[name]; ok {
				text += " (" + number(t, 2) + ")"
			}
			return text
		}
		ratio := func(name, by string) float64 {
			t, ok := p.Measured[name]
			u, too := p.Measured[by]
			if !ok || !too {
				return math.NaN()
			}
			return u / t
		}
		gain, cut := ratio(legacyStored, legacy), ratio(cutThrough, legacy)
		if p.Published {
			gains, cuts, ours = append(gains, gain), append(cuts, cut), append(ours, ratio(cutThrough, stored))
		}
		if p.Picked == p.Fastest {
			strict++
		}
		if p.Regret <= near10 {
			close++
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s %% |\n", p.Scene, p.Load,
			cell(legacy), cell(legacyStored), cell(direct), cell(stored), cell(cutThrough), number(gain, 2), number(cut, 2),
			p.Decision.Way, number(100*p.Regret, 0))
	}
	fmt.Fprintf(&b, "\n| losses on the line, and TCP that takes them for congestion: rates, medians | |\n|---|---|\n")
	fmt.Fprintf(&b, "| store-and-forward by curl ÷ legacy; published: %.2f | %s |\n", published, number(median(gains), 2))
	fmt.Fprintf(&b, "| cut-through ÷ legacy | %s |\n", number(median(cuts), 2))
	fmt.Fprintf(&b, "| cut-through ÷ store-and-forward, both by glance-dtn | %s |\n", number(median(ours), 2))
	fmt.Fprintf(&b, "\n| all scenes | |\n|---|---|\n")
	fmt.Fprintf(&b, "| the planner picks the fastest way | %d of %d |\n", strict, len(plans))
	fmt.Fprintf(&b, "| … or one that takes a tenth longer at most | %d of %d |\n\n## Why\n\n", close, len(plans))
	for _, p := range plans {
		fmt.Fprintf(&b, "* %s, %s: %s.\n", p.Scene, p.Load, p.Decision.Why)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func TestRelayOptions(t *testing.T) {
	o, err := readRelayOptions(func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range o.scenes() {
		names = append(names, s.String())
	}
	want := []string{
		"line, loss 0 %, cubic", "line, loss 0.01 %, cubic", "line, loss 0.1 %, cubic", "way around, loss 0.1 %, cubic",
		"line, loss 0 %, bbr", "line, loss 0.01 %, bbr", "line, loss 0.1 %, bbr", "way around, loss 0.1 %, bbr",
	}
	if want = slices.Repeat(want, 3); !slices.Equal(names, want) { // of three sizes
		t.Errorf("scenes %q, want %q", names, want)
	}
	for key, value := range map[string]string{
		"RATE": "0", "DELAYS": "1ms", "LOSSES": "60", "STREAMS": "x", "SIZES": "-1", "ROUNDS": "1 2", "LIMIT": "0s",
	} {
		if _, err := readRelayOptions(func(k string) string { return map[string]string{"RELAYS_" + key: value}[k] }); err == nil {
			t.Errorf("RELAYS_%s=%s is taken", key, value)
		}
	}
}

func TestPlansAreReported(t *testing.T) {
	o, err := readRelayOptions(func(key string) string { return map[string]string{"RELAYS_SIZES": "64"}[key] })
	if err != nil {
		t.Fatal(err)
	}
	all := o.scenes()
	runsOf := func(s scene, seconds map[string]float64) (runs []run) {
		for _, m := range s.peers() {
			runs = append(runs, run{Path: s.String(), Load: s.load(), Mover: m.name, Bytes: s.Size, Seconds: seconds[m.name], Finished: true})
		}
		return runs
	}
	var runs []run
	var plans []planned
	for _, c := range []struct {
		scene   scene
		seconds map[string]float64
	}{
		{all[2], map[string]float64{legacy: 100, legacyStored: 50, direct: 30, stored: 8, cutThrough: 5}},
		{all[3], map[string]float64{legacy: 100, legacyStored: 50, direct: 6, stored: 8, cutThrough: 5}}, // not as planned
	} {
		mine := runsOf(c.scene, c.seconds)
		runs = append(runs, mine...)
		plans = append(plans, judge(t, c.scene, mine))
	}
	if p := plans[0]; p.Picked != cutThrough || p.Fastest != cutThrough || p.Regret != 0 || p.Segments[2].RTT != 105*time.Millisecond {
		t.Errorf("on the line %+v", p)
	}
	if p := plans[1]; p.Picked != direct || p.Fastest != cutThrough || math.Abs(p.Regret-0.2) > 1e-9 {
		t.Errorf("with a way around %+v", p)
	}
	dir := t.TempDir()
	if err := reportRelays(dir, runs, plans); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| line, loss 0.1 %, cubic | 64 MiB, parallelism 4 | 100.00 | 50.00 | 30.00 (", "| 2.00 | 20.00 | cut-through at R | 0 % |\n", "| direct | 20 % |\n",
		"published: 1.28 | 2.00 |", "| the planner picks the fastest way | 1 of 2 |", "a tenth longer at most | 1 of 2 |",
		"* way around, loss 0.1 %, cubic, 64 MiB, parallelism 4: direct is the fastest way",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the report has no %q:\n%s", want, text)
		}
	}
	plot, err := os.ReadFile(filepath.Join(dir, "plot.svg"))
	if err != nil || !strings.Contains(string(plot), "curl and 28 %, as published") || strings.Contains(string(plot), "NaN") {
		t.Errorf("%s: %v", plot, err)
	}
}
