package nfssweep

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// observed has rates in MB/s of each size.
func observed(c Corner, rates map[int64][]float64) (all []Observation) {
	for _, size := range []int64{4096, 8192, 16384} {
		for _, r := range rates[size] {
			all = append(all, Observation{Setting: Setting{c, size}, Sample: Sample{Rate: r * 8e6, Granted: size}})
		}
	}
	return all
}

// twoServers was measured with the server in both modes.
func twoServers() []Observation {
	corner := func(op Op, server Mode) Corner { return Corner{Op: op, Server: server, Client: Async, Data: Random} }
	plateau := func(top float64) map[int64][]float64 {
		return map[int64][]float64{
			4096: {top / 2, top / 2.01, top / 1.99}, 8192: {top * 0.99, top, top * 0.995}, 16384: {top, top * 1.01, top * 1.005},
		}
	}
	var all []Observation
	for _, c := range []struct {
		corner Corner
		top    float64
	}{{corner(Write, Sync), 87}, {corner(Read, Sync), 118}, {corner(Write, Async), 106}, {corner(Read, Async), 118}} {
		all = append(all, observed(c.corner, plateau(c.top))...)
	}
	return all
}

func TestAdviceIsForTheModesInForce(t *testing.T) {
	r := Analyse(Space{}, twoServers())
	a := r.Advise(Sync, Async)
	if a.RSize != 8192 || a.WSize != 8192 || !a.Sure || a.Version != "" || a.NConnect != 0 {
		t.Errorf("%+v, want rsize and wsize of 8192, sure", a)
	}
	if a.AsyncGain < 0.2 || a.AsyncGain > 0.23 {
		t.Errorf("async gains %v, want 106/87", a.AsyncGain)
	}
	said := strings.Join(a.Says, "\n")
	for _, want := range []string{"wsize=8192 is the knee: 87 MB/s", "rsize=8192 is the knee: 117 MB/s", "105 MB/s where the server is async and 87 MB/s where it is sync", risk} {
		if !strings.Contains(said, want) {
			t.Errorf("the advice says\n%s\nwant %q in it", said, want)
		}
	}
	for name, c := range map[string]struct {
		sync, async []float64
		gains       bool
	}{
		"measured once":  {[]float64{87}, []float64{106}, false},
		"within 5 %":     {[]float64{100, 100.1}, []float64{104, 104.1}, false},
		"slower":         {[]float64{100, 101}, []float64{50, 51}, false},
		"noise":          {[]float64{80, 100, 95}, []float64{90, 120, 101}, false},
		"twice, faster":  {[]float64{87, 88}, []float64{106, 107}, true},
		"once and twice": {[]float64{87}, []float64{106, 107}, true},
	} {
		var seen []Observation
		for mode, rates := range map[Mode][]float64{Sync: c.sync, Async: c.async} {
			seen = append(seen, observed(Corner{Op: Write, Server: mode, Client: Async, Data: Random}, map[int64][]float64{8192: rates})...)
		}
		a := Analyse(Space{}, seen).Advise(Sync, Async)
		if said := strings.Join(a.Says, " "); (a.AsyncGain > 0.05) != c.gains || a.AsyncGain < 0 || strings.Contains(said, "not surely more than 5 % faster") == c.gains || !strings.Contains(said, risk) {
			t.Errorf("%s: async gains %v, %q", name, a.AsyncGain, said)
		}
	}
	noisy := twoServers()
	for i := range noisy {
		noisy[i].Rate *= 1 + float64(i%3)
	}
	if a := Analyse(Space{}, noisy).Advise(Sync, Async); a.AsyncGain != 0 || a.Sure || !strings.Contains(strings.Join(a.Says, " "), risk[1:]) {
		t.Errorf("%+v, want no gain of what is not sure, and the risk all the same", a)
	}
	if a := r.Advise(Sync, Sync); a.WSize != 0 || len(a.Says) != 0 {
		t.Errorf("advice for what was not measured: %+v", a)
	}
}

func TestAdviceTakesTheFewestConnectionsThatAreGoodEnough(t *testing.T) {
	var seen []Observation
	for _, m := range []struct {
		connections int
		top         float64
	}{{4, 100}, {1, 80}, {2, 98}} {
		for _, op := range []Op{Write, Read} {
			seen = append(seen, observed(Corner{Op: op, NConnect: m.connections}, map[int64][]float64{8192: {m.top, m.top}})...)
		}
	}
	if a := Analyse(Space{}, seen).Advise("", ""); a.NConnect != 2 || a.RSize != 8192 || a.WSize != 8192 {
		t.Errorf("%+v, want 2 connections", a)
	}
}

// What is not sure of mounts is not advised, and said with its figures.
func TestConnectionsThatAreNotSurelyBetterAreNotAdvised(t *testing.T) {
	var seen []Observation
	for connections, rates := range map[int][2][]float64{1: {{548, 500}, {400, 700}}, 4: {{393, 450}, {900, 800}}} {
		for i, op := range []Op{Write, Read} {
			seen = append(seen, observed(Corner{Op: op, NConnect: connections}, map[int64][]float64{8192: rates[i]})...)
		}
	}
	a := Analyse(Space{}, seen).Advise("", "")
	want := "nconnect=1 has 526 MB/s, nconnect=4 has 597 MB/s (geometric means of what is written and read): which is better is not sure, so none is advised; the sizes are for nconnect=1."
	if a.NConnect != 0 || a.Sure || a.WSize != 8192 || !strings.Contains(strings.Join(a.Says, "\n"), want) {
		t.Errorf("%+v, want no number of connections, and %q", a, want)
	}
}

// The reason for a doubt is the one that the measurements give, and stands once.
func TestTheAdviceGivesItsReason(t *testing.T) {
	noise := map[int64][]float64{4096: {70, 130, 95}, 8192: {130, 75, 100}}
	for _, c := range []struct {
		name  string
		rates map[int64][]float64
		want  []string
	}{
		{"one size", map[int64][]float64{8192: {90, 90, 90}}, []string{"size=8192 is the only size that was measured (90 MB/s): there is nothing to compare it with."}},
		{"once", map[int64][]float64{4096: {90}, 8192: {100}}, []string{"size=8192 is likely the best (100 MB/s).", "No size was measured twice"}},
		{"noise", noise, []string{"size=8192 is likely the best (100 MB/s).", "differ too much"}},
		{"the smallest", map[int64][]float64{4096: {100, 101, 100}, 8192: {60, 61, 60}}, []string{"size=4096 is the fastest (100 MB/s); no smaller size was measured."}},
		{"no smaller one", map[int64][]float64{4096: {60, 61, 60}, 8192: {100, 101, 100}}, []string{"size=8192 is the fastest (100 MB/s); smaller sizes are more than 5 % slower, or may be."}},
	} {
		var seen []Observation
		for _, op := range []Op{Write, Read} {
			seen = append(seen, observed(Corner{Op: op}, c.rates)...)
		}
		a := Analyse(Space{}, seen).Advise("", "")
		said := strings.Join(a.Says, "\n")
		if len(a.Says) != len(c.want)+1 || !strings.Contains(said, "w"+c.want[0]) || !strings.Contains(said, "r"+c.want[0]) || !strings.Contains(said, c.want[len(c.want)-1]) {
			t.Errorf("%s: the advice says\n%s\nwant %q of both, once what they have in common", c.name, said, c.want)
		}
	}
}

func TestHeadingsLeaveOutWhatIsTheSame(t *testing.T) {
	curves := []Curve{
		{Corner: Corner{Op: Write, Server: Sync, Client: Async, NConnect: 1}}, {Corner: Corner{Op: Write, Server: Sync, Client: Async, NConnect: 4}},
	}
	if common, each := Headings(curves); common != "server sync, client async" || !slices.Equal(each, []string{"nconnect=1", "nconnect=4"}) {
		t.Errorf("%q, %q", common, each)
	}
	if common, each := Headings(curves[:1]); common != "server sync, client async, nconnect=1" || !slices.Equal(each, []string{"as mounted"}) {
		t.Errorf("of one: %q, %q", common, each)
	}
}

func TestAsyncInForceSaysItsRisk(t *testing.T) {
	seen := observed(Corner{Op: Write, Server: Async, Client: Async}, map[int64][]float64{8192: {98, 98}})
	if a := Analyse(Space{}, seen).Advise(Async, Async); !strings.Contains(strings.Join(a.Says, " "), risk[1:]) {
		t.Errorf("%q, want the risk", a.Says)
	}
	seen = observed(Corner{Op: Write, Server: Sync, Client: Async}, map[int64][]float64{8192: {98, 98}})
	if a := Analyse(Space{}, seen).Advise(Sync, Async); strings.Contains(strings.Join(a.Says, " "), risk[1:]) {
		t.Errorf("%q, and nothing is async", a.Says)
	}
}

func TestCSV(t *testing.T) {
	seen := twoServers()
	seen = append(seen, Observation{Setting{Corner{Op: Read, Version: "4.2", NConnect: 4}, 1 << 20}, Sample{Rate: 1}, time.Unix(1, 0)})
	var b bytes.Buffer
	if err := WriteCSV(&b, seen); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != len(seen)+1 {
		t.Fatalf("%d rows, %v, want %d", len(rows), err, len(seen)+1)
	}
	for i, want := range map[int]string{
		0:             "time op server client vers nconnect data size granted bits_per_second",
		1:             "0001-01-01T00:00:00Z write sync async   random 4096 4096 348000000",
		len(rows) - 1: "1970-01-01T00:00:01Z read   4.2 4  1048576  1",
	} {
		if got := strings.Join(rows[i], " "); got != want {
			t.Errorf("row %d is %q, want %q", i, got, want)
		}
	}
}

func TestJSONKeepsWhatWasMeasured(t *testing.T) {
	r := Analyse(Space{}, twoServers())
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil || !bytes.Equal(text, again) {
		t.Errorf("%s came back as %s, %v", text, again, err)
	}
	if p := r.Curves[0].Points[0]; p.Median != 87*4e6 || p.Low >= p.Median || p.High <= p.Median || len(p.Rates) != 3 || p.Rates[0] != 87*4e6 {
		t.Errorf("%+v, want three rates around 348 Mbit/s, in the order of time", p)
	}
}

func TestSVG(t *testing.T) {
	seen := twoServers()
	for _, o := range seen[:9] { // noise leaves no knee
		o.Server, o.Data = `<"&`, Zero
		o.Rate *= 1 + float64(o.Size%5)
		seen = append(seen, o)
	}
	once := observed(Corner{Op: Read}, map[int64][]float64{8192: {1}})
	for name, c := range map[string]struct {
		seen                    []Observation
		panels, curves, circles int
	}{
		"two servers":                 {twoServers(), 2, 4, 4 * 3},
		"a strange name, and no knee": {seen, 2, 5, 5 * 3},
		"one point":                   {once, 1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := Analyse(Space{}, c.seen)
			var b bytes.Buffer
			if err := WriteSVG(&b, "probe of <dtn>", r); err != nil {
				t.Fatal(err)
			}
			elements := map[string]int{}
			knees, panels := 0, 0
			for d := xml.NewDecoder(&b); ; {
				token, err := d.Token()
				if err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("not well-formed: %v", err)
				}
				switch e := token.(type) {
				case xml.StartElement:
					elements[e.Name.Local]++
					for _, a := range e.Attr {
						if a.Name.Local == "class" && a.Value == "knee" {
							knees++
						}
						if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
							t.Errorf("%s has %s=%q", e.Name.Local, a.Name.Local, a.Value)
						}
					}
				case xml.CharData:
					if strings.HasSuffix(string(e), ", MB/s") {
						panels++
					}
				}
			}
			sure := 0
			for _, c := range r.Curves {
				if c.Sure {
					sure++
				}
			}
			if panels != c.panels || elements["polyline"] != c.curves || elements["circle"]-knees != c.circles || knees != sure {
				t.Errorf("%d panels, %d curves, %d points, %d knees; want %d, %d, %d, %d", panels, elements["polyline"], elements["circle"]-knees, knees, c.panels, c.curves, c.circles, sure)
			}
		})
	}
}

func TestNames(t *testing.T) {
	s := Setting{Corner{Write, Sync, Async, "4.2", 4, Zero}, 8192}
	if got, want := s.String(), "write 8K, server sync, client async, vers=4.2, nconnect=4, zero"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for n, want := range map[int64]string{1 << 20: "1M", 1 << 10: "1K", 12288: "12K", 1500: "1500"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) is %q, want %q", n, got, want)
		}
	}
	if got := (Corner{Op: Read}).Name(); got != "as mounted" {
		t.Errorf("a corner without a name is %q", got)
	}
}
