package mover

import (
	"testing"
	"time"
)

func TestSizesAreReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "4096B": 4096, "8K": 8 << 10, "64k": 64 << 10, "8KiB": 8 << 10, "256MiB": 256 << 20, "1G": 1 << 30,
		"1TiB": 1 << 40, "4P": 4 << 50, "1 GiB": 1 << 30, "8kB": 8e3, "8KB": 8e3, "256MB": 256e6, "1GB": 1e9, "2TB": 2e12, "8191PiB": 8191 << 50,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "B", "-1", "1E", "8192PiB", "9224PB", "5000000P", "1KK", "1Ki", "1i", "1iB", "1Kb", "1kBB", "9999999999G", "1.5M", "8K 1"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d", text, got)
		}
	}
}

func TestTimesReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		8200 * time.Millisecond: "8.2 s", 192 * time.Second: "3 min 12 s", 10 * time.Minute: "10 min", 125 * time.Minute: "2 h 5 min",
		3 * time.Hour: "3 h", 97 * time.Hour: "4 d 1 h", 2161*time.Hour + 5*time.Minute: "90 d 1 h", 1<<63 - 1: "106751 d 23 h",
	} {
		if got := Span(d); got != want {
			t.Errorf("Span(%d) = %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{15699999: "15.7 ms", 40379123: "40.4 ms", 38 * time.Microsecond: "38 µs", 105 * time.Millisecond: "105.0 ms"} {
		if got := Millis(d); got != want {
			t.Errorf("Millis(%d) = %q, want %q", d, got, want)
		}
	}
}
