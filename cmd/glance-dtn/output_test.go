package main

import (
	"strings"
	"testing"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// On a terminal a row fits in its width; the note loses what does not, and nothing else does.
func TestNotesAreCutToTheTerminal(t *testing.T) {
	header := table.Row{"Image", "State", "Note"}
	note := strings.Repeat("é", 100)
	rows := func() []table.Row {
		return []table.Row{{"debian-12", text.FgRed.Sprint("parked"), note}, {"生命", "pending", "waits"}}
	}
	for width, kept := range map[int]int{80: 80 - len("debian-12  pending  ") - 1, 30: leastNote - 1, 200: 100} {
		cut := rows()
		cutNotes(header, cut, width)
		if got := strings.Count(render(header, cut), "é"); got != kept {
			t.Errorf("%d columns: %d characters of the note, want %d in\n%s", width, got, kept, render(header, cut))
		}
		if cut[1][2] != "waits" || cut[0][0] != "debian-12" {
			t.Errorf("%d columns: more than the long note was cut: %v", width, cut)
		}
	}
	cut := rows()
	cutNotes(header, cut, 80)
	if got := text.LongestLineLen(render(header, cut)); got != 80 {
		t.Errorf("the longest row has %d columns, want 80", got)
	}
}

// A long name loses its middle where it would push the note out of the terminal.
func TestALongNameLeavesRoomForTheNote(t *testing.T) {
	const name = "ubuntu-24.04-minimal-server-cloudimg-amd64-with-drivers-20261101 → B"
	header := table.Row{"Image", "State", "Note"}
	for width, want := range map[int]string{
		140: name,
		80:  "ubuntu-24.04-minimal-s…h-drivers-20261101 → B",
		40:  "ubuntu-24.04…0261101 → B",
	} {
		rows := []table.Row{{name, "parked", strings.Repeat("n", 60)}, {"debian-12", "pending", "waits"}}
		cutNotes(header, rows, width)
		if rows[0][0] != want || rows[1][0] != "debian-12" {
			t.Errorf("%d columns: %v and %v, want %q", width, rows[0][0], rows[1][0], want)
		}
		if got := text.LongestLineLen(render(header, rows)); width >= 80 && got > width {
			t.Errorf("%d columns: the longest row has %d", width, got)
		}
	}
	rows := []table.Row{{name, "parked", "waits"}}
	cutNotes(header, rows, 85)
	if rows[0][0] != name || rows[0][2] != "waits" {
		t.Errorf("a row that fits has lost something: %v", rows[0])
	}
}

func TestTheMiddleIsCutByColumns(t *testing.T) {
	for _, c := range []struct {
		name string
		most int
		want string
	}{{"debian-12", 9, "debian-12"}, {"debian-12", 8, "debi…-12"}, {"生命生命生命", 12, "生命生命生命"}, {"生命生命生命", 9, "生命…生命"}, {"生命", 1, "…"}} {
		if got := cutMiddle(c.name, c.most); got != c.want {
			t.Errorf("%s in %d columns: %s, want %s", c.name, c.most, got, c.want)
		}
	}
}

// A table that is wider than the terminal loses nothing as blocks.
func TestABlockHasALineForEachColumn(t *testing.T) {
	got := blocks(table.Row{"Path", "RTT", "Probed"}, []table.Row{{"B", "40.4 ms", "49 Mbit/s"}, {"C", "1.1 ms", "-"}})
	want := `Path    B
RTT     40.4 ms
Probed  49 Mbit/s

Path    C
RTT     1.1 ms
Probed  -`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestYAMLKeepsKeysOrderAndTypes(t *testing.T) {
	got, err := asYAML([]byte(`{"b": "true", "a": 12, "when": "2026-11-22T12:03:04Z", "none": [], "list": [{"x": "A: B", "y": null}], "s": "two\nlines"}`))
	want := `b: "true"
a: 12
when: "2026-11-22T12:03:04Z"
none: []
list:
  - x: 'A: B'
    y: null
s: |-
  two
  lines
`
	if err != nil || string(got) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
}
