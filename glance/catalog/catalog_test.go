package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/glance/glancetest"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
)

const password = "correct horse"

// credentials are the variables of a stand-in Keystone's admin.
func credentials(k *glancetest.Keystone) map[string]string {
	return map[string]string{
		"OS_AUTH_URL": k.URL, "OS_USERNAME": "admin", "OS_PASSWORD": password, "OS_PROJECT_NAME": "admin",
		"OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default", "OS_REGION_NAME": "siteA",
	}
}

func env(vars map[string]string) func(string) string {
	return func(k string) string { return vars[k] }
}

func open(t *testing.T, o Options) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// site is a stand-in site: a catalog that logs in as admin, its Glance, its Keystone.
func site(t *testing.T) (*Catalog, *glancetest.Glance, *glancetest.Keystone) {
	t.Helper()
	k, g := glancetest.NewKeystone(t), glancetest.New(t, "")
	k.Password = password
	g.Token = k.Valid
	k.Endpoint("siteA", "public", g.URL)
	return open(t, Options{Env: env(credentials(k))}), g, k
}

func TestStandIn(t *testing.T) {
	c, _, k := site(t)
	behave(t, c, k.Expire)
}

func TestStandInWithoutKeystone(t *testing.T) {
	g := glancetest.New(t, "")
	c := open(t, Options{Env: env(map[string]string{"OS_AUTH_TYPE": "admin_token", "OS_TOKEN": "a:b:c", "OS_ENDPOINT": g.URL + "/v2"})})
	behave(t, c, nil)
}

// reach asks for an image that is not there, and returns why that could not be asked.
func reach(ctx context.Context, c *Catalog) error {
	_, err := c.Image(ctx, "00000000-0000-4000-8000-000000000000")
	if errors.Is(err, glance.ErrNoImage) {
		return nil
	}
	return err
}

func TestKeystoneMayBeDownAtFirst(t *testing.T) {
	c, _, k := site(t)
	k.SetDown(true)
	err := reach(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), k.URL) || failure.IsPermanent(err) {
		t.Errorf("with Keystone down: %v; want a passing error that names it", err)
	}
	k.SetDown(false)
	if err := reach(t.Context(), c); err != nil {
		t.Errorf("with Keystone up again: %v", err)
	}
	k.Expire()
	k.SetDown(true)
	if err := reach(t.Context(), c); err == nil || !strings.Contains(err.Error(), "log in again") {
		t.Errorf("with the token ended and Keystone down: %v", err)
	}
	k.SetDown(false)
	if err := reach(t.Context(), c); err != nil {
		t.Errorf("with Keystone up once more: %v", err)
	}
}

func TestOneLoginForAllWhoAsk(t *testing.T) {
	c, _, k := site(t)
	ask := func() {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if err := reach(t.Context(), c); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	ask()
	if n := k.Issued(); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	k.Expire()
	ask()
}

func TestWrongPasswordIsNamedNotShown(t *testing.T) {
	c, _, k := site(t)
	k.Password = "battery staple"
	err := reach(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "refuses the user, the password or the project") || strings.Contains(err.Error(), password) {
		t.Errorf("got %v", err)
	}
}

func TestRegions(t *testing.T) {
	c, g, k := site(t)
	k.Endpoint("siteB", "public", "http://other.invalid")
	k.Endpoint("siteB", "internal", g.URL+"/v2")
	if err := reach(t.Context(), c); err != nil {
		t.Error(err)
	}
	vars := credentials(k)
	delete(vars, "OS_REGION_NAME")
	for _, tt := range []struct {
		region, kind, want string
	}{
		{"siteA", "public", ""},
		{"siteB", "internal", ""},
		{"", "internal", ""}, // only one region has it
		{"", "public", `regions that have one: ["siteA" "siteB"]`},
		{"siteC", "public", `no single public image endpoint in region "siteC"`},
		{"siteA", "internal", `no single internal image endpoint in region "siteA"`},
	} {
		err := reach(t.Context(), open(t, Options{Env: env(vars), Region: tt.region, Interface: tt.kind}))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q %q: %v; want %q", tt.region, tt.kind, err, tt.want)
		}
	}
}

func TestCloudsFile(t *testing.T) {
	_, _, k := site(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("clouds.yaml", fmt.Sprintf(`
clouds:
  a:
    auth: {auth_url: %q, username: admin, project_name: admin, user_domain_id: default, project_domain_id: default, password: old}
    region_name: siteA
`, k.URL))
	secret := write("password", password+"\n")
	for name, o := range map[string]Options{
		"named":              {Cloud: "a", CloudsFile: file, PasswordFile: secret},
		"by the environment": {Env: env(map[string]string{"OS_CLOUD": "a", "OS_CLIENT_CONFIG_FILE": file}), PasswordFile: secret},
	} {
		if err := reach(t.Context(), open(t, o)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	write("secure.yaml", "clouds: {a: {auth: {password: "+password+"}}}")
	if err := reach(t.Context(), open(t, Options{Cloud: "a", CloudsFile: file})); err != nil {
		t.Errorf("with secure.yaml: %v", err)
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	good := credentials(&glancetest.Keystone{URL: "http://keystone.invalid/v3"})
	with := func(change map[string]string) func(string) string {
		return func(k string) string {
			if v, changed := change[k]; changed {
				return v
			}
			return good[k]
		}
	}
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"nothing", Options{}, "OS_AUTH_URL is not set"},
		{"no file", Options{Cloud: "a", CloudsFile: filepath.Join(t.TempDir(), "clouds.yaml")}, "clouds.yaml"},
		{"no password", Options{Env: with(map[string]string{"OS_PASSWORD": ""})}, "assword"},
		{"no user", Options{Env: with(map[string]string{"OS_USERNAME": ""})}, "sername"},
		{"no domain", Options{Env: with(map[string]string{"OS_USER_DOMAIN_ID": ""})}, "omain"},
		{"odd URL", Options{Env: with(map[string]string{"OS_AUTH_URL": "keystone:5000"})}, `auth_url "keystone:5000"`},
		{"odd interface", Options{Env: with(nil), Interface: "privat"}, `interface "privat"`},
		{"odd method", Options{Env: with(map[string]string{"OS_AUTH_TYPE": "v3kerberos"})}, `"v3kerberos" is not supported`},
		{"no password file", Options{Env: with(nil), PasswordFile: filepath.Join(t.TempDir(), "pw")}, "password file"},
		{"no CA", Options{Env: with(map[string]string{"OS_CACERT": filepath.Join(t.TempDir(), "ca.pem")})}, "ca.pem"},
		{"no endpoint", Options{Env: env(map[string]string{"OS_AUTH_TYPE": "admin_token", "OS_TOKEN": "t"})}, `OS_ENDPOINT ""`},
		{"no token", Options{Env: env(map[string]string{"OS_AUTH_TYPE": "admin_token", "OS_ENDPOINT": "http://g.invalid"})}, "OS_TOKEN is not set"},
	} {
		if _, err := Open(t.Context(), tt.o); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v; want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestDecode(t *testing.T) {
	_, g, _ := site(t)
	c := Static(g.URL, "t", Options{})
	g.Token = nil
	id := glance.ImageID("11111111-2222-4333-8444-555555555555")
	g.Add(t, glance.Image{ID: id, Name: "n", Visibility: "community", Owner: "p", Tags: []string{"t"}}, []byte("data"))
	for k, v := range map[string]any{
		"os_glance_importing_to_stores": "", "os_glance_failed_import": "x", "stores": "local", "direct_url": "file:///x", "virtual_size": 4,
		"kernel_id": nil, "owner_specified.openstack.md5": "m", "hw_disk_bus": "virtio",
	} {
		g.Set(id, k, v)
	}
	got, err := c.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"owner_specified.openstack.md5": "m", "hw_disk_bus": "virtio"}
	if fmt.Sprint(got.Properties) != fmt.Sprint(want) {
		t.Errorf("properties %v, want %v", got.Properties, want)
	}
	if got.Status != glance.Active || got.Size != 4 || got.Visibility != "community" || got.Owner != "p" || got.UpdatedAt.IsZero() {
		t.Errorf("got %+v", got)
	}
	g.Set(id, "os_hash_value", nil)
	if got, err = c.Image(t.Context(), id); err != nil || !got.Hash.IsZero() {
		t.Errorf("hash %v, %v; want none", got.Hash, err)
	}
}

func TestAThousandImagesCostThreeRequests(t *testing.T) {
	c, g, _ := site(t)
	for n := range 1000 {
		g.Add(t, glance.Image{ID: numbered(n)}, nil)
	}
	seen := map[glance.ImageID]bool{}
	for i, err := range c.Images(t.Context(), time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		seen[i.ID] = true
	}
	if len(seen) != 1000 || g.Count("") > 3 {
		t.Errorf("%d images by %d requests, want 1000 by 3", len(seen), g.Count(""))
	}
}

// An image that changes while the listing stands at it must not hide others, as it
// does when the listing is sorted by the time of change.
func TestListingMissesNothingWhileImagesChange(t *testing.T) {
	c, g, _ := site(t)
	g.Page = 2
	for n := range 7 {
		g.Add(t, glance.Image{ID: numbered(n), Hidden: n == 5}, nil)
	}
	var seen []glance.ImageID
	for i, err := range c.Images(t.Context(), time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, i.ID)
		g.Set(i.ID, "name", "changed")
	}
	slices.Sort(seen)
	if want := 7; len(slices.Compact(seen)) != want {
		t.Errorf("saw %v, want all %d", seen, want)
	}
}

func TestListingSaysWhenItCannotGoOn(t *testing.T) {
	c, g, _ := site(t)
	g.Page = 2
	for n := range 4 {
		g.Add(t, glance.Image{ID: numbered(n)}, nil)
	}
	var last error
	for i, err := range c.Images(t.Context(), time.Time{}) {
		last = err
		if err == nil && i.ID == numbered(1) {
			if err := c.Delete(t.Context(), i.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !errors.Is(last, errMarkerGone) || failure.IsPermanent(last) {
		t.Errorf("last error %v, want a passing one: %v", last, errMarkerGone)
	}
}

func TestHoldingAsksNothingWithoutAHash(t *testing.T) {
	c, g, _ := site(t)
	if held, err := c.Holding(t.Context(), glance.Image{}); len(held) != 0 || err != nil || g.Count("") != 0 {
		t.Errorf("got %v, %v by %d requests", held, err, g.Count(""))
	}
}

func TestHoldingWantsTheSameAlgorithm(t *testing.T) {
	c, g, _ := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, []byte("data"))
	i, err := c.Image(t.Context(), numbered(1))
	if err != nil {
		t.Fatal(err)
	}
	i.Hash = digest.Digest{Algo: "sha256", Value: i.Hash.Value}
	if held, err := c.Holding(t.Context(), i); len(held) != 0 || err != nil {
		t.Errorf("got %v, %v; want none", held, err)
	}
}

// A peer's image must not reach attributes of this Glance by way of its properties.
func TestCreateRefusesAttributesAmongTheProperties(t *testing.T) {
	c, g, _ := site(t)
	for _, name := range []string{"visibility", "protected", "locations", "location", "owner", "os_hidden", "os_glance_import_task", "id"} {
		_, err := c.Create(t.Context(), glance.Image{ID: numbered(1), Properties: map[string]string{name: "x"}})
		if !failure.IsPermanent(err) {
			t.Errorf("%s: %v, want a permanent error", name, err)
		}
	}
	if g.Count("") != 0 {
		t.Errorf("%d requests were made", g.Count(""))
	}
}

// TestRefusals holds what every code means for every call, that the error names the
// image, the endpoint, the code and Glance's words, and whether to try again.
func TestRefusals(t *testing.T) {
	const words = `It's <b>not</b> so`
	id := numbered(1)
	up := func(c *Catalog) error { return c.Upload(t.Context(), id, strings.NewReader("data"), 4) }
	create := func(c *Catalog) error { _, err := c.Create(t.Context(), glance.Image{ID: id}); return err }
	finish := func(v string) func(*Catalog) error {
		return func(c *Catalog) error {
			_, err := c.Finish(t.Context(), glance.Image{ID: numbered(2), Visibility: v})
			return err
		}
	}
	get := func(c *Catalog) error { _, err := c.Image(t.Context(), id); return err }
	remove := func(c *Catalog) error { return c.Delete(t.Context(), id) }
	data := func(c *Catalog) error { _, err := c.Data(t.Context(), numbered(2)); return err }
	for _, tt := range []struct {
		call      func(*Catalog) error
		on        string
		code      int
		want      error  // nil: any
		text      string // part of the error
		permanent bool
	}{
		{create, glancetest.Create, 400, nil, "create image", true},
		{create, glancetest.Create, 403, errMade, "add_image", true},
		{create, glancetest.Create, 409, glance.ErrIDUsed, "", false},
		{create, glancetest.Create, 413, errLimits, "image_property_quota", true},
		{create, glancetest.Create, 500, nil, "", false},
		{create, glancetest.Create, 503, nil, "", false},
		{create, glancetest.Create, 429, nil, "", false},
		{up, glancetest.Upload, 400, nil, "upload image", true},
		{up, glancetest.Upload, 401, nil, "", false},
		{up, glancetest.Upload, 403, nil, "", true},
		{up, glancetest.Upload, 404, glance.ErrNoImage, "", false},
		{up, glancetest.Upload, 409, glance.ErrNotQueued, "", false},
		{up, glancetest.Upload, 410, glance.ErrNoImage, "", false},
		{up, glancetest.Upload, 413, glance.ErrQuota, "make room", false},
		{up, glancetest.Upload, 415, nil, "", true},
		{up, glancetest.Upload, 500, nil, "", false},
		{up, glancetest.Upload, 503, errStore, "the mount of its datadir", false},
		{up, glancetest.Upload, 302, nil, "302", false},
		{get, glancetest.Get, 404, glance.ErrNoImage, "get image", false},
		{get, glancetest.Get, 403, nil, "", true},
		{get, glancetest.Get, 502, nil, "", false},
		{finish("public"), glancetest.Patch, 403, nil, "publicize_image", true},
		{finish("community"), glancetest.Patch, 403, nil, "communitize_image", true},
		{finish("shared"), glancetest.Patch, 403, nil, "modify_image", true},
		{finish("public"), glancetest.Patch, 409, nil, "finish image", false},
		{finish("public"), glancetest.Patch, 404, glance.ErrNoImage, "", false},
		{remove, glancetest.Delete, 403, errKept, "delete image", true},
		{remove, glancetest.Delete, 409, nil, "", false},
		{data, glancetest.Data, 403, nil, "read the data", true},
		{data, glancetest.Data, 404, glance.ErrNoImage, "", false},
		{data, glancetest.Data, 503, nil, "", false},
	} {
		t.Run(fmt.Sprintf("%s %d", tt.on, tt.code), func(t *testing.T) {
			c, g, _ := site(t)
			if tt.on != glancetest.Create {
				g.Add(t, glance.Image{ID: id}, nil)
				g.Add(t, glance.Image{ID: numbered(2), Hidden: true, Visibility: "private"}, []byte("data"))
			}
			g.Inject(glancetest.Fault{On: tt.on, Code: tt.code, Message: words, Times: 2})
			err := tt.call(c)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || failure.IsPermanent(err) != tt.permanent {
				t.Fatalf("got %v (permanent: %t); want %v (permanent: %t)", err, failure.IsPermanent(err), tt.want, tt.permanent)
			}
			for _, part := range []string{g.URL + "/v2/images", fmt.Sprint(tt.code), http.StatusText(tt.code), "It's not so", "image 00000000-", tt.text} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if strings.ContainsAny(err.Error(), "<>\n") || strings.Count(err.Error(), http.StatusText(tt.code)) > 1 {
				t.Errorf("%q is not one clean line", err)
			}
		})
	}
}

func TestLostAnswers(t *testing.T) {
	data := []byte("data")
	t.Run("create: the image is there and the id used", func(t *testing.T) {
		c, g, _ := site(t)
		g.Inject(glancetest.Fault{On: glancetest.Create, After: true, Cut: true})
		if _, err := c.Create(t.Context(), glance.Image{ID: numbered(1)}); err == nil {
			t.Error("no error")
		}
		if _, err := c.Create(t.Context(), glance.Image{ID: numbered(1)}); !errors.Is(err, glance.ErrIDUsed) {
			t.Errorf("again: %v, want ErrIDUsed", err)
		}
		if got := status(t, c, numbered(1)); got != glance.Queued {
			t.Errorf("status %s", got)
		}
	})
	t.Run("upload: the image is active and not sent again", func(t *testing.T) {
		c, g, _ := site(t)
		g.Add(t, glance.Image{ID: numbered(1)}, nil)
		g.Inject(glancetest.Fault{On: glancetest.Upload, After: true, Cut: true})
		if err := c.Upload(t.Context(), numbered(1), bytes.NewReader(data), 4); err == nil {
			t.Error("no error")
		}
		if n := g.Count(glancetest.Upload); n != 1 {
			t.Errorf("sent %d times", n)
		}
		if got := read(t, c, numbered(1)); !bytes.Equal(got, data) {
			t.Errorf("data %q", got)
		}
	})
	t.Run("upload: a token refused at the end is not renewed for a second try", func(t *testing.T) {
		c, g, _ := site(t)
		g.Add(t, glance.Image{ID: numbered(1)}, nil)
		g.Inject(glancetest.Fault{On: glancetest.Upload, After: true, Code: 401})
		err := c.Upload(t.Context(), numbered(1), bytes.NewReader(data), 4)
		if err == nil || failure.IsPermanent(err) || g.Count(glancetest.Upload) != 1 {
			t.Errorf("got %v after %d uploads, want a passing error after 1", err, g.Count(glancetest.Upload))
		}
	})
	t.Run("finish and delete may be repeated", func(t *testing.T) {
		c, g, _ := site(t)
		g.Add(t, glance.Image{ID: numbered(1), Properties: map[string]string{glance.PropJob: "j"}}, data)
		want := glance.Image{ID: numbered(1), Visibility: "public", Protected: true}
		g.Inject(glancetest.Fault{On: glancetest.Patch, After: true, Code: 500})
		if _, err := c.Finish(t.Context(), want); err == nil {
			t.Error("finish: no error")
		}
		if got, err := c.Finish(t.Context(), want); err != nil || !got.Protected || got.Visibility != "public" {
			t.Errorf("finish again: %+v, %v", got, err)
		}
		g.Set(numbered(1), "protected", false)
		g.Inject(glancetest.Fault{On: glancetest.Delete, After: true, Cut: true})
		if err := c.Delete(t.Context(), numbered(1)); err == nil {
			t.Error("delete: no error")
		}
		if err := c.Delete(t.Context(), numbered(1)); err != nil {
			t.Errorf("delete again: %v", err)
		}
	})
}

// The token ends between the look at the image and the PUT: the PUT that is
// refused uses no byte of the source, so it is sent anew.
func TestUploadWithATokenThatEndsJustBefore(t *testing.T) {
	c, g, k := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, nil)
	g.Token = func(token string) bool {
		if g.Count(glancetest.Upload) == 1 {
			k.Expire()
		}
		return k.Valid(token)
	}
	data := random(t, 4<<20)
	if err := c.Upload(t.Context(), numbered(1), bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if n := g.Count(glancetest.Upload); n != 2 {
		t.Errorf("%d uploads, want one refused and one done", n)
	}
	if got := read(t, c, numbered(1)); !bytes.Equal(got, data) {
		t.Error("the data read back differ")
	}
}

// A proxy may take the whole body before Glance sees the request, so what can be
// known before is asked before.
func TestUploadLooksFirst(t *testing.T) {
	c, g, k := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, []byte("data"))
	g.Add(t, glance.Image{ID: numbered(2)}, nil)
	if err := c.Upload(t.Context(), numbered(1), zeros{}, 1<<20); !errors.Is(err, glance.ErrNotQueued) || g.Count(glancetest.Upload) != 0 {
		t.Errorf("active image: %v after %d uploads; want ErrNotQueued after none", err, g.Count(glancetest.Upload))
	}
	k.Expire()
	if err := c.Upload(t.Context(), numbered(2), zeros{}, 1<<20); err != nil || g.Count(glancetest.Upload) != 1 {
		t.Errorf("ended token: %v after %d uploads; want one", err, g.Count(glancetest.Upload))
	}
}

func TestUploadRefusedMidway(t *testing.T) {
	c, g, _ := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, nil)
	g.Inject(glancetest.Fault{On: glancetest.Upload, Bytes: 1 << 20, Code: 413, Message: "Image storage media is full"})
	var reading atomic.Bool
	release := make(chan struct{})
	sent := 0
	source := readerFunc(func(p []byte) (int, error) {
		reading.Store(true)
		defer reading.Store(false)
		if sent > 2<<20 {
			<-release // a source that waits for its own network
		}
		sent += len(p)
		return len(p), nil
	})
	returned := make(chan struct{})
	var err error
	go func() {
		defer close(returned)
		err = c.Upload(t.Context(), numbered(1), source, 8<<20)
		if reading.Load() {
			t.Error("Upload returned while the source was being read")
		}
	}()
	eventually(t, "Glance gave up", func() bool { return g.Attribute(numbered(1), "status") == "queued" })
	select { // time for a wrong return
	case <-returned:
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	<-returned
	if !errors.Is(err, glance.ErrQuota) {
		t.Errorf("got %v, want ErrQuota", err)
	}
}

const stall = time.Minute

// piped is a stand-in Glance and its catalog in a bubble.
func piped(t *testing.T) (*Catalog, *glancetest.Glance) {
	t.Helper()
	l, dial := nettest.Pipes()
	g := glancetest.NewOn(t, "", l)
	c := Static(g.URL, "t", Options{Stall: stall})
	transport := c.bulk.Transport.(*observed).next.(*http.Transport)
	transport.DialContext = dial
	t.Cleanup(transport.CloseIdleConnections)
	return c, g
}

func TestStandstill(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, c *Catalog, g *glancetest.Glance) error{
		"before an upload": func(t *testing.T, c *Catalog, g *glancetest.Glance) error {
			g.Inject(glancetest.Fault{On: glancetest.Upload, Hold: t.Context().Done()})
			return c.Upload(t.Context(), numbered(1), zeros{}, 1<<30)
		},
		"amid an upload": func(t *testing.T, c *Catalog, g *glancetest.Glance) error {
			g.Inject(glancetest.Fault{On: glancetest.Upload, Bytes: 1 << 20, Hold: t.Context().Done()})
			return c.Upload(t.Context(), numbered(1), zeros{}, 1<<30)
		},
		"at the answer": func(t *testing.T, c *Catalog, g *glancetest.Glance) error {
			g.Inject(glancetest.Fault{On: glancetest.Upload, After: true, Hold: t.Context().Done()})
			return c.Upload(t.Context(), numbered(1), zeros{}, 1<<10)
		},
		"at a file that is too short": func(t *testing.T, c *Catalog, g *glancetest.Glance) error {
			if err := os.Truncate(g.Path(numbered(2)), 3); err != nil {
				t.Fatal(err)
			}
			r, err := c.Data(t.Context(), numbered(2))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if string(b) != "dat" {
				t.Errorf("read %q, want what is there", b)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, g := piped(t)
				g.Add(t, glance.Image{ID: numbered(1)}, nil)
				g.Add(t, glance.Image{ID: numbered(2)}, []byte("data"))
				began := time.Now()
				err := run(t, c, g)
				if _, ok := errors.AsType[*stalledError](err); !ok || failure.IsPermanent(err) || !strings.Contains(err.Error(), "image 00000000") {
					t.Errorf("got %v, want a passing error that says so", err)
				}
				if took := time.Since(began); took < stall || took > stall+continueTimeout {
					t.Errorf("it came after %v, want %v", took, stall)
				}
			})
		})
	}
}

// A source that is slow is not Glance's standstill.
func TestASlowSourceIsNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, g := piped(t)
		g.Add(t, glance.Image{ID: numbered(1)}, nil)
		waits := 1
		source := readerFunc(func(p []byte) (int, error) {
			if waits--; waits == 0 {
				time.Sleep(4 * stall)
			}
			return len(p), nil
		})
		if err := c.Upload(t.Context(), numbered(1), source, 1<<20); err != nil {
			t.Error(err)
		}
	})
}

// Something before Glance that answers for it, without taking the data, is not believed.
func TestSuccessBeforeTheDataIsNone(t *testing.T) {
	c, g, _ := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, nil)
	g.Inject(glancetest.Fault{On: glancetest.Upload, Code: 204})
	if err := c.Upload(t.Context(), numbered(1), zeros{}, 4<<20); err == nil || !strings.Contains(err.Error(), "4194304 of 4194304 bytes not sent") {
		t.Errorf("got %v, want an error", err)
	}
}

func TestKilledGlance(t *testing.T) {
	c, g, _ := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, nil)
	g.Inject(glancetest.Fault{On: glancetest.Upload, Bytes: 1 << 20, Crash: true})
	if err := c.Upload(t.Context(), numbered(1), zeros{}, 4<<20); err == nil {
		t.Error("no error")
	}
	if got := status(t, c, numbered(1)); got != glance.Saving {
		t.Errorf("status %s, want it stuck in saving", got)
	}
	if err := c.Upload(t.Context(), numbered(1), zeros{}, 4<<20); !errors.Is(err, glance.ErrNotQueued) {
		t.Errorf("again: %v, want ErrNotQueued", err)
	}
}

func TestSpoiltDataHaveAnotherHash(t *testing.T) {
	c, g, _ := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, nil)
	g.Add(t, glance.Image{ID: numbered(2)}, []byte("data"))
	g.Inject(glancetest.Fault{On: glancetest.Upload, Spoil: true})
	if err := c.Upload(t.Context(), numbered(1), strings.NewReader("data"), 4); err != nil {
		t.Fatal(err)
	}
	good, err := c.Image(t.Context(), numbered(2))
	if err != nil {
		t.Fatal(err)
	}
	if bad, err := c.Image(t.Context(), numbered(1)); err != nil || bad.Status != glance.Active || bad.SameContent(good) {
		t.Errorf("got %+v, %v; want it active with another hash", bad, err)
	}
}

func TestMissingData(t *testing.T) {
	c, g, _ := site(t)
	g.Add(t, glance.Image{ID: numbered(1)}, []byte("data"))
	if err := os.Remove(g.Path(numbered(1))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Data(t.Context(), numbered(1)); !errors.Is(err, glance.ErrNoData) {
		t.Errorf("got %v, want ErrNoData", err)
	}
}

func TestDatadirs(t *testing.T) {
	c, g, _ := site(t)
	if _, err := c.Datadirs(t.Context()); !errors.Is(err, glance.ErrNotTold) || failure.IsPermanent(err) {
		t.Errorf("one store: %v, want ErrNotTold", err)
	}
	g.Multi = true
	if got, err := c.Datadirs(t.Context()); err != nil || !slices.Equal(got, []string{g.Dir}) {
		t.Errorf("several stores: %q, %v; want %q", got, err, g.Dir)
	}
	g.Inject(glancetest.Fault{On: glancetest.Stores, Code: 403})
	if _, err := c.Datadirs(t.Context()); !errors.Is(err, glance.ErrNotTold) {
		t.Errorf("not an admin: %v, want ErrNotTold", err)
	}
}

func TestObserve(t *testing.T) {
	g := glancetest.New(t, "")
	g.Add(t, glance.Image{ID: numbered(1)}, nil)
	var mu sync.Mutex
	var seen []string
	c := Static(g.URL, "t", Options{Observe: func(method, route string, code int, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprint(method, " ", route, " ", code))
	}})
	if err := c.Upload(t.Context(), numbered(1), zeros{}, 10); err != nil {
		t.Fatal(err)
	}
	g.Inject(glancetest.Fault{On: glancetest.Delete, Cut: true})
	if err := c.remove(t.Context(), "delete", numbered(1)); err == nil {
		t.Error("no error")
	}
	want := []string{"GET /v2/images/{id} 200", "PUT /v2/images/{id}/file 204", "DELETE /v2/images/{id} 0"}
	if !slices.Equal(seen, want) {
		t.Errorf("observed %q, want %q", seen, want)
	}
}

func TestACancelledRequestEnds(t *testing.T) {
	c, g, _ := site(t)
	ctx, cancel := context.WithCancel(t.Context())
	g.Inject(glancetest.Fault{On: glancetest.Get, Hold: t.Context().Done()})
	done := make(chan error)
	go func() { done <- reach(ctx, c) }()
	eventually(t, "the request is there", func() bool { return g.Count(glancetest.Get) == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
}

func TestWords(t *testing.T) {
	for _, tt := range []struct{ body, want string }{
		{"", ""},
		{"plain", "plain"},
		{`{"message": "m"}`, "m"},
		{`{"error": {"code": 401, "message": "m&amp;n"}}`, "m&n"},
		{"<html><head><title>409 Conflict</title></head><body><h1>409 Conflict</h1>\n It is <b>so</b><br /><br />\n</body></html>", "409 Conflict It is so"},
		{strings.Repeat("ü", 400), strings.Repeat("ü", 300) + "…"},
	} {
		if got := words([]byte(tt.body)); got != tt.want {
			t.Errorf("words(%.40q) = %q, want %q", tt.body, got, tt.want)
		}
	}
}

func numbered(n int) glance.ImageID {
	return glance.ImageID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

// zeros is an endless source.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRoom(t *testing.T) {
	for name, tc := range map[string]struct {
		limit int64 // MiB
		count int64
		made  bool
		says  string // empty: there is room
	}{
		"Keystone keeps no limits": {0, 0, false, ""},
		"no limit":                 {-1, -1, false, ""},
		"the limit is reached":     {3, 2, false, ""},
		"the limit is passed":      {2, 0, true, "3 MiB of images and its limit image_size_total is 2"},
		"one more is too many":     {3, 1, false, "1 images and its limit image_count_total is 1"},
		"its record is among them": {3, 1, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, g, _ := site(t)
			g.Limit, g.Most = tc.limit, tc.count
			g.Add(t, glance.Image{ID: numbered(1), Name: "x"}, make([]byte, 3<<20))
			err := c.Room(t.Context(), tc.made)
			if full := tc.says != ""; errors.Is(err, glance.ErrQuota) != full || full != (err != nil) {
				t.Errorf("got %v, want ErrQuota: %v", err, full)
			}
			if err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("no figures: %v", err)
			}
		})
	}
	t.Run("an older Glance", func(t *testing.T) {
		c, g, _ := site(t)
		g.Inject(glancetest.Fault{On: glancetest.Usage, Code: 404})
		if err := c.Room(t.Context(), false); err != nil {
			t.Errorf("got %v", err)
		}
	})
}
