package main

import (
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "8K": 8 << 10, "8KiB": 8 << 10, "256MiB": 256 << 20, "1G": 1 << 30, "0": 0} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "1T", "1KK", "8 K", "9999999999G", "1.5M"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d", text, got)
		}
	}
}

// A new mount is refused only where no measurement of it reaches any of the old one.
func TestSlower(t *testing.T) {
	old := trial{writes: []float64{80e6, 88e6, 96e6}, reads: []float64{800e6, 808e6, 816e6}}
	for _, c := range []struct {
		name  string
		after trial
		want  string
	}{
		{"the same", old, ""},
		{"one of three as fast", trial{[]float64{8e6, 8e6, 80e6}, old.reads}, ""},
		{"writes", trial{[]float64{8e6, 16e6, 72e6}, old.reads}, "the fastest write has 9.0 MB/s, the slowest one had 10 MB/s"},
		{"reads", trial{old.writes, []float64{8e6, 8e6, 8e6}}, "the fastest read has 1.0 MB/s, the slowest one had 100 MB/s"},
	} {
		err := old.slower(c.after)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
