// Package guard watches over the directory where a machine mounts the export of its
// DTN. It tells a directory that is that export from one that is not, because the
// mount is gone, is stale, hangs, has become read-only, or is another export's, and
// says what to do about it.
//
// The export bears a marker, a small file at its root that the DTN makes once ([Mark]).
// An export is well when its marker is the right one, it lies where it lay before as
// far as mounts go, and it can be used. The right marker is the one that the DTN itself
// tells; while it does not answer, that of the last good look, which is remembered in a
// state directory. So the first look at a new DTN needs nobody, and neither does a
// mount that was made anew, whatever its device, its mount id or the server's address:
// these are compared only to say that it was.
//
// A directory that nothing is mounted on has no marker, as a rule. It has one where a
// copy of the export was left beneath the mount: [Mounted] guards against that.
//
// [Guard.Open] hands out the root of the export only after it has seen the marker
// through that very handle. Whoever works below it can never write beneath a mount that
// went away meanwhile: the handle keeps the file system, or ends in an error.
//
// On Linux: statfs(2), proc(5) (mountinfo, fdinfo), nfs(5).
package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// Mounted says whether the export has to be a mount.
type Mounted string

// What may be expected of the directory.
const (
	Auto     Mounted = "auto"     // the mount that it was on when it was well must be there, if it was on one
	Required Mounted = "required" // it is itself a mount point, and no directory of this machine bound onto itself
	None     Mounted = "none"     // the marker alone says
)

// Patience is how long an export may take to answer before it counts as hung. A server
// that is busy with large writes takes seconds.
const Patience = 10 * time.Second

// tellTime is how long the DTN is asked for its marker.
const tellTime = 3 * time.Second

// Options are what a Guard needs. Told, Try, State and Log may be left out.
type Options struct {
	Dir     string  // where the export is, absolute
	Site    string  // whose export it is
	Mounted Mounted // empty: Auto
	// State is a directory where the last good look is remembered. Empty: as long as
	// this process lives.
	State string
	// Told returns the id of the marker as the DTN itself tells it, "" when it does not.
	Told func(ctx context.Context) (id string, err error)
	// Try uses the export as its owner does, once all else is well.
	Try func(root *os.Root) error
	Log *slog.Logger
}

// Guard guards one export. Its methods may be called at once.
type Guard struct {
	Options
	sys      system
	patience time.Duration

	mu   sync.Mutex
	last seen  // the last good look; zero: there was none
	look *look // the running one, or nil

	away     bool     // it was not mounted since the last good look:
	hidden   []string // this lay in the directory,
	hiddenIn string   // in the file system mounted here
}

// look is one look at the export. err is set when done is closed.
type look struct {
	since time.Time
	mount nfs.Mount // that the directory was on when it began
	found bool
	done  chan struct{}
	err   error
}

// New returns a Guard that knows what was remembered. It does not look at the export.
func New(o Options) (*Guard, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Dir, o.Mounted = filepath.Clean(o.Dir), cmp.Or(o.Mounted, Auto)
	g := &Guard{Options: o, sys: host, patience: Patience}
	if o.State == "" {
		return g, nil
	}
	state, err := os.OpenRoot(o.State)
	if err != nil {
		return nil, fmt.Errorf("what is known of the export: %w", err)
	}
	defer state.Close()
	if err := recall(state, &g.last.export); err != nil {
		return nil, err
	}
	if g.last.Dir != o.Dir { // the configuration names another
		g.last = seen{}
	}
	return g, nil
}

// Check returns nil when the export is well, a *Trouble when it is not, and ctx's cause
// when ctx ends before that is known. It returns within Patience whatever the export
// does. A look that hangs goes on until the kernel lets it: later calls wait for that
// one, so there is never more than one at a mount.
func (g *Guard) Check(ctx context.Context) error {
	l := g.start()
	late := time.NewTimer(time.Until(l.since.Add(g.patience)))
	defer late.Stop()
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		return fmt.Errorf("export %s has not answered yet, asked at %s: %w", g.Dir, l.since.UTC().Format(time.RFC3339), context.Cause(ctx))
	case <-late.C:
	}
	select {
	case <-l.done:
		return l.err
	default:
		return hung(g.Dir, l.mount, l.found, l.since)
	}
}

// start starts a look, or returns the running one. One that hangs at a mount that is
// no longer the one at the directory is left to itself.
func (g *Guard) start() *look {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, found := g.covering(g.last)
	if l := g.look; l != nil && (time.Since(l.since) < g.patience || l.found == found && l.mount.ID == m.ID) {
		return l
	}
	l := &look{since: time.Now(), mount: m, found: found, done: make(chan struct{})}
	g.look = l
	last := g.last
	go func() {
		defer close(l.done)
		now, err := g.see(last)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.look == l {
			g.look = nil
			err = g.note(now, err)
		}
		l.err = err
	}()
	return l
}

// note keeps what a look has found, and returns the look's error. g.mu is held.
func (g *Guard) note(now seen, err error) error {
	if err != nil {
		return err
	}
	old, anew := g.last, now.remounted(g.last) || g.away // the kernel uses the ids of mounts again
	if now.export != old.export {
		if err := g.remember(now); err != nil { // the export is well all the same
			g.Log.Warn("what the export is cannot be kept for the next start", "export", g.Dir, "err", err)
		}
	}
	if anew && old.Marker.ID != "" {
		g.Log.Info("the export was mounted anew", "export", g.Dir, "source", now.Source, "before", old.Source, "fsid", now.FSID, "fsid_before", old.FSID)
	}
	if len(g.hidden) > 0 && beyond(now.Point, g.hiddenIn) {
		g.Log.Warn("files lie beneath the mount, on this machine's own disk; unmount it to remove them", "export", g.Dir, "files", g.hidden)
	}
	g.last, g.away, g.hidden = now, false, nil
	return nil
}

// remember writes a good look to the state directory.
func (g *Guard) remember(s seen) error {
	if g.State == "" {
		return nil
	}
	state, err := os.OpenRoot(g.State)
	if err == nil {
		err = errors.Join(writeJSON(state, memoryFile, s.export, 0o600), state.Close())
	}
	if err != nil {
		return fmt.Errorf("remember the export: %w", err)
	}
	return nil
}

// covering returns the mount that the directory is on now. It asks the export nothing.
func (g *Guard) covering(last seen) (nfs.Mount, bool) {
	mounts, err := g.sys.mounts()
	if err != nil {
		return nfs.Mount{}, false
	}
	return nfs.Covering(mounts, cmp.Or(last.Path, g.Dir))
}

// Open opens the export's root, once it has seen that it is the right export. It
// refuses at once while the export hangs. The error has a *Trouble.
func (g *Guard) Open() (*os.Root, error) {
	g.mu.Lock()
	l, last := g.look, g.last
	g.mu.Unlock()
	if l != nil && time.Since(l.since) >= g.patience {
		return nil, hung(g.Dir, l.mount, l.found, l.since)
	}
	root, s, err := g.enter(last)
	if err != nil {
		return nil, err
	}
	if last.Marker.ID != "" && s.Marker.ID != last.Marker.ID {
		return nil, errors.Join(g.replaced(s, last.Marker.ID), root.Close())
	}
	return root, nil
}

// see looks at the export. It may hang.
func (g *Guard) see(last seen) (s seen, err error) {
	root, s, err := g.enter(last)
	if err != nil {
		return s, err
	}
	defer root.Close()
	if id := g.told(); id != "" {
		last.Marker.ID = id
	}
	if last.Marker.ID != "" && s.Marker.ID != last.Marker.ID {
		return s, g.replaced(s, last.Marker.ID)
	}
	if g.Try != nil {
		if err := g.Try(root); err != nil {
			return s, explain(g.Dir, s.mount, err)
		}
	}
	return s, nil
}

func (g *Guard) told() string {
	if g.Told == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellTime)
	defer cancel()
	id, err := g.Told(ctx)
	if err != nil {
		return "" // it is another check that says so
	}
	return id
}

// enter opens the export and makes sure that the handle is on the mount that is
// expected and sees a marker of the site.
func (g *Guard) enter(last seen) (_ *os.Root, s seen, err error) {
	root, err := g.sys.open(g.Dir)
	if err != nil {
		m, _ := g.covering(last)
		return nil, s, explain(g.Dir, m, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
		}
	}()
	if s, err = g.sys.identify(root); err != nil {
		m, _ := g.covering(last)
		return nil, s, explain(g.Dir, m, err)
	}
	s.Dir = g.Dir
	switch {
	case g.Mounted == Required && s.Point != s.Path && s.mount.Point == s.Path && !nfs.IsNFS(s.Type):
		return nil, s, g.gone("is only bound onto itself, and mount: required is set", "mount the DTN's export there", s, root)
	case g.Mounted == Required && s.Point != s.Path && s.mount.Point != s.Path:
		return nil, s, g.gone("is not mounted, and mount: required is set", "mount it", s, root)
	case g.Mounted == Auto && beyond(last.Point, s.Point):
		return nil, s, g.gone("is not mounted, and was before"+last.of(g.Dir), "mount it, or set mount: none if it is to be a plain directory", s, root)
	}
	s.Marker, err = readMarker(root)
	switch {
	case errors.Is(err, fs.ErrNotExist) && last.Marker.ID == "" && g.Mounted == Auto && s.Point != s.Path && !nfs.IsNFS(s.Type):
		return nil, s, g.gone("is not mounted and has no "+MarkerFile, "mount it, or start the DTN if this is its own directory", s, root)
	case errors.Is(err, fs.ErrNotExist):
		return nil, s, &Trouble{State: Unmarked, Dir: g.Dir, Why: "has no " + MarkerFile + s.of(g.Dir),
			Next: "the DTN puts it back if this is its export, or says on its /readyz why not; otherwise mount the DTN's there"}
	case err != nil:
		return nil, s, explain(g.Dir, s.mount, err)
	case s.Marker.Site != g.Site:
		return nil, s, &Trouble{State: Replaced, Dir: g.Dir, Why: fmt.Sprintf("is the export of site %s%s", s.Marker.Site, s.of(g.Dir)),
			Next: fmt.Sprintf("mount that of the DTN of site %s", g.Site)}
	}
	return root, s, nil
}

// of tells what the directory shows: " (dtn:/glance on /mnt)".
func (s seen) of(dir string) string {
	if s.Point == dir {
		return " (" + s.Source + ")"
	}
	return fmt.Sprintf(" (%s on %s)", s.Source, s.Point)
}

// beyond reports whether a mount point lies below another.
func beyond(point, other string) bool {
	return point != other && strings.HasPrefix(point, strings.TrimSuffix(other, "/")+"/")
}

func (g *Guard) replaced(s seen, want string) error {
	return &Trouble{State: Replaced, Dir: g.Dir,
		Why:  fmt.Sprintf("is another one%s, with the marker %s instead of %s", s.of(g.Dir), s.Marker.ID, want),
		Next: "mount the export of this site's DTN; if it has moved, start the DTN there, whose word counts",
	}
}

// gone is told where the file system is missing that the export lies on. What lies there
// instead is on this machine's disk, and would be hidden by the mount.
func (g *Guard) gone(why, next string, s seen, root *os.Root) error {
	t := &Trouble{State: Gone, Dir: g.Dir, Why: why, Next: next}
	names := list(root)
	if n := len(names); n > 0 {
		lies := strings.Join(names[:min(3, n)], ", ")
		if n > 3 {
			lies += fmt.Sprintf(" and %d more", n-3)
		}
		t.Next += fmt.Sprintf("; a mount hides what lies here (%s): move it away first", lies)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.away, g.hidden, g.hiddenIn = true, names, s.Point
	return t
}

// list returns the names at the root, as far as they can be told.
func list(root *os.Root) []string {
	d, err := root.Open(".")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(1000)
	slices.Sort(names)
	return names
}
