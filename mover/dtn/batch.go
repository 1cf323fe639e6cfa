package dtn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// DefaultSmall is Options.Small when nobody says otherwise: more than a path of 50 ms and
// 1 Gbit/s needs for files of 50 KiB.
const DefaultSmall = 256

// isSmall reports whether a transfer is one of those that are many at once: its file is
// sent in one go, and costs our data plane neither a connection nor a process.
func (t *table) isSmall(r mover.Request) bool {
	return t.limits.small && r.Engine == mover.Stream && r.Source.Size <= mover.BlockSize
}

// runSmall runs the small transfers, at most Options.Small at once, until ctx is done.
func (s *Server) runSmall(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	places := make(chan struct{}, s.opt.Small)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		run, stop := context.WithCancelCause(ctx)
		r, ok := s.table.next(ctx, true, stop)
		if !ok {
			stop(nil)
			return
		}
		running.Go(func() {
			for ok { // the next one at once: that costs no goroutine, whose stack has to grow
				s.run(ctx, run, r)
				stop(nil)
				if ok = ctx.Err() == nil; ok {
					run, stop = context.WithCancelCause(ctx)
					r, _, _, ok = s.table.take(true, stop)
				}
			}
			stop(nil)
			<-places
		})
	}
}

// submission is a request on its way into the table, and what became of it.
type submission struct {
	request mover.Request
	status  mover.Status
	fresh   bool
	err     error // mover.ErrKeyConflict, errFull, or the disk's
}

// same reports whether two requests with a key ask for one transfer: its PCP and its priority
// may change.
func same(a, b mover.Request) bool {
	a.PCP, a.Priority = b.PCP, b.Priority
	return a == b
}

// submitAll adds transfers, or finds them. The new ones become durable in one step.
func (t *table) submitAll(all []*submission) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	now := time.Now().UTC()
	added := map[mover.TransferID]*transfer{}
	var fresh []*transfer
	var changes []durable.Change
	for i, s := range all {
		id := transferID(s.request.Key)
		known := t.byID[id]
		if known == nil {
			known = added[id]
		}
		switch {
		case known != nil && !same(known.Request, s.request):
			s.err = mover.ErrKeyConflict
		case known != nil:
			s.status = t.copyOf(known).Status
		case t.open+len(fresh) >= t.limits.unfinished:
			s.err = errFull
		default:
			tr := &transfer{record: record{Request: s.request, Status: mover.Status{
				ID:      id,
				Key:     s.request.Key,
				State:   mover.Queued,
				Source:  s.request.Source,
				Address: s.request.Destination.Address,
				Via:     s.request.Destination.Via,
				Created: now.Add(time.Duration(i)), // their order outlives a restart
			}}}
			s.status, s.fresh = tr.Status, true
			added[id] = tr
			fresh = append(fresh, tr)
			changes = append(changes, durable.Set(string(id), tr.record))
		}
	}
	if err := t.records.Commit(changes...); err != nil {
		for _, s := range all {
			if _, new := added[transferID(s.request.Key)]; new && s.err == nil {
				s.status, s.fresh, s.err = mover.Status{}, false, fmt.Errorf("store the transfer: %w", err)
			}
		}
		return nil
	}
	t.publishAll(fresh, func(i int) {
		t.byID[fresh[i].Status.ID] = fresh[i]
		t.open++
		if i == len(fresh)-1 {
			t.enqueue(fresh...)
		}
	})
	for _, tr := range fresh {
		t.log.Info("transfer queued", "transfer", tr.Status.ID, "file", tr.Request.Source.Name, "bytes", tr.Request.Source.Size, "to", tr.Request.Destination.Address)
	}
	return nil
}

// publishAll applies a change to each of some transfers in memory and tells everyone who waits.
func (t *table) publishAll(some []*transfer, change func(i int)) {
	if len(some) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, tr := range some {
		change(i)
		t.touch(tr)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// ending is a run that has ended, and what became of its transfer.
type ending struct {
	id       mover.TransferID
	err      error
	stopping bool
	status   mover.Status
}

// batchInput is a list of requests, each of which is judged by itself.
type batchInput struct {
	RawBody []byte `contentType:"application/json"`
}

func (s *Server) registerBatches(api huma.API, op huma.Operation) {
	registry := api.OpenAPI().Components.Schemas
	one := registry.Schema(reflect.TypeFor[mover.Request](), true, "")
	least, most := 1, mover.MaxBatch
	op.MaxBodyBytes, op.BodyReadTimeout = mover.MaxBatchBytes, 30*time.Second
	op.SkipValidateBody = true // each is, by itself
	op.RequestBody = &huma.RequestBody{
		Required: true,
		Content: map[string]*huma.MediaType{"application/json": {
			Schema: &huma.Schema{Type: huma.TypeArray, Items: one, MinItems: &least, MaxItems: &most},
		}},
	}
	huma.Register(api, op, func(_ context.Context, in *batchInput) (*output[[]mover.Submitted], error) {
		var bodies []any
		if err := json.Unmarshal(in.RawBody, &bodies); err != nil {
			return nil, problem(http.StatusBadRequest, "", err.Error())
		}
		if len(bodies) < least || len(bodies) > most {
			return nil, problem(http.StatusUnprocessableEntity, "", fmt.Sprintf("%d transfers in one batch; %d to %d are", len(bodies), least, most))
		}
		requests, faults := decodeRequests(in.RawBody, len(bodies))
		for i, body := range bodies {
			if err := checkSchema(registry, one, body); err != nil {
				faults[i] = err
			}
		}
		return &output[[]mover.Submitted]{s.submitBatch(requests, faults)}, nil
	})
}

// decodeRequests decodes a list of n requests, all at once if it can: else it tells what is
// wrong with which.
func decodeRequests(list []byte, n int) (requests []mover.Request, faults []error) {
	faults = make([]error, n)
	if err := json.Unmarshal(list, &requests); err == nil { // what it passes over the schema does not
		return requests, faults
	}
	var bodies []json.RawMessage
	_ = json.Unmarshal(list, &bodies) // it has been before
	requests = make([]mover.Request, n)
	for i, body := range bodies {
		faults[i] = decodeStrictly(body, &requests[i])
	}
	return requests, faults
}

func decodeStrictly(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// checkSchema reports what the framework says of the body of a single request.
func checkSchema(registry huma.Registry, schema *huma.Schema, body any) error {
	found := &huma.ValidateResult{}
	path := huma.NewPathBuffer([]byte("body"), len("body"))
	if huma.Validate(registry, schema, path, huma.ModeWriteToServer, body, found); len(found.Errors) == 0 {
		return nil
	}
	p := problem(http.StatusUnprocessableEntity, "", "validation failed")
	for _, err := range found.Errors {
		text := err.Error()
		if d, ok := errors.AsType[*huma.ErrorDetail](err); ok { // without the value: a ticket may be in it
			text = d.Location + ": " + d.Message
		}
		p.Errors = append(p.Errors, text)
	}
	return p
}

// submitBatch submits the requests that have no fault and can be carried out.
func (s *Server) submitBatch(requests []mover.Request, faults []error) []mover.Submitted {
	answers := make([]mover.Submitted, len(requests))
	var all []*submission
	var at []int // in answers
	for i, r := range requests {
		err := faults[i]
		if err == nil {
			r, err = s.judge(r)
		}
		if err != nil {
			answers[i].Problem = problemOf(err)
			continue
		}
		all, at = append(all, &submission{request: r}), append(at, i)
	}
	_ = s.table.submits.Do(all...) // each has its own error
	for i, one := range all {
		if one.err != nil {
			answers[at[i]].Problem = problemOf(submitProblem(one.request, one.err))
			continue
		}
		answers[at[i]].Status = &one.status
	}
	return answers
}

// problemOf returns err as a Problem: the request's, if it is none yet.
func problemOf(err error) *mover.Problem {
	if p, ok := errors.AsType[*mover.Problem](err); ok {
		return p
	}
	return problem(http.StatusUnprocessableEntity, "", err.Error())
}
