package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

func (c *cli) replicate() *cobra.Command {
	var to []string
	var all, dryRun bool
	var sel selection
	var p mover.Priority
	var w waiting
	cmd := &cobra.Command{
		Use:   "replicate (--all | SELECTION) --to SITE[,SITE]",
		Short: "Send every selected image that a site does not have",
		Long: `replicate compares the selected images with what the sites have, and sends what
is missing. Flags of different kinds must all hold; of several values of one kind
one must hold.

A site that does not answer is sent nothing, and holds up no other one: the exit code is 3
then, or 1 if no site answers. In json and yaml it is an entry without an id whose relation
is unknown.

With --once it works without an agent: from cron, or before one is set up. An
agent that answers is used all the same.`,
		Example: `  glance-dtn replicate --visibility public --to B --dry-run
  glance-dtn replicate --tag golden --name 'debian-.*' --to B,C --wait
  glance-dtn replicate --all --to B --once --config /etc/glance-dtn/agent.yaml`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all != sel.empty() {
				return usagef("say which images: either --all, or --name, --id, --tag, --visibility, --property")
			}
			if err := namesSites("to", to...); err != nil {
				return err
			}
			m, err := sel.match()
			if err != nil {
				return err
			}
			s, err := c.open(cmd.Context(), w)
			if err != nil {
				return err
			}
			return s.use(cmd.Context(), func(ctx context.Context) error {
				rows, err := s.Replicate(ctx, m, to, p, dryRun)
				if err != nil {
					return err
				}
				return c.replicated(ctx, s, rows, emptySites(to, rows), dryRun, w)
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&to, "to", nil, "`SITE`s to send them to")
	f.BoolVar(&all, "all", false, "all images of this site")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be sent, and send nothing")
	required(cmd, "to")
	complete(cmd, "to", c.completeSites)
	sel.flags(cmd)
	priorityFlag(cmd, &p)
	w.flags(cmd)
	w.onceFlags(cmd)
	return cmd
}

func (c *cli) replicated(ctx context.Context, s *session, rows []agent.Comparison, empty int, dryRun bool, w waiting) error {
	silent, _ := silentSites(rows)
	for _, r := range silent {
		name, why := ofSite(r.Peer, r.Detail)
		printError(c.err, errors.New(name+why))
	}
	var ids []agent.JobID
	t := tally{all: empty, done: empty}
	for _, r := range rows {
		if r.Planned && r.Job != "" {
			ids = append(ids, r.Job)
		}
		t.add(r.Relation != agent.Conflict && r.Relation != agent.Unknown, r.Relation == agent.Conflict)
	}
	if !dryRun && (w.wait || w.once) && len(ids) > 0 {
		err := c.work(ctx, s, ids, w.timeout)
		if err == nil && t.done < t.all { // what was sent has arrived, the rest stays as it was
			c.warnConflicts(rows)
			return withCode(exitPartly)
		}
		return err
	}
	if err := c.print(rows, func() error { return c.plan(rows, empty, dryRun) }); err != nil || dryRun && len(silent) == 0 {
		return err
	}
	return withCode(t.code())
}

// plan lists what is, or would be, sent, and what stands in the way; of so many sites more
// there are no rows.
func (c *cli) plan(rows []agent.Comparison, empty int, dryRun bool) error {
	var lines []table.Row
	planned, going, bytes := 0, 0, int64(0)
	silent, rows := silentSites(rows)
	if len(silent) > 0 && len(rows)+empty == 0 {
		return nil
	}
	for _, r := range rows {
		switch {
		case r.Planned && dryRun && r.Job != "":
			going++
		case r.Planned:
			planned, bytes = planned+1, bytes+r.Size
		}
		if r.Planned || r.Relation == agent.Conflict {
			lines = append(lines, table.Row{r.Name, r.ID, size(r.Size), r.Peer, c.paint(string(r.Relation), relationColour(r.Relation)), comparisonNote(r)})
		}
	}
	if len(lines) > 0 {
		if err := c.list(table.Row{"Image", "ID", "Size", "Site", "There", "Note"}, lines); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(c.out, planSummary(planned, going, len(rows), bytes, dryRun))
	return err
}

// planSummary tells how many of the compared images go, and how much that is, and for a dry
// run how many are on their way already.
func planSummary(planned, going, of int, bytes int64, dryRun bool) string {
	switch {
	case of == 0:
		return "no image is selected"
	case planned+going == 0:
		return "nothing to send: no selected image is missing"
	case !dryRun:
		return fmt.Sprintf("%d of %d %s, %s", planned, of, areOnTheWay(planned), size(bytes))
	}
	would := fmt.Sprintf("%d of %d would be sent, %s", planned, of, size(bytes))
	if going > 0 {
		would += fmt.Sprintf("; %d %s already", going, areOnTheWay(going))
	}
	return would
}

func areOnTheWay(n int) string {
	if n == 1 {
		return "is on its way"
	}
	return "are on their way"
}

func (c *cli) warnConflicts(rows []agent.Comparison) {
	for _, r := range rows {
		if r.Relation == agent.Conflict {
			printError(c.err, fmt.Errorf("image %s (%s) is at %s with other content: %s; leave it out, or upload it here anew: it gets a new id; or set deliver.on_deleted_id: new-id at site %s, delete it there, and replicate again", r.Name, r.ID, r.Peer, r.Detail, r.Peer))
		}
	}
}
