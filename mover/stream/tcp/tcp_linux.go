package tcp

import (
	"cmp"
	"errors"
	"math"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/mover"
)

// PathOf returns what the kernel knows of c's path; false when it is not TCP, or closed.
func PathOf(c net.Conn) (p mover.Path, ok bool) {
	var info *unix.TCPInfo
	var err error
	if !onSocket(c, func(fd int) {
		if info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil {
			return
		}
		name, _ := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		p.Congestion = name
	}) || err != nil {
		return mover.Path{}, false
	}
	p.RTT = time.Duration(info.Rtt) * time.Microsecond
	p.MinRTT = time.Duration(info.Min_rtt) * time.Microsecond
	p.Rate = 8 * float64(info.Delivery_rate)
	p.MSS = int64(info.Snd_mss)
	p.Window = int64(info.Snd_cwnd) * int64(info.Snd_mss)
	p.Sent, p.Retransmits = int64(info.Bytes_sent), int64(info.Bytes_retrans)
	p.Busy = time.Duration(info.Busy_time) * time.Microsecond
	p.SendLimited = time.Duration(info.Sndbuf_limited) * time.Microsecond
	p.RecvLimited = time.Duration(info.Rwnd_limited) * time.Microsecond
	return p, true
}

// Pace has the kernel send over c no faster than rate, bits per second, in even steps and
// not in bursts that a limit higher up would let through; 0: as fast as the path allows.
// It reports whether it does.
func Pace(c net.Conn, rate float64) bool {
	bytes := uint64(math.MaxUint64) // SO_MAX_PACING_RATE, socket(7)
	if rate > 0 {
		bytes = max(1, uint64(rate/8))
	}
	var err error
	return onSocket(c, func(fd int) { err = unix.SetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, bytes) }) && err == nil
}

// Control has the kernel control c's congestion by the algorithm of that name, and reports
// whether it does.
func Control(c net.Conn, name string) bool {
	var err error
	return onSocket(c, func(fd int) { err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name) }) && err == nil
}

// CheckControl tells why a new connection may not have the congestion control of that name.
func CheckControl(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	return errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(fd))
}

// WriteMore writes b to c. The kernel sends it with what is written next, so that a header
// is no packet of its own, and its reader wakes up once.
func WriteMore(c *net.TCPConn, b []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for n < len(b) {
			k, err := unix.SendmsgN(int(fd), b[n:], nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR):
			case err != nil:
				failed = os.NewSyscallError("sendmsg", err)
				return true
			default:
				n += k
			}
		}
		return true
	})
	return n, cmp.Or(err, failed)
}

// onSocket calls f with c's descriptor; false when c has none or is closed.
func onSocket(c net.Conn, f func(fd int)) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	return err == nil && raw.Control(func(fd uintptr) { f(int(fd)) }) == nil
}
