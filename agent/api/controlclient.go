package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"

	"github.com/glance-dtn/glance-dtn/agent"
)

// ErrNoAgent says that nobody listens on the control socket.
var ErrNoAgent = errors.New("no agent answers")

// ControlClient asks the agent on this machine. Its methods are those of
// *agent.Agent, with the agent's errors.
type ControlClient struct{ c *client }

// NewControlClient returns a client of the agent that listens on the socket. Each
// call opens a connection of its own, so there is nothing to close.
func NewControlClient(socket string) *ControlClient {
	return &ControlClient{&client{
		base: "http://agent", // any host: it is not looked up
		hc: &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		}},
		say: func(err error) error { return unreachable(socket, err) },
	}}
}

func unreachable(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s (%w): start `glance-dtn agent`", ErrNoAgent, socket, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the agent on %s answers only its own user and root (%w)", socket, err)
	}
	return err
}

// Push makes, or begins anew, the jobs that send an image to sites.
func (c *ControlClient) Push(ctx context.Context, image string, to []string) ([]agent.Job, error) {
	var in pushInput
	in.Body.Image, in.Body.To = image, to
	return ask[[]agent.Job](ctx, c.c, http.MethodPost, "/v1/push", in.Body)
}

// Pull asks another site to send an image here. It returns that site's job.
func (c *ControlClient) Pull(ctx context.Context, image, from string) (agent.Job, error) {
	var in pullInput
	in.Body.Image, in.Body.From = image, from
	return ask[agent.Job](ctx, c.c, http.MethodPost, "/v1/pull", in.Body)
}

// Pulled returns another site's job that sends an image here; agent.ErrNoJob.
func (c *ControlClient) Pulled(ctx context.Context, from string, id agent.JobID) (agent.Job, error) {
	return ask[agent.Job](ctx, c.c, http.MethodGet, "/v1/pulls/"+url.PathEscape(from)+"/"+url.PathEscape(string(id)), nil)
}

// Replicate sends what sites miss of the images that m selects, or only tells so.
func (c *ControlClient) Replicate(ctx context.Context, m agent.Match, to []string, dryRun bool) ([]agent.Comparison, error) {
	var in replicateInput
	in.Body.Match, in.Body.To, in.Body.DryRun = m, to, dryRun
	return ask[[]agent.Comparison](ctx, c.c, http.MethodPost, "/v1/replicate", in.Body)
}

// Compare tells how the images that m selects stand at peers; at all when none is named.
func (c *ControlClient) Compare(ctx context.Context, peers []string, m agent.Match) ([]agent.Comparison, error) {
	q := url.Values{"peer": peers, "name": m.Names, "tag": m.Tags, "visibility": m.Visibility, "owner": m.Owners}
	for _, id := range m.IDs {
		q.Add("id", string(id))
	}
	for k, v := range m.Properties {
		q.Add("property", k+"="+v)
	}
	if m.MaxSize != 0 {
		q.Set("max_size", strconv.FormatInt(m.MaxSize, 10))
	}
	return ask[[]agent.Comparison](ctx, c.c, http.MethodGet, "/v1/compare?"+q.Encode(), nil)
}

// Overview tells how every image here stands at every peer.
func (c *ControlClient) Overview(ctx context.Context) (agent.Overview, error) {
	return ask[agent.Overview](ctx, c.c, http.MethodGet, "/v1/overview", nil)
}

// Jobs yields every job, in order of creation.
func (c *ControlClient) Jobs(ctx context.Context) iter.Seq2[agent.Job, error] {
	return getLines[agent.Job](ctx, c.c, "/v1/jobs")
}

// Job returns the job with this id, or the only one whose id begins so; agent.ErrNoJob, agent.ErrAmbiguous.
func (c *ControlClient) Job(ctx context.Context, id agent.JobID) (agent.Job, error) {
	return ask[agent.Job](ctx, c.c, http.MethodGet, jobPath(id), nil)
}

// Watch yields every job that is created or changed, and every report of progress,
// from when it is ranged over until ctx ends. A broken connection ends it with an
// error: what happened meanwhile is not told later, so list the jobs after it begins anew.
func (c *ControlClient) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	return getEvents[agent.Event](ctx, c.c, "/v1/events")
}

// Cancel undoes a job at both sites. The id is as for Job.
func (c *ControlClient) Cancel(ctx context.Context, id agent.JobID) (agent.Job, error) {
	return ask[agent.Job](ctx, c.c, http.MethodPost, jobPath(id)+"/cancel", nil)
}

// Retry begins a job anew, or ends its wait. The id is as for Job.
func (c *ControlClient) Retry(ctx context.Context, id agent.JobID) (agent.Job, error) {
	return ask[agent.Job](ctx, c.c, http.MethodPost, jobPath(id)+"/retry", nil)
}

// Checks tells whether what the agent needs answers.
func (c *ControlClient) Checks(ctx context.Context) ([]agent.Check, error) {
	return ask[[]agent.Check](ctx, c.c, http.MethodGet, "/v1/checks", nil)
}

func jobPath(id agent.JobID) string { return "/v1/jobs/" + url.PathEscape(string(id)) }
