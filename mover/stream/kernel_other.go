//go:build !linux

package stream

import (
	"errors"
	"io"
	"net"
	"os"
)

// What this file has is as good as what the Linux kernel does for us, and slower.

func sendFile(c *net.TCPConn, f *os.File, off, n int64) (sent int64, err error) {
	return io.Copy(c, io.NewSectionReader(f, off, n))
}

type tube struct{}

func newTube() (*tube, error) { return nil, errors.ErrUnsupported }
func (*tube) Close() error    { return nil }

func (*tube) take(*os.File, *net.TCPConn, int64, int64) (failed, err error) {
	return nil, errors.ErrUnsupported
}

func congestion(net.Conn, string) bool { return false }

func (*source) hole(off, n int64) bool { return false }

func sparse(*os.File, int64) bool { return false }

func punch(*os.File, int64, int64) error { return errors.ErrUnsupported }

func writeBack(*os.File, int64, int64) {}

func waitBack(*os.File, int64, int64) error { return nil }
