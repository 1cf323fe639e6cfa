package stream

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/mover"
)

// chill has a staged file lie on the disk and not in the page cache. The test is skipped
// where the kernel does not tell that.
func (r *rig) chill(t *testing.T, f mover.File) *source {
	t.Helper()
	file, err := os.Open(filepath.Join(r.rig.Source, f.Name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	s := &source{File: file, size: f.Size}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) { // what the kernel has in hand stays
		disk.Drop(file, 0, f.Size)
		if left := s.warm(t); left == 0 {
			return s
		} else if time.Since(start) > 10*time.Second {
			t.Fatalf("%d of %d bytes stay in the page cache", left, f.Size)
		}
	}
}

// warm returns how many bytes are in the page cache.
func (s *source) warm(t *testing.T) int64 {
	t.Helper()
	n, known := disk.Cached(s.File, 0, s.size)
	if !known {
		t.Skip("this kernel does not tell what is in the page cache")
	}
	return n
}

func TestASenderLeavesThePageCacheAsItWas(t *testing.T) {
	const blocks = maxWarm + 36
	for _, p := range []mover.Protection{mover.Private, mover.Clear} {
		r := newRigIn(t, p)
		r.wires.plain = true
		f := r.stage(t, "image", blocks*mover.BlockSize)
		s := r.chill(t, f)
		for _, was := range []int64{0, f.Size} {
			if was > 0 { // somebody needs it
				if _, err := s.ReadAt(make([]byte, f.Size), 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
				t.Fatal(err)
			}
			// A page that is still on its way may stay, and the kernel may take one for itself.
			if got := s.warm(t); got < was-f.Size/8 || got > was+f.Size/8 {
				t.Errorf("%s: %d of %d bytes are in the page cache, where %d were", p, got, f.Size, was)
			}
			if err := r.recv().Drop("inbox/image"); err != nil {
				t.Fatal(err)
			}
		}
		if left := r.rig.Engine.(*Engine).companies; len(left) > 0 {
			t.Errorf("%v are remembered", left)
		}
	}
}

func TestTwoMovesOfAFileReadItOnce(t *testing.T) {
	const blocks = 20
	r := newRig(t)
	f := r.stage(t, "image", blocks*mover.BlockSize)
	s := r.chill(t, f)
	beside := newSource(r.rig.Engine.(*Engine), must(os.Open(s.Name())), f.Size)
	if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if got := s.warm(t); got < f.Size-f.Size/8 { // the kernel may take some for itself
		t.Errorf("%d of %d bytes are there for the other move", got, f.Size)
	}
	beside.release()
}

// TestRoomIsTakenBeforeTheFirstByte breaks a move off when little has come.
func TestRoomIsTakenBeforeTheFirstByte(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		r := newRig(t)
		f := r.stage(t, "image", 40*mover.BlockSize)
		if sparse {
			if err := os.Truncate(filepath.Join(r.rig.Source, f.Name), 100*mover.BlockSize); err != nil {
				t.Fatal(err)
			}
			f.Size, f.Digest = 100*mover.BlockSize, digest.Digest{}
		}
		req := r.request(t, f)
		req.PCP = mover.PCP{Parallelism: 1, Pipelining: 1}
		ctx, cancel := context.WithCancel(t.Context())
		_ = r.rig.Engine.Move(ctx, req, func(p mover.Progress) {
			if p.Moved >= mover.BlockSize {
				cancel()
			}
		})
		cancel()
		r.restart(t)
		part := must(os.Open(filepath.Join(r.rig.Destination, "inbox/.image.part")))
		room := disk.Allocated(part, f.Size)
		part.Close()
		if promised := r.recv().Promised(); room == sparse || (promised == 0) == sparse {
			t.Errorf("sparse %v: it has all its room: %v; %d bytes are promised", sparse, room, promised)
		}
		if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
			t.Fatal(err)
		}
		r.came(t, f)
	}
}

// TestKernelAFullDiskIsToldBeforeTheFirstByte has a disk that is smaller than it says.
func TestKernelAFullDiskIsToldBeforeTheFirstByte(t *testing.T) {
	guest.Need(t)
	r := prepare(t)
	if err := unix.Mount("tmpfs", r.rig.Destination, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(r.rig.Destination, unix.MNT_DETACH) })
	r.start(t, "127.0.0.1:0")
	defer r.stop()
	req := r.request(t, r.stage(t, "image", 12*mover.BlockSize))
	before := r.rig.Sent()
	err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {})
	if mover.CodeOf(err) != mover.CodeSpace {
		t.Errorf("%v, want code %s", err, mover.CodeSpace)
	}
	if sent := r.rig.Sent() - before; sent > mover.BlockSize {
		t.Errorf("%d bytes were sent before", sent)
	}
	small := r.request(t, r.stage(t, "small", 6*mover.BlockSize)) // the room was given back
	if err := r.rig.Engine.Move(t.Context(), small, func(mover.Progress) {}); err != nil {
		t.Error(err)
	}
}
