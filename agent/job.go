// Package agent decides: which images have to be where, and what the next step is
// to get one there. It knows the nouns of glance and mover and the small
// interfaces in ports.go; everything that does I/O is handed to it.
package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// JobID names a job. It follows from what the job is about, so the same work
// found twice is one job.
type JobID string

// Kind tells the two ends of one image's way apart.
type Kind string

// A Send job lives at the site that has the image, its Receive job at the site that gets it.
const (
	Send    Kind = "send"
	Receive Kind = "receive"
)

// NewJobID returns the id of the job of this kind that brings this content of this
// image to, or from, the peer site.
func NewJobID(k Kind, id glance.ImageID, content digest.Digest, peer string) JobID {
	h := sha256.New()
	for _, s := range []string{string(k), string(id), content.String(), peer} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return JobID(hex.EncodeToString(h.Sum(nil)[:10]))
}

// State is how far a job has come. A state is entered only when what it says is
// durable. ARCHITECTURE.md draws both machines.
type State string

// The states. Pending to Verified is the way of a Send job; a Receive job starts
// at Expected and shares the last two.
const (
	Pending   State = "pending"   // to be offered to the peer
	Offered   State = "offered"   // the peer accepted and gave a ticket
	Staged    State = "staged"    // local copy done: the file lies in our DTN's outbox
	Moved     State = "moved"     // API call done: the file lies in the peer DTN's inbox
	Expected  State = "expected"  // a ticket was given, nothing has come yet
	Arriving  State = "arriving"  // bytes are coming in; they are uploaded as they are proven
	Delivered State = "delivered" // local copy done: the peer's Glance has it active, hash and size equal

	Cancelling State = "cancelling" // to be undone
	Verified   State = "verified"   // end: active at the peer, copies removed
	Parked     State = "parked"     // needs a person; Reason says why and what to do
	Cancelled  State = "cancelled"  // end: undone
)

// Final reports whether nothing happens any more by itself.
func (s State) Final() bool { return s == Verified || s == Parked || s == Cancelled }

// Way lists the states of a job of this kind in order, for whoever draws progress.
func (k Kind) Way() []State {
	if k == Receive {
		return []State{Expected, Arriving, Delivered, Verified}
	}
	return []State{Pending, Offered, Staged, Moved, Delivered, Verified}
}

// Change is one entry of a job's history.
type Change struct {
	State State     `json:"state"`
	At    time.Time `json:"at"`
	Note  string    `json:"note,omitempty" doc:"how the state was reached, e.g. hard link, or why it was parked"`
}

// Job is one image on its way to one site. It is stored whole.
type Job struct {
	ID    JobID        `json:"id"`
	Kind  Kind         `json:"kind" enum:"send,receive"`
	Peer  string       `json:"peer" doc:"the other site"`
	Site  string       `json:"site,omitempty" doc:"this site, where its agent tells of the job"`
	Image glance.Image `json:"image" doc:"the image as it was at its source"`
	State State        `json:"state"`

	Reason    string    `json:"reason,omitempty" doc:"what it waits for, or why it is parked and what to do"`
	Paused    bool      `json:"paused,omitempty" doc:"it waits for the export of this site's DTN, and goes on by itself"`
	Attempts  int       `json:"attempts" doc:"failures in a row in this state"`
	NotBefore time.Time `json:"not_before,omitzero" doc:"the next attempt"`

	Offer     Grant            `json:"offer,omitzero" doc:"what the peer promised"`
	Round     int              `json:"round,omitempty" doc:"how often this was begun anew; part of the transfer's key"`
	Transfer  mover.TransferID `json:"transfer,omitempty" doc:"the DTN's name for the running transfer"`
	Route     Route            `json:"route,omitzero" doc:"by which way the file goes, since its move began"`
	Mismatch  int              `json:"mismatch,omitempty" doc:"how often wrong content was found"`
	DeliverAs glance.ImageID   `json:"deliver_as,omitempty" doc:"the image's id at the destination"`
	LocalCopy glance.ImageID   `json:"local_copy,omitempty" doc:"an image here with the same content: nothing has to come over the network"`
	Avoid     glance.ImageID   `json:"avoid,omitempty" doc:"an image here that should have the same content, and could not be read whole"`
	Seen      Seen             `json:"seen,omitzero" doc:"the last sign of life of an arrival that is waited for"`

	Waited Waited `json:"waited,omitzero" doc:"the place that its legs have waited for longest, all together"`

	Priority mover.Priority `json:"priority,omitempty" enum:"low,normal,high" doc:"which of the jobs to a site goes first, and which of the DTN's transfers; empty: normal"`

	PeerPriority mover.Priority `json:"peer_priority,omitempty" enum:"low,normal,high" doc:"what the peer was last told of it; empty: normal"`

	Anew    bool `json:"anew,omitempty" doc:"a person has begun it anew"`
	Stopped bool `json:"stopped,omitempty" doc:"a person has cancelled it at this site"`

	Created time.Time `json:"created"`
	Updated time.Time `json:"updated" doc:"the last attempt included"`
	History []Change  `json:"history,omitempty"`

	Rev int64 `json:"-"` // the store's revision; Update compares it
}

// Seen is how far an arrival was when it was last seen to advance.
type Seen struct {
	Moved int64     `json:"moved"`
	At    time.Time `json:"at"`
}

// historyLength bounds Job.History, a job that is retried for weeks included.
const historyLength = 40

// Enter returns j in state s at the time now, with nothing left of the last
// state's trouble.
func (j Job) Enter(s State, now time.Time, note string) Job {
	j.State, j.Updated = s, now
	j.Attempts, j.NotBefore, j.Reason, j.Paused = 0, time.Time{}, "", false
	j.History = append(slices.Clone(j.History), Change{State: s, At: now, Note: note})
	if n := len(j.History); n > historyLength {
		j.History = slices.Delete(j.History, 1, n-historyLength+1)
	}
	return j
}

// Legs are the entries of the history that say how a leg went, each of the last time that
// it was done.
func (j Job) Legs() []Change {
	way := j.Kind.Way()
	var legs, before []Change
	for i, c := range j.History {
		at := slices.Index(way, c.State)
		if at < 0 || i > 0 && c.State == j.History[i-1].State { // the next leg failed, and begins anew
			continue
		}
		switch {
		case at == 0 && len(legs) > 0:
			before = slices.Clone(legs)
		case c.State == Verified && len(legs) == 0: // begun anew, and nothing was to be done
			legs = before
			continue
		}
		legs = slices.DeleteFunc(legs, func(l Change) bool { return slices.Index(way, l.State) >= at })
		if c.Note != "" && (c.State == Staged || c.State == Moved || c.State == Delivered) {
			legs = append(legs, c)
		}
	}
	return legs
}

// Since is when the job entered its state.
func (j Job) Since() time.Time {
	if n := len(j.History); n > 0 {
		return j.History[n-1].At
	}
	return j.Created
}

// Note is how the job came into its state, or why.
func (j Job) Note() string {
	if n := len(j.History); n > 0 {
		return cmp.Or(j.Reason, j.History[n-1].Note)
	}
	return j.Reason
}

// WithoutTicket is what leaves the agent of a job: its ticket is for the DTN alone.
func (j Job) WithoutTicket() Job {
	j.Offer.Ticket = ""
	return j
}

// FileName is the name of the job's file, in the outbox of the one site or the
// inbox of the other.
func (j Job) FileName() string {
	if j.Kind == Receive {
		return mover.Inbox + "/" + string(j.ID)
	}
	return mover.Outbox + "/" + string(j.ID)
}

// Progress is what is known of a running job beyond its state. It is not durable.
type Progress struct {
	Job   JobID     `json:"job"`
	State State     `json:"state"`
	Moved int64     `json:"moved" doc:"bytes of this leg"`
	Total int64     `json:"total"`
	At    time.Time `json:"at"`

	Waiting    string           `json:"waiting,omitempty" doc:"what the transfer waits for at the DTN, or the peer's job"`
	Bottleneck mover.Bottleneck `json:"bottleneck,omitzero" doc:"what this leg waits for most of the time"`
}

// Errors of a Store.
var (
	ErrExists = errors.New("the job exists already")
	ErrNoJob  = errors.New("no such job")
	ErrStale  = errors.New("the job was changed meanwhile")
	ErrLost   = errors.New("the claim on the job was lost")
	ErrBusy   = errors.New("the job cannot be claimed now")
	ErrRecord = errors.New("the job's record cannot be read")
	ErrFull   = fmt.Errorf("all places of its slot are taken: %w", ErrBusy)
)

// Store keeps jobs. A nil error from a call that changes something means that the
// change survives a power failure.
type Store interface {
	// Create stores a new job; ErrExists when its id is taken.
	Create(ctx context.Context, j Job) error
	// Get returns a job with its Rev; ErrNoJob, ErrRecord.
	Get(ctx context.Context, id JobID) (Job, error)
	// All yields every job with its Rev, in order of creation. A record that cannot
	// be read is yielded as an error with a Job that has only its ID, and the
	// sequence goes on; after an error with an empty Job it ends. Watch does the same.
	All(ctx context.Context) iter.Seq2[Job, error]
	// Update replaces a job that nobody works on, or a worker's between its
	// steps, when its Rev is still the stored one; ErrStale otherwise. It is how a
	// person's cancel or retry gets in.
	Update(ctx context.Context, j Job) (Job, error)
	// Delete removes a job in a final state; ErrStale when it changed meanwhile.
	Delete(ctx context.Context, j Job) error
	// Watch yields every job that is created, changed or deleted after the call, and
	// every report of progress, until ctx ends: whoever calls Watch and then All
	// misses nothing. A slow reader may miss progress and intermediate states, never
	// the latest state of a job; it may see one twice.
	Watch(ctx context.Context) iter.Seq2[Event, error]
	// Claim takes the job and one of its slot's places for this worker, or returns
	// ErrBusy: another worker has the job, or, if it is ErrFull, the slot has no place.
	// Slot is a name such as "send/B"; limit is how many claims of that slot may exist
	// at once over all agents. The claim ends by Release or, when this process dies, by
	// itself within seconds.
	Claim(ctx context.Context, j Job, slot string, limit int) (Claim, error)
}

// Claim is the right to work on one job.
type Claim interface {
	// Context ends when the claim is lost or ctx, given to Claim, ends.
	Context() context.Context
	// Update stores j while the claim holds and j.Rev is the stored one: ErrLost, ErrStale.
	Update(ctx context.Context, j Job) (Job, error)
	// Progress tells watchers how the leg advances. It may drop reports.
	Progress(p Progress)
	// Release gives the claim up. It may be called twice.
	Release()
}

// Event is what Watch yields: exactly one of the fields is set.
type Event struct {
	Job      *Job      `json:"job,omitempty"`
	Gone     JobID     `json:"gone,omitempty" doc:"this job was deleted"`
	Progress *Progress `json:"progress,omitempty"`
}
