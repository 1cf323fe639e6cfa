package advice

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/glance-dtn/glance-dtn/internal/svg"
	"github.com/glance-dtn/glance-dtn/mover"
)

// good is the share of the best throughput that counts as a hit.
const good = 0.95

func writeMarkdown(w io.Writer, results []*result) error {
	var b bytes.Buffer
	b.WriteString("# Advice on pipelining, concurrency and parallelism\n\n" +
		"Each path is held out in turn: what learns sees the other paths only, and is then asked for a PCP in each condition of that one." +
		" The share is the throughput of the chosen PCP by that of the best in the grid; a PCP that the grid has not is taken for the nearest that it has.\n")
	for _, r := range results {
		conditions := len(r.shares(ours))
		fmt.Fprintf(&b, "\n## %s\n\n%d observations: %d paths, %d conditions, up to %d PCPs in each.\n\n", r.name, r.rows, len(r.paths), conditions, r.widest())
		fmt.Fprintf(&b, "| method | median share | 10th percentile | worst | within %.0f %% of the best | how it chooses |\n|---|---|---|---|---|---|\n", 100*(1-good))
		for _, m := range r.methods {
			s := r.shares(m.name)
			fmt.Fprintf(&b, "| %s | %.3f | %.3f | %.3f | %.0f %% | %s |\n", m.name, quantile(s, 0.5), quantile(s, 0.1), s[0], 100*hits(s, good), m.about)
		}
		fmt.Fprintf(&b, "\nThe fuzzy model's throughput, of all PCPs of paths that it had not seen: R² %.3f of its logarithm and %.3f of the path's utilisation; mean absolute error %.0f %%; %.1f %% within the interval of %.0f %%.\n",
			r.r2(logarithm), r.r2(utilisation), 100*r.mape(), 100*r.coverage(), 100*r.confidence)
		b.WriteString("\nWhat validation chose, and how often: ")
		b.WriteString(r.chosen() + ".\n")
		fmt.Fprintf(&b, "\n![Shares of the best throughput](%s.svg)\n", r.file)
	}
	b.WriteString(`
## What this is worth

The simulator is a model: windows by TCP buffers, by losses (Mathis et al. 1997; RFC 9438; BBR takes none for congestion) and by slow start (RFC 5681, 6928); a bottleneck that
more connections than fill it make worse; hosts with a rate for each connection and for all, a time for each file, and a cost of each connection; round trips between files, by
pipelining; files that were asked for on one channel and are missing on another. What is observed has a noise of 5 %; what is chosen is judged without it. The paths differ
in bandwidth (0.1 to 100 Gbit/s), round trip time (0.2 to 300 ms), buffers (2 to 512 MiB), loss and congestion control, the loads in the size (0.1 MB to 20 GB) and number of
files. All hosts are alike, and nobody else uses the path: on real ones both are not so, and every method does worse.

The fuzzy model may describe a condition by how near it comes to the limits that are published. The simulator has the same limits, and other figures of hosts, which the model has to
learn: on the simulator this helps more than it may on a network. What was measured is the test of that. There a PCP is judged by the median of few runs, whose noise makes the best of
the grid better than it is, and each share lower, that of a perfect choice, too.
`)
	_, err := w.Write(b.Bytes())
	return err
}

func (r *result) widest() (n int) {
	for _, path := range r.paths {
		for _, c := range path {
			n = max(n, len(c.cells))
		}
	}
	return n
}

// chosen says how often each kind of model was.
func (r *result) chosen() string {
	times := map[string]int{}
	var kinds []string
	for _, q := range r.models {
		kind := fmt.Sprintf("%d rules on %s", q.Rules, q.Features)
		if times[kind]++; times[kind] == 1 {
			kinds = append(kinds, kind)
		}
	}
	slices.SortFunc(kinds, func(a, b string) int { return times[b] - times[a] })
	var text strings.Builder
	for i, kind := range kinds {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(fmt.Sprintf("%s, %d times", kind, times[kind]))
	}
	return text.String()
}

// writeCSV writes what each method chose.
func writeCSV(w io.Writer, r *result) error {
	out := csv.NewWriter(w)
	rows := [][]string{{"method", "path", "bandwidth_bps", "rtt_ns", "buffer_bytes", "loss", "congestion", "files", "size_bytes", "pipelining", "concurrency", "parallelism", "throughput_bps", "share"}}
	for _, c := range r.choices {
		rows = append(rows, []string{
			c.method, strconv.Itoa(c.path), number(c.Bandwidth), strconv.FormatInt(int64(c.RTT), 10), strconv.FormatInt(c.Buffer, 10), number(c.Loss), c.Congestion, strconv.Itoa(c.Files), strconv.FormatInt(c.Size, 10),
			strconv.Itoa(c.PCP.Pipelining), strconv.Itoa(c.PCP.Concurrency), strconv.Itoa(c.PCP.Parallelism), number(c.Throughput), number(c.share),
		})
	}
	return out.WriteAll(rows)
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// Measures of the plots, in their own units.
const (
	plotWidth, plotHeight = 420.0, 320.0
	plotLeft, plotTop     = 60.0, 40.0
	plotBelow, plotLine   = 56.0, 18.0
	points                = 1500 // of what was predicted
)

// writeSVG draws the shares of all methods in ascending order, and beside it what the
// model predicted over what was observed.
func writeSVG(w io.Writer, r *result) error {
	height := plotTop + plotHeight + plotBelow + plotLine*float64(len(r.methods))
	d := svg.New(2*(plotLeft+plotWidth)+plotLeft, height, "Advice on paths that were not seen")
	bottom := plotTop + plotHeight
	axes := func(left float64, title, below string) {
		d.Add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#444444"/>`, left, plotTop, plotWidth, plotHeight)
		d.Text(left+plotWidth/2, plotTop-14, "middle", title)
		d.Text(left+plotWidth/2, bottom+36, "middle", below)
	}

	axes(plotLeft, "share of the best throughput", "conditions, the worst first")
	for i := range 6 {
		v := float64(i) / 5
		y := bottom - plotHeight*v
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`, plotLeft, y, plotLeft+plotWidth, y)
		d.Text(plotLeft-6, y+4, "end", fmt.Sprintf("%g", v))
		d.Text(plotLeft+plotWidth*v, bottom+18, "middle", fmt.Sprintf("%g %%", 100*v))
	}
	for i, m := range r.methods {
		colour, style := svg.Colours[i%len(svg.Colours)], ""
		if i >= len(svg.Colours) {
			style = ` stroke-dasharray="5 3"`
		}
		s, line := r.shares(m.name), ""
		for k, v := range s {
			line += fmt.Sprintf("%.1f,%.1f ", plotLeft+plotWidth*float64(k)/float64(max(1, len(s)-1)), bottom-plotHeight*v)
		}
		d.Add(`<polyline fill="none" stroke-width="2" stroke="%s"%s points="%s"/>`, colour, style, line)
		y := bottom + plotBelow + plotLine*float64(i)
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2"%s/>`, plotLeft, y-4, plotLeft+24, y-4, colour, style)
		d.Text(plotLeft+32, y, "start", m.name)
	}

	left := 2*plotLeft + plotWidth
	axes(left, "throughput predicted, bit/s", "throughput observed, bit/s")
	low, high := math.Floor(math.Log10(slices.Min(r.observed))), math.Ceil(math.Log10(slices.Max(r.observed)))
	at := func(rate float64) float64 { return min(max((math.Log10(rate)-low)/(high-low), 0), 1) }
	for decade := low; decade <= high; decade++ {
		v := at(math.Pow(10, decade))
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`, left, bottom-plotHeight*v, left+plotWidth, bottom-plotHeight*v)
		d.Text(left-6, bottom-plotHeight*v+4, "end", fmt.Sprintf("1e%.0f", decade))
		d.Text(left+plotWidth*v, bottom+18, "middle", fmt.Sprintf("1e%.0f", decade))
	}
	step := max(1, len(r.observed)/points)
	for i := 0; i < len(r.observed); i += step {
		d.Add(`<circle class="point" cx="%.1f" cy="%.1f" r="1.5" fill="%s" fill-opacity="0.4"/>`, left+plotWidth*at(r.observed[i]), bottom-plotHeight*at(r.predicted[i]), svg.Colours[0])
	}
	d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#444444"/>`, left, bottom, left+plotWidth, plotTop)
	_, err := w.Write(d.End())
	return err
}

// pcpOf prints a PCP in a line.
func pcpOf(p mover.PCP) string {
	return fmt.Sprintf("%d/%d/%d", p.Pipelining, p.Concurrency, p.Parallelism)
}
