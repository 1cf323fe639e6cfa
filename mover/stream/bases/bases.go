// Package bases keeps files that are not needed any more, as bases: others are made of their
// chunks, so that these need not come over the network again.
package bases

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/delta"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// The export's box of bases:
//
//	bases/ALGO-HEX        a file with that digest
//	bases/ALGO-HEX.index  its chunks, sealed with this DTN's key
//
// The key is in the state directory. Without it, or with another one, indexes are made
// anew. Nothing in the box is needed, and nothing in it is trusted: what is taken from it
// is compared with the sender's digest of the block.
const (
	boxDir      = "bases"
	keyName     = "bases.key"
	indexSuffix = ".index"
)

// tidyEvery is how often the box is made to leave the export what others need.
const tidyEvery = 30 * time.Second

// Options are what a Box needs to know. Neither of its functions calls the Box.
type Options struct {
	Keep    int64                 // bytes of files in the box; their indexes are a 800th of it. 0: none is kept
	Free    func() (int64, error) // on the export; nil: no limit
	Changed func()                // called when there is one more base with an index
	Log     *slog.Logger
}

// Box is an export's bases. Those that were used last stay for longest.
type Box struct {
	export *os.Root
	opts   Options
	key    []byte
	found  chan struct{} // has a value when there may be a base without an index

	some    atomic.Bool // there is a base to take something from
	reading sync.Mutex  // held while indexes are read; taken before mu

	mu      sync.Mutex // guards what follows
	all     []*base    // the one that was used last is the last
	lent    int        // loans
	catalog *catalog   // of all that had an index when it was read: for the loans, and for a while after the last
	old     bool       // other bases can be lent by now than are in it
	rested  bool       // nothing was lent when that was looked at last, nor since
}

// base is a file in the box.
type base struct {
	name    string
	size    int64
	indexed bool
	file    *os.File // open while loans take from it
	users   int      // those loans
}

// Open reads what is in the box on export, to which the key in state belongs. With nothing
// to keep, it empties the box.
func Open(export, state *os.Root, o Options) (*Box, error) {
	b := &Box{export: export, opts: o, found: make(chan struct{}, 1)}
	if o.Keep == 0 {
		return b, emptyBox(export)
	}
	if err := export.MkdirAll(boxDir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if b.key, err = readKey(state); err != nil {
		return nil, err
	}
	if err := b.load(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b, b.shrink(o.Keep)
}

func emptyBox(export *os.Root) error {
	entries, err := fs.ReadDir(export.FS(), boxDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, export.Remove(boxDir+"/"+e.Name()))
	}
	return errors.Join(err, export.Remove(boxDir))
}

// readKey returns the key that indexes are sealed with, a new one if there is none.
func readKey(state *os.Root) ([]byte, error) {
	key, err := state.ReadFile(keyName)
	if err == nil && len(key) == 32 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key = make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return key, durable.WriteFile(state, keyName, key, 0o600)
}

func (b *Box) load() error {
	entries, err := fs.ReadDir(b.export.FS(), boxDir)
	if err != nil {
		return err
	}
	used := map[*base]time.Time{}
	for _, e := range entries {
		name := boxDir + "/" + e.Name()
		file, isIndex := strings.CutSuffix(name, indexSuffix)
		info, err := b.export.Lstat(file)
		switch {
		case durable.IsTemp(name) || isIndex && errors.Is(err, fs.ErrNotExist):
			err = durable.Remove(b.export, name)
		case err == nil && !isIndex && info.Mode().IsRegular():
			f := &base{name: name, size: info.Size()}
			b.all, used[f] = append(b.all, f), info.ModTime()
		}
		if err != nil {
			return err
		}
	}
	slices.SortFunc(b.all, func(x, y *base) int { return used[x].Compare(used[y]) })
	b.look()
	return nil
}

// look has run look for bases without an index.
func (b *Box) look() {
	select {
	case b.found <- struct{}{}:
	default:
	}
}

// Run makes the indexes of new bases, and has the box leave the export its reserve, and what
// is promised to others: a relay takes its room unasked. It ends when ctx is done.
func (b *Box) Run(ctx context.Context, promised func() int64) {
	if b.opts.Keep == 0 {
		return
	}
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.rest()
			if err := b.MakeRoom(promised()); err != nil {
				b.opts.Log.Warn("space is not freed", "folder", boxDir, "err", err)
			}
		case <-b.found:
			for f := b.unindexed(); f != nil && ctx.Err() == nil; f = b.unindexed() {
				if err := b.index(ctx, f); err != nil && ctx.Err() == nil {
					b.mu.Lock()
					err = errors.Join(err, b.remove(f))
					b.mu.Unlock()
					b.opts.Log.Warn("base removed: no index can be made of it", "file", f.name, "err", err)
				}
			}
		}
	}
}

// rest gives up a catalog that nobody has needed since the last time.
func (b *Box) rest() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lent == 0 && b.rested {
		b.catalog = nil
	}
	b.rested = b.lent == 0
}

// unindexed returns a base without its index, of which nothing is lent; nil: there is none.
func (b *Box) unindexed() *base {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.all {
		if !f.indexed {
			return f
		}
	}
	return nil
}

// index makes the index of f, unless it has one.
func (b *Box) index(ctx context.Context, f *base) error {
	if _, err := b.readIndex(f); err != nil {
		file, err := b.export.Open(f.name)
		if err != nil {
			return err
		}
		defer file.Close()
		x := delta.Index{File: strings.TrimPrefix(f.name, boxDir+"/"), Size: f.size}
		for c, err := range delta.Cut(file) {
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			x.Chunks = append(x.Chunks, c)
		}
		if err := durable.WriteFile(b.export, f.name+indexSuffix, x.Seal(b.key), 0o600); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f.indexed = true
	b.stale()
	b.opts.Changed()
	return nil
}

func (b *Box) readIndex(f *base) (delta.Index, error) {
	sealed, err := b.export.ReadFile(f.name + indexSuffix)
	if err != nil {
		return delta.Index{}, err
	}
	x, err := delta.Unseal(sealed, b.key)
	if err == nil && (x.File != strings.TrimPrefix(f.name, boxDir+"/") || x.Size != f.size) {
		err = fmt.Errorf("%s: it is the index of another file, %s", f.name, x.File)
	}
	return x, err
}

// Take makes a base of a file of the export that is not needed any more, unless it is too
// large, or the box has the content: then it is left where it is.
func (b *Box) Take(f mover.File) error {
	name := boxDir + "/" + f.Digest.Algo + "-" + f.Digest.Value
	if f.Size > b.opts.Keep || f.Digest.IsZero() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.IndexFunc(b.all, func(g *base) bool { return g.name == name }); i >= 0 {
		b.use(b.all[i])
		return nil
	}
	if err := b.shrink(b.opts.Keep - f.Size); err != nil {
		return err
	}
	if err := errors.Join(b.export.Rename(f.Name, name), durable.SyncDir(b.export, path.Dir(f.Name))); err != nil {
		return err
	}
	g := &base{name: name, size: f.Size}
	b.all = append(b.all, g)
	b.use(g)
	b.look()
	return nil
}

// use makes f the base that was used last. The caller holds mu.
func (b *Box) use(f *base) {
	if i := slices.Index(b.all, f); i >= 0 {
		b.all = append(slices.Delete(b.all, i, i+1), f)
		now := time.Now()
		_ = b.export.Chtimes(f.name, now, now) // at worst it goes too early
	}
}

// shrink removes bases until what is there takes no more than that. The caller holds mu.
func (b *Box) shrink(most int64) error {
	for len(b.all) > 0 && b.size() > most {
		if err := b.remove(b.all[0]); err != nil {
			return err
		}
	}
	return nil
}

// size is what the bases take. The caller holds mu.
func (b *Box) size() int64 {
	var n int64
	for _, f := range b.all {
		n += f.size
	}
	return n
}

// remove removes a base. Who reads it reads on. The caller holds mu.
func (b *Box) remove(f *base) error {
	b.all = slices.DeleteFunc(b.all, func(g *base) bool { return g == f })
	b.stale()
	return errors.Join(durable.Remove(b.export, f.name), durable.Remove(b.export, f.name+indexSuffix))
}

// MakeRoom removes bases until there are as many bytes free on the export as that.
func (b *Box) MakeRoom(need int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.all) > 0 && b.opts.Free != nil {
		free, err := b.opts.Free()
		if err != nil || free >= need {
			return err
		}
		b.opts.Log.Info("base removed for its space", "file", b.all[0].name, "bytes", b.all[0].size)
		if err := b.remove(b.all[0]); err != nil {
			return err
		}
	}
	return nil
}

// Size is what the bases take, and MakeRoom can free.
func (b *Box) Size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size()
}

// Any reports whether there is a base to take something from. It waits for nothing.
func (b *Box) Any() bool { return b.some.Load() }

// stale takes note that other bases can be lent. The caller holds mu.
func (b *Box) stale() {
	b.some.Store(slices.ContainsFunc(b.all, func(f *base) bool { return f.indexed }))
	b.old = true
	b.renew()
}

// renew gives up a catalog that is old, unless loans use it. The caller holds mu.
func (b *Box) renew() {
	if b.old && b.lent == 0 {
		b.catalog, b.old = nil, false
	}
}

// catalog tells where the chunks of bases are. It is there from the first loan until a
// while after the last: it takes about 2 MiB of memory for a GiB of bases.
type catalog struct {
	bases  []*base
	places map[uint64]place // by a chunk's key
}

// place is where a chunk is: offset << 16 | number of its base.
type place uint64

// maxBases is how many bases a place can tell apart.
const maxBases = 1 << 16

func keyOf(id delta.ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// Loan is what one file takes from bases: the parts of it that they have.
type Loan struct {
	from    *Box
	catalog *catalog
	size    int64

	mu     sync.Mutex // guards what follows
	told   int64      // where the next chunk that is told begins
	spans  delta.Spans
	pieces []piece // what spans are made of
	files  map[*base]*os.File
	closed bool
}

// piece is a part of the file that a base has.
type piece struct {
	delta.Span
	base *base
	at   int64 // there
}

// maxPieces bounds what a sender can make a receiver remember of one file: 48 MiB. Small
// files have fewer: no chunk but the last is shorter than delta.Min.
const maxPieces = 1 << 20

// Lend begins a loan for a file of that size. It is to be closed.
func (b *Box) Lend(size int64) *Loan {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	b.lent++ // the catalog stays
	b.rested = false
	c, all := b.catalog, slices.Clone(b.all)
	all = slices.DeleteFunc(all, func(f *base) bool { return !f.indexed })
	b.mu.Unlock()
	if c == nil {
		c = b.list(all)
		b.mu.Lock()
		b.catalog = c
		b.mu.Unlock()
	}
	return &Loan{from: b, catalog: c, size: size, files: map[*base]*os.File{}}
}

// list makes the catalog of these bases. It may take long.
func (b *Box) list(all []*base) *catalog {
	c := &catalog{places: map[uint64]place{}}
	for _, f := range all {
		if len(c.bases) == maxBases {
			break
		}
		x, err := b.readIndex(f)
		if err != nil { // it was well when it was made
			b.anew(f, err)
			continue
		}
		at := int64(0)
		for _, chunk := range x.Chunks {
			c.places[keyOf(chunk.ID)] = place(at<<16 | int64(len(c.bases)))
			at += int64(chunk.Len)
		}
		c.bases = append(c.bases, f)
	}
	return c
}

// anew has the index of f made once more, unless f has been removed.
func (b *Box) anew(f *base, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.all, f) {
		return
	}
	b.opts.Log.Warn("index made anew", "file", f.name, "err", why)
	f.indexed = false
	b.stale()
	b.look()
}

// Close ends the loan: nothing more is taken.
func (l *Loan) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	for _, f := range l.from.unused(l) {
		_ = f.Close() // it was only read; a base that was removed gives its room back here, which may take time
	}
}

// unused ends a loan, and returns the files that nobody has open besides.
func (b *Box) unused(l *Loan) (files []*os.File) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for f := range l.files {
		if f.users--; f.users == 0 {
			files = append(files, f.file)
			f.file = nil
		}
	}
	b.lent--
	b.renew()
	return files
}

// Tell takes the next chunks of the file, and calls has with the number of each that bases
// have.
func (l *Loan) Tell(chunks []delta.Chunk, has func(i uint32)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, c := range chunks {
		off, n := l.told, int64(c.Len)
		if l.told += n; l.told > l.size {
			return fmt.Errorf("the chunks of a file of %d bytes are more than that", l.size)
		}
		if n < delta.Min && l.told < l.size {
			return fmt.Errorf("a chunk of %d bytes that is not the last", n)
		}
		if p, ok := l.catalog.places[keyOf(c.ID)]; ok && l.add(off, n, l.catalog.bases[p&(maxBases-1)], int64(p>>16)) {
			has(uint32(i))
		}
	}
	return nil
}

// add notes that a base has the next part of the file. It may have no room for that.
func (l *Loan) add(off, n int64, from *base, at int64) bool {
	if last := len(l.pieces) - 1; last >= 0 {
		if p := &l.pieces[last]; p.base == from && p.Off+p.Len == off && p.at+p.Len == at {
			p.Len += n
			l.spans.Add(off, n)
			return true
		}
	}
	if len(l.pieces) == maxPieces {
		return false
	}
	l.pieces = append(l.pieces, piece{delta.Span{Off: off, Len: n}, from, at})
	l.spans.Add(off, n)
	return true
}

// Fill makes block, which is the file's from off on, of what its beginning has, the bytes
// that no base has, and of the bases. literal is how many there are of the former.
func (l *Loan) Fill(block []byte, off int64, literal int) error {
	if l == nil {
		return errors.New("only a part of a block came")
	}
	missing, pieces, err := l.parts(off, int64(len(block)))
	if err != nil {
		return err
	}
	for _, m := range missing {
		literal -= int(m.Len)
	}
	if literal != 0 {
		return errors.New("another part of a block came than is missing")
	}
	delta.Spread(block, off, missing)
	for _, p := range pieces {
		from, to := max(p.Off, off), min(p.Off+p.Len, off+int64(len(block)))
		f, err := l.open(p.base)
		if err != nil {
			return err
		}
		if _, err := f.ReadAt(block[from-off:to-off], p.at+from-p.Off); err != nil {
			return err
		}
	}
	return nil
}

// parts returns the parts of [off, off+n) that no base has, and those that lie in it, even
// if not all of them does.
func (l *Loan) parts(off, n int64) ([]delta.Span, []piece, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if off+n > l.told {
		return nil, nil, errors.New("a part of a block came whose chunks were not told")
	}
	first := sort.Search(len(l.pieces), func(i int) bool { return l.pieces[i].Off+l.pieces[i].Len > off })
	last := sort.Search(len(l.pieces), func(i int) bool { return l.pieces[i].Off >= off+n })
	return l.spans.Missing(off, n), slices.Clone(l.pieces[first:max(first, last)]), nil
}

// open opens a base, which was perhaps removed, or joins the loans that have it open.
func (l *Loan) open(b *base) (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.files[b]; f != nil {
		return f, nil
	}
	if l.closed {
		return nil, errors.New("the loan is over")
	}
	l.from.mu.Lock()
	defer l.from.mu.Unlock()
	if b.file == nil {
		f, err := l.from.export.Open(b.name)
		if err != nil {
			return nil, err
		}
		b.file = f
	}
	b.users++
	l.files[b] = b.file
	l.from.use(b)
	return b.file, nil
}
