package main

import (
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestCorrectionIsAsConfigured(t *testing.T) {
	if correction(config.Tuning{Parallelism: 16}) != nil {
		t.Error("it is there though it was turned off")
	}
	c := correction(config.Tuning{Correct: true, Parallelism: 2})()
	begins := mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 16}
	got, _ := c.Correct(time.Now(), mover.Progress{Way: mover.Way{PCP: begins}})
	if want := (mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 2}); got != want {
		t.Errorf("it asks for %v, want %v", got, want)
	}
}
