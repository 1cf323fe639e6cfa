package guard

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/nfs"
)

// machine has real directories and mounts that are told: those of a table that a test
// changes, with the directory on the one whose id is at.
type machine struct {
	t       *testing.T
	dir     string // the export
	state   string
	mounts  []nfs.Mount
	at      int
	opens   atomic.Int64
	openErr error
	hang    chan struct{} // nil: opens do not hang
	log     bytes.Buffer
}

const (
	rootMount = 1
	dtnMount  = 2
)

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: filepath.Join(t.TempDir(), "dtn"), state: t.TempDir(), at: dtnMount}
	m.mounts = []nfs.Mount{
		{ID: rootMount, Parent: 0, Device: "8:1", Point: "/", Type: "ext4", Source: "/dev/sda1"},
		{ID: dtnMount, Parent: rootMount, Device: "0:50", Point: m.dir, Type: "nfs4", Source: "dtn:/glance", Super: nfs.Options{"rw", "soft"}},
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.mark("A", "one")
	return m
}

func (m *machine) mark(site, id string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, MarkerFile), []byte(`{"site":"`+site+`","id":"`+id+`"}`), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) guard(o Options) *Guard {
	m.t.Helper()
	o.Dir, o.Site, o.State, o.Log = m.dir, "A", m.state, slog.New(slog.NewTextHandler(&m.log, nil))
	g, err := New(o)
	if err != nil {
		m.t.Fatal(err)
	}
	g.sys = system{
		open: func(dir string) (*os.Root, error) {
			m.opens.Add(1)
			if m.hang != nil {
				<-m.hang
			}
			if m.openErr != nil {
				return nil, m.openErr
			}
			return os.OpenRoot(dir)
		},
		mounts: func() ([]nfs.Mount, error) { return slices.Clone(m.mounts), nil },
		handle: func(*os.Root) (handle, error) { return handle{mount: m.at, path: m.dir, fsid: "f"}, nil },
	}
	return g
}

// unmount leaves the directory as it is, with whatever the test put there.
func (m *machine) unmount() { m.mounts, m.at = m.mounts[:1], rootMount }

func wantWell(t *testing.T, g *Guard) {
	t.Helper()
	if err := g.Check(t.Context()); err != nil {
		t.Errorf("got %v, want an export that is well", err)
	}
	root, err := g.Open()
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	root.Close()
}

// wantTrouble fails unless the export is in the state, as Check and Open see it, and
// its sentence has the words.
func wantTrouble(t *testing.T, g *Guard, s State, words ...string) {
	t.Helper()
	err := g.Check(t.Context())
	trouble, ok := errors.AsType[*Trouble](err)
	if !ok || trouble.State != s {
		t.Fatalf("got %v, want %s", err, s)
	}
	for _, w := range append(words, g.Dir) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if why, _, _ := strings.Cut(err.Error(), "; "); strings.Count(why, g.Dir) != 1 || len(strings.ReplaceAll(err.Error(), g.Dir, "")) > 200 {
		t.Errorf("%q is long, or names the export twice before it says what to do", err)
	}
	if root, err := g.Open(); err == nil && g.Try == nil {
		root.Close()
		t.Error("it can be opened")
	}
}

func TestARightExportIsRemembered(t *testing.T) {
	m := newMachine(t)
	wantWell(t, m.guard(Options{}))
	g := m.guard(Options{}) // another start
	wantWell(t, g)
	m.mark("A", "two")
	wantTrouble(t, g, Replaced, "dtn:/glance", "two", "one")
	wantTrouble(t, m.guard(Options{}), Replaced)
	m.mark("A", "one")
	wantWell(t, g)
}

func TestTheWordOfTheDTNCounts(t *testing.T) {
	m := newMachine(t)
	word, wordErr := "one", error(nil)
	g := m.guard(Options{Told: func(context.Context) (string, error) { return word, wordErr }})
	wantWell(t, g)
	m.mark("A", "two") // the DTN has a new disk, and says so
	wordErr = errors.New("away")
	wantTrouble(t, g, Replaced)
	word, wordErr = "two", nil
	wantWell(t, g)
	word = "three" // it has another, and the old one is still mounted here
	if err := g.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("got %v, want that the export is not the DTN's", err)
	}
	word = "" // a DTN of an older version
	wantWell(t, g)
}

func TestAMountThatIsGone(t *testing.T) {
	m := newMachine(t)
	g := m.guard(Options{})
	wantWell(t, g)
	marker := filepath.Join(m.dir, MarkerFile)
	data, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	mounts := m.mounts
	m.unmount()
	for _, beneath := range []string{"a copy of the export", "nothing", "a file"} {
		switch beneath {
		case "nothing":
			os.Remove(marker)
		case "a file":
			os.WriteFile(filepath.Join(m.dir, "shadow"), nil, 0o600)
		}
		const want = "was before (dtn:/glance)"
		wantTrouble(t, g, Gone, want)
		wantTrouble(t, m.guard(Options{}), Gone, want)
	}
	wantTrouble(t, g, Gone, "(shadow)")
	if names := list(roottest.Open(t, m.dir)); !slices.Equal(names, []string{"shadow"}) {
		t.Errorf("the mount point has %v, want what was there", names)
	}

	os.WriteFile(marker, data, 0o600)
	m.mounts, m.at = append(mounts[:1:1], mounts[1]), dtnMount // the kernel uses ids again
	wantWell(t, g)
	if log := m.log.String(); strings.Count(log, "mounted anew") != 1 {
		t.Errorf("the log says %s, want the new mount", log)
	}
	m.mounts[1].ID, m.mounts[1].Source, m.at = 7, "10.0.0.1:/glance", 7
	wantWell(t, g)
	if log := m.log.String(); !strings.Contains(log, "mounted anew") || !strings.Contains(log, "10.0.0.1:/glance") || !strings.Contains(log, "shadow") {
		t.Errorf("the log says %s, want the new mount and the files beneath it", log)
	}
}

func TestWhatIsExpectedOfTheMount(t *testing.T) {
	m := newMachine(t)
	bound := func() { // systemd's ReadWritePaths= of a directory that nothing is mounted on
		m.mounts = append(m.mounts[:1], nfs.Mount{ID: 3, Parent: rootMount, Device: "8:1", Root: m.dir, Point: m.dir, Type: "ext4", Source: "/dev/sda1"})
		m.at = 3
	}
	mounts := slices.Clone(m.mounts)
	nested := func() { // in the NFS mount of the directory above
		m.mounts[1].ID, m.mounts[1].Point, m.at = 3, filepath.Dir(m.dir), 4
		m.mounts = append(m.mounts, m.mounts[1])
		m.mounts[2].ID, m.mounts[2].Parent, m.mounts[2].Point, m.mounts[2].Source = 4, 3, m.dir, "dtn:/glance/dtn"
	}
	for _, c := range []struct {
		name    string
		expect  Mounted
		mount   func()
		well    bool
		because string
	}{
		{"required and there", Required, func() {}, true, ""},
		{"required and not there", Required, m.unmount, false, "mount: required"},
		{"required and bound onto itself", Required, bound, false, "only bound onto itself, and mount: required"},
		{"required, and another directory bound there", Required, func() { bound(); m.mounts[1].Root = "/srv/glance" }, true, ""},
		{"required and also seen from the mount above", Required, nested, true, ""},
		{"automatic, never seen", Auto, m.unmount, true, ""},
		{"not needed", None, m.unmount, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.mounts, m.at, m.state = slices.Clone(mounts), dtnMount, t.TempDir()
			c.mount()
			g := m.guard(Options{Mounted: c.expect})
			if c.well {
				wantWell(t, g)
			} else {
				wantTrouble(t, g, Gone, c.because)
			}
		})
	}
	m.state = t.TempDir()
	m.mounts, m.at = slices.Clone(mounts), dtnMount
	wantWell(t, m.guard(Options{}))
	bound()
	wantTrouble(t, m.guard(Options{}), Gone)
	wantWell(t, m.guard(Options{Mounted: None})) // a person says that it is meant,
	wantWell(t, m.guard(Options{}))              // once
}

func TestWhatHasNoMarkerOrAnothers(t *testing.T) {
	m := newMachine(t)
	marker := filepath.Join(m.dir, MarkerFile)
	for what, c := range map[string]struct {
		put   func() error
		state State
		say   string
	}{
		"none":         {func() error { return nil }, Unmarked, "/readyz"},
		"another site": {func() error { m.mark("B", "one"); return nil }, Replaced, "of site B"},
		"empty":        {func() error { return os.WriteFile(marker, nil, 0o600) }, Unmarked, "not a marker"},
		"not JSON":     {func() error { return os.WriteFile(marker, []byte("hello"), 0o600) }, Unmarked, "not a marker"},
		"without id":   {func() error { return os.WriteFile(marker, []byte(`{"site":"A"}`), 0o600) }, Unmarked, "not a marker"},
		"a folder":     {func() error { return os.Mkdir(marker, 0o700) }, Unmarked, "not a marker"},
		"a pipe":       {func() error { return syscall.Mkfifo(marker, 0o600) }, Unmarked, "not a marker"},
		"a link out":   {func() error { return os.Symlink("/etc/passwd", marker) }, Failing, "escapes"},
	} {
		t.Run(what, func(t *testing.T) {
			os.Remove(marker)
			if err := c.put(); err != nil {
				t.Fatal(err)
			}
			wantTrouble(t, m.guard(Options{}), c.state, c.say)
		})
	}
	os.Remove(marker)
	m.unmount()
	wantTrouble(t, m.guard(Options{}), Gone, "no "+MarkerFile)
	wantTrouble(t, m.guard(Options{Mounted: None}), Unmarked)

	// The DTN's own directory, which was well and has lost it, is there: only the DTN can help.
	m.mark("A", "one")
	g := m.guard(Options{})
	wantWell(t, g)
	os.Remove(marker)
	for _, g := range []*Guard{g, m.guard(Options{})} {
		wantTrouble(t, g, Unmarked, "no "+MarkerFile, "the DTN puts it back")
	}
}

// What each error of the system is, whichever call it comes from.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  syscall.Errno
		want State
		say  string
	}{
		{syscall.ESTALE, Stale, "umount --lazy"},
		{syscall.EIO, Failing, "mounted soft"},
		{syscall.EROFS, ReadOnly, "exports(5)"},
		{syscall.ENOTCONN, Gone, "user space"},
		{syscall.ETIMEDOUT, Hung, "dtn does not answer"},
		{syscall.EHOSTUNREACH, Hung, "network"},
		{syscall.EACCES, Refused, "group"},
		{syscall.EPERM, Refused, "root_squash"},
		{syscall.ENOENT, Gone, "make the directory"},
		{syscall.ENODEV, Gone, "see why"},
		{syscall.ENOSPC, Full, "free space"},
		{syscall.EDQUOT, Full, "free space"},
		{syscall.EMFILE, Failing, "/readyz"},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			m := newMachine(t)
			fail := &os.PathError{Op: "openat", Path: m.dir, Err: c.err}
			var try error
			g := m.guard(Options{Try: func(*os.Root) error { return try }})
			wantWell(t, g)
			m.openErr = fail
			wantTrouble(t, g, c.want, c.say)
			m.openErr = nil
			real, h0 := g.sys.handle, handle{}
			g.sys.handle = func(r *os.Root) (handle, error) { return h0, fail }
			if c.err != syscall.ENOENT {
				wantTrouble(t, g, c.want, c.say)
			}
			g.sys.handle = real
			try = fail
			wantTrouble(t, g, c.want)
			try = nil
			wantWell(t, g)
		})
	}
	m := newMachine(t)
	m.mounts[1].Options = nfs.Options{"ro"}
	g := m.guard(Options{Try: func(*os.Root) error { return syscall.EROFS }})
	wantTrouble(t, g, ReadOnly, "remount,rw")
}

func TestAnExportThatHangsIsLookedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		g := m.guard(Options{})
		wantWell(t, g)
		m.opens.Store(0)
		m.hang = make(chan struct{})
		began := time.Now()
		for range 3 {
			err := g.Check(t.Context())
			if trouble, ok := errors.AsType[*Trouble](err); !ok || trouble.State != Hung || !strings.Contains(err.Error(), began.UTC().Format(time.RFC3339)) || !strings.Contains(err.Error(), "dtn:/glance") {
				t.Fatalf("got %v, want an export that hangs since %v", err, began)
			}
		}
		if took := time.Since(began); took != Patience {
			t.Errorf("three checks took %v, want %v", took, Patience)
		}
		if root, err := g.Open(); err == nil {
			root.Close()
			t.Error("an export that hangs was opened")
		}
		if n := m.opens.Load(); n != 1 {
			t.Errorf("%d calls hang, want 1", n)
		}
		synctest.Wait()
		close(m.hang)
		synctest.Wait()
		m.hang = nil
		wantWell(t, g)

		m.hang = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Check(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that nobody waited", err)
		}
		close(m.hang)
		synctest.Wait()
	})
}

// A look that hangs at a mount that was detached may hang for ever.
func TestWhatTakesThePlaceOfAHungMountIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		g := m.guard(Options{})
		wantWell(t, g)
		old := make(chan struct{})
		m.hang = old
		for range 2 {
			if g.Check(t.Context()) == nil {
				t.Fatal("an export that hangs is well")
			}
		}
		synctest.Wait()
		m.hang = nil
		m.mounts[1].ID, m.mounts[1].Device, m.at = 9, "0:51", 9
		wantWell(t, g)
		m.openErr = syscall.ESTALE // what the detached mount ends with
		close(old)
		synctest.Wait()
		m.openErr = nil
		wantWell(t, g)
	})
}

// Where a directory lies is told by the mount that has to be there, not by one above
// that shares its device, nor by one that only shows it once more.
func TestThePointOfAMount(t *testing.T) {
	const dir = "/mnt/up/dtn"
	for _, c := range []struct {
		name    string
		up, top nfs.Mount
		want    string
	}{
		{"NFS, another directory of the server", nfs.Mount{Root: "/", Type: "nfs4", Source: "dtn:/home"}, nfs.Mount{Root: "/", Type: "nfs4", Source: "dtn:/glance"}, dir},
		{"NFS, bound onto itself", nfs.Mount{Root: "/", Type: "nfs4", Source: "dtn:/"}, nfs.Mount{Root: "/", Type: "nfs4", Source: "dtn:/dtn"}, "/mnt/up"},
		{"btrfs, another subvolume", nfs.Mount{Root: "/@", Type: "btrfs"}, nfs.Mount{Root: "/@dtn", Type: "btrfs"}, dir},
		{"btrfs, bound onto itself", nfs.Mount{Root: "/@", Type: "btrfs"}, nfs.Mount{Root: "/@/dtn", Type: "btrfs"}, "/mnt/up"},
		{"another device", nfs.Mount{Root: "/", Type: "ext4"}, nfs.Mount{Device: "8:2", Root: "/dtn", Type: "ext4"}, dir},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.up.ID, c.up.Parent, c.up.Device, c.up.Point = 2, 1, "0:50", "/mnt/up"
			c.top.ID, c.top.Parent, c.top.Device, c.top.Point = 3, 2, cmp.Or(c.top.Device, "0:50"), dir
			y := system{
				mounts: func() ([]nfs.Mount, error) {
					return []nfs.Mount{{ID: 1, Device: "8:1", Root: "/", Point: "/", Type: "ext4"}, c.up, c.top}, nil
				},
				handle: func(*os.Root) (handle, error) { return handle{mount: 3, path: dir}, nil },
			}
			if s, err := y.identify(nil); err != nil || s.Point != c.want {
				t.Errorf("got %s, %v, want %s", s.Point, err, c.want)
			}
		})
	}
}

func TestTheMarkerIsForEveryone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	export, state := roottest.Open(t, t.TempDir()), roottest.Open(t, t.TempDir())
	for _, made := range []string{"made", "found as an earlier start has left it"} {
		if _, err := Mark(export, state, "A"); err != nil {
			t.Fatal(err)
		}
		if info, err := export.Stat(MarkerFile); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: mode %v (%v), want 0644", made, info.Mode(), err)
		}
		if err := export.Chmod(MarkerFile, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMark(t *testing.T) {
	export, state := roottest.Open(t, t.TempDir()), roottest.Open(t, t.TempDir())
	first, err := Mark(export, state, "A")
	if err != nil || first.ID == "" || first.Site != "A" {
		t.Fatalf("got %+v, %v", first, err)
	}
	refused := func(why string) {
		t.Helper()
		if _, err := Mark(export, state, "A"); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), state.Name()) {
			t.Errorf("got %v, want a refusal that says %q and names %s", err, why, state.Name())
		}
	}
	if again, err := Mark(export, state, "A"); err != nil || again != first {
		t.Errorf("got %+v, %v, want %+v again", again, err, first)
	}
	if _, err := Mark(export, state, "B"); err == nil || !strings.Contains(err.Error(), "belongs to site A") {
		t.Errorf("another site's DTN: got %v", err)
	}
	if moved, err := Mark(export, roottest.Open(t, t.TempDir()), "A"); err != nil || moved != first {
		t.Errorf("a DTN that has lost its state: got %+v, %v, want %+v", moved, err, first)
	}
	lose := func() {
		t.Helper()
		if err := export.Remove(MarkerFile); err != nil {
			t.Fatal(err)
		}
	}
	lose() // while the DTN does not run
	if again, err := Mark(export, state, "A"); err != nil || again != first {
		t.Errorf("a marker that was lost: got %+v, %v, want %+v again", again, err, first)
	}
	lose() // and while it runs
	if put, err := Keep(export, first); err != nil || !put {
		t.Errorf("kept: put %v, %v, want it put back", put, err)
	}
	if put, err := Keep(export, first); err != nil || put {
		t.Errorf("kept once more: put %v, %v, want it left alone", put, err)
	}
	whole := export
	export = roottest.Open(t, t.TempDir()) // the disk is not mounted
	refused("has no " + MarkerFile)
	if names := list(export); len(names) > 0 {
		t.Errorf("written where no disk is mounted: %v", names)
	}
	if _, err := Mark(export, roottest.Open(t, t.TempDir()), "A"); err != nil {
		t.Fatal(err)
	}
	refused("another one")
	if err := state.Remove(memoryFile); err != nil { // as the refusal says
		t.Fatal(err)
	}
	if m, err := Mark(export, state, "A"); err != nil || m == first {
		t.Errorf("got %+v, %v, want the new disk's marker", m, err)
	}
	if err := whole.WriteFile(MarkerFile, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Mark(whole, state, "A"); !errors.Is(err, errNoMarker) {
		t.Errorf("got %v, want a file that is no marker left alone", err)
	}
}

// A marker is put nowhere but where it was, and what somebody has put in its place stays.
func TestAMarkerIsKeptInItsDirectoryAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "export")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	export, state := roottest.Open(t, dir), roottest.Open(t, t.TempDir())
	m, err := Mark(export, state, "A")
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, say string) {
		t.Helper()
		if put, err := Keep(export, m); err == nil || put || !strings.Contains(err.Error(), say) || strings.Count(err.Error(), dir) != 1 {
			t.Errorf("%s: put %v, %v, want a refusal that says %q", what, put, err, say)
		}
	}
	for text, say := range map[string]string{`{"site":"A","id":"two"}`: "another export", "hello": "not a marker"} {
		if err := export.WriteFile(MarkerFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(text, say)
		if data, err := export.ReadFile(MarkerFile); err != nil || string(data) != text {
			t.Errorf("the marker is %q, %v, want %q left alone", data, err, text)
		}
	}
	if err := export.Remove(MarkerFile); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	refused("gone", "mount its disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("another directory", "restart the DTN")
	for _, root := range []*os.Root{export, roottest.Open(t, dir)} {
		if names := list(root); len(names) > 0 {
			t.Errorf("written meanwhile: %v", names)
		}
	}
	if _, err := Mark(roottest.Open(t, dir), state, "A"); err == nil || !strings.Contains(err.Error(), memoryFile) {
		t.Errorf("restarted there: got %v, want a refusal that names %s", err, memoryFile)
	}
	if err := errors.Join(os.Remove(dir), os.Rename(dir+".old", dir)); err != nil {
		t.Fatal(err)
	}
	if again, err := Mark(export, state, "A"); err != nil || again != m {
		t.Errorf("restarted where it was: got %+v, %v, want %+v again", again, err, m)
	}
}

func TestMemoryThatIsDamagedIsNamed(t *testing.T) {
	m := newMachine(t)
	file := filepath.Join(m.state, memoryFile)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Dir: m.dir, Site: "A", State: m.state}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v, want an error that names %s", err, file)
	}
	if err := os.WriteFile(file, []byte(`{"dir":"/elsewhere","marker":{"site":"A","id":"two"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	wantWell(t, m.guard(Options{})) // the configuration names another directory now
}

// The kernel tells of a real directory what is asked of it.
func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	s, err := host.identify(roottest.Open(t, link))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	want, _ := nfs.Covering(mounts, s.Path)
	if s.Path != dir || s.mount.ID != want.ID || !strings.HasPrefix(s.Path, s.Point) || s.Type == "" || len(s.FSID) != 16 {
		t.Errorf("got %+v, want %s on mount %d", s, dir, want.ID)
	}
}
