package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

func (c *cli) paths() *cobra.Command {
	var probe probeFlags
	cmd := &cobra.Command{
		Use:   "paths [SITE...]",
		Short: "Show what transfers and probes have seen of the paths to other sites",
		Long: `paths lists the paths that this site's transfers have gone over, to all sites or to
those named, as the kernel of its DTN saw them meanwhile, over all connections of a path:

  RTT       round trip time, the least and the last
  Resent    share of the bytes that had to be sent again; what is long ago counts less
  Best      the most that arrived in some seconds, and Last in the last ones
  BDP       bandwidth-delay product: the bytes in flight that fill the path at its best
  Bound     what this loss leaves one connection whose congestion control takes it for
            congestion (Mathis et al., 1997): as many are needed as the path is faster;
            none, where there is no loss, or the bound is far above all that has arrived
  Buffers   share of the time that connections waited for a larger buffer
  Probed    when it was last probed, and what then arrived over one connection and over
            all; "short": its bytes were over before its time, perhaps before TCP had
            opened its windows, so that the path may bring more (see --bytes)

Where a terminal is too narrow for the table, each path is a block.

A path with a low bound needs more connections or BBR, one with waits for buffers larger
ones: glance-dtn transfers ID says which.

With --probe this site's DTN measures the paths to the sites named, one after the other:
round trips before and beside load, what arrives over one connection and over as many as
a transfer would have, and what is sent again after slow start. It sends bytes that the
other DTN throws away, keeps the limits of both, and puts no load on a path on which files
move. Where files to a site go through a relay, it is the path to the relay, and where the
agent chooses, those to the site and to each relay; how the relay reaches the site is
probed there. What it finds counts among what transfers see.`,
		Example: `  glance-dtn paths
  glance-dtn paths --probe B
  glance-dtn paths --probe B C --time 10s --bytes 2GiB -o json`,
		Args:              args("[SITE]..."),
		ValidArgsFunction: c.completeSites,
		RunE: func(cmd *cobra.Command, sites []string) error {
			if err := probe.check(cmd, sites); err != nil {
				return err
			}
			if probe.wanted {
				return c.probePaths(cmd.Context(), sites, probe)
			}
			list, err := c.daemon().Paths(cmd.Context())
			if err != nil {
				return err
			}
			list, err = c.pathsTo(cmd.Context(), list, sites)
			if err != nil {
				return err
			}
			return c.print(list, func() error { return c.pathTable(list, sites) })
		},
	}
	probe.flags(cmd)
	return cmd
}

// pathsTo are those of the list that lead to one of the sites, or to a relay that is one of
// them; all, where none is named. It is an error when there is none for a site that is no peer.
func (c *cli) pathsTo(ctx context.Context, list []agent.SitePath, sites []string) ([]agent.SitePath, error) {
	leads := func(p agent.SitePath, site string) bool { return site == p.Site || slices.Contains(p.Sites, site) }
	var failed error
	for _, s := range sites {
		if slices.ContainsFunc(list, func(p agent.SitePath) bool { return leads(p, s) }) {
			continue
		}
		failed = errors.Join(failed, c.unknown(ctx, s))
	}
	return slices.DeleteFunc(list, func(p agent.SitePath) bool {
		return len(sites) > 0 && !slices.ContainsFunc(sites, func(s string) bool { return leads(p, s) })
	}), failed
}

// unknown is the agent's error where it has no such peer.
func (c *cli) unknown(ctx context.Context, site string) error {
	if _, err := c.daemon().Ways(ctx, site, "", 1); errors.Is(err, agent.ErrNoPeer) {
		return err
	}
	return nil
}

func (c *cli) pathTable(list []agent.SitePath, sites []string) error {
	if len(list) == 0 {
		path, site := "no path", "SITE"
		if len(sites) > 0 {
			path, site = "no path to "+strings.Join(sites, ", "), strings.Join(sites, " ")
		}
		_, err := fmt.Fprintf(c.out, "%s was seen yet: transfers of more than a few seconds show them, and glance-dtn paths --probe %s\n", path, site)
		return err
	}
	header := table.Row{"Path", "RTT", "Resent", "Best", "Last", "BDP", "Bound", "Control", "Buffers", "Seen"}
	probed := slices.ContainsFunc(list, func(p agent.SitePath) bool { return p.Probe != nil })
	if probed {
		header = append(header, "Probed")
	}
	var rows []table.Row
	for _, p := range list {
		row := table.Row{
			pathName(p), millis(p.MinRTT) + " / " + millis(p.RTT), fmt.Sprintf("%.2f %%", 100*p.Loss), known(p.Best), known(p.Rate),
			bdp(p), bound(p.SeenPath), cmp.Or(p.Congestion, "-"), buffersOf(p), moment(p.Seen),
		}
		if probed {
			row = append(row, probedWhen(p.Probe))
		}
		rows = append(rows, row)
	}
	picture := render(header, rows)
	if width := terminalWidth(c.out); width > 0 && text.LongestLineLen(picture) > width {
		picture = blocks(header, rows)
	}
	_, err := fmt.Fprintln(c.out, picture)
	return err
}

// moment is clock without the seconds.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

// pathName is which sites a path leads to, and through which one.
func pathName(p agent.SitePath) string {
	var names []string
	for _, s := range p.Sites {
		if p.Site != "" && s != p.Site {
			s += " via " + p.Site
		}
		names = append(names, s)
	}
	if names == nil && p.Site != "" {
		names = []string{p.Site}
	}
	if names == nil {
		return p.Address
	}
	return strings.Join(names, ", ") + " (" + p.Address + ")"
}

// known is a network's rate in bits per second for a person, if there is one.
func known(bits float64) string {
	if bits <= 0 {
		return "-"
	}
	return mover.Rate(bits).Brief()
}

// boundMatters is how much more than the best that has arrived a bound may be, and still be
// worth a look: another path, or more of this one, may be that much faster.
const boundMatters = 10

// bound is what loss leaves one connection, where that matters.
func bound(p mover.SeenPath) string {
	if p.Best > 0 && (p.Bound <= 0 || p.Bound > boundMatters*p.Best) {
		return "none"
	}
	return known(p.Bound)
}

func bdp(p agent.SitePath) string {
	if p.BDP == 0 {
		return "-"
	}
	return size(p.BDP)
}

func buffersOf(p agent.SitePath) string {
	var some []string
	for _, b := range []struct {
		name  string
		share float64
	}{{"send", p.SendLimited}, {"receive", p.RecvLimited}} {
		if b.share >= 0.01 {
			some = append(some, fmt.Sprintf("%s %.0f %%", b.name, 100*b.share))
		}
	}
	if len(some) == 0 {
		return "-"
	}
	return strings.Join(some, ", ")
}
