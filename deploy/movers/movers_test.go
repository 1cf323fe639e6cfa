package movers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
)

// path is a way to connect the hosts.
type path struct {
	name    string
	wide    bool
	control string // congestion control of both hosts
	connect func(testing.TB, *lab.Machine, *lab.Machine)
}

// load is what is moved.
type load struct {
	name  string
	count int
	size  int64
}

// options are how much is measured, from the environment.
type options struct {
	size   int64          // MOVERS_SIZE, MiB: of the one large file; the other loads are in proportion
	rounds int            // MOVERS_ROUNDS
	limit  time.Duration  // MOVERS_LIMIT: a run that takes longer is stopped
	cc     string         // MOVERS_CC: congestion control
	only   *regexp.Regexp // MOVERS_PEERS: names of movers; glance-dtn is always there
}

func readOptions(getenv func(string) string) (o options, err error) {
	value := func(key, standard string) string {
		if v := getenv(key); v != "" {
			return v
		}
		return standard
	}
	size, err1 := strconv.ParseInt(value("MOVERS_SIZE", "4096"), 10, 64)
	rounds, err2 := strconv.Atoi(value("MOVERS_ROUNDS", "5"))
	limit, err3 := time.ParseDuration(value("MOVERS_LIMIT", "2m"))
	only, err4 := regexp.Compile(getenv("MOVERS_PEERS"))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return o, err
	}
	if size < 1 || rounds < 1 || limit <= 0 {
		return o, errors.New("MOVERS_SIZE, MOVERS_ROUNDS and MOVERS_LIMIT are 1 or more")
	}
	return options{size << 20, rounds, limit, value("MOVERS_CC", "cubic"), only}, nil
}

// loads are one file of 4 GiB, 200 of 20 MiB and 2,000 of 100 KiB, or as much less
// as the large file is smaller.
func (o options) loads() []load {
	part := func(n int) int { return max(1, int(int64(n)*o.size>>32)) }
	return []load{
		{"one", 1, o.size},
		{"many", part(200), 20 << 20},
		{"small", part(2000), 100 << 10},
	}
}

func (l load) String() string {
	if l.size < 1<<20 {
		return fmt.Sprintf("%d × %d KiB", l.count, l.size>>10)
	}
	return fmt.Sprintf("%d × %d MiB", l.count, l.size>>20)
}

// paths are a local network and a wide area one of 1 Gbit/s and 50 ms.
func (o options) paths() (all []path) {
	for _, mtu := range []int{1500, 9000} {
		all = append(all, path{fmt.Sprintf("LAN, MTU %d", mtu), false, o.cc, func(tb testing.TB, a, b *lab.Machine) {
			lab.Connect(tb, a, "10.0.0.1/24", b, "10.0.0.2/24")
			for m, dev := range map[*lab.Machine]string{a: b.Name, b: a.Name} {
				m.Run(tb, "ip", "link", "set", "dev", dev, "mtu", strconv.Itoa(mtu))
			}
		}})
	}
	for _, loss := range []float64{0, 0.0001, 0.001} {
		all = append(all, path{fmt.Sprintf("WAN, 1GbE at 50 ms, loss %g %%", loss*100), true, o.cc, func(tb testing.TB, a, b *lab.Machine) {
			lab.ConnectOver(tb, wan.Path{Delay: 25 * time.Millisecond, Rate: 1e9, Loss: loss}, a, "10.0.0.1/24", b, "10.0.0.2/24")
		}})
	}
	return all
}

// BenchmarkMovers runs every mover with every load over every path, and writes
// runs.json, report.md and plot.svg into dist/movers after each.
func BenchmarkMovers(b *testing.B) {
	o := asked(b)
	var runs []run
	for _, p := range o.paths() {
		for _, l := range o.loads() {
			b.Run(p.name+"/"+l.name, func(b *testing.B) {
				for b.Loop() {
					runs = append(runs, measure(b, o, p, l)...)
				}
				if err := report(filepath.Join("..", "..", "dist", "movers"), runs); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// measure runs the movers in turn, each round beginning with another.
func measure(b *testing.B, o options, p path, l load) (runs []run) {
	r := newRig(b, p, l)
	var all []peer
	for _, m := range peers() {
		if (m.load == "" || m.load == l.name) && (!m.wide || p.wide) && (m.name == ours || o.only.MatchString(m.name)) {
			all = append(all, m)
		}
	}
	for round := range o.rounds {
		for i := range all {
			m := all[(i+round)%len(all)]
			out := r.measure(m, o.limit)
			out.Path, out.Load, out.Round = p.name, l.String(), round
			b.Logf("%s, %s, round %d: %s: %.0f Mbit/s, %+v", p.name, l, round, m.name, out.rate()/1e6, out)
			runs = append(runs, out)
		}
	}
	for _, t := range summarise(runs, ours) {
		for _, row := range t.rows {
			if row.mover == ours {
				b.ReportMetric(row.rate/1e6, "Mbit/s")
			}
		}
	}
	return runs
}

func report(dir string, runs []run) error {
	tables := summarise(runs, ours)
	text, err := json.MarshalIndent(runs, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "runs.json"), text, 0o644),
		create(filepath.Join(dir, "report.md"), func(w io.Writer) error { return writeMarkdown(w, tables, ours) }),
		create(filepath.Join(dir, "plot.svg"), func(w io.Writer) error { return writeSVG(w, tables, ours) }))
}

func create(name string, do func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

func TestOptions(t *testing.T) {
	o, err := readOptions(func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range o.loads() {
		got = append(got, l.String())
	}
	if want := "[1 × 4096 MiB 200 × 20 MiB 2000 × 100 KiB]"; fmt.Sprint(got) != want || o.rounds != 5 {
		t.Errorf("%v in %d rounds, want %s in 5", got, o.rounds, want)
	}
	small, err := readOptions(func(key string) string { return map[string]string{"MOVERS_SIZE": "64"}[key] })
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(small.loads()), "[1 × 64 MiB 3 × 20 MiB 31 × 100 KiB]"; got != want {
		t.Errorf("with MOVERS_SIZE=64: %s, want %s", got, want)
	}
	for key, value := range map[string]string{"MOVERS_SIZE": "4GiB", "MOVERS_ROUNDS": "0", "MOVERS_LIMIT": "10", "MOVERS_PEERS": "("} {
		if _, err := readOptions(func(k string) string { return map[string]string{key: value}[k] }); err == nil {
			t.Errorf("%s=%s is taken", key, value)
		}
	}
}
