// Package arrivals_test has a DTN take in files on an export that a controller has
// mounted over kernel NFS, and an agent there deliver them: by what the DTN announces,
// and without it.
package arrivals_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/glance/glancetest"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/stream"
)

// patience is how long anything may take in a guest whose host has other work.
const patience = 2 * time.Minute

// size of an image, and the rate of the path by which it comes: slower than all else, it takes 3 s.
const (
	size = 6 << 20
	rate = "16mbit"
)

// site is site B: a DTN whose export is mounted on a controller, the agent there, and
// between the two a gate that the test can shut for announcements. The test itself is
// site A.
type site struct {
	ctrl, sender *guest.Machine
	server       *guest.Server // the DTN
	mount        string        // its export, on the controller
	glance       *glancetest.Glance
	gate         *gate
	node         *client.Client // of the DTN, through the gate
	peer         *api.PeerClient
	engine       *stream.Engine
	outbox       string
}

func newSite(t *testing.T) *site {
	t.Helper()
	dtn := guest.NewMachine(t, "dtn")
	s := &site{ctrl: guest.NewMachine(t, "ctrl"), sender: guest.NewMachine(t, "sender")}
	guest.Connect(t, dtn, "10.0.0.1/24", s.ctrl, "10.0.0.2/24")
	guest.Connect(t, dtn, "10.0.1.1/24", s.sender, "10.0.1.2/24")
	s.sender.Run(t, "tc", "qdisc", "add", "dev", dtn.Name, "root", "netem", "rate", rate, "limit", "100000")
	s.server = dtn.Serve(t, "sync")
	s.mount = s.ctrl.Mount(t, s.server.Source(), "vers=3,nolock")
	var keystone *glancetest.Keystone
	s.ctrl.Within(t, func() {
		keystone = glancetest.NewKeystone(t)
		s.glance = glancetest.New(t, "")
	})
	s.glance.Token = keystone.Valid
	keystone.Endpoint("B", "public", s.glance.URL)

	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "test", pki.CALife); err != nil {
		t.Fatal(err)
	}
	ring := func(name, role string, hosts ...string) *pki.Keyring {
		id := pki.Identity{Site: name, Role: role}
		if _, err := pki.Issue(ca, id, append(hosts, "127.0.0.1"), pki.LeafLife, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		files := pki.Files{CA: filepath.Join(ca, "ca.pem"), Cert: filepath.Join(dir, name, role+".pem"), Key: filepath.Join(dir, name, role+".key")}
		r, err := files.Load(func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	agentB, dtnB := ring("B", pki.Agent, "10.0.0.2"), ring("B", pki.DTN, "10.0.0.1", "10.0.1.1")
	agentA, dtnA := ring("A", pki.Agent), ring("A", pki.DTN)

	s.gate = newGate(t, s.ctrl, dtnB, on(t, s.ctrl, agentB, pki.DTN))
	var err error
	if s.node, err = client.New(s.gate.url, &http.Client{Transport: on(t, s.ctrl, agentB, pki.DTN)}); err != nil {
		t.Fatal(err)
	}
	s.peer = api.NewPeerClient("B", "https://10.0.0.2:7442", &http.Client{Transport: on(t, s.ctrl, agentA, pki.Agent)})
	s.outbox = filepath.Join(t.TempDir(), mover.Outbox)
	if err := os.Mkdir(s.outbox, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(filepath.Dir(s.outbox))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	s.engine = &stream.Engine{Root: root, TLS: func() *tls.Config { return dtnA.ClientTLS(pki.Identity{Role: pki.DTN}) }, Dial: dialer(t, s.sender)}

	s.daemon(t, dtn, dir, nil, "dtn", fmt.Sprintf(`
site: B
export: %s
address: 10.0.1.1:7444
state: dtn-state
tls: {ca: ../ca/ca.pem}
reserve: 64MiB
`, s.server.Dir))
	s.daemon(t, s.ctrl, dir, []string{
		"OS_AUTH_URL=" + keystone.URL, "OS_USERNAME=admin", "OS_PASSWORD=" + keystone.Password, "OS_PROJECT_NAME=admin",
		"OS_USER_DOMAIN_ID=default", "OS_PROJECT_DOMAIN_ID=default", "OS_REGION_NAME=B",
	}, "agent", fmt.Sprintf(`
site: B
glance: {datadirs: [%s]}
export: %s
dtn: {url: %q}
tls: {ca: ../ca/ca.pem}
control: /run/glance-dtn/agent.sock
state: {embedded: agent-state}
peers: [{name: A, url: "https://127.0.0.1:1"}]
`, s.glance.Dir, s.mount, s.gate.url))
	control := api.NewControlClient(s.ctrl.Path("/run/glance-dtn/agent.sock"))
	await(t, "the agent is not ready", func() string {
		checks, err := control.Checks(t.Context())
		for _, c := range checks {
			if !c.OK && !strings.HasPrefix(c.Name, "peer") {
				err = errors.Join(err, errors.New(c.Name+": "+c.Error))
			}
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return s
}

// await waits until what is missing is nothing.
func await(t *testing.T, what string, missing func() string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		m := missing()
		if m == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s, after %v: %s", what, patience, m)
		}
	}
}

// daemon runs the real binary on a machine until the test ends, with this configuration.
func (s *site) daemon(t *testing.T, m *guest.Machine, dir string, env []string, command, config string) {
	t.Helper()
	file := filepath.Join(dir, "B", command+".yaml")
	if err := os.WriteFile(file, []byte("log: {format: text}\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := m.Command(context.Background(), os.Getenv("GLANCE_DTN"), command, "--config", file)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the log of %s:\n%s", m.Name, log.Bytes()[max(0, log.Len()-8<<10):])
		}
	})
}

// dialer opens connections on a machine.
func dialer(t *testing.T, m *guest.Machine) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		m.Within(t, func() { c, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
		return c, err
	}
}

// on is a transport for the machine, with a ring's certificate, to servers of site B in that role.
func on(t *testing.T, m *guest.Machine, ring *pki.Keyring, role string) *http.Transport {
	tr := &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := dialer(t, m)(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conf := ring.ClientTLS(pki.Identity{Site: "B", Role: role})
		if conf.ServerName, _, err = net.SplitHostPort(addr); err != nil {
			return nil, err
		}
		c := tls.Client(raw, conf)
		return c, c.HandshakeContext(ctx)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// gate passes requests on to the DTN, counts them, and keeps its announcements back
// while it is shut.
type gate struct {
	url  string
	open context.Context // of the streams that pass
	shut context.CancelFunc

	mu    sync.Mutex // guards asked
	asked map[string]int
}

// newGate puts a gate on the controller, in the name of the DTN.
func newGate(t *testing.T, ctrl *guest.Machine, as *pki.Keyring, to http.RoundTripper) *gate {
	g := &gate{asked: map[string]int{}}
	g.open, g.shut = context.WithCancel(t.Context())
	pass := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: "10.0.0.1:7443"}) },
		FlushInterval: -1,
		Transport:     to,
	}
	var server *httptest.Server
	ctrl.Within(t, func() {
		server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			g.count(r.Method + " " + r.URL.Path)
			if r.URL.Path == "/v1/events/arrivals" {
				if g.open.Err() != nil {
					http.Error(w, "the gate is shut", http.StatusBadGateway)
					return
				}
				ctx, cancel := context.WithCancel(r.Context())
				defer context.AfterFunc(g.open, cancel)()
				defer cancel()
				r = r.WithContext(ctx)
			}
			pass.ServeHTTP(w, r)
		}))
	})
	server.Listener = tls.NewListener(server.Listener, as.ServerTLS(nil))
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	g.url = "https://" + server.Listener.Addr().String()
	return g
}

func (g *gate) count(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked[what]++
}

func (g *gate) counts() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.asked)
}

// deliver sends an image to the site as another site does, and waits until it is active
// there. It returns how often the DTN was asked for the arrival.
func (s *site) deliver(t *testing.T) (asked int) {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	sum := sha512.Sum512(data)
	img := glance.Image{
		ID: glance.ImageID(fmt.Sprintf("%x-0000-4000-8000-000000000000", sum[:4])), Name: t.Name(), Status: glance.Active, Size: size,
		Hash: digest.Digest{Algo: "sha512", Value: hex.EncodeToString(sum[:])}, DiskFormat: "raw", ContainerFormat: "bare", Visibility: "private",
	}
	if err := os.WriteFile(filepath.Join(s.outbox, "image"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	grant, err := s.peer.Offer(t.Context(), agent.Offer{Image: img})
	if err != nil || grant.Verdict != agent.Accept {
		t.Fatalf("the offer: %+v, %v", grant, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	err = s.engine.Move(ctx, mover.Request{
		Key: string(grant.Delivery), Source: mover.File{Name: mover.Outbox + "/image", Size: size, Digest: img.Hash},
		Destination: mover.Destination{Address: grant.Address, Ticket: grant.Ticket},
	}, func(mover.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	moved := time.Since(began)
	await(t, "the image is not delivered", func() string {
		d, err := s.peer.Delivery(t.Context(), grant.Delivery)
		if err == nil && d.State == agent.Verified {
			return ""
		}
		return fmt.Sprintf("%+v, %v", d, err)
	})
	delivered := time.Since(began)
	if hash := s.glance.Attribute(img.ID, "os_hash_value"); hash != img.Hash.Value {
		t.Errorf("Glance has an image with the hash %v, want %v", hash, img.Hash)
	}
	asked = s.gate.counts()["GET /v1/arrivals/"+strings.TrimPrefix(grant.Name, mover.Inbox+"/")]
	t.Logf("moved in %v, delivered %v later; the DTN was asked %d times for the arrival", moved.Round(time.Millisecond), (delivered - moved).Round(time.Millisecond), asked)
	await(t, "the arrival is not removed", func() string {
		if _, err := s.node.Arrival(t.Context(), grant.Name); !errors.Is(err, mover.ErrNoArrival) {
			return fmt.Sprint("asked for it: ", err)
		}
		return ""
	})
	return asked
}

// notify counts what inotify(7) tells of writes in a directory.
type notify struct{ fd int }

func newNotify(t *testing.T, dir string) *notify {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO)
	}
	if err != nil {
		t.Fatalf("watch %s: %v", dir, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &notify{fd}
}

// bytes returns how long the events are that have come.
func (n *notify) bytes() (sum int) {
	buf := make([]byte, 64<<10)
	for {
		got, err := unix.Read(n.fd, buf)
		if err != nil || got <= 0 {
			return sum
		}
		sum += got
	}
}

func TestKernelArrivals(t *testing.T) {
	guest.Need(t)
	s := newSite(t)
	here, there := filepath.Join(s.mount, mover.Inbox), filepath.Join(s.server.Dir, mover.Inbox)
	mounted, local := newNotify(t, s.ctrl.Path(here)), newNotify(t, s.server.Path(there))

	// Whoever watches is told of the beginning, of what is proven, of the end and of the removal.
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var watching sync.WaitGroup
	var states []string
	steps := 0
	watching.Go(func() {
		var last mover.Arrival
		for inbox, err := range s.node.Watch(ctx) {
			if err != nil {
				t.Errorf("watch: %v", err)
				return
			}
			var now mover.Arrival
			for _, now = range inbox { // one at most
			}
			if now.State != last.State || len(states) == 0 {
				states = append(states, string(now.State))
			}
			if len(states) == 4 {
				return
			}
			if now.State == mover.Arriving && now.Proven > last.Proven {
				steps++
			}
			last = now
		}
	})
	streams := func() int { return s.gate.counts()["GET /v1/events/arrivals"] }
	await(t, "the agent and the test do not watch", func() string {
		if n := streams(); n != 2 {
			return fmt.Sprint(n, " streams")
		}
		return ""
	})
	announced := s.deliver(t)
	watching.Wait()
	if got, want := fmt.Sprintf("%q", states), `["" "arriving" "arrived" ""]`; got != want || steps == 0 {
		t.Errorf("told of the states %s and %d steps, want %s and some steps", got, steps, want)
	}
	if n := mounted.bytes(); n > 0 {
		t.Errorf("inotify on the mount tells of what the DTN writes (%d bytes): then nothing else would be needed", n)
	}
	if local.bytes() == 0 {
		t.Error("inotify on the DTN tells of nothing")
	}

	s.gate.shut()
	asked := s.deliver(t)
	if asked <= announced {
		t.Errorf("the DTN was asked %d times for what it announced and %d times for what it did not", announced, asked)
	}
	if n := streams(); n < 3 {
		t.Errorf("nobody has tried to hear the DTN again: %d streams", n)
	}
}
