package mover

import (
	"slices"
	"time"
)

// Speed is how fast bytes come at present: over the last seconds. The zero Speed has seen none.
type Speed struct{ marks []mark }

// mark is how many bytes had come by a time.
type mark struct {
	at    time.Time
	bytes int64
}

const (
	presentFor = 5 * time.Second
	markEvery  = presentFor / 20
)

// At returns s once so many bytes have come in all. Fewer than before begin anew.
func (s Speed) At(now time.Time, bytes int64) Speed {
	marks := slices.Clone(s.marks)
	n := len(marks)
	switch {
	case n > 0 && bytes < marks[n-1].bytes:
		marks = nil
	case n > 1 && now.Sub(marks[n-2].at) < markEvery:
		marks = marks[:n-1]
	}
	for len(marks) > 1 && now.Sub(marks[1].at) >= presentFor {
		marks = marks[1:]
	}
	return Speed{append(marks, mark{now, bytes})}
}

// Rate is in bits per second; 0 while nothing is known.
func (s Speed) Rate(now time.Time) float64 {
	if len(s.marks) == 0 {
		return 0
	}
	from := s.marks[0]
	for _, m := range s.marks {
		if now.Sub(m.at) >= presentFor {
			from = m
		}
	}
	took := now.Sub(from.at).Seconds()
	if took <= 0 {
		return 0
	}
	return 8 * float64(s.marks[len(s.marks)-1].bytes-from.bytes) / took
}
