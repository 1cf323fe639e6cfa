package stream_test

import (
	"context"
	"crypto/tls"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
	"github.com/glance-dtn/glance-dtn/mover/stream"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

func TestConformance(t *testing.T) {
	movertest.Run(t, func(t *testing.T) movertest.Rig { return newRig(t).rig })
}

// rig is an engine of site A and a receiver of site B.
type rig struct {
	rig   movertest.Rig
	ca    *pki.CA
	state string
	opts  stream.ReceiverOptions
	free  atomic.Int64
	wires *wires

	mu       sync.Mutex // guards what follows
	receiver *stream.Receiver
	stop     func()
}

func newRig(t testing.TB) *rig {
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
	agent := r.issue(t, "B", pki.Agent)
	r.opts = stream.ReceiverOptions{
		TLS:  serverTLS(ca, r.issue(t, "B", pki.DTN)),
		Free: func() (int64, error) { return r.free.Load(), nil },
		Check: func(token, _ string) (mover.Ticket, error) {
			return ticket.Verify(ca.Pool(), "B", token, time.Now())
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
	r.start(t, "127.0.0.1:0")
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

func (r *rig) engine(t testing.TB, export string, cert tls.Certificate) *stream.Engine {
	return &stream.Engine{
		Root: openRoot(t, export),
		TLS:  func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: r.ca.Pool()} },
		Dial: r.wires.dial,
	}
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// start serves on address, which it keeps over restarts.
func (r *rig) start(t testing.TB, address string) {
	t.Helper()
	recv, err := stream.NewReceiver(openRoot(t, r.rig.Destination), openRoot(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- recv.Serve(ctx, l) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rig.Address = l.Addr().String()
	r.receiver = recv
	r.stop = func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	}
}

func (r *rig) restart(t testing.TB) {
	t.Helper()
	r.stop()
	r.start(t, r.rig.Address)
}

func (r *rig) recv() *stream.Receiver {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.receiver
}

// wires count and cut the engine's connections.
type wires struct {
	sent atomic.Int64

	mu   sync.Mutex // guards open
	open []net.Conn
}

type wire struct {
	net.Conn
	sent *atomic.Int64
}

func (w wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	w.sent.Add(int64(n))
	return n, err
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = append(w.open, c)
	return wire{c, &w.sent}, nil
}

func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.open {
		_ = c.Close()
	}
	w.open = nil
}

