package pcp

import (
	"math"
	"math/rand/v2"
	"slices"
)

// fuzziness is the exponent m of fuzzy c-means. With the usual 2 all centres fall into
// the middle where there are many features (Winkler, Klawonn and Kruse, IJFSA 1(1), 2011).
const fuzziness = 1.3

// clusters returns the premises of so many rules, or of as many as there are different
// rows: Gaussian memberships around the centres that fuzzy c-means finds (Bezdek, Ehrlich
// and Full, Computers & Geosciences 10, 1984), which minimises
//
//	J = Σ_k Σ_i u_ki^m ‖x_k − c_i‖², with Σ_i u_ki = 1 for each row k
//
// by turns of u_ki = 1 / Σ_j (d_ki / d_kj)^(2/(m−1)) and c_i = Σ_k u_ki^m x_k / Σ_k u_ki^m.
// A width is the fuzzy deviation, Σ_k u_ki^m (x_kj − c_ij)² / Σ_k u_ki^m (Sugeno and
// Yasukawa, IEEE Trans. Fuzzy Systems 1(1), 1993), and at least a little.
func clusters(x [][]float64, size int, seed uint64) []rule {
	centres := spread(x, size, seed)
	wide := len(x[0])
	u := make([]float64, len(centres))
	sums := make([]float64, len(centres))
	next := make([][]float64, len(centres))
	for i := range next {
		next[i] = make([]float64, wide)
	}
	turn := func(each func(i int, weight float64, row []float64)) {
		clear(sums)
		for _, row := range x {
			memberships(row, centres, u)
			for i, v := range u {
				if v == 0 {
					continue
				}
				weight := math.Pow(v, fuzziness)
				sums[i] += weight
				each(i, weight, row)
			}
		}
	}
	for range 30 {
		for i := range next {
			clear(next[i])
		}
		turn(func(i int, weight float64, row []float64) {
			for j, v := range row {
				next[i][j] += weight * v
			}
		})
		moved := 0.0
		for i := range centres {
			for j := range centres[i] {
				to := centres[i][j]
				if sums[i] > 1e-12 {
					to = next[i][j] / sums[i]
				}
				moved = max(moved, math.Abs(to-centres[i][j]))
				centres[i][j] = to
			}
		}
		if moved < 1e-3 {
			break
		}
	}
	for i := range next {
		clear(next[i])
	}
	turn(func(i int, weight float64, row []float64) {
		for j, v := range row {
			next[i][j] += weight * (v - centres[i][j]) * (v - centres[i][j])
		}
	})
	rules := make([]rule, len(centres))
	for i := range rules {
		rules[i].centre = centres[i]
		for j := range wide {
			width := 0.0
			if sums[i] > 1e-12 {
				width = math.Sqrt(next[i][j] / sums[i])
			}
			rules[i].width = append(rules[i].width, max(width, minWidth))
			rules[i].narrow = append(rules[i].narrow, 1/rules[i].width[j])
		}
	}
	return rules
}

// minWidth is in deviations of the whole history: neighbouring rules overlap.
const minWidth = 0.6

// memberships fills u with how much a row belongs to each centre.
func memberships(row []float64, centres [][]float64, u []float64) {
	nearest := math.Inf(1)
	for i, c := range centres {
		u[i] = distance(row, c)
		nearest = min(nearest, u[i])
	}
	sum := 0.0
	for i, d := range u { // as shares of the nearest, so that none overflows
		switch {
		case d == nearest:
			u[i] = 1
		case d > 1000*nearest:
			u[i] = 0 // but for less than a billionth
		default:
			u[i] = math.Pow(nearest/d, 1/(fuzziness-1)) // of squares
		}
		sum += u[i]
	}
	for i := range u {
		u[i] /= sum
	}
}

// distance is the square of the Euclidean one.
func distance(a, b []float64) float64 {
	d := 0.0
	for j, v := range a {
		d += (v - b[j]) * (v - b[j])
	}
	return d
}

// spread returns different rows to begin with, each the more likely the further it is
// from those before (k-means++: Arthur and Vassilvitskii, SODA 2007).
func spread(x [][]float64, size int, seed uint64) [][]float64 {
	random := rand.New(rand.NewPCG(1, seed)) // the same seed and history, the same rules
	centres := [][]float64{slices.Clone(x[random.IntN(len(x))])}
	near := make([]float64, len(x))
	for i := range near {
		near[i] = math.Inf(1)
	}
	for len(centres) < size {
		sum := 0.0
		for i, row := range x {
			near[i] = min(near[i], distance(row, centres[len(centres)-1]))
			sum += near[i]
		}
		if sum <= 1e-12*float64(len(x)) {
			break
		}
		at := random.Float64() * sum
		chosen := -1
		for i, d := range near {
			if d > 0 {
				chosen = i
				if at -= d; at < 0 {
					break
				}
			}
		}
		centres = append(centres, slices.Clone(x[chosen]))
	}
	return centres
}

// fire appends how much each rule's premise holds, in shares of 1. The exponent is the
// mean over the features and not their sum, so that with many of them more than one rule
// still holds (HTSK: Cui, Wu and Xu, IJCNN 2021).
func fire(rules []rule, x []float64, into []float64) []float64 {
	best := math.Inf(-1)
	for i := range rules {
		e := 0.0
		for j, v := range x {
			z := (v - rules[i].centre[j]) * rules[i].narrow[j]
			e -= z * z
		}
		e *= 0.5 * sharpness / float64(len(x))
		into = append(into, e)
		best = max(best, e)
	}
	sum := 0.0
	for i, e := range into {
		into[i] = math.Exp(e - best)
		sum += into[i]
	}
	for i := range into {
		into[i] /= sum
	}
	return into
}

// sharpness makes up for that mean: with 1 every rule would hold nearly everywhere.
const sharpness = 2.0
