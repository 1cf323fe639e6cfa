package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
)

func (c *cli) pull() *cobra.Command {
	var from string
	var w waiting
	cmd := &cobra.Command{
		Use:   "pull IMAGE --from SITE",
		Short: "Have another site send us an image",
		Long: `pull asks another site's agent to send one of its images here. That site's
configuration has to allow it: may_pull under peers.

With --wait it follows that site's job, which ends when the image is active here or a
person is needed, here or there.`,
		Example: `  glance-dtn pull rocky-9 --from A --wait`,
		Args:    args("IMAGE"),

		ValidArgsFunction: cobra.NoFileCompletions,

		RunE: func(cmd *cobra.Command, args []string) error {
			if err := namesSites("from", from); err != nil {
				return err
			}
			ctx, d := cmd.Context(), c.daemon()
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
			return c.await(ctx, newPulled(d, from, theirs), []agent.JobID{theirs.ID}, w.timeout, func(jobs []agent.Job) error {
				return writePullVerdicts(c.out, jobs, from)
			})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the `SITE` that has the image")
	required(cmd, "from")
	complete(cmd, "from", c.completeSites)
	w.flags(cmd)
	return cmd
}

// pulled is a control whose one job is another site's: the one that sends an image
// here. How far the upload is comes from the job that receives it here.
type pulled struct {
	control
	from         string
	theirs, here agent.JobID
	state        atomic.Value // agent.State of theirs
}

func newPulled(c control, from string, theirs agent.Job) *pulled {
	p := &pulled{control: c, from: from, theirs: theirs.ID,
		here: agent.NewJobID(agent.Receive, theirs.Image.ID, theirs.Image.Hash, from)}
	p.state.Store(theirs.State)
	return p
}

func (p *pulled) Job(ctx context.Context, id agent.JobID) (agent.Job, error) {
	j, err := p.Pulled(ctx, p.from, id)
	if err == nil {
		p.state.Store(j.State)
	}
	return j, err
}

// Watch yields the progress of the upload here as that of their job.
func (p *pulled) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	return func(yield func(agent.Event, error) bool) {
		for ev, err := range p.control.Watch(ctx) {
			if err == nil && (ev.Progress == nil || ev.Progress.Job != p.here) {
				continue
			}
			if err == nil {
				now := *ev.Progress
				now.Job, now.State = p.theirs, p.state.Load().(agent.State)
				ev.Progress = &now
			}
			if !yield(ev, err) {
				return
			}
		}
	}
}

// writePullVerdicts says what became of another site's jobs, and where a person has to act.
func writePullVerdicts(w io.Writer, jobs []agent.Job, from string) error {
	for _, j := range jobs {
		text := verdict(j)
		switch {
		case j.State == agent.Parked:
			text = fmt.Sprintf("%s is parked at site %s: %s\n  then, there: glance-dtn retry %s", about(j), from, j.Reason, j.ID)
		case !j.State.Final():
			text += fmt.Sprintf("\n  it goes on by itself; at site %s: glance-dtn jobs --watch %s", from, j.ID)
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}
