package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/bases"
)

// incoming is a link at the receiver.
type incoming struct {
	receiver   *Receiver
	ctx        context.Context
	name, site string
	protection mover.Protection
	control    *tls.Conn
	say        speech
	running    atomic.Int32 // passages that are not over, those among them that the sender has closed

	mu       sync.Mutex // guards what follows
	changed  sync.Cond
	last     uint32 // files up to this one were opened
	files    map[uint32]*arrival
	passages map[uint32]*passage    // opened, and waiting for their destination's answer
	loans    map[uint32]*bases.Loan // of files whose chunks were told
	lanes    map[*tls.Conn]bool
	over     bool
}

func newIncoming(ctx context.Context, r *Receiver, c *tls.Conn, name, site string, p mover.Protection) *incoming {
	l := &incoming{
		receiver: r, ctx: ctx, name: name, site: site, protection: p, control: c,
		files: map[uint32]*arrival{}, loans: map[uint32]*bases.Loan{}, lanes: map[*tls.Conn]bool{},
	}
	l.changed.L, l.say.changed.L = &l.mu, &l.say.mu
	return l
}

// seat is an arrival's place on the link that brings it.
type seat struct {
	link *incoming
	file uint32
}

// tell tells the sender something about the file.
func (s seat) tell(k kind, index uint32) {
	s.link.say.add(header{kind: k, file: s.file, index: index}.bytes())
}

// end tells the sender the file's end, and frees the seat.
func (s seat) end(a answer) {
	s.link.mu.Lock() // before the sender opens another one in its place
	s.link.endLoan(s.file)
	delete(s.link.files, s.file)
	delete(s.link.passages, s.file)
	s.link.mu.Unlock()
	s.link.say.add(a.bytes(s.file))
}

// serve takes what the sender says on the control connection, until that ends.
func (l *incoming) serve() error {
	stop := make(chan struct{})
	var speaking sync.WaitGroup
	speaking.Go(func() { l.say.run(l.control, l.receiver.opts.Idle) })
	speaking.Go(func() { l.showLife(stop) })
	err := l.listen()
	l.finish(err)
	close(stop)
	l.say.close()
	speaking.Wait()
	return err
}

func (l *incoming) listen() error {
	ticket := "" // that came last
	for {
		_ = l.control.SetReadDeadline(time.Now().Add(l.receiver.opts.Idle))
		h, err := readHeader(l.control)
		if err != nil {
			return err
		}
		l.say.room()
		switch h.kind {
		case kindOpen:
			o, err := readOpening(l.control, h)
			if err == nil {
				o, err = o.whole(ticket)
			}
			if err != nil {
				return err
			}
			ticket = o.Ticket
			if err := l.open(h.file, o); err != nil {
				return err
			}
		case kindClose:
			if err := l.close(h.file, h.index == 1); err != nil {
				return err
			}
		case kindChunks:
			if err := l.chunks(h); err != nil {
				return err
			}
		case kindPing:
		default:
			return fmt.Errorf("the sender says something of kind %d", h.kind)
		}
	}
}

// open lets a file in, or tells why not. An error is the link's.
func (l *incoming) open(file uint32, o opening) error {
	l.mu.Lock()
	last, open := l.last, len(l.files)+len(l.passages)
	l.mu.Unlock()
	if file <= last {
		return fmt.Errorf("file %d is opened after file %d", file, last)
	}
	if most := l.receiver.opts.linkFiles; open >= most {
		return fmt.Errorf("more than %d files at once", most)
	}
	if o.Relay != "" {
		l.pass(file, o)
		return nil
	}
	a, err := l.receiver.admit(l.site, o)
	if !l.admitted(file, err) {
		return nil
	}
	a.expect(o)
	switch done, err := a.enter(seat{l, file}); {
	case err != nil:
		l.receiver.log.Warn("file refused", "file", a.File.Name, "err", err)
		l.say.add(refusal(err).bytes(file))
		a = nil
	case done:
		l.say.add(answer{Done: true}.bytes(file))
		a = nil
	default:
		l.receiver.log.Info("file arrives", "site", l.site, "file", a.File.Name, "bytes", a.File.Size)
	}
	l.note(file, a)
	return nil
}

// admitted reports whether a file that was opened goes on; else the sender is told err, or
// until when nothing may come.
func (l *incoming) admitted(file uint32, err error) bool {
	if w := l.receiver.opts.Pacer.Shut(l.site); err == nil && w != nil {
		err = w
	}
	if err == nil {
		return true
	}
	l.receiver.log.Warn("sender refused", "site", l.site, "err", err)
	l.say.add(refusal(err).bytes(file))
	l.note(file, nil)
	return false
}

// note keeps that a file was opened; with a, that it may come.
func (l *incoming) note(file uint32, a *arrival) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = file
	if a != nil {
		l.files[file] = a
	}
	l.changed.Broadcast()
}

// await returns the file, nil if it has ended. A lane may be ahead of the control connection.
func (l *incoming) await(file uint32) (*arrival, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for file > l.last && !l.over {
		l.changed.Wait()
	}
	if l.over {
		return nil, errOver
	}
	return l.files[file], nil
}

// finish ends the link: its lanes, and its files' stay.
func (l *incoming) finish(why error) {
	if errors.Is(why, io.EOF) || why == nil {
		why = errLeft
	}
	l.mu.Lock()
	l.over = true
	for c := range l.lanes {
		cut(c)
	}
	for file := range l.loans {
		l.endLoan(file)
	}
	files, passages := l.files, l.passages
	l.files, l.passages = nil, nil
	l.changed.Broadcast()
	l.mu.Unlock()
	for n, a := range files {
		a.leave(seat{l, n}, why)
	}
	for _, p := range passages {
		p.cancel(why)
	}
}

// showLife tells now and then how far files are that need no more from the sender.
func (l *incoming) showLife(stop <-chan struct{}) {
	tick := time.NewTicker(l.receiver.opts.Busy)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		l.obey()
		if l.say.full() {
			continue
		}
		l.mu.Lock()
		files := maps.Clone(l.files)
		l.mu.Unlock()
		for n, a := range files {
			seat{l, n}.tell(kindBusy, a.progress())
		}
		if len(files) > 0 {
			l.tellTimes()
		}
	}
}

// tellTimes tells what was waited for since it was told last, and the limit.
func (l *incoming) tellTimes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lanes, followers spent
	for c := range l.lanes {
		lanes.add(c.NetConn().(*gather).meter.take())
	}
	for _, a := range l.files {
		lanes.add(a.commit.take())
		followers.add(a.pace.take())
	}
	t := timesOf(lanes, followers)
	t.Rate, t.By = l.receiver.welcome(l.site).Rate, limitOf(l.receiver.opts.Pacer, l.site, lanes)
	l.say.add(header{kind: kindTimes}.with(t))
}

// join adds a lane.
func (l *incoming) join(c *tls.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return errOver
	}
	if len(l.lanes) >= 2*mover.MaxParallelism {
		return errors.New("too many connections for one sender")
	}
	l.lanes[c] = true
	return nil
}

func (l *incoming) part(c *tls.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lanes, c)
}

// speech is what is still to be told the sender. Nobody who adds to it waits; whoever
// takes more from the sender waits before while that one does not listen.
type speech struct {
	mu      sync.Mutex // guards what follows
	changed sync.Cond
	text    []byte
	over    bool
}

const maxSpeech = 1 << 20

func (s *speech) add(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, b...)
	s.changed.Broadcast()
}

// full reports whether so much is unsaid that what will be told anew soon is left out.
func (s *speech) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.text) > maxSpeech
}

// room waits until most is said.
func (s *speech) room() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.text) > maxSpeech && !s.over {
		s.changed.Wait()
	}
}

// close ends run once all was said.
func (s *speech) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.changed.Broadcast()
}

// run says it on c, until close or an error, after which it cuts c.
func (s *speech) run(c *tls.Conn, patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var spare []byte
	for {
		for len(s.text) == 0 && !s.over {
			s.changed.Wait()
		}
		if len(s.text) == 0 {
			return
		}
		text := s.text
		s.text = spare[:0]
		s.changed.Broadcast()
		s.mu.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		_, err := c.Write(text)
		s.mu.Lock()
		spare = text
		if err != nil {
			cut(c)
			s.over = true
			s.changed.Broadcast()
			return
		}
	}
}
