package gridftp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

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
		b.begin(ctx, work, survey{b.lookup(name), name, o.Session})
		return nil
	}
	return b.answer(o.Session, a)
}

// survey is a look at what lies there of an arrival, for the sender of a session.
type survey struct {
	arrival *arrival
	name    string
	session string
}

// begin begins a survey, unless it is under way: a sender may put its offer again and again.
func (b *Inbox) begin(ctx context.Context, work *sync.WaitGroup, s survey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.surveys[s] {
		return
	}
	b.surveys[s] = true
	work.Go(func() {
		b.survey(ctx, s)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.surveys, s)
	})
}

// survey tells a sender what lies there of an arrival. What cannot be read comes again.
func (b *Inbox) survey(ctx context.Context, s survey) {
	sums, _, err := b.read(ctx, s.arrival, s.session, partName(s.name), nil)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		b.log.Warn("what came of a file cannot be read; it comes again", "file", s.name, "err", err)
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	if b.isGone(s.arrival, s.session) {
		return
	}
	if err := b.answer(s.session, answer{State: answerOpen, Sums: sums}); err != nil {
		b.log.Error("a sender cannot be answered", "file", s.name, "err", err)
	}
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
	a.Session = r.Session // alone: the rest is read without mu
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

// noSpace gives a full disk its code.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("no space left at the destination: %w", err))
	}
	return err
}
