package probe

import (
	"context"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/go-nfs-client/nfs"
	"github.com/vmware/go-nfs-client/nfs/rpc"
)

const infoCalls = 31

func TestInfoIsWhatTheServerSays(t *testing.T) {
	f := newFake(t)
	f.limits = nfs.FSInfo{
		RTMax: math.MaxUint32, RTPref: 3, RTMult: 0, WTMax: 0, WTPref: 1<<16 + 1, WTMult: 7, DTPref: 9,
		Size: math.MaxUint64, TimeDelta: nfs.NFS3Time{Seconds: 1, Nseconds: 5},
	}
	f.listen()
	p := f.dial()
	for calls, want := range map[int]int{-1: 1, 0: 1, 1: 1, 2: 2} {
		if got, err := p.Info(t.Context(), calls); err != nil || got.Null.N != want || got.FSInfo.N != want {
			t.Errorf("%d calls: %+v, %v", calls, got, err)
		}
	}
	got, err := p.Info(t.Context(), infoCalls)
	if err != nil {
		t.Fatal(err)
	}
	want(t, got.Limits, Limits{
		ReadMax: math.MaxUint32, ReadPref: 3, WritePref: 1<<16 + 1, WriteMult: 7, DirPref: 9,
		MaxFileSize: math.MaxInt64, TimeDelta: time.Second + 5,
	})
	want(t, got.Space, Space{Total: 1 << 40, Free: 1 << 39, Avail: math.MaxInt64, TotalFiles: 9, FreeFiles: 8, AvailFiles: 7})
	for _, l := range []Latency{got.Null, got.FSInfo} {
		if l.N != infoCalls || l.Min <= 0 || l.Min > l.Median || l.Median > l.P90 || l.P90 > l.Max {
			t.Errorf("latency %+v", l)
		}
	}
}

func TestLatencyIsByNearestRank(t *testing.T) {
	var d []time.Duration
	for i := range 10 {
		d = append(d, time.Duration(10-i))
	}
	want(t, latency(d), Latency{10, 1, 5, 9, 10})
	want(t, latency(d[:1]), Latency{1, 1, 1, 1, 1})
	want(t, latency(nil), Latency{})
}

func TestAccess(t *testing.T) {
	got, err := newFake(t).listen().dial().Access(t.Context())
	if err != nil || got != AccessWrite {
		t.Errorf("got %b, %v, want %b, the bits that were asked for alone", got, err, AccessWrite)
	}
}

func TestCredentials(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	var got []rpc.Auth
	f.answer(nfsNull, func(c fakeCall) []byte {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, c.cred)
		return c.success()
	})
	f.listen().dial(func(o *Options) { o.GIDs = []uint32{7, 8} })
	var auth struct {
		Stamp    uint32
		Machine  string
		UID, GID uint32
		GIDs     []uint32
	}
	if err := (&results{got[0].Body}).decode(&auth); err != nil {
		t.Fatal(err)
	}
	want(t, got[0].Flavor, uint32(authSys))
	if auth.UID != 1000 || auth.GID != 1000 || !slices.Equal(auth.GIDs, []uint32{7, 8}) {
		t.Errorf("got %+v", auth)
	}
}

func TestPortsFromThePortmapper(t *testing.T) {
	f := newFake(t).listen()
	byPortmapper := func(o *Options) { o.NFSPort, o.MountPort, o.PortmapPort = 0, 0, f.addr.Port }
	f.dial(byPortmapper)
	want(t, f.count(pmapGetport), 2)

	f.answer(pmapGetport, func(c fakeCall) []byte { return c.success(0) })
	o := f.options()
	byPortmapper(&o)
	_, err := Dial(t.Context(), o)
	wantError(t, err, ErrNotRegistered, "MOUNT version 3")

	f.answer(pmapGetport, func(c fakeCall) []byte { return c.success(65536) })
	_, err = Dial(t.Context(), o)
	wantError(t, err, ErrProtocol, "port 65536")
}

func TestExports(t *testing.T) {
	got, err := Exports(t.Context(), newFake(t).listen().options())
	if err != nil {
		t.Fatal(err)
	}
	if want := []Export{{"/export", []string{"10.0.0.0/8", "ctrl"}}, {"/all", nil}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDialSaysWhatToDo(t *testing.T) {
	f := newFake(t).listen()
	f.answer(mountMnt, func(c fakeCall) []byte { return c.success(nfs.MNT3ErrAcces) })
	_, err := Dial(t.Context(), f.options())
	wantError(t, err, Status(nfs.MNT3ErrAcces), "MNT: ACCES", "insecure")

	f.answer(mountMnt, nil)
	f.set(func() { f.flavors = []uint32{390003, 390004} })
	_, err = Dial(t.Context(), f.options())
	wantError(t, err, ErrFlavor, "sec=sys")

	f.set(func() { f.flavors = nil })
	f.answer(nfsGetattr, func(c fakeCall) []byte { return c.reply(rpc.MsgDenied, 1, 5) })
	_, err = Dial(t.Context(), f.options())
	if _, ok := errors.AsType[*AuthError](err); !ok || !strings.Contains(err.Error(), "insecure") {
		t.Errorf("got %v", err)
	}
}

func TestOptionsReportsAllFaults(t *testing.T) {
	_, err := Dial(t.Context(), Options{NFSPort: -1, MountPort: 70000, Connections: 17, GIDs: make([]uint32, 17), Timeout: -1})
	for _, w := range []string{"Host", "NFSPort", "MountPort", "Connections", "GIDs", "Timeout"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v does not name %s", err, w)
		}
	}
	_, err = Dial(t.Context(), Options{Host: "h", Export: "relative"})
	if err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("got %v", err)
	}
}

// What is written comes back, at sizes that do not divide the file, also from a
// server that does only a part of each call.
func TestRoundTrip(t *testing.T) {
	for _, part := range []bool{false, true} {
		f := newFake(t)
		if part {
			f.answer(nfsWrite, func(c fakeCall) []byte {
				var w struct {
					FH         []byte
					Offset     uint64
					Count, How uint32
					Data       []byte
				}
				c.decode(&w)
				n := (len(w.Data) + 2) / 3
				f.mu.Lock()
				defer f.mu.Unlock()
				f.put(string(w.FH), int(w.Offset), w.Data[:n])
				return c.success(0, noWcc, n, w.How, f.verifier)
			})
			f.answer(nfsRead, func(c fakeCall) []byte {
				var r struct {
					FH     []byte
					Offset uint64
					Count  uint32
				}
				c.decode(&r)
				n := (r.Count + 1) / 2
				f.mu.Lock()
				defer f.mu.Unlock()
				return c.success(0, noAttr, n, false, f.files[string(r.FH)][r.Offset:][:n])
			})
		}
		f.listen()
		p := f.dial(func(o *Options) { o.Connections = 3 })
		want(t, f.accepted, 3+1) // and one for MOUNT
		for _, data := range []Data{Random, Zero} {
			err := p.Scratch(t.Context(), func(s *File) error {
				if name := f.names(); len(name) != 1 || !strings.HasPrefix(name[0], ScratchPrefix) {
					t.Errorf("scratch files %q", name)
				}
				const total = 2*textPeriod + 4711
				for _, size := range []int{32768, 100_001, total, total + 1} {
					w, err := s.Write(t.Context(), WriteTest{Size: size, Total: total, Depth: 5, Commit: true, Data: data, Stability: DataSync})
					if err != nil {
						return err
					}
					if w.Bytes != total || w.Committed != DataSync || w.Verifier != f.verifier || w.Commit <= 0 || w.Commit > w.Elapsed || w.Rate() <= 0 ||
						w.Calls.N < (total+size-1)/size {
						t.Errorf("write: %+v", w)
					}
					r, err := s.Read(t.Context(), ReadTest{Size: size/2 + 1, Total: total, Depth: 5})
					if err != nil {
						return err
					}
					if r.Bytes != total || r.Calls.N < 2 || r.Calls.Max > r.Elapsed {
						t.Errorf("read: %+v", r)
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("part %v, data %v: %v", part, data, err)
			}
		}
		want(t, len(f.names()), 0)
	}
}

func TestDepthIsHowManyAreOutstanding(t *testing.T) {
	f := newFake(t)
	const depth = 7
	var out, most atomic.Int64
	full := make(chan struct{})
	f.answer(nfsWrite, func(c fakeCall) []byte {
		if n := out.Add(1); n == depth {
			close(full)
		} else if n > most.Load() {
			most.Store(n)
		}
		<-full
		return c.own()
	})
	f.listen()
	err := f.dial().Scratch(t.Context(), func(s *File) error {
		_, err := s.Write(t.Context(), WriteTest{Size: 100, Total: 100 * depth, Depth: depth})
		return err
	})
	if err != nil || most.Load() >= depth {
		t.Errorf("%d at once, %v", most.Load(), err)
	}
}

// A server that says what cannot be so fails the test, and never the prober.
func TestLiars(t *testing.T) {
	write := func(values ...any) func(fakeCall) []byte {
		return func(c fakeCall) []byte { return c.success(append([]any{0, noWcc}, values...)...) }
	}
	read := func(values ...any) func(fakeCall) []byte {
		return func(c fakeCall) []byte { return c.success(append([]any{0, noAttr}, values...)...) }
	}
	for _, tc := range []struct {
		name   string
		p      procedure
		answer func(fakeCall) []byte
		want   error
	}{
		{"wrote more than asked", nfsWrite, write(1001, 2, Verifier{1}), ErrProtocol},
		{"wrote nothing", nfsWrite, write(0, 2, Verifier{1}), ErrProtocol},
		{"less stable than asked", nfsWrite, write(1000, 0, Verifier{1}), ErrProtocol},
		{"stable how?", nfsWrite, write(1000, 3, Verifier{1}), ErrProtocol},
		{"wrote, and the file is empty", nfsWrite, write(1000, 2, Verifier{1}), ErrContent},
		{"no space", nfsWrite, func(c fakeCall) []byte { return c.success(28, noWcc) }, Status(28)},
		{"no verifier", nfsWrite, write(1000, 2), ErrProtocol},
		{"read more than asked", nfsRead, read(2000, true, make([]byte, 2000)), ErrProtocol},
		{"count is not the data's", nfsRead, read(900, true, make([]byte, 1000)), ErrProtocol},
		{"nothing, and more to come", nfsRead, read(0, false, []byte{}), ErrProtocol},
		{"ends early", nfsRead, read(0, true, []byte{}), ErrContent},
		{"zeros", nfsRead, read(1000, true, make([]byte, 1000)), ErrContent},
		{"eof is no bool", nfsRead, read(1000, 7, make([]byte, 1000)), ErrProtocol},
		{"stale", nfsRead, func(c fakeCall) []byte { return c.success(70, noAttr) }, Status(70)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			f.answer(tc.p, tc.answer)
			f.listen()
			err := f.dial().Scratch(t.Context(), func(s *File) error {
				if _, err := s.Write(t.Context(), WriteTest{Size: 1000, Total: 3000, Depth: 2, Stability: FileSync}); err != nil {
					return err
				}
				_, err := s.Read(t.Context(), ReadTest{Size: 1000, Total: 3000, Depth: 2})
				return err
			})
			wantError(t, err, tc.want)
			want(t, len(f.names()), 0)
		})
	}
}

// Blocks that the server has put in each other's place are noticed.
func TestSwappedBlocks(t *testing.T) {
	f := newFake(t)
	f.listen()
	err := f.dial().Scratch(t.Context(), func(s *File) error {
		if _, err := s.Write(t.Context(), WriteTest{Size: 4096, Total: 8192, Depth: 1}); err != nil {
			return err
		}
		f.set(func() {
			b := f.files[f.firstName()]
			f.files[f.firstName()] = append(slices.Clone(b[4096:]), b[:4096]...)
		})
		_, err := s.Read(t.Context(), ReadTest{Size: 8192, Total: 8192, Depth: 1})
		return err
	})
	wantError(t, err, ErrContent)
}

func (f *fake) firstName() string {
	for name := range f.files {
		return name
	}
	return ""
}

func TestRestartIsNoticed(t *testing.T) {
	unstable := WriteTest{Size: 1000, Total: 5000, Depth: 1}
	committed := unstable
	committed.Commit = true
	t.Run("amid the writes", func(t *testing.T) {
		f := newFake(t)
		f.answer(nfsWrite, func(c fakeCall) []byte {
			if f.count(nfsWrite) == 3 {
				f.set(func() { f.verifier[0]++ })
			}
			return c.own()
		})
		f.listen()
		err := f.dial().Scratch(t.Context(), func(s *File) error {
			_, err := s.Write(t.Context(), unstable)
			wantError(t, err, ErrRestarted, "0100000000000000", "0200000000000000")
			_, err = s.Read(t.Context(), ReadTest{Size: 1, Total: 1, Depth: 1})
			if err == nil || !strings.Contains(err.Error(), "write them first") {
				t.Errorf("read of what may be lost: %v", err)
			}
			_, err = s.Write(t.Context(), committed) // once more, as the error says
			return err
		})
		want(t, err, nil)
	})
	t.Run("before the commit", func(t *testing.T) {
		f := newFake(t).listen()
		err := f.dial().Scratch(t.Context(), func(s *File) error {
			if _, err := s.Write(t.Context(), unstable); err != nil {
				return err
			}
			f.restart()
			return s.retryLost(t.Context())
		})
		wantError(t, err, ErrRestarted, "write verifier")
		want(t, len(f.names()), 0)
	})
	t.Run("between two writes", func(t *testing.T) {
		f := newFake(t).listen()
		err := f.dial().Scratch(t.Context(), func(s *File) error {
			if _, err := s.Write(t.Context(), unstable); err != nil {
				return err
			}
			f.set(func() { f.verifier[0]++ })
			_, err := s.Write(t.Context(), unstable)
			return err
		})
		wantError(t, err, ErrRestarted)
	})
	t.Run("after the commit, when nothing is lost", func(t *testing.T) {
		f := newFake(t).listen()
		err := f.dial().Scratch(t.Context(), func(s *File) error {
			if _, err := s.Write(t.Context(), committed); err != nil {
				return err
			}
			f.set(func() { f.verifier[0]++ })
			_, err := s.Write(t.Context(), committed)
			return err
		})
		want(t, err, nil)
	})
}

// retryLost commits, and once more when the connection was found to be lost.
func (f *File) retryLost(ctx context.Context) error {
	err := f.Commit(ctx)
	if errors.Is(err, ErrLost) {
		err = f.Commit(ctx)
	}
	return err
}

func TestScratchFileIsAlwaysRemoved(t *testing.T) {
	failure := errors.New("a failure")
	for name, tc := range map[string]struct {
		prepare func(f *fake)
		use     func(ctx context.Context, cancel context.CancelFunc, f *fake, s *File) error
		want    error
	}{
		"use fails": {use: func(context.Context, context.CancelFunc, *fake, *File) error { return failure }, want: failure},
		"cancelled": {
			use: func(ctx context.Context, cancel context.CancelFunc, _ *fake, s *File) error {
				cancel()
				return s.Commit(ctx)
			},
			want: context.Canceled,
		},
		"cut": {
			use: func(ctx context.Context, _ context.CancelFunc, f *fake, s *File) error {
				f.answer(nfsCommit, func(c fakeCall) []byte { f.cut(); return nil })
				return s.Commit(ctx)
			},
			want: ErrLost,
		},
		"the answer to CREATE is lost": {
			prepare: func(f *fake) {
				f.answer(nfsCreate, func(c fakeCall) []byte { c.own(); f.cut(); return nil })
			},
			want: ErrLost,
		},
		"CREATE is lost": {
			prepare: func(f *fake) { f.answer(nfsCreate, func(fakeCall) []byte { f.cut(); return nil }) },
			want:    ErrLost,
		},
		"CREATE is refused": {
			prepare: func(f *fake) {
				f.answer(nfsCreate, func(c fakeCall) []byte { return c.success(30, noWcc) })
			},
			want: Status(30),
		},
		"CREATE tells no handle": {
			prepare: func(f *fake) {
				f.answer(nfsCreate, func(c fakeCall) []byte { c.own(); return c.success(0, false, noAttr, noWcc) })
			},
			use: func(ctx context.Context, _ context.CancelFunc, _ *fake, s *File) error {
				_, err := s.Write(ctx, WriteTest{Size: 10, Total: 10, Depth: 1})
				return err
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			if tc.prepare != nil {
				tc.prepare(f)
			}
			f.listen()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			used := false
			var told, gone []string
			note := func(o *Options) {
				o.Making = func(name string) error { told = append(told, name); return nil }
				o.Gone = func(name string) error { gone = append(gone, name); return nil }
			}
			err := f.dial(note).Scratch(ctx, func(s *File) error {
				used = true
				return tc.use(ctx, cancel, f, s)
			})
			wantError(t, err, tc.want)
			want(t, used, tc.use != nil)
			want(t, len(f.names()), 0)
			want(t, len(told), 1)
			want(t, slices.Equal(gone, told), true)
		})
	}
}

func TestScratchFileThatStays(t *testing.T) {
	f := newFake(t)
	f.answer(nfsRemove, func(c fakeCall) []byte { return c.success(13, noWcc) })
	f.listen()
	failure := errors.New("a failure")
	note := func(o *Options) {
		o.Gone = func(name string) error { t.Errorf("%s is said to be gone", name); return nil }
	}
	err := f.dial(note).Scratch(t.Context(), func(*File) error { return failure })
	wantError(t, err, failure, f.firstName())
	wantError(t, err, Status(13))
}

// Who may write nothing has left nothing.
func TestRemovingWhatIsNotThereNeedsNoRights(t *testing.T) {
	f := newFake(t)
	f.answer(nfsRemove, func(c fakeCall) []byte { return c.success(13, noWcc) })
	if err := f.listen().dial().Remove(t.Context(), ScratchPrefix+"1"); err != nil {
		t.Error(err)
	}
}

func TestTestsAreBounded(t *testing.T) {
	err := newFake(t).listen().dial().Scratch(t.Context(), func(s *File) error {
		for _, w := range []WriteTest{
			{Size: 0, Total: 1, Depth: 1},
			{Size: MaxSize + 1, Total: 1, Depth: 1},
			{Size: 1, Total: 0, Depth: 1},
			{Size: 1, Total: 1, Depth: 0},
			{Size: 1, Total: 1, Depth: MaxDepth + 1},
			{Size: MaxSize, Total: 1, Depth: 17},
			{Size: 1, Total: 1, Depth: 1, Stability: 3},
			{Size: 1, Total: 1, Depth: 1, Data: 2},
		} {
			if _, err := s.Write(t.Context(), w); err == nil || !strings.Contains(err.Error(), "want") && !strings.Contains(err.Error(), "not known") {
				t.Errorf("%+v: %v", w, err)
			}
			if w.Stability == 0 && w.Data == 0 {
				if _, err := s.Read(t.Context(), ReadTest{w.Size, w.Total, w.Depth}); err == nil || !strings.Contains(err.Error(), "want") {
					t.Errorf("%+v: %v", w, err)
				}
			}
		}
		return nil
	})
	want(t, err, nil)
}

func TestJudge(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for _, tc := range []struct {
		name                       string
		fileSync, unstable, commit time.Duration
		committed                  Stability
		want                       SyncClass
	}{
		{"Linux, sync", 2070 * us, 650 * us, 41 * ms, Unstable, Sync},
		{"Linux, async", 220 * us, 650 * us, 100 * us, Unstable, Async},
		{"ganesha", 600 * us, 200 * us, 20 * ms, Unstable, Sync},
		{"quick disk, seen at the commit alone", 150 * us, 100 * us, 10 * ms, Unstable, Sync},
		{"commit of what was written back already", 2 * ms, 500 * us, 3 * ms, Unstable, Sync},
		{"all is stable", 600 * us, 600 * us, 50 * us, FileSync, SyncUnknown},
		{"the signs disagree: quick stable writes, slow commit", 200 * us, 200 * us, 40 * ms, Unstable, SyncUnknown},
		{"the signs disagree: slow stable writes, quick commit", 2 * ms, 500 * us, 100 * us, Unstable, SyncUnknown},
		{"between", 300 * us, 200 * us, 3 * ms, Unstable, SyncUnknown},
		{"twice, but by noise", 120 * us, 60 * us, 100 * us, Unstable, SyncUnknown},
		{"nothing measured", 0, 0, 0, FileSync, SyncUnknown},
	} {
		got, why := judge(SyncReport{
			Null: Latency{Min: 70 * us}, FileSync: Latency{Min: tc.fileSync}, Unstable: Latency{Min: tc.unstable},
			Commit: Latency{Min: tc.commit}, CommitBytes: commitBulk, Committed: tc.committed,
		})
		if got != tc.want || !strings.Contains(why, tc.commit.String()) {
			t.Errorf("%s: got %v: %s; want %v", tc.name, got, why, tc.want)
		}
	}
}

// slowDisk delays what has to be stable.
func slowDisk(f *fake, d time.Duration) {
	f.answer(nfsWrite, func(c fakeCall) []byte {
		var w struct {
			FH         []byte
			Offset     uint64
			Count, How uint32
		}
		args := *c.args
		if err := args.decode(&w); err == nil && w.How != 0 {
			time.Sleep(d)
		}
		return c.own()
	})
	f.answer(nfsCommit, func(c fakeCall) []byte {
		time.Sleep(10 * d)
		return c.own()
	})
}

func TestSyncClassOfAServerThatWaits(t *testing.T) {
	f := newFake(t)
	slowDisk(f, 5*time.Millisecond)
	f.listen()
	r, err := f.dial().SyncClass(t.Context())
	if err != nil || r.Class != Sync {
		t.Errorf("got %+v, %v", r, err)
	}
	want(t, r.FileSync.N, syncCalls)
	want(t, r.Unstable.N, syncCalls)
	want(t, len(f.names()), 0)
}

func TestSyncClassOfAServerThatAnswersFileSyncAlways(t *testing.T) {
	f := newFake(t)
	f.answer(nfsWrite, func(c fakeCall) []byte {
		b := c.own()
		b[len(b)-9] = byte(FileSync) // committed stands before the verifier
		return b
	})
	f.listen()
	r, err := f.dial().SyncClass(t.Context())
	if err != nil || r.Class != SyncUnknown || r.Committed != FileSync || !strings.Contains(r.Reason, "nothing to compare") {
		t.Errorf("got %+v, %v", r, err)
	}
}
