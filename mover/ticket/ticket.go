// Package ticket signs and verifies the right to send one file into one DTN's
// inbox, or to measure the path to it by a probe. A ticket is a JWT whose x5c header carries the certificate chain of the
// agent that signed it, so that a DTN needs the authorities and no list of keys. Tickets
// that are signed at the same time share a signature, see list.go.
package ticket

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Limits on what Verify looks at.
const (
	maxToken = 16 << 10
	maxChain = 4
)

type claims struct {
	mover.Ticket
	times
}

// times lies one level deeper than Ticket, so that Ticket's jti is the one in the JSON.
type times struct{ jwt.RegisteredClaims }

func claimsOf(t mover.Ticket) (claims, error) {
	if err := check(t); err != nil {
		return claims{}, fmt.Errorf("sign a ticket for %s: %w", subject(t), err)
	}
	return claims{t, times{jwt.RegisteredClaims{
		IssuedAt:  jwt.NewNumericDate(time.Now()),
		ExpiresAt: jwt.NewNumericDate(t.Expires),
	}}}, nil
}

// subject is what t is for, as messages name it.
func subject(t mover.Ticket) string {
	if t.Probe {
		return "a probe"
	}
	return t.File.Name
}

// Sign makes a token of t, which names who may send, and has an end. cert is that
// of the destination's agent, its key Ed25519, ECDSA on P-256, or RSA.
func Sign(cert tls.Certificate, t mover.Ticket) (string, error) {
	c, err := claimsOf(t)
	if err != nil {
		return "", err
	}
	return sign(cert, c)
}

func sign(cert tls.Certificate, c jwt.Claims) (string, error) {
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return "", errors.New("sign a ticket: the certificate has no private key")
	}
	method, err := methodOf(key.Public())
	if err != nil {
		return "", fmt.Errorf("sign a ticket: %w", err)
	}
	token := jwt.NewWithClaims(method, c)
	token.Header["x5c"] = encodeChain(cert.Certificate)
	return token.SignedString(key)
}

// Verify returns the ticket in token if the agent of site signed it, with a
// certificate of roots, and it has not expired at now. Its file is then a name in
// the inbox, and its digest, if it has one, can be checked; one for a probe has no file. Its errors have mover.CodeTicket
// and say what is wrong. Whether the ticket was used before, and whether its
// bearer is the one it names, is for the caller to find out.
func Verify(roots *x509.CertPool, site, token string, now time.Time) (mover.Ticket, error) {
	return coded(verify(roots, site, token, now, nil))
}

// Verifier verifies tickets as Verify does, and remembers who signed the last one, and
// which lists were signed. Many come from one agent in a row, and to check its certificate
// and its signature takes longer than all else. It may be used by several goroutines at
// once; the roots are not changed.
type Verifier struct {
	last atomic.Pointer[known]

	mu    sync.Mutex // guards lists
	lists map[string]known
}

// maxLists is how many signed lists are remembered.
const maxLists = 64

// known is a signer whose certificate was found good, perhaps with what it has signed.
type known struct {
	roots       *x509.CertPool
	site        string
	header      string // of the token, with the signer's certificates
	key         crypto.PublicKey
	from, until time.Time // when all of its certificates are good
	root        hash      // of a list
}

func (k known) holds(roots *x509.CertPool, site string, now time.Time) bool {
	return k.roots == roots && k.site == site && !now.Before(k.from) && !now.After(k.until)
}

// Verify is the function Verify.
func (v *Verifier) Verify(roots *x509.CertPool, site, token string, now time.Time) (mover.Ticket, error) {
	return coded(verify(roots, site, token, now, v))
}

// signer is the function signer. A nil Verifier remembers nothing.
func (v *Verifier) signer(roots *x509.CertPool, site string, t *jwt.Token, now time.Time) (known, error) {
	if v == nil {
		return signer(roots, site, t, now)
	}
	header, _, _ := strings.Cut(t.Raw, ".")
	if k := v.last.Load(); k != nil && k.header == header && k.holds(roots, site, now) {
		return *k, nil
	}
	found, err := signer(roots, site, t, now)
	if err == nil {
		found.header = header
		v.last.Store(&found)
	}
	return found, err
}

// VerifyAny is Verify for a sender, who has no say in which site the ticket is for: the
// agent of the site that it names has to have signed it.
func VerifyAny(roots *x509.CertPool, token string, now time.Time) (mover.Ticket, error) {
	return coded(verify(roots, "", token, now, nil))
}

// VerifyAny is the function VerifyAny.
func (v *Verifier) VerifyAny(roots *x509.CertPool, token string, now time.Time) (mover.Ticket, error) {
	return coded(verify(roots, "", token, now, v))
}

func coded(t mover.Ticket, err error) (mover.Ticket, error) {
	if err != nil {
		return mover.Ticket{}, mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: %w", err))
	}
	return t, nil
}

func verify(roots *x509.CertPool, site, token string, now time.Time, v *Verifier) (mover.Ticket, error) {
	if len(token) > maxToken {
		return mover.Ticket{}, fmt.Errorf("%d bytes are too long for one", len(token))
	}
	var c claims
	var err error
	clock := jwt.WithTimeFunc(func() time.Time { return now })
	if list, rest, ok := strings.Cut(token, listMark); ok {
		if err = verifyListed(roots, site, list, rest, &c, now, v); err == nil {
			err = jwt.NewValidator(clock, jwt.WithExpirationRequired()).Validate(c)
		}
	} else {
		err = parse(token, &c, func(t *jwt.Token) (any, error) {
			k, err := v.signer(roots, cmp.Or(site, c.Site), t, now)
			return k.key, err
		}, clock, jwt.WithExpirationRequired())
	}
	if errors.Is(err, jwt.ErrTokenExpired) {
		end := c.ExpiresAt.Time
		return mover.Ticket{}, fmt.Errorf("expired %s ago, at %s; the sending agent gets a new one by offering the image again (if it is new, compare the clocks of the sites)",
			mover.Span(now.Sub(end)), end.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return mover.Ticket{}, err
	}
	c.Expires = c.ExpiresAt.Time
	if site != "" && c.Site != site {
		return mover.Ticket{}, fmt.Errorf("it is for site %q, this is site %q", c.Site, site)
	}
	return c.Ticket, check(c.Ticket)
}

// parse reads a JWT and verifies its signature.
func parse(token string, c jwt.Claims, key jwt.Keyfunc, o ...jwt.ParserOption) error {
	methods := []string{jwt.SigningMethodEdDSA.Alg(), jwt.SigningMethodES256.Alg(), jwt.SigningMethodRS256.Alg()}
	_, err := jwt.NewParser(append(o, jwt.WithValidMethods(methods), jwt.WithStrictDecoding())...).ParseWithClaims(token, c, key)
	return err
}

// signer finds the agent of site by the chain in the token's header.
func signer(roots *x509.CertPool, site string, t *jwt.Token, now time.Time) (known, error) {
	leaf, rest, err := decodeChain(t.Header["x5c"])
	if err != nil {
		return known{}, err
	}
	id, err := pki.IdentityOf(leaf)
	if err != nil {
		return known{}, fmt.Errorf("signed by a stranger: %w", err)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: rest, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return known{}, fmt.Errorf("signed by the %v, whose certificate is not accepted: %w", id, err)
	}
	if want := (pki.Identity{Site: site, Role: pki.Agent}); id != want {
		return known{}, fmt.Errorf("signed by the %v, not by the %v", id, want)
	}
	method, err := methodOf(leaf.PublicKey)
	if err != nil {
		return known{}, err
	}
	if method.Alg() != t.Method.Alg() {
		return known{}, fmt.Errorf("signed with %s, the signer's key is for %s", t.Method.Alg(), method.Alg())
	}
	k := known{roots: roots, site: site, key: leaf.PublicKey, from: leaf.NotBefore, until: leaf.NotAfter}
	for _, c := range chains[0] {
		if c.NotBefore.After(k.from) {
			k.from = c.NotBefore
		}
		if c.NotAfter.Before(k.until) {
			k.until = c.NotAfter
		}
	}
	return k, nil
}

func methodOf(key crypto.PublicKey) (jwt.SigningMethod, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return jwt.SigningMethodEdDSA, nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return jwt.SigningMethodES256, nil
		}
	case *rsa.PublicKey:
		return jwt.SigningMethodRS256, nil
	}
	return nil, fmt.Errorf("a key of type %T does not sign tickets; use Ed25519, ECDSA P-256 or RSA", key)
}

// check reports what is wrong with a ticket, whoever signed it.
func check(t mover.Ticket) error {
	switch {
	case t.ID == "":
		return errors.New("it has no id")
	case t.From == "":
		return errors.New("it names no site that may send")
	case t.Expires.IsZero():
		return errors.New("it has no end")
	case t.Probe && t.File != mover.File{}:
		return errors.New("it is for a probe, and for a file")
	case t.Probe:
		return nil
	case t.File.Size < 0:
		return fmt.Errorf("%d is not a size", t.File.Size)
	}
	if err := t.File.CheckDigest(); err != nil {
		return err
	}
	return mover.CheckName(mover.Inbox, t.File.Name)
}

func encodeChain(chain [][]byte) []string {
	var x5c []string
	for _, der := range chain {
		x5c = append(x5c, base64.StdEncoding.EncodeToString(der))
	}
	return x5c
}

// decodeChain returns the signer's certificate and those between it and a root.
func decodeChain(x5c any) (*x509.Certificate, *x509.CertPool, error) {
	list, _ := x5c.([]any)
	if len(list) == 0 || len(list) > maxChain {
		return nil, nil, fmt.Errorf("header x5c holds %d certificates, want 1 to %d", len(list), maxChain)
	}
	var leaf *x509.Certificate
	rest := x509.NewCertPool()
	for _, e := range list {
		s, _ := e.(string)
		der, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, nil, fmt.Errorf("header x5c: %w", err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("header x5c: %w", err)
		}
		if leaf == nil {
			leaf = c
		} else {
			rest.AddCert(c)
		}
	}
	return leaf, rest, nil
}
