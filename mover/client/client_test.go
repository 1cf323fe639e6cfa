package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
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
	return c
}

func TestNewWantsARealURL(t *testing.T) {
	for _, u := range []string{"", "dtn-a:7443", "ftp://dtn-a", "https://", "https://a?x=1", "https://a#b", "://"} {
		if _, err := New(u, http.DefaultClient); err == nil {
			t.Errorf("New(%q) succeeded", u)
		}
	}
}

func TestAFileThatTheDTNMayNotRead(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mover.ProblemMedia)
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(mover.Problem{Status: http.StatusUnprocessableEntity, Code: mover.CodeSource, Detail: "give its user the file's group"})
	})
	if _, err := c.Settle(t.Context(), "copy", 0); !errors.Is(err, mover.ErrUnreadable) || failure.IsPermanent(err) || !strings.Contains(err.Error(), "group") {
		t.Errorf("got %v, want ErrUnreadable and why", err)
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

func TestADTNThatDoesNotKnowOfPassagesHasNone(t *testing.T) {
	answer := http.NotFound
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { answer(w, r) })
	if all, err := c.Passages(t.Context()); len(all) > 0 || err != nil {
		t.Errorf("%v, %v", all, err)
	}
	answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	if _, err := c.Passages(t.Context()); err == nil || !strings.Contains(err.Error(), "502 Bad Gateway, not in the way a DTN answers") {
		t.Errorf("of a proxy without a DTN: %v", err)
	}
}

func TestADTNThatKeepsNoHistorySaysSo(t *testing.T) {
	for _, c := range []struct {
		says   string
		answer http.HandlerFunc
	}{
		{"of a version that keeps no history", http.NotFound},
		{"this DTN keeps no history", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mover.ProblemMedia)
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(mover.Problem{Status: http.StatusNotFound, Detail: "this DTN keeps no history"})
		}},
	} {
		d := serve(t, c.answer)
		_, err := d.History(t.Context())
		_, err2 := d.ImportHistory(t.Context(), "a\n")
		_, err3 := d.ForgetHistory(t.Context(), "B")
		for _, err := range []error{err, err2, err3} {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		}
	}
}

// TestAnImportSaysWhetherTheCSVIsWrong and the media type of what it sends.
func TestAnImportSaysWhetherTheCSVIsWrong(t *testing.T) {
	for status, permanent := range map[int]bool{
		http.StatusUnprocessableEntity: true, http.StatusRequestEntityTooLarge: true, http.StatusInternalServerError: false,
	} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Content-Type"); got != "text/csv" {
				t.Errorf("it comes as %q", got)
			}
			w.Header().Set("Content-Type", mover.ProblemMedia)
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(mover.Problem{Status: status, Detail: "no"})
		})
		if _, err := c.ImportHistory(t.Context(), "a\n"); err == nil || failure.IsPermanent(err) != permanent {
			t.Errorf("%d: %v, want it permanent: %v", status, err, permanent)
		}
	}
}

// TestARelayIsAskedThroughTheDTN holds the question, and the word of a DTN that does not
// know it.
func TestARelayIsAskedThroughTheDTN(t *testing.T) {
	answer := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/relays/R/paths" || r.URL.Query().Get("address") != "[::1]:7444" {
			t.Errorf("asked for %s", r.URL)
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `[{"from": "R", "site": "B", "best": 1e9}]`)
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { answer(w, r) })
	r := mover.Relay{Site: "R", Address: "[::1]:7444"}
	if hops, err := c.Onward(t.Context(), r); err != nil || len(hops) != 1 || hops[0].From != "R" || hops[0].Site != "B" || hops[0].Best != 1e9 {
		t.Errorf("%+v, %v", hops, err)
	}
	answer = http.NotFound
	if _, err := c.Onward(t.Context(), r); err == nil || !strings.Contains(err.Error(), "update it") {
		t.Errorf("of a DTN of an older version: %v", err)
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
	l := nettest.Listen(t, "127.0.0.1:0")
	url := "http://" + l.Addr().String()
	l.Close()
	c, err := New(url, &http.Client{})
	if err != nil {
		t.Fatal(err)
	}
	want := "the DTN at " + l.Addr().String() + " does not answer: connection refused; on its host: systemctl status glance-dtn-dtn"
	if _, err := c.Submit(t.Context(), mover.Request{}); !errors.Is(err, syscall.ECONNREFUSED) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// silent is a client of a server that answers with these words on each connection and
// then says nothing any more. It works in a bubble.
func silent(t *testing.T, words string) *Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 4096)) // the request, or the end
			go io.Copy(io.Discard, theirs)
			_, _ = io.WriteString(theirs, words)
		}()
		return ours, nil
	}}
	c, err := New("http://dtn-a.example.org:7443", &http.Client{Transport: tr, Timeout: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestAWatchNoticesADeadConnection holds that a watch takes a DTN that says nothing for
// dead, says so, and begins anew, later and later while that is in vain.
func TestAWatchNoticesADeadConnection(t *testing.T) {
	for _, c := range []struct {
		name, words string
		inboxes     bool
		want        []time.Duration // after the start, of the errors
	}{
		{"before it answers", "", false, []time.Duration{
			maxSilence, 2*maxSilence + rewatchMin, 3*maxSilence + 3*rewatchMin, 4*maxSilence + 7*rewatchMin}},
		{"in the midst", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: inbox\ndata: {}\n\n", true, []time.Duration{
			maxSilence, 2*maxSilence + rewatchMin, 3*maxSilence + 2*rewatchMin, 4*maxSilence + 3*rewatchMin}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl, start := silent(t, c.words), time.Now()
				var failed []time.Duration
				inboxes := 0
				for inbox, err := range cl.Watch(t.Context()) {
					if err == nil {
						inboxes++
						if inbox == nil || len(inbox) > 0 {
							t.Errorf("got %v, want an inbox with nothing in it", inbox)
						}
						continue
					}
					if text := err.Error(); !strings.Contains(text, "the DTN at dtn-a.example.org:7443 does not answer") && !strings.Contains(text, cl.base) || !strings.Contains(text, "nothing was heard for 5s") {
						t.Errorf("%v; want the address and the reason", err)
					}
					if failed = append(failed, time.Since(start)); len(failed) == len(c.want) {
						break
					}
				}
				if !slices.Equal(failed, c.want) {
					t.Errorf("failed after %v, want %v", failed, c.want)
				}
				if c.inboxes != (inboxes == len(c.want)) {
					t.Errorf("told %d times", inboxes)
				}
			})
		})
	}
}

func TestAWatchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, after := range []time.Duration{0, maxSilence / 2, maxSilence + rewatchMin/2} { // before, in and between streams
			ctx, stop := context.WithTimeout(t.Context(), after)
			start := time.Now()
			for _, err := range silent(t, "").Watch(ctx) {
				if ctx.Err() != nil {
					t.Errorf("told %v after its context had ended", err)
				}
			}
			stop()
			if took := time.Since(start); took != after {
				t.Errorf("ended after %v, want %v", took, after)
			}
		}
	})
}

func TestASilentDTNIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, start := silent(t, ""), time.Now()
		_, err := c.Capabilities(t.Context())
		if waited := time.Since(start); waited != callTimeout || err == nil ||
			!strings.Contains(err.Error(), "dtn-a.example.org:7443 does not answer: no answer within 30s") {
			t.Errorf("after %v: %v; want after %v the address and the reason", waited, err, callTimeout)
		}
	})
}
