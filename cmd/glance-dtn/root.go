package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Where things are unless a flag or the environment says otherwise.
const (
	defaultControl     = "/run/glance-dtn/agent.sock"
	defaultAgentConfig = "/etc/glance-dtn/agent.yaml"
	defaultDTNConfig   = "/etc/glance-dtn/dtn.yaml"
)

// cli is one invocation: where it writes and what the global flags say.
type cli struct {
	out, err io.Writer
	format   string // table, json, yaml
	socket   string
	noColor  bool
}

func newCLI(out, err io.Writer) *cli { return &cli{out: screen{out}, err: screen{err}} }

// execute runs one command and returns its exit code. What went wrong is on
// stderr when it returns.
func (c *cli) execute(ctx context.Context, args []string) int {
	root := c.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return c.report(ctx, cmd, err)
}

func (c *cli) root() *cobra.Command {
	var version bool
	root := &cobra.Command{
		Use:   "glance-dtn",
		Short: "Keep OpenStack images the same at several sites",
		Long: `glance-dtn brings images from one site's Glance to another's through the sites'
data transfer nodes (DTNs), in three legs: local copy, API call, local copy.

Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 4 needs a person, 130 interrupted.`,
		Args:              noSuchCommand,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,

		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == cobra.ShellCompRequestCmd {
				cmd.Root().SetOut(unquoting{c.out})
			}
			return c.checkFormat()
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return c.printVersion()
			}
			return cmd.Help()
		},
	}
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.Flags().BoolVar(&version, "version", false, "print the version")
	f := root.PersistentFlags()
	f.StringVarP(&c.format, "output", "o", "table", "how results are printed: table, json or yaml")
	f.StringVar(&c.socket, "control", defaultControl, "control socket of the agent ($GLANCE_DTN_CONTROL)")
	f.BoolVar(&c.noColor, "no-color", false, "no colours ($NO_COLOR)")
	// After the flags, so that help and manual show the same defaults everywhere.
	c.socket, c.noColor = envOr("GLANCE_DTN_CONTROL", c.socket), os.Getenv("NO_COLOR") != ""
	complete(root, "output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: "images", Title: "Images and jobs:"},
		&cobra.Group{ID: "daemons", Title: "Daemons and their certificates:"},
	)
	for group, cmds := range map[string][]*cobra.Command{
		"images":  {c.push(), c.pull(), c.replicate(), c.compare(), c.status(), c.jobs(), c.transfers(), c.paths(), c.history(), c.planWay(), c.cancel(), c.retry()},
		"daemons": {c.agent(), c.dtn(), c.probe(), c.tune(), c.pki()},
		"":        {c.man(), c.version()},
	} {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	shells(root)
	root.InitDefaultHelpCmd()
	helpOf(root)
	markRunErrors(root)
	return root
}

// shells makes the completion command, for the shells of the systems that this runs on.
func shells(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{"completion"})
	if err != nil {
		panic(err)
	}
	cmd.Args, cmd.RunE = noSuchCommand, noCommand
	cmd.SuggestionsMinimumDistance = root.SuggestionsMinimumDistance
	for _, shell := range cmd.Commands() {
		if shell.Name() == "powershell" {
			cmd.RemoveCommand(shell)
		}
	}
}

// helpOf has the help command refuse what is no command.
func helpOf(root *cobra.Command) {
	cmd, _, err := root.Find([]string{"help"})
	if err != nil {
		panic(err)
	}
	cmd.Args = func(_ *cobra.Command, args []string) error {
		found, rest, err := root.Find(args)
		if err != nil {
			return err
		}
		return noSuchCommand(found, rest)
	}
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("there is no command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("%s", text)
}

// noCommand refuses a command that only others below it do something for.
func noCommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		names = append(names, sub.Name())
	}
	return usagef("COMMAND is missing: %s", either(names))
}

// args wants one argument of each name; a last name that ends in "..." stands for one or
// more, one in brackets may be left out.
func args(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, got []string) error {
		if len(got) < len(names) && !strings.HasPrefix(names[len(got)], "[") {
			return fmt.Errorf("%s is missing", strings.TrimSuffix(names[len(got)], "..."))
		}
		if len(got) > len(names) && !strings.HasSuffix(strings.Join(names, ""), "...") {
			return fmt.Errorf("unexpected argument %q", got[len(names)])
		}
		return nil
	}
}

func (c *cli) checkFormat() error {
	switch c.format {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("-o %s: the formats are table, json and yaml", c.format)
}

// colour reports whether a table on stdout is coloured.
func (c *cli) colour() bool { return !c.noColor && isTerminal(c.out) }

func isTerminal(w io.Writer) bool { return terminalWidth(w) > 0 }

// terminalWidth is how many columns the terminal behind w has; 0 when it is none.
func terminalWidth(w io.Writer) int {
	width, _ := terminalSize(w)
	return width
}

// terminalSize is how many columns and lines the terminal behind w has; 0 when it is none.
func terminalSize(w io.Writer) (width, height int) {
	f, ok := behind(w).(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, 0
	}
	if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width, cmp.Or(height, 24)
	}
	return 80, 24 // one that does not tell, as on a serial line
}

func envOr(key, otherwise string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return otherwise
}
