package gridftp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// defaultPort is that of the control connection of GridFTP, by scheme.
var defaultPort = map[string]string{"gsiftp": "2811", "ftp": "21"}

// How long each step of a check may take.
const checkStep = 15 * time.Second

// Check reports whether the server of an export answers, lets us in, and opens a data
// connection, in this order, and what to do about the first that it does not. It changes nothing.
func (c *Client) Check(ctx context.Context, export string) error {
	u, err := mover.ParseExportURL(export)
	if err != nil {
		return err
	}
	if err := greeted(ctx, u); err != nil {
		return err
	}
	limit, stop := context.WithTimeoutCause(ctx, checkStep, errors.New("no answer"))
	defer stop()
	inbox := u.File(mover.Inbox) + "/"
	_, err = c.run(limit, nil, nil, "-list", inbox)
	f, failed := errors.AsType[*fault](err)
	switch {
	case err != nil && limit.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("%s: the server answers, and then nothing comes for %v: does a firewall drop its data connections? Open its port_range to this host and to the other DTNs", inbox, checkStep)
	case failed:
		f.url = inbox
		return f.explain("", inbox)
	}
	return err
}

// greeted reports whether a server says hello on the control port.
func greeted(ctx context.Context, u mover.ExportURL) error {
	address := u.Host
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), defaultPort[u.Scheme])
	}
	c, err := (&net.Dialer{Timeout: checkStep}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("no GridFTP server can be reached: %w; is globus-gridftp-server running there, and is the port open to this host?", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(checkStep))
	line, err := bufio.NewReaderSize(c, maxLine).ReadSlice('\n')
	if err != nil || !strings.HasPrefix(string(line), "220") {
		return fmt.Errorf("%s accepts connections and is no GridFTP server: it says %q instead of 220", address, strings.TrimSpace(string(line)))
	}
	return nil
}
