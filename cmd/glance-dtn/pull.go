package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
)

func (c *cli) pull() *cobra.Command {
	var from string
	var w waiting
	cmd := &cobra.Command{
		Use:   "pull IMAGE --from SITE",
		Short: "Have another site send us an image",
		Long: `pull asks another site's agent to send one of its images here. That site's
configuration has to allow it: may_pull under peers.`,
		Example: `  glance-dtn pull rocky-9 --from A --wait`,
		Args:    args("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, d := cmd.Context(), c.daemon()
			start := time.Now()
			theirs, err := d.Pull(ctx, args[0], from)
			if err != nil {
				return err
			}
			if !w.wait {
				return c.print([]agent.Job{theirs}, func() error {
					_, err := fmt.Fprintf(c.out, "site %s sends %s: its job %s is %s\n", from, theirs.Image.Label(), theirs.ID, theirs.State)
					return err
				})
			}
			return c.waitPull(ctx, d, theirs, from, start, w.timeout)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the `SITE` that has the image")
	required(cmd, "from")
	complete(cmd, "from", c.completeSites)
	w.flags(cmd)
	return cmd
}

// waitPull waits until the other site's offer has made a job here, and follows that.
func (c *cli) waitPull(ctx context.Context, d control, theirs agent.Job, from string, start time.Time, timeout time.Duration) error {
	deadline, cancel := ctx, func() {}
	if timeout > 0 {
		deadline, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
	}
	defer cancel()
	here := agent.NewJobID(agent.Receive, theirs.Image.ID, theirs.Image.Hash, from)
	for {
		j, err := d.Job(deadline, here)
		if err == nil && (!j.State.Final() || j.Updated.After(start)) { // not that of an earlier pull
			return c.waitFor(deadline, d, []agent.JobID{here}, timeout)
		}
		if err != nil && !errors.Is(err, agent.ErrNoJob) {
			return err
		}
		if done, err := c.noNeedToPull(deadline, d, theirs, from); done || err != nil {
			return err
		}
		select {
		case <-deadline.Done():
			if ctx.Err() != nil {
				return errInterrupted
			}
			return fmt.Errorf("site %s has not offered %s yet: %w; see glance-dtn jobs %s there", from, theirs.Image.Label(), errTimeout, theirs.ID)
		case <-time.After(time.Second):
		}
	}
}

// noNeedToPull reports whether no job will come: the image is here, or cannot come.
func (c *cli) noNeedToPull(ctx context.Context, d control, theirs agent.Job, from string) (bool, error) {
	rows, err := d.Compare(ctx, []string{from}, agent.Match{IDs: []glance.ImageID{theirs.Image.ID}})
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		switch r.Relation {
		case agent.Same, agent.Differs:
			return true, c.print(rows, func() error {
				_, err := fmt.Fprintf(c.out, "%s is active here, with the same content as at %s\n", theirs.Image.Label(), from)
				return err
			})
		case agent.Conflict:
			return true, &codeError{code: exitPerson, err: fmt.Errorf("%s is here with other content than at %s: %s; rename or delete one of them", theirs.Image.Label(), from, r.Detail)}
		}
	}
	return false, nil
}
