package outage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
)

var update = flag.Bool("update", false, "write the golden file anew")

// TestWhatAnOperatorIsTold is of each way in which no answer comes.
func TestWhatAnOperatorIsTold(t *testing.T) {
	d := Daemon{Name: "site B's agent", Unit: "glance-dtn-agent", URL: "https://ctrl-b.example.org:7442"}
	dialled := func(err error) error {
		return &url.Error{Op: "Get", URL: d.URL + "/v1/inventory", Err: &net.OpError{Op: "dial", Net: "tcp", Err: err}}
	}
	errno := func(e syscall.Errno) error { return dialled(os.NewSyscallError("connect", e)) }
	var told strings.Builder
	for _, c := range []struct {
		name string
		err  error
	}{
		{"refused", errno(syscall.ECONNREFUSED)},
		{"no route", errno(syscall.EHOSTUNREACH)},
		{"no network", errno(syscall.ENETUNREACH)},
		{"dial timeout", dialled(os.ErrDeadlineExceeded)},
		{"kernel's timeout", errno(syscall.ETIMEDOUT)},
		{"no name", dialled(&net.DNSError{Err: "no such host", Name: "ctrl-b.example.org", IsNotFound: true})},
		{"no name service", dialled(&net.DNSError{Err: "server misbehaving", Name: "ctrl-b.example.org", IsTemporary: true})},
		{"reset", &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}},
		{"ended", &url.Error{Op: "Get", URL: d.URL, Err: io.EOF}},
		{"too late", &url.Error{Op: "Get", URL: d.URL, Err: context.DeadlineExceeded}},
		{"a cause", &url.Error{Op: "Get", URL: d.URL, Err: errors.New("no answer within 30s")}},
		{"a certificate", dialled(x509.HostnameError{Certificate: new(x509.Certificate), Host: "ctrl-b.example.org"})},
		{"plain HTTP", &url.Error{Op: "Get", URL: d.URL, Err: tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}}},
	} {
		err := d.Explain(c.err)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: it is not %v any more", c.name, c.err)
		}
		fmt.Fprintf(&told, "%s: %v\n", c.name, err)
	}
	golden(t, told.String())
}

func golden(t *testing.T, got string) {
	t.Helper()
	const file = "testdata/told.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWhatTheCallerEndsIsNoOutage(t *testing.T) {
	d := Daemon{Name: "the DTN", Unit: "glance-dtn-dtn", URL: "https://dtn-a:7443"}
	if d.Explain(nil) != nil {
		t.Error("no error became one")
	}
	if err := d.Explain(context.Canceled); err != context.Canceled {
		t.Errorf("it became %v", err)
	}
}
