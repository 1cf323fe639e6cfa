// Package glancetest is a stand-in for Glance's Image API v2 and for Keystone, for
// tests: it fails on request, at a chosen moment, in ways and sizes that the real
// ones cannot be brought to. What it does otherwise was measured on the real ones.
package glancetest

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// The routes, as Fault.On and Count name them.
const (
	Create = "POST /v2/images"
	List   = "GET /v2/images"
	Get    = "GET /v2/images/{id}"
	Patch  = "PATCH /v2/images/{id}"
	Delete = "DELETE /v2/images/{id}"
	Upload = "PUT /v2/images/{id}/file"
	Data   = "GET /v2/images/{id}/file"
	Stores = "GET /v2/info/stores/detail"
	Usage  = "GET /v2/info/usage"
)

// Glance is one Image API. Its methods may be called while it serves.
type Glance struct {
	URL string // the endpoint, without a version
	Dir string // the datadir: a file for each image with data, named by its id

	// To be set before the first request.
	Token func(string) bool // whether a token is good; nil: each is that is not empty
	Multi bool              // whether it tells of its stores
	Page  int               // images a page at most; 0: 1000
	Limit int64             // of the project's images in MiB; 0: Keystone keeps none
	Most  int64             // how many these may be; 0: Keystone keeps no such limit

	mu     sync.Mutex
	images map[string]attributes
	gone   map[string]bool // ids of deleted images: never given again
	clock  time.Time       // of the last creation or change; a second passes between two
	faults []*Fault
	count  map[string]int
}

// attributes is an image in the JSON of the Image API.
type attributes map[string]any

// New starts a Glance that ends with the test. dir is its datadir; empty: a
// temporary one.
func New(tb testing.TB, dir string) *Glance {
	tb.Helper()
	return NewOn(tb, dir, nil)
}

// NewOn is New on the test's own listener, which ends with it; nil: on loopback.
func NewOn(tb testing.TB, dir string, l net.Listener) *Glance {
	tb.Helper()
	if dir == "" {
		dir = tb.TempDir()
	}
	g := &Glance{
		Dir: dir, images: map[string]attributes{}, gone: map[string]bool{}, count: map[string]int{},
		clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	mux := http.NewServeMux()
	for on, h := range map[string]http.HandlerFunc{
		Create: g.create, List: g.list, Get: g.get, Patch: g.patch, Delete: g.delete, Upload: g.upload, Data: g.data, Stores: g.stores, Usage: g.usage,
	} {
		mux.HandleFunc(on, g.guard(on, h))
	}
	s := httptest.NewUnstartedServer(mux)
	if l != nil {
		s.Listener.Close()
		s.Listener = l
	}
	s.Start()
	tb.Cleanup(func() {
		s.CloseClientConnections() // which ends what is held
		s.Close()
	})
	g.URL = s.URL
	return g
}

// Count returns how many requests of the route came; of all when on is empty.
func (g *Glance) Count(on string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if on != "" {
		return g.count[on]
	}
	n := 0
	for _, c := range g.count {
		n += c
	}
	return n
}

// Add puts an image there as if it had been made with this data; nil data leaves
// it queued.
func (g *Glance) Add(tb testing.TB, i glance.Image, data []byte) {
	tb.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	a := blank(string(i.ID), g.tick())
	a["name"], a["owner"], a["tags"] = i.Name, i.Owner, append([]string{}, i.Tags...)
	a["visibility"], a["protected"], a["os_hidden"] = cmp.Or(i.Visibility, "shared"), i.Protected, i.Hidden
	a["disk_format"], a["container_format"] = i.DiskFormat, i.ContainerFormat
	for k, v := range i.Properties {
		a[k] = v
	}
	if data != nil {
		if err := os.WriteFile(g.Path(i.ID), data, 0o640); err != nil {
			tb.Fatal(err)
		}
		a.activate(int64(len(data)), md5.Sum(data), sha512.Sum512(data))
	}
	g.images[string(i.ID)] = a
}

// Set changes an attribute of an image, which need not be one that users may change.
func (g *Glance) Set(id glance.ImageID, name string, value any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.images[string(id)][name] = value
	g.images[string(id)]["updated_at"] = g.tick()
}

// Attribute returns an attribute of an image; nil when there is none.
func (g *Glance) Attribute(id glance.ImageID, name string) any {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.images[string(id)][name]
}

// Path is where the image's file lies.
func (g *Glance) Path(id glance.ImageID) string { return filepath.Join(g.Dir, string(id)) }

// tick returns the time, a second later than before, as Glance writes it.
func (g *Glance) tick() string {
	g.clock = g.clock.Add(time.Second)
	return g.clock.Format(time.RFC3339)
}

func blank(id, now string) attributes {
	return attributes{
		"id": id, "name": nil, "status": "queued", "size": nil, "virtual_size": nil, "checksum": nil,
		"os_hash_algo": nil, "os_hash_value": nil, "disk_format": nil, "container_format": nil, "min_disk": 0, "min_ram": 0,
		"visibility": "shared", "protected": false, "os_hidden": false, "owner": "project", "tags": []string{},
		"created_at": now, "updated_at": now, "locations": []any{}, "schema": "/v2/schemas/image",
		"self": "/v2/images/" + id, "file": "/v2/images/" + id + "/file",
	}
}

func (a attributes) activate(size int64, md [md5.Size]byte, sum [sha512.Size]byte) {
	a["status"], a["size"], a["checksum"] = "active", size, hex.EncodeToString(md[:])
	a["os_hash_algo"], a["os_hash_value"] = "sha512", hex.EncodeToString(sum[:])
}

// refuse answers as Glance does, in HTML.
func refuse(w http.ResponseWriter, code int, format string, args ...any) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	w.WriteHeader(code)
	title := strconv.Itoa(code) + " " + http.StatusText(code)
	fmt.Fprintf(w, "<html>\n <head>\n  <title>%[1]s</title>\n </head>\n <body>\n  <h1>%[1]s</h1>\n  %[2]s<br /><br />\n\n </body>\n</html>",
		title, fmt.Sprintf(format, args...))
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

// find returns the request's image with the lock held; ok is false when there is
// none and the request is answered.
func (g *Glance) find(w http.ResponseWriter, r *http.Request) (a attributes, unlock func(), ok bool) {
	g.mu.Lock()
	if a, ok = g.images[r.PathValue("id")]; !ok {
		refuse(w, http.StatusNotFound, "No image found with ID %s", r.PathValue("id"))
	}
	return a, g.mu.Unlock, ok
}

func (g *Glance) create(w http.ResponseWriter, r *http.Request) {
	var given attributes
	if err := json.NewDecoder(r.Body).Decode(&given); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	id, _ := given["id"].(string)
	_, taken := g.images[id]
	a := blank(id, g.tick())
	properties := 0
	for k := range given {
		if _, base := a[k]; !base {
			properties++
		}
	}
	switch _, err := glance.ParseImageID(id); {
	case err != nil:
		refuse(w, http.StatusBadRequest, "%v", err)
	case taken || g.gone[id]:
		refuse(w, http.StatusConflict, "Image ID %s already exists!", id)
	case properties > 128:
		refuse(w, http.StatusRequestEntityTooLarge, "The limit has been exceeded on the number of allowed image properties. Attempted: %d, Maximum: 128", properties)
	default:
		maps.Copy(a, given)
		a["os_hash_value"] = nil // accepted and silently ignored
		g.images[id] = a
		answer(w, http.StatusCreated, a)
	}
}

func (g *Glance) get(w http.ResponseWriter, r *http.Request) {
	a, unlock, ok := g.find(w, r)
	defer unlock()
	if ok {
		answer(w, http.StatusOK, a)
	}
}

func (g *Glance) list(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := r.URL.Query()
	key, _, _ := strings.Cut(cmp.Or(q.Get("sort"), "created_at"), ":") // ascending; by id where it is the same
	all := slices.SortedFunc(maps.Values(g.images), func(a, b attributes) int {
		return cmp.Or(strings.Compare(a[key].(string), b[key].(string)), strings.Compare(a["id"].(string), b["id"].(string)))
	})
	all = slices.DeleteFunc(all, func(a attributes) bool { return !selected(a, q) })
	if m := q.Get("marker"); m != "" {
		i := slices.IndexFunc(all, func(a attributes) bool { return a["id"] == m })
		if i < 0 {
			refuse(w, http.StatusBadRequest, "No image found with ID %s", m)
			return
		}
		all = all[i+1:]
	}
	limit, err := strconv.Atoi(cmp.Or(q.Get("limit"), "25"))
	if err != nil {
		refuse(w, http.StatusBadRequest, "limit param must be an integer")
		return
	}
	limit = min(limit, cmp.Or(g.Page, 1000))
	page := map[string]any{"images": all, "first": "/v2/images", "schema": "/v2/schemas/images"}
	if len(all) >= limit && len(all) > 0 {
		page["images"] = all[:limit]
		q.Set("marker", all[limit-1]["id"].(string))
		page["next"] = "/v2/images?" + q.Encode()
	}
	answer(w, http.StatusOK, page)
}

// selected applies the filters that this program uses; a hidden image is listed
// only with the hidden ones, a community one only with visibility=all.
func selected(a attributes, q url.Values) bool {
	since, changed := strings.CutPrefix(q.Get("updated_at"), "gte:")
	hash, status := q.Get("os_hash_value"), q.Get("status")
	return a["os_hidden"] == (q.Get("os_hidden") == "true") &&
		(q.Get("visibility") == "all" || a["visibility"] != "community") &&
		(!changed || a["updated_at"].(string) >= since) &&
		(hash == "" || a["os_hash_value"] == hash) &&
		(status == "" || a["status"] == status)
}

func (g *Glance) patch(w http.ResponseWriter, r *http.Request) {
	var changes []struct {
		Op, Path string
		Value    any
	}
	if r.Header.Get("Content-Type") != "application/openstack-images-v2.1-json-patch" {
		refuse(w, http.StatusUnsupportedMediaType, "")
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&changes); err != nil {
		refuse(w, http.StatusBadRequest, "%v", err)
		return
	}
	a, unlock, ok := g.find(w, r)
	defer unlock()
	if !ok {
		return
	}
	changed := maps.Clone(a)
	for _, c := range changes {
		name := strings.NewReplacer("~1", "/", "~0", "~").Replace(strings.TrimPrefix(c.Path, "/"))
		if _, there := changed[name]; !there && c.Op != "add" {
			refuse(w, http.StatusConflict, "There was a conflict when trying to complete your request.<br /><br />\nProperty %s does not exist.", name)
			return
		}
		if c.Op == "remove" {
			delete(changed, name)
		} else {
			changed[name] = c.Value
		}
	}
	changed["updated_at"] = g.tick()
	g.images[r.PathValue("id")] = changed
	answer(w, http.StatusOK, changed)
}

func (g *Glance) delete(w http.ResponseWriter, r *http.Request) {
	a, unlock, ok := g.find(w, r)
	defer unlock()
	id := r.PathValue("id")
	switch {
	case !ok:
	case a["protected"] == true:
		refuse(w, http.StatusForbidden, "Image %s is protected and cannot be deleted.", id)
	default:
		if a["status"] == "active" {
			os.Remove(g.Path(glance.ImageID(id)))
		}
		delete(g.images, id)
		g.gone[id] = true
		w.WriteHeader(http.StatusNoContent)
	}
}

func (g *Glance) stores(w http.ResponseWriter, _ *http.Request) {
	if !g.Multi {
		refuse(w, http.StatusNotFound, "Multi backend is not supported at this site.")
		return
	}
	answer(w, http.StatusOK, map[string]any{"stores": []any{
		map[string]any{"id": "local", "default": true, "type": "file", "properties": map[string]any{"data_dir": g.Dir, "chunk_size": 65536}},
		map[string]any{"id": "web", "type": "http", "properties": map[string]any{}},
	}})
}

// usage is as with use_keystone_limits, or without.
func (g *Glance) usage(w http.ResponseWriter, _ *http.Request) {
	usage := map[string]any{}
	if g.Limit != 0 {
		usage["image_size_total"] = map[string]any{"limit": g.Limit, "usage": g.held() >> 20}
	}
	if g.Most != 0 {
		usage["image_count_total"] = map[string]any{"limit": g.Most, "usage": g.number()}
	}
	answer(w, http.StatusOK, map[string]any{"usage": usage})
}

func (g *Glance) number() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.images)
}

// held is the size of all images.
func (g *Glance) held() (sum int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.images {
		if size, ok := a["size"].(int64); ok {
			sum += size
		}
	}
	return sum
}

// upload writes straight to the final name, as Glance's filesystem store does. A
// client that goes away leaves a queued image and no file.
func (g *Glance) upload(w http.ResponseWriter, r *http.Request) {
	id := glance.ImageID(r.PathValue("id"))
	if !g.setStatus(w, r, "queued", "saving") {
		return
	}
	f, err := os.OpenFile(g.Path(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		g.Set(id, "status", "queued")
		refuse(w, http.StatusInternalServerError, "The server has either erred or is incapable of performing the requested operation.")
		return
	}
	defer f.Close()
	md, sum := md5.New(), sha512.New()
	n, err := io.Copy(io.MultiWriter(f, md, sum), r.Body)
	if errors.Is(err, errCrash) {
		panic(http.ErrAbortHandler)
	}
	if want := r.Header.Get("X-Openstack-Image-Size"); err == nil && want != "" && want != strconv.FormatInt(n, 10) {
		err = fmt.Errorf("Size mismatch: %s expected, %d received", want, n)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	a, there := g.images[string(id)]
	refused, isRefusal := errors.AsType[*refusal](err)
	switch {
	case !there:
		os.Remove(f.Name())
		refuse(w, http.StatusGone, "Image %s could not be found after upload. The image may have been deleted during the upload, cleaning up the chunks uploaded.", id)
	case err != nil:
		os.Remove(f.Name())
		a["status"], a["updated_at"] = "queued", g.tick()
		if !isRefusal {
			panic(http.ErrAbortHandler)
		}
		refuse(w, refused.code, "%s", refused.message)
	default:
		a.activate(n, [md5.Size]byte(md.Sum(nil)), [sha512.Size]byte(sum.Sum(nil)))
		a["updated_at"] = g.tick()
		w.WriteHeader(http.StatusNoContent)
	}
}

// setStatus moves the request's image from one status to another, or answers.
func (g *Glance) setStatus(w http.ResponseWriter, r *http.Request, from, to string) bool {
	a, unlock, ok := g.find(w, r)
	defer unlock()
	switch {
	case !ok:
	case a["status"] != from:
		refuse(w, http.StatusConflict, "Image status transition from %s to %s is not allowed", a["status"], to)
		return false
	case r.Header.Get("Content-Type") != "application/octet-stream":
		refuse(w, http.StatusUnsupportedMediaType, "")
		return false
	default:
		a["status"], a["updated_at"] = to, g.tick()
	}
	return ok
}

// data sends the size that the record has: a missing file is 204, a file that is
// too short leaves the client waiting.
func (g *Glance) data(w http.ResponseWriter, r *http.Request) {
	a, unlock, ok := g.find(w, r)
	size, _ := a["size"].(int64)
	unlock()
	if !ok {
		return
	}
	b, err := os.ReadFile(g.Path(glance.ImageID(r.PathValue("id"))))
	if err != nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	io.Copy(w, io.LimitReader(bytes.NewReader(b), size))
	if int64(len(b)) < size {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}
