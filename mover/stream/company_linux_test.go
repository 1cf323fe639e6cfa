package stream

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/mover"
)

// readBytes is how much this process has had read from disks.
func readBytes(t *testing.T) (n int64) {
	t.Helper()
	f, err := os.Open("/proc/self/io")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "read_bytes: "); ok {
			_, err = fmt.Sscan(v, &n)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// forgetFile has the page cache forget a file.
func forgetFile(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err == nil {
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOneReadingForThreeDestinations counts what is read from the disk.
func TestOneReadingForThreeDestinations(t *testing.T) {
	const size = 64 * mover.BlockSize
	sites := []*rig{newRig(t)}
	for range 2 {
		sites = append(sites, sites[0].another(t))
		sites[len(sites)-1].start(t, "127.0.0.1:0")
	}
	e := sites[0].rig.Engine.(*Engine)
	f := sites[0].stage(t, "image", size)
	name := filepath.Join(sites[0].rig.Source, f.Name)
	forgetFile(t, name)
	before := readBytes(t)
	if _, err := os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	if n := readBytes(t) - before; n < size {
		t.Skipf("%d bytes of %d came from a disk: this file system is none that forgets", n, int64(size))
	}
	other := f
	other.Name = mover.Outbox + "/image2" // staged for another site: the same file
	if err := os.Link(name, filepath.Join(sites[0].rig.Source, other.Name)); err != nil {
		t.Fatal(err)
	}
	forgetFile(t, name)
	before = readBytes(t)
	var moves sync.WaitGroup
	for i, r := range sites {
		req := r.request(t, f)
		if i == 1 {
			req.Source = other
		}
		moves.Go(func() {
			if err := e.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
				t.Error(err)
			}
		})
	}
	moves.Wait()
	if n := readBytes(t) - before; n < size/2 || n > size+size/4 {
		t.Errorf("%d bytes were read for %d that went to three destinations", n, int64(size))
	}
}
