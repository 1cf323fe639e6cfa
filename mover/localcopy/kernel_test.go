package localcopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/nfs"
)

// versions are what the ways over NFS are tested on.
var versions = []string{"vers=3,nolock", "vers=4.1", "vers=4.2"}

// newServer serves an export with its boxes and a store, as a DTN has it.
func newServer(t *testing.T, serve func(testing.TB, string) *guest.Server) *guest.Server {
	t.Helper()
	s := serve(t, "sync")
	for _, d := range []string{"outbox", "inbox", "store"} {
		if err := os.Mkdir(filepath.Join(s.Dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// mounted is a site whose export is a mount of the server's; its store is store.
func mounted(t *testing.T, s *guest.Server, export, store string, mode Mode) site {
	t.Helper()
	m := site{export: export, store: store}
	m.Copier = New(Options{Open: func() (*os.Root, error) { return os.OpenRoot(export) }, Mode: mode, CopyAtOnce: func() (int64, error) { return copyAtOnce(export) }, Find: func(id string) (string, int64, error) {
		path := filepath.Join(store, id)
		info, err := os.Lstat(path)
		if err != nil {
			return "", 0, err
		}
		return path, info.Size(), nil
	}, Settle: func(_ context.Context, name string, from int64) (told mover.Settled, err error) {
		f, err := os.Open(filepath.Join(s.Dir, mover.Outbox, name))
		if errors.Is(err, os.ErrNotExist) {
			return told, mover.ErrNotStaged
		}
		if err != nil {
			return told, err
		}
		defer f.Close()
		block := make([]byte, mover.BlockSize)
		for i := from; ; i++ {
			n, err := f.ReadAt(block, i*mover.BlockSize)
			if n > 0 {
				told.Sums = append(told.Sums, digest.OfBlock(block[:n]))
			}
			if err != nil {
				break
			}
		}
		info, err := f.Stat()
		told.Size = info.Size()
		return told, errors.Join(err, f.Sync())
	}})
	return m
}

func mount(t *testing.T, s *guest.Server, options string) string {
	t.Helper()
	source := s.Root()
	if strings.HasPrefix(options, "vers=3") {
		source = s.Source()
	}
	return s.Mount(t, source, options)
}

// readStats reads the counters of this machine's mounts.
func readStats() ([]nfs.Stats, error) {
	f, err := os.Open("/proc/self/mountstats")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return nfs.ParseMountstats(f)
}

// copyAtOnce is of the mount at dir.
func copyAtOnce(dir string) (int64, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	mounts, err := nfs.ParseMountinfo(f)
	if err != nil {
		return 0, err
	}
	return nfs.CopyAtOnce(mounts, dir)
}

// statsOf returns those of the mount at dir.
func statsOf(t *testing.T, dir string, all []nfs.Stats) nfs.Stats {
	t.Helper()
	i := slices.IndexFunc(all, func(s nfs.Stats) bool { return s.Point == dir })
	if i < 0 {
		t.Fatalf("no NFS on %s", dir)
	}
	return all[i]
}

// during returns what the mount's counters say of do.
func during(t *testing.T, dir string, do func()) nfs.Stats {
	t.Helper()
	before, err := readStats()
	if err != nil {
		t.Fatal(err)
	}
	do()
	after, err := readStats()
	if err != nil {
		t.Fatal(err)
	}
	d, err := statsOf(t, dir, after).Sub(statsOf(t, dir, before))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func blocks(t *testing.T, name string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// putSparse writes an image of 6 MiB of which 1 MiB is data.
func (s site) putSparse(t *testing.T) mover.File {
	t.Helper()
	data := make([]byte, 6<<20)
	copy(data[2<<20:], random(1<<20))
	f, err := os.Create(filepath.Join(s.store, image))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data[2<<20:3<<20], 2<<20)
	if err = errors.Join(err, f.Truncate(int64(len(data))), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return fileOf(data)
}

// TestKernelNFS has one server for all that is asked of one.
func TestKernelNFS(t *testing.T) {
	guest.Need(t)
	server := newServer(t, guest.Here().Serve)
	t.Run("ways", func(t *testing.T) { testWays(t, server) })
	t.Run("close to open", func(t *testing.T) { testCloseToOpen(t, server) })
	t.Run("owners", func(t *testing.T) { testOwners(t, server) })
}

// testWays holds which way is taken where, and how many bytes it moves.
func testWays(t *testing.T, server *guest.Server) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			export := mount(t, server, version+",nosharecache")
			aside := mount(t, server, version+",nosharecache")
			local := t.TempDir()
			for _, c := range []struct {
				what, store string
				mode        Mode
				how         string
				wire        bool // its bytes cross the network
			}{
				{"the datadir on the export", filepath.Join(export, "store"), Auto, hardLink, false},
				{"the datadir on another mount of the server", filepath.Join(aside, "store"), Auto, map[string]string{"vers=4.2": serverSide}[version], false},
				{"the datadir elsewhere", local, Auto, copied, true},
				{"the datadir on the export, and copies wanted", filepath.Join(export, "store"), Copy, copied, true},
			} {
				if c.how == "" {
					c.how, c.wire = copied, true
				}
				if version == "vers=4.1" && c.store != filepath.Join(aside, "store") {
					continue // as with NFS 3
				}
				s := mounted(t, server, export, c.store, c.mode)
				f := s.putSparse(t)
				if c.how != hardLink {
					c.how += ", 83 % holes"
				}
				d := during(t, export, func() {
					if how, err := s.Stage(t.Context(), image, f, ignore); err != nil || how != c.how {
						t.Errorf("%s: got %q, %v, want %q", c.what, how, err, c.how)
					}
				})
				if got, want := d.Bytes.ServerWritten > 0, c.wire; got != want {
					t.Errorf("%s: %d bytes were written through NFS", c.what, d.Bytes.ServerWritten)
				}
				if c.wire && d.Bytes.ServerWritten != 1<<20 {
					t.Errorf("%s: %d bytes were written through NFS, want those that are not holes", c.what, d.Bytes.ServerWritten)
				}
				t.Logf("%s: %s; %d WRITE, %d COPY, %d CLONE, %d COMMIT", c.what, c.how, d.Ops["WRITE"].Ops, d.Ops["COPY"].Ops, d.Ops["CLONE"].Ops, d.Ops["COMMIT"].Ops)
				staged := filepath.Join(server.Dir, name)
				if got, err := os.ReadFile(staged); err != nil || fileOf(got) != f {
					t.Errorf("%s: the DTN has %d bytes, or other ones (%v)", c.what, len(got), err)
				}
				if got := blocks(t, staged); got > 3<<19 {
					t.Errorf("%s: it takes %d bytes of the DTN's disk, want 1 MiB", c.what, got)
				}
				if err := s.Unstage(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestKernelReflinks holds that a file shares its blocks with the store's where the file
// system can and the DTN may not read a hard link: over NFS 4.2 (CLONE, RFC 7862, 15.13)
// and on a disk, but not over NFS 3.
func TestKernelReflinks(t *testing.T) {
	guest.Need(t)
	server := newServer(t, guest.Here().ServeXFS)
	for _, c := range []struct {
		version, how string
		clones       int64
	}{
		{"vers=4.2", reflink, 1},
		{"vers=3,nolock", copied + ", 83 % holes", 0},
		{"on the disk", reflink, 0},
	} {
		t.Run(c.version, func(t *testing.T) {
			export := server.Dir
			if c.version != "on the disk" {
				export = mount(t, server, c.version)
			}
			s := mounted(t, server, export, filepath.Join(export, "store"), Auto)
			settle := s.Copier.settle
			s.Copier.settle = func(ctx context.Context, name string, from int64) (mover.Settled, error) {
				if info, err := os.Stat(filepath.Join(server.Dir, mover.Outbox, name)); err == nil && linked(info) {
					return mover.Settled{}, mover.ErrUnreadable
				}
				return settle(ctx, name, from)
			}
			f := s.putSparse(t)
			stage := func() {
				if how, err := s.Stage(t.Context(), image, f, ignore); err != nil || how != c.how {
					t.Errorf("got %q, %v, want %q", how, err, c.how)
				}
			}
			if export == server.Dir {
				stage()
			} else if d := during(t, export, stage); d.Ops["CLONE"].Ops != c.clones || (d.Bytes.ServerWritten == 0) != (c.clones > 0) {
				t.Errorf("%d CLONE, %d bytes were written through NFS, want %d CLONE", d.Ops["CLONE"].Ops, d.Bytes.ServerWritten, c.clones)
			}
			staged := filepath.Join(server.Dir, name)
			if got, err := os.ReadFile(staged); err != nil || fileOf(got) != f {
				t.Errorf("the DTN has %d bytes, or other ones (%v)", len(got), err)
			}
			if info, err := os.Stat(staged); err != nil || info.Mode() != 0o640 || linked(info) {
				t.Errorf("mode %v (%v), a link: %v; want a file of its own, 0640", info.Mode(), err, linked(info))
			}
			if err := s.Unstage(t.Context(), name); err != nil {
				t.Error(err)
			}
		})
	}
}

// testCloseToOpen holds that a page that this machine has cached too early is
// read as the DTN wrote it once the file was opened anew.
func testCloseToOpen(t *testing.T, server *guest.Server) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			s := mounted(t, server, mount(t, server, version+",actimeo=600"), "", Auto)
			part := filepath.Join(mover.Inbox, job)
			dtn, err := os.Create(filepath.Join(server.Dir, part))
			if err != nil {
				t.Fatal(err)
			}
			defer dtn.Close()
			data := random(3 * mover.BlockSize)
			write := func(i int) {
				t.Helper()
				if _, err := dtn.WriteAt(data[i<<20:(i+1)<<20], int64(i)<<20); err != nil {
					t.Fatal(err)
				}
			}
			open := func() *Reader {
				t.Helper()
				r, err := s.Open(part)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			got := make([]byte, mover.BlockSize)
			read := func(r *Reader, i int, want []byte, what string) {
				t.Helper()
				if _, err := r.ReadAt(got, int64(i)<<20); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: other bytes (%v)", what, err)
				}
			}
			if err := dtn.Truncate(int64(len(data))); err != nil {
				t.Fatal(err)
			}
			write(0)
			r := open()
			read(r, 0, data[:1<<20], "a proven block")
			write(1)
			read(r, 1, data[1<<20:2<<20], "the block behind the one read last: it was not read ahead")
			empty := make([]byte, mover.BlockSize)
			read(r, 2, empty, "a block not written yet")
			write(2)
			read(r, 2, empty, "the same page, from the cache") // what this test is about
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r = open()
			defer r.Close()
			read(r, 2, data[2<<20:], "after it was opened anew")
		})
	}
}

// as calls do on a thread of another user.
func as(uid, gid int, do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)}} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				panic(errno)
			}
		}
		do()
	}()
	<-done
}

func try(export string) error {
	root, err := os.OpenRoot(export)
	if err != nil {
		return err
	}
	defer root.Close()
	return Try(root)
}

// testOwners holds that what the agent makes can be read by the DTN, or is refused.
func testOwners(t *testing.T, server *guest.Server) {
	const glance, dtn, group = 1064, 1065, 1066 // group has both
	outbox := filepath.Join(server.Dir, "outbox")
	mounts := map[string]string{} // without a cache: the owners change at the server
	for _, version := range []string{"vers=3,nolock", "vers=4.2"} {
		mounts[version] = mount(t, server, version+",noac")
		if err := os.Chmod(filepath.Dir(mounts[version]), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		export       string
		uid, gid     int
		owner, group int
		mode         os.FileMode
		refused      string
	}{
		{"no_root_squash", 0, 0, 0, 0, 0o770, ""},
		{"root_squash", glance, group, dtn, group, 0o770, ""},
		{"root_squash", glance, glance, dtn, group, 0o777 | os.ModeSetgid, ""},
		{"root_squash", glance, glance, dtn, group, 0o777, "chmod g+s"},
		{"root_squash", glance, glance, dtn, group, 0o770, "make this user a member of group 1066"},
		{"root_squash", 0, 0, dtn, group, 0o770, "root_squash"},
		{"root_squash", 0, 0, dtn, group, 0o777, "root_squash"},
		{"all_squash", glance, group, dtn, group, 0o777, "all_squash"},
		{fmt.Sprintf("all_squash,anonuid=%d,anongid=%d", glance, group), 0, 0, dtn, group, 0o770, ""},
	} {
		server.Export(t, "sync,"+c.export)
		if err := errors.Join(os.Chown(outbox, c.owner, c.group), os.Chmod(outbox, c.mode)); err != nil {
			t.Fatal(err)
		}
		tried := []string{"vers=3,nolock", "vers=4.2"}
		if c.refused != "" {
			tried = tried[:1]
		}
		for _, version := range tried {
			t.Run(fmt.Sprintf("%s/%s, uid %d, outbox %v", version, c.export, c.uid, c.mode), func(t *testing.T) {
				s := mounted(t, server, mounts[version], t.TempDir(), Copy)
				f := s.put(t, random(3*mover.BlockSize/2))
				for _, name := range []string{s.store, filepath.Dir(s.store), filepath.Join(s.store, image)} {
					if err := os.Chmod(name, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				var checked, staged error
				as(c.uid, c.gid, func() {
					checked = try(s.export)
					_, staged = s.Stage(t.Context(), image, f, ignore)
				})
				for what, err := range map[string]error{"Try": checked, "Stage": staged} {
					if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
						t.Errorf("%s: got %v, want %q", what, err, c.refused)
					}
				}
				if c.refused != "" {
					t.Log(checked)
					if !errors.Is(checked, mover.ErrOutbox) {
						t.Errorf("Try says %v, want that it is of the outbox alone", checked)
					}
					if left, err := os.ReadDir(outbox); err != nil || len(left) > 0 {
						t.Errorf("left: %v (%v)", left, err)
					}
					return
				}
				info, err := os.Stat(filepath.Join(server.Dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if info.Mode() != 0o640 {
					t.Errorf("the staged file has mode %v, want 0640", info.Mode())
				}
				as(c.owner, c.group, func() {
					if got, err := os.ReadFile(filepath.Join(server.Dir, name)); err != nil || fileOf(got) != f {
						t.Errorf("the DTN reads %d bytes, or other ones (%v)", len(got), err)
					}
				})
				if err := os.Remove(filepath.Join(server.Dir, name)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestKernelACopyWritesInFullSize holds that a copy goes to the server in requests of
// wsize and leaves no page here. It also prints what a hashed copy takes of dd's time
// where the network holds both back, and not the one processor of the guest.
func TestKernelACopyWritesInFullSize(t *testing.T) {
	guest.Need(t)
	dtn, ctrl := guest.NewMachine(t, "dtn"), guest.NewMachine(t, "ctrl")
	guest.Connect(t, dtn, "10.0.0.1/24", ctrl, "10.0.0.2/24")
	server := dtn.Serve(t, "sync")
	for _, box := range []string{"outbox", "inbox"} {
		if err := os.Mkdir(server.Path(filepath.Join(server.Dir, box)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := newSite(t, Copy)
	f := s.put(t, random(16<<20))
	dir := ctrl.Mount(t, server.Source(), "vers=3,nolock,wsize=262144")
	s.export = ctrl.Path(dir)
	s.Copier.export = func() (*os.Root, error) { return os.OpenRoot(s.export) }
	writes := func() nfs.Op {
		t.Helper()
		all, err := nfs.ParseMountstats(strings.NewReader(ctrl.Run(t, "cat", "/proc/self/mountstats")))
		if err != nil {
			t.Fatal(err)
		}
		return statsOf(t, dir, all).Ops["WRITE"]
	}
	before := writes()
	if how, err := s.Stage(t.Context(), image, f, ignore); err != nil || how != copied {
		t.Fatalf("got %q, %v", how, err)
	}
	if n := writes().Ops - before.Ops; n != f.Size/262144 {
		t.Errorf("%d WRITEs, want %d of 256 KiB", n, f.Size/262144)
	}
	staged, err := os.Open(filepath.Join(s.export, name))
	if err != nil {
		t.Fatal(err)
	}
	if n := cachedPages(t, staged); n > 0 {
		t.Errorf("%d pages of the copy are in the page cache, want none", n)
	}
	if err := errors.Join(staged.Close(), s.Unstage(t.Context(), name)); err != nil {
		t.Fatal(err)
	}
	ctrl.Run(t, "tc", "qdisc", "add", "dev", "dtn", "root", "netem", "rate", "100mbit", "limit", "10000")
	median, spread := s.againstDD(t, s.put(t, random(48<<20)), 2) // large enough for the round trips of a staging not to count
	t.Logf("%.3f of dd's time (spread %.3f)", median, spread)
}
