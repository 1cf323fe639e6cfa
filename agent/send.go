package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// errGoneHere is why a job is undone when its image is deleted at the source.
var errGoneHere = errors.New("the image was deleted here")

// source returns the image of a Send job as Glance has it now. When it is gone, or
// is not what the job is about, err is what the step has to return with the job.
func (a *Agent) source(ctx context.Context, j Job) (Job, error) {
	img, err := a.Catalog.Image(ctx, j.Image.ID)
	switch {
	case errors.Is(err, ErrNoImage):
		return cancelling(j, errGoneHere.Error()), errGoneHere
	case err != nil:
		return j, err
	case img.Status != glance.Active:
		return j, failure.After(time.Minute, fmt.Errorf("image %s is %s here; waiting until it is active", img.ID, img.Status))
	case !img.SameContent(j.Image):
		return j, failure.Permanently(fmt.Errorf("image %s has other content now (%s, was %s); cancel this job", img.ID, img.Hash, j.Image.Hash))
	}
	j.Image = img
	return j, nil
}

// cancelling returns j on its way to being undone, with the reason for it.
func cancelling(j Job, why string) Job {
	return j.Enter(Cancelling, time.Now().UTC(), why)
}

// again sends a job back to an earlier state with a new transfer key, keeping count of its failures.
func again(j Job, s State, note string) Job {
	attempts := j.Attempts
	j = j.Enter(s, time.Now().UTC(), note)
	j.Attempts, j.Transfer = attempts, ""
	j.Round++
	return j
}

// offer asks the peer to take the image. Pending → Offered; Moved when no byte has to
// come over the network; Verified when the peer has the image.
func (a *Agent) offer(ctx context.Context, j Job, _ func(int64, int64)) (Job, error) {
	j, err := a.source(ctx, j)
	if errors.Is(err, errGoneHere) {
		return j, nil
	} else if err != nil {
		return j, err
	}
	p, err := a.peer(j.Peer)
	if err != nil {
		return j, failure.Permanently(fmt.Errorf("%w; add it, or cancel the job", err))
	}
	g, err := p.Peer.Offer(ctx, Offer{Image: j.Image, Anew: j.Anew, Via: p.Via.Site, Priority: j.Priority})
	if err != nil {
		return j, fmt.Errorf("offer to site %s: %w", j.Peer, err)
	}
	j.Waited, j.PeerPriority = Waited{}, j.Priority // nothing is left of what was begun before
	return granted(j, g)
}

// granted is what follows from the peer's answer to an offer.
func granted(j Job, g Grant) (Job, error) {
	now := time.Now().UTC()
	if g.Verdict == Accept || g.Verdict == Have { // otherwise an earlier delivery may have to be cancelled yet
		j.Offer, j.DeliverAs, j.Transfer, j.Anew = g, g.ImageID, "", false
	}
	switch g.Verdict {
	case Have:
		return j.Enter(Verified, now, "site "+j.Peer+" has it already"), nil
	case Accept:
		if g.Ticket == "" {
			return j.Enter(Moved, now, "site "+j.Peer+" has the content already: no byte to move"), nil
		}
		return j.Enter(Offered, now, ""), nil
	case Wait:
		return j, failure.After(waitForRoom, fmt.Errorf("site %s: %s", j.Peer, g.Reason))
	case Refuse:
		return j, failure.Permanently(fmt.Errorf("site %s refuses: %s", j.Peer, g.Reason))
	}
	return j, fmt.Errorf("site %s answers %q to an offer; its agent speaks another version", j.Peer, g.Verdict)
}

// stage makes the local copy, Glance's store → the DTN's outbox. Offered → Staged.
func (a *Agent) stage(ctx context.Context, j Job, report func(int64, int64)) (Job, error) {
	j, err := a.source(ctx, j)
	if errors.Is(err, errGoneHere) {
		return j, nil
	} else if err != nil {
		return j, err
	}
	f := mover.File{Name: j.FileName(), Size: j.Image.Size, Digest: j.Image.Hash}
	began := time.Now()
	how, err := a.Stager.Stage(ctx, j.Image.ID, f, func(n int64) { report(n, f.Size) })
	_, mismatch := errors.AsType[*digest.MismatchError](err)
	switch {
	case err == nil:
		j.Waited = j.Waited.or(mover.Bottleneck{Place: mover.LocalCopy, Share: 1}, time.Since(began))
		return j.Enter(Staged, time.Now().UTC(), how), nil
	case errors.Is(err, ErrNoFile), errors.Is(err, ErrTruncated), mismatch:
		if _, gone := a.Catalog.Image(ctx, j.Image.ID); errors.Is(gone, ErrNoImage) {
			return cancelling(j, errGoneHere.Error()), nil
		}
		return j, failure.Permanently(fmt.Errorf("image %s at site %s is damaged: %w; Glance would serve it as it is: restore the file, or delete the image and upload it anew", j.Image.ID, a.Site, err))
	case errors.Is(err, ErrSpace):
		return j, fmt.Errorf("stage image %s: %w; free space on the export of site %s", j.Image.ID, err, a.Site)
	}
	return j, fmt.Errorf("stage image %s: %w", j.Image.ID, err)
}

// move has our DTN send the staged file to the peer's. Staged → Moved. The
// transfer's id is stored before it is followed.
func (a *Agent) move(ctx context.Context, j Job, report func(int64, int64)) (Job, error) {
	f := mover.File{Name: j.FileName(), Size: j.Image.Size, Digest: j.Image.Hash}
	if j.Transfer == "" {
		p, err := a.peer(j.Peer)
		if err != nil {
			return j, failure.Permanently(fmt.Errorf("%w; add it, or cancel the job", err))
		}
		switch {
		case len(p.Among) == 0:
			j.Route = Route{Relay: p.Via}
		case j.Route.Why == "" || j.Route.Round != j.Round: // stored before it is used: the key is for one way
			return a.takeRoute(ctx, j, p)
		}
		id, err := a.Mover.Submit(ctx, mover.Request{
			Key:         fmt.Sprintf("%s.%d", j.ID, j.Round),
			Source:      f,
			Destination: mover.Destination{Address: j.Offer.Address, Ticket: j.Offer.Ticket, Via: j.Route.Relay},
			PCP:         a.settings.Load().PCP,
			Priority:    j.Priority,
		})
		if errors.Is(err, mover.ErrKeyConflict) {
			return again(j, Pending, "the transfer's key was used before"), err
		}
		if err != nil {
			return j, fmt.Errorf("submit to the DTN of site %s: %w", a.Site, err)
		}
		j.Transfer = id
		return j, nil
	}
	renew, ranked, told := time.Now().Add(renewAfter), false, false
	for range polling(ctx, pollBusy) {
		st, err := a.Mover.Status(ctx, j.Transfer)
		if errors.Is(err, mover.ErrNoTransfer) {
			j.Transfer = ""
			return j, fmt.Errorf("the DTN of site %s has forgotten the transfer; submitting it again", a.Site)
		}
		if err != nil {
			return j, fmt.Errorf("follow the transfer: %w", err)
		}
		if !ranked && !st.State.Final() && st.Priority.Rank() != j.Priority.Rank() {
			if err := a.Mover.Prioritise(ctx, j.Transfer, cmp.Or(j.Priority, mover.PriorityNormal)); err != nil && ctx.Err() == nil {
				a.Log.Warn("a transfer keeps its old priority", "job", j.ID, "site", j.Peer, "err", err)
			}
			ranked = true // this step's job has no other one
		}
		if !told && !st.State.Final() {
			j, told = a.rank(ctx, j), true
		}
		a.waits(j.ID, legWaits{st.Waiting, st.Way.Bottleneck})
		report(st.Arrived(), f.Size)
		switch st.State {
		case mover.Done:
			j.Waited = j.Waited.or(st.Way.Bottleneck, st.Ran)
			a.went(j.Peer, j.Route.Relay)
			return j.Enter(Moved, time.Now().UTC(), joined(moved(st), j.Route.Why)), nil
		case mover.Failed:
			return a.moveFailed(ctx, j, st)
		case mover.Cancelled:
			return again(j, Staged, "its transfer was cancelled"), fmt.Errorf("transfer %s to site %s was cancelled at the DTN of site %s; submitting it again: to stop the image, cancel the job", st.ID, j.Peer, a.Site)
		case mover.Running:
			renew = time.Now().Add(renewAfter)
		}
		if time.Now().After(renew) {
			renew = time.Now().Add(time.Minute)
			if renewed, err := a.renew(ctx, j); err == nil {
				return renewed, nil
			} else if ctx.Err() == nil {
				a.Log.Debug("a transfer that waits has no new ticket", "job", j.ID, "site", j.Peer, "err", err)
			}
		}
	}
	return j, ctx.Err()
}

// renew submits a transfer that waits at the DTN anew, with another ticket, before its own
// expires. By it the peer knows, too, that the image is still on its way. Where the new round
// is not recorded after all, move finds the transfer cancelled and begins one itself.
func (a *Agent) renew(ctx context.Context, j Job) (Job, error) {
	p, err := a.peer(j.Peer)
	if err != nil {
		return j, err
	}
	g, err := p.Peer.Offer(ctx, Offer{Image: j.Image, Via: p.Via.Site, Priority: j.Priority})
	if err != nil {
		return j, err
	}
	if g.Verdict != Accept || g.Ticket == "" {
		return j, fmt.Errorf("site %s answers %s: %s", j.Peer, g.Verdict, g.Reason)
	}
	if err := a.Mover.Cancel(ctx, j.Transfer); err != nil {
		return j, err
	}
	j.Offer, j.DeliverAs, j.Transfer, j.PeerPriority = g, g.ImageID, "", j.Priority
	j.Round++
	return j, nil
}

// rank offers the image again, for the peer's job to have the priority that this one was given
// since; one that has ended an offer would begin anew. Where that fails the image goes on as it
// was, and the next step tries again.
func (a *Agent) rank(ctx context.Context, j Job) Job {
	if j.Priority.Rank() == j.PeerPriority.Rank() {
		return j
	}
	p, err := a.peer(j.Peer)
	var d Delivery
	if err == nil {
		d, err = p.Peer.Delivery(ctx, j.Offer.Delivery)
	}
	if err == nil && (d.State.Final() || d.State == Cancelling) {
		return j
	}
	var g Grant
	if err == nil {
		g, err = p.Peer.Offer(ctx, Offer{Image: j.Image, Via: p.Via.Site, Priority: j.Priority})
	}
	if err == nil && g.Verdict == Wait {
		err = errors.New(g.Reason)
	}
	if err == nil {
		j.PeerPriority = j.Priority
	} else if ctx.Err() == nil {
		a.Log.Warn("the peer's job keeps its old priority", "job", j.ID, "site", j.Peer, "err", err)
	}
	return j
}

// moveFailed returns what follows from a failed transfer. A transfer that has
// failed stays failed, so every way on begins with a new key.
func (a *Agent) moveFailed(ctx context.Context, j Job, st mover.Status) (Job, error) {
	err, other := a.blame(j, st, fmt.Errorf("transfer to site %s: %s", j.Peer, st.Error))
	switch st.Code {
	case mover.CodeTicket, mover.CodeSpace:
		return again(j, Pending, st.Error), err
	case mover.CodeSource:
		return again(j, Offered, st.Error), err
	case mover.CodeContent:
		j.Mismatch++
		if uerr := a.Stager.Unstage(ctx, j.FileName()); uerr != nil {
			return j, errors.Join(err, uerr)
		}
		j = again(j, Offered, st.Error)
		if j.Mismatch >= mismatchMax {
			return j, failure.Permanently(fmt.Errorf("%w; this happened %d times: check the memory and disks of both DTNs and the file of image %s in the datadir", err, j.Mismatch, j.Image.ID))
		}
		return j, err
	case mover.CodeName, mover.CodeAuth:
		if !other {
			err = failure.Permanently(err)
		}
		return again(j, Pending, st.Error), err
	}
	return again(j, Staged, st.Error), err
}

// joined is the texts that there are, in one line.
func joined(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(t string) bool { return t == "" }), "; ")
}

// moved says how a transfer went: at no rate where nothing had to leave this site.
func moved(st mover.Status) string {
	rate, slow := "", st.Way.Bottleneck.String()
	if st.Rate > 0 {
		rate = mover.Rate(st.Rate).Brief()
	}
	if slow != "" {
		slow = "bottleneck: " + slow
	}
	return joined(rate, slow)
}

// awaitDelivery follows the peer's own job. Moved → Delivered.
func (a *Agent) awaitDelivery(ctx context.Context, j Job, report func(int64, int64)) (Job, error) {
	return a.followPeer(ctx, j, report, Delivered, func(j Job, d Delivery) (Job, error) {
		if d.Waited.Place != mover.Coming { // that the move was slower it has told itself
			j.Waited = j.Waited.or(mover.Bottleneck{Place: d.Waited.Place, Share: 1}, d.Waited.For)
		}
		return j.Enter(Delivered, time.Now().UTC(), d.How), nil
	})
}

// finishSend ends the job once the peer has verified its image. Delivered → Verified.
func (a *Agent) finishSend(ctx context.Context, j Job, report func(int64, int64)) (Job, error) {
	return a.followPeer(ctx, j, report, Verified, func(j Job, d Delivery) (Job, error) {
		note := ""
		if d.ImageID != j.Image.ID {
			note = "as " + string(d.ImageID)
		}
		return j.Enter(Verified, time.Now().UTC(), note), nil
	})
}

// followPeer waits until the peer's job has come to the state, or to the end.
func (a *Agent) followPeer(ctx context.Context, j Job, report func(int64, int64), until State, then func(Job, Delivery) (Job, error)) (Job, error) {
	p, err := a.peer(j.Peer)
	if err != nil {
		return j, failure.Permanently(fmt.Errorf("%w; add it, or cancel the job", err))
	}
	j = a.rank(ctx, j)
	began := time.Now()
	for range polling(ctx, pollBusy) {
		d, err := p.Peer.Delivery(ctx, j.Offer.Delivery)
		if errors.Is(err, ErrNoJob) {
			return again(j, Pending, "site "+j.Peer+" has lost its job"), fmt.Errorf("site %s does not know its job %s any more; offering the image again", j.Peer, j.Offer.Delivery)
		}
		if err != nil {
			return j, fmt.Errorf("ask site %s for its job: %w", j.Peer, err)
		}
		if d.ImageID != "" {
			j.DeliverAs = d.ImageID
		}
		switch {
		case d.State == until, d.State == Verified:
			return then(j, d)
		case d.State == Parked:
			return j, failure.Permanently(fmt.Errorf("site %s: %s", j.Peer, d.Reason))
		case d.State == Cancelled, d.State == Cancelling:
			return again(j, Pending, "cancelled at site "+j.Peer), failure.Permanently(fmt.Errorf("site %s cancelled its job: %s", j.Peer, d.Reason))
		case d.State == Expected && time.Since(began) > lostAfter:
			return again(j, Pending, "site "+j.Peer+" does not see the file"), fmt.Errorf("the DTN of site %s does not have the file; sending it again", j.Peer)
		}
		why := ""
		if d.Reason != "" {
			why = "site " + j.Peer + ": " + d.Reason
		}
		a.waits(j.ID, legWaits{why, d.Bottleneck})
		report(d.Moved, j.Image.Size)
	}
	return j, ctx.Err()
}

// undoSend takes back what a job has begun at both sites. Cancelling → Cancelled; Delivered
// when the peer has finished the image before it could be cancelled.
func (a *Agent) undoSend(ctx context.Context, j Job, _ func(int64, int64)) (Job, error) {
	if j.Transfer != "" {
		if err := a.Mover.Cancel(ctx, j.Transfer); err != nil {
			return j, fmt.Errorf("cancel the transfer: %w", err)
		}
	}
	p, err := a.peer(j.Peer)
	begun := err == nil && j.Offer.Delivery != ""
	if begun {
		if err := p.Peer.CancelDelivery(ctx, j.Offer.Delivery); err != nil {
			return j, fmt.Errorf("cancel the delivery at site %s: %w", j.Peer, err)
		}
	}
	if err := a.Stager.Unstage(ctx, j.FileName()); err != nil {
		return j, fmt.Errorf("remove the staged copy: %w", err)
	}
	if begun {
		return a.awaitUndone(ctx, j, p)
	}
	return undone(j), nil
}

// awaitUndone follows the peer's job, which was cancelled, to its end. An image that is active
// there already is either finished or, where that cannot be done, the peer's to deal with.
func (a *Agent) awaitUndone(ctx context.Context, j Job, p PeerSite) (Job, error) {
	began := time.Now()
	for range polling(ctx, pollBusy) {
		d, err := p.Peer.Delivery(ctx, j.Offer.Delivery)
		switch {
		case errors.Is(err, ErrNoJob):
			return undone(j), nil
		case err != nil:
			return j, fmt.Errorf("ask site %s for its job: %w", j.Peer, err)
		case d.State == Verified:
			j.Stopped = false
			return j.Enter(Delivered, time.Now().UTC(), "active at site "+j.Peer+" before it could be cancelled"), nil
		case d.State != Cancelling && d.State != Delivered:
			return undone(j), nil
		case time.Since(began) > lostAfter:
			return j, failure.After(pollMax, fmt.Errorf("waiting for site %s, whose job is %s: %s", j.Peer, d.State, d.Reason))
		}
	}
	return j, ctx.Err()
}

// undone ends a job that was cancelled, keeping the reason it was cancelled for.
func undone(j Job) Job {
	why := j.cancelReason()
	j = j.Enter(Cancelled, time.Now().UTC(), "")
	j.Reason = why
	return j
}

// cancelReason is why the job was last cancelled.
func (j Job) cancelReason() (why string) {
	for _, c := range j.History {
		if c.State == Cancelling {
			why = c.Note
		}
	}
	return why
}
