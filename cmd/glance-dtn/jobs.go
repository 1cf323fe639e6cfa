package main

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

func (c *cli) jobs() *cobra.Command {
	var states []string
	var watch, verbose bool
	cmd := &cobra.Command{
		Use:   "jobs [ID]",
		Short: "List jobs, or show one with its history",
		Long: `jobs lists the agent's jobs, the newest first. With an id, of which the first
digits suffice, it shows that job and how it came where it is.

--watch prints a line for each change: of one job until it has ended, of all until
interrupted. With -o json each line is one event, with -o yaml each document. Of all jobs,
--state leaves those in these states.`,
		Example: `  glance-dtn jobs --state parked
  glance-dtn jobs 3fa2
  glance-dtn jobs --watch`,
		Args:              args("[ID]"),
		ValidArgsFunction: c.completeJobs(func(agent.Job) bool { return true }),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, d := cmd.Context(), c.daemon()
			keep, err := inStates(states)
			if err != nil {
				return err
			}
			ids, err := parseJobIDs(args)
			if err != nil {
				return err
			}
			switch {
			case len(ids) == 1 && len(states) > 0:
				return usagef("--state selects from all jobs: leave it or the job's id away")
			case len(ids) == 1:
				return c.oneJob(ctx, d, ids[0], watch)
			case watch:
				return c.watchAll(ctx, d, keep)
			}
			jobs, err := newest(ctx, d, keep)
			if err != nil {
				return err
			}
			return c.print(jobs, func() error { return c.jobTable(jobs, verbose) })
		},
	}
	cmd.Flags().StringSliceVar(&states, "state", nil, "only jobs in these `STATE`s")
	cmd.Flags().BoolVar(&watch, "watch", false, "print changes as they happen")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "tell how each job's legs went")
	complete(cmd, "state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// jobID is a job's id or its beginning.
var jobID = regexp.MustCompile(`^[0-9a-f]+$`)

func parseJobIDs(args []string) ([]agent.JobID, error) {
	ids := make([]agent.JobID, len(args))
	for i, a := range args {
		if !jobID.MatchString(a) {
			return nil, usagef("%q is not a job's id: `glance-dtn jobs` lists the jobs, the id is the first column", a)
		}
		ids[i] = agent.JobID(a)
	}
	return ids, nil
}

// stateNames lists every state of both kinds.
func stateNames() []string {
	var names []string
	for s := range doing {
		names = append(names, string(s))
	}
	slices.Sort(names)
	return names
}

func inStates(names []string) (func(agent.Job) bool, error) {
	known := stateNames()
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, usagef("--state %s: the states are %s", n, strings.Join(known, ", "))
		}
	}
	return func(j agent.Job) bool { return len(names) == 0 || slices.Contains(names, string(j.State)) }, nil
}

func newest(ctx context.Context, d control, keep func(agent.Job) bool) ([]agent.Job, error) {
	jobs := []agent.Job{}
	for j, err := range d.Jobs(ctx) {
		if err != nil {
			return nil, err
		}
		if keep(j) {
			jobs = append(jobs, j)
		}
	}
	slices.SortStableFunc(jobs, func(a, b agent.Job) int { return cmp.Compare(b.Created.UnixNano(), a.Created.UnixNano()) })
	return jobs, nil
}

func (c *cli) jobTable(jobs []agent.Job, verbose bool) error {
	if len(jobs) == 0 {
		_, err := fmt.Fprintln(c.out, "no jobs")
		return err
	}
	var rows []table.Row
	var priorities []mover.Priority
	for _, j := range jobs {
		priorities = append(priorities, j.Priority)
		note := inRow(j.Reason, j.Peer, j.Image.ID)
		if how := goes(legs(j.Legs()), j.State, j.Route.Why); verbose && how != "" {
			note = strings.TrimPrefix(note+"; "+how, "; ")
		}
		rows = append(rows, table.Row{shortID(j.ID), route(j), size(j.Image.Size), c.paint(string(j.State), stateColour(j.State)), clock(j.Since()), note})
	}
	return c.list(withPriorities(table.Row{"Job", "Image", "Size", "State", "Since", "Note"}, rows, 4, priorities))
}

// shortID is as much of a job's id as tells it apart, and as the commands accept.
func shortID(id agent.JobID) string { return string(id[:min(len(id), 10)]) }

func clock(t time.Time) string { return t.Local().Format(time.DateTime) }

func (c *cli) oneJob(ctx context.Context, d control, id agent.JobID, watch bool) error {
	j, err := d.Job(ctx, id)
	if err != nil {
		return err
	}
	if watch {
		return c.waitFor(ctx, d, []agent.JobID{j.ID}, 0)
	}
	return c.print(j, func() error { return c.describe(j) })
}

func (c *cli) describe(j agent.Job) error {
	fmt.Fprintf(c.out, "job    %s, %s\n", j.ID, j.Kind)
	fmt.Fprintf(c.out, "image  %s\n", j.Image.Label())
	fmt.Fprintf(c.out, "       %s, %s\n", size(j.Image.Size), j.Image.Hash)
	fmt.Fprintf(c.out, "way    %s\n", route(j))
	if j.Route.Why != "" {
		fmt.Fprintf(c.out, "       %s\n", j.Route.Why)
	}
	fmt.Fprintf(c.out, "state  %s\n", c.paint(string(j.State), stateColour(j.State)))
	if j.Reason != "" {
		fmt.Fprintf(c.out, "       %s\n", j.Reason)
	}
	if j.State == agent.Parked {
		fmt.Fprintf(c.out, "       %s\n", goOn(j))
	}
	if w := j.Waited; w.For >= leastWait {
		fmt.Fprintf(c.out, "waited longest for %s, %s\n", w.Name(), span(w.For))
	}
	if !j.NotBefore.IsZero() && !j.State.Final() {
		fmt.Fprintf(c.out, "next   attempt %d at %s\n", j.Attempts+1, clock(j.NotBefore))
	}
	fmt.Fprintln(c.out)
	var rows []table.Row
	for _, h := range j.History {
		rows = append(rows, table.Row{clock(h.At), string(h.State), h.Note})
	}
	return c.table(table.Row{"Since", "State", "Note"}, rows)
}

// watchAll prints changes until ctx ends; that is its end, not a failure.
func (c *cli) watchAll(ctx context.Context, d control, keep func(agent.Job) bool) error {
	l := &lines{w: c.out, since: time.Now(), alone: true, told: map[agent.JobID]told{}}
	for ev, err := range d.Watch(ctx) {
		switch {
		case ctx.Err() != nil:
			return errInterrupted
		case err != nil:
			return err
		case c.format != "table":
			if ev.Job != nil && !keep(*ev.Job) || ev.Progress != nil && !keep(agent.Job{State: ev.Progress.State}) {
				continue
			}
			text, err := c.entry(ev)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(c.out, text); err != nil {
				return err
			}
		case ev.Job != nil && keep(*ev.Job):
			l.job(*ev.Job)
		case ev.Job != nil:
			l.skip(*ev.Job)
		}
	}
	if ctx.Err() != nil {
		return errInterrupted
	}
	return fmt.Errorf("the agent ended the stream of events; is it being restarted?")
}
