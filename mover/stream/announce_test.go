package stream

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// counted counts what is written at once.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// TestWhatIsOpenedTogetherIsAnnouncedTogether opens files whose tickets begin alike.
func TestWhatIsOpenedTogetherIsAnnouncedTogether(t *testing.T) {
	r := prepare(t)
	near, far := net.Pipe()
	defer far.Close()
	below := &counted{Conn: near}
	l := &link{stall: time.Minute, control: tls.Client(below, &tls.Config{InsecureSkipVerify: true})}
	defer l.control.Close()
	l.changed.L = &l.mu
	conf := &tls.Config{Certificates: []tls.Certificate{r.issue(t, "B", pki.DTN)}, SessionTicketsDisabled: true}
	heard := make(chan string, 100)
	go func() {
		defer close(heard)
		control, before := tls.Server(far, conf), ""
		for {
			h, err := readHeader(control)
			if err != nil {
				return
			}
			if h.kind != kindOpen {
				heard <- fmt.Sprint(h.kind)
				continue
			}
			o, err := readOpening(control, h)
			if err == nil {
				o, err = o.whole(before)
			}
			if err != nil {
				heard <- err.Error()
				return
			}
			before = o.Ticket
			heard <- fmt.Sprint(h.file, " ", o.Ticket)
		}
	}()
	if err := l.control.Handshake(); err != nil {
		t.Fatal(err)
	}
	want := func(n int64, all ...string) {
		t.Helper()
		for _, one := range all {
			if got := <-heard; got != one {
				t.Fatalf("heard %q, want %q", got, one)
			}
		}
		if got := below.writes.Swap(0); got != n {
			t.Errorf("%d writes for %d messages, want %d", got, len(all), n)
		}
	}
	below.writes.Store(0)
	var all []string
	for i := range 20 {
		f := &outgoing{size: 1}
		f.changed.L = &l.mu
		ticket := fmt.Sprintf("list~%04d", i)
		if full, err := l.announce(f, opening{Ticket: ticket, Size: 1}); full || err != nil {
			t.Fatalf("file %d: full %v, %v", i, full, err)
		}
		all = append(all, fmt.Sprint(i+1, " ", ticket))
	}
	if err := l.tell(header{kind: kindPing}.bytes()); err != nil { // goes after them
		t.Fatal(err)
	}
	want(1, append(all, fmt.Sprint(kindPing))...)
	if _, err := l.open(mover.Request{Source: mover.File{Size: 1}, Destination: mover.Destination{Ticket: "list~last"}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	want(1, "21 list~last") // waits for nobody
	if err := l.flush(); err != nil {
		t.Fatal(err)
	}
	want(0)
	long := opening{Ticket: string(make([]byte, saidAtOnce)), Size: 1}
	f := &outgoing{size: 1}
	if full, err := l.announce(f, long); !full || err != nil {
		t.Errorf("a whole record: full %v, %v", full, err)
	}
	_ = near.Close()
	if err := l.flush(); err == nil || !l.failed() {
		t.Errorf("on a connection that has ended: %v, the link has failed: %v", err, l.failed())
	}
	for range heard {
	}
}
