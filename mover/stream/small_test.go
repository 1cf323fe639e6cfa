package stream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// many stages n files of about 20 KiB and asks for their moves.
func (r *rig) many(t testing.TB, n int) (all []mover.Request) {
	t.Helper()
	for i := range n {
		all = append(all, r.request(t, r.stage(t, fmt.Sprint("image", i), int64(20<<10+i))))
	}
	return all
}

// moveAll moves files at once and returns what became of each.
func moveAll(ctx context.Context, e *Engine, all []mover.Request, done func()) []error {
	errs := make([]error, len(all))
	var work sync.WaitGroup
	for i, req := range all {
		work.Go(func() {
			if errs[i] = e.Move(ctx, req, func(mover.Progress) {}); errs[i] == nil && done != nil {
				done()
			}
		})
	}
	work.Wait()
	return errs
}

// wantArrived holds that the inbox has the source's bytes, and nothing else.
func (r *rig) wantArrived(t *testing.T, all []mover.Request) {
	t.Helper()
	for _, req := range all {
		base := filepath.Base(req.Source.Name)
		got, err := os.ReadFile(filepath.Join(r.rig.Destination, mover.Inbox, base))
		want, wantErr := os.ReadFile(filepath.Join(r.rig.Source, mover.Outbox, base))
		if err = errors.Join(err, wantErr); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes arrived, want %d: %v", base, len(got), len(want), err)
		}
		if a, err := r.recv().Arrival(mover.Inbox + "/" + base); err != nil || a.State != mover.Arrived {
			t.Errorf("%s: %+v, %v, want it arrived", base, a, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(r.rig.Destination, mover.Inbox))
	if err != nil || len(left) != len(all) {
		t.Errorf("the inbox has %d files, want %d: %v", len(left), len(all), err)
	}
}

// TestAnExpiredTicketIsForgotten by a small file that it was used for, too.
func TestAnExpiredTicketIsForgotten(t *testing.T) {
	r := newRig(t)
	a := r.recv().newArrival(record{File: mover.File{Name: mover.Inbox + "/image", Size: 1}})
	a.tickets = []string{"expired"}
	a.mu.Lock()
	err := a.occupy("A")
	a.mu.Unlock()
	if err := cmp.Or(err, r.recv().land([]*arrival{a}), a.data.Close()); err != nil {
		t.Fatal(err)
	}
	r.restart(t)
	if u, known := r.recv().tickets[""]; known {
		t.Errorf("a ticket without a name is known: %+v", u)
	}
}

// TestSmallFilesLandTogether holds the first landing back until all other files are
// proven, and counts the rest.
func TestSmallFilesLandTogether(t *testing.T) {
	const files = 200
	r := newRig(t)
	all := r.many(t, files)
	recv := r.recv()
	rounds := 0
	recv.landing = durable.NewGroup(func(some []*arrival) error {
		if rounds++; rounds == 1 {
			for deadline := time.Now().Add(time.Minute); proven(recv) < files && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
		}
		return recv.landAll(some)
	})
	for _, err := range moveAll(t.Context(), r.rig.Engine.(*Engine), all, nil) {
		if err != nil {
			t.Error(err)
		}
	}
	if rounds > files/4 { // nearly always 2
		t.Errorf("%d files became durable in %d steps", files, rounds)
	}
	r.wantArrived(t, all)
	log, err := os.ReadFile(filepath.Join(r.state, logName))
	if lines := bytes.Count(log, []byte("\n")); err != nil || lines != rounds {
		t.Errorf("the log has %d lines after %d steps, %v", lines, rounds, err)
	}
	r.restart(t)
	r.wantArrived(t, all)
	for _, req := range all[:3] {
		if err := r.recv().Drop(mover.Inbox + "/" + filepath.Base(req.Source.Name)); err != nil {
			t.Error(err)
		}
	}
	r.restart(t)
	for _, err := range moveAll(t.Context(), r.rig.Engine.(*Engine), all[:3], nil) {
		if mover.CodeOf(err) != mover.CodeTicket || !strings.Contains(err.Error(), "used up") {
			t.Errorf("after a drop and a restart its ticket is good: %v", err)
		}
	}
	r.wantArrived(t, all[3:])
}

// proven is how many files are proven.
func proven(r *Receiver) (n int) {
	for _, a := range r.Arrivals() {
		if a.Moved == a.File.Size {
			n++
		}
	}
	return n
}

// TestASmallFileAfterACrash leaves what a crash leaves after each step of a landing.
func TestASmallFileAfterACrash(t *testing.T) {
	for name, c := range map[string]struct {
		steps func(r *Receiver, a *arrival) error
		known bool
		want  mover.ArrivalState
	}{
		"written": {func(*Receiver, *arrival) error { return nil }, false, ""},
		"recorded": {func(r *Receiver, a *arrival) error {
			return r.ledger.Commit(a.set(), r.tickets[a.tickets[0]].set())
		}, true, mover.Arriving},
		"named": {func(r *Receiver, a *arrival) error { return r.land([]*arrival{a}) }, true, mover.Arrived},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			req := r.request(t, r.stage(t, "image", 5000))
			recv := r.recv()
			crashed := errors.New("crashed")
			recv.landing = durable.NewGroup(func(all []*arrival) error {
				if err := c.steps(recv, all[0]); err != nil {
					t.Error(err)
				}
				for _, a := range all {
					recv.completed(a, crashed)
				}
				return crashed
			})
			if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err == nil || !strings.Contains(err.Error(), "crashed") {
				t.Fatal(err)
			}
			r.restart(t)
			a, err := r.recv().Arrival("inbox/image")
			if known := err == nil; known != c.known || a.State != c.want {
				t.Errorf("after the restart: %+v, %v", a, err)
			}
			if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
				t.Fatal(err)
			}
			r.wantArrived(t, []mover.Request{req})
		})
	}
}

// TestADropWaitsForALanding holds that a ticket that is being made durable as used is
// spent after that, not before, and that what was dropped does not land.
func TestADropWaitsForALanding(t *testing.T) {
	r := prepare(t)
	recv, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	req := r.request(t, r.stage(t, "image", 5000))
	a, err := recv.admit("A", opening{Ticket: req.Destination.Ticket, Size: req.Source.Size, Digest: req.Source.Digest})
	if err != nil || !a.small || !a.land() {
		t.Fatalf("%+v, %v", a, err)
	}
	synctest.Test(t, func(t *testing.T) {
		a.changed.L = &a.mu
		dropped := make(chan error, 1)
		go func() { dropped <- recv.Drop("inbox/image") }()
		synctest.Wait()
		select {
		case err := <-dropped:
			t.Errorf("dropped while it lands: %v", err)
		default:
		}
		a.landed()
		if err := <-dropped; err != nil {
			t.Error(err)
		}
	})
	if a.land() || !errors.Is(a.outcome, errGone) {
		t.Errorf("it lands after the drop: %v", a.outcome)
	}
	again, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil || len(again.arrivals) != 0 || len(again.tickets) != 1 {
		t.Fatalf("%d arrivals and %d tickets, %v; want the ticket alone", len(again.arrivals), len(again.tickets), err)
	}
	for _, u := range again.tickets {
		if !u.Spent {
			t.Errorf("%+v is not spent", u)
		}
	}
}

// TestSmallFilesAreRefusedEachByItself has one of many spoiled.
func TestSmallFilesAreRefusedEachByItself(t *testing.T) {
	r := newRig(t)
	all := r.many(t, 20)
	if err := os.WriteFile(filepath.Join(r.rig.Source, all[7].Source.Name), make([]byte, all[7].Source.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, err := range moveAll(t.Context(), r.rig.Engine.(*Engine), all, nil) {
		if wrong := i == 7; wrong != (mover.CodeOf(err) == mover.CodeContent) || !wrong && err != nil {
			t.Errorf("file %d: %v", i, err)
		}
	}
	r.wantArrived(t, append(all[:7:7], all[8:]...))
}

// TestALandingWaitsForNoFailedFile has a file fail while arrivals come and go, which its
// removal has to wait for: others land.
func TestALandingWaitsForNoFailedFile(t *testing.T) {
	r := prepare(t)
	recv, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	a := recv.newArrival(record{File: mover.File{Name: mover.Inbox + "/image", Size: 1}})
	a.mu.Lock()
	err = a.occupy("A")
	a.mu.Unlock()
	if err := cmp.Or(err, a.data.Close()); err != nil { // it cannot be synced
		t.Fatal(err)
	}
	recv.admin.Lock()
	landed := make(chan error, 1)
	recv.work.Go(func() { landed <- recv.landAll([]*arrival{a}) })
	select {
	case err := <-landed:
		if err != nil || !errors.Is(a.result(), errUnsynced) {
			t.Errorf("it lands with %v, and the file with %v", err, a.result())
		}
	case <-time.After(time.Minute):
		t.Error("the landing waits for what removes the file")
	}
	recv.admin.Unlock()
	recv.work.Wait()
}

// TestASmallFilesNameIsFreeBeforeItIsRecorded has files of the same names there, of which
// one cannot be removed, and a log that takes nothing: had it taken the record, after a crash
// one of the same size would pass for the file.
func TestASmallFilesNameIsFreeBeforeItIsRecorded(t *testing.T) {
	r := newRig(t)
	all := r.many(t, 20)
	at := func(i int) string {
		return filepath.Join(r.rig.Destination, mover.Inbox, filepath.Base(all[i].Source.Name))
	}
	err := errors.Join(os.MkdirAll(filepath.Join(at(7), "full"), 0o700), os.WriteFile(at(8), make([]byte, all[8].Source.Size), 0o600), r.recv().ledger.Close())
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range moveAll(t.Context(), r.rig.Engine.(*Engine), all, nil) {
		if err == nil || (i == 7) == strings.Contains(err.Error(), "closed") {
			t.Errorf("file %d: %v", i, err)
		}
	}
	if _, err := os.Lstat(at(8)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what had the file's name is there: %v", err)
	}
	r.restart(t)
	for i, err := range moveAll(t.Context(), r.rig.Engine.(*Engine), all, nil) {
		if (i == 7) != (err != nil) {
			t.Errorf("file %d after a restart: %v", i, err)
		}
	}
	if err := os.RemoveAll(at(7)); err != nil {
		t.Fatal(err)
	}
	if err := r.rig.Engine.Move(t.Context(), all[7], func(mover.Progress) {}); err != nil {
		t.Error(err)
	}
	r.wantArrived(t, all)
}

// TestSmallFilesOfZerosArrive holds that what is no more than a header on the wire is a
// file, and that an empty one is.
func TestSmallFilesOfZerosArrive(t *testing.T) {
	for _, p := range []mover.Protection{mover.Private, mover.Clear} {
		r := newRigIn(t, p)
		var all []mover.Request
		for _, n := range []int64{0, 1, 5000, mover.BlockSize} {
			f := r.stage(t, fmt.Sprint("image", n), n)
			if err := os.WriteFile(filepath.Join(r.rig.Source, f.Name), make([]byte, n), 0o600); err != nil {
				t.Fatal(err)
			}
			f.Digest = digest.Digest{}
			all = append(all, r.request(t, f))
		}
		for _, err := range moveAll(t.Context(), r.rig.Engine.(*Engine), all, nil) {
			if err != nil {
				t.Error(err)
			}
		}
		r.wantArrived(t, all)
	}
}

// TestSmallFilesKeepToTheSpace holds that many small files are not promised together what
// is there for one.
func TestSmallFilesKeepToTheSpace(t *testing.T) {
	r := prepare(t)
	recv, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	r.free.Store(10 * 20 << 10)
	admitted := 0
	for _, req := range r.many(t, 20) {
		_, err := recv.admit("A", opening{Ticket: req.Destination.Ticket, Size: req.Source.Size, Digest: req.Source.Digest})
		if err == nil {
			admitted++
		} else if mover.CodeOf(err) != mover.CodeSpace {
			t.Error(err)
		}
	}
	if admitted != 9 { // of a little more than 20 KiB each
		t.Errorf("%d files were let in, there is room for 9", admitted)
	}
}

// late is a connection on which what is written comes later.
type late struct {
	net.Conn // reads
	out      net.Conn
	queue    chan packet
	closed   sync.Once
}

type packet struct {
	due  time.Time
	data []byte
}

const lateBy = 25 * time.Millisecond

func newLate(in, out net.Conn) *late {
	l := &late{Conn: in, out: out, queue: make(chan packet, 1<<14)}
	go func() {
		defer out.Close()
		for p := range l.queue {
			time.Sleep(time.Until(p.due))
			if _, err := out.Write(p.data); err != nil {
				return
			}
		}
	}()
	return l
}

func (l *late) Write(b []byte) (n int, err error) {
	defer func() {
		if recover() != nil { // closed meanwhile
			err = net.ErrClosed
		}
	}()
	l.queue <- packet{time.Now().Add(lateBy), bytes.Clone(b)}
	return len(b), nil
}

func (l *late) Close() error {
	l.closed.Do(func() { close(l.queue) })
	return l.Conn.Close()
}

func (l *late) SetWriteDeadline(time.Time) error   { return nil }
func (l *late) SetDeadline(at time.Time) error     { return l.Conn.SetReadDeadline(at) }
func (l *late) SetReadDeadline(at time.Time) error { return l.Conn.SetReadDeadline(at) }

// TestSmallFilesShareRoundTrips moves 200 files over a path of 50 ms.
func TestSmallFilesShareRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		e := r.rig.Engine.(*Engine)
		e.Dial = func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(2 * lateBy)
			toThere, there := net.Pipe()
			toHere, here := net.Pipe()
			r.pipes <- newLate(there, toHere)
			return newLate(here, toThere), nil
		}
		r.start(t, "")
		all := r.many(t, 200)
		begin := time.Now()
		for _, err := range moveAll(t.Context(), e, all, nil) {
			if err != nil {
				t.Error(err)
			}
		}
		// The link: TCP, TLS, hello. A lane the same. The files, and their ends.
		if trips := float64(time.Since(begin)) / float64(2*lateBy); trips > 9 {
			t.Errorf("%.1f round trips", trips)
		}
		r.wantArrived(t, all)
		r.stop()
	})
}

// TestReceiverKilledAmongSmallFiles kills the receiver's process when some of hundreds of
// files have arrived, time and again. Those that have are there, and their tickets are
// used; the others arrive, and nothing is left of them.
func TestReceiverKilledAmongSmallFiles(t *testing.T) {
	r := newRig(t)
	r.stop()
	dir := filepath.Dir(r.state)
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.ca, err = pki.LoadCA(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(ca, pki.Identity{Site: "B", Role: pki.DTN}, []string{"127.0.0.1"}, time.Hour, ca); err != nil {
		t.Fatal(err)
	}
	agent, roots := r.issue(t, "B", pki.Agent), r.ca.Pool()
	r.opts.TLS = serverTLS(r.ca, r.issue(t, "B", pki.DTN))
	r.rig.Sign = func(tk mover.Ticket) (string, error) { return ticket.Sign(agent, tk) }
	r.opts.Check = func(token, _ string) (mover.Ticket, error) {
		return ticket.Verify(roots, "B", token, time.Now())
	}
	engine := r.engine(t, r.rig.Source, r.issue(t, "A", pki.DTN))

	const files = 300
	all := r.many(t, files)
	arrived := map[int]bool{}
	for _, after := range []int{1, 40, 100} {
		address, kill := startVictim(t, dir, "")
		var left []mover.Request
		var index []int
		for i, req := range all {
			if all[i].Destination.Address, req.Destination.Address = address, address; !arrived[i] {
				left, index = append(left, req), append(index, i)
			}
		}
		var mu sync.Mutex
		n := 0
		errs := moveAll(t.Context(), engine, left, func() {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == after {
				kill()
			}
		})
		kill()
		for i, err := range errs {
			if arrived[index[i]] = err == nil; mover.CodeOf(err) != mover.CodeOther && err != nil {
				t.Errorf("killed: %v", err)
			}
		}
		if want := min(after, len(left)); n < want { // more may land together with these
			t.Errorf("%d files arrived before the kill, want %d", n, want)
		}
		r.start(t, "127.0.0.1:0") // in this process, to look at it
		for i, here := range arrived {
			a, err := r.recv().Arrival(mover.Inbox + "/" + filepath.Base(all[i].Source.Name))
			if here && (err != nil || a.State != mover.Arrived) {
				t.Errorf("after %d: file %d has arrived, and is told as %+v, %v", after, i, a, err)
			}
			if here && r.recv().unspent(a.File.Name) != 1 {
				t.Errorf("after %d: %d tickets are known to be used for file %d", after, r.recv().unspent(a.File.Name), i)
			}
		}
		r.stop()
	}
	r.start(t, "127.0.0.1:0")
	for i := range all {
		all[i].Destination.Address = r.rig.Address
	}
	before := r.wires.sent.Load()
	var first []mover.Request
	for i, req := range all {
		if arrived[i] {
			first = append(first, req)
		}
	}
	for _, err := range append(moveAll(t.Context(), engine, first, nil), moveAll(t.Context(), engine, all, nil)...) {
		if err != nil {
			t.Error(err)
		}
	}
	if sent := r.wires.sent.Load() - before; sent > files*(24<<10)*2 {
		t.Errorf("%d bytes were sent for what was left", sent)
	}
	r.wantArrived(t, all)
}

// unspent is how many tickets are known to have been used for a file.
func (r *Receiver) unspent(name string) int {
	return len(r.uses(func(u use) bool { return u.File.Name == name && !u.Spent }))
}

// TestATicketThatComesTooLateForALandingIsDurable holds that a second ticket for a small
// file is known to be used after a restart, whenever it comes.
func TestATicketThatComesTooLateForALandingIsDurable(t *testing.T) {
	r := prepare(t)
	again := func() *Receiver {
		t.Helper()
		recv, err := NewReceiver(roottest.Open(t, r.rig.Destination), roottest.Open(t, r.state), r.opts)
		if err != nil {
			t.Fatal(err)
		}
		return recv
	}
	recv := again()
	f := r.stage(t, "image", 5000)
	admit := func() *arrival {
		t.Helper()
		req := r.request(t, f)
		a, err := recv.admit("A", opening{Ticket: req.Destination.Ticket, Size: f.Size, Digest: f.Digest})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := admit()
	admit()
	if n := len(again().tickets); n != 0 {
		t.Errorf("%d tickets are durable before the file is", n)
	}
	if !a.land() {
		t.Fatal(a.outcome)
	}
	admit() // while it lands
	a.landed()
	if n := len(again().tickets); n != 1 {
		t.Errorf("%d tickets are durable, want the late one", n)
	}
	a.mu.Lock()
	err := a.occupy("A")
	a.mu.Unlock()
	if err == nil {
		err = recv.land([]*arrival{a})
	}
	if err = errors.Join(err, a.outcome); err != nil {
		t.Fatal(err)
	}
	admit() // when it is there
	if n := len(again().tickets); n != 4 {
		t.Errorf("%d tickets are durable, want 4", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rest()
}
