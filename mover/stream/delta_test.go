package stream

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/delta"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
)

// noise returns n bytes that cannot be compressed.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = mathrand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// newDeltaRig makes a rig whose receiver keeps so many bytes of bases, and whose engine
// offers chunks on loopback, too.
func newDeltaRig(t testing.TB, p mover.Protection, keep int64) *rig {
	t.Helper()
	r := prepare(t)
	e := r.rig.Engine.(*Engine)
	r.opts.Protection, r.opts.Delta, e.Protection, e.offerAll = p, keep, p, true
	r.rig.Own = append(r.rig.Own, "github.com/glance-dtn/glance-dtn/mover/stream/bases.(*Box).Run")
	r.start(t, "127.0.0.1:0")
	return r
}

// move moves f and returns how many bytes the engine has sent for it.
func (r *rig) move(t testing.TB, f mover.File) int64 {
	t.Helper()
	before := r.wires.sent.Load()
	if err := r.rig.Engine.Move(t.Context(), r.request(t, f), func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	return r.wires.sent.Load() - before
}

// base has the receiver keep b as a base, where it keeps any, and returns it as a file of the source.
func (r *rig) base(t testing.TB, name string, b []byte) mover.File {
	t.Helper()
	f := r.put(t, name, b)
	r.move(t, f)
	if err := r.recv().Drop(mover.Inbox + "/" + name); err != nil {
		t.Fatal(err)
	}
	if r.opts.Delta > 0 {
		r.indexed(t)
	}
	return f
}

// indexed waits until a base has an index.
func (r *rig) indexed(t testing.TB) {
	t.Helper()
	for {
		changed := r.recv().Changed()
		if r.recv().bases.Any() {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("no index was made")
		}
	}
}

// boxDir is the box of bases.
const boxDir = "bases"

// box returns the names in the box of bases, without indexes.
func (r *rig) box(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.rig.Destination, boxDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".index") {
			names = append(names, e.Name())
		}
	}
	return names
}

// nameInBox is a base's name there.
func nameInBox(f mover.File) string { return f.Digest.Algo + "-" + f.Digest.Value }

const deltaSize = 6 << 20

// update is what the next build makes of an image: something put in that moves all the
// rest, something replaced, something taken out.
func update(old []byte) []byte {
	return slices.Concat(old[:1<<20], noise(77, 1000), old[1<<20:3<<20], noise(78, 100<<10), old[3<<20+100<<10:5<<20], old[5<<20+333:])
}

// deltaMost is what may be sent for an update: what changed, the chunks around the places,
// and the list of chunks.
const deltaMost = 100<<10 + 10*delta.Max + deltaSize/delta.Average*40 + 128<<10

func TestAnUpdateShipsWhatChanged(t *testing.T) {
	old := noise(1, deltaSize)
	for _, p := range protections {
		t.Run(string(p), func(t *testing.T) {
			r := newDeltaRig(t, p, 1<<30)
			r.base(t, "old", old)
			f := r.put(t, "new", update(old))
			if p == mover.Clear { // nobody reads its blocks but who makes them
				f.Digest = digest.Digest{}
			}
			sent := r.move(t, f)
			r.came(t, f)
			if sent > deltaMost {
				t.Errorf("%d bytes were sent, want at most %d", sent, deltaMost)
			}
			r.stop() // no link is left
			fds, _ := filepath.Glob("/proc/self/fd/*")
			for _, fd := range fds {
				if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, filepath.Join(r.rig.Destination, boxDir)+"/") {
					t.Errorf("%s is lent still", name)
				}
			}
		})
	}
}

// TestAnUpdateAcrossARestart has the receiver know its bases again.
func TestAnUpdateAcrossARestart(t *testing.T) {
	old := noise(1, deltaSize)
	r := newDeltaRig(t, mover.Private, 1<<30)
	r.base(t, "old", old)
	r.restart(t)
	r.indexed(t)
	f := r.put(t, "new", update(old))
	if sent := r.move(t, f); sent > deltaMost {
		t.Errorf("%d bytes were sent, want at most %d", sent, deltaMost)
	}
	r.came(t, f)
}

func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	b[0] ^= 1
	if _, werr := f.WriteAt(b, at); errors.Join(err, werr) != nil {
		t.Fatal(err, werr)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// TestABaseThatIsNotWhatItWas rots, or is removed, after its chunks were promised.
func TestABaseThatIsNotWhatItWas(t *testing.T) {
	old := noise(1, deltaSize)
	for name, c := range map[string]struct {
		harm func(t *testing.T, base string)
		most int64
	}{
		"one byte":         {func(t *testing.T, base string) { flip(t, base, 4<<20) }, deltaMost + 2*mover.BlockSize + 64<<10},
		"it is removed":    {remove, deltaMost + deltaSize},
		"it is cut short":  {func(t *testing.T, base string) { truncate(t, base, 3<<20) }, deltaMost + deltaSize/2 + 2*mover.BlockSize},
		"all is otherwise": {func(t *testing.T, base string) { overwrite(t, base, noise(9, deltaSize)) }, deltaMost + deltaSize},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDeltaRig(t, mover.Private, 1<<30)
			base := r.base(t, "old", old)
			c.harm(t, filepath.Join(r.rig.Destination, boxDir, nameInBox(base)))
			f := r.put(t, "new", update(old))
			if sent := r.move(t, f); sent > c.most {
				t.Errorf("%d bytes were sent, want at most %d", sent, c.most)
			}
			r.came(t, f)
		})
	}
}

func truncate(t *testing.T, name string, n int64) {
	t.Helper()
	if err := os.Truncate(name, n); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, name string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); errors.Join(err, f.Close()) != nil {
		t.Fatal(err)
	}
}

// TestConformancePacked has each file compressed, and its chunks told to a receiver with a base.
func TestConformancePacked(t *testing.T) {
	movertest.Run(t, func(t *testing.T) movertest.Rig {
		r := newDeltaRig(t, mover.Private, 1<<30)
		f := r.base(t, "base", noise(5, minOffer*mover.BlockSize))
		remove(t, filepath.Join(r.rig.Source, f.Name))
		r.rig.Engine.(*Engine).compressAll, r.rig.Text = true, true
		return r.rig
	})
}

func TestAnUpdateIsResumed(t *testing.T) {
	old := noise(1, deltaSize)
	r := newDeltaRig(t, mover.Private, 1<<30)
	r.base(t, "old", old)
	f := r.put(t, "new", update(old))
	req := r.request(t, f)
	before := r.wires.sent.Load()
	once := false
	err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
		if p.Moved > 0 && !once {
			once = true
			r.wires.cut()
		}
	})
	if !once {
		t.Fatal("nothing was reported")
	}
	if err != nil {
		if err := r.rig.Engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	r.came(t, f)
	if sent := r.wires.sent.Load() - before; sent > 2*deltaMost+2*mover.BlockSize {
		t.Errorf("%d bytes were sent, want at most %d", sent, 2*deltaMost+2*mover.BlockSize)
	}
}

// TestNothingIsCutForNothing holds when a file's chunks are not told.
func TestNothingIsCutForNothing(t *testing.T) {
	old := noise(1, 5<<20)
	for name, c := range map[string]struct {
		keep int64
		base bool
		told bool
	}{
		"bases":        {1 << 30, true, true},
		"no bases yet": {1 << 30, false, false},
		"off":          {0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDeltaRig(t, mover.Private, c.keep)
			if c.base {
				r.base(t, "old", old)
			}
			f := r.put(t, "again", old)
			if sent := r.move(t, f); (sent < f.Size/2) != c.told {
				t.Errorf("%d bytes were sent for %d", sent, f.Size)
			}
			r.came(t, f)
		})
	}
}

func TestANearPathIsOfferedNothing(t *testing.T) {
	for rtt, want := range map[time.Duration]bool{near - 1: false, near: true} {
		l := &link{engine: new(Engine), rtt: rtt, limit: mover.Unlimited}
		if got := l.worthOffering(&outgoing{left: minOffer}); got != want {
			t.Errorf("at %v: %v", rtt, got)
		}
		if l.worthOffering(&outgoing{left: minOffer - 1}) {
			t.Errorf("at %v: a file of which next to nothing is left", rtt)
		}
		if l.limit = 40e6; !l.worthOffering(&outgoing{left: minOffer}) {
			t.Errorf("at %v, with a limit: nothing is offered", rtt)
		}
	}
}

// TestBasesMakeRoom holds that those that were used last are kept, as many as may be, and
// that an arrival is not refused for their sake.
func TestBasesMakeRoom(t *testing.T) {
	const size = 5 << 20
	r := newDeltaRig(t, mover.Private, 2*size+1)
	one := r.base(t, "one", noise(1, size))
	r.base(t, "two", noise(2, size))
	r.base(t, "one again", noise(1, size)) // the same content is one base, and was used
	three := r.base(t, "three", noise(3, size))
	want := []string{nameInBox(one), nameInBox(three)}
	slices.Sort(want)
	if got := r.box(t); !slices.Equal(got, want) {
		t.Fatalf("%v are kept, not %v", got, want)
	}
	if got := r.recv().Spare(); got != 2*size {
		t.Errorf("%d bytes are to spare, want %d", got, 2*size)
	}

	r.opts.Free = func() (int64, error) { // all but the last base would leave too little
		return 3*size + 1 - int64(len(r.box(t)))*size, nil
	}
	r.restart(t)
	r.indexed(t)
	f := r.put(t, "big", noise(4, 2*size))
	r.move(t, f)
	r.came(t, f)
	if got := r.box(t); !slices.Equal(got, []string{nameInBox(three)}) {
		t.Errorf("%v are kept, not the one that was used last", got)
	}

	r.stop()
	r.opts.Delta = 0
	r.start(t, r.rig.Address)
	if got := r.box(t); len(got) != 0 {
		t.Errorf("%v are kept, and nothing is to be", got)
	}
}

func TestWhatIsNoBase(t *testing.T) {
	r := newDeltaRig(t, mover.Private, 6<<20)
	small, big, half := r.put(t, "small", noise(1, 1000)), r.put(t, "big", noise(2, 7<<20)), r.put(t, "half", noise(3, 5<<20))
	r.move(t, small)
	r.move(t, big)
	s, _ := r.open(t, r.request(t, half), "s")
	s.send(s.block(0))
	for _, f := range []mover.File{small, big, half} {
		if err := r.recv().Drop(mover.Inbox + "/" + filepath.Base(f.Name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.box(t); len(got) != 0 {
		t.Errorf("%v are kept", got)
	}
}

// chunksOf is the list of b's chunks, and where each begins.
func chunksOf(t *testing.T, b []byte) (list []byte) {
	t.Helper()
	for c, err := range delta.Cut(bytes.NewReader(b)) {
		if err != nil {
			t.Fatal(err)
		}
		list = c.AppendTo(list)
	}
	return list
}

// TestBasesGiveWayToWhatIsPromised holds it for what is written without asking for room.
func TestBasesGiveWayToWhatIsPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		r.opts.Delta, r.opts.Free = 1<<30, func() (int64, error) { return 10 << 20, nil }
		r.start(t, "")
		r.base(t, "old", noise(1, 5<<20))
		time.Sleep(time.Minute)
		if n := len(r.box(t)); n != 1 {
			t.Errorf("%d bases where there is room, want 1", n)
		}
		recv := r.recv()
		recv.admin.Lock()
		_, err := recv.begin(record{File: mover.File{Name: mover.Inbox + "/new", Size: 20 << 20}})
		recv.admin.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(r.box(t)); n != 0 || err != nil {
			t.Errorf("%d bases where their room is promised, want none: %v", n, err)
		}
		r.stop()
	})
}

// TestASenderThatLies tells chunks of a file that it has not.
func TestASenderThatLies(t *testing.T) {
	old := noise(1, 5<<20)
	r := newDeltaRig(t, mover.Private, 1<<30)
	r.base(t, "old", old)
	f := r.put(t, "new", noise(2, 5<<20))
	s, a := r.open(t, r.request(t, f), "s")
	if !a.Bases {
		t.Fatal("the receiver has no bases")
	}
	list := chunksOf(t, old) // not f's
	write(t, s.control, append(header{kindChunks, 1, 0, uint32(len(list))}.bytes(), list...))
	h, err := readHeader(s.control)
	for err == nil && h.kind == kindBusy {
		h, err = readHeader(s.control)
	}
	had, err2 := readHad(s.control, h.length)
	if errors.Join(err, err2) != nil || h.kind != kindHad || !had.has(0) {
		t.Fatalf("the receiver says %+v, %v: %v, %v", h, had, err, err2)
	}
	for i := range uint32(5) {
		block := noise(2, 5<<20)[blockStart(i):][:mover.BlockSize]
		if h := s.send(s.packed(i, pack(nil, block, nil))); h.kind != kindAgain {
			t.Fatalf("a block of wrong chunks: %+v", h)
		}
		if h := s.send(s.packed(i, pack(nil, block, block[:100]))); h.kind != kindAgain {
			t.Fatalf("a block of which 100 bytes come: %+v", h)
		}
		if i == 4 {
			break
		}
		if h := s.send(s.block(i)); h.kind != kindProven {
			t.Fatalf("the block as it is: %+v", h)
		}
	}
	if a := s.last(4); !a.Done {
		t.Errorf("the end: %+v", a)
	}
	r.came(t, f)
}

func TestListsOfChunksAreBounded(t *testing.T) {
	chunk := func(n uint32) []byte { return delta.Chunk{Len: n}.AppendTo(nil) }
	for name, list := range map[string][]byte{
		"too many":     make([]byte, maxOffer+delta.RecordSize),
		"torn":         chunk(1)[1:],
		"empty":        chunk(0),
		"too long":     chunk(delta.Max + 1),
		"too short":    chunk(delta.Min - 1),
		"past its end": bytes.Repeat(chunk(delta.Max), 5<<20/delta.Max+1),
	} {
		t.Run(name, func(t *testing.T) {
			r := newDeltaRig(t, mover.Private, 1<<30)
			r.base(t, "old", noise(1, 5<<20))
			s, _ := r.open(t, r.request(t, r.put(t, "new", noise(2, 5<<20))), "s")
			_, _ = s.control.Write(append(header{kindChunks, 1, 0, uint32(len(list))}.bytes(), list...)) // the receiver may end it before all is written
			for {
				h, err := readHeader(s.control)
				if err != nil {
					return
				}
				if h.kind != kindBusy {
					t.Fatalf("the receiver says %+v", h)
				}
			}
		})
	}
}

// TestAReceiverThatLies says that it has all chunks, and can make no block of them.
func TestAReceiverThatLies(t *testing.T) {
	const blocks = 6
	synctest.Test(t, func(t *testing.T) {
		r := newPipeRig(t)
		r.rig.Engine.(*Engine).offerAll = true
		f := r.put(t, "image", noise(1, blocks<<20))
		whole := map[uint32]bool{}
		r.play(t, script{
			greet: answer{Bases: true},
			chunks: func(h header, w *control) error {
				had := bytes.Repeat([]byte{0xff}, int(h.length)/delta.RecordSize/8+1)
				return w.write(append(header{kindHad, 1, h.index, uint32(len(had))}.bytes(), had...))
			},
			block: func(_ int, h header, w *control) error {
				if h.kind == kindPacked && h.length < mover.BlockSize/2 {
					return w.say(kindAgain, h.index)
				}
				whole[h.index] = true
				if err := w.say(kindProven, h.index); err != nil || len(whole) < blocks {
					return err
				}
				return w.done()
			},
		})
		if err := r.moves(t, f, 1); err != nil || len(whole) != blocks {
			t.Errorf("%d blocks of %d came whole, %v", len(whole), blocks, err)
		}
	})
}

// TestAnswersForChunksThatWereNotTold end the link.
func TestAnswersForChunksThatWereNotTold(t *testing.T) {
	for name, greet := range map[string]answer{"without bases": {}, "too many": {Bases: true}} {
		synctest.Test(t, func(t *testing.T) {
			r := newPipeRig(t)
			r.rig.Engine.(*Engine).offerAll = greet.Bases
			f := r.put(t, "image", noise(1, 5<<20))
			had := func(w *control) error { return w.write(header{kindHad, 1, 0, 0}.bytes()) }
			r.play(t, script{
				greet:  greet,
				chunks: func(_ header, w *control) error { return errors.Join(had(w), had(w)) },
				block:  func(_ int, _ header, w *control) error { return had(w) },
			})
			if err := r.moves(t, f, 1); err == nil || !strings.Contains(err.Error(), "chunks") {
				t.Errorf("%s: got %v", name, err)
			}
		})
	}
}

// TestAnOfferPays holds when a sender goes on to tell chunks.
func TestAnOfferPays(t *testing.T) {
	for name, c := range map[string]struct {
		told, had   int64
		speed, pace float64
		want        bool
	}{
		"at its beginning":     {0, 0, 0, 0, true},
		"nothing yet":          {offerFirst - 1, 0, 1e9, 1e8, true},
		"nothing for long":     {offerFirst, offerFirst/16 - 1, 1e9, 1e8, false},
		"something":            {offerFirst, offerFirst / 16, 1e9, 1e8, true},
		"a path that is fast":  {1, 1, 1e9, 2e9, false},
		"as fast as it is cut": {1, 1, 1e9, 1e9, false},
		"a path not yet known": {1, 1, 1e9, 0, true},
	} {
		o := newOffer(1)
		o.next, o.bytes = c.told, c.had
		for range maxOutrun - 1 {
			o.pays(c.speed, c.pace)
		}
		if got := o.pays(c.speed, c.pace); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if o.next < offerFirst && (!o.pays(1e9, 1e8) || !o.pays(c.speed, c.pace)) {
			t.Errorf("%s: a path that was fast for a moment", name)
		}
	}
}

// TestARelayLendsNothing has it told chunks that it did not ask for.
func TestARelayLendsNothing(t *testing.T) {
	data := noise(1, 5<<20)
	r := newDeltaRig(t, mover.Private, 1<<30)
	r.base(t, "old", data)
	ours, theirs := net.Pipe()
	defer ours.Close()
	var telling sync.WaitGroup
	defer telling.Wait()
	c := tls.Client(ours, &tls.Config{Certificates: []tls.Certificate{r.issue(t, "A", pki.DTN)}, RootCAs: r.ca.Pool(), ServerName: "127.0.0.1"})
	list := chunksOf(t, data)
	telling.Go(func() { _, _ = c.Write(list) })
	l := newIncoming(t.Context(), r.recv(), tls.Server(theirs, serverTLS(r.ca, r.issue(t, "B", pki.DTN))), "l", "A", mover.Private)
	l.files[1] = &arrival{record: record{File: mover.File{Size: int64(len(data))}}, relayed: true}
	n := uint32(len(list) / delta.RecordSize)
	if err := l.chunks(header{kindChunks, 1, 0, uint32(len(list))}); err != nil {
		t.Fatal(err)
	}
	want := append(header{kindHad, 1, 0, uint32(len(newBitmap(n)))}.bytes(), newBitmap(n)...)
	if !bytes.Equal(l.say.text, want) || len(l.loans) != 0 {
		t.Errorf("it lends %v, and says %x", l.loans, l.say.text)
	}
}
