package main

import (
	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
)

func (c *cli) retry() *cobra.Command {
	var allParked bool
	cmd := &cobra.Command{
		Use:   "retry JOB... | --all-parked",
		Short: "Let parked jobs go on, once the cause is cured",
		Long: `retry begins parked and cancelled jobs, by id or the first digits of it, anew: what
is done already is found again and not done twice. Jobs that wait for their next
attempt try now. A job that receives an image goes on when the job that sends it is
retried, at its own site.`,
		ValidArgsFunction: c.completeJobs(retryable),
		RunE: func(cmd *cobra.Command, args []string) error {
			if allParked == (len(args) > 0) {
				return usagef("say which jobs: either their ids or --all-parked")
			}
			ids, err := parseJobIDs(args)
			if err != nil {
				return err
			}
			ctx, d := cmd.Context(), c.daemon()
			if allParked {
				parked, err := newest(ctx, d, retryable)
				if err != nil {
					return err
				}
				ids = jobIDs(parked)
			}
			return c.change(ctx, ids, d.Retry)
		},
	}
	cmd.Flags().BoolVar(&allParked, "all-parked", false, "every parked job that sends an image")
	return cmd
}

// retryable reports whether a retry is for this site to give.
func retryable(j agent.Job) bool { return j.State == agent.Parked && j.Kind == agent.Send }
