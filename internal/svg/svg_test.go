package svg

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

func TestADrawingIsXML(t *testing.T) {
	d := New(100, 50, "a <b> & c")
	d.Text(1, 2, "end", `x < "y" & z`)
	out := string(d.End())
	var texts strings.Builder
	for r := xml.NewDecoder(strings.NewReader(out)); ; {
		token, err := r.Token()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if c, ok := token.(xml.CharData); ok {
			texts.WriteString(string(c))
		}
	}
	if !strings.Contains(texts.String(), "a <b> & c") || !strings.Contains(texts.String(), `x < "y" & z`) {
		t.Errorf("the texts are %q", texts.String())
	}
}

func TestTicksAreRound(t *testing.T) {
	for most, want := range map[float64]float64{8: 1, 9: 2, 40: 5, 41: 10, 0.8: 0.1, 0: 1, 1000: 200} {
		if got := Tick(most); got < want*0.999 || got > want*1.001 {
			t.Errorf("up to %g: %g, want %g", most, got, want)
		}
	}
}
