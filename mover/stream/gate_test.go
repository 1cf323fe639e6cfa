package stream

import (
	"log/slog"
	"net"
	"testing"
)

// TestAListenerIsBounded has silent connections held open from two places.
func TestAListenerIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const here, there = "192.0.2.1:1", "192.0.2.2:1"
	from := make(chan string, 1)
	b := Bounded(away{l, from}, 3, 2, slog.New(slog.DiscardHandler))
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		_ = b.Close()
		for c := range accepted {
			_ = c.Close()
		}
	})
	// dial returns the other end of a connection, nil when it was closed.
	dial := func(as string) net.Conn {
		t.Helper()
		from <- as
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = c.Read(make([]byte, 1))
		}()
		select {
		case a := <-accepted:
			t.Cleanup(func() { a.Close() })
			return a
		case <-ended:
			return nil
		}
	}
	first := dial(here)
	for i, c := range []struct {
		from string
		want bool
	}{{here, true}, {here, false}, {there, true}, {there, false}} {
		if got := dial(c.from) != nil; got != c.want {
			t.Errorf("%d: one from %s is let in: %v", i, c.from, got)
		}
	}
	_ = first.Close()
	_ = first.Close() // and leaves once
	if dial(there) == nil {
		t.Error("a place that was left stays taken")
	}
	if dial(here) != nil {
		t.Error("who has left twice has left two places")
	}
}
