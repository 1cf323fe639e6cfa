package dtn

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// problem returns a Problem whose type follows from the status.
func problem(status int, code mover.Code, detail string, faults ...string) *mover.Problem {
	p := &mover.Problem{
		Type:   mover.ProblemInternal,
		Title:  http.StatusText(status),
		Status: status,
		Detail: detail,
		Code:   code,
		Errors: faults,
	}
	switch status {
	case http.StatusBadRequest, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		p.Type = mover.ProblemInvalid
	case http.StatusForbidden:
		p.Type = mover.ProblemForbidden
	case http.StatusNotFound:
		p.Type = mover.ProblemNotFound
	case http.StatusConflict:
		p.Type = mover.ProblemConflict
	case http.StatusRequestEntityTooLarge:
		p.Type = mover.ProblemTooLarge
	case http.StatusServiceUnavailable:
		p.Type = mover.ProblemBusy
	}
	return p
}

// toProblem turns the API framework's errors into Problems. It drops the values
// that the framework quotes from the request: a ticket may be among them.
func toProblem(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := problem(e.Status, "", e.Detail)
	for _, d := range e.Errors {
		if d.Location == "" {
			p.Errors = append(p.Errors, d.Message)
		} else {
			p.Errors = append(p.Errors, d.Location+": "+d.Message)
		}
	}
	return p, nil
}

// Allow lets only the agent and operators of the site use its DTN: for pki.Keyring.ServerTLS,
// so that others hold no connection.
func Allow(site string) func(pki.Identity) error {
	return func(id pki.Identity) error {
		if id.Site != site || id.Role != pki.Agent && id.Role != pki.Operator {
			return fmt.Errorf("the %v may not use the DTN of site %s; its agent and operators may", id, site)
		}
		return nil
	}
}

// authorise lets only those through to h whom Allow lets in.
func authorise(site string, identify func(*http.Request) (pki.Identity, error), h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := identify(r)
		if err == nil {
			err = Allow(site)(id)
		}
		if err != nil {
			p := problem(http.StatusForbidden, mover.CodeAuth, err.Error())
			w.Header().Set("Content-Type", mover.ProblemMedia)
			w.WriteHeader(p.Status)
			json.NewEncoder(w).Encode(p)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// peer is who the client's verified certificate says it is.
func peer(r *http.Request) (pki.Identity, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return pki.Identity{}, fmt.Errorf("a client certificate is needed; issue one with: glance-dtn pki issue")
	}
	return pki.IdentityOf(r.TLS.VerifiedChains[0][0])
}
