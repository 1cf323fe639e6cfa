package probe

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
)

// kernel is the kernel's NFS server on another machine.
type kernel struct{ *guest.Server }

func (k kernel) options() Options {
	return Options{Host: k.Addr.String(), Export: k.Dir, Timeout: time.Minute}
}

func (k kernel) dial(t *testing.T, change ...func(*Options)) *Probe {
	t.Helper()
	o := k.options()
	for _, c := range change {
		c(&o)
	}
	p, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// Procedures of NFS 3 by number: RFC 1813, section 3.3.
const (
	procNull   = 0
	procRead   = 6
	procWrite  = 7
	procFsstat = 18
	procFsinfo = 19
	procCommit = 21
)

// answered returns how many calls of each procedure the server has answered until now;
// see nfsstat(8).
func (k kernel) answered(t *testing.T) (n [22]int) {
	t.Helper()
	stats := k.Run(t, "cat", "/proc/net/rpc/nfsd")
	for line := range strings.Lines(stats) {
		if f := strings.Fields(line); f[0] == "proc3" && len(f) == 2+len(n) {
			for i := range n {
				var err error
				if n[i], err = strconv.Atoi(f[2+i]); err != nil {
					t.Fatal(err)
				}
			}
			return n
		}
	}
	t.Fatalf("no proc3 in %q", stats)
	return n
}

// calls reports counts of procedures that use does not come to.
func (k kernel) calls(t *testing.T, wanted map[int]int, use func()) {
	t.Helper()
	before := k.answered(t)
	use()
	after := k.answered(t)
	for proc, n := range wanted {
		if got := after[proc] - before[proc]; got != n {
			t.Errorf("the server answered %d calls of procedure %d, want %d", got, proc, n)
		}
	}
}

// TestKernelServer probes the server that most sites have.
func TestKernelServer(t *testing.T) {
	guest.Need(t)
	m := guest.NewMachine(t, "dtn")
	guest.Connect(t, guest.Here(), "10.0.0.2/24", m, "10.0.0.1/24")
	k := kernel{m.Serve(t, "sync")}
	if err := os.Remove(k.Path(k.Dir + "/lost+found")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"what it says of itself", k.limitsAndSpace},
		{"who may do what", k.access},
		{"a reserved port", k.reservedPort},
		{"measure", func(t *testing.T) { measure(t, k.dial(t, func(o *Options) { o.Connections = 2 })) }},
		{"each call reaches it", k.eachCall},
		{"scratch files", func(t *testing.T) { scratchFiles(t, k.dial(t), k.Path(k.Dir)) }},
		{"depth", k.depth},
		{"restarted", k.restarted},
		{"sync or async", k.syncOrAsync},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(t)
			left, err := os.ReadDir(k.Path(k.Dir))
			if err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

func (k kernel) limitsAndSpace(t *testing.T) {
	exports, err := Exports(t.Context(), k.options())
	if err != nil || !slices.ContainsFunc(exports, func(e Export) bool { return e.Dir == k.Dir }) {
		t.Errorf("exports %v, %v; want %s", exports, err, k.Dir)
	}
	p := k.dial(t)
	var info Info
	k.calls(t, map[int]int{procNull: infoCalls, procFsinfo: infoCalls, procFsstat: 1}, func() {
		if info, err = p.Info(t.Context(), infoCalls); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%+v", info)
	l := info.Limits
	want(t, [4]int64{l.ReadMax, l.ReadPref, l.WriteMax, l.WritePref}, [4]int64{1 << 20, 1 << 20, 1 << 20, 1 << 20})
	if l.MaxFileSize < 1<<40 || l.DirPref < 4096 {
		t.Errorf("limits %+v", l)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(k.Path(k.Dir), &st); err != nil {
		t.Fatal(err)
	}
	block := uint64(st.Bsize)
	want(t, info.Space, Space{
		Total: clamp(st.Blocks * block), Free: clamp(st.Bfree * block), Avail: clamp(st.Bavail * block),
		TotalFiles: clamp(st.Files), FreeFiles: clamp(st.Ffree), AvailFiles: clamp(st.Ffree),
	})
}

func (k kernel) access(t *testing.T) {
	const group, everything = 4242, AccessRead | AccessModify | AccessWrite
	dir := k.Path(k.Dir)
	if err := errors.Join(os.Chown(dir, 0, group), os.Chmod(dir, 0o775)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(os.Chown(dir, 0, 0), os.Chmod(dir, 0o755)); err != nil {
			t.Error(err)
		}
	}()
	others := func(o *Options) { o.UID, o.GID = 65534, 65534 }
	for _, c := range []struct {
		who, export string
		as          func(*Options)
		want        Access
	}{
		{"root", "sync", func(*Options) {}, everything},
		{"root that is squashed", "sync,root_squash", func(*Options) {}, AccessRead | AccessLookup},
		{"the group", "sync", func(o *Options) { o.UID, o.GID = 65534, group }, everything},
		{"others", "sync", others, AccessRead | AccessLookup},
		{"root, read-only", "sync,ro", func(*Options) {}, AccessRead | AccessLookup},
	} {
		k.Export(t, c.export)
		p := k.dial(t, c.as)
		got, err := p.Access(t.Context())
		if err != nil || got != c.want {
			t.Errorf("%s: access %06b, %v, want %06b", c.who, got, err, c.want)
		}
		err = p.Scratch(t.Context(), func(*File) error { return nil })
		if may := c.want&AccessWrite == AccessWrite; (err == nil) != may {
			t.Errorf("%s: a scratch file: %v, want it made: %v", c.who, err, may)
		}
	}
	k.Export(t, "sync")
}

func (k kernel) reservedPort(t *testing.T) {
	k.Export(t, "sync,secure")
	defer k.Export(t, "sync")
	_, err := Dial(t.Context(), k.options())
	wantError(t, err, os.ErrPermission, "insecure")
	p := k.dial(t, func(o *Options) { o.ReservedPort = true })
	want(t, p.Scratch(t.Context(), func(*File) error { return nil }), nil)
}

// eachCall holds that a test is made of the calls that it says, and what the server
// promises: just what it is asked for, an async one too.
func (k kernel) eachCall(t *testing.T) {
	ctx := t.Context()
	p := k.dial(t)
	for _, mode := range []string{"sync", "async"} {
		k.Export(t, mode)
		err := p.Scratch(ctx, func(f *File) error {
			for _, size := range []int{1000, 64 << 10, 1 << 20} {
				for _, how := range []Stability{Unstable, DataSync, FileSync} {
					total := int64(7*size + 1)
					k.calls(t, map[int]int{procWrite: 8, procCommit: 1, procRead: 8}, func() {
						w, err := f.Write(ctx, WriteTest{Size: size, Total: total, Depth: 3, Stability: how, Commit: true})
						if err != nil || w.Committed != how || w.Calls.N != 8 || w.Bytes != total {
							t.Errorf("%s: %v WRITEs of %d bytes: %+v, %v", mode, how, size, w, err)
						}
						r, err := f.Read(ctx, ReadTest{Size: size, Total: total, Depth: 3})
						if err != nil || r.Calls.N != 8 || r.Bytes != total {
							t.Errorf("%s: READs of %d bytes: %+v, %v", mode, size, r, err)
						}
					})
				}
			}
			// Beyond rtmax it reads less at a time; beyond wtmax it hangs up.
			r, err := f.Read(ctx, ReadTest{Size: 4 << 20, Total: 7<<20 + 1, Depth: 1})
			if err != nil || r.Calls.N != 8 {
				t.Errorf("%s: READs of 4 MiB: %+v, %v", mode, r, err)
			}
			_, err = f.Write(ctx, WriteTest{Size: 2 << 20, Total: 2 << 20, Depth: 1})
			wantError(t, err, ErrLost)
			return nil
		})
		want(t, err, nil)
	}
	k.Export(t, "sync")
}

// depth holds that as many calls are outstanding as are asked for, on a network of
// which each takes its time.
func (k kernel) depth(t *testing.T) {
	const delay = 50 * time.Millisecond
	here := guest.Here()
	here.Run(t, "tc", "qdisc", "add", "dev", k.Name, "root", "netem", "delay", delay.String(), "limit", "100000")
	defer here.Run(t, "tc", "qdisc", "delete", "dev", k.Name, "root")
	p := k.dial(t)
	want(t, p.Scratch(t.Context(), func(f *File) error {
		const n = 32
		for _, depth := range []int{1, 8} {
			for try := 1; ; try++ { // other work on the host takes time too
				w, err := f.Write(t.Context(), WriteTest{Size: 4096, Total: n * 4096, Depth: depth})
				if err != nil {
					return err
				}
				rounds := n / time.Duration(depth) * w.Calls.Min
				if w.Calls.Min < delay || w.Elapsed < rounds {
					t.Fatalf("%+v with a delay of %v: more than %d calls were outstanding", w, delay, depth)
				}
				if w.Elapsed < 2*rounds {
					break
				}
				if try == 10 {
					t.Fatalf("%+v with a delay of %v: fewer than %d calls were outstanding", w, delay, depth)
				}
			}
		}
		return nil
	}), nil)
}

func (k kernel) restarted(t *testing.T) {
	err := k.dial(t).Scratch(t.Context(), func(f *File) error {
		test := WriteTest{Size: 1 << 16, Total: 1 << 20, Depth: 4}
		before, err := f.Write(t.Context(), test)
		if err != nil {
			return err
		}
		k.Stop(t)
		k.Start(t)
		wantError(t, f.retryLost(t.Context()), ErrRestarted)
		test.Commit = true
		after, err := f.Write(t.Context(), test)
		if err != nil {
			return err
		}
		if before.Verifier == after.Verifier {
			t.Errorf("the write verifier is %x as before", after.Verifier)
		}
		k.Stop(t)
		k.Start(t)
		if err := f.retryLost(t.Context()); err != nil { // everything was committed
			return err
		}
		_, err = f.Read(t.Context(), ReadTest{Size: 1 << 16, Total: 1 << 20, Depth: 4})
		return err
	})
	want(t, err, nil)
}

// syncOrAsync holds that the two are told apart, and neither is taken for the other.
func (k kernel) syncOrAsync(t *testing.T) {
	defer k.Export(t, "sync")
	p := k.dial(t)
	for _, class := range []SyncClass{Sync, Async, Sync} {
		k.Export(t, class.String())
		var r SyncReport
		for try := 0; try < 10 && r.Class == SyncUnknown; try++ { // other work on the host blurs the figures
			var err error
			if r, err = p.SyncClass(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("%v, measured %v: %s", class, r.Class, r.Reason)
		}
		want(t, r.Class, class)
	}
}
