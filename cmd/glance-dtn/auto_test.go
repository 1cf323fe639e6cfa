package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/jobs"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// played is what the agent of site A meets besides the real DTNs of three sites: its own
// Glance and export, and the agent of site B.
type played struct {
	*dtns
	signer tls.Certificate // of B's agent

	mu     sync.Mutex
	images map[glance.ImageID]glance.Image
	data   map[glance.ImageID][]byte
}

// add makes an image of n random bytes.
func (p *played) add(id glance.ImageID, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data)
	h := sha512.New()
	h.Write(data)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.images[id] = glance.Image{ID: id, Name: string(id), Status: glance.Active, Size: int64(n), Hash: digest.Of("sha512", h)}
	p.data[id] = data
	return data
}

func (p *played) path(site, name string) string { return filepath.Join(p.dir, site, "export", name) }

type playedCatalog struct {
	agent.Catalog
	*played
}

func (p playedCatalog) Image(_ context.Context, id glance.ImageID) (glance.Image, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i, ok := p.images[id]; ok {
		return i, nil
	}
	return glance.Image{}, glance.ErrNoImage
}

type playedStager struct {
	agent.Stager
	*played
}

func (p playedStager) Stage(_ context.Context, id glance.ImageID, f mover.File, _ func(int64)) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "copy", os.WriteFile(p.path("A", f.Name), p.data[id], 0o644)
}

func (p playedStager) Unstage(_ context.Context, name string) error {
	return os.RemoveAll(p.path("A", name))
}

func (playedStager) Staged(context.Context) ([]string, error) { return nil, nil }
func (playedStager) Check(context.Context) error              { return nil }

type playedPeer struct {
	agent.Peer
	*played
}

func (p playedPeer) Offer(_ context.Context, o agent.Offer) (agent.Grant, error) {
	g := agent.Grant{
		Verdict: agent.Accept, Delivery: "delivery", ImageID: o.Image.ID,
		Address: p.dtns.data("B"), Name: mover.Inbox + "/" + string(o.Image.ID),
	}
	t := mover.Ticket{
		ID: rand.Text(), Site: "B", From: "A", Expires: time.Now().Add(time.Hour),
		File: mover.File{Name: g.Name, Size: o.Image.Size, Digest: o.Image.Hash},
	}
	if o.Via != "" {
		t.Via, t.Address = o.Via, g.Address
	}
	var err error
	g.Ticket, err = ticket.Sign(p.signer, t)
	return g, err
}

func (playedPeer) Delivery(context.Context, agent.JobID) (agent.Delivery, error) {
	return agent.Delivery{ID: "delivery", State: agent.Verified}, nil
}

type noSigner struct{}

func (noSigner) Sign(mover.Ticket) (string, error) { return "", errors.New("this site takes nothing") }

// TestTheWayIsChosenByWhatTheDTNsHaveSeen has the direct way a tenth as fast as the one
// through a third DTN. Before anything was measured, files go straight; then through the
// third DTN, as long as that is there.
func TestTheWayIsChosenByWhatTheDTNsHaveSeen(t *testing.T) {
	p := &played{dtns: newDTNs(t), images: map[glance.ImageID]glance.Image{}, data: map[glance.ImageID][]byte{}}
	p.run("A", "limits: [{site: B, send: 2Mbit/s}, {site: R, send: 20Mbit/s}]\n")
	p.run("B", "")
	p.run("R", "relay: {space: 64MiB, routes: [{from: A, to: [B]}]}\n")
	var err error
	if p.signer, err = tls.LoadX509KeyPair(filepath.Join(p.dir, "B", "agent.pem"), filepath.Join(p.dir, "B", "agent.key")); err != nil {
		t.Fatal(err)
	}
	node := p.client("A")
	store, err := jobs.OpenEmbedded(t.Context(), filepath.Join(t.TempDir(), "jobs"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	relay := mover.Relay{Site: "R", Address: p.dtns.data("R")}
	peer := agent.PeerSite{Name: "B", Peer: playedPeer{played: p}, Jobs: 2, Among: []mover.Relay{relay}}
	a, err := agent.New(agent.Options{
		Site: "A", Catalog: playedCatalog{played: p}, Stager: playedStager{played: p}, Mover: node, Landing: node, Signer: noSigner{}, Store: store,
		Choose: chooseWay,
		Settings: agent.Settings{
			Peers: []agent.PeerSite{peer}, DeliverJobs: 1, RetryMin: time.Millisecond, RetryMax: time.Second,
			Listing: time.Hour, Reconcile: time.Hour, Stuck: time.Hour, Keep: time.Hour,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	send := func(id glance.ImageID, n int) agent.Job {
		t.Helper()
		data := p.add(id, n)
		all, err := a.Push(t.Context(), string(id), []string{"B"}, "")
		if err == nil {
			err = a.RunJobs(t.Context(), []agent.JobID{all[0].ID})
		}
		if err != nil {
			t.Fatal(err)
		}
		j, err := a.Job(t.Context(), all[0].ID)
		if err != nil || j.State != agent.Verified {
			t.Fatalf("the job is %s: %s, %v", j.State, j.Reason, err)
		}
		if got, err := os.ReadFile(p.path("B", mover.Inbox+"/"+string(id))); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d wrong bytes arrived: %v", len(got), err)
		}
		return j
	}
	const direct, through, late = "11111111-1111-4111-8111-111111111111",
		"33333333-3333-4333-8333-333333333333", "44444444-4444-4444-8444-444444444444"

	// Both ways are measured at once, by transfers of some seconds.
	var measuring sync.WaitGroup
	measuring.Go(func() { p.pass(node, 25<<20, relay) })
	if j := send(direct, 3<<20); j.Route.Relay != (mover.Relay{}) || !strings.HasPrefix(j.Route.Why, "direct: A → B is not measured") && !strings.HasPrefix(j.Route.Why, "direct: A → R is not measured") {
		t.Errorf("before anything was measured %+v", j.Route)
	}
	measuring.Wait()
	if t.Failed() {
		return
	}
	ways, err := a.Ways(t.Context(), "B", "", 3<<20) // measured as of now
	if err != nil || len(ways.Hops) != 3 || ways.Route.Relay.Site != "R" {
		t.Fatalf("%+v, %v", ways, err)
	}
	j := send(through, 3<<20)
	if j.Route.Relay != (mover.Relay{Site: "R", Address: relay.Address, Mode: mover.CutThrough}) || !strings.HasPrefix(j.Route.Why, "cut-through at R, ") {
		t.Errorf("what was measured is %+v, and the way %+v", ways.Hops, j.Route)
	}
	p.daemons["R"].logged("file passed on")

	p.daemons["R"].signal(os.Interrupt)
	if code, log := p.daemons["R"].ends(); code != 0 {
		t.Fatal(code, log)
	}
	if j := send(late, 1<<20+1); j.Route.Relay != (mover.Relay{}) || !strings.HasPrefix(j.Route.Why, "direct: ") || !strings.Contains(j.Route.Why, "R") {
		t.Errorf("without the third DTN %+v", j.Route)
	}
}

// pass sends a file of n bytes to B through a relay.
func (p *played) pass(node *client.Client, n int, via mover.Relay) {
	const id = "55555555-5555-4555-8555-555555555555"
	data := p.add(id, n)
	p.mu.Lock()
	img := p.images[id]
	p.mu.Unlock()
	via.Mode = mover.CutThrough
	f := mover.File{Name: mover.Outbox + "/" + id, Size: img.Size, Digest: img.Hash}
	g, err := playedPeer{played: p}.Offer(p.t.Context(), agent.Offer{Image: img, Via: via.Site})
	if err == nil {
		err = os.WriteFile(p.path("A", f.Name), data, 0o644)
	}
	var tid mover.TransferID
	if err == nil {
		tid, err = node.Submit(p.t.Context(), mover.Request{Key: id, Source: f, Destination: mover.Destination{Address: g.Address, Ticket: g.Ticket, Via: via}})
	}
	for err == nil {
		var s mover.Status
		if s, err = node.Status(p.t.Context(), tid); s.State == mover.Done {
			return
		} else if s.State.Final() {
			err = errors.New(s.Error)
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.t.Error(err)
}
