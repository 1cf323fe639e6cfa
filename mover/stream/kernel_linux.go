package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sendfile is the system call that moves bytes by itself. Tests put a file system in its
// place that has none.
var sendfile = unix.Sendfile

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

// threadTime is how long a processor has worked for this thread.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // every kernel has it
	return time.Duration(t.Nano())
}
