package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// TestMemoryIsBounded adds up what a receiver may hold of files at most: the DTN's
// service has 512 MiB.
func TestMemoryIsBounded(t *testing.T) {
	lanes, hashes, others := DefaultConns*len(frame{}), cap(hot)*len(frame{}), cap(borrowed)*len(frame{})
	if most := lanes + hashes + others; most > 400<<20 {
		t.Errorf("%d MiB for lanes, %d MiB for hashes and %d MiB that are borrowed", lanes>>20, hashes>>20, others>>20)
	}
	sender := 2 * (headerSize + pieceSize + proofSize) // a piece, and what is gathered of it
	if most := mover.MaxParallelism * sender; most > 16<<20 {
		t.Errorf("%d MiB for one link at the sender", most>>20)
	}
}

// TestALaneHoldsAFrameFromItsFirstBlockOn has lanes without a block, and then with a packed
// one that does not come to its end.
func TestALaneHoldsAFrameFromItsFirstBlockOn(t *testing.T) {
	const lanes = 4
	image := text(lanes * mover.BlockSize)
	var packed [][]byte // outside the bubble, as it makes the encoder
	for block := range slices.Chunk(image, mover.BlockSize) {
		packed = append(packed, whole(block))
	}
	synctest.Test(t, func(t *testing.T) {
		var taken atomic.Int32
		frames = sync.Pool{New: func() any { taken.Add(1); return new(frame) }}
		defer func() { frames = sync.Pool{New: func() any { return new(frame) }} }()
		r := newPipeRig(t)
		r.start(t, "")
		s, _ := r.open(t, r.request(t, r.put(t, "image", image)), "s")
		all := []net.Conn{s.lane}
		for range lanes - 1 {
			c, _ := r.greet(t, "s", true)
			all = append(all, c)
		}
		synctest.Wait()
		if n := taken.Load(); n > 0 {
			t.Errorf("lanes without a block hold %d frames", n)
		}
		for i, c := range all {
			b := s.packed(uint32(i), packed[i])
			write(t, c, b[:len(b)-1])
		}
		synctest.Wait()
		if n := taken.Load(); n > lanes {
			t.Errorf("%d lanes hold %d frames", lanes, n)
		}
		r.stop()
	})
}

// TestADiskThatIsSlowHoldsTheSenderBack has the receiver's disk take nothing for a while:
// of what is sent then each lane has a block in hand at most, and nothing fails.
func TestADiskThatIsSlowHoldsTheSenderBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes = 4
		var writes atomic.Int64
		full := make(chan struct{})
		writeAt = func(f *os.File, b []byte, off int64) (int, error) {
			if writes.Add(1) > 10 {
				<-full
			}
			return f.WriteAt(b, off)
		}
		defer func() { writeAt = (*os.File).WriteAt }()
		r := newPipeRig(t)
		r.start(t, "")
		f := r.stage(t, "image", 100*mover.BlockSize)
		var move sync.WaitGroup
		move.Go(func() {
			if err := r.moves(t, f, lanes); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(30 * time.Second) // less than a connection may be still
		synctest.Wait()
		// A block for each write, one that waits for its own, and one on its way.
		if sent, most := r.wires.sent.Load(), int64(10+2*lanes)*mover.BlockSize+1<<20; sent > most {
			t.Errorf("%d bytes were sent to a disk that takes nothing, want at most %d", sent, most)
		}
		a := r.recv().list()[0]
		a.mu.Lock()
		kept := len(a.hot)
		a.mu.Unlock()
		if kept > 2*ahead {
			t.Errorf("%d blocks are kept in memory", kept)
		}
		close(full)
		move.Wait()
		r.came(t, f)
		r.stop()
	})
}

// TestOneFileMoreThanALinkTakesWaits has as many files on a link as may be, and more.
func TestOneFileMoreThanALinkTakesWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		e := r.rig.Engine.(*Engine)
		e.linkFiles = 2
		var opened atomic.Int32
		answers := make(chan *control)
		r.play(t, script{idle: func(w *control) error { opened.Add(1); answers <- w; return nil }, block: proves(0)})
		f := r.stage(t, "empty", 0)
		var moves sync.WaitGroup
		for range 3 {
			moves.Go(func() {
				if err := r.moves(t, f, 1); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := opened.Load(); n != 2 {
			t.Errorf("%d files were opened, want 2", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		moves.Go(func() { // one that waits can be given up
			if err := e.Move(ctx, r.request(t, f), func(mover.Progress) {}); !errors.Is(err, context.Canceled) {
				t.Errorf("it was given up and ended with %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait() // or it may take the first place that is free
		for id := range uint32(3) {
			w := <-answers
			if err := w.write(answer{Done: true}.bytes(id + 1)); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		moves.Wait()
	})
}

// TestManyFilesOverOneLink has both ends take few at once: the receiver has a place as
// soon as the sender believes so.
func TestManyFilesOverOneLink(t *testing.T) {
	const few, files = 4, 100
	r := newRig(t)
	r.stop()
	r.opts.linkFiles, r.rig.Engine.(*Engine).linkFiles = few, few
	r.start(t, "127.0.0.1:0")
	var moves sync.WaitGroup
	for i := range files {
		req := r.request(t, r.stage(t, fmt.Sprint(i), 1))
		moves.Go(func() {
			if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
				t.Error(err)
			}
		})
	}
	moves.Wait()
	if n := len(r.recv().Arrivals()); n != files {
		t.Errorf("%d files arrived", n)
	}
}

// TestOneArrivalMoreThanThereIsRoomForWaits fills those of a receiver's places that are for
// one site, and frees one. Another site has its own.
func TestOneArrivalMoreThanThereIsRoomForWaits(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.opts.Files = 4
	r.start(t, "127.0.0.1:0")
	var first *sender
	for _, base := range []string{"a", "b"} {
		s, a := r.open(t, r.request(t, r.stage(t, base, 2*mover.BlockSize)), base)
		if a.Code != "" {
			t.Fatalf("%s: %+v", base, a)
		}
		if first == nil {
			first = s
		}
	}
	req := r.request(t, r.stage(t, "c", 1))
	err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {})
	w := waits(err)
	if w == nil || !strings.Contains(w.Reason, "as many files arrive as may at once") || time.Until(w.Until) > crowdedTime {
		t.Fatalf("the third: %v, %+v", err, w)
	}
	file := r.stage(t, "d", 1)
	in := file
	in.Name = "inbox/d"
	token, err := r.rig.Sign(mover.Ticket{ID: "d", Site: "B", From: "C", File: in, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	other := mover.Request{Source: file, Destination: mover.Destination{Address: r.rig.Address, Ticket: token}}
	if err := r.engine(t, r.rig.Source, r.issue(t, "C", pki.DTN)).Move(t.Context(), other, func(mover.Progress) {}); err != nil {
		t.Errorf("another site's: %v", err)
	}
	a := r.recv().lookup("inbox/a")
	first.close()
	a.mu.Lock()
	for a.followed {
		a.changed.Wait()
	}
	a.mu.Unlock()
	if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
		t.Errorf("when there is a place: %v", err)
	}
}

// lowerLimit sets a limit of setrlimit(2) on this process, until the function that it returns
// is called.
func lowerLimit(t *testing.T, resource int, n uint64) (restore func()) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(resource, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: n, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(resource, &was); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASenderWithTooManyFilesOpenWaits(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 1))
	restore := lowerLimit(t, syscall.RLIMIT_NOFILE, 3)
	err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {})
	restore()
	if w := waits(err); w == nil || !strings.Contains(w.Reason, "LimitNOFILE") {
		t.Errorf("it ends with %v", err)
	}
	if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
		t.Error(err)
	}
}

// TestAReceiverWithTooManyFilesOpenLosesNothing sends many files to a process that may
// have few open: it says so, lives on, and all arrive.
func TestAReceiverWithTooManyFilesOpenLosesNothing(t *testing.T) {
	r := newRig(t)
	r.stop()
	dir := filepath.Dir(r.state)
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.ca, err = pki.LoadCA(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(ca, pki.Identity{Site: "B", Role: pki.DTN}, []string{"127.0.0.1"}, time.Hour, ca); err != nil {
		t.Fatal(err)
	}
	agent := r.issue(t, "B", pki.Agent)
	r.rig.Sign = func(tk mover.Ticket) (string, error) { return ticket.Sign(agent, tk) }
	engine := r.engine(t, r.rig.Source, r.issue(t, "A", pki.DTN))
	t.Setenv(victimFilesEnv, "40")
	r.rig.Address, _ = startVictim(t, dir, "")

	const files = 40
	reqs := make([]mover.Request, files)
	for i := range reqs {
		reqs[i] = r.request(t, r.stage(t, fmt.Sprint(i), 2*mover.BlockSize))
		reqs[i].Destination.Address = r.rig.Address
	}
	s, a := r.open(t, reqs[0], "link")
	full := 1
	for ; a.Wait == 0; full++ {
		if full == files || a.Code != "" {
			t.Fatalf("file %d of a process that may have few open: %+v", full, a)
		}
		a = s.open(uint32(full+1), reqs[full])
	}
	if !strings.Contains(a.Error, "LimitNOFILE") || a.Wait > crowdedTime {
		t.Errorf("the sender is told %+v", a)
	}
	var more []net.Conn // more than it can accept
	for range files {
		c, err := net.Dial("tcp", r.rig.Address)
		if err != nil {
			t.Fatal(err)
		}
		more = append(more, c)
	}
	s.control.SetDeadline(time.Now().Add(time.Minute))
	if a := s.open(uint32(full+1), reqs[full-1]); a.Wait == 0 { // it lives
		t.Errorf("the sender is told %+v", a)
	}
	for _, c := range more {
		c.Close()
	}
	s.close()
	for _, req := range reqs {
		var err error
		for range 1000 { // what was open is closed soon
			if err = engine.Move(t.Context(), req, func(mover.Progress) {}); waits(err) == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s: %v", req.Source.Name, err)
		}
		r.came(t, req.Source)
	}
}

// TestAPlaceIsFreeWhenTheReceiverKnows holds the control connection when a move is given
// up: a file that was opened before its closing would be one too many there.
func TestAPlaceIsFreeWhenTheReceiverKnows(t *testing.T) {
	r := newRig(t)
	e := r.rig.Engine.(*Engine)
	req := r.request(t, r.stage(t, "image", 8*mover.BlockSize))
	req.PCP = mover.PCP{Parallelism: 1, Pipelining: 1}
	ctx, cancel := context.WithCancel(t.Context())
	held := make(chan *link, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Move(ctx, req, func(p mover.Progress) {
			if p.Moved == 0 || ctx.Err() != nil {
				return
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, l := range e.links {
				l.writing.Lock()
				held <- l
			}
			cancel()
		})
	}()
	l := <-held
	taken := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		for len(l.files) > 0 {
			l.changed.Wait()
		}
		return l.coming
	}
	if n := taken(); n != 1 {
		t.Errorf("%d places are taken before the receiver is told, want 1", n)
	}
	l.writing.Unlock()
	<-ended
	if n := taken(); n != 0 {
		t.Errorf("%d places are taken by nothing", n)
	}
}

// TestPassagesThatWereClosedAreCounted opens and closes files faster than a relay's disk lets
// their passages end.
func TestPassagesThatWereClosedAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelayPipeRig(t, mover.StoreForward)
		r.startRelay(t, "")
		r.relay.opts.linkFiles = 1
		l := newIncoming(t.Context(), r.relay, nil, "a link", "A", mover.Private)
		o := r.announced(t, r.stage(t, "image", 2*mover.BlockSize))
		r.relay.relay.mu.Lock()
		for id := range uint32(3) {
			if err := cmp.Or(l.open(id+1, o), l.close(id+1, false)); err != nil {
				t.Fatal(err)
			}
		}
		r.relay.relay.mu.Unlock()
		if h, a := said(t, l); h.file != 3 || a.Wait == 0 || !strings.Contains(a.Error, errCrowded.Error()) {
			t.Errorf("of file %d it says %+v, want the third to wait", h.file, a)
		}
		synctest.Wait()
		if n := l.running.Load(); n != 0 {
			t.Errorf("%d passages run after their end", n)
		}
		r.stopR()
		r.stop()
	})
}
