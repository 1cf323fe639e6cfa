package pki

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// site is a directory with a certificate, as a daemon has it.
type site struct {
	t  *testing.T
	ca *CA
	Files
}

func newSite(t *testing.T, ca *CA, id Identity, life time.Duration) *site {
	dir := t.TempDir()
	s := &site{t, ca, Files{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "own.pem"), filepath.Join(dir, "own.key")}}
	s.trust(ca)
	s.issue(id, life)
	return s
}

func (s *site) trust(cas ...*CA) {
	var all []byte
	for _, ca := range cas {
		all = append(all, encodeCert(ca.cert.Raw)...)
	}
	s.write(s.CA, all, 0o644)
}

func (s *site) issue(id Identity, life time.Duration) {
	s.t.Helper()
	c, err := s.ca.Issue(id, []string{"127.0.0.1", "here.example.org"}, life)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := encodeKey(c.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(s.Key, key, 0o600)
	s.write(s.Cert, encodeCert(c.Certificate[0]), 0o644)
}

func (s *site) write(path string, data []byte, perm os.FileMode) {
	s.t.Helper()
	if err := replace(path, data, perm); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) load(report func(error)) *Keyring {
	s.t.Helper()
	k, err := s.Load(report)
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

// shake does a handshake and returns what each side says of it.
func shake(server, client *tls.Config) (serverErr, clientErr error) {
	a, b := wire()
	client = client.Clone()
	if client.ServerName == "" {
		client.ServerName = "here.example.org"
	}
	done := make(chan error)
	go func() {
		defer a.Close()
		_, err := tls.Server(a, server).Write([]byte("x"))
		done <- err
	}()
	_, clientErr = tls.Client(b, client).Read(make([]byte, 1)) // in TLS 1.3 the client learns only here that it was refused
	b.Close()
	return <-done, clientErr
}

// wire is a connection in memory that buffers a flight in each direction, as a
// network does: on a bare net.Pipe two sides that write at once block each other.
func wire() (a, b net.Conn) {
	a, ra := net.Pipe()
	b, rb := net.Pipe()
	pump := func(dst, src net.Conn) {
		_, _ = io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src})
		dst.Close()
	}
	go pump(ra, rb)
	go pump(rb, ra)
	return a, b
}

var (
	agentA = Identity{"A", Agent}
	agentB = Identity{"B", Agent}
)

func TestHandshakeChecksWhoTheOtherIs(t *testing.T) {
	onlyB := func(id Identity) error {
		if id != agentB {
			return errors.New("not for " + id.String())
		}
		return nil
	}
	ca, stranger := newCA(t), newCA(t)
	server := newSite(t, ca, agentA, 0).load(nil)
	for _, c := range []struct {
		name   string
		ca     *CA
		client Identity
		want   Identity
		host   string
		server string // part of the server's error
		err    string // part of the client's error
	}{
		{name: "right", ca: ca, client: agentB, want: agentA},
		{name: "any site", ca: ca, client: agentB, want: Identity{Role: Agent}},
		{name: "caller of another site", ca: ca, client: Identity{"C", Agent}, want: agentA, server: "not for agent of site C", err: "the server refuses this host's certificate or TLS (bad certificate); its log says why"},
		{name: "caller of another role", ca: ca, client: Identity{"B", DTN}, want: agentA, server: "not for dtn of site B", err: "the server refuses this host's certificate"},
		{name: "caller of another CA", ca: stranger, client: agentB, want: agentA, server: "unknown authority", err: "add it to the file tls: ca there"},
		{name: "server of another site", ca: ca, client: agentB, want: Identity{"C", Agent}, server: "bad certificate", err: "the server is the agent of site A, not the agent of site C"},
		{name: "server of another role", ca: ca, client: agentB, want: Identity{Role: DTN}, server: "bad certificate", err: "the server is the agent of site A"},
		{name: "other host name", ca: ca, client: agentB, want: agentA, host: "there.example.org", server: "bad certificate", err: "glance-dtn pki issue --host there.example.org"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, c.ca, c.client, 0)
			s.trust(ca, c.ca)
			conf := s.load(nil).ClientTLS(c.want)
			conf.ServerName = c.host
			serverErr, clientErr := shake(server.ServerTLS(onlyB), conf)
			check(t, "server", serverErr, c.server)
			check(t, "client", Explain(clientErr), c.err)
		})
	}
}

func check(t *testing.T, who string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: got %v, want %q", who, err, want)
	}
}

func TestCallerNeedsACertificate(t *testing.T) {
	ca := newCA(t)
	serverErr, _ := shake(newSite(t, ca, agentA, 0).load(nil).ServerTLS(nil), &tls.Config{RootCAs: ca.Pool()})
	check(t, "server", serverErr, "didn't provide a certificate")
}

func TestCertificateThatExpiresWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		a := newSite(t, ca, agentA, time.Hour).load(nil)
		b := newSite(t, ca, agentB, 2*time.Hour).load(nil)
		serverErr, clientErr := shake(b.ServerTLS(nil), a.ClientTLS(agentB))
		check(t, "server", serverErr, "")
		check(t, "client", clientErr, "")
		time.Sleep(time.Hour + time.Second)
		check(t, "who watches", a.Fault(), "expired")
		check(t, "who watches the other", b.Fault(), "")
		_, clientErr = shake(b.ServerTLS(nil), a.ClientTLS(agentB))
		check(t, "its client", clientErr, "run glance-dtn pki issue CA-DIR --site A --role agent")
		serverErr, _ = shake(a.ServerTLS(nil), b.ClientTLS(agentA))
		check(t, "its server", serverErr, "run glance-dtn pki issue")
		stubborn := b.ServerTLS(nil)
		cert := a.Certificate()
		serverErr, _ = shake(stubborn, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: ca.Pool()})
		check(t, "server of an expired caller", serverErr, "expired")
		_, clientErr = shake(&tls.Config{Certificates: []tls.Certificate{cert}}, b.ClientTLS(agentA))
		check(t, "client of an expired server", Explain(clientErr), "only; on its host run glance-dtn pki issue")
	})
}

func TestChangedFilesAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		s := newSite(t, ca, agentA, time.Hour)
		k := s.load(func(err error) { t.Errorf("reported: %v", err) })
		first := k.NotAfter()
		s.issue(agentA, 2*time.Hour)
		if got := k.NotAfter(); !got.Equal(first) {
			t.Errorf("looked again at once: %v", got)
		}
		time.Sleep(checkEvery)
		if got := k.NotAfter(); !got.After(first) {
			t.Errorf("certificate ends %v, want the new one's end", got)
		}
		next := newCA(t)
		s.trust(ca, next)
		time.Sleep(checkEvery)
		peer := newSite(t, next, agentB, 0)
		peer.trust(ca, next)
		_, err := shake(peer.load(nil).ServerTLS(nil), k.ClientTLS(agentB))
		check(t, "client of a server of the new CA", err, "")
	})
}

func TestBrokenFilesAreReportedOnceAndTheOldOnesKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, newCA(t), agentA, time.Hour)
		var faults []string
		k := s.load(func(err error) { faults = append(faults, err.Error()) })
		old := k.NotAfter()
		whole := []byte(read(t, filepath.Dir(s.Cert), filepath.Base(s.Cert)))
		s.write(s.Cert, whole[:len(whole)/2], 0o644)
		for range 3 {
			time.Sleep(checkEvery)
			if got := k.NotAfter(); !got.Equal(old) {
				t.Fatalf("certificate ends %v, want the old one's %v", got, old)
			}
		}
		if len(faults) != 1 || !strings.Contains(faults[0], "keep the old certificate") || !strings.Contains(faults[0], s.Cert) {
			t.Errorf("reported %q, want one fault that names %s", faults, s.Cert)
		}
		check(t, "who watches", k.Fault(), s.Cert)
		s.issue(agentB, 2*time.Hour) // somebody else's
		time.Sleep(checkEvery)
		if got := k.Identity(); got != agentA || len(faults) != 2 {
			t.Errorf("it is %v now; reported %q", got, faults)
		}
		check(t, "who watches", k.Fault(), "agent of site B")
		s.issue(agentA, 2*time.Hour)
		time.Sleep(checkEvery)
		if got := k.NotAfter(); !got.After(old) {
			t.Errorf("certificate ends %v, want the repaired one's end", got)
		}
		check(t, "who watches", k.Fault(), "")
	})
}

func TestLoadSaysWhatToDo(t *testing.T) {
	ca := newCA(t)
	for _, c := range []struct {
		name  string
		spoil func(*site)
		want  string
	}{
		{"expired", func(s *site) { s.issue(agentA, -time.Minute) }, "run glance-dtn pki issue CA-DIR --site A --role agent"},
		{"open key", func(s *site) { _ = os.Chmod(s.Key, 0o604) }, "run: chmod 600"},
		{"no key", func(s *site) { _ = os.Remove(s.Key) }, "own.key"},
		{"no authority", func(s *site) { s.write(s.CA, []byte("nothing"), 0o644) }, "ca.pem holds no certificate"},
		{"other authority", func(s *site) { s.trust(newCA(t)) }, "is not of an authority in"},
		{"other key", func(s *site) {
			old := read(t, filepath.Dir(s.Cert), "own.pem")
			s.issue(agentA, 0)
			s.write(s.Cert, []byte(old), 0o644)
		}, "with key"},
		{"no identity", func(s *site) { s.write(s.Cert, withoutIdentity(t, s.ca, s), 0o644) }, "instead of one identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, ca, agentA, 0)
			c.spoil(s)
			_, err := s.Load(nil)
			check(t, "Load", err, c.want)
		})
	}
}

// withoutIdentity signs s's key again, in a certificate without URI.
func withoutIdentity(t *testing.T, ca *CA, s *site) []byte {
	pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := sign(template("nobody", time.Hour), ca.cert, pair.Leaf.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func TestTransportReachesAnHTTPServer(t *testing.T) {
	ca := newCA(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		TLSConfig:         newSite(t, ca, agentA, 0).load(nil).ServerTLS(nil),
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := IdentityOf(r.TLS.VerifiedChains[0][0])
			_, _ = io.WriteString(w, id.String())
			if err != nil {
				t.Error(err)
			}
		}),
	}
	go func() { _ = server.ServeTLS(l, "", "") }()
	defer server.Close()
	tr := newSite(t, ca, agentB, 0).load(nil).Transport(agentA)
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if got, want := string(body), "agent of site B"; err != nil || got != want {
		t.Errorf("the server saw %q, %v; want %q", got, err, want)
	}
}
