package pki

import (
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestIdentityIsReadFromExactlyOneURI(t *testing.T) {
	for _, c := range []struct {
		uris []string
		want string // empty: refused
	}{
		{[]string{"spiffe://glance-dtn/site/A/agent"}, "agent of site A"},
		{[]string{"spiffe://glance-dtn/site/paris_2-eu/dtn"}, "dtn of site paris_2-eu"},
		{[]string{"spiffe://glance-dtn/site/paris.eu/dtn"}, ""},
		{[]string{"spiffe://glance-dtn/site/A/operator"}, "operator of site A"},
		{nil, ""},
		{[]string{"spiffe://glance-dtn/site/A/agent", "https://example.org"}, ""},
		{[]string{"spiffe://glance-dtn/site/A/root"}, ""},
		{[]string{"spiffe://glance-dtn/site//agent"}, ""},
		{[]string{"spiffe://glance-dtn/site/A/agent/more"}, ""},
		{[]string{"spiffe://glance-dtn/site/A/agent?x=y"}, ""},
		{[]string{"spiffe://other/site/A/agent"}, ""},
		{[]string{"spiffe://u@glance-dtn/site/A/agent"}, ""},
		{[]string{"https://glance-dtn/site/A/agent"}, ""},
	} {
		cert := new(x509.Certificate)
		for _, s := range c.uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, u)
		}
		id, err := IdentityOf(cert)
		if got := id.String(); (err == nil) != (c.want != "") || err == nil && got != c.want {
			t.Errorf("IdentityOf(%v) = %q, %v; want %q", c.uris, got, err, c.want)
		}
	}
}

func TestIssuedCertificateServesBothSidesUnderItsNames(t *testing.T) {
	ca := newCA(t)
	id := Identity{"A", Agent}
	cert, err := ca.Issue(id, []string{"ctrl-a.example.org", "127.0.0.1", "::1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		for _, host := range []string{"ctrl-a.example.org", "127.0.0.1", "::1"} {
			_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}})
			if err != nil {
				t.Errorf("usage %v, host %s: %v", usage, host, err)
			}
		}
	}
	if got, err := IdentityOf(cert.Leaf); got != id {
		t.Errorf("identity = %v, %v; want %v", got, err, id)
	}
	if left := time.Until(cert.Leaf.NotAfter); left < LeafLife-time.Hour || left > LeafLife {
		t.Errorf("a life of zero lasts %v, want %v", left, LeafLife)
	}
	other, err := ca.Issue(id, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := cert.Leaf.SerialNumber; n.BitLen() < 64 || n.Cmp(other.Leaf.SerialNumber) == 0 {
		t.Errorf("serial numbers %v and %v are not random", n, other.Leaf.SerialNumber)
	}
}

func TestNoCertificateOutlivesItsCA(t *testing.T) {
	ca, err := NewCA("short", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(Identity{"A", DTN}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.Leaf.NotAfter.Equal(ca.cert.NotAfter) {
		t.Errorf("certificate ends %v, its CA %v", cert.Leaf.NotAfter, ca.cert.NotAfter)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := newCA(t)
	for _, c := range []struct {
		id   Identity
		host string
		want string
	}{
		{Identity{"A/../B", Agent}, "", "site"},
		{Identity{"", Agent}, "", "site"},
		{Identity{"A", "root"}, "", "role"},
		{Identity{"A", Agent}, "https://a.example.org", "host"},
		{Identity{"A", Agent}, "a.example.org:7442", "host"},
		{Identity{"A", Agent}, "", "host"},
	} {
		if _, err := ca.Issue(c.id, []string{c.host}, 0); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("Issue(%+v, %q) = %v, want an error about the %s", c.id, c.host, err, c.want)
		}
	}
}

func TestCAOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if err := InitCA(dir, "test", 0); err != nil {
		t.Fatal(err)
	}
	before := read(t, dir, CAKeyFile)
	if err := InitCA(dir, "again", 0); err == nil || !strings.Contains(err.Error(), "never replaced") {
		t.Errorf("second InitCA = %v, want a refusal", err)
	}
	if read(t, dir, CAKeyFile) != before {
		t.Error("the second InitCA replaced the key")
	}
	out := t.TempDir()
	for range 2 { // the second renews
		certFile, err := Issue(dir, Identity{"A", Agent}, []string{"127.0.0.1"}, 0, out)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(out, "agent.pem"); certFile != want {
			t.Errorf("certificate in %s, want %s", certFile, want)
		}
	}
	for path, want := range map[string]os.FileMode{
		filepath.Join(dir, CAKeyFile):   0o600,
		filepath.Join(out, "agent.key"): 0o600,
		filepath.Join(out, "agent.pem"): 0o644,
	} {
		if i, err := os.Stat(path); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, i.Mode(), err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(out, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := (Files{CA: filepath.Join(dir, CAFile), Cert: filepath.Join(out, "agent.pem"), Key: filepath.Join(out, "agent.key")}).Load(nil); err != nil {
		t.Errorf("what Issue wrote does not load: %v", err)
	}
}

func TestOpenKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := InitCA(dir, "test", 0); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, CAKeyFile)
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(dir); err == nil || !strings.Contains(err.Error(), "chmod 600 "+key) {
		t.Errorf("LoadCA = %v, want the chmod to run", err)
	}
}

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
