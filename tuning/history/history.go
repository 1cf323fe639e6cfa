// Package history keeps what transfers achieved, durably, for those who learn from it.
package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/tuning"
)

// History is a set of outcomes, each ID once, of which the latest are kept. It may be used
// by several goroutines at once.
//
// Histories are shared by telling each other's outcomes, by All and Record or as CSV: in any
// order and as often as one likes.
type History struct {
	most int
	log  *durable.Log

	mu       sync.RWMutex // guards what follows, and that it changes as the log does
	outcomes map[string]tuning.Outcome
}

// Open opens the history in the file name under root, or makes it. It keeps so many
// outcomes at most. What of the file cannot be read is told damaged and left out, as of a
// durable.Log.
func Open(root *os.Root, name string, most int, damaged func(error)) (*History, error) {
	h := &History{most: most, outcomes: map[string]tuning.Outcome{}}
	log, err := durable.OpenLog(root, name, func(key string, value []byte) error {
		var o tuning.Outcome
		if err := json.Unmarshal(value, &o); err != nil {
			return err
		}
		if err := o.Validate(); err != nil {
			return err
		}
		if o.ID != key {
			return fmt.Errorf("the outcome is that of %s", o.ID)
		}
		h.outcomes[key] = o
		return nil
	}, damaged)
	if err != nil {
		return nil, err
	}
	h.log = log
	return h, nil
}

// Close closes the file. Nothing can be recorded after it.
func (h *History) Close() error { return h.log.Close() }

// Record adds outcomes. On nil all of them survive a power failure, but for those that are
// older than what is kept. On an error none is added, though after one of the disk all of
// them may be there when the history is opened anew. An outcome that is not valid is an
// error. One whose ID is known is left as it is: a transfer ends once. It returns how many
// were added.
func (h *History) Record(outcomes ...tuning.Outcome) (added int, err error) {
	for _, o := range outcomes {
		if err := o.Validate(); err != nil {
			return 0, fmt.Errorf("record the outcome of %q: %w", o.ID, err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	fresh := map[string]tuning.Outcome{}
	for _, o := range outcomes {
		_, known := h.outcomes[o.ID]
		if _, twice := fresh[o.ID]; !known && !twice {
			o.Ended = o.Ended.UTC()
			o.Steps = slices.Clone(o.Steps)
			fresh[o.ID] = o
		}
	}
	var dropped []string
	if over := len(h.outcomes) + len(fresh) - h.most; over > 0 {
		all := make([]tuning.Outcome, 0, len(h.outcomes)+len(fresh))
		for _, o := range h.outcomes {
			all = append(all, o)
		}
		for _, o := range fresh {
			all = append(all, o)
		}
		slices.SortFunc(all, byTime)
		// Some more go, so that not each new one has all of them sorted.
		for _, o := range all[:min(over+h.most/16, len(all))] {
			if _, isNew := fresh[o.ID]; isNew {
				delete(fresh, o.ID)
			} else {
				dropped = append(dropped, o.ID)
			}
		}
	}
	if len(fresh) == 0 {
		return 0, nil // known, or older than what is kept: nothing has to go for them
	}
	var changes []durable.Change
	for _, id := range dropped {
		changes = append(changes, durable.Change{Key: id})
	}
	for id, o := range fresh {
		changes = append(changes, durable.Set(id, o))
	}
	if err := h.log.Commit(changes...); err != nil {
		return 0, fmt.Errorf("record outcomes: %w", err)
	}
	for _, id := range dropped {
		delete(h.outcomes, id)
	}
	maps.Copy(h.outcomes, fresh)
	return len(fresh), nil
}

// Forget drops the outcomes that a site's DTN has seen, and returns how many there were. On
// nil they do not come back but by Record; on an error none is dropped, though after one of
// the disk they may be gone when the history is opened anew.
func (h *History) Forget(site string) (dropped int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var changes []durable.Change
	for id, o := range h.outcomes {
		if o.Site() == site {
			changes = append(changes, durable.Change{Key: id})
		}
	}
	if len(changes) == 0 {
		return 0, nil
	}
	if err := h.log.Commit(changes...); err != nil {
		return 0, fmt.Errorf("forget the outcomes of site %s: %w", site, err)
	}
	for _, c := range changes {
		delete(h.outcomes, c.Key)
	}
	return len(changes), nil
}

// All returns the outcomes, the oldest first. Nobody may change the steps.
func (h *History) All() []tuning.Outcome {
	h.mu.RLock()
	defer h.mu.RUnlock()
	outcomes := make([]tuning.Outcome, 0, len(h.outcomes))
	for _, o := range h.outcomes {
		outcomes = append(outcomes, o)
	}
	slices.SortFunc(outcomes, byTime)
	return outcomes
}

func byTime(a, b tuning.Outcome) int {
	return cmp.Or(a.Ended.Compare(b.Ended), cmp.Compare(a.ID, b.ID))
}

// Observations returns what the outcomes of an engine tell, of steps that lasted for as
// long as at least.
func Observations(outcomes []tuning.Outcome, engine string, atLeast time.Duration) []tuning.Observation {
	var all []tuning.Observation
	for _, o := range outcomes {
		if o.Engine == engine {
			all = append(all, o.Observations(atLeast)...)
		}
	}
	return all
}
