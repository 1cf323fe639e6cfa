package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// serve returns a client of a server that answers with h.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(srv.URL+"/", srv.Client())
	if err != nil {
		t.Fatal(err)
	}
	c.pause = time.Millisecond
	return c
}

func TestNewWantsARealURL(t *testing.T) {
	for _, u := range []string{"", "dtn-a:7443", "ftp://dtn-a", "https://", "https://a?x=1", "https://a#b", "://"} {
		if _, err := New(u, http.DefaultClient); err == nil {
			t.Errorf("New(%q) succeeded", u)
		}
	}
}

func TestOnlyADTNsOwn404MeansNotThere(t *testing.T) {
	for _, c := range []struct {
		media, body string
		known       bool
	}{
		{"text/plain", "404 page not found", false},
		{"application/json", `{"status":404}`, false},
		{mover.ProblemMedia, `{"status":403}`, false},
		{mover.ProblemMedia, `not JSON`, false},
		{mover.ProblemMedia + "; charset=utf-8", `{"type":"` + mover.ProblemNotFound + `","status":404,"detail":"gone"}`, true},
	} {
		cl := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", c.media)
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, c.body)
		})
		_, err := cl.Status(t.Context(), "x")
		if got := errors.Is(err, mover.ErrNoTransfer); got != c.known || err == nil {
			t.Errorf("%s %s: Status returns %v", c.media, c.body, err)
		}
		if err := cl.Cancel(t.Context(), "x"); (err == nil) != c.known {
			t.Errorf("%s %s: Cancel returns %v", c.media, c.body, err)
		}
		if c.known && !strings.Contains(err.Error(), "gone") {
			t.Errorf("%v lacks the server's detail", err)
		}
	}
}

func TestOddAnswersAreErrors(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"redirect":  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"not JSON":  func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
		"too large": func(w http.ResponseWriter, _ *http.Request) { io.CopyN(w, zeros{}, maxAnswer+1) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
		},
		"endless refusal": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			io.Copy(w, zeros{})
		},
	} {
		c := serve(t, h)
		if _, err := c.Capabilities(t.Context()); err == nil || !strings.Contains(err.Error(), c.base) {
			t.Errorf("%s: %v, want an error with %s", name, err, c.base)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestADTNThatDoesNotListenIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close()
	c, err := New(url, &http.Client{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Submit(t.Context(), mover.Request{}); err == nil || !strings.Contains(err.Error(), url) {
		t.Errorf("got %v, want an error with %s", err, url)
	}
}

// silent is a client of a server that says these words on each connection and then
// nothing any more. It works in a bubble.
func silent(t *testing.T, words string) *Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		go io.WriteString(theirs, words)
		return ours, nil
	}}
	c, err := New("http://dtn-a.example.org:7443", &http.Client{Transport: tr, Timeout: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestASilentDTNIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, start := silent(t, ""), time.Now()
		_, err := c.Capabilities(t.Context())
		if waited := time.Since(start); waited != callTimeout || err == nil ||
			!strings.Contains(err.Error(), c.base) || !strings.Contains(err.Error(), "no answer within 30s") {
			t.Errorf("after %v: %v; want after %v the URL and the reason", waited, err, callTimeout)
		}
	})
}

func TestASilentEventStreamIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		enough := errors.New("seen enough")
		c, start := silent(t, ""), time.Now()
		var told []error
		for _, err := range c.Follow(ctx, "x") {
			if told = append(told, err); len(told) == 3 {
				cancel(enough)
			}
		}
		if len(told) != 4 || !errors.Is(told[3], enough) || !strings.Contains(told[0].Error(), "no event within 15s") {
			t.Errorf("told %v, want three broken streams and the end of the context", told)
		}
		if got, want := time.Since(start), 3*c.quiet+2*c.pause; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
	})
}

func TestAnEventStreamThatFallsSilentIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := silent(t, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"+event(mover.Running))
		start := time.Now()
		for s, err := range c.Follow(t.Context(), "x") {
			if err == nil && s.State == mover.Running {
				time.Sleep(time.Hour) // a slow listener is not a silent stream
				start = time.Now()
				continue
			}
			if waited := time.Since(start); waited != c.quiet || !strings.Contains(err.Error(), "no event within 15s") {
				t.Errorf("%v after %v, want it to be given up after %v", err, waited, c.quiet)
			}
			break
		}
	})
}

func event(s mover.TransferState) string {
	return fmt.Sprintf("event: status\ndata: {\"id\":\"x\",\"state\":%q}\n\n", s)
}

func TestFollowGoesOnWhereAStreamBroke(t *testing.T) {
	streams := []string{
		event(mover.Queued) + event(mover.Running),
		"event: status\ndata: {\"state\":\n\n",
		strings.Repeat("x", 2*maxLine),
		": a comment\nevent: beat\ndata: {}\n\n" + event(mover.Running) + event(mover.Done) + event(mover.Done),
	}
	next := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/transfers/x/events" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		io.WriteString(w, streams[next])
		next++
	})
	var told []string
	for s, err := range c.Follow(t.Context(), "x") {
		if err != nil {
			told = append(told, "broke")
			continue
		}
		told = append(told, string(s.State))
	}
	if got, want := strings.Join(told, " "), "queued running broke broke broke running done"; got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}

func TestFollowStopsWhenItsLoopDoes(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, event(mover.Running)+event(mover.Running))
	})
	n := 0
	for range c.Follow(t.Context(), "x") {
		n++
		break
	}
	if n != 1 {
		t.Errorf("told %d times, want 1", n)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(event(mover.Running))
	f.Add("event: beat\ndata: {}\n\ndata: x\n\nevent:status\ndata:y\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		n := 0
		err := events(strings.NewReader(text), func([]byte) (bool, error) { n++; return true, nil })
		if err == nil {
			t.Error("a stream that ends is no error")
		}
		if most := strings.Count(text, "status"); n > most {
			t.Errorf("%d events from %d mentions of status", n, most)
		}
	})
}
