// Package client asks a DTN over its third-party REST API: to move a file, how
// far it is, and what lies in its inbox.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Bounds of a call.
const (
	callTimeout = 30 * time.Second
	maxAnswer   = 64 << 20 // a list of 20,000 transfers included
	maxProblem  = 64 << 10
	settlePause = 100 * time.Millisecond // before a DTN whose disk is busy is asked again
)

// Client is one DTN. It may be used by several goroutines at once.
type Client struct {
	base string // ends in a slash
	http *http.Client
}

// New returns a client of the DTN at baseURL, e.g. https://dtn-a.example.org:7443.
// hc has to present a certificate that the DTN accepts; its Timeout is not used.
func New(baseURL string, hc *http.Client) (*Client, error) {
	u, err := url.Parse(baseURL)
	if err != nil {
		return nil, fmt.Errorf("DTN's URL: %w", err)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("DTN's URL %q: want https://HOST:PORT", baseURL)
	}
	own := *hc
	own.Timeout = 0 // each call has its own
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: strings.TrimSuffix(baseURL, "/") + "/", http: &own}, nil
}

// Submit asks for a transfer. It may be repeated: the same Key with the same
// request is the same transfer. mover.ErrKeyConflict when the key was used for
// another one. A request that the DTN refuses for what it says fails permanently.
func (c *Client) Submit(ctx context.Context, r mover.Request) (mover.TransferID, error) {
	var s mover.Status
	err := c.call(ctx, http.MethodPost, r, &s, "v1/transfers")
	if isProblem(err, http.StatusConflict) {
		err = fmt.Errorf("%w (%w)", mover.ErrKeyConflict, err)
	}
	if isProblem(err, http.StatusUnprocessableEntity) {
		err = failure.Permanently(err)
	}
	return s.ID, err
}

// Status returns a transfer; mover.ErrNoTransfer when the DTN has forgotten it.
func (c *Client) Status(ctx context.Context, id mover.TransferID) (mover.Status, error) {
	var s mover.Status
	err := c.call(ctx, http.MethodGet, nil, &s, "v1/transfers/"+url.PathEscape(string(id)))
	return s, noTransfer(err)
}

// Transfers returns the transfers in one state, or all if state is empty, oldest first.
func (c *Client) Transfers(ctx context.Context, state mover.TransferState) ([]mover.Status, error) {
	var all []mover.Status
	query := ""
	if state != "" {
		query = "?state=" + url.QueryEscape(string(state))
	}
	err := c.call(ctx, http.MethodGet, nil, &all, "v1/transfers"+query)
	return all, err
}

// Cancel stops a transfer; nil when it has ended or is not known. A running one
// may take a moment longer to end than Cancel.
func (c *Client) Cancel(ctx context.Context, id mover.TransferID) error {
	err := c.call(ctx, http.MethodDelete, nil, nil, "v1/transfers/"+url.PathEscape(string(id)))
	if isProblem(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// Arrival returns what is known of a file in the inbox, by its name in the export;
// mover.ErrNoArrival.
func (c *Client) Arrival(ctx context.Context, name string) (mover.Arrival, error) {
	var a mover.Arrival
	base, err := inboxBase(name)
	if err != nil {
		return a, err
	}
	err = c.call(ctx, http.MethodGet, nil, &a, "v1/arrivals/"+url.PathEscape(base))
	if isProblem(err, http.StatusNotFound) {
		err = fmt.Errorf("%w (%w)", mover.ErrNoArrival, err)
	}
	return a, err
}

// Arrivals returns all files in the inbox, complete or not.
func (c *Client) Arrivals(ctx context.Context) ([]mover.Arrival, error) {
	var all []mover.Arrival
	err := c.call(ctx, http.MethodGet, nil, &all, "v1/arrivals")
	return all, err
}

// Drop removes an arrival by its name in the export, complete or not, and ends its
// session; nil when there is none.
func (c *Client) Drop(ctx context.Context, name string) error {
	base, err := inboxBase(name)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodDelete, nil, nil, "v1/arrivals/"+url.PathEscape(base))
}

// Settle has the DTN sync a file of its outbox, by its base name there, to its own disk,
// and tells what is there of its blocks from one on; mover.ErrNotStaged,
// mover.ErrUnreadable. While the disk is still busy with it, the error is one of
// failure.After; with mover.CodeContent the disk did not take it, and the file has to be
// written anew.
func (c *Client) Settle(ctx context.Context, name string, from int64) (mover.Settled, error) {
	var told mover.Settled
	err := c.call(ctx, http.MethodPost, nil, &told, fmt.Sprintf("v1/outbox/%s/settle?from=%d", url.PathEscape(name), from))
	p, ok := errors.AsType[*mover.Problem](err)
	switch {
	case !ok:
		return told, err
	case p.Code == mover.CodeSource:
		return told, fmt.Errorf("%w: %w", mover.ErrUnreadable, err)
	case p.Code == mover.CodeContent:
		return told, mover.Coded(mover.CodeContent, err)
	case p.Status == http.StatusNotFound:
		return told, fmt.Errorf("%s: %w (%w)", name, mover.ErrNotStaged, err)
	case p.Status == http.StatusUnprocessableEntity:
		return told, failure.Permanently(err)
	case p.Status == http.StatusServiceUnavailable:
		return told, failure.After(settlePause, err)
	}
	return told, err
}

// Capabilities tells the data address, the engines and the free space.
func (c *Client) Capabilities(ctx context.Context) (mover.Capabilities, error) {
	var caps mover.Capabilities
	err := c.call(ctx, http.MethodGet, nil, &caps, "v1/capabilities")
	return caps, err
}

// inboxBase returns the base name of a file in the inbox.
func inboxBase(name string) (string, error) {
	if err := mover.CheckName(mover.Inbox, name); err != nil {
		return "", failure.Permanently(mover.Coded(mover.CodeName, err))
	}
	return name[len(mover.Inbox)+1:], nil
}

func noTransfer(err error) error {
	if isProblem(err, http.StatusNotFound) {
		return fmt.Errorf("%w (%w)", mover.ErrNoTransfer, err)
	}
	return err
}

// isProblem reports whether the DTN itself answered with this status. A proxy or
// another server at the same address does not: its 404 must not pass for "no such
// transfer".
func isProblem(err error, status int) bool {
	p, ok := errors.AsType[*mover.Problem](err)
	return ok && p.Status == status
}

// call sends in as JSON if it is not nil, and decodes the answer into out if that
// is not nil. The error names the call and its URL.
func (c *Client) call(ctx context.Context, method string, in, out any, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer within %v", callTimeout))
	defer cancel()
	resp, err := c.send(ctx, method, in, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswer))
	if err == nil && out != nil {
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, resp.Request.URL, err)
	}
	return nil
}

// send returns a successful response; its body is the caller's to close.
func (c *Client) send(ctx context.Context, method string, in any, path string) (*http.Response, error) {
	req, err := c.request(ctx, method, in, path)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil { // a *url.Error, which names method and URL
		return nil, fmt.Errorf("ask the DTN: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, fmt.Errorf("%s %s: %w", method, req.URL, refusal(resp))
}

func (c *Client) request(ctx context.Context, method string, in any, path string) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// refusal is what an unsuccessful response says: a *mover.Problem, with its code,
// if it comes from a DTN.
func refusal(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	p := new(mover.Problem)
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media != mover.ProblemMedia || json.Unmarshal(data, p) != nil || p.Status != resp.StatusCode {
		return fmt.Errorf("%s, not in the way a DTN answers; is the URL right?", resp.Status)
	}
	if p.Code != "" {
		return mover.Coded(p.Code, p)
	}
	return p
}
