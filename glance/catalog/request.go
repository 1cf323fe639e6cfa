package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/failure"
)

// request is one request of the Image API.
type request struct {
	doing       string // for a person, with its operand: "create image 1234"
	method      string
	path        string // below /v2/
	query       url.Values
	contentType string
	body        []byte
	upload      *upload // in place of body
	bulk        bool    // the answer is an image
	// means says what a refusal with this code means here. It replaces the rules
	// by which other refusals are judged.
	means map[int]error
}

const (
	asJSON  = "application/json"
	asPatch = "application/openstack-images-v2.1-json-patch"
	asBytes = "application/octet-stream"
)

// send sends r and returns an answer that says success; the caller closes it. When
// the token has ended, r is sent once more with a new one, unless it is an upload
// of which a byte has been used.
func (c *Catalog) send(ctx context.Context, r request) (*http.Response, error) {
	s, err := c.connected(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.doing, err)
	}
	for renewed := false; ; renewed = true {
		req, err := r.build(ctx, s.endpoint)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.doing, err)
		}
		token := s.provider.Token()
		req.Header.Set("X-Auth-Token", token)
		resp, err := c.clientFor(r).Do(req)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.doing, err)
		}
		if resp.StatusCode/100 == 2 {
			return resp, nil
		}
		refused := refusal(r, resp)
		if resp.StatusCode != http.StatusUnauthorized || renewed || r.upload != nil && r.upload.begun() {
			return nil, refused
		}
		switch another, err := s.renew(ctx, token); {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", r.doing, err)
		case !another:
			return nil, refused
		}
	}
}

func (c *Catalog) clientFor(r request) *http.Client {
	if r.bulk || r.upload != nil {
		return c.bulk
	}
	return c.call
}

func (r request) build(ctx context.Context, endpoint string) (*http.Request, error) {
	u := endpoint + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "*/*")
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if r.upload != nil {
		r.upload.attach(req)
	}
	return req, nil
}

// get sends r and decodes the JSON of its answer.
func get[T any](ctx context.Context, c *Catalog, r request) (T, error) {
	var v T
	resp, err := c.send(ctx, r)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("%s: answer of %s: %w", r.doing, resp.Request.URL.Redacted(), err)
	}
	return v, nil
}

// refusal turns an answer that is no success into an error and closes it.
func refusal(r request, resp *http.Response) error {
	defer resp.Body.Close()
	answer := fmt.Sprintf("%s %s: %d %s", r.method, resp.Request.URL.Redacted(), resp.StatusCode, saying(resp))
	if meaning := r.means[resp.StatusCode]; meaning != nil {
		return fmt.Errorf("%s: %w (%s)", r.doing, meaning, answer)
	}
	err := fmt.Errorf("%s: %s", r.doing, answer)
	if hopeless(resp.StatusCode) {
		return failure.Permanently(err)
	}
	return err
}

// hopeless reports whether a request that got this code gets it again for ever.
func hopeless(code int) bool {
	passing := []int{
		http.StatusUnauthorized, http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusGone,
		http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests,
	}
	return code/100 == 4 && !slices.Contains(passing, code)
}

var (
	head  = regexp.MustCompile(`(?is)<head>.*?</head>`)
	tag   = regexp.MustCompile(`<[^>]*>`)
	space = regexp.MustCompile(`\s+`)
)

// saying returns an answer's own words in one line: the reason, and what Glance
// put into the HTML or JSON of the body.
func saying(resp *http.Response) string {
	reason := http.StatusText(resp.StatusCode)
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what did not come is not said
	text := words(body)
	text = strings.TrimSpace(strings.TrimPrefix(text, strconv.Itoa(resp.StatusCode)))
	text = strings.TrimSpace(strings.TrimPrefix(text, reason))
	if text == "" {
		return reason
	}
	return reason + ": " + text
}

// words returns the text of an HTML or JSON error, shortened.
func words(body []byte) string {
	var j struct {
		Message string `json:"message"`
		Error   struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	text := string(body)
	if json.Unmarshal(body, &j) == nil && j.Message+j.Error.Message != "" {
		text = j.Message + j.Error.Message
	}
	text = html.UnescapeString(tag.ReplaceAllLiteralString(head.ReplaceAllLiteralString(text, ""), " "))
	text = strings.TrimSpace(space.ReplaceAllLiteralString(text, " "))
	const most = 300
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return text
}

// keystoneSays makes what gophercloud says of a refused login readable.
func keystoneSays(err error) error {
	e, ok := errors.AsType[gophercloud.ErrUnexpectedResponseCode](err)
	if !ok {
		return err
	}
	if e.Actual == http.StatusUnauthorized {
		return fmt.Errorf("Keystone refuses the user, the password or the project: 401 %s", words(e.Body))
	}
	return fmt.Errorf("Keystone answered %s %s with %d %s", e.Method, e.URL, e.Actual, words(e.Body))
}

// imagePath is the path of an image, or of something of it.
func imagePath(id glance.ImageID, of ...string) string {
	return strings.Join(append([]string{"images", url.PathEscape(string(id))}, of...), "/")
}
