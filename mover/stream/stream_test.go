package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

func TestConformance(t *testing.T) {
	for _, p := range []mover.Protection{mover.Private, mover.Safe, mover.Clear} {
		t.Run(string(p), func(t *testing.T) {
			movertest.Run(t, func(t *testing.T) movertest.Rig { return newRigIn(t, p).rig })
		})
	}
}

// rig is an engine of site A and a receiver of site B.
type rig struct {
	rig   movertest.Rig
	ca    *pki.CA
	state string
	opts  ReceiverOptions
	free  atomic.Int64
	wires *wires
	pipes pipes // in place of TCP, when not nil

	mu       sync.Mutex // guards what follows
	receiver *Receiver
	stop     func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigIn(t, mover.Private)
}

// newRigIn makes a rig that moves in p.
func newRigIn(t testing.TB, p mover.Protection) *rig {
	t.Helper()
	r := prepare(t)
	r.opts.Protection, r.rig.Engine.(*Engine).Protection = p, p
	r.start(t, "127.0.0.1:0")
	return r
}

// newPipeRig makes a rig that lives in a synctest bubble: pipes stand for TCP. Its
// receiver has not started.
func newPipeRig(t testing.TB) *rig {
	t.Helper()
	r := prepare(t)
	r.pipes = make(pipes)
	r.rig.Address = r.pipes.Addr().String()
	r.wires.pipes = r.pipes
	return r
}

// prepare makes a rig without a receiver.
func prepare(t testing.TB) *rig {
	t.Helper()
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &rig{ca: ca, state: filepath.Join(dir, "state"), wires: new(wires)}
	r.free.Store(math.MaxInt64)
	for _, d := range []string{"a/outbox", "b/inbox", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	agent, pool, tickets := r.issue(t, "B", pki.Agent), ca.Pool(), new(ticket.Verifier)
	r.opts = ReceiverOptions{
		TLS:  serverTLS(ca, r.issue(t, "B", pki.DTN)),
		Free: func() (int64, error) { return r.free.Load(), nil },
		Check: func(token, _ string) (mover.Ticket, error) {
			return tickets.Verify(pool, "B", token, time.Now())
		},
	}
	r.rig = movertest.Rig{
		Engine: r.engine(t, filepath.Join(dir, "a"), r.issue(t, "A", pki.DTN)),
		Source: filepath.Join(dir, "a"), Destination: filepath.Join(dir, "b"),
		From: "A", Site: "B",
		Sign:    func(tk mover.Ticket) (string, error) { return ticket.Sign(agent, tk) },
		Sent:    r.wires.sent.Load,
		Cut:     r.wires.cut,
		Restart: func(t *testing.T) { r.restart(t) },
		Free:    r.free.Store,
		Drop:    func(name string) error { return r.recv().Drop(name) },
		Own:     []string{"github.com/glance-dtn/glance-dtn/mover/stream.(*Receiver).Serve"},
	}
	r.stop = func() {}
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) issue(t testing.TB, site, role string) tls.Certificate {
	t.Helper()
	cert, err := r.ca.Issue(pki.Identity{Site: site, Role: role}, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func serverTLS(ca *pki.CA, cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
}

func (r *rig) engine(t testing.TB, export string, cert tls.Certificate) *Engine {
	return &Engine{
		Root: roottest.Open(t, export),
		TLS:  func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: r.ca.Pool()} },
		Dial: r.wires.dial,
	}
}

// stage writes n random bytes to site A's outbox.
func (r *rig) stage(t testing.TB, base string, n int64) mover.File {
	t.Helper()
	f, err := os.Create(filepath.Join(r.rig.Source, mover.Outbox, base))
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.New()
	_, err = io.CopyN(io.MultiWriter(f, h), mathrand.NewChaCha8([32]byte{byte(n)}), n)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return mover.File{Name: mover.Outbox + "/" + base, Size: n, Digest: digest.Of("sha512", h)}
}

// request asks for f's move with a fresh ticket.
func (r *rig) request(t testing.TB, f mover.File) mover.Request {
	t.Helper()
	in := f
	in.Name = mover.Inbox + "/" + filepath.Base(f.Name)
	token, err := r.rig.Sign(mover.Ticket{ID: rand.Text(), Site: "B", From: "A", File: in, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return mover.Request{Source: f, Destination: mover.Destination{Address: r.rig.Address, Ticket: token}}
}

// start serves on address, which it keeps over restarts.
func (r *rig) start(t testing.TB, address string) {
	t.Helper()
	recv, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener = r.pipes
	if r.pipes == nil {
		l = nettest.Listen(t, address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- recv.Serve(ctx, l) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rig.Address = l.Addr().String()
	r.receiver = recv
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

func (r *rig) restart(t testing.TB) {
	t.Helper()
	r.stop()
	r.start(t, r.rig.Address)
}

func (r *rig) recv() *Receiver {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.receiver
}

// wires count and cut the engine's connections.
type wires struct {
	sent  atomic.Int64
	pipes pipes
	plain bool                     // not counted: the engine sees that they are TCP
	spoil func(b []byte, long int) // may change what is written: the number of the long write, from 1

	longs atomic.Int32

	mu   sync.Mutex // guards open
	open []net.Conn
}

type wire struct {
	net.Conn
	*wires
}

func (w wire) Write(b []byte) (int, error) {
	if w.spoil != nil && len(b) >= pieceSize {
		b = bytes.Clone(b)
		w.spoil(b, int(w.longs.Add(1)))
	}
	n, err := w.Conn.Write(b)
	w.sent.Add(int64(n))
	return n, err
}

// SyscallConn lets the kernel tell what it knows of the path.
func (w wire) SyscallConn() (syscall.RawConn, error) {
	if c, ok := w.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if w.pipes != nil {
		c, err := w.pipes.dial(ctx)
		return wire{c, w}, err
	}
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return w.add(c), nil
}

func (w *wires) add(c net.Conn) net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = append(w.open, c)
	if w.plain {
		return c
	}
	return wire{c, w}
}

func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.open {
		_ = c.Close()
	}
	w.open = nil
}

// pipes are a network for a bubble.
type pipes chan net.Conn

func (p pipes) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9} }
