package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/glance-dtn/glance-dtn/nfs/host"
)

// undoNFS puts back what sweeps and --apply have changed. What it has done is told also
// where something else fails.
func (c *cli) undoNFS(ctx context.Context, t nfsTuning) error {
	says, err := undoable(ctx, t.state)
	if !t.dryRun && len(says) > 0 {
		says, err = t.undoAll(ctx)
	}
	return c.undone(says, err, t.dryRun, "Would be done, where the servers answer:")
}

// undone tells what was undone, or would be, and what has failed.
func (c *cli) undone(says []string, err error, dryRun bool, would string) error {
	done := struct {
		Done   []string `json:"done"`
		DryRun bool     `json:"dry_run"`
	}{Done: append([]string{}, says...), DryRun: dryRun}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		err = fmt.Errorf("%w: run it with sudo", err)
	}
	if err != nil && len(done.Done) == 0 {
		return err
	}
	return errors.Join(c.print(done, func() error {
		if len(done.Done) > 0 {
			heading := "Done:"
			if dryRun {
				heading = would
			}
			_, err := fmt.Fprintf(c.out, "%s\n%s\n", heading, strings.Join(done.Done, "\n"))
			return err
		}
		_, err := fmt.Fprintf(c.out, "there is nothing to undo%s\n", asRoot())
		return err
	}), err)
}

// asRoot tells others than root where to look for what was changed as root.
func asRoot() string {
	if os.Geteuid() == 0 {
		return ""
	}
	return "; what was done as root is undone with sudo"
}

// undoable says what undoAll would do.
func undoable(ctx context.Context, state string) ([]string, error) {
	says, err := recoverable(ctx, state)
	applied, appliedErr := host.New(state).Undoable()
	return append(says, applied...), errors.Join(err, appliedErr)
}

// undoAll goes on after an error.
func (t *nfsTuning) undoAll(ctx context.Context) (did []string, err error) {
	if t.left, err = takeLeftovers(t.state); err != nil {
		return nil, err
	}
	defer t.left.Close()
	h := host.New(t.state)
	var faults []error
	for _, undo := range []func() ([]string, error){
		func() ([]string, error) { return t.left.recover(ctx, h) },
		func() ([]string, error) {
			did, err := t.left.remove(ctx, h)
			if err == nil || !t.force || ctx.Err() != nil {
				return did, err
			}
			forgot, err := t.left.forget()
			return append(did, forgot...), err
		},
		func() ([]string, error) { return h.Undo(ctx, t.force) },
	} {
		d, err := undo()
		did, faults = append(did, d...), append(faults, err)
	}
	return did, errors.Join(faults...)
}

// removeIfThere is os.Remove for a file that may not have been made.
func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
