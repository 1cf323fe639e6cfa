package stream

import (
	"cmp"
	"context"
	"crypto/tls"
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

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// What a Receiver does when nobody says otherwise.
const (
	DefaultConns     = 256
	DefaultStrangers = 128
	DefaultPerPlace  = 32
	DefaultHandshake = 10 * time.Second
	DefaultIdle      = 5 * time.Minute
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

	Conns     int           // connections with a certificate at once; 0: DefaultConns
	Strangers int           // connections at once that have not shown one yet; 0: DefaultStrangers
	PerPlace  int           // of these from one IPv4 address or IPv6 network; 0: DefaultPerPlace
	Handshake time.Duration // for TLS and the hello; 0: DefaultHandshake
	Idle      time.Duration // a connection may rest, or take for a block; 0: DefaultIdle
	Busy      time.Duration // between signs of life during a commit; 0: a second
}

// Receiver takes files into the inbox of an export. What it knows survives its
// process, at whatever point that is killed.
type Receiver struct {
	export, state *os.Root
	opts          ReceiverOptions
	log           *slog.Logger
	work          sync.WaitGroup // connections and what follows them
	news          news           // of what Arrivals tells

	admin sync.Mutex // held while arrivals and tickets change on disk; taken before mu

	mu       sync.Mutex // guards what follows
	arrivals map[string]*arrival
	tickets  map[string]use
}

// NewReceiver reads from state what has arrived, is arriving, and which tickets
// were used, and removes from export's inbox the parts that nobody knows of.
func NewReceiver(export, state *os.Root, o ReceiverOptions) (*Receiver, error) {
	o.Conns = cmp.Or(o.Conns, DefaultConns)
	o.Strangers = cmp.Or(o.Strangers, DefaultStrangers)
	o.PerPlace = cmp.Or(o.PerPlace, DefaultPerPlace)
	o.Handshake = cmp.Or(o.Handshake, DefaultHandshake)
	o.Idle = cmp.Or(o.Idle, DefaultIdle)
	o.Busy = cmp.Or(o.Busy, time.Second)
	r := &Receiver{
		export: export, state: state, opts: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		arrivals: map[string]*arrival{}, tickets: map[string]use{},
	}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("read the state of the receiver: %w", err)
	}
	return r, nil
}

func (r *Receiver) load() error {
	err := errors.Join(
		r.export.MkdirAll(mover.Inbox, 0o750),
		r.state.MkdirAll(ticketDir, 0o700),
		r.state.MkdirAll(arrivalDir, 0o700),
	)
	if err != nil {
		return err
	}
	uses, err := loadAll[use](r.state, ticketDir)
	if err != nil {
		return err
	}
	for _, u := range uses {
		r.tickets[u.ID] = u
	}
	records, err := loadAll[record](r.state, arrivalDir)
	if err != nil {
		return err
	}
	for _, rec := range records {
		a := newArrival(r.export, r.state, r.work.Go, &r.news, rec)
		if err := a.restore(); err != nil {
			return err
		}
		r.arrivals[rec.File.Name] = a
	}
	return r.sweep()
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

// Promised is the space that the files under way will still take.
func (r *Receiver) Promised() int64 {
	var n int64
	for _, a := range r.list() {
		n += a.missing()
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
	if err := r.spend(name); err != nil {
		return fmt.Errorf("drop %s: %w", name, err)
	}
	a := r.lookup(name)
	if a == nil { // a file of which the state was lost
		a = newArrival(r.export, r.state, r.work.Go, &r.news, record{File: mover.File{Name: name}})
	}
	if err := r.discard(a); err != nil {
		return fmt.Errorf("drop %s: %w", name, err)
	}
	r.log.Info("arrival dropped", "file", name)
	return nil
}

// discard removes a with its files. The caller holds admin.
func (r *Receiver) discard(a *arrival) error {
	if err := a.remove(); err != nil {
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
// error when it can accept no more. It is called once at a time.
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	ours, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ours, func() { _ = l.Close() })
	defer stop()
	defer r.work.Wait()
	defer cancel()
	strangers := &gate{all: r.opts.Strangers, each: r.opts.PerPlace}
	slots := make(chan struct{}, r.opts.Conns)
	for {
		nc, err := l.Accept()
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		place := origin(nc.RemoteAddr())
		if !strangers.enter(place) {
			r.log.Warn("too many connections without a certificate", "peer", nc.RemoteAddr().String(), "limit", r.opts.Strangers, "from_one_place", r.opts.PerPlace)
			_ = nc.Close()
			continue
		}
		r.work.Go(func() {
			defer nc.Close()
			stop := context.AfterFunc(ours, func() { _ = nc.Close() })
			defer stop()
			c, err := r.shake(ours, nc)
			strangers.leave(place)
			if err != nil {
				r.log.Warn("connection refused", "peer", nc.RemoteAddr().String(), "err", err)
				return
			}
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				r.handle(ours, c)
			default:
				r.log.Warn("too many connections", "limit", r.opts.Conns)
			}
		})
	}
}

// shake makes sure of the caller's certificate. What follows, up to the hello's
// end, has the same time limit.
func (r *Receiver) shake(ctx context.Context, nc net.Conn) (*tls.Conn, error) {
	_ = nc.SetDeadline(time.Now().Add(r.opts.Handshake))
	c := tls.Server(nc, r.opts.TLS)
	return c, c.HandshakeContext(ctx)
}

// handle serves one connection of a caller who has shown a certificate.
func (r *Receiver) handle(ctx context.Context, c *tls.Conn) {
	a, reply, err := r.greet(c)
	if err != nil {
		reply = refusal(err)
	}
	_ = c.SetDeadline(time.Now().Add(r.opts.Idle))
	if a == nil {
		_, _ = c.Write(reply.bytes()) // the sender asks again when it gets none
		linger(c)
		return
	}
	if _, err = c.Write(reply.bytes()); err == nil {
		err = r.receive(ctx, c, a)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil {
		_, _ = c.Write(refusal(err).bytes())
	}
	a.leave(c, err)
	if err != nil {
		linger(c)
	}
}

// greet reads the hello and answers it. It returns the arrival that c has entered;
// none when it is refused or there is nothing to do.
func (r *Receiver) greet(c *tls.Conn) (*arrival, answer, error) {
	site, err := dtnOf(c.ConnectionState())
	if err != nil {
		return nil, answer{}, mover.Coded(mover.CodeAuth, err)
	}
	h, err := readHello(c)
	if err != nil {
		return nil, answer{}, err
	}
	s := session{h.Session, h.Ticket, site}
	a := r.joined(s)
	if !h.Join {
		a, err = r.admit(s, h)
	} else if a == nil {
		err = errOver
	}
	if err != nil {
		r.log.Warn("sender refused", "site", site, "err", err)
		return nil, answer{}, err
	}
	have, done, err := a.enter(s, h.Join, c)
	if err != nil || done {
		return nil, answer{Block: mover.BlockSize, Done: done}, err
	}
	if !h.Join {
		r.log.Info("file arrives", "site", site, "file", a.File.Name, "bytes", a.File.Size)
	}
	return a, answer{Block: mover.BlockSize, Have: have}, nil
}

// joined returns the arrival whose session is s.
func (r *Receiver) joined(s session) *arrival {
	for _, a := range r.list() {
		if a.is(s) {
			return a
		}
	}
	return nil
}

// receive serves frames until the sender has no more.
func (r *Receiver) receive(ctx context.Context, c *tls.Conn, a *arrival) error {
	frame := frames.Get().(*[frameSize]byte)
	defer func() { frames.Put(frame) }()
	for {
		_ = c.SetDeadline(time.Now().Add(r.opts.Idle))
		if _, err := io.ReadFull(c, frame[:headerSize]); err != nil {
			return err
		}
		h, err := parseHeader(frame[:headerSize], a.File.Size)
		if err != nil {
			return err
		}
		reply := message{kindProven, h.index}.bytes()
		if h.kind == kindCommit {
			reply, err = r.commit(ctx, c, a)
		} else {
			b := frame[headerSize : headerSize+h.length]
			if _, err := io.ReadFull(c, b); err != nil {
				return err
			}
			if digest.OfBlock(b) == h.digest {
				var wrote bool
				if wrote, err = a.store(h.index, h.digest, b); wrote {
					frame = a.keep(h.index, frame)
				}
			} else {
				reply = message{kindAgain, h.index}.bytes()
			}
		}
		if err != nil {
			return err
		}
		if _, err := c.Write(reply); err != nil {
			return err
		}
	}
}

// commit completes a, telling the sender meanwhile that it is alive. It returns
// the answer.
func (r *Receiver) commit(ctx context.Context, c *tls.Conn, a *arrival) ([]byte, error) {
	_ = c.SetDeadline(time.Time{})
	stop := r.keepBusy(c, a)
	done, have, err := a.finish(ctx)
	stop()
	if mover.CodeOf(err) == mover.CodeContent || errors.Is(err, errUnsynced) {
		a.leave(c, err) // the sender has to learn why
		r.admin.Lock()
		defer r.admin.Unlock()
		err = errors.Join(err, r.discard(a))
	}
	if err != nil {
		r.log.Warn("file refused", "file", a.File.Name, "err", err)
		return nil, err
	}
	if done {
		r.log.Info("file arrived", "file", a.File.Name, "bytes", a.File.Size)
	}
	return answer{Block: mover.BlockSize, Done: done, Have: have}.bytes(), nil
}

// keepBusy tells the sender now and then that a's commit goes on, until stop is called.
func (r *Receiver) keepBusy(c *tls.Conn, a *arrival) (stop func()) {
	quit := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(r.opts.Busy)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				_ = c.SetWriteDeadline(time.Now().Add(r.opts.Idle))
				_, _ = c.Write(message{kindBusy, a.progress()}.bytes()) // the answer's write fails, too
			}
		}
	})
	return func() { close(quit); telling.Wait() }
}
