package localcopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// checkTimeout is how long Check waits for the export.
const checkTimeout = 5 * time.Second

// probe is one look at the export. err is set when done is closed.
type probe struct {
	since time.Time
	done  chan struct{}
	err   error
}

// Check reports whether the export is there and can be written to. It returns
// within seconds even when the NFS server does not answer. Then the look at the
// export goes on until it does, and later calls wait for that one: there is never
// more than one.
func (c *Copier) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	p := c.look()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("export %s has not answered since %s; is its NFS server up?", c.export, p.since.Format(time.RFC3339))
	}
}

// look starts a probe, or returns the running one.
func (c *Copier) look() *probe {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.probe != nil {
		return c.probe
	}
	p := &probe{since: time.Now(), done: make(chan struct{})}
	c.probe = p
	go func() {
		p.err = c.touch()
		c.mu.Lock()
		c.probe = nil
		c.mu.Unlock()
		close(p.done)
	}()
	return p
}

// probeOf begins the hidden names of files that only try whether one can be written.
const probeOf = "check"

// writable makes sure of both boxes, and that files can be written to the outbox. The
// probe's name is new and nothing is written through what has it already: the
// DTN's user may write to the outbox too, and could have put a link to one of this
// user's files there.
func (c *Copier) writable() error {
	inbox, err := c.box(mover.Inbox)
	if err != nil {
		return err
	}
	defer inbox.Close()
	outbox, err := c.box(mover.Outbox)
	if err != nil {
		return err
	}
	defer outbox.Close()
	if err := sweep(outbox, ""); err != nil { // what a killed agent left, not what another one uses
		return fmt.Errorf("remove an old probe from the export: %w", err)
	}
	name := tempName(probeOf)
	f, err := outbox.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write to the export: %w", err)
	}
	_, err = f.WriteString("x")
	if err = errors.Join(err, f.Close()); err != nil {
		err = fmt.Errorf("write to the export: %w", err)
	}
	if e := outbox.Remove(name); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("remove from the export: %w", e))
	}
	return err
}
