package nfssweep

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Sample is what one measurement found.
type Sample struct {
	Rate    float64 `json:"rate"`              // bits per second
	Granted int64   `json:"granted,omitempty"` // the size that was in force, in bytes; 0: as asked
}

// Measure measures one setting, with nothing of the file in the client's cache.
type Measure func(ctx context.Context, s Setting) (Sample, error)

// Observation is one measurement of many; they stand in the order of time.
type Observation struct {
	Setting
	Sample
	Time time.Time // at its end
}

// inForce is the size that was measured.
func (o Observation) inForce() int64 { return cmp.Or(o.Granted, o.Size) }

// Progress is told before each measurement. Total is how many there will be; of a
// search, at most.
type Progress struct {
	Done, Total int
	Next        Setting
}

// Options of Sweep and Search.
type Options struct {
	Seed     uint64         // of the order of measurements
	Progress func(Progress) // nil: nobody listens
}

// Sweep measures each setting of the space once a round, in an order of its own for
// each round, so that what changes meanwhile falls on all of them: a randomised
// complete block design. With the first error of measure, or when ctx ends, it
// returns what it has and that error.
func Sweep(ctx context.Context, s Space, measure Measure, o Options) ([]Observation, error) {
	return run(ctx, s, measure, o, s.Measurements(), func(round int, _ []Observation) []Setting {
		if round == s.Reps {
			return nil
		}
		var all []Setting
		for _, c := range s.Corners() {
			for _, size := range s.Sizes {
				all = append(all, Setting{c, size})
			}
		}
		return all
	})
}

// Search is Sweep with at most a third of its measurements, and most of them where
// the knees may be. Each curve is seen at every eighth size first. From then on each
// round measures the best size again, and beside it the one that the knee depends on
// most: the middle of the gap that the knee may lie in, or the one that is neither
// surely within 5 % of the best nor surely not. Sizes that are granted as one are one, and
// none is looked for between them. It takes curves to rise up to a
// plateau or a peak, and not to rise again. A curve that is settled costs no more; a
// space of less than twelve measurements a curve is too small to search and is swept.
func Search(ctx context.Context, s Space, measure Measure, o Options) ([]Observation, error) {
	budget := len(s.Sizes) * s.Reps / 3
	if budget < fewest {
		return Sweep(ctx, s, measure, o)
	}
	corners := s.Corners()
	return run(ctx, s, measure, o, budget*len(corners), func(round int, seen []Observation) []Setting {
		var all []Setting
		if round == 0 {
			for _, c := range corners {
				for i, left := len(s.Sizes)-1, budget; i >= 0 && left > 0; i, left = i-coarse, left-1 {
					all = append(all, Setting{c, s.Sizes[i]})
				}
			}
			return all
		}
		for _, e := range estimates(seen) {
			next := e.next(s.Sizes)
			for _, size := range next[:min(len(next), budget-e.measured())] {
				all = append(all, Setting{e.corner, size})
			}
		}
		return all
	})
}

const (
	coarse = 3 // steps between the first sizes of a search
	fewest = 4 // measurements of a curve that a search can do with
)

// run measures round by round, until plan returns nothing.
func run(ctx context.Context, s Space, measure Measure, o Options, total int, plan func(round int, seen []Observation) []Setting) ([]Observation, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(o.Seed, 0))
	var seen []Observation
	for round := 0; ; round++ {
		settings := plan(round, seen)
		if len(settings) == 0 {
			return seen, nil
		}
		random.Shuffle(len(settings), func(i, j int) { settings[i], settings[j] = settings[j], settings[i] })
		for _, setting := range settings {
			if err := ctx.Err(); err != nil {
				return seen, context.Cause(ctx)
			}
			if o.Progress != nil {
				o.Progress(Progress{len(seen), total, setting})
			}
			sample, err := measure(ctx, setting)
			if err == nil && !(sample.Rate >= 1) {
				err = fmt.Errorf("a rate of %v bits per second was measured", sample.Rate)
			}
			if err != nil {
				return seen, fmt.Errorf("%v: %w", setting, err)
			}
			sample.Rate = math.Round(sample.Rate)
			seen = append(seen, Observation{setting, sample, time.Now()})
		}
	}
}
