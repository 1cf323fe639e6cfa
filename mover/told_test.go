package mover

import (
	"strings"
	"testing"
)

func TestWhatIsToldIsShortAndPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"the disk is full: größer":     "the disk is full: größer",
		"a\nb\x1b[2Jc\u202ed\x00":      "a b [2Jc d ",
		"\xff\xfeand more":             "and more",
		strings.Repeat("x", 1<<20):     strings.Repeat("x", 1<<10),
		"x" + strings.Repeat("ü", 600): "x" + strings.Repeat("ü", 511),
		strings.Repeat("\n", 3<<10):    strings.Repeat(" ", 1<<10),
	} {
		if got := Told(text); got != want {
			t.Errorf("%.40q of %d bytes is told as %.40q of %d, want %.40q of %d", text, len(text), got, len(got), want, len(want))
		}
	}
}

func TestUnknownCodesAreOther(t *testing.T) {
	for c, want := range map[Code]Code{CodeSpace: CodeSpace, CodeOther: CodeOther, "": CodeOther, "made up": CodeOther} {
		if got := c.Known(); got != want {
			t.Errorf("%q is %q, want %q", c, got, want)
		}
	}
}
