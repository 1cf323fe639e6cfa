package host

import (
	"context"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// Host changes the NFS of this host.
type Host struct{ dir string }

// New returns a Host that keeps its undo record in dir, which is made, for this
// user alone, when it is first needed.
func New(dir string) *Host { return &Host{dir: dir} }

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
	Granted     nfs.Options      `json:"granted"`     // all options that hold now
	Differences []nfs.Difference `json:"differences"` // what was asked for and is not granted
	// Notes says in sentences what a person should know of it.
	Notes []string `json:"notes,omitempty"`
}

// Apply carries out the changes in order. Where one fails, or Options.Accept does,
// it puts back all of them and returns the error; where that fails too the error
// says both, and Undo is to be tried again. It fails before it changes anything
// where the state is no more that of the plan, and with a *BusyError where a mount
// is in use and Options.Force is not set.
func (h *Host) Apply(ctx context.Context, changes []Change, o Options) ([]Result, error) {
	return nil, nil
}

// Undo puts back what was there before the first Apply since the last Undo, and
// returns in sentences what it did; nothing where there is nothing to undo. It may
// be repeated after an error. A busy mount is a *BusyError unless force is set; see
// Options.Force.
func (h *Host) Undo(ctx context.Context, force bool) ([]string, error) { return nil, nil }

// Undoable says in sentences what Undo would put back; nothing where there is
// nothing.
func (h *Host) Undoable() ([]string, error) { return nil, nil }

// Scratch mounts source (host:/path) with the options at a mount point of its own,
// calls use with that, and unmounts it. The mount shares neither options nor page
// cache with others of the same server (nosharecache of nfs(5)); it does share the
// connections, and so the nconnect of the first one. It is unmounted also when use
// fails, and lazily where use has left files open, which is an error. What a killed
// process has left is unmounted by the next call. One Scratch runs at a time in a
// state directory: durable.ErrLocked.
func (h *Host) Scratch(ctx context.Context, source string, options nfs.Options, use func(dir string) error) error {
	return nil
}
