package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// historyTime bounds how long a history may take on its way.
const historyTime = 2 * time.Minute

// History returns what the DTN's transfers have achieved, as CSV.
func (c *Client) History(ctx context.Context) (string, error) {
	answer, err := c.history(ctx, http.MethodGet, "v1/history", nil)
	return string(answer), err
}

// ImportHistory adds a CSV of what transfers have achieved to what the DTN knows: all of it
// or, on an error, nothing. One that says what is wrong with the CSV is permanent.
func (c *Client) ImportHistory(ctx context.Context, csv string) (got mover.Imported, err error) {
	answer, err := c.history(ctx, http.MethodPost, "v1/history", []byte(csv))
	if isProblem(err, http.StatusUnprocessableEntity) || isProblem(err, http.StatusRequestEntityTooLarge) {
		err = failure.Permanently(err)
	}
	if err != nil {
		return got, err
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		return got, fmt.Errorf("import the history: read the answer: %w", err)
	}
	return got, nil
}

// ForgetHistory drops what a site's DTN has seen from what the DTN knows.
func (c *Client) ForgetHistory(ctx context.Context, site string) (got mover.Forgotten, err error) {
	answer, err := c.history(ctx, http.MethodDelete, "v1/history/"+url.PathEscape(site), nil)
	if err != nil {
		return got, err
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		return got, fmt.Errorf("forget the history of site %s: read the answer: %w", site, err)
	}
	return got, nil
}

// history sends csv, or nothing where it is nil, and returns the answer.
func (c *Client) history(ctx context.Context, method, path string, csv []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, historyTime, fmt.Errorf("no answer within %v", historyTime))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(csv))
	if err != nil {
		return nil, err
	}
	if csv != nil {
		req.Header.Set("Content-Type", "text/csv")
	}
	resp, err := c.do(req)
	if a, ok := errors.AsType[foreign](err); ok && a.code == http.StatusNotFound {
		return nil, fmt.Errorf("the DTN is of a version that keeps no history (%w)", err)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the answer: %w", method, req.URL, err)
	}
	return answer, nil
}
