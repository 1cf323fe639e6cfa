package stream

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
)

var protections = []mover.Protection{mover.Clear, mover.Safe, mover.Private}

// came checks that the file is in the inbox as it is in the outbox.
func (r *rig) came(t *testing.T, f mover.File) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(r.rig.Destination, mover.Inbox, filepath.Base(f.Name)))
	want, wantErr := os.ReadFile(filepath.Join(r.rig.Source, f.Name))
	if err = errors.Join(err, wantErr); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes arrived, not those of the source: %v", f.Name, len(got), err)
	}
}

// TestWithoutADigest moves files of which nobody wants the digest, over bare TCP, where
// the kernel does what it can. They are cut off on the way once.
func TestWithoutADigest(t *testing.T) {
	for _, p := range protections {
		t.Run(string(p), func(t *testing.T) {
			r := newRigIn(t, p)
			r.wires.plain = true
			for base, size := range map[string]int64{"empty": 0, "one": 1, "blocks": 40*mover.BlockSize + 4097} {
				f := r.stage(t, base, size)
				f.Digest = digest.Digest{}
				req := r.request(t, f)
				ctx, cancel := context.WithCancel(t.Context())
				cut := false
				err := r.rig.Engine.Move(ctx, req, func(p mover.Progress) {
					if p.Moved >= size/2 && size > 1 {
						cut = true
						cancel()
					}
				})
				cancel()
				if cut {
					first := int64(-1)
					err = r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
						if first < 0 {
							first = p.Moved
						}
					})
					if first < size/2 {
						t.Errorf("%s: %d bytes of %d were there after half of them", base, first, size)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				r.came(t, f)
			}
			if told, err := r.recv().Blocks("inbox/blocks", 0); err != nil || p == mover.Clear && len(told.Sums) != 0 {
				t.Errorf("the sums of blocks that nobody has looked at: %v, %v", told, err)
			}
		})
	}
}

// TestHolesStayHoles moves a file with holes and with zeros that were written.
func TestHolesStayHoles(t *testing.T) {
	for _, p := range protections {
		for _, known := range []bool{true, false} {
			r := newRigIn(t, p)
			f := r.stage(t, "image", 20*mover.BlockSize)
			name := filepath.Join(r.rig.Source, f.Name)
			image, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			if err := disk.Punch(image, 2*mover.BlockSize, 10*mover.BlockSize); err != nil {
				t.Skip("this file system has no holes:", err)
			}
			if _, err := image.WriteAt(make([]byte, 2*mover.BlockSize), 14*mover.BlockSize); err != nil {
				t.Fatal(err)
			}
			f.Digest = digest.Digest{}
			if known {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				h, _ := digest.New("sha512")
				h.Write(b)
				f.Digest = digest.Of("sha512", h)
			}
			if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
				t.Fatal(err)
			}
			r.came(t, f)
			if sent := r.wires.sent.Load(); sent > 9*mover.BlockSize {
				t.Errorf("%s: %d bytes were sent for 8 blocks that are not zeros", p, sent)
			}
			got, err := os.Open(filepath.Join(r.rig.Destination, "inbox/image"))
			if err != nil {
				t.Fatal(err)
			}
			if s := newSource(new(Engine), got, f.Size); !s.sparse || !disk.Hole(got, 2*mover.BlockSize, 10*mover.BlockSize) {
				t.Errorf("%s: the holes were filled", p)
			}
			got.Close()
		}
	}
}

// TestAHoleReplacesWhatIsThere has a hole come where an earlier attempt, which a crash has cut,
// has written something else.
func TestAHoleReplacesWhatIsThere(t *testing.T) {
	r := newRig(t)
	f := r.stage(t, "image", 2*mover.BlockSize)
	if err := os.WriteFile(filepath.Join(r.rig.Source, f.Name), make([]byte, f.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := digest.New("sha512")
	h.Write(make([]byte, f.Size))
	f.Digest = digest.Of("sha512", h)
	s, _ := r.open(t, r.request(t, f), "s")
	part, err := os.OpenFile(filepath.Join(r.rig.Destination, "inbox/.image.part"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = part.WriteAt(bytes.Repeat([]byte{0xff}, mover.BlockSize), 0)
	if err := errors.Join(err, part.Close()); err != nil {
		t.Fatal(err)
	}
	sum := digest.OfBlock(nil)
	for i := range uint32(2) {
		write(t, s.lane, append(header{kindHole, 1, i, mover.BlockSize}.bytes(), sum[:]...))
	}
	if a := s.answer(); !a.Done {
		t.Errorf("the end: %+v", a)
	}
	r.came(t, f)
}

// TestBytesThatChangeOnTheirWay changes one byte of a block on the wire, once.
func TestBytesThatChangeOnTheirWay(t *testing.T) {
	for _, p := range protections {
		t.Run(string(p), func(t *testing.T) {
			r := newRigIn(t, p)
			f := r.stage(t, "image", 12*mover.BlockSize)
			r.wires.spoil = func(b []byte, long int) {
				if long == 7 {
					b[len(b)/2] ^= 1
				}
			}
			req := r.request(t, f)
			err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {})
			if p == mover.Clear { // the file's digest has the last word
				if mover.CodeOf(err) != mover.CodeContent {
					t.Errorf("got %v, want code %s", err, mover.CodeContent)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			r.came(t, f)
			if sent := r.wires.sent.Load(); p == mover.Safe && sent > f.Size+mover.BlockSize+64<<10 {
				t.Errorf("%d bytes were sent for %d: more than one block again", sent, f.Size)
			}
		})
	}
}

// TestWhatIsSafeIsReadable holds what the protections promise to who listens.
func TestWhatIsSafeIsReadable(t *testing.T) {
	for _, p := range protections {
		r := newRigIn(t, p)
		f := r.stage(t, "image", 2*mover.BlockSize)
		text := strings.Repeat("not a secret ", pieceSize/13+1)
		if err := os.WriteFile(filepath.Join(r.rig.Source, f.Name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f.Size, f.Digest = int64(len(text)), digest.Digest{}
		seen := false
		r.wires.spoil = func(b []byte, _ int) { seen = seen || bytes.Contains(b, []byte("not a secret")) }
		if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
			t.Fatal(err)
		}
		if seen == (p == mover.Private) {
			t.Errorf("%s: who listens sees it: %v", p, seen)
		}
	}
}
