package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
)

func (c *cli) status() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show images × sites, and what is wrong",
		Long: `status shows how each image of this site stands at each other site, the sites
that do not answer, images that other sites send here and that need a person, and
where Glance's datadir and Glance disagree. It ends with 0
whenever it could tell that: /readyz and the metrics are for who wants an alarm.

A note begins with the destination whose column it is about, as in "B: ...", or is about
this site. A text that begins with "site B: ..." is what that site's agent says.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := c.daemon().Overview(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(o, func() error { return c.overview(o, verbose) })
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "tell how each image's legs went")
	return cmd
}

func (c *cli) overview(o agent.Overview, verbose bool) error {
	c.troubles(o)
	if len(o.Images) == 0 {
		fmt.Fprintf(c.out, "site %s has no image\n", o.Site)
	} else if err := c.imageTable(o, verbose); err != nil {
		return err
	}
	if jobs := jobCounts(o.Jobs); jobs != "" {
		fmt.Fprintf(c.out, "\njobs: %s\n", jobs)
	}
	for _, p := range o.Parked {
		j := agent.Job{Kind: agent.Receive, Peer: p.Peer, Site: o.Site, Image: glance.Image{ID: p.Image, Name: p.Name}}
		fmt.Fprintf(c.out, "parked: %s: %s\n  %s\n", route(j), inRow(p.Reason, p.Peer, p.Image), goOn(j))
	}
	for _, k := range o.Checks {
		if k.Note != "" {
			fmt.Fprintf(c.out, "%s: %s\n", k.Name, k.Note)
		}
	}
	for _, f := range o.Store {
		fmt.Fprintf(c.out, "store: %s %s", f.Fault, f.ID)
		if f.Path != "" {
			fmt.Fprintf(c.out, " (%s)", f.Path)
		}
		fmt.Fprintf(c.out, ": %s\n", f.Note)
	}
	return nil
}

// troubles says what the agent needs and has not, above all that waits for it.
func (c *cli) troubles(o agent.Overview) {
	var lines []string
	tell := func(name, text string) {
		lines = append(lines, fmt.Sprintf("%s %s\n", c.paint(name, relationColour(agent.Conflict)), text))
	}
	for _, k := range o.Checks {
		if !k.OK {
			tell(k.Name+":", strings.TrimPrefix(k.Error, k.Name+" "))
		}
	}
	for _, p := range o.Peers {
		if !p.OK {
			name, why := ofSite(p.Name, p.Error)
			lines = append(lines, c.paint(name, relationColour(agent.Conflict))+why+"\n")
		}
		if p.DTN != nil {
			tell("site "+p.Name+":", "since "+p.DTN.Since.Local().Format(time.DateTime)+" "+p.DTN.Error)
		}
	}
	if len(lines) > 0 {
		fmt.Fprintln(c.out, strings.Join(lines, ""))
	}
}

// ofSite parts what is wrong with a site into its name, which may be the beginning of that,
// and the rest.
func ofSite(site, wrong string) (name, rest string) {
	if rest, named := strings.CutPrefix(wrong, "site "+site); named {
		return "site " + site, rest
	}
	return "site " + site + ":", " " + wrong
}

func (c *cli) imageTable(o agent.Overview, verbose bool) error {
	header := table.Row{"Image", "ID", "Size", o.Site}
	for _, p := range o.Peers {
		header = append(header, p.Name)
	}
	header = append(header, "Note")
	var rows []table.Row
	for _, i := range o.Images {
		row := table.Row{i.Name, i.ID, size(i.Size), string(i.Status)}
		notes := []string{i.Note}
		for _, p := range o.Peers {
			s := i.Sites[p.Name]
			row = append(row, c.standing(s))
			switch {
			case s.Paused:
				notes = append(notes, "waits for the export of site "+o.Site)
			case s.Reason != "":
				notes = append(notes, p.Name+": "+inRow(s.Reason, p.Name, i.ID))
			}
			if how := goes(legs(s.Legs), s.State, s.Route); verbose && how != "" {
				notes = append(notes, p.Name+": "+how)
			}
		}
		notes = slices.DeleteFunc(notes, func(n string) bool { return n == "" })
		rows = append(rows, append(row, strings.Join(slices.Compact(notes), "; ")))
	}
	return c.list(header, rows)
}

// legs says how the legs of a job went.
func legs(changes []agent.Change) string {
	var all []string
	for _, c := range changes {
		all = append(all, fmt.Sprintf("%s (%s)", c.State, c.Note))
	}
	return strings.Join(all, ", ")
}

// goes adds to how the legs of a job went by which way its file goes now, where that was chosen.
func goes(legs string, s agent.State, why string) string {
	if s != agent.Staged || why == "" {
		return legs
	}
	return strings.TrimPrefix(legs+", moving ("+why+")", ", ")
}

// standing is one cell of images × sites: the job that runs, or else what is there.
func (c *cli) standing(s agent.Standing) string {
	switch {
	case s.State == agent.Parked || s.State != "" && !s.State.Final():
		cell := string(s.State)
		if s.Percent > 0 {
			cell += fmt.Sprintf(" %d %%", s.Percent)
		}
		return c.paint(cell, stateColour(s.State))
	case s.Relation != "":
		return c.paint(string(s.Relation), relationColour(s.Relation))
	case s.State != "":
		return c.paint(string(s.State), stateColour(s.State))
	}
	return "-"
}

// jobCounts lists how many jobs are in each state, in the order of a job's way.
func jobCounts(jobs map[agent.State]int) string {
	order := append(agent.Receive.Way()[:2:2], agent.Send.Way()...)
	order = append(order, agent.Cancelling, agent.Cancelled, agent.Parked)
	var parts []string
	for _, s := range order {
		if jobs[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", jobs[s], s))
		}
	}
	return strings.Join(parts, ", ")
}
