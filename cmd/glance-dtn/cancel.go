package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
)

func (c *cli) cancel() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel JOB...",
		Short: "Stop jobs and undo what they have done so far",
		Long: `cancel stops jobs, by id or the first digits of it, here and at the other site, and
removes what they have copied. An image that is active already stays.`,
		Args:              args("JOB..."),
		ValidArgsFunction: c.completeJobs(func(j agent.Job) bool { return !j.State.Final() || j.State == agent.Parked }),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := parseJobIDs(args)
			if err != nil {
				return err
			}
			return c.change(cmd.Context(), ids, c.daemon().Cancel)
		},
	}
}

// change does the same to each job, whatever becomes of the others, and lists those it was done to.
func (c *cli) change(ctx context.Context, ids []agent.JobID, do func(context.Context, agent.JobID) (agent.Job, error)) error {
	jobs := []agent.Job{}
	var faults []error
	for _, id := range ids {
		j, err := do(ctx, id)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		jobs = append(jobs, j)
	}
	err := errors.Join(faults...)
	if err != nil && len(jobs) == 0 {
		return err
	}
	if perr := c.print(jobs, func() error { return c.jobTable(jobs, false) }); perr != nil || err == nil {
		return perr
	}
	return &codeError{code: exitPartly, err: err}
}
