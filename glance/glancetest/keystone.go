package glancetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// Keystone gives tokens for one user, "admin", and can end them or refuse to work.
type Keystone struct {
	URL      string // ends with /v3
	Password string // the one that is right

	mu        sync.Mutex
	issued    int
	since     int // the first token that is still good
	down      bool
	endpoints []map[string]string
}

// NewKeystone starts a Keystone that ends with the test.
func NewKeystone(tb testing.TB) *Keystone {
	tb.Helper()
	k := &Keystone{Password: "secret"}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v3/", k.version)
	mux.HandleFunc("POST /v3/auth/tokens", k.login)
	s := httptest.NewServer(mux)
	tb.Cleanup(s.Close)
	k.URL = s.URL + "/v3"
	return k
}

// Endpoint adds an image endpoint to the service catalog.
func (k *Keystone) Endpoint(region, kind, url string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.endpoints = append(k.endpoints, map[string]string{"region": region, "region_id": region, "interface": kind, "url": url, "id": region + kind})
}

// Valid reports whether the token is good: it is Glance.Token.
func (k *Keystone) Valid(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	var n int
	_, err := fmt.Sscanf(token, "token-%d", &n)
	return err == nil && n > k.since
}

// Expire ends every token given so far.
func (k *Keystone) Expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.since = k.issued
}

// Issued returns how many tokens were given.
func (k *Keystone) Issued() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.issued
}

// SetDown lets every request fail with 503, or no longer.
func (k *Keystone) SetDown(down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
}

func (k *Keystone) version(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"version": map[string]any{
		"id": "v3.14", "status": "stable", "links": []any{map[string]string{"rel": "self", "href": k.URL + "/"}},
	}})
}

func (k *Keystone) login(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Auth struct {
			Identity struct {
				Password struct {
					User struct{ Name, Password string }
				}
			}
		}
	}
	json.NewDecoder(r.Body).Decode(&body)
	k.mu.Lock()
	defer k.mu.Unlock()
	user := body.Auth.Identity.Password.User
	switch {
	case k.down:
		problem(w, http.StatusServiceUnavailable, "The service is down.")
	case user.Name != "admin" || user.Password != k.Password:
		problem(w, http.StatusUnauthorized, "The request you have made requires authentication.")
	default:
		k.issued++
		w.Header().Set("X-Subject-Token", fmt.Sprintf("token-%d", k.issued))
		answer(w, http.StatusCreated, map[string]any{"token": map[string]any{
			"expires_at": time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000Z"),
			"catalog":    []any{map[string]any{"type": "image", "name": "glance", "id": "image", "endpoints": k.endpoints}},
		}})
	}
}

func problem(w http.ResponseWriter, code int, message string) {
	answer(w, code, map[string]any{"error": map[string]any{"code": code, "message": message, "title": http.StatusText(code)}})
}
