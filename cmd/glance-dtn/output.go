package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"go.yaml.in/yaml/v3"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

// print writes a command's result to stdout: v itself as JSON or YAML, or what
// human writes.
func (c *cli) print(v any, human func() error) error {
	if c.format == "table" {
		return human()
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if c.format == "yaml" {
		data, err = asYAML(data)
		if err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(c.out, "%s\n", bytes.TrimRight(data, "\n"))
	return err
}

// entry is one of several results that are printed as they come: a line of JSON, or a
// document of YAML.
func (c *cli) entry(v any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil || c.format != "yaml" {
		return string(data), err
	}
	data, err = asYAML(data)
	return "---\n" + strings.TrimRight(string(data), "\n"), err
}

// asYAML rewrites JSON as block-style YAML with the same keys in the same order.
func asYAML(data []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// plain drops JSON's braces and quotes. The encoder still quotes a string that
// would read as something else.
func plain(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, sub := range n.Content {
		plain(sub)
	}
}

// list is table, with the notes in the last column, and long names, cut where they would pass
// the edge of a terminal; elsewhere they are whole, as in "jobs ID".
func (c *cli) list(header table.Row, rows []table.Row) error {
	if width := terminalWidth(c.out); width > 0 {
		cutNotes(header, rows, width)
	}
	return c.table(header, rows)
}

// withPriorities adds a column in front of the one with that number, where any priority is
// not normal.
func withPriorities(header table.Row, rows []table.Row, at int, all []mover.Priority) (table.Row, []table.Row) {
	if !slices.ContainsFunc(all, func(p mover.Priority) bool { return p.Rank() != 0 }) {
		return header, rows
	}
	for i, p := range all {
		rows[i] = slices.Insert(rows[i], at, any(string(cmp.Or(p, mover.PriorityNormal))))
	}
	return slices.Insert(header, at, any("Priority")), rows
}

// leastNote is how much of a note is left beside columns that fill the terminal.
const leastNote = 24

// noteRoom is what is left of width for the last column.
func noteRoom(header table.Row, rows []table.Row, width int) int {
	last := len(header) - 1
	others := make([]table.Row, len(rows))
	for i, r := range rows {
		others[i] = append(r[:last:last], "|") // as wide as the columns before
	}
	return width - text.LongestLineLen(render(header[:last], others)) + len("|")
}

// leastName is how much of an image's name is left at least.
const leastName = 24

// cutNames cuts the middle out of long names of images, to make room for notes: mostly it is
// their ends that tell them apart.
func cutNames(header table.Row, rows []table.Row, width int) {
	at := slices.Index(header, any("Image"))
	if at < 0 {
		return
	}
	widest, note := 0, 0
	for _, r := range rows {
		widest = max(widest, text.StringWidthWithoutEscSequences(fmt.Sprint(r[at])))
		note = max(note, text.StringWidthWithoutEscSequences(fmt.Sprint(r[len(r)-1])))
	}
	lacking := min(note, leastNote) - noteRoom(header, rows, width)
	if lacking <= 0 {
		return
	}
	most := max(widest-lacking, leastName)
	for _, r := range rows {
		r[at] = cutMiddle(fmt.Sprint(r[at]), most)
	}
}

// cutMiddle leaves both ends of s, most columns in all.
func cutMiddle(s string, most int) string {
	if text.StringWidthWithoutEscSequences(s) <= most {
		return s
	}
	runes := []rune(s)
	for head, tail := runes[:len(runes)/2], runes[len(runes)/2:]; ; {
		if cut := string(head) + "…" + string(tail); text.StringWidthWithoutEscSequences(cut) <= most || len(head)+len(tail) == 0 {
			return cut
		}
		if len(head) > len(tail) {
			head = head[:len(head)-1]
		} else {
			tail = tail[1:]
		}
	}
}

// cutNotes cuts the last column so that a row fits in width, and names where little of it
// would be left.
func cutNotes(header table.Row, rows []table.Row, width int) {
	cutNames(header, rows, width)
	room := noteRoom(header, rows, width)
	for _, r := range rows {
		r[len(r)-1] = text.Snip(fmt.Sprint(r[len(r)-1]), max(room, leastNote), "…")
	}
}

// dropSpare takes out the columns of these names, in their order, until there is room for a note.
func dropSpare(header table.Row, rows []table.Row, width int, spare ...string) (table.Row, []table.Row) {
	for _, name := range spare {
		i := slices.Index(header, any(name))
		if i < 0 || noteRoom(header, rows, width) >= leastNote {
			continue
		}
		header = slices.Delete(header, i, i+1)
		for k, r := range rows {
			rows[k] = slices.Delete(r, i, i+1)
		}
	}
	return header, rows
}

// cutLines cuts what a terminal of that width would wrap.
func cutLines(picture string, width int) string {
	lines := strings.Split(picture, "\n")
	for i, l := range lines {
		lines[i] = text.Snip(l, width, "…")
	}
	return strings.Join(lines, "\n")
}

// blocks is a table for a terminal that is too narrow for its rows: each column a line.
func blocks(header table.Row, rows []table.Row) string {
	widest := 0
	for _, name := range header {
		widest = max(widest, text.StringWidthWithoutEscSequences(fmt.Sprint(name)))
	}
	var parts []string
	for _, r := range rows {
		var lines []string
		for i, name := range header {
			lines = append(lines, fmt.Sprintf("%-*s  %v", widest, name, r[i]))
		}
		parts = append(parts, strings.Join(lines, "\n"))
	}
	return strings.Join(parts, "\n\n")
}

// table writes rows under a header, columns aligned, without lines.
func (c *cli) table(header table.Row, rows []table.Row) error {
	_, err := fmt.Fprintln(c.out, render(header, rows))
	return err
}

func render(header table.Row, rows []table.Row) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleDefault)
	t.Style().Options = table.OptionsNoBordersAndSeparators
	t.Style().Box.PaddingLeft = ""
	t.Style().Box.PaddingRight = "  "
	t.SuppressTrailingSpaces()
	t.AppendHeader(header)
	t.AppendRows(rows)
	return t.Render()
}

// paint colours a word by what it asks of the reader: nothing, patience, or help.
func (c *cli) paint(word string, mood text.Color) string {
	if !c.colour() {
		return word
	}
	return text.Colors{mood}.Sprint(word)
}

func stateColour(s agent.State) text.Color {
	switch s {
	case agent.Verified:
		return text.FgGreen
	case agent.Parked:
		return text.FgRed
	case agent.Cancelled, agent.Cancelling:
		return text.Faint
	}
	return text.FgYellow
}

func relationColour(r agent.Relation) text.Color {
	switch r {
	case agent.Same:
		return text.FgGreen
	case agent.Conflict:
		return text.FgRed
	}
	return text.FgYellow
}
