package dtn

import (
	"bytes"
	"cmp"
	"container/list"
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
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// recordsName is the file under the state directory that holds the transfers' records, by
// their ids; see durable.Log.
const recordsName = "transfers.log"

// limits bound a table.
type limits struct {
	keep       time.Duration // how long a finished transfer is remembered
	finished   int           // how many at most; the oldest are forgotten first
	unfinished int           // how many at most; more are refused
	small      bool          // small transfers have places of their own
}

var errFull = errors.New("too many transfers are waiting; submit this one again later")

// record is a transfer as it lies on disk. What is not final there is queued
// again when the DTN starts, so that a transfer starts is not written.
type record struct {
	Request mover.Request `json:"request"`
	Status  mover.Status  `json:"status"`
	Cancel  bool          `json:"cancel,omitempty"` // to be ended, also after a restart
	PCP     mover.PCP     `json:"pcp,omitzero"`     // set since it was submitted

	Priority mover.Priority `json:"priority,omitempty"` // likewise
}

// priority is what was set, or else asked for.
func (r record) priority() mover.Priority { return cmp.Or(r.Priority, r.Request.Priority) }

// transfer is a record and what is known of it beyond the disk.
type transfer struct {
	record
	reported bool                    // this run has told its progress
	before   int64                   // bytes that were there at the first report
	speed    mover.Speed             // of this run
	onward   mover.Speed             // of a relay's
	past     past                    // the runs before it
	waited   waited                  // what all of them have waited for
	stop     context.CancelCauseFunc // ends the run; nil when there is none
	seq      uint64                  // table.seq at the last change
	at       *list.Element           // of table.latest
	yields   string                  // why its run was stopped in favour of another; changing guards it
	patience time.Duration           // grows with each run that could not move
	patient  time.Time               // before it only what goes to the same address has to give way
}

// table holds every transfer the DTN knows. A change that it has told anyone of
// survives a power failure.
type table struct {
	records *durable.Log
	limits  limits
	log     *slog.Logger
	look    func(name string) (fs.FileInfo, error) // at a file of the export; nil: nobody can

	// What comes at the same time shares a durable step.
	submits *durable.Group[*submission]
	ends    *durable.Group[*ending]

	// changing is held over a change of state, which goes to disk first and then,
	// under mu, to memory. So either mutex is enough to read what changes with the
	// state; what changes with progress needs mu.
	changing sync.Mutex

	mu      sync.Mutex // guards the fields below and what they point to; never held over I/O
	byID    map[mover.TransferID]*transfer
	seq     uint64        // counts changes, progress included
	latest  *list.List    // of transfers, the one that has changed last at its front
	changed chan struct{} // closed and replaced at each change of state
	open    int           // transfers that have not ended
	idle    chan struct{} // closed and replaced when the last of them ends

	// queues are those of the small transfers and of the others, and holds the routes
	// by which nothing goes for a while. They change as states do.
	small, large queue
	holds        map[route]hold
}

// transferID follows from the key, so that one key is one transfer.
func transferID(key string) mover.TransferID {
	h := sha256.Sum256([]byte(key))
	return mover.TransferID(hex.EncodeToString(h[:10]))
}

// openTable loads what dir holds. A record that cannot be read is left out
// with a warning: its agent submits the transfer again.
func openTable(dir *os.Root, l limits, log *slog.Logger) (*table, error) {
	t := &table{limits: l, log: log, byID: map[mover.TransferID]*transfer{}, latest: list.New(), changed: make(chan struct{}), idle: make(chan struct{}), small: newQueue(), large: newQueue(), holds: map[route]hold{}}
	t.submits, t.ends = durable.NewGroup(t.submitAll), durable.NewGroup(t.endAll)
	var err error
	t.records, err = durable.OpenLog(dir, recordsName, t.load, func(err error) {
		log.Warn("a transfer's record cannot be read and is left out; its agent submits the transfer again", "err", err)
	})
	if err != nil {
		return nil, err
	}
	if err := t.cancelAsked(); err != nil {
		return nil, err
	}
	t.small.sort()
	t.large.sort()
	t.forget(time.Now())
	return t, nil
}

// load takes a record into the table.
func (t *table) load(key string, data []byte) error {
	r, err := decodeRecord(data)
	if err == nil && string(r.Status.ID) != key {
		err = fmt.Errorf("it holds transfer %s", r.Status.ID)
	}
	if err != nil {
		return err
	}
	tr := &transfer{record: r}
	t.byID[r.Status.ID] = tr
	t.touch(tr)
	if !r.Status.State.Final() {
		t.open++
	}
	if !r.Status.State.Final() && !r.Cancel {
		tr.Status.State, tr.Status.Started = mover.Queued, time.Time{}
		q := t.queueOf(t.isSmall(r.Request))
		q.all = append(q.all, tr)
		t.log.Info("transfer queued again", "transfer", r.Status.ID, "file", r.Request.Source.Name)
	}
	return nil
}

// cancelAsked ends the transfers that were to be, when their table was left.
func (t *table) cancelAsked() error {
	for _, tr := range t.byID {
		if !tr.Status.State.Final() && tr.Cancel {
			if err := t.finish(final{tr: tr, state: mover.Cancelled}); err != nil {
				return err
			}
		}
	}
	return nil
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
	return r.short(), nil
}

// short is r with no more of what other DTNs said than may be kept.
func (r record) short() record {
	s := &r.Status
	s.Error, s.Waiting = mover.Told(s.Error), mover.Told(s.Waiting)
	if s.Code != "" {
		s.Code = s.Code.Known()
	}
	return r
}

// store makes records durable.
func (t *table) store(all ...record) error {
	var changes []durable.Change
	for _, r := range all {
		changes = append(changes, durable.Set(string(r.Status.ID), r))
	}
	if err := t.records.Commit(changes...); err != nil {
		return fmt.Errorf("store transfers: %w", err)
	}
	return nil
}

// submit adds a transfer, or finds it; fresh tells which. The error is
// mover.ErrKeyConflict, errFull, or that of the disk.
func (t *table) submit(r mover.Request) (s mover.Status, fresh bool, err error) {
	one := &submission{request: r}
	err = t.submits.Do(one)
	return one.status, one.fresh, cmp.Or(err, one.err)
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
	if tr.at == nil {
		tr.at = t.latest.PushFront(tr)
	}
	t.latest.MoveToFront(tr.at)
}

// next takes the best queued transfer, of the small ones or of the others, and makes it
// running; stop is what ends it then, and says why. It waits for one, and returns false
// when ctx is done.
func (t *table) next(ctx context.Context, small bool, stop context.CancelCauseFunc) (mover.Request, bool) {
	for ctx.Err() == nil {
		r, more, wake, ok := t.take(small, stop)
		if ok {
			return r, true
		}
		select {
		case <-more:
		case <-after(wake):
		case <-ctx.Done():
		}
	}
	return mover.Request{}, false
}

// take is next without waiting: it returns what to wait for instead.
func (t *table) take(small bool, stop context.CancelCauseFunc) (r mover.Request, more <-chan struct{}, wake time.Time, ok bool) {
	t.changing.Lock()
	defer t.changing.Unlock()
	tr, wake := t.best(small, time.Now())
	if tr == nil {
		return mover.Request{}, t.queueOf(small).more, wake, false
	}
	t.publish(tr, func() {
		t.queueOf(small).remove(tr)
		tr.Status.State, tr.Status.Started, tr.Status.Waiting = mover.Running, time.Now().UTC(), ""
		tr.Status.Way = mover.Way{}
		tr.stop, tr.reported, tr.before, tr.speed = stop, false, 0, mover.Speed{}
		tr.onward = mover.Speed{}
	})
	t.log.Info("transfer started", "transfer", tr.Status.ID, "file", tr.Request.Source.Name)
	r = tr.Request
	r.PCP, r.Priority = r.PCP.With(tr.PCP), tr.priority()
	return r, nil, time.Time{}, true
}

// progress records how far a run is and returns how many bytes were proven since the last
// report, where what the first of a run tells was there before, how many were sent, and for
// how long it has waited for its bottleneck.
func (t *table) progress(id mover.TransferID, p mover.Progress) (fresh, wire int64, waited time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.byID[id]
	if !tr.reported {
		tr.reported, tr.before = true, p.Moved
	} else {
		fresh = max(0, p.Moved-tr.Status.Moved)
	}
	if fresh > 0 {
		tr.patience = 0
	}
	now := time.Now()
	tr.speed, tr.onward = tr.speed.At(now, p.Moved), tr.onward.At(now, p.Way.Through)
	waited = tr.waited.add(now, p.Way.Bottleneck)
	wire = p.Way.Wire - tr.Status.Way.Wire
	tr.Status.Moved, tr.Status.Way = p.Moved, p.Way
	t.touch(tr)
	return fresh, wire, waited
}

// end records what became of a run: done when err is nil, else cancelled when
// that was asked for, else queued again when the DTN itself stops, when nothing may move
// now, or in favour of another one, else failed.
func (t *table) end(id mover.TransferID, err error, stopping bool) mover.Status {
	e := &ending{id: id, err: err, stopping: stopping}
	_ = t.ends.Do(e) // endAll has no error
	return e.status
}

func (t *table) endAll(all []*ending) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	var finals []final
	for _, e := range all {
		tr := t.byID[e.id]
		state := mover.Failed
		switch {
		case e.err == nil:
			state = mover.Done
		case tr.Cancel:
			state = mover.Cancelled
		case e.stopping:
			t.publish(tr, func() { tr.Status.State, tr.Status.Started, tr.stop = mover.Queued, time.Time{}, nil })
			t.log.Info("transfer interrupted; it goes on when the DTN starts again", "transfer", e.id, "file", tr.Request.Source.Name)
			continue
		case waits(e.err) != nil:
			t.await(tr, waits(e.err))
			continue
		case tr.yields != "":
			t.requeue(tr, tr.yields)
			continue
		}
		finals = append(finals, final{tr: tr, state: state, cause: e.err})
	}
	if err := t.finish(finals...); err != nil {
		t.log.Error("the end of transfers could not be stored; after a restart they are run again",
			"transfer", finals[0].tr.Status.ID, "file", finals[0].tr.Request.Source.Name, "others", len(finals)-1, "err", err)
	}
	for _, e := range all {
		e.status = t.byID[e.id].Status
	}
	if len(t.byID) > t.limits.finished {
		t.forget(time.Now())
	}
	return nil
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
		return true, t.finish(final{tr: tr, state: mover.Cancelled})
	}
	r := t.copyOf(tr)
	r.Cancel = true
	if err := t.store(r); err != nil {
		return true, err
	}
	t.publish(tr, func() { tr.Cancel = true })
	tr.stop(mover.ErrCancelled)
	return true, nil
}

// copyOf returns tr's record as it is now. The caller holds changing.
func (t *table) copyOf(tr *transfer) record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return tr.record
}

// final is the end of a transfer, with the cause if it failed.
type final struct {
	tr    *transfer
	state mover.TransferState
	cause error
	record
}

// finish brings transfers to a final state, in one durable step. A queued transfer
// whose end cannot be stored stays queued. A run that has ended has ended, stored
// or not: an engine's repeat costs little. The caller holds changing.
func (t *table) finish(all ...final) error {
	now := time.Now().UTC()
	var records []record
	for i := range all {
		all[i].record = t.ended(all[i], now)
		records = append(records, all[i].record)
	}
	err := t.store(records...)
	if err != nil {
		all = slices.DeleteFunc(all, func(f final) bool { return f.tr.Status.State != mover.Running })
	}
	var ended []*transfer
	for _, f := range all {
		ended = append(ended, f.tr)
	}
	t.publishAll(ended, func(i int) {
		if ended[i].Status.State == mover.Queued {
			t.queueOf(t.isSmall(ended[i].Request)).remove(ended[i])
		}
		ended[i].record, ended[i].stop = all[i].record, nil
		if t.open--; t.open == 0 {
			close(t.idle)
			t.idle = make(chan struct{})
		}
	})
	for _, f := range all {
		t.logEnd(f.record, f.cause)
	}
	return err
}

// ended is the record of a transfer that has ended now. The caller holds changing.
func (t *table) ended(f final, now time.Time) record {
	r := t.copyOf(f.tr)
	if f.state == mover.Done {
		r.Status.Moved = r.Request.Source.Size
		if (r.Request.Destination.Via != mover.Relay{}) {
			r.Status.Way.Through = r.Status.Moved
		}
	}
	if f.state == mover.Failed {
		r.Status.Code, r.Status.Error = mover.CodeOf(f.cause), f.cause.Error()
	}
	r.Status.Ended = now
	r.Status.Rate, r.Status.Ran = f.tr.rate(r.Status.Moved, now), f.tr.ran(now)
	r.Status.Way.Bottleneck = f.tr.waited.longest(r.Status.Way.Bottleneck)
	r.Status.State = f.state
	return r.short()
}

func (t *table) logEnd(r record, cause error) {
	log := t.log
	if r.Status.State != mover.Done { // of those that are, there are many
		log = log.With("transfer", r.Status.ID, "file", r.Request.Source.Name)
	}
	switch r.Status.State {
	case mover.Done:
		log.Info("transfer done", "transfer", r.Status.ID, "file", r.Request.Source.Name, "bytes", r.Status.Moved, "seconds", r.Status.Ended.Sub(r.Status.Started).Seconds(),
			"wire", r.Status.Way.Wire, "rtt", r.Status.Way.Path.RTT, "bottleneck", r.Status.Way.Bottleneck)
	case mover.Cancelled:
		log.Info("transfer cancelled", "bytes", r.Status.Moved)
	default:
		log.Warn("transfer failed", "bytes", r.Status.Moved, "code", r.Status.Code, "err", cause)
	}
}

// status returns tr's status as it is now. The caller holds mu.
func (t *table) status(tr *transfer) mover.Status {
	s, now := tr.Status, time.Now()
	s.Priority = tr.priority()
	s.Rate, s.Ran, s.Waiting = tr.rate(s.Moved, now), tr.ran(now), t.waiting(tr)
	if s.State == mover.Running {
		s.Present = max(tr.speed.Rate(now), tr.onward.Rate(now))
	}
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
	return t.status(tr), t.changed, true
}

// since returns the transfers that changed after seq, oldest first, the seq to ask
// with the next time, and the channel of get.
func (t *table) since(seq uint64) (all []mover.Status, next uint64, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all = []mover.Status{}
	for e := t.latest.Front(); e != nil && e.Value.(*transfer).seq > seq; e = e.Next() {
		all = append(all, t.status(e.Value.(*transfer)))
	}
	slices.SortFunc(all, func(a, b mover.Status) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return all, t.seq, t.changed
}

// idling returns a channel that is closed when the last transfer has ended of those that have
// not, or come before that.
func (t *table) idling() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idle
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
	var old []*transfer
	var changes []durable.Change
	for i, tr := range ended {
		if i < t.limits.finished && now.Sub(tr.Status.Ended) < t.limits.keep {
			continue
		}
		old = append(old, tr)
		changes = append(changes, durable.Change{Key: string(tr.Status.ID)})
	}
	if err := t.records.Commit(changes...); err != nil {
		t.log.Warn("the records of old transfers cannot be removed", "transfers", len(old), "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range old {
		delete(t.byID, tr.Status.ID)
		t.latest.Remove(tr.at)
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
