package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// world is two sites whose mechanisms live in memory and keep their state while
// agents come and go. Every call of a mechanism goes through call, where a test
// makes it fail before or after its effect, or kills the agent that makes it.
type world struct {
	t    *testing.T
	a, b *site
	pace time.Duration // of 16 KiB from DTN to DTN

	mu    sync.Mutex                   // guards what follows, and both sites
	ops   []op                         // every call of a mechanism, in order
	fault func(op op, after bool) fate // set by inject
}

type op struct {
	site string
	name string // "catalog.Create"
	nth  int    // how many calls of that name came before at the site
}

func (o op) String() string { return fmt.Sprintf("%s:%s#%d", o.site, o.name, o.nth) }

type fate int

const (
	live fate = iota
	fail
	kill
)

var (
	errInjected = errors.New("injected fault")
	errDead     = errors.New("the process is dead")
)

// site is one site's outside world: Glance, export, DTN and job store.
type site struct {
	w       *world
	name    string
	images  map[glance.ImageID]*record
	used    map[glance.ImageID]bool
	files   map[string][]byte // the datadir, by image id
	outbox  map[string][]byte
	inbox   map[string]*arrival
	stirred chan struct{} // closed and replaced by stir
	moves   map[mover.TransferID]*move
	passes  []mover.Passage
	probes  []mover.ProbeRequest
	address string                                    // of its DTN; empty: dtn- and its name
	seen    []mover.SeenPath                          // what its DTN has seen of paths, besides its moves'
	onward  func(mover.Relay) ([]mover.Hop, error)    // what relays tell
	bars    func(via mover.Relay) (mover.Code, error) // why a transfer by a way fails; nil: none does
	spent   map[string]bool
	jobs    map[JobID]Job
	newer   map[JobID]bool // of these only a newer agent can read the record
	claims  map[JobID]*claim
	rev     int64
	subs    map[chan Event]context.Context
	counts  map[string]int
	free    int64
	ack     mover.Ack
	digests bool                               // its DTN tells the digests of blocks
	waits   string                             // why its DTN sends nothing now
	down    bool                               // its agent and DTN do not answer other sites
	mute    bool                               // its DTN does not announce arrivals
	corrupt int                                // so many arrivals come with a wrong byte, and the DTN does not notice
	stale   func(p []byte, n int) (int, error) // what the next opening shows behind the first block; nil: what is there

	callbacks []mover.Callback // that its DTN tells of

	store time.Duration // of 16 KiB in its Glance
	late  time.Duration // that its Glance needs to see that an upload was cut, with all of the bytes or not
	algo  string        // by which its Glance hashes; empty: sha512
	read  time.Duration // of a block of its export

	refuseFinish, refuseUpload, refuseStage, refuseRoom error          // what Glance or the export answer
	export                                              error          // what is wrong with it: every call fails, for the outbox alone where it is an ErrOutbox
	hang                                                chan struct{}  // a copy to the export ends when it is closed
	vanish                                              glance.ImageID // its data is gone when asked for

	settings Settings // of the next boot; a test sets them while nothing kills the agent
	life     *life    // the latest
}

// life is one run of a site's agent, from its boot until it is halted or killed.
type life struct {
	agent *Agent
	ctx   context.Context
	die   context.CancelFunc // ends ctx
	ended chan struct{}      // closed when Run has returned
}

type record struct {
	glance.Image
	data []byte
}

type arrival struct {
	file  mover.File
	data  []byte
	state mover.ArrivalState

	since  time.Time
	spoilt bool // whoever reads it from the export gets a wrong byte
}

func (a *arrival) status() mover.Arrival {
	n := int64(len(a.data))
	return mover.Arrival{File: a.file, State: a.state, Path: a.file.Name + ".part", Proven: n, Moved: n, Since: a.since}
}

// stir has the site's DTN look what there is to announce; w.mu is held.
func (s *site) stir() {
	close(s.stirred)
	s.stirred = make(chan struct{})
}

type move struct {
	req  mover.Request
	st   mover.Status
	stop context.CancelFunc
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, pace: 5 * time.Millisecond}
	w.a, w.b = newSite(w, "A"), newSite(w, "B")
	return w
}

func newSite(w *world, name string) *site {
	return &site{
		w: w, name: name, images: map[glance.ImageID]*record{}, used: map[glance.ImageID]bool{},
		files: map[string][]byte{}, outbox: map[string][]byte{}, inbox: map[string]*arrival{}, moves: map[mover.TransferID]*move{},
		spent: map[string]bool{}, jobs: map[JobID]Job{}, claims: map[JobID]*claim{}, subs: map[chan Event]context.Context{},
		counts: map[string]int{}, free: 1 << 40, digests: true, stirred: make(chan struct{}), store: time.Millisecond,
	}
}

func (s *site) other() *site {
	if s == s.w.a {
		return s.w.b
	}
	return s.w.a
}

// boot starts the site's agent, after a kill too.
func (s *site) boot() {
	l := &life{ended: make(chan struct{})}
	l.ctx, l.die = context.WithCancel(s.w.t.Context())
	s.w.locked(func() {
		s.settings = Settings{
			Peers: []PeerSite{{Name: s.other().name, Peer: peerOf{s}, Jobs: 2, MayPull: true}}, Rules: s.settings.Rules,
			DeliverJobs: 2, OnDeletedID: cmpOr(s.settings.OnDeletedID, OnDeletedPark), Owner: OwnerAgent,
			RetryMin: time.Second, RetryMax: time.Minute, Listing: 15 * time.Second, Reconcile: 10 * time.Minute, Stuck: time.Hour, Keep: 30 * 24 * time.Hour,
		}
		a, err := New(Options{Site: s.name, Catalog: catalogOf{s}, Stager: stagerOf{s}, Mover: moverOf{s}, Landing: landingOf{s}, Signer: signerOf{s}, Store: storeOf{s}, Settings: s.settings, Choose: chooseFastest})
		if err != nil {
			s.w.t.Fatal(err)
		}
		l.agent, s.life = a, l
	})
	go func() {
		defer close(l.ended)
		if err := l.agent.Run(l.ctx); err != nil && l.ctx.Err() == nil {
			s.w.t.Errorf("agent %s: %v", s.name, err)
		}
	}()
}

func cmpOr(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

func (s *site) current() (l *life) {
	s.w.locked(func() { l = s.life })
	return l
}

func (s *site) agent() *Agent { return s.current().agent }

func (s *site) halt() {
	l := s.current()
	l.die()
	<-l.ended
}

// call is where every mechanism begins and ends. With an error the effect must not
// happen; otherwise post turns the effect's error into what the caller sees.
func (s *site) call(name string) (post func(error) error, pre error) {
	if s.current().ctx.Err() != nil {
		return nil, errDead
	}
	w := s.w
	var o op
	w.locked(func() {
		o = op{s.name, name, s.counts[name]}
		s.counts[name]++
		w.ops = append(w.ops, o)
	})
	decide := func(after bool) error {
		f := live
		w.locked(func() {
			if w.fault != nil {
				f = w.fault(o, after)
			}
		})
		switch f {
		case fail:
			return fmt.Errorf("%v: %w", o, errInjected)
		case kill:
			l := s.current()
			l.die()
			go func() { <-l.ended; s.boot() }()
			return errDead
		}
		return nil
	}
	if err := decide(false); err != nil {
		return nil, err
	}
	return func(err error) error {
		if aerr := decide(true); aerr != nil {
			return aerr
		}
		return err
	}, nil
}

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// inject has fault decide every call from now on, before and after its effect. It is
// called with w.mu held, and so sees and changes the world as it likes.
func (w *world) inject(fault func(o op, after bool) fate) {
	w.locked(func() { w.fault = fault })
}

// upload puts an image into the site's Glance as a user would.
func (s *site) upload(name string, data []byte) glance.ImageID {
	return s.add(name, data, glance.Active)
}

// add makes an image with its file at once, in a state.
func (s *site) add(name string, data []byte, status glance.Status) glance.ImageID {
	id := newImageID()
	s.w.locked(func() {
		s.images[id] = &record{Image: glance.Image{
			ID: id, Name: name, Status: status, Size: int64(len(data)), Hash: sum(data), DiskFormat: "raw", ContainerFormat: "bare",
			Visibility: "public", MinDisk: 1, Tags: []string{"t"}, Properties: map[string]string{"os_distro": "debian"}, UpdatedAt: time.Now(),
		}, data: data}
		s.files[string(id)] = data
	})
	return id
}

func newImageID() glance.ImageID {
	return renamed(Job{ID: JobID(randomID())}).DeliverAs
}

func sum(b []byte) digest.Digest {
	h := sha512.Sum512(b)
	return digest.Digest{Algo: "sha512", Value: hex.EncodeToString(h[:])}
}

func bytesOf(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	r.Read(b)
	return b
}

// ---- Glance

type catalogOf struct{ *site }

func (c catalogOf) Image(_ context.Context, id glance.ImageID) (img glance.Image, err error) {
	post, pre := c.call("catalog.Image")
	if pre != nil {
		return img, pre
	}
	c.w.locked(func() {
		if r := c.images[id]; r != nil {
			img = clone(r.Image)
		} else {
			err = ErrNoImage
		}
	})
	return img, post(err)
}

func clone(i glance.Image) glance.Image {
	i.Properties, i.Tags = maps.Clone(i.Properties), slices.Clone(i.Tags)
	return i
}

func (c catalogOf) Images(_ context.Context, since time.Time) iter.Seq2[glance.Image, error] {
	return func(yield func(glance.Image, error) bool) {
		post, pre := c.call("catalog.Images")
		if pre != nil {
			yield(glance.Image{}, pre)
			return
		}
		var all []glance.Image
		c.w.locked(func() {
			for _, r := range c.images {
				if !r.UpdatedAt.Before(since) {
					all = append(all, clone(r.Image))
				}
			}
		})
		if err := post(nil); err != nil {
			yield(glance.Image{}, err)
			return
		}
		for _, i := range all {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (c catalogOf) Holding(_ context.Context, i glance.Image) (out []glance.Image, err error) {
	post, pre := c.call("catalog.Holding")
	if pre != nil {
		return nil, pre
	}
	c.w.locked(func() {
		for _, r := range c.images {
			if r.Status == glance.Active && r.SameContent(i) {
				out = append(out, clone(r.Image))
			}
		}
	})
	return out, post(nil)
}

func (c catalogOf) Room(_ context.Context, made bool) (err error) {
	post, pre := c.call("catalog.Room")
	if pre != nil {
		return pre
	}
	c.w.locked(func() {
		if !made {
			err = c.refuseRoom
		}
	})
	return post(err)
}

func (c catalogOf) Create(_ context.Context, i glance.Image) (img glance.Image, err error) {
	post, pre := c.call("catalog.Create")
	if pre != nil {
		return img, pre
	}
	c.w.locked(func() {
		if c.used[i.ID] || c.images[i.ID] != nil {
			err = ErrIDUsed
			return
		}
		i = clone(i)
		i.Status, i.Size, i.Hash, i.Visibility, i.Hidden, i.Protected, i.UpdatedAt = glance.Queued, 0, digest.Digest{}, "private", true, false, time.Now()
		c.images[i.ID] = &record{Image: i}
		img = clone(i)
	})
	return img, post(err)
}

func (c catalogOf) Upload(ctx context.Context, id glance.ImageID, r io.Reader, size int64) error {
	post, pre := c.call("catalog.Upload")
	if pre != nil {
		return pre
	}
	var rec *record
	var err error
	c.w.locked(func() {
		switch rec = c.images[id]; {
		case c.refuseUpload != nil:
			err = c.refuseUpload
		case rec == nil:
			err = ErrNoImage
		case rec.Status != glance.Queued:
			err = ErrNotQueued
		default:
			rec.Status, rec.UpdatedAt = glance.Saving, time.Now()
		}
	})
	if err != nil {
		return post(err)
	}
	var got bytes.Buffer
	buf := make([]byte, 16<<10)
	for err == nil && ctx.Err() == nil {
		var n int
		n, err = r.Read(buf)
		got.Write(buf[:n])
		var store time.Duration
		c.w.locked(func() { store = c.store })
		pause(ctx, store)
	}
	if err == io.EOF {
		err = nil
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && int64(got.Len()) != size {
		err = io.ErrUnexpectedEOF
	}
	end := func(whole bool) {
		if rec.UpdatedAt = time.Now(); !whole {
			rec.Status = glance.Queued
			return
		}
		rec.Status, rec.data, rec.Size, rec.Hash = glance.Active, got.Bytes(), size, sum(got.Bytes())
		if c.algo != "" {
			h, _ := digest.New(c.algo)
			h.Write(rec.data)
			rec.Hash = digest.Of(c.algo, h)
		}
	}
	c.w.locked(func() {
		switch {
		case c.images[id] == nil:
			err = ErrNoImage
		case err != nil && c.late > 0:
			time.AfterFunc(c.late, func() { c.w.locked(func() { end(int64(got.Len()) == size) }) })
		default:
			end(err == nil)
		}
	})
	return post(err)
}

func (c catalogOf) Adopt(_ context.Context, now, want glance.Image) (img glance.Image, err error) {
	if maps.Equal(now.Properties, want.Properties) {
		return now, nil
	}
	post, pre := c.call("catalog.Adopt")
	if pre != nil {
		return img, pre
	}
	c.w.locked(func() {
		r := c.images[now.ID]
		if r == nil {
			err = ErrNoImage
			return
		}
		r.Properties = maps.Clone(want.Properties)
		img = clone(r.Image)
	})
	return img, post(err)
}

func (c catalogOf) Finish(_ context.Context, i glance.Image) (img glance.Image, err error) {
	post, pre := c.call("catalog.Finish")
	if pre != nil {
		return img, pre
	}
	c.w.locked(func() {
		r := c.images[i.ID]
		if r == nil || c.refuseFinish != nil {
			err = c.refuseFinish
			if r == nil {
				err = ErrNoImage
			}
			return
		}
		r.Visibility, r.Hidden, r.Protected = i.Visibility, i.Hidden, i.Protected
		delete(r.Properties, glance.PropJob)
		img = clone(r.Image)
	})
	return img, post(err)
}

func (c catalogOf) Delete(_ context.Context, id glance.ImageID) error {
	post, pre := c.call("catalog.Delete")
	if pre != nil {
		return pre
	}
	c.w.locked(func() { c.remove(id) })
	return post(nil)
}

func (s *site) remove(id glance.ImageID) {
	if s.images[id] != nil {
		delete(s.images, id)
		delete(s.files, string(id))
		s.used[id] = true
	}
}

func (c catalogOf) Data(_ context.Context, id glance.ImageID) (io.ReadCloser, error) {
	post, pre := c.call("catalog.Data")
	if pre != nil {
		return nil, pre
	}
	var data []byte
	var err error
	c.w.locked(func() {
		if r := c.images[id]; r == nil || id == c.vanish {
			err = ErrNoImage
		} else {
			data = r.data
		}
	})
	if err = post(err); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// ---- export

type stagerOf struct{ *site }

func (s stagerOf) Stage(_ context.Context, id glance.ImageID, f mover.File, report func(int64)) (string, error) {
	post, pre := s.call("stager.Stage")
	if pre != nil {
		return "", pre
	}
	var err error
	var hang chan struct{}
	s.w.locked(func() { hang = s.hang })
	if hang != nil {
		<-hang
	}
	s.w.locked(func() {
		data, ok := s.files[string(id)]
		switch {
		case s.broken(mover.Outbox):
			err = errBroken
		case s.refuseStage != nil:
			err = s.refuseStage
		case !ok:
			err = ErrNoFile
		case int64(len(data)) != f.Size:
			err = ErrTruncated
		case sum(data) != f.Digest:
			err = &digest.MismatchError{Want: f.Digest, Got: sum(data)}
		default:
			s.outbox[f.Name] = data
		}
	})
	report(f.Size)
	return "copy", post(err)
}

func (s stagerOf) Unstage(_ context.Context, name string) error {
	post, pre := s.call("stager.Unstage")
	if pre != nil {
		return pre
	}
	return post(s.reached(mover.Outbox, func() { delete(s.outbox, name) }))
}

// errBroken is what calls end with while something is wrong with the export.
var errBroken = errors.New("input/output error")

// broken reports whether calls for a box of the export fail; w.mu is held.
func (s *site) broken(box string) bool {
	return s.export != nil && (box == mover.Outbox || !errors.Is(s.export, ErrOutbox))
}

// reached calls f, with w.mu held, when the box is well.
func (s *site) reached(box string, f func()) (err error) {
	s.w.locked(func() {
		if s.broken(box) {
			err = errBroken
			return
		}
		f()
	})
	return err
}

func (s stagerOf) Staged(context.Context) (names []string, err error) {
	post, pre := s.call("stager.Staged")
	if pre != nil {
		return nil, pre
	}
	err = s.reached(mover.Outbox, func() { names = slices.Collect(maps.Keys(s.outbox)) })
	return names, post(err)
}

// Check is no call that a test counts: it is made for ever.
func (s stagerOf) Check(context.Context) (err error) {
	s.w.locked(func() { err = s.export })
	return err
}

func (s stagerOf) Open(name string) (ReaderAtCloser, error) {
	post, pre := s.call("stager.Open")
	if pre != nil {
		return nil, pre
	}
	f := openArrival{s: s.site}
	err := s.reached(mover.Inbox, func() {
		f.a = s.inbox[strings.TrimSuffix(name, ".part")]
		f.stale, s.stale = s.stale, nil
	})
	if err == nil && f.a == nil {
		err = ErrNoFile
	}
	if err = post(err); err != nil {
		return nil, err
	}
	return f, nil
}

type openArrival struct {
	s     *site
	a     *arrival
	stale func(p []byte, n int) (int, error)
}

func (o openArrival) ReadAt(p []byte, off int64) (n int, err error) {
	if broken := o.s.reached(mover.Inbox, func() { n, err = bytes.NewReader(o.a.data).ReadAt(p, off) }); broken != nil {
		return 0, broken
	}
	var read time.Duration
	o.s.w.locked(func() { read = o.s.read })
	time.Sleep(read)
	if o.a.spoilt && off == 0 {
		p[0] ^= 1
	}
	if o.stale != nil && off > 0 {
		return o.stale(p, n)
	}
	return n, err
}
func (o openArrival) Close() error { return nil }

// ---- DTN

type moverOf struct{ *site }

func (m moverOf) Submit(_ context.Context, r mover.Request) (mover.TransferID, error) {
	post, pre := m.call("mover.Submit")
	if pre != nil {
		return "", pre
	}
	id := mover.TransferID("t" + r.Key)
	var err error
	m.w.locked(func() {
		if old := m.moves[id]; old != nil {
			if r.PCP, r.Priority = old.req.PCP, old.req.Priority; old.req != r {
				err = mover.ErrKeyConflict
			}
			return
		}
		ctx, stop := context.WithCancel(m.w.t.Context())
		mv := &move{req: r, stop: stop, st: mover.Status{ID: id, Key: r.Key, State: mover.Running, Source: r.Source, Started: time.Now(), Priority: r.Priority}}
		m.moves[id] = mv
		go m.run(ctx, mv)
	})
	return id, post(err)
}

// run sends a file in steps of 16 KiB as far as it has not come yet.
func (s *site) run(ctx context.Context, mv *move) {
	dst := s.other()
	var t mover.Ticket
	err := json.Unmarshal([]byte(mv.req.Destination.Ticket), &t)
	brought := 0
	end := func(code mover.Code, err error) {
		mv.st.Ended = time.Now()
		mv.st.Ran, mv.st.Way.Bottleneck = mv.st.Ended.Sub(mv.st.Started), mover.Bottleneck{Place: mover.Network, Share: 0.9}
		mv.st.Rate = 8 * float64(brought) / max(mv.st.Ran.Seconds(), 1e-9)
		if ctx.Err() != nil {
			mv.st.State = mover.Cancelled
		} else if err != nil {
			mv.st.State, mv.st.Code, mv.st.Error = mover.Failed, code, err.Error()
		} else {
			mv.st.State = mover.Done
		}
	}
	for ctx.Err() == nil {
		over := false
		s.w.locked(func() {
			if mv.st.State, mv.st.Waiting = mover.Running, s.waits; s.waits != "" {
				mv.st.State = mover.Queued
				return
			}
			src, ok := s.outbox[mv.req.Source.Name]
			arr := dst.inbox[t.File.Name]
			switch {
			case s.barred(mv.req.Destination.Via, end):
				over = true
			case err != nil || dst.spent[t.ID] || t.File.Size != mv.req.Source.Size:
				end(mover.CodeTicket, errors.New("ticket refused"))
				over = true
			case !ok:
				end(mover.CodeSource, errors.New("no such file"))
				over = true
			case dst.down:
				end(mover.CodeOther, errors.New("connection refused"))
				over = true
			case arr == nil:
				dst.inbox[t.File.Name] = &arrival{file: t.File, state: mover.Arriving, since: time.Now(), spoilt: dst.corrupt > 0}
				dst.corrupt--
			case len(arr.data) < len(src):
				n := min(len(src), len(arr.data)+16<<10)
				brought += n - len(arr.data)
				arr.data = append(arr.data, src[len(arr.data):n]...)
				mv.st.Moved = int64(n)
			default:
				if sum(arr.data) != t.File.Digest {
					delete(dst.inbox, t.File.Name)
					end(mover.CodeContent, errors.New("wrong content"))
				} else {
					arr.state = mover.Arrived
					end("", nil)
				}
				over = true
			}
			dst.stir()
		})
		if over {
			return
		}
		pause(ctx, s.w.pace)
	}
	s.w.locked(func() { end("", nil) })
}

func (m moverOf) Status(_ context.Context, id mover.TransferID) (st mover.Status, err error) {
	post, pre := m.call("mover.Status")
	if pre != nil {
		return st, pre
	}
	m.w.locked(func() {
		if mv := m.moves[id]; mv != nil {
			st = mv.st
		} else {
			err = mover.ErrNoTransfer
		}
	})
	return st, post(err)
}

func (m moverOf) Cancel(_ context.Context, id mover.TransferID) error {
	post, pre := m.call("mover.Cancel")
	if pre != nil {
		return pre
	}
	m.w.locked(func() {
		if mv := m.moves[id]; mv != nil {
			mv.stop()
		}
	})
	return post(nil)
}

type landingOf struct{ *site }

func (l landingOf) Arrival(_ context.Context, name string) (arr mover.Arrival, err error) {
	post, pre := l.call("landing.Arrival")
	if pre != nil {
		return arr, pre
	}
	l.w.locked(func() {
		a := l.inbox[name]
		if a == nil {
			err = mover.ErrNoArrival
			return
		}
		arr = a.status()
	})
	return arr, post(err)
}

// BlockCheck knows the digests of what site A sends; a site whose digests is false tells none.
func (l landingOf) BlockCheck(name string) func(context.Context, int64, []byte) error {
	return func(_ context.Context, i int64, block []byte) (err error) {
		pre2, pre := l.call("landing.BlockCheck")
		if pre != nil {
			return pre
		}
		l.w.locked(func() {
			if !l.digests {
				err = mover.ErrNoDigests
				return
			}
			for _, data := range l.other().outbox {
				if arr := l.inbox[name]; arr != nil && sum(data) == arr.file.Digest {
					off := i * mover.BlockSize
					err = digest.Check(sum(data[off:min(int64(len(data)), off+mover.BlockSize)]), sum(block))
				}
			}
		})
		return pre2(err)
	}
}

func (l landingOf) Arrivals(context.Context) (all []mover.Arrival, err error) {
	post, pre := l.call("landing.Arrivals")
	if pre != nil {
		return nil, pre
	}
	l.w.locked(func() {
		for _, a := range l.inbox {
			all = append(all, a.status())
		}
	})
	return all, post(nil)
}

// Watch announces the inbox every 50 ms at most, and tries again a second after it failed.
func (l landingOf) Watch(ctx context.Context) iter.Seq2[map[string]mover.Arrival, error] {
	return func(yield func(map[string]mover.Arrival, error) bool) {
		var told map[string]mover.Arrival // nil: not heard
		for ctx.Err() == nil {
			now := map[string]mover.Arrival{}
			var err error
			var stirred <-chan struct{}
			l.w.locked(func() {
				for name, a := range l.inbox {
					now[name] = a.status()
				}
				if stirred = l.stirred; l.mute {
					err = errors.New("connection refused")
				}
			})
			if news := told == nil || !maps.Equal(told, now); news && err == nil {
				var post func(error) error
				if post, err = l.call("landing.Watch"); err == nil {
					err = post(nil)
				}
				if err == nil && !yield(maps.Clone(now), nil) {
					return
				}
			}
			if err != nil {
				told = nil
				if !yield(nil, err) {
					return
				}
				pause(ctx, time.Second)
				continue
			}
			told = now
			pause(ctx, 50*time.Millisecond)
			select {
			case <-ctx.Done():
			case <-stirred:
			}
		}
	}
}

func (l landingOf) Drop(_ context.Context, name string) error {
	post, pre := l.call("landing.Drop")
	if pre != nil {
		return pre
	}
	l.w.locked(func() {
		delete(l.inbox, name)
		l.stir()
	})
	return post(nil)
}

func (l landingOf) Capabilities(context.Context) (c mover.Capabilities, err error) {
	post, pre := l.call("landing.Capabilities")
	if pre != nil {
		return c, pre
	}
	l.w.locked(func() {
		c = mover.Capabilities{Address: cmp.Or(l.address, "dtn-"+l.name), Free: l.free, Ack: l.ack, Callbacks: l.callbacks}
	})
	return c, post(nil)
}

type signerOf struct{ *site }

func (s signerOf) Sign(t mover.Ticket) (string, error) {
	b, err := json.Marshal(t)
	return string(b), err
}

// ---- the other agent

type peerOf struct{ *site }

func (p peerOf) remote() (*Agent, error) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if o := p.other(); !o.down && o.life != nil && o.life.ctx.Err() == nil {
		return o.life.agent, nil
	}
	return nil, errors.New("connection refused")
}

// ask calls the other agent as over a network.
func ask[T any](p peerOf, name string, f func(*Agent) (T, error)) (v T, err error) {
	post, pre := p.call("peer." + name)
	if pre != nil {
		return v, pre
	}
	r, err := p.remote()
	if err == nil {
		v, err = f(r)
	}
	return v, post(err)
}

func (p peerOf) Offer(ctx context.Context, o Offer) (Grant, error) {
	return ask(p, "Offer", func(a *Agent) (Grant, error) { return a.Offer(ctx, p.name, o) })
}

func (p peerOf) Delivery(ctx context.Context, id JobID) (Delivery, error) {
	return ask(p, "Delivery", func(a *Agent) (Delivery, error) { return a.Delivery(ctx, p.name, id) })
}

func (p peerOf) CancelDelivery(ctx context.Context, id JobID) error {
	_, err := ask(p, "CancelDelivery", func(a *Agent) (int, error) { return 0, a.CancelDelivery(ctx, p.name, id) })
	return err
}

func (p peerOf) Request(ctx context.Context, image string) (Job, error) {
	return ask(p, "Request", func(a *Agent) (Job, error) { return a.Request(ctx, p.name, image) })
}

func (p peerOf) Health(ctx context.Context) (Health, error) {
	return ask(p, "Health", func(a *Agent) (Health, error) { return a.Health(ctx, p.name) })
}

func (p peerOf) ProbeTicket(ctx context.Context, via string) (mover.Destination, error) {
	return ask(p, "ProbeTicket", func(a *Agent) (mover.Destination, error) { return a.ProbeTicket(ctx, p.name, via) })
}

func (p peerOf) Sending(ctx context.Context, id JobID) (Job, error) {
	return ask(p, "Sending", func(a *Agent) (Job, error) { return a.Sending(ctx, p.name, id) })
}

func (p peerOf) Inventory(ctx context.Context) iter.Seq2[glance.Image, error] {
	return func(yield func(glance.Image, error) bool) {
		all, err := ask(p, "Inventory", func(a *Agent) ([]glance.Image, error) { return collect(a.Inventory(ctx, p.name)) })
		if err != nil {
			yield(glance.Image{}, err)
			return
		}
		for _, i := range all {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// ---- job store

type storeOf struct{ *site }

// put stores j and tells the watchers; w.mu is held.
func (s *site) put(j Job) Job {
	s.rev++
	j.Rev = s.rev
	s.jobs[j.ID] = j
	s.tell(Event{Job: &j})
	return j
}

func (s *site) tell(e Event) {
	for ch, ctx := range s.subs {
		if ctx.Err() == nil {
			ch <- e
		}
	}
}

func (s storeOf) Create(_ context.Context, j Job) (err error) {
	post, pre := s.call("store.Create")
	if pre != nil {
		return pre
	}
	s.w.locked(func() {
		if _, ok := s.jobs[j.ID]; ok {
			err = ErrExists
			return
		}
		s.put(j)
	})
	return post(err)
}

func (s storeOf) Get(_ context.Context, id JobID) (j Job, err error) {
	post, pre := s.call("store.Get")
	if pre != nil {
		return j, pre
	}
	s.w.locked(func() {
		var ok bool
		if j, ok = s.jobs[id]; !ok {
			err = ErrNoJob
		} else if s.newer[id] {
			j, err = Job{}, ErrRecord
		}
	})
	return j, post(err)
}

func (s storeOf) All(context.Context) iter.Seq2[Job, error] {
	return func(yield func(Job, error) bool) {
		post, pre := s.call("store.All")
		if pre != nil {
			yield(Job{}, pre)
			return
		}
		var all []Job
		var newer map[JobID]bool
		s.w.locked(func() { all, newer = slices.Collect(maps.Values(s.jobs)), maps.Clone(s.newer) })
		if err := post(nil); err != nil {
			yield(Job{}, err)
			return
		}
		slices.SortFunc(all, func(x, y Job) int { return x.Created.Compare(y.Created) })
		for _, j := range all {
			if newer[j.ID] {
				if !yield(Job{ID: j.ID}, ErrRecord) {
					return
				}
			} else if !yield(j, nil) {
				return
			}
		}
	}
}

func (s storeOf) Update(_ context.Context, j Job) (Job, error) {
	return s.update("store.Update", j, nil)
}

func (s *site) update(name string, j Job, c *claim) (out Job, err error) {
	post, pre := s.call(name)
	if pre != nil {
		return j, pre
	}
	s.w.locked(func() {
		switch {
		case c != nil && s.claims[j.ID] != c:
			err = ErrLost
		case s.jobs[j.ID].Rev != j.Rev:
			err = ErrStale
		default:
			out = s.put(j)
		}
	})
	return out, post(err)
}

func (s storeOf) Delete(_ context.Context, j Job) (err error) {
	post, pre := s.call("store.Delete")
	if pre != nil {
		return pre
	}
	s.w.locked(func() {
		if s.jobs[j.ID].Rev != j.Rev {
			err = ErrStale
			return
		}
		delete(s.jobs, j.ID)
		s.tell(Event{Gone: j.ID})
	})
	return post(err)
}

func (s storeOf) Watch(ctx context.Context) iter.Seq2[Event, error] {
	ch := make(chan Event, 100000)
	s.w.locked(func() { s.subs[ch] = ctx })
	return func(yield func(Event, error) bool) {
		defer s.w.locked(func() { delete(s.subs, ch) })
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-ch:
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

type claim struct {
	s      *site
	id     JobID
	slot   string
	owner  context.Context
	ctx    context.Context
	cancel context.CancelFunc
}

func (s storeOf) Claim(ctx context.Context, j Job, slot string, limit int) (Claim, error) {
	post, pre := s.call("store.Claim")
	if pre != nil {
		return nil, pre
	}
	c := &claim{s: s.site, id: j.ID, slot: slot, owner: s.current().ctx}
	c.ctx, c.cancel = context.WithCancel(ctx)
	var err error
	s.w.locked(func() {
		for id, o := range s.claims {
			if o.owner.Err() != nil {
				delete(s.claims, id)
			}
		}
		n := 0
		for _, o := range s.claims {
			if o.slot == slot {
				n++
			}
		}
		switch {
		case s.claims[j.ID] != nil:
			err = ErrBusy
		case n >= limit:
			err = ErrFull
		case s.jobs[j.ID].Rev != j.Rev:
			err = ErrStale
		default:
			s.claims[j.ID] = c
		}
	})
	if err := post(err); err != nil {
		c.Release()
		return nil, err
	}
	return c, nil
}

func (c *claim) Context() context.Context { return c.ctx }
func (c *claim) Update(_ context.Context, j Job) (Job, error) {
	return c.s.update("claim.Update", j, c)
}
func (c *claim) Progress(p Progress) {
	c.s.w.locked(func() { c.s.tell(Event{Progress: &p}) })
}
func (c *claim) Release() {
	c.cancel()
	c.s.w.locked(func() {
		if c.s.claims[c.id] == c {
			delete(c.s.claims, c.id)
		}
	})
}

// ---- running a world

// run boots both sites and calls f inside a bubble.
func run(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.a.boot()
		w.b.boot()
		defer func() {
			synctest.Wait()
			w.a.halt()
			w.b.halt()
		}()
		f(t, w)
	})
}

// await waits, in the bubble's time, until the job is in one of the states.
func (s *site) await(id JobID, states ...State) Job {
	s.w.t.Helper()
	var j Job
	for range 100000 {
		s.w.locked(func() { j = s.jobs[id] })
		if slices.Contains(states, j.State) {
			return j
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.w.t.Fatalf("job %s is %s (%s), want %v", id, j.State, j.Reason, states)
	return j
}

func (s *site) job(id glance.ImageID) Job {
	var j Job
	s.w.locked(func() {
		for _, x := range s.jobs {
			if x.Image.ID == id {
				j = x
			}
		}
	})
	return j
}

// retried begins A's job anew, as an operator does who has mended what it was parked for.
func (w *world) retried(job JobID, id glance.ImageID, data []byte) {
	w.t.Helper()
	if _, err := w.a.agent().Retry(w.t.Context(), job); err != nil {
		w.t.Fatal(err)
	}
	w.a.await(job, Verified)
	w.wantDelivered(id, data)
}

// wantDelivered fails unless B serves exactly this image and nothing is left over at either site.
func (w *world) wantDelivered(id glance.ImageID, data []byte) {
	w.t.Helper()
	time.Sleep(time.Minute)
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.b.images[id]
	if r == nil || r.Status != glance.Active || !bytes.Equal(r.data, data) {
		w.t.Errorf("image %s is not whole at B: %+v", id, r)
		return
	}
	if d := w.a.images[id].MetadataDiff(r.Image); len(d) > 0 || r.Properties[glance.PropJob] != "" {
		w.t.Errorf("image at B differs in %v, properties %v", d, r.Properties)
	}
	if len(w.b.images) != 1 {
		w.t.Errorf("B has %d images, want 1", len(w.b.images))
	}
	if len(w.a.outbox) != 0 || len(w.b.inbox) != 0 {
		w.t.Errorf("left over: outbox %d, inbox %d", len(w.a.outbox), len(w.b.inbox))
	}
}

func ticketID(token string) string {
	var t mover.Ticket
	_ = json.Unmarshal([]byte(token), &t)
	return t.ID
}

func (m moverOf) Transfers(_ context.Context, state mover.TransferState) (all []mover.Status, err error) {
	post, pre := m.call("mover.Transfers")
	if pre != nil {
		return nil, pre
	}
	m.w.locked(func() {
		for _, mv := range m.moves {
			if state == "" || mv.st.State == state {
				all = append(all, mv.st)
			}
		}
	})
	return all, post(nil)
}

func (m moverOf) Passages(context.Context) (all []mover.Passage, err error) {
	m.w.locked(func() { all = m.passes })
	return all, nil
}

func (m moverOf) Paths(context.Context) (all []mover.SeenPath, err error) {
	post, pre := m.call("mover.Paths")
	if pre != nil {
		return nil, pre
	}
	m.w.locked(func() {
		for _, mv := range m.moves {
			all = append(all, mover.SeenPath{Address: mv.st.Address, MinRTT: time.Second})
		}
		for _, r := range m.probes {
			all = append(all, mover.SeenPath{Address: cmp.Or(r.Destination.Via.Address, r.Destination.Address), Probe: &mover.Probed{Site: m.other().name}})
		}
		all = append(all, m.seen...)
	})
	return all, post(nil)
}

func (m moverOf) History(context.Context) (string, error) { return "", nil }

func (m moverOf) ForgetHistory(context.Context, string) (mover.Forgotten, error) {
	return mover.Forgotten{}, nil
}

func (m moverOf) ImportHistory(context.Context, string) (mover.Imported, error) {
	return mover.Imported{}, nil
}

func (m moverOf) Probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (p mover.SeenPath, err error) {
	post, pre := m.call("mover.Probe")
	if pre != nil {
		return p, pre
	}
	address, site := r.Destination.Address, m.other().name
	if r.Destination.Via.Address != "" {
		address, site = r.Destination.Via.Address, r.Destination.Via.Site
	}
	for range 3 {
		report(mover.Probing{Phase: mover.ProbeAll, Time: r.Time, Bytes: r.Bytes})
	}
	p = mover.SeenPath{Address: address, Probe: &mover.Probed{Site: site}}
	m.w.locked(func() {
		m.probes = append(m.probes, r)
	})
	return p, post(ctx.Err())
}

func (m moverOf) Prioritise(_ context.Context, id mover.TransferID, p mover.Priority) error {
	post, pre := m.call("mover.Prioritise")
	if pre != nil {
		return pre
	}
	err := mover.ErrNoTransfer
	m.w.locked(func() {
		if mv := m.moves[id]; mv != nil {
			mv.st.Priority, err = p, nil
		}
	})
	return post(err)
}

func (m moverOf) Adjust(_ context.Context, id mover.TransferID, p mover.PCP) (st mover.Status, err error) {
	post, pre := m.call("mover.Adjust")
	if pre != nil {
		return st, pre
	}
	err = mover.ErrNoTransfer
	m.w.locked(func() {
		if mv := m.moves[id]; mv != nil {
			mv.st.Way.PCP = mv.st.Way.PCP.With(p)
			st, err = mv.st, nil
		}
	})
	return st, post(err)
}
