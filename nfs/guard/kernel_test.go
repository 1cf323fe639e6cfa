package guard

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/dtn"
	"github.com/glance-dtn/glance-dtn/mover/localcopy"
)

// client is this machine, with the export of a DTN at dir.
type client struct {
	*guest.Machine
	t     *testing.T
	dir   string
	state string
	log   bytes.Buffer
}

// marked is a DTN of site A with a marked export and its boxes.
func marked(t *testing.T, name, ours, its string) *guest.Server {
	t.Helper()
	m := guest.NewMachine(t, name)
	guest.Connect(t, guest.Here(), ours, m, its)
	s := m.Serve(t, "sync")
	export := roottest.Open(t, s.Path(s.Dir))
	if _, err := Mark(export, roottest.Open(t, t.TempDir()), "A"); err != nil {
		t.Fatal(err)
	}
	if err := dtn.MakeBoxes(export); err != nil {
		t.Fatal(err)
	}
	_ = export.Close() // the disk is to be unmounted
	return s
}

func newClient(t *testing.T) *client {
	c := &client{Machine: guest.Here(), t: t, dir: filepath.Join(t.TempDir(), "dtn"), state: t.TempDir()}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 4 { // what a test has mounted over another included
			_, _ = c.Output("umount", "--force", "--lazy", c.dir)
		}
	})
	return c
}

func (c *client) mount(source, options string) {
	c.t.Helper()
	c.Run(c.t, "mount", "-t", "nfs", "-o", options, source, c.dir)
}

func (c *client) guard() *Guard {
	c.t.Helper()
	g, err := New(Options{Dir: c.dir, Site: "A", State: c.state, Try: localcopy.Try, Log: slog.New(slog.NewTextHandler(&c.log, nil))})
	if err != nil {
		c.t.Fatal(err)
	}
	g.patience = 2 * time.Second
	return g
}

// check fails unless the export is in the state, "" for well, and says so in these
// words. What passes by itself is waited for.
func (c *client) check(g *Guard, want State, words ...string) {
	c.t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		err = g.Check(c.t.Context())
		if trouble, _ := errors.AsType[*Trouble](err); err == nil && want == "" || trouble != nil && trouble.State == want {
			if err != nil {
				c.t.Logf("%s: %v", want, err)
			}
			if again := g.Check(c.t.Context()); err != nil && (again == nil || again.Error() != err.Error()) {
				c.t.Errorf("%q, and at the next look %v", err, again)
			}
			if outbox := errors.Is(err, mover.ErrOutbox); outbox != (want == ReadOnly) {
				c.t.Errorf("%q is of the outbox alone: %v", err, outbox)
			}
			for _, w := range words {
				if !strings.Contains(err.Error(), w) {
					c.t.Errorf("%q does not say %q", err, w)
				}
			}
			return
		}
	}
	c.t.Fatalf("got %v, want %q", err, want)
}

// stager stages a small image through the guard.
func (c *client) stager(g *Guard) (stage func() error) {
	store := filepath.Join(c.t.TempDir(), "image")
	data := []byte("image")
	if err := os.WriteFile(store, data, 0o640); err != nil {
		c.t.Fatal(err)
	}
	h, err := digest.New("sha512")
	if err != nil {
		c.t.Fatal(err)
	}
	h.Write(data)
	copier := localcopy.New(localcopy.Options{Open: g.Open, Mode: localcopy.Copy,
		Find: func(string) (string, int64, error) { return store, int64(len(data)), nil }})
	f := mover.File{Name: mover.Outbox + "/0123456789abcdef0123", Size: int64(len(data)), Digest: digest.Of("sha512", h)}
	return func() error {
		_, err := copier.Stage(c.t.Context(), "image", f, func(int64) {})
		return err
	}
}

func TestKernelGuard(t *testing.T) {
	guest.Need(t)
	server := marked(t, "dtn", "10.0.0.2/24", "10.0.0.1/24")
	other := marked(t, "other", "10.0.1.2/24", "10.0.1.1/24")
	t.Run("taken", func(t *testing.T) { aMountThatIsTaken(t, server) })
	t.Run("changed", func(t *testing.T) { readOnlyStaleAndReplaced(t, server, other) })
	t.Run("nested", func(t *testing.T) { mountsWithinMounts(t, server) })
	t.Run("hung", func(t *testing.T) { aServerThatDoesNotAnswer(t, server, other) })
}

func aMountThatIsTaken(t *testing.T, server *guest.Server) {
	for _, mount := range []struct{ source, options string }{
		{server.Source(), "vers=3,nolock"},
		{server.Root(), "vers=4.2"},
	} {
		t.Run(mount.options, func(t *testing.T) {
			c := newClient(t)
			g := c.guard()
			c.check(g, Gone, "no "+MarkerFile)
			c.mount(mount.source, mount.options)
			c.check(g, "")
			if g.last.FSID == "" || g.last.Point != c.dir || g.last.Source != mount.source {
				t.Errorf("seen: %+v, want the server's fsid, %s on %s", g.last.export, mount.source, c.dir)
			}
			stage := c.stager(g)
			if err := stage(); err != nil {
				t.Fatal(err)
			}

			// Under the feet of one who has it open.
			root, err := g.Open()
			if err != nil {
				t.Fatal(err)
			}
			c.Run(t, "umount", "--lazy", c.dir)
			if err := root.WriteFile("late", []byte("late"), 0o600); err != nil {
				t.Errorf("through the handle: %v", err)
			}
			if err := root.Close(); err != nil {
				t.Error(err)
			}
			if late, err := os.ReadFile(server.Path(filepath.Join(server.Dir, "late"))); err != nil || string(late) != "late" {
				t.Errorf("the server has %q, %v, want what was written", late, err)
			}
			c.check(g, Gone, "was before ("+mount.source+")")
			if err := stage(); err == nil {
				t.Error("a copy was staged where nothing is mounted")
			}
			if names := list(roottest.Open(t, c.dir)); len(names) > 0 {
				t.Errorf("the mount point has %v", names)
			}

			// What others write meanwhile is told; a copy of the export does not deceive.
			c.Run(t, "cp", "-a", server.Path(server.Dir)+"/.", c.dir)
			c.check(g, Gone, MarkerFile, "move it away")
			c.check(c.guard(), Gone, "was before ("+mount.source+")")
			c.mount(mount.source, mount.options)
			c.check(g, "")
			if log := c.log.String(); !strings.Contains(log, "mounted anew") || !strings.Contains(log, "beneath the mount") {
				t.Errorf("the log: %s", log)
			}
			if err := stage(); err != nil {
				t.Error(err)
			}
		})
	}
}

// mountsWithinMounts holds that a mount within another of the same server, which has its
// device, is the one that has to be there; and that a directory bound onto itself is not.
func mountsWithinMounts(t *testing.T, server *guest.Server) {
	dir := server.Path(filepath.Join(server.Dir, "all"))
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(filepath.Join(dir, "dtn"), 0o755)); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, vers := range []string{"vers=3,nolock", "vers=4.2"} {
		t.Run(vers, func(t *testing.T) {
			source := server.Source()
			if strings.HasPrefix(vers, "vers=4") {
				source = strings.TrimSuffix(server.Root(), "/")
			}
			c := newClient(t)
			up := filepath.Dir(c.dir)
			point := func() string {
				t.Helper()
				root := roottest.Open(t, c.dir)
				s, err := host.identify(root)
				if err = errors.Join(err, root.Close()); err != nil {
					t.Fatal(err)
				}
				return s.Point
			}
			c.Run(t, "mount", "-t", "nfs", "-o", vers, source+"/all", up)
			defer c.Run(t, "umount", "--lazy", up)
			c.Run(t, "mount", "--bind", c.dir, c.dir)
			if got := point(); got != up {
				t.Errorf("bound onto itself: it lies on %s, want %s", got, up)
			}
			c.Run(t, "umount", c.dir)
			c.mount(source+"/", vers)
			if got := point(); got != c.dir {
				t.Errorf("another directory of the server: it lies on %s, want %s", got, c.dir)
			}
			g := c.guard()
			g.Mounted = Required
			c.check(g, "")
			c.Run(t, "umount", c.dir)
			c.check(g, Gone, "mount: required")
		})
	}
}

func readOnlyStaleAndReplaced(t *testing.T, server, other *guest.Server) {
	foreign := roottest.Open(t, t.TempDir())
	if _, err := Mark(foreign, roottest.Open(t, t.TempDir()), "B"); err != nil {
		t.Fatal(err)
	}
	for _, vers := range []string{"vers=3,nolock", "vers=4.2"} {
		t.Run(vers, func(t *testing.T) {
			source := func(s *guest.Server) string {
				if strings.HasPrefix(vers, "vers=4") {
					return s.Root()
				}
				return s.Source()
			}
			c := newClient(t)
			g := c.guard()
			c.mount(source(server), vers)
			c.check(g, "")

			c.Run(t, "mount", "-o", "remount,ro", c.dir)
			c.check(g, ReadOnly, "remount,rw")
			c.Run(t, "mount", "-o", "remount,rw", c.dir)
			c.check(g, "")
			server.Export(t, "sync,ro")
			c.check(g, ReadOnly, "exports(5)")
			server.Export(t, "sync")
			c.check(g, "")

			server.Run(t, "exportfs", "-ua")
			server.Run(t, "exportfs", "-f")
			c.check(g, Stale, "umount --lazy")
			server.Export(t, "sync")
			c.check(g, "")

			c.mount(source(other), vers)
			c.check(g, Replaced, source(other))
			c.Run(t, "mount", "--bind", foreign.Name(), c.dir)
			c.check(g, Replaced, "of site B")
			c.Run(t, "umount", c.dir)
			c.Run(t, "umount", c.dir)
			c.check(g, "")
		})
	}
}

func aServerThatDoesNotAnswer(t *testing.T, server, other *guest.Server) {
	c := newClient(t)
	g := c.guard()
	c.mount(server.Source(), "vers=3,nolock,hard")
	c.check(g, "")

	server.Stop(t)
	began := time.Now()
	c.check(g, Hung, server.Source())
	if took := time.Since(began); took < g.patience {
		t.Errorf("it hangs after %v already", took)
	}
	before := runtime.NumGoroutine()
	for range 20 {
		if err := g.Check(t.Context()); err == nil {
			t.Error("an export that hangs is well")
		}
		if root, err := g.Open(); err == nil {
			root.Close()
			t.Error("an export that hangs was opened")
		}
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("%d goroutines after 20 checks, %d before", now, before)
	}
	server.Start(t)
	c.check(g, "")

	// It never comes back, and another server takes its place.
	server.Stop(t)
	c.check(g, Hung, "umount --force --lazy")
	c.Run(t, "umount", "--lazy", c.dir)
	marker, err := os.ReadFile(server.Path(filepath.Join(server.Dir, MarkerFile)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other.Path(filepath.Join(other.Dir, MarkerFile)), marker, 0o644); err != nil {
		t.Fatal(err)
	}
	c.mount(other.Source(), "vers=3,nolock,hard")
	c.check(g, "")
	if !strings.Contains(c.log.String(), other.Source()) {
		t.Errorf("the log: %s", &c.log)
	}
	server.Start(t)
	c.check(g, "")
}
