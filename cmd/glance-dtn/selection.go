package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
)

// selection holds the flags that select images.
type selection struct {
	names, ids, tags, visibility []string
	properties                   map[string]string
}

func (s *selection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&s.names, "name", nil, "images whose whole name matches this `REGEXP` (repeatable)")
	f.StringSliceVar(&s.ids, "id", nil, "images with these `ID`s")
	f.StringSliceVar(&s.tags, "tag", nil, "images with one of these `TAG`s")
	f.StringSliceVar(&s.visibility, "visibility", nil, "images that are public, community, shared or private")
	f.StringToStringVar(&s.properties, "property", nil, "images with all of these properties, `KEY=VALUE`")
	complete(cmd, "visibility", cobra.FixedCompletions([]string{"public", "community", "shared", "private"}, cobra.ShellCompDirectiveNoFileComp))
}

func (s *selection) empty() bool {
	return len(s.names)+len(s.ids)+len(s.tags)+len(s.visibility)+len(s.properties) == 0
}

// match returns what the flags select: every image when none is set.
func (s *selection) match() (agent.Match, error) {
	m := agent.Match{Names: s.names, Tags: s.tags, Visibility: s.visibility, Properties: s.properties}
	for _, v := range s.ids {
		id, err := glance.ParseImageID(v)
		if err != nil {
			return m, usagef("--id: %w", err)
		}
		m.IDs = append(m.IDs, id)
	}
	for _, v := range s.visibility {
		switch v {
		case "public", "community", "shared", "private":
		default:
			return m, usagef("--visibility %s: the visibilities are public, community, shared and private", v)
		}
	}
	if err := m.Validate(); err != nil {
		return m, usagef("--%w", err)
	}
	return m, nil
}

// silentSites parts the sites that do not tell what they have from what the others have.
func silentSites(rows []agent.Comparison) (silent, told []agent.Comparison) {
	for _, r := range rows {
		if r.Relation == agent.Unknown {
			silent = append(silent, r)
		} else {
			told = append(told, r)
		}
	}
	return silent, told
}

// emptySites counts the sites that have answered, and neither have nor lack any selected image.
func emptySites(sites []string, rows []agent.Comparison) (n int) {
	for _, s := range sites {
		if !slices.ContainsFunc(rows, func(r agent.Comparison) bool { return r.Peer == s }) {
			n++
		}
	}
	return n
}

// namesSites refuses an empty name, as a variable that is not set leaves one.
func namesSites(flag string, sites ...string) error {
	if len(sites) == 0 || slices.Contains(sites, "") {
		return usagef("--%s: name a site", flag)
	}
	return nil
}

// comparisonNote is the last column of a comparison.
func comparisonNote(r agent.Comparison) string {
	if r.Job == "" {
		return r.Detail
	}
	job := fmt.Sprintf("job %s", r.Job)
	if r.Detail == "" {
		return job
	}
	return r.Detail + ", " + job
}
