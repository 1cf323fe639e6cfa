package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/bases"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// What a Receiver does when nobody says otherwise.
const (
	DefaultConns     = 256
	DefaultPerSite   = 128
	DefaultStrangers = 128
	DefaultPerPlace  = 32
	DefaultHandshake = 10 * time.Second
	DefaultIdle      = 5 * time.Minute // longer than DefaultStall, so that a sender knows what was closed for resting
	DefaultFiles     = 4096
)

// maxName leaves room in a file's name for what is put around it.
const maxName = 200

// ReceiverOptions are what a Receiver needs to know. TLS and Check have no default.
type ReceiverOptions struct {
	// TLS serves callers whose certificate was verified.
	TLS *tls.Config

	// Check returns the ticket in token, or why it is not good.
	Check func(token, from string) (mover.Ticket, error)

	// Free is the space for arrivals, those that are under way included; nil: no limit.
	Free func() (int64, error)

	// Log is told when files begin, arrive and are refused; nil: nothing.
	Log *slog.Logger

	// Callbacks takes the connections of DTNs that take none; nil: they are refused.
	Callbacks *Callbacks

	// Protection is the weakest that a sender may choose; empty: mover.Private.
	Protection mover.Protection

	// Delta is how many bytes of files that were dropped are kept on the export, so that
	// other files' parts that they have need not come; 0: none. They give way to arrivals.
	Delta int64

	// Pacer keeps what is received within the DTN's limits; nil: there are none.
	Pacer *pace.Pacer

	Files     int           // that arrive at once, two open files each, at most half of them from one site; 0: DefaultFiles
	Conns     int           // connections with a certificate at once; 0: DefaultConns
	PerSite   int           // of these from one site; 0: DefaultPerSite
	Strangers int           // connections at once that have not shown one yet, of which old ones give way; 0: DefaultStrangers
	PerPlace  int           // of these from one IPv4 address or IPv6 network; 0: DefaultPerPlace
	Handshake time.Duration // for TLS and the hello; 0: DefaultHandshake
	Idle      time.Duration // a connection may rest, or take for a block; 0: DefaultIdle
	Busy      time.Duration // between signs of life during a commit; 0: a second

	Relay *RelayOptions // passes files on to other sites; nil: it does not

	linkFiles int // open on a link at once; 0: maxFiles
}

// Receiver takes files into the inbox of an export. What it knows survives its
// process, at whatever point that is killed.
type Receiver struct {
	export, state *os.Root
	opts          ReceiverOptions
	log           *slog.Logger
	work          sync.WaitGroup // connections and what follows them
	news          news           // of what Arrivals tells
	relay         *relay         // nil: it is none
	probes        probes
	places        *gate[string] // of files that arrive, by the site that brings them
	ledger        *durable.Log  // of tickets and arrivals
	landing       *durable.Group[*arrival]
	bases         *bases.Box
	inbox         folder

	admin   sync.Mutex // held while arrivals and tickets come and go; taken before mu
	expired time.Time  // when expire was last done; admin guards it
	room    room       // admin guards it

	mu       sync.Mutex // guards what follows
	arrivals map[string]*arrival
	tickets  map[string]use
	links    map[string]*incoming // by the sender's site and the name it chose
}

// NewReceiver reads from state what has arrived, is arriving, and which tickets
// were used, and removes from export's inbox the parts that nobody knows of.
func NewReceiver(export, state *os.Root, o ReceiverOptions) (*Receiver, error) {
	o.Files = cmp.Or(o.Files, DefaultFiles)
	o.linkFiles = cmp.Or(o.linkFiles, maxFiles)
	o.Conns = cmp.Or(o.Conns, DefaultConns)
	o.PerSite = cmp.Or(o.PerSite, DefaultPerSite)
	o.Strangers = cmp.Or(o.Strangers, DefaultStrangers)
	o.PerPlace = cmp.Or(o.PerPlace, DefaultPerPlace)
	o.Handshake = cmp.Or(o.Handshake, DefaultHandshake)
	o.Idle = cmp.Or(o.Idle, DefaultIdle)
	o.Busy = cmp.Or(o.Busy, time.Second)
	o.Protection = cmp.Or(o.Protection, mover.Private)
	if err := o.Protection.Validate(); err != nil {
		return nil, err
	}
	r := &Receiver{
		export: export, state: state, opts: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		places:   &gate[string]{all: o.Files, each: (o.Files + 1) / 2},
		arrivals: map[string]*arrival{}, tickets: map[string]use{}, links: map[string]*incoming{},
	}
	r.landing = durable.NewGroup(r.landAll)
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("read the state of the receiver: %w", err)
	}
	var err error
	if r.bases, err = bases.Open(export, state, bases.Options{Keep: o.Delta, Free: o.Free, Changed: r.news.tell, Log: r.log}); err != nil {
		return nil, fmt.Errorf("read bases on the export: %w", err)
	}
	if o.Relay != nil {
		if r.relay, err = newRelay(r, *o.Relay); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *Receiver) load() error {
	err := errors.Join(
		r.export.MkdirAll(mover.Inbox, 0o750),
		r.state.MkdirAll(arrivalDir, 0o700),
	)
	if err != nil {
		return err
	}
	var damage []error
	if r.ledger, err = durable.OpenLog(r.state, logName, r.take, func(err error) { damage = append(damage, err) }); err != nil {
		return err
	}
	if len(damage) > 0 {
		return fmt.Errorf("%w; if its disk was damaged, remove the lines: what they stand for arrives anew", errors.Join(damage...))
	}
	for _, a := range r.arrivals {
		if err := a.restore(); err != nil {
			return err
		}
	}
	return r.sweep()
}

// take takes up what the ledger holds.
func (r *Receiver) take(key string, value []byte) error {
	if strings.HasPrefix(key, ticketKey) {
		var u use
		err := json.Unmarshal(value, &u)
		r.tickets[u.ID] = u
		return err
	}
	var rec record
	err := json.Unmarshal(value, &rec)
	r.arrivals[rec.File.Name] = r.newArrival(rec)
	return err
}

func (r *Receiver) newArrival(rec record) *arrival {
	a := newArrival(r.export, r.state, &r.news, rec)
	a.spawn, a.complete, a.places, a.inbox = r.work.Go, r.complete, r.places, &r.inbox
	return a
}

// sweep removes parts without a record.
func (r *Receiver) sweep() error {
	entries, err := fs.ReadDir(r.export.FS(), mover.Inbox)
	if err != nil {
		return err
	}
	for _, e := range entries {
		base, hidden := strings.CutPrefix(e.Name(), ".")
		base, part := strings.CutSuffix(base, ".part")
		if hidden && part && r.arrivals[mover.Inbox+"/"+base] == nil {
			err = errors.Join(err, durable.Remove(r.export, mover.Inbox+"/"+e.Name()))
		}
	}
	return err
}

// Arrivals returns what arrives and has arrived, by name.
func (r *Receiver) Arrivals() []mover.Arrival {
	var all []mover.Arrival
	for _, a := range r.list() {
		all = append(all, a.status())
	}
	slices.SortFunc(all, func(a, b mover.Arrival) int { return strings.Compare(a.File.Name, b.File.Name) })
	return all
}

// Changed returns a channel that is closed when Arrivals tells something else than it
// does now, or may do so.
func (r *Receiver) Changed() <-chan struct{} { return r.news.wait() }

func (r *Receiver) list() []*arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*arrival
	for _, a := range r.arrivals {
		all = append(all, a)
	}
	return all
}

func (r *Receiver) lookup(name string) *arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.arrivals[name]
}

// Arrival returns the one whose File.Name is name; mover.ErrNoArrival.
func (r *Receiver) Arrival(name string) (mover.Arrival, error) {
	if a := r.lookup(name); a != nil {
		return a.status(), nil
	}
	return mover.Arrival{}, fmt.Errorf("%s: %w", name, mover.ErrNoArrival)
}

// Blocks tells the digests of an arrival's proven blocks from the one given on; mover.ErrNoArrival.
func (r *Receiver) Blocks(name string, from int64) (mover.Blocks, error) {
	if a := r.lookup(name); a != nil {
		return a.digests(from), nil
	}
	return mover.Blocks{}, fmt.Errorf("%s: %w", name, mover.ErrNoArrival)
}

// Spare is the space on the export that arrivals get when they need it.
func (r *Receiver) Spare() int64 { return r.bases.Size() }

// Promised is the space that the files under way will still take, and those that are
// passed on may take.
func (r *Receiver) Promised() int64 {
	var n int64
	for _, a := range r.list() {
		n += a.missing()
	}
	if r.relay != nil {
		n += r.relay.left()
	}
	return n
}

// Drop removes an arrival, complete or not, ends its session, and spends the
// tickets that were used for it. It returns nil when there is none, and may be repeated.
func (r *Receiver) Drop(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	r.admin.Lock()
	defer r.admin.Unlock()
	a := r.lookup(name)
	if a == nil { // a file of which the state was lost
		a = r.newArrival(record{File: mover.File{Name: name}})
	}
	a.stop()
	if err := r.spend(name); err != nil {
		return fmt.Errorf("drop %s: %w", name, err)
	}
	if a.status().State == mover.Arrived && blockCount(a.File.Size) >= minOffer {
		if err := r.bases.Take(a.File); err != nil {
			r.log.Warn("no base was made of an arrival", "file", name, "err", err)
		}
	}
	if err := r.discard(a); err != nil {
		return fmt.Errorf("drop %s: %w", name, err)
	}
	r.log.Info("arrival dropped", "file", name)
	return nil
}

// discard removes a with its files, unless another arrival has its name by now. The
// caller holds admin.
func (r *Receiver) discard(a *arrival) error {
	if b := r.lookup(a.File.Name); b != nil && b != a {
		return nil
	}
	a.stop()
	if err := a.removeFiles(); err != nil {
		return err
	}
	if err := r.ledger.Commit(durable.Change{Key: arrivalKey + a.File.Name}); err != nil { // last: while it is there, a restart knows what to clean up
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.arrivals, a.File.Name)
	r.news.tell()
	return nil
}

// checkName reports a name that is not a plain one in the inbox.
func checkName(name string) error {
	err := mover.CheckName(mover.Inbox, name)
	if n := len(path.Base(name)); err == nil && n > maxName {
		err = fmt.Errorf("a name of %d bytes, at most %d are allowed", n, maxName)
	}
	return mover.Coded(mover.CodeName, err)
}

// Serve takes senders' connections from l until ctx is done, then cuts those that
// are left and returns nil once nothing of them runs. It closes l. It returns an
// error when it can accept no more; that too many files are open passes. It is called
// once at a time.
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	ours, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ours, func() { _ = l.Close() })
	defer stop()
	defer r.work.Wait()
	defer cancel()
	r.tend(ours)
	strangers := &strangers{all: r.opts.Strangers, each: r.opts.PerPlace}
	known := &gate[string]{all: r.opts.Conns, each: r.opts.PerSite}
	for {
		nc, err := l.Accept()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if passing(err) {
			r.log.Warn("no connection can be accepted now", "err", err)
			pause(ctx)
			continue
		}
		if err != nil {
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		if out := strangers.enter(nc, origin(nc.RemoteAddr())); out != nil {
			_ = out.Close()
			r.log.Warn("too many connections without a certificate", "peer", out.RemoteAddr().String(), "limit", r.opts.Strangers, "from_one_place", r.opts.PerPlace)
			if out == nc {
				continue
			}
		}
		r.work.Go(func() {
			defer nc.Close()
			stop := context.AfterFunc(ours, func() { _ = nc.Close() })
			defer stop()
			c, err := r.shake(ours, nc)
			if !strangers.leave(nc) {
				return // it was closed, and told of
			}
			if err != nil {
				r.log.Warn("connection refused", "peer", nc.RemoteAddr().String(), "err", err)
				return
			}
			id, _ := identityOf(c.ConnectionState()) // who is no DTN is told so in handle, and counts as its site's
			if !known.enter(id.Site) {
				r.log.Warn("too many connections", "site", id.Site, "limit", r.opts.Conns, "from_one_site", r.opts.PerSite)
				return
			}
			defer known.leave(id.Site)
			r.handle(ours, c)
		})
	}
}

// tend begins what a Receiver does besides taking files in, until ctx is done.
func (r *Receiver) tend(ctx context.Context) {
	if r.relay != nil {
		r.work.Go(func() { r.relay.sweep(ctx) })
	}
	r.work.Go(func() { r.bases.Run(ctx, r.Promised) })
}

// shake makes sure of the caller's certificate. What follows, up to the hello's
// end, has the same time limit.
func (r *Receiver) shake(ctx context.Context, nc net.Conn) (*tls.Conn, error) {
	_ = nc.SetDeadline(time.Now().Add(r.opts.Handshake))
	c := tls.Server(&gather{Conn: nc}, r.opts.TLS)
	return c, c.HandshakeContext(ctx)
}

// handle serves one connection of a caller who has shown a certificate.
func (r *Receiver) handle(ctx context.Context, c *tls.Conn) {
	l, h, err := r.greet(ctx, c)
	if err == nil && h.callback() {
		if err = r.opts.Callbacks.serve(ctx, c, h, r.log); err == nil {
			return
		}
	}
	if err == nil && h.Probe {
		if err = r.probes.serve(ctx, r, c, h); err == nil {
			return
		}
	}
	if err != nil {
		r.log.Warn("sender refused", "peer", c.RemoteAddr().String(), "err", err)
		_ = c.SetDeadline(time.Now().Add(r.opts.Idle))
		_, _ = c.Write(refusal(err).bytes(0)) // the sender asks again when it gets none
		linger(c)
		return
	}
	reply := r.welcome(l.site)
	if h.Onward {
		reply.Onward = r.relay.onward(l.site)
	}
	if _, err = c.Write(reply.bytes(0)); err == nil {
		_ = c.SetDeadline(time.Time{})
		if h.Lane {
			err = l.lane(c)
		} else {
			err = l.serve()
		}
	}
	if h.Lane {
		l.part(c)
	} else {
		l.finish(err)
		r.forget(l)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.log.Debug("a connection ended", "site", l.site, "lane", h.Lane, "err", err)
	}
}

// greet reads the hello, and returns the link that it opens or adds a lane to.
func (r *Receiver) greet(ctx context.Context, c *tls.Conn) (*incoming, hello, error) {
	site, err := dtnOf(c.ConnectionState())
	if err != nil {
		return nil, hello{}, mover.Coded(mover.CodeAuth, err)
	}
	h, err := readHello(c)
	if err == nil && h.callback() {
		return nil, h, nil
	}
	if err == nil {
		err = h.Protection.Validate()
	}
	if w := r.opts.Pacer.Shut(site); err == nil && w != nil {
		err = w
	}
	if err != nil {
		return nil, h, err
	}
	if h.Onward && r.relay == nil {
		return nil, h, errNoRelay
	}
	if !h.Protection.AtLeast(r.opts.Protection) {
		return nil, h, mover.Coded(mover.CodeAuth, fmt.Errorf("this DTN takes no file in %s, at least in %s: see protection in its configuration", h.Protection, r.opts.Protection))
	}
	if h.Probe {
		return nil, h, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := site + " " + h.Link
	l := r.links[name]
	switch {
	case h.Lane && (l == nil || l.protection != h.Protection):
		return nil, h, errOver
	case h.Lane:
		return l, h, l.join(c)
	case l != nil:
		return nil, h, errors.New("this link is open")
	}
	l = newIncoming(ctx, r, c, name, site, h.Protection)
	r.links[name] = l
	return l, h, nil
}

func (r *Receiver) forget(l *incoming) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l.name)
}

// complete begins to complete a.
func (r *Receiver) complete(ctx context.Context, a *arrival) {
	switch {
	case !a.small:
		r.work.Go(func() { r.completed(a, a.finish(ctx)) })
	case a.kept():
		r.work.Go(func() { r.check(a) })
	default:
		r.queue(a)
	}
}

// completed takes what became of that, and tells the sender.
func (r *Receiver) completed(a *arrival, err error) {
	sender := a.finished(err)
	if mover.CodeOf(err) == mover.CodeContent || errors.Is(err, errUnsynced) {
		r.admin.Lock()
		defer r.admin.Unlock()
		err = errors.Join(err, r.discard(a))
	}
	reply := answer{Done: true}
	if sender.link != nil && a.blocks > 1 { // a short one is over before the next time that it is told
		sender.link.tellTimes()
	}
	if err != nil {
		r.log.Warn("file refused", "file", a.File.Name, "err", err)
		reply = refusal(err)
	} else {
		r.log.Info("file arrived", "file", a.File.Name, "bytes", a.File.Size)
	}
	if sender.link != nil {
		sender.end(reply)
	}
}
