package movers

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

// run is one mover's run with one load over one path.
type run struct {
	Path     string  `json:"path"`
	Load     string  `json:"load"`
	Mover    string  `json:"mover"`
	Round    int     `json:"round"`
	Bytes    int64   `json:"bytes"` // that arrived
	Seconds  float64 `json:"seconds"`
	Finished bool    `json:"finished"` // false: it was stopped for taking too long
	Error    string  `json:"error,omitempty"`

	SendCPU     float64 `json:"send_cpu_seconds"`
	RecvCPU     float64 `json:"recv_cpu_seconds"`
	SendMemory  int64   `json:"send_memory_bytes"` // the most that its processes had resident together
	RecvMemory  int64   `json:"recv_memory_bytes"`
	Retransmits int64   `json:"retransmitted_segments"` // of both ends
}

// rate is in bits per second; a failed run has none.
func (r run) rate() float64 {
	if r.Error != "" || r.Seconds == 0 {
		return math.NaN()
	}
	return float64(r.Bytes) * 8 / r.Seconds
}

// row is what the rounds of one mover come to.
type row struct {
	mover                  string
	rate, slowest, fastest float64 // bits per second; the first is the median
	ratio                  float64 // median of ours by this mover's, round by round
	sendCPU, recvCPU       float64 // seconds a GiB, medians
	sendMemory, recvMemory float64 // medians
	retransmits            float64 // median
	unfinished, failed     int     // rounds
}

// table is one path with one load.
type table struct {
	path, load string
	rows       []row // the fastest first, those that never worked last
}

// summarise makes tables of runs, in the order in which the paths and loads came.
// ours is the mover that the others are compared with.
func summarise(runs []run, ours string) (tables []table) {
	type key struct{ path, load string }
	var keys []key
	byKey := map[key][]run{}
	for _, r := range runs {
		k := key{r.Path, r.Load}
		if byKey[k] == nil {
			keys = append(keys, k)
		}
		byKey[k] = append(byKey[k], r)
	}
	for _, k := range keys {
		t := table{path: k.path, load: k.load}
		byMover := map[string][]run{}
		our := map[int]float64{}
		for _, r := range byKey[k] {
			byMover[r.Mover] = append(byMover[r.Mover], r)
			if r.Mover == ours {
				our[r.Round] = r.rate()
			}
		}
		for name, rs := range byMover {
			t.rows = append(t.rows, rowOf(name, rs, our))
		}
		slices.SortFunc(t.rows, func(a, b row) int {
			return cmp.Or(-cmp.Compare(a.rate, b.rate), cmp.Compare(a.mover, b.mover))
		})
		tables = append(tables, t)
	}
	return tables
}

func rowOf(name string, runs []run, our map[int]float64) row {
	out := row{mover: name}
	var rates, ratios, sendCPU, recvCPU, sendMemory, recvMemory, retransmits []float64
	for _, r := range runs {
		if r.Error != "" {
			out.failed++
			continue
		}
		if !r.Finished {
			out.unfinished++
		}
		rates = append(rates, r.rate())
		if o, ok := our[r.Round]; ok && !math.IsNaN(o) && r.rate() > 0 {
			ratios = append(ratios, o/r.rate())
		}
		if gib := float64(r.Bytes) / (1 << 30); gib > 0 {
			sendCPU, recvCPU = append(sendCPU, r.SendCPU/gib), append(recvCPU, r.RecvCPU/gib)
		}
		sendMemory, recvMemory = append(sendMemory, float64(r.SendMemory)), append(recvMemory, float64(r.RecvMemory))
		retransmits = append(retransmits, float64(r.Retransmits))
	}
	out.rate, out.ratio = median(rates), median(ratios)
	if len(rates) > 0 {
		out.slowest, out.fastest = slices.Min(rates), slices.Max(rates)
	}
	out.sendCPU, out.recvCPU = median(sendCPU), median(recvCPU)
	out.sendMemory, out.recvMemory, out.retransmits = median(sendMemory), median(recvMemory), median(retransmits)
	return out
}

// median of nothing is not a number.
func median(all []float64) float64 {
	if len(all) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func writeMarkdown(w io.Writer, tables []table, ours string) error {
	var b bytes.Buffer
	b.WriteString("# Movers\n\nCPU and memory are those of the movers' processes, the work of the kernel that was done in their name included." +
		" On a wide area path the emulator takes packets in, so the receiver's share of that is missing there, for all alike.\n\n")
	for _, t := range tables {
		fmt.Fprintf(&b, "## %s: %s\n\n", t.path, t.load)
		fmt.Fprintf(&b, "| mover | Mbit/s, median (slowest–fastest) | %s is so many times as fast | CPU s/GiB, sender + receiver | MiB, sender + receiver | segments sent again | notes |\n|---|---|---|---|---|---|---|\n", ours)
		for _, r := range t.rows {
			var notes []string
			if r.unfinished > 0 {
				notes = append(notes, fmt.Sprintf("stopped in %d rounds, the rate is that until then", r.unfinished))
			}
			if r.failed > 0 {
				notes = append(notes, fmt.Sprintf("failed in %d rounds", r.failed))
			}
			ratio := number(r.ratio, 2)
			if r.mover == ours {
				ratio = ""
			}
			fmt.Fprintf(&b, "| %s | %s (%s–%s) | %s | %s + %s | %s + %s | %s | %s |\n", r.mover,
				number(r.rate/1e6, 0), number(r.slowest/1e6, 0), number(r.fastest/1e6, 0), ratio,
				number(r.sendCPU, 2), number(r.recvCPU, 2), number(r.sendMemory/(1<<20), 0), number(r.recvMemory/(1<<20), 0),
				number(r.retransmits, 0), strings.Join(notes, "; "))
		}
		b.WriteString("\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

func number(v float64, decimals int) string {
	if math.IsNaN(v) {
		return "–"
	}
	return fmt.Sprintf("%.*f", decimals, v)
}

// Measures of the plot, in its own units.
const (
	plotLabels, plotBars, plotNumbers = 190.0, 420.0, 150.0
	plotLine, plotGap                 = 18.0, 34.0
)

// writeSVG draws a panel for each table: bars of the medians, and lines from the
// slowest to the fastest round. The colours are those of Okabe and Ito, which people
// with any colour vision tell apart.
func writeSVG(w io.Writer, tables []table, ours string) error {
	var b bytes.Buffer
	text := func(x, y float64, anchor, weight, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s" font-weight="%s">`, x, y, anchor, weight)
		_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
		b.WriteString("</text>\n")
	}
	height := plotGap / 2
	for _, t := range tables {
		height += plotGap + plotLine*float64(len(t.rows))
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">
<title>Throughput of movers</title>
<rect width="100%%" height="100%%" fill="#ffffff"/>
`, plotLabels+plotBars+plotNumbers, height)
	y := 0.0
	for _, t := range tables {
		most := 1.0
		for _, r := range t.rows {
			most = max(most, r.fastest)
		}
		y += plotGap
		text(10, y-10, "start", "bold", t.path+": "+t.load+", Mbit/s")
		x := func(rate float64) float64 { return plotLabels + plotBars*rate/most }
		for _, r := range t.rows {
			text(plotLabels-6, y+plotLine*0.7, "end", "normal", r.mover)
			if !math.IsNaN(r.rate) {
				colour := "#56b4e9"
				if r.mover == ours {
					colour = "#d55e00"
				}
				fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", plotLabels, y+2, x(r.rate)-plotLabels, plotLine-4, colour)
				fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#000000"/>`+"\n", x(r.slowest), y+plotLine/2, x(r.fastest), y+plotLine/2)
			}
			text(x(r.fastest)+6, y+plotLine*0.7, "start", "normal", number(r.rate/1e6, 0))
			y += plotLine
		}
	}
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

func TestRunsAreSummarised(t *testing.T) {
	const gib = 1 << 30
	runs := []run{
		{Path: "LAN", Load: "one", Mover: "ours", Round: 0, Bytes: gib, Seconds: 1, Finished: true, SendCPU: 1, RecvCPU: 2, SendMemory: 1 << 20, RecvMemory: 2 << 20},
		{Path: "LAN", Load: "one", Mover: "peer", Round: 0, Bytes: gib, Seconds: 2, Finished: true, Retransmits: 7},
		{Path: "LAN", Load: "one", Mover: "peer", Round: 1, Bytes: gib / 2, Seconds: 4},
		{Path: "LAN", Load: "one", Mover: "ours", Round: 1, Bytes: gib, Seconds: 2, Finished: true, SendCPU: 3, RecvCPU: 2, SendMemory: 3 << 20, RecvMemory: 2 << 20},
		{Path: "LAN", Load: "one", Mover: "broken <peer>", Round: 0, Error: "no"},
		{Path: "LAN", Load: "one", Mover: "broken <peer>", Round: 1, Error: "no"},
		{Path: "LAN", Load: "many", Mover: "peer", Round: 0, Bytes: gib, Seconds: 1, Finished: true},
	}
	tables := summarise(runs, "ours")
	if len(tables) != 2 || tables[0].load != "one" || tables[1].load != "many" {
		t.Fatalf("tables %+v", tables)
	}
	var names []string
	for _, r := range tables[0].rows {
		names = append(names, r.mover)
	}
	if want := []string{"ours", "peer", "broken <peer>"}; !slices.Equal(names, want) {
		t.Errorf("movers %q, want %q", names, want)
	}
	peer := tables[0].rows[1]
	// 2 GiB/s... by round: (1/1)/(1/2) = 2 and (1/2)/(0.5/4) = 4.
	if peer.ratio != 3 || peer.unfinished != 1 || peer.failed != 0 {
		t.Errorf("peer: %+v, want a ratio of 3, the median of 2 and 4, and one round that was stopped", peer)
	}
	if our := tables[0].rows[0]; our.sendCPU != 2 || our.recvCPU != 2 || our.rate != 0.75*8*gib || our.slowest != 4*gib || our.fastest != 8*gib {
		t.Errorf("ours: %+v", our)
	}

	var text bytes.Buffer
	if err := writeMarkdown(&text, tables, "ours"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## LAN: one\n", "## LAN: many\n",
		"| ours | 6442 (4295–8590) |  | 2.00 + 2.00 | 2 + 2 | 0 |  |\n",
		"| 3.00 |", "stopped in 1 rounds", "| broken <peer> | – (0–0) | – | – + – | – + – | – | failed in 2 rounds |\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report has no %q:\n%s", want, &text)
		}
	}

	var svg bytes.Buffer
	if err := writeSVG(&svg, tables, "ours"); err != nil {
		t.Fatal(err)
	}
	bars, texts := 0, ""
	for d := xml.NewDecoder(&svg); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			if e.Name.Local == "rect" {
				bars++
			}
		case xml.CharData:
			texts += string(e)
		}
	}
	if bars != 1+3 {
		t.Errorf("%d rectangles, want the ground and a bar for each of three that worked", bars)
	}
	if !strings.Contains(texts, "broken <peer>") || strings.Contains(texts, "NaN") {
		t.Errorf("the texts of the plot are %q", texts)
	}
}
