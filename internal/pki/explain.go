package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// CertificateError says what is wrong with a certificate, the other end's or our own, and what
// to do about it.
type CertificateError struct {
	text string
	err  error // of TLS, if there is one
}

// Error implements error.
func (e *CertificateError) Error() string { return e.text }

// Unwrap returns the error of TLS.
func (e *CertificateError) Unwrap() error { return e.err }

// Explain returns a *CertificateError where a client's connection failed for what is wrong with
// a certificate, and every other error as it is.
func Explain(err error) error {
	if _, ok := errors.AsType[*CertificateError](err); ok || err == nil {
		return err
	}
	because := func(format string, args ...any) error { return &CertificateError{fmt.Sprintf(format, args...), err} }
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return because("the server's certificate is valid from %s to %s only; on its host run glance-dtn pki issue",
			e.Cert.NotBefore.Format(time.RFC3339), e.Cert.NotAfter.Format(time.RFC3339))
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return because("the server's certificate is of an authority that this host does not know; add it to the file tls: ca here")
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return because("the server's certificate is not for the name %s; issue one with: glance-dtn pki issue --host %s, or correct the URL in the configuration", e.Host, e.Host)
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" { // an alert of TLS, RFC 8446, 6.2
		switch alert := strings.TrimPrefix(e.Err.Error(), "tls: "); alert {
		case "expired certificate":
			return because("the server takes this host's certificate for expired; run glance-dtn pki issue, and compare the clocks")
		case "unknown certificate authority":
			return because("the server does not know the authority of this host's certificate; add it to the file tls: ca there")
		default:
			return because("the server refuses this host's certificate or TLS (%s); its log says why", alert)
		}
	}
	return err
}
