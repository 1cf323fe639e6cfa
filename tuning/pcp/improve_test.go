package pcp

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

func TestTodaysPCPStaysUnlessAnotherPays(t *testing.T) {
	given := condition(1e9, 4, 1e9, 50*time.Millisecond, 4e6)
	today, other := mover.PCP{Pipelining: 8, Concurrency: 1, Parallelism: 16}, mover.PCP{Pipelining: 16, Concurrency: 1, Parallelism: 8}
	elsewhere := given
	elsewhere.RTT = time.Second
	like := given
	like.Size *= 2
	lossy := given
	lossy.Loss = 1e-3
	for _, c := range []struct {
		about   string
		history []tuning.Observation
		given   tuning.Condition
		pays    bool
		by      tuning.Method
		says    string
	}{
		{"nothing is known", nil, given, false, tuning.Heuristic, "history has 0 rows"},
		{"a tenth more", []tuning.Observation{observed(given, today, 5e8), observed(given, other, 5.6e8)}, given, true, tuning.Nearest, "history has 2 rows, a fuzzy model needs 60; the best of the most similar condition, about 4 files of 1.0 GiB over 1.07 Gbit/s and 47.453ms"},
		{"hardly more", []tuning.Observation{observed(given, today, 5e8), observed(given, other, 5.4e8)}, given, false, tuning.Nearest, "history has 2 rows"},
		{"in another condition than today's", []tuning.Observation{observed(elsewhere, today, 5e8), observed(given, other, 9e8)}, given, false, tuning.Nearest, ""},
		{"in one like it", []tuning.Observation{observed(like, today, 5e8), observed(like, other, 9e8)}, given, true, tuning.Nearest, ""},
		{"at another loss", []tuning.Observation{observed(given, today, 5e8), observed(lossy, other, 9e8)}, given, true, tuning.Nearest, ""},
		{"only far from it", []tuning.Observation{observed(elsewhere, today, 5e8), observed(elsewhere, other, 9e8)}, given, false, tuning.Heuristic, ""},
	} {
		got, pays, err := NewImprover(c.history, mover.PCP{}, today).Improve(c.given, today)
		want := today
		if c.pays {
			want = other
		}
		if err != nil || pays != c.pays || got.PCP != want || got.By != c.by || !strings.Contains(got.Why, c.says) {
			t.Errorf("%s: %+v, %v, %v", c.about, got, pays, err)
		}
	}
	if _, _, err := NewImprover(nil, mover.PCP{}, today).Improve(tuning.Condition{}, today); err == nil {
		t.Error("nothing was given, and something is advised")
	}
}

// TestTheModelHasToPromiseMoreThanItIsOffBy: kneed knows a best PCP for each condition.
func TestTheModelHasToPromiseMoreThanItIsOffBy(t *testing.T) {
	history := paths(1, 16, kneed, 0.05)
	today := mover.PCP{Pipelining: 1, Concurrency: 1, Parallelism: 1}
	i := NewImprover(history, mover.PCP{}, today)
	at := slices.IndexFunc(history, func(o tuning.Observation) bool { // where one connection is far from enough
		return o.PCP.Parallelism > 1 && o.Throughput > 3*kneed(o.Condition, today)
	})
	given := history[at].Condition
	best, pays, err := i.Improve(given, today)
	if err != nil || !pays || best.By != tuning.TSK {
		t.Fatalf("from one connection: %+v, %v, %v", best, pays, err)
	}
	if gain := best.Throughput/i.advisor.model.Predict(given, today).Throughput - 1; gain < max(i.advisor.model.quality.MAPE, 0.1) {
		t.Errorf("it pays for %.0f %%", 100*gain)
	}
	same, pays, err := i.Improve(given, best.PCP)
	if err != nil || pays || same.PCP != best.PCP || same.By != tuning.TSK || same.Throughput != 0 {
		t.Errorf("from the best: %+v, %v, %v", same, pays, err)
	}
}
