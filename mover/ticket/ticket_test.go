package ticket

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

func newCA(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t testing.TB, ca *pki.CA, site, role string) tls.Certificate {
	t.Helper()
	cert, err := ca.Issue(pki.Identity{Site: site, Role: role}, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func valid(now time.Time) mover.Ticket {
	return mover.Ticket{
		ID: "t-1", Site: "B", From: "A",
		File:    mover.File{Name: "inbox/image", Size: 3, Digest: digest.Digest{Algo: "sha256", Value: strings.Repeat("ab", 32)}},
		Expires: now.Add(time.Minute).Truncate(time.Second).UTC(),
	}
}

func TestVerifyReturnsWhatWasSigned(t *testing.T) {
	ca, now := newCA(t), time.Now()
	want := valid(now)
	token, err := Sign(issue(t, ca, "B", pki.Agent), want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Verify(ca.Pool(), "B", token, now)
	if err != nil {
		t.Fatal(err)
	}
	if got.Expires = got.Expires.UTC(); got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// chained is an agent's certificate under an intermediate authority, for keys of any kind.
func chained(t *testing.T, key crypto.Signer) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	root, rootKey := selfSigned(t)
	_, midKey, _ := ed25519.GenerateKey(rand.Reader)
	mid := certificate(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, root, midKey.Public(), rootKey)
	id := pki.Identity{Site: "B", Role: pki.Agent}
	leaf := certificate(t, &x509.Certificate{URIs: []*url.URL{id.URI()}}, mid, key.Public(), midKey)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool, tls.Certificate{Certificate: [][]byte{leaf.Raw, mid.Raw}, PrivateKey: key}
}

func selfSigned(t *testing.T) (*x509.Certificate, crypto.Signer) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	tmpl := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	return certificate(t, tmpl, tmpl, key.Public(), key), key
}

func certificate(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	tmpl.Subject.CommonName = "test"
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryKindOfKeySignsThroughAnIntermediate(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rs, _ := rsa.GenerateKey(rand.Reader, 2048)
	for alg, key := range map[string]crypto.Signer{"EdDSA": ed, "ES256": ec, "RS256": rs} {
		roots, cert := chained(t, key)
		token, err := Sign(cert, valid(time.Now()))
		if err != nil {
			t.Fatal(alg, err)
		}
		parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
		if err != nil || parsed.Method.Alg() != alg {
			t.Errorf("%s: signed with %v, %v", alg, parsed.Method, err)
		}
		if _, err := Verify(roots, "B", token, time.Now()); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestVerifyRefusesAndSaysWhy(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	agent := issue(t, ca, "B", pki.Agent)
	now := time.Now()
	change := func(f func(*mover.Ticket)) mover.Ticket { x := valid(now); f(&x); return x }
	for _, c := range []struct {
		name   string
		cert   tls.Certificate
		ticket mover.Ticket
		at     time.Time
		want   string
	}{
		{"expired", agent, valid(now), now.Add(3 * time.Minute), "expired 2 min"},
		{"other authority", issue(t, other, "B", pki.Agent), valid(now), now, "certificate is not accepted"},
		{"other site's agent", issue(t, ca, "A", pki.Agent), valid(now), now, "signed by the agent of site A, not by the agent of site B"},
		{"a DTN", issue(t, ca, "B", pki.DTN), valid(now), now, "signed by the dtn of site B"},
		{"for another site", agent, change(func(x *mover.Ticket) { x.Site = "C" }), now, `for site "C"`},
		{"certificate expired", agent, change(func(x *mover.Ticket) { x.Expires = now.Add(3 * time.Hour) }), now.Add(2 * time.Hour), "certificate has expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, err := Sign(c.cert, c.ticket)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Verify(ca.Pool(), "B", token, c.at)
			refused(t, err, c.want)
		})
	}
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v (code %s), want code %s and %q", err, mover.CodeOf(err), mover.CodeTicket, want)
	}
}

func TestVerifyRefusesForgedTokens(t *testing.T) {
	ca := newCA(t)
	agent := issue(t, ca, "B", pki.Agent)
	c := claims{valid(time.Now()), times{jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Minute))}}}
	forge := func(m jwt.SigningMethod, key any, c claims) string {
		tok := jwt.NewWithClaims(m, c)
		tok.Header["x5c"] = encodeChain(agent.Certificate)
		s, err := tok.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	_, stranger, _ := ed25519.GenerateKey(rand.Reader)
	rs, _ := rsa.GenerateKey(rand.Reader, 2048)
	endless, outside := c, c
	endless.ExpiresAt = nil
	outside.File.Name = "inbox/../../etc/passwd"
	for name, f := range map[string]struct{ token, want string }{
		"another's key":   {forge(jwt.SigningMethodEdDSA, stranger, c), "signature is invalid"},
		"no signature":    {forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, c), "signing method none is invalid"},
		"shared secret":   {forge(jwt.SigningMethodHS256, []byte(agent.Leaf.Raw), c), "signing method HS256 is invalid"},
		"other algorithm": {forge(jwt.SigningMethodRS256, rs, c), "the signer's key is for EdDSA"},
		"no end":          {forge(jwt.SigningMethodEdDSA, agent.PrivateKey, endless), "exp claim is required"},
		"name outside":    {forge(jwt.SigningMethodEdDSA, agent.PrivateKey, outside), "is not a name in inbox"},
		"empty":           {"", "malformed"},
		"too long":        {strings.Repeat("x", maxToken+1), "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Verify(ca.Pool(), "B", f.token, time.Now())
			refused(t, err, f.want)
		})
	}
}

func TestSignRefusesWhatVerifyWould(t *testing.T) {
	agent := issue(t, newCA(t), "B", pki.Agent)
	for want, f := range map[string]func(*mover.Ticket){
		"no id":         func(x *mover.Ticket) { x.ID = "" },
		"no end":        func(x *mover.Ticket) { x.Expires = time.Time{} },
		"may send":      func(x *mover.Ticket) { x.From = "" },
		"not a size":    func(x *mover.Ticket) { x.File.Size = -1 },
		"hex digits":    func(x *mover.Ticket) { x.File.Digest.Value = "12" },
		"not a name":    func(x *mover.Ticket) { x.File.Name = "outbox/image" },
		"not supported": func(x *mover.Ticket) { x.File.Digest.Algo = "crc32" },
	} {
		x := valid(time.Now())
		f(&x)
		if _, err := Sign(agent, x); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Sign = %v, want %q", err, want)
		}
	}
}

// FuzzVerify holds that only a token that was signed is accepted, and that every
// refusal has its code.
func FuzzVerify(f *testing.F) {
	ca := newCA(f)
	agent := issue(f, ca, "B", pki.Agent)
	now := time.Now()
	token, err := Sign(agent, valid(now))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add(token[:len(token)/2])
	listed := signedAll(f, agent, many(now, 3))[1]
	f.Add(listed)
	f.Add(listed[:len(listed)-1])
	f.Add("eyJhbGciOiJub25lIiwieDVjIjpbXX0.e30.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Verify(ca.Pool(), "B", s, now)
		if err == nil && s != token && s != listed {
			t.Fatalf("accepted %q: %+v", s, got)
		}
		if err != nil && mover.CodeOf(err) != mover.CodeTicket {
			t.Fatalf("refused with code %s: %v", mover.CodeOf(err), err)
		}
	})
}

// TestASenderVerifiesWhicheverSiteATicketIsFor holds that the site a ticket names is the
// one whose agent has to have signed it.
func TestASenderVerifiesWhicheverSiteATicketIsFor(t *testing.T) {
	ca, now := newCA(t), time.Now()
	roots, want := ca.Pool(), valid(now)
	var v Verifier
	for range 2 { // with what is remembered, too
		for site, ok := range map[string]bool{"B": true, "C": false} {
			agent := issue(t, ca, site, pki.Agent)
			token, err := Sign(agent, want)
			if err != nil {
				t.Fatal(err)
			}
			listed := signedAll(t, agent, []mover.Ticket{want, want})[0]
			for what, verify := range map[string]func() (mover.Ticket, error){
				"alone":            func() (mover.Ticket, error) { return VerifyAny(roots, token, now) },
				"by a Verifier":    func() (mover.Ticket, error) { return v.VerifyAny(roots, token, now) },
				"on a list":        func() (mover.Ticket, error) { return VerifyAny(roots, listed, now) },
				"a Verifier, list": func() (mover.Ticket, error) { return v.VerifyAny(roots, listed, now) },
			} {
				got, err := verify()
				got.Expires = got.Expires.UTC()
				if ok && (err != nil || got != want) || !ok && mover.CodeOf(err) != mover.CodeTicket {
					t.Errorf("%s, signed by the agent of %s: got %v, %v", what, site, got, err)
				}
			}
		}
	}
	if len(v.lists) != 2 || v.last.Load() == nil {
		t.Errorf("%d lists are remembered, want the 2 of site B, and the signer", len(v.lists))
	}
}

// TestWhatIsNotSignedIsNamed holds that who asks for a ticket is told which was wrong.
func TestWhatIsNotSignedIsNamed(t *testing.T) {
	agent, file := issue(t, newCA(t), "B", pki.Agent), valid(time.Now())
	file.From = ""
	for want, bad := range map[string]mover.Ticket{
		"sign a ticket for inbox/image: it names no site that may send": file,
		"sign a ticket for a probe: it names no site that may send":     {ID: "t-1", Site: "B", Probe: true},
	} {
		if _, err := Sign(agent, bad); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestAVerifierRemembersNoMoreThanHolds has one signer remembered, and everything that
// would refuse its ticket without that.
func TestAVerifierRemembersNoMoreThanHolds(t *testing.T) {
	ca, now := newCA(t), time.Now()
	roots, agent := ca.Pool(), issue(t, ca, "B", pki.Agent)
	long := valid(now)
	long.Expires = now.Add(3 * time.Hour)
	sign := func(cert tls.Certificate) string {
		t.Helper()
		token, err := Sign(cert, long)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	var v Verifier
	good := sign(agent)
	for range 2 {
		if _, err := v.Verify(roots, "B", good, now); err != nil {
			t.Fatal(err)
		}
	}
	if v.last.Load() == nil {
		t.Fatal("nobody is remembered")
	}
	head, rest, _ := strings.Cut(good, ".")
	_, signature, _ := strings.Cut(sign(issue(t, newCA(t), "B", pki.Agent)), ".")
	for what, verify := range map[string]func() (mover.Ticket, error){
		"another signature":     func() (mover.Ticket, error) { return v.Verify(roots, "B", head+"."+signature, now) },
		"another header":        func() (mover.Ticket, error) { return v.Verify(roots, "B", "x"+head+"."+rest, now) },
		"other authorities":     func() (mover.Ticket, error) { return v.Verify(newCA(t).Pool(), "B", good, now) },
		"another site":          func() (mover.Ticket, error) { return v.Verify(roots, "C", good, now) },
		"its certificate ended": func() (mover.Ticket, error) { return v.Verify(roots, "B", good, now.Add(2*time.Hour)) },
		"it had not begun":      func() (mover.Ticket, error) { return v.Verify(roots, "B", good, now.Add(-2*time.Hour)) },
		"another agent":         func() (mover.Ticket, error) { return v.Verify(roots, "B", sign(issue(t, ca, "C", pki.Agent)), now) },
	} {
		if got, err := verify(); mover.CodeOf(err) != mover.CodeTicket {
			t.Errorf("%s: %+v, %v, want code ticket", what, got, err)
		}
		if _, err := v.Verify(roots, "B", good, now); err != nil {
			t.Errorf("after %s the good one is refused: %v", what, err)
		}
	}
}
