package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"syscall"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// writeBackBlocks is how many blocks are sent to disk at once ahead of the fsync.
const writeBackBlocks = 8

// ahead is how many blocks a file may be ahead of its hash while that takes them from
// memory: a path that is faster than the hash waits for it. As many again, that came out
// of order, are kept. A hash that has to read back, after a restart or behind a lost
// connection, holds nobody.
const ahead = 4

// errGone is what a connection gets whose arrival was dropped or found wrong.
var errGone = errors.New("the arrival was removed at the destination")

// arrival is one file coming in. While connections use it, a goroutine of its own
// proves what the journal claims and hashes the part without a gap.
type arrival struct {
	record
	export, state *os.Root
	spawn         func(func()) // starts a goroutine that the Receiver waits for
	news          *news        // is told when status has changed
	blocks        uint32
	part          string // the file's name until it is complete

	finishing sync.Mutex // held while the file is completed

	mu       sync.Mutex // guards what follows
	changed  sync.Cond
	arrived  bool
	gone     bool   // dropped or wrong: another arrival may have the name by now
	fault    error  // of the disk; the next session tries again
	lastErr  string // why the first connection of the session ended
	session  session
	conns    map[*tls.Conn]bool
	followed bool            // the goroutine runs; data and journal are open
	data     *os.File        // the part
	journal  *os.File        // its proven blocks
	claims   bitmap          // noted before a restart, not proven again yet
	claimed  uint32          // how many
	order    uint32          // no claim is below it
	writing  map[uint32]bool // blocks being written
	proven   bitmap
	sums     []digest.Block // of the blocks in proven and claims; nil after a restart with all of them there
	count    uint32         // of proven
	prefix   uint32         // blocks from the start, all proven
	hash     hash.Hash      // of the first hashed blocks
	hashed   uint32
	hot      map[uint32]*[frameSize]byte // of the blocks to be hashed next, those still in memory
}

// session is the sender's Move whose connections may use an arrival.
type session struct{ id, token, from string }

func newArrival(export, state *os.Root, spawn func(func()), n *news, r record) *arrival {
	dir, base := path.Split(r.File.Name)
	a := &arrival{
		record: r, export: export, state: state, spawn: spawn, news: n,
		blocks: blockCount(r.File.Size), part: dir + "." + base + ".part",
		conns: map[*tls.Conn]bool{}, writing: map[uint32]bool{},
	}
	a.changed.L = &a.mu
	a.forget()
	return a
}

// forget makes it an arrival of which nothing is there. The caller holds mu, or has a alone.
func (a *arrival) forget() {
	a.claims, a.claimed, a.order = newBitmap(a.blocks), 0, 0
	a.proven, a.count, a.prefix = newBitmap(a.blocks), 0, 0
	a.sums = make([]digest.Block, a.blocks)
	a.hash, _ = digest.New(a.File.Digest.Algo) // Digest.Validate knew it
	a.hashed, a.hot = 0, map[uint32]*[frameSize]byte{}
}

// restore takes up what is on disk after a restart. A file under its final name
// and no part means complete: the rename came after everything else.
func (a *arrival) restore() error {
	if _, err := a.export.Lstat(a.part); errors.Is(err, fs.ErrNotExist) {
		info, err := a.export.Lstat(a.File.Name)
		a.arrived = err == nil && info.Mode().IsRegular() && info.Size() == a.File.Size
		if a.arrived {
			a.sums = nil
		}
		return nil
	}
	return readJournal(a.state, a.File.Name, a.blocks, a.claim)
}

// claim notes that block i is there and has this digest, perhaps. The caller has a alone.
func (a *arrival) claim(i uint32, sum digest.Block) {
	if !a.claims.has(i) {
		a.claims.add(i)
		a.claimed++
	}
	a.sums[i] = sum
}

// unclaim forgets the claim on block i, if there is one. The caller holds mu.
func (a *arrival) unclaim(i uint32) {
	if a.claims.has(i) {
		a.claims.remove(i)
		a.claimed--
	}
}

// status is the arrival as mover tells it.
func (a *arrival) status() mover.Arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.arrived {
		return mover.Arrival{
			File: a.File, State: mover.Arrived, Path: a.File.Name,
			Proven: a.File.Size, Moved: a.File.Size, Since: a.Since,
		}
	}
	s := mover.Arrival{
		File: a.File, State: mover.Arriving, Path: a.part,
		Proven: min(blockStart(a.prefix), a.File.Size), Moved: a.bytes(a.count), Since: a.Since,
	}
	if len(a.conns) == 0 {
		s.Error = a.lastErr
	}
	return s
}

// blocksTold is how many digests are told at once: 4 GiB of a file.
const blocksTold = 4096

// digests returns the checksums of the blocks from the one given up to the first that is not proven.
func (a *arrival) digests(from int64) mover.Blocks {
	a.mu.Lock()
	defer a.mu.Unlock()
	told := mover.Blocks{Sums: []digest.Block{}}
	if a.sums == nil || from < 0 || from >= int64(a.prefix) {
		return told
	}
	told.Sums = append(told.Sums, a.sums[from:min(int64(a.prefix), from+blocksTold)]...)
	return told
}

// bytes is the size of n proven blocks. The caller holds mu.
func (a *arrival) bytes(n uint32) int64 {
	size := blockStart(n)
	if a.blocks > 0 && a.proven.has(a.blocks-1) {
		size -= mover.BlockSize - int64(blockLen(a.File.Size, a.blocks-1))
	}
	return size
}

// missing is the space that the file will still take.
func (a *arrival) missing() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.arrived || a.gone {
		return 0
	}
	return max(0, a.File.Size-a.bytes(a.count+a.claimed))
}

// enter lets c use the arrival: as the first connection of s, which ends an
// earlier session, or as one more of it. It returns the blocks that need not be
// sent, or that the file has arrived: then c has not entered.
func (a *arrival) enter(s session, join bool, c *tls.Conn) (have bitmap, done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.gone:
		return nil, false, errGone
	case a.arrived:
		return nil, true, nil
	case join && a.session != s:
		return nil, false, errOver
	case len(a.conns) >= 2*mover.MaxParallelism: // those of an earlier session among them
		return nil, false, errors.New("too many connections for one file")
	}
	if !join {
		a.disconnect()
		a.session, a.lastErr = s, ""
	}
	defer a.news.tell()
	if !a.followed {
		if err := a.open(); err != nil {
			return nil, false, noSpace(err)
		}
		a.followed, a.fault = true, nil
		a.spawn(a.follow)
	}
	a.conns[c] = true
	have = slices.Clone(a.proven)
	for i, claims := range a.claims {
		have[i] |= claims
	}
	return have, false, nil
}

// is reports whether the arrival's session is s.
func (a *arrival) is(s session) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.session == s
}

// leave counts out a connection that ended with err; nil: by the sender. It may be repeated.
func (a *arrival) leave(c *tls.Conn, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
	if err == nil {
		err = errLeft
	}
	a.lastErr = cmp.Or(a.lastErr, err.Error())
	a.changed.Broadcast()
	a.news.tell()
}

// disconnect cuts every connection. The caller holds mu.
func (a *arrival) disconnect() {
	for c := range a.conns {
		cut(c)
	}
}

// open opens the part and its journal. The part has its full size from the start,
// so that a reader over NFS sees one that does not change. The caller holds mu.
func (a *arrival) open() (err error) {
	info, err := a.export.Lstat(a.part)
	flags := os.O_RDWR
	switch {
	case errors.Is(err, fs.ErrNotExist):
		a.forget()
		if err := durable.Remove(a.state, blocksName(a.File.Name)); err != nil {
			return err
		}
		flags |= os.O_CREATE | os.O_EXCL
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file; remove it", a.part))
	}
	if a.data, err = a.export.OpenFile(a.part, flags, 0o640); err != nil {
		return err
	}
	if err := a.data.Truncate(a.File.Size); err != nil {
		return errors.Join(err, a.data.Close())
	}
	a.journal, err = a.state.OpenFile(blocksName(a.File.Name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, a.data.Close())
	}
	return nil
}

// store writes block i, whose digest is sum, unless it is there already, and tells
// whether it did. On a nil error it is proven. What is proven is never written again.
func (a *arrival) store(i uint32, sum digest.Block, b []byte) (wrote bool, err error) {
	if !a.reserve(i) {
		return false, a.refused()
	}
	_, err = a.data.WriteAt(b, blockStart(i))
	if err == nil {
		_, err = a.journal.Write(journalRecord(i, sum))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.writing, i)
	a.changed.Broadcast()
	if err != nil {
		return false, noSpace(fmt.Errorf("write block %d: %w", i, err))
	}
	a.prove(i, sum)
	return true, nil
}

// keep gives the frame of block i, which store has written, to the hash if that needs
// it soon, and returns the one to go on with. Only what was written may be kept: other
// bytes with the same checksum are easily made, and the hash has to be that of the file.
// It waits while the file is too far ahead of its hash.
func (a *arrival) keep(i uint32, frame *[frameSize]byte) *[frameSize]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	soon := i >= a.hashed && i-a.hashed < 2*ahead
	if soon && a.followed && a.proven.has(i) && a.hot[i] == nil {
		a.hot[i] = frame
		frame = frames.Get().(*[frameSize]byte)
	}
	for a.claimed == 0 && a.hot[a.hashed] != nil && a.prefix >= a.hashed+ahead && a.fault == nil && !a.gone {
		a.changed.Wait()
	}
	return frame
}

// reserve waits until nobody writes block i, and returns whether the caller should.
func (a *arrival) reserve(i uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.writing[i] {
		a.changed.Wait()
	}
	if a.gone || a.proven.has(i) {
		return false
	}
	a.unclaim(i)
	a.writing[i] = true
	return true
}

// refused is why reserve said no.
func (a *arrival) refused() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return errGone
	}
	return nil
}

// prove notes that block i is there and has this digest. The caller holds mu.
func (a *arrival) prove(i uint32, sum digest.Block) {
	a.proven.add(i)
	a.sums[i] = sum
	a.count++
	for a.prefix < a.blocks && a.proven.has(a.prefix) {
		a.prefix++
	}
	a.news.tell()
}

// follow proves claims and hashes, until no connection is left. It closes what open opened.
func (a *arrival) follow() {
	for {
		i, claim, frame, ok := a.next()
		if !ok {
			return
		}
		n := blockLen(a.File.Size, i)
		var err error
		if frame == nil {
			frame = frames.Get().(*[frameSize]byte)
			_, err = a.data.ReadAt(frame[headerSize:headerSize+n], blockStart(i))
		}
		b := frame[headerSize : headerSize+n]
		if claim {
			a.settle(i, b, err)
		} else {
			a.digest(i, b, err)
		}
		frames.Put(frame)
	}
}

// next waits for a block that is to be read: a claim, or else the next to be hashed.
// It returns the block's frame if that is still in memory.
func (a *arrival) next() (i uint32, claim bool, frame *[frameSize]byte, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.conns) > 0 {
		for ; a.claimed > 0; a.order++ {
			if a.claims.has(a.order) {
				return a.order, true, nil, true
			}
		}
		if a.hashed < a.prefix && a.fault == nil {
			return a.hashed, false, a.hot[a.hashed], true
		}
		a.changed.Wait()
	}
	a.followed = false
	clear(a.hot)
	_ = errors.Join(a.data.Close(), a.journal.Close()) // what matters was synced, or is read again
	return 0, false, nil, false
}

// settle proves or forgets the claim on block i, which was read as b.
func (a *arrival) settle(i uint32, b []byte, err error) {
	sum := digest.OfBlock(b)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.claims.has(i) && err == nil && sum == a.sums[i] {
		a.prove(i, sum)
	}
	a.unclaim(i)
	a.changed.Broadcast()
}

// digest adds block i, which was read as b, to the whole file's digest.
func (a *arrival) digest(i uint32, b []byte, err error) {
	if err == nil {
		a.hash.Write(b)
		if n := i + 1; n%writeBackBlocks == 0 {
			writeBack(a.data, blockStart(n-writeBackBlocks), writeBackBlocks*mover.BlockSize)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.hot, i)
	a.changed.Broadcast()
	if err != nil {
		a.fault = fmt.Errorf("read block %d back: %w", i, err)
		return
	}
	a.hashed++
}

// finish completes the file: it waits until all is proven and hashed, compares the
// digest, syncs, and gives the file its name. It returns the blocks that are there
// if some are not. It may be repeated. An error with mover.CodeContent or
// errUnsynced means that the part is worthless.
func (a *arrival) finish(ctx context.Context) (done bool, have bitmap, err error) {
	a.finishing.Lock()
	defer a.finishing.Unlock()
	got, have, err := a.whole(ctx)
	if have != nil || err != nil {
		return false, have, err
	}
	if err := digest.Check(a.File.Digest, got); err != nil {
		return false, nil, mover.Coded(mover.CodeContent, err)
	}
	if err := a.data.Sync(); err != nil {
		return false, nil, fmt.Errorf("%w: %w", errUnsynced, err)
	}
	if err := a.rename(); err != nil {
		return false, nil, err
	}
	if err := durable.SyncDir(a.export, path.Dir(a.part)); err != nil {
		return false, nil, err
	}
	return true, nil, durable.Remove(a.state, blocksName(a.File.Name))
}

// whole waits for the digest of the whole file. It returns the proven blocks
// instead when there are others.
func (a *arrival) whole(ctx context.Context) (digest.Digest, bitmap, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.changed.Broadcast()
	})
	defer stop()
	for {
		switch {
		case a.gone:
			return digest.Digest{}, nil, errGone
		case a.fault != nil:
			return digest.Digest{}, nil, a.fault
		case ctx.Err() != nil:
			return digest.Digest{}, nil, context.Cause(ctx)
		case a.claimed == 0 && a.prefix < a.blocks:
			return digest.Digest{}, slices.Clone(a.proven), nil
		case a.hashed == a.blocks:
			return digest.Of(a.File.Digest.Algo, a.hash), nil, nil
		}
		a.changed.Wait()
	}
}

// rename gives the file its name, unless it is so already or the arrival is gone.
func (a *arrival) rename() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return errGone
	}
	if a.arrived {
		return nil
	}
	if err := a.export.Rename(a.part, a.File.Name); err != nil {
		return err
	}
	a.arrived = true
	a.news.tell()
	return nil
}

// progress is a number that changes while a commit goes on.
func (a *arrival) progress() uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count + a.hashed
}

// remove ends the session and removes every trace but that of the tickets. It may be repeated.
func (a *arrival) remove() error {
	a.mu.Lock()
	a.gone = true
	a.disconnect()
	a.changed.Broadcast()
	a.mu.Unlock()
	return removeFiles(a.export, a.state, a.File.Name, a.part)
}

// removeFiles removes the record last: while it is there, a restart knows what to clean up.
func removeFiles(export, state *os.Root, name, part string) error {
	return errors.Join(
		durable.Remove(export, part),
		durable.Remove(export, name),
		durable.Remove(state, blocksName(name)),
		durable.Remove(state, recordName(name)),
	)
}

// noSpace gives a full disk its code.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return mover.Coded(mover.CodeSpace, fmt.Errorf("no space left at the destination: %w", err))
	}
	return err
}

var (
	errOver     = errors.New("the session is over")
	errLeft     = errors.New("the sender closed the connection")
	errUnsynced = errors.New("the disk did not take the file")
)
