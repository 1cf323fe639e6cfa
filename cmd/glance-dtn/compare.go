package main

import (
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
)

func (c *cli) compare() *cobra.Command {
	var peers []string
	var all bool
	var sel selection
	cmd := &cobra.Command{
		Use:   "compare [--peer SITE] [SELECTION]",
		Short: "Compare this site's images with other sites'",
		Long: `compare asks the sites for their images, and lists those that are not the same
here and there. --all lists the same ones too, as -o json and yaml always do.

A site that does not answer holds up no other one. It is named first, in json and yaml as
an entry without an id whose relation is unknown, and the exit code is 3, or 1 if no site
answers.`,
		Example: `  glance-dtn compare
  glance-dtn compare --peer B --tag golden --all`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("peer") {
				if err := namesSites("peer", peers...); err != nil {
					return err
				}
			}
			m, err := sel.match()
			if err != nil {
				return err
			}
			rows, err := c.daemon().Compare(cmd.Context(), peers, m)
			if err != nil {
				return err
			}
			if silent, told := silentSites(rows); len(silent) > 0 && len(told) == 0 && len(peers) == 0 {
				if peers, err = c.sites(cmd.Context()); err != nil {
					return err
				}
			}
			empty := emptySites(peers, rows)
			if err := c.print(rows, func() error { return c.differences(rows, empty, all) }); err != nil {
				return err
			}
			t := tally{all: empty, done: empty}
			for _, r := range rows {
				t.add(r.Relation != agent.Unknown, false)
			}
			return withCode(t.code())
		},
	}
	cmd.Flags().StringSliceVar(&peers, "peer", nil, "`SITE`s to compare with (default all)")
	cmd.Flags().BoolVar(&all, "all", false, "list images that are the same too")
	complete(cmd, "peer", c.completeSites)
	sel.flags(cmd)
	return cmd
}

// differences lists the rows; of so many sites more there are none.
func (c *cli) differences(rows []agent.Comparison, empty int, all bool) error {
	silent, rows := silentSites(rows)
	for _, r := range silent {
		name, why := ofSite(r.Peer, r.Detail)
		fmt.Fprintf(c.out, "%s%s\n", c.paint(name, relationColour(agent.Conflict)), why)
	}
	switch {
	case len(silent) > 0 && len(rows)+empty == 0:
		return nil
	case len(silent) > 0:
		fmt.Fprintln(c.out)
	}
	var lines []table.Row
	same := 0
	for _, r := range rows {
		if r.Relation == agent.Same {
			same++
		}
		if all || r.Relation != agent.Same {
			lines = append(lines, table.Row{r.Name, r.ID, size(r.Size), r.Peer, c.paint(string(r.Relation), relationColour(r.Relation)), comparisonNote(r)})
		}
	}
	if len(lines) > 0 {
		if err := c.list(table.Row{"Image", "ID", "Size", "Site", "There", "Note"}, lines); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.out, "%d of %d the same\n", same, len(rows))
	return err
}
