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
// none. It binds the ticket to the file for good before anything else is written.
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
	if err := r.bind(t); err != nil {
		return nil, noSpace(err)
	}
	if a != nil {
		return a, nil
	}
	a, err = r.create(t.File)
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
	if t.From != from {
		return mover.Coded(mover.CodeTicket, fmt.Errorf("ticket: it lets site %q send, the sender is of site %q", t.From, from))
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

// space reports a file for which there is none besides what is promised to others.
func (r *Receiver) space(f mover.File, a *arrival) error {
	need, others := f.Size, r.Promised()
	if a != nil {
		need = a.missing()
		others -= need
	}
	if r.opts.Free == nil || need == 0 {
		return nil
	}
	free, err := r.opts.Free()
	if err != nil {
		return fmt.Errorf("ask for the free space: %w", err)
	}
	if need > free-others {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("%s needs %d bytes; %d are free at the destination, %d of them are promised to other arrivals", f.Name, need, free, others))
	}
	return nil
}

// bind notes for good that t was used for its file.
func (r *Receiver) bind(t mover.Ticket) error {
	r.mu.Lock()
	_, known := r.tickets[t.ID]
	r.mu.Unlock()
	if known {
		return nil
	}
	return r.note(use{ID: t.ID, File: t.File, Expires: t.Expires})
}

func (r *Receiver) note(u use) error {
	if err := saveJSON(r.state, useName(u.ID), u); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tickets[u.ID] = u
	return nil
}

// create makes the record of an arrival, on an inbox where no file has its name.
func (r *Receiver) create(f mover.File) (*arrival, error) {
	a := r.newArrival(record{File: f, Since: time.Now().UTC()})
	if err := removeFiles(r.export, r.state, f.Name, a.part); err != nil {
		return nil, err
	}
	if err := saveJSON(r.state, recordName(f.Name), a.record); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals[f.Name] = a
	r.news.tell()
	return a, nil
}

// spend makes the tickets that were used for name useless. The caller holds admin.
func (r *Receiver) spend(name string) error {
	for _, u := range r.uses() {
		if u.File.Name != name || u.Spent {
			continue
		}
		u.Spent = true
		if err := r.note(u); err != nil {
			return err
		}
	}
	return nil
}

// expire forgets the tickets that Check refuses by itself. The caller holds admin.
func (r *Receiver) expire() error {
	for _, u := range r.uses() {
		if u.Expires.IsZero() || time.Since(u.Expires) < time.Minute { // Check may round
			continue
		}
		if err := durable.Remove(r.state, useName(u.ID)); err != nil {
			return err
		}
		r.mu.Lock()
		delete(r.tickets, u.ID)
		r.mu.Unlock()
	}
	return nil
}

func (r *Receiver) uses() []use {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []use
	for _, u := range r.tickets {
		all = append(all, u)
	}
	return all
}
