// Package catalog is one site's Glance: its images listed, read, made and removed
// over the Image API v2, with a token from Keystone that is renewed when it ends.
//
// Every error says what was being done to which image, what was asked of which
// endpoint, and what Glance answered. Where no repetition cures the cause it is
// marked by failure.Permanently.
package catalog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
)

const userAgent = "glance-dtn"

// Bounds of time. A request whose body or answer is an image has no bound as a
// whole, only Options.Stall.
const (
	dialTimeout     = 10 * time.Second
	continueTimeout = 5 * time.Second // how long an upload waits to be asked for its body
	callTimeout     = 2 * time.Minute // any other request, its answer included
	defaultStall    = 10 * time.Minute
)

// Options says which Glance, and as whom.
type Options struct {
	// Cloud names an entry of clouds.yaml. Empty: $OS_CLOUD; when that is empty
	// too, the OS_* variables themselves.
	Cloud string
	// CloudsFile is the clouds.yaml; a secure.yaml beside it is read too. Empty:
	// $OS_CLIENT_CONFIG_FILE, else the places where the openstack command looks.
	CloudsFile string
	// Region and Interface choose the image endpoint in Keystone's catalog. Empty:
	// what the cloud or OS_REGION_NAME and OS_INTERFACE say, and public.
	Region    string
	Interface string
	// PasswordFile holds the password, in place of the cloud's.
	PasswordFile string
	// Env returns an environment variable, such as os.Getenv does. Nil: no variable is set.
	Env func(string) string
	// Observe, unless nil, is called at once by many goroutines, after each
	// request's answer began: the route has {id} in place of ids; the code is 0 when
	// no answer came.
	Observe func(method, route string, code int, d time.Duration)
	// Stall is how long an upload or a download may stand still on Glance's side
	// before it is cut. Zero: 10 minutes.
	Stall time.Duration
}

// Catalog is one site's Glance. Its methods may be called at once.
type Catalog struct {
	login   func(context.Context) (*session, error)
	turn    chan struct{} // held by who reads or sets session
	session *session      // nil until the first login
	call    *http.Client  // for requests that end soon
	bulk    *http.Client  // for image data
	stall   time.Duration
}

// session is what a login yields.
type session struct {
	provider *gophercloud.ProviderClient // the token, and how to get the next one
	endpoint string                      // of the Image API, ends with /v2/
}

// Open returns the Glance that o describes. It reads files and talks to nobody:
// the first request logs in, and every later one tries again until that worked. An
// error means that o, or what it points to, is wrong.
func Open(_ context.Context, o Options) (*Catalog, error) {
	if o.Env == nil {
		o.Env = func(string) string { return "" }
	}
	if o.Cloud == "" && o.Env("OS_AUTH_TYPE") == "admin_token" {
		return openStatic(o)
	}
	cloud, err := readCloud(o)
	if err != nil {
		return nil, fmt.Errorf("OpenStack credentials: %w", err)
	}
	c := newCatalog(o, cloud.tls)
	c.login = func(ctx context.Context) (*session, error) {
		s, err := c.authenticate(ctx, cloud)
		if err != nil {
			return nil, fmt.Errorf("log in at %s: %w", cloud.auth.IdentityEndpoint, keystoneSays(err))
		}
		return s, nil
	}
	return c, nil
}

// Static returns the Glance at endpoint, asked with a token that is never renewed
// and without a Keystone. Of o it reads Observe and Stall.
func Static(endpoint, token string, o Options) *Catalog {
	c := newCatalog(o, nil)
	s := &session{provider: &gophercloud.ProviderClient{TokenID: token}, endpoint: versioned(endpoint)}
	c.login = func(context.Context) (*session, error) { return s, nil }
	return c
}

func openStatic(o Options) (*Catalog, error) {
	endpoint, token := o.Env("OS_ENDPOINT"), o.Env("OS_TOKEN")
	if err := checkURL("OS_ENDPOINT", endpoint); err != nil {
		return nil, fmt.Errorf("OS_AUTH_TYPE=admin_token: %w", err)
	}
	if token == "" {
		return nil, errors.New("OS_AUTH_TYPE=admin_token: OS_TOKEN is not set")
	}
	return Static(endpoint, token, o), nil
}

func newCatalog(o Options, t *tls.Config) *Catalog {
	transport := &observed{observe: o.Observe, next: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       t, // which keeps to HTTP/1.1: there a cut connection is what ends an upload
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: continueTimeout,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   8,
	}}
	c := &Catalog{
		turn:  make(chan struct{}, 1),
		call:  &http.Client{Transport: transport, Timeout: callTimeout},
		bulk:  &http.Client{Transport: transport, CheckRedirect: noRedirect},
		stall: o.Stall,
	}
	if c.stall == 0 {
		c.stall = defaultStall
	}
	return c
}

// noRedirect keeps an upload from being followed up by a GET elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// connected returns the session, logging in when there is none yet.
func (c *Catalog) connected(ctx context.Context) (*session, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c.session == nil {
		s, err := c.login(ctx)
		if err != nil {
			return nil, err
		}
		c.session = s
	}
	return c.session, nil
}

func (c *Catalog) authenticate(ctx context.Context, cloud cloud) (*session, error) {
	p, err := openstack.NewClient(cloud.auth.IdentityEndpoint)
	if err != nil {
		return nil, err
	}
	p.HTTPClient = *c.call
	p.UserAgent.Prepend(userAgent)
	if err := openstack.Authenticate(ctx, p, cloud.auth); err != nil {
		return nil, err
	}
	result, ok := p.GetAuthResult().(interface {
		ExtractServiceCatalog() (*tokens.ServiceCatalog, error)
	})
	if !ok {
		return nil, errors.New("only version 3 of the Identity API has a service catalog that is understood")
	}
	services, err := result.ExtractServiceCatalog()
	if err != nil {
		return nil, err
	}
	endpoint, err := cloud.imageEndpoint(services)
	if err != nil {
		return nil, err
	}
	return &session{provider: p, endpoint: endpoint}, nil
}

// imageEndpoint picks the Image API from Keystone's catalog. It never guesses
// between regions: the other one is another site.
func (c cloud) imageEndpoint(services *tokens.ServiceCatalog) (string, error) {
	found := map[string]string{}
	var regions []string
	for _, s := range services.Entries {
		if s.Type != "image" {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Interface != c.availability {
				continue
			}
			region := e.RegionID
			if region == "" {
				region = e.Region
			}
			if _, twice := found[region]; !twice {
				found[region] = e.URL
				regions = append(regions, region)
			}
		}
	}
	slices.Sort(regions)
	if c.region == "" && len(regions) == 1 {
		return versioned(found[regions[0]]), nil
	}
	if u, ok := found[c.region]; ok && c.region != "" {
		return versioned(u), nil
	}
	return "", fmt.Errorf("the service catalog has no single %s image endpoint in region %q; regions that have one: %q; set glance.region",
		c.availability, c.region, regions)
}

// versioned returns the base of the Image API v2 for an endpoint with or without a version.
func versioned(endpoint string) string {
	return strings.TrimSuffix(strings.TrimRight(endpoint, "/"), "/v2") + "/v2/"
}

// renew gets a new token in place of the one that was refused. It reports whether
// there is another token now.
func (s *session) renew(ctx context.Context, refused string) (bool, error) {
	for {
		err := s.provider.Reauthenticate(ctx, refused)
		if err != nil && ctx.Err() == nil && (errors.Is(err, context.Canceled)) {
			continue // it waited for another request's renewal, and that request was cancelled
		}
		if err != nil {
			return false, fmt.Errorf("log in again at %s: %w", s.provider.IdentityEndpoint, keystoneSays(err))
		}
		return s.provider.Token() != refused, nil
	}
}

// observed tells of every request.
type observed struct {
	next    http.RoundTripper
	observe func(method, route string, code int, d time.Duration)
}

func (o *observed) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	resp, err := o.next.RoundTrip(r)
	if o.observe != nil {
		code := 0
		if err == nil {
			code = resp.StatusCode
		}
		o.observe(r.Method, route(r.URL.Path), code, time.Since(begin))
	}
	return resp, err
}

var anID = regexp.MustCompile(`[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}`)

func route(path string) string { return anID.ReplaceAllLiteralString(path, "{id}") }
