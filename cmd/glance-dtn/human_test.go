package main

import (
	"strings"
	"testing"
	"time"
)

func TestSizesRatesAndTimesReadWell(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{size(0), "0 B"},
		{size(1023), "1023 B"},
		{size(1 << 10), "1.0 KiB"},
		{size(1<<20 - 1), "1.0 MiB"},
		{size(1 << 30), "1.0 GiB"},
		{size(5 << 40), "5.0 TiB"},
		{rate(1<<30, 8200*time.Millisecond), "131 MB/s"},
		{rate(5e6, time.Second), "5.0 MB/s"},
		{rate(3e9, time.Second), "3.00 GB/s"},
		{rate(1, 0), "- MB/s"},
		{span(8200 * time.Millisecond), "8.2 s"},
		{span(192 * time.Second), "3 min 12 s"},
		{span(125 * time.Minute), "2 h 5 min"},
		{span(97 * time.Hour), "4 d 1 h"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestALongNoteIsCutInATable(t *testing.T) {
	if got := brief("short"); got != "short" {
		t.Errorf("brief of a short note: %q", got)
	}
	got := brief(strings.Repeat("é", noteWidth+1))
	if n := len([]rune(got)); n != noteWidth || !strings.HasSuffix(got, "…") {
		t.Errorf("brief of a long note: %d runes, %q", n, got)
	}
}
