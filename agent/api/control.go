package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// controlTime is how long an answer of the control API may take: replicate asks
// peers for their whole inventory.
const controlTime = 10 * time.Minute

// ControlServer serves the control API. Whoever can connect may do everything:
// serve it on ListenControl's socket.
func ControlServer(a Agent, log *slog.Logger) *http.Server {
	return newServer(controlRoutes(a), controlTime, log)
}

// The inputs of the operations.
type (
	pushInput struct {
		Body struct {
			Image string   `json:"image" minLength:"1" doc:"id, or a name that only one image has"`
			To    []string `json:"to" minItems:"1" nullable:"false" doc:"peer sites"`

			Priority mover.Priority `json:"priority,omitempty" enum:"low,normal,high" doc:"empty: that of the rule which sends it there, or normal"`
		}
	}
	pullInput struct {
		Body struct {
			Image string `json:"image" minLength:"1" doc:"id, or a name that only one image has there"`
			From  string `json:"from" minLength:"1" doc:"peer site"`
		}
	}
	pulledInput struct {
		Site string      `path:"site" maxLength:"64"`
		ID   agent.JobID `path:"id" maxLength:"64"`
	}
	replicateInput struct {
		Body struct {
			Match  agent.Match `json:"match,omitzero"`
			To     []string    `json:"to" minItems:"1" nullable:"false" doc:"peer sites"`
			DryRun bool        `json:"dry_run,omitempty" doc:"only tell what would be sent"`

			Priority mover.Priority `json:"priority,omitempty" enum:"low,normal,high" doc:"empty: that of the rule which sends an image there, or normal"`
		}
	}
	compareInput struct {
		Peer       []string         `query:"peer,explode" doc:"default: every peer"`
		Name       []string         `query:"name,explode" doc:"regular expressions, each for the whole name"`
		ID         []glance.ImageID `query:"id,explode"`
		Tag        []string         `query:"tag,explode"`
		Visibility []string         `query:"visibility,explode"`
		Owner      []string         `query:"owner,explode"`
		Property   []string         `query:"property,explode" doc:"key=value, all of these"`
		MaxSize    int64            `query:"max_size" minimum:"0" doc:"bytes; 0: no limit"`
	}
	jobsInput struct {
		State agent.State `query:"state" enum:"pending,offered,staged,moved,expected,arriving,delivered,cancelling,verified,parked,cancelled"`
		Kind  agent.Kind  `query:"kind" enum:"send,receive"`
	}
	jobInput struct {
		ID agent.JobID `path:"id" maxLength:"64" doc:"the id, or as much of its beginning as no other job has"`
	}
)

// maxHistory is more than a DTN takes at once, as JSON text.
const maxHistory = 64 << 20

type importInput struct {
	Body struct {
		CSV string `json:"csv"`
	}
}

type forgetInput struct {
	Site string `path:"site" maxLength:"256" doc:"what stands before the first slash of an outcome's id"`
}

type waysInput struct {
	Site  string `path:"site" maxLength:"64"`
	Image string `query:"image" doc:"id, or a name that only one image has"`
	Size  int64  `query:"size" minimum:"0" doc:"bytes of a file, where no image is named"`
}

type adjustInput struct {
	ID   mover.TransferID `path:"id" maxLength:"64" doc:"the id, or as much of its beginning as no other transfer has"`
	Body mover.PCP
}

type probeInput struct {
	Body struct {
		Site  string        `json:"site" minLength:"1" doc:"peer site"`
		Time  time.Duration `json:"time_ns,omitempty" minimum:"0" maximum:"30000000000" doc:"that load is put on the path; 0: 5 s"`
		Bytes int64         `json:"bytes,omitempty" minimum:"0" maximum:"68719476736" doc:"that are sent at most, 16 MiB or more; 0: 16 GiB"`
	}
}

// control holds the operations of the control API.
type control struct{ agent Agent }

func controlRoutes(a Agent) http.Handler {
	c, r := control{a}, newRoutes("glance-dtn agent, control")
	huma.Register(r.api, r.op(http.MethodPost, "/v1/push", "push", "Send an image to sites"), c.push)
	huma.Register(r.api, r.op(http.MethodPost, "/v1/pull", "pull", "Ask a site to send an image here; answers that site's job"), c.pull)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/pulls/{site}/{id}", "get-pull", "Get another site's job that sends an image here"), c.pulled)
	huma.Register(r.api, r.op(http.MethodPost, "/v1/replicate", "replicate", "Send what sites miss"), c.replicate)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/compare", "compare", "Tell how images stand at sites"), c.compare)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/overview", "overview", "Tell how every image stands at every site"), c.overview)
	huma.Register(r.api, r.streaming(r.op(http.MethodGet, "/v1/jobs", "list-jobs", "List jobs as JSON lines, oldest first"),
		linesMedia, reflect.TypeFor[agent.Job]()), c.jobs)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/jobs/{id}", "get-job", "Get a job"), c.job)
	huma.Register(r.api, r.op(http.MethodPost, "/v1/jobs/{id}/cancel", "cancel-job", "Undo a job at both sites"), c.cancel)
	huma.Register(r.api, r.op(http.MethodPost, "/v1/jobs/{id}/retry", "retry-job", "Begin a parked or cancelled job anew, or end its wait"), c.retry)
	huma.Register(r.api, r.streaming(r.op(http.MethodGet, "/v1/events", "watch", "Follow every job as server-sent events"),
		eventsMedia, reflect.TypeFor[agent.Event]()), c.watch)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/transfers", "list-transfers", "List this site's DTN's transfers, oldest first"), c.transfers)
	huma.Register(r.api, r.op(http.MethodPatch, "/v1/transfers/{id}", "adjust-transfer",
		"Change a transfer's pipelining, concurrency or parallelism, while it runs or waits"), c.adjust)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/history", "export-history", "Tell what this site's DTN's transfers have achieved, as CSV in a string"), c.history)
	add := r.op(http.MethodPost, "/v1/history", "import-history", "Add what transfers have achieved to what this site's DTN knows: all of it or nothing")
	add.MaxBodyBytes, add.BodyReadTimeout = maxHistory, time.Minute
	huma.Register(r.api, add, c.importHistory)
	huma.Register(r.api, r.op(http.MethodDelete, "/v1/history/{site}", "forget-history", "Drop what a site's DTN has seen from what this site's DTN knows"), c.forgetHistory)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/paths", "list-paths", "Tell what transfers and probes of this site's DTN have seen of the paths that they use"), c.paths)
	probe := r.streaming(r.op(http.MethodPost, "/v1/probes", "probe-path", "Measure the path to a site, as server-sent events; who goes away ends it"),
		eventsMedia, reflect.TypeFor[agent.ProbeEvent]())
	huma.Register(r.api, probe, c.probe)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/ways/{site}", "get-ways", "Tell what is known now of the ways to a site, straight and through relays, and which one a file would take"), c.ways)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/checks", "get-checks", "Tell whether what the agent needs answers"), c.checks)
	return r.handler()
}

func (c control) push(ctx context.Context, in *pushInput) (*output[[]agent.Job], error) {
	jobs, err := c.agent.Push(ctx, in.Body.Image, in.Body.To, in.Body.Priority)
	for i, j := range jobs {
		jobs[i] = j.WithoutTicket()
	}
	return answer(jobs, err)
}

func (c control) pull(ctx context.Context, in *pullInput) (*output[agent.Job], error) {
	j, err := c.agent.Pull(ctx, in.Body.Image, in.Body.From)
	return answer(j.WithoutTicket(), err)
}

func (c control) pulled(ctx context.Context, in *pulledInput) (*output[agent.Job], error) {
	j, err := c.agent.Pulled(ctx, in.Site, in.ID)
	return answer(j.WithoutTicket(), err)
}

func (c control) replicate(ctx context.Context, in *replicateInput) (*output[[]agent.Comparison], error) {
	if err := in.Body.Match.Validate(); err != nil {
		return nil, newProblem(http.StatusUnprocessableEntity, "validation failed", "body.match: "+err.Error())
	}
	return answer(c.agent.Replicate(ctx, in.Body.Match, in.Body.To, in.Body.Priority, in.Body.DryRun))
}

func (c control) compare(ctx context.Context, in *compareInput) (*output[[]agent.Comparison], error) {
	m, err := in.match()
	if err != nil {
		return nil, newProblem(http.StatusUnprocessableEntity, "validation failed", "query: "+err.Error())
	}
	return answer(c.agent.Compare(ctx, in.Peer, m))
}

func (in compareInput) match() (agent.Match, error) {
	m := agent.Match{
		Names: in.Name, IDs: in.ID, Tags: in.Tag, Visibility: in.Visibility, Owners: in.Owner, MaxSize: in.MaxSize,
	}
	for _, p := range in.Property {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return m, fmt.Errorf("property %q is not key=value", p)
		}
		if m.Properties == nil {
			m.Properties = map[string]string{}
		}
		m.Properties[k] = v
	}
	return m, m.Validate()
}

func (c control) overview(ctx context.Context, _ *noInput) (*output[agent.Overview], error) {
	return answer(c.agent.Overview(ctx))
}

func (c control) jobs(ctx context.Context, in *jobsInput) (*streamResponse, error) {
	wanted := func(j agent.Job) bool {
		return (in.State == "" || j.State == in.State) && (in.Kind == "" || j.Kind == in.Kind)
	}
	all := c.agent.Jobs(ctx)
	return lines(func(yield func(agent.Job, error) bool) {
		for j, err := range all {
			if (err != nil || wanted(j)) && !yield(j.WithoutTicket(), err) {
				return
			}
		}
	}), nil
}

func (c control) job(ctx context.Context, in *jobInput) (*output[agent.Job], error) {
	j, err := c.find(ctx, in.ID)
	return answer(j.WithoutTicket(), err)
}

func (c control) cancel(ctx context.Context, in *jobInput) (*output[agent.Job], error) {
	return c.change(ctx, in.ID, c.agent.Cancel)
}

func (c control) retry(ctx context.Context, in *jobInput) (*output[agent.Job], error) {
	return c.change(ctx, in.ID, c.agent.Retry)
}

func (c control) change(ctx context.Context, id agent.JobID, f func(context.Context, agent.JobID) (agent.Job, error)) (*output[agent.Job], error) {
	j, err := c.find(ctx, id)
	if err == nil {
		j, err = f(ctx, j.ID)
	}
	return answer(j.WithoutTicket(), err)
}

// find returns the job with this id, or the only one whose id begins so.
func (c control) find(ctx context.Context, id agent.JobID) (agent.Job, error) {
	j, err := c.agent.Job(ctx, id)
	if !errors.Is(err, agent.ErrNoJob) {
		return j, err
	}
	var found []agent.Job
	for j, err := range c.agent.Jobs(ctx) {
		ours := strings.HasPrefix(string(j.ID), string(id))
		if err != nil && (ours || j.ID == "") { // of another job's record that cannot be read we need not know
			return j, err
		}
		if ours {
			found = append(found, j)
		}
	}
	switch len(found) {
	case 0:
		return agent.Job{}, fmt.Errorf("job %s: %w", id, agent.ErrNoJob)
	case 1:
		return found[0], nil
	}
	return agent.Job{}, &remoteError{text: fmt.Sprintf("the ids of %d jobs begin with %s; give more of it", len(found), id), is: agent.ErrAmbiguous}
}

func (c control) watch(ctx context.Context, _ *noInput) (*streamResponse, error) {
	all := c.agent.Watch(ctx)
	return events(func(yield func(agent.Event, error) bool) {
		for ev, err := range all {
			if ev.Job != nil {
				j := ev.Job.WithoutTicket()
				ev.Job = &j
			}
			if !yield(ev, err) {
				return
			}
		}
	}), nil
}

func (c control) transfers(ctx context.Context, _ *noInput) (*output[[]agent.Transfer], error) {
	return answer(c.agent.Transfers(ctx))
}

func (c control) adjust(ctx context.Context, in *adjustInput) (*output[agent.Transfer], error) {
	return answer(c.agent.Adjust(ctx, in.ID, in.Body))
}

func (c control) paths(ctx context.Context, _ *noInput) (*output[[]agent.SitePath], error) {
	return answer(c.agent.Paths(ctx))
}

func (c control) history(ctx context.Context, _ *noInput) (*output[string], error) {
	return answer(c.agent.History(ctx))
}

func (c control) importHistory(ctx context.Context, in *importInput) (*output[mover.Imported], error) {
	return answer(c.agent.ImportHistory(ctx, in.Body.CSV))
}

func (c control) forgetHistory(ctx context.Context, in *forgetInput) (*output[mover.Forgotten], error) {
	return answer(c.agent.ForgetHistory(ctx, in.Site))
}

func (c control) probe(ctx context.Context, in *probeInput) (*streamResponse, error) {
	return events(c.agent.Probe(ctx, in.Body.Site, in.Body.Time, in.Body.Bytes)), nil
}

func (c control) ways(ctx context.Context, in *waysInput) (*output[agent.Ways], error) {
	return answer(c.agent.Ways(ctx, in.Site, in.Image, in.Size))
}

func (c control) checks(ctx context.Context, _ *noInput) (*output[[]agent.Check], error) {
	return answer(c.agent.Checks(ctx), nil)
}

// ListenControl listens on a unix socket that only this user, and root, may use. It
// makes the socket's directory, and takes the place of a socket that nobody answers on.
func ListenControl(path string) (net.Listener, error) {
	const longest = len(syscall.RawSockaddrUnix{}.Path) - 1
	if len(path) > longest {
		return nil, fmt.Errorf("listen on %s: the path is longer than the %d bytes that a unix socket's may have", path, longest)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{Control: ownerOnly}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// ownerOnly sets the mode of a socket that has no name yet: Linux gives it to the
// name that bind makes, so there is no moment at which others could connect.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var modeErr error
	err := c.Control(func(fd uintptr) { modeErr = syscall.Fchmod(int(fd), 0o600) })
	return errors.Join(err, modeErr)
}

// removeStale removes a socket that a killed agent left behind, and nothing else.
func removeStale(path string) error {
	i, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if i.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %s: there is something that is no socket; move it away, or set control: in the configuration", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("listen on %s: another agent answers there; stop it, or set control: in the configuration", path), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: is an agent there? %w", path, err)
	}
	return os.Remove(path)
}
