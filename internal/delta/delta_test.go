package delta

import (
	"bytes"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
)

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = mathrand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func cut(t testing.TB, b []byte) []Chunk {
	t.Helper()
	var all []Chunk
	for c, err := range Cut(bytes.NewReader(b)) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func TestChunksAreTheFile(t *testing.T) {
	for _, n := range []int{0, 1, Min, Max, Max + 1, 1 << 20, 3<<20 + 17} {
		b := noise(1, n)
		at := 0
		for _, c := range cut(t, b) {
			if c.Len == 0 || c.Len > Max || c.Len < Min && at+int(c.Len) != n {
				t.Errorf("a chunk of %d bytes at %d of %d", c.Len, at, n)
			}
			if c.ID != idOf(b[at:at+int(c.Len)]) {
				t.Errorf("the chunk at %d has not its digest", at)
			}
			at += int(c.Len)
		}
		if at != n {
			t.Errorf("%d bytes of %d are in chunks", at, n)
		}
	}
}

// TestWhatDoesNotChangeIsFound holds how much of a file is found in one of which it is an
// update.
func TestWhatDoesNotChangeIsFound(t *testing.T) {
	old := noise(1, 8<<20)
	for name, c := range map[string]struct {
		now  []byte
		most int // bytes that are not found
	}{
		"the same":         {old, 0},
		"a byte put in":    {slices.Concat(old[:1<<20], []byte{1}, old[1<<20:]), 3 * Max},
		"a part taken out": {slices.Concat(old[:1<<20], old[1<<20+12345:]), 3 * Max},
		"a block changed":  {slices.Concat(old[:1<<20], noise(2, 1<<20), old[2<<20:]), 1<<20 + 3*Max},
		"halves exchanged": {slices.Concat(old[4<<20:], old[:4<<20]), 4 * Max},
		"another file":     {noise(3, 8<<20), 8 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			have := map[ID]bool{}
			for _, c := range cut(t, old) {
				have[c.ID] = true
			}
			missing := 0
			for _, c := range cut(t, c.now) {
				if !have[c.ID] {
					missing += int(c.Len)
				}
			}
			if missing > c.most {
				t.Errorf("%d bytes are not found, want at most %d", missing, c.most)
			}
		})
	}
}

// TestFilesAreCutAtOnce is for the race detector.
func TestFilesAreCutAtOnce(t *testing.T) {
	b := noise(1, 1<<20)
	want := cut(t, b)
	var cutting sync.WaitGroup
	for range 4 {
		cutting.Go(func() {
			if got := cut(t, b); !slices.Equal(got, want) {
				t.Error("the chunks are others")
			}
		})
	}
	cutting.Wait()
}

func TestAReadErrorEndsTheCut(t *testing.T) {
	broken := errors.New("broken")
	var last error
	for _, last = range Cut(io.MultiReader(bytes.NewReader(noise(1, 2<<20)), iotest.ErrReader(broken))) {
	}
	if !errors.Is(last, broken) {
		t.Errorf("got %v", last)
	}
}

func TestAnIndexIsTakenOnlyWithItsSeal(t *testing.T) {
	key, x := []byte("key"), Index{File: "sha512-12", Size: 3 << 20, Chunks: cut(t, noise(1, 3<<20))}
	sealed := x.Seal(key)
	got, err := Unseal(sealed, key)
	if err != nil || got.File != x.File || got.Size != x.Size || !slices.Equal(got.Chunks, x.Chunks) {
		t.Errorf("got an index of %s with %d chunks, %v", got.File, len(got.Chunks), err)
	}
	for i := 0; i < len(sealed); i += 101 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := Unseal(bad, key); !errors.Is(err, errSeal) {
			t.Errorf("byte %d was changed: %v", i, err)
		}
	}
	for _, n := range []int{0, 5, len(sealed) - 1} {
		if _, err := Unseal(sealed[:n], key); !errors.Is(err, errSeal) {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
	if _, err := Unseal(sealed, []byte("another")); !errors.Is(err, errSeal) {
		t.Errorf("another key: %v", err)
	}
}

// FuzzParseList holds that a list is written as it was read.
func FuzzParseList(f *testing.F) {
	f.Add(Chunk{7, ID{1}}.AppendTo(nil))
	f.Add(Chunk{Max + 1, ID{}}.AppendTo(nil))
	f.Fuzz(func(t *testing.T, list []byte) {
		chunks, err := ParseList(list)
		if err != nil {
			return
		}
		var again []byte
		for _, c := range chunks {
			if c.Len == 0 || c.Len > Max {
				t.Errorf("a chunk of %d bytes", c.Len)
			}
			again = c.AppendTo(again)
		}
		if !bytes.Equal(list, again) {
			t.Errorf("%x was read as %v", list, chunks)
		}
	})
}

// FuzzMissing holds that what spans have and what is missing are all of a range, and
// nothing twice.
func FuzzMissing(f *testing.F) {
	f.Add([]byte{0, 5, 3, 0, 9, 1}, int64(2), int64(20))
	f.Fuzz(func(t *testing.T, steps []byte, off, n int64) {
		if off < 0 || off > 1<<12 || n < 0 || n > 1<<12 || len(steps) > 64 {
			t.Skip()
		}
		var s Spans
		have := map[int64]bool{}
		at := int64(0)
		for i := 0; i+1 < len(steps); i += 2 {
			at += int64(steps[i])
			if steps[i+1] == 0 {
				continue
			}
			s.Add(at, int64(steps[i+1]))
			for range steps[i+1] {
				have[at] = true
				at++
			}
		}
		missing := map[int64]bool{}
		for _, m := range s.Missing(off, n) {
			if m.Len <= 0 {
				t.Fatalf("a part of %d bytes", m.Len)
			}
			for i := range m.Len {
				if missing[m.Off+i] {
					t.Fatalf("byte %d twice", m.Off+i)
				}
				missing[m.Off+i] = true
			}
		}
		for i := int64(-1); i <= n; i++ {
			if in := i >= 0 && i < n; missing[off+i] != (in && !have[off+i]) {
				t.Fatalf("byte %d of [%d, %d): missing %v, there %v", off+i, off, off+n, missing[off+i], have[off+i])
			}
		}
	})
}

func BenchmarkCut(b *testing.B) {
	data := noise(1, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for _, err := range Cut(bytes.NewReader(data)) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// TestWhatIsJoinedIsSpread takes parts of a block, one of which begins where it does, and
// puts them back.
func TestWhatIsJoinedIsSpread(t *testing.T) {
	const off = 1 << 40
	block := noise(1, 1000)
	for _, parts := range [][]Span{nil, {{off, 1000}}, {{off, 1}, {off + 1, 1}}, {{off + 10, 500}, {off + 600, 300}}, {{off + 999, 1}}} {
		joined := Join([]byte("head"), block, off, parts)[len("head"):]
		got := make([]byte, len(block))
		copy(got, joined)
		Spread(got, off, parts)
		n := 0
		for _, p := range parts {
			n += int(p.Len)
			if at := p.Off - off; !bytes.Equal(got[at:at+p.Len], block[at:at+p.Len]) {
				t.Errorf("%v: the part at %d is another", parts, at)
			}
		}
		if len(joined) != n {
			t.Errorf("%v: %d bytes, want %d", parts, len(joined), n)
		}
	}
}
