package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Push makes, or begins anew, the jobs that send an image, named by its id or by its
// unique name, to sites. One that is verified stays so where its site says that it has the
// image. An empty priority is that of the rule which sends it there, or normal; another one
// rules the job from now on, and its transfer with it. ErrNoImage, ErrAmbiguous, ErrNoPeer;
// ErrBadState for one that is not active, or half made.
func (a *Agent) Push(ctx context.Context, image string, to []string, p mover.Priority) ([]Job, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if len(to) == 0 {
		return nil, fmt.Errorf("push image %s: no site named: %w", image, ErrNoPeer)
	}
	for _, site := range to {
		if _, err := a.named(site); err != nil {
			return nil, err
		}
	}
	img, err := a.find(ctx, image)
	if err != nil {
		return nil, err
	}
	if img.Status != glance.Active {
		return nil, fmt.Errorf("image %s is %s at site %s; only an active image can be sent: %w", img.Label(), img.Status, a.Site, ErrBadState)
	}
	if img.Properties[glance.PropJob] != "" {
		return nil, fmt.Errorf("image %s is half made at site %s; it can be sent on once its delivery there is done: %w", img.Label(), a.Site, ErrBadState)
	}
	jobs, done, errs := make([]Job, len(to)), make([]bool, len(to)), make([]error, len(to))
	var wg sync.WaitGroup
	for i, site := range to {
		wg.Go(func() { jobs[i], done[i], errs[i] = a.sent(ctx, img, site) })
	}
	wg.Wait()
	for i, site := range to {
		if errs[i] == nil && !done[i] {
			jobs[i], errs[i] = a.ensure(ctx, img, site, p, true)
		}
		if errs[i] != nil {
			return jobs[:i], errs[i]
		}
	}
	return jobs, nil
}

// sent returns the verified job that has brought the image to the site, if there is one and the
// site has the image still.
func (a *Agent) sent(ctx context.Context, img glance.Image, site string) (Job, bool, error) {
	j, err := a.Store.Get(ctx, NewJobID(Send, img.ID, img.Hash, site))
	if errors.Is(err, ErrNoJob) {
		return j, false, nil
	}
	if err != nil || j.State != Verified {
		return j, false, err
	}
	p, err := a.peer(site)
	if err != nil {
		return j, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerSoon)
	defer cancel()
	g, err := p.Peer.Offer(ctx, Offer{Image: img, Anew: true, Via: p.Via.Site, Priority: j.Priority})
	return j, err == nil && g.Verdict == Have, nil // the job, begun anew, tells what else it is
}

// Pull asks another site to send us an image. It returns that site's Send job.
func (a *Agent) Pull(ctx context.Context, image, from string) (Job, error) {
	p, err := a.named(from)
	if err != nil {
		return Job{}, err
	}
	return p.Peer.Request(ctx, image)
}

// Request is Pull, seen from the site that has the image.
func (a *Agent) Request(ctx context.Context, from, image string) (Job, error) {
	p, err := a.asker(from)
	if err != nil {
		return Job{}, err
	}
	if !p.MayPull {
		return Job{}, fmt.Errorf("site %s does not let site %s pull images: %w; set may_pull: true for peer %s in the configuration of site %s", a.Site, from, ErrForbidden, from, a.Site)
	}
	jobs, err := a.Push(ctx, image, []string{from}, "")
	if err != nil {
		return Job{}, err
	}
	return jobs[0], nil
}

// Sending returns our job that sends an image to the site that asks; ErrNoJob.
func (a *Agent) Sending(ctx context.Context, from string, id JobID) (Job, error) {
	j, err := a.Store.Get(ctx, id)
	if err == nil && (j.Kind != Send || j.Peer != from) {
		err = ErrNoJob
	}
	if err != nil {
		return Job{}, err
	}
	return j, nil
}

// Pulled returns the other site's job that Pull has begun; ErrNoPeer, ErrNoJob.
func (a *Agent) Pulled(ctx context.Context, from string, id JobID) (Job, error) {
	p, err := a.named(from)
	if err != nil {
		return Job{}, err
	}
	return p.Peer.Sending(ctx, id)
}

// find returns the image with this id, or the one with this name.
func (a *Agent) find(ctx context.Context, image string) (glance.Image, error) {
	if id, err := glance.ParseImageID(image); err == nil {
		img, err := a.Catalog.Image(ctx, id)
		if errors.Is(err, ErrNoImage) {
			err = fmt.Errorf("image %s at site %s: %w", id, a.Site, ErrNoImage)
		}
		return img, err
	}
	var found []glance.Image
	for img, err := range a.Catalog.Images(ctx, time.Time{}) {
		if err != nil {
			return img, err
		}
		if img.Name == image {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return glance.Image{}, fmt.Errorf("image %q at site %s: %w", image, a.Site, ErrNoImage)
	case 1:
		return found[0], nil
	}
	return glance.Image{}, fmt.Errorf("image %q at site %s, %d of them: %w", image, a.Site, len(found), ErrAmbiguous)
}

// Replicate compares and sends what is missing or half made, with a priority as in Push. With
// dryRun it only tells what it would send. A site that is Unknown is sent nothing.
func (a *Agent) Replicate(ctx context.Context, m Match, to []string, p mover.Priority, dryRun bool) ([]Comparison, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if len(to) == 0 {
		return nil, fmt.Errorf("replicate: no site named: %w", ErrNoPeer)
	}
	return a.compare(ctx, to, m, func(rows []Comparison) error {
		for i, c := range rows {
			if c.Relation != Missing && !c.half {
				continue
			}
			rows[i].Planned = true
			if dryRun {
				continue
			}
			img, err := a.Catalog.Image(ctx, c.ID)
			if errors.Is(err, ErrNoImage) {
				continue
			}
			if err != nil {
				return err
			}
			j, err := a.ensure(ctx, img, c.Peer, p, true)
			if err != nil {
				return err
			}
			rows[i].Job = j.ID
		}
		return nil
	})
}

// Inventory yields this site's images to a peer that compares; ErrForbidden to others.
func (a *Agent) Inventory(ctx context.Context, from string) iter.Seq2[glance.Image, error] {
	if _, err := a.asker(from); err != nil {
		return func(yield func(glance.Image, error) bool) { yield(glance.Image{}, err) }
	}
	return a.Catalog.Images(ctx, time.Time{})
}

// Health tells a peer what is wrong at this site; ErrForbidden to others.
func (a *Agent) Health(_ context.Context, from string) (Health, error) {
	if _, err := a.asker(from); err != nil {
		return Health{}, err
	}
	return Health{DTN: a.inbox.silence()}, nil
}

// Jobs yields every job.
func (a *Agent) Jobs(ctx context.Context) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		for j, err := range a.Store.All(ctx) {
			if !yield(a.told(j), err) {
				return
			}
		}
	}
}

// Job returns one job; ErrNoJob.
func (a *Agent) Job(ctx context.Context, id JobID) (Job, error) {
	j, err := a.Store.Get(ctx, id)
	return a.told(j), err
}

// Watch yields what Store.Watch does.
func (a *Agent) Watch(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for ev, err := range a.Store.Watch(ctx) {
			if ev.Job != nil {
				j := *ev.Job
				j.Site, ev.Job = a.Site, &j
			}
			if !yield(ev, err) {
				return
			}
		}
	}
}

// Cancel undoes a job at both sites. ErrNoJob, ErrBadState when it is verified.
func (a *Agent) Cancel(ctx context.Context, id JobID) (Job, error) {
	j, err := a.Store.Get(ctx, id)
	if err != nil {
		return j, err
	}
	return a.cancel(ctx, j, "cancelled by an operator at site "+a.Site, true)
}

// cancel begins to undo a job; byPerson: one of this site, who means it.
func (a *Agent) cancel(ctx context.Context, j Job, why string, byPerson bool) (Job, error) {
	return a.change(ctx, j, func(j Job) (Job, error) {
		switch {
		case j.State == Verified, j.Kind == Receive && j.State == Delivered:
			return j, fmt.Errorf("job %s: the image is at its destination already: %w", j.ID, ErrBadState)
		case j.State == Cancelling || j.State == Cancelled:
			j.Stopped = j.Stopped || byPerson
			return j, nil
		}
		j = cancelling(j, why)
		j.Stopped = byPerson
		return j, nil
	})
}

// Retry begins a parked or cancelled job anew, and one that waits for its next attempt at once.
func (a *Agent) Retry(ctx context.Context, id JobID) (Job, error) {
	j, err := a.Store.Get(ctx, id)
	if err != nil {
		return j, err
	}
	if j.State == Parked || j.State == Cancelled {
		if j.Kind == Receive {
			return j, fmt.Errorf("job %s receives an image: retry the job that sends it, at site %s: %w", j.ID, j.Peer, ErrBadState)
		}
		j.Anew = true
		return a.reopen(ctx, j)
	}
	return a.change(ctx, j, func(j Job) (Job, error) {
		if j.NotBefore.IsZero() {
			return j, fmt.Errorf("job %s is %s and not waiting: %w", j.ID, j.State, ErrBadState)
		}
		j.NotBefore = time.Time{}
		return j, nil
	})
}

// change applies f to the newest version of a job; a worker may be changing it too.
func (a *Agent) change(ctx context.Context, j Job, f func(Job) (Job, error)) (Job, error) {
	for {
		next, err := f(j)
		if err != nil || next.State == j.State && next.Stopped == j.Stopped && next.Priority == j.Priority && next.NotBefore.Equal(j.NotBefore) {
			return next, err
		}
		stored, err := a.Store.Update(ctx, next)
		if !errors.Is(err, ErrStale) {
			return stored, err
		}
		if j, err = a.Store.Get(ctx, j.ID); err != nil {
			return j, err
		}
	}
}

// Overview tells how every image here stands at every peer. A peer that does not
// answer within a few seconds is named as such.
func (a *Agent) Overview(ctx context.Context) (Overview, error) {
	o := Overview{ // a list without entries is [] in JSON, not null
		Site: a.Site, At: time.Now().UTC(), Jobs: map[State]int{}, Peers: []PeerState{}, Images: []ImageState{}, Store: []StoreFault{}, Parked: []Incoming{},
	}
	local, err := collect(a.Catalog.Images(ctx, time.Time{}))
	if err != nil {
		return o, err
	}
	sends := map[glance.ImageID]map[string]Job{}
	if err := a.eachJob(ctx, func(j Job) error {
		j = a.told(j)
		o.Jobs[j.State]++
		switch {
		case j.Kind == Send:
			if sends[j.Image.ID] == nil {
				sends[j.Image.ID] = map[string]Job{}
			}
			sends[j.Image.ID][j.Peer] = j
		case j.State == Parked:
			o.Parked = append(o.Parked, Incoming{Job: j.ID, Peer: j.Peer, Image: j.Image.ID, Name: j.Image.Name, Reason: j.Reason})
		}
		return nil
	}); err != nil {
		return o, err
	}
	for _, i := range local {
		st := ImageState{ID: i.ID, Name: i.Name, Status: i.Status, Size: i.Size, Sites: map[string]Standing{}}
		if i.Status != glance.Active {
			st.Note = fmt.Sprintf("%s for %s", i.Status, mover.Span(time.Since(i.UpdatedAt)))
		}
		if left := a.leftHere(ctx, i); left != "" {
			st.Note += ": " + left
		}
		o.Images = append(o.Images, st)
	}
	at := map[glance.ImageID]int{}
	for n, i := range o.Images {
		at[i.ID] = n
	}
	for p, relations := range a.relations(ctx, local) {
		o.Peers = append(o.Peers, p)
		for id, n := range at {
			s := Standing{Relation: relations[id].Relation}
			if j, ok := sends[id][p.Name]; ok {
				s.State, s.Reason, s.Paused, s.Job, s.Legs = j.State, j.Reason, j.Paused, j.ID, j.Legs()
				s.Percent, s.Route = a.percent(j.ID), j.Route.Why
			}
			s.Reason = cmp.Or(a.leftThere(ctx, relations[id], local[n]), s.Reason)
			o.Images[n].Sites[p.Name] = s
		}
	}
	a.mu.Lock()
	o.Store = append(o.Store, a.faults...)
	a.mu.Unlock()
	o.Checks = a.Checks(ctx)
	return o, nil
}

// relations asks every peer at once and yields how the local images stand there.
func (a *Agent) relations(ctx context.Context, local []glance.Image) iter.Seq2[PeerState, map[glance.ImageID]Comparison] {
	ctx, cancel := context.WithTimeout(ctx, answerSoon)
	peers := a.settings.Load().Peers
	remotes, errs, health := make([][]glance.Image, len(peers)), make([]error, len(peers)), make([]Health, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() { remotes[i], errs[i] = collect(p.Peer.Inventory(ctx)) })
		wg.Go(func() { health[i], _ = p.Peer.Health(ctx) }) // an older agent does not tell
	}
	wg.Wait()
	cancel()
	return func(yield func(PeerState, map[glance.ImageID]Comparison) bool) {
		for i, p := range peers {
			s := PeerState{Name: p.Name, OK: errs[i] == nil, Health: health[i]}
			relations := map[glance.ImageID]Comparison{}
			if errs[i] != nil {
				s.Error = errs[i].Error()
			} else {
				for _, c := range compareImages(local, remotes[i], p.Name) {
					relations[c.ID] = c
				}
			}
			if !yield(s, relations) {
				return
			}
		}
	}
}

// asyncNote is why an async export is no fault.
const asyncNote = "the export is async: its server acknowledges what its disk has not got. Staged copies are proven on the disk; a crash of the DTN can lose what others write there"

// Checks tells whether what the agent needs at its own site answers.
func (a *Agent) Checks(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, answerSoon)
	defer cancel()
	probes := []struct {
		name  string
		probe func(c *Check) error
	}{
		{"glance", func(*Check) error {
			_, err := a.Catalog.Image(ctx, "00000000-0000-4000-8000-000000000000")
			if errors.Is(err, ErrNoImage) {
				err = nil
			}
			return err
		}},
		{"dtn", func(c *Check) error {
			can, err := a.Landing.Capabilities(ctx)
			var notes []string
			if can.Ack == mover.AckAsync {
				notes = append(notes, asyncNote)
			}
			for _, b := range can.Callbacks {
				if !b.Connected {
					notes = append(notes, b.Trouble())
				}
			}
			c.Note = strings.Join(notes, "; ")
			return err
		}},
		{"export", func(*Check) error { return a.Stager.Check(ctx) }},
		{"store", func(*Check) error {
			_, err := a.Store.Get(ctx, "none")
			if errors.Is(err, ErrNoJob) {
				err = nil
			}
			return err
		}},
	}
	checks := make([]Check, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		wg.Go(func() {
			c := &checks[i]
			c.Name = p.name
			if err := p.probe(c); err != nil {
				c.Error = err.Error()
			}
			c.OK = c.Error == ""
		})
	}
	wg.Wait()
	return checks
}

func (a *Agent) setProgress(p Progress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.progress[p.Job] = p
}

// waits notes what a job's leg waits for; the zero one: nothing.
func (a *Agent) waits(id JobID, w legWaits) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w == (legWaits{}) {
		delete(a.waitsFor, id)
	} else {
		a.waitsFor[id] = w
	}
}

func (a *Agent) waiting(id JobID) legWaits {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waitsFor[id]
}

// lastWait says what a job's transfer, or its peer's job, waited for when its worker, here or
// in another agent of the site, last told.
func (a *Agent) lastWait(j Job) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch p := a.progress[j.ID]; {
	case p.State != j.State || p.Waiting == "":
		return ""
	case p.State == Staged:
		return "the transfer waits: " + p.Waiting
	default:
		return p.Waiting
	}
}

func (a *Agent) receives(j Job) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.receiving[j.ID] = j.Peer
}

// over forgets what is kept of a job that is not final.
func (a *Agent) over(id JobID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.progress, id)
	delete(a.receiving, id)
}

// crowded reports whether so many images of the peer are on their way that it has to wait.
func (a *Agent) crowded(peer string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, p := range a.receiving {
		if p == peer {
			n++
		}
	}
	return n >= receiveMax
}

// uploads reports whether a job's upload has advanced of late: it has a place, and what its
// worker records is not to be overtaken.
func (a *Agent) uploads(id JobID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.progress[id].At) < pollSafe
}

func (a *Agent) percent(id JobID) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.progress[id]; p.Total > 0 {
		return int(100 * p.Moved / p.Total)
	}
	return 0
}
