package stream

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

// TestFarPathsUseBBR holds that the kernel is asked for it on every connection of a link
// whose receiver is not near.
func TestFarPathsUseBBR(t *testing.T) {
	if err := tcp.CheckControl(bbr); err != nil {
		t.Skipf("this kernel, or its owner, does not let us have it: %v", err)
	}
	was := near
	t.Cleanup(func() { near = was }) // when the rig's lanes have ended
	near = 0
	r := newRig(t)
	r.wires.plain = true
	e := r.rig.Engine.(*Engine)
	dial := e.Dial
	var mu sync.Mutex
	var conns []net.Conn
	e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			tcp.Control(c, "reno") // which every kernel has, and everybody may use
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, c)
		}
		return c, err
	}
	used := map[int]string{}
	err := e.Move(t.Context(), r.request(t, r.stage(t, "image", 40*mover.BlockSize)), func(mover.Progress) {
		mu.Lock()
		defer mu.Unlock()
		for i, c := range conns {
			if p, ok := tcp.PathOf(c); ok && (i == 0 || p.Sent > mover.BlockSize/2) { // else it has not said hello yet
				used[i] = p.Congestion
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(used) < 2 {
		t.Fatalf("connections that were used: %v", used)
	}
	for i, name := range used {
		if name != bbr {
			t.Errorf("connection %d uses %s", i, name)
		}
	}
}

// controlOf is the name of the algorithm that controls c's congestion.
func controlOf(c net.Conn) string {
	p, _ := tcp.PathOf(c)
	return p.Congestion
}

// TestAMoveTellsItsPath moves over TCP, where lanes end on the way: what they have sent
// is not forgotten.
func TestAMoveTellsItsPath(t *testing.T) {
	for _, p := range []mover.Protection{mover.Private, mover.Clear} {
		r := newRigIn(t, p)
		r.wires.plain = true
		e := r.rig.Engine.(*Engine)
		e.laneBlocks = 5
		req := r.request(t, r.stage(t, "image", 20*mover.BlockSize))
		req.PCP = mover.PCP{Parallelism: 2}
		var last mover.Progress
		if err := e.Move(t.Context(), req, func(p mover.Progress) { last = p }); err != nil {
			t.Fatal(err)
		}
		path := last.Way.Path
		if path.Sent < 20*mover.BlockSize || path.Sent > 21*mover.BlockSize || path.Since.IsZero() || path.RTT <= 0 || path.Congestion == "" {
			t.Errorf("%s: %+v", p, path)
		}
		if b := last.Way.Bottleneck; b.Place == "" || b.Share <= 0 || b.Share > 1 {
			t.Errorf("%s: the bottleneck is %+v", p, b)
		}
	}
}

// TestADiskThatTakesNothing has a block that cannot be written: the
// sender is told so, and the lane goes on with the next file's.
func TestADiskThatTakesNothing(t *testing.T) {
	a, _ := unfollowed(t, 3*mover.BlockSize)
	a.File.Digest, a.hash = digest.Digest{}, nil
	disk := a.data
	defer disk.Close()
	var err error
	if a.data, err = os.Open(disk.Name()); err != nil { // for reading alone
		t.Fatal(err)
	}
	ours, theirs := nettest.Pair(t)
	l := a.holder.link
	l.receiver, l.last, l.files[1] = &Receiver{opts: ReceiverOptions{Idle: time.Minute}}, 2, a
	b := &blocks{link: l, conn: theirs, in: &gather{Conn: theirs, taking: true}, proof: &proof{protection: mover.Clear}, frame: new(frame)}
	defer b.close()
	var writing sync.WaitGroup
	writing.Go(func() {
		for file := range uint32(2) {
			_, _ = ours.Write(append(header{kindBlock, file + 1, 0, mover.BlockSize}.bytes(), make([]byte, mover.BlockSize)...))
		}
	})
	defer writing.Wait()
	l.say.text = nil
	for range 2 { // the second is of a file that has ended
		if err := b.take(); err != nil {
			t.Errorf("the lane ends: %v", err)
			theirs.Close()
			return
		}
	}
	said := bytes.NewReader(l.say.text)
	h, err := readHeader(said)
	if err != nil || h.kind != kindAnswer {
		t.Fatalf("the sender is told %+v, %v", h, err)
	}
	if a, err := readAnswer(said, h.length); err != nil || !strings.Contains(a.Error, "write block 0") {
		t.Errorf("the sender is told %+v, %v", a, err)
	}
}

// TestASourceThatCannotBeRead has the kernel find that: it is the file's fault, and the
// lane's others go on.
func TestASourceThatCannotBeRead(t *testing.T) {
	ours, theirs := nettest.Pair(t)
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "image"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(mover.BlockSize); err != nil {
		t.Fatal(err)
	}
	f := &outgoing{id: 1, size: mover.BlockSize, source: &source{File: file}}
	n := &lane{conn: ours, out: &gather{Conn: ours}, proof: &proof{protection: mover.Clear}}
	if err := n.send(f, 0); !errors.Is(err, errSource) {
		t.Errorf("got %v, want that %v", err, errSource)
	}
	file.Close()
	if f.source.File, err = os.Open(file.Name()); err != nil {
		t.Fatal(err)
	}
	defer f.source.Close()
	theirs.Close()
	for err == nil { // the peer's kernel answers some time after the first
		err = n.sendDirect(ours, f, header{kind: kindBlock, file: 1, length: mover.BlockSize})
	}
	if errors.Is(err, errSource) {
		t.Errorf("a dead connection: %v", err)
	}
}

// TestBlocksThatNobodySawOutliveTheProcess moves a file in clear that has no hash, so that
// nobody looks at its bytes: what came before a restart need not come again, until the kernel
// itself starts anew.
func TestBlocksThatNobodySawOutliveTheProcess(t *testing.T) {
	for name, rebooted := range map[string]bool{"restarted": false, "rebooted": true} {
		t.Run(name, func(t *testing.T) {
			if boot() == nil {
				t.Skip("this kernel has no boot_id")
			}
			r := newRigIn(t, mover.Clear)
			r.wires.plain = true
			f := r.stage(t, "image", 40*mover.BlockSize)
			f.Digest = digest.Digest{}
			req := r.request(t, f)
			req.PCP = mover.PCP{Pipelining: 1, Parallelism: 1}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := r.rig.Engine.Move(ctx, req, func(p mover.Progress) {
				if p.Moved >= 20*mover.BlockSize {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			r.stop()
			if rebooted { // and the page cache was lost
				id := *boot()
				id[0]++
				defer func(was func() *digest.Block) { boot = was }(boot)
				boot = func() *digest.Block { return &id }
				part := filepath.Join(r.rig.Destination, mover.Inbox, ".image.part")
				if err := errors.Join(os.Truncate(part, 0), os.Truncate(part, f.Size)); err != nil {
					t.Fatal(err)
				}
			}
			r.start(t, r.rig.Address)
			var sent int64
			if err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) { sent = p.Way.Wire }); err != nil {
				t.Fatal(err)
			}
			r.came(t, f)
			if most := int64(21 * mover.BlockSize); !rebooted && sent > most {
				t.Errorf("%d bytes were sent again, want %d at most", sent, most)
			}
			r.stop()
		})
	}
}

// TestTheKernelSmoothsWhatALimitLetsThrough asks the lanes' sockets at which rate they
// send: none before there is a limit, and none after.
func TestTheKernelSmoothsWhatALimitLetsThrough(t *testing.T) {
	r := newRigIn(t, mover.Clear)
	r.wires.plain = true
	e := r.rig.Engine.(*Engine)
	e.Pacer = pace.New(mover.Send, nil)
	f := r.stage(t, "image", 40*mover.BlockSize)
	l := e.join(linkKey{address: r.rig.Address, protection: mover.Clear})
	defer e.leave(l)
	rates := func(limit mover.Rate) (all []uint64) {
		<-l.ready
		e.Pacer.Set(mover.Limits{{Site: "B", Send: limit, Receive: mover.Unlimited}})
		l.obey()
		l.mu.Lock()
		defer l.mu.Unlock()
		for n := range l.lanes {
			raw, err := n.out.Conn.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Error(err)
				continue
			}
			_ = raw.Control(func(fd uintptr) { // fails where the lane has ended
				rate, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE)
				if err != nil {
					t.Error(err)
				}
				all = append(all, rate)
			})
		}
		return all
	}
	var slow, free []uint64
	var once sync.Once
	req := r.request(t, f)
	req.PCP.Parallelism = 2
	err := e.Move(t.Context(), req, func(p mover.Progress) {
		if p.Moved > 0 {
			once.Do(func() { slow, free = rates(8e8), rates(mover.Unlimited) })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(slow) == 0 || len(free) == 0 {
		t.Fatal("there were no lanes")
	}
	for _, rate := range slow {
		if rate != 125e6 {
			t.Errorf("at 800 Mbit/s a lane sends %d bytes per second, want 125 million", rate)
		}
	}
	for _, rate := range free {
		if rate != math.MaxUint64 {
			t.Errorf("without a limit a lane sends %d bytes per second", rate)
		}
	}
}

// TestAFileSystemThatMovesNoBytesByItself has the kernel refuse sendfile for the source: it
// is read and written instead.
func TestAFileSystemThatMovesNoBytesByItself(t *testing.T) {
	var reads atomic.Int32
	sendfile = func(int, int, *int64, int) (int, error) { reads.Add(1); return -1, unix.EINVAL }
	defer func() { sendfile = unix.Sendfile }()
	r := prepare(t)
	r.wires.plain = true
	r.opts.Protection, r.rig.Engine.(*Engine).Protection = mover.Clear, mover.Clear
	r.start(t, "127.0.0.1:0")
	defer r.stop() // before the kernel is asked again
	f := r.stage(t, "image", 3*mover.BlockSize+4711)
	want := f.Digest
	f.Digest = digest.Digest{} // else the receiver wants to see the bytes
	if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	f.Digest = want
	r.came(t, f)
	if reads.Load() == 0 {
		t.Error("sendfile was not tried")
	}
}

// TestTheCongestionControlIsTheOperators holds that one that is named is used, near or far,
// and that what the kernel does not have is refused beforehand.
func TestTheCongestionControlIsTheOperators(t *testing.T) {
	ours, _ := nettest.Pair(t)
	own := controlOf(ours)
	unpaced := own
	if fastInLoss(ours) {
		unpaced = cubic
	}
	for _, c := range []struct {
		name string
		rtt  time.Duration
		want string
	}{{"reno", near / 2, "reno"}, {"reno", 2 * near, "reno"}, {HostCongestion, 2 * near, own}, {"", near / 2, unpaced}, {AutoCongestion, near / 2, unpaced}} {
		conn, _ := nettest.Pair(t)
		l := &link{engine: &Engine{Congestion: c.name}, rtt: c.rtt}
		l.steer(conn)
		if got := controlOf(conn); got != c.want {
			t.Errorf("%q at %v: %s, want %s", c.name, c.rtt, got, c.want)
		}
		if got, want := fastInLoss(conn), strings.HasPrefix(c.want, bbr); got != want {
			t.Errorf("%s: fast in loss is %v", c.want, got)
		}
	}
	for _, name := range []string{AutoCongestion, HostCongestion, "reno"} {
		if err := CheckCongestion(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckCongestion("nonesuch"); err == nil || !strings.Contains(err.Error(), "modprobe tcp_nonesuch") {
		t.Errorf("nonesuch: %v", err)
	}
}

// TestRoomIsGivenBackOfAnOpenFile has the file closed as soon as a block of it is let go: its
// descriptor may be another file's then.
func TestRoomIsGivenBackOfAnOpenFile(t *testing.T) {
	a := newArrival(nil, nil, new(news), record{File: mover.File{Name: "inbox/image", Size: 2 * mover.BlockSize}})
	a.let = newBitmap(2)
	a.data = must(os.Create(filepath.Join(t.TempDir(), "image")))
	if _, err := a.data.Write(make([]byte, a.File.Size)); err != nil {
		t.Fatal(err)
	}
	var closing sync.WaitGroup
	closing.Go(func() {
		for closed := false; !closed; {
			a.mu.Lock()
			if closed = a.let.has(0); closed {
				_ = a.data.Close()
			}
			a.mu.Unlock()
		}
	})
	a.letGo(0)
	closing.Wait()
	f := must(os.Open(a.data.Name()))
	defer f.Close()
	if !disk.Sparse(f, a.File.Size) {
		t.Error("the block takes room still")
	}
}
