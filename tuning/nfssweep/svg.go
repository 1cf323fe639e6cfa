package nfssweep

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/internal/svg"
)

// Measures of the plot, in its own units.
const (
	plotWidth, plotHeight = 480.0, 300.0
	plotLeft, plotTop     = 64.0, 64.0
	plotBelow             = 56.0
	legendLine            = 18.0
)

// WriteSVG draws one panel for each operation, with one line for each corner: medians
// over a logarithmic axis of sizes, the slowest and the fastest as a bar, the knee as
// a ring. A knee that is not sure has no ring. About is the heading.
func WriteSVG(w io.Writer, about string, r Report) error {
	var ops []Op
	var names []string
	for _, c := range r.Curves {
		if !slices.Contains(ops, c.Op) {
			ops = append(ops, c.Op)
		}
		if !slices.Contains(names, c.Name()) {
			names = append(names, c.Name())
		}
	}
	width := float64(len(ops)) * (plotLeft + plotWidth)
	height := plotTop + plotHeight + plotBelow + legendLine*float64(len(names))
	d := drawing{svg.New(width+plotTop/2, height+legendLine, "NFS throughput by rsize and wsize")}
	d.Text(plotLeft, 20, "start", about)
	for i, op := range ops {
		curves := slices.DeleteFunc(slices.Clone(r.Curves), func(c Curve) bool { return c.Op != op })
		d.panel(op, curves, names, plotLeft+float64(i)*(plotLeft+plotWidth))
	}
	for i, name := range names {
		y := plotTop + plotHeight + plotBelow + legendLine*float64(i)
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2"/>`, plotLeft, y-4, plotLeft+24, y-4, svg.Colours[i%len(svg.Colours)])
		d.Text(plotLeft+32, y, "start", name)
	}
	d.Text(plotLeft, plotTop+plotHeight+plotBelow+legendLine*float64(len(names)), "start",
		"Points are medians, bars reach from the slowest to the fastest, a ring is the knee: the smallest size within 5 % of the best at 95 % confidence.")
	_, err := w.Write(d.End())
	return err
}

type drawing struct{ *svg.Drawing }

func (d drawing) panel(op Op, curves []Curve, names []string, left float64) {
	var sizes []int64
	top := 0.0
	for _, c := range curves {
		for _, p := range c.Points {
			sizes = append(sizes, p.Size)
			top = max(top, p.High)
		}
	}
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	low, high := math.Log2(float64(sizes[0])), math.Log2(float64(sizes[len(sizes)-1]))
	step := svg.Tick(top / 8e6)
	most := math.Ceil(top/8e6/step) * step
	x := func(size int64) float64 {
		if high == low {
			return left + plotWidth/2
		}
		return left + (math.Log2(float64(size))-low)/(high-low)*plotWidth
	}
	y := func(rate float64) float64 { return plotTop + plotHeight*(1-rate/8e6/most) }

	bottom := plotTop + plotHeight
	for v := 0.0; v <= most+step/2; v += step {
		at := y(v * 8e6)
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`, left, at, left+plotWidth, at)
		d.Text(left-6, at+4, "end", fmt.Sprintf("%g", v))
	}
	for _, size := range sizes {
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#888888"/>`, x(size), bottom, x(size), bottom+4)
		d.Text(x(size), bottom+18, "middle", Size(size))
	}
	d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#444444"/>`, left, bottom, left+plotWidth, bottom)
	d.Text(left+plotWidth/2, plotTop-18, "middle", fmt.Sprintf("%s, MB/s", op))
	d.Text(left+plotWidth/2, bottom+36, "middle", cmp.Or(map[Op]string{Read: "rsize", Write: "wsize"}[op], "size")+", bytes")
	for _, c := range curves {
		d.curve(c, svg.Colours[slices.Index(names, c.Name())%len(svg.Colours)], x, y)
	}
}

func (d drawing) curve(c Curve, colour string, x func(int64) float64, y func(float64) float64) {
	var line strings.Builder
	for _, p := range c.Points {
		line.WriteString(fmt.Sprintf("%.1f,%.1f ", x(p.Size), y(p.Median)))
	}
	d.Add(`<polyline fill="none" stroke-width="2" stroke="%s" points="%s"/>`, colour, line.String())
	for _, p := range c.Points {
		d.Add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`, x(p.Size), y(p.Low), x(p.Size), y(p.High), colour)
		d.Add(`<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p.Size), y(p.Median), colour)
		if c.Sure && p.Size == c.Knee {
			d.Add(`<circle class="knee" cx="%.1f" cy="%.1f" r="8" fill="none" stroke="%s" stroke-width="2"/>`, x(p.Size), y(p.Median), colour)
		}
	}
}
