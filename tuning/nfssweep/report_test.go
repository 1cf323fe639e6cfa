package nfssweep

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

// observed has rates in MB/s of each size.
func observed(c Corner, rates map[int64][]float64) (all []Observation) {
	for _, size := range []int64{4096, 8192, 16384} {
		for _, r := range rates[size] {
			all = append(all, Observation{Setting{c, size}, Sample{Rate: r * 8e6, Granted: size}})
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
	seen = append(seen, Observation{Setting{Corner{Op: Read, Version: "4.2", NConnect: 4}, 1 << 20}, Sample{Rate: 1}})
	var b bytes.Buffer
	if err := WriteCSV(&b, seen); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != len(seen)+1 {
		t.Fatalf("%d rows, %v, want %d", len(rows), err, len(seen)+1)
	}
	for i, want := range map[int]string{
		0:             "op server client vers nconnect data size granted bits_per_second",
		1:             "write sync async   random 4096 4096 348000000",
		len(rows) - 1: "read   4.2 4  1048576  1",
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
			if err := WriteSVG(&b, r); err != nil {
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
