package glance

import (
	"regexp"
	"strings"
	"testing"
)

const anID = "0af9b1b6-0000-4000-8000-00000000000f"

func TestParseImageID(t *testing.T) {
	for _, good := range []string{anID, strings.ToUpper(anID), " " + anID + "\n"} {
		if id, err := ParseImageID(good); err != nil || id != anID {
			t.Errorf("%q: got %q, %v", good, id, err)
		}
	}
	for _, bad := range []string{"", "debian-12", anID[1:], anID + "0", "../" + anID[3:], strings.Replace(anID, "-", "0", 1), "g" + anID[1:], "/" + anID[1:], "-" + anID[1:], anID[:35] + "\x00"} {
		if id, err := ParseImageID(bad); err == nil {
			t.Errorf("%q was read as %q", bad, id)
		}
	}
}

// FuzzParseImageID holds that an id is safe as the name of a file, and that none is refused.
func FuzzParseImageID(f *testing.F) {
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	f.Add(anID)
	f.Add(strings.Repeat("\u212a", 12))
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseImageID(s)
		if want := uuid.MatchString(strings.ToLower(strings.TrimSpace(s))); (err == nil) != want || err == nil && !uuid.MatchString(string(id)) {
			t.Errorf("%q: got %q, %v", s, id, err)
		}
	})
}

// TestParseImageIDAllocatesNothing holds what lets the watcher look at each of the
// 16,000 events of a 1 GiB upload.
func TestParseImageIDAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _, _ = ParseImageID(anID) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParseImageID(b *testing.B) {
	for b.Loop() {
		if _, err := ParseImageID(anID); err != nil {
			b.Fatal(err)
		}
	}
}
