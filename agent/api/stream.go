package api

import (
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	linesMedia  = "application/x-ndjson"
	eventsMedia = "text/event-stream"
	writeTime   = 30 * time.Second // for a client to take what is sent
)

// problemLine is what a stream says of an error, with the item that stood beside it.
// The stream goes on if there is more. No item begins like it.
type problemLine struct {
	Problem *Problem `json:"problem"`
	Item    any      `json:"item"`
}

const problemLineStart = `{"problem":`

// patient is a response that may take for ever as long as each write is taken in time.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func newPatient(hc huma.Context) *patient {
	_, w := humago.Unwrap(hc)
	return &patient{ResponseWriter: w, control: http.NewResponseController(w)}
}

func (p *patient) extend() error { return p.control.SetWriteDeadline(time.Now().Add(writeTime)) }

func (p *patient) Write(b []byte) (int, error) {
	p.begun = true
	if err := p.extend(); err != nil {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// send brings what was written on its way.
func (p *patient) send() error {
	if err := p.extend(); err != nil {
		return err
	}
	return p.control.Flush()
}

// lines answers with seq as JSON lines. An error that is all of seq is an answer
// like any other.
func lines[T any](seq iter.Seq2[T, error]) *streamResponse {
	return &streamResponse{Body: func(hc huma.Context) {
		w := newPatient(hc)
		w.Header().Set("Content-Type", linesMedia)
		enc := json.NewEncoder(w)
		var first *problemLine // nothing but it has come
		for item, err := range seq {
			var line any = item
			if err != nil {
				p := problemLine{problemOf(err), item}
				if line = p; !w.begun && first == nil {
					first = &p
					continue
				}
			}
			if first != nil && enc.Encode(first) != nil || enc.Encode(line) != nil {
				return // the client has gone
			}
			first = nil
		}
		if first != nil {
			answerJSON(w, first.Problem.Status, problemMedia, first.Problem)
		}
		_ = w.send() // the client has gone: there is nobody to tell
	}}
}

// events answers with seq as server-sent events: an item as data, an error as an
// event named problem. The head of the answer goes out at once, so a client that has
// it misses nothing from then on.
func events[T any](seq iter.Seq2[T, error]) *streamResponse {
	return &streamResponse{Body: func(hc huma.Context) {
		w := newPatient(hc)
		w.Header().Set("Content-Type", eventsMedia)
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		_ = w.send() // a client that has gone is noticed below, where seq is brought to its end
		for item, err := range seq {
			name, data := "", any(item)
			if err != nil {
				name, data = "event: problem\n", problemLine{problemOf(err), item}
			}
			b, err := json.Marshal(data)
			if err == nil {
				_, err = fmt.Fprintf(w, "%sdata: %s\n\n", name, b)
			}
			if err != nil || w.send() != nil {
				return // the client has gone
			}
		}
	}}
}
