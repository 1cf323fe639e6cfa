package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

// probeFlags is how paths are to be probed.
type probeFlags struct {
	wanted bool
	load   time.Duration
	most   string
	bytes  int64
}

func (p *probeFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&p.wanted, "probe", false, "measure the paths to the sites named")
	f.DurationVar(&p.load, "time", mover.DefaultProbeTime, "that a probe puts load on a path, 1s to 30s")
	f.StringVar(&p.most, "bytes", "16GiB", "`SIZE` that a probe sends at most, 16MiB to 64GiB")
}

// check reports what is wrong with the flags and the sites.
func (p *probeFlags) check(cmd *cobra.Command, sites []string) (err error) {
	for _, flag := range []string{"time", "bytes"} {
		if cmd.Flags().Changed(flag) && !p.wanted {
			return usagef("--%s is for --probe", flag)
		}
	}
	if p.bytes, err = mover.ParseSize(p.most); err != nil || p.bytes < mover.MinProbeBytes || p.bytes > mover.MaxProbeBytes {
		return usagef("--bytes %s: want a number of bytes from 16MiB to 64GiB, as in 2GiB", p.most)
	}
	switch {
	case p.load < time.Second || p.load > mover.MaxProbeTime:
		return usagef("--time %v: it is 1s to %v", p.load, mover.MaxProbeTime)
	case p.wanted && len(sites) == 0:
		return usagef("--probe puts load on the paths to the sites that are named: name one")
	case slices.Contains(sites, ""):
		return usagef("a site has no name: name it")
	}
	return nil
}

// probePaths probes one path after the other, and shows what it could find. What it could
// not is the error. Where a site is no peer it probes none.
func (c *cli) probePaths(ctx context.Context, sites []string, p probeFlags) error {
	found := []agent.SitePath{}
	var once []string
	var failed error
	for _, site := range sites {
		if !slices.Contains(once, site) {
			once = append(once, site)
			failed = errors.Join(failed, c.unknown(ctx, site))
		}
	}
	if failed != nil {
		return failed
	}
	for _, site := range once {
		some, err := c.probePath(ctx, site, p)
		if ctx.Err() != nil {
			return errInterrupted
		}
		failed = errors.Join(failed, err)
		found = append(found, some...)
	}
	if len(found) == 0 && failed != nil && c.format == "table" {
		return failed
	}
	return errors.Join(c.print(found, func() error { return c.describeProbes(found) }), failed)
}

// probePath probes the paths that files to a site may begin with.
func (c *cli) probePath(ctx context.Context, site string, p probeFlags) (found []agent.SitePath, err error) {
	show, end := c.probeView(site)
	defer end()
	for e, err := range c.daemon().Probe(ctx, site, p.load, p.bytes) {
		switch {
		case err != nil:
			return found, err
		case e.Path != nil:
			found = append(found, *e.Path)
		case e.Progress != nil:
			show(*e.Progress)
		}
	}
	if found == nil {
		err = errors.New("the agent has ended it and does not say why; see its log")
	}
	return found, err
}

// probeView is a bar on a terminal while a probe runs, and nothing elsewhere.
func (c *cli) probeView(site string) (show func(mover.Probing), end func()) {
	if !isTerminal(c.err) {
		return func(mover.Probing) {}, func() {}
	}
	var mu sync.Mutex // guards text, which the drawing goroutine reads
	text := ""
	all := mpb.New(mpb.WithOutput(behind(c.err)), mpb.WithAutoRefresh())
	bar := all.New(0, mpb.BarStyle().Rbound("] "), mpb.BarWidth(32),
		mpb.PrependDecorators(decor.Name(string(harmless([]byte(site)))+" ")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			mu.Lock()
			defer mu.Unlock()
			return text
		})))
	show = func(p mover.Probing) {
		mu.Lock()
		text = probeText(p)
		mu.Unlock()
		if p.Time > 0 {
			bar.SetTotal(int64(p.Time), false)
		}
		bar.SetCurrent(int64(p.Loaded))
	}
	return show, func() {
		bar.Abort(true)
		all.Wait()
	}
}

// probeText is what a probe does now.
func probeText(p mover.Probing) string {
	switch p.Phase {
	case mover.ProbeConnect:
		return "connects"
	case mover.ProbeIdle:
		return "round trips without load"
	}
	return fmt.Sprintf("%s, %s, %s", connections(p.Connections), known(p.Rate), size(p.Bytes))
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// probedWhen is a path's last probe in a table.
func probedWhen(p *mover.Probed) string {
	if p == nil {
		return "-"
	}
	text := moment(p.At)
	if p.All > 0 {
		text += fmt.Sprintf(": %s / %s", known(p.One), known(p.All))
	}
	if p.Short {
		text += ", short"
	}
	return text
}

func (c *cli) describeProbes(list []agent.SitePath) error {
	for i, p := range list {
		if i > 0 {
			fmt.Fprintln(c.out)
		}
		if err := c.describeProbe(p); err != nil {
			return err
		}
	}
	return nil
}

// describeProbe tells what a probe has found. The product and the bound are of its own
// figures, or, where files moved, of what they have shown.
func (c *cli) describeProbe(p agent.SitePath) error {
	found := *p.Probe
	of := p
	if found.All > 0 {
		of.SeenPath = mover.SeenPath{MinRTT: found.Idle, Loss: found.Loss, MSS: p.MSS, Best: max(found.One, found.All)}.Bounded()
	}
	lines := [][2]string{{"path", pathName(p)}, {"RTT", millis(found.Idle)}}
	add := func(name, format string, values ...any) {
		lines = append(lines, [2]string{name, fmt.Sprintf(format, values...)})
	}
	if found.Loaded > 0 {
		lines[1][1] += ", under load " + millis(found.Loaded)
	}
	if found.One > 0 {
		add("1 connection", "%s", known(found.One))
	}
	if found.All > 0 && found.Connections > 1 {
		add(connections(found.Connections), "%s", known(found.All))
	}
	if found.Short {
		add("ended early", "its %s were sent before its time was over: the path may bring more (--bytes)", size(found.Bytes))
	}
	if found.Bytes > 0 {
		add("sent again", "%.2f %%", 100*found.Loss)
	}
	if found.Busy {
		add("load", "none, or no more: files move on this path; what follows is what they show")
	}
	if of.BDP > 0 {
		add("BDP", "%s", bdp(of))
	}
	if b := bound(of.SeenPath); of.Bound > 0 && b != "none" {
		add("bound", "%s for a connection that takes such a loss for congestion", b)
	}
	if p.Congestion != "" {
		add("control", "%s", p.Congestion)
	}
	if b := buffersOf(p); b != "-" {
		add("buffers", "%s", b)
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(c.out, "%-15s%s\n", l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}
