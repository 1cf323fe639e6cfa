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
