package nfssweep

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
)

// Measures of the plot, in its own units.
const (
	plotWidth, plotHeight = 480.0, 300.0
	plotLeft, plotTop     = 64.0, 64.0
	plotBelow             = 56.0
	legendLine            = 18.0
)

// colours are those of Okabe and Ito, which people with any colour vision tell apart.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888"}

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
	d := &drawing{}
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`, width+plotTop/2, height+legendLine)
	d.add(`<title>NFS throughput by rsize and wsize</title>`)
	d.add(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	d.text(plotLeft, 20, "start", about)
	for i, op := range ops {
		curves := slices.DeleteFunc(slices.Clone(r.Curves), func(c Curve) bool { return c.Op != op })
		d.panel(op, curves, names, plotLeft+float64(i)*(plotLeft+plotWidth))
	}
	for i, name := range names {
		y := plotTop + plotHeight + plotBelow + legendLine*float64(i)
		d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2"/>`, plotLeft, y-4, plotLeft+24, y-4, colours[i%len(colours)])
		d.text(plotLeft+32, y, "start", name)
	}
	d.text(plotLeft, plotTop+plotHeight+plotBelow+legendLine*float64(len(names)), "start",
		"Points are medians, bars reach from the slowest to the fastest, a ring is the knee: the smallest size within 5 % of the best at 95 % confidence.")
	d.add(`</svg>`)
	_, err := w.Write(d.Bytes())
	return err
}

// drawing collects the elements of an SVG.
type drawing struct{ bytes.Buffer }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(d, format+"\n", args...) }

func (d *drawing) text(x, y float64, anchor, text string) {
	var escaped bytes.Buffer
	_ = xml.EscapeText(&escaped, []byte(text)) // a buffer takes everything
	d.add(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, escaped.String())
}

func (d *drawing) panel(op Op, curves []Curve, names []string, left float64) {
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
	step := tick(top / 8e6)
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
		d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`, left, at, left+plotWidth, at)
		d.text(left-6, at+4, "end", fmt.Sprintf("%g", v))
	}
	for _, size := range sizes {
		d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#888888"/>`, x(size), bottom, x(size), bottom+4)
		d.text(x(size), bottom+18, "middle", Size(size))
	}
	d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#444444"/>`, left, bottom, left+plotWidth, bottom)
	d.text(left+plotWidth/2, plotTop-18, "middle", fmt.Sprintf("%s, MB/s", op))
	d.text(left+plotWidth/2, bottom+36, "middle", cmp.Or(map[Op]string{Read: "rsize", Write: "wsize"}[op], "size")+", bytes")
	for _, c := range curves {
		d.curve(c, colours[slices.Index(names, c.Name())%len(colours)], x, y)
	}
}

func (d *drawing) curve(c Curve, colour string, x func(int64) float64, y func(float64) float64) {
	d.WriteString(`<polyline fill="none" stroke-width="2" stroke="` + colour + `" points="`)
	for _, p := range c.Points {
		fmt.Fprintf(d, "%.1f,%.1f ", x(p.Size), y(p.Median))
	}
	d.add(`"/>`)
	for _, p := range c.Points {
		d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`, x(p.Size), y(p.Low), x(p.Size), y(p.High), colour)
		d.add(`<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p.Size), y(p.Median), colour)
		if c.Sure && p.Size == c.Knee {
			d.add(`<circle class="knee" cx="%.1f" cy="%.1f" r="8" fill="none" stroke="%s" stroke-width="2"/>`, x(p.Size), y(p.Median), colour)
		}
	}
}

// tick returns a step of 1, 2 or 5 times a power of ten, of which the most needs
// eight at most.
func tick(most float64) float64 {
	if !(most > 0) {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most/8)))
	for _, f := range []float64{1, 2, 5, 10} {
		if most/(f*step) <= 8 {
			return f * step
		}
	}
	return 10 * step
}
