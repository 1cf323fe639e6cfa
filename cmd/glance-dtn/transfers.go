package main

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

// watchEvery is how often --watch asks: a DTN looks at its connections as often.
const watchEvery = time.Second

func (c *cli) transfers() *cobra.Command {
	var all, watch bool
	cmd := &cobra.Command{
		Use:   "transfers [ID]",
		Short: "Show what the DTN moves: rate, path, bottleneck",
		Long: `transfers lists what this site's DTN moves to other sites and what waits for it; with
--all, what it has moved, too. Where it is a relay, the files that pass through to other
sites are listed below, as is what waits here until it can go on. With an id, of which the
first digits suffice, it shows that transfer, its path and its parameters.

The bottleneck is measured: the place that the transfer waits for, and for how much of
the last seconds, or of all of it once it has ended. It is the source's disk or CPU, the
network, the destination's CPU (which computes the image's hash) or disk, or a limit in
the configuration of one of the two DTNs. Rate and ETA are those of the last seconds, too.

--watch goes on, and prints a line for each transfer that ends: of one transfer until
that has ended, of all until interrupted. A file that passes through has ended when it is
here no longer. With -o json each line is a transfer that has changed, with -o yaml each
document. While the DTN or its agent does not answer, it waits for a minute.`,
		Example: `  glance-dtn transfers --watch
  glance-dtn transfers 3fa2
  glance-dtn transfers set 3fa2 --parallelism 8`,
		Args: args("[ID]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := wantedTransfers(args)
			if err != nil {
				return err
			}
			if watch {
				return c.watchTransfers(cmd.Context(), func(ctx context.Context) ([]agent.Transfer, error) {
					return c.listTransfers(ctx, wanted)
				}, strings.Join(args, ""))
			}
			list, err := c.listTransfers(cmd.Context(), func(t agent.Transfer) bool {
				return wanted(t) && (all || len(args) > 0 || !t.State.Final())
			})
			switch {
			case err != nil:
				return err
			case len(args) == 0:
				return c.print(list, func() error { return c.transferTable(list, all) })
			case len(list) == 0:
				return noSuchTransfer(args[0])
			case len(list) == 1:
				return c.print(list[0], func() error { return c.describeTransfer(list[0]) })
			}
			return fmt.Errorf("%d transfers have an id that begins with %s: `glance-dtn transfers --all` lists them", len(list), args[0])
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "those that have ended, too")
	cmd.Flags().BoolVar(&watch, "watch", false, "go on")
	cmd.AddCommand(c.setTransfer())
	return cmd
}

func (c *cli) setTransfer() *cobra.Command {
	var p mover.PCP
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Change a transfer while it runs or waits",
		Long: `set changes how a transfer goes on, by id or the first digits of it. What is not said
stays. Connections are opened or closed at once, nothing is sent twice, and a DTN that
is restarted keeps what was set.

Transfers to one site share their connections: there are as many as one of them asks for.`,
		Example: `  glance-dtn transfers set 3fa2 --parallelism 8 --pipelining 32`,
		Args:    args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := wantedTransfers(args); err != nil {
				return err
			}
			for _, v := range []struct {
				flag   string
				n, top int
			}{
				{"pipelining", p.Pipelining, mover.MaxPipelining},
				{"concurrency", p.Concurrency, mover.MaxConcurrency},
				{"parallelism", p.Parallelism, mover.MaxParallelism},
			} {
				if cmd.Flags().Changed(v.flag) && (v.n < 1 || v.n > v.top) {
					return usagef("--%s %d: it is 1 to %d", v.flag, v.n, v.top)
				}
			}
			if p == (mover.PCP{}) {
				return usagef("nothing to set: give --pipelining, --concurrency or --parallelism")
			}
			t, err := c.daemon().Adjust(cmd.Context(), mover.TransferID(args[0]), p)
			if err != nil {
				return err
			}
			return c.print(t, func() error { return c.describeTransfer(t) })
		},
	}
	cmd.Flags().IntVar(&p.Pipelining, "pipelining", 0, "blocks in flight on a connection")
	cmd.Flags().IntVar(&p.Concurrency, "concurrency", 0, "files whose blocks take turns")
	cmd.Flags().IntVar(&p.Parallelism, "parallelism", 0, "connections")
	return cmd
}

// transferID is a transfer's id or its beginning.
var transferID = regexp.MustCompile(`^[0-9a-f]+$`)

// wantedTransfers selects the transfers with the one id in args, all when there is none.
func wantedTransfers(args []string) (func(agent.Transfer) bool, error) {
	if len(args) == 0 {
		return func(agent.Transfer) bool { return true }, nil
	}
	if !transferID.MatchString(args[0]) {
		return nil, usagef("%q is not a transfer's id: `glance-dtn transfers` lists the transfers, the id is the first column", args[0])
	}
	return func(t agent.Transfer) bool { return strings.HasPrefix(string(t.ID), args[0]) }, nil
}

func (c *cli) listTransfers(ctx context.Context, keep func(agent.Transfer) bool) ([]agent.Transfer, error) {
	list, err := c.daemon().Transfers(ctx)
	return slices.DeleteFunc(list, func(t agent.Transfer) bool { return !keep(t) }), err
}

func noSuchTransfer(id string) error {
	return fmt.Errorf("no transfer has an id that begins with %s: `glance-dtn transfers --all` lists them", id)
}

// watchTransfers shows the transfers that are listed until ctx ends, which is no failure;
// those with an id until they have ended. What passes through has no end to be told: it is
// listed no more.
func (c *cli) watchTransfers(ctx context.Context, all func(context.Context) ([]agent.Transfer, error), id string) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	w := &watched{cli: c, id: id, began: time.Now(), last: map[mover.TransferID]agent.Transfer{}}
	var answered time.Time
	for silent := false; ; {
		list, err := all(ctx)
		switch {
		case ctx.Err() != nil:
			return errInterrupted
		case err == nil:
			answered, silent = time.Now(), false
			if over, err := w.show(list); err != nil || over {
				return err
			}
		case time.Since(answered) > agentMayRest:
			return err
		case !silent:
			silent = true
			if err := w.note(fmt.Sprintf("%v; this goes on when it does", err)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return errInterrupted
		case <-tick.C:
		}
	}
}

// watched is what a watch has shown.
type watched struct {
	*cli
	id    string
	began time.Time
	last  map[mover.TransferID]agent.Transfer
	open  []agent.Transfer // that had not ended
	drawn int              // lines on the terminal below those that stay
}

// show tells what is new in a list, and whether the transfers with the id have ended.
func (w *watched) show(list []agent.Transfer) (over bool, err error) {
	news := passedOn(w.last, list)
	if w.id != "" && len(list)+len(news) == 0 {
		return true, noSuchTransfer(w.id)
	}
	if w.format != "table" { // where each entry is a transfer
		news = nil
	}
	w.open = slices.DeleteFunc(slices.Clone(list), func(t agent.Transfer) bool { return t.State.Final() })
	for _, t := range list {
		before, known := w.last[t.ID]
		fresh := !t.State.Final() || known && !before.State.Final() || w.id != "" || t.Ended.After(w.began)
		if w.last[t.ID] = t; !fresh || known && before == t {
			continue
		}
		switch {
		case w.format != "table":
			text, err := w.entry(t)
			if err != nil {
				return true, err
			}
			news = append(news, text)
		case t.State.Final():
			news = append(news, w.summary(t))
		}
	}
	w.drawn, err = w.redraw(w.drawn, news, w.open)
	return w.id != "" && len(w.open) == 0, err
}

// note tells a person what is no result.
func (w *watched) note(text string) (err error) {
	if w.format != "table" || !isTerminal(w.out) {
		_, err = fmt.Fprintln(w.err, text)
		return err
	}
	w.drawn, err = w.redraw(w.drawn, []string{text}, w.open)
	return err
}

// passedOn takes those that passed through, and are listed no more, out of what was there, and
// returns a line for each.
func passedOn(was map[mover.TransferID]agent.Transfer, list []agent.Transfer) (lines []string) {
	for id, t := range was {
		if t.From != "" && !slices.ContainsFunc(list, func(t agent.Transfer) bool { return t.ID == id }) {
			delete(was, id)
			lines = append(lines, fmt.Sprintf("%s  %s  is no longer here", shortTransfer(id), transferRoute(t)))
		}
	}
	slices.Sort(lines)
	return lines
}

// redraw prints the lines that stay, and on a terminal below them the transfers that have
// not ended, in place of the lines that were drawn last. It returns how many these are now.
func (c *cli) redraw(drawn int, news []string, open []agent.Transfer) (int, error) {
	var stays bytes.Buffer
	for _, line := range news {
		fmt.Fprintln(&stays, line)
	}
	if c.format != "table" || !isTerminal(c.out) {
		_, err := c.out.Write(stays.Bytes())
		return 0, err
	}
	if drawn > 0 {
		fmt.Fprintf(behind(c.out), "\x1b[%dA\x1b[J", drawn)
	}
	width, height := terminalSize(c.out)
	picture := transferPicture(open, time.Now(), width, height)
	_, err := fmt.Fprintf(c.out, "%s%s\n", stays.Bytes(), picture)
	return strings.Count(picture, "\n") + 1, err
}

// transferPicture is the table of transfers as a terminal shows it whole: what would wrap is
// cut, and what would scroll off, the line of the cursor included, is counted.
func transferPicture(list []agent.Transfer, now time.Time, width, height int) string {
	header, rows := transferRows(list, now)
	header, rows = dropSpare(header, rows, width, spareOfTransfers...)
	more := ""
	if most := max(height-2, 2); len(rows) > most {
		more = fmt.Sprintf("\nand %d more", len(rows)-most+1)
		rows = rows[:most-1]
	}
	cutNotes(header, rows, width)
	return cutLines(render(header, rows), width) + more
}

func (c *cli) transferTable(list []agent.Transfer, all bool) error {
	if len(list) == 0 {
		more := ""
		if !all {
			more = " now; --all lists those that have ended"
		}
		_, err := fmt.Fprintf(c.out, "no transfers%s\n", more)
		return err
	}
	header, rows := transferRows(list, time.Now())
	if width := terminalWidth(c.out); width > 0 {
		header, rows = dropSpare(header, rows, width, spareOfTransfers...)
	}
	return c.list(header, rows)
}

// spareOfTransfers are the columns that a narrow terminal does without: `transfers ID` has them.
var spareOfTransfers = []string{"Lanes", "RTT", "Resent"}

func transferRows(list []agent.Transfer, now time.Time) (table.Row, []table.Row) {
	var rows []table.Row
	var priorities []mover.Priority
	for _, t := range list {
		priorities = append(priorities, t.Priority)
		row := table.Row{shortTransfer(t.ID), transferRoute(t), string(t.State), portion(t), "-", "-", "-", "-", "-", note(t)}
		if t.State == mover.Running {
			row[4], row[8] = known(t.Present), rest(t)
			row[5] = fmt.Sprint(t.Way.Lanes)
		}
		if p := t.Way.Path; p.RTT > 0 {
			row[6], row[7] = millis(p.RTT), resent(p)
		}
		rows = append(rows, row)
	}
	return withPriorities(table.Row{"Transfer", "Image", "State", "Moved", "Rate", "Lanes", "RTT", "Resent", "ETA", "Bottleneck"}, rows, 3, priorities)
}

// shortTransfer is as much of a transfer's id as tells it apart.
func shortTransfer(id mover.TransferID) string { return string(id[:min(len(id), 10)]) }

// transferRoute is what goes where.
func transferRoute(t agent.Transfer) string {
	if t.From != "" {
		name := strings.TrimPrefix(path.Base(t.Source.Name), t.To+"~"+t.From+"~")
		return fmt.Sprintf("%s: %s → %s", name, t.From, t.To)
	}
	if t.Job == "" {
		return path.Base(t.Source.Name) + " → " + t.Address
	}
	route := t.Image + " → " + t.To
	if t.Via.Site != "" {
		route += " via " + t.Via.Site
	}
	return route
}

// portion is how much of a file is at its destination, and how much at its relay.
func portion(t agent.Transfer) string {
	if t.Source.Size == 0 {
		return size(0)
	}
	text := fmt.Sprintf("%d %% of %s", 100*t.Arrived()/t.Source.Size, size(t.Source.Size))
	if t.Via.Site != "" {
		text += fmt.Sprintf(", %d %% at %s", 100*t.Moved/t.Source.Size, t.Via.Site)
	}
	return text
}

// rest is how long the rest takes at the present rate.
func rest(t agent.Transfer) string {
	if t.Present <= 0 {
		return "-"
	}
	return eta(time.Duration(8 * float64(t.Left()) / t.Present * float64(time.Second)))
}

// note is why a transfer failed, or what one that does not run waits for, or else its
// bottleneck.
func note(t agent.Transfer) string {
	switch {
	case t.Error != "":
		return t.Error
	case t.From != "", t.State == mover.Queued:
		return t.Waiting
	}
	return t.Way.Bottleneck.String()
}

// resent is how much of what TCP has sent it had to send again.
func resent(p mover.Path) string {
	if p.Sent == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f %%", 100*float64(p.Retransmits)/float64(p.Sent))
}

// summary is what became of a transfer, in one line.
func (c *cli) summary(t agent.Transfer) string {
	line := fmt.Sprintf("%s  %s  %s  %s", shortTransfer(t.ID), transferRoute(t), c.paint(string(t.State), transferColour(t.State)), size(t.Moved))
	if t.Ran > 0 {
		if n := t.Brought(); t.Via == (mover.Relay{}) && n < t.Moved && size(n) != size(t.Moved) {
			line += fmt.Sprintf(", %s of it", size(n))
		}
		line += fmt.Sprintf(" in %s, %s", span(t.Ran), known(t.Rate))
	}
	if p := t.Way.Path; p.RTT > 0 {
		line += fmt.Sprintf(", RTT %s, %s sent again", millis(p.RTT), resent(p))
	}
	switch {
	case t.Error != "":
		line += ": " + t.Error
	case t.Way.Bottleneck.Place != "":
		line += "; bottleneck: " + t.Way.Bottleneck.String()
	}
	return line
}

func transferColour(s mover.TransferState) text.Color {
	switch s {
	case mover.Done:
		return text.FgGreen
	case mover.Failed:
		return text.FgRed
	case mover.Cancelled:
		return text.Faint
	}
	return text.FgYellow
}

func (c *cli) describeTransfer(t agent.Transfer) error {
	lines := [][2]string{
		{"transfer", string(t.ID)},
		{"image", transferRoute(t)},
		{"file", strings.TrimSuffix(t.Source.Name+" → "+t.Address, " → ")},
		{"job", string(t.Job)},
		{"state", c.paint(string(t.State), transferColour(t.State))},
		{"priority", string(t.Priority)},
		{"moved", portion(t)},
	}
	add := func(name, format string, values ...any) {
		lines = append(lines, [2]string{name, fmt.Sprintf(format, values...)})
	}
	switch {
	case t.State == mover.Running:
		add("rate", "%s, %s on average", known(t.Present), known(t.Rate))
		add("left", "%s", rest(t))
	case t.Rate > 0:
		add("rate", "%s", known(t.Rate))
	}
	if p := t.Way.PCP; p != (mover.PCP{}) {
		add("pipelining", "%d", p.Pipelining)
		add("concurrency", "%d", p.Concurrency)
		add("parallelism", "%d", p.Parallelism)
	}
	if t.Way.Origin != "" {
		add("begun with", "%s", t.Way.Origin)
	}
	if t.Way.Tuned != "" {
		add("tuned", "%s", t.Way.Tuned)
	}
	if t.Way.Wire > 0 {
		add("lanes", "%d, %s on the wire", t.Way.Lanes, size(t.Way.Wire))
	}
	if p := t.Way.Path; p.RTT > 0 {
		add("path", "RTT %s, at least %s; %s sent again; window %s; %s", millis(p.RTT), millis(p.MinRTT), resent(p), size(p.Window), p.Congestion)
	}
	if b := t.Way.Bottleneck.String(); b != "" && t.State != mover.Queued {
		add("bottleneck", "%s", b)
	}
	if t.Way.Advice != "" {
		add("advice", "%s", t.Way.Advice)
	}
	if t.Waiting != "" {
		add("waits for", "%s", t.Waiting)
	}
	if t.Error != "" {
		add("error", "%s", t.Error)
	}
	for _, l := range lines {
		if l[1] != "" {
			if _, err := fmt.Fprintf(c.out, "%-12s %s\n", l[0], l[1]); err != nil {
				return err
			}
		}
	}
	return nil
}
