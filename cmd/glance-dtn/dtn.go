package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/dtn"
	"github.com/glance-dtn/glance-dtn/mover/gridftp"
	"github.com/glance-dtn/glance-dtn/mover/stream"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/guard"
	"github.com/glance-dtn/glance-dtn/tuning/online"
)

func (c *cli) dtn() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "dtn",
		Short: "Run the daemon on the data transfer node",
		Long: `dtn moves files from its export's outbox to other sites' DTNs when its own site's
agent asks, and takes files into its inbox from DTNs that show a ticket.

It reads changed certificates by itself, and changed limits on SIGHUP; any other
change needs a restart, which costs no transfer: what ran goes on.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := config.LoadDTN(file, os.Getenv)
			if err != nil {
				return badConfig(err)
			}
			return runDTN(cmd.Context(), conf, file, logger(c.err, conf.Log.Level, conf.Log.Format))
		},
	}
	configFlag(cmd, &file, defaultDTNConfig)
	return cmd
}

func runDTN(ctx context.Context, conf config.DTN, file string, log *slog.Logger) (err error) {
	limitMemory(dtnMemory)
	ring, err := keyring(conf.TLS, pki.Identity{Site: conf.Site, Role: pki.DTN}, log)
	if err != nil {
		return err
	}
	export, err := os.OpenRoot(conf.Export)
	if err != nil {
		return fmt.Errorf("export: %w; make the directory, or mount it", err)
	}
	defer func() { err = errors.Join(err, export.Close()) }()
	lock, err := lockState(conf.State)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	transfers, arrivals, err := openState(conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, transfers.Close(), arrivals.Close()) }()
	marker, err := markExport(export, conf)
	if err != nil {
		return err
	}
	if err := dtn.MakeBoxes(export); err != nil {
		return err
	}

	var open listeners
	defer func() { open.Close() }()
	sent := pace.New(mover.Send, conf.MoverLimits())
	received := pace.New(mover.Receive, conf.MoverLimits())
	if err := stream.CheckCongestion(conf.Congestion); err != nil {
		return badConfig(fmt.Errorf("%s: congestion: %w", file, err))
	}
	engine := &stream.Engine{
		Root: export, Site: conf.Site,
		TLS: func() *tls.Config { return ring.ClientTLS(pki.Identity{Role: pki.DTN}) },

		Protection:  mover.Protection(conf.Protection),
		Compression: mover.Compression(conf.Compression),
		Congestion:  conf.Congestion,
		Pacer:       sent,
	}
	relay, err := relayOf(conf, export, ring, engine)
	if err != nil {
		return err
	}
	var server *dtn.Server // there before anything is passed on
	if relay != nil {
		defer func() { err = errors.Join(err, relay.Box.Close(), relay.State.Close()) }()
		relay.Sighted = func(address string, w mover.Way) { server.Sighted(address, w) }
		relay.Seen = func() []mover.SeenPath { return server.Seen() }
	}
	land, err := ground{conf, export, arrivals, ring, engine, relay, received, log}.land(&open)
	if err != nil {
		return err
	}
	memory, err := openMemory(transfers, conf.Tuning, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	engines := map[string]mover.Engine{mover.Stream: engine}
	if conf.GridFTP.URL != "" {
		engines[mover.GridFTP] = gridEngine(conf, export, ring)
	}
	server, err = dtn.New(dtn.Options{
		Site: conf.Site, Version: versionText(), Address: land.address, Marker: marker.ID,
		Mark:    func() (bool, error) { return guard.Keep(export, marker) },
		Engines: engines, Arrivals: land.arrivals, Export: export, State: transfers,
		Transfers: conf.Transfers, Small: dtn.DefaultSmall, Reserve: int64(conf.Reserve), Spare: land.spare, Keep: dtn.DefaultKeep,
		Ack:       acknowledges(etab, conf.Export, log),
		Callbacks: land.callbacks, Standing: land.standing, Relay: land.relay,
		Correct:     correction(conf.Tuning),
		History:     memory,
		Limits:      sent.Limits,
		Certificate: ring,
		Log:         log,
	})
	if err != nil {
		return err
	}

	api, err := open.bounded("listen", conf.Listen, log)
	if err != nil {
		return err
	}
	started := log.With("listen", api.Addr().String(), "data", land.data)
	parts := []part{
		server.Run,
		land.run,
		memory.Run,
		httpServer(dtn.NewHTTPServer(ctx, server.Handler(), nil, log), tls.NewListener(api, ring.ServerTLS(dtn.Allow(conf.Site)))),
		reloading(log, func() error {
			return reloadDTN(file, conf, log, func(ls mover.Limits) {
				sent.Set(ls)
				received.Set(ls)
				server.Reconsider()
			})
		}),
	}
	if conf.GridFTP.URL != "" {
		parts = append(parts, checkGrid(conf.GridFTP, log))
	}
	if conf.Metrics != "" {
		l, err := open.bounded("metrics", conf.Metrics, log)
		if err != nil {
			return err
		}
		started = started.With("metrics", l.Addr().String())
		parts = append(parts, httpServer(dtn.NewHTTPServer(ctx, withMetrics(server.Health(), server), nil, log), l))
	}
	started.Info("DTN started", "site", conf.Site, "version", versionText(), "export", conf.Export)
	return serve(ctx, log, func(context.Context) error { return nil }, parts...)
}

// correction corrects transfers while they run; nil: nothing does.
func correction(t config.Tuning) func() dtn.Corrector {
	if !t.Correct {
		return nil
	}
	limits := mover.PCP{Concurrency: stream.DefaultConcurrency, Parallelism: t.Parallelism}
	return func() dtn.Corrector { return online.New(limits) }
}

// landing is how files of other sites arrive: over the data plane of this DTN, to which
// they connect or which connects to them, or by way of a GridFTP server.
type landing struct {
	arrivals  dtn.Arrivals
	run       part
	address   string // for other sites
	data      string // for the log
	callbacks func() []mover.Callback
	standing  func() map[string]bool
	spare     func() int64
	relay     dtn.Relay
}

// ground is what a landing is made of.
type ground struct {
	conf     config.DTN
	export   *os.Root
	state    *os.Root // of the arrivals
	ring     *pki.Keyring
	engine   *stream.Engine
	relay    *stream.RelayOptions // nil: nothing is passed on
	received *pace.Pacer
	log      *slog.Logger
}

// land also has the engine send to the DTNs that connect here because they cannot be
// connected to.
func (g ground) land(open *listeners) (landing, error) {
	if byGridFTP(g.conf) {
		return g.byGridFTP()
	}
	callback := len(g.conf.Callback) > 0
	if !callback {
		g.engine.Callbacks = new(stream.Callbacks)
	}
	check := g.check()
	receiver, err := stream.NewReceiver(g.export, g.state, stream.ReceiverOptions{
		TLS:   g.ring.ServerTLS(nil),
		Check: func(token, _ string) (mover.Ticket, error) { return check(token) },
		Free:  g.free, Log: g.log,
		Callbacks:  g.engine.Callbacks,
		Protection: mover.Protection(g.conf.Protection), Relay: g.relay,
		Pacer: g.received,
		Delta: int64(g.conf.Delta.Keep),
	})
	if err != nil {
		return landing{}, err
	}
	if callback {
		address, caller := mover.CallbackAddress(g.conf.Site), stream.NewCaller(receiver, g.engine, g.conf.Callback)
		return landing{arrivals: receiver, run: caller.Run, address: address, spare: receiver.Spare, data: address, callbacks: caller.Callbacks, relay: receiver}, nil
	}
	data, err := open.open("data", g.conf.Data)
	if err != nil {
		return landing{}, err
	}
	serve := func(ctx context.Context) error { return receiver.Serve(ctx, data) }
	return landing{arrivals: receiver, run: serve, address: g.conf.Address, spare: receiver.Spare, data: data.Addr().String(), standing: g.engine.Callbacks.Standing, relay: receiver}, nil
}

func (g ground) byGridFTP() (landing, error) {
	inbox, err := gridftp.NewInbox(g.export, g.state, gridftp.InboxOptions{Check: g.check(), Free: g.free, Log: g.log})
	if err != nil {
		return landing{}, err
	}
	return landing{arrivals: inbox, run: inbox.Run, address: g.conf.GridFTP.URL, data: g.conf.GridFTP.URL}, nil
}

// free is the room for arrivals, in bytes.
func (g ground) free() (int64, error) {
	free, _, err := dtn.Space(g.export)
	return free - int64(g.conf.Reserve), err
}

// check returns what verifies the tickets of this site.
func (g ground) check() func(token string) (mover.Ticket, error) {
	var tickets ticket.Verifier
	return func(token string) (mover.Ticket, error) {
		return tickets.Verify(g.ring.Roots(), g.conf.Site, token, time.Now())
	}
}

// byGridFTP reports whether files arrive by way of a GridFTP server.
func byGridFTP(conf config.DTN) bool { return conf.Address == "" && len(conf.Callback) == 0 }

// relayOf is how files pass through to other sites; nil: they do not. What was on its way
// when the configuration still allowed it is removed.
func relayOf(conf config.DTN, export *os.Root, ring *pki.Keyring, e *stream.Engine) (_ *stream.RelayOptions, err error) {
	root, err := os.OpenRoot(conf.State)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if len(conf.Relay.Routes) == 0 {
		if _, err := root.Lstat(mover.Relayed); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err := errors.Join(export.RemoveAll(mover.Relayed), root.RemoveAll(mover.Relayed)); err != nil {
			return nil, fmt.Errorf("remove what was to pass to other sites: %w", err)
		}
		return nil, nil
	}
	sub := func(in *os.Root) (*os.Root, error) {
		if err := in.MkdirAll(mover.Relayed, 0o700); err != nil {
			return nil, fmt.Errorf("relay: %w", err)
		}
		return in.OpenRoot(mover.Relayed)
	}
	state, err := sub(root) // first: it says that the box is ours
	if err != nil {
		return nil, err
	}
	box, err := sub(export)
	if err != nil {
		return nil, errors.Join(err, state.Close())
	}
	var tickets ticket.Verifier
	return &stream.RelayOptions{
		Site: conf.Site, Box: box, State: state, Engine: e,
		Check: func(token string) (mover.Ticket, error) { return tickets.VerifyAny(ring.Roots(), token, time.Now()) },
		Allow: conf.Relay.Allows, Space: int64(conf.Relay.Space), Keep: conf.Relay.Keep,
	}, nil
}

// etab is the table of exports in force, for whoever may not run exportfs(8), which
// keeps it.
const etab = "/var/lib/nfs/etab"

// acknowledges tells how the kernel's NFS server of this machine, if it is that one,
// acknowledges what is written to the export: by its table of exports, whose paths have
// no symbolic links.
func acknowledges(table, export string, log *slog.Logger) func() mover.Ack {
	if real, err := filepath.EvalSymlinks(export); err == nil {
		export = real
	}
	return func() mover.Ack {
		f, err := os.Open(table)
		if errors.Is(err, fs.ErrNotExist) {
			return mover.AckUnknown
		}
		var exports []nfs.Export
		if err == nil {
			defer f.Close()
			exports, err = nfs.ParseExports(f)
		}
		var sync, known bool
		if err == nil {
			sync, known, err = nfs.Acknowledges(exports, export)
		}
		switch {
		case err != nil:
			log.Debug("whether the export is sync or async is not known", "file", table, "err", err)
		case known && sync:
			return mover.AckSync
		case known:
			return mover.AckAsync
		}
		return mover.AckUnknown
	}
}

// lockState makes the state directory at the first start, and keeps a second DTN out of it.
func lockState(dir string) (io.Closer, error) {
	lock, err := durable.LockDir(dir)
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("state: another DTN uses %s; stop that one, or set state to another directory", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return lock, nil
}

// openState opens the DTN's own directories, and makes them at the first start. Either
// way of arriving has a record of its own.
func openState(conf config.DTN) (transfers, arrivals *os.Root, err error) {
	box := "arrivals"
	if byGridFTP(conf) {
		box = "gridftp"
	}
	root, err := os.OpenRoot(conf.State)
	if err != nil {
		return nil, nil, fmt.Errorf("state: %w", err)
	}
	defer root.Close()
	sub := func(name string) (*os.Root, error) {
		if err := root.MkdirAll(name, 0o700); err != nil {
			return nil, fmt.Errorf("state: %w", err)
		}
		return root.OpenRoot(name)
	}
	if transfers, err = sub("transfers"); err != nil {
		return nil, nil, err
	}
	if arrivals, err = sub(box); err != nil {
		return nil, nil, errors.Join(err, transfers.Close())
	}
	return transfers, arrivals, nil
}

// markExport makes sure of the export before anything is written to it.
func markExport(export *os.Root, conf config.DTN) (guard.Marker, error) {
	state, err := os.OpenRoot(conf.State)
	if err != nil {
		return guard.Marker{}, fmt.Errorf("state: %w", err)
	}
	defer state.Close()
	return guard.Mark(export, state, conf.Site)
}

// reloadDTN loads the DTN's configuration anew, has its limits rule, and warns of what it
// cannot take while it runs.
func reloadDTN(file string, running config.DTN, log *slog.Logger, rule func(mover.Limits)) error {
	conf, err := config.LoadDTN(file, os.Getenv)
	if err != nil {
		return err
	}
	rule(conf.MoverLimits())
	running.Limits = conf.Limits
	warnOfRestart(log, config.Changed(running, conf))
	return nil
}

// keyring loads a daemon's certificate and makes sure that it is this daemon's.
func keyring(files config.TLS, want pki.Identity, log *slog.Logger) (*pki.Keyring, error) {
	ring, err := pki.Files{CA: files.CA, Cert: files.Cert, Key: files.Key}.Load(func(err error) {
		log.Error("the new certificate cannot be used, the old one stays", "err", err)
	})
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if got := ring.Identity(); got != want {
		return nil, fmt.Errorf("tls.cert: %s is the certificate of the %s, and this is the %s", files.Cert, got, want)
	}
	return ring, nil
}

// limitMemory sets the soft limit of the heap, unless the environment has.
func limitMemory(bytes int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(bytes)
	}
}

// withMetrics serves /metrics beside h.
func withMetrics(h http.Handler, cs ...prometheus.Collector) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(cs...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.Handle("/", h)
	return mux
}
