package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The system calls that move bytes by themselves. Tests put a file system in their place
// that has none.
var sendfile, splice = unix.Sendfile, unix.Splice

// refused reports that a file system, or what is stacked on it, does not move bytes by
// itself; whoever asked does it by reading and writing. Nothing was moved.
func refused(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// sendFile sends n bytes of f from off on, without bringing them into this process where
// the file system can do that, and returns how many there were: fewer when the file ends
// before. Its caller is measured.
func sendFile(c *net.TCPConn, f *os.File, off, n int64, m *meter) (sent int64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	was := m.begin(carrying)
	defer m.begin(was)
	err = raw.Write(func(fd uintptr) bool {
		for sent < n {
			var k int
			err := m.disk(reading, func() (err error) {
				k, err = sendfile(int(fd), int(f.Fd()), &off, int(n-sent))
				return err
			})
			sent += int64(max(k, 0))
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR):
			case err != nil:
				failed = os.NewSyscallError("sendfile", err)
				return true
			case k == 0:
				return true
			}
		}
		return true
	})
	if err == nil && refused(failed) {
		var more int64
		more, failed = io.Copy(c, io.NewSectionReader(f, off, n-sent)) // off has moved
		sent += more
	}
	return sent, errors.Join(err, failed)
}

// tube moves bytes from a connection into a file without bringing them into this
// process: through a pipe, as splice(2) wants it.
type tube struct {
	r, w  *os.File
	meter *meter // of its user
	buf   []byte // for files that cannot be spliced to; made when it is first needed
}

func newTube(m *meter) (*tube, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20) // smaller does, too
	return &tube{r: r, w: w, meter: m}, nil
}

func (t *tube) Close() error { return errors.Join(t.r.Close(), t.w.Close()) }

// take moves n bytes to where f has off. What f does not take, for the reason failed,
// is thrown away: err alone is the connection's.
func (t *tube) take(f *os.File, c *net.TCPConn, off, n int64) (failed, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	for n > 0 {
		m, err := t.fill(raw, n)
		if err != nil {
			return nil, err
		}
		n -= m
		for m > 0 {
			var k int64
			err := t.meter.disk(writing, func() (err error) {
				k, err = splice(int(t.r.Fd()), nil, int(f.Fd()), &off, int(m), unix.SPLICE_F_MOVE)
				if refused(err) {
					k, err = t.write(f, off, m)
					off += k
					return err
				}
				return os.NewSyscallError("splice", err)
			})
			if err != nil && !errors.Is(err, unix.EINTR) {
				_, lost := io.CopyN(io.Discard, t.r, m-max(k, 0))
				_, gone := io.CopyN(io.Discard, c, n)
				return err, errors.Join(lost, gone)
			}
			m -= max(k, 0)
		}
	}
	return nil, nil
}

// write takes up to n bytes of those that are in the pipe, a piece at most, to where f has
// off, by way of this process. It returns how many it has taken, written or not.
func (t *tube) write(f *os.File, off, n int64) (int64, error) {
	if t.buf == nil {
		t.buf = make([]byte, pieceSize)
	}
	k, err := t.r.Read(t.buf[:min(n, pieceSize)])
	if err == nil {
		_, err = writeAt(f, t.buf[:k], off)
	}
	return int64(k), err
}

// fill takes up to n bytes from a connection, at least one.
func (t *tube) fill(c syscall.RawConn, n int64) (m int64, err error) {
	var failed error
	was := t.meter.begin(carrying)
	defer t.meter.begin(was)
	err = c.Read(func(fd uintptr) bool {
		for {
			m, failed = splice(int(fd), nil, int(t.w.Fd()), nil, int(min(n, 1<<20)), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			if !errors.Is(failed, unix.EINTR) {
				return !errors.Is(failed, unix.EAGAIN)
			}
		}
	})
	if err = errors.Join(err, os.NewSyscallError("splice", failed)); err == nil && m == 0 {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// threadTime is how long a processor has worked for this thread.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // every kernel has it
	return time.Duration(t.Nano())
}
