package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// maxLine bounds one line of an event stream.
const maxLine = 64 << 10

// Follow yields a transfer's status when its state changes and about every second
// meanwhile, and ends after the final state. An error says that the stream broke:
// going on with the loop opens it again after a pause. mover.ErrNoTransfer and the
// end of ctx are the last that it yields.
func (c *Client) Follow(ctx context.Context, id mover.TransferID) iter.Seq2[mover.Status, error] {
	return func(yield func(mover.Status, error) bool) {
		for {
			over, err := c.followOnce(ctx, id, func(s mover.Status) bool { return yield(s, nil) })
			if over {
				return
			}
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			last := ctx.Err() != nil || errors.Is(err, mover.ErrNoTransfer)
			if !yield(mover.Status{}, err) || last {
				return
			}
			select {
			case <-time.After(c.pause):
			case <-ctx.Done():
			}
		}
	}
}

// followOnce reads one event stream. It returns true when there is nothing more to
// tell or nobody to tell it to, and an error otherwise.
func (c *Client) followOnce(ctx context.Context, id mover.TransferID, yield func(mover.Status) bool) (over bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(c.quiet, func() { cancel(fmt.Errorf("no event within %v", c.quiet)) })
	defer quiet.Stop()

	resp, err := c.send(ctx, http.MethodGet, nil, "v1/transfers/"+url.PathEscape(string(id))+"/events")
	if err != nil {
		return false, noTransfer(err)
	}
	defer resp.Body.Close()
	err = events(resp.Body, func(data []byte) (bool, error) {
		quiet.Stop() // the consumer may take its time
		var s mover.Status
		if err := json.Unmarshal(data, &s); err != nil {
			return false, err
		}
		over = !yield(s) || s.State.Final()
		quiet.Reset(c.quiet)
		return !over, nil
	})
	if over {
		return true, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return false, fmt.Errorf("follow transfer %s at %s: %w", id, c.base, err)
}

// events calls each with the data of every "status" event in r until it returns
// false or an error, or r ends, which is io.ErrUnexpectedEOF.
func events(r io.Reader, each func(data []byte) (more bool, err error)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	event, data := "", ""
	for lines.Scan() {
		if lines.Text() != "" {
			switch field, value, _ := strings.Cut(lines.Text(), ":"); field {
			case "event":
				event = strings.TrimPrefix(value, " ")
			case "data": // always one line
				data = strings.TrimPrefix(value, " ")
			}
			continue
		}
		if event == "status" {
			if more, err := each([]byte(data)); err != nil || !more {
				return err
			}
		}
		event, data = "", ""
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
