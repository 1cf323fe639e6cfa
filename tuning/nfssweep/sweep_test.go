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
	"time"
)

// world is a simulated mount: a true rate for each size, noise, and a drift by the
// number of measurements.
type world struct {
	truth  func(size float64) float64
	noise  float64 // coefficient of variation, about
	drift  func(n float64) float64
	random *rand.Rand
	n      int
}

func (w *world) measure(_ context.Context, s Setting) (Sample, error) {
	defer func() { w.n++ }()
	return Sample{Rate: w.truth(float64(s.Size)) * math.Exp(w.noise*w.random.NormFloat64()) * w.drift(float64(w.n))}, nil
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

// curves are what rates by size look like.
var curves = map[string]func(float64) float64{
	"flat from 1K": flat(1 << 10), "flat from 8K": flat(8 << 10), "flat from 256K": flat(256 << 10), "rising": flat(1 << 20),
	"cost of 4K": cost(4 << 10), "cost of 8K": cost(8 << 10), "cost of 32K": cost(32 << 10), "cost of 128K": cost(128 << 10),
	"falling after 512K": falling(16<<10, 512<<10),
	"peak at 64K":        peak(64 << 10), "peak at 256K": peak(256 << 10),
}

// drifts are what else the machines do meanwhile, by the number of the measurement: another
// course for each seed. In a stall, one in twenty, the rate is half.
var drifts = map[string]func(r *rand.Rand) func(n float64) float64{
	"none":    func(*rand.Rand) func(float64) float64 { return func(float64) float64 { return 1 } },
	"a third": func(*rand.Rand) func(float64) float64 { return func(n float64) float64 { return max(1-n/100, 2.0/3) } },
	"stalls": func(r *rand.Rand) func(float64) float64 {
		return func(float64) float64 {
			if r.Float64() < 0.05 {
				return 0.5
			}
			return 1
		}
	},
	"a wave": func(r *rand.Rand) func(float64) float64 {
		phase := 2 * math.Pi * r.Float64()
		return func(n float64) float64 { return 1 + 0.1*math.Sin(n/5+phase) }
	},
}

// simulated looks at a curve in one way, in a world of the seed, and returns what it found.
func simulated(t *testing.T, look func(context.Context, Space, Measure, Options) ([]Observation, error),
	reps int, truth func(float64) float64, noise float64, drift string, seed uint64,
) (seen []Observation, found Curve) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	w := world{truth, noise, drifts[drift](r), r, 0}
	space := Space{Ops: []Op{Write}, Sizes: Octaves(), Reps: reps}
	seen, err := look(t.Context(), space, w.measure, Options{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	return seen, Analyse(space, seen).Curves[0]
}

// TestTheAdviceIsWithin5PercentOfTheBest holds what Search is for: with a third of the
// measurements of the exhaustive sweep, and noise and drift as NFS has them, the rate of
// the size that it advises is, in 9 of 10 repetitions, at least 95 % of the truly best
// size's, and so of the one that the exhaustive sweep finds.
func TestTheAdviceIsWithin5PercentOfTheBest(t *testing.T) {
	const seeds, reps = 200, 3
	for name, truth := range curves {
		best := 0.0
		for _, size := range Octaves() {
			best = max(best, truth(float64(size)))
		}
		for drift := range drifts {
			if drift == "stalls" && strings.HasPrefix(name, "peak") {
				continue // one size alone is better: a stall of its only measurement hides it
			}
			for _, noise := range []float64{0.03, 0.05, 0.1} {
				good := 0
				for seed := range uint64(seeds) {
					some, found := simulated(t, Search, reps, truth, noise, drift, seed)
					if most := len(Octaves()) * reps / 3; len(some) > most {
						t.Fatalf("the search took %d measurements, want %d at most", len(some), most)
					}
					if truth(float64(found.Knee)) >= within*best {
						good++
					}
				}
				if good*10 < seeds*9 {
					t.Errorf("%s, noise of %.0f %%, drift %s: the advice is within 5 %% of the best in %d of %d repetitions, want 9 of 10", name, 100*noise, drift, good, seeds)
				}
			}
		}
	}
}

// TestSearchFindsTheKneeOfTheSweep holds that where the noise is small the search advises
// what the exhaustive sweep does, not only something as good.
func TestSearchFindsTheKneeOfTheSweep(t *testing.T) {
	const seeds = 20
	for name, truth := range curves {
		if !strings.HasPrefix(name, "flat") && !strings.HasPrefix(name, "peak") {
			continue // a size that is nearly good enough is one to the one and none to the other
		}
		same := 0
		for seed := range uint64(seeds) {
			_, swept := simulated(t, Sweep, 3, truth, 0.01, "none", seed)
			if _, found := simulated(t, Search, 3, truth, 0.01, "none", seed); found.Knee == swept.Knee {
				same++
			}
		}
		if same*10 < seeds*9 {
			t.Errorf("%s: %d of %d have the sweep's knee, want 9 of 10", name, same, seeds)
		}
	}
}

// TestWhatIsCalledSureIsSo holds that of 100 sweeps or searches 5 at most call a size sure
// that has less than 95 % of the best rate, with few repetitions too, and where many sizes
// just fail to have it; and that it is called so where the noise allows.
func TestWhatIsCalledSureIsSo(t *testing.T) {
	const seeds = 200
	const most = seeds*5/100 + 8 // two and a half standard deviations of a count that is 5 % in truth
	for way, look := range map[string]func(context.Context, Space, Measure, Options) ([]Observation, error){"sweep": Sweep, "search": Search} {
		for name, truth := range curves {
			best := 0.0
			for _, size := range Octaves() {
				best = max(best, truth(float64(size)))
			}
			for _, reps := range []int{2, 3, 5} {
				for drift := range drifts {
					for _, noise := range []float64{0.01, 0.03, 0.1} {
						sure, wrong := 0, 0
						for seed := range uint64(seeds) {
							if _, c := simulated(t, look, reps, truth, noise, drift, seed); c.Sure {
								sure++
								if truth(float64(c.Knee)) < within*best {
									wrong++
								}
							}
						}
						what := fmt.Sprintf("%s of %s, %d repetitions, noise of %.0f %%, drift %s", way, name, reps, 100*noise, drift)
						if wrong > most {
							t.Errorf("%s: %d of %d are sure and wrong, want 5 of 100 at most", what, wrong, seeds)
						}
						if noise == 0.01 && drift == "none" && reps > 2 && sure*10 < seeds*9 {
							t.Errorf("%s: %d of %d are sure, want most", what, sure, seeds)
						}
					}
				}
			}
		}
	}
}

// TestStudent compares with the 95 % points of the table that Student's t is given by
// (Abramowitz and Stegun, 26.10).
func TestStudent(t *testing.T) {
	for free, at := range map[int]float64{1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 10: 1.812, 29: 1.699, 120: 1.658} {
		for _, c := range []struct{ t, want float64 }{{at, 0.95}, {-at, 0.05}, {0, 0.5}, {math.Inf(1), 1}} {
			if got := student(c.t, free); math.Abs(got-c.want) > 1e-4 {
				t.Errorf("student(%v, %d) = %.5f, want %v", c.t, free, got, c.want)
			}
		}
	}
}

// TestSizesThatAreGrantedAsOneAreOne holds that no size is advised that the server does
// not grant, and that what it made of several that were asked for is measured as one.
func TestSizesThatAreGrantedAsOneAreOne(t *testing.T) {
	const least, most = 4 << 10, 64 << 10
	for way, look := range map[string]func(context.Context, Space, Measure, Options) ([]Observation, error){"sweep": Sweep, "search": Search} {
		for name, truth := range curves {
			r := rand.New(rand.NewPCG(1, 7))
			times := map[int64]int{}
			space := Space{Ops: []Op{Write}, Sizes: Octaves(), Reps: 3}
			seen, err := look(t.Context(), space, func(_ context.Context, s Setting) (Sample, error) {
				granted := min(max(s.Size, least), most)
				times[granted]++
				return Sample{Rate: truth(float64(granted)) * math.Exp(0.03*r.NormFloat64()), Granted: granted}, nil
			}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			report := Analyse(space, seen)
			c := report.Curves[0]
			for _, p := range c.Points {
				if p.Size < least || p.Size > most || len(p.Rates) != times[p.Size] {
					t.Errorf("%s of %s: %d bytes have %d rates, want the %d of all that were granted so", way, name, p.Size, len(p.Rates), times[p.Size])
				}
			}
			if c.Knee > most || c.Best > most {
				t.Errorf("%s of %s: the knee is %d, the best %d, and %d is granted", way, name, c.Knee, c.Best, most)
			}
			a := report.Advise("", "")
			if want := "No wsize above 65536 is granted"; a.WSize > most || !strings.Contains(strings.Join(a.Says, " "), want) {
				t.Errorf("%s of %s: wsize=%d, %q, want %q", way, name, a.WSize, a.Says, want)
			}
		}
	}
}

func TestKneeIsTheSmallestSizeThatIsGoodEnough(t *testing.T) {
	rates := func(c Corner, size int64, rates ...float64) (all []Observation) {
		for _, r := range rates {
			all = append(all, Observation{Setting: Setting{c, size}, Sample: Sample{Rate: r * 8e6}})
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
		{"one size", rates(w, 4096, 90, 91), 4096, false},
		{"noise, and the largest was slower", slices.Concat(rates(w, 4096, 300, 310, 310), rates(w, 8192, 249, 248, 500)), 4096, false},
		{"falls", slices.Concat(rates(w, 4096, 100, 101, 100), rates(w, 8192, 60, 61, 60)), 4096, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Analyse(Space{}, c.seen).Curves[0]
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
		for i := range seen {
			seen[i].Time = time.Time{}
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
