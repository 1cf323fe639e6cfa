package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/outage"
)

const (
	maxAnswer     = 256 << 20 // of an answer that is no stream: a comparison of many images
	maxPeerAnswer = 8 << 20   // of another site's: one job and its image at most
	maxLine       = 1 << 20   // of a stream
)

// client calls one API. Its errors are the server's, or say what could not be reached.
type client struct {
	base    string
	hc      *http.Client
	daemon  outage.Daemon
	most    int64             // bytes of an answer that is no stream
	timeout time.Duration     // of a call, or of silence in JSON lines; 0: none
	say     func(error) error // puts an error into words; nil stays nil
}

// errTooSlow is the cause of a client's own timeouts.
var errTooSlow = errors.New("no answer in time")

// ask sends in, if any, and returns the answer.
func ask[T any](ctx context.Context, c *client, method, path string, in any) (T, error) {
	var out T
	err := c.call(ctx, method, path, in, &out)
	return out, err
}

// call sends in, if any, and decodes the answer into out, if any.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, errTooSlow)
		defer cancel()
	}
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return c.say(err)
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	body := &io.LimitedReader{R: res.Body, N: c.most}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		if body.N == 0 {
			err = fmt.Errorf("the answer is longer than %d MiB", c.most>>20)
		}
		return c.say(fmt.Errorf("read the answer to %s %s: %w", method, path, causeOf(ctx, err)))
	}
	return nil
}

// send returns an answer that is a success, whose body the caller closes.
func (c *client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.hc.Do(req)
	if err != nil {
		return nil, c.daemon.Explain(causeOf(ctx, err))
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	return nil, readProblem(method, path, res)
}

// readProblem makes an error of an answer that is none of success.
func readProblem(method, path string, res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxLine))
	var p Problem
	if media, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";"); err == nil && media == problemMedia {
		err = json.Unmarshal(b, &p)
	}
	if err != nil || p.Type == "" {
		err := fmt.Errorf("%s %s: the answer is %s and no agent's", method, path, res.Status)
		if res.StatusCode == http.StatusNotFound {
			err = fmt.Errorf("%w, or that of an older one which does not know this request", err)
		}
		return err
	}
	return p.err()
}

// causeOf replaces the error that our own timeout has led to.
func causeOf(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errTooSlow) {
		return errTooSlow
	}
	return err
}

// getLines yields the items of an answer in JSON lines. Nothing is asked before it is ranged over.
func getLines[T any](ctx context.Context, c *client, path string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		patience := cmp.Or(c.timeout, math.MaxInt64)
		silence := time.AfterFunc(patience, func() { cancel(errTooSlow) })
		defer silence.Stop()
		res, err := c.send(ctx, http.MethodGet, path, nil)
		if err != nil {
			yield(*new(T), c.say(err))
			return
		}
		defer res.Body.Close()
		for line, err := range linesOf(res.Body) {
			silence.Stop()
			if err != nil {
				yield(*new(T), c.say(causeOf(ctx, err)))
				return
			}
			if item, err := decode[T](line); !yield(item, c.say(err)) {
				return
			}
			silence.Reset(patience) // whoever ranges may be as slow as it likes
		}
	}
}

// decode returns what a server wrote of an item, or of an error and the item beside it.
func decode[T any](line []byte) (item T, err error) {
	if !bytes.HasPrefix(line, []byte(problemLineStart)) {
		err = json.Unmarshal(line, &item)
		return item, err
	}
	both := problemLine{Item: &item}
	if err := json.Unmarshal(line, &both); err != nil || both.Problem == nil {
		return item, fmt.Errorf("%.200q is no problem", line)
	}
	return item, both.Problem.err()
}

// linesOf yields the lines of r. The bytes are good until the next.
func linesOf(r io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		s := bufio.NewScanner(r)
		s.Buffer(nil, maxLine)
		for s.Scan() {
			if !yield(s.Bytes(), nil) {
				return
			}
		}
		if err := s.Err(); err != nil {
			yield(nil, fmt.Errorf("the answer was cut off: %w", err))
		}
	}
}

// getEvents yields server-sent events until the server or ctx ends them; the
// latter is no error.
func getEvents[T any](ctx context.Context, c *client, path string) iter.Seq2[T, error] {
	return streamEvents[T](ctx, c, http.MethodGet, path, nil)
}

// streamEvents is getEvents for any call.
func streamEvents[T any](ctx context.Context, c *client, method, path string, in any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		res, err := c.send(ctx, method, path, in)
		if err != nil {
			if ctx.Err() == nil {
				yield(*new(T), c.say(err))
			}
			return
		}
		defer res.Body.Close()
		for line, err := range linesOf(res.Body) {
			if err != nil {
				if ctx.Err() == nil {
					yield(*new(T), c.say(err))
				}
				return
			}
			data, ok := bytes.CutPrefix(line, []byte("data: ")) // of a problem too: decode knows it by itself
			if !ok {
				continue
			}
			if item, err := decode[T](data); !yield(item, c.say(err)) {
				return
			}
		}
	}
}
