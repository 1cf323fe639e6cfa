package gridftp

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// rig is an engine, and an inbox behind a server.
type rig struct {
	movertest.Rig
	export *os.Root
	state  *os.Root
	opts   InboxOptions
	free   atomic.Int64

	mu    sync.Mutex // guards what follows
	inbox *Inbox
	stop  func()
}

// assemble makes one in a directory, whose a and b are the exports that the URLs show.
func assemble(t *testing.T, dir string, client Client, a, b, nobody string) *rig {
	t.Helper()
	for _, d := range []string{"a/outbox", "b/inbox", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := ca.Issue(pki.Identity{Site: "B", Role: pki.Agent}, []string{"localhost"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{export: roottest.Open(t, dir+"/b"), state: roottest.Open(t, dir+"/state")}
	r.free.Store(math.MaxInt64)
	r.opts = InboxOptions{
		Check: func(token string) (mover.Ticket, error) { return ticket.Verify(ca.Pool(), "B", token, time.Now()) },
		Free:  func() (int64, error) { return r.free.Load(), nil },
		Every: 10 * time.Millisecond,
	}
	r.Rig = movertest.Rig{
		Engine: &Engine{
			Client: client, Site: "A", Export: roottest.Open(t, dir+"/a"), URL: a,
			Ticket: func(token string) (mover.Ticket, error) { return ticket.VerifyAny(ca.Pool(), token, time.Now()) },
			Poll:   10 * time.Millisecond,
		},
		Source: dir + "/a", Destination: dir + "/b", Address: b, Nobody: nobody, From: "A", Site: "B",
		Sign: func(tk mover.Ticket) (string, error) { return ticket.Sign(agent, tk) },
		Free: r.free.Store,
		Drop: func(name string) error { return r.now().Drop(name) },
		Own:  []string{"github.com/glance-dtn/glance-dtn/mover/gridftp.(*Inbox).Run"},
	}
	r.startInbox(t)
	t.Cleanup(r.stopInbox)
	return r
}

func (r *rig) now() *Inbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inbox
}

func (r *rig) startInbox(t *testing.T) {
	t.Helper()
	b, err := NewInbox(r.export, r.state, r.opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inbox = b
	r.stop = sync.OnceFunc(func() { cancel(); <-ended })
}

func (r *rig) stopInbox() {
	r.mu.Lock()
	stop := r.stop
	r.mu.Unlock()
	stop()
}

// moves stages a file and has it moved.
func (r *rig) moves(t *testing.T) error {
	t.Helper()
	content := []byte(rand.Text())
	h := sha512.New()
	h.Write(content)
	f := mover.File{Name: mover.Outbox + "/image", Size: int64(len(content)), Digest: digest.Of("sha512", h)}
	write(t, filepath.Join(r.Source, f.Name), content)
	in := f
	in.Name = mover.Inbox + "/delivery"
	token, err := r.Sign(mover.Ticket{ID: rand.Text(), Site: "B", From: "A", File: in, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	req := mover.Request{Key: "job.1", Source: f, Destination: mover.Destination{Address: r.Address, Ticket: token}}
	err = r.Engine.Move(t.Context(), req, func(mover.Progress) {})
	if err == nil {
		got, rerr := os.ReadFile(filepath.Join(r.Destination, in.Name))
		if rerr != nil || !bytes.Equal(got, content) {
			t.Errorf("%q arrived (%v), want %q", got, rerr, content)
		}
	}
	return err
}

func (r *rig) engine() *Engine { return r.Engine.(*Engine) }
