package main

import (
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
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestATableDoesNotRepeatWhatItsRowSays(t *testing.T) {
	const reason = "site B refuses: conflict: image " + string(debian) + " exists at site B"
	if got, want := inRow(reason, "B", debian), "conflict: the image exists at site B"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := inRow(reason, "C", "another"); got != reason {
		t.Errorf("got %q, want %q: the row says nothing of site B or of this image", got, reason)
	}
}

func TestOfAPlanWeSayWhatGoesAndWhy(t *testing.T) {
	for _, c := range []struct {
		planned, going, of int
		dryRun             bool
		want               string
	}{
		{0, 0, 0, false, "no image is selected"},
		{0, 0, 2, true, "nothing to send: no selected image is missing"},
		{1, 0, 2, true, "1 of 2 would be sent, 1.0 KiB"},
		{1, 1, 4, true, "1 of 4 would be sent, 1.0 KiB; 1 is on its way already"},
		{1, 0, 2, false, "1 of 2 is on its way, 1.0 KiB"},
		{2, 0, 2, false, "2 of 2 are on their way, 1.0 KiB"},
	} {
		if got := planSummary(c.planned, c.going, c.of, 1024, c.dryRun); got != c.want {
			t.Errorf("%d of %d: got %q, want %q", c.planned, c.of, got, c.want)
		}
	}
}
