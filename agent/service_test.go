package agent

import (
	"testing"

	"github.com/glance-dtn/glance-dtn/glance"
)

func TestANameIsJudgedAsItIsUsed(t *testing.T) {
	for _, n := range []string{`(`, `a)|(b`, `\Qubuntu (LTS)`} {
		if err := (Match{Names: []string{n}}).Validate(); err == nil {
			t.Errorf("%s is accepted", n)
		}
	}
	m := Match{Names: []string{`\Qubuntu (LTS)\E`, "a|bc"}}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"ubuntu (LTS)": true, "bc": true, "abc": false} {
		if got := m.Selects(glance.Image{Name: name}); got != want {
			t.Errorf("%s is selected: %v, want %v", name, got, want)
		}
	}
}
