package main

import (
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// dtns are the DTN daemons of several sites with one certificate authority.
type dtns struct {
	t       *testing.T
	dir     string
	daemons map[string]*process
	started map[string]map[string]any // what each has logged then
}

func newDTNs(t *testing.T) *dtns {
	d := &dtns{t, t.TempDir(), map[string]*process{}, map[string]map[string]any{}}
	if err := pki.InitCA(d.dir, "test", 0); err != nil {
		t.Fatal(err)
	}
	return d
}

// run starts a site's daemon, with more in its configuration.
func (d *dtns) run(site, more string) {
	d.t.Helper()
	home := filepath.Join(d.dir, site)
	if err := os.MkdirAll(filepath.Join(home, "export"), 0o755); err != nil {
		d.t.Fatal(err)
	}
	for _, role := range []string{pki.Agent, pki.DTN} {
		if _, err := pki.Issue(d.dir, pki.Identity{Site: site, Role: role}, []string{"127.0.0.1"}, 0, home); err != nil && !errors.Is(err, os.ErrExist) {
			d.t.Fatal(err)
		}
	}
	conf := filepath.Join(home, "dtn.yaml")
	write(d.t, conf, strings.NewReplacer("site: A", "site: "+site, "dtn-a.", "dtn-"+site+".").Replace(dtnConfig)+"tls: {ca: ../ca.pem}\n"+more)
	d.daemons[site] = start(d.t, nil, "dtn", "--config", conf)
	d.started[site] = d.daemons[site].logged("DTN started")
}

// data is the address of a site's data plane.
func (d *dtns) data(site string) string { return d.started[site]["data"].(string) }

// client asks a site's DTN as its agent does.
func (d *dtns) client(site string) *client.Client {
	d.t.Helper()
	home := filepath.Join(d.dir, site)
	ring, err := pki.Files{CA: filepath.Join(d.dir, "ca.pem"), Cert: filepath.Join(home, "agent.pem"), Key: filepath.Join(home, "agent.key")}.Load(nil)
	if err != nil {
		d.t.Fatal(err)
	}
	hc := &http.Client{Transport: ring.Transport(pki.Identity{Site: site, Role: pki.DTN})}
	d.t.Cleanup(hc.CloseIdleConnections)
	c, err := client.New("https://"+d.started[site]["listen"].(string), hc)
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// TestThroughAThirdDTN runs the daemons of three sites.
func TestThroughAThirdDTN(t *testing.T) {
	sites := newDTNs(t)
	dir, daemons, run := sites.dir, sites.daemons, sites.run
	const routes = "relay: {space: 64MiB, routes: [{from: A, to: [B]}]}\n"
	run("A", "")
	run("B", "")
	run("R", routes)
	dtnA := sites.client("A")
	agentB, err := tls.LoadX509KeyPair(filepath.Join(dir, "B", "agent.pem"), filepath.Join(dir, "B", "agent.key"))
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 5<<20+1)
	_, _ = rand.Read(data)
	h := sha512.New()
	h.Write(data)
	move := func(base string, mode mover.RelayMode) mover.Status {
		f := mover.File{Name: mover.Outbox + "/" + base, Size: int64(len(data)), Digest: digest.Of("sha512", h)}
		write(t, filepath.Join(dir, "A", "export", f.Name), string(data))
		in := f
		in.Name = mover.Inbox + "/" + base
		address := sites.data("B")
		token, err := ticket.Sign(agentB, mover.Ticket{ID: base, Site: "B", From: "A", Via: "R", Address: address, File: in, Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		id, err := dtnA.Submit(t.Context(), mover.Request{Key: base, Source: f, Destination: mover.Destination{
			Address: address, Ticket: token,
			Via: mover.Relay{Site: "R", Address: sites.data("R"), Mode: mode},
		}})
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(daemonTime); ; time.Sleep(20 * time.Millisecond) {
			s, err := dtnA.Status(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if s.State.Final() {
				return s
			}
			if time.Now().After(end) {
				t.Fatalf("the transfer does not end: %+v", s)
			}
		}
	}
	for _, mode := range []mover.RelayMode{mover.StoreForward, mover.CutThrough} {
		base := "image-" + string(mode)
		if s := move(base, mode); s.State != mover.Done {
			t.Fatalf("%s: %+v", mode, s)
		}
		daemons["R"].logged("file passed on")
		if got, err := os.ReadFile(filepath.Join(dir, "B", "export", mover.Inbox, base)); err != nil || string(got) != string(data) {
			t.Errorf("%s: %d wrong bytes arrived: %v", mode, len(got), err)
		}
	}
	box := filepath.Join(dir, "R", "export", mover.Relayed)
	if left, err := filepath.Glob(box + "/*/.*"); err != nil || len(left) > 0 {
		t.Errorf("the relay keeps %v, %v", left, err)
	}

	daemons["R"].signal(os.Interrupt)
	if code, log := daemons["R"].ends(); code != 0 {
		t.Fatal(code, log)
	}
	run("R", "")
	if _, err := os.Stat(box); !os.IsNotExist(err) {
		t.Errorf("without a route there is still a box for files on their way: %v", err)
	}
	s := move("image-late", mover.CutThrough)
	if want := "is no relay; see relay in its configuration"; s.Code != mover.CodeAuth || !strings.Contains(s.Error, want) {
		t.Errorf("%+v, want code %s and %q", s, mover.CodeAuth, want)
	}
}
