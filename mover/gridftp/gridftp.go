// Package gridftp moves files between DTNs that run a GridFTP server, and perhaps
// nothing else: it starts third-party transfers with globus-url-copy.
//
// Engine has the server of its own DTN send a staged file to that of another. Before
// the data it puts an offer with the ticket into the other's inbox, and behind it a
// manifest, whose presence says that the data is complete.
//
// Inbox, at whatever host of the receiving site sees the export, on the DTN's disk or
// through NFS, takes an offer up or refuses it, proves the data of a manifest, and only
// then gives the file its name. It tells the sender so through a folder of the export.
package gridftp

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// What Engine does when nobody says otherwise.
const (
	DefaultParallelism = 4
	DefaultStall       = 2 * time.Minute
	DefaultPoll        = 200 * time.Millisecond
)

// Between questions whether the receiver has answered: the wait grows to pollMax, and
// while data moves it is asked only whether it still wants that.
const (
	pollMax   = 5 * time.Second
	wantEvery = 15 * time.Second
)

// Engine sends staged files by third-party transfers. It implements mover.Engine. What
// is known to be at the destination, by the server's restart markers, outlives this
// process. Its fields are not changed once Move was called.
type Engine struct {
	Client Client
	Site   string   // of this DTN
	Export *os.Root // its export
	State  *os.Root // of this Engine alone

	// URL is the export as this DTN's GridFTP server shows it.
	URL string

	// Ticket returns the ticket in a token, or why it is not good.
	Ticket func(token string) (mover.Ticket, error)

	Buffer int64         // bytes, of the TCP buffers of data connections; 0: the servers choose
	Stall  time.Duration // data may rest, and the receiver not answer, for so long; 0: DefaultStall
	Poll   time.Duration // before the first question for the receiver's answer; 0: DefaultPoll
}

var _ mover.Engine = (*Engine)(nil)

// Move implements mover.Engine.
func (e *Engine) Move(ctx context.Context, r mover.Request, report func(moved int64)) error {
	err := e.move(ctx, r, report)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("move %s to %s: %w", r.Source.Name, r.Destination.Address, err)
	}
	return nil
}

func (e *Engine) move(ctx context.Context, r mover.Request, report func(moved int64)) error {
	if err := e.checkSource(r.Source); err != nil {
		return err
	}
	t, err := e.checkTicket(r)
	if err != nil {
		return err
	}
	from, to, err := e.urls(r.Destination.Address)
	if err != nil {
		return err
	}
	s := &session{
		engine: e, request: r, file: t.File, id: rand.Text(),
		source: from.file(r.Source.Name), export: to,
		patience: cmp.Or(e.Stall, DefaultStall), poll: cmp.Or(e.Poll, DefaultPoll),
	}
	return s.run(ctx, report)
}

// checkSource reports a staged file that is not what r says. Neither a link nor anything
// else that is not a plain file is sent.
func (e *Engine) checkSource(f mover.File) error {
	if err := checkName(mover.Outbox, f.Name); err != nil {
		return err
	}
	if err := f.Digest.Validate(); err != nil {
		return mover.Coded(mover.CodeSource, err)
	}
	info, err := e.Export.Lstat(f.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return mover.Coded(mover.CodeSource, fmt.Errorf("it is not staged: %w", err))
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file (%v)", f.Name, info.Mode().Type()))
	case info.Size() != f.Size:
		return mover.Coded(mover.CodeSource, fmt.Errorf("the staged file has %d bytes instead of %d", info.Size(), f.Size))
	}
	return nil
}

// checkTicket reports a ticket that is not for this file or not for this site.
func (e *Engine) checkTicket(r mover.Request) (mover.Ticket, error) {
	t, err := e.Ticket(r.Destination.Ticket)
	if err == nil {
		err = usable(t, e.Site, r.Source)
	}
	if err != nil {
		return t, mover.Coded(mover.CodeTicket, err)
	}
	return t, checkName(mover.Inbox, t.File.Name)
}

// urls returns this DTN's export and the other's. A site decides by its own URL whether
// its files may go unprotected: an address of another scheme is refused.
func (e *Engine) urls(address string) (from, to exportURL, err error) {
	if from, err = parseURL(e.URL); err != nil {
		return from, to, err
	}
	if to, err = parseURL(address); err != nil {
		return from, to, mover.Coded(mover.CodeAuth, err)
	}
	if from.scheme != to.scheme {
		err = mover.Coded(mover.CodeAuth, fmt.Errorf("that site takes files by %s and this DTN sends by %s (gridftp.url); use the same scheme at both", to.scheme, from.scheme))
	}
	return from, to, err
}

// session is one call of Move.
type session struct {
	engine   *Engine
	request  mover.Request
	file     mover.File // as it is to be called at the destination
	id       string
	source   string    // URL of the staged file
	export   exportURL // of the destination
	patience time.Duration
	poll     time.Duration
}

func (s *session) run(ctx context.Context, report func(moved int64)) error {
	a, err := s.offer(ctx)
	if err != nil {
		return err
	}
	if a.State == answerOpen {
		if err := s.send(ctx, a.Have, report); err != nil {
			return err
		}
		if a, err = s.deliver(ctx); err != nil {
			return err
		}
	}
	if err := a.err(); err != nil {
		return errors.Join(err, s.forget())
	}
	report(s.file.Size)
	return s.forget()
}

// offer asks the receiver to take the file, and returns its answer.
func (s *session) offer(ctx context.Context) (answer, error) {
	o := offer{Session: s.id, From: s.engine.Site, File: s.file, Ticket: s.request.Destination.Ticket}
	if err := s.put(ctx, offerName(s.file.Name), o); err != nil {
		return answer{}, fmt.Errorf("put the offer: %w", err)
	}
	return s.await(ctx, answerOpen)
}

// deliver tells the receiver that the data is complete, and waits until it has proven it.
func (s *session) deliver(ctx context.Context) (answer, error) {
	if a, err := s.answered(ctx); err != nil || a.State != answerOpen {
		return a, err // it does not want the file any more
	}
	m := manifest{Session: s.id, Job: s.request.Key, File: s.file}
	if err := s.put(ctx, manifestName(s.file.Name), m); err != nil {
		return answer{}, fmt.Errorf("put the manifest: %w", err)
	}
	return s.await(ctx, answerArrived)
}

// await asks for the receiver's answer until it has come to the state, or to an end.
func (s *session) await(ctx context.Context, until string) (answer, error) {
	var last answer
	since := time.Now()
	for wait := s.poll; ; wait = min(2*wait, pollMax) {
		if err := sleep(ctx, wait); err != nil {
			return answer{}, err
		}
		a, err := s.answered(ctx)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return answer{}, err
		case err == nil && (a.State == until || a.State == answerArrived || a.State == answerRefused):
			return a, nil
		case err == nil && a != last:
			last, since = a, time.Now()
		}
		if time.Since(since) > s.patience {
			return answer{}, fmt.Errorf("nobody took up %s for %v: does glance-dtn dtn run at the receiving site, with gridftp.url for this export, and does it see what the GridFTP server writes?", offerName(s.file.Name), s.patience)
		}
	}
}

// answered returns the receiver's answer; fs.ErrNotExist when there is none yet.
func (s *session) answered(ctx context.Context) (a answer, err error) {
	data, err := s.engine.Client.get(ctx, s.export.file(answerName(s.id)))
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return a, fmt.Errorf("the receiver's answer: %w", err)
	}
	return a, nil
}

func (s *session) put(ctx context.Context, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.engine.Client.put(ctx, append(data, '\n'), s.export.file(name))
}

// send has the data moved from where an earlier attempt ended. have is the size of what
// the receiver holds: what was known to be there and is not any more comes again.
func (s *session) send(ctx context.Context, have int64, report func(moved int64)) error {
	done := min(s.known(), have, s.file.Size)
	report(done)
	if done == s.file.Size && done > 0 {
		return nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.wanted(ctx, stop)
	}()
	defer func() { stop(nil); <-watched }()
	err := s.engine.Client.copy(ctx, transfer{
		from: s.source, to: s.export.file(partName(s.file.Name)),
		offset: done, length: s.file.Size - done,
		parallelism: clamp(s.request.PCP.Parallelism, DefaultParallelism, mover.MaxParallelism),
		buffer:      s.engine.Buffer, stall: s.patience,
	}, func(whole int64) error {
		if err := s.note(whole); err != nil {
			return err
		}
		report(whole)
		return nil
	})
	if gone := s.engine.checkSource(s.request.Source); gone != nil {
		return gone // its server sends what is there without a word
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// wanted stops the transfer when the receiver does not want the file any more.
func (s *session) wanted(ctx context.Context, stop context.CancelCauseFunc) {
	for sleep(ctx, wantEvery) == nil {
		if a, err := s.answered(ctx); err == nil && a.err() != nil {
			stop(a.err())
		}
	}
}

// clamp returns n, def where n is not said, at most limit.
func clamp(n, def, limit int) int {
	if n <= 0 {
		n = def
	}
	return min(n, limit)
}

// sleep waits, and returns why ctx was done if it was before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// progress is what is known to be at a destination: bytes from the start without a gap.
type progress struct {
	Whole int64 `json:"whole"`
}

// journal names the file that holds it. Another content or destination is another file.
func (s *session) journal() string {
	return hashName(s.export.file(s.file.Name), s.file.Digest.String()) + ".progress"
}

func (s *session) known() int64 {
	data, err := s.engine.State.ReadFile(s.journal())
	var p progress
	if err != nil || json.Unmarshal(data, &p) != nil || p.Whole < 0 {
		return 0 // it all comes again
	}
	return p.Whole
}

func (s *session) note(whole int64) error {
	data, err := json.Marshal(progress{whole})
	if err == nil {
		err = durable.WriteFile(s.engine.State, s.journal(), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("note the progress: %w", err)
	}
	return nil
}

func (s *session) forget() error {
	if err := s.engine.State.Remove(s.journal()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the progress: %w", err)
	}
	return nil
}

// keepProgress is how long the progress of a transfer that nobody takes up again is kept.
const keepProgress = 7 * 24 * time.Hour

// Sweep removes what transfers left behind that nobody has taken up for a week.
func (e *Engine) Sweep(now time.Time) error {
	return removeOlder(e.State, ".", now.Add(-keepProgress))
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

// noSpace gives a full disk its code.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("no space left at the destination: %w", err))
	}
	return err
}
