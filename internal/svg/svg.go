// Package svg draws the plots of reports.
package svg

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
)

// Colours are those of Okabe and Ito, which people with any colour vision tell apart.
var Colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888"}

// Drawing is an SVG in the making.
type Drawing struct{ b bytes.Buffer }

// New begins a drawing on white ground.
func New(width, height float64, title string) *Drawing {
	d := &Drawing{}
	d.Add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`, width, height)
	d.Add(`<title>%s</title>`, escaped(title))
	d.Add(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	return d
}

// Add adds an element.
func (d *Drawing) Add(format string, args ...any) { fmt.Fprintf(&d.b, format+"\n", args...) }

// Text adds text with an anchor: start, middle or end.
func (d *Drawing) Text(x, y float64, anchor, text string) {
	d.Add(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, escaped(text))
}

// End returns the drawing, to which nothing may be added any more.
func (d *Drawing) End() []byte {
	d.Add(`</svg>`)
	return d.b.Bytes()
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes everything
	return b.String()
}

// Tick returns a step of 1, 2 or 5 times a power of ten, of which the most needs eight at
// most.
func Tick(most float64) float64 {
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
