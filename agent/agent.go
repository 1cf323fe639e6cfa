package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Options are the mechanisms and the identity of an Agent. All are needed but the logs, Choose and StoreFaults.
type Options struct {
	Site     string
	Catalog  Catalog
	Stager   Stager
	Mover    Mover
	Landing  Landing
	Signer   Signer
	Store    Store
	Log      *slog.Logger // nil: nothing is logged
	JobLog   *slog.Logger // how jobs go on; nil: Log
	Settings Settings

	// Choose picks the best way for a file: straight, or through the DTN of a site to and
	// from which hops lead, with the mode. It says in one short sentence which, and why.
	// Needed where a peer has relays to choose from.
	Choose func(Journey) (Route, error)

	// StoreFaults compares Glance's datadir with these images.
	StoreFaults func(images []glance.Image) []StoreFault
}

// PeerSite is another site as the configuration knows it.
type PeerSite struct {
	Name    string
	Peer    Peer
	Jobs    int  // jobs of one priority to this site at once, over all agents of this site
	MayPull bool // the site may ask for any image of ours

	Via    mover.Relay   // what files to this site go through; the zero Relay: nothing
	Among  []mover.Relay // instead of Via: for each file the best way is chosen, straight or through one of these; their modes are empty
	Relays []string      // sites whose DTNs may pass files of this site on to ours
}

// What is to become of an image whose id Glance refuses because it was deleted here.
const (
	OnDeletedPark  = "park"   // a person decides
	OnDeletedNewID = "new-id" // deliver under a new id, with glance.PropSourceID
)

// Whose project owns a delivered image.
const (
	OwnerAgent  = "agent"  // that of the agent's own Keystone user
	OwnerSource = "source" // the same id as at the source: for regions with one Keystone
)

// Settings is the part of the configuration that Reload may replace.
type Settings struct {
	Peers       []PeerSite
	Rules       []Rule
	DeliverJobs int    // deliveries into this site's Glance at once, of one site's images of one priority
	OnDeletedID string // OnDeletedPark or OnDeletedNewID
	Owner       string // OwnerAgent or OwnerSource
	PCP         mover.PCP
	RetryMin    time.Duration // first wait after a failure; doubles
	RetryMax    time.Duration // longest wait
	Listing     time.Duration // between incremental listings of Glance
	Reconcile   time.Duration // between full passes
	Stuck       time.Duration // how long an image may be half made before a person should look
	Keep        time.Duration // how long finished jobs are remembered
}

// Waits that nobody needs to configure.
const (
	pollMin     = 100 * time.Millisecond // of a running leg, first
	pollMax     = 2 * time.Second        // of what may take long to begin
	pollBusy    = 300 * time.Millisecond // of a leg that is running
	pollSafe    = 5 * time.Second        // of an arrival whose changes are announced
	fullAgain   = 2 * time.Second        // a slot that other agents have filled is asked for again
	claimLasts  = 15 * time.Second       // so long a claim outlives its agent: after it a job that another one has is asked for again
	tidyAfter   = time.Second            // a verified job's copies are removed: freeing a large file keeps a disk busy
	ticketLife  = time.Hour              // a session must open within
	lostAfter   = 30 * time.Second       // an arrival that the peer does not see is sent anew
	stallLimit  = 5 * time.Minute        // no byte in this time: the upload is given up and begun anew later
	answerSoon  = 5 * time.Second        // what a person waits for is given up after it
	waitForRoom = 20 * time.Second       // between offers to a peer that said wait
	mismatchMax = 3                      // wrong content this often: a person must look
	fullMax     = 5                      // no room in Glance this often: likewise
	silentMax   = 2 * ticketLife         // an arrival that neither advances nor is offered again is given up
	renewAfter  = ticketLife * 5 / 6     // a transfer that waits for so long gets another ticket
	sweepAge    = time.Hour              // an arrival without a job is removed
	hashedFor   = time.Hour              // Glance may hash by another algorithm after it
	receiveMax  = 1000                   // images of one peer on their way at once
)

// Agent brings images to where they have to be. One Agent serves one site; several
// may share one Store.
type Agent struct {
	Options
	settings atomic.Pointer[Settings]
	hints    *hintQueue
	inbox    inbox
	gate     *gate // the Stager
	tidying  sync.WaitGroup
	reopened chan struct{} // a Reload: reconcile now

	strangers strangers

	newest atomic.Pointer[time.Time] // updated_at of the newest image seen: Glance's clock, not ours; nil: a full pass has to see all

	mu        sync.Mutex
	progress  map[JobID]Progress // of running jobs, from every agent on the Store
	waitsFor  map[JobID]legWaits // what the legs wait for that workers here do
	receiving map[JobID]string   // the Receive jobs that are not final, and their peers
	faults    []StoreFault
	hashing   hashing                       // of the last upload
	asked     map[mover.Relay]asked         // the zero Relay: this site's DTN
	asking    map[mover.Relay]chan struct{} // full while it is asked
	trails    map[string]*trail             // by peer
}

// New returns an Agent that does nothing yet.
func New(o Options) (*Agent, error) {
	if o.Site == "" || o.Catalog == nil || o.Stager == nil || o.Mover == nil || o.Landing == nil || o.Signer == nil || o.Store == nil {
		return nil, errors.New("agent: a mechanism is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.JobLog == nil {
		o.JobLog = o.Log
	}
	gate := newGate(o.Stager, o.Log)
	o.Stager = gate
	a := &Agent{
		Options:   o,
		gate:      gate,
		hints:     newHintQueue(),
		reopened:  make(chan struct{}, 1),
		progress:  map[JobID]Progress{},
		waitsFor:  map[JobID]legWaits{},
		receiving: map[JobID]string{},
		asked:     map[mover.Relay]asked{},
		asking:    map[mover.Relay]chan struct{}{},
		trails:    map[string]*trail{},
	}
	return a, a.Reload(o.Settings)
}

// Reload replaces the settings. Running steps end under the old ones.
func (a *Agent) Reload(s Settings) error {
	names := map[string]bool{}
	for _, p := range s.Peers {
		names[p.Name] = true
		if len(p.Among) > 0 && a.Choose == nil {
			return fmt.Errorf("peer %s: nothing chooses among its relays", p.Name)
		}
	}
	for _, r := range s.Rules {
		if err := r.Match.Validate(); err != nil {
			return fmt.Errorf("rule %s: %w", r.Name, err)
		}
		for _, to := range r.To {
			if !names[to] {
				return fmt.Errorf("rule %s: site %s: %w", r.Name, to, ErrNoPeer)
			}
		}
	}
	a.settings.Store(&s)
	a.hashedBy("")
	select {
	case a.reopened <- struct{}{}:
	default:
	}
	return nil
}

// Run reconciles, hears of arrivals and works until ctx ends. It returns early only when the Store
// fails for good.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var reconciling sync.WaitGroup
	reconciling.Go(func() { a.reconcileLoop(ctx) })
	reconciling.Go(func() { a.followHints(ctx) })
	reconciling.Go(func() { a.watchInbox(ctx) })
	defer reconciling.Wait()
	defer cancel()
	if err := a.runWorkers(ctx, nil); ctx.Err() == nil {
		return fmt.Errorf("job store: %w", err)
	}
	return nil
}

// RunJobs works until the jobs named are final, without reconciling: a pipeline
// without a daemon. It leaves no copy of a job that is over, however it ends.
func (a *Agent) RunJobs(ctx context.Context, ids []JobID) error {
	if len(ids) == 0 {
		return nil
	}
	err := a.runWorkers(ctx, ids)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lostAfter)
	defer cancel()
	return errors.Join(err, a.sweepOutbox(ctx))
}

// Hint tells the agent that an image may have changed. It never blocks.
func (a *Agent) Hint(h glance.Hint) { a.hints.add(h.ID, time.Now()) }

func (a *Agent) peer(name string) (PeerSite, error) {
	for _, p := range a.settings.Load().Peers {
		if p.Name == name {
			return p, nil
		}
	}
	return PeerSite{}, fmt.Errorf("site %s: %w", name, ErrNoPeer)
}

// pause waits for d, or until ctx ends, and reports whether it waited in full.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// polling yields the number of the round, waiting between rounds a little longer each
// time, at most so long, until ctx ends.
func polling(ctx context.Context, most time.Duration) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		d := pollMin
		for n := 0; ctx.Err() == nil; n++ {
			if !yield(n) {
				return
			}
			pause(ctx, d)
			d = min(d*5/4, most)
		}
	}
}

func randomID() string {
	return rand.Text()
}
