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
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning/routing"
)

// planned is what plan was asked for.
type planned struct {
	to, segments, size, present string
	explain                     bool
}

func (c *cli) planWay() *cobra.Command {
	var p planned
	cmd := &cobra.Command{
		Use:   "plan {[IMAGE] --to SITE | FROM TO --segments FILE}",
		Short: "Tell which way files go best: straight, or through a third DTN",
		Long: `plan predicts how long a file takes to another site's DTN: straight, stored at a
third DTN on the way, or cut through there. It says which way to take, and why, from
what was measured of the paths between each two DTNs. Nothing is changed or sent.

With --to, it asks the agent what the DTNs have seen of the paths: this site's own of
those to SITE and to each relay of that peer (see via in agent.yaml), each relay of its
own path to SITE. For a peer whose via has mode auto it tells the way that the agent
would choose now. The size is the image's, or that of --size.

What is predicted is the network's time alone. So with --to, plan tells beside it what
the last transfers of files from a quarter to four times that size have achieved by that
way, disks and hashes included, and what they waited for.

With --segments, it takes from FILE what was measured: a JSON list with one object for
each path and direction, of which from, to, bandwidth and rtt_ns are needed:

  [{"from": "A", "to": "R", "bandwidth": 1e9, "rtt_ns": 5000000, "loss": 0.0001,
    "congestion": "cubic", "buffer": 67108864, "streams": 4}, ...]

bandwidth is in bits per second, rtt_ns the round trip time in nanoseconds, loss the
share of packets that are lost, congestion the congestion control of the sending DTN
(cubic, reno, htcp or bbr), buffer the largest TCP buffer in bytes, streams the
connections of a transfer.

With --present, the way that files go now, that stays unless another one saves a tenth.
The agent knows it by itself.`,
		Example: `  glance-dtn plan debian-12 --to B --explain
  glance-dtn plan A B --segments paths.json --size 4GiB --explain
  glance-dtn plan A B --segments paths.json --present cut:R`,
		ValidArgsFunction: c.completeImages,
		Args: func(cmd *cobra.Command, got []string) error {
			switch live, file := cmd.Flags().Changed("to"), cmd.Flags().Changed("segments"); {
			case live && file:
				return errors.New("--to asks the agent and --segments reads a file: leave one of them out")
			case live && cmd.Flags().Changed("present"):
				return errors.New("--present: the agent knows the present way; leave it out with --to")
			case live && len(got) > 0 && cmd.Flags().Changed("size"):
				return fmt.Errorf("--size: image %s has a size; leave one of them out", got[0])
			case live:
				return args("[IMAGE]")(cmd, got)
			case file:
				return args("FROM", "TO")(cmd, got)
			}
			return errors.New("want --to SITE, for what the agent knows of the ways there, or --segments FILE")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("to") {
				if err := namesSites("to", p.to); err != nil {
					return err
				}
			}
			large, err := mover.ParseSize(p.size)
			switch {
			case err != nil:
				return usagef("--size %s: want a number of bytes, as in 4GiB", p.size)
			case large == 0:
				return usagef("--size %s: what has no bytes takes no way; want the size of a file, as in 4GiB", p.size)
			case p.to != "":
				return c.planLive(cmd.Context(), p, strings.Join(args, ""), large)
			}
			return c.planFile(p, routing.Question{From: args[0], To: args[1], Size: large})
		},
	}
	cmd.Flags().StringVar(&p.to, "to", "", "`SITE` to send to, by what the agent knows of the ways there")
	cmd.Flags().StringVar(&p.segments, "segments", "", "`FILE` with what was measured of each path; -, standard input")
	cmd.Flags().StringVar(&p.size, "size", "1GiB", "`SIZE` of the file")
	cmd.Flags().StringVar(&p.present, "present", "", "`WAY` that files go now: direct, store:SITE or cut:SITE (default none)")
	cmd.Flags().BoolVar(&p.explain, "explain", false, "show all ways, segment by segment")
	complete(cmd, "to", c.completeSites)
	return cmd
}

// planFile plans from a file of segments.
func (c *cli) planFile(p planned, q routing.Question) (err error) {
	if p.present != "" {
		if q.Present, err = parseWay(p.present, q); err != nil {
			return usagef("--present %s: %w", p.present, err)
		}
	}
	segments, err := readSegments(p.segments)
	if err != nil {
		return err
	}
	d, err := routing.Plan(segments, q)
	if err != nil {
		return fmt.Errorf("%s: %w", p.segments, err)
	}
	return c.print(d, func() error {
		if err := c.printPlan(q, d, d.Why, p.explain); err != nil {
			return err
		}
		return c.printConfig(q, d)
	})
}

// livePlan is what the agent knows of the ways to a site, and what follows from it.
type livePlan struct {
	agent.Ways
	Decision *routing.Decision `json:"decision,omitempty"`
	Achieved *achieved         `json:"achieved,omitempty"` // by the way of the decision
}

// planLive plans from what the agent knows.
func (c *cli) planLive(ctx context.Context, p planned, image string, large int64) error {
	if image != "" {
		large = 0
	}
	w, err := c.daemon().Ways(ctx, p.to, image, large)
	if err != nil {
		return err
	}
	q := routing.Question{From: w.From, To: w.To, Size: w.Size, Present: wayOf(w.Present)}
	live := livePlan{Ways: w}
	segments, odd := segmentsOf(w.Hops)
	live.Unknown = append(live.Unknown, odd...)
	// Where too little is measured the agent sends files straight, and asks for no decision.
	if d, err := routing.Plan(segments, q); err == nil && (!w.Chosen || d.Way.Equal(*wayOf(&w.Route.Relay))) {
		live.Decision = &d
		list, err := c.daemon().Transfers(ctx)
		if err != nil { // the plan is good without it
			live.Unknown = append(live.Unknown, fmt.Sprintf("what transfers to %s have achieved: %v", w.To, err))
		}
		live.Achieved = achievedBy(list, w.To, d.Way, q.Size)
	}
	return c.print(live, func() error { return c.printLive(q, live, p.explain) })
}

func (c *cli) printLive(q routing.Question, l livePlan, explain bool) error {
	d := cmp.Or(l.Decision, &routing.Decision{Why: fmt.Sprintf("how long a file takes to site %s cannot be predicted", l.To)})
	why := d.Why
	if l.Chosen {
		why = l.Route.Why
	}
	if err := c.printPlan(q, *d, why, explain && l.Decision != nil); err != nil {
		return err
	}
	if l.Achieved != nil {
		fmt.Fprintf(c.out, "\n%s\n", l.Achieved.about(q))
	}
	if len(l.Unknown) > 0 && (explain || l.Decision == nil) {
		fmt.Fprintln(c.out)
		for _, u := range l.Unknown {
			fmt.Fprintln(c.out, "not predicted:", u)
		}
		fmt.Fprintln(c.out, "A path is measured while transfers of more than a few seconds use it, or by glance-dtn paths --probe where it begins.")
	}
	switch {
	case l.Chosen:
		_, err := fmt.Fprintf(c.out, "\nThe agent of %s chooses anew for each file, and leaves a way when another one saves a tenth.\n", l.From)
		return err
	case l.Decision == nil || d.Way.Equal(*cmp.Or(q.Present, &routing.Way{})): // as it is set
		return nil
	}
	return c.printConfig(q, *d)
}

// parseWay reads direct, store:SITE or cut:SITE.
func parseWay(s string, q routing.Question) (*routing.Way, error) {
	mode, site, relayed := strings.Cut(s, ":")
	switch {
	case s == "direct":
		return &routing.Way{}, nil
	case !relayed || site == "" || !slices.Contains([]mover.RelayMode{mover.StoreForward, mover.CutThrough}, mover.RelayMode(mode)):
		return nil, errors.New("want direct, store:SITE or cut:SITE")
	case site == q.From || site == q.To:
		return nil, fmt.Errorf("site %s is an end of the way; name the site between %s and %s, or say direct", site, q.From, q.To)
	}
	return &routing.Way{Via: []string{site}, Mode: mover.RelayMode(mode)}, nil
}

func (c *cli) printPlan(q routing.Question, d routing.Decision, why string, explain bool) error {
	if _, err := fmt.Fprintf(c.out, "%s\n", why); err != nil {
		return err
	}
	if len(d.Ways) > 0 {
		fmt.Fprintln(c.out, "That is the network's time: a disk, or a CPU that hashes, makes it longer where it is slower.")
	}
	if !explain {
		return nil
	}
	if _, err := fmt.Fprintln(c.out); err != nil {
		return err
	}
	var rows []table.Row
	for _, w := range d.Ways {
		rows = append(rows, table.Row{w.Way, "", span(seconds(w.Seconds)), known(w.Rate), ""})
		for _, h := range w.Hops {
			rows = append(rows, table.Row{"", h.From + " → " + h.To, span(seconds(h.Opening + h.Seconds)), known(h.Rate), h.Limit})
		}
	}
	return c.table(table.Row{"way", "segment", "time", "rate", "held by"}, rows)
}

// printConfig says what to set for the way that was planned.
func (c *cli) printConfig(q routing.Question, d routing.Decision) error {
	text := fmt.Sprintf("leave out via: of peer %s", q.To)
	if len(d.Way.Via) == 1 {
		via := d.Way.Via[0]
		text = fmt.Sprintf("via: {site: %s, address: HOST:7444, mode: %s} of peer %s; %s (relays: [%s] of peer %s) and the DTN of %s (relay: routes) have to allow it",
			via, d.Way.Mode, q.To, q.To, via, q.From, via)
	}
	_, err := fmt.Fprintf(c.out, "\nIn agent.yaml of %s: %s.\n", q.From, text)
	return err
}

// seconds is as a time.Duration, the longest where it is longer.
func seconds(s float64) time.Duration {
	const longest = 1<<63 - 1
	if s >= longest/1e9 {
		return longest
	}
	return time.Duration(s * 1e9)
}
