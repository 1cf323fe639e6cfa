package main

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// fakeAgent plays the scenario in a script's agent.json: a job goes one state on
// each second of its own clock, once somebody has looked at it, and ends as Ends
// says. It is served by the real control API.
type fakeAgent struct {
	Images   []glance.Image
	Kept     []agent.Job `json:"jobs"`
	Overall  agent.Overview
	Compared []agent.Comparison
	Ends     map[string]string // by peer: the reason why its jobs are parked
	Stays    bool              // nothing goes on
	Moving   []agent.Transfer
	Seen     []agent.SitePath
	Known    string     `json:"history"`
	Reached  agent.Ways `json:"ways"`

	mu   sync.Mutex
	seen chan agent.JobID // jobs to be worked on
}

// epoch is when every job of a fakeAgent begins.
var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func (f *fakeAgent) image(name string) (glance.Image, error) {
	for _, i := range f.Images {
		if i.Name == name || string(i.ID) == name {
			return i, nil
		}
	}
	return glance.Image{}, fmt.Errorf("image %q at site A: %w", name, agent.ErrNoImage)
}

func (f *fakeAgent) peer(site string) error {
	if slices.ContainsFunc(f.Overall.Peers, func(p agent.PeerState) bool { return p.Name == site }) {
		return nil
	}
	var names []string
	for _, p := range f.Overall.Peers {
		names = append(names, p.Name)
	}
	return fmt.Errorf("site %s: %w, which has %s", site, agent.ErrNoPeer, strings.Join(names, ", "))
}

func (f *fakeAgent) add(k agent.Kind, i glance.Image, peer string) agent.Job {
	j := agent.Job{ID: agent.NewJobID(k, i.ID, i.Hash, peer), Kind: k, Peer: peer, Image: i, Created: epoch}
	j = j.Enter(k.Way()[0], epoch, "")
	f.Kept = append(f.Kept, j)
	return j
}

func (f *fakeAgent) Push(_ context.Context, image string, to []string, p mover.Priority) ([]agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.image(image)
	if err != nil {
		return nil, err
	}
	var jobs []agent.Job
	for _, site := range to {
		if err := f.peer(site); err != nil {
			return nil, err
		}
		j := f.add(agent.Send, i, site)
		j.Priority = p
		jobs = append(jobs, j)
	}
	return jobs, nil
}

func (f *fakeAgent) Pull(_ context.Context, image, from string) (agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.image(image)
	if err != nil {
		return agent.Job{}, err
	}
	if err := f.peer(from); err != nil {
		return agent.Job{}, err
	}
	return f.add(agent.Send, i, f.Overall.Site), nil // it plays the other site, too
}

func (f *fakeAgent) Pulled(ctx context.Context, _ string, id agent.JobID) (agent.Job, error) {
	return f.Job(ctx, id)
}

func (f *fakeAgent) Replicate(ctx context.Context, m agent.Match, to []string, p mover.Priority, dryRun bool) ([]agent.Comparison, error) {
	rows, err := f.Compare(ctx, to, m)
	if err != nil {
		return nil, err
	}
	for i, r := range rows {
		if r.Relation != agent.Missing {
			continue
		}
		rows[i].Planned = true
		if !dryRun {
			jobs, err := f.Push(ctx, string(r.ID), []string{r.Peer}, p)
			if err != nil {
				return nil, err
			}
			rows[i].Job = jobs[0].ID
		}
	}
	return rows, nil
}

func (f *fakeAgent) Compare(_ context.Context, peers []string, m agent.Match) ([]agent.Comparison, error) {
	for _, p := range peers {
		if err := f.peer(p); err != nil {
			return nil, err
		}
	}
	rows := []agent.Comparison{}
	for _, r := range f.Compared {
		i, err := f.image(string(r.ID))
		if (len(peers) == 0 || slices.Contains(peers, r.Peer)) && (r.Relation == agent.Unknown || err == nil && m.Selects(i)) {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

func (f *fakeAgent) Overview(context.Context) (agent.Overview, error) { return f.Overall, nil }

func (f *fakeAgent) Jobs(context.Context) iter.Seq2[agent.Job, error] {
	f.mu.Lock()
	jobs := slices.Clone(f.Kept)
	f.mu.Unlock()
	return func(yield func(agent.Job, error) bool) {
		for _, j := range jobs {
			if !yield(j, nil) {
				return
			}
		}
	}
}

func (f *fakeAgent) Job(_ context.Context, id agent.JobID) (agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.Kept {
		if strings.HasPrefix(string(j.ID), string(id)) {
			select {
			case f.seen <- j.ID:
			default:
			}
			return j, nil
		}
	}
	return agent.Job{}, fmt.Errorf("job %s: %w", id, agent.ErrNoJob)
}

func (f *fakeAgent) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case id := <-f.seen:
				for j, on := f.step(id); on; j, on = f.step(id) {
					if !yield(agent.Event{Job: &j}, nil) {
						return
					}
				}
			}
		}
	}
}

// step puts a job into its next state; false when there is none.
func (f *fakeAgent) step(id agent.JobID) (agent.Job, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.Kept, func(j agent.Job) bool { return j.ID == id })
	j := &f.Kept[i]
	if j.State.Final() || f.Stays {
		return *j, false
	}
	at, way := j.Updated.Add(time.Second), j.Kind.Way()
	next, note := way[slices.Index(way, j.State)+1], ""
	if next == agent.Staged {
		note = "hard link"
	}
	if reason := f.Ends[j.Peer]; reason != "" && next == agent.Offered {
		*j = j.Enter(agent.Parked, at, reason)
		j.Reason = reason
		return *j, true
	}
	*j = j.Enter(next, at, note)
	return *j, true
}

func (f *fakeAgent) change(id agent.JobID, from, to agent.State) (agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, j := range f.Kept {
		if !strings.HasPrefix(string(j.ID), string(id)) {
			continue
		}
		if from != "" && j.State != from || j.State == agent.Verified {
			return j, fmt.Errorf("job %s is %s: %w", j.ID, j.State, agent.ErrBadState)
		}
		f.Kept[i] = j.Enter(to, j.Updated.Add(time.Second), "")
		return f.Kept[i], nil
	}
	return agent.Job{}, fmt.Errorf("job %s: %w", id, agent.ErrNoJob)
}

func (f *fakeAgent) Cancel(_ context.Context, id agent.JobID) (agent.Job, error) {
	return f.change(id, "", agent.Cancelling)
}

func (f *fakeAgent) Retry(_ context.Context, id agent.JobID) (agent.Job, error) {
	return f.change(id, agent.Parked, agent.Pending)
}

func (f *fakeAgent) ExportTrouble() error                 { return nil }
func (f *fakeAgent) Checks(context.Context) []agent.Check { return f.Overall.Checks }

// What only peers ask.

func (f *fakeAgent) Offer(context.Context, string, agent.Offer) (agent.Grant, error) {
	return agent.Grant{}, agent.ErrForbidden
}

func (f *fakeAgent) Delivery(context.Context, string, agent.JobID) (agent.Delivery, error) {
	return agent.Delivery{}, agent.ErrForbidden
}

func (f *fakeAgent) CancelDelivery(context.Context, string, agent.JobID) error {
	return agent.ErrForbidden
}

func (f *fakeAgent) Inventory(context.Context, string) iter.Seq2[glance.Image, error] {
	return func(func(glance.Image, error) bool) {}
}

func (f *fakeAgent) Request(context.Context, string, string) (agent.Job, error) {
	return agent.Job{}, agent.ErrForbidden
}

func (f *fakeAgent) Sending(context.Context, string, agent.JobID) (agent.Job, error) {
	return agent.Job{}, agent.ErrForbidden
}

func (f *fakeAgent) Ways(_ context.Context, to, image string, size int64) (agent.Ways, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.peer(to); err != nil {
		return agent.Ways{}, err
	}
	w := f.Reached
	w.Size = size
	if image != "" {
		i, err := f.image(image)
		if err != nil {
			return agent.Ways{}, err
		}
		w.Size = i.Size
	}
	return w, nil
}

func (f *fakeAgent) Paths(context.Context) ([]agent.SitePath, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.Seen), nil
}

func (f *fakeAgent) History(context.Context) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Known, nil
}

func (f *fakeAgent) ImportHistory(_ context.Context, csv string) (mover.Imported, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Known = csv
	return mover.Imported{Outcomes: 2, New: 1}, nil
}

func (f *fakeAgent) ForgetHistory(_ context.Context, site string) (mover.Forgotten, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dropped := 0
	var kept strings.Builder
	for line := range strings.Lines(f.Known) {
		if strings.HasPrefix(line, site+"/") {
			dropped++
			continue
		}
		kept.WriteString(line)
	}
	f.Known = kept.String()
	return mover.Forgotten{Outcomes: dropped}, nil
}

// Probe finds what agent.json says that is seen of the path to the site; a probe of one
// that is seen without having been probed ends with the note in Ends.
func (f *fakeAgent) Probe(_ context.Context, site string, load time.Duration, bytes int64) iter.Seq2[agent.ProbeEvent, error] {
	return func(yield func(agent.ProbeEvent, error) bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if err := f.peer(site); err != nil {
			yield(agent.ProbeEvent{}, err)
			return
		}
		if !yield(agent.ProbeEvent{Progress: &mover.Probing{Phase: mover.ProbeConnect, Time: load, Bytes: bytes}}, nil) {
			return
		}
		found := false
		for _, p := range f.Seen {
			if slices.Contains(p.Sites, site) && p.Probe != nil {
				if found = true; !yield(agent.ProbeEvent{Path: &p}, nil) {
					return
				}
			}
		}
		if found {
			return
		}
		yield(agent.ProbeEvent{}, fmt.Errorf("site %s: %s", site, f.Ends[site]))
	}
}

func (f *fakeAgent) Health(context.Context, string) (agent.Health, error) {
	return agent.Health{}, agent.ErrForbidden
}

func (f *fakeAgent) ProbeTicket(context.Context, string, string) (mover.Destination, error) {
	return mover.Destination{}, agent.ErrForbidden
}

func (f *fakeAgent) Transfers(context.Context) ([]agent.Transfer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.Moving), nil
}

func (f *fakeAgent) Adjust(_ context.Context, id mover.TransferID, p mover.PCP) (agent.Transfer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, t := range f.Moving {
		if strings.HasPrefix(string(t.ID), string(id)) && !t.State.Final() {
			f.Moving[i].Way.PCP = t.Way.PCP.With(p)
			return f.Moving[i], nil
		}
	}
	return agent.Transfer{}, fmt.Errorf("transfer %s, which has not ended: %w", id, mover.ErrNoTransfer)
}
