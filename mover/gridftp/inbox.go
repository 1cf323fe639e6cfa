package gridftp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
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
	listed        listing // look alone uses it

	admin sync.Mutex // held while arrivals and tickets change on disk; taken before mu

	mu       sync.Mutex // guards what follows
	arrivals map[string]*arrival
	tickets  map[string]use // by id
	proving  map[string]bool
	surveys  map[survey]bool // that are under way
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
		arrivals: map[string]*arrival{}, tickets: map[string]use{}, proving: map[string]bool{}, surveys: map[survey]bool{}, changed: make(chan struct{}),
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

// touchEvery bounds how long an NFS client may take an old list for the present one.
const touchEvery = time.Minute

// list returns what is in the inbox now. An NFS client may know a directory as it was a
// minute ago, unless it is told to ask the server. Even then it goes by the time of the
// last change, and a second change within the same tick of the server's clock does not
// show by that: so a list that was made right after a change is made once more at the
// next look, for which the directory's time is set to another one.
func (b *Inbox) list() ([]fs.DirEntry, error) {
	d, err := b.export.Open(mover.Inbox)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	mtime, err := modified(d)
	if err != nil {
		return nil, err
	}
	switch now := time.Now(); {
	case mtime != b.listed.mtime:
		b.listed = listing{mtime: mtime, at: now}
	case !b.listed.again || now.Sub(b.listed.at) > touchEvery:
		at := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
		if err := unix.UtimesNanoAt(int(d.Fd()), ".", at, 0); err != nil {
			return nil, &fs.PathError{Op: "utimensat", Path: mover.Inbox, Err: err}
		}
		if mtime, err = modified(d); err != nil {
			return nil, err
		}
		b.listed = listing{mtime: mtime, at: now, again: true}
	}
	return d.ReadDir(-1)
}

// listing is when the inbox was listed.
type listing struct {
	mtime unix.StatxTimestamp // that the directory had
	at    time.Time
	again bool // not right after a change
}

// modified is when a directory was last changed, as its server knows it.
func modified(d *os.File) (unix.StatxTimestamp, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(d.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MTIME, &st); err != nil {
		return st.Mtime, &fs.PathError{Op: "statx", Path: mover.Inbox, Err: err}
	}
	return st.Mtime, nil
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

// removeOlder removes the plain files of a directory that were written before a time.
func removeOlder(root *os.Root, dir string, before time.Time) error {
	entries, err := fs.ReadDir(root.FS(), dir)
	for _, d := range entries {
		info, ierr := d.Info()
		if ierr != nil || !info.Mode().IsRegular() || !info.ModTime().Before(before) {
			continue
		}
		if rerr := root.Remove(path.Join(dir, d.Name())); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
