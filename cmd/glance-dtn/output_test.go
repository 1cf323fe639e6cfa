package main

import "testing"

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
