package dtn

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"

	"github.com/glance-dtn/glance-dtn/internal/durable"
)

// probeName is hidden and in neither box, so nobody takes it for a file to move.
const probeName = ".glance-dtn-probe"

// check is one line of /readyz.
type check struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
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
	s.probing.Lock()
	checks := []check{
		checked("state", probe(s.opt.State)),
		checked("export", probe(s.opt.Export)),
	}
	s.probing.Unlock()
	w.Header().Set("Content-Type", "application/json")
	for _, c := range checks {
		if !c.OK {
			w.WriteHeader(http.StatusServiceUnavailable)
			break
		}
	}
	json.NewEncoder(w).Encode(checks)
}

func checked(name string, err error) check {
	if err != nil {
		return check{Name: name, Error: err.Error()}
	}
	return check{Name: name, OK: true}
}

// probe reports whether a file can be made under root to stay.
func probe(root *os.Root) error {
	return errors.Join(durable.WriteFile(root, probeName, nil, 0o600), durable.Remove(root, probeName))
}
