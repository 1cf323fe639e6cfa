// Package client asks a DTN over its third-party REST API: to move a file, how
// far it is, and what lies in its inbox.
package client

import (
	"bytes"
	"cmp"
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
	"github.com/glance-dtn/glance-dtn/internal/outage"
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
// request is the same transfer, whatever its PCP and priority. mover.ErrKeyConflict when the
// key was used for another one. A request that the DTN refuses for what it says fails permanently.
func (c *Client) Submit(ctx context.Context, r mover.Request) (mover.TransferID, error) {
	var s mover.Status
	err := c.call(ctx, http.MethodPost, r, &s, "v1/transfers")
	return s.ID, notSubmitted(err)
}

func notSubmitted(err error) error {
	if isProblem(err, http.StatusConflict) {
		err = fmt.Errorf("%w (%w)", mover.ErrKeyConflict, err)
	}
	if isProblem(err, http.StatusUnprocessableEntity) {
		err = failure.Permanently(err)
	}
	return err
}

// Submission is what became of a request in a batch.
type Submission struct {
	ID  mover.TransferID
	Err error // that of Submit
}

// SubmitAll asks for many transfers with few calls, and returns what became of each. It may
// be repeated, and a request refused is no hindrance to the others. An error is that of a
// call: of the requests after those that are answered for, nothing is known.
func (c *Client) SubmitAll(ctx context.Context, requests []mover.Request) ([]Submission, error) {
	var done []Submission
	for len(requests) > 0 {
		batch, n, err := nextBatch(requests)
		if err != nil {
			return done, err
		}
		var answers []mover.Submitted
		if err := c.call(ctx, http.MethodPost, batch, &answers, "v1/batches"); err != nil {
			return done, err
		}
		if len(answers) != n {
			return done, fmt.Errorf("POST %sv1/batches: %d answers to %d requests", c.base, len(answers), n)
		}
		for _, a := range answers {
			done = append(done, submission(a))
		}
		requests = requests[n:]
	}
	return done, nil
}

// batchSize is how many requests a call has: the DTN goes on with them while it is asked
// for the next ones.
const batchSize = 250

// nextBatch returns the JSON of as many of the requests as one call has, at least one.
func nextBatch(requests []mover.Request) (batch encoded, n int, err error) {
	batch = encoded("[")
	for _, r := range requests[:min(len(requests), batchSize)] {
		body, err := json.Marshal(r)
		if err != nil {
			return nil, 0, err
		}
		if n > 0 && len(batch)+len(body)+len(",]") > mover.MaxBatchBytes {
			break
		}
		if n > 0 {
			batch = append(batch, ',')
		}
		batch = append(batch, body...)
		n++
	}
	return append(batch, ']'), n, nil
}

func submission(a mover.Submitted) Submission {
	switch {
	case a.Problem != nil:
		return Submission{Err: notSubmitted(fmt.Errorf("submit: %w", coded(a.Problem)))}
	case a.Status == nil:
		return Submission{Err: errors.New("submit: the DTN answers nothing")}
	}
	return Submission{ID: a.Status.ID}
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

// Passages returns the files that the DTN passes on from one site to another, or keeps for that.
// A DTN of a version that does not know of passages has none.
func (c *Client) Passages(ctx context.Context) ([]mover.Passage, error) {
	var all []mover.Passage
	err := c.call(ctx, http.MethodGet, nil, &all, "v1/passages")
	if a, ok := errors.AsType[foreign](err); ok && a.code == http.StatusNotFound {
		return nil, nil
	}
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

// Adjust changes what a transfer uses while it runs or waits; what is zero stays. A transfer
// that has ended or that its engine cannot change fails permanently; mover.ErrNoTransfer.
func (c *Client) Adjust(ctx context.Context, id mover.TransferID, p mover.PCP) (mover.Status, error) {
	return c.change(ctx, id, mover.Change{PCP: p})
}

// Prioritise gives a transfer another priority while it runs or waits; its errors are those of
// Adjust.
func (c *Client) Prioritise(ctx context.Context, id mover.TransferID, p mover.Priority) error {
	_, err := c.change(ctx, id, mover.Change{Priority: p})
	return err
}

func (c *Client) change(ctx context.Context, id mover.TransferID, to mover.Change) (mover.Status, error) {
	var s mover.Status
	err := c.call(ctx, http.MethodPatch, to, &s, "v1/transfers/"+url.PathEscape(string(id)))
	if isProblem(err, http.StatusUnprocessableEntity) {
		err = failure.Permanently(err)
	}
	return s, noTransfer(err)
}

// Paths tells what the DTN's transfers have seen of the paths to their destinations.
func (c *Client) Paths(ctx context.Context) ([]mover.SeenPath, error) {
	var all []mover.SeenPath
	err := c.call(ctx, http.MethodGet, nil, &all, "v1/paths")
	return all, err
}

// Probe has the DTN measure a path, tells how far it is, and returns what is known of the
// path then. When ctx ends the DTN stops. A *mover.Problem of 503 passes by itself.
func (c *Client) Probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (path mover.SeenPath, err error) {
	var refused error
	err = c.events(ctx, http.MethodPost, r, "v1/probes", func(data []byte) (bool, error) {
		var e mover.ProbeEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return false, err
		}
		switch {
		case e.Problem != nil:
			refused = coded(e.Problem)
			return false, nil
		case e.Path != nil:
			path = *e.Path
			return false, nil
		case e.Progress != nil:
			report(*e.Progress)
		}
		return true, nil
	})
	if a, ok := errors.AsType[foreign](err); ok && a.code == http.StatusNotFound {
		err = fmt.Errorf("the DTN is of a version that knows no probes; update it (%w)", err)
	}
	return path, cmp.Or(refused, err)
}

// Onward has the DTN ask a relay what that has seen of its paths to the sites to which it
// passes files on; the relay's mode does not matter. A DTN of a version that does not know
// how says so.
func (c *Client) Onward(ctx context.Context, r mover.Relay) ([]mover.Hop, error) {
	var hops []mover.Hop
	err := c.call(ctx, http.MethodGet, nil, &hops, "v1/relays/"+url.PathEscape(r.Site)+"/paths?address="+url.QueryEscape(r.Address))
	if a, ok := errors.AsType[foreign](err); ok && a.code == http.StatusNotFound {
		return nil, errors.New("this site's DTN is of a version that does not ask relays: update it")
	}
	return hops, err
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

// encoded is JSON already.
type encoded []byte

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
	return c.do(req)
}

// do returns a successful response; its body is the caller's to close.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, outage.Daemon{Name: "the DTN", Unit: "glance-dtn-dtn", URL: c.base}.Explain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL, refusal(resp))
}

func (c *Client) request(ctx context.Context, method string, in any, path string) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		data, ok := in.(encoded)
		if !ok {
			var err error
			if data, err = json.Marshal(in); err != nil {
				return nil, err
			}
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

// foreign is an unsuccessful response that is none of a DTN's, or to a call that it does not know.
type foreign struct {
	status string
	code   int
}

func (f foreign) Error() string {
	return f.status + ", not in the way a DTN answers; is the URL right?"
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
		return foreign{resp.Status, resp.StatusCode}
	}
	return coded(p)
}

func coded(p *mover.Problem) error {
	if p.Code != "" {
		return mover.Coded(p.Code, p)
	}
	return p
}
