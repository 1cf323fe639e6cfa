// Package ticket signs and verifies the right to send one file into one DTN's
// inbox. A ticket is a JWT whose x5c header carries the certificate chain of the
// agent that signed it, so that a DTN needs the authorities and no list of keys.
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

// Sign makes a token of t, which names who may send, and has an end. cert is that
// of the destination's agent, its key Ed25519, ECDSA on P-256, or RSA.
func Sign(cert tls.Certificate, t mover.Ticket) (string, error) {
	if err := check(t); err != nil {
		return "", fmt.Errorf("sign a ticket for %s: %w", t.File.Name, err)
	}
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return "", errors.New("sign a ticket: the certificate has no private key")
	}
	method, err := methodOf(key.Public())
	if err != nil {
		return "", fmt.Errorf("sign a ticket: %w", err)
	}
	token := jwt.NewWithClaims(method, claims{t, times{jwt.RegisteredClaims{
		IssuedAt:  jwt.NewNumericDate(time.Now()),
		ExpiresAt: jwt.NewNumericDate(t.Expires),
	}}})
	token.Header["x5c"] = encodeChain(cert.Certificate)
	return token.SignedString(key)
}

// Verify returns the ticket in token if the agent of site signed it, with a
// certificate of roots, and it has not expired at now. Its file is then a name in
// the inbox, and its digest, if it has one, can be checked. Its errors have mover.CodeTicket
// and say what is wrong. Whether the ticket was used before, and whether its
// bearer is the one it names, is for the caller to find out.
func Verify(roots *x509.CertPool, site, token string, now time.Time) (mover.Ticket, error) {
	return coded(verify(roots, site, token, now))
}

// VerifyAny is Verify for a sender, who has no say in which site the ticket is for: the
// agent of the site that it names has to have signed it.
func VerifyAny(roots *x509.CertPool, token string, now time.Time) (mover.Ticket, error) {
	return coded(verify(roots, "", token, now))
}

func coded(t mover.Ticket, err error) (mover.Ticket, error) {
	if err != nil {
		return mover.Ticket{}, mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: %w", err))
	}
	return t, nil
}

func verify(roots *x509.CertPool, site, token string, now time.Time) (mover.Ticket, error) {
	if len(token) > maxToken {
		return mover.Ticket{}, fmt.Errorf("%d bytes are too long for one", len(token))
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg(), jwt.SigningMethodES256.Alg(), jwt.SigningMethodRS256.Alg()}),
		jwt.WithTimeFunc(func() time.Time { return now }),
		jwt.WithExpirationRequired(),
		jwt.WithStrictDecoding(),
	)
	var c claims
	_, err := parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		site = cmp.Or(site, c.Site)
		return signer(roots, site, t, now)
	})
	if errors.Is(err, jwt.ErrTokenExpired) {
		end := c.ExpiresAt.Time
		return mover.Ticket{}, fmt.Errorf("expired %v ago, at %s; the sending agent gets a new one by offering the image again (if it is new, compare the clocks of the sites)",
			now.Sub(end).Round(time.Second), end.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return mover.Ticket{}, err
	}
	c.Expires = c.ExpiresAt.Time
	if c.Site != site {
		return mover.Ticket{}, fmt.Errorf("it is for site %q, this is site %q", c.Site, site)
	}
	return c.Ticket, check(c.Ticket)
}

// signer returns the key of the agent of site, from the chain in the token's header.
func signer(roots *x509.CertPool, site string, t *jwt.Token, now time.Time) (crypto.PublicKey, error) {
	leaf, rest, err := decodeChain(t.Header["x5c"])
	if err != nil {
		return nil, err
	}
	id, err := pki.IdentityOf(leaf)
	if err != nil {
		return nil, fmt.Errorf("signed by a stranger: %w", err)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: rest, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("signed by the %v, whose certificate is not accepted: %w", id, err)
	}
	if want := (pki.Identity{Site: site, Role: pki.Agent}); id != want {
		return nil, fmt.Errorf("signed by the %v, not by the %v", id, want)
	}
	method, err := methodOf(leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	if method.Alg() != t.Method.Alg() {
		return nil, fmt.Errorf("signed with %s, the signer's key is for %s", t.Method.Alg(), method.Alg())
	}
	return leaf.PublicKey, nil
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
