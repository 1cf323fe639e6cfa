// Package api is how others talk to an agent: the control API for the operator's
// commands on a unix socket, the peer API for other sites' agents over mutual TLS,
// the Go clients of both, and the plain listener for metrics and health.
//
// What fails is told as a Problem, from which the clients make errors that
// errors.Is knows again. Long answers are JSON lines, one item a line; an error on
// the way is a line {"problem": …, "item": …}.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Control is what an operator may ask: of an agent in this process, or through a
// ControlClient of the daemon. *agent.Agent documents the methods.
type Control interface {
	Push(ctx context.Context, image string, to []string, p mover.Priority) ([]agent.Job, error)
	Pull(ctx context.Context, image, from string) (agent.Job, error)
	Pulled(ctx context.Context, from string, id agent.JobID) (agent.Job, error)
	Replicate(ctx context.Context, m agent.Match, to []string, p mover.Priority, dryRun bool) ([]agent.Comparison, error)
	Compare(ctx context.Context, peers []string, m agent.Match) ([]agent.Comparison, error)
	Overview(ctx context.Context) (agent.Overview, error)
	Jobs(ctx context.Context) iter.Seq2[agent.Job, error]
	Job(ctx context.Context, id agent.JobID) (agent.Job, error)
	Watch(ctx context.Context) iter.Seq2[agent.Event, error]
	Cancel(ctx context.Context, id agent.JobID) (agent.Job, error)
	Retry(ctx context.Context, id agent.JobID) (agent.Job, error)
	Transfers(ctx context.Context) ([]agent.Transfer, error)
	Adjust(ctx context.Context, id mover.TransferID, p mover.PCP) (agent.Transfer, error)
	Paths(ctx context.Context) ([]agent.SitePath, error)
	History(ctx context.Context) (csv string, err error)
	ImportHistory(ctx context.Context, csv string) (mover.Imported, error)
	ForgetHistory(ctx context.Context, site string) (mover.Forgotten, error)
	Probe(ctx context.Context, site string, load time.Duration, bytes int64) iter.Seq2[agent.ProbeEvent, error]
	Ways(ctx context.Context, to, image string, size int64) (agent.Ways, error)
}

// Agent is what is served: *agent.Agent.
type Agent interface {
	Control
	Checks(ctx context.Context) []agent.Check
	ExportTrouble() error

	Offer(ctx context.Context, from string, o agent.Offer) (agent.Grant, error)
	Delivery(ctx context.Context, from string, id agent.JobID) (agent.Delivery, error)
	CancelDelivery(ctx context.Context, from string, id agent.JobID) error
	Inventory(ctx context.Context, from string) iter.Seq2[glance.Image, error]
	Health(ctx context.Context, from string) (agent.Health, error)
	Request(ctx context.Context, from, image string) (agent.Job, error)
	Sending(ctx context.Context, from string, id agent.JobID) (agent.Job, error)
	ProbeTicket(ctx context.Context, from, via string) (mover.Destination, error)
}

var (
	_ Agent   = (*agent.Agent)(nil)
	_ Control = (*ControlClient)(nil)
)

const (
	maxBody  = 1 << 20          // of a request
	bodyTime = 30 * time.Second // for reading it
)

// newServer returns a server that gives handlers answerTime. A stream's deadline
// moves on with each item. What the server itself has to say is logged as a warning.
func newServer(h http.Handler, answerTime time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      answerTime,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// routes is a mux with a huma API on it.
type routes struct {
	mux *http.ServeMux
	api huma.API
}

func newRoutes(title string) routes {
	conf := huma.DefaultConfig(title, "1")
	conf.OpenAPIPath, conf.DocsPath, conf.SchemasPath = "", "", ""
	conf.CreateHooks = nil // no $schema in bodies
	conf.Transformers = []huma.Transformer{frameworkProblem}
	conf.RejectUnknownQueryParameters = true
	mux := http.NewServeMux()
	return routes{mux, humago.New(mux, conf)}
}

func (r routes) op(method, path, id, summary string) huma.Operation {
	return huma.Operation{
		Method: method, Path: path, OperationID: id, Summary: summary,
		MaxBodyBytes: maxBody, BodyReadTimeout: bodyTime,
		Responses: map[string]*huma.Response{"default": {
			Description: "Problem details",
			Content: map[string]*huma.MediaType{
				problemMedia: {Schema: r.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Problem](), true, "")},
			},
		}},
	}
}

// streaming documents what an operation streams.
func (r routes) streaming(op huma.Operation, media string, item reflect.Type) huma.Operation {
	op.Responses["200"] = &huma.Response{
		Description: "A stream",
		Content:     map[string]*huma.MediaType{media: {Schema: r.api.OpenAPI().Components.Schemas.Schema(item, true, "")}},
	}
	return op
}

// handler serves the operations and their description. It is rendered once, here:
// the framework would do so at the first request, without a lock.
func (r routes) handler() http.Handler {
	doc := r.api.OpenAPI()
	delete(doc.Components.Schemas.Map(), "ErrorModel") // replaced by Problem
	delete(doc.Components.Schemas.Map(), "ErrorDetail")
	asJSON, err := doc.MarshalJSON()
	asYAML, yamlErr := doc.YAML()
	if err := errors.Join(err, yamlErr); err != nil {
		panic(err) // like a route that cannot be registered: wrong at every start
	}
	for path, content := range map[string][]byte{"json": asJSON, "yaml": asYAML} {
		r.mux.HandleFunc("GET /openapi."+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/openapi+"+path)
			_, _ = w.Write(content)
		})
	}
	return r.mux
}

// The shapes of inputs and outputs.
type (
	noInput        struct{}
	output[T any]  struct{ Body T }
	streamResponse = huma.StreamResponse
)

func answer[T any](v T, err error) (*output[T], error) {
	if err != nil {
		return nil, problemOf(err)
	}
	return &output[T]{v}, nil
}

func answerJSON(w http.ResponseWriter, status int, media string, v any) {
	w.Header().Set("Content-Type", media)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller has gone: there is nobody to tell
}
