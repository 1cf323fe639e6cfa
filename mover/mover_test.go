package mover

import (
	"reflect"
	"strconv"
	"testing"
)

// TestTheSchemaHoldsTheLimits holds that the API refuses what no engine does.
func TestTheSchemaHoldsTheLimits(t *testing.T) {
	for name, want := range map[string]int{"Pipelining": MaxPipelining, "Parallelism": MaxParallelism} {
		f, _ := reflect.TypeFor[PCP]().FieldByName(name)
		if got := f.Tag.Get("maximum"); got != strconv.Itoa(want) {
			t.Errorf("the schema allows %s up to %s, want %d", name, got, want)
		}
	}
}
