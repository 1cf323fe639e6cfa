package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// hintQueue holds the images to look at and when. Hints for the same image become one.
type hintQueue struct {
	mu   sync.Mutex
	due  map[glance.ImageID]time.Time
	wake chan struct{}
}

func newHintQueue() *hintQueue {
	return &hintQueue{due: map[glance.ImageID]time.Time{}, wake: make(chan struct{}, 1)}
}

func (q *hintQueue) add(id glance.ImageID, at time.Time) {
	q.mu.Lock()
	if old, ok := q.due[id]; !ok || at.Before(old) {
		q.due[id] = at
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes and returns what is due, and how long until the next is.
func (q *hintQueue) take(now time.Time) (due []glance.ImageID, next time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	next = time.Hour
	for id, at := range q.due {
		if at.After(now) {
			next = min(next, at.Sub(now))
			continue
		}
		due = append(due, id)
		delete(q.due, id)
	}
	slices.Sort(due)
	return due, next
}

// followHints makes the jobs of hinted images at once, and every Listing those of what Glance
// says has changed, whatever a full pass waits for.
func (a *Agent) followHints(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	listed := time.Now()
	for ctx.Err() == nil {
		if time.Since(listed) >= a.settings.Load().Listing {
			listed = time.Now()
			if err := a.listing(ctx); err != nil {
				a.warn(ctx, "listing of Glance failed", err)
			}
		}
		due, next := a.hints.take(time.Now())
		gone := map[glance.ImageID]bool{}
		for _, id := range due {
			there, err := a.look(ctx, id)
			if err != nil {
				a.warn(ctx, "hint not followed; the next listing will", err)
			} else if !there {
				gone[id] = true
			}
		}
		if len(gone) > 0 { // all at once: it reads every job
			if err := a.cancelGone(ctx, func(id glance.ImageID) bool { return !gone[id] }); err != nil {
				a.warn(ctx, "jobs of deleted images not undone; the next full pass will", err)
			}
		}
		timer.Reset(min(next, max(0, a.settings.Load().Listing-time.Since(listed))))
		select {
		case <-ctx.Done():
		case <-a.hints.wake:
		case <-timer.C:
		}
	}
}

// reconcileLoop makes jobs, every Reconcile, for all images of all sites: neither hints nor
// listings are trusted to be complete.
func (a *Agent) reconcileLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		err := a.reconcile(ctx)
		next := a.settings.Load().Reconcile
		if err != nil {
			a.warn(ctx, "full pass incomplete", err)
			next = min(next, time.Minute)
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
		case <-a.reopened:
		case <-timer.C:
		}
	}
}

func (a *Agent) warn(ctx context.Context, msg string, err error) {
	if ctx.Err() == nil {
		a.Log.Warn(msg, "site", a.Site, "err", err)
	}
}

// look asks Glance about one hinted image and makes the jobs it needs. It reports whether
// there is such an image.
func (a *Agent) look(ctx context.Context, id glance.ImageID) (bool, error) {
	img, err := a.Catalog.Image(ctx, id)
	if errors.Is(err, ErrNoImage) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, a.consider(ctx, img)
}

// listing considers what has changed since the newest image that was seen, once a full pass has
// seen all, with some overlap: updated_at is in whole seconds, and is set a moment before it can be seen.
func (a *Agent) listing(ctx context.Context) error {
	seen := a.newest.Load()
	if seen == nil {
		return nil
	}
	newest, since := *seen, *seen
	if !since.IsZero() {
		since = since.Add(-5 * time.Second)
	}
	for img, err := range a.Catalog.Images(ctx, since) {
		if err != nil {
			return err
		}
		if err := a.consider(ctx, img); err != nil {
			return err
		}
		newest = later(newest, img.UpdatedAt)
	}
	a.newest.Store(&newest)
	return nil
}

func later(x, y time.Time) time.Time {
	if y.After(x) {
		return y
	}
	return x
}

// consider makes the jobs that the rules want for an image. One that is not active
// yet is looked at again soon, and later and later while it does not get there.
func (a *Agent) consider(ctx context.Context, img glance.Image) error {
	sites := a.destinations(img)
	if len(sites) == 0 || img.Properties[glance.PropJob] != "" {
		return nil
	}
	switch img.Status {
	case glance.Active:
	case glance.Queued, glance.Saving, glance.Importing, "uploading":
		a.waitFor(img)
		return nil
	default:
		return nil
	}
	for _, site := range sites {
		if _, err := a.ensure(ctx, img, site, "", false); err != nil {
			return err
		}
	}
	return nil
}

// destinations returns the sites that the rules send the image to.
func (a *Agent) destinations(img glance.Image) []string {
	var sites []string
	for _, r := range a.settings.Load().Rules {
		if r.Match.Selects(img) {
			sites = append(sites, r.To...)
		}
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}

// waitFor has an image that is not active looked at again: after a fifth of the time
// that it is in this state. What takes long is left to the listing.
func (a *Agent) waitFor(img glance.Image) {
	now := time.Now()
	wait := max(now.Sub(img.UpdatedAt)/5, 200*time.Millisecond)
	if wait < a.settings.Load().Listing {
		a.hints.add(img.ID, now.Add(wait))
	}
}

// ensure returns the Send job for the image and site, making it where it is missing.
// reopen, at a person's wish, begins a finished one anew, and has p, unless it is empty,
// rule one that is there. One whose record cannot be read is left alone: the zero Job.
func (a *Agent) ensure(ctx context.Context, img glance.Image, site string, p mover.Priority, reopen bool) (Job, error) {
	now := time.Now().UTC()
	j := Job{Priority: cmp.Or(p, a.priority(img, site)), ID: NewJobID(Send, img.ID, img.Hash, site), Kind: Send, Peer: site, Image: img, Created: now, DeliverAs: img.ID}
	j = j.Enter(Pending, now, "")
	err := a.Store.Create(ctx, j)
	if err == nil {
		a.JobLog.Info("job", "job", j.ID, "image", img.ID, "name", img.Name, "site", site, "state", Pending, "bytes", img.Size)
		return a.Store.Get(ctx, j.ID)
	}
	if !errors.Is(err, ErrExists) {
		return j, err
	}
	old, err := a.Store.Get(ctx, j.ID)
	if errors.Is(err, ErrRecord) && !reopen {
		return Job{}, nil
	}
	if err != nil || !reopen {
		return old, err
	}
	if !old.State.Final() {
		return a.change(ctx, old, func(j Job) (Job, error) {
			j.Priority = cmp.Or(p, j.Priority)
			return j, nil
		})
	}
	old.Anew, old.Priority = true, j.Priority
	return a.reopen(ctx, old)
}

// priority is the highest of the rules that send the image to the site.
func (a *Agent) priority(img glance.Image, site string) (p mover.Priority) {
	sends := false
	for _, r := range a.settings.Load().Rules {
		if slices.Contains(r.To, site) && r.Match.Selects(img) && (!sends || r.Priority.Rank() > p.Rank()) {
			p, sends = r.Priority, true
		}
	}
	return p
}

// reopen begins a final Send job anew, with a new transfer key.
func (a *Agent) reopen(ctx context.Context, j Job) (Job, error) {
	if j.State == Verified {
		j.Offer = Grant{} // nothing of that is to be undone
	}
	j = again(j, Pending, "begun anew")
	j.Attempts, j.Mismatch, j.Stopped = 0, 0, false
	return a.Store.Update(ctx, j)
}

// reconcile compares this site with every site that a rule names and makes the jobs
// that are missing; it cancels what has lost its image, and cleans up.
func (a *Agent) reconcile(ctx context.Context) error {
	began := time.Now()
	local, err := collect(a.Catalog.Images(ctx, time.Time{}))
	if err != nil {
		return err
	}
	a.setFaults(ctx, local) // now: what is uploaded while sites are asked is not in it
	byID := index(local)
	errs := []error{a.cancelGone(ctx, func(id glance.ImageID) bool { _, ok := byID[id]; return ok })}
	wanted := map[string][]glance.Image{} // by site
	var newest time.Time
	for _, img := range local {
		newest = later(newest, img.UpdatedAt)
		if img.Status != glance.Active {
			errs = append(errs, a.consider(ctx, img))
		}
		if img.Properties[glance.PropJob] != "" {
			continue
		}
		for _, site := range a.destinations(img) {
			wanted[site] = append(wanted[site], img)
		}
	}
	a.newest.Store(&newest)
	var peers []PeerSite
	for _, p := range a.settings.Load().Peers {
		if len(wanted[p.Name]) > 0 {
			peers = append(peers, p)
		}
	}
	known := map[string]told{} // by site
	for t := range inquire(ctx, peers) {
		known[t.site] = t
		if t.err != nil {
			errs = append(errs, fmt.Errorf("inventory of site %s: %w", t.site, t.err))
			continue
		}
		for _, c := range compareImages(wanted[t.site], t.images, t.site) {
			if c.Relation != Missing && c.Relation != Conflict && !c.half {
				continue
			}
			if _, err := a.ensureMissing(ctx, byID[c.ID], t.site, c.half); err != nil {
				errs = append(errs, err)
			}
		}
	}
	offered := a.inventories(ctx, known)
	errs = append(errs, a.purge(ctx, offered), a.sweepRecords(ctx, local, offered), a.sweepOutbox(ctx), a.sweepInbox(ctx))
	err = errors.Join(errs...)
	a.Log.Debug("full pass", "site", a.Site, "images", len(local), "seconds", time.Since(began).Seconds(), "err", err)
	return err
}

// told is what a site has told of its images, or why it has not.
type told struct {
	site   string
	images []glance.Image
	err    error
}

// inquire asks peers for their images, all at once, and yields what each has told as it
// comes: one that does not answer holds up no other.
func inquire(ctx context.Context, peers []PeerSite) iter.Seq[told] {
	return func(yield func(told) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var asking sync.WaitGroup
		defer asking.Wait()
		defer cancel()
		answers := make(chan told, len(peers))
		for _, p := range peers {
			asking.Go(func() {
				images, err := collect(p.Peer.Inventory(ctx))
				answers <- told{p.Name, images, err}
			})
		}
		for range peers {
			if !yield(<-answers) {
				return
			}
		}
	}
}

// ensureMissing is ensure for an image that a peer does not have, or has half made: a job
// that was verified once begins anew where the peer has nothing, and one that ended because
// the image seemed to be gone does. One that a person cancelled or has to look at does not.
func (a *Agent) ensureMissing(ctx context.Context, img glance.Image, site string, half bool) (Job, error) {
	j, err := a.ensure(ctx, img, site, "", false)
	if err == nil && (j.State == Verified && !half || j.State == Cancelled && !j.Stopped) {
		j, err = a.reopen(ctx, j)
	}
	if errors.Is(err, ErrStale) {
		err = nil
	}
	return j, err
}

// cancelGone undoes the Send jobs, in flight or parked, whose image is not here any more.
func (a *Agent) cancelGone(ctx context.Context, here func(glance.ImageID) bool) error {
	return a.eachJob(ctx, func(j Job) error {
		if j.Kind != Send || j.State.Final() && j.State != Parked || j.State == Cancelling || here(j.Image.ID) {
			return nil
		}
		if _, err := a.Catalog.Image(ctx, j.Image.ID); !errors.Is(err, ErrNoImage) {
			return nil // it was made after the listing, or Glance does not answer
		}
		_, err := a.cancel(ctx, j, errGoneHere.Error(), false)
		if errors.Is(err, ErrBadState) {
			err = nil
		}
		return err
	})
}

// purge forgets jobs that ended longer than Keep ago. A cancelled delivery is known as
// long as its peer may offer the image again.
func (a *Agent) purge(ctx context.Context, offered inventory) error {
	keep := a.settings.Load().Keep
	return a.eachJob(ctx, func(j Job) error {
		if (j.State != Verified && j.State != Cancelled) || time.Since(j.Since()) < keep {
			return nil
		}
		if j.Kind == Receive && j.State == Cancelled && offered(j.Peer, j.Image.ID) {
			return nil
		}
		err := a.Store.Delete(ctx, j)
		if errors.Is(err, ErrStale) {
			return nil // it was begun anew
		}
		return err
	})
}

// sweepRecords deletes the empty records in Glance of cancelled deliveries that are
// forgotten, but not one of an image that a peer still has: Glance never gives its id
// again, and the next delivery can take the record over. One that is about to is left alone too.
func (a *Agent) sweepRecords(ctx context.Context, local []glance.Image, offered inventory) error {
	wanted := map[glance.ImageID]bool{}
	err := a.eachJob(ctx, func(j Job) error {
		if j.Kind == Receive && j.State != Verified && j.State != Cancelled {
			wanted[j.DeliverAs] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, img := range local {
		id := JobID(img.Properties[glance.PropJob])
		if id == "" || img.Status != glance.Queued || wanted[img.ID] {
			continue
		}
		if _, err := a.Store.Get(ctx, id); err == nil || errors.Is(err, ErrRecord) {
			continue
		} else if !errors.Is(err, ErrNoJob) {
			return err
		}
		if slices.ContainsFunc(a.settings.Load().Peers, func(p PeerSite) bool { return offered(p.Name, img.SourceID()) }) {
			continue
		}
		if now, err := a.Catalog.Image(ctx, img.ID); errors.Is(err, ErrNoImage) {
			continue
		} else if err != nil {
			return err
		} else if now.Status != glance.Queued || now.Properties[glance.PropJob] != string(id) {
			continue // it was taken over this moment
		}
		a.Log.Info("removing the empty record of a delivery that is forgotten", "image", img.ID, "job", id)
		if err := a.Catalog.Delete(ctx, img.ID); err != nil {
			return err
		}
	}
	return nil
}

// inventory tells whether a peer has an image. A peer that does not answer may have any;
// a site that is no peer any more has none.
type inventory func(site string, id glance.ImageID) bool

// inventories asks each peer that has not told once, when it is first needed.
func (a *Agent) inventories(ctx context.Context, known map[string]told) inventory {
	there := map[string]map[glance.ImageID]glance.Image{} // by site
	return func(site string, id glance.ImageID) bool {
		if _, ok := there[site]; !ok {
			t, asked := known[site]
			if p, err := a.peer(site); err == nil && !asked {
				t.images, t.err = collect(p.Peer.Inventory(ctx))
				known[site] = t
			}
			there[site] = index(t.images)
		}
		_, has := there[site][id]
		return has || known[site].err != nil
	}
}

// sweepOutbox removes staged files whose job has ended or is not known: a crash between
// the end of a job and its cleaning leaves such.
func (a *Agent) sweepOutbox(ctx context.Context) error {
	names, err := a.Stager.Staged(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if ended, err := a.ended(ctx, name, time.Time{}); err != nil {
			return err
		} else if !ended {
			continue
		}
		a.Log.Info("removing a staged file without a job", "file", name)
		if err := a.Stager.Unstage(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// sweepInbox is the same for arrivals, which hold space that others are refused for.
func (a *Agent) sweepInbox(ctx context.Context) error {
	arrivals, err := a.Landing.Arrivals(ctx)
	if err != nil {
		return err
	}
	for _, arr := range arrivals {
		if ended, err := a.ended(ctx, arr.File.Name, arr.Since); err != nil {
			return err
		} else if !ended {
			continue
		}
		a.Log.Info("removing an arrival without a job", "file", arr.File.Name)
		if err := a.Landing.Drop(ctx, arr.File.Name); err != nil {
			return err
		}
	}
	return nil
}

// ended reports whether nobody needs a file of the outbox or inbox any more: its job,
// whose id is its name, is over, or is not known and the file is not new. The file of a
// job whose record cannot be read is needed.
func (a *Agent) ended(ctx context.Context, name string, since time.Time) (bool, error) {
	j, err := a.Store.Get(ctx, JobID(path.Base(name)))
	switch {
	case errors.Is(err, ErrNoJob):
		return time.Since(since) > sweepAge, nil
	case errors.Is(err, ErrRecord):
		return false, nil
	}
	return j.State == Verified || j.State == Cancelled, err
}

func (a *Agent) setFaults(ctx context.Context, local []glance.Image) {
	var faults []StoreFault
	if a.StoreFaults != nil {
		faults = a.StoreFaults(local)
	}
	stuck := a.settings.Load().Stuck
	for _, i := range local {
		note, job := "", JobID(i.Properties[glance.PropJob])
		switch {
		case i.Status == glance.Queued && job == "":
			note = "no data was ever uploaded; upload it or delete the image"
		case job != "" && i.Status != glance.Queued: // deleting it would burn its id
			note = "it is hidden, and its delivery does not go on; set deliver.on_deleted_id: new-id here, then push it again from its source"
		case i.Status == glance.Saving, i.Status == glance.Importing:
			note = "if nobody is uploading it, glance-api died during the upload; delete the image"
		}
		if age := time.Since(i.UpdatedAt); note != "" && age > stuck && (job == "" || a.abandoned(ctx, job)) {
			faults = append(faults, StoreFault{ID: i.ID, Fault: "stuck", Note: fmt.Sprintf("%s since %s: %s", i.Status, i.UpdatedAt.UTC().Format(time.RFC3339), note)})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range faults {
		if !slices.Contains(a.faults, f) {
			a.Log.Warn("datadir and Glance disagree", "image", f.ID, "file", f.Path, "fault", f.Fault, "next", f.Note)
		}
	}
	a.faults = faults
}

// abandoned reports whether a delivery does not go on, and nobody is told of its image by it.
func (a *Agent) abandoned(ctx context.Context, id JobID) bool {
	j, err := a.Store.Get(ctx, id)
	return errors.Is(err, ErrNoJob) || err == nil && j.State == Cancelled
}

func index(images []glance.Image) map[glance.ImageID]glance.Image {
	m := make(map[glance.ImageID]glance.Image, len(images))
	for _, i := range images {
		m[i.ID] = i
	}
	return m
}

func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var out []T
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
