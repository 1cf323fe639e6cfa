package config

import (
	"slices"
	"testing"
	"time"
)

func TestChangedKeysAreNamedAsTheyAreTyped(t *testing.T) {
	a, b := DTN{Transfers: 4, Limits: []Limit{{Site: "B"}}}, DTN{Transfers: 4, Limits: []Limit{{Site: "B"}}}
	if got := Changed(a, b); len(got) > 0 {
		t.Errorf("of equal ones %v", got)
	}
	b.Transfers, b.Limits, b.Relay.Keep, b.Log.Level = 5, nil, time.Hour, "debug"
	if got, want := Changed(a, b), []string{"limits", "log.level", "relay.keep", "transfers"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("%v, want %v", got, want)
	}
}
