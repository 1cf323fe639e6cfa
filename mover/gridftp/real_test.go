package gridftp

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// Debian's globus-gridftp-server and globus-url-copy run where GLANCE_DTN_REAL is set: the
// test binary starts itself again in new namespaces, so that the path between the servers
// can be made slow and all that it has started ends with it.
const insideVariable = "GLANCE_DTN_GRIDFTP_INSIDE"

var inside = os.Getenv(insideVariable) != ""

func TestMain(m *testing.M) {
	if !inside && os.Getenv("GLANCE_DTN_REAL") != "" && os.Geteuid() == 0 {
		os.Exit(again())
	}
	if inside {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// again runs this binary in new namespaces and returns its exit code.
func again() int {
	runtime.LockOSThread() // the child dies with this thread
	out, err := exec.Command("../../deploy/sandbox/sandbox", "install", "globus-gridftp-server-progs", "globus-gass-copy-progs", "iproute2").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", out, err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func enter() error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("none", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	return run("ip", "link", "set", "lo", "up")
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func needReal(t *testing.T) {
	t.Helper()
	if inside {
		return
	}
	if os.Getenv("GLANCE_DTN_REAL") != "" {
		t.Fatal("GLANCE_DTN_REAL is set: this needs root")
	}
	t.Skip("needs Debian's GridFTP server and root; set GLANCE_DTN_REAL")
}

// slow is a rate at which a server's restart markers, one in 5 s, tell that more than
// half of the suite's 64 MiB is there and not yet all.
const slow = "76mbit"

func setRate(t *testing.T, rate string) {
	t.Helper()
	_ = run("tc", "qdisc", "del", "dev", "lo", "root") // there may be none
	if rate == "" {
		return
	}
	if err := run("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "256k", "latency", "1s"); err != nil {
		t.Fatal(err)
	}
}

// grid is a certification authority as GSI has it, with RSA keys.
type grid struct {
	dir  string // the certificates directory
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func newGrid(t *testing.T) *grid {
	t.Helper()
	g := &grid{dir: filepath.Join(t.TempDir(), "certificates")}
	var err error
	if g.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "grid"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, g.key.Public(), g.key)
	if err != nil {
		t.Fatal(err)
	}
	if g.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	hash := subjectHash(t, "grid")
	write(t, filepath.Join(g.dir, hash+".0"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, filepath.Join(g.dir, hash+".signing_policy"), []byte("access_id_CA X509 '/CN=grid'\npos_rights globus CA:sign\ncond_subjects globus '\"*\"'\n"))
	return g
}

// subjectHash is OpenSSL's name for a certificate whose subject is a common name alone:
// SHA-1 of the subject with its strings in canonical form, lower case UTF8String.
func subjectHash(t *testing.T, name string) string {
	t.Helper()
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	der, err := asn1.MarshalWithParams([]attribute{{asn1.ObjectIdentifier{2, 5, 4, 3}, name}}, "set")
	if err != nil {
		t.Fatal(err)
	}
	h := sha1.Sum(der)
	return fmt.Sprintf("%02x%02x%02x%02x", h[3], h[2], h[1], h[0])
}

// issue writes a certificate for localhost and its key, and returns their files.
func (g *grid) issue(t *testing.T, name string, until time.Time) (cert, key string) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}, g.cert, k.Public(), g.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}))
	return cert, key
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// server is a globus-gridftp-server that shows a directory.
type server struct {
	scheme string
	port   int
	args   []string
	env    []string
	cmd    *exec.Cmd
}

// serve starts a server: with GSI where there is a grid, which lets the named ones in,
// else for everybody.
func serve(t *testing.T, g *grid, mapped ...string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{scheme: "ftp", port: l.Addr().(*net.TCPAddr).Port, env: []string{"PATH=/usr/sbin:/usr/bin"}}
	l.Close()
	s.args = []string{
		"-s", "-p", strconv.Itoa(s.port), "-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1", "-hostname", "localhost",
		"-c", "/dev/null", "-C", t.TempDir(), "-allow-root", "-sync-writes",
	}
	if g == nil {
		s.args = append(s.args, "-aa", "-anonymous-user", "root", "-home-dir", "/")
	} else {
		s.scheme = "gsiftp"
		cert, key := g.issue(t, "server", time.Now().Add(time.Hour))
		gridmap := filepath.Join(t.TempDir(), "grid-mapfile")
		lines := ""
		for _, m := range mapped {
			lines += fmt.Sprintf("%q root\n", "/CN="+m)
		}
		write(t, gridmap, []byte(lines))
		s.env = append(s.env, "X509_CERT_DIR="+g.dir, "X509_USER_CERT="+cert, "X509_USER_KEY="+key, "GRIDMAP="+gridmap)
	}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *server) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command("globus-gridftp-server", s.args...)
	s.cmd.Env = s.env
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(s.port))
		if err == nil {
			c.Close()
			return
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("globus-gridftp-server %s: %v", strings.Join(s.args, " "), err)
		}
	}
}

// kill ends the server and its children without notice.
func (s *server) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	_ = s.cmd.Wait()
}

// cut ends the children, of which each has a connection.
func (s *server) cut() {
	pid := strconv.Itoa(s.cmd.Process.Pid)
	children, _ := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	for child := range strings.FieldsSeq(string(children)) {
		if n, err := strconv.Atoi(child); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

func (s *server) url(dir string) string {
	return fmt.Sprintf("%s://localhost:%d%s", s.scheme, s.port, dir)
}

// rig is an engine, and an inbox behind a server.
type rig struct {
	movertest.Rig
	a, b   *server
	client Client
	export *os.Root
	state  *os.Root
	opts   InboxOptions
	free   atomic.Int64

	mu    sync.Mutex // guards what follows
	inbox *Inbox
	stop  func()
}

func newRig(t *testing.T, g *grid) *rig {
	t.Helper()
	dir := t.TempDir()
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
	r := &rig{a: serve(t, g, "A"), b: serve(t, g, "A"), export: openRoot(t, dir+"/b"), state: openRoot(t, dir+"/state")}
	r.free.Store(math.MaxInt64)
	if g != nil {
		r.client.Cert, r.client.Key = g.issue(t, "A", time.Now().Add(time.Hour))
		r.client.CertDir = g.dir
	}
	r.opts = InboxOptions{
		Check: func(token string) (mover.Ticket, error) { return ticket.Verify(ca.Pool(), "B", token, time.Now()) },
		Free:  func() (int64, error) { return r.free.Load(), nil },
		Every: 10 * time.Millisecond,
	}
	nobody := *r.b
	nobody.port = 1
	r.Rig = movertest.Rig{
		Engine: &Engine{
			Client: r.client, Site: "A", Export: openRoot(t, dir+"/a"), URL: r.a.url(dir + "/a"),
			Ticket: func(token string) (mover.Ticket, error) { return ticket.VerifyAny(ca.Pool(), token, time.Now()) },
			Poll:   10 * time.Millisecond,
		},
		Source: dir + "/a", Destination: dir + "/b", Address: r.b.url(dir + "/b"), Nobody: nobody.url(dir + "/b"), From: "A", Site: "B",
		Sign: func(tk mover.Ticket) (string, error) { return ticket.Sign(agent, tk) },
		Sent: func() int64 { return sent(t) },
		Cut:  r.b.cut,
		Restart: func(t *testing.T) {
			r.b.kill()
			r.stopInbox()
			r.b.start(t)
			r.startInbox(t)
		},
		Free: r.free.Store,
		Drop: func(name string) error { return r.now().Drop(name) },
		Own:  []string{"github.com/glance-dtn/glance-dtn/mover/gridftp.(*Inbox).Run"},
	}
	r.startInbox(t)
	t.Cleanup(r.stopInbox)
	return r
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
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

// sent is what has gone through the namespace's only interface.
func sent(t *testing.T) int64 {
	data, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 9 && f[0] == "lo:" {
			n, _ := strconv.ParseInt(f[9], 10, 64)
			return n
		}
	}
	t.Errorf("no lo in %s", data)
	return 0
}

// TestSuite runs the suite that every engine passes between two real servers, which know
// the engine by its certificate and encrypt what they send each other.
func TestSuite(t *testing.T) {
	needReal(t)
	g := newGrid(t)
	movertest.Run(t, func(t *testing.T) movertest.Rig {
		rate := slow
		if strings.Contains(t.Name(), "several_hundred") {
			rate = "" // it asks for no pace, and is large
		}
		setRate(t, rate)
		return newRig(t, g).Rig
	})
}
