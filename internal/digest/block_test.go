package digest_test

import (
	"encoding/json"
	"testing"

	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// The values are those of xxh128sum, so that an operator can compare by hand.
func TestBlock(t *testing.T) {
	for in, want := range map[string]string{
		"":  "99aa06d3014798d86001c324468d497f",
		"a": "a96faf705af16834e6c632b61e964e1f",
	} {
		b := digest.OfBlock([]byte(in))
		if got := b.String(); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
		text, err := json.Marshal(b)
		var back digest.Block
		if err := json.Unmarshal(text, &back); err != nil || back != b {
			t.Errorf("%s is read back as %v, %v", text, back, err)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func TestBlockOfPieces(t *testing.T) {
	b := make([]byte, 300_001)
	for i := range b {
		b[i] = byte(i * i >> 7)
	}
	var h digest.BlockHash
	for _, n := range []int{0, 1, 4096, 65537, len(b)} {
		h.Reset()
		for rest := b; len(rest) > 0; rest = rest[min(max(n, 1), len(rest)):] {
			h.Write(rest[:min(max(n, 1), len(rest))])
		}
		if got, want := h.Sum(), digest.OfBlock(b); got != want {
			t.Errorf("in pieces of %d: %v, want %v", n, got, want)
		}
	}
}

func TestBlockRefusesOtherText(t *testing.T) {
	for _, text := range []string{"", "99aa", "99aa06d3014798d86001c324468d497", "99aa06d3014798d86001c324468d497f00", "x9aa06d3014798d86001c324468d497f"} {
		var b digest.Block
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %v", text, b)
		}
	}
}
