package dtn

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// probeName is hidden and in neither box, so nobody takes it for a file to move.
const probeName = ".glance-dtn-probe"

// check is one line of /readyz.
type check struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Note  string `json:"note,omitempty"`
}

// Health serves /healthz, which says that the process answers, and /readyz, which
// says with 200 or 503 whether transfers can work, and what stands in the way.
func (s *Server) Health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", s.readyz)
	return mux
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	s.looking.Lock()
	checks := []check{checked("state", probe(s.opt.State)), checked("export", s.look())}
	if checks[1].OK {
		checks[1] = checked("export", probe(s.opt.Export))
	}
	s.looking.Unlock()
	checks = append(checks, ways(s.callbacks())...)
	if s.opt.Certificate != nil {
		checks = append(checks, checked("certificate", s.opt.Certificate.Fault()))
	}
	w.Header().Set("Content-Type", "application/json")
	for _, c := range checks {
		if !c.OK {
			w.WriteHeader(http.StatusServiceUnavailable)
			break
		}
	}
	json.NewEncoder(w).Encode(checks)
}

// ways has a line for each connection that files come by. Those that are not there are
// no fault of this DTN while others are.
func ways(callbacks []mover.Callback) (checks []check) {
	some := slices.ContainsFunc(callbacks, func(b mover.Callback) bool { return b.Connected })
	for _, b := range callbacks {
		c := check{Name: "callback " + b.Address, OK: some, Note: b.Trouble()}
		if !some {
			c.Error, c.Note = c.Note, ""
		}
		checks = append(checks, c)
	}
	return checks
}

func checked(name string, err error) check {
	if err != nil {
		return check{Name: name, Error: err.Error()}
	}
	return check{Name: name, OK: true}
}

// lookEvery is how often a DTN looks after its export.
const lookEvery = 10 * time.Second

// watchExport looks after the export until ctx ends, and logs what changes.
func (s *Server) watchExport(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	was := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.looking.Lock()
		err := s.look()
		s.looking.Unlock()
		switch {
		case err != nil && err.Error() != was:
			s.opt.Log.Error("the export cannot be used", "err", err)
			was = err.Error()
		case err == nil && was != "":
			s.opt.Log.Info("the export is well again")
			was = ""
		}
	}
}

// look puts back what the export has lost of marker and boxes, and tells why it is not
// the one that this DTN has opened. s.looking is held.
func (s *Server) look() error {
	if s.opt.Mark != nil {
		put, err := s.opt.Mark()
		if put {
			s.opt.Log.Warn("the export had lost its marker; it is back", "export", s.opt.Export.Name())
		}
		if err != nil {
			return err
		}
	}
	return MakeBoxes(s.opt.Export)
}

// probe reports whether a file can be made under root to stay.
func probe(root *os.Root) error {
	return errors.Join(durable.WriteFile(root, probeName, nil, 0o600), durable.Remove(root, probeName))
}
