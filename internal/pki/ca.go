package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Files of a CA's directory.
const (
	CAFile    = "ca.pem"
	CAKeyFile = "ca.key"
)

// How long certificates live when nobody says otherwise.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	LeafLife = 365 * 24 * time.Hour
)

// backdate makes a certificate valid on hosts whose clocks are a little behind.
const backdate = 5 * time.Minute

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$`)

// CA issues certificates. Its key is Ed25519.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes a CA that exists in memory only. A life of zero means CALife.
func NewCA(name string, life time.Duration) (*CA, error) {
	if life == 0 {
		life = CALife
	}
	t := template(name, life)
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of CA %q: %w", name, err)
	}
	cert, err := sign(t, t, pub, key)
	if err != nil {
		return nil, fmt.Errorf("make CA %q: %w", name, err)
	}
	return &CA{cert: cert, key: key}, nil
}

// InitCA makes a CA and writes it to dir, which it creates: CAFile, and CAKeyFile
// for its owner only. It never replaces a file. A life of zero means CALife.
func InitCA(dir, name string, life time.Duration) error {
	ca, err := NewCA(name, life)
	if err != nil {
		return err
	}
	key, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a CA: %w", err)
	}
	err = errors.Join(absent(filepath.Join(dir, CAFile)), absent(filepath.Join(dir, CAKeyFile)))
	if err != nil {
		return err
	}
	if err := create(filepath.Join(dir, CAKeyFile), key, 0o600); err != nil {
		return err
	}
	return create(filepath.Join(dir, CAFile), encodeCert(ca.cert.Raw), 0o644)
}

func absent(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists: a CA is never replaced, choose another directory", path)
	}
	return nil
}

// LoadCA reads what InitCA wrote.
func LoadCA(dir string) (*CA, error) {
	keyFile := filepath.Join(dir, CAKeyFile)
	if err := private(keyFile); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, CAFile), keyFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA in %s (made by: glance-dtn pki init %s): %w", dir, dir, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s is not the certificate of a CA", filepath.Join(dir, CAFile))
	}
	return &CA{cert: pair.Leaf, key: key}, nil
}

// Certificate is the CA's own.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Pool holds the CA's certificate alone.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// Issue makes a key and a certificate for id, good for a client and for a server
// under the names and addresses in hosts. It does not outlive the CA. A life of
// zero means LeafLife; a negative one of under five minutes gives a certificate
// that has expired already.
func (ca *CA) Issue(id Identity, hosts []string, life time.Duration) (tls.Certificate, error) {
	if err := id.Validate(); err != nil {
		return tls.Certificate{}, err
	}
	if life == 0 {
		life = LeafLife
	}
	t := template(id.Site+" "+id.Role, life)
	if t.NotAfter.After(ca.cert.NotAfter) {
		t.NotAfter = ca.cert.NotAfter
	}
	t.URIs = append(t.URIs, id.URI())
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if hostName.MatchString(h) {
			t.DNSNames = append(t.DNSNames, h)
		} else {
			return tls.Certificate{}, fmt.Errorf("host %q is neither a DNS name nor an IP address; give it without scheme and port", h)
		}
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a key for the %v: %w", id, err)
	}
	cert, err := sign(t, ca.cert, pub, ca.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate for the %v: %w", id, err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// Issue makes a certificate with the CA in caDir, as (*CA).Issue does, and writes
// ROLE.pem and, for its owner only, ROLE.key to outDir, which it creates. It
// replaces those of an earlier call, each file at once but not both: a Keyring
// waits until they fit. It returns ROLE.pem's path.
func Issue(caDir string, id Identity, hosts []string, life time.Duration, outDir string) (certFile string, err error) {
	ca, err := LoadCA(caDir)
	if err != nil {
		return "", err
	}
	cert, err := ca.Issue(id, hosts, life)
	if err != nil {
		return "", err
	}
	key, err := encodeKey(cert.PrivateKey)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return "", fmt.Errorf("issue a certificate for the %v: %w", id, err)
	}
	certFile = filepath.Join(outDir, id.Role+".pem")
	if err := replace(filepath.Join(outDir, id.Role+".key"), key, 0o600); err != nil {
		return "", err
	}
	return certFile, replace(certFile, encodeCert(cert.Certificate[0]), 0o644)
}

func template(name string, life time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate),
		NotAfter:  now.Add(life),
	}
}

// sign gives t a random serial number of 128 bits and signs it.
func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	var serial [16]byte
	rand.Read(serial[:])
	t.SerialNumber = new(big.Int).SetBytes(serial[:])
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// create writes a file that must not exist.
func create(path string, data []byte, perm os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// replace puts a file with this content in path's place in one step.
func replace(path string, data []byte, perm os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(perm), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
