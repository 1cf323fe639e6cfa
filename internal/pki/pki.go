// Package pki is a small private certificate authority for the agents, DTNs and
// operators of the sites, and the keyring with which a daemon uses the
// certificate it was issued. Every certificate names one Identity; who may do
// what is decided by it, never by a host name.
package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// The roles.
const (
	Agent    = "agent"    // the daemon beside a site's Glance
	DTN      = "dtn"      // the daemon on a site's data transfer node
	Operator = "operator" // a person's tools
)

// Identity is who a certificate speaks for.
type Identity struct{ Site, Role string }

const (
	scheme      = "spiffe"
	trustDomain = "glance-dtn"
)

var siteName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)

// CheckSite reports a name that no site can have, in certificates as in configurations.
func CheckSite(name string) error {
	if !siteName.MatchString(name) {
		return fmt.Errorf("%q is not a site's name: 1 to 32 letters, digits, '-' and '_', the first a letter or a digit", name)
	}
	return nil
}

// Validate reports a site that is no plain name or a role that does not exist.
func (i Identity) Validate() error {
	if err := CheckSite(i.Site); err != nil {
		return fmt.Errorf("site: %w", err)
	}
	if !slices.Contains([]string{Agent, DTN, Operator}, i.Role) {
		return fmt.Errorf("role %q: use %s, %s or %s", i.Role, Agent, DTN, Operator)
	}
	return nil
}

// URI is the name that stands in the certificate: spiffe://glance-dtn/site/SITE/ROLE.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: trustDomain, Path: "/site/" + i.Site + "/" + i.Role}
}

// String returns the role and the site in words.
func (i Identity) String() string { return i.Role + " of site " + i.Site }

// IdentityOf returns the identity in c's URI names, of which there must be
// exactly one. It does not verify c.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, fmt.Errorf("certificate of %q names %d URIs instead of one identity; issue it with: glance-dtn pki issue", c.Subject.CommonName, len(c.URIs))
	}
	u := c.URIs[0].String()
	rest, ok := strings.CutPrefix(u, scheme+"://"+trustDomain+"/site/")
	site, role, _ := strings.Cut(rest, "/")
	id := Identity{Site: site, Role: role}
	if !ok || id.Validate() != nil {
		return Identity{}, fmt.Errorf("certificate of %q: %q is not spiffe://glance-dtn/site/SITE/ROLE; issue it with: glance-dtn pki issue", c.Subject.CommonName, u)
	}
	return id, nil
}
