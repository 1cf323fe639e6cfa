package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmware/go-nfs-client/nfs"
	"github.com/vmware/go-nfs-client/nfs/rpc"
)

// Each call gets its own answer, whatever the order of the answers.
func TestManyOutstandingCalls(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	held := make(chan struct{})
	n := 0
	f.answer(nfsLookup, func(c fakeCall) []byte {
		var where nfs.Diropargs3
		c.decode(&where)
		mu.Lock()
		if n++; n == 32 {
			close(held) // all are outstanding now
		}
		mu.Unlock()
		<-held
		return c.success(0, []byte(where.Filename))
	})
	f.listen()
	p := f.dial()
	c, err := p.conn(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	for w := range 32 {
		calls.Go(func() {
			for i := range 50 {
				name := fmt.Sprintf("%d/%d", w, i)
				fh, err := c.lookup(t.Context(), nil, name)
				if err != nil || string(fh) != name {
					t.Errorf("lookup %s: %q, %v", name, fh, err)
				}
			}
		})
	}
	calls.Wait()
}

func TestFragments(t *testing.T) {
	f := newFake(t).listen()
	p := f.dial()
	for _, size := range []int{1, 3, 4, 5, 1000} {
		f.set(func() { f.fragment = size })
		exports, err := Exports(t.Context(), f.options())
		if err != nil || len(exports) != 2 {
			t.Errorf("fragments of %d bytes: %v, %v", size, exports, err)
		}
		err = p.Scratch(t.Context(), func(s *File) error {
			if _, err := s.Write(t.Context(), WriteTest{Size: 5000, Total: 20001, Depth: 3}); err != nil {
				return err
			}
			_, err := s.Read(t.Context(), ReadTest{Size: 5001, Total: 20001, Depth: 3})
			return err
		})
		if err != nil {
			t.Errorf("fragments of %d bytes: %v", size, err)
		}
	}
}

func TestLateReplyIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		c, far := pipe(t, time.Second)
		go f.serve(far)
		f.answer(nfsFsinfo, func(c fakeCall) []byte {
			time.Sleep(1500 * time.Millisecond)
			return c.own()
		})
		start := time.Now()
		_, err := c.fsinfo(t.Context(), nil)
		wantError(t, err, context.DeadlineExceeded, "FSINFO: no answer in 1s")
		want(t, time.Since(start), time.Second)
		for range 20 { // the late reply comes amid these
			if _, err := c.fsstat(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		want(t, c.failed(), false)
	})
}

// A server that has stopped reading takes half of a record. The call can be given
// up at once all the same, and when the server goes on, so does the connection.
func TestCancelledCallOfStoppedServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		c, far := pipe(t, time.Hour)
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		time.AfterFunc(time.Second, func() { cancel(enough) })
		start := time.Now()
		_, err := c.writeAt(ctx, []byte("x"), 0, Unstable, make([]byte, 1<<20))
		wantError(t, err, enough, "WRITE")
		_, err = c.writeAt(ctx, []byte("y"), 0, Unstable, make([]byte, 1<<20)) // not even begun
		wantError(t, err, enough)
		want(t, time.Since(start), time.Second)
		go f.serve(far)
		if err := c.null(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want(t, f.count(nfsWrite), 1)
	})
}

func TestUnknownAndSecondReplies(t *testing.T) {
	f := newFake(t)
	f.answer(nfsNull, func(c fakeCall) []byte {
		stray := c
		stray.xid += 1000
		_, _ = c.nc.Write(f.mark(stray.success(make([]byte, 100000))))
		_, _ = c.nc.Write(f.mark(c.success()))
		return c.success()
	})
	f.listen()
	p := f.dial()
	if _, err := p.Info(t.Context(), infoCalls); err != nil {
		t.Error(err)
	}
	want(t, p.conns[0].c.failed(), false)
}

func TestServerThatCuts(t *testing.T) {
	f := newFake(t).listen()
	p := f.dial()
	f.answer(nfsFsinfo, func(c fakeCall) []byte {
		_, _ = c.nc.Write([]byte{0x80, 0, 0, 100, 1, 2, 3}) // the start of a record
		c.nc.Close()
		return nil
	})
	_, err := p.Info(t.Context(), infoCalls)
	wantError(t, err, ErrLost, "FSINFO")
	f.answer(nfsFsinfo, nil)
	if _, err := p.Info(t.Context(), infoCalls); err != nil {
		t.Errorf("after a cut connection: %v", err)
	}
}

func TestCloseFailsOutstandingCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, far := pipe(t, time.Hour)
		go io.Copy(io.Discard, far)
		ended := make(chan error)
		go func() { ended <- c.null(t.Context()) }()
		synctest.Wait()
		c.Close()
		wantError(t, <-ended, ErrLost)
		wantError(t, c.null(t.Context()), net.ErrClosed)
	})
}

func TestReplyStatus(t *testing.T) {
	deny := func(values ...any) func(fakeCall) []byte {
		return func(c fakeCall) []byte { return c.reply(append([]any{rpc.MsgDenied}, values...)...) }
	}
	accept := func(values ...any) func(fakeCall) []byte {
		return func(c fakeCall) []byte {
			return c.reply(append([]any{rpc.MsgAccepted, rpc.Auth{Flavor: 1, Body: []byte("abc")}}, values...)...)
		}
	}
	f := newFake(t).listen()
	p := f.dial()
	c := p.conns[0].c
	for _, tc := range []struct {
		name   string
		answer func(fakeCall) []byte
		want   error
	}{
		{"success", accept(rpc.Success, AccessRead), nil},
		{"program", accept(rpc.ProgUnavail), ErrProgramUnavailable},
		{"procedure", accept(rpc.ProcUnavail), ErrProcedureUnavailable},
		{"garbage", accept(rpc.GarbageArgs), ErrGarbageArgs},
		{"system", accept(rpc.SystemErr), ErrSystem},
		{"no accept_stat", accept(77), ErrProtocol},
		{"no reject_stat", deny(77), ErrProtocol},
		{"no reply_stat", func(c fakeCall) []byte { return c.reply(77) }, ErrProtocol},
		{"a call", func(c fakeCall) []byte { r := c.success(); r[7] = msgCall; return r }, ErrProtocol},
		{"cut short", func(c fakeCall) []byte { return c.success()[:9] }, ErrProtocol},
	} {
		f.answer(nfsNull, tc.answer)
		if err := c.null(t.Context()); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	f.answer(nfsNull, deny(1, 5))
	if e, ok := errors.AsType[*AuthError](c.null(t.Context())); !ok || e.Stat != 5 || e.Error() != "the server refuses the credentials: AUTH_TOOWEAK" {
		t.Errorf("AUTH_ERROR: got %v", e)
	}
	for what, answer := range map[string]func(fakeCall) []byte{"RPC": deny(rpc.RpcMismatch, 3, 4), "program": accept(rpc.ProgMismatch, 3, 4)} {
		f.answer(nfsNull, answer)
		if e, ok := errors.AsType[*VersionError](c.null(t.Context())); !ok || *e != (VersionError{what, 3, 4}) {
			t.Errorf("%s mismatch: got %v", what, e)
		}
	}
	want(t, p.conns[0].c.failed(), false)
}

// A length from the wire is believed only as far as the call lets a reply go.
func TestReplyTooLong(t *testing.T) {
	for _, mark := range []uint32{lastFragment | 0x7fffffff, 0x7fffffff, lastFragment | (smallReply + 5)} {
		f := newFake(t).listen()
		p := f.dial()
		f.answer(nfsFsstat, func(c fakeCall) []byte {
			b := binary.BigEndian.AppendUint32(nil, mark)
			_, _ = c.nc.Write(append(b, c.success()...))
			return nil
		})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := p.Info(t.Context(), infoCalls)
		runtime.ReadMemStats(&after)
		wantError(t, err, ErrProtocol, "FSSTAT", "65536 are the most")
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("mark %x: %d bytes allocated", mark, got)
		}
	}
}

func TestOpaqueTooLong(t *testing.T) {
	for _, claim := range []uint32{5, 65, 1 << 30, 0xffffffff} {
		r := &results{binary.BigEndian.AppendUint32(nil, claim)}
		r.rest = append(r.rest, 1, 2, 3, 4)
		_, err := r.opaque(maxHandle)
		wantError(t, err, ErrProtocol)
		r = &results{binary.BigEndian.AppendUint32(nil, claim)}
		var flavors []uint32
		wantError(t, r.decode(&flavors), ErrProtocol)
	}
}

func TestStatusIsAnErrno(t *testing.T) {
	for _, tc := range []struct {
		status Status
		want   error
		text   string
	}{
		{1, fs.ErrPermission, "PERM (operation not permitted)"},
		{2, fs.ErrNotExist, "NOENT"},
		{13, fs.ErrPermission, "ACCES"},
		{17, fs.ErrExist, "EXIST"},
		{28, syscall.ENOSPC, "NOSPC"},
		{30, syscall.EROFS, "ROFS (read-only file system)"},
		{69, syscall.EDQUOT, "DQUOT"},
		{70, syscall.ESTALE, "STALE"},
		{10004, errors.ErrUnsupported, "NOTSUPP"},
		{4711, Status(4711), "status 4711"},
	} {
		err := fmt.Errorf("write: %w", tc.status)
		wantError(t, err, tc.want, tc.text)
		want(t, errors.Is(err, syscall.EIO), false)
	}
}

// FuzzReply feeds any bytes behind a valid reply's header to each procedure, and as
// the stream itself. Nothing may panic or hang.
func FuzzReply(f *testing.F) {
	for i, p := range procedures {
		fk := newFake(f)
		fk.addr = &net.TCPAddr{Port: 1}
		fk.files["x"] = []byte("content")
		args := map[procedure]any{
			nfsGetattr: []byte("x"), nfsLookup: nfs.Diropargs3{Filename: "x"}, nfsRemove: nfs.Diropargs3{Filename: "x"},
			nfsCreate: nfs.Diropargs3{Filename: "y"},
			nfsRead:   struct{ FH, Rest []byte }{[]byte("x"), nil},
		}[p]
		if args == nil {
			args = struct{ FH []byte }{[]byte("x")}
		}
		c := fakeCall{f: fk, xid: 1, p: p}
		c.args = &results{append(encode(f, args), make([]byte, 64)...)}
		f.Add(byte(i), true, fk.mark(c.own()))
		f.Add(byte(i), false, c.own()[24:])
	}
	f.Fuzz(func(t *testing.T, which byte, stream bool, b []byte) {
		near, far := net.Pipe()
		c := newConn(near, rpc.AuthNull, 10*time.Second)
		c.mu.Lock()
		c.xid = 0
		c.mu.Unlock()
		var server sync.WaitGroup
		server.Go(func() {
			defer far.Close()
			if _, err := (&record{r: far}).readAll(1 << 20); err != nil {
				return
			}
			if !stream {
				msg := fakeCall{xid: 1}.success()
				b = newFake(t).mark(append(msg, b...))
			}
			_, _ = far.Write(b)
		})
		ctx := t.Context()
		calls := []func() error{
			func() error { _, err := c.getport(ctx, 1, 1); return err },
			func() error { _, _, err := c.mnt(ctx, "/"); return err },
			func() error { return c.umnt(ctx, "/") },
			func() error { _, err := c.exports(ctx); return err },
			func() error { return c.null(ctx) },
			func() error { _, err := c.getattr(ctx, nil); return err },
			func() error { _, err := c.lookup(ctx, nil, ""); return err },
			func() error { _, err := c.access(ctx, nil, 63); return err },
			func() error {
				data, _, err := c.readAt(ctx, nil, 0, 100)
				if len(data) > 100 {
					t.Errorf("%d bytes", len(data))
				}
				return err
			},
			func() error {
				w, err := c.writeAt(ctx, nil, 0, DataSync, make([]byte, 10))
				if err == nil && (w.Count < 1 || w.Count > 10 || w.Committed < DataSync || w.Committed > FileSync) {
					t.Errorf("%+v", w)
				}
				return err
			},
			func() error { _, err := c.create(ctx, nil, ""); return err },
			func() error { return c.remove(ctx, nil, "") },
			func() error { _, err := c.fsstat(ctx, nil); return err },
			func() error { _, err := c.fsinfo(ctx, nil); return err },
			func() error { _, err := c.commit(ctx, nil); return err },
		}
		if len(calls) != len(procedures) {
			t.Fatalf("%d calls of %d procedures", len(calls), len(procedures))
		}
		if err := calls[int(which)%len(calls)](); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hangs: %v", err)
		}
		c.Close()
		server.Wait()
	})
}

func encode(t testing.TB, v any) []byte {
	msg := fakeCall{f: newFake(t)}.reply(v)
	return bytes.Clone(msg[8:])
}
