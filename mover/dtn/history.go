package dtn

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// History keeps what loads achieved, and learns from it. It may be used by several
// goroutines at once.
type History interface {
	// Record keeps loads. On nil they survive a power failure.
	Record(loads ...Load) error
	// Advise returns the PCP with which a load should be fastest, and how that is known.
	// What is zero there is left to the engine. It is asked as transfers start, and takes
	// a millisecond at most.
	Advise(engine string, c Condition) (p mover.PCP, origin string)
	// Export returns all that is known as CSV.
	Export() ([]byte, error)
	// Import adds what Export has returned, here or elsewhere: all of it or, on an error,
	// nothing. The error is permanent where it says what is wrong with the CSV.
	Import(csv []byte) (mover.Imported, error)
	// Forget drops what a site's DTN has seen, wherever it came from to here: all of it or,
	// on an error, nothing.
	Forget(site string) (mover.Forgotten, error)
}

// Condition is what is known of a load before it moves.
type Condition struct {
	Bandwidth  float64       // bits per second: the most that was seen to arrive, within the limit on what is sent
	RTT        time.Duration // least
	Loss       float64       // share of the bytes that had to be sent again, of late
	Congestion string        // congestion control
	Files      int
	Size       int64 // bytes, mean of the files
}

// Load is what moved over the connections to one destination without a break, or in some
// minutes of it: files that share connections share what these achieve, so a batch of
// small files is one load. However its transfers ended, what had moved by then did.
type Load struct {
	ID     string // of its own among all loads of all sites
	Ended  time.Time
	Engine string
	Condition
	Steps []Step // in the order of time, a new one wherever the PCP changed
}

// Step is a part of a load with one PCP in force: of each number the greatest that any of
// its transfers had, since the connections are shared.
type Step struct {
	PCP         mover.PCP
	Lasted      time.Duration
	Bytes       int64       // of files that were proven at the destination, or what of them was on the wire where that was less
	Retransmits int64       // bytes
	Bottleneck  mover.Place // for most of the time; empty: not known
}

// How many loads may wait to be recorded, how many bytes an import may have, and how long it
// may take to come.
const (
	maxUnrecorded = 256
	maxImport     = 32 << 20
	importTime    = 25 * time.Second // within that of NewHTTPServer
)

// record hands the history what loads came to, until there will be no more.
func (s *Server) record() {
	for l := range s.loads.ended {
		all := []Load{l}
		for len(all) < maxUnrecorded && len(s.loads.ended) > 0 {
			all = append(all, <-s.loads.ended)
		}
		if err := s.opt.History.Record(all...); err != nil {
			s.opt.Log.Warn("what transfers achieved cannot be kept; later ones cannot learn from it", "loads", len(all), "err", err)
		}
	}
}

const csvMedia = "text/csv"

type (
	csvOutput struct {
		ContentType string `header:"Content-Type"`
		Body        []byte
	}
	csvInput struct {
		RawBody []byte `contentType:"text/csv"`
	}
	forgetInput struct {
		Site string `path:"site" maxLength:"256" doc:"what stands before the first slash of an outcome's id"`
	}
)

func (s *Server) registerHistory(api huma.API, op func(method, path, id, summary string) huma.Operation) {
	text := &huma.Schema{Type: huma.TypeString}
	export := op(http.MethodGet, "/v1/history", "export-history", "Tell what transfers have achieved, as CSV")
	export.Responses["200"] = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{csvMedia: {Schema: text}}}
	huma.Register(api, export, s.exportHistory)
	add := op(http.MethodPost, "/v1/history", "import-history", "Add what transfers have achieved elsewhere: all of a CSV as export-history tells it, or nothing; what is known already stays as it is")
	add.MaxBodyBytes, add.BodyReadTimeout = maxImport, importTime
	add.SkipValidateBody = true
	add.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{csvMedia: {Schema: text}}}
	huma.Register(api, add, s.importHistory)
	huma.Register(api, op(http.MethodDelete, "/v1/history/{site}", "forget-history", "Drop what transfers of a site's DTN have achieved, as it was imported or seen here; nothing happens when there is none"), s.forgetHistory)
}

func (s *Server) exportHistory(context.Context, *noInput) (*csvOutput, error) {
	if s.opt.History == nil {
		return nil, noHistory()
	}
	csv, err := s.opt.History.Export()
	if err != nil {
		return nil, problem(http.StatusInternalServerError, "", err.Error())
	}
	return &csvOutput{csvMedia, csv}, nil
}

func (s *Server) importHistory(_ context.Context, in *csvInput) (*output[mover.Imported], error) {
	if s.opt.History == nil {
		return nil, noHistory()
	}
	got, err := s.opt.History.Import(in.RawBody)
	switch {
	case failure.IsPermanent(err):
		return nil, problem(http.StatusUnprocessableEntity, "", err.Error())
	case err != nil:
		return nil, problem(http.StatusInternalServerError, "", err.Error())
	}
	s.opt.Log.Info("history imported", "outcomes", got.Outcomes, "new", got.New)
	return &output[mover.Imported]{got}, nil
}

func (s *Server) forgetHistory(_ context.Context, in *forgetInput) (*output[mover.Forgotten], error) {
	if s.opt.History == nil {
		return nil, noHistory()
	}
	got, err := s.opt.History.Forget(in.Site)
	if err != nil {
		return nil, problem(http.StatusInternalServerError, "", err.Error())
	}
	s.opt.Log.Info("history forgotten", "site", in.Site, "outcomes", got.Outcomes)
	return &output[mover.Forgotten]{got}, nil
}

func noHistory() error {
	return problem(http.StatusNotFound, "", "this DTN keeps no history")
}
