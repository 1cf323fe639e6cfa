package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning/routing"
)

// Of which transfers a plan tells what they have achieved.
const (
	mostSeen  = 100 // the latest
	likeSized = 4   // times as large, or as small, as the file that is planned
)

// achieved is what the latest transfers of files of about a size have achieved by a way,
// disks and hashes included, with whatever moved beside them.
type achieved struct {
	Transfers  int         `json:"transfers"`
	Smallest   int64       `json:"smallest"` // bytes
	Largest    int64       `json:"largest"`
	Rate       float64     `json:"rate"` // bits per second, median
	Slowest    float64     `json:"slowest"`
	Fastest    float64     `json:"fastest"`
	Seconds    float64     `json:"seconds"` // that the file would take at the median
	Bottleneck mover.Place `json:"bottleneck,omitempty"`
	Waited     int         `json:"waited,omitempty"` // how many of them waited for that
}

// achievedBy picks from a list, the oldest first, those that went to a site by a way, and
// brought bytes of their own: what the site had tells nothing of the way. Nil: none.
func achievedBy(list []agent.Transfer, to string, way routing.Way, large int64) *achieved {
	list = slices.DeleteFunc(slices.Clone(list), func(t agent.Transfer) bool {
		return t.State != mover.Done || t.To != to || t.From != "" || t.Rate <= 0 || !wayOf(&t.Via).Equal(way) ||
			t.Source.Size/likeSized > large || large/likeSized > t.Source.Size || 2*t.Way.Wire < t.Source.Size
	})
	if len(list) == 0 {
		return nil
	}
	list = list[max(0, len(list)-mostSeen):]
	a := achieved{Transfers: len(list), Smallest: list[0].Source.Size}
	var rates []float64
	waited := map[mover.Place]int{}
	for _, t := range list {
		rates = append(rates, t.Rate)
		a.Smallest, a.Largest = min(a.Smallest, t.Source.Size), max(a.Largest, t.Source.Size)
		waited[t.Way.Bottleneck.Place]++
	}
	slices.Sort(rates)
	a.Slowest, a.Rate, a.Fastest = rates[0], rates[len(rates)/2], rates[len(rates)-1]
	a.Seconds = 8 * float64(large) / a.Rate
	delete(waited, "")
	for place, n := range waited {
		if c := cmp.Or(cmp.Compare(n, a.Waited), cmp.Compare(a.Bottleneck, place)); c > 0 {
			a.Bottleneck, a.Waited = place, n
		}
	}
	return &a
}

// about tells it for the file that is planned.
func (a achieved) about(q routing.Question) string {
	text := fmt.Sprintf("The last transfer to %s by this way, %s, achieved %s", q.To, size(a.Largest), known(a.Rate))
	if a.Transfers > 1 {
		text = fmt.Sprintf("The last %d transfers to %s by this way, of %s to %s, achieved %s (median; %s to %s)",
			a.Transfers, q.To, size(a.Smallest), size(a.Largest), known(a.Rate), known(a.Slowest), known(a.Fastest))
	}
	text += fmt.Sprintf(": %s would take %s.", size(q.Size), span(seconds(a.Seconds)))
	switch {
	case a.Bottleneck == "":
	case a.Transfers == 1:
		text += fmt.Sprintf(" It waited most for: %s.", a.Bottleneck)
	default:
		text += fmt.Sprintf(" %d of them waited most for: %s.", a.Waited, a.Bottleneck)
	}
	return text
}
