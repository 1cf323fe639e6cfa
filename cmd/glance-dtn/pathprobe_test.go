package main

import (
	"testing"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestABarTellsWhatAProbeDoes(t *testing.T) {
	for want, p := range map[string]mover.Probing{
		"connects":                            {Phase: mover.ProbeConnect},
		"round trips without load":            {Phase: mover.ProbeIdle},
		"1 connection, -, 0 B":                {Phase: mover.ProbeOne, Connections: 1},
		"16 connections, 752 Mbit/s, 1.0 GiB": {Phase: mover.ProbeAll, Connections: 16, Rate: 752e6, Bytes: 1 << 30},
	} {
		if got := probeText(p); got != want {
			t.Errorf("%+v is %q, want %q", p, got, want)
		}
	}
}
