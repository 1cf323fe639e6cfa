package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// script is a receiver that answers as a test wants. It gives each connection's
// number, from 0, and each frame, to answer, which writes to w, or returns an error
// to close the connection.
type script struct {
	greet  answer
	answer func(conn int, h header, w io.Writer) error
}

// play serves the script in place of a receiver.
func (r *rig) play(t *testing.T, size int64, s script) {
	t.Helper()
	l := tls.NewListener(r.pipes, serverTLS(r.ca, r.issue(t, "B", pki.DTN)))
	var conns sync.WaitGroup
	conns.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); s.serve(n, c, size) })
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
}

func (s script) serve(n int, c net.Conn, size int64) {
	if _, err := readHello(c); err != nil {
		return
	}
	if s.greet.Block == 0 {
		s.greet.Block = mover.BlockSize
	}
	if _, err := c.Write(s.greet.bytes()); err != nil {
		return
	}
	b := make([]byte, frameSize)
	for {
		if _, err := io.ReadFull(c, b[:headerSize]); err != nil {
			return
		}
		h, err := parseHeader(b, size)
		if err != nil {
			return
		}
		if _, err := io.ReadFull(c, b[:h.length]); err != nil || s.answer(n, h, c) != nil {
			return
		}
	}
}

func say(w io.Writer, kind byte, value uint32) error {
	_, err := w.Write(message{kind, value}.bytes())
	return err
}

func done(w io.Writer) error {
	_, err := w.Write(answer{Done: true}.bytes())
	return err
}

func (r *rig) moves(t *testing.T, f mover.File, parallelism int) error {
	t.Helper()
	req := r.request(t, f)
	req.PCP.Parallelism = parallelism
	return r.rig.Engine.Move(t.Context(), req, func(int64) {})
}

func TestDamagedBlockAloneIsSentAgain(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 5*mover.BlockSize)
	sent := map[uint32]int{}
	r.play(t, f.Size, script{answer: func(_ int, h header, w io.Writer) error {
		if h.kind == kindCommit {
			return done(w)
		}
		if sent[h.index]++; h.index == 2 && sent[2] < maxTries {
			return say(w, kindAgain, 2)
		}
		return say(w, kindProven, h.index)
	}})
	if err := r.moves(t, f, 1); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(5) {
		if want := map[bool]int{true: maxTries, false: 1}[i == 2]; sent[i] != want {
			t.Errorf("block %d was sent %d times, want %d", i, sent[i], want)
		}
	}
}

func TestBlockThatStaysDamagedEndsTheMove(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", mover.BlockSize)
	r.play(t, f.Size, script{answer: func(_ int, h header, w io.Writer) error { return say(w, kindAgain, h.index) }})
	if err := r.moves(t, f, 1); mover.CodeOf(err) != mover.CodeContent {
		t.Errorf("got %v, want code %s", err, mover.CodeContent)
	}
}

func TestBlocksOfADeadConnectionGoOverTheOthers(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 20*mover.BlockSize)
	var mu sync.Mutex
	proven := map[uint32]bool{}
	r.play(t, f.Size, script{answer: func(n int, h header, w io.Writer) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case h.kind == kindCommit:
			return done(w)
		case n == 0:
			return errors.New("dies with its first block")
		}
		proven[h.index] = true
		return say(w, kindProven, h.index)
	}})
	if err := r.moves(t, f, 3); err != nil {
		t.Fatal(err)
	}
	if len(proven) != 20 {
		t.Errorf("%d blocks were proven, want 20", len(proven))
	}
}

func TestNoMoreConnectionsThanBlocks(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 3*mover.BlockSize)
	var have bitmap = []byte{1}
	conns := map[int]bool{}
	var mu sync.Mutex
	r.play(t, f.Size, script{greet: answer{Have: have}, answer: func(n int, h header, w io.Writer) error {
		mu.Lock()
		defer mu.Unlock()
		conns[n] = true
		if h.kind == kindCommit {
			return done(w)
		}
		if h.index == 0 {
			t.Error("block 0 was sent, though it is there")
		}
		return say(w, kindProven, h.index)
	}})
	if err := r.moves(t, f, mover.MaxParallelism); err != nil {
		t.Fatal(err)
	}
	if len(conns) > 2 {
		t.Errorf("%d connections for two blocks", len(conns))
	}
}

func TestReceiverThatMisbehaves(t *testing.T) {
	refuse := func(w io.Writer) error {
		_, err := w.Write(answer{Code: mover.CodeSpace, Error: "the disk is full"}.bytes())
		return err
	}
	for want, s := range map[string]struct {
		code   mover.Code
		script script
	}{
		"wants blocks of 7 bytes": {mover.CodeOther, script{greet: answer{Block: 7}}},
		"no such ticket":          {mover.CodeTicket, script{greet: answer{Code: mover.CodeTicket, Error: "no such ticket"}}},
		"the disk is full":        {mover.CodeSpace, script{answer: func(_ int, _ header, w io.Writer) error { return refuse(w) }}},
		"which was not sent":      {mover.CodeOther, script{answer: func(_ int, _ header, w io.Writer) error { return say(w, kindProven, 1) }}},
		"of unknown kind 99":      {mover.CodeOther, script{answer: func(_ int, _ header, w io.Writer) error { return say(w, 99, 0) }}},
		"what was not asked": {mover.CodeOther, script{answer: func(_ int, _ header, w io.Writer) error {
			return errors.Join(done(w), done(w), say(w, kindProven, 0))
		}}},
		"no progress at the receiver for 2m0s": {mover.CodeOther, script{answer: func(int, header, io.Writer) error { return nil }}},
		"lost proven blocks": {mover.CodeOther, script{answer: func(_ int, h header, w io.Writer) error {
			if h.kind == kindBlock {
				return say(w, kindProven, h.index)
			}
			_, err := w.Write(answer{Have: bitmap{0}}.bytes())
			return err
		}}},
	} {
		t.Run(want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				f := r.stage(t, "image", mover.BlockSize)
				r.play(t, f.Size, s.script)
				err := r.moves(t, f, 1)
				if err == nil || mover.CodeOf(err) != s.code || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v (code %s), want code %s", err, mover.CodeOf(err), s.code)
				}
			})
		})
	}
}

func TestSignsOfLifeKeepACommitAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 0)
		r.play(t, f.Size, script{answer: func(_ int, _ header, w io.Writer) error {
			for i := range uint32(10) {
				if err := say(w, kindBusy, i+1); err != nil {
					return err
				}
				time.Sleep(DefaultStall - time.Second)
			}
			return done(w)
		}})
		if err := r.moves(t, f, 1); err != nil {
			t.Error(err)
		}
	})
}

func TestSignsOfLifeWithoutProgressDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 0)
		r.play(t, f.Size, script{answer: func(_ int, _ header, w io.Writer) error {
			for {
				if err := say(w, kindBusy, 7); err != nil {
					return err
				}
				time.Sleep(time.Second)
			}
		}})
		if err := r.moves(t, f, 1); err == nil || !strings.Contains(err.Error(), "no progress at the receiver for 2m0s") {
			t.Errorf("got %v", err)
		}
	})
}

func TestListenerThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 1)
		if err := r.moves(t, f, 1); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAStagedFileThatMayNotBeRead(t *testing.T) {
	for _, no := range []error{syscall.EACCES, syscall.EPERM} {
		err := forbidden("outbox/image", &fs.PathError{Op: "openat", Err: no})
		if mover.CodeOf(err) != mover.CodeName {
			t.Errorf("%v has code %s, want %s", no, mover.CodeOf(err), mover.CodeName)
		}
		for _, want := range []string{"outbox/image", "glance", "transfer.stage: copy"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not say %q", err, want)
			}
		}
	}
	if err := forbidden("outbox/image", syscall.EIO); mover.CodeOf(err) != mover.CodeOther {
		t.Errorf("EIO has code %s", mover.CodeOf(err))
	}
	r := newPipeRig(t)
	f := r.stage(t, "image", 1)
	if err := os.Chmod(filepath.Join(r.rig.Source, f.Name), 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		t.Skip("root may read every file")
	}
	if err := r.moves(t, f, 1); mover.CodeOf(err) != mover.CodeName {
		t.Errorf("got %v (code %s), want code %s", err, mover.CodeOf(err), mover.CodeName)
	}
}

// TestParallelismFollowsThePath holds how many connections a move opens when
// nobody says, and that it does not hold back one who does.
func TestParallelismFollowsThePath(t *testing.T) {
	for _, c := range []struct {
		rtt         time.Duration
		asked, want int
	}{{0, 0, NearParallelism}, {near - 1, 0, NearParallelism}, {near, 0, DefaultParallelism}, {time.Second, 0, DefaultParallelism}, {0, 7, 7}, {time.Second, 1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			r := newPipeRig(t)
			f := r.stage(t, "image", 40*mover.BlockSize)
			e := r.rig.Engine.(*Engine)
			dial, dialled := e.Dial, new(atomic.Int32)
			e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				dialled.Add(1)
				time.Sleep(c.rtt) // fake
				return dial(ctx, network, address)
			}
			all := make(chan struct{}) // no block is answered before every connection is there
			r.play(t, f.Size, script{answer: func(_ int, h header, w io.Writer) error {
				<-all
				if h.kind == kindCommit {
					return done(w)
				}
				return say(w, kindProven, h.index)
			}})
			time.AfterFunc(time.Minute, func() { close(all) })
			if err := r.moves(t, f, c.asked); err != nil {
				t.Fatal(err)
			}
			if got := int(dialled.Load()); got != c.want {
				t.Errorf("%v away, %d asked for: %d connections, want %d", c.rtt, c.asked, got, c.want)
			}
		})
	}
}
