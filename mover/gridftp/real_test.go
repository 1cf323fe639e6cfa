package gridftp

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/internal/nettest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
)

// Debian's globus-gridftp-server and globus-url-copy run where GLANCE_DTN_REAL is set: the
// test binary starts itself again in new namespaces, so that the path between the servers
// can be made slow and all that it has started ends with it.
const insideVariable = "GLANCE_DTN_GRIDFTP_INSIDE"

var inside = os.Getenv(insideVariable) != ""

func TestMain(m *testing.M) {
	if !inside && os.Getenv("GLANCE_DTN_REAL") != "" && os.Geteuid() == 0 && !inGuest() {
		os.Exit(again())
	}
	if filepath.Base(os.Args[0]) == fakeName {
		// At once: with the race detector os.Exit takes a second.
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(fakeCopy(os.Args[1:])), 0, 0)
	}
	if inside {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// inGuest reports whether this is the guest of package guest, which has a network of its own
// and no GridFTP server.
func inGuest() bool {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(cpu, []byte("User Mode Linux"))
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
const slow = "84mbit"

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
	l := nettest.Listen(t, "127.0.0.1:0")
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
		var lines bytes.Buffer
		for _, m := range mapped {
			fmt.Fprintf(&lines, "%q root\n", "/CN="+m)
		}
		write(t, gridmap, lines.Bytes())
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
		if time.Since(began) > time.Minute {
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

// realRig is a rig between two real servers.
type realRig struct {
	*rig
	a, b *server
}

func newRig(t *testing.T, g *grid) *realRig {
	t.Helper()
	dir := t.TempDir()
	a, b := serve(t, g, "A"), serve(t, g, "A")
	var client Client
	if g != nil {
		client.Cert, client.Key = g.issue(t, "A", time.Now().Add(time.Hour))
		client.CertDir = g.dir
	}
	nobody := *b
	nobody.port = 1
	r := &realRig{assemble(t, dir, client, a.url(dir+"/a"), b.url(dir+"/b"), nobody.url(dir+"/b")), a, b}
	r.Sent = func() int64 { return sent(t) }
	r.Cut = b.cut
	r.Restart = func(t *testing.T) {
		b.kill()
		r.stopInbox()
		b.start(t)
		r.startInbox(t)
	}
	return r
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

// TestSuite runs the suite that every engine passes between two real servers.
func TestSuite(t *testing.T) {
	needReal(t)
	movertest.Run(t, func(t *testing.T) movertest.Rig {
		rate := slow
		if strings.Contains(t.Name(), "several_hundred") {
			rate = "" // it asks for no pace, and is large
		}
		setRate(t, rate)
		return newRig(t, nil).rig.Rig
	})
}

// TestServersThatKnowUsByCertificate moves files with GSI: as it should be, and with each
// thing wrong that operators get wrong.
func TestServersThatKnowUsByCertificate(t *testing.T) {
	needReal(t)
	setRate(t, "")
	g := newGrid(t)
	for _, p := range []Protection{Clear, Safe, Private} {
		t.Run(string(p), func(t *testing.T) {
			r := newRig(t, g)
			r.engine().Client.Protection = p
			if err := r.moves(t); err != nil {
				t.Error(err)
			}
			if err := r.engine().Client.Check(t.Context(), r.Address); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, r *realRig)
		says  string
	}{
		"a stranger's certificate": {func(t *testing.T, r *realRig) {
			r.engine().Client.Cert, r.engine().Client.Key = newGrid(t).issue(t, "A", time.Now().Add(time.Hour))
		}, "CA"},
		"a certificate that has expired": {func(t *testing.T, r *realRig) {
			r.engine().Client.Cert, r.engine().Client.Key = g.issue(t, "A", time.Now().Add(-time.Minute))
		}, "expired"},
		"a subject that is not mapped": {func(t *testing.T, r *realRig) {
			r.engine().Client.Cert, r.engine().Client.Key = g.issue(t, "Mallory", time.Now().Add(time.Hour))
		}, "grid-mapfile"},
		"no certificate": {func(t *testing.T, r *realRig) {
			r.engine().Client.Cert, r.engine().Client.Key = "/nonexistent", "/nonexistent"
		}, "gridftp.cert"},
		"no authorities": {func(t *testing.T, r *realRig) { r.engine().Client.CertDir = t.TempDir() }, "gridftp.cert_dir"},
		"a site that takes files unprotected": {func(t *testing.T, r *realRig) {
			r.Address = strings.Replace(r.Address, "gsiftp", "ftp", 1)
		}, "the same scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, g)
			c.spoil(t, r)
			err := r.moves(t)
			if mover.CodeOf(err) != mover.CodeAuth || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v (code %s), want code %s and a word about %q", err, mover.CodeOf(err), mover.CodeAuth, c.says)
			}
		})
	}
}

// TestAFullDisk holds that a server that can write no more is told from other faults.
func TestAFullDisk(t *testing.T) {
	needReal(t)
	setRate(t, "")
	r := newRig(t, nil)
	inbox := filepath.Join(r.Destination, mover.Inbox)
	if err := syscall.Mount("none", inbox, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(inbox, syscall.MNT_DETACH) })
	err := r.engine().Client.copy(t.Context(), transfer{
		from: r.a.url(r.Source + "/outbox/big"), to: r.Address + "/inbox/.big.part",
		span: span{0, 4 << 20}, parallelism: 2, stall: time.Minute,
	}, func(int64) {})
	if mover.CodeOf(err) != mover.CodeSource {
		t.Errorf("a source that is missing: got %v (code %s), want code %s", err, mover.CodeOf(err), mover.CodeSource)
	}
	write(t, r.Source+"/outbox/big", make([]byte, 4<<20))
	err = r.engine().Client.copy(t.Context(), transfer{
		from: r.a.url(r.Source + "/outbox/big"), to: r.Address + "/inbox/.big.part",
		span: span{0, 4 << 20}, parallelism: 2, stall: time.Minute,
	}, func(int64) {})
	if mover.CodeOf(err) != mover.CodeSpace {
		t.Errorf("got %v (code %s), want code %s", err, mover.CodeOf(err), mover.CodeSpace)
	}
}

// TestChecks holds what an operator is told of a server that cannot be used.
func TestChecks(t *testing.T) {
	needReal(t)
	setRate(t, "")
	r := newRig(t, nil)
	c := &r.engine().Client
	if err := c.Check(t.Context(), r.Address); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for url, says := range map[string]string{
		r.Nobody:                   "is globus-gridftp-server running there",
		r.Address + "/elsewhere":   "not the receiving site's export",
		"ftp://nosuch.invalid/x":   "no GridFTP server can be reached",
		"ftp://localhost/x/../etc": "path of an export",
	} {
		if err := c.Check(t.Context(), url); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want a word about %q", url, err, says)
		}
	}
}
