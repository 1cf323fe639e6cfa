package mounted_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/mounted"
)

// counters returns those of the mount at dir.
func counters(t *testing.T, dir string) nfs.Stats {
	t.Helper()
	f, err := os.Open("/proc/self/mountstats")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := nfs.ParseMountstats(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Point == dir {
			return s
		}
	}
	t.Fatalf("%s has no counters", dir)
	return nfs.Stats{}
}

func since(t *testing.T, before nfs.Stats) nfs.Stats {
	t.Helper()
	d, err := counters(t, before.Point).Sub(before)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestKernelEveryByteGoesOverTheWire holds that what is timed is the server: every
// byte is written and read in calls of wsize and rsize, in all four corners, also
// those that the client had cached.
func TestKernelEveryByteGoesOverTheWire(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	const total, wsize, rsize = 4 << 20, 32 << 10, 64 << 10
	for _, export := range []string{"sync", "async"} {
		for _, client := range []string{"sync", "async"} {
			t.Run("server "+export+", client "+client, func(t *testing.T) {
				server.Export(t, export)
				dir := server.Mount(t, server.Source(), "vers=3,nolock,nosharecache,rsize=65536,wsize=32768,"+client)
				name := filepath.Join(dir, client)

				before := counters(t, dir)
				w, err := mounted.Write(t.Context(), name, mounted.Test{Bytes: total})
				if err != nil || w.Bytes != total || w.Rate() <= 0 {
					t.Fatalf("wrote %+v, %v", w, err)
				}
				did := since(t, before)
				if n := did.Ops["WRITE"].Ops; did.Bytes.ServerWritten != total || n != total/wsize {
					t.Errorf("%d bytes in %d WRITEs, want %d in %d", did.Bytes.ServerWritten, n, total, total/wsize)
				}
				// A sync client has each write(2) of more than wsize made stable by a COMMIT.
				if n := did.Ops["COMMIT"].Ops; n == 0 || client == "sync" && n != total>>20 {
					t.Errorf("%d COMMITs, want %d from a sync client and at least one from another", n, total>>20)
				}

				for range 2 {
					before = counters(t, dir)
					r, err := mounted.Read(t.Context(), name, mounted.Test{Bytes: total})
					if err != nil || r.Bytes != total {
						t.Fatalf("read %+v, %v", r, err)
					}
					did = since(t, before)
					if n := did.Ops["READ"].Ops; did.Bytes.ServerRead != total || n < total/rsize || n > 2*total/rsize {
						t.Errorf("%d bytes in %d READs, want %d in %d or some more", did.Bytes.ServerRead, n, total, total/rsize)
					}
				}
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
