package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/internal/sealed"
	"github.com/glance-dtn/glance-dtn/nfs"
)

// Host changes the NFS of this host.
type Host struct {
	dir  string
	root string // above all files that are read; tests have one
	sys  system
}

// New returns a Host that keeps its undo record in dir, an absolute path, which is
// made, for this user alone, when it is first needed.
func New(dir string) *Host { return &Host{dir: filepath.Clean(dir), sys: linux{}} }

// Options say how to Apply.
type Options struct {
	// Force unmounts a busy mount lazily (umount -l): programs keep the files that
	// they have open, with the old options and their own connection, until they
	// close them; what they open anew by its path is on the new mount. Their
	// working directory stays on the old one.
	Force bool

	// Accept is called after the changes, if it is not nil, to measure whether they
	// are for the better. Where it fails everything is put back as it was.
	Accept func(ctx context.Context) error
}

// Result is what became of one Change.
type Result struct {
	Change
	Granted     nfs.Options      `json:"granted"`               // all options that hold now
	Differences []nfs.Difference `json:"differences,omitempty"` // what was asked for and is not granted
	// Notes says in sentences what a person should know of it.
	Notes []string `json:"notes,omitempty"`
}

// Apply carries out the changes in order. Where one fails, or Options.Accept does,
// it puts back all of them and returns the error; where that fails too the error
// says both, and Undo is to be tried again. It fails before it changes anything
// where the state is no more that of the plan, where somebody else has written to a
// file of our own, and with a *BusyError where a mount is in use and Options.Force is
// not set.
func (h *Host) Apply(ctx context.Context, changes []Change, o Options) ([]Result, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	lock, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	state, err := h.Read(ctx)
	if err != nil {
		return nil, err
	}
	kept, err := h.kept()
	if err != nil {
		return nil, err
	}
	var before []saved
	for _, c := range changes {
		s, err := h.save(state, c)
		if err == nil && c.Kind == KindMount && !o.Force {
			err = h.idle(state, c.Target)
		}
		if err != nil {
			return nil, err
		}
		before = append(before, s)
	}
	err = h.keep(merge(kept, before))
	var results []Result
	for _, c := range changes {
		if err != nil {
			break
		}
		var r Result
		r, err = h.apply(ctx, state, c, o.Force)
		results = append(results, r)
	}
	if err == nil && o.Accept != nil {
		if err = o.Accept(ctx); err != nil {
			err = fmt.Errorf("what was changed is not accepted: %w", err)
		}
	}
	if err == nil {
		return results, nil
	}
	_, back := h.putBack(context.WithoutCancel(ctx), before, o.Force, false)
	if back == nil {
		back = h.keep(kept)
	}
	if back != nil {
		return nil, fmt.Errorf("%w; and not everything could be put back, undo it again: %w", err, back)
	}
	return nil, fmt.Errorf("%w; everything is as it was", err)
}

// Undo puts back what was there before the first Apply since the last Undo, and
// returns in sentences what it did; nothing where there is nothing to undo. It may
// be repeated after an error. What others have done since stays: to an export, other
// options than those that were changed, and its end; and what they have mounted in the
// place of a mount. Where somebody else has written to a file of our own it fails and
// does nothing. A busy mount is a *BusyError unless force is set; see Options.Force.
// Where ctx is cancelled while a mount is replaced, it first mounts what was there, for
// which a server that is away has 3 minutes.
func (h *Host) Undo(ctx context.Context, force bool) ([]string, error) {
	if kept, err := h.kept(); err != nil || len(kept) == 0 {
		return nil, err
	}
	lock, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	kept, err := h.kept() // another Undo may have been faster
	if err != nil {
		return nil, err
	}
	if err := h.untouched(kept); err != nil {
		return nil, err
	}
	did, err := h.putBack(ctx, kept, force, true)
	if err == nil {
		err = h.keep(nil)
	}
	return did, err
}

// Undoable says in sentences what Undo would put back; nothing where there is
// nothing.
func (h *Host) Undoable() ([]string, error) {
	kept, err := h.kept()
	var says []string
	for _, s := range slices.Backward(kept) {
		if !slices.Contains(says, s.String()) { // one target may have two files
			says = append(says, s.String())
		}
	}
	return says, err
}

// lock keeps other processes out.
func (h *Host) lock() (*os.File, error) { return lockDir(h.path(h.dir)) }

func lockDir(dir string) (*os.File, error) {
	lock, err := durable.LockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("use state directory %s: %w", dir, err)
	}
	return lock, nil
}

// apply carries out one change and reads back what holds.
func (h *Host) apply(ctx context.Context, state State, c Change, force bool) (Result, error) {
	do := h.applyMount
	if c.Kind == KindExport {
		do = h.applyExport
	}
	r, err := do(ctx, state, c, force)
	if err != nil {
		return Result{}, fmt.Errorf("%s %s: %w", c.Kind, c.Target, err)
	}
	return r, nil
}

func (h *Host) applyExport(ctx context.Context, _ State, c Change, _ bool) (Result, error) {
	if c.File != "" {
		own, err := parseFile(h.path(c.File), nfs.ParseExports)
		if err != nil {
			return Result{}, err
		}
		var others []nfs.Export
		for _, e := range own {
			e.Clients = slices.DeleteFunc(e.Clients, func(client nfs.Client) bool { return e.Path == c.Target && client.Host == c.Client })
			if len(e.Clients) > 0 {
				others = append(others, e)
			}
		}
		text, err := nfs.FormatExports(append(others, nfs.Export{Path: c.Target, Clients: []nfs.Client{{Host: c.Client, Options: c.To}}})...)
		if err != nil {
			return Result{}, err
		}
		if err := h.sys.write(c.File, sealed.Seal(text)); err != nil {
			return Result{}, err
		}
	}
	said, err := h.export(ctx, c.Target, c.Client, c.To)
	if err != nil {
		return Result{}, err
	}
	granted, err := h.exported(ctx, c.Target, c.Client)
	if err != nil {
		return Result{}, err
	}
	r := Result{Change: c, Granted: granted}
	for _, o := range c.Asked {
		if !slices.Contains(granted, o) {
			r.Notes = append(r.Notes, fmt.Sprintf("The table of exports does not show %s.", o))
		}
	}
	if said != nil {
		r.Notes = append(r.Notes, fmt.Sprintf("It is done, but %v.", said))
	}
	return r, nil
}

// export sets the options of one entry of the server's table. It judges by the table,
// since exportfs(8) ends with an error for what it warns of too: that is said.
func (h *Host) export(ctx context.Context, path, client string, o nfs.Options) (said, err error) {
	_, said = h.sys.run(ctx, "exportfs", "-i", "-o", o.String(), nfs.JoinSource(client, path))
	if said == nil {
		return nil, nil
	}
	now, err := h.exported(ctx, path, client)
	if err != nil {
		return nil, errors.Join(said, err)
	}
	want, wantErr := o.Export()
	if got, err := now.Export(); err != nil || wantErr != nil || got != want {
		return nil, said
	}
	return said, nil
}

// exported returns the options of one entry of the server's table.
func (h *Host) exported(ctx context.Context, path, client string) (nfs.Options, error) {
	table, err := h.exports(ctx)
	if err != nil {
		return nil, err
	}
	o, found := State{Exports: table}.exported(path, client)
	if !found {
		return nil, fmt.Errorf("the table of exports has %s to %s no more", path, client)
	}
	return o, nil
}

func (s State) exported(path, client string) (nfs.Options, bool) {
	for _, e := range s.Exports {
		for _, c := range e.Clients {
			if e.Path == path && c.Host == client {
				return c.Options, true
			}
		}
	}
	return nil, false
}

func (h *Host) applyMount(ctx context.Context, state State, c Change, force bool) (Result, error) {
	if c.File != "" {
		text := c.Text
		if c.File == h.fstab() {
			own, err := parseFile(h.path(c.File), nfs.ParseFstab)
			if err != nil {
				return Result{}, err
			}
			for _, e := range slices.Backward(own) {
				if e.Point != c.Target {
					text = e.String() + "\n" + text
				}
			}
		}
		if err := h.sys.write(c.File, sealed.Seal(text)); err != nil {
			return Result{}, err
		}
		if err := h.reload(ctx, c.File); err != nil {
			return Result{}, err
		}
	}
	if c.Kind == KindRemount {
		if err := h.remount(ctx, c.Source, c.Target, c.To); err != nil {
			return Result{}, err
		}
	} else {
		m, err := state.At(c.Target)
		if err != nil {
			return Result{}, err
		}
		if err := h.unmount(ctx, m, force); err != nil {
			return Result{}, err
		}
		if c.File == h.fstab() {
			// Fail at once, and leave nobody trying.
			_, err = h.sys.run(ctx, "mount", "--fstab", c.File, "-o", "fg,retry=0", c.Target)
		} else {
			err = h.start(ctx, c.Target)
		}
		if err != nil {
			return Result{}, err
		}
	}
	r, err := h.granted(c)
	if err != nil && c.Kind == KindMount { // it was the wrong one
		err = errors.Join(err, h.clear(ctx, c.Target, true))
	}
	return r, err
}

// granted tells what the kernel made of a change.
func (h *Host) granted(c Change) (Result, error) {
	mounts, err := h.mounts()
	if err != nil {
		return Result{}, err
	}
	now := State{Mounts: mounts}
	m, err := now.At(c.Target)
	switch {
	case err != nil:
		return Result{}, fmt.Errorf("it did not succeed: %w", err)
	case m.Source != c.Source:
		return Result{}, fmt.Errorf("%s is mounted there now, not %s", m.Source, c.Source)
	case len(stack(mounts, c.Target)) > 1:
		return Result{}, errors.New("two mounts lie there now, one above the other")
	}
	r := Result{Change: c, Granted: m.Effective()}
	asked := c.To
	if _, said := asked.Get("nconnect"); !said {
		asked = asked.With("nconnect=1") // what the default is
	}
	if r.Differences, err = nfs.Differences(asked, r.Granted); err != nil {
		return Result{}, err
	}
	for _, d := range r.Differences {
		r.Notes = append(r.Notes, explain(d))
	}
	for _, o := range c.Asked {
		if !nfs.Compared(o) && !shows(r.Granted, o) {
			r.Notes = append(r.Notes, fmt.Sprintf("The kernel does not show %s: that it holds cannot be told.", o))
		}
	}
	return r, nil
}

// explain says in a sentence why the kernel grants something else.
func explain(d nfs.Difference) string {
	why := "the kernel has decided so and does not say why"
	switch d.Option {
	case "rsize", "wsize":
		why = "the server allows no more, or the kernel has rounded it down"
	case "nconnect":
		why = "all mounts of a server share the connections of the first, until the last of them is unmounted"
	case "sync", "acregmin", "acregmax", "acdirmin", "acdirmax":
		why = "noac implies it"
	}
	return fmt.Sprintf("The kernel grants %s, not %s, for %s: %s.", d.Granted, d.Asked, d.Option, why)
}

// reload has systemd read its units anew if name is one.
func (h *Host) reload(ctx context.Context, name string) error {
	if !strings.HasPrefix(name, unitDir+"/") {
		return nil
	}
	_, err := h.sys.run(ctx, "systemctl", "daemon-reload")
	return err
}

// start has systemd mount a mount point. It may have to be asked again: systemd
// reads the table of mounts at most every second when that changes often, and until
// then does nothing for a unit that it believes to be mounted.
func (h *Host) start(ctx context.Context, point string) error {
	unit := UnitName(point)
	for range 5 {
		if _, err := h.sys.run(ctx, "systemctl", "start", "--", unit); err != nil {
			return fmt.Errorf("%w (journalctl -u '%s' has more)", err, unit)
		}
		if mounts, err := h.mounts(); err != nil || len(stack(mounts, point)) > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
	return fmt.Errorf("systemctl start %s ends without an error and mounts nothing", unit)
}

// giveUp ends the attempt of systemd to mount a mount point, if it makes one: that
// goes on without the systemctl that asked for it, for ever where fstab says bg, and
// would put its mount above whatever is mounted meanwhile.
func (h *Host) giveUp(ctx context.Context, point string) error {
	unit := UnitName(point)
	out, err := h.sys.run(ctx, "systemctl", "show", "--property=ActiveState", "--value", "--", unit)
	if err == nil && strings.TrimSpace(out) == "activating" {
		// Services that require the mount are not to be stopped with it.
		_, err = h.sys.run(ctx, "systemctl", "stop", "--job-mode=ignore-dependencies", "--", unit)
	}
	return err
}

// remount gives a mount the options of the VFS. With source and mount point both
// given, mount(8) takes no options from fstab.
func (h *Host) remount(ctx context.Context, source, point string, o nfs.Options) error {
	_, err := h.sys.run(ctx, "mount", "-t", "nfs", "-o", "remount,"+flags(o).String(), source, point)
	return err
}

// idle is nil where no process is seen to use the mount at a mount point.
func (h *Host) idle(s State, point string) error {
	m, err := s.At(point)
	if err != nil {
		return err
	}
	holders, err := h.Holders(point)
	if err != nil {
		return err
	}
	if on := below(s.Mounts, m); len(holders)+len(on) > 0 {
		return &BusyError{Dir: point, Holders: holders, Mounts: on}
	}
	return nil
}

// unmount unmounts m, lazily where it is busy and force is set. It fails where
// something is mounted on m: nobody would mount that again.
func (h *Host) unmount(ctx context.Context, m nfs.Mount, force bool) error {
	gone := func() (bool, []string, error) {
		mounts, err := h.mounts()
		return !slices.ContainsFunc(mounts, func(o nfs.Mount) bool { return o.ID == m.ID }), below(mounts, m), err
	}
	if is, on, err := gone(); is || err != nil {
		return err
	} else if len(on) > 0 {
		return &BusyError{Dir: m.Point, Mounts: on}
	}
	for _, args := range [][]string{{m.Point}, {"-l", m.Point}} {
		_, err := h.sys.run(ctx, "umount", args...)
		if is, _, lookErr := gone(); is || err == nil {
			return lookErr
		}
		lazy := len(args) > 1
		if lazy || !force {
			holders, lookErr := h.Holders(m.Point)
			if len(holders) > 0 || strings.Contains(err.Error(), "busy") {
				return &BusyError{Dir: m.Point, Holders: holders}
			}
			return errors.Join(err, lookErr)
		}
	}
	return nil
}
