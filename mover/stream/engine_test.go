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
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// script is a receiver that answers as a test wants. It gives the number of a lane, from
// 0, and each block's header to block, which says what it likes on the control
// connection, or returns an error to close the lane. Without a block of its own an empty
// file is given to idle instead.
type script struct {
	welcome answer // to a hello
	greet   answer // to an opening
	block   func(lane int, h header, w *control) error
	idle    func(w *control) error
	chunks  func(h header, w *control) error // nil: they are not answered

	welcomed func(lane int) bool // whether it is kept after its welcome; nil: each is
	deaf     <-chan struct{}     // after an opening nothing is read before it is closed; nil: all is
}

// control is a link's control connection at the script.
type control struct {
	net.Conn
	mu sync.Mutex // held while it is written to
}

func (c *control) say(k kind, index uint32) error { return c.write(header{k, 1, index, 0}.bytes()) }
func (c *control) answer(a answer) error          { return c.write(a.bytes(1)) }
func (c *control) done() error                    { return c.answer(answer{Done: true}) }

func (c *control) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Write(b)
	return err
}

// play serves the script in place of a receiver.
func (r *rig) play(t *testing.T, s script) {
	t.Helper()
	l := tls.NewListener(r.pipes, serverTLS(r.ca, r.issue(t, "B", pki.DTN)))
	var conns sync.WaitGroup
	if idle := s.idle; idle != nil {
		s.idle = func(w *control) error {
			conns.Go(func() { _ = idle(w) }) // what it says cannot be said when the move has ended
			return nil
		}
	}
	conns.Go(func() {
		var first *control
		for lanes := 0; ; {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h, err := readHello(c)
			if err == nil {
				a := s.welcome
				if a.Block == 0 && a.Code == "" {
					a.Block = mover.BlockSize
				}
				_, err = c.Write(a.bytes(0))
			}
			if err != nil {
				c.Close()
				continue
			}
			if !h.Lane {
				first = &control{Conn: c}
				conns.Go(func() { defer c.Close(); s.serve(first) })
				continue
			}
			n, w := lanes, first
			lanes++
			if s.welcomed != nil && !s.welcomed(n) {
				c.Close()
				continue
			}
			conns.Go(func() { defer c.Close(); s.lane(n, c, w) })
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
}

func (s script) serve(c *control) {
	for {
		h, err := readHeader(c)
		if err == nil {
			_, err = io.CopyN(io.Discard, c, int64(h.length))
		}
		if err == nil && h.kind == kindChunks && s.chunks != nil {
			err = s.chunks(h, c)
		}
		if err == nil && h.kind == kindOpen {
			err = c.write(s.greet.bytes(h.file))
			if err == nil && s.idle != nil {
				err = s.idle(c)
			}
			if s.deaf != nil {
				<-s.deaf
			}
		}
		if err != nil {
			return
		}
	}
}

func (s script) lane(n int, c net.Conn, w *control) {
	for {
		h, err := readHeader(c)
		if err == nil {
			_, err = io.CopyN(io.Discard, c, int64(h.length)+proofSize)
		}
		if err != nil || s.block(n, h, w) != nil {
			return
		}
	}
}

func (r *rig) moves(t *testing.T, f mover.File, parallelism int) error {
	t.Helper()
	req := r.request(t, f)
	req.PCP.Parallelism = parallelism
	return r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {})
}

// proves tells that blocks are proven, and the file done with the last of n.
func proves(n int) func(int, header, *control) error {
	var mu sync.Mutex
	proven := map[uint32]bool{}
	return func(_ int, h header, w *control) error {
		if err := w.say(kindProven, h.index); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if proven[h.index] = true; len(proven) == n {
			return w.done()
		}
		return nil
	}
}

func TestDamagedBlockAloneIsSentAgain(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 5*mover.BlockSize)
	sent := map[uint32]int{}
	prove := proves(5)
	r.play(t, script{block: func(n int, h header, w *control) error {
		if sent[h.index]++; h.index == 2 && sent[2] < maxTries {
			return w.say(kindAgain, 2)
		}
		return prove(n, h, w)
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

// TestABlockThatWasThereIsSent has the receiver find that what it had of a block is
// damaged.
func TestABlockThatWasThereIsSent(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 2*mover.BlockSize)
	r.play(t, script{greet: answer{Have: bitmap{3}}, block: proves(1), idle: func(w *control) error { return w.say(kindAgain, 1) }})
	var told []int64
	req := r.request(t, f)
	if err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) { told = append(told, p.Moved) }); err != nil {
		t.Fatal(err)
	}
	for _, n := range told {
		if n != f.Size && n != mover.BlockSize {
			t.Errorf("%v bytes were reported", told)
		}
	}
}

func TestBlockThatStaysDamagedEndsTheMove(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", mover.BlockSize)
	r.play(t, script{block: func(_ int, h header, w *control) error { return w.say(kindAgain, h.index) }})
	if err := r.moves(t, f, 1); mover.CodeOf(err) != mover.CodeContent {
		t.Errorf("got %v, want code %s", err, mover.CodeContent)
	}
}

func TestBlocksOfADeadLaneGoOverTheOthers(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 20*mover.BlockSize)
	prove := proves(20)
	r.play(t, script{block: func(n int, h header, w *control) error {
		if n == 0 {
			return errors.New("dies with its first block")
		}
		return prove(n, h, w)
	}})
	if err := r.moves(t, f, 3); err != nil {
		t.Fatal(err)
	}
}

// TestABlockMayComeTwice has a lane die when its first block has come, whole or damaged:
// the receiver answers for it when it is on its way over another lane.
func TestABlockMayComeTwice(t *testing.T) {
	for _, first := range []kind{kindProven, kindAgain} {
		r := newPipeRig(t)
		f := r.stage(t, "image", 3*mover.BlockSize)
		prove := proves(3)
		told := false
		r.play(t, script{block: func(n int, h header, w *control) error {
			if n == 0 {
				return errors.New("dies with its first block")
			}
			if h.index == 0 && !told {
				told = true
				if err := w.say(first, 0); err != nil {
					return err
				}
			}
			return prove(n, h, w)
		}})
		if err := r.moves(t, f, 1); err != nil {
			t.Errorf("kind %d for the first: %v", first, err)
		}
	}
}

// TestWhatIsToBeSentIsCountedOnce has the receiver ask for a block that the sender has
// taken back from a dead lane already.
func TestWhatIsToBeSentIsCountedOnce(t *testing.T) {
	f := &outgoing{size: 2 * mover.BlockSize, tries: map[uint32]int{}}
	f.fill(bitmap{2})
	f.again(0, false)
	if f.left != 1 || f.ready != 1 || f.moved != mover.BlockSize {
		t.Errorf("%d blocks are left, %d ready, %d bytes moved", f.left, f.ready, f.moved)
	}
	f.again(1, false) // what was there is damaged
	if f.left != 2 || f.ready != 2 || f.moved != 0 {
		t.Errorf("%d blocks are left, %d ready, %d bytes moved", f.left, f.ready, f.moved)
	}
}

// TestALaneIsNotHeldByAFileThatEnded has a lane stop in the middle of a block, and the
// block's move be given up. The next one needs the lane.
func TestALaneIsNotHeldByAFileThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		a, b := r.stage(t, "a", 4*mover.BlockSize), r.stage(t, "b", 1)
		stuck := make(chan bool)
		r.play(t, script{block: func(n int, h header, w *control) error {
			if n == 0 { // reads no more
				<-stuck
				return errors.New("too late")
			}
			return w.write(answer{Done: true}.bytes(h.file))
		}})
		t.Cleanup(func() { close(stuck) })
		move := func(ctx context.Context, f mover.File) error {
			req := r.request(t, f)
			req.PCP = mover.PCP{Parallelism: 1, Concurrency: 1}
			return r.rig.Engine.Move(ctx, req, func(mover.Progress) {})
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var moves sync.WaitGroup
		moves.Go(func() {
			if err := move(ctx, a); !errors.Is(err, context.Canceled) {
				t.Errorf("the first move: %v", err)
			}
		})
		synctest.Wait()
		limit, done := context.WithTimeout(t.Context(), 5*DefaultStall)
		defer done()
		moves.Go(func() {
			if err := move(limit, b); err != nil {
				t.Errorf("the second move: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		moves.Wait()
	})
}

// TestADeadLaneIsForgotten has lanes die after a block each: nothing of them stays in
// memory while the link lives.
func TestADeadLaneIsForgotten(t *testing.T) {
	const blocks = 6
	r := newPipeRig(t)
	f := r.stage(t, "image", blocks*mover.BlockSize)
	e := r.rig.Engine.(*Engine)
	var mu sync.Mutex
	var conns []weak.Pointer[wire] // the control connection, then the lanes
	dial := e.Dial
	e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		w := &wire{c, r.wires}
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, weak.Make(w))
		return w, err
	}
	prove := proves(blocks)
	r.play(t, script{block: func(n int, h header, w *control) error {
		if n == blocks-1 {
			mu.Lock()
			defer mu.Unlock()
			for i, c := range conns[1 : blocks-1] { // the last one may not have ended yet
				for end := time.Now().Add(time.Minute); c.Value() != nil; runtime.GC() {
					if time.Now().After(end) {
						t.Errorf("lane %d is in memory still", i)
						break
					}
				}
			}
		}
		return errors.Join(prove(n, h, w), errors.New("dies with its block"))
	}})
	req := r.request(t, f)
	req.PCP = mover.PCP{Parallelism: 1, Pipelining: 1}
	if err := e.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
		t.Error(err)
	}
}

// TestAReceiverThatSpeaksOnALane has it speak no TLS while a block is sent to it: the
// lane's reading end complains of that where the block is written.
func TestAReceiverThatSpeaksOnALane(t *testing.T) {
	r := newRig(t)
	f := r.stage(t, "image", mover.BlockSize)
	file, err := os.Open(filepath.Join(r.rig.Source, f.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer l.Close()
	conf := serverTLS(r.ca, r.issue(t, "B", pki.DTN))
	receiving.Go(func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		c := tls.Server(nc, conf)
		if c.Handshake() == nil {
			_, _ = io.CopyN(io.Discard, nc, mover.BlockSize/2) // the handshake may have read ahead
			_, _ = nc.Write(make([]byte, 64))
			_, _ = io.Copy(io.Discard, nc)
		}
	})
	c, out, _, err := dial(t.Context(), r.rig.Engine.(*Engine), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := newLane(c, out, mover.Private)
	if err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		_ = n.send(&outgoing{id: 1, size: f.Size, source: newSource(r.rig.Engine.(*Engine), file, f.Size)}, 0)
	})
	err = n.ended()
	sending.Wait()
	n.cut()
	if err == nil {
		t.Error("the lane goes on")
	}
}

// TestLanesAreTriedAgain has a lane die at first, and none later.
func TestLanesAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 8*mover.BlockSize)
		var lanes atomic.Int32
		prove := proves(8)
		r.play(t, script{block: func(n int, h header, w *control) error {
			lanes.Store(max(lanes.Load(), int32(n+1)))
			if n == 1 {
				return errors.New("dies with its first block")
			}
			time.Sleep(pingEvery)
			return prove(n, h, w)
		}})
		req := r.request(t, f)
		req.PCP = mover.PCP{Parallelism: 2, Pipelining: 1}
		if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
			t.Error(err)
		}
		if n := lanes.Load(); n < 3 {
			t.Errorf("%d lanes were opened: the dead one was not replaced", n)
		}
	})
}

// TestLanesThatBringNothingEndTheLink holds that a link does not dial for ever.
func TestLanesThatBringNothingEndTheLink(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 3*mover.BlockSize)
	var lanes atomic.Int32
	r.play(t, script{block: func(int, header, *control) error { lanes.Add(1); return errors.New("dies with its first block") }})
	if err := r.moves(t, f, 2); err == nil || !strings.Contains(err.Error(), "no connection for blocks") {
		t.Errorf("got %v", err)
	}
	if n := lanes.Load(); n > maxFruitless+2 {
		t.Errorf("%d lanes were opened", n)
	}
}

// TestMovesShareALink has two moves at once to one receiver, and a third one later.
func TestMovesShareALink(t *testing.T) {
	r := newRig(t)
	a, b := r.stage(t, "a", 9*mover.BlockSize), r.stage(t, "b", 1)
	e := r.rig.Engine.(*Engine)
	dial, dialled := e.Dial, new(atomic.Int32)
	e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return dial(ctx, network, address)
	}
	move := func(f mover.File, begun func()) error {
		req := r.request(t, f)
		req.PCP.Parallelism = 2
		return e.Move(t.Context(), req, func(mover.Progress) { begun() })
	}
	other := make(chan error, 1)
	var once sync.Once
	err := move(a, func() { once.Do(func() { other <- move(b, func() {}) }) })
	if err = errors.Join(err, <-other); err != nil {
		t.Fatal(err)
	}
	if n := dialled.Load(); n > 3 {
		t.Errorf("%d connections for two moves at once, want a control connection and two lanes", n)
	}
	if len(e.links) != 0 {
		t.Errorf("%d links are open, and nothing is moved", len(e.links))
	}
	if err := errors.Join(r.recv().Drop("inbox/a"), move(a, func() {})); err != nil {
		t.Fatal(err)
	}
}

// TestOneMoveMayEndAndTheOtherGoesOn cancels one of two moves on a link.
func TestOneMoveMayEndAndTheOtherGoesOn(t *testing.T) {
	r := newRig(t)
	a, b := r.stage(t, "a", 40*mover.BlockSize), r.stage(t, "b", 40*mover.BlockSize)
	ctx, cancel := context.WithCancel(t.Context())
	other := make(chan error, 1)
	var once sync.Once
	err := r.rig.Engine.Move(t.Context(), r.request(t, a), func(mover.Progress) {
		once.Do(func() {
			go func() { other <- r.rig.Engine.Move(ctx, r.request(t, b), func(mover.Progress) { cancel() }) }()
		})
	})
	if err != nil {
		t.Errorf("the move that goes on: %v", err)
	}
	if err := <-other; !errors.Is(err, context.Canceled) {
		t.Errorf("the move that was cancelled: %v", err)
	}
}

func TestNoMoreLanesThanBlocks(t *testing.T) {
	r := newPipeRig(t)
	f := r.stage(t, "image", 3*mover.BlockSize)
	lanes := map[int]bool{}
	var mu sync.Mutex
	prove := proves(2)
	r.play(t, script{greet: answer{Have: bitmap{1}}, block: func(n int, h header, w *control) error {
		mu.Lock()
		lanes[n] = true
		mu.Unlock()
		if h.index == 0 {
			t.Error("block 0 was sent, though it is there")
		}
		return prove(n, h, w)
	}})
	if err := r.moves(t, f, mover.MaxParallelism); err != nil {
		t.Fatal(err)
	}
	if len(lanes) > 2 {
		t.Errorf("%d lanes for two blocks", len(lanes))
	}
}

func TestReceiverThatMisbehaves(t *testing.T) {
	for want, s := range map[string]struct {
		code   mover.Code
		script script
	}{
		"wants blocks of 7 bytes": {mover.CodeOther, script{welcome: answer{Block: 7}}},
		"not in this protection":  {mover.CodeAuth, script{welcome: answer{Code: mover.CodeAuth, Error: "not in this protection"}}},
		"no such ticket": {mover.CodeTicket, script{
			greet: answer{Code: mover.CodeTicket, Error: "no such ticket"},
			block: func(int, header, *control) error { return nil }, // it may come before the answer is heard
		}},
		"the disk is full": {mover.CodeSpace, script{block: func(_ int, _ header, w *control) error {
			return w.answer(answer{Code: mover.CodeSpace, Error: "the disk is full"})
		}}},
		"of a file with 1":   {mover.CodeOther, script{block: func(_ int, _ header, w *control) error { return w.say(kindProven, 1) }}},
		"file 7, which":      {mover.CodeOther, script{block: func(_ int, _ header, w *control) error { return w.write(header{kindProven, 7, 0, 0}.bytes()) }}},
		"of unknown kind 99": {mover.CodeOther, script{block: func(_ int, _ header, w *control) error { return w.say(99, 0) }}},
		"of unknown kind 4":  {mover.CodeOther, script{block: func(_ int, _ header, w *control) error { return w.say(kindBlock, 0) }}},
		"what was not asked": {mover.CodeOther, script{block: func(_ int, _ header, w *control) error { return w.answer(answer{}) }}},
	} {
		t.Run(want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				f := r.stage(t, "image", mover.BlockSize)
				r.play(t, s.script)
				err := r.moves(t, f, 1)
				if err == nil || mover.CodeOf(err) != s.code || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v (code %s), want code %s", err, mover.CodeOf(err), s.code)
				}
			})
		})
	}
}

// TestSilence has a receiver say nothing more, at each point where it owes a word.
func TestSilence(t *testing.T) {
	silent := func(int, header, *control) error { return nil }
	for name, c := range map[string]struct {
		blocks int64
		script script
	}{
		"of a block":   {2, script{block: silent}},
		"at the end":   {1, script{block: func(_ int, h header, w *control) error { return w.say(kindProven, h.index) }}},
		"all is there": {1, script{greet: answer{Have: bitmap{1}}, block: silent}},
		"signs of life without progress": {0, script{idle: func(w *control) error {
			for {
				if err := w.say(kindBusy, 7); err != nil {
					return err
				}
				time.Sleep(time.Second)
			}
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				f := r.stage(t, "image", c.blocks*mover.BlockSize)
				r.play(t, c.script)
				begin := time.Now()
				err := r.moves(t, f, 1)
				if err == nil || mover.CodeOf(err) != mover.CodeOther {
					t.Errorf("got %v", err)
				}
				if d := time.Since(begin); d < DefaultStall || d > 6*DefaultStall {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

func TestSignsOfLifeKeepAMoveAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 0)
		r.play(t, script{idle: func(w *control) error {
			for i := range uint32(10) {
				if err := w.say(kindBusy, i+1); err != nil {
					return err
				}
				time.Sleep(DefaultStall - time.Second)
			}
			return w.done()
		}})
		if err := r.moves(t, f, 1); err != nil {
			t.Error(err)
		}
	})
}

// TestALinkInUseIsNotIdle has a file take longer than a receiver lets a link rest.
func TestALinkInUseIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 2*mover.BlockSize)
		r.opts.Idle = time.Minute
		r.start(t, "")
		r.rig.Engine.(*Engine).Stall = time.Hour
		first := true
		req := r.request(t, f)
		req.PCP = mover.PCP{Parallelism: 1, Pipelining: 1}
		err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
			if first && p.Moved > 0 {
				first = false
				time.Sleep(10 * time.Minute) // the link goes on meanwhile
			}
		})
		if err != nil {
			t.Error(err)
		}
		r.stop()
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
			prove := proves(40)
			r.play(t, script{block: func(n int, h header, w *control) error {
				<-all
				return prove(n, h, w)
			}})
			time.AfterFunc(time.Minute, func() { close(all) })
			if err := r.moves(t, f, c.asked); err != nil {
				t.Fatal(err)
			}
			if got := int(dialled.Load()) - 1; got != c.want {
				t.Errorf("%v away, %d asked for: %d lanes, want %d", c.rtt, c.asked, got, c.want)
			}
		})
	}
}

func TestALaneCarriesSoMuchOnly(t *testing.T) {
	r := newRig(t)
	e := r.rig.Engine.(*Engine)
	e.laneBlocks = 4
	dial, dialled := e.Dial, new(atomic.Int32)
	e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return dial(ctx, network, address)
	}
	f := r.stage(t, "image", 10*mover.BlockSize)
	if err := r.moves(t, f, 1); err != nil {
		t.Fatal(err)
	}
	r.came(t, f)
	if n := dialled.Load(); n < 1+3 {
		t.Errorf("%d connections for 10 blocks, 4 on each lane", n)
	}
}

// slow is a connection on which little comes at a time.
type slow struct {
	net.Conn
	pause *atomic.Int64
}

func (s slow) Read(b []byte) (int, error) {
	time.Sleep(time.Duration(s.pause.Load()))
	return s.Conn.Read(b[:min(len(b), 16<<10)])
}

// TestASlowPathIsNotStill has a block take longer than a connection may be still.
func TestASlowPathIsNotStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", mover.BlockSize)
		var pause atomic.Int64
		inner := r.pipes
		r.pipes = make(pipes)
		r.wires.pipes = r.pipes
		outer := r.pipes
		r.pipes = inner
		go func() { // between the sender and the receiver
			for c := range outer {
				inner <- slow{c, &pause}
			}
		}()
		defer close(outer)
		prove := proves(1)
		r.play(t, script{block: prove, welcomed: func(int) bool {
			pause.Store(int64(5 * time.Second))
			return true
		}})
		begin := time.Now()
		if err := r.moves(t, f, 1); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d < DefaultStall {
			t.Errorf("it took %v only", d)
		}
	})
}

// TestALaneThatIsNotWantedIsNotDialledForEver has the receiver close all lanes but one.
func TestALaneThatIsNotWantedIsNotDialledForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 4*mover.BlockSize)
		var lanes atomic.Int32
		prove := proves(4)
		r.play(t, script{welcomed: func(n int) bool { lanes.Add(1); return n == 0 }, block: func(n int, h header, w *control) error {
			time.Sleep(5 * time.Second)
			return prove(n, h, w)
		}})
		if err := r.moves(t, f, 2); err != nil {
			t.Error(err)
		}
		if n := lanes.Load(); n > 4 {
			t.Errorf("%d lanes were dialled in 20 s", n)
		}
	})
}

// TestACancelledMoveDoesNotWaitForTheReceiver cancels one whose receiver reads nothing any more.
func TestACancelledMoveDoesNotWaitForTheReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		f := r.stage(t, "image", 0)
		deaf := make(chan struct{})
		defer close(deaf)
		r.play(t, script{deaf: deaf})
		ctx, cancel := context.WithCancelCause(t.Context())
		cancelled := time.Now().Add(time.Second)
		time.AfterFunc(time.Second, func() { cancel(mover.ErrCancelled) })
		if err := r.rig.Engine.Move(ctx, r.request(t, f), func(mover.Progress) {}); !errors.Is(err, mover.ErrCancelled) {
			t.Error(err)
		}
		if took := time.Since(cancelled); took > lingerTime {
			t.Errorf("it took %v", took)
		}
	})
}
