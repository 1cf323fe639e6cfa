package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendFile sends n bytes of f from off on without bringing them into this process, and
// returns how many there were: fewer when the file ends before.
func sendFile(c *net.TCPConn, f *os.File, off, n int64) (sent int64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for sent < n {
			m, err := unix.Sendfile(int(fd), int(f.Fd()), &off, int(n-sent))
			sent += int64(max(m, 0))
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR):
			case err != nil:
				failed = os.NewSyscallError("sendfile", err)
				return true
			case m == 0:
				return true
			}
		}
		return true
	})
	return sent, errors.Join(err, failed)
}

// tube moves bytes from a connection into a file without bringing them into this
// process: through a pipe, as splice(2) wants it.
type tube struct{ r, w *os.File }

func newTube() (*tube, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20) // smaller does, too
	return &tube{r, w}, nil
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
			k, err := unix.Splice(int(t.r.Fd()), nil, int(f.Fd()), &off, int(m), unix.SPLICE_F_MOVE)
			if err != nil && !errors.Is(err, unix.EINTR) {
				_, lost := io.CopyN(io.Discard, t.r, m)
				_, gone := io.CopyN(io.Discard, c, n)
				return os.NewSyscallError("splice", err), errors.Join(lost, gone)
			}
			m -= max(k, 0)
		}
	}
	return nil, nil
}

// fill takes up to n bytes from a connection, at least one.
func (t *tube) fill(c syscall.RawConn, n int64) (m int64, err error) {
	var failed error
	err = c.Read(func(fd uintptr) bool {
		for {
			m, failed = unix.Splice(int(fd), nil, int(t.w.Fd()), nil, int(min(n, 1<<20)), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
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

// congestion has the kernel control c's congestion by the algorithm of that name, and
// reports whether it does.
func congestion(c net.Conn, name string) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
	return failed == nil && err == nil
}

// hole reports whether a part of the file was never written. A file system that cannot
// tell has none.
func (s *source) hole(off, n int64) bool {
	if !s.sparse {
		return false
	}
	data, err := unix.Seek(int(s.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // no data up to the file's end, wherever that is by now
		data, err = unix.Seek(int(s.Fd()), 0, unix.SEEK_END)
	}
	return err == nil && data >= off+n
}

// sparse reports whether a file takes less room than its size.
func sparse(f *os.File, size int64) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Blocks*512 < size
}

// punch makes a part of f zeros that take no room.
func punch(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// writeBack has the kernel start to write a part of f to disk, so that the fsync
// at the end is short. It is a hint: what it cannot do, fsync does.
func writeBack(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// waitBack is writeBack to its end. It does not make the part durable, but the disk's
// error that it returns is one that fsync will not tell of again.
func waitBack(f *os.File, off, n int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := unix.SyncFileRange(int(f.Fd()), off, n, all)
	if errors.Is(err, unix.ENOSYS) {
		return nil // fsync does it all
	}
	return os.NewSyscallError("sync_file_range", err)
}
