package api

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	epoch = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	sum   = digest.Digest{Algo: "sha256", Value: fmt.Sprintf("%064x", 7)}
)

func imageID(n int) glance.ImageID {
	return glance.ImageID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n))
}

func image(n int, name string) glance.Image {
	return glance.Image{
		ID: imageID(n), Name: name, Status: glance.Active, Size: int64(n) << 20, Hash: sum,
		DiskFormat: "qcow2", ContainerFormat: "bare", Visibility: "public", Tags: []string{"a", "b"},
		Properties: map[string]string{"os_distro": "debian"}, CreatedAt: epoch, UpdatedAt: epoch.Add(time.Hour),
	}
}

// fakeAgent keeps images and jobs as a site does. Its jobs advance when a test says so.
type fakeAgent struct {
	mu       sync.Mutex
	images   []glance.Image
	jobs     []agent.Job
	fail     error // of every call
	checks   []agent.Check
	trouble  error
	watchers map[chan agent.Event]bool
	watching chan int // how many watchers there are, whenever that changes
	asked    agent.Match
	broken   func(i int) error // of the i-th item of a sequence
	Moving   []agent.Transfer
	Seen     []agent.SitePath
	Known    string                `json:"history"`
	probed   chan string           // sites whose probe has ended because nobody wanted it any more
	ways     map[string]agent.Ways // by site and image
}

func newFake() *fakeAgent {
	return &fakeAgent{
		probed:   make(chan string, 1),
		images:   []glance.Image{image(1, "debian"), image(2, "twin"), image(3, "twin")},
		checks:   []agent.Check{{Name: "glance", OK: true}},
		watchers: map[chan agent.Event]bool{},
		watching: make(chan int, 16),
		broken:   func(int) error { return nil },
	}
}

func (f *fakeAgent) find(image string) (glance.Image, error) {
	var found []glance.Image
	for _, i := range f.images {
		if string(i.ID) == image || i.Name == image {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		return glance.Image{}, fmt.Errorf("image %s: %w", image, agent.ErrNoImage)
	case 1:
		return found[0], nil
	}
	return glance.Image{}, fmt.Errorf("image %s: %w", image, agent.ErrAmbiguous)
}

// put stores a job, with a ticket, and tells the watchers.
func (f *fakeAgent) put(j agent.Job) agent.Job {
	j.Offer.Ticket = secret
	f.jobs = slices.DeleteFunc(f.jobs, func(o agent.Job) bool { return o.ID == j.ID })
	f.jobs = append(f.jobs, j)
	f.tell(agent.Event{Job: &j})
	return j
}

const secret = "ticket-that-is-for-the-DTN-alone"

func (f *fakeAgent) tell(ev agent.Event) {
	for w := range f.watchers {
		w <- ev
	}
}

func (f *fakeAgent) make(kind agent.Kind, i glance.Image, peer string) agent.Job {
	j := agent.Job{ID: agent.NewJobID(kind, i.ID, i.Hash, peer), Kind: kind, Peer: peer, Image: i, Created: epoch}
	return f.put(j.Enter(kind.Way()[0], epoch, ""))
}

func (f *fakeAgent) Offer(_ context.Context, from string, o agent.Offer) (agent.Grant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return agent.Grant{}, f.fail
	}
	if from == "stranger" {
		return agent.Grant{}, fmt.Errorf("site %s: %w", from, agent.ErrForbidden)
	}
	j := f.make(agent.Receive, o.Image, from)
	return agent.Grant{Verdict: agent.Accept, Delivery: j.ID, ImageID: o.Image.ID, Ticket: secret, Name: j.FileName()}, nil
}

func (f *fakeAgent) Delivery(ctx context.Context, from string, id agent.JobID) (agent.Delivery, error) {
	j, err := f.Job(ctx, id)
	if err == nil && j.Peer != from {
		err = agent.ErrNoJob
	}
	return agent.Delivery{ID: j.ID, State: j.State, ImageID: j.Image.ID}, err
}

func (f *fakeAgent) CancelDelivery(ctx context.Context, from string, id agent.JobID) error {
	if _, err := f.Delivery(ctx, from, id); err != nil {
		return err
	}
	_, err := f.Cancel(ctx, id)
	return err
}

func (f *fakeAgent) Inventory(context.Context, string) iter.Seq2[glance.Image, error] {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sequence(f, f.images)
}

// sequence yields items, with an error beside those that the fake says are broken.
// The caller holds the lock.
func sequence[T any](f *fakeAgent, items []T) iter.Seq2[T, error] {
	fail := f.fail
	return func(yield func(T, error) bool) {
		if fail != nil {
			yield(*new(T), fail)
			return
		}
		for i, item := range items {
			if !yield(item, f.broken(i)) {
				return
			}
		}
	}
}

func (f *fakeAgent) Request(_ context.Context, from, image string) (agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return agent.Job{}, f.fail
	}
	i, err := f.find(image)
	if err != nil {
		return agent.Job{}, err
	}
	return f.make(agent.Send, i, from), nil
}

func (f *fakeAgent) Sending(ctx context.Context, from string, id agent.JobID) (agent.Job, error) {
	j, err := f.Job(ctx, id)
	if err == nil && (j.Peer != from || j.Kind != agent.Send) {
		return agent.Job{}, fmt.Errorf("job %s: %w", id, agent.ErrNoJob)
	}
	return j, err
}

func (f *fakeAgent) Push(ctx context.Context, image string, to []string, p mover.Priority) (jobs []agent.Job, err error) {
	for _, site := range to {
		if site == "nowhere" {
			return nil, fmt.Errorf("site %s: %w", site, agent.ErrNoPeer)
		}
		j, err := f.Request(ctx, site, image)
		if err != nil {
			return nil, err
		}
		j.Priority = p
		jobs = append(jobs, j)
	}
	return jobs, nil
}

func (f *fakeAgent) Pull(ctx context.Context, image, from string) (agent.Job, error) {
	return f.Request(ctx, from, image)
}

func (f *fakeAgent) Pulled(ctx context.Context, from string, id agent.JobID) (agent.Job, error) {
	return f.Sending(ctx, from, id)
}

func (f *fakeAgent) Replicate(ctx context.Context, m agent.Match, to []string, p mover.Priority, dryRun bool) ([]agent.Comparison, error) {
	all, err := f.Compare(ctx, to, m)
	for i := range all {
		all[i].Planned = true
		if !dryRun {
			j, err := f.Request(ctx, all[i].Peer, string(all[i].ID))
			if err != nil {
				return nil, err
			}
			all[i].Job = j.ID
		}
	}
	return all, err
}

func (f *fakeAgent) Compare(_ context.Context, peers []string, m agent.Match) (all []agent.Comparison, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = m
	for _, i := range f.images {
		for _, p := range peers {
			if m.Selects(i) {
				all = append(all, agent.Comparison{ID: i.ID, Name: i.Name, Size: i.Size, Peer: p, Relation: agent.Missing})
			}
		}
	}
	return all, f.fail
}

func (f *fakeAgent) Overview(context.Context) (agent.Overview, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := agent.Overview{
		Site: "A", At: epoch, Jobs: map[agent.State]int{}, Checks: f.checks,
		Peers: []agent.PeerState{{Name: "B", Error: "no route to host"}},
		Store: []agent.StoreFault{{ID: imageID(9), Fault: "stuck", Note: "look"}},
	}
	for _, j := range f.jobs {
		o.Jobs[j.State]++
	}
	for _, i := range f.images {
		o.Images = append(o.Images, agent.ImageState{ID: i.ID, Name: i.Name, Status: i.Status, Size: i.Size,
			Sites: map[string]agent.Standing{"B": {Relation: agent.Missing, Percent: 12}}})
	}
	return o, f.fail
}

func (f *fakeAgent) Jobs(context.Context) iter.Seq2[agent.Job, error] {
	f.mu.Lock()
	defer f.mu.Unlock()
	return sequence(f, slices.SortedFunc(slices.Values(f.jobs), func(a, b agent.Job) int { return cmp.Compare(a.ID, b.ID) }))
}

func (f *fakeAgent) Job(_ context.Context, id agent.JobID) (agent.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return agent.Job{}, f.fail
	}
	for _, j := range f.jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return agent.Job{}, agent.ErrNoJob
}

func (f *fakeAgent) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := make(chan agent.Event, 16)
	f.watchers[w] = true
	f.watching <- len(f.watchers)
	return func(yield func(agent.Event, error) bool) {
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.watchers, w)
			f.watching <- len(f.watchers)
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case ev := <-w:
				var err error
				if ev.Job != nil && ev.Job.State == "" {
					err = fmt.Errorf("job %s: the record cannot be read", ev.Job.ID)
				}
				if !yield(ev, err) {
					return
				}
			}
		}
	}
}

func (f *fakeAgent) change(ctx context.Context, id agent.JobID, from, to agent.State) (agent.Job, error) {
	j, err := f.Job(ctx, id)
	if err != nil {
		return j, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if j.State != from {
		return j, fmt.Errorf("job %s is %s: %w", id, j.State, agent.ErrBadState)
	}
	return f.put(j.Enter(to, epoch.Add(time.Minute), "")), nil
}

func (f *fakeAgent) Cancel(ctx context.Context, id agent.JobID) (agent.Job, error) {
	j, err := f.Job(ctx, id)
	if err != nil {
		return j, err
	}
	return f.change(ctx, id, j.Kind.Way()[0], agent.Cancelled)
}

func (f *fakeAgent) Retry(ctx context.Context, id agent.JobID) (agent.Job, error) {
	return f.change(ctx, id, agent.Cancelled, agent.Pending)
}

func (f *fakeAgent) ExportTrouble() error { return f.trouble }

func (f *fakeAgent) Checks(context.Context) []agent.Check {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.checks)
}

func (f *fakeAgent) Ways(_ context.Context, to, image string, size int64) (agent.Ways, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.ways[to+" "+image]
	if !ok {
		return w, fmt.Errorf("site %s: %w", to, agent.ErrNoPeer)
	}
	w.Size = size
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
	f.Known = "without " + site
	return mover.Forgotten{Outcomes: 7}, nil
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

func (f *fakeAgent) Probe(ctx context.Context, site string, load time.Duration, bytes int64) iter.Seq2[agent.ProbeEvent, error] {
	return func(yield func(agent.ProbeEvent, error) bool) {
		f.mu.Lock()
		err, seen := f.fail, slices.Clone(f.Seen)
		f.mu.Unlock()
		if err == nil && site != "B" {
			err = fmt.Errorf("site %s: %w", site, agent.ErrNoPeer)
		}
		if err != nil {
			yield(agent.ProbeEvent{}, err)
			return
		}
		for i := int64(1); bytes == 0 || i < bytes; i++ { // 0: until who asks has gone
			if !yield(agent.ProbeEvent{Progress: &mover.Probing{Phase: mover.ProbeAll, Time: load, Bytes: bytes}}, nil) || ctx.Err() != nil {
				f.probed <- site
				return
			}
		}
		yield(agent.ProbeEvent{Path: &seen[0]}, nil)
	}
}

func (f *fakeAgent) Health(_ context.Context, from string) (agent.Health, error) {
	return agent.Health{DTN: &agent.Silence{Since: epoch, Error: "not heard, says site A to site " + from}}, nil
}

func (f *fakeAgent) ProbeTicket(_ context.Context, from, via string) (mover.Destination, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return mover.Destination{Address: "dtn-" + from + ":1", Ticket: "via " + via}, f.fail
}
