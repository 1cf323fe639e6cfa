package stream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
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

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

func TestConformanceThroughRelay(t *testing.T) {
	for _, c := range []struct {
		mode mover.RelayMode
		p    mover.Protection
	}{{mover.StoreForward, mover.Private}, {mover.CutThrough, mover.Private}, {mover.CutThrough, mover.Clear}} {
		t.Run(string(c.mode)+" "+string(c.p), func(t *testing.T) {
			movertest.Run(t, func(t *testing.T) movertest.Rig { return newRelayRig(t, c.p, c.mode).rig.rig })
		})
	}
}

// relayRig is a rig with site R's DTN between those of A and B.
type relayRig struct {
	*rig
	dir   string // R's
	via   mover.Relay
	opts  RelayOptions
	allow atomic.Bool
	out   *wires                             // from R
	sign  func(mover.Ticket) (string, error) // without a relay
	relay *Receiver
	stopR func()
}

// viaRelay moves everything through a relay.
type viaRelay struct {
	mover.Engine
	via *mover.Relay
}

func (v viaRelay) Move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	r.Destination.Via = *v.via
	return v.Engine.Move(ctx, r, report)
}

func newRelayRig(t testing.TB, p mover.Protection, mode mover.RelayMode) *relayRig {
	t.Helper()
	r := prepareRelay(t, newRigIn(t, p), p, mode)
	r.startRelay(t, "127.0.0.1:0")
	return r
}

// prepareRelay makes a rig of one without a relay, whose DTN has not started.
func prepareRelay(t testing.TB, direct *rig, p mover.Protection, mode mover.RelayMode) *relayRig {
	t.Helper()
	r := &relayRig{rig: direct, out: new(wires), stopR: func() {}}
	r.dir = filepath.Join(filepath.Dir(r.state), "r")
	r.via = mover.Relay{Site: "R", Mode: mode}
	r.allow.Store(true)
	r.rig.rig.Engine = viaRelay{r.rig.rig.Engine, &r.via}
	r.sign = r.rig.rig.Sign
	r.rig.rig.Sign = func(tk mover.Ticket) (string, error) {
		tk.Via, tk.Address = "R", cmp.Or(tk.Address, r.rig.rig.Address)
		return r.sign(tk)
	}
	cutA := r.rig.rig.Cut
	r.rig.rig.Cut = func() { cutA(); r.out.cut() }
	engine := r.engine(t, r.rig.rig.Source, r.issue(t, "R", pki.DTN))
	engine.Protection, engine.Dial = p, r.out.dial
	r.opts = RelayOptions{
		Site: "R", Engine: engine, Space: 1 << 30,
		Check: func(token string) (mover.Ticket, error) { return ticket.VerifyAny(r.ca.Pool(), token, time.Now()) },
		Allow: func(from, to string) bool { return r.allow.Load() && from == "A" && to == "B" },
	}
	r.rig.rig.Own = append(r.rig.rig.Own, "github.com/glance-dtn/glance-dtn/mover/stream.(*relay).sweep")
	t.Cleanup(func() { r.stopR() })
	return r
}

func (r *relayRig) startRelay(t testing.TB, address string) {
	t.Helper()
	for _, d := range []string{"inbox", "state", "box", "boxstate"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	o := r.opts
	o.Box, o.State = roottest.Open(t, filepath.Join(r.dir, "box")), roottest.Open(t, filepath.Join(r.dir, "boxstate"))
	recv, err := NewReceiver(roottest.Open(t, r.dir), roottest.Open(t, filepath.Join(r.dir, "state")), ReceiverOptions{
		TLS:  serverTLS(r.ca, r.issue(t, "R", pki.DTN)),
		Busy: 50 * time.Millisecond, Relay: &o, Protection: o.Engine.Protection,
		Check: func(token, _ string) (mover.Ticket, error) { return ticket.Verify(r.ca.Pool(), "R", token, time.Now()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener = r.wires.pipes
	if r.wires.pipes == nil {
		l = nettest.Listen(t, address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- recv.Serve(ctx, l) }()
	r.relay, r.via.Address = recv, l.Addr().String()
	r.stopR = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("the relay's Serve = %v", err)
		}
	})
}

func (r *relayRig) restartRelay(t testing.TB) {
	t.Helper()
	r.stopR()
	r.startRelay(t, r.via.Address)
}

// box lists what the relay keeps.
func (r *relayRig) box(t testing.TB) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.dir, "box", mover.Inbox))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// kept is the room that the relay's copies take.
func (r *relayRig) kept(t testing.TB) (n int64) {
	t.Helper()
	for _, name := range r.box(t) {
		info, err := os.Stat(filepath.Join(r.dir, "box", mover.Inbox, name))
		if err != nil {
			t.Fatal(err)
		}
		n += info.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return n
}

// newRelayPipeRig makes one that lives in a synctest bubble, with pipes for TCP on both hops.
func newRelayPipeRig(t testing.TB, mode mover.RelayMode) *relayRig {
	t.Helper()
	return prepareRelayPipes(t, newPipeRig(t), mode)
}

// prepareRelayPipes makes one of a rig whose receiver has not started.
func prepareRelayPipes(t testing.TB, direct *rig, mode mover.RelayMode) *relayRig {
	t.Helper()
	direct.start(t, "")
	r := prepareRelay(t, direct, mover.Private, mode)
	r.out.pipes, r.wires.pipes = direct.pipes, make(pipes)
	return r
}

// sluice lets so many bytes of blocks through, until it is opened.
type sluice struct {
	mu      sync.Mutex
	changed sync.Cond
	left    int64
}

func newSluice(n int64) *sluice {
	s := &sluice{left: n}
	s.changed.L = &s.mu
	return s
}

func (s *sluice) take(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.left < n {
		s.changed.Wait()
	}
	s.left -= n
}

func (s *sluice) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = math.MaxInt64
	s.changed.Broadcast()
}

type sluiced struct {
	net.Conn
	*sluice
}

func (c sluiced) Write(b []byte) (int, error) {
	if len(b) >= pieceSize/2 {
		c.take(int64(len(b)))
	}
	return c.Conn.Write(b)
}

// TestRelayTakesNoMoreThanItMayKeep has the way on come to rest, for longer than the
// sender waits for any answer.
func TestRelayTakesNoMoreThanItMayKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead, passed, blocks = 8, 20, 64
		r := newRelayPipeRig(t, mover.CutThrough)
		s := newSluice(passed * mover.BlockSize)
		r.opts.ahead, r.opts.Engine.Stall = ahead, time.Hour
		r.opts.Engine.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.out.dial(ctx, network, address)
			return sluiced{c, s}, err
		}
		r.startRelay(t, "")
		req := r.request(t, r.stage(t, "image", blocks*mover.BlockSize))
		var moved atomic.Int64
		ended := make(chan error, 1)
		go func() {
			ended <- r.rig.rig.Engine.Move(t.Context(), req, func(p mover.Progress) { moved.Store(p.Moved) })
		}()
		time.Sleep(2 * DefaultStall)
		select {
		case err := <-ended:
			t.Fatal("while the relay waits for the next site, the move ended:", err)
		default:
		}
		if n := moved.Load() / mover.BlockSize; n <= ahead || n > ahead+passed {
			t.Errorf("%d blocks are at the relay or beyond, %d of them beyond, and it may keep %d", n, passed, ahead)
		}
		if n := r.kept(t); n == 0 || n > (ahead+1)*mover.BlockSize {
			t.Errorf("the relay keeps %d bytes, and may keep %d blocks", n, ahead)
		}
		s.open()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		r.same(t, "image")
		r.stopR()
		r.stop()
	})
}

// TestLanesWaitForWhatComesToARelay has the sender bring nothing for a long time: lanes to
// the next site are there at once, for round trips are long, and that the site closes those
// that rest is no reason to give it up.
func TestLanesWaitForWhatComesToARelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lanes, idle = 2 * maxFruitless, DefaultStall + time.Minute
		direct := newPipeRig(t)
		direct.opts.Idle = idle
		r := prepareRelayPipes(t, direct, mover.CutThrough)
		r.startRelay(t, "")
		a, s := r.rig.rig.Engine.(viaRelay).Engine.(*Engine), newSluice(0)
		a.Stall = time.Hour
		a.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.wires.dial(ctx, network, address)
			return sluiced{c, s}, err
		}
		req := r.request(t, r.stage(t, "image", 8*mover.BlockSize))
		req.PCP.Parallelism = lanes
		ended := make(chan error, 1)
		go func() { ended <- viaRelay{a, &r.via}.Move(t.Context(), req, func(mover.Progress) {}) }()
		time.Sleep(time.Second)
		synctest.Wait()
		var onward *link
		y := r.relay.relay
		y.mu.Lock()
		for _, p := range y.passes {
			p.mu.Lock()
			onward = p.onward
			p.mu.Unlock()
		}
		y.mu.Unlock()
		if onward == nil {
			t.Fatal("nothing is on its way:", <-ended)
		}
		onward.mu.Lock()
		if len(onward.lanes) != lanes {
			t.Errorf("%d lanes wait, want %d", len(onward.lanes), lanes)
		}
		onward.mu.Unlock()
		time.Sleep(idle)
		s.open()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		r.same(t, "image")
		r.stopR()
		r.stop()
	})
}

// same checks that what was staged has arrived.
func (r *relayRig) same(t testing.TB, base string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(r.rig.rig.Destination, mover.Inbox, base))
	want, wantErr := os.ReadFile(filepath.Join(r.rig.rig.Source, mover.Outbox, base))
	if err = errors.Join(err, wantErr); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d arrived, or wrong ones: %v", len(got), len(want), err)
	}
	if left := r.box(t); len(left) > 0 {
		t.Errorf("the relay keeps %v", left)
	}
}

// part moves until at bytes are proven, and ends the move for the reason why.
func (r *relayRig) part(t testing.TB, req mover.Request, at int64, why error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	req.PCP = mover.PCP{Pipelining: 1, Parallelism: 1}
	err := r.rig.rig.Engine.Move(ctx, req, func(p mover.Progress) {
		if p.Moved >= at {
			cancel(why)
		}
	})
	if !errors.Is(err, why) {
		t.Fatalf("got %v, want %v", err, why)
	}
}

var errEnough = errors.New("enough")

// TestRelayPassesOnWhatTheDestinationHasLost drops the file at the destination when the
// relay has let go of blocks that had come there: they come from the source again.
func TestRelayPassesOnWhatTheDestinationHasLost(t *testing.T) {
	for _, mode := range []mover.RelayMode{mover.CutThrough, mover.StoreForward} {
		r := newRelayRig(t, mover.Private, mode)
		f := r.stage(t, "image", 40*mover.BlockSize+1)
		r.part(t, r.request(t, f), 20*mover.BlockSize, errEnough)
		if err := r.rig.rig.Drop(mover.Inbox + "/image"); err != nil {
			t.Fatal(err)
		}
		if err := r.rig.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
			t.Fatal(mode, err)
		}
		r.same(t, "image")
	}
}

// TestRelayEndsWhenNobodyBringsWhatWasLost has the destination find that it has lost a
// block, when the relay has let go of it and the sender has left.
func TestRelayEndsWhenNobodyBringsWhatWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocks, passed = 8, 4
		r := newRelayPipeRig(t, mover.CutThrough)
		s := newSluice(passed * mover.BlockSize)
		r.opts.Engine.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.out.dial(ctx, network, address)
			return sluiced{c, s}, err
		}
		r.startRelay(t, "")
		req := r.request(t, r.stage(t, "image", blocks*mover.BlockSize))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.rig.rig.Engine.Move(ctx, req, func(mover.Progress) {}) }()
		time.Sleep(10 * time.Second) // all of it is at the relay or beyond
		cancel()
		<-ended
		var p *passage
		y := r.relay.relay
		y.mu.Lock()
		for _, p = range y.passes {
		}
		y.mu.Unlock()
		a := y.box.list()[0]
		lost := uint32(blocks)
		a.mu.Lock()
		for i := range a.blocks {
			if a.let.has(i) {
				lost = i
			}
		}
		a.mu.Unlock()
		if lost == blocks || p.ctx.Err() != nil {
			t.Fatal("nothing has gone on, or all has ended")
		}
		p.lost(lost)
		synctest.Wait()
		if p.ctx.Err() == nil {
			t.Error("the relay waits for a block that nobody brings")
		}
		s.open()
		time.Sleep(10 * time.Second)
		r.stopR()
		r.stop()
	})
}

// TestRelayGoesOnWithTheWhole has the sender gone once the relay has all.
func TestRelayGoesOnWithTheWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 * mover.BlockSize
		r := newRelayPipeRig(t, mover.StoreForward)
		s := newSluice(0)
		r.opts.Engine.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.out.dial(ctx, network, address)
			return sluiced{c, s}, err
		}
		r.startRelay(t, "")
		req := r.request(t, r.stage(t, "image", size))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.rig.rig.Engine.Move(ctx, req, func(mover.Progress) {}) }()
		time.Sleep(10 * time.Second) // it compares the digest meanwhile
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		s.open()
		time.Sleep(10 * time.Second)
		r.same(t, "image")
		if err := r.rig.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
			t.Error("asked again, what has arrived is not done:", err)
		}
		r.stopR()
		r.stop()
	})
}

// TestARelayKeepsNothingForLonger looks at what rests soon after its time is over.
func TestARelayKeepsNothingForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := &relay{
			RelayOptions: RelayOptions{Keep: DefaultRelayKeep}, receiver: &Receiver{log: slog.New(slog.DiscardHandler)}, box: &Receiver{},
			rests: map[string]rest{"image": {since: time.Now().Add(time.Minute)}},
		}
		ctx, cancel := context.WithCancel(t.Context())
		go y.sweep(ctx)
		rests := func() int {
			y.mu.Lock()
			defer y.mu.Unlock()
			return len(y.rests)
		}
		time.Sleep(DefaultRelayKeep)
		if synctest.Wait(); rests() != 1 {
			t.Error("it goes too early")
		}
		time.Sleep(sweepEvery + time.Minute)
		if synctest.Wait(); rests() != 0 {
			t.Error("it stays for longer than it is kept")
		}
		cancel()
	})
}

// TestWhatThePassageHeardLastCounts has a file end at the destination before the passage
// has taken note of its last blocks there, and while the relay waits for the disk.
func TestWhatThePassageHeardLastCounts(t *testing.T) {
	y := &relay{tally: map[route]mover.Passed{}}
	y.mu.Lock()
	p := &passage{
		relay: y, opening: opening{Relay: mover.StoreForward}, ticket: mover.Ticket{From: "A", Site: "B"},
		file: mover.File{Size: mover.BlockSize + 1}, there: newBitmap(2),
		events: []event{{kind: eventPassed, index: 0}, {kind: eventPassed, index: 1}},
	}
	ended := make(chan error, 1)
	ended <- nil
	if err := p.follow(ended); err != nil {
		t.Fatal(err)
	}
	want := mover.Passed{From: "A", To: "B", Bytes: mover.BlockSize + 1}
	if got := (&Receiver{relay: y}).Passed(); len(got) != 1 || got[0] != want {
		t.Errorf("passed on were %+v, want %+v", got, want)
	}
}

func TestRelayForgetsWhatNobodyWants(t *testing.T) {
	r := newRelayRig(t, mover.Private, mover.StoreForward)
	f := r.stage(t, "image", 40*mover.BlockSize)
	r.part(t, r.request(t, f), 20*mover.BlockSize, mover.ErrCancelled)
	r.relay.relay.mu.Lock()
	passages := slices.Collect(maps.Values(r.relay.relay.passes))
	r.relay.relay.mu.Unlock()
	for _, p := range passages {
		<-p.done
	}
	if left := r.box(t); len(left) > 0 {
		t.Errorf("of a transfer that was cancelled the relay keeps %v", left)
	}
	r.part(t, r.request(t, f), 20*mover.BlockSize, errEnough)
	for range 2 { // what is known of its age, too, is lost with a restart
		r.restartRelay(t)
		r.relay.relay.forget(time.Now().Add(DefaultRelayKeep - time.Minute))
		if left := r.box(t); len(left) != 1 {
			t.Fatalf("of a transfer that was broken off the relay keeps %v", left)
		}
	}
	r.relay.relay.forget(time.Now().Add(DefaultRelayKeep))
	if left := r.box(t); len(left) > 0 {
		t.Errorf("after %v the relay keeps %v", DefaultRelayKeep, left)
	}
	if err := r.rig.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
		t.Error(err)
	}
}

// TestRelayGivesUpNoMoreThanIsOfUse has two files rest for long, one for a while, and one
// on its way.
func TestRelayGivesUpNoMoreThanIsOfUse(t *testing.T) {
	now := time.Now()
	for need, want := range map[int64]string{
		101: "longest longer while", 71: "longest longer while", // would not be enough room
		70: "while", 51: "while", 50: "longer while", 10: "longer while", 0: "longest longer while",
	} {
		r := newRelayRig(t, mover.Private, mover.StoreForward)
		y := r.relay.relay
		y.mu.Lock()
		y.Space = 100
		y.given = map[string]int64{"longest": 50, "longer": 20, "while": 20, "running": 10, "this": 7}
		y.rests = map[string]rest{"longest": {since: now.Add(-relayRest - time.Hour)}, "longer": {since: now.Add(-relayRest)}, "while": {since: now.Add(time.Minute - relayRest)}}
		err := y.makeRoom("this", need, now)
		var left []string
		for _, name := range []string{"longest", "longer", "while"} {
			if _, ok := y.rests[name]; ok {
				left = append(left, name)
			}
		}
		y.mu.Unlock()
		if got := strings.Join(left, " "); got != want || mover.CodeOf(err) == mover.CodeSpace != (need > 70) {
			t.Errorf("for %d bytes %q rest on, want %q; %v", need, got, want, err)
		}
	}
}

func TestRelayRefuses(t *testing.T) {
	r := newRelayRig(t, mover.Private, mover.StoreForward)
	f := r.stage(t, "image", 3*mover.BlockSize)
	elsewhere := greeter(t, serverTLS(r.ca, r.issue(t, "C", pki.DTN)))
	plain := func(tk *mover.Ticket) {}
	for name, c := range map[string]struct {
		ticket func(*mover.Ticket)
		change func(req *mover.Request)
		code   mover.Code
		text   string
	}{
		"a site that may not":    {plain, func(*mover.Request) { r.allow.Store(false) }, mover.CodeAuth, "from site A to site B; see relay.routes"},
		"a ticket for no relay":  {func(tk *mover.Ticket) { tk.Via = "S" }, nil, mover.CodeTicket, `does not let site "R" pass the file on`},
		"a DTN that is no relay": {plain, func(*mover.Request) { r.via.Address, r.via.Site = r.rig.rig.Address, "B" }, mover.CodeAuth, "is no relay"},
		"another site's DTN":     {plain, func(*mover.Request) { r.via.Site = "S" }, mover.CodeAuth, "the DTN of site R, not of site S"},
		"a way to another site":  {func(tk *mover.Ticket) { tk.Address = elsewhere }, nil, mover.CodeAuth, "the DTN of site C, not of site B"},
		"stored without digest":  {func(tk *mover.Ticket) { tk.File.Digest = digest.Digest{} }, func(req *mover.Request) { req.Source.Digest = digest.Digest{} }, mover.CodeTicket, "has no digest that site R could find"},
		"more than it may keep":  {plain, func(*mover.Request) { r.relay.relay.Space = f.Size - 1 }, mover.CodeSpace, "site R, which passes it on to site B: 3145728 bytes are needed there"},
	} {
		via, space := r.via, r.relay.relay.Space
		tk := mover.Ticket{ID: rand.Text(), Site: "B", From: "A", Via: "R", Address: r.rig.rig.Address, Expires: time.Now().Add(time.Hour), File: f}
		tk.File.Name = mover.Inbox + "/image"
		c.ticket(&tk)
		token, err := r.sign(tk)
		if err != nil {
			t.Fatal(err)
		}
		req := mover.Request{Source: f, Destination: mover.Destination{Address: r.rig.rig.Address, Ticket: token}}
		if c.change != nil {
			c.change(&req)
		}
		err = r.rig.rig.Engine.Move(t.Context(), req, func(mover.Progress) {})
		if mover.CodeOf(err) != c.code || err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v (code %s), want code %s and %q", name, err, mover.CodeOf(err), c.code, c.text)
		}
		r.via, r.relay.relay.Space = via, space
		r.allow.Store(true)
	}
	if left := r.box(t); len(left) > 0 {
		t.Errorf("the relay keeps %v", left)
	}
}

// greeter shakes hands with whoever calls, and returns its address.
func greeter(t *testing.T, conf *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	})
	return l.Addr().String()
}

// TestRelayMixesNoContents stages another content of the same size under the same name.
func TestRelayMixesNoContents(t *testing.T) {
	r := newRelayRig(t, mover.Private, mover.CutThrough)
	const size = 40 * mover.BlockSize
	r.part(t, r.request(t, r.stage(t, "image", size)), size/2, errEnough)
	if err := r.rig.rig.Drop(mover.Inbox + "/image"); err != nil {
		t.Fatal(err)
	}
	longer := r.stage(t, "longer", size+1)
	name := filepath.Join(r.rig.rig.Source, longer.Name)
	if err := errors.Join(os.Truncate(name, size), os.Rename(name, filepath.Join(r.rig.rig.Source, mover.Outbox, "image"))); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(r.rig.rig.Source, mover.Outbox, "image"))
	if err != nil {
		t.Fatal(err)
	}
	f := mover.File{Name: mover.Outbox + "/image", Size: size, Digest: digest.Digest{Algo: "sha512", Value: fmt.Sprintf("%x", sha512.Sum512(data))}}
	if err := r.rig.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	r.same(t, "image")
}

// TestRelayWhoseCopyCannotBeRead damages it when all is there and the sender is done.
func TestRelayWhoseCopyCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 * mover.BlockSize
		r := newRelayPipeRig(t, mover.StoreForward)
		s := newSluice(0)
		r.opts.Engine.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := r.out.dial(ctx, network, address)
			return sluiced{c, s}, err
		}
		r.startRelay(t, "")
		req := r.request(t, r.stage(t, "image", size))
		ended := make(chan error, 1)
		go func() { ended <- r.rig.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}) }()
		time.Sleep(10 * time.Second)
		for _, name := range r.box(t) {
			if err := os.Truncate(filepath.Join(r.dir, "box", mover.Inbox, name), 1); err != nil {
				t.Fatal(err)
			}
		}
		s.open()
		err := <-ended
		if mover.CodeOf(err) != mover.CodeOther || err == nil || !strings.Contains(err.Error(), "site R, which passes it on to site B: the source could not be read") {
			t.Errorf("got %v (code %s), want code %s of site R", err, mover.CodeOf(err), mover.CodeOther)
		}
		if err := r.rig.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
			t.Error(err)
		}
		r.same(t, "image")
		r.stopR()
		r.stop()
	})
}

// TestAWindowHoldsWhatPassesThrough has nothing come to the relay: what is announced waits.
func TestAWindowHoldsWhatPassesThrough(t *testing.T) {
	r := newRelayRig(t, mover.Private, mover.StoreForward)
	f := r.stage(t, "image", 2*mover.BlockSize)
	pacer := pace.New(mover.Receive, mover.Limits{{Site: "A", Send: mover.Unlimited, Receive: 0}})
	r.relay.opts.Pacer = pacer
	l := newIncoming(t.Context(), r.relay, nil, "a link of before", "A", mover.Private)
	if err := l.open(1, r.announced(t, f)); err != nil {
		t.Fatal(err)
	}
	if _, a := said(t, l); a.Wait == 0 || !strings.Contains(a.Error, "a limit lets nothing go from site A") {
		t.Errorf("it answers %+v", a)
	}
}

// announced is how f is announced to the relay.
func (r *relayRig) announced(t *testing.T, f mover.File) opening {
	t.Helper()
	return opening{Ticket: r.request(t, f).Destination.Ticket, Size: f.Size, Digest: f.Digest, Relay: r.via.Mode}
}

// said is the answer that a sender is told first.
func said(t *testing.T, l *incoming) (header, answer) {
	t.Helper()
	l.say.mu.Lock()
	defer l.say.mu.Unlock()
	text := bytes.NewReader(l.say.text)
	h, err := readHeader(text)
	if err != nil || h.kind != kindAnswer {
		t.Fatalf("it answers %+v, %v", h, err)
	}
	a, err := readAnswer(text, h.length)
	if err != nil {
		t.Fatal(err)
	}
	return h, a
}

// TestAPassageThatIsClosedWaitsForNoOther closes a file whose passage waits for the one
// before to end.
func TestAPassageThatIsClosedWaitsForNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRelayPipeRig(t, mover.StoreForward)
		r.startRelay(t, "")
		const name = "inbox/B~A~image"
		y, before := r.relay.relay, &passage{cancel: func(error) {}, done: make(chan struct{})}
		before.file = mover.File{Name: name, Size: 2 * mover.BlockSize}
		if _, err := y.arrival(before); err != nil {
			t.Fatal(err)
		}
		y.passes[name] = before
		l := newIncoming(t.Context(), r.relay, nil, "a link", "A", mover.Private)
		if err := l.open(1, r.announced(t, r.stage(t, "image", 2*mover.BlockSize))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := l.running.Load(); n != 1 {
			t.Errorf("%d passages run while the one before does, want 1", n)
		}
		if err := l.close(1, true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := l.running.Load(); n != 0 {
			t.Errorf("%d passages wait for the one before, want none", n)
		}
		if err := y.end(before, errOver, false); err != nil || y.box.lookup(name) != nil {
			t.Errorf("what is worthless stays: %v", err)
		}
		close(before.done)
		r.stopR()
		r.stop()
	})
}

// TestASenderSeesTheRelaysHalf has the way on be slower than the way to the relay.
func TestASenderSeesTheRelaysHalf(t *testing.T) {
	for _, mode := range []mover.RelayMode{mover.StoreForward, mover.CutThrough} {
		synctest.Test(t, func(t *testing.T) {
			r := newRelayPipeRig(t, mode)
			r.opts.ahead = 4
			r.opts.Engine.Site, r.opts.Engine.Pacer = "R", pace.New(mover.Send, always("B", 8e6, 0)) // a block a second
			r.startRelay(t, "")
			req := r.request(t, r.stage(t, "image", 20*mover.BlockSize))
			var seen []mover.Progress
			if err := r.rig.rig.Engine.Move(t.Context(), req, func(p mover.Progress) { seen = append(seen, p) }); err != nil {
				t.Fatal(err)
			}
			halfway := false
			for i, p := range seen {
				if p.Way.Through > p.Moved || i > 0 && p.Way.Through < seen[i-1].Way.Through {
					t.Errorf("%s: %d bytes at the destination and %d at the relay, after %+v", mode, p.Way.Through, p.Moved, seen[:i])
				}
				halfway = halfway || p.Way.Through == req.Source.Size/2 && p.Way.Bottleneck.From == "R" && p.Way.Bottleneck.Name() == "limit of 8Mbit/s to site B, set at site R"
			}
			if !halfway {
				t.Errorf("%s: the relay was never said to have brought half: %+v", mode, seen)
			}
			r.same(t, "image")
			r.stopR()
			r.stop()
		})
	}
}

// TestWhatARelayHadPassedOnIsToldFirst resumes a file of which half is at the destination.
func TestWhatARelayHadPassedOnIsToldFirst(t *testing.T) {
	for _, mode := range []mover.RelayMode{mover.StoreForward, mover.CutThrough} {
		synctest.Test(t, func(t *testing.T) {
			r := newRelayPipeRig(t, mode)
			r.opts.Engine.Site, r.opts.Engine.Pacer = "R", pace.New(mover.Send, always("B", 8e6, 0)) // a block a second
			r.startRelay(t, "")
			req := r.request(t, r.stage(t, "image", 20*mover.BlockSize))
			ctx, cancel := context.WithCancel(t.Context())
			there := int64(0)
			err := r.rig.rig.Engine.Move(ctx, req, func(p mover.Progress) {
				if there = p.Way.Through; there >= req.Source.Size/2 {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			first, reported := int64(0), false
			err = r.rig.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
				if !reported {
					first, reported = p.Way.Through, true
				}
			})
			if err != nil || first < there {
				t.Errorf("%s: %d bytes were at the destination, first told are %d: %v", mode, there, first, err)
			}
			r.same(t, "image")
			r.stopR()
			r.stop()
		})
	}
}

// TestARelayNamesNoPlaceThatThereIsNot counts with what it tells only where that can be.
func TestARelayNamesNoPlaceThatThereIsNot(t *testing.T) {
	l := &link{last: 1}
	f := &outgoing{id: 1, size: 10 * mover.BlockSize, relay: true}
	l.changed.L, f.changed.L, l.files = &l.mu, &l.mu, []*outgoing{f}
	const limit = "8Mbit/s to site B, set at site R"
	for _, c := range []struct{ told, want mover.Bottleneck }{
		{mover.Bottleneck{Place: mover.Limited, Limit: limit, Share: 1}, mover.Bottleneck{Place: mover.Limited, Limit: limit, Share: 1}},
		{mover.Bottleneck{Place: mover.Limited, Limit: limit + "\x1b[2J", Share: 1}, mover.Bottleneck{}},
		{mover.Bottleneck{Place: mover.Network, Share: 1}, mover.Bottleneck{Place: mover.Network, Share: 1}},
		{mover.Bottleneck{Place: "the moon", Share: 1}, mover.Bottleneck{}},
		{mover.Bottleneck{Place: mover.Network, Share: 1e300}, mover.Bottleneck{}},
		{mover.Bottleneck{Place: mover.Network, Share: -1}, mover.Bottleneck{}},
	} {
		if err := l.heard(header{kind: kindPassed, file: 1}, answer{passed: passed{Blocks: 3, Bottleneck: c.told}}); err != nil {
			t.Fatal(err)
		}
		if f.onwards != (passed{3, c.want}) {
			t.Errorf("told of %+v it notes %+v", c.told, f.onwards)
		}
	}
	f.relay, f.onwards = false, passed{}
	told := passed{Blocks: 3, Bottleneck: mover.Bottleneck{Place: mover.Network, Share: 1}}
	if err := l.heard(header{kind: kindPassed, file: 1}, answer{passed: told}); err != nil || f.onwards != (passed{}) {
		t.Errorf("from a destination it notes %+v, %v", f.onwards, err)
	}
}

// TestARelayRepeatsNothingTooLong has a destination tell a relay of limits: what that one
// says of them in turn is what a sender reads, whatever they are.
func TestARelayRepeatsNothingTooLong(t *testing.T) {
	onward := &link{engine: &Engine{Site: "R"}, site: "B"}
	p := &passage{onward: onward}
	p.moved.Store(maxBlocks * mover.BlockSize)
	named := func(there times) string {
		onward.sight = sight{here: spent{carrying: time.Second}, there: there}
		onward.look()
		w := p.way()
		said := header{kind: kindPassed}.with(w)[headerSize:]
		var read passed
		if err := readJSON(bytes.NewReader(said), uint32(len(said)), maxTimes, &read); err != nil || read != w {
			t.Errorf("told of %+v it says %s: %v", there, said, err)
		}
		return w.Bottleneck.Name()
	}
	if got := named(times{Limited: time.Second, By: "8Mbit/s from site R"}); got != "limit of 8Mbit/s from site R, set at site B" {
		t.Errorf("what is told of is said to be the %s", got)
	}
	for n := range 1000 {
		named(times{Limited: time.Second, By: strings.Repeat("<", n)})
	}
	for what, there := range map[string]times{
		"too long":     {Limited: time.Second, By: strings.Repeat("x", 1000)},
		"for no eyes":  {Limited: time.Second, By: "8Mbit/s\x1b[2J"},
		"out of reach": {Wait: -time.Second, CPU: -5 * time.Second, Disk: 6 * time.Second},
	} {
		if got := named(there); got != "" {
			t.Errorf("what is %s is said to be the %s", what, got)
		}
	}
}

// TestWhatIsToldAnewWaitsForNoSender has a sender not listen for an hour: what its files'
// passages and arrivals tell time and again is not kept for it.
func TestWhatIsToldAnewWaitsForNoSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Receiver{}
		r.opts.Busy = time.Second
		l := newIncoming(t.Context(), r, nil, "a link", "A", mover.Private)
		l.say.add(make([]byte, maxSpeech+1))
		ctx, cancel := context.WithCancel(t.Context())
		p := &passage{relay: &relay{receiver: r}, seat: seat{l, 1}, ctx: ctx}
		var life sync.WaitGroup
		life.Go(p.showLife)
		l.files[2] = r.newArrival(record{File: mover.File{Size: 1}})
		life.Go(func() { l.showLife(ctx.Done()) })
		time.Sleep(time.Hour)
		l.say.mu.Lock()
		if n := len(l.say.text); n > maxSpeech+1 {
			t.Errorf("%d bytes were added", n-maxSpeech-1)
		}
		l.say.text = nil
		l.say.mu.Unlock()
		time.Sleep(2 * time.Second)
		cancel()
		life.Wait()
		for file := range uint32(2) {
			if busy := (header{kind: kindBusy, file: file + 1}).bytes()[:8]; !bytes.Contains(l.say.text, busy) {
				t.Errorf("once it listens it is not told of file %d: %x", file+1, l.say.text)
			}
		}
	})
}
