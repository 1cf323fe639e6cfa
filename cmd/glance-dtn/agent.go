package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/agent/config"
)

func (c *cli) agent() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the daemon beside Glance",
		Long: `agent watches this site's Glance and brings its images to where the rules send
them, delivers what other sites' agents send, and answers the other commands.

On SIGHUP it reads its configuration anew: peers, rules, deliver, retry, keep, watch
but for watch.scan, transfer.pipelining and transfer.parallelism change at once. The
log names what else has changed, which needs a restart. A configuration that is wrong
is refused and the old one stays. Changed certificates are read without being told.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := config.LoadAgent(file, os.Getenv)
			if err != nil {
				return badConfig(err)
			}
			return runAgent(cmd.Context(), conf, file, logger(c.err, conf.Log.Level, conf.Log.Format))
		},
	}
	configFlag(cmd, &file, defaultAgentConfig)
	return cmd
}

func runAgent(ctx context.Context, conf config.Agent, file string, log *slog.Logger) (err error) {
	limitMemory(agentMemory)
	metrics := api.NewMetrics()
	s, err := assemble(ctx, conf, log, metrics.Glance)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()

	var open listeners
	defer func() { open.Close() }()
	control, err := api.ListenControl(conf.Control)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	open = append(open, control)
	peers, err := open.bounded("listen", conf.Listen, log)
	if err != nil {
		return err
	}
	started := log.With("listen", peers.Addr().String(), "control", conf.Control)
	callers, err := s.callers(conf, log)
	if err != nil {
		return err
	}
	defer s.callbacks.Close()
	served := served{s.agent, s.dirs, callers}
	parts := []part{
		s.agent.Run,
		func(ctx context.Context) error { return metrics.Run(ctx, served, log) },
		s.dirs.watch(conf.Watch.Scan, log, s.agent.Hint),
		httpServer(api.ControlServer(served, log), control),
		httpServer(api.PeerServer(served, s.callbacks, log), tls.NewListener(peers, s.ring.ServerTLS(nil))),
		reloading(log, func() error { return reload(s, file, conf, log) }),
	}
	for _, c := range callers {
		parts = append(parts, c.Run)
	}
	if conf.Metrics != "" {
		l, err := open.bounded("metrics", conf.Metrics, log)
		if err != nil {
			return err
		}
		started = started.With("metrics", l.Addr().String())
		parts = append(parts, httpServer(api.MetricsServer(served, metrics, s.ring, log), l))
	}
	started.Info("agent started", "site", conf.Site, "version", versionText())
	return serve(ctx, log, s.alive, parts...)
}

// alive reports whether the job store answers; without it nothing goes on.
func (s *site) alive(ctx context.Context) error {
	_, err := s.store.Get(ctx, "none")
	if errors.Is(err, agent.ErrNoJob) {
		return nil
	}
	return err
}

// reload gives the agent what the file says now, and warns of what it cannot take while it runs.
func reload(s *site, file string, running config.Agent, log *slog.Logger) error {
	conf, err := config.LoadAgent(file, os.Getenv)
	if err != nil {
		return err
	}
	if conf.Site != running.Site {
		return fmt.Errorf("site: a site does not change its name while it runs; restart the agent")
	}
	if err := s.agent.Reload(s.settings(conf)); err != nil {
		return err
	}
	keys := config.Changed(fixed(running), fixed(conf))
	if i := slices.Index(keys, "peers"); i >= 0 {
		keys[i] = "peers: callback or url" // all else that is said of them is taken
	}
	warnOfRestart(log, keys)
	return nil
}

// fixed is the part of the configuration that is read at the start only.
func fixed(c config.Agent) config.Agent {
	var called []config.Peer
	for _, p := range c.Peers {
		if p.Callback {
			called = append(called, config.Peer{Name: p.Name, URL: p.URL})
		}
	}
	c.Peers, c.Rules, c.Deliver, c.Retry, c.Keep = called, nil, config.Deliver{}, config.Retry{}, 0
	c.Watch = config.Watch{Scan: c.Watch.Scan}
	c.Transfer = config.Transfer{Stage: c.Transfer.Stage}
	return c
}

// served is the agent with the health of datadir and callers among its checks.
type served struct {
	*agent.Agent
	dirs    *datadirs
	callers []*api.Caller
}

func (s served) Checks(ctx context.Context) []agent.Check {
	c := agent.Check{Name: "datadir", OK: true}
	if err := s.dirs.healthy(); err != nil {
		c.OK, c.Error = false, err.Error()
	}
	checks := append(s.Agent.Checks(ctx), c)
	for _, c := range s.callers {
		checks = append(checks, c.Check())
	}
	return checks
}
