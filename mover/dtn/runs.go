package dtn

import (
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// past is what came of a transfer's runs but the last. What it waited between them is not
// counted.
type past struct {
	lasted  time.Duration
	brought int64 // bytes
}

// brought is how many bytes the transfer's runs have proven. The caller holds mu, or
// changing when the run has ended, as for what follows.
func (tr *transfer) brought(moved int64) int64 {
	if !tr.reported {
		return tr.past.brought
	}
	return tr.past.brought + moved - tr.before
}

// ran is how long the transfer's runs have lasted.
func (tr *transfer) ran(now time.Time) time.Duration {
	if tr.Status.State != mover.Running {
		return tr.Status.Ran
	}
	return tr.past.lasted + now.Sub(tr.Status.Started)
}

// rate is the mean of the transfer's runs until now, when moved bytes were proven, in bits
// per second.
func (tr *transfer) rate(moved int64, now time.Time) float64 {
	if tr.Status.State != mover.Running {
		return tr.Status.Rate
	}
	d := tr.ran(now).Seconds()
	if d <= 0 {
		return 0
	}
	return float64(8*tr.brought(moved)) / d
}

// rest ends a run after which another one follows.
func (tr *transfer) rest(now time.Time) {
	tr.Status.Rate, tr.Status.Ran = tr.rate(tr.Status.Moved, now), tr.ran(now)
	tr.past = past{tr.Status.Ran, tr.brought(tr.Status.Moved)}
	tr.reported, tr.waited.at = false, time.Time{}
}

// waited is what a transfer has waited for since it was first run.
type waited struct {
	at     time.Time // of the last report of this run
	known  time.Duration
	places map[mover.Bottleneck]time.Duration // by what has no share, nor limit
	limit  string
}

// add takes what a run reports to have waited for since the report before, and returns for
// how long that was.
func (w *waited) add(now time.Time, b mover.Bottleneck) time.Duration {
	took := now.Sub(w.at)
	if w.at.IsZero() {
		took = 0
	}
	if w.at = now; b.Place == "" || took == 0 {
		return 0
	}
	if w.places == nil {
		w.places = map[mover.Bottleneck]time.Duration{}
	}
	w.known += took
	if b.Limit != "" {
		w.limit = b.Limit
	}
	d := time.Duration(b.Share * float64(took))
	w.places[mover.Bottleneck{Place: b.Place, From: b.From}] += d
	return d
}

// longest is what was waited for longest, of all the time that was reported of; last where
// there is none.
func (w *waited) longest(last mover.Bottleneck) mover.Bottleneck {
	var most time.Duration
	for place, d := range w.places {
		if d > most {
			most, last = d, place
			last.Share = float64(d) / float64(w.known)
		}
	}
	if last.Place == mover.Limited && last.Limit == "" {
		last.Limit = w.limit
	}
	return last
}
