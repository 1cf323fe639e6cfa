package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// daemonTime bounds what a daemon under test may take for one thing.
const daemonTime = 2 * time.Minute

// process is a daemon that a test runs: the real binary, its log read line by line.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan map[string]any
}

func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	return startCommand(t, env, exec.Command("glance-dtn", args...))
}

func startCommand(t *testing.T, env []string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, lines: make(chan map[string]any, 1000)}
	p.cmd.Env = append(os.Environ(), env...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			line := map[string]any{}
			if json.Unmarshal(s.Bytes(), &line) != nil {
				line["msg"] = s.Text()
			}
			p.lines <- line
		}
	}()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	})
	return p
}

// logged waits for a line with this message and returns it.
func (p *process) logged(msg string) map[string]any {
	p.t.Helper()
	timeout := time.After(daemonTime)
	var before []string
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("ended without logging %q; it logged\n%s", msg, strings.Join(before, "\n"))
			}
			if line["msg"] == msg {
				return line
			}
			text, _ := json.Marshal(line)
			before = append(before, string(text))
		case <-timeout:
			p.t.Fatalf("did not log %q; it logged\n%s", msg, strings.Join(before, "\n"))
		}
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the end and returns the exit code and what was logged until then.
func (p *process) ends() (int, string) {
	p.t.Helper()
	kill := time.AfterFunc(daemonTime, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	var log bytes.Buffer
	for line := range p.lines {
		json.NewEncoder(&log).Encode(line)
	}
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode(), log.String()
}

// systemd is a service manager's notification socket.
type systemd struct {
	t    *testing.T
	conn *net.UnixConn
	env  []string
}

func newSystemd(t *testing.T) *systemd {
	t.Helper()
	name := filepath.Join(shortDir(t), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &systemd{t, conn, []string{"NOTIFY_SOCKET=" + name, "WATCHDOG_USEC=200000", "INVOCATION_ID=1"}}
}

// told waits for a notification that begins with state.
func (s *systemd) told(state string) {
	s.t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(daemonTime))
	buf := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			s.t.Fatalf("systemd was not told %s: %v", state, err)
		}
		if strings.HasPrefix(string(buf[:n]), state) {
			return
		}
	}
}

// shortDir is a directory whose name leaves room for a unix socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gdtn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// certificates makes an authority in dir and site A's two certificates beside its ca.pem.
func certificates(t *testing.T, dir string) {
	t.Helper()
	if err := pki.InitCA(dir, "test", 0); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{pki.Agent, pki.DTN} {
		if _, err := pki.Issue(dir, pki.Identity{Site: "A", Role: role}, []string{"127.0.0.1"}, 0, dir); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, hc *http.Client, url string) (int, string) {
	t.Helper()
	r, err := hc.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

const dtnConfig = `
site: A
export: export
listen: 127.0.0.1:0
data: 127.0.0.1:0
address: dtn-a.example.org:7444
state: state
metrics: 127.0.0.1:0
`

// TestTheTableOfExportsNamesTheExportWithoutLinks: dtn.yaml may name it with some.
func TestTheTableOfExportsNamesTheExportWithoutLinks(t *testing.T) {
	dir := t.TempDir()
	export, link, table := filepath.Join(dir, "export"), filepath.Join(dir, "link"), filepath.Join(dir, "etab")
	if err := errors.Join(os.Mkdir(export, 0o755), os.Symlink(export, link)); err != nil {
		t.Fatal(err)
	}
	write(t, table, export+"\t*(rw,async)\n")
	for _, name := range []string{export, link, link + "/"} {
		if got := acknowledges(table, name, slog.New(slog.DiscardHandler))(); got != mover.AckAsync {
			t.Errorf("%s is %q", name, got)
		}
	}
}

func TestDTNServesReloadsAndStops(t *testing.T) {
	dir := t.TempDir()
	certificates(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "export"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "dtn.yaml")
	write(t, conf, dtnConfig)
	manager := newSystemd(t)
	p := start(t, manager.env, "dtn", "--config", conf)
	started := p.logged("DTN started")
	manager.told("READY=1")
	manager.told("WATCHDOG=1")

	for box, mode := range map[string]os.FileMode{"outbox": 0o770, "inbox": 0o750} {
		if info, err := os.Stat(filepath.Join(dir, "export", box)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %o", box, info, err, mode)
		}
	}
	code, log := start(t, nil, "dtn", "--config", conf).ends()
	if code != exitFailed || !strings.Contains(log, "another DTN uses "+filepath.Join(dir, "state")) {
		t.Errorf("a second DTN on the same state: exit code %d, logged\n%s", code, log)
	}

	marker := filepath.Join(dir, "export", ".glance-dtn-export")
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/readyz"); code != 200 || !strings.Contains(body, `{"name":"certificate","ok":true}`) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if _, err := os.Stat(marker); err != nil {
		t.Errorf("the export has lost its marker: %v", err)
	}
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/metrics"); code != 200 || !strings.Contains(body, "glance_dtn_dtn_free_bytes") {
		t.Errorf("/metrics: %d %s", code, body)
	}
	ring, err := pki.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "agent.pem"), Key: filepath.Join(dir, "agent.key")}.Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	asAgent := &http.Client{Transport: ring.Transport(pki.Identity{Site: "A", Role: pki.DTN})}
	defer asAgent.CloseIdleConnections()
	if code, body := get(t, asAgent, "https://"+started["listen"].(string)+"/v1/capabilities"); code != 200 || !strings.Contains(body, "dtn-a.example.org:7444") {
		t.Errorf("capabilities: %d %s", code, body)
	}
	other, err := pki.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "dtn.pem"), Key: filepath.Join(dir, "dtn.key")}.Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	asDTN := &http.Client{Transport: other.Transport(pki.Identity{Site: "A", Role: pki.DTN})}
	if r, err := asDTN.Get("https://" + started["listen"].(string) + "/v1/capabilities"); !alerted(err) {
		t.Errorf("a DTN at the API: %+v, %v, want its certificate refused", r, err)
	}

	write(t, conf, dtnConfig+"transfers: many\n")
	p.signal(syscall.SIGHUP)
	manager.told("RELOADING=1")
	if line := p.logged("the new configuration is wrong, the old one stays"); !strings.Contains(line["err"].(string), "transfers") {
		t.Errorf("logged %v, want the key transfers", line)
	}
	manager.told("READY=1")
	write(t, conf, dtnConfig+"transfers: 7\nlimits: [{site: B, send: 1Mbit/s}]\n")
	p.signal(syscall.SIGHUP)
	if line := p.logged("some changes need a restart; all others are in force"); fmt.Sprint(line["keys"]) != "[transfers]" {
		t.Errorf("logged %v, want the key transfers", line)
	}
	p.logged("configuration reloaded")
	want := `glance_dtn_dtn_limit_bits_per_second{direction="send",site="B"} 1e+06`
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/metrics"); code != 200 || !strings.Contains(body, want) {
		t.Errorf("/metrics: %d, not %s in\n%s", code, want, body)
	}
	write(t, conf, dtnConfig+"limits: [{site: B, send: 200Mbit/s}]\n")
	p.signal(syscall.SIGHUP)
	p.logged("configuration reloaded")
	want = `glance_dtn_dtn_limit_bits_per_second{direction="send",site="B"} 2e+08`
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/metrics"); code != 200 || !strings.Contains(body, want) {
		t.Errorf("/metrics: %d, not %s in\n%s", code, want, body)
	}

	p.signal(syscall.SIGTERM)
	manager.told("STOPPING=1")
	if code, log := p.ends(); code != 0 {
		t.Errorf("exit code %d after SIGTERM; it logged\n%s", code, log)
	}
}

func TestDaemonRefusesTheCertificateOfAnother(t *testing.T) {
	dir := t.TempDir()
	certificates(t, dir)
	conf := filepath.Join(dir, "dtn.yaml")
	write(t, conf, dtnConfig+"tls: {cert: agent.pem, key: agent.key}\n")
	code, log := start(t, nil, "dtn", "--config", conf).ends()
	if code != exitFailed || !strings.Contains(log, "is the certificate of the agent of site A, and this is the dtn of site A") {
		t.Errorf("exit code %d, logged\n%s", code, log)
	}
}

const agentConfig = `
site: A
glance: {datadirs: [store]}
export: export
dtn: {url: "https://127.0.0.1:9"}
listen: 127.0.0.1:0
metrics: 127.0.0.1:0
state: {embedded: state}
peers: [{name: B, url: "https://127.0.0.1:9"}]
`

// TestAReloadSaysWhatNeedsARestart, and of what is in force nothing where none of it is.
func TestAReloadSaysWhatNeedsARestart(t *testing.T) {
	dir := t.TempDir()
	certificates(t, dir)
	ring, err := pki.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "agent.pem"), Key: filepath.Join(dir, "agent.key")}.Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.yaml")
	peer := func(url, via string) string {
		return strings.Replace(agentConfig, "https://127.0.0.1:9\"}]", url+"\", callback: true"+via+"}]", 1)
	}
	write(t, file, peer("https://127.0.0.1:9", ""))
	running, err := config.LoadAgent(file, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ via, err, log string }{
		{"", "<nil>", `keys="[peers: callback or url]"`},
		{`, via: {mode: auto, among: [{site: R, address: "r:1"}]}`, "peer B: nothing chooses among its relays", ""},
	} {
		write(t, file, peer("https://127.0.0.1:10", c.via))
		var log bytes.Buffer
		err := reload(&site{agent: new(agent.Agent), ring: ring, callbacks: new(api.Callbacks)}, file, running, slog.New(slog.NewTextHandler(&log, nil)))
		if fmt.Sprint(err) != c.err || !strings.Contains(log.String(), c.log) || c.log == "" && log.Len() > 0 {
			t.Errorf("error %v, want %s; logged %q, want %q", err, c.err, log.String(), c.log)
		}
	}
}

// noGlance is an environment in which a Glance is configured and does not answer.
var noGlance = []string{"OS_AUTH_TYPE=admin_token", "OS_ENDPOINT=http://127.0.0.1:9", "OS_TOKEN=none"}

// An agent starts, answers and stops while neither Glance nor the DTN nor a peer
// does, and it is the only one on its state.
func TestAgentServesReloadsAndStops(t *testing.T) {
	dir := t.TempDir()
	certificates(t, dir)
	for _, sub := range []string{"export", "store"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(shortDir(t), "s")
	conf := filepath.Join(dir, "agent.yaml")
	text := agentConfig + "control: " + socket + "\n"
	write(t, conf, text)
	manager := newSystemd(t)
	p := start(t, append(manager.env, noGlance...), "agent", "--config", conf)
	started := p.logged("agent started")
	manager.told("READY=1")
	manager.told("WATCHDOG=1")

	if out, err := exec.Command("glance-dtn", "jobs", "--control", socket).CombinedOutput(); err != nil || string(out) != "no jobs\n" {
		t.Errorf("jobs: %v\n%s", err, out)
	}
	if out, err := exec.Command("glance-dtn", "push", "debian-12", "--to", "Z", "--control", socket).CombinedOutput(); err == nil || !strings.Contains(string(out), "site Z: no such peer site") {
		t.Errorf("push to a site that is no peer: %v\n%s", err, out)
	}
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/readyz"); code != 503 || !strings.Contains(body, "glance") || !strings.Contains(body, "datadir") {
		t.Errorf("/readyz without a Glance: %d %s", code, body)
	}
	if code, body := get(t, http.DefaultClient, "http://"+started["metrics"].(string)+"/metrics"); code != 200 || !strings.Contains(body, "glance_dtn_agent_") {
		t.Errorf("/metrics: %d %s", code, body)
	}

	// --once finds the agent of its configuration; with that out of sight it wants to do the work itself, and cannot.
	once := exec.Command("glance-dtn", "push", "debian-12", "--to", "Z", "--once", "--config", conf, "--control", socket+"2")
	once.Env = append(os.Environ(), noGlance...)
	if out, err := once.CombinedOutput(); err == nil || !strings.Contains(string(out), "site Z: no such peer site") {
		t.Errorf("push --once with another control socket: %v\n%s", err, out)
	}
	elsewhere := filepath.Join(dir, "elsewhere.yaml")
	write(t, elsewhere, agentConfig+"control: "+socket+"2\n")
	once = exec.Command("glance-dtn", "push", "debian-12", "--to", "B", "--once", "--config", elsewhere, "--control", socket+"2")
	once.Env = append(os.Environ(), noGlance...)
	if out, err := once.CombinedOutput(); err == nil || !strings.Contains(string(out), "none can run here") || !strings.Contains(string(out), "a --once that still runs, works with it: wait until it has ended") {
		t.Errorf("push --once beside a running agent: %v\n%s", err, out)
	}

	write(t, conf, text+"rules: [{name: all, to: [C]}]\n")
	p.signal(syscall.SIGHUP)
	manager.told("RELOADING=1")
	if line := p.logged("the new configuration is wrong, the old one stays"); !strings.Contains(line["err"].(string), "rules[0].to") {
		t.Errorf("logged %v, want the key rules[0].to", line)
	}
	manager.told("READY=1")
	write(t, conf, text+"rules: [{name: all, to: [B]}]\n")
	p.signal(syscall.SIGHUP)
	p.logged("configuration reloaded")

	p.signal(syscall.SIGTERM)
	manager.told("STOPPING=1")
	if code, log := p.ends(); code != 0 {
		t.Errorf("exit code %d after SIGTERM; it logged\n%s", code, log)
	}

	// Now the state is free, and --once gets as far as asking Glance.
	once = exec.Command("glance-dtn", "push", "debian-12", "--to", "B", "--once", "--config", conf, "--control", socket)
	once.Env = append(os.Environ(), noGlance...)
	if out, err := once.CombinedOutput(); err == nil || !strings.Contains(string(out), "127.0.0.1:9") {
		t.Errorf("push --once: %v\n%s", err, out)
	}
}

// alerted reports whether the other end ended the handshake of TLS.
func alerted(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "remote error"
}
