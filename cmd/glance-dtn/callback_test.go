package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// siteHost is where a site's daemons run: a machine, or this one.
type siteHost struct {
	t       *testing.T
	site    string
	address string
	machine *lab.Machine // nil: this one
	dir     string       // configuration, export and state
	ca      string
	socket  string // of the agent
}

func (h *siteHost) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if h.machine == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	if entered := h.machine.Enter(func() { c, err = net.DialTimeout(network, address, daemonTime) }); entered != nil {
		return nil, entered
	}
	return c, err
}

// run starts the DTN with more lines of configuration.
func (h *siteHost) run(conf string) (*process, map[string]any) {
	h.t.Helper()
	write(h.t, filepath.Join(h.dir, "dtn.yaml"), fmt.Sprintf(`
site: %s
export: export
listen: %s:0
state: state
metrics: %[2]s:0
reserve: 0
tls: {ca: %s}
%s
`, h.site, h.address, filepath.Join(h.ca, "ca.pem"), conf))
	p := startCommand(h.t, nil, h.command("dtn", "--config", filepath.Join(h.dir, "dtn.yaml")))
	return p, p.logged("DTN started")
}

// command is glance-dtn there.
func (h *siteHost) command(args ...string) *exec.Cmd {
	if h.machine != nil {
		return h.machine.Command(h.t.Context(), "glance-dtn", args...)
	}
	return exec.Command("glance-dtn", args...)
}

// runAgent starts an agent with more lines of configuration. It has neither Glance nor DTN.
func (h *siteHost) runAgent(conf string) (*process, map[string]any) {
	h.t.Helper()
	write(h.t, filepath.Join(h.dir, "agent.yaml"), fmt.Sprintf(`
site: %s
glance: {datadirs: [store]}
export: export
dtn: {url: "https://127.0.0.1:9"}
metrics: %s:0
state: {embedded: state-agent}
control: %s
tls: {ca: %s}
%s
`, h.site, h.address, h.socket, filepath.Join(h.ca, "ca.pem"), conf))
	p := startCommand(h.t, noGlance, h.command("agent", "--config", filepath.Join(h.dir, "agent.yaml")))
	return p, p.logged("agent started")
}

// ring is the certificate of the site's agent.
func (h *siteHost) ring() *pki.Keyring {
	h.t.Helper()
	ring, err := pki.Files{CA: filepath.Join(h.ca, "ca.pem"), Cert: filepath.Join(h.dir, "agent.pem"), Key: filepath.Join(h.dir, "agent.key")}.Load(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return ring
}

// api asks the DTN that has started as its agent.
func (h *siteHost) api(started map[string]any) *client.Client {
	h.t.Helper()
	conf := h.ring().ClientTLS(pki.Identity{Site: h.site, Role: pki.DTN})
	conf.ServerName = h.address
	transport := &http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		nc, err := h.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := tls.Client(nc, conf)
		return c, c.HandshakeContext(ctx)
	}}
	c, err := client.New("https://"+started["listen"].(string), &http.Client{Transport: transport})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// ready waits until /readyz answers so, and returns what it says.
func (h *siteHost) ready(started map[string]any, want int) string {
	h.t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.dial}}
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		code, body := get(h.t, hc, "http://"+started["metrics"].(string)+"/readyz")
		if code == want {
			return body
		}
		if time.Since(begin) > daemonTime {
			h.t.Fatalf("/readyz of site %s says %d %s, want %d", h.site, code, body, want)
		}
	}
}

// twoSites returns the hosts of two sites. Where tests may make machines there is a
// firewall between them, behind which B is.
func twoSites(t *testing.T) (a, b *siteHost) {
	t.Helper()
	return sitesOver(t, wan.Path{Firewall: true, Rate: 5e8})
}

// sitesOver returns the hosts of two sites, with a path between them where tests may make
// machines.
func sitesOver(t *testing.T, p wan.Path) (a, b *siteHost) {
	t.Helper()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "test", 0); err != nil {
		t.Fatal(err)
	}
	a = &siteHost{t: t, site: "A", address: "127.0.0.1", dir: filepath.Join(dir, "a"), ca: ca, socket: filepath.Join(shortDir(t), "s")}
	b = &siteHost{t: t, site: "B", address: "127.0.0.1", dir: filepath.Join(dir, "b"), ca: ca, socket: filepath.Join(shortDir(t), "s")}
	if os.Getenv("GLANCE_DTN_REAL") != "" {
		a.machine, b.machine = lab.NewMachine(t, "a"), lab.NewMachine(t, "b")
		lab.ConnectOver(t, p, a.machine, "10.0.0.1/24", b.machine, "10.0.0.2/24")
		a.address, b.address = a.machine.Addr.String(), b.machine.Addr.String()
	}
	for _, h := range []*siteHost{a, b} {
		for _, role := range []string{pki.DTN, pki.Agent} {
			if _, err := pki.Issue(ca, pki.Identity{Site: h.site, Role: role}, []string{h.address}, 0, h.dir); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(h.dir, "export"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// TestASiteWithoutInboundConnections has site A send to a DTN that it cannot connect to,
// with either killed on the way.
func TestASiteWithoutInboundConnections(t *testing.T) {
	a, b := twoSites(t)
	sender, at := a.run("data: " + a.address + ":0\naddress: dtn-a.example.org:7444")
	data := at["data"].(string)
	behind := "callback: [" + data + "]"
	receiver, bt := b.run(behind)
	if where := bt["data"]; where != "callback://B" {
		t.Errorf("the DTN that takes no connections says that it takes them at %v", where)
	}
	receiver.logged("this DTN stands by")
	b.ready(bt, 200)

	image := make([]byte, 64<<20+1)
	_, _ = rand.Read(image)
	h := sha512.New()
	h.Write(image)
	file := mover.File{Name: "outbox/image", Size: int64(len(image)), Digest: digest.Of("sha512", h)}
	write(t, filepath.Join(a.dir, "export", file.Name), string(image))
	arriving := file
	arriving.Name = "inbox/image"
	caps, err := b.api(bt).Capabilities(t.Context())
	if err != nil || len(caps.Callbacks) != 1 || !caps.Callbacks[0].Connected || caps.Callbacks[0].Site != "A" {
		t.Fatalf("capabilities: %+v, %v", caps, err)
	}
	token, err := ticket.Sign(b.ring().Certificate(), mover.Ticket{ID: "one", Site: "B", From: "A", File: arriving, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	request := mover.Request{Source: file, Destination: mover.Destination{Address: caps.Address, Ticket: token}, PCP: mover.PCP{Pipelining: 1, Parallelism: 1}}
	// sent submits the request again where it has failed, as an agent does, until so much
	// has moved.
	tries := 0
	sent := func(until int64) {
		t.Helper()
		begin, api := time.Now(), a.api(at)
		for {
			request.Key = fmt.Sprint("image.", tries)
			id, err := api.Submit(t.Context(), request)
			var s mover.Status
			if err == nil {
				s, err = api.Status(t.Context(), id)
			}
			switch {
			case err == nil && s.State == mover.Failed:
				tries++
			case err == nil && (s.State == mover.Done || s.State == mover.Running && s.Moved >= until && until < file.Size):
				return
			case time.Since(begin) > 2*daemonTime:
				t.Fatalf("%+v, %v", s, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	kill := func(p *process) {
		p.signal(syscall.SIGKILL)
		p.ends()
	}
	sent(file.Size / 4)
	kill(receiver)
	_, bt = b.run(behind)
	sent(file.Size / 2)
	kill(sender)
	if trouble := b.ready(bt, 503); !strings.Contains(trouble, "no connection to "+data) {
		t.Errorf("/readyz says %s", trouble)
	}
	_, at = a.run("data: " + data + "\naddress: dtn-a.example.org:7444")
	b.ready(bt, 200)
	sent(file.Size)
	got, err := os.ReadFile(filepath.Join(b.dir, "export", arriving.Name))
	if err != nil || !bytes.Equal(got, image) {
		t.Errorf("%d bytes arrived, not those of the source: %v", len(got), err)
	}
}

// TestAgentsOfASiteWithoutInboundConnections has site A's agent ask one that it cannot
// connect to, which refuses: it has no may_pull.
func TestAgentsOfASiteWithoutInboundConnections(t *testing.T) {
	a, b := twoSites(t)
	asking, at := a.runAgent("listen: " + a.address + ":0\npeers: [{name: B, url: callback}]")
	url := "https://" + at["listen"].(string)
	asked, bt := b.runAgent("listen: 127.0.0.1:0\npeers: [{name: A, url: \"" + url + "\", callback: true}]")
	asked.logged("this agent can be asked")
	pull := func() string {
		out, err := a.command("pull", "debian", "--from", "B", "--control", a.socket).CombinedOutput()
		if err == nil {
			t.Errorf("pull: %s", out)
		}
		return string(out)
	}
	if out := pull(); !strings.Contains(out, "may_pull") {
		t.Errorf("site B answers: %s", out)
	}
	asking.signal(syscall.SIGKILL)
	asking.ends()
	asked.logged("no connection to an agent that cannot connect here; it is tried again and again")
	if body := b.ready(bt, 503); !strings.Contains(body, "no connection to the agent of site A since") { // 503: it has no Glance
		t.Errorf("/readyz says %s", body)
	}
	a.runAgent("listen: " + at["listen"].(string) + "\npeers: [{name: B, url: callback}]")
	if out := pull(); !strings.Contains(out, "may_pull") {
		t.Errorf("site B answers: %s", out)
	}
}
