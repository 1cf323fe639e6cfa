// Package wan emulates a wide area path between two TUN devices: a link of a given
// rate with a queue before it, a delay, and packets lost at random. It is for
// machines whose kernel has no netem.
//
// What the hosts hand over as one large TCP segment (GSO) crosses as one, but it is
// lost, queued and timed packet by packet, as if it had been cut by the sender's
// network card and put together by the receiver's: see [Path].
package wan

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Path is what a path does to packets, the same in both directions, each of which
// has a link and a queue of its own.
type Path struct {
	// Delay is the time that every packet travels, one way: half of the round trip
	// when the queues are empty.
	Delay time.Duration
	// Rate is that of the link in bits per second, 0: without a limit. A packet costs
	// its Ethernet frame, preamble and gap as well, so 1e9 carries 941 Mbit/s of TCP in
	// packets of 1500 bytes.
	Rate float64
	// Queue is how many bytes may wait for the link; what comes then is dropped. 0: one
	// bandwidth-delay product, Rate for a round trip, or 64 KiB where that is more.
	Queue int
	// Loss is the probability, 0 to 1, that a packet is lost, independent of all others.
	Loss float64
	// Firewall drops the packets by which the first end would open TCP connections to the
	// second.
	Firewall bool
	// MTU of both ends; 0: 1500.
	MTU int
	// Seed makes the losses others: the same seed loses the same packets, counted from
	// the start.
	Seed uint64
}

const (
	frame    = 14 + 4 + 8 + 12 // header, checksum, preamble and gap of an Ethernet frame
	minQueue = 64 << 10
)

// Packet is the MTU in effect.
func (p Path) Packet() int {
	if p.MTU == 0 {
		return 1500
	}
	return p.MTU
}

// Validate says what of the path cannot be.
func (p Path) Validate() error {
	var errs []error
	if p.Delay < 0 {
		errs = append(errs, fmt.Errorf("delay %v: want 0 or more", p.Delay))
	}
	if !(p.Rate >= 0) || math.IsInf(p.Rate, 1) {
		errs = append(errs, fmt.Errorf("rate %v: want bits per second, 0 for no limit", p.Rate))
	}
	if p.Queue < 0 || p.Queue > 0 && p.Queue < p.Packet()+frame {
		errs = append(errs, fmt.Errorf("queue %d: want bytes for one packet at least, or 0", p.Queue))
	}
	if !(p.Loss >= 0 && p.Loss <= 1) {
		errs = append(errs, fmt.Errorf("loss %v: want a probability", p.Loss))
	}
	if p.Packet() < 576 || p.Packet() > 65535 {
		errs = append(errs, fmt.Errorf("MTU %d: want 576 to 65535", p.MTU))
	}
	return errors.Join(errs...)
}

// link is one direction of a path. Times are counted from any one moment.
type link struct {
	delay   time.Duration
	perByte float64       // nanoseconds that a byte takes
	queue   time.Duration // the longest that the link may need for what waits
	free    time.Duration // when the link has sent all that it took
	loss    float64
	random  *rand.Rand
	spare   float64 // packets that pass before one is lost
}

func newLink(p Path, direction uint64) *link {
	l := &link{delay: p.Delay, loss: p.Loss, random: rand.New(rand.NewPCG(p.Seed, direction))}
	if p.Rate > 0 {
		queue := float64(p.Queue)
		if p.Queue == 0 {
			queue = max(p.Rate/8*2*p.Delay.Seconds(), minQueue)
		}
		l.perByte = 8e9 / p.Rate
		l.queue = time.Duration(queue * l.perByte)
	}
	l.draw()
	return l
}

// draw decides how many packets pass until one is lost: geometrically distributed,
// which is the same as asking for every packet, and cheaper.
func (l *link) draw() {
	switch l.loss {
	case 0:
		l.spare = math.Inf(1)
	case 1:
		l.spare = 0
	default:
		l.spare = math.Floor(math.Log(1-l.random.Float64()) / math.Log1p(-l.loss))
	}
}

// fate is what becomes of a packet.
type fate int

const (
	passes fate = iota
	lost
	overflows
)

// send takes a packet of n bytes at the time now, which never goes back, and says
// when it is at the other end, if it comes there.
func (l *link) send(now time.Duration, n int) (due time.Duration, _ fate) {
	if l.spare == 0 {
		l.draw()
		return 0, lost
	}
	l.spare--
	start := max(l.free, now)
	takes := time.Duration(float64(n+frame) * l.perByte)
	if l.perByte > 0 && start+takes-now > l.queue {
		return 0, overflows
	}
	l.free = start + takes
	return l.free + l.delay, passes
}
