package disk

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const mib = 1 << 20

// create makes a file of so many bytes, with these at its beginning.
func create(t *testing.T, size int64, data []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); errors.Join(err, f.Truncate(size)) != nil {
		t.Fatal(err)
	}
	return f
}

// needHoles skips a test where the file system has no holes.
func needHoles(t *testing.T) {
	t.Helper()
	if !Hole(create(t, mib, nil), 0, mib) {
		t.Skip("this file system has no holes")
	}
}

func TestHoles(t *testing.T) {
	needHoles(t)
	f := create(t, 4*mib, bytes.Repeat([]byte{1}, mib))
	for _, c := range []struct {
		off, n int64
		want   bool
	}{{0, mib, false}, {mib, mib, true}, {mib, 3 * mib, true}, {mib - 1, 2, false}, {3 * mib, mib, true}, {3 * mib, mib + 1, false}} {
		if got := Hole(f, c.off, c.n); got != c.want {
			t.Errorf("%d bytes from %d on are a hole: %v", c.n, c.off, got)
		}
	}
	for _, size := range []int64{3*mib + 1, mib} { // it became shorter
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if Hole(f, 3*mib, mib) {
			t.Errorf("a file of %d bytes has a hole behind them", size)
		}
	}
}

// TestRoomIsTakenAndGivenBack has a file become full and empty again, of the same size.
func TestRoomIsTakenAndGivenBack(t *testing.T) {
	needHoles(t)
	f := create(t, 4*mib, nil)
	if !Sparse(f, 4*mib) || Allocated(f, 4*mib) {
		t.Error("a file of nothing but a hole has room")
	}
	done, err := Allocate(f, 4*mib)
	if err != nil {
		t.Fatal(err)
	}
	if Allocated(f, 4*mib) != done || Sparse(f, 4*mib) == done {
		t.Errorf("room was made: %v, and it has room: %v", done, Allocated(f, 4*mib))
	}
	data := bytes.Repeat([]byte{1}, 4*mib)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := Punch(f, mib, 2*mib); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this file system takes no room back")
	} else if err != nil {
		t.Fatal(err)
	}
	clear(data[mib:][:2*mib])
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 5*mib))
	if err != nil || !bytes.Equal(got, data) || !Sparse(f, 4*mib) {
		t.Errorf("%d bytes are there, %v; it is sparse: %v", len(got), err, Sparse(f, 4*mib))
	}
}

// TestWhatTheDiskDoesNotTake holds that hints are no failures, and a broken file is.
func TestWhatTheDiskDoesNotTake(t *testing.T) {
	f := create(t, mib, nil)
	if err := WaitBack(f, 0, mib); err != nil {
		t.Error(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := WaitBack(w, 0, mib); err != nil {
		t.Errorf("a pipe, which is not written back: %v", err)
	}
	f.Close()
	Drop(f, 0, 0)
	WriteBack(f, 0, mib)
	if err := WaitBack(f, 0, mib); err == nil {
		t.Error("a closed file was written back")
	}
	if Cold(f, 0, mib) || Hole(f, 0, mib) || Sparse(f, mib) || Allocated(f, mib) {
		t.Error("something is told of a closed file")
	}
	if done, err := Allocate(f, mib); done || err == nil {
		t.Errorf("a closed file has room: %v", err)
	}
}

// TestWhatIsDroppedIsCold goes to the disk and back.
func TestWhatIsDroppedIsCold(t *testing.T) {
	f := create(t, 4*mib, bytes.Repeat([]byte{1}, 4*mib))
	if Cold(f, 0, 4*mib) {
		t.Error("what was written just now is not in the page cache")
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	// A page that the kernel has in hand, to move it or to write it back, stays when it is dropped.
	drop := func(size int64) bool { // from the beginning, 0 is all
		for range 500 {
			if Drop(f, 0, size); Cold(f, 0, cmp.Or(size, 4*mib)) {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	if !drop(0) {
		t.Skip("this file system does not tell what is in the page cache")
	}
	if _, err := f.ReadAt(make([]byte, 4*mib), 0); err != nil || Cold(f, 0, 4*mib) {
		t.Errorf("what was read just now is not in the page cache: %v", err)
	}
	if first, last := drop(2*mib), Cold(f, 3*mib, mib); !first || last { // to ask may bring it in
		t.Errorf("the first half was dropped: %v, and the last quarter: %v", first, last)
	}
}

// TestWhatIsCachedIsCounted asks without reading anything ahead.
func TestWhatIsCachedIsCounted(t *testing.T) {
	f := create(t, 4*mib, bytes.Repeat([]byte{1}, 4*mib))
	cached := func(off, n int64) int64 {
		t.Helper()
		got, known := Cached(f, off, n)
		if !known {
			t.Skip("this kernel does not tell what is in the page cache")
		}
		return got
	}
	if all, part := cached(0, 4*mib), cached(3*mib, 512<<10); all != 4*mib || part != 512<<10 {
		t.Errorf("%d bytes, and of half a MiB %d, are in the page cache, where all were written just now", all, part)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for tries := 0; cached(2*mib, 2*mib) > 0; tries++ {
		if tries == 500 {
			t.Fatal("what was dropped stays in the page cache")
		}
		Drop(f, 2*mib, 2*mib)
		time.Sleep(10 * time.Millisecond)
	}
	if got := cached(0, 4*mib); got > 2*mib || got == 0 {
		t.Errorf("%d bytes are in the page cache, and half of 4 MiB was dropped", got)
	}
	f.Close()
	if _, known := Cached(f, 0, mib); known {
		t.Error("something is told of a closed file")
	}
}

func TestOnlyADisksFileSystemIsSynced(t *testing.T) {
	f, err := os.Open("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := SyncFS(f); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("/proc was synced: %v", err)
	}
	if err := SyncFS(create(t, mib, nil)); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}
