package world

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/glance/glancetest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
)

// patience is how long anything may take in a guest whose host has other work.
const patience = 2 * time.Minute

// world is two sites that run.
type world struct {
	*guest.Sites
	a, b site
}

// site is a controller and a DTN. The DTN's export is mounted on the controller.
type site struct {
	name   string
	ctrl   *guest.Machine
	server *guest.Server // the DTN
	mount  string        // the export, as the controller names it
	store  string        // a datadir of Glance that lies on the export, as the controller names it
	glance *glancetest.Glance

	agent, dtn *daemon
	control    *api.ControlClient
}

// newWorld starts two sites: A mounts its export with NFS 3, B with NFS 4.2. It
// returns when both agents are ready. No rule sends an image by itself.
func newWorld(t *testing.T) *world {
	t.Helper()
	s := guest.NewSites(t)
	w := &world{
		Sites: s,
		a:     site{name: "A", ctrl: s.CtrlA, server: s.DTNA.Serve(t, "sync")},
		b:     site{name: "B", ctrl: s.CtrlB, server: s.DTNB.Serve(t, "sync")},
	}
	w.a.mount = w.a.ctrl.Mount(t, w.a.server.Source(), "vers=3,nolock")
	w.b.mount = w.b.ctrl.Mount(t, w.b.server.Root(), "vers=4.2")
	dir := t.TempDir()
	if err := pki.InitCA(filepath.Join(dir, "ca"), "test", pki.CALife); err != nil {
		t.Fatal(err)
	}
	w.a.configure(t, dir, w.b)
	w.b.configure(t, dir, w.a)
	for _, s := range []*site{&w.a, &w.b} {
		s.dtn.start(t)
		s.agent.start(t)
	}
	for _, s := range []*site{&w.a, &w.b} {
		s.awaitReady(t)
	}
	return w
}

// configure gives the site its Keystone and Glance, and daemons that do not run yet.
// It makes a directory with the site's name beside that of the certificate authority.
func (s *site) configure(t *testing.T, dir string, peer site) {
	t.Helper()
	s.store = filepath.Join(s.mount, "store")
	if err := os.Mkdir(s.ctrl.Path(s.store), 0o750); err != nil {
		t.Fatal(err)
	}
	var keystone *glancetest.Keystone
	s.ctrl.Within(t, func() {
		keystone = glancetest.NewKeystone(t)
		s.glance = glancetest.New(t, "")
	})
	s.glance.Token = keystone.Valid
	keystone.Endpoint(s.name, "public", s.glance.URL)

	ca, dir := filepath.Join(dir, "ca"), filepath.Join(dir, s.name)
	for role, m := range map[string]*guest.Machine{pki.Agent: s.ctrl, pki.DTN: s.server.Machine} {
		if _, err := pki.Issue(ca, pki.Identity{Site: s.name, Role: role}, []string{m.Addr.String()}, pki.LeafLife, dir); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	s.dtn = newDaemon(t, s.server.Machine, nil, "dtn", "--config", write("dtn.yaml", fmt.Sprintf(`
site: %s
log: {format: text}
export: %s
address: %s:7444
state: dtn-state
tls: {ca: ../ca/ca.pem}
reserve: 64MiB
`, s.name, s.server.Dir, s.server.Addr)))
	const control = "/run/glance-dtn/agent.sock"
	// The stand-in's clock is not ours, so nothing is ever found to be stuck.
	s.agent = newDaemon(t, s.ctrl, []string{
		"OS_AUTH_URL=" + keystone.URL, "OS_USERNAME=admin", "OS_PASSWORD=" + keystone.Password, "OS_PROJECT_NAME=admin",
		"OS_USER_DOMAIN_ID=default", "OS_PROJECT_DOMAIN_ID=default", "OS_REGION_NAME=" + s.name,
	}, "agent", "--config", write("agent.yaml", fmt.Sprintf(`
site: %s
log: {format: text}
glance: {datadirs: [%s, %s]}
export: %s
dtn: {url: "https://%s:7443"}
tls: {ca: ../ca/ca.pem}
control: %s
state: {embedded: agent-state}
peers: [{name: %s, url: "https://%s:7442"}]
retry: {min: 200ms, max: 1s}
watch: {stuck: 100000h}
`, s.name, s.glance.Dir, s.store, s.mount, s.server.Addr, control, peer.name, peer.ctrl.Addr)))
	s.control = api.NewControlClient(s.ctrl.Path(control))
}

// awaitReady waits until the agent has all that it needs.
func (s *site) awaitReady(t *testing.T) {
	t.Helper()
	var checks []agent.Check
	var err error
	await(t, "agent of "+s.ctrl.Name, func() string {
		if checks, err = s.control.Checks(t.Context()); err == nil && !slices.ContainsFunc(checks, func(c agent.Check) bool { return !c.OK }) {
			return ""
		}
		return fmt.Sprintf("%+v, %v", checks, err)
	})
}

// await waits until what is missing is nothing.
func await(t *testing.T, what string, missing func() string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		m := missing()
		if m == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s, after %v: %s", what, patience, m)
		}
	}
}

// awaitJob waits until the job is in one of the states.
func (s *site) awaitJob(t *testing.T, id agent.JobID, states ...agent.State) (j agent.Job) {
	t.Helper()
	await(t, fmt.Sprintf("job %s is not %v", id, states), func() string {
		var err error
		if j, err = s.control.Job(t.Context(), id); err == nil && slices.Contains(states, j.State) {
			return ""
		}
		return fmt.Sprintf("%s: %s (%v)", j.State, j.Reason, err)
	})
	return j
}

// daemon is one of the two, which may be killed and started again.
type daemon struct {
	machine *guest.Machine
	env     []string
	args    []string
	log     *os.File
	stop    func() // nil: it does not run
}

func newDaemon(t *testing.T, m *guest.Machine, env []string, args ...string) *daemon {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{machine: m, env: env, args: args, log: log}
	t.Cleanup(func() {
		if d.stop != nil {
			d.stop()
		}
		if text := d.said(t); t.Failed() {
			t.Logf("the log of %s:\n%s", m.Name, text[max(0, len(text)-8<<10):])
		}
		_ = log.Close()
	})
	return d
}

// said returns the whole log.
func (d *daemon) said(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	cmd := d.machine.Command(context.Background(), os.Getenv("GLANCE_DTN"), d.args...)
	cmd.Env = append(os.Environ(), d.env...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		d.stop = nil
	}
}

// kill ends the daemon as a crash of its machine does.
func (d *daemon) kill() { d.stop() }

// history tells a job's way, a line for each state.
func history(j agent.Job) string {
	var b strings.Builder
	for _, c := range j.History {
		fmt.Fprintf(&b, "\n%s  %-10s %s", c.At.Format("15:04:05.000"), c.State, c.Note)
	}
	return b.String()
}

// notes tells how the job came to a state, each time.
func notes(j agent.Job, s agent.State) (notes []string) {
	for _, c := range j.History {
		if c.State == s {
			notes = append(notes, c.Note)
		}
	}
	return notes
}

func wantFile(t *testing.T, name string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, %.16x..., want %d, %.16x...", name, len(got), got, len(want), want)
	}
}
