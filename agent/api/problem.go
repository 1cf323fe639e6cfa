package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

const problemMedia = "application/problem+json"

// Problem is what the agent answers when it did not do what it was asked (RFC 9457).
type Problem struct {
	Type      string   `json:"type" doc:"stable, for a program"`
	Title     string   `json:"title,omitempty"`
	Status    int      `json:"status" doc:"HTTP status code"`
	Detail    string   `json:"detail,omitempty" doc:"what happened, for a person"`
	Errors    []string `json:"errors,omitempty" doc:"every fault of the request, with its place"`
	Permanent bool     `json:"permanent,omitempty" doc:"no repetition cures it: a person has to act"`
}

// Error returns the detail and every single fault.
func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	if len(p.Errors) > 0 {
		text += ": " + strings.Join(p.Errors, "; ")
	}
	return text
}

// GetStatus returns the HTTP status code.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type of problems whatever the client asked for.
func (p *Problem) ContentType(string) string { return problemMedia }

// Types of Problem that stand for no error of the agent.
const (
	typePrefix  = "urn:glance-dtn:problem:"
	typeInvalid = typePrefix + "invalid"   // 400, 415, 422: the request itself is wrong
	typeLarge   = typePrefix + "too-large" // 413
	typeError   = typePrefix + "error"     // all else
)

// known are the errors that keep their identity on the way. The first that fits is taken.
var known = []struct {
	kind   string
	status int
	err    error
}{
	{typePrefix + "forbidden", http.StatusForbidden, agent.ErrForbidden},
	{typePrefix + "no-job", http.StatusNotFound, agent.ErrNoJob},
	{typePrefix + "no-transfer", http.StatusNotFound, mover.ErrNoTransfer},
	{typePrefix + "no-image", http.StatusNotFound, agent.ErrNoImage},
	{typePrefix + "no-peer", http.StatusNotFound, agent.ErrNoPeer},
	{typePrefix + "ambiguous", http.StatusConflict, agent.ErrAmbiguous},
	{typePrefix + "short-id", http.StatusConflict, agent.ErrShortID},
	{typePrefix + "bad-state", http.StatusConflict, agent.ErrBadState},
}

// problemOf tells err to a client.
func problemOf(err error) *Problem {
	p := newProblem(http.StatusInternalServerError, err.Error())
	if errors.Is(err, context.DeadlineExceeded) {
		p = newProblem(http.StatusGatewayTimeout, err.Error())
	}
	for _, k := range known {
		if errors.Is(err, k.err) {
			p = newProblem(k.status, err.Error())
			p.Type = k.kind
			break
		}
	}
	p.Permanent = failure.IsPermanent(err)
	return p
}

// newProblem returns a Problem whose type follows from the status.
func newProblem(status int, detail string, faults ...string) *Problem {
	p := &Problem{Type: typeError, Title: http.StatusText(status), Status: status, Detail: detail, Errors: faults}
	switch status {
	case http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		p.Type, p.Permanent = typeInvalid, true
	case http.StatusRequestEntityTooLarge:
		p.Type, p.Permanent = typeLarge, true
	}
	return p
}

// frameworkProblem turns the API framework's errors into Problems.
func frameworkProblem(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := newProblem(e.Status, e.Detail)
	for _, d := range e.Errors {
		if d.Location != "" {
			d.Message = d.Location + ": " + d.Message
		}
		p.Errors = append(p.Errors, d.Message)
	}
	return p, nil
}

// remoteError is an agent's error on the client's side: the server's text, and the
// identity of what it stood for.
type remoteError struct {
	text string
	is   error // nil: no error of the known ones
}

// errInvalid is what a server that does not understand a request stands for.
var errInvalid = errors.New("the request is invalid")

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// err is the error that p was made of, as far as a client may know it.
func (p *Problem) err() error {
	e := &remoteError{text: p.Error()}
	for _, k := range known {
		if p.Type == k.kind {
			e.is = k.err
		}
	}
	if p.Type == typeInvalid {
		e.is = errInvalid
	}
	if p.Permanent {
		return failure.Permanently(e)
	}
	return e
}
