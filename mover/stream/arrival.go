package stream

import (
	"cmp"
	"context"
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
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// writeBackBlocks is how many blocks are sent to disk at once ahead of the fsync.
const writeBackBlocks = 8

// syncBlocks is how many blocks the disk may take for a step: even a slow one is done with
// them before the sender gives up.
const syncBlocks = 64

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
	spawn         func(func())                    // starts a goroutine that the Receiver waits for
	complete      func(context.Context, *arrival) // is called when all is proven, with mu held
	news          *news                           // is told when status has changed
	places        *gate[string]                   // of the files that are followed, by site; nil: there is no end of them
	inbox         *folder                         // of a small one
	blocks        uint32
	small         bool   // see small.go
	part          string // the file's name until it is complete
	relayed       bool   // it goes on from here, and is never complete
	pace, commit  meter  // of follow and of finish

	pen chan struct{} // has room for the lane that writes a block

	mu        sync.Mutex // guards what follows
	changed   sync.Cond
	sparse    bool // the sender's word
	allocated bool // the part has room on the disk for all of it
	arrived   bool
	gone      bool              // dropped or wrong: another arrival may have the name by now
	fault     error             // of the disk; the next session tries again
	lastErr   string            // why the last link that brought it ended
	holder    seat              // on the link that brings it; the zero seat: none does
	finishing bool              // complete runs
	followed  bool              // the goroutine runs; data and journal are open
	site      string            // whose place it takes
	data      *os.File          // the part
	journal   *os.File          // its proven blocks
	claims    bitmap            // noted before a restart, not proven again yet
	claimed   uint32            // how many
	order     uint32            // no claim is below it
	writing   map[uint32]func() // blocks being written; cuts the lane that brings it
	proven    bitmap
	sums      []digest.Block // of the blocks in proven and claims
	unsummed  bool           // not all of them are known
	count     uint32         // of proven
	prefix    uint32         // blocks from the start, all proven
	hash      hash.Hash      // of the first hashed blocks; nil: nobody asked for it
	hashed    uint32
	synced    uint32            // steps of sync, of every attempt
	hot       map[uint32]*frame // of the blocks to be hashed next, those still in memory
	passage   *passage          // of a relayed file; nil: none now
	let       bitmap            // blocks in proven that are at the destination instead
	room      uint32            // blocks below it may be sent; 0: all
	tickets   []string          // that were used for a small file
	landing   bool              // a small file is being completed: it is not removed meanwhile
	outcome   error             // of that
}

func newArrival(export, state *os.Root, n *news, r record) *arrival {
	dir, base := path.Split(r.File.Name)
	a := &arrival{
		record: r, export: export, state: state, news: n,
		blocks: blockCount(r.File.Size), pen: make(chan struct{}, 1), small: isSmall(r.File), part: dir + "." + base + ".part",
		writing: map[uint32]func(){}, inbox: new(folder),
	}
	a.changed.L = &a.mu
	a.forget()
	return a
}

// forget makes it an arrival of which nothing is there. The caller holds mu, or has a alone.
func (a *arrival) forget() {
	a.claims, a.claimed, a.order = newBitmap(a.blocks), 0, 0
	a.proven, a.count, a.prefix = newBitmap(a.blocks), 0, 0
	a.sums, a.unsummed = make([]digest.Block, a.blocks), false
	a.hash = nil
	if a.kept() {
		a.hash, _ = digest.New(a.File.Digest.Algo) // Digest.Validate knew it
	}
	a.hashed, a.hot = 0, map[uint32]*frame{}
	clear(a.let)
	a.allocated = false
}

// restore takes up what is on disk after a restart. A file under its final name
// and no part means complete: the rename came after everything else.
func (a *arrival) restore() error {
	if _, err := a.export.Lstat(a.part); errors.Is(err, fs.ErrNotExist) {
		info, err := a.export.Lstat(a.File.Name)
		a.arrived = err == nil && info.Mode().IsRegular() && info.Size() == a.File.Size
		if a.arrived {
			a.sums, a.unsummed = nil, true
		}
		return nil
	}
	if f, err := a.export.OpenFile(a.part, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0); err == nil {
		a.allocated = disk.Allocated(f, a.File.Size)
		_ = f.Close() // it was only looked at
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
	if a.holder.link == nil {
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
	if a.unsummed || from < 0 || from >= int64(a.prefix) {
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
	if a.arrived || a.gone || a.allocated {
		return 0
	}
	return max(0, a.File.Size-a.bytes(a.count+a.claimed))
}

// kept reports whether the bytes of a block are needed once more, for the file's digest.
func (a *arrival) kept() bool { return !a.File.Digest.IsZero() && !a.Through }

// expect takes what the sender says of the file's blocks.
func (a *arrival) expect(o opening) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sparse = o.Sparse
}

// enter gives the arrival to a link, whose sender is told the blocks that it need not
// send, and ends it on another one that has it. Or the file has arrived: then it was not
// given.
func (a *arrival) enter(s seat) (done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return false, errGone
	}
	if a.arrived && !a.finishing { // else its name is not durable yet
		return true, nil
	}
	a.evict(errOver)
	a.lastErr = ""
	defer a.news.tell()
	if a.small && a.data == nil || !a.small && !a.followed {
		if err := a.occupy(s.link.site); err != nil {
			return false, noSpace(err)
		}
		if !a.small {
			a.followed = true
			a.spawn(a.follow)
		}
	}
	a.holder, a.fault = s, nil
	have := slices.Clone(a.proven)
	for i, claims := range a.claims {
		have[i] |= claims
	}
	s.link.say.add(answer{Have: have, Bases: s.link.receiver.bases.Any()}.bytes(s.file)) // before anything else is told of it
	a.due()
	return false, nil
}

// leave takes the arrival from a link, which ended with err. It may be repeated.
func (a *arrival) leave(s seat, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holder == s {
		a.vacate(err)
	}
}

// fail ends the arrival on a link, whose sender is told err.
func (a *arrival) fail(s seat, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holder == s {
		if a.passage != nil {
			err = a.passage.says(err)
		}
		a.evict(err)
	}
}

// evict is fail for whatever link has it. The caller holds mu.
func (a *arrival) evict(err error) {
	if a.holder.link != nil {
		a.holder.end(refusal(err))
		a.vacate(err)
	}
}

// vacate leaves the arrival without a link. The caller holds mu.
func (a *arrival) vacate(err error) {
	a.holder, a.lastErr = seat{}, err.Error()
	if a.passage != nil && (!a.finishing || a.count < a.blocks) { // else all of it is here, and goes on by itself
		a.passage.cancel(err)
	}
	a.rest()
	a.changed.Broadcast()
	a.news.tell()
}

// due has the file completed when every block is proven. The caller holds mu.
func (a *arrival) due() {
	if a.count < a.blocks || a.finishing || a.holder.link == nil {
		return
	}
	a.finishing = true
	a.complete(a.holder.link.ctx, a)
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
	if err := a.allocate(flags&os.O_CREATE != 0); err != nil {
		return errors.Join(err, a.data.Close())
	}
	a.journal, err = a.state.OpenFile(blocksName(a.File.Name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, a.data.Close())
	}
	if err := cutTorn(a.journal); err != nil {
		return errors.Join(err, a.data.Close(), a.journal.Close())
	}
	return nil
}

// allocate takes room on the disk for the whole file, so that a disk that is too small is
// told before the first byte and the blocks that come out of order lie in order there. One
// that is fresh gives back what it took if that is not enough. A relay need not have it all.
func (a *arrival) allocate(fresh bool) error {
	if a.sparse || a.allocated || a.blocks < 2 || a.relayed || a.Through {
		return nil
	}
	done, err := disk.Allocate(a.data, a.File.Size)
	a.allocated = done
	if err != nil && fresh {
		err = errors.Join(err, a.data.Truncate(0), a.data.Truncate(a.File.Size))
	}
	return err
}

// reserve lets the caller write block i, which came on s, unless it is there, or s does
// not have the arrival any more. Who may write calls note or release; cut ends that one's
// lane. A block that another lane has begun is one that the sender has given up there, or
// else it had not come again: that lane is cut, unless it has it whole, and waited for.
// What is proven is never written again.
func (a *arrival) reserve(s seat, i uint32, cut func()) (mine, there bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.holder == s && (a.room == 0 || i < a.room) {
		if other, busy := a.writing[i]; busy {
			other()
			a.changed.Wait()
			continue
		}
		if a.proven.has(i) {
			return false, true
		}
		a.unclaim(i)
		a.writing[i] = cut
		return true, false
	}
	return false, false
}

// came notes that block i, which was reserved, has come: the lane is not cut for it any more.
func (a *arrival) came(i uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writing[i] = func() {}
}

// note notes that block i was written and proven, and has this sum; nil: nobody knows.
func (a *arrival) note(i uint32, sum *digest.Block) error {
	record := sum
	if record == nil && !a.relayed { // a relay gives up what has gone on from it
		record = boot()
	}
	if record != nil {
		if _, err := a.journal.Write(journalRecord(i, *record)); err != nil {
			return errors.Join(err, cutTorn(a.journal))
		}
	}
	if a.hash == nil && !a.relayed {
		disk.WriteBack(a.data, blockStart(i), mover.BlockSize)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.writing, i)
	a.changed.Broadcast()
	a.prove(i, sum)
	a.due()
	return nil
}

// release gives up a block that was reserved and did not come.
func (a *arrival) release(i uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.writing, i)
	a.rest()
	a.changed.Broadcast()
}

// keep gives the frame of block i, which put has written, to the hash if that needs
// it soon, and returns the one to go on with. Only what was written may be kept: other
// bytes with the same checksum are easily made, and the hash has to be that of the file.
// It waits while the file is too far ahead of its hash.
func (a *arrival) keep(i uint32, block *frame) *frame {
	if !a.kept() {
		return block
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	soon := i >= a.hashed && i-a.hashed < 2*ahead
	if soon && a.followed && a.proven.has(i) && a.hot[i] == nil {
		select {
		case hot <- struct{}{}:
			a.hot[i] = block
			block = frames.Get().(*frame)
		default:
		}
	}
	for a.claimed == 0 && a.hot[a.hashed] != nil && a.prefix >= a.hashed+ahead && a.fault == nil && !a.gone {
		a.changed.Wait()
	}
	return block
}

// cool undoes keep. The caller holds mu.
func (a *arrival) cool(i uint32) {
	if a.hot[i] != nil {
		delete(a.hot, i)
		<-hot
	}
}

// prove notes that block i is there and has this sum. The caller holds mu.
func (a *arrival) prove(i uint32, sum *digest.Block) {
	if a.proven.has(i) {
		return
	}
	a.proven.add(i)
	if sum != nil {
		a.sums[i] = *sum
	} else {
		a.unsummed = true
	}
	a.count++
	for a.prefix < a.blocks && a.proven.has(a.prefix) {
		a.prefix++
	}
	a.news.tell()
	if !a.let.has(i) {
		a.passage.here(i)
	}
}

// follow proves claims and hashes, until nobody needs it. It closes what open opened.
func (a *arrival) follow() {
	for {
		i, claim, block, ok := a.next()
		if !ok {
			return
		}
		n := blockLen(a.File.Size, i)
		var err error
		kept := block != nil
		if !kept {
			block = borrow()
			err = a.pace.disk(writing, func() error {
				_, err := a.data.ReadAt(block[:n], blockStart(i))
				return err
			})
		}
		b := block[:n]
		if claim {
			a.settle(i, b, err)
		} else {
			a.digest(i, b, err)
		}
		if kept {
			frames.Put(block)
		} else {
			giveBack(block)
		}
	}
}

// next waits for a block that is to be read: a claim, or else the next to be hashed.
// It returns the block's frame if that is still in memory.
func (a *arrival) next() (i uint32, claim bool, block *frame, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.holder.link != nil || a.finishing || len(a.writing) > 0 {
		for ; a.claimed > 0; a.order++ {
			switch unseen := boot(); {
			case !a.claims.has(a.order):
			case unseen != nil && a.sums[a.order] == *unseen:
				a.unclaim(a.order)
				a.prove(a.order, nil)
				a.due()
			default:
				a.pace.begin(computing)
				return a.order, true, nil, true
			}
		}
		if a.hash != nil && a.hashed < a.prefix && a.fault == nil {
			a.pace.begin(computing)
			return a.hashed, false, a.hot[a.hashed], true
		}
		a.pace.begin(resting)
		a.changed.Wait()
	}
	a.followed = false
	a.unoccupy()
	a.pace.begin(resting)
	for i := range a.hot {
		a.cool(i)
	}
	a.changed.Broadcast()                              // who waits for the hash in keep need not
	_ = errors.Join(a.data.Close(), a.journal.Close()) // what matters was synced, or is read again
	return 0, false, nil, false
}

// settle proves or forgets the claim on block i, which was read as b.
func (a *arrival) settle(i uint32, b []byte, err error) {
	sum := digest.OfBlock(b)
	a.mu.Lock()
	defer a.mu.Unlock()
	claimed := a.claims.has(i)
	a.unclaim(i)
	switch {
	case !claimed: // it came again meanwhile
	case err == nil && sum == a.sums[i]:
		a.prove(i, &sum)
		a.due()
	case a.holder.link != nil:
		a.holder.tell(kindAgain, i)
	}
	a.changed.Broadcast()
}

// digest adds block i, which was read as b, to the whole file's digest.
func (a *arrival) digest(i uint32, b []byte, err error) {
	if err == nil {
		a.hash.Write(b)
		if n := i + 1; n%writeBackBlocks == 0 {
			_ = a.pace.disk(writing, func() error {
				disk.WriteBack(a.data, blockStart(n-writeBackBlocks), writeBackBlocks*mover.BlockSize)
				return nil
			})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cool(i)
	a.changed.Broadcast()
	if err != nil {
		a.fault = fmt.Errorf("read block %d back: %w", i, err)
		return
	}
	a.hashed++
}

// finish completes the file, of which every block is proven: it waits until all is
// hashed, compares the digest, syncs, and gives the file its name. It may be repeated.
// An error with mover.CodeContent or errUnsynced means that the part is worthless.
func (a *arrival) finish(ctx context.Context) error {
	a.commit.begin(behind)
	defer a.commit.begin(resting)
	got, err := a.whole(ctx)
	a.commit.begin(writing)
	if err != nil {
		return err
	}
	if a.kept() {
		if err := digest.Check(a.File.Digest, got); err != nil {
			return mover.Coded(mover.CodeContent, err)
		}
	}
	if err := a.sync(); err != nil {
		return fmt.Errorf("%w: %w", errUnsynced, err)
	}
	if err := a.rename(); err != nil {
		return err
	}
	if err := durable.SyncDir(a.export, path.Dir(a.part)); err != nil {
		return fmt.Errorf("%w: %w", errUnsynced, err)
	}
	return a.removeJournal()
}

// removeJournal removes what is of no use beside the whole file. Of an arrival that is gone
// it was removed, and another one may have the name.
func (a *arrival) removeJournal() error {
	if err := a.unlinkJournal(); err != nil {
		return err
	}
	return durable.SyncDir(a.state, arrivalDir)
}

func (a *arrival) unlinkJournal() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return errGone
	}
	err := a.state.Remove(blocksName(a.File.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sync makes the part durable, step by step, so that progress tells how far it is.
func (a *arrival) sync() error {
	for i := uint32(0); i < a.blocks; i += syncBlocks {
		if err := disk.WaitBack(a.data, blockStart(i), syncBlocks*mover.BlockSize); err != nil {
			return err
		}
		a.mu.Lock()
		a.synced++
		a.mu.Unlock()
	}
	return a.data.Sync()
}

// finished ends what due began, and takes the arrival from its link. It returns the
// seat there, whose sender is to be told.
func (a *arrival) finished(err error) seat {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.holder
	a.finishing, a.passage = false, nil
	a.vacate(cmp.Or(err, errLeft))
	return s
}

// whole waits for the digest of the whole file; none when nobody asked for it.
func (a *arrival) whole(ctx context.Context) (digest.Digest, error) {
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
			return digest.Digest{}, errGone
		case a.fault != nil:
			return digest.Digest{}, a.fault
		case ctx.Err() != nil:
			return digest.Digest{}, context.Cause(ctx)
		case a.hash == nil:
			return digest.Digest{}, nil
		case a.hashed == a.blocks:
			return digest.Of(a.File.Digest.Algo, a.hash), nil
		}
		a.changed.Wait()
	}
}

// rename gives the file its name, unless it is so already or the arrival is gone.
func (a *arrival) rename() error { return a.renameIn(a.export, a.part, a.File.Name) }

// renameIn is rename for who has opened a directory, under which the part and the file are
// from and to.
func (a *arrival) renameIn(dir *os.Root, from, to string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return errGone
	}
	if a.arrived {
		return nil
	}
	if err := dir.Rename(from, to); err != nil {
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
	return a.count + a.hashed + a.synced
}

// stop ends the session for good. It may be repeated.
func (a *arrival) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	a.evict(errGone)
	a.changed.Broadcast()
	for a.landing {
		a.changed.Wait()
	}
}

// removeFiles removes the arrival's files, whether they are there or not.
func (a *arrival) removeFiles() error {
	err := a.export.Remove(a.part)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = durable.Remove(a.export, a.File.Name) // which syncs the directory of both
	}
	if a.small {
		return err
	}
	return errors.Join(err, durable.Remove(a.state, blocksName(a.File.Name)))
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
