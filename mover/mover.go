// Package mover holds the nouns of moving files between data transfer nodes
// (DTNs): what to move, how, what became of it, and the seam that every engine
// implements. It does no I/O.
//
// Names of files are slash-separated and relative to a DTN's export. Staged
// files lie in the Outbox, arrivals in the Inbox.
package mover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// The folders of an export.
const (
	Outbox = "outbox" // staged by the agent, read by the DTN
	Inbox  = "inbox"  // written by the DTN, read by the agent

	Relayed = "relay" // the DTN's alone: on their way to other sites
)

// BlockSize is the unit of transfer, of proof and of resume.
const BlockSize = 1 << 20

// The most that a PCP may ask for: 1 GiB in flight, a path of 25 Gbit/s and 300 ms.
const (
	MaxPipelining  = 64
	MaxConcurrency = 64
	MaxParallelism = 16
)

// PCP is a transfer's pipelining, concurrency and parallelism as in GridFTP:
// blocks or files in flight on one connection before an answer is waited for,
// files whose blocks take turns, connections. All are at least 1; zero means
// that the DTN chooses.
type PCP struct {
	Pipelining  int `json:"pipelining,omitempty" minimum:"0" maximum:"64"`
	Concurrency int `json:"concurrency,omitempty" minimum:"0" maximum:"64"`
	Parallelism int `json:"parallelism,omitempty" minimum:"0" maximum:"16"`
}

// With returns p with what change says; what is zero there stays.
func (p PCP) With(change PCP) PCP {
	return PCP{
		Pipelining:  cmp.Or(change.Pipelining, p.Pipelining),
		Concurrency: cmp.Or(change.Concurrency, p.Concurrency),
		Parallelism: cmp.Or(change.Parallelism, p.Parallelism),
	}
}

// Change is what is to be changed of a transfer while it runs or waits. What is zero stays.
type Change struct {
	PCP
	Priority Priority `json:"priority,omitempty" enum:"low,normal,high"`
}

// Protection is what keeps a file's bytes from harm on their way between two DTNs, in
// GridFTP's terms. In all three both DTNs prove to each other who they are.
type Protection string

// The protections, weakest first.
const (
	Clear   Protection = "clear"   // nothing but TCP's checksum; the file's digest, once all is there
	Safe    Protection = "safe"    // each block is authenticated: who listens reads it, nobody changes it
	Private Protection = "private" // TLS 1.3
)

var protections = []Protection{Clear, Safe, Private}

// Validate reports a protection that there is not.
func (p Protection) Validate() error {
	if !slices.Contains(protections, p) {
		return fmt.Errorf("protection %q: it is one of clear, safe and private", p)
	}
	return nil
}

// AtLeast reports whether p is as strong as q or stronger.
func (p Protection) AtLeast(q Protection) bool {
	return slices.Index(protections, p) >= slices.Index(protections, q)
}

// Compression says whether blocks may be compressed on their way.
type Compression string

// The kinds of compression.
const (
	Auto Compression = "auto" // where what is saved would take longer to send than to save
	Off  Compression = "off"
)

// File is a file whose size and content are known before it moves.
type File struct {
	Name   string        `json:"name" doc:"path inside the export" maxLength:"512"`
	Size   int64         `json:"size" minimum:"0"`
	Digest digest.Digest `json:"digest,omitzero" doc:"of the content; none: whoever wants the file checks it, and no DTN does"`
}

// CheckDigest reports a digest that cannot be checked. None can.
func (f File) CheckDigest() error {
	if f.Digest.IsZero() {
		return nil
	}
	return f.Digest.Validate()
}

// CheckName reports whether name is a clean relative path of two elements under
// box (Inbox or Outbox). It is a first check: files are opened through os.Root.
func CheckName(box, name string) error {
	dir, base := path.Split(name)
	if path.Clean(name) != name || dir != box+"/" || base == "" || strings.HasPrefix(base, ".") || strings.ContainsAny(name, "\\\x00") {
		return fmt.Errorf("%q is not a name in %s", name, box)
	}
	return nil
}

// Destination is where a transfer goes: a DTN's data address and the right to
// write one file there.
type Destination struct {
	Address string `json:"address" doc:"host:port of the destination DTN's data plane; callback://SITE, where it takes no connections and stands by at this DTN; or the URL of its export on a GridFTP server"`
	Ticket  string `json:"ticket" doc:"signed by the destination's agent; names file, size, digest and who may send"`
	Via     Relay  `json:"via,omitzero" doc:"the DTN of a third site that passes the file on; left out: none"`
}

// Request asks a DTN to move one of its files to another DTN (third-party
// transfer: the asker sees no byte). Key is chosen by the asker; the same Key
// with the same Request is the same transfer, however often it is submitted. Its
// PCP and Priority may differ then, and change nothing: Change is for that.
type Request struct {
	Key         string      `json:"key" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9._-]+$"`
	Engine      string      `json:"engine,omitempty" doc:"empty: the one that the destination's address is for"`
	Source      File        `json:"source"`
	Destination Destination `json:"destination"`
	PCP         PCP         `json:"pcp,omitzero"`
	Priority    Priority    `json:"priority,omitempty" enum:"low,normal,high" doc:"empty: normal; higher ones go first, and take the places of lower ones"`
}

// The most that one batch of requests may hold, and its length.
const (
	MaxBatch      = 2000
	MaxBatchBytes = 8 << 20
)

// Submitted is what became of one request of a batch: a transfer, or a refusal.
type Submitted struct {
	Status  *Status  `json:"status,omitempty" doc:"the transfer, new or known already"`
	Problem *Problem `json:"problem,omitempty" doc:"why there is none"`
}

// TransferID is a DTN's name for a transfer.
type TransferID string

// TransferState is where a transfer is.
type TransferState string

// A transfer goes from Queued to Running, perhaps back when the DTN restarts, and
// ends in one of the other three.
const (
	Queued    TransferState = "queued"
	Running   TransferState = "running"
	Done      TransferState = "done" // at the destination: proven, synced, under its final name
	Failed    TransferState = "failed"
	Cancelled TransferState = "cancelled"
)

// Final reports whether the state is an end.
func (s TransferState) Final() bool { return s == Done || s == Failed || s == Cancelled }

// Status is a transfer as its DTN tells it.
type Status struct {
	ID      TransferID    `json:"id"`
	Key     string        `json:"key"`
	State   TransferState `json:"state"`
	Source  File          `json:"source"`
	Address string        `json:"address" doc:"the destination's data address"`
	Via     Relay         `json:"via,omitzero" doc:"the DTN of a third site that passes the file on"`
	Moved   int64         `json:"moved" doc:"bytes proven at the destination, or at the relay, those of an earlier attempt included"`
	Rate    float64       `json:"rate" doc:"bits per second, mean of the time that it ran"`
	Present float64       `json:"present_rate,omitempty" doc:"bits per second, of the last seconds"`
	Ran     time.Duration `json:"ran_ns,omitempty" doc:"the time that it ran: what it waited in between is left out"`
	Way     Way           `json:"way,omitzero" doc:"what its way is like, or was at last"`
	Waiting string        `json:"waiting,omitempty" doc:"what a queued one waits for, for a person"`

	Priority Priority `json:"priority,omitempty" enum:"low,normal,high" doc:"empty: normal"`

	Code    Code      `json:"code,omitempty" doc:"why it failed, for a program"`
	Error   string    `json:"error,omitempty" doc:"why it failed, for a person"`
	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
}

// Arrived is how many bytes are proven at the destination.
func (s Status) Arrived() int64 {
	if (s.Via != Relay{}) {
		return s.Way.Through
	}
	return s.Moved
}

// Brought is how many bytes came in the time that it ran, to a relay if there is one: not those
// that were there before.
func (s Status) Brought() int64 { return int64(math.Round(s.Rate * s.Ran.Seconds() / 8)) }

// Left is how many bytes have to be brought somewhere yet: what a relay has to have whole
// before it goes on comes twice.
func (s Status) Left() int64 {
	left := s.Source.Size - s.Arrived()
	if s.Via.Mode == StoreForward {
		left += s.Source.Size - s.Moved
	}
	return left
}

// Code classifies a failed transfer, so that nobody has to parse text.
type Code string

// The codes. What is not in this list is CodeOther and worth another try.
const (
	CodeOther   Code = "other"          // network, peer restart, disk trouble: try again
	CodeTicket  Code = "ticket"         // expired, used up, or for something else: ask for a new one
	CodeSource  Code = "source"         // the source file is missing or has another size: stage again
	CodeContent Code = "content"        // the bytes that arrived are not the promised ones: stage again, find out why
	CodeSpace   Code = "space"          // no space at the destination: wait
	CodeName    Code = "name"           // a name outside the export or not a plain file: a person must look
	CodeAuth    Code = "not_authorised" // certificate not accepted: a person must look
)

// Error is a failure with its Code. Engines return it where the cause is known.
type Error struct {
	Code Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Coded marks err with a code; nil stays nil.
func Coded(c Code, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: c, Err: err}
}

// CodeOf returns err's code, CodeOther where it has none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeOther
}

// ErrCancelled is the cause of a Move's end when nobody wants its file any more: a relay
// need not keep what it has of it.
var ErrCancelled = errors.New("the transfer was cancelled")

// Sentinels of the third-party API.
var (
	ErrNoTransfer  = errors.New("no such transfer")
	ErrNoArrival   = errors.New("no such arrival")
	ErrNotStaged   = errors.New("no such file in the DTN's outbox; does the DTN export the directory that is mounted here?")
	ErrKeyConflict = errors.New("this key was used for another transfer")
	ErrNoDigests   = errors.New("the DTN does not tell the digests of the file's blocks")
)

// Ticket is the right to send one file into one DTN's inbox. The destination's
// agent signs it, its DTN checks it, nobody else can use it. One for a probe is good until
// it expires.
type Ticket struct {
	ID      string    `json:"jti"`               // used once: a second file under the same ID is refused
	Site    string    `json:"site"`              // the destination
	From    string    `json:"from"`              // the site whose DTN may send
	Via     string    `json:"via,omitempty"`     // the site whose DTN may pass it on for that one; empty: none
	Address string    `json:"address,omitempty"` // to which that one passes it on
	File    File      `json:"file"`              // name in the inbox, exact size, exact content
	Probe   bool      `json:"probe,omitempty"`   // it lets the path be probed and no file in: File is zero
	Expires time.Time `json:"-"`                 // the session must open before; it may go on after
}

// ArrivalState is where an arriving file is.
type ArrivalState string

// An arrival is Arriving until every byte is proven, the whole file has the
// promised digest, and it is synced under its final name: Arrived.
const (
	Arriving ArrivalState = "arriving"
	Arrived  ArrivalState = "arrived"
)

// Arrival is a file coming into a DTN's inbox.
type Arrival struct {
	File   File         `json:"file"`
	State  ArrivalState `json:"state"`
	Path   string       `json:"path" doc:"where its bytes are now, inside the export: another name while it arrives"`
	Proven int64        `json:"proven" doc:"bytes from the start without a gap that have been proven and may be read"`
	Moved  int64        `json:"moved" doc:"bytes proven in all"`
	Error  string       `json:"error,omitempty" doc:"why the last session ended, if it did not complete"`
	Since  time.Time    `json:"since"`
}

// InboxChanges is what a DTN announces of its inbox: at first all of it, then what is
// not as it was last told. One with nothing in it is a sign of life.
type InboxChanges struct {
	Arrivals []Arrival `json:"arrivals,omitempty" doc:"files that are new or have changed, as they are now"`
	Dropped  []string  `json:"dropped,omitempty" doc:"names of files that are not there any more"`
}

// Apply brings an inbox, by the files' names, to where the changes lead.
func (c InboxChanges) Apply(inbox map[string]Arrival) {
	for _, a := range c.Arrivals {
		inbox[a.File.Name] = a
	}
	for _, name := range c.Dropped {
		delete(inbox, name)
	}
}

// Blocks are the checksums of blocks of an arrival that its DTN
// has proven, as many as it likes to tell at once from the block asked for on. A DTN
// that does not know them (another engine brought the file, or it was restarted
// since) tells none.
type Blocks struct {
	Sums []digest.Block `json:"xxh3_128" nullable:"false"`
}

// Settled is what a DTN's own disk has of a file in its outbox: whoever wrote it
// there through NFS learns by it what outlives a power cut of the DTN.
type Settled struct {
	Size int64          `json:"size" doc:"bytes of the file"`
	Sums []digest.Block `json:"xxh3_128" nullable:"false" doc:"XXH3-128, in hex, of its blocks from the one asked for on, as many as could be read in a few seconds"`
}

// Ack says when an NFS server acknowledges data as stable: sync and async of exports(5).
type Ack string

// The kinds of acknowledgement.
const (
	AckSync    Ack = "sync"    // when its disk has the data
	AckAsync   Ack = "async"   // before: a crash of the server loses what it has acknowledged
	AckUnknown Ack = "unknown" // nobody could tell
)

// Capabilities says what a DTN offers.
type Capabilities struct {
	Site    string   `json:"site"`
	Version string   `json:"version"`
	Engines []string `json:"engines"`
	Address string   `json:"address" doc:"data plane, or export on a GridFTP server, as other sites reach it"`
	Free    int64    `json:"free" doc:"bytes free on the export for new arrivals, promised space already taken off"`
	Total   int64    `json:"total" doc:"size of the export's filesystem, bytes"`
	Ack     Ack      `json:"ack" enum:"sync,async,unknown" doc:"when this machine's NFS server acknowledges what is written to the export: sync, when the disk has it; async, before"`
	Export  string   `json:"export,omitempty" doc:"id in the marker at the export's root"`

	Callbacks []Callback `json:"callbacks,omitempty" doc:"of a DTN that takes no connections: those that it keeps"`
}

// Callback is the connection that a DTN which takes none keeps to another one, so that
// that one can ask it for more.
type Callback struct {
	Address   string    `json:"address" doc:"host:port of the other DTN's data plane"`
	Site      string    `json:"site,omitempty" doc:"of the other DTN, once it has answered"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since" doc:"it is connected, or is not"`
	Error     string    `json:"error,omitempty" doc:"why it is not connected"`
}

// Trouble says that it is not connected, since when and why; empty: it is.
func (c Callback) Trouble() string {
	if c.Connected {
		return ""
	}
	return fmt.Sprintf("no connection to %s since %s, so nothing comes from there: %s", c.Address, c.Since.UTC().Format(time.RFC3339), c.Error)
}

// Engine moves files. Move returns nil only when every byte is at the
// destination, proven against Request.Source.Digest, synced to disk and under its
// final name. It returns when that is so, when it failed, or when ctx is done,
// and leaves no goroutine behind. A repeated Move of the same Request sends only
// what is not yet proven there. It may be called at once for several requests.
// report is called now and then, never concurrently, and Progress.Moved never falls; the
// first call tells what an earlier attempt had brought there. Where nothing may move now
// the error is a *Wait.
type Engine interface {
	Move(ctx context.Context, r Request, report func(Progress)) error
}

// Adjuster is an Engine whose moves can be changed while they run.
type Adjuster interface {
	// Adjust changes what the running move with that Request.Key uses from now on; what is
	// zero stays. Without such a move, which is one that has reported, nothing happens.
	Adjust(key string, p PCP)
	// Prioritise has others go before the running move with that Request.Key, or after it,
	// where they share connections.
	Prioritise(key string, p Priority)
}
