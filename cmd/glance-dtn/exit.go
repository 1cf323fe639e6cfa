package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
)

// The exit codes are part of the command line's contract.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3 // some images are where they should be, others are not
	exitPerson      = 4 // jobs are parked; each says why and what to do
	exitInterrupted = 130
)

// errInterrupted says that a signal ended the command before its work.
var errInterrupted = errors.New("interrupted")

// codeError ends the program with a code of its own. The text of a nil err has
// been printed already.
type codeError struct {
	code int
	err  error
	help bool // the command's help says more
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// withCode returns nil for exitDone and otherwise an error that prints nothing.
func withCode(code int) error {
	if code == exitDone {
		return nil
	}
	return &codeError{code: code}
}

// usagef is a fault in how the command was called that its flags cannot see.
func usagef(format string, args ...any) error {
	return &codeError{code: exitUsage, err: fmt.Errorf(format, args...), help: true}
}

// badConfig is a fault in a configuration file. It is a usage error, so that
// systemd knows that another start does not cure it.
func badConfig(err error) error { return &codeError{code: exitUsage, err: err} }

// markRunErrors makes every error of a command's own work a codeError; a site that
// the agent does not have among its peers is a usage error. What cobra finds wrong
// before that stays unmarked: it is one, too.
func markRunErrors(cmd *cobra.Command) {
	if work := cmd.RunE; work != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			err := work(cmd, args)
			if _, marked := errors.AsType[*codeError](err); err == nil || marked {
				return err
			}
			if errors.Is(err, agent.ErrNoPeer) {
				return &codeError{code: exitUsage, err: err}
			}
			return &codeError{code: exitFailed, err: err}
		}
	}
	for _, sub := range cmd.Commands() {
		markRunErrors(sub)
	}
}

// report prints err for a person and returns the exit code.
func (c *cli) report(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	e, ran := errors.AsType[*codeError](err)
	once := cmd.Flags().Lookup("once")
	switch {
	case !ran:
		e = &codeError{code: exitUsage, err: err, help: true}
	case errors.Is(err, errInterrupted) && e.code != exitInterrupted, e.code == exitFailed && ctx.Err() != nil:
		e = &codeError{code: exitInterrupted, err: errInterrupted}
	case errors.Is(err, api.ErrNoAgent) && once != nil:
		e = &codeError{code: e.code, err: fmt.Errorf("%w, or use --once", e.err)}
	}
	if e.err != nil {
		printError(c.err, e.err)
	}
	if e.help {
		fmt.Fprintf(c.err, "Try '%s --help'.\n", cmd.CommandPath())
	}
	return e.code
}

// printError writes a joined error as one indented line for each part.
func printError(w io.Writer, err error) {
	fmt.Fprintln(w, "glance-dtn:", strings.ReplaceAll(strings.TrimRight(err.Error(), "\n"), "\n", "\n  "))
}
