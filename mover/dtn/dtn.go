// Package dtn is the daemon of a data transfer node as a library: the third-party
// transfer API, a durable table of transfers, and the scheduler that runs them on
// the engines it is given. It moves no byte itself; of the files that others wrote into
// its outbox it tells what its disk has.
package dtn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// DefaultKeep is how long finished transfers are remembered when nobody says otherwise.
const DefaultKeep = 7 * 24 * time.Hour

// How many transfers a DTN knows at once. A request of 64 KiB bounds what they take.
const (
	maxFinished   = 10_000
	maxUnfinished = 10_000
)

// Arrivals is the receiving side of the data plane. Names are paths in the export
// (mover.Inbox and a base name).
type Arrivals interface {
	Arrivals() []mover.Arrival
	// Changed returns a channel that is closed when Arrivals tells something else, or may do so.
	Changed() <-chan struct{}
	// Arrival returns one of them; mover.ErrNoArrival.
	Arrival(name string) (mover.Arrival, error)
	// Blocks tells the digests of its proven blocks from one on; mover.ErrNoArrival.
	Blocks(name string, from int64) (mover.Blocks, error)
	// Drop removes an arrival, complete or not; nil or mover.ErrNoArrival when there is none.
	Drop(name string) error
	// Promised is how many bytes of the export the unfinished arrivals will still take.
	Promised() int64
}

// Relay is the part of a data plane that passes files on to other sites.
type Relay interface {
	// Passages tells of the files that pass, or rest on their way.
	Passages() []mover.Passage
	// Passed tells what has passed since the DTN started.
	Passed() []mover.Passed
}

// Options are what a Server is made of. All are needed but Marker, Mark, Small, Reserve,
// Spare, Ack, Callbacks, Standing, Relay, Correct, History, Limits and Certificate.
type Options struct {
	Site    string
	Version string
	Address string // data plane, as other sites reach it
	Marker  string // id of the export; empty: it has none
	// Mark makes sure that the export bears its marker, and puts back one that is missing,
	// which put tells. nil: it has none. Calls do not overlap.
	Mark func() (put bool, err error)

	Engines  map[string]mover.Engine // by Request.Engine
	Arrivals Arrivals
	Export   *os.Root
	State    *os.Root // of this Server alone

	Transfers int           // at once
	Small     int           // besides, of those of a single block on the stream engine; 0: they are as others
	Reserve   int64         // bytes of the export that are never offered to arrivals
	Spare     func() int64  // bytes that are taken now and given to arrivals when they need them; nil: none
	Keep      time.Duration // how long finished transfers are remembered

	Ack func() mover.Ack // how writes to the export are acknowledged now; nil: not known

	// Callbacks tells of the connections that this DTN keeps to others because it takes
	// none, and Standing which sites have kept one here, and whether they do now. nil: none.
	Callbacks func() []mover.Callback
	Standing  func() map[string]bool

	Relay Relay // nil: it passes nothing on

	// Correct makes what corrects the PCP of transfers to one destination for which nobody
	// has set any. nil: nothing does.
	Correct func() Corrector

	// History is what transfers begin with where nobody has said a PCP, and what comes of
	// them. nil: nothing is kept, and they begin as their engines do.
	History History

	Limits func() mover.Limits // that the engines and Arrivals keep; nil: none

	Certificate pki.Watched // the DTN's; nil: nobody watches it

	Log *slog.Logger
}

func (o Options) validate() error {
	var faults []error
	need := func(ok bool, what string) {
		if !ok {
			faults = append(faults, errors.New(what))
		}
	}
	need(o.Site != "", "site is empty")
	need(o.Address != "", "address is empty")
	need(len(o.Engines) > 0, "no engine")
	need(o.Arrivals != nil && o.Export != nil && o.State != nil && o.Log != nil, "a part is missing")
	need(o.Transfers > 0, "transfers must be at least 1")
	need(o.Reserve >= 0, "reserve must not be negative")
	need(o.Keep > 0, "keep must be positive")
	return errors.Join(faults...)
}

// Server is one site's DTN. Handler, Health and the metrics may be used while Run
// runs and without it.
type Server struct {
	opt     Options
	table   *table
	metrics *metrics
	api     http.Handler

	steering  *steering // nil: nothing is corrected
	sightings *sightings
	loads     *loads // nil: there is no history

	probing sync.Mutex // held by who probes a path

	looking sync.Mutex // at the export: what is written to see that it can be has fixed names
}

// New loads the transfers in the state directory; those that had not ended wait
// for Run to take them up again. It starts nothing.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("set up the DTN: %w", err)
	}
	t, err := openTable(o.State, limits{keep: o.Keep, finished: maxFinished, unfinished: maxUnfinished, small: o.Small > 0}, o.Log)
	if err != nil {
		return nil, fmt.Errorf("set up the DTN: %w", err)
	}
	seen, err := openSightings(o.State, o.Log)
	if err != nil {
		return nil, fmt.Errorf("set up the DTN: %w", err)
	}
	t.look = o.Export.Lstat
	s := &Server{opt: o, table: t, metrics: newMetrics(), sightings: seen}
	if o.Correct != nil {
		s.steering = &steering{begin: o.Correct, groups: map[course]*group{}}
	}
	if o.History != nil {
		s.loads = &loads{
			site: o.Site, known: seen.known, found: seen.learn, queue: t.waitingFor, limit: s.sendLimit, log: o.Log,
			ended: make(chan Load, maxUnrecorded), open: map[course]*load{}, told: map[course]told{},
		}
	}
	s.api = s.routes()
	return s, nil
}

// Run runs transfers, at most Options.Transfers at once and Options.Small small ones, until
// ctx is done: those with a higher priority first, for which lower ones give their places,
// and then in the order of their submission. What runs then is taken up again by the next Server
// on the same state. It returns nil, when no transfer runs any more; it may be
// called once.
func (s *Server) Run(ctx context.Context) error {
	if s.loads != nil {
		var recording sync.WaitGroup
		recording.Go(s.record)
		defer recording.Wait()
		defer s.loads.close()
	}
	var wg sync.WaitGroup
	for range s.opt.Transfers {
		wg.Go(func() {
			for s.runNext(ctx) {
			}
		})
	}
	wg.Go(func() { s.table.preempting(ctx, s.opt.Transfers) })
	if s.opt.Small > 0 {
		wg.Go(func() { s.runSmall(ctx) })
	}
	wg.Go(func() { s.table.forgetting(ctx) })
	wg.Go(func() { s.watchExport(ctx) })
	wg.Go(func() { s.sightings.saving(ctx) })
	wg.Wait()
	return nil
}

// Reconsider tries at once what waits for a limit: the limits are others now.
func (s *Server) Reconsider() { s.table.release() }

// runNext waits for a transfer and runs it; false when ctx is done.
func (s *Server) runNext(ctx context.Context) bool {
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r, ok := s.table.next(ctx, false, stop)
	if !ok {
		return false
	}
	s.run(ctx, run, r)
	return true
}

// run runs a transfer until run is done, and ctx says why.
func (s *Server) run(ctx, run context.Context, r mover.Request) {
	id := transferID(r.Key)
	s.loads.begin(r, time.Now())
	begins, origin := s.advise(r)
	err := s.move(run, begins, s.progress(id, r, origin))
	s.steering.left(r)
	s.loads.left(r)
	s.metrics.ended(s.table.end(id, err, ctx.Err() != nil))
}

func (s *Server) move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	e, ok := s.opt.Engines[r.Engine]
	if !ok { // it was configured when the transfer was submitted
		return fmt.Errorf("this DTN has no engine %q any more", r.Engine)
	}
	return e.Move(ctx, r, report)
}

// capabilities says what this DTN offers now.
func (s *Server) capabilities() (mover.Capabilities, error) {
	free, total, err := Space(s.opt.Export)
	if err != nil {
		return mover.Capabilities{}, err
	}
	ack := mover.AckUnknown
	if s.opt.Ack != nil {
		ack = s.opt.Ack()
	}
	if s.opt.Spare != nil {
		free += s.opt.Spare()
	}
	return mover.Capabilities{
		Site:    s.opt.Site,
		Version: s.opt.Version,
		Engines: s.engineNames(),
		Address: s.opt.Address,
		Free:    max(0, free-s.opt.Arrivals.Promised()-s.opt.Reserve),
		Total:   total,
		Ack:     ack,
		Export:  s.opt.Marker,

		Callbacks: s.callbacks(),
	}, nil
}

func (s *Server) callbacks() []mover.Callback {
	if s.opt.Callbacks == nil {
		return nil
	}
	return s.opt.Callbacks()
}

func (s *Server) engineNames() []string { return slices.Sorted(maps.Keys(s.opt.Engines)) }

// MakeBoxes makes the folders of an export that are missing. Only the DTN does: a
// host that mounts the export would make them on its own disk while it is not
// mounted. The agent, of the same group, writes to the outbox and reads the inbox.
func MakeBoxes(export *os.Root) error {
	for name, mode := range map[string]os.FileMode{mover.Outbox: 0o770, mover.Inbox: 0o750} {
		if err := makeBox(export, name, mode); err != nil {
			return fmt.Errorf("make %s on the export: %w", name, err)
		}
	}
	return nil
}

// makeBox gives the folder its mode whatever the umask, and leaves one that is there as it is.
func makeBox(export *os.Root, name string, mode os.FileMode) error {
	err := export.Mkdir(name, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := export.Lstat(name)
	if err != nil || info.Mode().Perm() == mode {
		return err
	}
	return export.Chmod(name, info.Mode()&os.ModeSetgid|mode) // the group is the export's
}

// Space returns the bytes free for an unprivileged user on root's filesystem, and its size.
func Space(root *os.Root) (free, total int64, err error) {
	d, err := root.Open(".")
	if err != nil {
		return 0, 0, fmt.Errorf("ask for the export's free space: %w", err)
	}
	defer d.Close()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(d.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("ask for the export's free space: %w", err)
	}
	return int64(st.Bavail) * st.Frsize, int64(st.Blocks) * st.Frsize, nil // statvfs(3): blocks are of f_frsize
}

// NewHTTPServer returns a server with timeouts for h. Requests end when ctx does,
// event streams included, so that Shutdown need not wait for them.
func NewHTTPServer(ctx context.Context, h http.Handler, conf *tls.Config, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		TLSConfig:         conf,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second, // an event stream moves its own deadline at each event
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
