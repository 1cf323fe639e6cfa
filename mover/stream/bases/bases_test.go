package bases

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/delta"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// size is that of most bases here.
const size = 1 << 20

// noise returns n bytes of which no chunk is another's.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = mathrand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// shelf is an export with a Box.
type shelf struct {
	*Box
	export, state string
	changed       chan struct{}
}

func newShelf(t testing.TB) *shelf {
	s := &shelf{export: t.TempDir(), state: t.TempDir(), changed: make(chan struct{}, 1)}
	if err := os.Mkdir(filepath.Join(s.export, mover.Inbox), 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

// open opens the box anew.
func (s *shelf) open(t testing.TB, o Options) {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	o.Changed = func() {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
	var err error
	if s.Box, err = Open(roottest.Open(t, s.export), roottest.Open(t, s.state), o); err != nil {
		t.Fatal(err)
	}
}

// run has the box tended until the returned function is called.
func (s *shelf) run(t testing.TB, promised func() int64) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx, promised) })
	return func() { cancel(); running.Wait() }
}

func nothing() int64 { return 0 }

// index runs the box until all bases have an index.
func (s *shelf) index(t testing.TB) {
	t.Helper()
	stop := s.run(t, nothing)
	defer stop()
	for s.unindexed() != nil {
		select {
		case <-s.changed:
		case <-t.Context().Done():
			t.Fatal("no index was made")
		}
	}
}

// take puts b into the inbox and has the box take it. It returns its name in the box.
func (s *shelf) take(t testing.TB, b []byte) string {
	t.Helper()
	f := mover.File{Name: mover.Inbox + "/image", Size: int64(len(b))}
	if err := os.WriteFile(filepath.Join(s.export, f.Name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	h, _ := digest.New("sha512")
	h.Write(b)
	f.Digest = digest.Of("sha512", h)
	if err := s.Take(f); err != nil {
		t.Fatal(err)
	}
	return f.Digest.Algo + "-" + f.Digest.Value
}

// names are those of the bases.
func (s *shelf) names(t testing.TB) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.export, boxDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), indexSuffix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// chunks returns those of b.
func chunks(t testing.TB, b []byte) (all []delta.Chunk) {
	t.Helper()
	for c, err := range delta.Cut(bytes.NewReader(b)) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// found is how many of b's chunks a new loan has.
func (s *shelf) found(t testing.TB, b []byte) (n int) {
	t.Helper()
	l := s.Lend(int64(len(b)))
	defer l.Close()
	if err := l.Tell(chunks(t, b), func(uint32) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAFileIsMadeOfABase has bytes put in, and some taken out, of which the rest moves.
func TestAFileIsMadeOfABase(t *testing.T) {
	s, old := newShelf(t), noise(1, size)
	s.open(t, Options{Keep: size})
	s.take(t, old)
	if s.Any() || s.found(t, old) > 0 {
		t.Error("a base without an index is lent")
	}
	s.index(t)
	file := slices.Concat(old[:300_000], noise(2, 1000), old[300_000:700_000], old[800_000:])
	l := s.Lend(int64(len(file)))
	defer l.Close()
	var known delta.Spans
	at, all := int64(0), chunks(t, file)
	has := map[uint32]bool{}
	for part := range slices.Chunk(all, 7) {
		if err := l.Tell(part, func(i uint32) { has[i] = true }); err != nil {
			t.Fatal(err)
		}
		for i, c := range part {
			if has[uint32(i)] {
				known.Add(at, int64(c.Len))
			}
			at += int64(c.Len)
		}
		clear(has)
	}
	came := 0
	for off := 0; off < len(file); off += 256 << 10 {
		want := file[off:min(off+256<<10, len(file))]
		block := make([]byte, len(want))
		literal := delta.Join(nil, want, int64(off), known.Missing(int64(off), int64(len(want))))
		came += copy(block, literal)
		if err := l.Fill(block, int64(off), len(literal)); err != nil || !bytes.Equal(block, want) {
			t.Fatalf("the block at %d is another: %v", off, err)
		}
	}
	if came > 1000+6*delta.Max {
		t.Errorf("%d bytes of %d came, and 1000 are new", came, len(file))
	}
	block := make([]byte, 1000)
	if err := (*Loan)(nil).Fill(block, 0, 0); err == nil {
		t.Error("a block was made of no loan")
	}
	if err := s.Lend(size).Fill(block, 0, 0); err == nil {
		t.Error("a block was made of chunks that were not told")
	}
}

func TestChunksThatAreNoFilesAreRefused(t *testing.T) {
	s := newShelf(t)
	s.open(t, Options{Keep: size})
	for name, list := range map[string][]delta.Chunk{
		"too short": {{Len: delta.Min - 1}, {Len: delta.Max}},
		"too long":  slices.Repeat([]delta.Chunk{{Len: delta.Max}}, size/delta.Max+1),
	} {
		l := s.Lend(size)
		if err := l.Tell(list, func(uint32) { t.Errorf("%s: it is found", name) }); err == nil {
			t.Errorf("%s: it was taken", name)
		}
		l.Close()
		l.Close() // once more is nothing
	}
}

// TestTheBoxAfterARestart has a process find what another one has left.
func TestTheBoxAfterARestart(t *testing.T) {
	old := noise(1, size)
	for name, c := range map[string]struct {
		change func(t *testing.T, index, key string) error
		anew   bool // the index is made
	}{
		"untouched": {func(*testing.T, string, string) error { return nil }, false},
		"the index is another's": {func(t *testing.T, index, _ string) error {
			b, err := os.ReadFile(index)
			if err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(index, b, 0o600)
			}
			return err
		}, true},
		"the index is gone": {func(_ *testing.T, index, _ string) error { return os.Remove(index) }, true},
		"the key is gone":   {func(_ *testing.T, _, key string) error { return os.Remove(key) }, true},
		"an index of a crash": {func(_ *testing.T, index, _ string) error {
			return os.WriteFile(filepath.Dir(index)+"/."+filepath.Base(index)+".tmp", nil, 0o600)
		}, false},
		"an index without a base": {func(_ *testing.T, index, _ string) error {
			return os.WriteFile(filepath.Dir(index)+"/sha512-00"+indexSuffix, nil, 0o600)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			s.open(t, Options{Keep: size})
			index := filepath.Join(s.export, boxDir, s.take(t, old)+indexSuffix)
			s.index(t)
			long := time.Unix(1, 0)
			if err := errors.Join(os.Chtimes(index, long, long), c.change(t, index, filepath.Join(s.state, keyName))); err != nil {
				t.Fatal(err)
			}
			s.open(t, Options{Keep: size})
			s.index(t)
			if n := s.found(t, old); n != len(chunks(t, old)) {
				t.Errorf("%d chunks of %d are found", n, len(chunks(t, old)))
			}
			after, err := os.Stat(index)
			if err != nil || after.ModTime().Equal(long) == c.anew {
				t.Errorf("the index is of %v, %v", after.ModTime(), err)
			}
			if entries, err := os.ReadDir(filepath.Dir(index)); err != nil || len(entries) != 2 {
				t.Errorf("%v in the box, %v", entries, err)
			}
		})
	}
}

// TestThoseUsedLastStay fills the box beyond what is to be kept, and needs its room.
func TestThoseUsedLastStay(t *testing.T) {
	s := newShelf(t)
	free := func() (int64, error) { return 3*size - int64(len(s.names(t)))*size, nil }
	s.open(t, Options{Keep: 2*size + 1, Free: free})
	one, _ := s.take(t, noise(1, size)), s.take(t, noise(2, size))
	if s.take(t, noise(1, size)) != one { // the same content is one base, and was used
		t.Error("the same content has two names")
	}
	if err := os.Remove(filepath.Join(s.export, mover.Inbox, "image")); err != nil {
		t.Errorf("a file that is no base was not left: %v", err)
	}
	three := s.take(t, noise(3, size))
	want := []string{one, three}
	slices.Sort(want)
	if got := s.names(t); !slices.Equal(got, want) || s.Size() != 2*size {
		t.Fatalf("%v are kept, %d bytes, not %v", got, s.Size(), want)
	}
	s.take(t, noise(4, 2*size+2))
	if got := s.names(t); !slices.Equal(got, want) {
		t.Errorf("%v are kept when one came that is too large, not %v", got, want)
	}
	if err := s.MakeRoom(size); err != nil || len(s.names(t)) != 2 {
		t.Errorf("%v are kept where there is room, %v", s.names(t), err)
	}
	s.open(t, Options{Keep: 2*size + 1, Free: free}) // and they are known in this order
	if err := s.MakeRoom(2 * size); err != nil || !slices.Equal(s.names(t), []string{three}) || s.Size() != size {
		t.Errorf("%v are kept, not the one that was used last; %v", s.names(t), err)
	}
	s.open(t, Options{})
	if got := s.names(t); len(got) > 0 || s.Any() || s.Size() > 0 {
		t.Errorf("%v are kept, and nothing is to be", got)
	}
}

// TestBasesGiveWayToWhatIsPromised holds it for what is written without asking for room.
func TestBasesGiveWayToWhatIsPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, promised := newShelf(t), new(atomic.Int64)
		s.open(t, Options{Keep: size, Free: func() (int64, error) { return size, nil }})
		s.take(t, noise(1, size))
		stop := s.run(t, promised.Load)
		defer stop()
		time.Sleep(tidyEvery)
		synctest.Wait()
		if n := len(s.names(t)); n != 1 {
			t.Errorf("%d bases where there is room, want 1", n)
		}
		promised.Store(size + 1)
		time.Sleep(tidyEvery)
		synctest.Wait()
		if n := len(s.names(t)); n != 0 {
			t.Errorf("%d bases where their room is promised, want none", n)
		}
	})
}

// TestACatalogThatNobodyNeedsIsGivenUp a while after the last loan.
func TestACatalogThatNobodyNeedsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t)
		s.open(t, Options{Keep: size})
		s.take(t, noise(1, size))
		stop := s.run(t, nothing)
		defer stop()
		synctest.Wait()
		there := func() bool {
			time.Sleep(2*tidyEvery + time.Second)
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.catalog != nil
		}
		l := s.Lend(size)
		if !there() {
			t.Error("a catalog that is lent is not in memory")
		}
		l.Close()
		if there() {
			t.Error("a catalog that nobody needs is in memory still")
		}
	})
}

// FuzzFill holds that a block is made of what came and what bases have.
func FuzzFill(f *testing.F) {
	f.Add([]byte{3, 1, 250, 0, 9, 1}, uint16(2), uint16(200))
	f.Fuzz(func(t *testing.T, steps []byte, off, n uint16) {
		root := roottest.Open(t, t.TempDir())
		file, have := noise(1, 4096), noise(2, 4096)
		if int(off)+int(n) > len(file) {
			t.Skip()
		}
		b := &Box{export: root}
		from := &Loan{from: b, files: map[*base]*os.File{}, told: int64(len(file)), size: int64(len(file))}
		one := &base{name: "base"}
		at, in := int64(0), int64(0)
		for i := 0; i+1 < len(steps) && at < 4096-256 && in < 4096-512; i += 2 {
			k := int64(steps[i])
			if steps[i+1]%2 == 1 && k > 0 {
				in += int64(steps[i+1])
				copy(have[in:], file[at:at+k])
				from.add(at, k, one, in)
				in += k
			}
			at += k
		}
		if err := root.WriteFile("base", have, 0o600); err != nil {
			t.Fatal(err)
		}
		want := file[off:][:n]
		block := make([]byte, n)
		literal := delta.Join(nil, want, int64(off), from.spans.Missing(int64(off), int64(n)))
		copy(block, literal)
		if err := from.Fill(block, int64(off), len(literal)); err != nil || !bytes.Equal(block, want) {
			t.Fatalf("the block is another, %v", err)
		}
		if n > 0 && from.Fill(block, int64(off), len(literal)+1) == nil {
			t.Error("a byte too much is taken")
		}
		from.closed = true
		for _, f := range from.files {
			f.Close()
		}
	})
}

// TestLoansShareWhatIsOpen has two files be made of one base, which is removed meanwhile.
func TestLoansShareWhatIsOpen(t *testing.T) {
	s, old := newShelf(t), noise(1, size)
	s.open(t, Options{Keep: size, Free: func() (int64, error) { return 0, nil }})
	s.take(t, old)
	s.index(t)
	f, block := s.all[0], make([]byte, size)
	loans := []*Loan{s.Lend(size), s.Lend(size)}
	for i, l := range loans {
		if err := errors.Join(l.Tell(chunks(t, old), func(uint32) {}), l.Fill(block, 0, 0)); err != nil {
			t.Fatal(err)
		}
		if l.files[f] != loans[0].files[f] || f.users != i+1 {
			t.Errorf("%d loans have opened the base, and %d use what is open", i+1, f.users)
		}
	}
	if err := s.MakeRoom(1); err != nil || len(s.names(t)) > 0 {
		t.Fatalf("%v are there still, %v", s.names(t), err)
	}
	for _, l := range loans {
		if err := l.Fill(block, 0, 0); err != nil || !bytes.Equal(block, old) {
			t.Errorf("the block is another: %v", err)
		}
		l.Close()
	}
	if f.file != nil {
		t.Error("the base is open after the last loan")
	}
}

// TestIndexesAreReadWhileOthersGoOn has the disk take its time with an index.
func TestIndexesAreReadWhileOthersGoOn(t *testing.T) {
	s := newShelf(t)
	s.open(t, Options{Keep: size})
	index := filepath.Join(s.export, boxDir, s.take(t, noise(1, size))+indexSuffix)
	s.index(t)
	if err := errors.Join(os.Remove(index), syscall.Mkfifo(index, 0o600)); err != nil {
		t.Fatal(err)
	}
	lent := make(chan *Loan)
	go func() { lent <- s.Lend(size) }()
	slow, err := os.OpenFile(index, os.O_WRONLY, 0) // once it is being read
	if err != nil {
		t.Fatal(err)
	}
	if !s.Any() || s.Size() == 0 {
		t.Error("there is no base")
	}
	if err := slow.Close(); err != nil {
		t.Fatal(err)
	}
	(<-lent).Close()
}

// TestALoanSeesWhatChangedDuringTheOneBefore has a base come, and one go, while something
// is lent.
func TestALoanSeesWhatChangedDuringTheOneBefore(t *testing.T) {
	s := newShelf(t)
	s.open(t, Options{Keep: 2 * size, Free: func() (int64, error) { return int64(2-len(s.names(t))) * size, nil }})
	s.take(t, noise(1, size))
	s.index(t)
	known := func(l *Loan) int { return len(l.catalog.bases) }
	first := s.Lend(size)
	s.take(t, noise(2, size))
	s.index(t)
	second := s.Lend(size)
	if known(first) != 1 || known(second) != 1 {
		t.Errorf("loans at the same time know %d and %d bases, want the same", known(first), known(second))
	}
	first.Close()
	second.Close()
	third := s.Lend(size)
	err := s.MakeRoom(size)
	third.Close()
	fourth := s.Lend(size)
	defer fourth.Close()
	if err != nil || known(third) != 2 || known(fourth) != 1 {
		t.Errorf("the next loans know %d bases, and %d when one has gone, want 2 and 1; %v", known(third), known(fourth), err)
	}
}
