package dtn

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/glance-dtn/glance-dtn/mover"
)

type fakeRelay struct{}

func (fakeRelay) Passages() []mover.Passage {
	return []mover.Passage{
		{File: mover.File{Name: "inbox/B~A~x"}, From: "A", To: "B", State: mover.Running},
		{File: mover.File{Name: "inbox/C~A~x"}, From: "A", To: "C", State: mover.Queued, Waiting: "noon"},
		{File: mover.File{Name: "inbox/C~A~y"}, From: "A", To: "C", State: mover.Queued},
	}
}

func (fakeRelay) Passed() []mover.Passed {
	return []mover.Passed{{From: "A", To: "B", Files: 2, Bytes: 4711}}
}

func TestPassagesAreTold(t *testing.T) {
	r := newRig(t)
	var none, all []mover.Passage
	ask(t, r.server(t), "GET", "/v1/passages", nil).decode(t, &none)
	if len(none) != 0 {
		t.Errorf("what is no relay tells %v", none)
	}
	r.opt.Relay = fakeRelay{}
	s := r.server(t)
	ask(t, s, "GET", "/v1/passages", nil).decode(t, &all)
	if len(all) != 3 || all[1].Waiting != "noon" || all[0].ID == all[1].ID || all[0].ID == "" {
		t.Errorf("told are %+v", all)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		name, of := strings.CutPrefix(f.GetName(), "glance_dtn_dtn_pass")
		if !of {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			got = append(got, fmt.Sprintf("%s %s=%.0f", name, strings.Join(labels, "/"), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	slices.Sort(got)
	want := []string{"ages A/queued/C=2", "ages A/running/B=1", "ed_bytes_total A/B=4711", "ed_files_total A/B=2"}
	if !slices.Equal(got, want) {
		t.Errorf("metrics: %q, want %q", got, want)
	}
}
