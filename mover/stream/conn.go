package stream

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// bufferSize is what a connection hands to the kernel, and takes from it, at once.
// TLS alone would do a system call for every 16 KiB.
const bufferSize = 256 << 10

// lingerTime bounds how long a connection is read on after a refusal was sent.
const lingerTime = 5 * time.Second

// conn is a TLS connection. One goroutine may read while others write.
type conn struct {
	*tls.Conn
	raw *rawConn
}

// rawConn buffers below TLS.
type rawConn struct {
	net.Conn
	in *bufio.Reader

	mu     sync.Mutex // guards what follows: TLS may answer from its reading side
	out    *bufio.Writer
	corked bool
}

func newRawConn(c net.Conn, in, out int) *rawConn {
	return &rawConn{Conn: c, in: bufio.NewReaderSize(c, in), out: bufio.NewWriterSize(c, out)}
}

func (c *rawConn) Read(b []byte) (int, error) { return c.in.Read(b) }

func (c *rawConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.out.Write(b)
	if err == nil && !c.corked {
		err = c.out.Flush()
	}
	return n, err
}

// cork holds written bytes until the buffer is full; lifting it sends the rest.
func (c *rawConn) cork(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = on
	if on {
		return nil
	}
	return c.out.Flush()
}

// writeFrame sends b, many TLS records long, in as few system calls as possible.
// Only one goroutine may call it.
func (c *conn) writeFrame(b []byte) error {
	_ = c.raw.cork(true) // sends nothing
	_, err := c.Write(b)
	return errors.Join(err, c.raw.cork(false))
}

// dial opens a connection to another DTN and shakes hands.
func dial(ctx context.Context, e *Engine, address string) (*conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	nc, err := e.dialer()(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	raw := newRawConn(nc, 4<<10, bufferSize)
	c := &conn{tls.Client(raw, clientConfig(e.TLS(), host)), raw}
	if err := c.HandshakeContext(ctx); err != nil {
		_ = nc.Close() // ctx may have closed it already
		return nil, authError(err)
	}
	return c, nil
}

// clientConfig makes of conf one for a server that is host, and a DTN.
func clientConfig(conf *tls.Config, host string) *tls.Config {
	conf = conf.Clone()
	conf.MinVersion = tls.VersionTLS13
	conf.DynamicRecordSizingDisabled = true
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

// accept shakes hands with a sender.
func accept(ctx context.Context, nc net.Conn, conf *tls.Config) (*conn, error) {
	raw := newRawConn(nc, bufferSize, 4<<10)
	c := &conn{tls.Server(raw, conf), raw}
	return c, c.HandshakeContext(ctx)
}

// dtnOf returns the site of the DTN at the other end, from its verified certificate.
func dtnOf(s tls.ConnectionState) (site string, err error) {
	if s.Version < tls.VersionTLS13 || len(s.VerifiedChains) == 0 {
		return "", errors.New("the peer showed no certificate that was verified over TLS 1.3")
	}
	id, err := pki.IdentityOf(s.PeerCertificates[0])
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
		return mover.Coded(mover.CodeAuth, fmt.Errorf("certificates of the two DTNs do not fit, see glance-dtn pki: %w", err))
	}
	return err
}

// linger lets the peer read the last answer: closing a connection with unread
// bytes would throw the answer away.
func (c *conn) linger() {
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c.raw.Conn)
}
