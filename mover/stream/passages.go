package stream

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/mover"
)

// route is a way through a relay.
type route struct{ from, to string }

// count adds to what was passed on.
func (p *passage) count(files, bytes int64) {
	y, r := p.relay, route{p.ticket.From, p.ticket.Site}
	y.counting.Lock()
	defer y.counting.Unlock()
	n := y.tally[r]
	n.From, n.To = r.from, r.to
	n.Files += files
	n.Bytes += bytes
	y.tally[r] = n
}

// Passed tells what was passed on, of each two sites between which anything was. Where the
// Receiver is no relay nothing was.
func (r *Receiver) Passed() []mover.Passed {
	if r.relay == nil {
		return nil
	}
	r.relay.counting.Lock()
	defer r.relay.counting.Unlock()
	return slices.SortedFunc(maps.Values(r.relay.tally), func(a, b mover.Passed) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
}

// Passages tells of the files that are passed on or rest here on their way, by name.
func (r *Receiver) Passages() []mover.Passage {
	y := r.relay
	if y == nil {
		return nil
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	var all []mover.Passage
	for _, p := range y.passes {
		one := mover.Passage{
			File: p.file, From: p.ticket.From, To: p.ticket.Site, Mode: p.opening.Relay, State: mover.Running,
			Moved: p.moved.Load(), Since: p.since, Priority: p.opening.Priority,
		}
		if a := y.box.lookup(p.file.Name); a != nil {
			one.Here = a.status().Moved
		}
		all = append(all, one)
	}
	for name, r := range y.rests {
		a := y.box.lookup(name)
		if a == nil {
			continue
		}
		one := mover.Passage{
			File: a.File, Mode: mover.StoreForward, State: mover.Queued, Here: a.status().Moved,
			Since: r.since.UTC(), Kept: r.since.Add(y.Keep).UTC(), Waiting: "its sender",
		}
		if a.Through {
			one.Mode = mover.CutThrough
		}
		if r.why != nil {
			one.Waiting = r.why.Error()
		}
		one.To, one.From = sitesOf(name)
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b mover.Passage) int { return cmp.Compare(a.File.Name, b.File.Name) })
	return all
}

// nameAtRelay is a file's name while it is passed on: those of two sites do not meet.
func nameAtRelay(t mover.Ticket) string {
	return path.Join(mover.Inbox, t.Site+"~"+t.From+"~"+path.Base(t.File.Name))
}

// sitesOf returns the sites in such a name.
func sitesOf(name string) (to, from string) {
	to, rest, _ := strings.Cut(path.Base(name), "~")
	from, _, _ = strings.Cut(rest, "~")
	return to, from
}
