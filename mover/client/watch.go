package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Bounds of a watch. A DTN that has nothing to tell says so every second.
const (
	maxSilence = 5 * time.Second // then the connection is taken for dead
	rewatchMin = 250 * time.Millisecond
	rewatchMax = 10 * time.Second
)

// Watch yields the whole inbox, by the files' names in the export: as it is, and then
// each time the DTN announces a change of it, until ctx ends; that is no error. While the
// DTN cannot be heard it yields why, at each vain try, later and later, and when it can
// be heard again the inbox. Several changes may be told as one. What it yields is the
// caller's.
func (c *Client) Watch(ctx context.Context) iter.Seq2[map[string]mover.Arrival, error] {
	return func(yield func(map[string]mover.Arrival, error) bool) {
		for wait := rewatchMin; ; wait = min(2*wait, rewatchMax) {
			more := true
			err := c.listen(ctx, func(inbox map[string]mover.Arrival) bool {
				wait = rewatchMin
				more = yield(inbox, nil)
				return more
			})
			if !more || ctx.Err() != nil || !yield(nil, fmt.Errorf("hear of arrivals: %w", err)) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// listen follows one stream of announcements until it breaks, which is the error, or
// tell returns false. It tells a clone of the inbox after each event that changes it.
func (c *Client) listen(ctx context.Context, tell func(map[string]mover.Arrival) bool) error {
	var inbox map[string]mover.Arrival // nil before the first event, which is all of it
	return c.events(ctx, http.MethodGet, nil, "v1/events/arrivals", func(data []byte) (bool, error) {
		var changes mover.InboxChanges
		if err := json.Unmarshal(data, &changes); err != nil {
			return false, err
		}
		if inbox != nil && len(changes.Arrivals)+len(changes.Dropped) == 0 {
			return true, nil
		}
		if inbox == nil {
			inbox = map[string]mover.Arrival{}
		}
		changes.Apply(inbox)
		return tell(maps.Clone(inbox)), nil
	})
}

// Follow yields the DTN's transfers: all that it knows, oldest first, and then each that has
// changed, as it is now, until ctx ends; that is no error. While the DTN cannot be heard it
// yields why, at each vain try, later and later, and when it can be heard again all of them
// once more. Several changes may be told as one.
func (c *Client) Follow(ctx context.Context) iter.Seq2[mover.Status, error] {
	return func(yield func(mover.Status, error) bool) {
		for wait := rewatchMin; ; wait = min(2*wait, rewatchMax) {
			more := true
			err := c.follow(ctx, func(s mover.Status) bool {
				wait = rewatchMin
				more = yield(s, nil)
				return more
			})
			if !more || ctx.Err() != nil || !yield(mover.Status{}, fmt.Errorf("hear of transfers: %w", err)) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// follow follows one stream of transfers until it breaks, which is the error, or tell
// returns false.
func (c *Client) follow(ctx context.Context, tell func(mover.Status) bool) error {
	return c.events(ctx, http.MethodGet, nil, "v1/events", func(data []byte) (bool, error) {
		var all []mover.Status
		if err := json.Unmarshal(data, &all); err != nil {
			return false, err
		}
		for _, s := range all {
			if !tell(s) {
				return false, nil
			}
		}
		return true, nil
	})
}

// events calls each for the data of one stream's events, until it breaks, which is the error, or
// each returns false or an error.
func (c *Client) events(ctx context.Context, method string, in any, path string, each func(data []byte) (bool, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(maxSilence, func() { cancel(fmt.Errorf("nothing was heard for %v", maxSilence)) })
	defer silence.Stop()
	resp, err := c.send(ctx, method, in, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Buffer(nil, maxAnswer); lines.Scan(); {
		silence.Reset(maxSilence)
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		more, err := each(data)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, resp.Request.URL, err)
		}
		if !more {
			return nil
		}
	}
	err = errors.New("the DTN ended the stream")
	if lines.Err() != nil {
		err = lines.Err()
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("%s %s: %w", method, resp.Request.URL, err)
}
