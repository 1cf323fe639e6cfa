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
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/internal/outage"
	"github.com/glance-dtn/glance-dtn/mover"
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
		base:   "http://agent", // any host: it is not looked up
		daemon: outage.Daemon{Name: "the agent", Unit: "glance-dtn-agent", URL: socket},
		most:   maxAnswer,
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
	errno, _ := errors.AsType[syscall.Errno](err)
	switch {
	case errors.Is(errno, fs.ErrNotExist), errno == syscall.ECONNREFUSED:
		return fmt.Errorf("%w on %s (%w): start `glance-dtn agent`", ErrNoAgent, socket, errno)
	case errors.Is(errno, fs.ErrPermission):
		return fmt.Errorf("the agent on %s answers only its own user and root (%w)", socket, errno)
	}
	return err
}

// Push makes, or begins anew, the jobs that send an image to sites.
func (c *ControlClient) Push(ctx context.Context, image string, to []string, p mover.Priority) ([]agent.Job, error) {
	var in pushInput
	in.Body.Image, in.Body.To, in.Body.Priority = image, to, p
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
func (c *ControlClient) Replicate(ctx context.Context, m agent.Match, to []string, p mover.Priority, dryRun bool) ([]agent.Comparison, error) {
	var in replicateInput
	in.Body.Match, in.Body.To, in.Body.Priority, in.Body.DryRun = m, to, p, dryRun
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

// Transfers lists what this site's DTN moves and has moved, oldest first.
func (c *ControlClient) Transfers(ctx context.Context) ([]agent.Transfer, error) {
	return ask[[]agent.Transfer](ctx, c.c, http.MethodGet, "/v1/transfers", nil)
}

// Adjust changes what a transfer uses, while it runs or waits; what is zero stays. A
// beginning of the id does; mover.ErrNoTransfer, agent.ErrShortID.
func (c *ControlClient) Adjust(ctx context.Context, id mover.TransferID, p mover.PCP) (agent.Transfer, error) {
	return ask[agent.Transfer](ctx, c.c, http.MethodPatch, "/v1/transfers/"+url.PathEscape(string(id)), p)
}

// Probe measures the path to a site, or the several that files may take. Each ends with an
// event that has the path; an error at the end says which had none. Who stops ranging ends the probe; agent.ErrNoPeer.
func (c *ControlClient) Probe(ctx context.Context, site string, load time.Duration, bytes int64) iter.Seq2[agent.ProbeEvent, error] {
	var in probeInput
	in.Body.Site, in.Body.Time, in.Body.Bytes = site, load, bytes
	return streamEvents[agent.ProbeEvent](ctx, c.c, http.MethodPost, "/v1/probes", in.Body)
}

// Paths tells what transfers and probes of this site's DTN have seen of the paths that they use.
func (c *ControlClient) Paths(ctx context.Context) ([]agent.SitePath, error) {
	return ask[[]agent.SitePath](ctx, c.c, http.MethodGet, "/v1/paths", nil)
}

// History returns what transfers of this site's DTN have achieved, as CSV.
func (c *ControlClient) History(ctx context.Context) (csv string, err error) {
	return ask[string](ctx, c.c, http.MethodGet, "/v1/history", nil)
}

// ImportHistory adds all of such a CSV to what this site's DTN knows, or nothing.
func (c *ControlClient) ImportHistory(ctx context.Context, csv string) (mover.Imported, error) {
	var in importInput
	in.Body.CSV = csv
	return ask[mover.Imported](ctx, c.c, http.MethodPost, "/v1/history", in.Body)
}

// ForgetHistory drops what a site's DTN has seen from what this site's DTN knows.
func (c *ControlClient) ForgetHistory(ctx context.Context, site string) (mover.Forgotten, error) {
	return ask[mover.Forgotten](ctx, c.c, http.MethodDelete, "/v1/history/"+url.PathEscape(site), nil)
}

// Ways tells what is known now of the ways to a site, and which one a file of that size or,
// if one is named, an image would take; agent.ErrNoPeer, agent.ErrNoImage, agent.ErrAmbiguous.
func (c *ControlClient) Ways(ctx context.Context, to, image string, size int64) (agent.Ways, error) {
	q := url.Values{}
	if image != "" {
		q.Set("image", image)
	}
	if size != 0 {
		q.Set("size", strconv.FormatInt(size, 10))
	}
	return ask[agent.Ways](ctx, c.c, http.MethodGet, "/v1/ways/"+url.PathEscape(to)+"?"+q.Encode(), nil)
}

// Checks tells whether what the agent needs answers.
func (c *ControlClient) Checks(ctx context.Context) ([]agent.Check, error) {
	return ask[[]agent.Check](ctx, c.c, http.MethodGet, "/v1/checks", nil)
}

func jobPath(id agent.JobID) string { return "/v1/jobs/" + url.PathEscape(string(id)) }
