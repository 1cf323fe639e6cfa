package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// Image returns one image; glance.ErrNoImage.
func (c *Catalog) Image(ctx context.Context, id glance.ImageID) (glance.Image, error) {
	i, err := get[image](ctx, c, request{
		doing:  "get image " + string(id),
		method: http.MethodGet,
		path:   imagePath(id),
		means:  map[int]error{http.StatusNotFound: glance.ErrNoImage},
	})
	return glance.Image(i), err
}

// Images yields every image that this user may see, hidden ones included, that
// changed at or after since, in no particular order; the zero time means all. It
// costs a request for every 1,000 images, and one more for the hidden ones. After
// an error it yields nothing more.
func (c *Catalog) Images(ctx context.Context, since time.Time) iter.Seq2[glance.Image, error] {
	q := url.Values{}
	if !since.IsZero() {
		q.Set("updated_at", "gte:"+since.UTC().Format(time.RFC3339))
	}
	return c.list(ctx, "list images", q)
}

// Holding returns the active images whose content is i's.
func (c *Catalog) Holding(ctx context.Context, i glance.Image) ([]glance.Image, error) {
	if i.Hash.IsZero() {
		return nil, nil
	}
	var held []glance.Image
	q := url.Values{"os_hash_value": {i.Hash.Value}, "status": {string(glance.Active)}}
	for o, err := range c.list(ctx, "find images with content "+i.Hash.Short(), q) {
		if err != nil {
			return nil, err
		}
		if o.Status == glance.Active && o.SameContent(i) {
			held = append(held, o)
		}
	}
	return held, nil
}

// page is one answer of a listing.
type page struct {
	Images []image `json:"images"`
	Next   string  `json:"next"`
}

// list yields the images that filter selects, first those that are not hidden.
// It pages by the time of creation, which never changes: by the time of update, an
// image that changes while it is the marker would take all those between along.
func (c *Catalog) list(ctx context.Context, doing string, filter url.Values) iter.Seq2[glance.Image, error] {
	return func(yield func(glance.Image, error) bool) {
		for _, hidden := range []string{"false", "true"} {
			q := url.Values{"limit": {"1000"}, "sort": {"created_at:asc,id:asc"}, "visibility": {"all"}, "os_hidden": {hidden}}
			maps.Copy(q, filter)
			if !c.pages(ctx, request{doing: doing, method: http.MethodGet, path: "images", query: q}, yield) {
				return
			}
		}
	}
}

// pages yields the images of r's answer and of those that follow it. It reports
// whether to go on.
func (c *Catalog) pages(ctx context.Context, r request, yield func(glance.Image, error) bool) bool {
	for {
		p, err := get[page](ctx, c, r)
		if err != nil {
			yield(glance.Image{}, err)
			return false
		}
		for _, i := range p.Images {
			if !yield(glance.Image(i), nil) {
				return false
			}
		}
		if p.Next == "" || len(p.Images) == 0 {
			return true
		}
		next, err := url.Parse(p.Next)
		if err != nil {
			yield(glance.Image{}, fmt.Errorf("%s: next page: %w", r.doing, err))
			return false
		}
		r.query = next.Query()
		r.means = map[int]error{http.StatusBadRequest: errMarkerGone}
	}
}

var errMarkerGone = errors.New("the listing cannot go on, perhaps because an image was deleted meanwhile; list again")

// Data returns an active image's bytes: the reader fails when Glance stands still
// for Options.Stall, as it does where the image's file is shorter than it should
// be. glance.ErrNoImage, glance.ErrNoData.
func (c *Catalog) Data(ctx context.Context, id glance.ImageID) (io.ReadCloser, error) {
	doing := "read the data of image " + string(id)
	ctx, cancel := context.WithCancelCause(ctx)
	dog := watch(c.stall, cancel)
	resp, err := c.send(ctx, request{
		doing:  doing,
		method: http.MethodGet,
		path:   imagePath(id, "file"),
		bulk:   true,
		means:  map[int]error{http.StatusNotFound: glance.ErrNoImage},
	})
	if err == nil && resp.StatusCode == http.StatusNoContent {
		resp.Body.Close()
		err = fmt.Errorf("%s: %w", doing, glance.ErrNoData)
	}
	if err != nil {
		dog.stop()
		cancel(nil)
		return nil, err
	}
	dog.pause()
	return &download{resp.Body, cancel, dog, doing}, nil
}

// download is an image's bytes as they come.
type download struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	dog    *watchdog
	doing  string
}

func (d *download) Read(p []byte) (int, error) {
	d.dog.resume()
	n, err := d.body.Read(p)
	d.dog.pause()
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", d.doing, err)
	}
	return n, err
}

func (d *download) Close() error {
	d.dog.stop()
	d.cancel(nil)
	return d.body.Close()
}

// Datadirs returns the directories of the filesystem stores that Glance tells of.
// glance.ErrNotTold when it tells nothing, to this user or at all: it has but one
// store, or keeps it from users who are not admin.
func (c *Catalog) Datadirs(ctx context.Context) ([]string, error) {
	detail, err := get[struct {
		Stores []struct {
			Type       string `json:"type"`
			Properties struct {
				DataDir string `json:"data_dir"`
				Datadir string `json:"datadir"` // as the API reference has it
			} `json:"properties"`
		} `json:"stores"`
	}](ctx, c, request{
		doing:  "ask for the stores",
		method: http.MethodGet,
		path:   "info/stores/detail",
		means:  map[int]error{http.StatusNotFound: glance.ErrNotTold, http.StatusForbidden: glance.ErrNotTold},
	})
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, s := range detail.Stores {
		if d := s.Properties.DataDir + s.Properties.Datadir; s.Type == "file" && d != "" {
			dirs = append(dirs, d)
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("ask for the stores: none of the %d has a datadir: %w", len(detail.Stores), glance.ErrNotTold)
	}
	return dirs, nil
}

// Room returns nil when Glance takes one more image from this user's project, as far as
// Glance tells: that is where Keystone keeps the limits (use_keystone_limits).
// Otherwise glance.ErrQuota, with the figures. made says that the image's record is there
// already: Glance counts the queued ones, too.
func (c *Catalog) Room(ctx context.Context, made bool) error {
	told, err := get[struct {
		Usage map[string]struct {
			Usage int64 `json:"usage"`
			Limit int64 `json:"limit"`
		} `json:"usage"`
	}](ctx, c, request{
		doing:  "ask for the quota",
		method: http.MethodGet,
		path:   "info/usage",
		means:  map[int]error{http.StatusNotFound: glance.ErrNotTold, http.StatusForbidden: glance.ErrNotTold},
	})
	if errors.Is(err, glance.ErrNotTold) {
		return nil
	}
	if err != nil {
		return err
	}
	// An upload is taken until the limit is passed, whatever its own size.
	if q, ok := told.Usage["image_size_total"]; ok && q.Limit >= 0 && q.Usage > q.Limit {
		return fmt.Errorf("%w: the project holds %d MiB of images and its limit image_size_total is %d; delete some, or raise the limit in Keystone", glance.ErrQuota, q.Usage, q.Limit)
	}
	if q, ok := told.Usage["image_count_total"]; ok && !made && q.Limit >= 0 && q.Usage >= q.Limit {
		return fmt.Errorf("%w: the project has %d images and its limit image_count_total is %d; delete some, or raise the limit in Keystone", glance.ErrQuota, q.Usage, q.Limit)
	}
	return nil
}

// image is a glance.Image in the JSON of the Image API, where custom properties
// stand among the attributes.
type image glance.Image

// managed are the attributes that are not custom properties, those that begin
// with os_glance_ aside.
var managed = map[string]bool{
	"checksum": true, "container_format": true, "created_at": true, "deleted": true, "deleted_at": true,
	"direct_url": true, "disk_format": true, "file": true, "id": true, "location": true, "locations": true,
	"min_disk": true, "min_ram": true, "name": true, "os_hash_algo": true, "os_hash_value": true,
	"os_hidden": true, "owner": true, "protected": true, "schema": true, "self": true, "size": true,
	"status": true, "stores": true, "tags": true, "updated_at": true, "virtual_size": true, "visibility": true,
}

func isManaged(name string) bool { return managed[name] || strings.HasPrefix(name, "os_glance_") }

func (i *image) UnmarshalJSON(b []byte) error {
	var a struct {
		ID              string        `json:"id"`
		Name            string        `json:"name"`
		Status          glance.Status `json:"status"`
		Size            int64         `json:"size"`
		Algo            string        `json:"os_hash_algo"`
		Value           string        `json:"os_hash_value"`
		DiskFormat      string        `json:"disk_format"`
		ContainerFormat string        `json:"container_format"`
		MinDisk         int           `json:"min_disk"`
		MinRAM          int           `json:"min_ram"`
		Visibility      string        `json:"visibility"`
		Protected       bool          `json:"protected"`
		Hidden          bool          `json:"os_hidden"`
		Owner           string        `json:"owner"`
		Tags            []string      `json:"tags"`
		CreatedAt       time.Time     `json:"created_at"`
		UpdatedAt       time.Time     `json:"updated_at"`
	}
	var all map[string]any
	if err := errors.Join(json.Unmarshal(b, &a), json.Unmarshal(b, &all)); err != nil {
		return err
	}
	id, err := glance.ParseImageID(a.ID)
	if err != nil {
		return err
	}
	*i = image{
		ID: id, Name: a.Name, Status: a.Status, Size: a.Size,
		DiskFormat: a.DiskFormat, ContainerFormat: a.ContainerFormat, MinDisk: a.MinDisk, MinRAM: a.MinRAM,
		Visibility: a.Visibility, Protected: a.Protected, Hidden: a.Hidden, Owner: a.Owner, Tags: a.Tags,
		CreatedAt: a.CreatedAt, UpdatedAt: a.UpdatedAt,
	}
	if a.Value != "" { // some Glances name the algorithm before there is a value
		i.Hash = digest.Digest{Algo: a.Algo, Value: a.Value}
	}
	for name, v := range all {
		if s, ok := v.(string); ok && !isManaged(name) {
			if i.Properties == nil {
				i.Properties = map[string]string{}
			}
			i.Properties[name] = s
		}
	}
	return nil
}
