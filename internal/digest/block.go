package digest

import (
	"encoding/hex"
	"fmt"

	"github.com/zeebo/xxh3"
)

// Block is the checksum of a block of a file: XXH3-128, big-endian. It finds damage
// and runs at the speed of memory, so that every pass over the bytes can afford it. It
// keeps nobody out who wants to forge: it travels on authenticated connections only, and
// the file's own Digest has the last word on the whole.
type Block [16]byte

// OfBlock returns the checksum of b.
func OfBlock(b []byte) Block { return xxh3.Hash128(b).Bytes() }

// BlockHash computes a Block of bytes that come in pieces. The zero value is ready.
type BlockHash struct{ h xxh3.Hasher }

// Write adds b. It never fails.
func (h *BlockHash) Write(b []byte) (int, error) { return h.h.Write(b) }

// Sum returns the checksum of what was written since the last Reset.
func (h *BlockHash) Sum() Block { return h.h.Sum128().Bytes() }

// Reset begins anew.
func (h *BlockHash) Reset() { h.h.Reset() }

// String returns b as 32 lower-case hex digits.
func (b Block) String() string { return hex.EncodeToString(b[:]) }

// Digest returns b as a Digest, for messages and comparisons.
func (b Block) Digest() Digest { return Digest{Algo: "xxh3-128", Value: b.String()} }

// MarshalText writes what String returns.
func (b Block) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (b *Block) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(b) {
		return fmt.Errorf("a block's checksum of %d digits, want %d", len(text), hex.EncodedLen(len(b)))
	}
	_, err := hex.Decode(b[:], text)
	return err
}
