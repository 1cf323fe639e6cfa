package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/agent/jobs"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/glance/catalog"
	"github.com/glance-dtn/glance-dtn/glance/store"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/localcopy"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/guard"
)

// site is an agent and the mechanisms it stands on. Nothing in it runs yet.
type site struct {
	agent *agent.Agent
	ring  *pki.Keyring
	store *jobs.Store
	dirs  *datadirs

	callbacks *api.Callbacks
}

// assemble makes an agent of a configuration. ctx bounds the opening of the job store
// and, later, the search for datadirs; observe is told of each request to Glance.
func assemble(ctx context.Context, conf config.Agent, log *slog.Logger, observe func(method, route string, code int, d time.Duration)) (*site, error) {
	ring, err := keyring(conf.TLS, pki.Identity{Site: conf.Site, Role: pki.Agent}, log)
	if err != nil {
		return nil, err
	}
	images, err := catalog.Open(ctx, catalog.Options{
		Cloud: conf.Glance.Cloud, CloudsFile: conf.Glance.CloudsFile, Region: conf.Glance.Region,
		Interface: conf.Glance.Interface, PasswordFile: conf.Glance.PasswordFile,
		Env: os.Getenv, Observe: observe,
	})
	if err != nil {
		return nil, fmt.Errorf("glance: %w", err)
	}
	s := &site{ring: ring, dirs: &datadirs{conf: conf.Glance, ask: images.Datadirs}, callbacks: new(api.Callbacks)}
	node, err := client.New(conf.DTN.URL, &http.Client{Transport: ring.Transport(pki.Identity{Site: conf.Site, Role: pki.DTN})})
	if err != nil {
		return nil, fmt.Errorf("dtn.url: %w", err)
	}
	if s.store, err = openJobs(ctx, conf.State, conf.Site, log); err != nil {
		return nil, err
	}
	export, err := guardExport(conf, node, log)
	if err != nil {
		return nil, errors.Join(err, s.store.Close())
	}
	copier := localcopy.New(localcopy.Options{
		Open: export.Open, Mode: localcopy.Mode(conf.Transfer.Stage), Find: s.dirs.find(ctx), Settle: node.Settle,
		CopyAtOnce: func() (int64, error) { return copyAtOnce(conf.Export) },
	})
	s.agent, err = agent.New(agent.Options{
		Site: conf.Site, Catalog: images, Stager: stager{copier, export}, Mover: node, Landing: node,
		Signer: ticket.NewSigner(ring.Certificate), Store: s.store, Log: log,
		Choose:      chooseWay,
		StoreFaults: s.dirs.faults(ctx, log),
		Settings:    s.settings(conf),
	})
	if err != nil {
		return nil, errors.Join(err, s.store.Close())
	}
	return s, nil
}

// inProcess is the agent of --once: it works, but serves nobody and watches nothing.
func inProcess(ctx context.Context, conf config.Agent, stderr io.Writer) (*agent.Agent, func() error, error) {
	s, err := assemble(ctx, conf, logger(stderr, "warn", conf.Log.Format), nil)
	if err != nil {
		return nil, nil, err
	}
	s.agent.JobLog = slog.New(slog.DiscardHandler) // whoever follows the jobs sees it
	return s.agent, s.store.Close, nil
}

// settings is the part of the configuration that a reload may change.
func (s *site) settings(conf config.Agent) agent.Settings {
	set := agent.Settings{
		DeliverJobs: conf.Deliver.Jobs, OnDeletedID: conf.Deliver.OnDeletedID, Owner: conf.Deliver.Owner,
		PCP:      mover.PCP{Pipelining: conf.Transfer.Pipelining, Parallelism: conf.Transfer.Parallelism},
		RetryMin: conf.Retry.Min, RetryMax: conf.Retry.Max,
		Listing: conf.Watch.Listing, Reconcile: conf.Watch.Reconcile, Stuck: conf.Watch.Stuck,
		Rules: conf.AgentRules(), Keep: conf.Keep,
	}
	var callbacks []string
	for _, p := range conf.Peers {
		var client *api.PeerClient
		if p.URL == config.URLCallback {
			client = api.NewCallbackClient(p.Name, s.callbacks)
			callbacks = append(callbacks, p.Name)
		} else {
			client = api.NewPeerClient(p.Name, p.URL, &http.Client{Transport: s.ring.Transport(pki.Identity{Site: p.Name, Role: pki.Agent})})
		}
		set.Peers = append(set.Peers, agent.PeerSite{Name: p.Name, Peer: client, Jobs: p.Jobs, MayPull: p.MayPull, Via: p.Relay(), Among: p.Via.Relays(), Relays: p.Relays})
	}
	s.callbacks.Expect(callbacks)
	return set
}

// callers are for the peers that cannot connect to this agent.
func (s *site) callers(conf config.Agent, log *slog.Logger) (all []*api.Caller, err error) {
	for _, p := range conf.Peers {
		if !p.Callback {
			continue
		}
		theirs := pki.Identity{Site: p.Name, Role: pki.Agent}
		c, err := api.NewCaller(s.agent, p.Name, p.URL, func() *tls.Config { return s.ring.ClientTLS(theirs) }, log)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// copyAtOnce is nfs.CopyAtOnce of the mount under dir.
func copyAtOnce(dir string) (int64, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return 0, err
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	mounts, err := nfs.ParseMountinfo(bytes.NewReader(info))
	if err != nil {
		return 0, err
	}
	return nfs.CopyAtOnce(mounts, dir)
}

// guardExport guards the directory where the DTN's export is mounted. The DTN's own word
// says which export that is.
func guardExport(conf config.Agent, node *client.Client, log *slog.Logger) (*guard.Guard, error) {
	return guard.New(guard.Options{
		Dir: conf.Export, Site: conf.Site, Mounted: guard.Mounted(conf.Mount), State: conf.State.Embedded, Log: log,
		Told: func(ctx context.Context) (string, error) {
			c, err := node.Capabilities(ctx)
			return c.Export, err
		},
		Try: localcopy.Try,
	})
}

// stager makes the export's copier and its guard an agent.Stager.
type stager struct {
	*localcopy.Copier
	export *guard.Guard
}

func (s stager) Check(ctx context.Context) error { return s.export.Check(ctx) }

func (s stager) Stage(ctx context.Context, id glance.ImageID, f mover.File, report func(int64)) (string, error) {
	return s.Copier.Stage(ctx, string(id), f, report)
}

func (s stager) Open(name string) (agent.ReaderAtCloser, error) { return s.Copier.Open(name) }

// openJobs opens the site's job store. Either kind bounds by itself how long that may take.
func openJobs(ctx context.Context, c config.State, site string, log *slog.Logger) (*jobs.Store, error) {
	if len(c.Endpoints) == 0 {
		return jobs.OpenEmbedded(ctx, c.Embedded, log)
	}
	o := jobs.Options{Endpoints: c.Endpoints, Prefix: c.Prefix, Site: site, Username: c.Username, Log: log}
	var err error
	if o.TLS, err = etcdTLS(c); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if c.PasswordFile != "" {
		password, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("state.password_file: %w", err)
		}
		o.Password = strings.TrimRight(string(password), "\r\n")
	}
	return jobs.OpenRemote(ctx, o)
}

// etcdTLS is nil where the configuration names no certificate.
func etcdTLS(c config.State) (*tls.Config, error) {
	if c.CA == "" && c.Cert == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		data, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// datadirs finds where Glance's filesystem store is, when it is first needed: the
// agent starts without a Glance that answers.
type datadirs struct {
	conf config.Glance
	ask  func(context.Context) ([]string, error)

	mu    sync.Mutex // held while Glance is asked, which may take long
	found []string

	watcher atomic.Pointer[store.Watcher] // nil until the directories are known
}

// get returns the configured directories, or those that Glance tells, or those in
// its configuration file.
func (d *datadirs) get(ctx context.Context) ([]string, error) {
	if len(d.conf.Datadirs) > 0 {
		return d.conf.Datadirs, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found != nil {
		return d.found, nil
	}
	dirs, err := d.ask(ctx)
	if errors.Is(err, glance.ErrNotTold) {
		dirs, err = readDatadirs(d.conf.Conf)
	}
	if err != nil {
		return nil, fmt.Errorf("find Glance's datadir: %w; or set glance.datadirs", err)
	}
	d.found = dirs
	return dirs, nil
}

func readDatadirs(conf string) ([]string, error) {
	f, err := os.Open(conf)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dirs, err := glance.Datadirs(f)
	if err == nil && len(dirs) == 0 {
		err = fmt.Errorf("%s configures no filesystem store", conf)
	}
	return dirs, err
}

func (d *datadirs) find(ctx context.Context) func(id string) (string, int64, error) {
	return func(id string) (string, int64, error) {
		dirs, err := d.get(ctx)
		if err != nil {
			return "", 0, err
		}
		f, err := store.Find(dirs, glance.ImageID(id))
		return f.Path, f.Size, err
	}
}

// faults compares the datadirs with Glance's images. What cannot be read is logged,
// and no fault is claimed then.
func (d *datadirs) faults(ctx context.Context, log *slog.Logger) func([]glance.Image) []agent.StoreFault {
	return func(images []glance.Image) []agent.StoreFault {
		dirs, err := d.get(ctx)
		var files []store.File
		if err == nil {
			files, err = store.Scan(dirs)
		}
		if err != nil {
			log.Warn("the store cannot be compared with Glance", "err", err)
			return nil
		}
		var out []agent.StoreFault
		for _, f := range store.Compare(files, images, time.Now()) {
			out = append(out, agent.StoreFault{ID: f.ID, Path: f.Path, Fault: string(f.Kind), Note: f.Note})
		}
		return out
	}
}

// watch hints the agent at what changes in the datadirs, as soon as they are known.
func (d *datadirs) watch(every time.Duration, log *slog.Logger, hint func(glance.Hint)) part {
	return func(ctx context.Context) error {
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			dirs, err := d.get(ctx)
			if err == nil {
				w := &store.Watcher{Dirs: dirs, ScanEvery: every, Log: log}
				d.watcher.Store(w)
				return w.Run(ctx, hint)
			}
			log.Warn("the store is not watched yet", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
		}
	}
}

// healthy returns nil, or why changes in the datadirs may not be noticed now.
func (d *datadirs) healthy() error {
	w := d.watcher.Load()
	if w == nil {
		return errors.New("where Glance's datadirs are is not known yet")
	}
	return w.Healthy()
}
