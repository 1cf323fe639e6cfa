package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// How often the export is looked at.
const (
	lookWell    = 10 * time.Second
	lookTrouble = time.Second // so often while a leg may be waiting for it
)

// gate stands before the export of this site's DTN. While the export is not well the
// gate is shut: no leg that needs the export begins, and one that ran and has failed
// waits, without that being its failure. It opens by itself. Everything that is done
// with the export goes through it.
type gate struct {
	Stager
	log     *slog.Logger
	changed chan struct{} // it was opened or shut

	mu    sync.Mutex
	shut  error // why; nil: open
	since time.Time
}

func newGate(s Stager, log *slog.Logger) *gate {
	return &gate{Stager: s, log: log, changed: make(chan struct{}, 1)}
}

// waiting is the error of a leg that waits for the export.
type waiting struct{ error }

func (w waiting) Unwrap() error { return w.error }

// closed returns why the gate is shut, nil when it is open.
func (g *gate) closed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

// Check looks at the export and opens or shuts the gate.
func (g *gate) Check(ctx context.Context) error {
	err := g.Stager.Check(ctx)
	if err != nil && ctx.Err() != nil {
		return err // nobody waited for the answer
	}
	g.set(err)
	return err
}

func (g *gate) set(err error) {
	if errors.Is(err, ErrSpace) {
		err = nil // what frees space must go on
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.shut
	g.shut = err
	switch {
	case err == nil && old == nil, err != nil && old != nil && err.Error() == old.Error():
		return
	case err == nil:
		g.log.Info("the export is well again, legs go on", "seconds", time.Since(g.since).Seconds())
	default:
		if old == nil {
			g.since = time.Now()
		}
		g.log.Warn("the export cannot be used, legs that need it wait", "err", err)
	}
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// watch looks at the export until ctx ends, more often while a leg may wait for it.
func (g *gate) watch(ctx context.Context) {
	for {
		d := lookWell
		if g.closed() != nil {
			d = lookTrouble
		}
		if !pause(ctx, d) {
			return
		}
		_ = g.Check(ctx)
	}
}

// failed returns the error of a call that has failed: it waits when the export is the cause.
func (g *gate) failed(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	_ = g.Check(ctx)
	if shut := g.closed(); shut != nil {
		return waiting{shut}
	}
	return err
}

func (g *gate) pass() error {
	if shut := g.closed(); shut != nil {
		return waiting{shut}
	}
	return nil
}

// Stage is the Stager's.
func (g *gate) Stage(ctx context.Context, id glance.ImageID, f mover.File, report func(moved int64)) (string, error) {
	if err := g.pass(); err != nil {
		return "", err
	}
	how, err := g.Stager.Stage(ctx, id, f, report)
	return how, g.failed(ctx, err)
}

// Unstage is the Stager's.
func (g *gate) Unstage(ctx context.Context, name string) error {
	if err := g.pass(); err != nil {
		return err
	}
	return g.failed(ctx, g.Stager.Unstage(ctx, name))
}

// Staged is the Stager's.
func (g *gate) Staged(ctx context.Context) ([]string, error) {
	if err := g.pass(); err != nil {
		return nil, err
	}
	names, err := g.Stager.Staged(ctx)
	return names, g.failed(ctx, err)
}

// Open is the Stager's.
func (g *gate) Open(name string) (ReaderAtCloser, error) {
	if err := g.pass(); err != nil {
		return nil, err
	}
	f, err := g.Stager.Open(name)
	if err != nil {
		return nil, g.failed(context.Background(), err)
	}
	return gatedFile{f, g}, nil
}

type gatedFile struct {
	ReaderAtCloser
	gate *gate
}

func (f gatedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAtCloser.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = f.gate.failed(context.Background(), err)
	}
	return n, err
}

// ExportTrouble returns why the legs that need the export of this site's DTN wait, nil
// when they do not.
func (a *Agent) ExportTrouble() error { return a.gate.closed() }

// halted returns the job as it is to be stored, and what it waits for, when err says
// that the job's step waits for the export.
func halted(j Job, err error) (Job, error, bool) {
	w, ok := errors.AsType[waiting](err)
	if !ok {
		return j, err, false
	}
	j.Paused = true
	return j, failure.After(lookTrouble, w.error), true
}

// resumed takes from a job what was recorded while it waited for the export.
func resumed(j Job) Job {
	j.Paused, j.Reason, j.NotBefore = false, "", time.Time{}
	return j
}

// told returns the job as others are told of it. A leg that hangs in a call to the
// export cannot say so itself.
func (a *Agent) told(j Job) Job {
	needs := j.Kind == Send && j.State == Offered || j.Kind == Receive && j.State == Arriving && j.LocalCopy == ""
	if shut := a.gate.closed(); shut != nil && needs && j.Reason == "" {
		j.Reason = shut.Error()
	}
	return j
}
