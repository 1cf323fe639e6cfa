package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Offer answers another site that wants to send an image. Accepting makes, or finds
// again, the Receive job that will deliver it. It may be repeated: each answer
// has a new ticket for the same file.
func (a *Agent) Offer(ctx context.Context, from string, o Offer) (Grant, error) {
	peer, err := a.asker(from)
	if err != nil {
		return Grant{}, err
	}
	img := o.Image
	imageID, err := glance.ParseImageID(string(img.ID))
	if err != nil {
		return refuse("%v", err), nil
	}
	img.ID = imageID
	if err := img.Hash.Validate(); err != nil {
		return refuse("os_hash_value of image %s: %v", img.ID, err), nil
	}
	if img.Size < 0 || img.Status != glance.Active {
		return refuse("image %s is %s with %d bytes: only an active image can be offered", img.ID, img.Status, img.Size), nil
	}
	id := NewJobID(Receive, img.ID, img.Hash, from)
	j, err := a.Store.Get(ctx, id)
	known := err == nil
	if err != nil && !errors.Is(err, ErrNoJob) {
		return Grant{}, err
	}
	switch {
	case known && j.State == Cancelling:
		return wait("its earlier job for this image is being cancelled"), nil
	case known && j.State == Cancelled && j.Stopped && !o.Anew:
		return refuse("an operator cancelled it there; push it again, or retry this job, to have it all the same"), nil
	case !known && a.crowded(from):
		return wait("%d images of site %s are on their way to it", receiveMax, from), nil
	}
	here, no, err := a.standing(ctx, img, j)
	if err != nil {
		return Grant{}, err
	}
	if no.Verdict != "" {
		return no, nil
	}
	if here.present != "" && (!known || j.State.Final()) {
		return Grant{Verdict: Have, ImageID: here.present}, nil
	}
	if algo := a.hashes(); algo != "" && algo != img.Hash.Algo && (!known || j.State.Final()) {
		return refuse("%v", a.otherAlgorithm(algo, from, img.Hash.Algo)), nil
	}
	file := mover.File{Name: Job{ID: id, Kind: Receive}.FileName(), Size: img.Size, Digest: img.Hash}
	bytes := here.elsewhere == "" // have to come
	if known && !j.State.Final() {
		bytes = j.LocalCopy == "" && j.State != Delivered
	}
	if bytes && o.Via != "" && !slices.Contains(peer.Relays, o.Via) {
		return refuse("its agent takes no image of site %s by way of site %s: set peers: relays there, or leave out peers: via at site %s", from, o.Via, from), nil
	}
	var address string
	if shut := a.gate.closed(mover.Inbox); shut != nil && bytes && (!known || j.State.Final()) {
		return wait("%v", shut), nil
	}
	if bytes {
		if address, bytes, no = a.room(ctx, file); no.Verdict != "" {
			return no, nil
		}
	}
	if bytes && (!known || j.State.Final()) {
		if err := a.quota(ctx, cmp.Or(j.DeliverAs, img.ID)); errors.Is(err, ErrQuota) {
			return wait("quota: %v", err), nil
		} else if err != nil {
			return Grant{}, err
		}
	}
	if j, err = a.expect(ctx, j, Job{ID: id, Kind: Receive, Peer: from, Image: img, Priority: o.Priority, LocalCopy: here.elsewhere}); err != nil {
		return Grant{}, err
	}
	if bytes && j.State == Expected {
		if j, no, err = a.prepare(ctx, j); err != nil || no.Verdict != "" {
			return no, err
		}
	}
	if j.State.Final() || j.State == Cancelling {
		return wait("its job for this image has changed this moment"), nil
	}
	g := Grant{Verdict: Accept, Delivery: id, ImageID: j.DeliverAs}
	if !bytes {
		return g, nil
	}
	a.hashesAnew()
	g.Address, g.Name = address, file.Name
	t := mover.Ticket{ID: randomID(), Site: a.Site, From: from, File: file, Expires: time.Now().Add(ticketLife)}
	if o.Via != "" {
		t.Via, t.Address = o.Via, address
	}
	g.Ticket, err = a.Signer.Sign(t)
	if err != nil {
		return Grant{}, fmt.Errorf("sign the ticket: %w", err)
	}
	return g, nil
}

// room asks our DTN where to send a file, and whether it has to be sent at all: it may
// have come in an earlier round. no is the answer when there is no room.
func (a *Agent) room(ctx context.Context, f mover.File) (address string, send bool, no Grant) {
	c, err := a.Landing.Capabilities(ctx)
	if err != nil {
		return "", false, wait("%v", err)
	}
	arr, err := a.Landing.Arrival(ctx, f.Name)
	switch {
	case err == nil && arr.State == mover.Arrived:
		return c.Address, false, no
	case errors.Is(err, mover.ErrNoArrival) && c.Free < f.Size:
		return "", false, wait("no space: the image needs %d bytes on the export of site %s, %d are free", f.Size, a.Site, c.Free)
	}
	return c.Address, true, no
}

// quota returns ErrQuota when Glance would refuse an image with this id.
func (a *Agent) quota(ctx context.Context, id glance.ImageID) error {
	_, err := a.Catalog.Image(ctx, id)
	if err != nil && !errors.Is(err, ErrNoImage) {
		return err
	}
	return a.Catalog.Room(ctx, err == nil)
}

// expect stores a Receive job in its first state: a new one, or the final one of the
// same id anew. One that is under way it leaves as it is, but for the priority that it may wait
// with, and knows that its sender lives.
func (a *Agent) expect(ctx context.Context, old, j Job) (Job, error) {
	now := time.Now().UTC()
	switch {
	case old.ID == "":
		j.Created, j.DeliverAs = now, j.Image.ID
		if err := a.Store.Create(ctx, j.Enter(Expected, now, "")); err != nil && !errors.Is(err, ErrExists) {
			return j, err
		}
		return a.Store.Get(ctx, j.ID)
	case old.State.Final():
		j.Created, j.History, j.Rev = old.Created, old.History, old.Rev
		j.DeliverAs, j.Round, j.Avoid = old.DeliverAs, old.Round, old.Avoid
		return a.Store.Update(ctx, j.Enter(Expected, now, "offered again"))
	case old.State == Expected:
		old.Updated, old.Priority = now, j.Priority
		return a.still(ctx, old)
	case old.State == Arriving && !old.Seen.At.IsZero():
		old.Seen.At, old.Priority = now, j.Priority
		return a.still(ctx, old)
	case old.State == Arriving && old.Priority.Rank() != j.Priority.Rank() && (old.NotBefore.After(now) || !a.uploads(old.ID)):
		old.Priority = j.Priority
		return a.still(ctx, old)
	}
	return old, nil
}

// still stores that a job's image is on its way, unless the job has gone on meanwhile.
func (a *Agent) still(ctx context.Context, j Job) (Job, error) {
	stored, err := a.Store.Update(ctx, j)
	if errors.Is(err, ErrStale) {
		return a.Store.Get(ctx, j.ID)
	}
	return stored, err
}

// prepare makes the image's empty record before a byte of it comes, so that what Glance
// refuses is refused in time. no is the answer then, and the job is parked. What may
// pass, the delivery deals with.
func (a *Agent) prepare(ctx context.Context, j Job) (_ Job, no Grant, err error) {
	for {
		_, next, err := a.shell(ctx, j)
		if failure.IsPermanent(err) {
			no = refuse("%v", err)
			next = a.settle(j, next, err)
		} else if err != nil || next.DeliverAs == j.DeliverAs {
			return j, no, nil
		}
		stored, err := a.Store.Update(ctx, next)
		if errors.Is(err, ErrStale) { // its worker was faster, and finds the same
			stored, err = a.Store.Get(ctx, j.ID)
			return stored, Grant{}, err
		}
		if err != nil {
			return j, Grant{}, err
		}
		a.logChange(j, stored)
		if j = stored; no.Verdict != "" {
			return j, no, nil
		}
	}
}

// presence says where an offered image's content is at this site already.
type presence struct {
	present   glance.ImageID // this very image, perhaps under another id
	elsewhere glance.ImageID // an image with the same bytes that they can be taken from
}

// standing looks the offered image up in this site's Glance; j is the Receive job for it,
// if there is one. no is the answer when it cannot be taken.
func (a *Agent) standing(ctx context.Context, img glance.Image, j Job) (p presence, no Grant, err error) {
	mine, err := a.Catalog.Image(ctx, img.ID)
	if err != nil && !errors.Is(err, ErrNoImage) {
		return p, no, err
	}
	if err == nil {
		maker, err := a.maker(ctx, mine)
		same := mine.Status == glance.Active && mine.SameContent(img)
		switch {
		case err != nil:
			return p, no, err
		case maker == makerOther && same:
			p.present = mine.ID
			return p, no, nil
		case maker == makerOther && (mine.Status == glance.Active || mine.Status == glance.Deactivated):
			return p, refuse("conflict: image %s exists at site %s with other content (%s %s, offered %s); leave it out of the rules, or upload the offered one anew: it gets a new id; or set deliver.on_deleted_id: new-id at site %s, delete it there, then retry", img.ID, a.Site, mine.Status, mine.Hash.Short(), img.Hash.Short(), a.Site), nil
		case maker == makerOther:
			return p, refuse("conflict: image %s exists at site %s, is %s, and was not made by glance-dtn; if nobody is uploading it, set deliver.on_deleted_id: new-id at site %s, delete it there, then retry", img.ID, a.Site, mine.Status, a.Site), nil
		case same:
			p.elsewhere = mine.ID // all but finished: it was parked or cancelled in its last step
			return p, no, nil
		case maker == makerBusy && mine.Properties[glance.PropJob] != string(j.ID):
			return p, wait("image %s is on its way to site %s from another site", img.ID, a.Site), nil
		}
	}
	same, err := a.Catalog.Holding(ctx, img)
	if err != nil {
		return p, no, err
	}
	for _, s := range same {
		switch {
		case s.Properties[glance.PropJob] != "": // not finished
		case s.SourceID() == img.SourceID() || s.ID == img.SourceID():
			p.present = s.ID
			return p, no, nil
		case s.ID != j.Avoid:
			p.elsewhere = s.ID
		}
	}
	return p, no, nil
}

func refuse(format string, args ...any) Grant {
	return Grant{Verdict: Refuse, Reason: fmt.Sprintf(format, args...)}
}

func wait(format string, args ...any) Grant {
	return Grant{Verdict: Wait, Reason: fmt.Sprintf(format, args...)}
}

// Who made an image that is in the way.
type maker int

const (
	makerOther maker = iota // not we
	makerBusy               // one of our jobs, which goes on
	makerEnded              // one of our jobs that will not finish it: the next may
)

// maker tells whose half-made image this is.
func (a *Agent) maker(ctx context.Context, img glance.Image) (maker, error) {
	id := JobID(img.Properties[glance.PropJob])
	if id == "" {
		return makerOther, nil
	}
	j, err := a.Store.Get(ctx, id)
	switch {
	case errors.Is(err, ErrNoJob), err == nil && j.State.Final():
		return makerEnded, nil
	case err != nil:
		return makerOther, err
	}
	return makerBusy, nil
}

// awaitArrival waits for the first bytes. Expected → Arriving.
func (a *Agent) awaitArrival(ctx context.Context, j Job, _ func(int64, int64)) (Job, error) {
	if j.LocalCopy != "" {
		return j.Enter(Arriving, time.Now().UTC(), "content is here as image "+string(j.LocalCopy)), nil
	}
	for sight := a.sight(j.FileName(), pollMax); ; {
		_, err := sight.next(ctx)
		if err == nil {
			j.Seen = Seen{}
			return j.Enter(Arriving, time.Now().UTC(), ""), nil
		}
		if !errors.Is(err, mover.ErrNoArrival) {
			return j, fmt.Errorf("ask the DTN of site %s: %w", a.Site, err)
		}
		if time.Since(j.Updated) > silentMax {
			return cancelling(j, fmt.Sprintf("site %s never sent it", j.Peer)), nil
		}
	}
}

// deliver makes the local copy, the DTN's inbox → Glance, while the file is still
// arriving. Arriving → Delivered. Until the whole content is proven Glance does
// not get the last bytes, so nothing wrong becomes active.
func (a *Agent) deliver(ctx context.Context, j Job, report func(int64, int64)) (Job, error) {
	if j, err := a.alive(ctx, j); err != nil || j.State != Arriving {
		return j, err
	}
	img, j, err := a.shell(ctx, j)
	if err != nil || img.ID == "" {
		return j, err
	}
	how := ""
	if img.Status != glance.Active {
		how, j.Waited, err = a.upload(ctx, j, img.ID, report)
		if j, err = a.uploaded(ctx, j, err); err != nil {
			return j, err
		}
		if img, err = a.Catalog.Image(ctx, j.DeliverAs); err != nil {
			return j, fmt.Errorf("read image %s back: %w", j.DeliverAs, err)
		}
		if img.Status != glance.Active {
			return j, fmt.Errorf("image %s is %s after its upload", img.ID, img.Status)
		}
		a.hashedBy(img.Hash.Algo)
	}
	switch {
	case img.SameContent(j.Image):
	case img.Size == j.Image.Size && img.Hash.Algo != j.Image.Hash.Algo:
		return j, failure.Permanently(a.hashedOtherwise(j, img))
	default:
		err := failure.Permanently(fmt.Errorf("Glance of site %s computed %s and %d bytes for image %s, want %s and %d; the image was hidden and is removed: check that host's memory and disk", a.Site, img.Hash, img.Size, img.ID, j.Image.Hash, j.Image.Size))
		return j, errors.Join(err, a.Catalog.Delete(ctx, img.ID))
	}
	return j.Enter(Delivered, time.Now().UTC(), how), nil
}

// hashing is by which algorithm Glance has hashed an image, and since when that counts.
type hashing struct {
	algo string
	at   time.Time
}

// hashedBy notes by which algorithm Glance has hashed an image that was uploaded to it now;
// empty: what was noted is forgotten.
func (a *Agent) hashedBy(algo string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hashing = hashing{algo, time.Now()}
}

// hashes returns what hashedBy noted last; empty: nothing, or it counts no more.
func (a *Agent) hashes() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.hashing.at) >= hashedFor {
		return ""
	}
	return a.hashing.algo
}

// hashesAnew has what counts no more count again, until the image whose bytes come now tells
// by which algorithm Glance hashes.
func (a *Agent) hashesAnew() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.hashing.at) >= hashedFor {
		a.hashing.at = time.Now()
	}
}

// otherAlgorithm says that Glance here does not hash as an image of a peer is hashed, by whose
// hash alone it could be told that both have the same.
func (a *Agent) otherAlgorithm(here, peer, there string) error {
	return fmt.Errorf("Glance of site %s hashes with %s, and site %s has the image hashed with %s, so nobody can tell whether both have the same: set hashing_algorithm = %s in glance-api.conf of site %s, which is taken up within an hour, then retry; Glance hashes no image twice, so another setting at site %s mends only what is uploaded anew there", a.Site, cmp.Or(here, "no algorithm"), peer, there, there, a.Site, peer)
}

// hashedOtherwise is otherAlgorithm for an image that Glance here has hashed so. It is not
// deleted, which would burn its id, unless a person allows another one.
func (a *Agent) hashedOtherwise(j Job, img glance.Image) error {
	return fmt.Errorf("%w; image %s stays at site %s, hidden, with the hash that it has: set deliver.on_deleted_id: new-id there, or delete the image and purge its row there (glance-manage db purge_images_table), before you retry", a.otherAlgorithm(img.Hash.Algo, j.Peer, j.Image.Hash.Algo), img.ID, a.Site)
}

// alive lets a delivery go on. One that has failed before waits for the whole file first,
// without holding a place: a broken path must not keep Glance busy with uploads that
// never end. It is given up when the file neither advances nor is offered for long.
func (a *Agent) alive(ctx context.Context, j Job) (Job, error) {
	if j.LocalCopy != "" || j.Attempts == 0 {
		return j, nil
	}
	arr, err := a.Landing.Arrival(ctx, j.FileName())
	if errors.Is(err, mover.ErrNoArrival) {
		return j.Enter(Expected, time.Now().UTC(), "the DTN has not got the file any more"), nil
	}
	if err != nil {
		return j, fmt.Errorf("ask the DTN of site %s: %w", a.Site, err)
	}
	if arr.State == mover.Arrived {
		return j, nil
	}
	now := time.Now().UTC()
	if arr.Moved != j.Seen.Moved || j.Seen.At.IsZero() {
		j.Seen = Seen{arr.Moved, now}
	}
	if now.Sub(j.Seen.At) > silentMax {
		return cancelling(j, fmt.Sprintf("site %s stopped sending it at %d of %d bytes", j.Peer, arr.Moved, j.Image.Size)), nil
	}
	return j, failure.After(pollMax, fmt.Errorf("waiting for the whole file of image %s", j.Image.ID))
}

// uploaded sorts out an upload's error.
func (a *Agent) uploaded(ctx context.Context, j Job, err error) (Job, error) {
	_, mismatch := errors.AsType[*digest.MismatchError](err)
	now := time.Now().UTC()
	switch {
	case err == nil:
		return j, nil
	case errors.Is(err, ErrQuota):
		err = fmt.Errorf("image %s into Glance of site %s: %w", j.Image.ID, a.Site, err)
		if j.Attempts+1 >= fullMax {
			return j, failure.Permanently(fmt.Errorf("%w; free space in its store or raise the quota, then retry", err))
		}
		return j, err
	case j.LocalCopy != "" && (mismatch || errors.Is(err, ErrNoImage) || errors.Is(err, glance.ErrNoData) || j.Attempts+1 >= mismatchMax):
		err = fmt.Errorf("image %s of site %s should have the same content and cannot be read whole: %w; asking site %s for the bytes", j.LocalCopy, a.Site, err, j.Peer)
		j.LocalCopy, j.Avoid = "", j.LocalCopy
		return j.Enter(Expected, now, err.Error()), err
	case errors.Is(err, mover.ErrNoArrival):
		return j.Enter(Expected, now, "the DTN dropped the file"), fmt.Errorf("image %s: the file was dropped while it arrived; waiting for it to be sent again", j.Image.ID)
	case mismatch:
		// What the DTN proved is not what we read: it has to come anew.
		j.Mismatch++
		if derr := a.Landing.Drop(ctx, j.FileName()); derr != nil {
			return j, errors.Join(err, derr)
		}
		if j.Mismatch >= mismatchMax {
			return j, failure.Permanently(fmt.Errorf("image %s: %w; this happened %d times: check the NFS mount and the disk of the DTN of site %s", j.Image.ID, err, j.Mismatch, a.Site))
		}
		return j.Enter(Expected, now, err.Error()), err
	}
	return j, fmt.Errorf("upload image %s to Glance of site %s: %w", j.Image.ID, a.Site, err)
}

// shell finds the job's own image in Glance, half made or whole, or makes it. When it
// returns no image and no error, the job was changed and the step is to be repeated.
func (a *Agent) shell(ctx context.Context, j Job) (glance.Image, Job, error) {
	img, err := a.Catalog.Image(ctx, j.DeliverAs)
	if errors.Is(err, ErrNoImage) {
		img, err = a.Catalog.Create(ctx, a.shellOf(j))
		if errors.Is(err, ErrIDUsed) {
			if img, err = a.Catalog.Image(ctx, j.DeliverAs); errors.Is(err, ErrNoImage) {
				return a.idRefused(j)
			} // otherwise it was made this moment, by an offer or by the delivery
		}
	}
	if err != nil {
		return img, j, err
	}
	maker, err := a.maker(ctx, img)
	if err != nil {
		return img, j, err
	}
	ours := maker == makerEnded || img.Properties[glance.PropJob] == string(j.ID)
	broken := ours && img.Status != glance.Queued && img.Status != glance.Active
	if broken {
		j = j.brokeOff(img)
	}
	switch {
	case img.Status == glance.Active && img.SameContent(j.Image):
		return img, j, nil
	case ours && img.Status == glance.Queued:
		img, err = a.Catalog.Adopt(ctx, img, a.shellOf(j)) // another job, or an earlier offer, made it
		return img, j, err
	case maker == makerBusy && !ours:
		return glance.Image{}, j, failure.After(waitForRoom, fmt.Errorf("another job is delivering image %s", img.ID))
	case ours && img.Status == glance.Active && img.Hash.Algo == j.Image.Hash.Algo:
		return img, j, nil // with wrong content: deliver deals with it
	case broken && time.Since(j.Since()) < a.settings.Load().Stuck:
		return glance.Image{}, j, failure.After(pollMax, fmt.Errorf("image %s is still %s at site %s from an upload that broke off; waiting until Glance puts it back to queued", img.ID, img.Status, a.Site))
	case ours && a.settings.Load().OnDeletedID == OnDeletedNewID:
		if err := a.Catalog.Delete(ctx, img.ID); err != nil {
			return glance.Image{}, j, err
		}
		return glance.Image{}, renamed(j), nil
	case ours && img.Status == glance.Active:
		return glance.Image{}, j, failure.Permanently(a.hashedOtherwise(j, img))
	case ours:
		return glance.Image{}, j, failure.Permanently(fmt.Errorf("image %s is stuck in %s at site %s: glance-api died during its upload and Glance takes no other; set deliver.on_deleted_id: new-id there, then retry", img.ID, img.Status, a.Site))
	}
	return glance.Image{}, j, failure.Permanently(fmt.Errorf("conflict: image %s appeared at site %s meanwhile, %s, not made by glance-dtn", img.ID, a.Site, img.Status))
}

// brokeOff returns a delivery since when Glance has its image from an upload that broke off:
// the file may have been coming for long before. The note tells the upload, for another one has a
// time of its own.
func (j Job) brokeOff(img glance.Image) Job {
	note := fmt.Sprintf("its upload of %s broke off", img.UpdatedAt.UTC().Format(time.RFC3339))
	if j.State != Arriving || j.History[len(j.History)-1].Note == note {
		return j
	}
	failures := j.Attempts
	j = j.Enter(Arriving, time.Now().UTC(), note)
	j.Attempts = failures
	return j
}

// shellOf is the image as it is created before its data: marked as ours, and with
// the source's id kept where it cannot have it.
func (a *Agent) shellOf(j Job) glance.Image {
	img := j.Image
	img.Properties = maps.Clone(img.Properties)
	if img.Properties == nil {
		img.Properties = map[string]string{}
	}
	img.Properties[glance.PropJob] = string(j.ID)
	if img.ID != j.DeliverAs {
		img.Properties[glance.PropSourceID] = string(img.SourceID())
	}
	img.ID = j.DeliverAs
	if a.settings.Load().Owner != OwnerSource {
		img.Owner = ""
	}
	return img
}

func (a *Agent) idRefused(j Job) (glance.Image, Job, error) {
	if a.settings.Load().OnDeletedID == OnDeletedNewID {
		return glance.Image{}, renamed(j), nil
	}
	return glance.Image{}, j, failure.Permanently(fmt.Errorf("Glance of site %s refuses the id %s: an image with it was deleted there (or belongs to a project this agent may not see), and Glance never gives an id twice; purge the deleted row (glance-manage db purge_images_table), or set deliver.on_deleted_id: new-id at site %s, then retry", a.Site, j.DeliverAs, a.Site))
}

// renamed gives the job's image a new id. It follows from the job and the round, so
// that after a crash the same half-made image is found again.
func renamed(j Job) Job {
	j.Round++
	h := sha256.Sum256(fmt.Appendf(nil, "%s %d", j.ID, j.Round))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // RFC 9562: version 8, variant 10
	j.DeliverAs = glance.ImageID(fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16]))
	return j
}

// upload sends the job's content to the queued image: the arriving file, or the
// image here that holds the same bytes. It says how, and what was waited for.
func (a *Agent) upload(ctx context.Context, j Job, id glance.ImageID, report func(int64, int64)) (how string, w Waited, err error) {
	pace := newPace()
	c, err := a.open(ctx, j, pace)
	if err != nil {
		return "", w, err
	}
	defer c.Close()
	size := j.Image.Size
	var passed atomic.Int64
	stop := ticking(paceEvery, func() { // also while Glance takes nothing
		a.waits(j.ID, legWaits{bottleneck: pace.present()})
		report(passed.Load(), size)
	})
	defer stop()
	if err := a.Catalog.Upload(ctx, id, held(c, size, passed.Store), size); err != nil {
		return "", w, err
	}
	b, took := pace.whole()
	if how = c.how(); b.Place != "" {
		how += "; bottleneck: " + b.String()
	}
	return how, w.or(b, took), nil
}

func (a *Agent) open(ctx context.Context, j Job, p *pace) (content, error) {
	if j.LocalCopy != "" {
		data, err := a.Catalog.Data(ctx, j.LocalCopy)
		if err != nil {
			return content{}, err
		}
		return hashed(data, j.Image.Hash)
	}
	return a.arriving(ctx, mover.File{Name: j.FileName(), Size: j.Image.Size, Digest: j.Image.Hash}, p)
}

// finishDelivery makes the image visible as its source is.
// Delivered → Verified.
func (a *Agent) finishDelivery(ctx context.Context, j Job, _ func(int64, int64)) (Job, error) {
	want := j.Image
	want.ID = j.DeliverAs
	img, err := a.Catalog.Finish(ctx, want)
	if errors.Is(err, ErrNoImage) {
		return j, failure.Permanently(fmt.Errorf("image %s was deleted at site %s while it was delivered", j.DeliverAs, a.Site))
	}
	if err != nil {
		return j, fmt.Errorf("set the properties of image %s: %w", j.DeliverAs, err)
	}
	if img.Status != glance.Active || !img.SameContent(j.Image) {
		return j, failure.Permanently(fmt.Errorf("image %s at site %s is %s with %s, want active with %s", img.ID, a.Site, img.Status, img.Hash, j.Image.Hash))
	}
	return j.Enter(Verified, time.Now().UTC(), ""), nil
}

// dropArrived removes a file from the inbox once its transfer has ended: the sender
// must not see its last answer cut off.
func (a *Agent) dropArrived(ctx context.Context, name string) error {
	began := time.Now()
	for sight := a.sight(name, pollBusy); ; {
		arr, err := sight.next(ctx)
		if errors.Is(err, mover.ErrNoArrival) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ask the DTN of site %s: %w", a.Site, err)
		}
		if arr.State == mover.Arrived || time.Since(began) > lostAfter {
			return a.Landing.Drop(ctx, name)
		}
	}
}

// undoDelivery takes an unfinished delivery back. Cancelling → Cancelled; an image that
// was faster is finished instead, and Glance may have all of one whose upload was cut, so
// what becomes of that is waited for. The empty record in Glance stays, hidden and private,
// until the job is forgotten: deleting it would burn the image's id at this site for ever.
func (a *Agent) undoDelivery(ctx context.Context, j Job, _ func(int64, int64)) (Job, error) {
	img, err := a.Catalog.Image(ctx, j.DeliverAs)
	if err != nil && !errors.Is(err, ErrNoImage) {
		return j, err
	}
	ours := err == nil && img.Properties[glance.PropJob] == string(j.ID)
	if ours && img.Status == glance.Active && img.SameContent(j.Image) {
		return j.Enter(Delivered, time.Now().UTC(), "it was active before it could be cancelled"), nil
	}
	if err := a.Landing.Drop(ctx, j.FileName()); err != nil {
		return j, fmt.Errorf("drop the arrival: %w", err)
	}
	if ours && (img.Status == glance.Saving || img.Status == glance.Importing) && time.Since(j.Since()) < a.settings.Load().Stuck {
		return j, failure.After(pollMax, fmt.Errorf("image %s is still %s at site %s from its upload; waiting until Glance puts it back to queued, or has it active", img.ID, img.Status, a.Site))
	}
	return undone(j), nil
}

// Delivery tells the site that sends an image how far our job is.
func (a *Agent) Delivery(ctx context.Context, from string, id JobID) (Delivery, error) {
	j, err := a.delivery(ctx, from, id)
	if err != nil {
		return Delivery{}, err
	}
	j = a.told(j)
	d := Delivery{ID: j.ID, State: j.State, Reason: j.Reason, ImageID: j.DeliverAs, Waited: j.Waited}
	if j.State == Cancelling {
		d.Reason = joined(j.cancelReason(), j.Reason)
	}
	for _, leg := range j.Legs() {
		if leg.State == Delivered {
			d.How = leg.Note
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	d.Moved = a.progress[id].Moved
	if j.State == Arriving { // of an upload that is over nothing is waited for
		d.Bottleneck = a.progress[id].Bottleneck
	}
	return d, nil
}

// CancelDelivery undoes our job at the wish of the site that sends it.
func (a *Agent) CancelDelivery(ctx context.Context, from string, id JobID) error {
	j, err := a.delivery(ctx, from, id)
	if errors.Is(err, ErrNoJob) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = a.cancel(ctx, j, "cancelled by site "+from, false)
	if errors.Is(err, ErrBadState) {
		return nil
	}
	return err
}

func (a *Agent) delivery(ctx context.Context, from string, id JobID) (Job, error) {
	j, err := a.Store.Get(ctx, id)
	if err == nil && (j.Kind != Receive || j.Peer != from) {
		return Job{}, ErrNoJob
	}
	return j, err
}
