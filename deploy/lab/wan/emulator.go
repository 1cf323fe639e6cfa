package wan

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// TUN is a network interface whose other side is this process.
type TUN struct{ fd int }

// OpenTUN makes a TUN device of that name in the network namespace of the calling
// thread. It goes away when it is closed.
func OpenTUN(name string) (*TUN, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := setUp(fd, name); err != nil {
		return nil, errors.Join(fmt.Errorf("make TUN device %s: %w", name, err), unix.Close(fd))
	}
	return &TUN{fd}, nil
}

// Close removes the device.
func (t *TUN) Close() error { return unix.Close(t.fd) }

func setUp(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO_ECN)
}

// Counts are the packets of one direction, as on the wire.
type Counts struct {
	Sent       int64 // handed to the path
	Lost       int64 // at random
	Overflowed int64 // dropped before a full queue
	Refused    int64 // dropped by the firewall
	Late       int64 // delivered more than 1 ms after its time: the emulator had no processor to itself
}

// Emulator is a path between two TUN devices.
type Emulator struct {
	ends       [2]*TUN
	directions [2]*direction
}

// New returns the path between two devices of [OpenTUN], whose MTU the caller sets
// to p.Packet.
func New(p Path, a, b *TUN) (*Emulator, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	return &Emulator{
		ends:       [2]*TUN{a, b},
		directions: [2]*direction{{link: newLink(p, 0), shut: p.Firewall}, {link: newLink(p, 1)}},
	}, nil
}

// Counts tells of the direction from the first end to the second, and of the other.
// It may be called at any time.
func (e *Emulator) Counts() (there, back Counts) {
	return e.directions[0].counts(), e.directions[1].counts()
}

// batch is how many packets are read at one end before the other has its turn.
const batch = 64

// Run carries packets until ctx is done, which is no error, or a device fails. A
// device that is down loses what arrives there. It is called once.
//
// It has a thread of its own, which sleeps until a packet comes or is due, and goes before
// all others where it may: a path is no slower because the hosts at its ends are busy.
func (e *Emulator) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err == nil && unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0) == nil {
		defer func() { _ = unix.SchedSetAttr(0, before, 0) }()
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-stopped
		}
		_ = unix.Close(wake)
	}()
	fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}
	for _, end := range e.ends {
		fds = append(fds, unix.PollFd{Fd: int32(end.fd), Events: unix.POLLIN})
	}
	b := buffers{}
	scratch := make([]byte, mostInPacket)
	start := time.Now()
	for ctx.Err() == nil {
		took := 0
		for i, d := range e.directions {
			if err := d.deliver(int(fds[2-i].Fd), time.Since(start), &b); err != nil {
				return err
			}
			n, err := d.take(int(fds[1+i].Fd), start, scratch, &b)
			if err != nil {
				return err
			}
			took += n
		}
		if took > 0 {
			continue
		}
		if err := sleep(fds, e.next(), start); err != nil {
			return err
		}
	}
	return nil
}

// next is when the next packet is due at either end, or negative.
func (e *Emulator) next() time.Duration {
	next := time.Duration(-1)
	for _, d := range e.directions {
		if w, ok := d.waiting.first(); ok && (next < 0 || w.due < next) {
			next = w.due
		}
	}
	return next
}

// sleep waits for a packet, for the time due unless that is negative, or for an end.
func sleep(fds []unix.PollFd, due time.Duration, start time.Time) error {
	var timeout *unix.Timespec
	if due >= 0 {
		timeout = new(unix.NsecToTimespec(int64(max(0, due-time.Since(start)))))
	}
	for i := range fds {
		fds[i].Revents = 0
	}
	if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("ppoll: %w", err)
	}
	return nil
}

// direction is one way of a path. Only the thread of Run touches it, but for the
// counts.
type direction struct {
	link    *link
	shut    bool // to packets that open connections
	waiting fifo

	sent, lost, overflowed, refused, late atomic.Int64
}

func (d *direction) counts() Counts {
	return Counts{Sent: d.sent.Load(), Lost: d.lost.Load(), Overflowed: d.overflowed.Load(), Refused: d.refused.Load(), Late: d.late.Load()}
}

// take reads packets until there is none, a batch at most.
func (d *direction) take(from int, start time.Time, scratch []byte, b *buffers) (n int, err error) {
	for n = range batch {
		size, err := unix.Read(from, scratch)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return n, fmt.Errorf("read from TUN device: %w", err)
		}
		p, err := parse(scratch[:size])
		if err != nil {
			return n, err
		}
		if d.shut && p.opens() {
			d.refused.Add(1)
			continue
		}
		d.send(time.Since(start), p, b)
	}
	return batch, nil
}

// together is the longest that segments of one packet are kept to be delivered as
// one: none of them is later by more than that for it.
const together = 250 * time.Microsecond

// send has each segment of a packet meet its fate on the link. Those next to each
// other that pass stay one packet, delivered when its last segment has arrived.
func (d *direction) send(now time.Duration, p packet, b *buffers) {
	d.sent.Add(int64(p.segments))
	first := 0 // of the segments that stay together
	var begun, due time.Duration
	flush := func(end int) {
		if end > first {
			d.waiting.push(arrival{due, p.cut(b.get(len(p.bytes)), first, end), end - first})
		}
	}
	for i := range p.segments {
		at, fate := d.link.send(now, p.length(i))
		switch {
		case fate == passes && i > first && at-begun > together:
			flush(i)
			first = i
		case fate == lost:
			d.lost.Add(1)
		case fate == overflows:
			d.overflowed.Add(1)
		}
		if fate != passes {
			flush(i)
			first = i + 1
			continue
		}
		if i == first {
			begun = at
		}
		due = at
	}
	flush(p.segments)
}

// tardy is how much after its time a packet may be delivered: several times what it waits
// for others to be carried, and little beside a wide area's round trip.
const tardy = time.Millisecond

// deliver writes what is due.
func (d *direction) deliver(to int, now time.Duration, b *buffers) error {
	for {
		w, ok := d.waiting.first()
		if !ok || w.due > now {
			return nil
		}
		_, err := unix.Write(to, w.bytes)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && !errors.Is(err, unix.EIO) { // EIO: the device is down
			return fmt.Errorf("write to TUN device: %w", err)
		}
		if now-w.due > tardy {
			d.late.Add(int64(w.segments))
		}
		d.waiting.pop()
		b.put(w.bytes)
	}
}

// arrival is a packet on its way.
type arrival struct {
	due      time.Duration
	bytes    []byte
	segments int
}

// fifo keeps packets in the order in which they were sent, which is that of their
// times. They lie in all from head on.
type fifo struct {
	all  []arrival
	head int
}

func (f *fifo) push(a arrival) {
	if f.head > len(f.all)/2 { // half of it is free: no packet is moved twice for one
		n := copy(f.all, f.all[f.head:])
		clear(f.all[n:])
		f.all, f.head = f.all[:n], 0
	}
	f.all = append(f.all, a)
}

func (f *fifo) first() (arrival, bool) {
	if f.head == len(f.all) {
		return arrival{}, false
	}
	return f.all[f.head], true
}

func (f *fifo) pop() { f.head++ }

// buffers are byte slices for another use, by the power of two that their capacity is.
type buffers [18][][]byte

func (b *buffers) get(size int) []byte {
	class := bits.Len(uint(size - 1))
	free := b[class]
	if len(free) == 0 {
		return make([]byte, 0, 1<<class)
	}
	last := free[len(free)-1]
	b[class] = free[:len(free)-1]
	return last
}

func (b *buffers) put(buf []byte) {
	class := bits.Len(uint(cap(buf) - 1))
	b[class] = append(b[class], buf[:0])
}
