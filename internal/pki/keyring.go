package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// checkEvery bounds how often a Keyring looks whether its files have changed.
const checkEvery = 3 * time.Second

// Files are where a daemon's certificate lies.
type Files struct {
	CA   string // PEM, one or more authorities
	Cert string // PEM, the daemon's own certificate
	Key  string // PEM, its private key, readable by its owner only
}

// Keyring is a daemon's certificate, key and authorities. It reads the files anew
// when they have changed, and keeps what it has while they are broken or somebody
// else's. It may be used by many goroutines at once.
type Keyring struct {
	files  Files
	report func(error)

	mu      sync.Mutex // guards what follows
	checked time.Time
	stamps  []fs.FileInfo // nil: read the files whatever their stamps are
	ring    ring
	fault   string // the last one reported
}

type ring struct {
	id    Identity
	cert  tls.Certificate
	roots *x509.CertPool
}

// Load reads the files. report is told, once for each, why changed files could
// not be taken; nil drops that. It must not call the Keyring.
func (f Files) Load(report func(error)) (*Keyring, error) {
	if report == nil {
		report = func(error) {}
	}
	k := &Keyring{files: f, report: report, checked: time.Now()}
	k.stamps = f.stamps()
	var err error
	k.ring, err = f.read()
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Identity is whom the certificate speaks for.
func (k *Keyring) Identity() Identity { return k.current().id }

// Certificate returns the certificate and its key.
func (k *Keyring) Certificate() tls.Certificate { return k.current().cert }

// Roots returns the authorities.
func (k *Keyring) Roots() *x509.CertPool { return k.current().roots }

// NotAfter is when the certificate expires.
func (k *Keyring) NotAfter() time.Time { return k.current().cert.Leaf.NotAfter }

// Fault is why the certificate serves no more, or will not at the daemon's next start, since
// its files have changed to what cannot be taken. It is nil where all is well.
func (k *Keyring) Fault() error {
	if err := unexpired(k.files.Cert, k.current()); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fault != "" {
		return fmt.Errorf("the files have changed, cannot be used and would not be at the next start, the old certificate stays until then: %s", k.fault)
	}
	return nil
}

// Watched is what those who watch a daemon are told of its certificate. A Keyring does that.
type Watched interface {
	NotAfter() time.Time
	Fault() error
}

// ServerTLS serves TLS 1.3 to callers with a certificate of the authorities whose
// identity allow accepts; a nil allow accepts every identity. Each handshake uses
// the files of that moment. It offers no ALPN, so net/http speaks HTTP/1.1 over it.
func (k *Keyring) ServerTLS(allow func(Identity) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			r := k.current()
			if err := unexpired(k.files.Cert, r); err != nil {
				return nil, err
			}
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{r.cert},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              r.roots,
				SessionTicketsDisabled: true, // no connection outlives the files it was verified with
				// a data plane may send long blocks over a connection that it has accepted
				DynamicRecordSizingDisabled: true,
				VerifyConnection: func(s tls.ConnectionState) error {
					id, err := IdentityOf(s.PeerCertificates[0])
					if err != nil || allow == nil {
						return err
					}
					return allow(id)
				},
			}, nil
		},
	}
}

// ClientTLS shows the certificate of the moment of each handshake, and verifies the
// server's certificate, its host name, and that its identity is want; an empty
// want.Site means any site. The authorities are those at the time of the call, so
// a client that lives long asks for a new one for each connection, as Transport does.
func (k *Keyring) ClientTLS(want Identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    k.Roots(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			r := k.current()
			return &r.cert, unexpired(k.files.Cert, r)
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := IdentityOf(s.PeerCertificates[0])
			if err != nil {
				return err
			}
			if id.Role != want.Role || want.Site != "" && id.Site != want.Site {
				return &CertificateError{fmt.Sprintf("the server is the %v, not the %v; check the URL in the configuration, and which certificate is there", id, want), nil}
			}
			return nil
		},
	}
}

// Transport is an HTTP/1.1 transport over ClientTLS(want) that follows changes of
// the files. Close its idle connections when done.
func (k *Keyring) Transport(want Identity) *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&tls.Dialer{
				NetDialer: &net.Dialer{Timeout: 10 * time.Second}, // the handshake included
				Config:    k.ClientTLS(want),
			}).DialContext(ctx, network, addr)
			return c, Explain(err)
		},
		ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   8,
	}
}

// current returns the ring, after a look at the files when the last is long ago.
func (k *Keyring) current() ring {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.checked) < checkEvery {
		return k.ring
	}
	k.checked = time.Now()
	stamps := k.files.stamps()
	if k.stamps != nil && slices.EqualFunc(stamps, k.stamps, sameFile) {
		return k.ring
	}
	r, err := k.files.read()
	if err == nil && r.id != k.ring.id {
		err = fmt.Errorf("%s is the certificate of the %s now, and this is the %s", k.files.Cert, r.id, k.ring.id)
	}
	if err != nil {
		k.stamps = nil // they may be half replaced: read again, changed or not
		if err.Error() != k.fault {
			k.fault = err.Error()
			k.report(fmt.Errorf("keep the old certificate: %w", err))
		}
		return k.ring
	}
	k.stamps, k.ring, k.fault = stamps, r, ""
	return r
}

// stamps are taken before the files are read, so that a change meanwhile is noticed next time.
func (f Files) stamps() []fs.FileInfo {
	var s []fs.FileInfo
	for _, name := range []string{f.CA, f.Cert, f.Key} {
		i, _ := os.Stat(name) // nil when it is gone; reading says so
		s = append(s, i)
	}
	return s
}

func sameFile(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// read returns a ring that is complete, fits together and is valid now.
func (f Files) read() (ring, error) {
	if err := private(f.Key); err != nil {
		return ring{}, err
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return ring{}, fmt.Errorf("read the authorities: %w", err)
	}
	r := ring{roots: x509.NewCertPool()}
	if !r.roots.AppendCertsFromPEM(pem) {
		return ring{}, fmt.Errorf("%s holds no certificate", f.CA)
	}
	if r.cert, err = tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
		return ring{}, fmt.Errorf("read certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	if r.id, err = IdentityOf(r.cert.Leaf); err != nil {
		return ring{}, fmt.Errorf("%s: %w", f.Cert, err)
	}
	if err := unexpired(f.Cert, r); err != nil {
		return ring{}, err
	}
	chain := x509.NewCertPool()
	for _, der := range r.cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			chain.AddCert(c)
		}
	}
	_, err = r.cert.Leaf.Verify(x509.VerifyOptions{Roots: r.roots, Intermediates: chain, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return ring{}, fmt.Errorf("certificate %s is not of an authority in %s: %w", f.Cert, f.CA, err)
	}
	return r, nil
}

func unexpired(file string, r ring) error {
	now, leaf := time.Now(), r.cert.Leaf
	if now.After(leaf.NotAfter) {
		return &CertificateError{fmt.Sprintf("certificate %s expired %s; run glance-dtn pki issue CA-DIR --site %s --role %s --host … where the CA is, and put the new files in its place",
			file, leaf.NotAfter.Format(time.RFC3339), r.id.Site, r.id.Role), nil}
	}
	if now.Before(leaf.NotBefore) {
		return &CertificateError{fmt.Sprintf("certificate %s is not valid before %s; is this host's clock right?", file, leaf.NotBefore.Format(time.RFC3339)), nil}
	}
	return nil
}

// private refuses a key that others than its owner may read or write.
func private(path string) error {
	i, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read a private key: %w", err)
	}
	if i.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("private key %s is open to others (mode %04o); run: chmod 600 %s", path, i.Mode().Perm(), path)
	}
	return nil
}
