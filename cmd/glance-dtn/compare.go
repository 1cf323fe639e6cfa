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
here and there. --all lists the same ones too, as -o json and yaml always do.`,
		Example: `  glance-dtn compare
  glance-dtn compare --peer B --tag golden --all`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := sel.match()
			if err != nil {
				return err
			}
			rows, err := c.daemon().Compare(cmd.Context(), peers, m)
			if err != nil {
				return err
			}
			return c.print(rows, func() error { return c.differences(rows, all) })
		},
	}
	cmd.Flags().StringSliceVar(&peers, "peer", nil, "`SITE`s to compare with (default all)")
	cmd.Flags().BoolVar(&all, "all", false, "list images that are the same too")
	complete(cmd, "peer", c.completeSites)
	sel.flags(cmd)
	return cmd
}

func (c *cli) differences(rows []agent.Comparison, all bool) error {
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
