package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/glance-dtn/glance-dtn/mover/stream"
)

// Soft limits of the heap: the collector works harder instead of letting the
// resident size pass 120 MiB (agent, its etcd included) or 80 MiB (DTN). What is
// mapped or in the kernel comes on top, and so do the blocks that a DTN has in hand where
// very many connections bring some: MemoryMax of its unit is for these. GOMEMLIMIT
// overrides them.
const (
	agentMemory = 90 << 20
	dtnMemory   = 60 << 20
)

// stopTime is how long a daemon may take to end after a signal. Nothing is lost
// when it is cut short: every step of every job can be repeated.
const stopTime = 10 * time.Second

// logger logs to w as the configuration says. In format auto a terminal gets text,
// everything else, systemd's journal above all, JSON.
func logger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: l}
	journal := os.Getenv("JOURNAL_STREAM") != "" || os.Getenv("INVOCATION_ID") != ""
	if format == "text" || format != "json" && isTerminal(w) && !journal {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

// notify tells systemd a state, if systemd asked to be told.
func notify(state string) {
	_, _ = daemon.SdNotify(false, state) // nothing to do about it: systemd will find out by itself
}

// part is one of the long-lived parts of a daemon.
type part func(ctx context.Context) error

// serve runs the parts until ctx ends or one of them fails, and reports to systemd.
// When ctx has ended it returns within stopTime: nil if all parts ended.
func serve(ctx context.Context, log *slog.Logger, alive func(context.Context) error, parts ...part) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range append(parts, watchdog(log, alive)) {
		g.Go(func() error {
			err := p(gctx)
			if ctx.Err() != nil { // we were told to stop: how a part puts that does not matter
				return nil
			}
			return err
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	notify(daemon.SdNotifyReady)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	notify(daemon.SdNotifyStopping)
	log.Info("stopping")
	select {
	case err := <-done:
		return err
	case <-time.After(stopTime):
		return fmt.Errorf("did not stop within %v; what was going on is resumed at the next start", stopTime)
	}
}

// watchdog tells systemd that the daemon is alive as long as alive says so, twice in
// the time that WatchdogSec gives.
func watchdog(log *slog.Logger, alive func(context.Context) error) part {
	return func(ctx context.Context) error {
		interval, err := daemon.SdWatchdogEnabled(false)
		if err != nil || interval == 0 {
			return err
		}
		tick := time.NewTicker(interval / 2)
		defer tick.Stop()
		for {
			probe, cancel := context.WithTimeout(ctx, interval/3)
			err := alive(probe)
			cancel()
			if err == nil {
				notify(daemon.SdNotifyWatchdog)
			} else if ctx.Err() == nil {
				log.Error("not alive, systemd is not told otherwise", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}
}

// warnOfRestart names the changed keys that a daemon reads at its start only.
func warnOfRestart(log *slog.Logger, keys []string) {
	if len(keys) > 0 {
		log.Warn("some changes need a restart; all others are in force", "keys", keys)
	}
}

// reloading calls reload at each SIGHUP. An error is logged, and all stays as it was.
func reloading(log *slog.Logger, reload func() error) part {
	return func(ctx context.Context) error {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
			if err := reload(); err != nil {
				log.Error("the new configuration is wrong, the old one stays", "err", strings.ReplaceAll(err.Error(), "\n", "; "))
			} else {
				log.Info("configuration reloaded")
			}
			notify(daemon.SdNotifyReady)
		}
	}
}

// httpServer serves s on l until ctx ends. Requests that are running then are cut
// off: each may be repeated.
func httpServer(s *http.Server, l net.Listener) part {
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { s.Close() })
		defer stop()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
		return nil
	}
}

// listeners opens the sockets of a daemon before it starts, so that one that is
// taken is told at once; it closes all when one fails.
type listeners []net.Listener

func (l *listeners) open(key, address string) (net.Listener, error) {
	n, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	*l = append(*l, n)
	return n, nil
}

// How many connections an HTTP server may have open at once, in all and from one IPv4 address
// or IPv6 network: more than an agent opens whose DTN answers slowly, and less than takes its
// memory from what runs beside it.
const (
	httpConns    = 2048
	httpPerPlace = 512
)

// bounded is open for an HTTP server, which takes any number of connections.
func (l *listeners) bounded(key, address string, log *slog.Logger) (net.Listener, error) {
	n, err := l.open(key, address)
	if err != nil {
		return nil, err
	}
	return stream.Bounded(n, httpConns, httpPerPlace, log), nil
}

func (l listeners) Close() {
	for _, n := range l {
		n.Close()
	}
}
