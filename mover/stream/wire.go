package stream

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// The protocol. A link joins two DTNs. Each of its connections begins with a TLS 1.3
// handshake in which both show their certificates, and with
//
//	sender    hello    length(4) JSON    opens a link, or adds a lane to it
//	receiver  answer                     an empty one, or why not
//
// The connection that opens a link is its control connection:
//
//	sender    open     ticket   and JSON: this file comes; files are numbered by the sender, upwards
//	receiver  answer   JSON     which blocks are there already; or that all is done; or why not
//	sender    chunks   list     of the file, in order; after an answer that asks for them
//	receiver  had      bitmap   which of them it has
//	receiver  proven | again    a block is there; or it is not, and to be sent (again)
//	receiver  busy              while it reads back, hashes and syncs: the index tells that it moves
//	receiver  answer   JSON     the end: done, or why not
//	receiver  times    JSON     what its lanes have waited for of late, and its limit
//	receiver  room              blocks below the index may be sent: a relay takes no more for now
//	receiver  passed   JSON     what a relay has brought to the destination, and what it waits for
//	sender    close             the file's end was not waited for; index 1: and what came of it is worthless
//	sender    ping              the link is in use
//
// The others are lanes. They carry one way only
//
//	sender    block    payload proof     any number, unasked, of any file
//	sender    hole                       a block of nothing but zeros
//	sender    packed   payload proof     a block that is compressed, or what is missing of it
//
// What follows the answer on a lane is in the link's protection: in TLS when it is
// private, else bare. The proof is 16 bytes in private, the payload's digest.Block; 16
// bytes in safe, see proof; and none in clear.
//
// A receiver that takes no connections opens them itself. It is the client of TLS then,
// and nothing else of the above is another:
//
//	receiver  hello    with standby: it waits on this connection, one for each sender
//	sender    answer
//	sender    call     JSON     a connection is asked for, by a name for it alone
//	receiver  hello    on another connection, answers: that name
//	sender    answer            and now its own hello, as if it had opened this one
//	receiver  call     JSON     or, where it stands by: why there is none
//	both      ping              where it stands by
//
// A probe is a link without files, which both hellos say. On its control connection:
//
//	sender    probe    JSON     what it asks for
//	receiver  answer
//	sender    ping              any number of them
//	receiver  ping              the same, at once
//	receiver  probe    JSON     what has arrived
//	receiver  answer            a bound was met; the end
//
// Its lanes carry bytes, which are thrown away, and neither blocks nor proofs.
//
// Everything but the hello begins with a header. Integers are big-endian. A file has
// ended with an answer that says done or why not, a link with its control connection.
const version = 3

// Limits on what a peer may make us hold.
const (
	maxHello  = 4 << 10
	maxOpen   = 32 << 10
	maxBlocks = 1 << 24 // 16 TiB
	maxAnswer = maxBlocks/8*4/3 + 4096
	maxTimes  = 1 << 10
	maxOnward = 256 << 10
	maxFiles  = 1024 // open on a link at once
)

// hello opens a link or, with Lane, adds a connection to it.
type hello struct {
	Version    int              `json:"version"`
	Link       string           `json:"link"` // chosen by the sender at random
	Lane       bool             `json:"lane,omitempty"`
	Protection mover.Protection `json:"protection"`
	Probe      bool             `json:"probe,omitempty"`  // no file will come; a receiver that does not say so in its answer knows of no probes
	Onward     bool             `json:"onward,omitempty"` // what a relay has seen of its ways on is asked for

	// Of a receiver that takes no connections, instead of Link:
	Standby bool   `json:"standby,omitempty"`
	Answers string `json:"answers,omitempty"` // the call
}

// opening is the sender's announcement of a file: what it has, so that a wrong ticket
// is found before the first byte.
type opening struct {
	Same   int             `json:"same,omitempty"` // bytes with which the ticket before on this connection begins, too; Ticket is the rest
	Ticket string          `json:"-"`
	Size   int64           `json:"size"`
	Digest digest.Digest   `json:"digest,omitzero"`
	Relay  mover.RelayMode `json:"relay,omitempty"`  // the receiver passes the file on to where the ticket is for
	Sparse bool            `json:"sparse,omitempty"` // holes will come: room for all of it is too much

	// For a relay, which sends the file on so:
	Priority mover.Priority `json:"priority,omitempty"`
	PCP      mover.PCP      `json:"pcp,omitzero"`
}

// passed is what a relay tells of the way from it to the destination.
type passed struct {
	Blocks     uint32           `json:"blocks"` // proven there
	Bottleneck mover.Bottleneck `json:"bottleneck,omitzero"`
}

// after leaves out of the ticket what the one before begins with, too: tickets of one agent
// have its certificate there.
func (o opening) after(before string) opening {
	n := 0
	for n < min(len(before), len(o.Ticket)) && before[n] == o.Ticket[n] {
		n++
	}
	o.Same, o.Ticket = n, o.Ticket[n:]
	return o
}

// bytes is the message of an opening. The ticket goes as it is: it is long, and files are many.
func (o opening) bytes(file uint32) []byte {
	body := header{}.with(o)[headerSize:]
	h := header{kindOpen, file, uint32(len(o.Ticket)), uint32(len(o.Ticket) + len(body))}
	return slices.Concat(h.bytes(), []byte(o.Ticket), body)
}

// readOpening reads what follows a header of kindOpen.
func readOpening(r io.Reader, h header) (o opening, err error) {
	if h.length > maxOpen {
		return o, fmt.Errorf("an opening of %d bytes where at most %d are allowed", h.length, maxOpen)
	}
	if h.index > h.length {
		return o, fmt.Errorf("a ticket of %d bytes in an opening of %d", h.index, h.length)
	}
	b := make([]byte, h.length)
	if _, err := io.ReadFull(r, b); err != nil {
		return o, err
	}
	o.Ticket = string(b[:h.index])
	return o, json.Unmarshal(b[h.index:], &o)
}

// whole undoes after.
func (o opening) whole(before string) (opening, error) {
	if o.Same < 0 || o.Same > len(before) {
		return o, fmt.Errorf("a ticket begins with %d bytes of one that has %d", o.Same, len(before))
	}
	if n := o.Same + len(o.Ticket); n > maxOpen {
		return o, fmt.Errorf("a ticket of %d bytes where at most %d are allowed", n, maxOpen)
	}
	o.Same, o.Ticket = 0, before[:o.Same]+o.Ticket
	return o, nil
}

// answer is the receiver's to a hello, to an opening, and at a file's end.
type answer struct {
	Code  mover.Code `json:"code,omitempty"` // not empty: refused or failed, Error says why
	Error string     `json:"error,omitempty"`
	Block int        `json:"block,omitempty"` // bytes in a block; to a hello
	Done  bool       `json:"done,omitempty"`
	Have  bitmap     `json:"have,omitempty"`  // blocks that need not be sent
	Bases bool       `json:"bases,omitempty"` // parts of the file may be there: its chunks tell
	Room  uint32     `json:"room,omitempty"`  // blocks below it may be sent; 0: all
	Probe bool       `json:"probe,omitempty"` // to a hello: the link is a probe's

	Onward json.RawMessage `json:"onward,omitempty"` // to a hello that asks for it: a list of mover.Hop

	Wait time.Duration `json:"wait,omitempty"` // nothing is wrong, and the file may come after this time
	Rate mover.Rate    `json:"rate,omitempty"` // what may come from this site now; to a hello, and told again in times; 0: no limit

	passed passed // a message of its own
}

// Bounds of the Wait that a peer tells: it is asked with a pause, and the time can be reckoned with.
const minWait, maxWait = time.Second, time.Hour

// err is the failure that the answer tells of.
func (a answer) err() error {
	if a.Code == "" {
		return nil
	}
	code, text := a.Code.Known(), mover.Told(a.Error)
	if a.Wait > 0 {
		until := time.Now().Add(min(max(a.Wait, minWait), maxWait))
		return mover.Coded(code, &mover.Wait{Until: until, Reason: "the destination: " + text})
	}
	return mover.Coded(code, errors.New(text))
}

// refusal is the answer that tells of err.
func refusal(err error) answer {
	err = crowded(err)
	a := answer{Code: mover.CodeOf(err), Error: mover.Told(err.Error())} // a relay repeats what it was told
	if w := waits(err); w != nil {
		a.Wait = max(time.Until(w.Until), minWait)
	}
	return a
}

// kind is what a header begins.
type kind byte

const (
	kindOpen   kind = 1 + iota // length bytes follow, an opening: the ticket, of index bytes, and JSON
	kindClose                  //
	kindPing                   // of no file
	kindBlock                  // length bytes follow, then the proof
	kindHole                   // length bytes are zeros and do not follow
	kindProven                 // block index is there
	kindAgain                  // block index is not
	kindBusy                   // index changes while something moves
	kindAnswer                 // length bytes of JSON follow, an answer
	kindCall                   // length bytes of JSON follow, a call
	kindRoom                   // blocks below index may be sent
	kindPacked                 // length bytes follow, a packed block, then the proof
	kindChunks                 // length bytes follow, a list of chunks; index is the first one's number
	kindHad                    // length bytes follow, a bitmap: which of the chunks from index on bases have
	kindTimes                  // of no file; length bytes of JSON follow, times
	kindProbe                  // of no file; length bytes of JSON follow, a probing or a count
	kindPassed                 // length bytes of JSON follow, passed
	kindsEnd                   // no kind: above them all
)

const headerSize = 16

// header is kind(1) zero(3) file(4) index(4) length(4).
type header struct {
	kind                kind
	file, index, length uint32
}

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.kind)<<24)
	binary.BigEndian.PutUint32(b[4:], h.file)
	binary.BigEndian.PutUint32(b[8:], h.index)
	binary.BigEndian.PutUint32(b[12:], h.length)
}

func (h header) bytes() []byte {
	b := make([]byte, headerSize)
	h.put(b)
	return b
}

// with returns the message of h and a body in JSON.
func (h header) with(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, numbers and bools have a JSON form
	}
	h.length = uint32(len(body))
	return append(h.bytes(), body...)
}

func parseHeader(b []byte) (header, error) {
	h := header{
		kind: kind(b[0]), file: binary.BigEndian.Uint32(b[4:]),
		index: binary.BigEndian.Uint32(b[8:]), length: binary.BigEndian.Uint32(b[12:]),
	}
	if b[1]|b[2]|b[3] != 0 {
		return header{}, errors.New("a header's padding is not zero")
	}
	if h.kind < kindOpen || h.kind >= kindsEnd {
		return header{}, fmt.Errorf("a header of unknown kind %d", h.kind)
	}
	return h, nil
}

func readHeader(r io.Reader) (header, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return header{}, err
	}
	return parseHeader(b[:])
}

// fits reports whether h is that of a block of a file of this size.
func (h header) fits(size int64) error {
	if h.index >= blockCount(size) {
		return fmt.Errorf("block %d of a file with %d", h.index, blockCount(size))
	}
	want := blockLen(size, h.index)
	if h.kind == kindPacked && int(h.length) >= sumSize && h.length < want {
		return nil
	}
	if h.length != want {
		return fmt.Errorf("block %d has %d bytes instead of %d", h.index, h.length, want)
	}
	return nil
}

// blockCount is the number of blocks of a file of this size, which is at most maxBlocks blocks.
func blockCount(size int64) uint32 {
	return uint32((size + mover.BlockSize - 1) / mover.BlockSize)
}

// blockLen is the length of block i: BlockSize, but for the last one.
func blockLen(size int64, i uint32) uint32 {
	return uint32(min(size-blockStart(i), mover.BlockSize))
}

func blockStart(i uint32) int64 { return int64(i) * mover.BlockSize }

func (h hello) bytes() []byte {
	b, err := json.Marshal(h)
	if err != nil {
		panic(err) // strings, numbers and bools have a JSON form
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func readHello(r io.Reader) (hello, error) {
	var h hello
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return h, err
	}
	err := readJSON(r, binary.BigEndian.Uint32(n[:]), maxHello, &h)
	if err == nil && h.Version != version {
		err = fmt.Errorf("the sender speaks version %d of the protocol, this DTN version %d; run the same release on both", h.Version, version)
	}
	return h, err
}

// bytes is the message of an answer about a file; 0: to a hello.
func (a answer) bytes(file uint32) []byte { return header{kind: kindAnswer, file: file}.with(a) }

// readAnswer reads what follows a header of kindAnswer.
func readAnswer(r io.Reader, length uint32) (answer, error) {
	var a answer
	err := readJSON(r, length, maxAnswer, &a)
	return a, err
}

// readHad reads what follows a header of kindHad.
func readHad(r io.Reader, length uint32) (bitmap, error) {
	if length > offerChunks/8 {
		return nil, fmt.Errorf("%d bytes of an answer for %d chunks", length, offerChunks)
	}
	b := make(bitmap, length)
	_, err := io.ReadFull(r, b)
	return b, err
}

func readJSON(r io.Reader, length, limit uint32, v any) error {
	if length > limit {
		return fmt.Errorf("%d bytes of JSON where at most %d are allowed", length, limit)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// bitmap is a set of block indices.
type bitmap []byte

func newBitmap(n uint32) bitmap { return make(bitmap, (n+7)/8) }

func (b bitmap) has(i uint32) bool { return int(i/8) < len(b) && b[i/8]&(1<<(i%8)) != 0 }
func (b bitmap) add(i uint32)      { b[i/8] |= 1 << (i % 8) }
func (b bitmap) remove(i uint32)   { b[i/8] &^= 1 << (i % 8) }
