package dtn

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Names under the state directory.
const (
	transfersDir = "transfers"
	recordSuffix = ".json"
	asideSuffix  = ".broken"
)

// limits bound a table.
type limits struct {
	keep       time.Duration // how long a finished transfer is remembered
	finished   int           // how many at most; the oldest are forgotten first
	unfinished int           // how many at most; more are refused
}

var errFull = errors.New("too many transfers are waiting; submit this one again later")

// record is a transfer as it lies on disk. What is not final there is queued
// again when the DTN starts, so that a transfer starts is not written.
type record struct {
	Request mover.Request `json:"request"`
	Status  mover.Status  `json:"status"`
	Cancel  bool          `json:"cancel,omitempty"` // to be ended, also after a restart
}

// transfer is a record and what is known of it beyond the disk.
type transfer struct {
	record
	reported bool               // this run has told its progress
	before   int64              // bytes that were there at the first report
	stop     context.CancelFunc // ends the run; nil when there is none
	seq      uint64             // table.seq at the last change
}

// table holds every transfer the DTN knows. A change that it has told anyone of
// survives a power failure.
type table struct {
	dir    *os.Root
	limits limits
	log    *slog.Logger

	// changing is held over a change of state, which goes to disk first and then,
	// under mu, to memory. So either mutex is enough to read what changes with the
	// state; what changes with progress needs mu.
	changing sync.Mutex

	mu      sync.Mutex // guards the fields below and what they point to; never held over I/O
	byID    map[mover.TransferID]*transfer
	queue   []*transfer   // in order of creation; may hold some that were cancelled
	seq     uint64        // counts changes, progress included
	changed chan struct{} // closed and replaced at each change of state
}

// transferID follows from the key, so that one key is one transfer.
func transferID(key string) mover.TransferID {
	h := sha256.Sum256([]byte(key))
	return mover.TransferID(hex.EncodeToString(h[:10]))
}

func recordName(id mover.TransferID) string {
	return transfersDir + "/" + string(id) + recordSuffix
}

// openTable loads what dir holds. A record that cannot be read is set aside
// with a warning: its agent submits the transfer again.
func openTable(dir *os.Root, l limits, log *slog.Logger) (*table, error) {
	t := &table{dir: dir, limits: l, log: log, byID: map[mover.TransferID]*transfer{}, changed: make(chan struct{})}
	if err := dir.MkdirAll(transfersDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of transfers: %w", err)
	}
	if err := durable.SyncDir(dir, "."); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(dir.FS(), transfersDir)
	if err != nil {
		return nil, fmt.Errorf("list transfers: %w", err)
	}
	for _, e := range entries {
		if err := t.load(e.Name()); err != nil {
			return nil, fmt.Errorf("load transfer %s: %w", e.Name(), err)
		}
	}
	slices.SortFunc(t.queue, func(a, b *transfer) int {
		return cmp.Or(a.Status.Created.Compare(b.Status.Created), cmp.Compare(a.Status.ID, b.Status.ID))
	})
	t.forget(time.Now())
	return t, nil
}

// load takes one file of the directory into the table.
func (t *table) load(name string) error {
	path := transfersDir + "/" + name
	if durable.IsTemp(name) {
		return t.setAside(path, errors.New("a write of it was cut off"))
	}
	if !strings.HasSuffix(name, recordSuffix) {
		return nil
	}
	data, err := t.dir.ReadFile(path)
	if err != nil {
		return err
	}
	r, err := decodeRecord(data)
	if err == nil && recordName(r.Status.ID) != path {
		err = fmt.Errorf("it holds transfer %s", r.Status.ID)
	}
	if err != nil {
		return t.setAside(path, err)
	}
	tr := &transfer{record: r}
	t.byID[r.Status.ID] = tr
	t.touch(tr)
	switch {
	case r.Status.State.Final():
	case r.Cancel:
		return t.finish(tr, mover.Cancelled, nil)
	default:
		tr.Status.State, tr.Status.Started = mover.Queued, time.Time{}
		t.queue = append(t.queue, tr)
		t.log.Info("transfer queued again", "transfer", r.Status.ID, "file", r.Request.Source.Name)
	}
	return nil
}

func (t *table) setAside(path string, cause error) error {
	t.log.Warn("a transfer's record cannot be read and is set aside; its agent submits the transfer again",
		"file", path, "aside", path+asideSuffix, "err", cause)
	return t.dir.Rename(path, path+asideSuffix)
}

// decodeRecord is strict: a field it does not know means that another version
// wrote the record, and dropping the field could change what is to be done.
func decodeRecord(data []byte) (record, error) {
	var r record
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return record{}, err
	}
	if _, err := d.Token(); err != io.EOF {
		return record{}, errors.New("something follows the record")
	}
	if r.Status.ID != transferID(r.Request.Key) {
		return record{}, fmt.Errorf("key %q does not belong to transfer %s", r.Request.Key, r.Status.ID)
	}
	if s := r.Status.State; !s.Final() && s != mover.Queued && s != mover.Running {
		return record{}, fmt.Errorf("unknown state %q", s)
	}
	return r, nil
}

func (t *table) store(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(t.dir, recordName(r.Status.ID), data, 0o600); err != nil {
		return fmt.Errorf("store transfer %s: %w", r.Status.ID, err)
	}
	return nil
}

// submit adds a transfer, or finds it; fresh tells which. The error is
// mover.ErrKeyConflict, errFull, or that of the disk.
func (t *table) submit(r mover.Request) (s mover.Status, fresh bool, err error) {
	t.changing.Lock()
	defer t.changing.Unlock()
	id := transferID(r.Key)
	if known := t.byID[id]; known != nil {
		if known.Request != r {
			return mover.Status{}, false, mover.ErrKeyConflict
		}
		s, _, _ = t.get(id)
		return s, false, nil
	}
	if t.unfinished() >= t.limits.unfinished {
		return mover.Status{}, false, errFull
	}
	tr := &transfer{record: record{Request: r, Status: mover.Status{
		ID:      id,
		Key:     r.Key,
		State:   mover.Queued,
		Source:  r.Source,
		Address: r.Destination.Address,
		Created: time.Now().UTC(),
	}}}
	if err := t.store(tr.record); err != nil {
		return mover.Status{}, false, err
	}
	t.publish(tr, func() {
		t.byID[id] = tr
		t.queue = append(t.queue, tr)
	})
	t.log.Info("transfer queued", "transfer", id, "file", r.Source.Name, "bytes", r.Source.Size, "to", r.Destination.Address)
	return tr.Status, true, nil
}

// unfinished counts. The caller holds changing.
func (t *table) unfinished() (n int) {
	for _, tr := range t.byID {
		if !tr.Status.State.Final() {
			n++
		}
	}
	return n
}

// publish applies a change to tr in memory and tells everyone who waits.
func (t *table) publish(tr *transfer, change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
	t.touch(tr)
	close(t.changed)
	t.changed = make(chan struct{})
}

// touch marks tr as changed. The caller holds mu.
func (t *table) touch(tr *transfer) {
	t.seq++
	tr.seq = t.seq
}

// next takes the oldest queued transfer and makes it running; stop is what cancel
// calls to end it. It waits for one, and returns false when ctx is done.
func (t *table) next(ctx context.Context, stop context.CancelFunc) (mover.Request, bool) {
	for ctx.Err() == nil {
		r, changed, ok := t.take(stop)
		if ok {
			return r, true
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return mover.Request{}, false
}

// take is next without waiting: it returns the channel to wait on instead.
func (t *table) take(stop context.CancelFunc) (r mover.Request, changed <-chan struct{}, ok bool) {
	t.changing.Lock()
	defer t.changing.Unlock()
	t.queue = slices.DeleteFunc(t.queue, func(tr *transfer) bool { return tr.Status.State != mover.Queued })
	if len(t.queue) == 0 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return mover.Request{}, t.changed, false
	}
	tr := t.queue[0]
	t.publish(tr, func() {
		t.queue = slices.Delete(t.queue, 0, 1)
		tr.Status.State, tr.Status.Started = mover.Running, time.Now().UTC()
		tr.stop, tr.reported, tr.before = stop, false, 0
	})
	t.log.Info("transfer started", "transfer", tr.Status.ID, "file", tr.Request.Source.Name)
	return tr.Request, nil, true
}

// progress records that moved bytes are proven and returns how many of them are
// new in this run: what the first report of a run tells was there before.
func (t *table) progress(id mover.TransferID, moved int64) (fresh int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.byID[id]
	if !tr.reported {
		tr.reported, tr.before = true, moved
	} else {
		fresh = max(0, moved-tr.Status.Moved)
	}
	tr.Status.Moved = moved
	t.touch(tr)
	return fresh
}

// end records what became of a run: done when err is nil, else cancelled when
// that was asked for, else queued again when the DTN itself stops, else failed.
func (t *table) end(id mover.TransferID, err error, stopping bool) mover.Status {
	t.changing.Lock()
	defer t.changing.Unlock()
	tr := t.byID[id]
	state := mover.Failed
	switch {
	case err == nil:
		state = mover.Done
	case tr.Cancel:
		state = mover.Cancelled
	case stopping:
		t.publish(tr, func() { tr.Status.State, tr.Status.Started, tr.stop = mover.Queued, time.Time{}, nil })
		t.log.Info("transfer interrupted; it goes on when the DTN starts again", "transfer", id, "file", tr.Request.Source.Name)
		return tr.Status
	}
	if err := t.finish(tr, state, err); err != nil {
		t.log.Error("the end of a transfer could not be stored; after a restart it is run again",
			"transfer", id, "file", tr.Request.Source.Name, "err", err)
	}
	t.forget(time.Now())
	return tr.Status
}

// cancel asks for a transfer's end. A queued one has ended on return, a running
// one ends soon, also when the DTN is restarted before it has. A final one is
// left as it is. It returns false when the transfer is not known.
func (t *table) cancel(id mover.TransferID) (bool, error) {
	t.changing.Lock()
	defer t.changing.Unlock()
	tr := t.byID[id]
	switch {
	case tr == nil:
		return false, nil
	case tr.Status.State.Final() || tr.Cancel:
		return true, nil
	case tr.Status.State == mover.Queued:
		return true, t.finish(tr, mover.Cancelled, nil)
	}
	r := t.copyOf(tr)
	r.Cancel = true
	if err := t.store(r); err != nil {
		return true, err
	}
	t.publish(tr, func() { tr.Cancel = true })
	tr.stop()
	return true, nil
}

// copyOf returns tr's record as it is now. The caller holds changing.
func (t *table) copyOf(tr *transfer) record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return tr.record
}

// finish brings tr to a final state, with cause if it failed. A queued transfer
// whose end cannot be stored stays queued. A run that has ended has ended, stored
// or not: an engine's repeat costs little. The caller holds changing.
func (t *table) finish(tr *transfer, state mover.TransferState, cause error) error {
	r := t.copyOf(tr)
	if state == mover.Done {
		r.Status.Moved = r.Request.Source.Size
	}
	if state == mover.Failed {
		r.Status.Code, r.Status.Error = mover.CodeOf(cause), cause.Error()
	}
	r.Status.Ended = time.Now().UTC()
	r.Status.Rate = tr.rate(r.Status.Moved, r.Status.Ended)
	r.Status.State = state
	err := t.store(r)
	if err == nil || tr.Status.State == mover.Running {
		t.publish(tr, func() { tr.record, tr.stop = r, nil })
		t.logEnd(r, cause)
	}
	return err
}

func (t *table) logEnd(r record, cause error) {
	log := t.log.With("transfer", r.Status.ID, "file", r.Request.Source.Name)
	switch r.Status.State {
	case mover.Done:
		log.Info("transfer done", "bytes", r.Status.Moved, "seconds", r.Status.Ended.Sub(r.Status.Started).Seconds())
	case mover.Cancelled:
		log.Info("transfer cancelled", "bytes", r.Status.Moved)
	default:
		log.Warn("transfer failed", "bytes", r.Status.Moved, "code", r.Status.Code, "err", cause)
	}
}

// rate is the mean since the run started until now, when moved bytes were proven,
// in bits per second. The caller holds mu, or changing when the run has ended.
func (tr *transfer) rate(moved int64, now time.Time) float64 {
	if tr.Status.State != mover.Running {
		return tr.Status.Rate
	}
	d := now.Sub(tr.Status.Started).Seconds()
	if d <= 0 || !tr.reported {
		return 0
	}
	return float64(8*(moved-tr.before)) / d
}

// status returns tr's status as it is now. The caller holds mu.
func (tr *transfer) status() mover.Status {
	s := tr.Status
	s.Rate = tr.rate(s.Moved, time.Now())
	return s
}

// get returns a transfer and a channel that is closed at the next change of
// state of any transfer.
func (t *table) get(id mover.TransferID) (s mover.Status, changed <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.byID[id]
	if tr == nil {
		return mover.Status{}, nil, false
	}
	return tr.status(), t.changed, true
}

// since returns the transfers that changed after seq, oldest first, the seq to ask
// with the next time, and the channel of get.
func (t *table) since(seq uint64) (all []mover.Status, next uint64, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all = []mover.Status{}
	for _, tr := range t.byID {
		if tr.seq > seq {
			all = append(all, tr.status())
		}
	}
	slices.SortFunc(all, func(a, b mover.Status) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return all, t.seq, t.changed
}

// counts returns how many transfers are in each state.
func (t *table) counts() map[mover.TransferState]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := map[mover.TransferState]int{}
	for _, tr := range t.byID {
		n[tr.Status.State]++
	}
	return n
}

// forget drops the finished transfers that are beyond the limits. The caller holds
// changing, or nobody else has the table yet.
func (t *table) forget(now time.Time) {
	var ended []*transfer
	for _, tr := range t.byID {
		if tr.Status.State.Final() {
			ended = append(ended, tr)
		}
	}
	slices.SortFunc(ended, func(a, b *transfer) int { return b.Status.Ended.Compare(a.Status.Ended) })
	for i, tr := range ended {
		if i < t.limits.finished && now.Sub(tr.Status.Ended) < t.limits.keep {
			continue
		}
		// Not synced: what a power failure brings back is forgotten again.
		err := t.dir.Remove(recordName(tr.Status.ID))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.log.Warn("an old transfer's record cannot be removed", "transfer", tr.Status.ID, "err", err)
			continue
		}
		t.mu.Lock()
		delete(t.byID, tr.Status.ID)
		t.mu.Unlock()
	}
}

// forgetting forgets old transfers every hour until ctx is done.
func (t *table) forgetting(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			t.changing.Lock()
			t.forget(now)
			t.changing.Unlock()
		}
	}
}
