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
	"reflect"
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
	"github.com/glance-dtn/glance-dtn/mover/ticket"
	"github.com/glance-dtn/glance-dtn/nfs"
	"github.com/glance-dtn/glance-dtn/nfs/guard"
)

func (c *cli) dtn() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "dtn",
		Short: "Run the daemon on the data transfer node",
		Long: `dtn moves files from its export's outbox to other sites' DTNs when its own site's
agent asks, and takes files into its inbox from DTNs that show a ticket.

It reads changed certificates by itself; any other change needs a restart, which
costs no transfer: what ran goes on.`,
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
	land, err := landingOf(conf, export, arrivals, ring, &open, log)
	if err != nil {
		return err
	}
	engines := map[string]mover.Engine{mover.Stream: &stream.Engine{
		Root: export,
		TLS:  func() *tls.Config { return ring.ClientTLS(pki.Identity{Role: pki.DTN}) },

		Protection: mover.Protection(conf.Protection),
	}}
	if conf.GridFTP.URL != "" {
		engines[mover.GridFTP] = gridEngine(conf, export, ring)
	}
	server, err := dtn.New(dtn.Options{
		Site: conf.Site, Version: versionText(), Address: land.address, Marker: marker.ID,
		Mark:    func() (bool, error) { return guard.Keep(export, marker) },
		Engines: engines, Arrivals: land.arrivals, Export: export, State: transfers,
		Transfers: conf.Transfers, Reserve: int64(conf.Reserve), Keep: dtn.DefaultKeep,
		Ack: acknowledges(conf.Export, log),
		Log: log,
	})
	if err != nil {
		return err
	}

	api, err := open.open("listen", conf.Listen)
	if err != nil {
		return err
	}
	started := log.With("listen", api.Addr().String(), "data", land.data)
	parts := []part{
		server.Run,
		land.run,
		httpServer(dtn.NewHTTPServer(ctx, server.Handler(), nil, log), tls.NewListener(api, ring.ServerTLS(nil))),
		reloading(log, func() error { return needsRestart(file, conf) }),
	}
	if conf.GridFTP.URL != "" {
		parts = append(parts, checkGrid(conf.GridFTP, log))
	}
	if conf.Metrics != "" {
		l, err := open.open("metrics", conf.Metrics)
		if err != nil {
			return err
		}
		started = started.With("metrics", l.Addr().String())
		parts = append(parts, httpServer(dtn.NewHTTPServer(ctx, withMetrics(server.Health(), server), nil, log), l))
	}
	started.Info("DTN started", "site", conf.Site, "version", versionText(), "export", conf.Export)
	return serve(ctx, log, func(context.Context) error { return nil }, parts...)
}

// landing is how files of other sites arrive: over the data plane of this DTN, or, where
// it has no address, by way of a GridFTP server.
type landing struct {
	arrivals dtn.Arrivals
	run      part
	address  string // for other sites
	data     string // for the log
}

func landingOf(conf config.DTN, export, state *os.Root, ring *pki.Keyring, open *listeners, log *slog.Logger) (landing, error) {
	free := func() (int64, error) {
		free, _, err := dtn.Space(export)
		return free - int64(conf.Reserve), err
	}
	check := func(token string) (mover.Ticket, error) {
		return ticket.Verify(ring.Roots(), conf.Site, token, time.Now())
	}
	if conf.Address == "" {
		inbox, err := gridftp.NewInbox(export, state, gridftp.InboxOptions{Check: check, Free: free, Log: log})
		if err != nil {
			return landing{}, err
		}
		return landing{inbox, inbox.Run, conf.GridFTP.URL, conf.GridFTP.URL}, nil
	}
	receiver, err := stream.NewReceiver(export, state, stream.ReceiverOptions{
		TLS:   ring.ServerTLS(nil),
		Check: func(token, _ string) (mover.Ticket, error) { return check(token) },
		Free:  free, Log: log,
		Protection: mover.Protection(conf.Protection),
	})
	if err != nil {
		return landing{}, err
	}
	data, err := open.open("data", conf.Data)
	if err != nil {
		return landing{}, err
	}
	serve := func(ctx context.Context) error { return receiver.Serve(ctx, data) }
	return landing{receiver, serve, conf.Address, data.Addr().String()}, nil
}

// etab is the table of exports in force, for whoever may not run exportfs(8), which
// keeps it.
const etab = "/var/lib/nfs/etab"

// acknowledges tells how the kernel's NFS server of this machine, if it is that one,
// acknowledges what is written to the export.
func acknowledges(export string, log *slog.Logger) func() mover.Ack {
	return func() mover.Ack {
		f, err := os.Open(etab)
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
			log.Debug("whether the export is sync or async is not known", "file", etab, "err", err)
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
	if conf.Address == "" {
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

// needsRestart loads the DTN's configuration anew and says what SIGHUP cannot do.
func needsRestart(file string, running config.DTN) error {
	conf, err := config.LoadDTN(file, os.Getenv)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(conf, running) {
		return errors.New("it has changed, and a DTN takes changes at its start only: restart it")
	}
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
