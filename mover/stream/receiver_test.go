package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/bases"
)

// sender speaks the protocol by hand: with a control connection, and a lane.
type sender struct {
	t       *testing.T
	r       *rig
	link    string
	control *tls.Conn
	lane    *tls.Conn
	source  *os.File
	file    mover.File
}

func (r *rig) connect(t *testing.T, cert tls.Certificate) *tls.Conn {
	t.Helper()
	nc, err := r.wires.dial(t.Context(), "tcp", r.rig.Address)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(nc, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: r.ca.Pool(), ServerName: "127.0.0.1"})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { c.Close() })
	return c
}

// greet connects as site A's DTN, and opens a link or adds a lane to it.
func (r *rig) greet(t *testing.T, link string, lane bool) (*tls.Conn, answer) {
	t.Helper()
	c := r.connect(t, r.issue(t, "A", pki.DTN))
	write(t, c, hello{Version: version, Link: link, Lane: lane, Protection: mover.Private}.bytes())
	_, a := hear(t, c)
	return c, a
}

// open opens a link of that name with one lane, and the file on it.
func (r *rig) open(t *testing.T, req mover.Request, link string) (*sender, answer) {
	t.Helper()
	src, err := os.Open(filepath.Join(r.rig.Source, req.Source.Name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	s := &sender{t: t, r: r, link: link, source: src, file: req.Source}
	s.control, _ = r.greet(t, link, false)
	s.lane, _ = r.greet(t, link, true)
	return s, s.open(1, req)
}

// open opens a file, for which no room is taken before it is written, and returns the answer.
func (s *sender) open(id uint32, req mover.Request) answer {
	s.t.Helper()
	write(s.t, s.control, opening{Ticket: req.Destination.Ticket, Size: req.Source.Size, Digest: req.Source.Digest, Sparse: true}.bytes(id))
	return s.answer()
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// hear returns what the receiver says next, but for signs of life.
func hear(t *testing.T, c net.Conn) (header, answer) {
	t.Helper()
	for {
		h, err := readHeader(c)
		if err != nil {
			t.Fatal(err)
		}
		if h.kind == kindTimes {
			if err := readJSON(c, h.length, maxTimes, new(times)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if h.kind == kindBusy {
			continue
		}
		var a answer
		if h.kind == kindAnswer {
			if a, err = readAnswer(c, h.length); err != nil {
				t.Fatal(err)
			}
		}
		return h, a
	}
}

// answer returns the receiver's next answer, past what it says of blocks.
func (s *sender) answer() answer {
	s.t.Helper()
	for {
		if h, a := hear(s.t, s.control); h.kind == kindAnswer {
			return a
		}
	}
}

// block is a block as it goes over a lane.
func (s *sender) block(i uint32) []byte {
	s.t.Helper()
	n := blockLen(s.file.Size, i)
	b := make([]byte, headerSize+n)
	header{kindBlock, 1, i, n}.put(b)
	if err := readBlock(s.source, b[headerSize:], blockStart(i)); err != nil {
		s.t.Fatal(err)
	}
	sum := digest.OfBlock(b[headerSize:])
	return append(b, sum[:]...)
}

// send sends a block and returns what the receiver says to it.
func (s *sender) send(b []byte) header {
	s.t.Helper()
	write(s.t, s.lane, b)
	h, a := hear(s.t, s.control)
	if h.kind == kindAnswer {
		s.t.Fatalf("the file ends: %+v", a)
	}
	return h
}

// last sends the last block and returns the answer.
func (s *sender) last(i uint32) answer {
	s.t.Helper()
	write(s.t, s.lane, s.block(i))
	return s.answer()
}

// close closes the link.
func (s *sender) close() {
	s.control.Close()
	s.lane.Close()
}

func TestDamagedBlockAloneIsAskedForAgain(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 2*mover.BlockSize))
	s, _ := r.open(t, req, "s")
	bad := s.block(0)
	bad[headerSize+5] ^= 1
	for range 2 {
		if h := s.send(bad); h != (header{kind: kindAgain, file: 1}) {
			t.Errorf("damaged: got %+v", h)
		}
	}
	if a, err := r.recv().Arrival("inbox/image"); err != nil || a.Proven != 0 || a.Moved != 0 {
		t.Errorf("what was damaged counts: %+v, %v", a, err)
	}
	if b, err := os.ReadFile(filepath.Join(r.rig.Destination, "inbox/.image.part")); err != nil || !bytes.Equal(b, make([]byte, req.Source.Size)) {
		t.Errorf("what was damaged was written: %v", err)
	}
	if h := s.send(s.block(0)); h != (header{kind: kindProven, file: 1}) {
		t.Errorf("whole: got %+v", h)
	}
	if h := s.send(bad); h.kind != kindProven { // it is there, and not written again
		t.Errorf("damaged, after it was whole: got %+v", h)
	}
	if a := s.last(1); !a.Done {
		t.Errorf("the end: %+v", a)
	}
}

func TestArrivalTellsHowFarItIs(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 3*mover.BlockSize+5))
	s, _ := r.open(t, req, "s")
	for _, c := range []struct {
		block         uint32
		proven, moved int64
	}{{0, mover.BlockSize, mover.BlockSize}, {3, mover.BlockSize, mover.BlockSize + 5}, {2, mover.BlockSize, 2*mover.BlockSize + 5}, {1, 0, 0}} {
		s.send(s.block(c.block))
		a, err := r.recv().Arrival("inbox/image")
		if c.block == 1 { // the last to come
			s.answer()
			break
		}
		if err != nil || a.State != mover.Arriving || a.Proven != c.proven || a.Moved != c.moved || a.Path != "inbox/.image.part" {
			t.Errorf("after block %d: %+v, %v; want %d proven, %d moved", c.block, a, err, c.proven, c.moved)
		}
		if p := r.recv().Promised(); p != req.Source.Size-c.moved {
			t.Errorf("after block %d: %d bytes promised", c.block, p)
		}
	}
	for range 2 {
		all := r.recv().Arrivals()
		if len(all) != 1 || all[0].State != mover.Arrived || all[0].Path != "inbox/image" || all[0].Proven != req.Source.Size {
			t.Errorf("at the end: %+v", all)
		}
		r.restart(t)
	}
	if _, err := r.recv().Arrival("inbox/other"); !errors.Is(err, mover.ErrNoArrival) {
		t.Errorf("an arrival that is not there: %v", err)
	}
}

// TestTheLastLinkHasTheFile opens a file on a second link while a first one brings it.
func TestTheLastLinkHasTheFile(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 2*mover.BlockSize))
	old, _ := r.open(t, req, "old")
	old.send(old.block(0))
	s, a := r.open(t, req, "new")
	if !a.Have.has(0) || a.Have.has(1) {
		t.Errorf("the new link is told %x", a.Have)
	}
	if a := old.answer(); a.Code != mover.CodeOther || !strings.Contains(a.Error, "over") {
		t.Errorf("the old link is told %+v", a)
	}
	write(t, old.lane, old.block(1)) // nobody wants it any more
	if a := old.open(2, req); a.Code != "" || !a.Have.has(0) || a.Have.has(1) {
		t.Errorf("the old link again: %+v", a)
	}
	if a := s.answer(); a.Code != mover.CodeOther {
		t.Errorf("the new link is told %+v", a)
	}
	b := old.block(1)
	header{kindBlock, 2, 1, mover.BlockSize}.put(b)
	write(t, old.lane, b)
	if a := old.answer(); !a.Done {
		t.Errorf("the end: %+v", a)
	}
}

// TestABlockThatADeadLaneBeganHoldsNobody has the sender give up a lane within a block,
// or its link, and the receiver not hear of it: the block comes over another one.
func TestABlockThatADeadLaneBeganHoldsNobody(t *testing.T) {
	for _, link := range []string{"the same", "another"} {
		t.Run(link, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newPipeRig(t)
				r.start(t, "")
				req := r.request(t, r.stage(t, "image", 2*mover.BlockSize))
				s, _ := r.open(t, req, "the same")
				write(t, s.lane, s.block(0)[:mover.BlockSize/2])
				synctest.Wait()
				if link == s.link {
					s.lane, _ = r.greet(t, link, true)
				} else {
					s, _ = r.open(t, req, link)
				}
				begin := time.Now()
				if h := s.send(s.block(0)); h.kind != kindProven {
					t.Errorf("the block: %+v", h)
				}
				if d := time.Since(begin); d > time.Second {
					t.Errorf("it took %v", d)
				}
				s.close()
				r.stop()
			})
		})
	}
}

// TestFilesShareALink sends blocks of two files over one lane, some before the file is
// open and some when it has ended.
func TestFilesShareALink(t *testing.T) {
	r := newRig(t)
	one, two := r.request(t, r.stage(t, "one", mover.BlockSize+1)), r.request(t, r.stage(t, "two", 1))
	s, _ := r.open(t, one, "s")
	first := s.block(0)
	early := append(header{kindBlock, 2, 0, 1}.bytes(), 0)
	if _, err := must(os.Open(filepath.Join(r.rig.Source, two.Source.Name))).Read(early[headerSize:]); err != nil {
		t.Fatal(err)
	}
	sum := digest.OfBlock(early[headerSize:])
	early = append(early, sum[:]...)
	write(t, s.lane, first)
	write(t, s.lane, early)
	if h, _ := hear(t, s.control); h != (header{kind: kindProven, file: 1}) {
		t.Errorf("the first file's block: %+v", h)
	}
	write(t, s.control, opening{Ticket: two.Destination.Ticket, Size: 1, Digest: two.Source.Digest}.bytes(2))
	for done := false; !done; {
		h, a := hear(t, s.control)
		if h.file != 2 || a.Code != "" {
			t.Fatalf("the second file: %+v %+v", h, a)
		}
		done = a.Done
	}
	write(t, s.lane, early) // it has ended
	if a := s.last(1); !a.Done {
		t.Errorf("the first file: %+v", a)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestOnlyDTNsWithACertificateMaySend(t *testing.T) {
	r := newRig(t)
	f := r.stage(t, "image", 1)
	req := r.request(t, f)
	stranger, err := pki.NewCA("other", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, err := stranger.Issue(pki.Identity{Site: "A", Role: pki.DTN}, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cert tls.Certificate
		code mover.Code
	}{
		"an agent":            {r.issue(t, "A", pki.Agent), mover.CodeAuth},
		"of another CA":       {other, mover.CodeAuth},
		"without certificate": {tls.Certificate{}, mover.CodeAuth},
		"of another site":     {r.issue(t, "C", pki.DTN), mover.CodeTicket},
	} {
		e := r.engine(t, r.rig.Source, c.cert)
		if err := e.Move(t.Context(), req, func(mover.Progress) {}); err == nil || mover.CodeOf(err) != c.code {
			t.Errorf("%s: %v (code %s), want code %s", name, err, mover.CodeOf(err), c.code)
		}
	}
	if all := r.recv().Arrivals(); len(all) != 0 {
		t.Errorf("arrivals: %+v", all)
	}
}

func TestSenderRefusesAReceiverThatIsNoDTN(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 1))
	r.opts.TLS = serverTLS(r.ca, r.issue(t, "B", pki.Agent))
	r.restart(t)
	if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); mover.CodeOf(err) != mover.CodeAuth {
		t.Errorf("got %v, want code %s", err, mover.CodeAuth)
	}
}

func TestLimitsOfAListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		r.opts.Conns, r.opts.Strangers = 2, 2
		r.start(t, "")
		dial := func() net.Conn {
			c, err := r.wires.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		closed := func(name string, c net.Conn, want time.Duration) {
			t.Helper()
			begin := time.Now()
			_ = c.SetDeadline(begin.Add(time.Hour))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection stays open", name)
			}
			if d := time.Since(begin); d.Round(time.Second) != want {
				t.Errorf("%s: closed after %v, want %v", name, d, want)
			}
		}
		oldest, first, second := dial(), dial(), dial()
		closed("one too many", oldest, 0)
		closed("no handshake", first, DefaultHandshake)
		closed("no handshake", second, 0)

		silent := r.connect(t, r.issue(t, "A", pki.DTN))
		closed("no hello", silent, DefaultHandshake)
		silent.Close()
		synctest.Wait() // it is counted out
		s, _ := r.open(t, r.request(t, r.stage(t, "image", mover.BlockSize)), "s")
		closed("one too many with a certificate", r.connect(t, r.issue(t, "A", pki.DTN)), 0)
		closed("no block", s.lane, DefaultIdle)
		closed("no word", s.control, 0)
	})
}

// away is a listener whose connections come from addresses that a test has chosen.
type away struct {
	net.Listener
	from chan string
}

type awayConn struct {
	net.Conn
	from net.Addr
}

func (c awayConn) RemoteAddr() net.Addr { return c.from }

func (l away) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return awayConn{c, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(<-l.from))}, nil
}

// TestIdleStrangersKeepNobodyOut holds as many connections open that say nothing as there may
// be, from one place and then from several.
func TestIdleStrangersKeepNobodyOut(t *testing.T) {
	r := newRig(t)
	r.stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.opts.Handshake = time.Hour
	recv, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	r.rig.Address = l.Addr().String()
	from := make(chan string, DefaultConns+10)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- recv.Serve(ctx, away{l, from}) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	dial := func(as string) net.Conn {
		t.Helper()
		from <- as
		c, err := r.wires.dial(t.Context(), "tcp", r.rig.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range DefaultConns {
		dial("192.0.2.66:4444")
	}
	last := dial("192.0.2.66:4444")
	_ = last.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := last.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("one place opens as many connections as it likes")
	}
	for i := range DefaultStrangers/DefaultPerPlace - 1 {
		for range DefaultPerPlace {
			dial(fmt.Sprintf("192.0.2.%d:4444", 67+i))
		}
	}
	move := func(name string) {
		t.Helper()
		req := r.request(t, r.stage(t, name, 16*mover.BlockSize))
		req.PCP.Parallelism = 8
		for range 3 + req.PCP.Parallelism { // one to control the link, lanes, and one that came late before
			from <- "192.0.2.7:5555"
		}
		if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
			t.Errorf("a move from elsewhere: %v", err)
		}
		for len(from) > 0 { // fewer lanes did
			<-from
		}
	}
	move("beside a few places")
	for i := range DefaultStrangers {
		dial(fmt.Sprintf("198.51.100.%d:4444", i))
	}
	move("beside many places")
}

func TestOriginOfAConnection(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
		{"192.0.2.1:1", "[::ffff:192.0.2.1]:1", true},
		{"[2001:db8::1]:1", "[2001:db8::ffff:2]:1", true},
		{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false},
		{"[fe80::1%eth0]:1", "[fe80::2%eth0]:1", true},
	} {
		at := func(s string) netip.Prefix { return origin(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s))) }
		if (at(c.a) == at(c.b)) != c.same {
			t.Errorf("%s is %v, %s is %v", c.a, at(c.a), c.b, at(c.b))
		}
	}
}

// TestASiteKeepsNoOtherOut has a site hold as many connections as it gets.
func TestASiteKeepsNoOtherOut(t *testing.T) {
	r := prepare(t)
	r.opts.Conns, r.opts.PerSite = 3, 2
	r.start(t, "127.0.0.1:0")
	r.greet(t, "a", false)
	r.greet(t, "a", true)
	for _, role := range []string{pki.DTN, pki.Agent} {
		third := r.connect(t, r.issue(t, "A", role))
		_, _ = third.Write(hello{Version: version, Link: "b", Protection: mover.Private}.bytes()) // it is closed already, perhaps
		if h, err := readHeader(third); err == nil {
			t.Errorf("a third connection of one site, its %s's, is answered: %+v", role, h)
		}
	}
	other := r.connect(t, r.issue(t, "C", pki.DTN))
	write(t, other, hello{Version: version, Link: "c", Protection: mover.Private}.bytes())
	if _, a := hear(t, other); a.err() != nil {
		t.Error(a.err())
	}
}

// TestTheOldestStrangerGoes fills the room for strangers, and goes on.
func TestTheOldestStrangerGoes(t *testing.T) {
	g := &strangers{all: 4, each: 2}
	conns := map[string]net.Conn{}
	for _, c := range []struct{ name, out string }{
		{"a1", ""}, {"b1", ""}, {"b2", ""}, {"b3", "b3"}, {"c1", ""},
		{"c2", "a1"}, {"d1", "b1"}, {"e1", "b2"}, {"f1", "c1"}, {"f2", "c2"},
	} {
		place := netip.PrefixFrom(netip.AddrFrom4([4]byte{c.name[0]}), 32)
		conns[c.name], _ = net.Pipe()
		if out := g.enter(conns[c.name], place); out != conns[c.out] {
			t.Errorf("%s enters: it is not %q that goes", c.name, c.out)
		}
	}
	for _, c := range conns {
		g.leave(c)
	}
	if len(g.inside) != 0 {
		t.Errorf("%d are inside when all have left", len(g.inside))
	}
}

func TestGateBoundsAllAndEach(t *testing.T) {
	g := &gate[netip.Prefix]{all: 3, each: 2}
	a, b := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	for i, c := range []struct {
		from netip.Prefix
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, false}} {
		if got := g.enter(c.from); got != c.want {
			t.Errorf("%d: %v enters: %v", i, c.from, got)
		}
	}
	g.leave(a)
	if !g.enter(b) {
		t.Error("a place that was left stays taken")
	}
	for _, p := range []netip.Prefix{a, b, b} {
		g.leave(p)
	}
	if g.inside != 0 || len(g.from) != 0 {
		t.Errorf("%d are inside an empty gate, %v", g.inside, g.from)
	}
}

func TestProtocolErrorsEndTheConnection(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 2*mover.BlockSize))
	for name, h := range map[string]header{
		"an unknown kind":       {kind: 77},
		"a block outside":       {kind: kindBlock, file: 1, index: 2, length: 1},
		"a block of wrong size": {kind: kindBlock, file: 1, index: 0, length: 1000},
		"a block without end":   {kind: kindBlock, file: 1, index: 0, length: 1 << 30},
		"an opening":            {kind: kindOpen, file: 2},
	} {
		s, _ := r.open(t, req, rand.Text())
		write(t, s.lane, append(h.bytes(), make([]byte, 1000)...))
		if _, err := s.lane.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s on a lane: it goes on", name)
		}
	}
	for name, b := range map[string][]byte{
		"an unknown kind":        header{kind: 77}.bytes(),
		"a block":                header{kindBlock, 1, 0, mover.BlockSize}.bytes(),
		"a file opened twice":    opening{}.bytes(1),
		"an opening without end": header{kind: kindOpen, file: 2, length: maxOpen + 1}.bytes(),
		"a ticket without end":   append(header{kind: kindOpen, file: 2, index: 3, length: 2}.bytes(), "{}"...),
		"a ticket like none":     opening{Same: 1 << 14}.bytes(2),
		"less than a ticket":     opening{Same: -1}.bytes(2),
	} {
		s, _ := r.open(t, req, rand.Text())
		write(t, s.control, b)
		if _, err := s.lane.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s on the control connection: the link goes on", name)
		}
	}
	c := r.connect(t, r.issue(t, "A", pki.DTN))
	write(t, c, []byte("\x7f\xff\xff\xff"))
	if _, a := hear(t, c); !strings.Contains(a.Error, "at most") {
		t.Errorf("a hello without end: %+v", a)
	}
	if _, a := r.greet(t, "nobody's", true); !strings.Contains(a.Error, "over") {
		t.Errorf("a lane of no link: %+v", a)
	}
}

func TestNoMoreFilesThanALinkTakes(t *testing.T) {
	r := newRig(t)
	c, _ := r.greet(t, "s", false)
	for id := range uint32(maxFiles + 1) {
		write(t, c, opening{Ticket: "none"}.bytes(id+1))
		if h, a := hear(t, c); h.file != id+1 || a.Code != mover.CodeTicket {
			t.Fatalf("refused files count: %+v %+v", h, a)
		}
	}
}

// TestProtectionHasAFloor opens links in less than the receiver asks for.
func TestProtectionHasAFloor(t *testing.T) {
	r := newRig(t)
	e := r.rig.Engine.(*Engine)
	f := r.stage(t, "image", 3*mover.BlockSize+7)
	for i, floor := range []mover.Protection{mover.Clear, mover.Safe, mover.Private} {
		r.opts.Protection = floor
		r.restart(t)
		for k, p := range []mover.Protection{mover.Clear, mover.Safe, mover.Private} {
			e.Protection = p
			err := e.Move(t.Context(), r.request(t, f), func(mover.Progress) {})
			if k < i && (mover.CodeOf(err) != mover.CodeAuth || !strings.Contains(err.Error(), string(floor))) {
				t.Errorf("%s where %s is asked for: %v", p, floor, err)
			}
			if k >= i && err != nil {
				t.Errorf("%s where %s is asked for: %v", p, floor, err)
			}
			if err := r.recv().Drop("inbox/image"); err != nil {
				t.Fatal(err)
			}
		}
	}
	e.Protection = "strong"
	if err := e.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err == nil || !strings.Contains(err.Error(), "one of clear, safe and private") {
		t.Errorf("got %v", err)
	}
}

// TestPowerCut spoils what a power cut may: written data that was journaled, the
// journal's end, and the size of the part.
func TestPowerCut(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 8*mover.BlockSize+9))
	s, _ := r.open(t, req, "s")
	for _, i := range []uint32{0, 1, 2, 5, 6} {
		s.send(s.block(i))
	}
	r.stop()
	part, journal := filepath.Join(r.rig.Destination, "inbox/.image.part"), filepath.Join(r.state, "arrivals/image.blocks")
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 4096), mover.BlockSize+100)                         // block 1
	if err = errors.Join(err, f.Truncate(5*mover.BlockSize+1), f.Close()); err != nil { // blocks 5 and 6
		t.Fatal(err)
	}
	j, err := os.OpenFile(journal, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = j.Write(bytes.Repeat([]byte{0}, recordSize+7)) // a false digest for block 0, and a torn record
	if err = errors.Join(err, j.Close()); err != nil {
		t.Fatal(err)
	}
	r.start(t, r.rig.Address)
	if a, err := r.recv().Arrival("inbox/image"); err != nil || a.Proven != 0 {
		t.Errorf("before anything is proven again: %+v, %v", a, err)
	}
	moved := int64(0)
	before := r.wires.sent.Load()
	if err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) { moved = p.Moved }); err != nil {
		t.Fatal(err)
	}
	if sent := r.wires.sent.Load() - before; moved != req.Source.Size || sent > 8*mover.BlockSize {
		t.Errorf("%d bytes reported, %d sent; block 2 was whole", moved, sent)
	}
	got, err := os.ReadFile(filepath.Join(r.rig.Destination, "inbox/image"))
	want, _ := os.ReadFile(filepath.Join(r.rig.Source, "outbox/image"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d wrong bytes arrived: %v", len(got), err)
	}
	if _, err := os.Lstat(journal); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is left behind: %v", err)
	}
}

// TestATornRecordShiftsNoOthers has a journal end within a record when its file comes again,
// and, of a disk that is full, while it comes.
func TestATornRecordShiftsNoOthers(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 5*mover.BlockSize))
	s, _ := r.open(t, req, "s")
	s.send(s.block(0))
	s.close()
	a, journal := r.recv().lookup("inbox/image"), filepath.Join(r.state, "arrivals/image.blocks")
	a.mu.Lock()
	for a.followed {
		a.changed.Wait()
	}
	a.mu.Unlock()
	if err := os.Truncate(journal, 2*recordSize-3); err != nil {
		t.Fatal(err)
	}
	s, _ = r.open(t, req, "t")
	s.send(s.block(1))
	a.status() // orders what follows after the opening
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGXFSZ) // which would end this process
	defer signal.Stop(told)
	restore := lowerLimit(t, syscall.RLIMIT_FSIZE, 3*recordSize-3)
	err := a.note(2, new(digest.Block))
	restore()
	if !errors.Is(err, syscall.EFBIG) {
		t.Errorf("on a full disk a block is noted: %v", err)
	}
	s.send(s.block(3))
	r.restart(t)
	a = r.recv().lookup("inbox/image")
	for i, want := range []bool{true, true, false, true, false} {
		sum := digest.OfBlock(s.block(uint32(i))[headerSize:][:mover.BlockSize])
		if got := a.claims.has(uint32(i)) && a.sums[i] == sum; got != want {
			t.Errorf("block %d is claimed: %v, want %v", i, got, want)
		}
	}
	if a.claimed != 3 {
		t.Errorf("%d blocks are claimed, want 3", a.claimed)
	}
}

// TestEveryChangeOfTheInboxIsTold holds that whoever waits for Changed misses nothing.
func TestEveryChangeOfTheInboxIsTold(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 2*mover.BlockSize))
	var s *sender
	for _, c := range []struct {
		what string
		do   func()
		ok   func(all []mover.Arrival) bool
	}{
		{"the beginning", func() { s, _ = r.open(t, req, "s") }, func(all []mover.Arrival) bool { return len(all) == 1 }},
		{"a block", func() { s.send(s.block(0)) }, func(all []mover.Arrival) bool { return all[0].Proven == mover.BlockSize }},
		{"a lost link", func() { s.close() }, func(all []mover.Arrival) bool { return all[0].Error != "" }},
		{"another link", func() { s, _ = r.open(t, req, "t") }, func(all []mover.Arrival) bool { return all[0].Error == "" }},
		{"the end", func() { s.last(1) }, func(all []mover.Arrival) bool { return all[0].State == mover.Arrived }},
		{"the drop", func() {
			if err := r.recv().Drop("inbox/image"); err != nil {
				t.Error(err)
			}
		}, func(all []mover.Arrival) bool { return len(all) == 0 }},
	} {
		changed, enough := r.recv().Changed(), time.After(time.Minute)
		c.do()
		for ok := false; !ok; {
			select {
			case <-changed:
			case <-enough:
				t.Fatalf("%s was not told; the inbox has %+v", c.what, r.recv().Arrivals())
			}
			changed = r.recv().Changed()
			ok = c.ok(r.recv().Arrivals())
		}
	}
}

// TestResumeTakesLittleMemory holds that an arrival costs little more than the
// digests of its blocks, however many a restart finds: 32 MiB for 1 TiB.
func TestResumeTakesLittleMemory(t *testing.T) {
	const blocks = 1 << 15
	export, state := roottest.Open(t, t.TempDir()), roottest.Open(t, t.TempDir())
	rec := record{File: mover.File{Name: "inbox/image", Size: blocks * mover.BlockSize, Digest: digest.Digest{Algo: "sha512"}}}
	var journal []byte
	for i := range uint32(blocks) {
		journal = append(journal, journalRecord(i, digest.Block{byte(i)})...)
	}
	err := errors.Join(export.Mkdir("inbox", 0o700), export.WriteFile("inbox/.image.part", nil, 0o600),
		state.Mkdir(arrivalDir, 0o700), state.WriteFile(blocksName(rec.File.Name), journal, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a := newArrival(export, state, new(news), rec)
	err = a.restore()
	runtime.ReadMemStats(&after)
	if err != nil || a.claimed != blocks || a.sums[7] != (digest.Block{7}) {
		t.Fatalf("%d of %d blocks claimed, %v", a.claimed, blocks, err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 40*blocks {
		t.Errorf("%d bytes were allocated for %d blocks", took, blocks)
	}
}

// TestBlocksAreToldAsFarAsTheyAreProven holds what Receiver.Blocks tells, over
// restarts.
func TestBlocksAreToldAsFarAsTheyAreProven(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 3*mover.BlockSize+5))
	s, _ := r.open(t, req, "s")
	sum := func(i uint32) digest.Block {
		b := s.block(i)
		return digest.OfBlock(b[headerSize : len(b)-proofSize])
	}
	want := func(when string, from int64, blocks ...uint32) {
		t.Helper()
		sums := []digest.Block{}
		for _, i := range blocks {
			sums = append(sums, sum(i))
		}
		if got, err := r.recv().Blocks("inbox/image", from); err != nil || got.Sums == nil || !slices.Equal(got.Sums, sums) {
			t.Errorf("%s, from %d: %v, %v; want %v", when, from, got.Sums, err, sums)
		}
	}
	if _, err := r.recv().Blocks("inbox/other", 0); !errors.Is(err, mover.ErrNoArrival) {
		t.Errorf("of an arrival that is not there: %v", err)
	}
	want("at the start", 0)
	s.send(s.block(0))
	s.send(s.block(2))
	want("with a gap", 0, 0)
	want("with a gap", 2)
	s.send(s.block(1))
	want("without", 0, 0, 1, 2)
	want("without", 2, 2)
	for _, from := range []int64{-1, 3, 1 << 40} {
		want("outside", from)
	}

	r.restart(t)
	want("after a restart, before anything is read again", 0)
	s, a := r.open(t, req, "t")
	if !a.Have.has(2) {
		t.Errorf("the new link is told %x", a.Have)
	}
	if a := s.last(3); !a.Done { // proves what was there
		t.Fatalf("the end: %+v", a)
	}
	want("resumed", 0, 0, 1, 2, 3)
	r.restart(t)
	want("after a restart with the whole file", 0)
}

func TestRestartSweepsPartsThatNobodyKnows(t *testing.T) {
	r := newRig(t)
	inbox := filepath.Join(r.rig.Destination, mover.Inbox)
	for _, name := range []string{".stray.part", ".other", "plain.part"} {
		if err := os.WriteFile(filepath.Join(inbox, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.restart(t)
	left, err := os.ReadDir(inbox)
	if err != nil || len(left) != 2 || left[0].Name() != ".other" || left[1].Name() != "plain.part" {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestStaleFileIsNotTaken holds that a file of the same name and size that the
// receiver does not know of is never mistaken for the arrival.
func TestStaleFileIsNotTaken(t *testing.T) {
	r := newRig(t)
	const size = mover.BlockSize + 1
	req := r.request(t, r.stage(t, "image", size))
	final := filepath.Join(r.rig.Destination, "inbox/image")
	if err := os.WriteFile(final, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	r.open(t, req, "s")
	r.restart(t)
	if a, err := r.recv().Arrival("inbox/image"); err != nil || a.State != mover.Arriving {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestLinkInTheInboxIsNotFollowed(t *testing.T) {
	r := newRig(t)
	req := r.request(t, r.stage(t, "image", 2*mover.BlockSize))
	r.open(t, req, "s")
	r.stop()
	victim := filepath.Join(r.rig.Destination, "victim")
	part := filepath.Join(r.rig.Destination, "inbox/.image.part")
	if err := errors.Join(os.WriteFile(victim, []byte("victim"), 0o600), os.Remove(part), os.Symlink("../victim", part)); err != nil {
		t.Fatal(err)
	}
	r.start(t, r.rig.Address)
	if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); mover.CodeOf(err) != mover.CodeName {
		t.Errorf("got %v, want code %s", err, mover.CodeName)
	}
	if b, _ := os.ReadFile(victim); string(b) != "victim" {
		t.Errorf("the victim holds %d other bytes", len(b))
	}
}

func TestTicketCannotReplaceOtherContent(t *testing.T) {
	r := newRig(t)
	first := r.request(t, r.stage(t, "image", 5))
	if err := r.rig.Engine.Move(t.Context(), first, func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	second := r.request(t, r.stage(t, "image", 6))
	err := r.rig.Engine.Move(t.Context(), second, func(mover.Progress) {})
	if mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "drop it first") {
		t.Errorf("got %v", err)
	}
}

func TestFullDiskHasItsCode(t *testing.T) {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		if code := mover.CodeOf(noSpace(&fs.PathError{Op: "write", Err: e})); code != mover.CodeSpace {
			t.Errorf("%v: code %s", e, code)
		}
	}
	if code := mover.CodeOf(noSpace(syscall.EIO)); code != mover.CodeOther {
		t.Errorf("EIO: code %s", code)
	}
}

// TestSpentTicketIsKeptUntilItExpires needs no connection: admit decides.
func TestSpentTicketIsKeptUntilItExpires(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := mover.File{Name: "inbox/x", Size: mover.BlockSize + 1, Digest: digest.Digest{Algo: "md5", Value: strings.Repeat("0", 32)}}
		end := time.Now().Add(time.Hour)
		opts := ReceiverOptions{Check: func(id, from string) (mover.Ticket, error) {
			if time.Now().After(end) {
				return mover.Ticket{}, errors.New("expired")
			}
			return mover.Ticket{ID: id, Site: "B", From: from, File: f, Expires: end}, nil
		}}
		again := func() *Receiver {
			t.Helper()
			r, err := NewReceiver(roottest.Open(t, dir), roottest.Open(t, dir), opts)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		admit := func(r *Receiver) error {
			_, err := r.admit("A", opening{Ticket: "ticket-1", Size: f.Size, Digest: f.Digest})
			return err
		}
		r := again()
		if err := errors.Join(admit(r), admit(r), r.Drop(f.Name)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		for _, r := range []*Receiver{r, again()} {
			if err := admit(r); mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "used up") {
				t.Errorf("before the end: %v", err)
			}
		}
		time.Sleep(2 * time.Minute)
		if err := admit(r); mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after the end: %v", err)
		}
		end = end.Add(time.Hour)
		if err := admit(r); err != nil { // another ticket by now
			t.Error(err)
		}
		if n := len(again().tickets); n != 1 {
			t.Errorf("%d tickets are remembered, want the last alone", n)
		}
	})
}

func TestServeEndsWithItsListener(t *testing.T) {
	r, err := NewReceiver(roottest.Open(t, t.TempDir()), roottest.Open(t, t.TempDir()), ReceiverOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := r.Serve(context.Background(), l); err == nil {
		t.Error("Serve = nil on a closed listener")
	}
}

// TestTheHashTakesBlocksFromMemory stores blocks as connections do, and hashes them one
// by one: a block that is to be hashed soon is not read back, and a path that is faster
// than the hash waits for it.
func TestTheHashTakesBlocksFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const blocks = 2*ahead + 1
		a, image := unfollowed(t, blocks*mover.BlockSize)
		stored, done := make(chan uint32, blocks), make(chan bool)
		go func() {
			defer close(done)
			block := new(frame)
			for i := range uint32(blocks) {
				copy(block[:], image[blockStart(i):][:mover.BlockSize])
				store(t, a, i, block[:mover.BlockSize])
				stored <- i
				block = a.keep(i, block)
			}
		}()
		for range ahead {
			<-stored
		}
		synctest.Wait()
		select {
		case i := <-stored:
			t.Fatalf("block %d is stored while the hash has none", i)
		default:
		}
		for i := range uint32(blocks) {
			n, claim, block, ok := a.next()
			if n != i || claim || !ok || block == nil {
				t.Fatalf("block %d: next is %d (claim %v, in memory %v, %v)", i, n, claim, block != nil, ok)
			}
			a.digest(i, block[:mover.BlockSize], nil)
			if i+ahead < blocks {
				<-stored
			}
		}
		<-done
		if len(a.hot) != 0 {
			t.Errorf("%d frames are left in memory", len(a.hot))
		}
		if got := digest.Of(a.File.Digest.Algo, a.hash); got != a.File.Digest {
			t.Errorf("the hash is %v, want %v", got, a.File.Digest)
		}
	})
}

// store writes block i as a lane does.
func store(t *testing.T, a *arrival, i uint32, b []byte) {
	t.Helper()
	if mine, _ := a.reserve(a.holder, i, nil); !mine {
		t.Fatalf("block %d is not to be written", i)
	}
	sum := digest.OfBlock(b)
	if _, err := a.data.WriteAt(b, blockStart(i)); err != nil {
		t.Fatal(err)
	}
	if err := a.note(i, &sum); err != nil {
		t.Fatal(err)
	}
}

// unfollowed is an arrival, on a link, that nothing hashes but the test.
func unfollowed(t *testing.T, size int64) (a *arrival, image []byte) {
	t.Helper()
	r := prepare(t)
	f := r.stage(t, "image", size)
	image, err := os.ReadFile(filepath.Join(r.rig.Source, f.Name))
	if err != nil {
		t.Fatal(err)
	}
	f.Name = "inbox/image"
	state := roottest.Open(t, t.TempDir())
	if err := state.Mkdir(arrivalDir, 0o700); err != nil {
		t.Fatal(err)
	}
	a = newArrival(roottest.Open(t, r.rig.Destination), state, new(news), record{File: f})
	a.spawn, a.complete = func(func()) {}, func(context.Context, *arrival) {}
	at := seat{newIncoming(t.Context(), &Receiver{bases: new(bases.Box)}, nil, "s", "A", mover.Private), 1}
	if _, err := a.enter(at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.leave(at, errLeft)
		a.finishing = false // nobody did
		a.next()            // closes
	})
	return a, image
}

// TestAHashThatEndsHoldsNobody has a link end while a lane waits for the hash.
func TestAHashThatEndsHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, image := unfollowed(t, 2*ahead*mover.BlockSize)
		kept := make(chan bool)
		go func() {
			defer close(kept)
			for i := range uint32(ahead) {
				block := new(frame)
				copy(block[:], image[blockStart(i):][:mover.BlockSize])
				store(t, a, i, block[:mover.BlockSize])
				a.keep(i, block)
			}
		}()
		synctest.Wait()
		select {
		case <-kept:
			t.Error("the lane does not wait for the hash")
		default:
		}
		a.leave(a.holder, errLeft)
		synctest.Wait()
		if _, _, _, ok := a.next(); ok {
			t.Error("the hash goes on without a link")
		}
		synctest.Wait()
		select {
		case <-kept:
		default:
			t.Error("the lane waits for a hash that has ended")
			a.gone = true // lets it go
			a.changed.Broadcast()
		}
	})
}

// TestADiskThatIsWaitedForIsProgress has nothing left but to sync.
func TestADiskThatIsWaitedForIsProgress(t *testing.T) {
	a, image := unfollowed(t, (syncBlocks+1)*mover.BlockSize)
	for i := range a.blocks {
		store(t, a, i, image[blockStart(i):][:mover.BlockSize])
	}
	before := a.progress()
	if err := a.sync(); err != nil {
		t.Fatal(err)
	}
	if got, want := a.progress(), before+2; got != want {
		t.Errorf("progress is %d, want %d", got, want)
	}
}

// TestANameThatIsNotDurableIsNotToldOf has a second link come while the file has its
// name, and a power failure may still take it away.
func TestANameThatIsNotDurableIsNotToldOf(t *testing.T) {
	a, _ := unfollowed(t, 0) // finishing from the start
	if err := a.rename(); err != nil {
		t.Fatal(err)
	}
	again := seat{newIncoming(t.Context(), &Receiver{bases: new(bases.Box)}, nil, "s", "A", mover.Private), 2}
	if done, err := a.enter(again); done || err != nil {
		t.Errorf("the file is done: %v, %v", done, err)
	}
	if got := a.finished(nil); got != again {
		t.Errorf("the end is told %+v, want the last link", got)
	}
	if done, err := a.enter(again); !done || err != nil {
		t.Errorf("the file is not done: %v, %v", done, err)
	}
}

// TestOnlyTheArrivalItselfIsDiscarded has one be found wrong when another has its name.
func TestOnlyTheArrivalItselfIsDiscarded(t *testing.T) {
	r := newRig(t)
	f := r.stage(t, "image", 2*mover.BlockSize)
	s, _ := r.open(t, r.request(t, f), "s")
	old := r.recv().lookup("inbox/image")
	if err := r.recv().Drop("inbox/image"); err != nil {
		t.Fatal(err)
	}
	s.answer()
	_, a := r.open(t, r.request(t, f), "t")
	if err := a.err(); err != nil {
		t.Fatal(err)
	}
	r.recv().admin.Lock()
	err := r.recv().discard(old)
	r.recv().admin.Unlock()
	if err != nil {
		t.Error(err)
	}
	if _, err := r.recv().Arrival("inbox/image"); err != nil {
		t.Errorf("the other arrival: %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.rig.Destination, "inbox/.image.part")); err != nil {
		t.Errorf("its part: %v", err)
	}
}

// TestClaimsOutliveABlockWithoutASum has a file of which some blocks' sums are known and
// others' are not.
func TestClaimsOutliveABlockWithoutASum(t *testing.T) {
	a, image := unfollowed(t, 2*mover.BlockSize)
	a.File.Digest, a.hash = digest.Digest{}, nil
	if _, err := a.data.WriteAt(image, 0); err != nil {
		t.Fatal(err)
	}
	a.claim(0, digest.OfBlock(image[:mover.BlockSize]))
	a.reserve(a.holder, 1, nil)
	if err := a.note(1, nil); err != nil {
		t.Fatal(err)
	}
	a.settle(0, image[:mover.BlockSize], nil)
	if !a.proven.has(0) {
		t.Error("the claim was forgotten, and the block is sent again")
	}
	if told := a.digests(0); len(told.Sums) != 0 {
		t.Errorf("%d sums are told, one of them of nothing", len(told.Sums))
	}
}

// TestAHashThatReadsBackHoldsNobody has a lane go on while the hash is far behind.
func TestAHashThatReadsBackHoldsNobody(t *testing.T) {
	const blocks = 4 * ahead
	a, image := unfollowed(t, blocks*mover.BlockSize)
	for i := range uint32(blocks) { // as claims that were proven
		store(t, a, i, image[blockStart(i):][:mover.BlockSize])
	}
	block := new(frame)
	copy(block[:], image[blockStart(blocks-1):])
	if got := a.keep(blocks-1, block); got != block || len(a.hot) != 0 {
		t.Errorf("%d frames are kept, want none", len(a.hot))
	}
}

// TestFilesThatAreBegunTakeNoMoreMemory has many files begun whose first blocks do not
// come: what is kept of the others for their hashes is bounded.
func TestFilesThatAreBegunTakeNoMoreMemory(t *testing.T) {
	a, image := unfollowed(t, 3*mover.BlockSize)
	for range cap(hot) - 1 {
		hot <- struct{}{}
	}
	defer func() {
		for range cap(hot) - 1 {
			<-hot
		}
		if len(hot) != 0 {
			t.Errorf("%d frames are still counted", len(hot))
		}
	}()
	for i := uint32(2); i > 0; i-- {
		store(t, a, i, image[blockStart(i):][:mover.BlockSize])
		a.keep(i, new(frame))
	}
	if len(a.hot) != 1 {
		t.Errorf("%d frames are kept, want 1", len(a.hot))
	}
	a.leave(a.holder, errLeft)
	a.next() // nobody needs them
}

// TestClaimsThatAreReadHoldNobody has a lane bring the first block while what a restart
// found of the rest is still being read.
func TestClaimsThatAreReadHoldNobody(t *testing.T) {
	const blocks = 8 * ahead
	a, image := unfollowed(t, blocks*mover.BlockSize)
	for i := uint32(1); i < blocks-1; i++ {
		b := image[blockStart(i):][:mover.BlockSize]
		if _, err := a.data.WriteAt(b, blockStart(i)); err != nil {
			t.Fatal(err)
		}
		a.claim(i, digest.OfBlock(b))
	}
	block := new(frame)
	copy(block[:mover.BlockSize], image)
	store(t, a, 0, block[:mover.BlockSize])
	for range ahead {
		i, claim, _, _ := a.next()
		if !claim {
			t.Fatalf("block %d is hashed before all claims are read", i)
		}
		a.settle(i, image[blockStart(i):][:mover.BlockSize], nil)
	}
	kept := make(chan bool)
	go func() { defer close(kept); a.keep(0, block) }()
	select {
	case <-kept:
	case <-time.After(time.Minute):
		t.Errorf("the lane is held while %d claims are still to be read", a.claimed)
		a.fault = errGone // lets it go
		a.changed.Broadcast()
		<-kept
	}
}

// TestTheHashIsOfWhatIsOnDisk has a DTN with a ticket send a block that it forged, and
// then the true one, which has the same checksum: XXH3 is no cryptographic hash.
func TestTheHashIsOfWhatIsOnDisk(t *testing.T) {
	r := newRig(t)
	const blocks, i = 2*ahead + 3, 2*ahead + 1
	f := r.stage(t, "image", blocks*mover.BlockSize)
	image, err := os.ReadFile(filepath.Join(r.rig.Source, f.Name))
	if err != nil {
		t.Fatal(err)
	}
	// XXH3 multiplies the halves of (word xor key). Where one half is nil the other does
	// not matter, but is added to the sum: a unit moves from one stripe to the next.
	b := image[i*mover.BlockSize:][:mover.BlockSize]
	binary.LittleEndian.PutUint32(b, 0x396cfeb8)      // low half of lane 0's key in stripe 0
	binary.LittleEndian.PutUint32(b[64:], 0x2c81017c) // and in stripe 1
	forged := bytes.Clone(b)
	binary.LittleEndian.PutUint32(forged[4:], binary.LittleEndian.Uint32(b[4:])+1)
	binary.LittleEndian.PutUint32(forged[68:], binary.LittleEndian.Uint32(b[68:])-1)
	if bytes.Equal(forged, b) || digest.OfBlock(forged) != digest.OfBlock(b) {
		t.Fatal("the two blocks do not collide")
	}
	if err := os.WriteFile(filepath.Join(r.rig.Source, f.Name), image, 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := digest.New(f.Digest.Algo)
	h.Write(image)
	f.Digest = digest.Of(f.Digest.Algo, h)
	s, _ := r.open(t, r.request(t, f), "s")
	bad := s.block(i)
	copy(bad[headerSize:], forged) // the sum is the same
	s.send(bad)                    // too far ahead of the hash to be kept in memory
	for k := range uint32(ahead) {
		s.send(s.block(k))
	}
	for r.recv().lookup("inbox/image").progress() < 1+2*ahead { // proven, and all but one hashed
		time.Sleep(time.Millisecond)
	}
	s.send(s.block(i)) // near enough to be kept now
	for k := uint32(ahead); k < blocks-1; k++ {
		s.send(s.block(k))
	}
	a := s.last(blocks - 1)
	got, err := os.ReadFile(filepath.Join(r.rig.Destination, "inbox/image"))
	if err == nil && !bytes.Equal(got, image) {
		t.Errorf("arrived (%+v) with other bytes than the ticket promises", a)
	}
	if mover.CodeOf(a.err()) != mover.CodeContent {
		t.Errorf("the answer is %+v, want a refusal of the content", a)
	}
}

// TestWhatWasDroppedTakesNoOthersJournal has an arrival dropped as it is completed, when it
// has its name already, and the next one of that name begin.
func TestWhatWasDroppedTakesNoOthersJournal(t *testing.T) {
	old, _ := unfollowed(t, 3*mover.BlockSize)
	if err := old.rename(); err != nil {
		t.Fatal(err)
	}
	old.stop()
	if err := old.removeFiles(); err != nil {
		t.Fatal(err)
	}
	journal := blocksName(old.File.Name)
	if err := old.state.WriteFile(journal, []byte("the next one's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := old.removeJournal(); !errors.Is(err, errGone) {
		t.Errorf("it ends with %v, want %v", err, errGone)
	}
	if _, err := old.state.Stat(journal); err != nil {
		t.Error(err)
	}
}
