package stream

import (
	"bytes"
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// TestCompressedInEveryProtection moves a file whose every third block is not worth packing.
func TestCompressedInEveryProtection(t *testing.T) {
	image := text(12*mover.BlockSize + 4097)
	for i := int64(0); i < 12; i += 3 {
		_, _ = mathrand.NewChaCha8([32]byte{byte(i)}).Read(image[i*mover.BlockSize:][:mover.BlockSize])
	}
	for _, p := range protections {
		for _, algo := range []string{"sha512", ""} {
			r := newRigIn(t, p)
			r.rig.Engine.(*Engine).compressAll = true
			f := r.put(t, "image", image)
			if algo == "" {
				f.Digest = digest.Digest{}
			}
			if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
				t.Fatal(err)
			}
			r.came(t, f)
			if sent := r.wires.sent.Load(); sent < f.Size*4/12 || sent > f.Size*8/12 {
				t.Errorf("%s %s: %d bytes were sent for %d", p, algo, sent, f.Size)
			}
		}
	}
}

// text returns n bytes that can be compressed: numbers.
func text(n int64) []byte {
	b := make([]byte, 0, n+32)
	for r := mathrand.New(mathrand.NewPCG(1, uint64(n))); int64(len(b)) < n; {
		b = fmt.Appendf(b, "%d is a number\n", r.Uint32())
	}
	return b[:n]
}

// whole is a packed block of which nothing is there.
func whole(block []byte) []byte { return pack(nil, block, block) }

// put writes b to site A's outbox.
func (r *rig) put(t testing.TB, base string, b []byte) mover.File {
	t.Helper()
	f := mover.File{Name: mover.Outbox + "/" + base, Size: int64(len(b))}
	if err := os.WriteFile(filepath.Join(r.rig.Source, f.Name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := digest.New("sha512")
	h.Write(b)
	f.Digest = digest.Of("sha512", h)
	return f
}

// TestCompressionPays plays a link whose lanes, all busy, bring blocks over a path of a
// given rate, with a compressor of a given speed.
func TestCompressionPays(t *testing.T) {
	const mb = 1e6
	for _, c := range []struct {
		name                    string
		path, compressor, ratio float64 // bytes per second, of one lane's core; out/in
		lanes                   int
		least, most             float64 // share of the blocks that are compressed, once it has settled
	}{
		{"slow path", 12 * mb, 300 * mb, 0.4, 4, 1, 1},
		{"path at a gigabit", 120 * mb, 300 * mb, 0.4, 4, 1, 1},
		{"incompressible", 12 * mb, 300 * mb, 1, 4, 0, 0},
		{"hardly compressible", 12 * mb, 300 * mb, 0.95, 4, 0, 0},
		{"faster than the compressor", 2500 * mb, 300 * mb, 0.4, 4, 0, 0},
		{"faster, and one lane", 400 * mb, 300 * mb, 0.4, 1, 0, 0},
		{"more than the compressor saves", 150 * mb, 100 * mb, 0.05, 1, 0, 0},
		{"less than the compressor saves", 60 * mb, 80 * mb, 0.1, 1, 0.9, 1},
		{"slow compressor", 100 * mb, 20 * mb, 0.4, 1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var decides compression
			now := time.Unix(0, 0)
			decides.rest(now)
			compressed, blocks := 0, 2000
			for i := range 2 * blocks {
				compress, sample := decides.next()
				wire, took := float64(mover.BlockSize), 0.0
				switch {
				case compress:
					wire, took = wire*c.ratio, mover.BlockSize/c.compressor
					decides.saved(mover.BlockSize, int(wire), seconds(took))
					if i >= blocks {
						compressed++
					}
				case sample:
					decides.saved(sampleSize, int(sampleSize*c.ratio), seconds(sampleSize/c.compressor))
				}
				decides.went(mover.BlockSize, int64(wire))
				now = now.Add(seconds(max(took/float64(c.lanes), wire/c.path)))
				decides.heard(mover.BlockSize, c.lanes, now)
			}
			if got := float64(compressed) / float64(blocks); got < c.least || got > c.most {
				t.Errorf("%.3f of the blocks were compressed, want %v to %v", got, c.least, c.most)
			}
		})
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * 1e9) }

// paced is a connection over a path of a given rate.
type paced struct {
	net.Conn
	rate float64 // bytes per second
}

func (p paced) Write(b []byte) (int, error) {
	time.Sleep(seconds(float64(len(b)) / p.rate))
	return p.Conn.Write(b)
}

// TestCompressionOnItsPath moves files over paths of several kinds, whose clock stands
// still while something is computed.
func TestCompressionOnItsPath(t *testing.T) {
	const size = 32 * mover.BlockSize
	noise := make([]byte, size)
	_, _ = mathrand.NewChaCha8([32]byte{1}).Read(noise)
	for _, c := range []struct {
		name        string
		rtt         time.Duration
		rate        float64
		compression mover.Compression
		limit       mover.Limits
		image       []byte
		least, most int64 // bytes sent
	}{
		{"slow", 50 * time.Millisecond, 10e6, mover.Auto, nil, text(size), size * 30 / 100, size * 80 / 100},
		{"slow, off", 50 * time.Millisecond, 10e6, mover.Off, nil, text(size), size, size * 102 / 100},
		{"slow, incompressible", 50 * time.Millisecond, 10e6, mover.Auto, nil, noise, size, size * 102 / 100},
		{"far and fast", 50 * time.Millisecond, 1e18, mover.Auto, nil, text(size), size, size * 102 / 100},
		{"near", 0, 10e6, mover.Auto, nil, text(size), size, size * 102 / 100},
		{"near, with a limit", 0, 1e18, mover.Auto, always("B", 80e6, mover.Unlimited), text(size), size * 30 / 100, size * 80 / 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				r.start(t, "")
				e := r.rig.Engine.(*Engine)
				e.Compression, e.Pacer = c.compression, pace.New(mover.Send, c.limit)
				dial := e.Dial
				e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					time.Sleep(c.rtt)
					nc, err := dial(ctx, network, address)
					return paced{nc, c.rate}, err
				}
				f := r.put(t, "image", c.image)
				req := r.request(t, f)
				req.PCP.Parallelism = 4
				if err := e.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
					t.Fatal(err)
				}
				r.came(t, f)
				if sent := r.wires.sent.Load(); sent < c.least || sent > c.most {
					t.Errorf("%d bytes were sent for %d, want %d to %d", sent, size, c.least, c.most)
				}
				r.stop()
			})
		})
	}
}

// packed is block i as it goes over a lane packed.
func (s *sender) packed(i uint32, payload []byte) []byte {
	sum := digest.OfBlock(payload)
	return append(append(header{kindPacked, 1, i, uint32(len(payload))}.bytes(), payload...), sum[:]...)
}

// TestABlockThatIsNotWhatWasPackedIsAskedForAgain sends what no sender packs.
func TestABlockThatIsNotWhatWasPackedIsAskedForAgain(t *testing.T) {
	image := text(2 * mover.BlockSize)
	block := image[:mover.BlockSize]
	sum := digest.OfBlock(block)
	bomb := append(sum[:], encoder().EncodeAll(make([]byte, 256*mover.BlockSize), nil)...)
	other := whole(image[mover.BlockSize:])
	copy(other, sum[:])
	for name, payload := range map[string][]byte{
		"no frame":           append(sum[:], "not a frame"...),
		"nothing":            sum[:],
		"too short":          whole(block[1:]),
		"a bomb":             bomb,
		"another block":      other,
		"two frames":         append(whole(block), whole([]byte("x"))[sumSize:]...),
		"a window of 64 MiB": wide(t, block),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			f := r.put(t, "image", image)
			s, _ := r.open(t, r.request(t, f), "s")
			if h := s.send(s.packed(0, payload)); h.kind != kindAgain || h.index != 0 {
				t.Fatalf("the receiver says %+v", h)
			}
			if h := s.send(s.packed(0, whole(block))); h.kind != kindProven {
				t.Fatalf("the block as it is: %+v", h)
			}
			if a := s.last(1); !a.Done {
				t.Errorf("the end: %+v", a)
			}
			r.came(t, f)
		})
	}
}

// wide packs a block in a frame that says it needs much memory.
func wide(t *testing.T, block []byte) []byte {
	var b bytes.Buffer
	sum := digest.OfBlock(block)
	b.Write(sum[:])
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	for part := range 4 { // or it would know the size
		_, _ = w.Write(block[part*len(block)/4:][:len(block)/4])
		_ = w.Flush()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestABombTakesNoMemory unpacks frames that hold much more than a block.
func TestABombTakesNoMemory(t *testing.T) {
	bomb := append(make([]byte, sumSize), encoder().EncodeAll(make([]byte, 512<<20), nil)...)
	block := make([]byte, mover.BlockSize)
	_, _, _ = unpack(block, whole(block)) // makes the decoder
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, err := unpack(block, bomb); err == nil {
		t.Error("a frame of 512 MiB was unpacked into a block")
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 {
		t.Errorf("%d bytes were allocated", took)
	}
}

// FuzzUnpack holds that what is unpacked fills the block or is an error, and that what
// was packed comes out again.
func FuzzUnpack(f *testing.F) {
	f.Add(whole([]byte("text text text text")), 19)
	f.Add(whole(make([]byte, 1<<16)), 1<<16)
	f.Add(whole(nil), 1)
	f.Add([]byte("short"), 5)
	f.Fuzz(func(t *testing.T, packed []byte, n int) {
		if n <= 0 || n > mover.BlockSize {
			t.Skip()
		}
		block := make([]byte, n+1)
		block[n] = 0xa5
		got, sum, err := unpack(block[:n], packed)
		if block[n] != 0xa5 {
			t.Fatal("bytes behind the block were written")
		}
		if err != nil || got != n || sum != digest.OfBlock(block[:n]) {
			return
		}
		again := make([]byte, n)
		if _, s, err := unpack(again, whole(block[:n])); err != nil || s != sum || !bytes.Equal(again, block[:n]) {
			t.Errorf("%d bytes were packed and unpacked as others: %v", n, err)
		}
	})
}

// BenchmarkPack packs and unpacks blocks that can be compressed to a half.
func BenchmarkPack(b *testing.B) {
	block := text(mover.BlockSize)
	packed := whole(block)
	b.Run("pack", func(b *testing.B) {
		b.SetBytes(mover.BlockSize)
		dst := make([]byte, 0, 2*mover.BlockSize)
		for b.Loop() {
			pack(dst, block, block)
		}
		b.ReportMetric(float64(len(packed))/float64(len(block)), "ratio")
	})
	b.Run("unpack", func(b *testing.B) {
		b.SetBytes(mover.BlockSize)
		for b.Loop() {
			if _, _, err := unpack(block, packed); err != nil {
				b.Fatal(fmt.Errorf("unpack: %w", err))
			}
		}
	})
}

// TestBlocksOfAFileThatEndedAreNotWaitedFor has a move given up whose blocks are under way
// beside another one's, when a measurement is to begin behind all of them.
func TestBlocksOfAFileThatEndedAreNotWaitedFor(t *testing.T) {
	gone, stays := &outgoing{size: 8 * mover.BlockSize, left: 8}, &outgoing{size: 8 * mover.BlockSize, left: 8}
	n := &lane{flight: map[flying]time.Time{{gone, 0}: {}, {gone, 1}: {}, {stays, 0}: {}}}
	l := &link{engine: &Engine{}, files: []*outgoing{gone, stays}, lanes: map[*lane]bool{n: true}}
	l.changed.L = &l.mu
	for range n.flight {
		l.compression.next()
	}
	l.compression.skip = l.compression.flying
	l.forget(gone)
	if c := &l.compression; c.flying != 1 || c.skip != 1 {
		t.Errorf("%d blocks are under way and %d waited for, want 1", c.flying, c.skip)
	}
}
