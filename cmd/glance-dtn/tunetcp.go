package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/hosttcp"
)

// tcpTuning is what the flags of tune tcp say.
type tcpTuning struct {
	bandwidth, nic, congestion, state string
	rtt                               time.Duration
	apply, undo, dryRun               bool
}

// tunedTCP is the result: what the path asks for, what this host has, and what was set.
type tunedTCP struct {
	Bandwidth float64          `json:"bandwidth_bps"`
	RTT       float64          `json:"rtt_seconds"`
	Buffers   hosttcp.Buffers  `json:"buffers"`
	NIC       hosttcp.NIC      `json:"nic"`
	Memory    int64            `json:"memory"`
	DryRun    bool             `json:"dry_run,omitempty"`
	Settings  []hosttcp.Change `json:"settings"`
	Advice    []hosttcp.Advice `json:"advice"` // what nothing here does
}

func (c *cli) tuneTCP() *cobra.Command {
	var t tcpTuning
	cmd := &cobra.Command{
		Use:   "tcp --rtt TIME",
		Short: "Fit the TCP of this host to the path to another site",
		Long: `tcp plans what this host's kernel should have for a path of a bandwidth and a round
trip time: how far socket buffers may grow, which congestion control connections have,
how packets leave. Of several paths take the one with the largest product. It prints
what each setting is and should be, why, and what KISTI's document of 2017 and ESnet's
pages of today have. Nothing is changed without --apply.

A setting that is larger than the path needs stays. Three things keep a setting from being
set, and none of them the others: the kernel, or this network namespace, has no such setting
(absent); nobody can change it here, as in a container (read-only); you may not (not
permitted). A value that the kernel does not take is refused.

--apply sets them at once, and for the next start of the host in
/etc/sysctl.d/zz-glance-dtn.conf. Done again with another path it sets what that one
needs. --undo puts back exactly what was there before, also after a restart, or after an
--apply that was killed; what others have set since stays, and is told.

What such a file cannot keep is advice, with the commands that do it and take it back:
rings, queues and MTU of the NIC, its interrupts, the CPUs' governor.

Exit code 3 says that some of the settings which this kernel has could not be set, 1 that
none could; a setting that is as it should be counts as set.`,
		Example: `  glance-dtn tune tcp --rtt 200ms --bandwidth 10Gbit/s
  glance-dtn tune tcp --rtt 200ms --dry-run         # with the NIC's bandwidth: only what --apply would change
  glance-dtn tune tcp --rtt 200ms --apply
  glance-dtn tune tcp --undo`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if t.state == "" {
				t.state, err = tuneState("tcp")
			}
			if err == nil {
				t.state, err = filepath.Abs(t.state)
			}
			if err != nil {
				return err
			}
			h := hosttcp.New(t.state)
			if t.undo {
				return c.undoTCP(h, t)
			}
			ctx, stop := untilHangup(cmd.Context())
			defer stop()
			return interrupted(ctx, c.tunePath(ctx, h, t))
		},
	}
	f := cmd.Flags()
	f.DurationVar(&t.rtt, "rtt", 0, "round trip time of the path, as ping(8) and glance-dtn transfers show it")
	f.StringVar(&t.bandwidth, "bandwidth", "", "`RATE` of the path's narrowest link, as in 10Gbit/s (default that of the NIC)")
	f.StringVar(&t.nic, "nic", "", "`INTERFACE` that the path begins with (default that of the default route)")
	f.StringVar(&t.congestion, "congestion", "", "congestion control to have, such as bbr, htcp or cubic (default the first of these that the kernel has; on a path of less than 2 ms as it is)")
	f.BoolVar(&t.apply, "apply", false, "set what is planned")
	f.BoolVar(&t.undo, "undo", false, "put back what --apply has changed")
	f.BoolVar(&t.dryRun, "dry-run", false, "say only what --apply or --undo would change, and change nothing")
	f.StringVar(&t.state, "state", "", "`DIR` of the undo record (default /var/lib/glance-dtn/tcp as root, else ~/.local/state/glance-dtn/tcp)")
	complete(cmd, "congestion", cobra.FixedCompletions([]string{"bbr", "htcp", "cubic"}, cobra.ShellCompDirectiveNoFileComp))
	for flag := range strings.FieldsSeq("rtt bandwidth nic congestion apply") {
		cmd.MarkFlagsMutuallyExclusive("undo", flag) // beside which it means nothing
	}
	return cmd
}

// tunePath plans for the path that the flags name, and applies that.
func (c *cli) tunePath(ctx context.Context, h *hosttcp.Host, t tcpTuning) error {
	var faults []error
	if t.rtt <= 0 {
		faults = append(faults, errors.New("--rtt: want the round trip time of the path, as in 200ms: ping(8) measures it"))
	}
	bandwidth, err := mover.ParseRate(t.bandwidth)
	if t.bandwidth != "" && (err != nil || bandwidth <= 0 || bandwidth == mover.Unlimited) {
		faults = append(faults, fmt.Errorf("--bandwidth %s: want a rate, as in 10Gbit/s or 500Mbit/s", t.bandwidth))
	}
	if t.apply && !t.dryRun && os.Geteuid() != 0 {
		faults = append(faults, errors.New("--apply changes the kernel's settings, which needs root: run it with sudo"))
	}
	if len(faults) > 0 {
		return usagef("%w", errors.Join(faults...))
	}
	state, err := h.Read(ctx, t.nic)
	if err != nil {
		return err
	}
	path := tuning.Path{Bandwidth: float64(bandwidth), RTT: t.rtt}
	if t.bandwidth == "" {
		if path.Bandwidth = float64(state.NIC.Speed); path.Bandwidth == 0 {
			return usagef("--bandwidth: %s: say that of the path, as in 10Gbit/s", noSpeed(state.NIC))
		}
	}
	changes, err := hosttcp.Plan(path, state, hosttcp.Options{Congestion: t.congestion})
	if err != nil {
		return err
	}
	if t.apply && !t.dryRun {
		if changes, err = h.Apply(ctx, changes); err != nil {
			return err
		}
	}
	out := tunedTCP{
		Bandwidth: path.Bandwidth, RTT: path.RTT.Seconds(), Buffers: hosttcp.Fit(path, state.Memory), NIC: state.NIC, Memory: state.Memory,
		DryRun: t.dryRun, Settings: changes, Advice: append([]hosttcp.Advice{}, hosttcp.Advise(path, state)...),
	}
	if err := c.print(out, func() error { return c.tcpTable(out) }); err != nil || !t.apply || t.dryRun {
		return err
	}
	return withCode(tcpCode(changes))
}

func noSpeed(n hosttcp.NIC) string {
	if n.Name == "" {
		return "this host has no default route, so no NIC to go by (--nic names one)"
	}
	return "the driver of " + n.Name + " does not tell its speed"
}

// tcpCode tells by the exit code that settings which the kernel has were not set.
func tcpCode(changes []hosttcp.Change) int {
	is := func(all ...hosttcp.Status) bool {
		return slices.ContainsFunc(changes, func(c hosttcp.Change) bool { return slices.Contains(all, c.Status) })
	}
	switch {
	case !is(hosttcp.ReadOnly, hosttcp.NotPermitted, hosttcp.Refused):
		return exitDone
	case is(hosttcp.Set, hosttcp.Kept):
		return exitPartly
	}
	return exitFailed
}

func (c *cli) tcpTable(out tunedTCP) error {
	if out.DryRun {
		return c.tcpDiff(out.Settings)
	}
	rtt := time.Duration(out.RTT * float64(time.Second))
	fmt.Fprintf(c.out, "%s with an RTT of %s: %s on the way on the full path.\nA socket has to hold %s of it, for which the kernel takes %s.\n",
		mover.Rate(out.Bandwidth).Brief(), millis(rtt), size(out.Buffers.BDP), size(out.Buffers.Socket), size(out.Buffers.System))
	if out.Buffers.Limited != "" {
		fmt.Fprintf(c.out, "That is less than the path asks for: %s.\n", out.Buffers.Limited)
	}
	fmt.Fprintln(c.out)
	now := "Now"
	var rows, others []table.Row
	for _, s := range out.Settings {
		if s.Status == hosttcp.Set {
			now = "Was"
		}
		plan := spaced(s.To)
		if s.Status == hosttcp.Kept {
			plan = ""
		}
		rows = append(rows, table.Row{s.Key, s.Status, cmp.Or(spaced(s.From), "-"), cmp.Or(plan, "-")})
		if s.KISTI != "" || s.ESnet != "" {
			others = append(others, table.Row{s.Key, cmp.Or(s.KISTI, "-"), cmp.Or(s.ESnet, "-")})
		}
	}
	if err := c.table(table.Row{"Setting", "Status", now, "Plan"}, rows); err != nil {
		return err
	}
	for _, s := range out.Settings {
		if s.Status == hosttcp.Kept {
			continue
		}
		fmt.Fprintf(c.out, "\n%s: %s.\n  (%s)\n", s.Key, s.Reason, s.Source)
		if s.Error != "" {
			fmt.Fprintf(c.out, "  The kernel says: %s.\n", s.Error)
		}
		for _, name := range s.Later {
			fmt.Fprintf(c.out, "  %s sets it, too, and is read later when the host starts: take it out there.\n", name)
		}
	}
	if len(others) > 0 {
		fmt.Fprint(c.out, "\nWhat others have for such a path:\n\n")
		if err := c.table(table.Row{"Setting", "KISTI 2017", "ESnet"}, others); err != nil {
			return err
		}
	}
	for i, a := range out.Advice {
		if i == 0 {
			fmt.Fprintln(c.out, "\nAdvice, which you follow by hand:")
		}
		fmt.Fprintf(c.out, "\n%s: %s, better %s: %s.\n  (%s)\n", a.About, a.Now, a.Want, a.Reason, a.Source)
		for _, line := range a.Command {
			fmt.Fprintf(c.out, "    %s\n", line)
		}
		for _, line := range a.Undo {
			fmt.Fprintf(c.out, "  taken back by: %s\n", line)
		}
		if a.Keep != "" {
			fmt.Fprintf(c.out, "  kept by: %s\n", a.Keep)
		}
	}
	return nil
}

// tcpDiff prints what --apply would change as diff(1) does.
func (c *cli) tcpDiff(changes []hosttcp.Change) error {
	some := false
	for _, s := range changes {
		switch s.Status {
		case hosttcp.Kept:
			continue
		case hosttcp.ToSet:
			fmt.Fprintf(c.out, "-%s = %s\n+%s = %s\n", s.Key, spaced(s.From), s.Key, spaced(s.To))
		case hosttcp.Absent:
			fmt.Fprintf(c.out, " %s: absent\n", s.Key)
		default:
			fmt.Fprintf(c.out, " %s = %s: %s, would be %s\n", s.Key, spaced(s.From), s.Status, spaced(s.To))
		}
		some = true
	}
	if !some {
		fmt.Fprintln(c.out, "--apply would change nothing.")
	}
	return nil
}

// spaced is a setting's value in one line; the kernel has tabs in it.
func spaced(value string) string { return strings.Join(strings.Fields(value), " ") }

// undoTCP puts back what --apply has changed.
func (c *cli) undoTCP(h *hosttcp.Host, t tcpTuning) error {
	says, err := h.Undoable()
	if !t.dryRun && len(says) > 0 {
		says, err = h.Undo()
	}
	return c.undone(says, err, t.dryRun, "Would be done:")
}
