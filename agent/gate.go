package agent

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"path"
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
// with the export goes through it. What is wrong with the outbox alone (ErrOutbox)
// holds up no leg that reads the inbox.
type gate struct {
	Stager
	log     *slog.Logger
	changed chan struct{} // what legs wait for is another now
	shutNow chan struct{} // it was shut, for watch

	mu     sync.Mutex
	shut   error // why; nil: open
	since  time.Time
	looks  int // begun so far
	judged int // the latest one that has told; what an earlier one tells after it is old
}

func newGate(s Stager, log *slog.Logger) *gate {
	return &gate{Stager: s, log: log, changed: make(chan struct{}, 1), shutNow: make(chan struct{}, 1)}
}

// waiting is the error of a leg that waits for the export.
type waiting struct{ error }

func (w waiting) Unwrap() error { return w.error }

// closed returns why the way to a box of the export is shut, nil when it is open. All that
// shuts the way to the inbox shuts the one to the outbox.
func (g *gate) closed(box string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if box == mover.Inbox && errors.Is(g.shut, ErrOutbox) {
		return nil
	}
	return g.shut
}

// Check looks at the export and opens or shuts the gate.
func (g *gate) Check(ctx context.Context) error {
	g.mu.Lock()
	g.looks++
	look := g.looks
	g.mu.Unlock()
	err := g.Stager.Check(ctx)
	if err != nil && ctx.Err() != nil {
		return err // nobody waited for the answer
	}
	g.set(look, err)
	return err
}

// set opens or shuts the gate by what a look has told, unless a later one has told before.
func (g *gate) set(look int, err error) {
	if errors.Is(err, ErrSpace) {
		err = nil // what frees space must go on
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if look < g.judged {
		return
	}
	g.judged = look
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
			signal(g.shutNow)
		}
		g.log.Warn("the export cannot be used, legs that need it wait", "err", err)
	}
	signal(g.changed)
}

// signal sends to a channel that holds one signal, unless that is there already.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// watch looks at the export until ctx ends, more often while a leg may wait for it.
func (g *gate) watch(ctx context.Context) {
	next := time.NewTimer(lookWell)
	defer next.Stop()
	for {
		if g.closed(mover.Outbox) != nil {
			next.Reset(lookTrouble)
		} else {
			next.Reset(lookWell)
		}
		select {
		case <-ctx.Done():
			return
		case <-g.shutNow: // by a leg that has failed
		case <-next.C:
			_ = g.Check(ctx)
		}
	}
}

// failed returns the error of a call that has failed in a box: it waits when the export
// is the cause.
func (g *gate) failed(ctx context.Context, box string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	_ = g.Check(ctx)
	return cmp.Or(g.pass(box), err)
}

func (g *gate) pass(box string) error {
	if shut := g.closed(box); shut != nil {
		return waiting{shut}
	}
	return nil
}

// Stage is the Stager's.
func (g *gate) Stage(ctx context.Context, id glance.ImageID, f mover.File, report func(moved int64)) (string, error) {
	if err := g.pass(mover.Outbox); err != nil {
		return "", err
	}
	how, err := g.Stager.Stage(ctx, id, f, report)
	return how, g.failed(ctx, mover.Outbox, err)
}

// Unstage is the Stager's.
func (g *gate) Unstage(ctx context.Context, name string) error {
	if err := g.pass(mover.Outbox); err != nil {
		return err
	}
	return g.failed(ctx, mover.Outbox, g.Stager.Unstage(ctx, name))
}

// Staged is the Stager's.
func (g *gate) Staged(ctx context.Context) ([]string, error) {
	if err := g.pass(mover.Outbox); err != nil {
		return nil, err
	}
	names, err := g.Stager.Staged(ctx)
	return names, g.failed(ctx, mover.Outbox, err)
}

// Open is the Stager's.
func (g *gate) Open(name string) (ReaderAtCloser, error) {
	box := path.Dir(name)
	if err := g.pass(box); err != nil {
		return nil, err
	}
	f, err := g.Stager.Open(name)
	if err != nil {
		return nil, g.failed(context.Background(), box, err)
	}
	return gatedFile{f, g, box}, nil
}

type gatedFile struct {
	ReaderAtCloser
	gate *gate
	box  string
}

func (f gatedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAtCloser.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = f.gate.failed(context.Background(), f.box, err)
	}
	return n, err
}

// ExportTrouble returns why legs that need the export of this site's DTN wait, nil when
// none does.
func (a *Agent) ExportTrouble() error { return a.gate.closed(mover.Outbox) }

// box is the box of the export that the job's leg uses.
func (j Job) box() string {
	if j.Kind == Send {
		return mover.Outbox
	}
	return mover.Inbox
}

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
	j.Site = a.Site
	needs := j.Kind == Send && j.State == Offered || j.Kind == Receive && j.State == Arriving && j.LocalCopy == ""
	if shut := a.gate.closed(j.box()); shut != nil && needs && j.Reason == "" {
		j.Paused, j.Reason = true, shut.Error()
	}
	if j.Reason == "" {
		j.Reason = a.lastWait(j)
	}
	return j
}
