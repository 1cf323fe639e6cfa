package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

func (c *cli) push() *cobra.Command {
	var to []string
	var p mover.Priority
	var w waiting
	cmd := &cobra.Command{
		Use:   "push IMAGE --to SITE[,SITE]",
		Short: "Send an image to other sites",
		Long: `push sends one image, given by its id or its unique name, to one or more sites.
An image that is there, or on its way, is not sent twice: push joins its job.

Without --wait it ends when the agent has taken the jobs; a job goes on until the
image is active at its site, or a person is needed.`,
		Example: `  glance-dtn push debian-12 --to B --wait
  glance-dtn push 6f0c1e9a-4f0b-4a51-9a3e-7ce7c3a3d1f2 --to B,C -o json`,
		Args:              args("IMAGE"),
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := namesSites("to", to...); err != nil {
				return err
			}
			s, err := c.open(cmd.Context(), w)
			if err != nil {
				return err
			}
			return s.use(cmd.Context(), func(ctx context.Context) error {
				jobs, err := s.Push(ctx, args[0], to, p)
				if err != nil {
					return err
				}
				return c.finish(ctx, s, jobs, w)
			})
		},
	}
	cmd.Flags().StringSliceVar(&to, "to", nil, "`SITE`s to send it to")
	required(cmd, "to")
	complete(cmd, "to", c.completeSites)
	priorityFlag(cmd, &p)
	w.flags(cmd)
	w.onceFlags(cmd)
	return cmd
}

// priorityFlag adds --priority, and refuses what is none.
func priorityFlag(cmd *cobra.Command, p *mover.Priority) {
	names := []string{string(mover.PriorityLow), string(mover.PriorityNormal), string(mover.PriorityHigh)}
	cmd.Flags().Func("priority", "`PRIORITY` of the jobs: low, normal or high (default that of the rule which sends an image there, or normal)", func(s string) error {
		*p = mover.Priority(s)
		if !slices.Contains(names, s) {
			return fmt.Errorf("it is one of %s", strings.Join(names, ", "))
		}
		return nil
	})
	complete(cmd, "priority", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

// waiting holds the flags of a command that makes jobs.
type waiting struct {
	wait    bool
	timeout time.Duration
	once    bool
	config  string
}

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "show the legs and end when the jobs have ended")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "with --wait: how long at most; the jobs go on then (default no limit)")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if w.timeout < 0 {
			return usagef("--timeout %v: it is a time from now, such as 10m; 0: no limit", w.timeout)
		}
		if w.timeout != 0 && !w.wait && !w.once {
			return usagef("--timeout bounds the waiting, and nothing is waited for: add --wait")
		}
		return nil
	}
}

func (w *waiting) onceFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.once, "once", false, "do the work in this process when no agent answers; implies --wait")
	configFlag(cmd, &w.config, defaultAgentConfig)
}

// finish follows jobs that were just made, when that is wanted, or lists them.
func (c *cli) finish(ctx context.Context, s *session, jobs []agent.Job, w waiting) error {
	if w.wait || w.once {
		return c.work(ctx, s, jobIDs(jobs), w.timeout)
	}
	if err := c.print(jobs, func() error { return c.jobTable(jobs, false) }); err != nil {
		return err
	}
	for _, j := range jobs {
		if j.State == agent.Parked {
			return withCode(codeFor(jobs))
		}
	}
	return nil
}

// work waits for the jobs while the session works on them.
func (c *cli) work(ctx context.Context, s *session, ids []agent.JobID, timeout time.Duration) error {
	return s.working(ctx, ids, func(ctx context.Context) error { return c.waitFor(ctx, s, ids, timeout) })
}

func jobIDs(jobs []agent.Job) []agent.JobID {
	ids := make([]agent.JobID, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID
	}
	return ids
}

// required marks a flag that exists.
func required(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err)
	}
}

func configFlag(cmd *cobra.Command, to *string, otherwise string) {
	cmd.Flags().StringVar(to, "config", otherwise, "configuration `FILE` ($GLANCE_DTN_CONFIG)")
	*to = envOr("GLANCE_DTN_CONFIG", otherwise)
}
