package agent

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Errors of a Catalog.
var (
	ErrNoImage   = glance.ErrNoImage
	ErrIDUsed    = glance.ErrIDUsed
	ErrNotQueued = glance.ErrNotQueued
	ErrQuota     = glance.ErrQuota
)

// Catalog is this site's Glance.
type Catalog interface {
	// Image returns one image; ErrNoImage.
	Image(ctx context.Context, id glance.ImageID) (glance.Image, error)
	// Images yields every image, hidden ones included, that changed at or after
	// since, in no particular order; the zero time means all. Deleted ones are not among them.
	Images(ctx context.Context, since time.Time) iter.Seq2[glance.Image, error]
	// Holding returns the active images whose content is this one.
	Holding(ctx context.Context, i glance.Image) ([]glance.Image, error)
	// Room returns nil, or ErrQuota with the figures when Glance says that it takes no
	// further image from this project now; made: its record is there already.
	Room(ctx context.Context, made bool) error
	// Create makes a queued image from i's id and metadata; ErrIDUsed.
	Create(ctx context.Context, i glance.Image) (glance.Image, error)
	// Adopt gives a queued image, which is as now says, the metadata that Create would
	// have given want. It does nothing where nothing differs. ErrNoImage.
	Adopt(ctx context.Context, now, want glance.Image) (glance.Image, error)
	// Upload gives a queued image its data: exactly size bytes of r, sent with
	// that Content-Length. When r fails first, the connection is cut and Glance puts
	// the image back to queued. It never sends r twice. r must
	// end when its own context does: Upload waits for a Read that is under way. ErrNotQueued, ErrNoImage, ErrQuota.
	Upload(ctx context.Context, id glance.ImageID, r io.Reader, size int64) error
	// Finish sets what may not be set before the content is proven: visibility,
	// hidden, protected, and removes PropJob. It may be repeated.
	Finish(ctx context.Context, i glance.Image) (glance.Image, error)
	// Delete removes an image; nil when it is gone already.
	Delete(ctx context.Context, id glance.ImageID) error
	// Data returns an active image's bytes.
	Data(ctx context.Context, id glance.ImageID) (io.ReadCloser, error)
}

// Stager makes local copies on the mounted export of this site's DTN.
type Stager interface {
	// Stage puts the image's file from Glance's datadir under f.Name in the outbox
	// with f.Size and f.Digest, durable when it returns nil; how says which way was
	// taken ("hard link", "copy, 37 % holes"). It may be repeated, and reuses what is there and right.
	// Errors: ErrNoFile, ErrTruncated, *digest.MismatchError, ErrSpace.
	Stage(ctx context.Context, id glance.ImageID, f mover.File, report func(moved int64)) (how string, err error)
	// Unstage removes a staged file; nil when it is gone already.
	Unstage(ctx context.Context, name string) error
	// Staged lists the names in the outbox.
	Staged(ctx context.Context) ([]string, error)
	// Check tells whether the export is there and takes files; an ErrOutbox when only
	// the latter is not so. It returns in bounded time, and may be called often, though
	// the export hangs.
	Check(ctx context.Context) error
	// Open opens a file of the export for reading at random, without read-ahead: parts
	// of it may not be written yet.
	Open(name string) (ReaderAtCloser, error)
}

// ReaderAtCloser is an open file of the export.
type ReaderAtCloser interface {
	io.ReaderAt
	io.Closer
}

// Errors of a Stager.
var (
	ErrNoFile    = mover.ErrNoFile
	ErrTruncated = mover.ErrTruncated
	ErrSpace     = mover.ErrSpace
	ErrOutbox    = mover.ErrOutbox
)

// Mover is this site's DTN as a sender: it does the API call to the peer's.
type Mover interface {
	// Submit is idempotent by Request.Key; mover.ErrKeyConflict.
	Submit(ctx context.Context, r mover.Request) (mover.TransferID, error)
	// Status returns a transfer; mover.ErrNoTransfer when the DTN has forgotten it.
	Status(ctx context.Context, id mover.TransferID) (mover.Status, error)
	// Cancel stops a transfer; nil when it has ended or is not known.
	Cancel(ctx context.Context, id mover.TransferID) error
	// Transfers returns the transfers in one state, or all if state is empty, oldest first.
	Transfers(ctx context.Context, state mover.TransferState) ([]mover.Status, error)
	// Passages returns the files that it passes on from one site to another, or keeps for that.
	Passages(ctx context.Context) ([]mover.Passage, error)
	// Adjust changes what a transfer uses while it runs or waits; mover.ErrNoTransfer.
	Adjust(ctx context.Context, id mover.TransferID, p mover.PCP) (mover.Status, error)
	// Prioritise gives a transfer another priority while it runs or waits; mover.ErrNoTransfer.
	Prioritise(ctx context.Context, id mover.TransferID, p mover.Priority) error
	// Paths tells what transfers have seen of the paths to their destinations, by address.
	Paths(ctx context.Context) ([]mover.SeenPath, error)
	// History returns what its transfers have achieved, as CSV.
	History(ctx context.Context) (csv string, err error)
	// ImportHistory adds all of such a CSV, or nothing.
	ImportHistory(ctx context.Context, csv string) (mover.Imported, error)
	// ForgetHistory drops what a site's DTN has seen of it.
	ForgetHistory(ctx context.Context, site string) (mover.Forgotten, error)
	// Probe measures a path, tells how far it is, and returns what is known of the path then.
	Probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.SeenPath, error)
	// Onward asks a relay what it has seen of its paths to the sites to which it passes this
	// site's files on; the relay's mode does not matter.
	Onward(ctx context.Context, r mover.Relay) ([]mover.Hop, error)
}

// Landing is this site's DTN as a receiver.
type Landing interface {
	// Arrival returns what is known of a file in the inbox; mover.ErrNoArrival.
	Arrival(ctx context.Context, name string) (mover.Arrival, error)
	// Arrivals returns all files in the inbox.
	Arrivals(ctx context.Context) ([]mover.Arrival, error)
	// Watch yields the whole inbox, by the files' names: as it is, and then each time the
	// DTN announces a change of it, until ctx ends. While the DTN cannot be heard it yields
	// why, at each vain try, and when it can be heard again the inbox.
	Watch(ctx context.Context) iter.Seq2[map[string]mover.Arrival, error]
	// BlockCheck returns a function that compares a block of an arrival, mover.BlockSize
	// long but for the last, with what the DTN has proven: a *digest.MismatchError, or
	// mover.ErrNoDigests. It is for one goroutine.
	BlockCheck(name string) func(ctx context.Context, index int64, block []byte) error
	// Drop removes an arrival, complete or not, and ends its session; nil when there is none.
	Drop(ctx context.Context, name string) error
	// Capabilities tells the data address and the free space.
	Capabilities(ctx context.Context) (mover.Capabilities, error)
}

// Signer signs tickets with this agent's key.
type Signer interface {
	Sign(t mover.Ticket) (string, error)
}

// Verdict is a peer's answer to an offer.
type Verdict string

// The verdicts.
const (
	Have   Verdict = "have"   // the image is there, same id or known under another, same content: nothing to do
	Accept Verdict = "accept" // send it; or, without a ticket, the content is there already and is being delivered
	Wait   Verdict = "wait"   // not now, Reason says why (no space, a half-made image): offer again later
	Refuse Verdict = "refuse" // a person has to act, Reason says how
)

// Offer asks a peer to take an image.
type Offer struct {
	Image glance.Image `json:"image"`
	Anew  bool         `json:"anew,omitempty" doc:"a person wants it, though it was cancelled before"`
	Via   string       `json:"via,omitempty" maxLength:"32" doc:"the site whose DTN passes the file on; left out: none"`

	Priority mover.Priority `json:"priority,omitempty" enum:"low,normal,high" doc:"of its job, among those of the same site; empty: normal"`
}

// Grant is a peer's answer to an Offer.
type Grant struct {
	Verdict  Verdict        `json:"verdict"`
	Reason   string         `json:"reason,omitempty"`
	Delivery JobID          `json:"delivery,omitempty" doc:"the peer's job for this image"`
	ImageID  glance.ImageID `json:"image_id,omitempty" doc:"the image's id at the peer"`
	Ticket   string         `json:"ticket,omitempty" doc:"empty when no byte has to move"`
	Address  string         `json:"address,omitempty" doc:"data address of the peer's DTN"`
	Name     string         `json:"name,omitempty" doc:"the file's name in the peer's inbox"`
}

// Delivery is what a peer tells of its Receive job.
type Delivery struct {
	ID      JobID          `json:"id"`
	State   State          `json:"state"`
	Reason  string         `json:"reason,omitempty"`
	ImageID glance.ImageID `json:"image_id,omitempty" doc:"the image's id at the peer"`
	Moved   int64          `json:"moved" doc:"bytes given to Glance so far"`
	How     string         `json:"how,omitempty" doc:"how they were, once all are"`
	Waited  Waited         `json:"waited,omitzero" doc:"what the delivery has waited for longest, once it is done"`

	Bottleneck mover.Bottleneck `json:"bottleneck,omitzero" doc:"what it waits for most of the time"`
}

// Peer is another site's agent.
type Peer interface {
	// Offer may be repeated: it gives a new ticket for the same delivery.
	Offer(ctx context.Context, o Offer) (Grant, error)
	// Delivery returns the state of the peer's job; ErrNoJob.
	Delivery(ctx context.Context, id JobID) (Delivery, error)
	// CancelDelivery asks the peer to undo its job; nil when there is none.
	CancelDelivery(ctx context.Context, id JobID) error
	// Inventory yields the peer's images.
	Inventory(ctx context.Context) iter.Seq2[glance.Image, error]
	// Health tells what is wrong at the peer's site.
	Health(ctx context.Context) (Health, error)
	// Request asks the peer to send us an image, named by id or by unique name; the peer's job.
	Request(ctx context.Context, image string) (Job, error)
	// ProbeTicket asks for the right to probe the path to the peer's DTN, or to that of the
	// site via, which passes files on to it; empty: none does.
	ProbeTicket(ctx context.Context, via string) (mover.Destination, error)
	// Sending returns a job of the peer's that sends an image to us; ErrNoJob.
	Sending(ctx context.Context, id JobID) (Job, error)
}
