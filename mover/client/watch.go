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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(maxSilence, func() { cancel(fmt.Errorf("nothing was heard for %v", maxSilence)) })
	defer silence.Stop()
	resp, err := c.send(ctx, http.MethodGet, nil, "v1/events/arrivals")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var inbox map[string]mover.Arrival // nil before the first event, which is all of it
	lines := bufio.NewScanner(resp.Body)
	for lines.Buffer(nil, maxAnswer); lines.Scan(); {
		silence.Reset(maxSilence)
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		var changes mover.InboxChanges
		if err := json.Unmarshal(data, &changes); err != nil {
			return fmt.Errorf("GET %s: %w", resp.Request.URL, err)
		}
		if inbox != nil && len(changes.Arrivals)+len(changes.Dropped) == 0 {
			continue
		}
		if inbox == nil {
			inbox = map[string]mover.Arrival{}
		}
		changes.Apply(inbox)
		if !tell(maps.Clone(inbox)) {
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
	return fmt.Errorf("GET %s: %w", resp.Request.URL, err)
}
