// Package delta tells which parts of a file another one has: both are cut into chunks
// where their content says so, and chunks with the same digest are the same. Bytes that
// are put in or taken out move the cuts behind them, and no cut else.
//
// A digest here finds, and proves nothing: who fills a file from another one by it compares
// the outcome with a digest of the outcome.
package delta

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sort"
	"sync"

	"github.com/jotfs/fastcdc-go"
)

// The sizes of chunks. Both ends of a path have to cut alike. Images of a distribution's
// consecutive builds share the less, the longer chunks are; a list of short ones is long.
const (
	Average = 16 << 10
	Min     = Average / 4
	Max     = Average * 4
)

// ID is the first half of a chunk's SHA-256.
type ID [16]byte

// Chunk is a part of a file. It begins where the one before it ends.
type Chunk struct {
	Len uint32 // 1 to Max
	ID  ID
}

// cutting is held, to be written to, while a chunker is made: that writes to a table that
// all of them read.
var cutting sync.RWMutex

// Cut cuts what r has into chunks, from its beginning to its end. An error of r ends it.
func Cut(r io.Reader) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		cutting.Lock()
		c, err := fastcdc.NewChunker(r, fastcdc.Options{AverageSize: Average, MinSize: Min, MaxSize: Max, BufSize: 1 << 20})
		cutting.Unlock()
		for err == nil {
			cutting.RLock()
			var next fastcdc.Chunk
			next, err = c.Next()
			cutting.RUnlock()
			if err == nil && !yield(Chunk{uint32(next.Length), idOf(next.Data)}, nil) {
				return
			}
		}
		if err != io.EOF {
			yield(Chunk{}, err)
		}
	}
}

func idOf(b []byte) ID {
	sum := sha256.Sum256(b)
	return ID(sum[:len(ID{})])
}

// RecordSize is the length of a chunk in a list.
const RecordSize = 4 + len(ID{})

// AppendTo appends c to a list.
func (c Chunk) AppendTo(list []byte) []byte {
	return append(binary.BigEndian.AppendUint32(list, c.Len), c.ID[:]...)
}

// ParseList reads a list of chunks.
func ParseList(list []byte) ([]Chunk, error) {
	if len(list)%RecordSize != 0 {
		return nil, fmt.Errorf("a list of chunks of %d bytes", len(list))
	}
	chunks := make([]Chunk, 0, len(list)/RecordSize)
	for ; len(list) > 0; list = list[RecordSize:] {
		c := Chunk{binary.BigEndian.Uint32(list), ID(list[4:RecordSize])}
		if c.Len == 0 || c.Len > Max {
			return nil, fmt.Errorf("a chunk of %d bytes", c.Len)
		}
		chunks = append(chunks, c)
	}
	return chunks, nil
}

// Index is the list of a file's chunks.
type Index struct {
	File   string  `json:"file"` // names the content: the digest of the whole
	Size   int64   `json:"size"`
	Chunks []Chunk `json:"-"`
}

// Seal returns the index as it is kept: a line of JSON, the list, and a MAC of both
// (HMAC-SHA256) under key. Whoever can write where it is kept can then neither have chunks
// looked for where they are not, which costs their way over the network twice, nor have
// one file's index taken for another's.
func (x Index) Seal(key []byte) []byte {
	b, err := json.Marshal(x)
	if err != nil {
		panic(err) // strings and numbers have a JSON form
	}
	b = append(b, '\n')
	for _, c := range x.Chunks {
		b = c.AppendTo(b)
	}
	return append(b, mac(key, b)...)
}

var errSeal = errors.New("the index of a file does not have this DTN's seal")

// Unseal reads what Seal returned. Of anything else it returns an error.
func Unseal(b, key []byte) (Index, error) {
	n := len(b) - sha256.Size
	if n < 0 || !hmac.Equal(b[n:], mac(key, b[:n])) {
		return Index{}, errSeal
	}
	var x Index
	head, list := split(b[:n])
	err := json.Unmarshal(head, &x)
	if err == nil {
		x.Chunks, err = ParseList(list)
	}
	return x, err
}

func split(b []byte) (head, list []byte) {
	n, head, err := bufio.ScanLines(b, false)
	if err != nil || n == 0 {
		return b, nil
	}
	return head, b[n:]
}

func mac(key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return h.Sum(nil)
}

// Span is a part of a file.
type Span struct{ Off, Len int64 }

// Spans are parts of a file, by their place, none next to another.
type Spans []Span

// Add adds a part that lies behind all others.
func (s *Spans) Add(off, n int64) {
	if last := len(*s) - 1; last >= 0 && (*s)[last].Off+(*s)[last].Len == off {
		(*s)[last].Len += n
		return
	}
	*s = append(*s, Span{off, n})
}

// Missing returns the parts of [off, off+n) that lie in none of s.
func (s Spans) Missing(off, n int64) []Span {
	var missing []Span
	end := off + n
	for _, have := range s[s.search(off):] {
		if have.Off >= end {
			break
		}
		if have.Off > off {
			missing = append(missing, Span{off, have.Off - off})
		}
		off = have.Off + have.Len
	}
	if off < end {
		missing = append(missing, Span{off, end - off})
	}
	return missing
}

// search returns the number of the first span that ends behind off.
func (s Spans) search(off int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].Off+s[i].Len > off })
}

// Join appends to dst the parts of a block, which is the file's from off on.
func Join(dst, block []byte, off int64, parts []Span) []byte {
	for _, p := range parts {
		dst = append(dst, block[p.Off-off:][:p.Len]...)
	}
	return dst
}

// Spread undoes Join, in place: what was joined is where block begins.
func Spread(block []byte, off int64, parts []Span) {
	n := int64(0)
	for _, p := range parts {
		n += p.Len
	}
	for _, p := range slices.Backward(parts) {
		n -= p.Len
		copy(block[p.Off-off:][:p.Len], block[n:n+p.Len])
	}
}
