package stream

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// pieceSize is how much of a block is taken in hand at once. It stays in a core's cache
// while it is read and proven, which is what a pass over the bytes costs.
const pieceSize = 256 << 10

// proofSize is the length of what follows a block's payload, but in clear, where nothing does.
const proofSize = 16

// proof computes what follows each block on a lane. Both ends keep one and feed it the
// same bytes.
//
// In safe it is a GMAC (NIST SP 800-38D: GCM of nothing, with the bytes as additional
// data) under a key that only the lane's two ends know: of the header and of the GMACs
// of the pieces. A nonce is the number of the block on the lane and that of the piece.
type proof struct {
	protection mover.Protection
	summing    bool             // computes sum
	sum        digest.BlockHash // of the payload
	mac        cipher.AEAD      // safe
	block      uint64           // its number on the lane
	piece      uint32
	macs       []byte
}

// newProof returns the proof of a lane whose TLS handshake is done. It sums in private only.
func newProof(p mover.Protection, s tls.ConnectionState) (*proof, error) {
	summing := p == mover.Private
	if p != mover.Safe {
		return &proof{protection: p, summing: summing}, nil
	}
	key, err := s.ExportKeyingMaterial("EXPORTER-glance-dtn-safe", nil, 16)
	if err != nil {
		return nil, err
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	mac, err := cipher.NewGCM(c)
	return &proof{protection: p, mac: mac}, err
}

// size is that of what follows a block.
func (p *proof) size() int {
	if p.protection == mover.Clear {
		return 0
	}
	return proofSize
}

// begin starts a block.
func (p *proof) begin(h header) {
	p.sum.Reset()
	if p.protection == mover.Safe {
		p.block, p.piece = p.block+1, 0
		p.macs = append(p.macs[:0], h.bytes()...)
	}
}

// add feeds it the next piece of the payload. Pieces are pieceSize long, but for the last.
func (p *proof) add(piece []byte) {
	if p.summing {
		_, _ = p.sum.Write(piece) // never fails
	}
	if p.protection == mover.Safe {
		p.macs = p.gmac(p.macs, piece)
	}
}

// end appends the block's proof to b.
func (p *proof) end(b []byte) []byte {
	switch p.protection {
	case mover.Private:
		sum := p.sum.Sum()
		return append(b, sum[:]...)
	case mover.Safe:
		return p.gmac(b, p.macs)
	}
	return b
}

// check reports whether b is the block's proof.
func (p *proof) check(b []byte) bool {
	var own [proofSize]byte
	return subtle.ConstantTimeCompare(p.end(own[:0]), b) == 1
}

func (p *proof) gmac(dst, b []byte) []byte {
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[:], p.block)
	binary.BigEndian.PutUint32(nonce[8:], p.piece)
	p.piece++
	return p.mac.Seal(dst, nonce[:], nil, b)
}
