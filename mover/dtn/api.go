package dtn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	maxBody    = 64 << 10              // of a request
	cancelWait = 10 * time.Second      // for a running transfer's end
	eventEvery = time.Second           // while nothing changes its state
	inboxEvery = 50 * time.Millisecond // at most: the changes in between are told as one
)

// Handler serves the third-party API to this site's agent and operators. It needs
// a listener that verifies client certificates.
func (s *Server) Handler() http.Handler {
	return authorise(s.opt.Site, peer, s.api)
}

// The inputs and outputs of the operations.
type (
	noInput     struct{}
	submitInput struct{ Body mover.Request }
	listInput   struct {
		State mover.TransferState `query:"state" enum:"queued,running,done,failed,cancelled" doc:"only transfers in this state"`
	}
	transferInput struct {
		ID mover.TransferID `path:"id" maxLength:"64"`
	}
	arrivalInput struct {
		Name string `path:"name" maxLength:"512" doc:"base name in the inbox"`
	}
	blocksInput struct {
		Name string `path:"name" maxLength:"512" doc:"base name in the inbox"`
		From int64  `query:"from" minimum:"0" doc:"index of the first block told"`
	}
	output[T any] struct{ Body T }
	submitOutput  struct {
		Status   int
		Location string `header:"Location"`
		Body     mover.Status
	}
)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	conf := huma.DefaultConfig("glance-dtn DTN "+s.opt.Site, s.opt.Version)
	conf.OpenAPIPath, conf.DocsPath, conf.SchemasPath = "", "", ""
	conf.CreateHooks = nil // no $schema in bodies
	conf.Transformers = []huma.Transformer{toProblem}
	conf.RejectUnknownQueryParameters = true
	api := humago.New(mux, conf)

	op := func(method, path, id, summary string) huma.Operation {
		return huma.Operation{
			Method: method, Path: path, OperationID: id, Summary: summary,
			MaxBodyBytes: maxBody,
			Responses:    map[string]*huma.Response{"default": problemResponse(api)},
		}
	}
	submit := op(http.MethodPost, "/v1/transfers", "submit-transfer", "Submit a transfer; the same key and body again, whatever the PCP and the priority, is the same transfer (200)")
	submit.DefaultStatus = http.StatusAccepted
	huma.Register(api, submit, s.submit)
	known := *submit.Responses["202"]
	known.Description = "Known already"
	submit.Responses["200"] = &known
	s.registerBatches(api, op(http.MethodPost, "/v1/batches", "submit-batch",
		"Submit many transfers, each judged by itself and answered in its place; those that are accepted are so durably, in one step"))
	huma.Register(api, op(http.MethodGet, "/v1/transfers", "list-transfers", "List transfers, oldest first"), s.list)
	huma.Register(api, op(http.MethodGet, "/v1/transfers/{id}", "get-transfer", "Get a transfer"), s.get)
	huma.Register(api, op(http.MethodDelete, "/v1/transfers/{id}", "cancel-transfer",
		"Cancel a transfer and wait a while for its end; one that has ended stays as it is"), s.cancel)
	huma.Register(api, op(http.MethodPatch, "/v1/transfers/{id}", "adjust-transfer",
		"Change a transfer's pipelining, concurrency or parallelism, while it runs or waits; what is not said stays"), s.adjust)

	follow := op(http.MethodGet, "/v1/transfers/{id}/events", "follow-transfer", "Follow a transfer, at least every second, to its final state")
	follow.Middlewares = huma.Middlewares{s.known(api)}
	sse.Register(api, follow, map[string]any{"status": mover.Status{}}, s.follow)
	sse.Register(api, op(http.MethodGet, "/v1/events", "follow-all", "Follow the transfers: all of them, oldest first, and then those that change; none, every second, when none does"),
		map[string]any{"transfers": []mover.Status{}}, s.followAll)

	sse.Register(api, op(http.MethodGet, "/v1/events/arrivals", "follow-arrivals",
		"Follow the inbox: all that is in it, and then what changes; nothing, every second, when nothing does"),
		map[string]any{"inbox": mover.InboxChanges{}}, s.followArrivals)
	huma.Register(api, op(http.MethodGet, "/v1/passages", "list-passages", "List the files that this DTN passes on from one site to another, or keeps for that"), s.listPassages)
	huma.Register(api, op(http.MethodGet, "/v1/arrivals", "list-arrivals", "List the files in the inbox"), s.listArrivals)
	huma.Register(api, op(http.MethodGet, "/v1/arrivals/{name}", "get-arrival", "Get a file in the inbox"), s.arrival)
	huma.Register(api, op(http.MethodGet, "/v1/arrivals/{name}/blocks", "get-blocks", "Get the digests of a file's proven blocks, from the start or from a block on"), s.blocks)
	huma.Register(api, op(http.MethodDelete, "/v1/arrivals/{name}", "drop-arrival", "Remove a file from the inbox, complete or not; nothing happens when there is none"), s.drop)
	huma.Register(api, op(http.MethodPost, "/v1/outbox/{name}/settle", "settle",
		"Sync a file of the outbox to this DTN's disk, and get the digests of its blocks as they are there, from the start or from a block on"), s.settle)
	huma.Register(api, op(http.MethodGet, "/v1/paths", "list-paths", "Tell what transfers and probes have seen of the paths to their destinations, by address"), s.listPaths)
	probe := op(http.MethodPost, "/v1/probes", "probe-path",
		"Measure the path to another DTN, one at a time: how far that is, at least every second, and at last what is known of the path, or a problem. Who goes away ends it")
	sse.Register(api, probe, map[string]any{"probe": mover.ProbeEvent{}}, s.probePath)
	s.registerHistory(api, op)
	huma.Register(api, op(http.MethodGet, "/v1/relays/{site}/paths", "list-onward-paths",
		"Ask the DTN of another site, a relay, what it has seen of its paths to the sites to which it passes this site's files on"), s.onward)
	huma.Register(api, op(http.MethodGet, "/v1/capabilities", "get-capabilities", "What this DTN offers"), s.getCapabilities)

	serveOpenAPI(mux, api)
	return mux
}

// problemResponse documents what every operation answers when it fails.
func problemResponse(api huma.API) *huma.Response {
	return &huma.Response{
		Description: "Problem details",
		Content: map[string]*huma.MediaType{
			mover.ProblemMedia: {Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[mover.Problem](), true, "")},
		},
	}
}

// serveOpenAPI renders the document once: the framework's own handlers do so at
// the first request, without a lock.
func serveOpenAPI(mux *http.ServeMux, api huma.API) {
	doc := api.OpenAPI()
	delete(doc.Components.Schemas.Map(), "ErrorModel")
	delete(doc.Components.Schemas.Map(), "ErrorDetail")
	asJSON, err := doc.MarshalJSON()
	asYAML, err2 := doc.YAML()
	if err := errors.Join(err, err2); err != nil {
		panic(err) // like a route that cannot be registered: wrong at every start
	}
	serve := func(path, media string, content []byte) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", media)
			w.Write(content)
		})
	}
	serve("/openapi.json", "application/openapi+json", asJSON)
	serve("/openapi.yaml", "application/openapi+yaml", asYAML)
}

func (s *Server) submit(_ context.Context, in *submitInput) (*submitOutput, error) {
	r, err := s.judge(in.Body)
	if err != nil {
		return nil, err
	}
	status, fresh, err := s.table.submit(r)
	if err != nil {
		return nil, submitProblem(r, err)
	}
	out := &submitOutput{Status: http.StatusOK, Location: "/v1/transfers/" + string(status.ID), Body: status}
	if fresh {
		out.Status = http.StatusAccepted
	}
	return out, nil
}

// judge completes a request, or reports what is wrong with it.
func (s *Server) judge(r mover.Request) (mover.Request, error) {
	if r.Engine == "" {
		r.Engine = mover.EngineFor(r.Destination.Address)
	}
	return r, s.checkRequest(r)
}

// submitProblem is why the table did not take a request.
func submitProblem(r mover.Request, err error) error {
	switch {
	case errors.Is(err, mover.ErrKeyConflict):
		return problem(http.StatusConflict, "", fmt.Sprintf("key %s: %v", r.Key, err))
	case errors.Is(err, errFull):
		return problem(http.StatusServiceUnavailable, "", err.Error())
	}
	return problem(http.StatusInternalServerError, "", err.Error())
}

// checkRequest reports what the schema cannot: every fault at once.
func (s *Server) checkRequest(r mover.Request) error {
	var code mover.Code
	var faults []string
	fault := func(at string, err error) {
		if err != nil {
			faults = append(faults, at+": "+err.Error())
		}
	}
	if err := mover.CheckName(mover.Outbox, r.Source.Name); err != nil {
		code = mover.CodeName
		fault("body.source.name", err)
	}
	fault("body.source.digest", r.Source.CheckDigest())
	fault("body.destination.address", mover.CheckAddress(r.Destination.Address))
	fault("body.destination.via", r.Destination.Via.Validate(r.Engine))
	if _, ok := s.opt.Engines[r.Engine]; !ok {
		advice := ""
		if r.Engine == mover.GridFTP {
			advice = "; that site takes files by GridFTP: set gridftp.url in this DTN's configuration"
		}
		fault("body.engine", fmt.Errorf("no engine %q; this DTN has: %s%s", r.Engine, strings.Join(s.engineNames(), ", "), advice))
	}
	if len(faults) == 0 {
		return nil
	}
	return problem(http.StatusUnprocessableEntity, code, "the request cannot be carried out", faults...)
}

func (s *Server) list(_ context.Context, in *listInput) (*output[[]mover.Status], error) {
	all, _, _ := s.table.since(0)
	if in.State != "" {
		all = slices.DeleteFunc(all, func(st mover.Status) bool { return st.State != in.State })
	}
	return &output[[]mover.Status]{all}, nil
}

func (s *Server) get(_ context.Context, in *transferInput) (*output[mover.Status], error) {
	status, _, ok := s.table.get(in.ID)
	if !ok {
		return nil, noTransfer(in.ID)
	}
	return &output[mover.Status]{status}, nil
}

func noTransfer(id mover.TransferID) error {
	return problem(http.StatusNotFound, "", fmt.Sprintf("%v: %s", mover.ErrNoTransfer, id))
}

func (s *Server) cancel(ctx context.Context, in *transferInput) (*output[mover.Status], error) {
	known, err := s.table.cancel(in.ID)
	if err != nil {
		return nil, problem(http.StatusInternalServerError, "", err.Error())
	}
	if !known {
		return nil, noTransfer(in.ID)
	}
	ctx, stop := context.WithTimeout(ctx, cancelWait)
	defer stop()
	for {
		status, changed, ok := s.table.get(in.ID)
		if !ok { // ended and forgotten meanwhile
			return nil, noTransfer(in.ID)
		}
		if status.State.Final() || ctx.Err() != nil {
			return &output[mover.Status]{status}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// known answers 404 before an event stream has begun with 200.
func (s *Server) known(api huma.API) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		id := ctx.Param("id")
		if _, _, ok := s.table.get(mover.TransferID(id)); !ok {
			huma.WriteErr(api, ctx, http.StatusNotFound, noTransfer(mover.TransferID(id)).Error())
			return
		}
		next(ctx)
	}
}

func (s *Server) follow(ctx context.Context, in *transferInput, send sse.Sender) {
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		status, changed, ok := s.table.get(in.ID)
		if !ok || send.Data(status) != nil || status.State.Final() {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// toldAtOnce is how many transfers are in one event.
const toldAtOnce = 500

// tellRest is how many times as long as it took to tell of changes nothing is told after
// that: so telling takes a twentieth of the time at most, and few changes wait for nothing, as
// the end of the last transfer does.
const tellRest = 20

func (s *Server) followAll(ctx context.Context, _ *noInput, send sse.Sender) {
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	for seq := uint64(0); ctx.Err() == nil; {
		began, idle := time.Now(), s.table.idling()
		all, next, changed := s.table.since(seq)
		seq = next
		news := len(all) > 0
		for more := true; more; more = len(all) > 0 { // once where there are none: a sign of life
			n := min(len(all), toldAtOnce)
			if send.Data(all[:n]) != nil {
				return
			}
			all = all[n:]
		}
		var rest <-chan time.Time // what changes in between is told as one
		if news {
			rest = time.After(min(tellRest*time.Since(began), inboxEvery))
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
		}
		if news {
			select {
			case <-rest:
			case <-idle:
			case <-ctx.Done():
			}
		}
	}
}

func (s *Server) listPassages(context.Context, *noInput) (*output[[]mover.Passage], error) {
	all := []mover.Passage{}
	if s.opt.Relay != nil {
		all = append(all, s.opt.Relay.Passages()...)
	}
	for i := range all {
		all[i].ID = transferID("passage " + all[i].File.Name)
	}
	return &output[[]mover.Passage]{all}, nil
}

func (s *Server) listArrivals(context.Context, *noInput) (*output[[]mover.Arrival], error) {
	all := s.opt.Arrivals.Arrivals()
	if all == nil {
		all = []mover.Arrival{}
	}
	return &output[[]mover.Arrival]{all}, nil
}

// followArrivals compares the inbox with what it has told: whoever reads slowly gets
// the latest of each file, and holds up nothing but its own stream.
func (s *Server) followArrivals(ctx context.Context, _ *noInput, send sse.Sender) {
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	told := map[string]mover.Arrival{}
	for due := true; ; {
		changed := s.opt.Arrivals.Changed()
		c := inboxChanges(told, s.opt.Arrivals.Arrivals())
		if due || len(c.Arrivals)+len(c.Dropped) > 0 {
			if send.Data(c) != nil {
				return
			}
			c.Apply(told)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(inboxEvery):
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			due = false
		case <-tick.C:
			due = true
		}
	}
}

// inboxChanges returns what leads from the inbox that was told to the one of now.
func inboxChanges(told map[string]mover.Arrival, now []mover.Arrival) (c mover.InboxChanges) {
	there := make(map[string]bool, len(now))
	for _, a := range now {
		there[a.File.Name] = true
		if told[a.File.Name] != a {
			c.Arrivals = append(c.Arrivals, a)
		}
	}
	for name := range told {
		if !there[name] {
			c.Dropped = append(c.Dropped, name)
		}
	}
	return c
}

func (s *Server) arrival(_ context.Context, in *arrivalInput) (*output[mover.Arrival], error) {
	name, err := inboxName(in.Name)
	if err != nil {
		return nil, err
	}
	a, err := s.opt.Arrivals.Arrival(name)
	if err != nil {
		return nil, arrivalProblem(err)
	}
	return &output[mover.Arrival]{a}, nil
}

func (s *Server) blocks(_ context.Context, in *blocksInput) (*output[mover.Blocks], error) {
	name, err := inboxName(in.Name)
	if err != nil {
		return nil, err
	}
	b, err := s.opt.Arrivals.Blocks(name, in.From)
	if err != nil {
		return nil, arrivalProblem(err)
	}
	return &output[mover.Blocks]{b}, nil
}

func arrivalProblem(err error) error {
	if mover.CodeOf(err) == mover.CodeName {
		return problem(http.StatusUnprocessableEntity, mover.CodeName, err.Error())
	}
	if errors.Is(err, mover.ErrNoArrival) {
		return problem(http.StatusNotFound, "", err.Error())
	}
	return problem(http.StatusInternalServerError, mover.CodeOf(err), err.Error())
}

func (s *Server) drop(_ context.Context, in *arrivalInput) (*struct{}, error) {
	name, err := inboxName(in.Name)
	if err != nil {
		return nil, err
	}
	err = s.opt.Arrivals.Drop(name)
	if err != nil && !errors.Is(err, mover.ErrNoArrival) {
		return nil, arrivalProblem(err)
	}
	return nil, nil
}

func inboxName(base string) (string, error) {
	name := mover.Inbox + "/" + base
	if err := mover.CheckName(mover.Inbox, name); err != nil {
		return "", arrivalProblem(mover.Coded(mover.CodeName, err))
	}
	return name, nil
}

func (s *Server) listPaths(context.Context, *noInput) (*output[[]mover.SeenPath], error) {
	return &output[[]mover.SeenPath]{s.sightings.all()}, nil
}

func (s *Server) getCapabilities(context.Context, *noInput) (*output[mover.Capabilities], error) {
	c, err := s.capabilities()
	if err != nil {
		return nil, problem(http.StatusInternalServerError, "", err.Error())
	}
	return &output[mover.Capabilities]{c}, nil
}
