// Package outage says in an operator's words which daemon gives no answer, why, and what to
// do about it.
package outage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/glance-dtn/glance-dtn/internal/pki"
)

// Daemon is who was asked.
type Daemon struct {
	Name string // in a sentence, e.g. the DTN
	Unit string // of systemd, on its host
	URL  string // or a socket; empty: it has no address here
}

// Error is why a daemon has not answered.
type Error struct {
	Daemon Daemon
	Err    error // of the transport
}

// Unwrap returns the error of the transport.
func (e *Error) Unwrap() error { return e.Err }

// Explain returns an *Error for the error of a request that no answer came to. What has
// ended because its caller wanted so is no outage, and stays as it is.
func (d Daemon) Explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return &Error{d, err}
}

// Error says which daemon at which host and port it is, why it does not answer, and what to do.
func (e *Error) Error() string {
	at := e.Daemon.URL
	if u, err := url.Parse(at); err == nil && u.Host != "" {
		at = u.Host
	}
	if at != "" {
		at = " at " + at
	}
	return e.Daemon.Name + at + e.why()
}

// why goes on after the daemon's name and address.
func (e *Error) why() string {
	err := e.Err
	look := "; on its host: systemctl status " + e.Daemon.Unit
	if bad, ok := errors.AsType[*pki.CertificateError](pki.Explain(err)); ok {
		return ": " + bad.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return " is not found: no host has the name " + dns.Name + "; correct the URL in the configuration, or the name service"
		}
		return fmt.Sprintf(" is not found: %s cannot be looked up (%s); is the name service of this host well?", dns.Name, dns.Err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return " does not speak TLS: does the URL in the configuration have the right port?"
	}
	switch op, _ := errors.AsType[*net.OpError](err); {
	case errors.Is(err, syscall.ECONNREFUSED):
		return " does not answer: connection refused" + look
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		errno, _ := errors.AsType[syscall.Errno](err)
		return " cannot be reached: " + errno.Error() + "; is its host up, and the network between?"
	case op != nil && op.Op == "dial" && op.Timeout():
		return " cannot be reached: no connection came about in time; is its host up, and does each firewall on the way let this port through?"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return " has cut the connection off" + look
	}
	return " does not answer: " + plain(err) + look
}

// plain is the text of an error without the request that net/http puts before it.
func plain(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if err == context.DeadlineExceeded {
		return "no answer in time"
	}
	return err.Error()
}
