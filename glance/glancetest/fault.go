package glancetest

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
)

// Fault is something that goes wrong with requests of one route. Exactly one of
// Code, Cut, Crash and Spoil is what goes wrong; with none, the request is only held.
type Fault struct {
	On    string // the route
	Times int    // how many requests; 0: one

	// The moment: before anything happened; After it all happened and only the answer
	// is missing; or once this many Bytes of an upload were read.
	After bool
	Bytes int64

	Hold <-chan struct{} // first wait until it is closed, or the client goes away

	Code    int // answer this
	Message string
	Cut     bool // cut the connection
	Crash   bool // as Cut, and what was begun stays as it is
	Spoil   bool // keep other bytes than were sent
}

// Inject lets f happen. Of several faults on a route the first is used up first.
func (g *Glance) Inject(f Fault) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.Times = max(f.Times, 1)
	g.faults = append(g.faults, &f)
}

// fault returns the fault that befalls this request.
func (g *Glance) fault(on string) (Fault, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count[on]++
	for _, f := range g.faults {
		if f.On == on && f.Times > 0 {
			f.Times--
			return *f, true
		}
	}
	return Fault{}, false
}

// guard checks the token and lets faults happen around h.
func (g *Glance) guard(on string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f, faulty := g.fault(on)
		token := r.Header.Get("X-Auth-Token")
		switch {
		case token == "" || g.Token != nil && !g.Token(token):
			refuse(w, http.StatusUnauthorized, "This server could not verify that you are authorized to access the document you requested.")
		case !faulty:
			h(w, r)
		case f.After:
			h(httptest.NewRecorder(), r)
			f.strike(w, r)
		case f.Bytes > 0 || f.Spoil:
			r.Body = io.NopCloser(&faultyBody{Fault: f, body: r.Body, left: f.Bytes, request: r})
			h(w, r)
		case f.strike(w, r):
		default:
			h(w, r)
		}
	}
}

// strike does what the fault says. It reports whether the request is over.
func (f Fault) strike(w http.ResponseWriter, r *http.Request) bool {
	f.wait(r)
	switch {
	case f.Cut || f.Crash:
		panic(http.ErrAbortHandler)
	case f.Code != 0:
		refuse(w, f.Code, "%s", f.Message)
		return true
	}
	return false
}

func (f Fault) wait(r *http.Request) {
	if f.Hold == nil {
		return
	}
	select {
	case <-f.Hold:
	case <-r.Context().Done():
	}
}

var (
	errCut   = errors.New("cut")
	errCrash = errors.New("crash")
)

// refusal ends the reading of an upload with an answer.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string { return r.message }

// faultyBody is an upload that goes wrong after some bytes.
type faultyBody struct {
	Fault
	body    io.Reader
	left    int64
	request *http.Request
	struck  bool
}

func (b *faultyBody) Read(p []byte) (int, error) {
	if !b.struck && b.left == 0 {
		b.struck = true
		b.wait(b.request)
		switch {
		case b.Crash:
			return 0, errCrash
		case b.Cut:
			return 0, errCut
		case b.Code != 0:
			return 0, &refusal{b.Code, b.Message}
		}
	}
	if !b.struck {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.body.Read(p)
	if b.Spoil && n > 0 {
		p[0] ^= 0xff
	}
	b.left -= int64(n)
	return n, err
}
