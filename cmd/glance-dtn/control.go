package main

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/glance"
)

// control is what the commands ask of an agent: of a daemon through its socket,
// or of the one that --once runs in this process.
type control = api.Control

// daemon is the agent on the control socket, whether it runs or not.
func (c *cli) daemon() control { return api.NewControlClient(c.socket) }

// answers reports whether somebody listens on the control socket.
func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// completionTime bounds what the shell waits for when the user presses Tab.
const completionTime = 2 * time.Second

// completeSites offers the agent's peers.
func (c *cli) completeSites(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	names, err := c.sites(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

// sites names the agent's peers.
func (c *cli) sites(ctx context.Context) ([]string, error) {
	o, err := c.daemon().Overview(ctx)
	var names []string
	for _, p := range o.Peers {
		names = append(names, p.Name)
	}
	return names, err
}

// completeImages offers this site's active images as the one argument: by name, or by id
// where an id is begun or the name is not unique.
func (c *cli) completeImages(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	o, err := c.daemon().Overview(ctx)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	named := map[string]int{}
	for _, i := range o.Images {
		named[i.Name]++
	}
	var found []string
	for _, i := range o.Images {
		switch {
		case i.Status != glance.Active:
		case i.Name != "" && named[i.Name] == 1 && strings.HasPrefix(i.Name, prefix):
			found = append(found, cobra.CompletionWithDesc(i.Name, string(i.ID)))
		case strings.HasPrefix(string(i.ID), prefix):
			found = append(found, cobra.CompletionWithDesc(string(i.ID), i.Name))
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeJobs offers the jobs that keep holds of, each with what it is about.
func (c *cli) completeJobs(keep func(agent.Job) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		var ids []string
		for j, err := range c.daemon().Jobs(ctx) {
			if err != nil {
				break
			}
			if keep(j) && strings.HasPrefix(string(j.ID), prefix) {
				ids = append(ids, cobra.CompletionWithDesc(string(j.ID), route(j)+", "+string(j.State)))
			}
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

// complete gives a flag its completion; the flag exists.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}
