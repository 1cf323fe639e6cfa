package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/history"
)

func (c *cli) history() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Take out, put in, or drop what transfers have achieved",
		Long: `history is what this site's DTN knows of its transfers: conditions (file size, number of
files, bandwidth, round trip time, buffer, loss), PCP over time, throughput, bytes sent
again, and the bottleneck. Files that moved over the same connections at a time are one
row, or one for each PCP that was in force: what connections achieve is theirs together.
Not kept is what was over within a second, or was passed on by a relay.

Transfers for which nobody has set a PCP begin with what follows from it, and say so:
glance-dtn transfers ID. The latest 4,000 are kept, for all agents of the site.`,
		Args: noSuchCommand,
		RunE: noCommand,
	}
	cmd.AddCommand(c.exportHistory(), c.importHistory(), c.forgetHistory())
	return cmd
}

func (c *cli) exportHistory() *cobra.Command {
	return &cobra.Command{
		Use:   "export [FILE]",
		Short: "Write the history as CSV",
		Long: `export writes the history as CSV, to FILE or to standard output; with -o json or yaml, in
that format.`,
		Example: `  glance-dtn history export site-a.csv
  glance-dtn history export -o json | jq '.[] | select(any(.steps[]; .bottleneck == "network"))'`,
		Args: args("[FILE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			csv, err := c.daemon().History(cmd.Context())
			if err != nil {
				return err
			}
			text := bytes.NewBufferString(csv)
			if c.format != "table" {
				outcomes, err := history.ReadCSV(text)
				if err != nil {
					return err
				}
				text.Reset()
				if err := (&cli{out: text, format: c.format}).print(append([]tuning.Outcome{}, outcomes...), nil); err != nil {
					return err
				}
			}
			if len(args) > 0 && args[0] != "-" {
				return os.WriteFile(args[0], text.Bytes(), 0o644)
			}
			_, err = c.out.Write(text.Bytes())
			return err
		},
	}
}

func (c *cli) importHistory() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "import [FILE]",
		Short: "Add outcomes from a CSV to the history",
		Long: `import adds what export has written, here or at another site, from FILE or from standard
input. All of it is taken or, where a line is wrong, nothing. What is known already
stays as it is, so a file may be imported again. Of more than 4,000 in all the latest
stay, wherever they come from: what is imported may push out older ones of this site.

--dry-run says how many are new, and of which sites. An outcome's id begins with the
site whose DTN has seen it, so forget takes out again what was imported of a site.`,
		Example: `  glance-dtn history import site-b.csv --dry-run
  glance-dtn history import site-b.csv`,
		Args: args("[FILE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, name := cmd.InOrStdin(), "standard input"
			if len(args) > 0 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close() // it was only read
				in, name = f, args[0]
			}
			csv, err := io.ReadAll(in)
			if err != nil {
				return err
			}
			outcomes, err := history.ReadCSV(bytes.NewReader(csv))
			if err != nil {
				return fmt.Errorf("%s: %w; nothing was imported", name, err)
			}
			if dryRun {
				return c.wouldImport(cmd.Context(), outcomes)
			}
			got, err := c.daemon().ImportHistory(cmd.Context(), string(csv))
			if err != nil {
				return err
			}
			return c.print(got, func() error {
				again := ""
				if got.New > 0 {
					again = "; glance-dtn history forget SITE drops those of a site again"
				}
				_, err := fmt.Fprintf(c.out, "%d of %d outcomes are new%s\n", got.New, got.Outcomes, again)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what is new, and import nothing")
	return cmd
}

// toImport is what an import would do.
type toImport struct {
	mover.Imported
	Sites  map[string]int `json:"sites"`             // new outcomes by the site that has seen them
	Pushed int            `json:"pushed,omitempty"`  // how many of the oldest would have to go, at least
	DryRun bool           `json:"dry_run,omitempty"` // always
}

// wouldImport says what is new among outcomes, each of which has an id of its own.
func (c *cli) wouldImport(ctx context.Context, outcomes []tuning.Outcome) error {
	known, err := c.knownOutcomes(ctx)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, o := range known {
		ids[o.ID] = true
	}
	fresh := slices.DeleteFunc(slices.Clone(outcomes), func(o tuning.Outcome) bool { return ids[o.ID] })
	would := toImport{
		Imported: mover.Imported{Outcomes: len(outcomes), New: len(fresh)}, Sites: bySite(fresh),
		Pushed: max(0, len(known)+len(fresh)-outcomesKept), DryRun: true,
	}
	return c.print(would, func() error {
		text := fmt.Sprintf("%d of %d outcomes are new", would.New, would.Outcomes)
		if would.New > 0 {
			text += ": " + sitesText(would.Sites)
		}
		if would.Pushed > 0 {
			text += fmt.Sprintf("; of more than %d the oldest go, here %d at least", outcomesKept, would.Pushed)
		}
		_, err := fmt.Fprintln(c.out, text+"; nothing was imported")
		return err
	})
}

func (c *cli) forgetHistory() *cobra.Command {
	return &cobra.Command{
		Use:   "forget SITE",
		Short: "Drop what a site's transfers have achieved",
		Long: `forget drops the outcomes that the DTN of SITE has seen, which is what their ids begin
with: those of another site that were imported, or with this site's own name what its
transfers have achieved here. What export has written before brings them back.`,
		Example: `  glance-dtn history export before.csv
  glance-dtn history forget B`,
		Args: args("SITE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			got, err := c.daemon().ForgetHistory(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(got, func() error {
				if got.Outcomes > 0 {
					_, err := fmt.Fprintf(c.out, "outcomes of site %s that were dropped: %d\n", args[0], got.Outcomes)
					return err
				}
				known, err := c.knownOutcomes(cmd.Context())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.out, "there is none of site %s; known are %s\n", args[0], cmp.Or(sitesText(bySite(known)), "none at all"))
				return err
			})
		},
	}
}

// knownOutcomes are those of the DTN's history.
func (c *cli) knownOutcomes(ctx context.Context) ([]tuning.Outcome, error) {
	csv, err := c.daemon().History(ctx)
	if err != nil {
		return nil, err
	}
	return history.ReadCSV(strings.NewReader(csv))
}

func bySite(outcomes []tuning.Outcome) map[string]int {
	sites := map[string]int{}
	for _, o := range outcomes {
		sites[o.Site()]++
	}
	return sites
}

// sitesText is as in "of site A 12, of site B 3".
func sitesText(sites map[string]int) string {
	var texts []string
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		texts = append(texts, fmt.Sprintf("of site %s %d", site, sites[site]))
	}
	return strings.Join(texts, ", ")
}
