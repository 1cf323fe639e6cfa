package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/outage"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// lingerTime bounds how long a connection is read on for its last answer.
const lingerTime = 5 * time.Second

// dial opens a connection to another DTN and shakes hands. It tells how long the
// first took, without the second; 0: the other DTN has opened it.
func dial(ctx context.Context, e *Engine, address string) (_ *tls.Conn, _ *gather, rtt time.Duration, err error) {
	if site, ok := mover.CallbackSite(address); ok {
		c, out, err := e.Callbacks.dial(ctx, site)
		return c, out, 0, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, 0, err
	}
	begin := time.Now()
	nc, err := e.dialer()(ctx, "tcp", address)
	rtt = time.Since(begin)
	if err != nil {
		return nil, nil, 0, outage.Daemon{Name: "the DTN", Unit: "glance-dtn-dtn", URL: address}.Explain(err)
	}
	out := &gather{Conn: nc}
	c := tls.Client(out, clientConfig(e.TLS(), host))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = nc.Close() // ctx may have closed it already
		return nil, nil, 0, authError(err)
	}
	return c, out, rtt, nil
}

// clientConfig makes of conf one for a server that is host, and a DTN.
func clientConfig(conf *tls.Config, host string) *tls.Config {
	conf = conf.Clone()
	conf.MinVersion = tls.VersionTLS13
	conf.DynamicRecordSizingDisabled = true // what is sent is long
	conf.ServerName = cmp.Or(conf.ServerName, host)
	verify := conf.VerifyConnection
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := dtnOf(s)
		if err == nil && verify != nil {
			err = verify(s)
		}
		return mover.Coded(mover.CodeAuth, err)
	}
	return conf
}

// identityOf returns who is at the other end, from its verified certificate.
func identityOf(s tls.ConnectionState) (pki.Identity, error) {
	if s.Version < tls.VersionTLS13 || len(s.VerifiedChains) == 0 {
		return pki.Identity{}, errors.New("the peer showed no certificate that was verified over TLS 1.3")
	}
	return pki.IdentityOf(s.PeerCertificates[0])
}

// dtnOf returns the site of the DTN at the other end.
func dtnOf(s tls.ConnectionState) (site string, err error) {
	id, err := identityOf(s)
	if err != nil {
		return "", err
	}
	if id.Role != pki.DTN {
		return "", fmt.Errorf("the peer is the %v, not a %s", id, pki.DTN)
	}
	return id.Site, nil
}

// authError gives a refused certificate its code: ours by the peer, or the peer's by us.
func authError(err error) error {
	_, ours := errors.AsType[*tls.CertificateVerificationError](err)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" || ours {
		return mover.Coded(mover.CodeAuth, fmt.Errorf("the certificates of the two DTNs do not fit, see glance-dtn pki: %w", err))
	}
	return err
}

// bare returns the connection below TLS. It holds the first byte after the last that
// TLS was read for, because the two ends have taken turns: nothing was sent before what
// went before it was answered.
func bare(c *tls.Conn) net.Conn {
	if g, ok := c.NetConn().(*gather); ok {
		return g.Conn
	}
	return c.NetConn()
}

// cut closes c at once, without a word to the peer, whatever is going on.
func cut(c *tls.Conn) { _ = c.NetConn().Close() }

// linger lets the peer read the last answer: to close a connection with unread
// bytes would throw the answer away.
func linger(c *tls.Conn) {
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c.NetConn())
}
