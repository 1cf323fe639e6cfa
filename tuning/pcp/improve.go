package pcp

import (
	"fmt"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// pays is by how much more throughput another PCP takes the place of today's.
const pays = 0.1

// Improver advises where it pays to leave the PCP that is used today. It is as an Advisor
// is.
type Improver struct {
	advisor *Advisor
	known   map[mover.PCP]*compared // by what is used today
}

// compared is what history has seen beside today's PCP: of each condition in which that
// was used the best, and what today's had.
type compared struct {
	matcher *Matcher
	today   map[tuning.Condition]float64
}

// NewImprover makes one of the history of one engine, which uses one of some PCPs today;
// the rest is as for NewAdvisor.
func NewImprover(history []tuning.Observation, most mover.PCP, today ...mover.PCP) *Improver {
	i := &Improver{advisor: NewAdvisor(history, most), known: map[mover.PCP]*compared{}}
	weights := i.advisor.matcher.weights
	all := byCondition(i.advisor.rows)
	for _, p := range today {
		k := &compared{today: map[tuning.Condition]float64{}}
		var rows []tuning.Observation
		for _, s := range all {
			for _, o := range s.rows {
				if o.PCP == p {
					k.today[s.condition] = o.Throughput
				}
			}
			if k.today[s.condition] > 0 {
				rows = append(rows, s.rows...)
			}
		}
		k.matcher = NewMatcher(rows, weights)
		i.known[p] = k
	}
	return i
}

// Improve returns the PCP for a condition, and whether it pays to leave today's for it: the
// model has to predict a tenth more for it than for today's, and more than it is off by.
// Where it is not as sure, or says nothing, another PCP has to have had a tenth more than
// today's in the most similar condition in which that was used. If it does not pay, the
// advice is today's, and says why.
func (i *Improver) Improve(c tuning.Condition, today mover.PCP) (tuning.Advice, bool, error) {
	advice, err := i.advisor.Advise(c)
	if err != nil {
		return advice, false, err
	}
	stay := tuning.Advice{PCP: today, By: advice.By, Why: advice.Why}
	why := i.advisor.silent(c)
	if advice.By == tuning.TSK {
		m := i.advisor.model
		gain := advice.Throughput/m.Predict(c, today).Throughput - 1
		if gain >= pays && gain >= m.quality.MAPE {
			return advice, true, nil
		}
		if gain < pays {
			return stay, false, nil
		}
		why = fmt.Sprintf("a fuzzy model expects %.0f %% more of another PCP, and is off by %.0f %%", 100*gain, 100*m.quality.MAPE)
	}
	k := i.known[today]
	if k == nil {
		return stay, false, nil
	}
	best, _, ok := k.matcher.Match(rounded(c))
	if !ok || !alike(best.Condition, c) || best.Throughput < (1+pays)*k.today[best.Condition] {
		return stay, false, nil
	}
	return tuning.Advice{PCP: i.advisor.within(best.PCP), By: tuning.Nearest, Why: why + mostLike(best.Condition)}, true, nil
}

func mostLike(c tuning.Condition) string {
	return fmt.Sprintf("; the best of the most similar condition, %s", describe(c))
}
