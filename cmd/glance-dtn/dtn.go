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
	transfers, arrivals, err := openState(conf.State)
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

	receiver, err := stream.NewReceiver(export, arrivals, stream.ReceiverOptions{
		TLS: ring.ServerTLS(nil),
		Check: func(token, from string) (mover.Ticket, error) {
			return ticket.Verify(ring.Roots(), conf.Site, token, time.Now())
		},
		Free: func() (int64, error) {
			free, _, err := dtn.Space(export)
			return free - int64(conf.Reserve), err
		},
		Log: log,
	})
	if err != nil {
		return err
	}
	server, err := dtn.New(dtn.Options{
		Site: conf.Site, Version: versionText(), Address: conf.Address, Marker: marker.ID,
		Engines: map[string]mover.Engine{mover.Stream: &stream.Engine{
			Root: export,
			TLS:  func() *tls.Config { return ring.ClientTLS(pki.Identity{Role: pki.DTN}) },
		}},
		Arrivals: receiver, Export: export, State: transfers,
		Transfers: conf.Transfers, Reserve: int64(conf.Reserve), Keep: dtn.DefaultKeep,
		Ack: acknowledges(conf.Export, log),
		Log: log,
	})
	if err != nil {
		return err
	}

	var open listeners
	defer func() { open.Close() }()
	data, err := open.open("data", conf.Data)
	if err != nil {
		return err
	}
	api, err := open.open("listen", conf.Listen)
	if err != nil {
		return err
	}
	started := log.With("listen", api.Addr().String(), "data", data.Addr().String())
	parts := []part{
		server.Run,
		func(ctx context.Context) error { return receiver.Serve(ctx, data) },
		httpServer(dtn.NewHTTPServer(ctx, server.Handler(), nil, log), tls.NewListener(api, ring.ServerTLS(nil))),
		reloading(log, func() error { return needsRestart(file, conf) }),
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

// openState opens the DTN's own directories, and makes them at the first start.
func openState(dir string) (transfers, arrivals *os.Root, err error) {
	root, err := os.OpenRoot(dir)
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
	if arrivals, err = sub("arrivals"); err != nil {
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
