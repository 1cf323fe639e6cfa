package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
	"github.com/glance-dtn/glance-dtn/tuning/nfssweep"
)

// tuned is the result of a sweep.
type tuned struct {
	Source string `json:"source"`
	Dir    string `json:"dir,omitempty"`
	Way    string `json:"way"`
	Bytes  int64  `json:"bytes"`

	Started      time.Time `json:"started"`
	Seconds      float64   `json:"seconds"`
	Measurements int       `json:"measurements"`
	Incomplete   string    `json:"incomplete,omitempty"` // why it ended before its end

	Server nfssweep.Mode `json:"server,omitempty"` // in force, or that the advice is for; empty: not known
	Client nfssweep.Mode `json:"client,omitempty"` // in force, or that the advice is for
	nfssweep.Report
	Advice  nfssweep.Advice `json:"advice"`
	Options nfs.Options     `json:"options,omitempty"` // that the advice is, for mount(8)
	Now     nfs.Options     `json:"now,omitempty"`     // what DIR has of them
	DryRun  bool            `json:"dry_run,omitempty"`
	Notes   []string        `json:"notes,omitempty"`
	Changes []host.Change   `json:"changes,omitempty"` // what is to be changed
	Applied []host.Result   `json:"applied,omitempty"` // what was
}

// about says in a line what was measured.
func (t tuned) about() string {
	times := "measurements"
	if t.Measurements == 1 {
		times = "measurement"
	}
	text := fmt.Sprintf("%s of %s: %d %s of %s in %s, %s", t.Way, t.Source, t.Measurements, times, size(t.Bytes),
		eta(time.Duration(t.Seconds*float64(time.Second))), t.Started.Format(time.DateTime))
	if t.Incomplete != "" {
		text += "; INCOMPLETE: " + t.Incomplete
	}
	return text
}

// sweepBar shows how far a sweep is, on a terminal.
func (c *cli) sweepBar() (show func(nfssweep.Progress), close func()) {
	if !isTerminal(c.err) {
		return nil, func() {}
	}
	var next atomic.Pointer[string] // another goroutine draws
	next.Store(new("preparing"))
	all := mpb.New(mpb.WithOutput(behind(c.err)), mpb.WithAutoRefresh())
	bar := all.New(0, mpb.BarStyle().Rbound("] "), mpb.BarWidth(32),
		mpb.AppendDecorators(
			decor.CountersNoUnit("%d / %d  "),
			decor.Any(func(decor.Statistics) string { return *next.Load() }),
		))
	start := time.Now()
	show = func(p nfssweep.Progress) {
		text := p.Next.String()
		if p.Done > 0 {
			text += fmt.Sprintf("  ETA %s", eta(time.Duration(float64(time.Since(start))/float64(p.Done)*float64(p.Total-p.Done))))
		}
		next.Store(&text)
		bar.SetTotal(int64(p.Total), false)
		bar.SetCurrent(int64(p.Done))
	}
	return show, func() { bar.Abort(true); all.Wait() }
}

func (c *cli) tunedTable(out tuned) error {
	fmt.Fprintf(c.out, "%s\n", out.about())
	for _, op := range []nfssweep.Op{nfssweep.Write, nfssweep.Read} {
		if err := c.curveTable(op, out.Curves); err != nil {
			return err
		}
	}
	fmt.Fprintln(c.out, "\nMedians (slowest–fastest) ×measurements; a figure alone was measured once. * is the knee:\nthe smallest size within 5 % of the best at 95 % confidence.")
	paragraph := func(lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(c.out, "\n%s\n", strings.Join(lines, "\n"))
		}
	}
	if len(out.Options) > 0 {
		heading := fmt.Sprintf("Advice for %s: %s", nfssweep.Corner{Server: out.Server, Client: out.Client}.Name(), out.Options)
		if len(out.Now) > 0 {
			heading += fmt.Sprintf("  (now %s)", out.Now)
		}
		paragraph(append([]string{heading}, out.Advice.Says...))
	}
	paragraph(out.Notes)
	var changes []string
	if out.DryRun && out.Incomplete == "" {
		changes = []string{"--apply would change nothing."}
		if len(out.Changes) > 0 {
			changes = []string{"--apply would:"}
		}
	}
	for _, change := range out.Changes {
		changes = append(changes, change.Says)
	}
	paragraph(changes)
	for _, r := range out.Applied {
		lines := []string{fmt.Sprintf("%s has %s now.", r.Target, r.Granted)}
		for _, d := range r.Differences {
			lines = append(lines, d.String())
		}
		paragraph(append(lines, r.Notes...))
	}
	return nil
}

// curveTable prints sizes × corners. What tells many corners apart stands below, and
// letters in the table.
func (c *cli) curveTable(op nfssweep.Op, curves []nfssweep.Curve) error {
	curves = slices.DeleteFunc(slices.Clone(curves), func(x nfssweep.Curve) bool { return x.Op != op })
	if len(curves) == 0 {
		return nil
	}
	common, names := nfssweep.Headings(curves)
	title := map[nfssweep.Op]string{nfssweep.Write: "Writes", nfssweep.Read: "Reads"}[op] + " in MB/s"
	if common != "" {
		title += ", " + common
	}
	var legend []string
	switch {
	case len(curves) == 1:
		names[0] = "median"
	case len(curves) > 2:
		for i, name := range names {
			names[i] = string(rune('A' + i%26))
			if i >= 26 {
				names[i] = strconv.Itoa(i + 1)
			}
			legend = append(legend, fmt.Sprintf("%s: %s", names[i], name))
		}
	}
	var sizes []int64
	for _, x := range curves {
		for _, p := range x.Points {
			sizes = append(sizes, p.Size)
		}
	}
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	fmt.Fprintf(c.out, "\n%s:\n", title)
	for from := 0; from < len(curves); from += abreast {
		part := curves[from:min(from+abreast, len(curves))]
		header := table.Row{map[nfssweep.Op]string{nfssweep.Write: "wsize", nfssweep.Read: "rsize"}[op]}
		for i := range part {
			header = append(header, names[from+i])
		}
		var rows []table.Row
		for _, s := range sizes {
			row := table.Row{nfssweep.Size(s)}
			for _, x := range part {
				row = append(row, cell(x, s))
			}
			rows = append(rows, row)
		}
		if err := c.table(header, rows); err != nil {
			return err
		}
	}
	for _, line := range legend {
		fmt.Fprintln(c.out, line)
	}
	return nil
}

// cell is one size of a curve, as in 104 (98–110) ×3 *.
func cell(x nfssweep.Curve, size int64) string {
	p, measured := x.At(size)
	if !measured {
		return "-"
	}
	mb := func(rate float64) string { return strings.TrimSuffix(nfssweep.MBs(rate), " MB/s") }
	text := mb(p.Median)
	if n := len(p.Rates); n > 1 {
		text += fmt.Sprintf(" (%s–%s) ×%d", mb(p.Low), mb(p.High), n)
	}
	if x.Sure && x.Knee == size {
		text += " *"
	}
	return text
}
