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
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
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

// Engine sends staged files by third-party transfers. It implements mover.Engine. It
// keeps no state: what lies at the destination, its Inbox tells. Its fields are not
// changed once Move was called.
type Engine struct {
	Client Client
	Site   string   // of this DTN
	Export *os.Root // its export

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
func (e *Engine) Move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	err := e.move(ctx, r, report)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("move %s to %s: %w", r.Source.Name, r.Destination.Address, err)
	}
	return nil
}

func (e *Engine) move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
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
		source: from.File(r.Source.Name), export: to,
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
func (e *Engine) urls(address string) (from, to mover.ExportURL, err error) {
	if from, err = mover.ParseExportURL(e.URL); err != nil {
		return from, to, err
	}
	if to, err = mover.ParseExportURL(address); err != nil {
		return from, to, mover.Coded(mover.CodeAuth, err)
	}
	if from.Scheme != to.Scheme {
		err = mover.Coded(mover.CodeAuth, fmt.Errorf("that site takes files by %s and this DTN sends by %s (gridftp.url); use the same scheme at both", to.Scheme, from.Scheme))
	}
	return from, to, err
}

// session is one call of Move.
type session struct {
	engine   *Engine
	request  mover.Request
	file     mover.File // as it is to be called at the destination
	id       string
	source   string          // URL of the staged file
	export   mover.ExportURL // of the destination
	patience time.Duration
	poll     time.Duration
}

func (s *session) run(ctx context.Context, report func(mover.Progress)) error {
	a, err := s.offer(ctx)
	if err != nil {
		return err
	}
	if a.State == answerOpen {
		if err := s.send(ctx, a.Sums, report); err != nil {
			return err
		}
		if a, err = s.deliver(ctx); err != nil {
			return err
		}
	}
	if err := a.err(); err != nil {
		return err
	}
	report(mover.Progress{Moved: s.file.Size})
	return nil
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
	have := int64(-1)
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
		case err == nil && a.Have != have:
			have, since = a.Have, time.Now()
		}
		if time.Since(since) > s.patience {
			return answer{}, fmt.Errorf("nobody took up %s for %s: does glance-dtn dtn run at the receiving site, with gridftp.url for this export, and does it see what the GridFTP server writes?", offerName(s.file.Name), mover.Span(s.patience))
		}
	}
}

// answered returns the receiver's answer; fs.ErrNotExist when there is none yet.
func (s *session) answered(ctx context.Context) (a answer, err error) {
	data, err := s.engine.Client.get(ctx, s.export.File(answerName(s.id)))
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
	return s.engine.Client.put(ctx, append(data, '\n'), s.export.File(name))
}

// send has the data moved, but for the blocks that lie there already. Restart markers do
// not tell which these are: Debian's server 13.24 counts blocks that it has yet to write
// and loses when the transfer breaks off. So the receiver's own checksums do.
func (s *session) send(ctx context.Context, there []digest.Block, report func(mover.Progress)) error {
	missing, err := s.missing(there)
	if err != nil {
		return err
	}
	done := s.file.Size
	for _, r := range missing {
		done -= r.length
	}
	report(mover.Progress{Moved: done})
	ctx, stop := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.wanted(ctx, stop)
	}()
	defer func() { stop(nil); <-watched }()
	for _, r := range missing {
		err := s.engine.Client.copy(ctx, transfer{
			from: s.source, to: s.export.File(partName(s.file.Name)), span: r,
			parallelism: clamp(s.request.PCP.Parallelism, DefaultParallelism, mover.MaxParallelism),
			buffer:      s.engine.Buffer, stall: s.patience,
		}, func(whole int64) { report(mover.Progress{Moved: done + min(whole, r.length)}) })
		if gone := s.engine.checkSource(s.request.Source); gone != nil {
			return gone // its server sends what is there without a word
		}
		if err != nil {
			return err
		}
		done += r.length
	}
	return nil
}

// span is a part of a file.
type span struct{ offset, length int64 }

// maxSpans is how many parts of a file are moved one after the other; where more are
// missing, what lies between them comes again.
const maxSpans = 8

// missing returns what the destination has not got, given the digests of its blocks.
func (s *session) missing(there []digest.Block) ([]span, error) {
	if len(there) == 0 {
		return join(s.file.Size, func(int64) bool { return false }), nil
	}
	f, err := s.engine.Export.Open(s.request.Source.Name)
	if errors.Is(err, fs.ErrPermission) {
		return nil, mover.Coded(mover.CodeName, fmt.Errorf("the DTN's user may not read the staged file: put it into the group that owns it, or set transfer.stage: copy in the agent's configuration: %w", err))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, mover.BlockSize)
	var fault error
	spans := join(s.file.Size, func(off int64) bool {
		i := off / mover.BlockSize
		if i >= int64(len(there)) || fault != nil {
			return false
		}
		n, err := f.ReadAt(buf[:min(mover.BlockSize, s.file.Size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			fault = err
		}
		return digest.OfBlock(buf[:n]) == there[i]
	})
	return spans, fault
}

// join returns the spans of a file of a size whose blocks are not there.
func join(size int64, there func(off int64) bool) []span {
	var spans []span
	for off := int64(0); off < size; off += mover.BlockSize {
		if there(off) {
			continue
		}
		n := min(mover.BlockSize, size-off)
		last := len(spans) - 1
		if last >= 0 && (spans[last].offset+spans[last].length == off || len(spans) == maxSpans) {
			spans[last].length = off + n - spans[last].offset
		} else {
			spans = append(spans, span{off, n})
		}
	}
	return spans
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
