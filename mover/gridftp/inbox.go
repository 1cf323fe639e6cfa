package gridftp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Limits of an Inbox, and what it does when nobody says otherwise.
const (
	DefaultEvery = time.Second
	maxMessage   = 64 << 10        // of an offer or a manifest
	stale        = time.Hour       // a message that cannot be read
	keepAnswers  = 24 * time.Hour  // for a sender that was away
	maxBlocks    = 1 << 20         // of a file
	blocksAtOnce = 16 << 10        // told by Blocks
	tellEvery    = 5 * time.Second // while a file is proven
	sweepEvery   = time.Hour       // of answers and tickets
	keepTickets  = 24 * time.Hour  // after they have expired
)

// InboxOptions are what an Inbox needs to know. Check has no default.
type InboxOptions struct {
	// Check returns the ticket in token, or why it is not good.
	Check func(token string) (mover.Ticket, error)

	// Free is the space for arrivals, those that are under way included; nil: no limit.
	Free func() (int64, error)

	// Every is the time between two looks at the inbox; 0: DefaultEvery.
	Every time.Duration

	// Log is told when files begin, arrive and are refused; nil: nothing.
	Log *slog.Logger
}

// Inbox takes files that a GridFTP server has written into the inbox of an export. What
// it knows survives its process, at whatever point that is killed.
type Inbox struct {
	export, state *os.Root
	opts          InboxOptions
	log           *slog.Logger

	admin sync.Mutex // held while arrivals and tickets change on disk; taken before mu

	mu       sync.Mutex // guards what follows
	arrivals map[string]*arrival
	tickets  map[string]use // by id
	proving  map[string]bool
	changed  chan struct{}
}

// record is what is stored of an arrival.
type record struct {
	File    mover.File `json:"file"`
	Session string     `json:"session"` // of the sender that may complete it
	Since   time.Time  `json:"since"`
}

// use is what is stored of a ticket that was used.
type use struct {
	ID      string     `json:"id"`
	File    mover.File `json:"file"`
	Expires time.Time  `json:"expires"`
	Spent   bool       `json:"spent"`
}

type arrival struct {
	record
	arrived bool
	gone    bool
	written int64          // bytes that the disk holds of it
	sums    []digest.Block // of an arrived file's blocks; nil: not known
	lastErr string
}

// The state's directories.
const (
	arrivalDir = "arrivals"
	ticketDir  = "tickets"
)

// NewInbox reads from state what has arrived, is arriving, and which tickets were used,
// and makes the folder for answers. The export has an inbox already.
func NewInbox(export, state *os.Root, o InboxOptions) (*Inbox, error) {
	o.Every = cmp.Or(o.Every, DefaultEvery)
	b := &Inbox{
		export: export, state: state, opts: o, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)),
		arrivals: map[string]*arrival{}, tickets: map[string]use{}, proving: map[string]bool{}, changed: make(chan struct{}),
	}
	if err := b.load(); err != nil {
		return nil, fmt.Errorf("read the state of the GridFTP inbox: %w", err)
	}
	return b, nil
}

func (b *Inbox) load() error {
	err := errors.Join(
		b.export.MkdirAll(answers, 0o750),
		b.state.MkdirAll(arrivalDir, 0o700),
		b.state.MkdirAll(ticketDir, 0o700),
	)
	if err != nil {
		return err
	}
	uses, err := loadAll[use](b.state, ticketDir)
	if err != nil {
		return err
	}
	for _, u := range uses {
		b.tickets[u.ID] = u
	}
	records, err := loadAll[record](b.state, arrivalDir)
	if err != nil {
		return err
	}
	for _, r := range records {
		a := &arrival{record: r}
		if _, err := b.export.Lstat(partName(r.File.Name)); errors.Is(err, fs.ErrNotExist) {
			info, err := b.export.Lstat(r.File.Name)
			a.arrived = err == nil && info.Mode().IsRegular() && info.Size() == r.File.Size
		}
		b.arrivals[r.File.Name] = a
	}
	return nil
}

func loadAll[T any](root *os.Root, dir string) (all []T, err error) {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if durable.IsTemp(e.Name()) {
			continue
		}
		data, err := root.ReadFile(path.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		var v T
		if err := json.Unmarshal(data, &v); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(dir, e.Name()), err)
		}
		all = append(all, v)
	}
	return all, nil
}

func save(root *os.Root, name string, perm os.FileMode, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(root, name, append(data, '\n'), perm)
}

func recordName(name string) string { return path.Join(arrivalDir, path.Base(name)+".json") }
func useName(id string) string      { return path.Join(ticketDir, hashName(id)+".json") }

// Run looks into the inbox until ctx is done, and returns nil when nothing of it runs any
// more. What fails is looked at again. It is called once at a time.
func (b *Inbox) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	tick := time.NewTicker(b.opts.Every)
	defer tick.Stop()
	said := ""
	for swept := (time.Time{}); ; {
		err := b.look(ctx, &work)
		if now := time.Now(); now.Sub(swept) > sweepEvery {
			swept = now
			err = errors.Join(err, b.sweep(now))
		}
		if text := fmt.Sprint(err); err != nil && text != said {
			b.log.Warn("the inbox cannot be looked at; it is tried again", "err", err)
			said = text
		} else if err == nil {
			said = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look takes up the messages that lie in the inbox, and what has come of the files.
func (b *Inbox) look(ctx context.Context, work *sync.WaitGroup) error {
	entries, err := b.list()
	if err != nil {
		return err
	}
	for _, e := range entries {
		base, hidden := strings.CutPrefix(e.Name(), ".")
		if !hidden || !e.Type().IsRegular() {
			continue
		}
		if base, ok := strings.CutSuffix(base, ".offer"); ok {
			err = errors.Join(err, b.takeOffer(ctx, work, mover.Inbox+"/"+base))
		} else if base, ok := strings.CutSuffix(base, ".manifest"); ok {
			err = errors.Join(err, b.takeManifest(ctx, work, mover.Inbox+"/"+base))
		} else if base, ok := strings.CutSuffix(base, ".part"); ok {
			b.measure(mover.Inbox + "/" + base)
		}
	}
	return err
}

// list returns what is in the inbox now. An NFS client may know a directory as it was a
// minute ago, unless it is told to ask the server.
func (b *Inbox) list() ([]fs.DirEntry, error) {
	d, err := b.export.Open(mover.Inbox)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(d.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MTIME, &st); err != nil {
		return nil, &fs.PathError{Op: "statx", Path: mover.Inbox, Err: err}
	}
	return d.ReadDir(-1)
}

// open opens a plain file of the export. Neither a link nor anything else is followed or waited for.
func (b *Inbox) open(name string) (*os.File, fs.FileInfo, error) {
	before, err := b.export.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, nil, mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file (%v)", name, before.Mode().Type()))
	}
	f, err := b.export.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(before, info) {
		err = fmt.Errorf("%s was replaced while it was opened", name)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// message reads an offer or a manifest; false when it is not whole yet. One that stays
// so is removed.
func (b *Inbox) message(name string, v any) (bool, error) {
	f, info, err := b.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMessage))
	if err != nil {
		return false, err
	}
	if json.Unmarshal(data, v) == nil {
		return true, nil
	}
	if time.Since(info.ModTime()) > stale {
		b.log.Warn("a message in the inbox cannot be read and is removed", "file", name)
		return false, durable.Remove(b.export, name)
	}
	return false, nil
}

// takeOffer admits the file of an offer, or refuses it.
func (b *Inbox) takeOffer(ctx context.Context, work *sync.WaitGroup, name string) error {
	b.admin.Lock()
	defer b.admin.Unlock()
	var o offer
	if ok, err := b.message(offerName(name), &o); !ok {
		return err
	}
	have, done, err := b.admit(name, o)
	a := answer{State: answerOpen}
	switch {
	case err != nil:
		a = answer{State: answerRefused, Code: mover.CodeOf(err), Error: err.Error()}
		b.log.Warn("sender refused", "site", o.From, "file", name, "err", err)
	case done:
		a = answer{State: answerArrived}
	default:
		b.log.Info("file arrives", "site", o.From, "file", name, "bytes", o.File.Size)
	}
	// Before the answer: whoever has it may put the next one.
	if err := durable.Remove(b.export, offerName(name)); err != nil {
		return err
	}
	if a.State == answerOpen && have > 0 {
		work.Go(func() { b.survey(ctx, b.lookup(name), o.Session) })
		return nil
	}
	return b.answer(o.Session, a)
}

// survey tells a sender what lies there of an arrival. What cannot be read comes again.
func (b *Inbox) survey(ctx context.Context, a *arrival, session string) {
	sums, _, err := b.read(ctx, a, session, partName(a.File.Name), nil)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		b.log.Warn("what came of a file cannot be read; it comes again", "file", a.File.Name, "err", err)
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	if b.isGone(a, session) {
		return
	}
	if err := b.answer(session, answer{State: answerOpen, Sums: sums}); err != nil {
		b.log.Error("a sender cannot be answered", "file", a.File.Name, "err", err)
	}
}

// read reads a file of an arrival and returns the digests of its blocks and its size,
// feeding h too, and tells the sender now and then how far it is.
func (b *Inbox) read(ctx context.Context, a *arrival, session, name string, h hash.Hash) (sums []digest.Block, size int64, err error) {
	f, info, err := b.open(name)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	buf := make([]byte, mover.BlockSize)
	told := time.Now()
	for size < info.Size() {
		n, err := io.ReadFull(f, buf[:min(mover.BlockSize, info.Size()-size)])
		if err != nil {
			return sums, size, fmt.Errorf("read %s back: %w", name, err)
		}
		if h != nil {
			h.Write(buf[:n])
		}
		sums = append(sums, digest.OfBlock(buf[:n]))
		size += int64(n)
		if ctx.Err() != nil || b.isGone(a, session) {
			return nil, 0, cmp.Or(context.Cause(ctx), errGone)
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			if err := b.answer(session, answer{State: answerProving, Have: size}); err != nil {
				return nil, 0, err
			}
		}
	}
	if h == nil {
		return sums, size, nil
	}
	if err := f.Sync(); err != nil { // what it has of the file, nobody knows
		return nil, 0, mover.Coded(mover.CodeContent, fmt.Errorf("the disk did not take the file: %w", err))
	}
	return sums, size, nil
}

// answer tells the sender of a session. A session that has no plain name has no answer.
func (b *Inbox) answer(session string, a answer) error {
	if !plain.MatchString(session) {
		return nil
	}
	return save(b.export, answerName(session), 0o640, a)
}

// admit makes the offer's session the one that may complete the file, binds its ticket
// to the file for good, and tells how much of it lies there. The caller holds admin.
func (b *Inbox) admit(name string, o offer) (have int64, done bool, err error) {
	t, err := b.opts.Check(o.Ticket)
	if err == nil {
		err = b.usable(t, name, o)
	}
	if err != nil {
		if _, coded := errors.AsType[*mover.Error](err); !coded {
			err = mover.Coded(mover.CodeTicket, err)
		}
		return 0, false, err
	}
	a, err := b.standing(t.File)
	if err != nil {
		return 0, false, err
	}
	if a != nil && a.arrived {
		return t.File.Size, true, b.bind(t)
	}
	if info, err := b.export.Lstat(partName(name)); err == nil && a != nil {
		have = info.Size()
	}
	if err := b.space(t.File); err != nil {
		return 0, false, err
	}
	if a == nil {
		if err := durable.Remove(b.export, partName(name)); err != nil { // of nobody
			return 0, false, err
		}
		a = &arrival{record: record{File: t.File, Since: time.Now().UTC()}}
	}
	if old := a.Session; old != "" && old != o.Session {
		err = b.answer(old, answer{State: answerRefused, Error: "another session sends this file now"})
	}
	r := a.record
	r.Session = o.Session
	err = errors.Join(err, noSpace(b.bind(t)), noSpace(save(b.state, recordName(name), 0o600, r)))
	if err != nil {
		return 0, false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a.record = r
	b.arrivals[name] = a
	b.tell()
	return have, false, nil
}

// usable reports a ticket that this sender cannot use for this file, or not any more.
func (b *Inbox) usable(t mover.Ticket, name string, o offer) error {
	if t.File.Name != name || t.File != o.File {
		return fmt.Errorf("ticket: it is for %s (%v, %d bytes), the sender offers %s (%v, %d bytes)", t.File.Name, t.File.Digest, t.File.Size, name, o.File.Digest, o.File.Size)
	}
	if err := checkName(mover.Inbox, name); err != nil {
		return err
	}
	if t.File.Size < 0 || t.File.Size > maxBlocks*mover.BlockSize {
		return fmt.Errorf("ticket: %d bytes are not a size that can be taken", t.File.Size)
	}
	if err := usable(t, o.From, o.File); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch u, known := b.tickets[t.ID]; {
	case known && u.File != t.File:
		return errors.New("ticket: it was used for another file; ask for a new one")
	case known && u.Spent:
		return errors.New("ticket: it is used up; ask for a new one")
	}
	return nil
}

// standing returns the arrival of f, nil if there is none. An arrival that lost its file
// under our feet is none. The caller holds admin.
func (b *Inbox) standing(f mover.File) (*arrival, error) {
	a := b.lookup(f.Name)
	if a == nil {
		return nil, nil
	}
	if a.File != f {
		return nil, mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: %s is there or arriving with other content (%v, %d bytes); drop it first", f.Name, a.File.Digest, a.File.Size))
	}
	if a.arrived {
		if _, err := b.export.Lstat(f.Name); errors.Is(err, fs.ErrNotExist) {
			return nil, b.discard(a)
		}
	}
	return a, nil
}

// space reports a file for which there is none besides what is promised to others.
func (b *Inbox) space(f mover.File) error {
	if b.opts.Free == nil {
		return nil
	}
	free, err := b.opts.Free()
	if err != nil {
		return fmt.Errorf("ask for the free space: %w", err)
	}
	var need, others int64 = f.Size, 0
	for _, a := range b.snapshot() {
		if a.File.Name == f.Name {
			need = a.missing()
		} else {
			others += a.missing()
		}
	}
	if need > free-others {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("%s needs %d bytes; %d are free at the destination, %d of them are promised to other arrivals", f.Name, need, free, others))
	}
	return nil
}

// bind notes for good that t was used for its file.
func (b *Inbox) bind(t mover.Ticket) error {
	return b.note(use{ID: t.ID, File: t.File, Expires: t.Expires})
}

func (b *Inbox) note(u use) error {
	if err := save(b.state, useName(u.ID), 0o600, u); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tickets[u.ID] = u
	return nil
}

// measure notes how much of a part the disk holds. Its size says nothing: parallel
// streams write far from the start as well.
func (b *Inbox) measure(name string) {
	info, err := b.export.Lstat(partName(name))
	if err != nil {
		return
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.arrivals[name]
	if a == nil {
		return
	}
	if n := min(st.Blocks*512, info.Size(), a.File.Size); n != a.written {
		a.written = n
		b.tell()
	}
}

// takeManifest begins to prove a file whose sender says that it is complete.
func (b *Inbox) takeManifest(ctx context.Context, work *sync.WaitGroup, name string) error {
	b.admin.Lock()
	defer b.admin.Unlock()
	if b.isProving(name) {
		return nil
	}
	var m manifest
	if ok, err := b.message(manifestName(name), &m); !ok {
		return err
	}
	a := b.lookup(name)
	if a == nil || a.Session != m.Session { // its sender is told, if it has not been
		return errors.Join(durable.Remove(b.export, manifestName(name)), b.answer(m.Session,
			answer{State: answerRefused, Error: "this session is not known any more; offer the file again"}))
	}
	b.mu.Lock()
	b.proving[name] = true
	b.mu.Unlock()
	work.Go(func() {
		b.conclude(ctx, a, m.Session)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.proving, name)
	})
	return nil
}

func (b *Inbox) isProving(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.proving[name]
}

// conclude proves a file, gives it its name and answers its sender.
func (b *Inbox) conclude(ctx context.Context, a *arrival, session string) {
	name := a.File.Name
	sums, err := b.prove(ctx, a, session)
	if ctx.Err() != nil && err != nil {
		return
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	if b.isGone(a, session) {
		return
	}
	if err == nil {
		err = b.finish(a, sums)
	}
	reply := answer{State: answerArrived, Have: a.File.Size}
	switch {
	case err == nil:
		err = durable.Remove(b.export, manifestName(name))
		b.log.Info("file arrived", "file", name, "bytes", a.File.Size)
	default:
		b.log.Warn("file refused", "file", name, "err", err)
		reply = answer{State: answerRefused, Code: mover.CodeOf(err), Error: err.Error()}
		err = b.reject(a, err)
	}
	if err = errors.Join(err, b.answer(session, reply)); err != nil {
		b.log.Error("a sender cannot be answered", "file", name, "err", err)
	}
}

// reject removes a file that is wrong. One that a fault of this host keeps from being
// proven stays, and its sender may offer it again. The caller holds admin.
func (b *Inbox) reject(a *arrival, cause error) error {
	if mover.CodeOf(cause) != mover.CodeOther {
		return b.discard(a)
	}
	b.mu.Lock()
	a.lastErr = cause.Error()
	b.tell()
	b.mu.Unlock()
	return durable.Remove(b.export, manifestName(a.File.Name))
}

// prove reads the part, or after a crash the file, and compares its digest.
func (b *Inbox) prove(ctx context.Context, a *arrival, session string) ([]digest.Block, error) {
	name := partName(a.File.Name)
	if _, err := b.export.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		name = a.File.Name
		if a.File.Size == 0 { // of it nothing is sent
			return nil, b.export.WriteFile(partName(name), nil, 0o640)
		}
	}
	h, err := digest.New(a.File.Digest.Algo)
	if err != nil {
		return nil, mover.Coded(mover.CodeTicket, err)
	}
	sums, size, err := b.read(ctx, a, session, name, h)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, mover.Coded(mover.CodeContent, fmt.Errorf("the manifest came without the data: %w", err))
	case err != nil:
		return nil, err
	case size != a.File.Size:
		return nil, mover.Coded(mover.CodeContent, fmt.Errorf("%d bytes came instead of %d", size, a.File.Size))
	}
	return sums, mover.Coded(mover.CodeContent, digest.Check(a.File.Digest, digest.Of(a.File.Digest.Algo, h)))
}

var errGone = errors.New("the arrival was removed at the destination")

// isGone reports whether the arrival was dropped, or is another session's by now.
func (b *Inbox) isGone(a *arrival, session string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return a.gone || a.Session != session
}

// finish gives a proven file its name. The caller holds admin.
func (b *Inbox) finish(a *arrival, sums []digest.Block) error {
	err := b.export.Rename(partName(a.File.Name), a.File.Name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has its name since before a crash
		return err
	}
	if err := durable.SyncDir(b.export, mover.Inbox); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	a.arrived, a.sums, a.lastErr = true, sums, ""
	b.tell()
	return nil
}

// discard removes a with its files; the record goes last, for while it is there a restart
// knows what to clean up. The caller holds admin.
func (b *Inbox) discard(a *arrival) error {
	name := a.File.Name
	b.mu.Lock()
	a.gone = true
	b.mu.Unlock()
	err := errors.Join(
		durable.Remove(b.export, offerName(name)),
		durable.Remove(b.export, manifestName(name)),
		durable.Remove(b.export, partName(name)),
		durable.Remove(b.export, name),
		durable.Remove(b.state, recordName(name)),
	)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.arrivals, name)
	b.tell()
	return nil
}

// Drop removes an arrival, complete or not, and spends the tickets that were used for it.
// Its sender learns of it within seconds. It returns nil when there is none, and may be repeated.
func (b *Inbox) Drop(name string) error {
	if err := checkName(mover.Inbox, name); err != nil {
		return err
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	a := b.lookup(name)
	err := b.spend(name)
	if a != nil {
		err = errors.Join(err, b.answer(a.Session, answer{State: answerRefused, Code: mover.CodeTicket, Error: errGone.Error()}))
	} else { // files of which the state was lost
		a = &arrival{record: record{File: mover.File{Name: name}}}
	}
	if err = errors.Join(err, b.discard(a)); err != nil {
		return fmt.Errorf("drop %s: %w", name, err)
	}
	b.log.Info("arrival dropped", "file", name)
	return nil
}

func (b *Inbox) spend(name string) error {
	var spent []use
	b.mu.Lock()
	for _, u := range b.tickets {
		if u.File.Name == name && !u.Spent {
			u.Spent = true
			spent = append(spent, u)
		}
	}
	b.mu.Unlock()
	var err error
	for _, u := range spent {
		err = errors.Join(err, b.note(u))
	}
	return err
}

// sweep forgets answers that nobody waits for and tickets that nobody can use.
func (b *Inbox) sweep(now time.Time) error {
	b.admin.Lock()
	defer b.admin.Unlock()
	err := removeOlder(b.export, answers, now.Add(-keepAnswers))
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, u := range b.tickets {
		if now.Sub(u.Expires) > keepTickets {
			delete(b.tickets, id)
			err = errors.Join(err, b.state.Remove(useName(id)))
		}
	}
	return err
}

// tell says that Arrivals tells something else. The caller holds mu.
func (b *Inbox) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Changed returns a channel that is closed when Arrivals tells something else than it
// does now, or may do so.
func (b *Inbox) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *Inbox) lookup(name string) *arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.arrivals[name]
}

// snapshot returns copies of the arrivals.
func (b *Inbox) snapshot() []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []arrival
	for _, a := range b.arrivals {
		all = append(all, *a)
	}
	return all
}

// missing is how much of the disk it will still take.
func (a arrival) missing() int64 {
	if a.arrived {
		return 0
	}
	return max(0, a.File.Size-a.written)
}

func (a arrival) status() mover.Arrival {
	if a.arrived {
		return mover.Arrival{File: a.File, State: mover.Arrived, Path: a.File.Name, Proven: a.File.Size, Moved: a.File.Size, Since: a.Since}
	}
	return mover.Arrival{File: a.File, State: mover.Arriving, Path: partName(a.File.Name), Moved: a.written, Error: a.lastErr, Since: a.Since}
}

// Arrivals returns what arrives and has arrived, by name. Nothing of a file is proven
// before all of it is; until then Moved is what lies there.
func (b *Inbox) Arrivals() []mover.Arrival {
	var all []mover.Arrival
	for _, a := range b.snapshot() {
		all = append(all, a.status())
	}
	slices.SortFunc(all, func(a, b mover.Arrival) int { return strings.Compare(a.File.Name, b.File.Name) })
	return all
}

// Arrival returns the one whose File.Name is name; mover.ErrNoArrival.
func (b *Inbox) Arrival(name string) (mover.Arrival, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.arrivals[name]; a != nil {
		return a.status(), nil
	}
	return mover.Arrival{}, fmt.Errorf("%s: %w", name, mover.ErrNoArrival)
}

// Blocks tells the digests of an arrived file's blocks from the one given on, if it was
// proven by this process; mover.ErrNoArrival.
func (b *Inbox) Blocks(name string, from int64) (mover.Blocks, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.arrivals[name]
	if a == nil {
		return mover.Blocks{}, fmt.Errorf("%s: %w", name, mover.ErrNoArrival)
	}
	first := min(max(from, 0), int64(len(a.sums)))
	last := min(first+blocksAtOnce, int64(len(a.sums)))
	return mover.Blocks{Sums: append([]digest.Block{}, a.sums[first:last]...)}, nil
}

// Promised is the space that the files under way will still take.
func (b *Inbox) Promised() int64 {
	var n int64
	for _, a := range b.snapshot() {
		n += a.missing()
	}
	return n
}
