package advice

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/history"
)

// BenchmarkPCP writes the report.
func BenchmarkPCP(b *testing.B) {
	for b.Loop() {
		var results []*result
		r, err := evaluate("simulator", "simulated", simulated(1, 48, 5, grid(2)), 48)
		if err != nil {
			b.Fatal(err)
		}
		results = append(results, r)
		names, err := filepath.Glob("testdata/*.csv")
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range names {
			base := strings.TrimSuffix(filepath.Base(name), ".csv")
			paths, err := measured(name)
			if err == nil {
				r, err = evaluate("measured: "+base, base, paths, len(paths))
			}
			if err != nil {
				b.Fatal(err)
			}
			results = append(results, r)
		}
		dir := filepath.Join("..", "..", "dist", "pcp")
		if err := write(dir, results); err != nil {
			b.Fatal(err)
		}
		s := results[0].shares(ours)
		b.ReportMetric(quantile(s, 0.5), "median-share")
		b.ReportMetric(quantile(s, 0.1), "p10-share")
		b.ReportMetric(results[0].r2(logarithm), "R²")
	}
}

// emulator is the bottleneck of what BenchmarkGrid of deploy/movers has not measured well.
const emulator mover.Place = "emulator"

func write(dir string, results []*result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := func(name string, write func(io.Writer) error) error {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644)
	}
	errs := []error{file("report.md", func(w io.Writer) error { return writeMarkdown(w, results) })}
	for _, r := range results {
		errs = append(errs,
			file(r.file+".svg", func(w io.Writer) error { return writeSVG(w, r) }),
			file(r.file+".csv", func(w io.Writer) error { return writeCSV(w, r) }))
	}
	return errors.Join(errs...)
}

// measured reads a grid that was measured: outcomes of one step each. What was measured
// more than once counts with its median; what has measured the emulator does not count,
// nor does a condition where less than half of the PCPs are left.
func measured(name string) (paths [][]*conditions, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	outcomes, err := history.ReadCSV(f)
	if err != nil {
		return nil, err
	}
	type key struct {
		tuning.Condition
		pcp mover.PCP
	}
	rates := map[key][]float64{}
	var keys []key
	for _, o := range outcomes {
		k := key{o.Condition, o.Steps[0].PCP}
		if _, known := rates[k]; !known {
			keys = append(keys, k)
			rates[k] = nil
		}
		if o.Steps[0].Bottleneck == emulator {
			continue
		}
		for _, seen := range o.Observations(0) {
			rates[k] = append(rates[k], seen.Throughput)
		}
	}
	cells := map[tuning.Condition][]cell{}
	pcps := map[tuning.Condition]int{}
	var order []tuning.Condition
	for _, k := range keys {
		if pcps[k.Condition]++; pcps[k.Condition] == 1 {
			order = append(order, k.Condition)
		}
		if all := slices.Sorted(slices.Values(rates[k])); len(all) > 0 {
			middle := (all[(len(all)-1)/2] + all[len(all)/2]) / 2
			cells[k.Condition] = append(cells[k.Condition], cell{k.pcp, middle, middle})
		}
	}
	of := map[tuning.Path]int{}
	for _, c := range order {
		if 2*len(cells[c]) < pcps[c] {
			continue
		}
		i, known := of[c.Path]
		if !known {
			i = len(paths)
			of[c.Path] = i
			paths = append(paths, nil)
		}
		paths[i] = append(paths[i], newConditions(c, cells[c]))
	}
	return paths, nil
}

// TestAdviceOnPathsNeverSeen holds the figures that the advice is good for, on fewer
// paths and a coarser grid than the report: less history, so it is a little harder.
func TestAdviceOnPathsNeverSeen(t *testing.T) {
	r, err := evaluate("simulator", "simulated", simulated(2, 48, 4, grid(4)), 4)
	if err != nil {
		t.Fatal(err)
	}
	r.hold(t, goals{median: 0.95, tenth: 0.85, r2: 0.9, interval: 0.06})

	dir := t.TempDir()
	if err := write(dir, []*result{r}); err != nil {
		t.Fatal(err)
	}
	report, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## simulator\n", "| TSK | 0.", "| FTS3 ladder | ", "](simulated.svg)"} {
		if !strings.Contains(string(report), want) {
			t.Errorf("the report has no %q:\n%s", want, report)
		}
	}
	if strings.Contains(string(report), "NaN") {
		t.Errorf("the report has NaN:\n%s", report)
	}
	wantPlot(t, filepath.Join(dir, "simulated.svg"), len(r.methods))
	table, err := os.ReadFile(filepath.Join(dir, "simulated.csv"))
	if lines := bytes.Count(table, []byte("\n")); err != nil || lines != 1+len(r.choices) {
		t.Errorf("the CSV has %d lines for %d choices, %v", lines, len(r.choices), err)
	}
}

func wantPlot(t *testing.T, name string, curves int) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		e, is := token.(xml.StartElement)
		if is && e.Name.Local == "polyline" {
			lines++
		}
		for _, a := range e.Attr {
			if is && strings.Contains(a.Value, "NaN") {
				t.Errorf("the plot has %v", e)
			}
		}
	}
	if lines != curves {
		t.Errorf("the plot has %d curves, want %d", lines, curves)
	}
}

// TestAdviceOnMeasuredPathsNeverSeen holds how good the advice is on each of the paths of
// testdata/grid.csv, when history is of the others.
func TestAdviceOnMeasuredPathsNeverSeen(t *testing.T) {
	paths, err := measured(filepath.Join("testdata", "grid.csv"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := evaluate("measured", "grid", paths, len(paths))
	if err != nil {
		t.Fatal(err)
	}
	r.hold(t, goals{median: 0.95, tenth: 0.85, r2: 0.8, interval: 0.1})
}

// goals are the least median and 10th percentile of the shares of the best throughput, the
// least R², and by how much the intervals may hold more or less than they promise.
type goals struct{ median, tenth, r2, interval float64 }

// hold holds that the fuzzy model reaches its goals, and that no other method is as good.
func (r *result) hold(t *testing.T, g goals) {
	t.Helper()
	ourShares := r.shares(ours)
	for _, m := range r.methods {
		s := r.shares(m.name)
		t.Logf("%-16s median %.3f, 10th percentile %.3f, worst %.3f, hits %.2f", m.name, quantile(s, 0.5), quantile(s, 0.1), s[0], hits(s, good))
		if m.name != ours && (quantile(s, 0.5) >= quantile(ourShares, 0.5) || quantile(s, 0.1) >= quantile(ourShares, 0.1)) {
			t.Errorf("%s is as good as the fuzzy model", m.name)
		}
	}
	if median, tenth := quantile(ourShares, 0.5), quantile(ourShares, 0.1); median < g.median || tenth < g.tenth {
		t.Errorf("the advice has %.3f of the best throughput in the median, want %v; %.3f at the 10th percentile, want %v", median, g.median, tenth, g.tenth)
	}
	t.Logf("R² %.3f, of the utilisation %.3f, mean error %.2f, coverage %.3f; %s", r.r2(logarithm), r.r2(utilisation), r.mape(), r.coverage(), r.chosen())
	if r2 := r.r2(logarithm); r2 < g.r2 {
		t.Errorf("R² is %.3f, want %v", r2, g.r2)
	}
	if covered := r.coverage(); math.Abs(covered-r.confidence) > g.interval {
		t.Errorf("%.3f of what was observed lies in the intervals, which promise %v", covered, r.confidence)
	}
}

// TestAMeasuredGridIsEvaluated writes a simulated grid as if it had been measured, and has
// it read.
func TestAMeasuredGridIsEvaluated(t *testing.T) {
	var outcomes []tuning.Outcome
	paths := simulated(7, 6, 2, grid(8))
	for _, o := range observations(paths) {
		for rep, off := range []float64{1, 0.5, 1.1} { // the median is the first
			outcomes = append(outcomes, tuning.Outcome{
				ID: strings.Join([]string{"lab", pcpOf(o.PCP), o.RTT.String(), time.Duration(o.Size).String(), string(rune('a' + rep))}, "-"), Ended: time.Unix(1e9, 0), Engine: mover.Stream,
				Condition: o.Condition, Steps: []tuning.Step{{PCP: o.PCP, Lasted: time.Minute, Bytes: int64(off*o.Throughput*60/8) + 1}},
			})
		}
	}
	var text bytes.Buffer
	if err := history.WriteCSV(&text, outcomes); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "lab.csv")
	if err := os.WriteFile(name, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := measured(name)
	if err != nil || len(got) != len(paths) {
		t.Fatalf("%d paths, %v, want %d", len(got), err, len(paths))
	}
	for i, path := range got {
		for k, c := range path {
			want := paths[i][k]
			for j, x := range c.cells {
				if c.Condition != want.Condition || x.pcp != want.cells[j].pcp || math.Abs(x.truth/want.cells[j].observed-1) > 0.001 {
					t.Fatalf("%+v %+v, want %+v", c.Condition, x, want.cells[j])
				}
			}
		}
	}
	if r, err := evaluate("measured", "lab", got, len(got)); err != nil || len(r.shares(ours)) != 12 {
		t.Errorf("evaluated: %v", err)
	}
}
