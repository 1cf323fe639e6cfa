package mover

import (
	"math"
	"testing"
	"time"
)

func TestASpeedIsThatOfTheLastSeconds(t *testing.T) {
	at := time.Unix(1000, 0)
	want := func(s Speed, after time.Duration, rate float64) {
		t.Helper()
		if got := s.Rate(at.Add(after)); math.Abs(got-rate) > rate/100 {
			t.Errorf("%.0f bit/s after %v, want %.0f", got, after, rate)
		}
	}
	var s Speed
	want(s, 0, 0)
	s = s.At(at, 5e9) // were there before
	want(s, 0, 0)
	moved := int64(5e9)
	for range 6000 { // a minute at 8 Mbit/s
		at, moved = at.Add(10*time.Millisecond), moved+10_000
		s = s.At(at, moved)
	}
	want(s, 0, 8e6)
	if len(s.marks) > 25 {
		t.Errorf("%d marks are kept", len(s.marks))
	}
	for range 60 { // and one at 80
		at, moved = at.Add(100*time.Millisecond), moved+1_000_000
		s = s.At(at, moved)
	}
	want(s, 0, 80e6)
	want(s, time.Second, 64e6) // nothing more has come
	want(s, 10*time.Second, 0)
	again := s.At(at, 1000)
	want(again, time.Second, 0)
	want(s, 0, 80e6)
}
