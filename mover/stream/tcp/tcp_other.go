//go:build !linux

package tcp

import (
	"errors"
	"net"

	"github.com/glance-dtn/glance-dtn/mover"
)

func PathOf(net.Conn) (mover.Path, bool) { return mover.Path{}, false }

func Pace(net.Conn, float64) bool { return false }

func Control(net.Conn, string) bool { return false }

func CheckControl(string) error { return errors.ErrUnsupported }

func WriteMore(c *net.TCPConn, b []byte) (int, error) { return c.Write(b) }
