package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// incoming is a link at the receiver.
type incoming struct {
	receiver   *Receiver
	ctx        context.Context
	name, site string
	protection mover.Protection
	control    *tls.Conn
	say        speech

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	last    uint32 // files up to this one were opened
	files   map[uint32]*arrival
	lanes   map[*tls.Conn]bool
	over    bool
}

func newIncoming(ctx context.Context, r *Receiver, c *tls.Conn, name, site string, p mover.Protection) *incoming {
	l := &incoming{
		receiver: r, ctx: ctx, name: name, site: site, protection: p, control: c,
		files: map[uint32]*arrival{}, lanes: map[*tls.Conn]bool{},
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
	s.link.say.add(a.bytes(s.file))
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	delete(s.link.files, s.file)
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
	for {
		_ = l.control.SetReadDeadline(time.Now().Add(l.receiver.opts.Idle))
		h, err := readHeader(l.control)
		if err != nil {
			return err
		}
		l.say.room()
		switch h.kind {
		case kindOpen:
			var o opening
			if err := readJSON(l.control, h.length, maxOpen, &o); err != nil {
				return err
			}
			if err := l.open(h.file, o); err != nil {
				return err
			}
		case kindClose:
			if a := l.file(h.file); a != nil {
				a.leave(seat{l, h.file}, errLeft)
				l.forget(h.file)
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
	last, open := l.last, len(l.files)
	l.mu.Unlock()
	if file <= last {
		return fmt.Errorf("file %d is opened after file %d", file, last)
	}
	if open >= maxFiles {
		return fmt.Errorf("more than %d files at once", maxFiles)
	}
	a, err := l.receiver.admit(l.site, o)
	if err != nil {
		l.receiver.log.Warn("sender refused", "site", l.site, "err", err)
		l.say.add(refusal(err).bytes(file))
		l.note(file, nil)
		return nil
	}
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

func (l *incoming) forget(file uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.files, file)
}

func (l *incoming) file(file uint32) *arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[file]
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
	files := l.files
	l.files = nil
	l.changed.Broadcast()
	l.mu.Unlock()
	for n, a := range files {
		a.leave(seat{l, n}, why)
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
		l.mu.Lock()
		files := maps.Clone(l.files)
		l.mu.Unlock()
		for n, a := range files {
			seat{l, n}.tell(kindBusy, a.progress())
		}
	}
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
