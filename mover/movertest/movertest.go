// Package movertest is the suite that every mover.Engine passes.
package movertest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Rig is an engine between two exports. Run skips what needs a field that is nil.
type Rig struct {
	Engine      mover.Engine
	Source      string // directory: the sending DTN's export
	Destination string // directory: the receiving DTN's export
	Address     string // of the receiving DTN's data plane
	Nobody      string // an address where nobody listens; empty: one for host:port
	From, Site  string // the sending and the receiving site

	Sign    func(mover.Ticket) (string, error) // as the agent of Site
	Sent    func() int64                       // bytes that the engine has sent so far
	Cut     func()                             // cuts every connection there is
	Restart func(t *testing.T)                 // ends the receiver without notice, and starts it on what is left
	Free    func(bytes int64)                  // what the destination believes to have free
	Drop    func(name string) error            // removes an arrival at the destination
	Text    bool                               // what is moved can be compressed
	Own     []string                           // functions of the rig itself whose goroutines a restart makes anew
}

// block is the unit that sizes in the suite turn about.
const block = mover.BlockSize

// whole is the size of a file whose move is broken off when half of it is there.
const half, whole = 32 * block, 64 * block

// slack is what may be sent twice then: what narrow has in flight, and what lies in
// the system's buffers.
const slack = 4*block + 16<<20

// narrow has little in flight.
var narrow = mover.PCP{Pipelining: 2, Parallelism: 2}

// Run runs the suite. newRig makes a new one for each test; what it needs to stop,
// it stops in t.Cleanup.
func Run(t *testing.T, newRig func(t *testing.T) Rig) {
	for name, test := range map[string]func(*testing.T, *Rig){
		"sizes":                        sizes,
		"several hundred blocks":       manyBlocks,
		"sparse":                       sparse,
		"report":                       reports,
		"twice":                        twice,
		"two at once":                  twoAtOnce,
		"changed while it runs":        changed,
		"cancelled and resumed":        cancelled,
		"connections cut and resumed":  cut,
		"receiver restarted":           restarted,
		"wrong digest":                 wrongDigest,
		"wrong digest leaves no trace": wrongThenRight,
		"source missing":               sourceMissing,
		"source of another size":       sourceSize,
		"source truncated on the way":  sourceTruncated,
		"names outside":                names,
		"not a plain file":             notPlain,
		"no space":                     noSpace,
		"space promised twice":         promisedSpace,
		"bad tickets":                  badTickets,
		"ticket for another file":      otherFile,
		"ticket replayed":              replayed,
		"fresh ticket for the same":    freshTicket,
		"cancelled before it starts":   cancelledBefore,
		"nobody at the address":        nobody,
		"dropped while it arrives":     dropped,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ignore := []goleak.Option{goleak.IgnoreCurrent()}
			for _, f := range r.Own {
				ignore = append(ignore, goleak.IgnoreAnyFunction(f))
			}
			test(t, &r)
			goleak.VerifyNone(t, ignore...)
		})
	}
}

// move moves with a time limit that no working engine reaches.
func (r *Rig) move(t *testing.T, req mover.Request) error {
	t.Helper()
	return r.moveCtx(t.Context(), t, req, func(mover.Progress) {})
}

func (r *Rig) moveCtx(ctx context.Context, t *testing.T, req mover.Request, report func(mover.Progress)) error {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("the engine hangs"))
	defer cancel()
	return r.Engine.Move(ctx, req, report)
}

// stage writes a file of random bytes and returns a request with a fresh ticket for it.
func (r *Rig) stage(t *testing.T, base string, size int64) mover.Request {
	t.Helper()
	var content io.Reader = mathrand.NewChaCha8([32]byte([]byte(rand.Text() + rand.Text())[:32]))
	if r.Text {
		content = text{content}
	}
	return r.request(t, r.file(t, base, io.LimitReader(content, size)))
}

// text makes of each random byte as many.
type text struct{ io.Reader }

const wordSize = 8

func (t text) Read(b []byte) (n int, err error) {
	var random [4096]byte
	m, err := t.Reader.Read(random[:min(len(random), (len(b)+wordSize-1)/wordSize)])
	for _, r := range random[:m] {
		word := [wordSize]byte{'w', r, r, 'o', r, r ^ 0xff, 'r', 'd'}
		n += copy(b[n:], word[:])
	}
	return n, err
}

// file writes a staged file.
func (r *Rig) file(t *testing.T, base string, content io.Reader) mover.File {
	t.Helper()
	f, err := os.Create(filepath.Join(r.Source, mover.Outbox, base))
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.New()
	n, err := io.Copy(io.MultiWriter(f, h), content)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return mover.File{Name: path.Join(mover.Outbox, base), Size: n, Digest: digest.Of("sha512", h)}
}

// request makes one with a fresh ticket.
func (r *Rig) request(t *testing.T, f mover.File) mover.Request {
	t.Helper()
	return r.with(t, f, r.ticket(f))
}

func (r *Rig) ticket(f mover.File) mover.Ticket {
	in := f
	in.Name = path.Join(mover.Inbox, path.Base(f.Name))
	return mover.Ticket{ID: rand.Text(), Site: r.Site, From: r.From, Address: r.Address, File: in, Expires: time.Now().Add(time.Hour)}
}

func (r *Rig) with(t *testing.T, f mover.File, tk mover.Ticket) mover.Request {
	t.Helper()
	token, err := r.Sign(tk)
	if err != nil {
		t.Fatal(err)
	}
	return mover.Request{Key: rand.Text(), Source: f, Destination: mover.Destination{Address: r.Address, Ticket: token}}
}

func (r *Rig) inbox(f mover.File) string {
	return filepath.Join(r.Destination, mover.Inbox, path.Base(f.Name))
}

// arrived checks that the file is there under its final name, whole, and alone.
func (r *Rig) arrived(t *testing.T, f mover.File) {
	t.Helper()
	in, err := os.Open(r.inbox(f))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	h := sha512.New()
	n, err := io.Copy(h, in)
	if err != nil || n != f.Size || hex.EncodeToString(h.Sum(nil)) != f.Digest.Value {
		t.Errorf("%s: %d bytes (%v) with another content, want %d", f.Name, n, err, f.Size)
	}
}

// absent checks that nothing has the final name.
func (r *Rig) absent(t *testing.T, f mover.File) {
	t.Helper()
	if _, err := os.Lstat(r.inbox(f)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is at %s (%v)", f.Name, err)
	}
}

// holds checks that the inbox holds so many files, hidden ones included, at once or soon: a relay
// tells its sender of a failure while it tells the destination to remove the file.
func (r *Rig) holds(t *testing.T, want int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		entries, err := os.ReadDir(filepath.Join(r.Destination, mover.Inbox))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == want {
			return
		}
		if time.Now().After(end) {
			t.Errorf("the inbox holds %v, want %d files", entries, want)
			return
		}
	}
}

func want(t *testing.T, err error, code mover.Code) {
	t.Helper()
	if err == nil || mover.CodeOf(err) != code {
		t.Errorf("got %v (code %s), want code %s", err, mover.CodeOf(err), code)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sent returns how many bytes the engine sends during f.
func (r *Rig) sent(f func()) int64 {
	if r.Sent == nil {
		f()
		return 0
	}
	before := r.Sent()
	f()
	return r.Sent() - before
}

func sizes(t *testing.T, r *Rig) {
	for name, size := range map[string]int64{
		"empty": 0, "one": 1, "under": block - 1, "block": block, "over": block + 1, "blocks": 3*block + 17,
	} {
		req := r.stage(t, name, size)
		ok(t, r.move(t, req))
		r.arrived(t, req.Source)
	}
	r.holds(t, 6)
}

func manyBlocks(t *testing.T, r *Rig) {
	req := r.stage(t, "big", 300*block+12345)
	ok(t, r.move(t, req))
	r.arrived(t, req.Source)
	r.holds(t, 1)
}

func sparse(t *testing.T, r *Rig) {
	hole := bytes.NewReader(make([]byte, 5*block))
	f := r.file(t, "sparse", io.MultiReader(strings.NewReader("head"), hole, strings.NewReader("tail")))
	name := filepath.Join(r.Source, f.Name)
	ok(t, os.Truncate(name, 4)) // the bytes come back as a hole
	out, err := os.OpenFile(name, os.O_WRONLY, 0)
	ok(t, err)
	_, err = out.WriteAt([]byte("tail"), f.Size-4)
	ok(t, errors.Join(err, out.Close()))
	ok(t, r.move(t, r.request(t, f)))
	r.arrived(t, f)
}

func reports(t *testing.T, r *Rig) {
	for name, size := range map[string]int64{"empty": 0, "one": 1, "block": block, "blocks": 20*block + 1} {
		req := r.stage(t, name, size)
		if first := r.reported(t, req); first != 0 {
			t.Errorf("%s: the first report is %d bytes, and nothing was there", name, first)
		}
		if first := r.reported(t, req); first != size {
			t.Errorf("%s: the first report of a second move is %d bytes, want %d", name, first, size)
		}
	}
	req := r.stage(t, "resumed", whole)
	if _, err := r.broken(t, req, func(cancel func()) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if first := r.reported(t, req); first < half || first >= whole {
		t.Errorf("the first report is %d bytes, and at least %d of %d were there", first, half, whole)
	}
}

// reported moves, checks the reports, and returns the first.
func (r *Rig) reported(t *testing.T, req mover.Request) int64 {
	t.Helper()
	var mu sync.Mutex
	first, last := int64(-1), int64(-1)
	ok(t, r.moveCtx(t.Context(), t, req, func(p mover.Progress) {
		moved := p.Moved
		if !mu.TryLock() {
			t.Error("report is called concurrently")
			return
		}
		defer mu.Unlock()
		if moved < last || moved > req.Source.Size {
			t.Errorf("%d bytes reported after %d of %d", moved, last, req.Source.Size)
		}
		if last < 0 {
			first = moved
		}
		last = moved
	}))
	if last != req.Source.Size {
		t.Errorf("the last report is %d bytes, want %d", last, req.Source.Size)
	}
	return first
}

func twice(t *testing.T, r *Rig) {
	req := r.stage(t, "twice", 20*block)
	ok(t, r.move(t, req))
	n := r.sent(func() { ok(t, r.move(t, req)) })
	if n > block {
		t.Errorf("the second move sent %d bytes", n)
	}
	r.arrived(t, req.Source)
	if r.Restart == nil {
		return
	}
	r.Restart(t)
	if n := r.sent(func() { ok(t, r.move(t, req)) }); n > block {
		t.Errorf("the move after a restart sent %d bytes", n)
	}
}

func twoAtOnce(t *testing.T, r *Rig) {
	a, b := r.stage(t, "a", 40*block+3), r.stage(t, "b", 40*block-3)
	var moves sync.WaitGroup
	for _, req := range []mover.Request{a, b} {
		moves.Go(func() {
			if err := r.move(t, req); err != nil {
				t.Error(err)
			}
		})
	}
	moves.Wait()
	r.arrived(t, a.Source)
	r.arrived(t, b.Source)
}

// changed has a move use more and less while it runs: every byte is sent once.
func changed(t *testing.T, r *Rig) {
	engine, able := r.Engine.(mover.Adjuster)
	if !able {
		t.Skip("the engine's moves cannot be changed")
	}
	req := r.stage(t, "changed", whole)
	req.PCP = narrow
	steps := map[int64]mover.PCP{
		whole / 8: {Parallelism: 8}, whole / 4: {Parallelism: 1, Pipelining: 1},
		whole / 2: {Parallelism: 4, Pipelining: 8, Concurrency: 2}, 3 * whole / 4: {Parallelism: 2},
	}
	sent := r.sent(func() {
		ok(t, r.moveCtx(t.Context(), t, req, func(p mover.Progress) {
			for at, pcp := range steps {
				if p.Moved >= at {
					delete(steps, at)
					engine.Adjust(req.Key, pcp)
				}
			}
		}))
	})
	r.arrived(t, req.Source)
	if len(steps) > 0 {
		t.Errorf("%v were not reached", steps)
	}
	if r.Sent != nil && sent > whole+block {
		t.Errorf("%d bytes sent for %d", sent, whole)
	}
	engine.Adjust(req.Key, narrow) // it has ended
}

// broken moves until half is there, calls stop, and returns what was sent and how it ended.
func (r *Rig) broken(t *testing.T, req mover.Request, stop func(cancel func())) (sent int64, err error) {
	t.Helper()
	req.PCP = narrow
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var once sync.Once
	sent = r.sent(func() {
		err = r.moveCtx(ctx, t, req, func(p mover.Progress) {
			if p.Moved >= half {
				once.Do(func() { stop(cancel) })
			}
		})
	})
	return sent, err
}

// resumes checks that the rest arrives, and that little is sent twice.
func (r *Rig) resumes(t *testing.T, req mover.Request, before int64) {
	t.Helper()
	r.absent(t, req.Source)
	after := r.sent(func() { ok(t, r.move(t, req)) })
	r.arrived(t, req.Source)
	r.holds(t, 1)
	if all := before + after; r.Sent != nil && all > req.Source.Size+slack {
		t.Errorf("%d + %d bytes sent for %d", before, after, req.Source.Size)
	}
}

func cancelled(t *testing.T, r *Rig) {
	req := r.stage(t, "cancelled", whole)
	before, err := r.broken(t, req, func(cancel func()) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want that the context was cancelled", err)
	}
	r.resumes(t, req, before)
}

func cut(t *testing.T, r *Rig) {
	if r.Cut == nil {
		t.Skip("the rig cannot cut connections")
	}
	req := r.stage(t, "cut", whole)
	before, err := r.broken(t, req, func(func()) { r.Cut() })
	want(t, err, mover.CodeOther)
	r.resumes(t, req, before)
}

func restarted(t *testing.T, r *Rig) {
	if r.Restart == nil {
		t.Skip("the rig cannot restart the receiver")
	}
	req := r.stage(t, "restarted", whole)
	before, err := r.broken(t, req, func(func()) { r.Restart(t) })
	want(t, err, mover.CodeOther)
	r.resumes(t, req, before)
}

// lie changes a digit of f's digest.
func lie(f mover.File) mover.File {
	d := []byte(f.Digest.Value)
	d[0] ^= 1 // stays hex: '0'^1 is '1', 'a'^1 is '`'
	if d[0] == '`' || d[0] == 'g' {
		d[0] = '0'
	}
	f.Digest.Value = string(d)
	return f
}

func wrongDigest(t *testing.T, r *Rig) {
	req := r.stage(t, "wrong", 3*block)
	req = r.request(t, lie(req.Source))
	want(t, r.move(t, req), mover.CodeContent)
	r.absent(t, req.Source)
	r.holds(t, 0)
}

func wrongThenRight(t *testing.T, r *Rig) {
	right := r.stage(t, "wrong", 3*block)
	want(t, r.move(t, r.request(t, lie(right.Source))), mover.CodeContent)
	ok(t, r.move(t, right))
	r.arrived(t, right.Source)
}

func sourceMissing(t *testing.T, r *Rig) {
	req := r.stage(t, "missing", block)
	ok(t, os.Remove(filepath.Join(r.Source, req.Source.Name)))
	want(t, r.move(t, req), mover.CodeSource)
	r.absent(t, req.Source)
}

func sourceSize(t *testing.T, r *Rig) {
	for base, size := range map[string]int64{"shorter": 2*block - 1, "longer": 2*block + 1} {
		req := r.stage(t, base, 2*block)
		ok(t, os.Truncate(filepath.Join(r.Source, req.Source.Name), size))
		want(t, r.move(t, req), mover.CodeSource)
		r.absent(t, req.Source)
	}
}

func sourceTruncated(t *testing.T, r *Rig) {
	req := r.stage(t, "truncated", whole)
	_, err := r.broken(t, req, func(func()) { ok(t, os.Truncate(filepath.Join(r.Source, req.Source.Name), block)) })
	want(t, err, mover.CodeSource)
	r.absent(t, req.Source)
}

func names(t *testing.T, r *Rig) {
	secret := filepath.Join(r.Source, "secret")
	ok(t, os.WriteFile(secret, []byte("secret"), 0o600))
	f := r.file(t, "good", strings.NewReader("secret"))
	req := r.request(t, f)
	for _, name := range []string{"outbox/../secret", "../secret", "secret", "/etc/passwd", "outbox/./good", "outbox/.hidden", "outbox//good", "inbox/good", "outbox/a/b", "outbox/", ""} {
		req.Source.Name = name
		want(t, r.move(t, req), mover.CodeName)
	}
	r.holds(t, 0)
}

func notPlain(t *testing.T, r *Rig) {
	good := r.file(t, "good", strings.NewReader("content"))
	out := filepath.Join(r.Source, mover.Outbox)
	ok(t, os.Symlink("good", filepath.Join(out, "link")))
	ok(t, os.Symlink(filepath.Join(out, "good"), filepath.Join(out, "absolute")))
	ok(t, os.Symlink("../../../../etc/passwd", filepath.Join(out, "outside")))
	ok(t, os.Mkdir(filepath.Join(out, "folder"), 0o700))
	for _, base := range []string{"link", "absolute", "outside", "folder"} {
		f := good
		f.Name = path.Join(mover.Outbox, base)
		req := r.request(t, f)
		want(t, r.move(t, req), mover.CodeName)
		r.absent(t, f)
	}
}

func noSpace(t *testing.T, r *Rig) {
	if r.Free == nil {
		t.Skip("the rig cannot fill the destination")
	}
	req := r.stage(t, "big", 3*block)
	r.Free(3*block - 1)
	want(t, r.move(t, req), mover.CodeSpace)
	r.holds(t, 0)
	r.Free(3 * block)
	ok(t, r.move(t, req))
	r.arrived(t, req.Source)
}

func promisedSpace(t *testing.T, r *Rig) {
	if r.Free == nil || r.Drop == nil {
		t.Skip("the rig cannot fill the destination")
	}
	second := r.stage(t, "second", 20*block)
	// With a hole at its end, nobody takes the room for all of it beforehand.
	random := io.LimitReader(mathrand.NewChaCha8([32]byte{}), whole-block)
	f := r.file(t, "first", io.MultiReader(random, bytes.NewReader(make([]byte, block))))
	name := filepath.Join(r.Source, f.Name)
	ok(t, errors.Join(os.Truncate(name, whole-block), os.Truncate(name, whole)))
	first := r.request(t, f)
	_, err := r.broken(t, first, func(cancel func()) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.Free(21 * block) // enough for the second, were there not the rest of the first
	want(t, r.move(t, second), mover.CodeSpace)
	ok(t, r.Drop(path.Join(mover.Inbox, "first")))
	ok(t, r.move(t, second))
	r.arrived(t, second.Source)
	r.Free(math.MaxInt64)
}

func badTickets(t *testing.T, r *Rig) {
	f := r.file(t, "good", strings.NewReader("content"))
	for name, spoil := range map[string]func(*mover.Ticket){
		"expired":                      func(x *mover.Ticket) { x.Expires = time.Now().Add(-time.Minute) },
		"for another DTN":              func(x *mover.Ticket) { x.Site = "elsewhere" },
		"for a sender of another site": func(x *mover.Ticket) { x.From = "elsewhere" },
	} {
		tk := r.ticket(f)
		spoil(&tk)
		if err := r.move(t, r.with(t, f, tk)); mover.CodeOf(err) != mover.CodeTicket {
			t.Errorf("%s: got %v, want code %s", name, err, mover.CodeTicket)
		}
	}
	req := r.request(t, f)
	for _, token := range []string{"", "nonsense", req.Destination.Ticket[:len(req.Destination.Ticket)-8]} {
		bad := req
		bad.Destination.Ticket = token
		want(t, r.move(t, bad), mover.CodeTicket)
	}
	r.holds(t, 0)
}

func otherFile(t *testing.T, r *Rig) {
	a, b := r.stage(t, "a", block), r.stage(t, "b", 2*block)
	a.Destination.Ticket = b.Destination.Ticket // it is for the other
	want(t, r.move(t, a), mover.CodeTicket)
	r.absent(t, a.Source)
	r.absent(t, b.Source)

	first := r.ticket(b.Source)
	again := r.ticket(r.file(t, "c", strings.NewReader("content")))
	again.ID = first.ID
	ok(t, r.move(t, r.with(t, b.Source, first)))
	c := again.File
	c.Name = path.Join(mover.Outbox, "c")
	want(t, r.move(t, r.with(t, c, again)), mover.CodeTicket)
	r.absent(t, c)
}

func replayed(t *testing.T, r *Rig) {
	if r.Drop == nil {
		t.Skip("the rig cannot drop arrivals")
	}
	req := r.stage(t, "replayed", 2*block)
	ok(t, r.move(t, req))
	ok(t, r.Drop(path.Join(mover.Inbox, "replayed")))
	r.holds(t, 0)
	want(t, r.move(t, req), mover.CodeTicket)
	if r.Restart != nil {
		r.Restart(t)
		want(t, r.move(t, req), mover.CodeTicket)
	}
	r.holds(t, 0)
	ok(t, r.move(t, r.request(t, req.Source)))
	r.arrived(t, req.Source)
}

func freshTicket(t *testing.T, r *Rig) {
	req := r.stage(t, "fresh", whole)
	before, err := r.broken(t, req, func(cancel func()) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.resumes(t, r.request(t, req.Source), before)
	if n := r.sent(func() { ok(t, r.move(t, r.request(t, req.Source))) }); n > block {
		t.Errorf("a ticket for what is there already sent %d bytes", n)
	}
}

func cancelledBefore(t *testing.T, r *Rig) {
	req := r.stage(t, "never", block)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.moveCtx(ctx, t, req, func(mover.Progress) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that the context was cancelled", err)
	}
	r.absent(t, req.Source)
}

func nobody(t *testing.T, r *Rig) {
	r.Address = cmp.Or(r.Nobody, "127.0.0.1:1") // before the ticket, which may name it
	req := r.stage(t, "nobody", block)
	want(t, r.move(t, req), mover.CodeOther)
}

func dropped(t *testing.T, r *Rig) {
	if r.Drop == nil {
		t.Skip("the rig cannot drop arrivals")
	}
	req := r.stage(t, "dropped", whole)
	_, err := r.broken(t, req, func(func()) { ok(t, r.Drop(path.Join(mover.Inbox, "dropped"))) })
	if err == nil {
		t.Error("the move of a dropped file succeeded")
	}
	r.holds(t, 0)
	want(t, r.move(t, req), mover.CodeTicket)
}
