package main

import (
	"context"
	"testing"
	"time"
)

// Glance hangs, and /readyz tells of the datadirs all the same.
func TestTheHealthOfTheDatadirsDoesNotWaitForGlance(t *testing.T) {
	answer, asked, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d := &datadirs{ask: func(context.Context) ([]string, error) {
		close(asked)
		<-answer
		return []string{t.TempDir()}, nil
	}}
	go func() {
		defer close(ended)
		_, _ = d.get(t.Context())
	}()
	<-asked
	told := make(chan error, 1)
	go func() { told <- d.healthy() }()
	select {
	case err := <-told:
		if err == nil {
			t.Error("the datadirs are healthy, though nobody knows them")
		}
	case <-time.After(time.Minute):
		t.Error("it waits for Glance")
	}
	close(answer)
	<-ended
}
