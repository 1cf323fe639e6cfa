package guest_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
)

func wantOptions(t *testing.T, m *guest.Machine, dir string, want ...string) {
	t.Helper()
	got := m.MountOptions(t, dir)
	for _, o := range want {
		no, unwanted := strings.CutPrefix(o, "!")
		if slices.Contains(got, no) == unwanted {
			t.Errorf("%s is mounted with %s, want %s", dir, strings.Join(got, ","), o)
		}
	}
}

// put writes a file as a careful program does: it returns when the file's content
// is said to be on stable storage.
func put(t *testing.T, name string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func wantFile(t *testing.T, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %.16q..., want %d, %.16q...", name, len(got), got, len(want), want)
	}
}

func TestKernelMountsAndExportsChangeLive(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	for _, c := range []struct{ source, options string }{
		{server.Source(), "vers=3,nolock"},
		{server.Root(), "vers=4.2"},
	} {
		t.Run(c.options, func(t *testing.T) {
			dir := server.Mount(t, c.source, c.options+",rsize=32768,wsize=1048576")
			wantOptions(t, server.Machine, dir, "rsize=32768", "wsize=1048576", "hard", "!sync")
			data := bytes.Repeat([]byte("image"), 100_000)
			put(t, filepath.Join(dir, "image"), data)
			wantFile(t, filepath.Join(server.Dir, "image"), data)

			server.Run(t, "mount", "-o", "remount,sync", dir)
			wantOptions(t, server.Machine, dir, "sync")
			server.Run(t, "mount", "-o", "remount,async", dir)
			wantOptions(t, server.Machine, dir, "!sync")
			if _, err := server.Output("mount", "-o", "remount,rsize=65536", dir); err == nil {
				t.Error("another rsize was taken by a remount")
			}
			wantOptions(t, server.Machine, dir, "rsize=32768")

			for _, mode := range []string{"async", "sync"} {
				server.Export(t, mode)
				if got := server.Run(t, "exportfs", "-v"); !strings.Contains(got, "("+mode+",") {
					t.Errorf("exportfs -v: %q, want %s", got, mode)
				}
				put(t, filepath.Join(dir, mode), data)
				wantFile(t, filepath.Join(server.Dir, mode), data)
			}
		})
	}
}

// commits returns how many COMMITs the server has answered; see nfsstat(8).
func commits(t *testing.T, s *guest.Server) int {
	t.Helper()
	stats := s.Run(t, "cat", "/proc/net/rpc/nfsd")
	for line := range strings.Lines(stats) {
		if f := strings.Fields(line); f[0] == "proc3" {
			n, err := strconv.Atoi(f[len(f)-1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no proc3 in %q", stats)
	return 0
}

// TestKernelPowerCut holds that a power cut takes what an async export has
// acknowledged as stable, and leaves what a sync export has.
func TestKernelPowerCut(t *testing.T) {
	guest.Need(t)
	before, after := bytes.Repeat([]byte("o"), 64<<10), bytes.Repeat([]byte("n"), 64<<10)
	for _, c := range []struct {
		mode     string
		survives bool
	}{{"sync", true}, {"async", false}} {
		t.Run(c.mode, func(t *testing.T) {
			dtn, ctrl := guest.NewMachine(t, "dtn"), guest.NewMachine(t, "ctrl")
			guest.Connect(t, dtn, "10.0.0.1/24", ctrl, "10.0.0.2/24")
			server := dtn.Serve(t, c.mode)
			dir := ctrl.Path(ctrl.Mount(t, server.Source(), "vers=3,nolock,wsize=65536"))

			put(t, filepath.Join(dir, "old"), before)
			server.Run(t, "sync")
			n := commits(t, server)
			put(t, filepath.Join(dir, "old"), after)
			put(t, filepath.Join(dir, "new"), after)
			if got := commits(t, server); got != n {
				t.Errorf("the client sent %d COMMITs, want writes that are FILE_SYNC by themselves", got-n)
			}

			server.CutPower(t)
			old, err := os.ReadFile(server.Path(filepath.Join(server.Dir, "old")))
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Equal(old, after); got != c.survives {
				t.Errorf("the file overwritten before the power cut has the new content: %v, want %v", got, c.survives)
			}
			if !c.survives && !bytes.Equal(old, before) {
				t.Errorf("the file overwritten before the power cut has %d bytes, %.16q..., want the old content", len(old), old)
			}
			created, err := os.ReadFile(server.Path(filepath.Join(server.Dir, "new")))
			if got := err == nil && bytes.Equal(created, after); got != c.survives {
				t.Errorf("the file made before the power cut is whole: %v (%v), want %v", got, err, c.survives)
			}

			put(t, filepath.Join(dir, "next"), after)
			wantFile(t, server.Path(filepath.Join(server.Dir, "next")), after)
		})
	}
}

func TestKernelAHardMountWaitsForItsServer(t *testing.T) {
	guest.Need(t)
	dtn, ctrl := guest.NewMachine(t, "dtn"), guest.NewMachine(t, "ctrl")
	guest.Connect(t, dtn, "10.0.0.1/24", ctrl, "10.0.0.2/24")
	server := dtn.Serve(t, "sync")
	hard := ctrl.Path(ctrl.Mount(t, server.Source(), "vers=3,nolock,hard"))
	soft := ctrl.Path(ctrl.Mount(t, server.Source(), "vers=3,nolock,soft,timeo=5,retrans=1,nosharecache,lookupcache=none"))

	server.Stop(t)
	if _, err := os.Stat(filepath.Join(soft, "image")); err == nil || os.IsNotExist(err) {
		t.Errorf("a soft mount without a server says %v, want an I/O error", err)
	}
	written := make(chan error)
	go func() { written <- os.WriteFile(filepath.Join(hard, "image"), []byte("image"), 0o644) }()
	select {
	case err := <-written:
		t.Fatalf("the write ended without a server: %v", err)
	case <-time.After(time.Second):
	}
	server.Start(t)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	wantFile(t, server.Path(filepath.Join(server.Dir, "image")), []byte("image"))
}

func TestKernelTwoSites(t *testing.T) {
	guest.Need(t)
	s := guest.NewSites(t)
	for _, site := range []struct{ ctrl, dtn *guest.Machine }{{s.CtrlA, s.DTNA}, {s.CtrlB, s.DTNB}} {
		server := site.dtn.Serve(t, "sync")
		dir := site.ctrl.Mount(t, server.Source(), "vers=3,nolock")
		put(t, site.ctrl.Path(filepath.Join(dir, "who")), []byte(site.dtn.Name))
		wantFile(t, site.dtn.Path(filepath.Join(server.Dir, "who")), []byte(site.dtn.Name))
		site.ctrl.Run(t, os.Getenv("GLANCE_DTN"), "version")
	}

	const oneWay = 20 * time.Millisecond
	s.Shape(t, "delay", oneWay.String())
	s.DTNA.Run(t, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=htcp")
	var listener net.Listener
	var err error
	s.CtrlB.Within(t, func() {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.CtrlB.Addr, 0)))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var took time.Duration
	s.CtrlA.Within(t, func() {
		start := time.Now()
		var c net.Conn
		if c, err = net.Dial("tcp", listener.Addr().String()); err == nil {
			took = time.Since(start)
			err = c.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if took < 2*oneWay {
		t.Errorf("a connection from site A to site B took %v, want a round trip of %v at least", took, 2*oneWay)
	}
}
