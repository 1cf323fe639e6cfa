package main

import (
	"fmt"
	"slices"
	"strings"

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
				parked, err := newest(ctx, d, func(j agent.Job) bool { return j.State == agent.Parked })
				if err != nil {
					return err
				}
				received := slices.DeleteFunc(slices.Clone(parked), retryable)
				ids = jobIDs(slices.DeleteFunc(parked, func(j agent.Job) bool { return !retryable(j) }))
				switch err := retryElsewhere(received); {
				case err != nil && len(ids) == 0:
					return &codeError{code: exitPerson, err: err}
				case err != nil:
					printError(c.err, err)
				}
			}
			return c.change(ctx, ids, d.Retry)
		},
	}
	cmd.Flags().BoolVar(&allParked, "all-parked", false, "every parked job that sends an image")
	return cmd
}

// retryElsewhere says at which sites the jobs that receive images go on; nil where there is none.
func retryElsewhere(received []agent.Job) error {
	var sites []string
	for _, j := range received {
		sites = append(sites, "site "+j.Peer)
	}
	slices.Sort(sites)
	sites = slices.Compact(sites)
	switch len(received) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("1 parked job receives an image: retry it at %s", sites[0])
	}
	return fmt.Errorf("%d parked jobs receive images: retry them at %s", len(received), strings.Join(sites, ", "))
}

// retryable reports whether a retry is for this site to give.
func retryable(j agent.Job) bool { return j.State == agent.Parked && j.Kind == agent.Send }
