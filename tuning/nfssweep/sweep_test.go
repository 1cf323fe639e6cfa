package nfssweep

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// world is a simulated mount: a true rate for each size, noise, and a drift by the
// number of measurements.
type world struct {
	truth  func(size float64) float64
	noise  float64 // each rate is off by a share of up to this, evenly
	drift  func(n float64) float64
	random *rand.Rand
	n      int
}

func (w *world) measure(_ context.Context, s Setting) (Sample, error) {
	w.n++
	return Sample{Rate: w.truth(float64(s.Size)) * (1 + w.noise*(2*w.random.Float64()-1)) * w.drift(float64(w.n))}, nil
}

const gbit = 1e9

// flat rises in proportion to the size and is flat from a knee on, cost has a cost for
// each call, as that of moving so many bytes, and falling has a flat part that ends.
func flat(knee float64) func(float64) float64 {
	return func(size float64) float64 { return gbit * min(1, size/knee) }
}

func cost(bytes float64) func(float64) float64 {
	return func(size float64) float64 { return gbit * size / (size + bytes) }
}

func falling(from, to float64) func(float64) float64 {
	return func(size float64) float64 {
		if size > to {
			return gbit * 0.6
		}
		return flat(from)(size)
	}
}

func peak(at float64) func(float64) float64 {
	return func(size float64) float64 { return gbit * math.Pow(0.75, math.Abs(math.Log2(size/at))) }
}

func TestSearchFindsWhatTheSweepFinds(t *testing.T) {
	const k, seeds = 1 << 10, 20
	space := Space{Ops: []Op{Write}, Sizes: Octaves(), Reps: 3}
	curves := map[string]func(float64) float64{
		"flat from 1K": flat(k), "flat from 8K": flat(8 * k), "flat from 256K": flat(256 * k), "rising": flat(1024 * k),
		"cost of 4K": cost(4 * k), "cost of 128K": cost(128 * k),
		"falling after 512K": falling(16*k, 512*k),
		"peak at 64K":        peak(64 * k), "peak at 256K": peak(256 * k),
	}
	steady := func(float64) float64 { return 1 }
	for name, truth := range curves {
		for _, c := range []struct {
			noise float64
			drift string
			shape func(float64) float64
		}{
			{0.01, "none", steady}, {0.1, "none", steady}, {0.2, "none", steady},
			{0.1, "a third", func(n float64) float64 { return 1 - n/100 }},
			{0.02, "a wave", func(n float64) float64 { return 1 + 0.1*math.Sin(n/5) }},
		} {
			if c.noise == 0.2 && strings.HasPrefix(name, "peak") {
				continue // one size alone is better: a third of the measurements does not tell it from noise of that size
			}
			t.Run(fmt.Sprintf("%s, noise %v, drift %s", name, c.noise, c.drift), func(t *testing.T) {
				good, knees := 0, 0
				for seed := range uint64(seeds) {
					w := world{truth, c.noise, c.shape, rand.New(rand.NewPCG(seed, 7)), 0}
					all, err := Sweep(t.Context(), space, w.measure, Options{Seed: seed})
					if err != nil || len(all) != space.Measurements() {
						t.Fatalf("the sweep took %d measurements, %v, want %d", len(all), err, space.Measurements())
					}
					w.n = 0
					some, err := Search(t.Context(), space, w.measure, Options{Seed: seed})
					if err != nil || len(some) > len(all)/3 {
						t.Fatalf("the search took %d measurements, %v, want a third of %d at most", len(some), err, len(all))
					}
					swept, found := Analyse(all).Curves[0], Analyse(some).Curves[0]
					if found.Knee == swept.Knee {
						knees++
					}
					if found.Knee == swept.Knee || truth(float64(found.Knee)) >= within*truth(float64(swept.Best)) {
						good++
					}
				}
				t.Logf("%d of %d the same knee or within 5 %% of the sweep's best, %d the same knee", good, seeds, knees)
				if good*10 < seeds*9 {
					t.Errorf("%d of %d have the sweep's knee or are within 5 %% of its best, want 9 of 10", good, seeds)
				}
				if c.noise == 0.01 && c.drift == "none" && strings.HasPrefix(name, "flat") && knees*10 < seeds*9 {
					t.Errorf("%d of %d have the sweep's knee, want 9 of 10", knees, seeds)
				}
			})
		}
	}
}

// TestWhatIsCalledSureIsSo holds that a knee that is called sure has 95 % of the best
// rate in about 95 of 100 sweeps, also where many sizes just fail to.
func TestWhatIsCalledSureIsSo(t *testing.T) {
	const seeds = 100
	space := Space{Ops: []Op{Write}, Sizes: Octaves(), Reps: 3}
	for name, truth := range map[string]func(float64) float64{"cost of 4K": cost(4 << 10), "cost of 32K": cost(32 << 10), "flat": flat(8 << 10)} {
		for _, deviation := range []float64{0.01, 0.03, 0.05} {
			sure, wrong := 0, 0
			for seed := range uint64(seeds) {
				r := rand.New(rand.NewPCG(seed, 1))
				seen, err := Sweep(t.Context(), space, func(_ context.Context, s Setting) (Sample, error) {
					return Sample{Rate: truth(float64(s.Size)) * (1 + deviation*r.NormFloat64())}, nil
				}, Options{Seed: seed})
				if err != nil {
					t.Fatal(err)
				}
				if c := Analyse(seen).Curves[0]; c.Sure {
					sure++
					if truth(float64(c.Knee)) < within*truth(1<<20) {
						wrong++
					}
				}
			}
			t.Logf("%s, standard deviation %v: %d of %d sure, %d of them wrong", name, deviation, sure, seeds, wrong)
			if wrong*100 > 8*seeds {
				t.Errorf("%s, standard deviation %v: %d of %d are wrong, want about 5 at most", name, deviation, wrong, sure)
			}
			if deviation == 0.01 && sure*10 < seeds*9 {
				t.Errorf("%s, standard deviation %v: %d of %d are sure, want most", name, deviation, sure, seeds)
			}
		}
	}
}

func TestKneeIsTheSmallestSizeThatIsGoodEnough(t *testing.T) {
	rates := func(c Corner, size int64, rates ...float64) (all []Observation) {
		for _, r := range rates {
			all = append(all, Observation{Setting{c, size}, Sample{Rate: r * 8e6}})
		}
		return all
	}
	w := Corner{Op: Write}
	for _, c := range []struct {
		name string
		seen []Observation
		knee int64
		sure bool
	}{
		{"plateau", slices.Concat(rates(w, 1024, 20, 20.1, 19.9), rates(w, 4096, 98, 99, 98.5), rates(w, 8192, 100, 101, 99.5)), 4096, true},
		{"not quite", slices.Concat(rates(w, 4096, 93, 93.2, 93.1), rates(w, 8192, 100, 100.1, 99.9)), 8192, true},
		{"noise", slices.Concat(rates(w, 4096, 70, 130, 95), rates(w, 8192, 130, 75, 100)), 8192, false},
		{"noise, and the largest has a chance", slices.Concat(rates(w, 4096, 70, 130, 100), rates(w, 8192, 130, 75, 98)), 8192, false},
		{"once", slices.Concat(rates(w, 4096, 90), rates(w, 8192, 100)), 8192, false},
		{"one size", rates(w, 4096, 90, 91), 4096, true},
		{"falls", slices.Concat(rates(w, 4096, 100, 101, 100), rates(w, 8192, 60, 61, 60)), 4096, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Analyse(c.seen).Curves[0]
			if got.Knee != c.knee || got.Sure != c.sure {
				t.Errorf("the knee is %d, sure %v, want %d, %v: %+v", got.Knee, got.Sure, c.knee, c.sure, got.Points)
			}
		})
	}
}

func TestEachRoundHasEachSettingOnce(t *testing.T) {
	space := Space{Ops: []Op{Write, Read}, Sizes: []int64{1024, 4096}, Servers: []Mode{Sync, Async}, NConnect: []int{1, 4}, Reps: 3}
	var told []Progress
	order := func(seed uint64) []Observation {
		told = nil
		seen, err := Sweep(t.Context(), space, func(context.Context, Setting) (Sample, error) { return Sample{Rate: 1}, nil },
			Options{Seed: seed, Progress: func(p Progress) { told = append(told, p) }})
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	seen := order(1)
	const round = 2 * 2 * 2 * 2
	if len(seen) != 3*round || space.Measurements() != len(seen) {
		t.Fatalf("%d measurements, %d foretold, want %d", len(seen), space.Measurements(), 3*round)
	}
	for r := range 3 {
		once := map[Setting]bool{}
		for _, o := range seen[r*round:][:round] {
			once[o.Setting] = true
		}
		if len(once) != round {
			t.Errorf("round %d has %d settings, want %d", r, len(once), round)
		}
	}
	if slices.Equal(seen[:round], seen[round:2*round]) {
		t.Error("two rounds have the same order")
	}
	if !slices.Equal(seen, order(1)) || slices.Equal(seen, order(2)) {
		t.Error("the order is not that of the seed")
	}
	for i, p := range told {
		if p.Done != i || p.Total != len(seen) {
			t.Fatalf("progress %+v at measurement %d of %d", p, i, len(seen))
		}
	}
}

func TestAnErrorEndsTheSweepAndKeepsWhatItHas(t *testing.T) {
	space := Space{Ops: []Op{Read}, Sizes: Octaves(), Reps: 3}
	broken := errors.New("server is gone")
	n := 0
	seen, err := Sweep(t.Context(), space, func(context.Context, Setting) (Sample, error) {
		if n++; n == 4 {
			return Sample{}, broken
		}
		return Sample{Rate: 1}, nil
	}, Options{})
	if !errors.Is(err, broken) || len(seen) != 3 || !strings.HasPrefix(err.Error(), "read ") {
		t.Errorf("%d measurements, %v, want 3 and the setting with its error", len(seen), err)
	}
	if _, err := Sweep(t.Context(), space, func(context.Context, Setting) (Sample, error) { return Sample{}, nil }, Options{}); err == nil {
		t.Error("a rate of 0 was taken")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	seen, err = Search(ctx, space, func(context.Context, Setting) (Sample, error) {
		cancel(broken)
		return Sample{Rate: 1}, nil
	}, Options{})
	if !errors.Is(err, broken) || len(seen) != 1 {
		t.Errorf("%d measurements, %v, want 1 and the cause of the context's end", len(seen), err)
	}
}

func TestValidateReportsEveryFault(t *testing.T) {
	err := Space{Sizes: []int64{8192, 4096}, NConnect: []int{17}, Clients: []Mode{Sync, Sync}}.Validate()
	for _, want := range []string{"no operation", "ascending", "0 repetitions", "nconnect 17", "measured twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
	if err := (Space{Ops: []Op{Write}, Sizes: Octaves(), Reps: 1}).Validate(); err != nil {
		t.Error(err)
	}
	if _, err := Sweep(t.Context(), Space{}, nil, Options{}); err == nil {
		t.Error("an empty space was swept")
	}
}

func TestASmallSpaceIsSwept(t *testing.T) {
	space := Space{Ops: []Op{Write, Read}, Sizes: []int64{4096}, Reps: 1}
	seen, err := Search(t.Context(), space, func(context.Context, Setting) (Sample, error) { return Sample{Rate: 1}, nil }, Options{})
	if err != nil || len(seen) != 2 {
		t.Errorf("%d measurements, %v, want both", len(seen), err)
	}
}
