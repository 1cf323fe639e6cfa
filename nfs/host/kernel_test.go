package host_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/host"
)

func planned(t *testing.T, h *host.Host, w host.Wish) []host.Change {
	t.Helper()
	s, err := h.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes, err := host.Plan(s, w)
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) != 1 {
		t.Fatalf("planned %+v, want one change", changes)
	}
	return changes
}

func applied(t *testing.T, h *host.Host, w host.Wish, o host.Options) host.Result {
	t.Helper()
	r, err := h.Apply(t.Context(), planned(t, h, w), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %q", r[0].Says, r[0].Notes)
	return r[0]
}

func undone(t *testing.T, h *host.Host) {
	t.Helper()
	did, err := h.Undo(t.Context(), false)
	if err != nil {
		t.Error(err)
	}
	t.Logf("undone: %q", did)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// has reports options that a mount should have, or not, where they begin with !.
func has(t *testing.T, m *guest.Machine, dir string, want ...string) {
	t.Helper()
	got := m.MountOptions(t, dir)
	for _, o := range want {
		if o, no := strings.CutPrefix(o, "!"); slices.Contains(got, o) == no {
			t.Errorf("%s has %s, want %q", dir, got, want)
		}
	}
}

// kernelExports returns what nfsd itself has of the exports that were used since
// the last change; see nfsd(7).
func kernelExports(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/fs/nfsd/exports")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestKernelExports(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	dir := server.Mount(t, server.Source(), "vers=3,nolock")
	table := func() string { return server.Run(t, "exportfs", "-s") }
	server.Run(t, "exportfs", "-i", "-o", "rw,no_subtree_check,insecure", "192.0.2.7:"+server.Dir) // by hand: stays
	before := table()
	h := host.New(t.TempDir())
	const own = "/etc/exports.d/00-glance-dtn.exports"
	wish := host.Wish{Export: server.Dir, Client: "*", Options: nfs.Options{"async"}}
	wantKernel := func(mode string) {
		t.Helper()
		write(t, filepath.Join(dir, "image"), mode) // makes nfsd ask
		if got := kernelExports(t); !strings.Contains(got, ","+mode+",") {
			t.Errorf("nfsd has\n%s\nwant %s", got, mode)
		}
	}

	if s, err := h.Read(t.Context()); err != nil || s.MaxBlockSize != 1<<20 {
		t.Errorf("nfsd's limit is %d, %v; want 1 MiB", s.MaxBlockSize, err)
	}
	if c := planned(t, h, wish)[0]; !c.Lasts || c.File != own || !strings.Contains(c.Says, guest.ExportsFile) {
		t.Errorf("planned %+v, want a drop-in before %s", c, guest.ExportsFile)
	}
	wantKernel("sync")
	applied(t, h, wish, host.Options{})
	wantKernel("async")
	if got := table(); !strings.Contains(got, "192.0.2.7(") {
		t.Errorf("the table has\n%s\nwant what was exported by hand too", got)
	}
	_, err := server.Output("exportfs", "-ra") // it complains of the duplicate, and takes the drop-in
	if got := table(); err == nil || !strings.Contains(got, "(async,") || strings.Contains(got, "192.0.2.7(") {
		t.Errorf("after exportfs -ra, %v, the table has\n%s\nwant what the files say", err, got)
	}
	server.Run(t, "exportfs", "-i", "-o", "rw,no_subtree_check,insecure", "192.0.2.7:"+server.Dir)
	undone(t, h)
	wantKernel("sync")
	if got := table(); got != before {
		t.Errorf("the table has\n%s\nwant\n%s", got, before)
	}
	if _, err := os.Stat(own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", own, err)
	}

	// The order in which exportfs reads the files, of which the first counts.
	for _, names := range [][2]string{{"000-a", "00-a"}, {"00-h", "0-a"}} {
		for i, name := range names {
			file := "/etc/exports.d/" + name + ".exports"
			write(t, file, server.Dir+" *(rw,no_root_squash,no_subtree_check,insecure,fsid=0,"+[]string{"async", "sync"}[i]+")\n")
		}
		_, _ = server.Output("exportfs", "-ra") // it complains of the duplicates
		if got := table(); !strings.Contains(got, "(async,") {
			t.Errorf("of %q the second one counts: the table has\n%s", names, got)
		}
		if c := planned(t, h, host.Wish{Export: server.Dir, Client: "*", Options: nfs.Options{"sync"}})[0]; c.Lasts != (names[0] == "00-h") {
			t.Errorf("beside %q: planned %+v", names, c)
		}
		for _, name := range names {
			if err := os.Remove("/etc/exports.d/" + name + ".exports"); err != nil {
				t.Fatal(err)
			}
		}
	}
	server.Run(t, "exportfs", "-ra")
	server.Run(t, "exportfs", "-i", "-o", "rw,no_subtree_check,insecure", "192.0.2.7:"+server.Dir)

	// What stands in /etc/exports is read first: a drop-in would be ignored.
	const users = "/etc/exports"
	line := server.Dir + " *(rw,no_root_squash,no_subtree_check,insecure,fsid=0,sync)\n"
	write(t, users, line)
	t.Cleanup(func() { write(t, users, "") })
	if r := applied(t, h, wish, host.Options{}); r.Lasts || r.File != "" || !strings.Contains(r.Says, users) {
		t.Errorf("applied %+v, want no file", r)
	}
	wantKernel("async")
	undone(t, h)
	if got := table(); got != before {
		t.Errorf("the table has\n%s\nwant\n%s", got, before)
	}
	if text, err := os.ReadFile(users); string(text) != line || err != nil {
		t.Errorf("%s has %q, %v", users, text, err)
	}
}

func TestKernelMounts(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	dir := server.Mount(t, server.Source(), "vers=3,nolock,mountproto=tcp,rsize=32768,wsize=32768,noatime,nosuid")
	before := server.MountOptions(t, dir)
	same := func() {
		t.Helper()
		if got := server.MountOptions(t, dir); !slices.Equal(got, before) {
			t.Errorf("%s has %s, want %s", dir, got, before)
		}
	}
	h := host.New(filepath.Join(t.TempDir(), "state"))
	image := filepath.Join(dir, "image")
	write(t, image, "image")

	// Rounded, and clipped.
	r := applied(t, h, host.Wish{Mount: dir, Options: nfs.Options{"rsize=10000", "wsize=4194304"}}, host.Options{})
	has(t, server.Machine, dir, "rsize=8192", "wsize=1048576", "noatime", "nosuid", "hard")
	want := []nfs.Difference{{Option: "rsize", Asked: "10000", Granted: "8192"}, {Option: "wsize", Asked: "4194304", Granted: "1048576"}}
	if r.Kind != host.KindMount || !slices.Equal(r.Differences, want) {
		t.Errorf("%s, differences %v", r.Kind, r.Differences)
	}

	// A remount, under an open file; what is not wished for stays.
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := applied(t, h, host.Wish{Mount: dir, Options: nfs.Options{"sync"}}, host.Options{}); r.Kind != host.KindRemount {
		t.Errorf("it is a %s, want a remount", r.Kind)
	}
	has(t, server.Machine, dir, "sync", "rsize=8192", "noatime", "nosuid")

	// In use: refused by name before anything is done, then forced.
	wish := host.Wish{Mount: dir, Options: nfs.Options{"rsize=65536"}}
	_, err = h.Apply(t.Context(), planned(t, h, wish), host.Options{})
	busy, is := errors.AsType[*host.BusyError](err)
	if !is || !slices.ContainsFunc(busy.Holders, func(h host.Holder) bool { return h.PID == os.Getpid() && h.What == "fd "+image }) {
		t.Errorf("the error is %v, want this process named", err)
	}
	has(t, server.Machine, dir, "sync", "rsize=8192")
	applied(t, h, wish, host.Options{Force: true})
	has(t, server.Machine, dir, "sync", "rsize=65536")
	text := make([]byte, 5)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "image" {
		t.Errorf("the file that was open has %q, %v", text, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}

	// A mount that fails, and one that is slower.
	slower := errors.New("slower")
	for _, options := range []nfs.Options{{"nosuchoption"}, {"rsize=4096"}} {
		_, err := h.Apply(t.Context(), planned(t, h, host.Wish{Mount: dir, Options: options}), host.Options{Accept: func(context.Context) error {
			has(t, server.Machine, dir, "rsize=4096")
			return slower
		}})
		if err == nil || !strings.Contains(err.Error(), "everything is as it was") || errors.Is(err, slower) != (options[0] == "rsize=4096") {
			t.Errorf("%s: the error is %v", options, err)
		}
		has(t, server.Machine, dir, "sync", "rsize=65536")
	}

	// Undone after a crash between umount and mount, and after one beside another mount.
	server.Run(t, "umount", dir)
	undone(t, h)
	same()
	undone(t, h)
	applied(t, h, wish, host.Options{})
	server.Run(t, "mount", "-t", "nfs", "-o", "vers=3,nolock,rsize=4096", server.Source(), dir)
	undone(t, h)
	same()

	// A server that is gone keeps nobody from looking.
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	planned(t, h, wish)
	if _, err := h.Holders(dir); err != nil {
		t.Error(err)
	}
	server.Start(t)
}

func TestKernelScratch(t *testing.T) {
	guest.Need(t)
	server := guest.Here().Serve(t, "sync")
	dir := server.Mount(t, server.Root(), "vers=4.2,rsize=32768")
	h := host.New(t.TempDir())
	var point string
	err := h.Scratch(t.Context(), server.Root(), nfs.ParseOptions("vers=4.2,rsize=8192,nconnect=4"), func(p string) error {
		point = p
		has(t, server.Machine, p, "rsize=8192", "nosharecache", "!nconnect=4")
		has(t, server.Machine, dir, "rsize=32768")
		write(t, filepath.Join(p, "scratch"), "scratch")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "scratch")); err != nil || string(text) != "scratch" {
		t.Errorf("the live mount has %q, %v", text, err)
	}
	server.Run(t, "mount", "-t", "nfs", "-o", "vers=3,nolock", server.Source(), point) // as a killed process leaves it
	err = h.Scratch(t.Context(), server.Source(), nfs.ParseOptions("vers=3,nolock,rsize=16384"), func(p string) error {
		has(t, server.Machine, p, "vers=3", "rsize=16384")
		f, err := os.Open(p)
		if err == nil {
			t.Cleanup(func() { _ = f.Close() })
		}
		return err
	})
	if _, is := errors.AsType[*host.BusyError](err); !is {
		t.Errorf("a file was left open: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), point) {
		t.Errorf("%s is mounted still, %v:\n%s", point, err, mounts)
	}

	// Of two mounts of a server the first has decided on the connections.
	second := server.Mount(t, server.Root(), "vers=4.2,rsize=16384")
	r := applied(t, h, host.Wish{Mount: second, Options: nfs.Options{"nconnect=4"}}, host.Options{})
	if want := (nfs.Difference{Option: "nconnect", Asked: "4", Granted: "1"}); !slices.Equal(r.Differences, []nfs.Difference{want}) || len(r.Notes) != 1 {
		t.Errorf("differences %v, notes %q", r.Differences, r.Notes)
	}
	undone(t, h)
	has(t, server.Machine, second, "rsize=16384")
}
