package stream

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// admit returns the arrival that the opening's ticket is for, a new one if there is
// none. It binds the ticket to the file for good before anything else is written; a
// small file's together with the file.
func (r *Receiver) admit(from string, o opening) (*arrival, error) {
	t, err := r.opts.Check(o.Ticket, from)
	if err != nil {
		return nil, ticketError(err)
	}
	if err := checkTicket(t, from, o); err != nil {
		return nil, err
	}
	r.admin.Lock()
	defer r.admin.Unlock()
	if err := r.expire(); err != nil {
		return nil, err
	}
	if err := r.unused(t); err != nil {
		return nil, err
	}
	a, err := r.standing(t.File)
	if err != nil {
		return nil, err
	}
	if err := r.space(t.File, a); err != nil {
		return nil, err
	}
	if a != nil {
		return a, noSpace(r.bind(t, a, false))
	}
	a, err = r.create(t)
	return a, noSpace(err)
}

// ticketError gives err a code if it has none.
func ticketError(err error) error {
	if _, ok := errors.AsType[*mover.Error](err); ok {
		return err
	}
	return mover.Coded(mover.CodeTicket, err)
}

// checkTicket reports a ticket that this sender or this receiver cannot use.
func checkTicket(t mover.Ticket, from string, o opening) error {
	if t.From != from && (t.Via != from || from == "") {
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: it lets site %q send, the sender is of site %q", t.From, from))
	}
	if t.Probe {
		return mover.Coded(mover.CodeTicket, errors.New("ticket: it is for a probe, and lets no file in"))
	}
	if t.File.Size != o.Size || t.File.Digest != o.Digest {
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: it is for %v of %d bytes, the sender has %v of %d", t.File.Digest, t.File.Size, o.Digest, o.Size))
	}
	if t.File.Size < 0 || t.File.Size > maxBlocks*mover.BlockSize {
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: %d bytes are not a size that can be taken", t.File.Size))
	}
	if err := t.File.CheckDigest(); err != nil {
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: %w", err))
	}
	return checkName(t.File.Name)
}

// unused reports a ticket that is spent or was used for another file.
func (r *Receiver) unused(t mover.Ticket) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, known := r.tickets[t.ID]
	switch {
	case known && u.File != t.File:
		return mover.Coded(mover.CodeTicket, errors.New("ticket: it was used for another file; ask for a new one"))
	case known && u.Spent:
		return mover.Coded(mover.CodeTicket, errors.New("ticket: it is used up; ask for a new one"))
	}
	return nil
}

// standing returns the arrival of f, nil if there is none. An arrival that lost
// its file under our feet is none.
func (r *Receiver) standing(f mover.File) (*arrival, error) {
	a := r.lookup(f.Name)
	if a == nil {
		return nil, nil
	}
	if a.File != f {
		return nil, mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: %s is there or arriving with other content (%v, %d bytes); drop it first", f.Name, a.File.Digest, a.File.Size))
	}
	if a.status().State == mover.Arrived {
		if _, err := r.export.Lstat(f.Name); errors.Is(err, fs.ErrNotExist) {
			return nil, r.discard(a)
		}
	}
	return a, nil
}

// room is what was free, and promised to nobody, when that was last looked at, less what
// small files were promised since. To ask for each of them would cost more than they do.
type room struct {
	left  int64
	until time.Time
}

const roomFor = time.Second

// space reports a file for which there is none besides what is promised to others.
func (r *Receiver) space(f mover.File, a *arrival) error {
	if a == nil && isSmall(f) && f.Size <= r.room.left && time.Now().Before(r.room.until) {
		r.room.left -= f.Size
		return nil
	}
	r.room = room{}
	need := f.Size
	if a != nil {
		need = a.missing()
	}
	if r.opts.Free == nil || need == 0 {
		return nil
	}
	others := r.Promised()
	if a != nil {
		others -= need
	}
	if err := r.bases.MakeRoom(need + others); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	free, err := r.opts.Free()
	if err != nil {
		return fmt.Errorf("ask for the free space: %w", err)
	}
	if need > free-others {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("%s needs %d bytes; %d are free at the destination, %d of them are promised to other arrivals", f.Name, need, free, others))
	}
	r.room = room{free - others - need, time.Now().Add(roomFor)}
	return nil
}

// bind notes that t was used for its file, which a is, and a fresh one itself. That of
// a small file becomes durable with the file.
func (r *Receiver) bind(t mover.Ticket, a *arrival, fresh bool) error {
	r.mu.Lock()
	u, known := r.tickets[t.ID]
	if !known {
		u = use{ID: t.ID, File: t.File, Expires: t.Expires}
		r.tickets[u.ID] = u
	}
	r.mu.Unlock()
	if a.use(t.ID) {
		return nil
	}
	var changes []durable.Change
	if fresh {
		changes = append(changes, a.set())
	}
	if !known {
		changes = append(changes, u.set())
	}
	err := r.ledger.Commit(changes...)
	if err != nil && !known {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.tickets, u.ID)
	}
	return err
}

// ticket returns a use that is known.
func (r *Receiver) ticket(id string) use {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tickets[id]
}

// create makes the arrival of t's file, on an inbox where no file has its name.
func (r *Receiver) create(t mover.Ticket) (*arrival, error) {
	a := r.newArrival(record{File: t.File, Since: time.Now().UTC()})
	if !a.small { // of a small one makePart and unblock remove what was left
		if err := a.removeFiles(); err != nil {
			return nil, err
		}
	}
	if err := r.bind(t, a, true); err != nil {
		return nil, err
	}
	r.add(a)
	return a, nil
}

// begin makes an arrival for which there is no ticket here.
func (r *Receiver) begin(rec record) (*arrival, error) {
	a := r.newArrival(rec)
	a.small = false
	if err := a.removeFiles(); err != nil {
		return nil, err
	}
	if err := r.ledger.Commit(a.set()); err != nil {
		return nil, err
	}
	r.add(a)
	return a, nil
}

func (r *Receiver) add(a *arrival) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals[a.File.Name] = a
	r.news.tell()
}

// spend makes the tickets that were used for name useless. The caller holds admin.
func (r *Receiver) spend(name string) error {
	spent := r.uses(func(u use) bool { return u.File.Name == name && !u.Spent })
	var changes []durable.Change
	for i := range spent {
		spent[i].Spent = true
		changes = append(changes, spent[i].set())
	}
	if err := r.ledger.Commit(changes...); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range spent {
		r.tickets[u.ID] = u
	}
	return nil
}

// expireEvery is how often expired tickets are looked for.
const expireEvery = time.Minute

// expire forgets the tickets that Check refuses by itself. The caller holds admin.
func (r *Receiver) expire() error {
	if time.Since(r.expired) < expireEvery {
		return nil
	}
	old := r.uses(func(u use) bool { return !u.Expires.IsZero() && time.Since(u.Expires) >= time.Minute }) // Check may round
	var changes []durable.Change
	for _, u := range old {
		changes = append(changes, durable.Change{Key: ticketKey + u.ID})
	}
	if err := r.ledger.Commit(changes...); err != nil {
		return err
	}
	r.expired = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range old {
		delete(r.tickets, u.ID)
	}
	return nil
}

// uses returns the tickets' uses that are wanted.
func (r *Receiver) uses(want func(use) bool) (all []use) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.tickets {
		if want(u) {
			all = append(all, u)
		}
	}
	return all
}
