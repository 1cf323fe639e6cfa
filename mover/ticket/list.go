package ticket

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Tickets that are signed at the same time are a list: the leaves of a Merkle tree, of which
// the root alone is signed. A token is then
//
//	JWT of the root ~ claims ~ the hashes beside the way from the leaf to the root
//
// so it stands for itself, as a ticket that was signed alone does, and who verifies
// many of a list verifies one signature. Of two hashes below a third one the smaller goes
// first, so that a way needs no directions; leaves and nodes are hashed with different
// first bytes, so that none passes for the other (as in RFC 9162, 2.1.1).

const listMark = "~"

// maxDepth is that of a list's tree: 65,536 tickets.
const maxDepth = 16

type hash [sha256.Size]byte

func leafOf(text []byte) hash { return sha256.Sum256(append([]byte{0}, text...)) }

func (a hash) with(b hash) hash {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	return sha256.Sum256(append(append([]byte{1}, a[:]...), b[:]...))
}

// rootClaims is what is signed for a list. When its tickets end they say themselves.
type rootClaims struct {
	Root []byte `json:"tickets"`
	jwt.RegisteredClaims
}

// SignAll is Sign for many tickets, up to 65,536, with one signature.
func SignAll(cert tls.Certificate, tickets []mover.Ticket) ([]string, error) {
	var all []claims
	for _, t := range tickets {
		c, err := claimsOf(t)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return signAll(cert, all)
}

func signAll(cert tls.Certificate, all []claims) ([]string, error) {
	switch n := len(all); {
	case n == 0:
		return nil, nil
	case n == 1:
		token, err := sign(cert, all[0])
		if err != nil {
			return nil, err
		}
		return []string{token}, nil
	case n > 1<<maxDepth:
		return nil, fmt.Errorf("sign tickets: %d are too many for one list", n)
	}
	var texts [][]byte
	var leaves []hash
	for _, c := range all {
		text, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("sign a ticket for %s: %w", subject(c.Ticket), err)
		}
		texts, leaves = append(texts, text), append(leaves, leafOf(text))
	}
	root, ways := tree(leaves)
	list, err := sign(cert, rootClaims{Root: root[:]})
	if err != nil {
		return nil, err
	}
	var tokens []string
	for i, text := range texts {
		tokens = append(tokens, strings.Join([]string{list, encoding.EncodeToString(text), encoding.EncodeToString(ways[i])}, listMark))
	}
	return tokens, nil
}

var encoding = base64.RawURLEncoding.Strict()

// tree returns the root of a tree, and for each leaf the hashes beside its way there. A
// node without a neighbour is its own parent.
func tree(leaves []hash) (root hash, ways [][]byte) {
	ways = make([][]byte, len(leaves))
	level := leaves
	for depth := 0; len(level) > 1; depth++ {
		for i := range leaves {
			if beside := i>>depth ^ 1; beside < len(level) {
				ways[i] = append(ways[i], level[beside][:]...)
			}
		}
		var next []hash
		for i := 0; i < len(level); i += 2 {
			if i+1 == len(level) {
				next = append(next, level[i])
				continue
			}
			next = append(next, level[i].with(level[i+1]))
		}
		level = next
	}
	return level[0], ways
}

// verifyListed reads c from what follows a list's JWT, and verifies that it is on that list
// and who has signed it.
func verifyListed(roots *x509.CertPool, site, list, rest string, c *claims, now time.Time, v *Verifier) error {
	body, side, _ := strings.Cut(rest, listMark)
	if strings.ContainsAny(rest, "\r\n") { // encoding/base64 passes over them
		return errors.New("token is malformed: it has more than one line")
	}
	text, err1 := encoding.DecodeString(body)
	way, err2 := encoding.DecodeString(side)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("token is malformed: %w", err)
	}
	if len(way)%sha256.Size != 0 || len(way) > maxDepth*sha256.Size {
		return errors.New("token is malformed: no way to a list's root")
	}
	if err := json.Unmarshal(text, c); err != nil {
		return fmt.Errorf("token is malformed: %w", err)
	}
	want, err := v.list(roots, cmp.Or(site, c.Site), list, now)
	if err != nil {
		return err
	}
	at := leafOf(text)
	for ; len(way) > 0; way = way[sha256.Size:] {
		at = at.with(hash(way[:sha256.Size]))
	}
	if at != want {
		return errors.New("it is not on the list that was signed")
	}
	return nil
}

// list returns the root in a list's JWT, which the agent of site has signed.
func (v *Verifier) list(roots *x509.CertPool, site, token string, now time.Time) (hash, error) {
	if k, ok := v.listed(token); ok && k.holds(roots, site, now) {
		return k.root, nil
	}
	var c rootClaims
	var by known
	err := parse(token, &c, func(t *jwt.Token) (_ any, err error) {
		by, err = v.signer(roots, site, t, now)
		return by.key, err
	}, jwt.WithoutClaimsValidation())
	if err == nil && len(c.Root) != sha256.Size {
		err = errors.New("what was signed is no list")
	}
	if err != nil {
		return hash{}, err
	}
	by.root = hash(c.Root)
	v.remember(token, by)
	return by.root, nil
}

func (v *Verifier) listed(token string) (known, bool) {
	if v == nil {
		return known{}, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	k, ok := v.lists[token]
	return k, ok
}

func (v *Verifier) remember(token string, k known) {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lists == nil || len(v.lists) >= maxLists {
		v.lists = map[string]known{}
	}
	v.lists[token] = k
}

// Signer signs tickets, with one signature those that are asked for while another one is
// made.
type Signer struct{ group *durable.Group[*order] }

type order struct {
	claims claims
	token  string
}

// NewSigner returns a Signer with the certificate that cert gives at the moment.
func NewSigner(cert func() tls.Certificate) *Signer {
	return &Signer{durable.NewGroup(func(orders []*order) error {
		var all []claims
		for _, o := range orders {
			all = append(all, o.claims)
		}
		tokens, err := signAll(cert(), all)
		for i, token := range tokens {
			orders[i].token = token
		}
		return err
	})}
}

// Sign is the function Sign. It may be called by several goroutines at once.
func (s *Signer) Sign(t mover.Ticket) (string, error) {
	c, err := claimsOf(t)
	if err != nil {
		return "", err
	}
	o := &order{claims: c}
	err = s.group.Do(o)
	return o.token, err
}
