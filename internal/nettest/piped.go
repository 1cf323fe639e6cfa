package nettest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
)

// Piped serves s, without TLS, until the test ends, and returns a client of it, whatever
// the host in the URL. Between them are pipes in the place of sockets, so they work in a
// synctest bubble, deadlines included.
func Piped(t testing.TB, s *http.Server) *http.Client {
	l, dial := Pipes()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	transport := &http.Transport{DialContext: dial}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return &http.Client{Transport: transport}
}

// Pipes returns a listener of pipes, and what dials it.
func Pipes() (net.Listener, func(ctx context.Context, network, address string) (net.Conn, error)) {
	l := &pipes{dialled: make(chan net.Conn), closed: make(chan struct{})}
	return l, l.dial
}

type pipes struct {
	dialled chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.dialled <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.dialled:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
