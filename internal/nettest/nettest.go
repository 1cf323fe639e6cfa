// Package nettest helps tests that listen and connect.
package nettest

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The ports below those that Linux gives to outgoing connections (ip_local_port_range).
const (
	first = 20000
	last  = 32767
)

// Listen is net.Listen for TCP. Port 0 becomes one that no outgoing connection takes, so
// that a test which has closed it can listen there again.
func Listen(t testing.TB, address string) net.Listener {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	for tries := 100; ; tries-- {
		try := port
		if port == "0" {
			try = strconv.Itoa(first + rand.IntN(last-first+1))
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, try))
		if err == nil {
			return l
		}
		if port != "0" || tries == 0 || !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// Pair returns the two ends of a connection over loopback, which live for a minute.
func Pair(t testing.TB) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	_ = a.SetDeadline(time.Now().Add(time.Minute))
	_ = b.SetDeadline(time.Now().Add(time.Minute))
	return a.(*net.TCPConn), b.(*net.TCPConn)
}
