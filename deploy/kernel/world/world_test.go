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
const patience = time.Minute

// world is two sites that run.
type world struct {
	*guest.Sites
	a, b site
}

// site is a controller and a DTN. The DTN's export is mounted on the controller.
type site struct {
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
	dir := t.TempDir()
	if err := pki.InitCA(filepath.Join(dir, "ca"), "test", pki.CALife); err != nil {
		t.Fatal(err)
	}
	w := &world{Sites: s}
	w.a = newSite(t, dir, "A", s.CtrlA, s.DTNA, (*guest.Server).Source, "vers=3,nolock", "B", s.CtrlB)
	w.b = newSite(t, dir, "B", s.CtrlB, s.DTNB, (*guest.Server).Root, "vers=4.2", "A", s.CtrlA)
	for _, s := range []*site{&w.a, &w.b} {
		s.dtn.start(t)
		s.agent.start(t)
	}
	for _, s := range []*site{&w.a, &w.b} {
		s.awaitReady(t)
	}
	return w
}

// newSite makes a site; its daemons do not run yet.
func newSite(t *testing.T, dir, name string, ctrl, dtn *guest.Machine, source func(*guest.Server) string, options, peer string, peerCtrl *guest.Machine) site {
	t.Helper()
	s := site{ctrl: ctrl, server: dtn.Serve(t, "sync")}
	s.mount = ctrl.Mount(t, source(s.server), options)
	s.store = filepath.Join(s.mount, "store")
	if err := os.Mkdir(ctrl.Path(s.store), 0o750); err != nil {
		t.Fatal(err)
	}
	keystone := new(glancetest.Keystone)
	ctrl.Within(t, func() {
		keystone = glancetest.NewKeystone(t)
		s.glance = glancetest.New(t, "")
	})
	s.glance.Token = keystone.Valid
	keystone.Endpoint(name, "public", s.glance.URL)

	dir, ca := filepath.Join(dir, name), filepath.Join(dir, "ca")
	for role, m := range map[string]*guest.Machine{pki.Agent: ctrl, pki.DTN: dtn} {
		if _, err := pki.Issue(ca, pki.Identity{Site: name, Role: role}, []string{m.Addr.String()}, pki.LeafLife, dir); err != nil {
			t.Fatal(err)
		}
	}
	write := func(file, text string) string {
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	s.dtn = newDaemon(t, dtn, nil, "dtn", "--config", write("dtn.yaml", fmt.Sprintf(`
site: %s
log: {format: text}
export: %s
address: %s:7444
state: dtn-state
tls: {ca: ../ca/ca.pem}
reserve: 64MiB
`, name, s.server.Dir, dtn.Addr)))
	const control = "/run/glance-dtn/agent.sock"
	// The stand-in's clock is not ours, so nothing is ever found to be stuck.
	s.agent = newDaemon(t, ctrl, []string{
		"OS_AUTH_URL=" + keystone.URL, "OS_USERNAME=admin", "OS_PASSWORD=" + keystone.Password, "OS_PROJECT_NAME=admin",
		"OS_USER_DOMAIN_ID=default", "OS_PROJECT_DOMAIN_ID=default", "OS_REGION_NAME=" + name,
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
`, name, s.glance.Dir, s.store, s.mount, dtn.Addr, control, peer, peerCtrl.Addr)))
	s.control = api.NewControlClient(ctrl.Path(control))
	return s
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
