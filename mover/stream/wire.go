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

// The protocol, on each TLS 1.3 connection of a session:
//
//	sender    hello     length(4) JSON
//	receiver  message   answer: which blocks are there already, or why not
//	sender    frame     block: header(28) payload    any number, unasked
//	receiver  message   proven | again               one for each block, in any order
//	sender    frame     commit: header(28)           on one connection, once all are proven
//	receiver  message   busy ...                     while it reads, hashes and syncs
//	receiver  message   answer: done, or which blocks are there, or why not
//
// Integers are big-endian. An answer with an error ends the session.
const version = 1

// Limits on what a peer may make us hold.
const (
	maxHello  = 32 << 10
	maxBlocks = 1 << 24 // 16 TiB
	maxAnswer = maxBlocks/8*4/3 + 4096
)

// hello opens a session or, with Join, adds a connection to it.
type hello struct {
	Version int    `json:"version"`
	Ticket  string `json:"ticket"`
	Session string `json:"session"` // chosen by the sender at random, one for each Move
	Join    bool   `json:"join,omitempty"`

	// What the sender has, so that a wrong ticket is found before the first byte.
	Size   int64         `json:"size"`
	Digest digest.Digest `json:"digest"`
}

// answer is the receiver's to a hello and to a commit.
type answer struct {
	Code  mover.Code `json:"code,omitempty"` // not empty: refused or failed, Error says why
	Error string     `json:"error,omitempty"`
	Block int        `json:"block,omitempty"` // bytes in a block
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

// Kinds of frames and messages.
const (
	kindBlock  byte = 1 + iota // frame: header and payload
	kindCommit                 // frame: header alone
	kindProven                 // message: block value is written and proven
	kindAgain                  // message: block value did not have its digest
	kindBusy                   // message: the commit goes on; value tells that it moves
	kindAnswer                 // message: value bytes of JSON follow
)

const (
	headerSize  = 28
	messageSize = 8
)

// header stands before a block: kind(1) zero(3) index(4) length(4) XXH3-128(16).
type header struct {
	kind          byte
	index, length uint32
	digest        digest.Block
}

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.kind)<<24)
	binary.BigEndian.PutUint32(b[4:], h.index)
	binary.BigEndian.PutUint32(b[8:], h.length)
	copy(b[12:headerSize], h.digest[:])
}

// parseHeader returns the header in b, the first headerSize bytes of a frame, if
// it fits a file of this size.
func parseHeader(b []byte, size int64) (header, error) {
	h := header{kind: b[0], index: binary.BigEndian.Uint32(b[4:]), length: binary.BigEndian.Uint32(b[8:])}
	copy(h.digest[:], b[12:headerSize])
	if b[1]|b[2]|b[3] != 0 {
		return header{}, errors.New("a frame's padding is not zero")
	}
	switch h.kind {
	case kindCommit:
		if h.index != 0 || h.length != 0 || h.digest != (digest.Block{}) {
			return header{}, errors.New("a commit carries a block")
		}
	case kindBlock:
		if h.index >= blockCount(size) {
			return header{}, fmt.Errorf("block %d of a file with %d", h.index, blockCount(size))
		}
		if want := blockLen(size, h.index); h.length != want {
			return header{}, fmt.Errorf("block %d has %d bytes instead of %d", h.index, h.length, want)
		}
	default:
		return header{}, fmt.Errorf("a frame of unknown kind %d", h.kind)
	}
	return h, nil
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

// message is kind(1) zero(3) value(4).
type message struct {
	kind  byte
	value uint32
}

func (m message) bytes() []byte {
	b := make([]byte, messageSize)
	b[0] = m.kind
	binary.BigEndian.PutUint32(b[4:], m.value)
	return b
}

func readMessage(r io.Reader) (message, error) {
	var b [messageSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return message{}, err
	}
	return message{kind: b[0], value: binary.BigEndian.Uint32(b[4:])}, nil
}

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

func (a answer) bytes() []byte {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // strings, numbers and bools have a JSON form
	}
	return append(message{kindAnswer, uint32(len(b))}.bytes(), b...)
}

// readAnswer reads what follows a message of kindAnswer.
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
