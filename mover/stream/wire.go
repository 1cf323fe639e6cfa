package stream

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
//	sender    open     JSON     this file comes; files are numbered by the sender, upwards
//	receiver  answer   JSON     which blocks are there already; or that all is done; or why not
//	receiver  proven | again    a block is there; or it is not, and to be sent (again)
//	receiver  busy              while it reads back, hashes and syncs: the index tells that it moves
//	receiver  answer   JSON     the end: done, or why not
//	sender    close             the file's end was not waited for
//	sender    ping              the link is in use
//
// The others are lanes. They carry one way only
//
//	sender    block    payload proof     any number, unasked, of any file
//	sender    hole                       a block of nothing but zeros
//
// What follows the answer on a lane is in the link's protection: in TLS when it is
// private, else bare. The proof is 16 bytes in private, the payload's digest.Block; 16
// bytes in safe, see proof; and none in clear.
//
// Everything but the hello begins with a header. Integers are big-endian. A file has
// ended with an answer that says done or why not, a link with its control connection.
const version = 2

// Limits on what a peer may make us hold.
const (
	maxHello  = 4 << 10
	maxOpen   = 32 << 10
	maxBlocks = 1 << 24 // 16 TiB
	maxAnswer = maxBlocks/8*4/3 + 4096
	maxFiles  = 1024 // open on a link at once
)

// hello opens a link or, with Lane, adds a connection to it.
type hello struct {
	Version    int              `json:"version"`
	Link       string           `json:"link"` // chosen by the sender at random
	Lane       bool             `json:"lane,omitempty"`
	Protection mover.Protection `json:"protection"`
}

// opening is the sender's announcement of a file: what it has, so that a wrong ticket
// is found before the first byte.
type opening struct {
	Ticket string        `json:"ticket"`
	Size   int64         `json:"size"`
	Digest digest.Digest `json:"digest,omitzero"`
}

// answer is the receiver's to a hello, to an opening, and at a file's end.
type answer struct {
	Code  mover.Code `json:"code,omitempty"` // not empty: refused or failed, Error says why
	Error string     `json:"error,omitempty"`
	Block int        `json:"block,omitempty"` // bytes in a block; to a hello
	Done  bool       `json:"done,omitempty"`
	Have  bitmap     `json:"have,omitempty"` // blocks that need not be sent
}

// err is the failure that the answer tells of.
func (a answer) err() error {
	if a.Code == "" {
		return nil
	}
	return mover.Coded(a.Code, errors.New(a.Error))
}

// refusal is the answer that tells of err.
func refusal(err error) answer { return answer{Code: mover.CodeOf(err), Error: err.Error()} }

// kind is what a header begins.
type kind byte

const (
	kindOpen   kind = 1 + iota // length bytes of JSON follow, an opening
	kindClose                  //
	kindPing                   // of no file
	kindBlock                  // length bytes follow, then the proof
	kindHole                   // length bytes are zeros and do not follow
	kindProven                 // block index is there
	kindAgain                  // block index is not
	kindBusy                   // index changes while something moves
	kindAnswer                 // length bytes of JSON follow, an answer
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
	if h.kind < kindOpen || h.kind > kindAnswer {
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
	if want := blockLen(size, h.index); h.length != want {
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
