package stream

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

// A small file is one of at most one block. Nothing of it is durable before all of it
// is, for there is nothing to resume: a crash before leaves a part without a record,
// which is swept away, and a ticket that is good for the same file still. It needs no
// journal, and no goroutine that follows it. Those that are whole at the same time become
// durable together (group commit), see land.

func isSmall(f mover.File) bool { return f.Size <= mover.BlockSize }

// manySmall is how many files are worth a sync of the whole file system, which may have to
// write what is none of our business.
const manySmall = 8

// syncsAtOnce is how many files are synced at once where that is done one by one. A file
// system commits them together, too.
const syncsAtOnce = 32

// openSmall opens a small file's part, of which nothing is there but its size. The caller
// holds mu.
func (a *arrival) openSmall() error {
	a.forget()
	data, err := a.makePart()
	if err != nil {
		return err
	}
	if err := data.Truncate(a.File.Size); err != nil {
		return errors.Join(err, data.Close())
	}
	a.data = data
	return nil
}

// makePart makes the part, in place of one that was left behind.
func (a *arrival) makePart() (data *os.File, err error) {
	err = a.inbox.use(a.export, a.part, func(dir *os.Root, base string) (err error) {
		data, err = makeIn(dir, base)
		return err
	})
	return data, err
}

func makeIn(dir *os.Root, base string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	data, err := dir.OpenFile(base, flags, 0o640)
	if !errors.Is(err, fs.ErrExist) {
		return data, err
	}
	info, err := dir.Lstat(base)
	if err == nil && !info.Mode().IsRegular() {
		err = mover.Coded(mover.CodeName, fmt.Errorf("%s is not a plain file; remove it", path.Join(mover.Inbox, base)))
	}
	if err == nil {
		err = dir.Remove(base)
	}
	if err != nil {
		return nil, err
	}
	return dir.OpenFile(base, flags, 0o640)
}

// took notes that a small file's block was written and proven, with the frame that holds
// it if that may be kept, and returns the one to go on with.
func (a *arrival) took(s seat, sum *digest.Block, block *frame, keep bool) *frame {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.tell(kindProven, 0) // the file's end is told after it
	if keep && a.kept() && a.hot[0] == nil {
		select {
		case hot <- struct{}{}:
			a.hot[0] = block
			block = frames.Get().(*frame)
		default:
		}
	}
	delete(a.writing, 0)
	a.changed.Broadcast()
	a.prove(0, sum)
	a.due()
	a.rest()
	return block
}

// rest closes a small file's part when nobody uses it. The caller holds mu.
func (a *arrival) rest() {
	if !a.small || a.data == nil || a.holder.link != nil || a.finishing || len(a.writing) > 0 {
		return
	}
	if block := a.hot[0]; block != nil {
		a.cool(0)
		frames.Put(block)
	}
	_ = a.data.Close() // what matters was synced
	a.data = nil
	a.unoccupy()
}

// use notes that a ticket was used for a small file, if that can become durable with it.
func (a *arrival) use(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.small || a.landing || a.arrived {
		return false
	}
	if !slices.Contains(a.tickets, id) {
		a.tickets = append(a.tickets, id)
	}
	return true
}

// used returns the tickets that were.
func (a *arrival) used() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tickets
}

// check has a small file land if it is what was promised.
func (r *Receiver) check(a *arrival) {
	if err := a.checkSmall(); err != nil {
		r.completed(a, err)
		return
	}
	r.queue(a)
}

// queue has a small file land, with those that are queued meanwhile.
func (r *Receiver) queue(a *arrival) {
	if run := r.landing.Add(a); run != nil {
		r.work.Go(func() { _ = run() }) // each file is told its own end
	}
}

// landAll is land with the files' ends. Nobody's landing waits until a file that failed is
// removed.
func (r *Receiver) landAll(all []*arrival) error {
	err := r.land(all)
	for _, a := range all {
		if failure := cmp.Or(a.result(), err); failure != nil {
			r.work.Go(func() { r.completed(a, failure) })
			continue
		}
		r.completed(a, nil)
	}
	return err
}

// checkSmall compares a small file's digest with the promised one.
func (a *arrival) checkSmall() error {
	h, err := digest.New(a.File.Digest.Algo)
	if err != nil {
		return err
	}
	a.mu.Lock()
	block := a.hot[0]
	if block != nil {
		a.cool(0)
	}
	a.mu.Unlock()
	if block == nil {
		block = borrow()
		defer giveBack(block)
		_, err = a.data.ReadAt(block[:a.File.Size], 0)
	} else {
		defer frames.Put(block)
	}
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	h.Write(block[:a.File.Size])
	return mover.Coded(mover.CodeContent, digest.Check(a.File.Digest, digest.Of(a.File.Digest.Algo, h)))
}

// land completes small files, of which all is proven. It syncs their contents, then makes
// sure that nothing has their names, then makes what is known of them and of their tickets
// durable, then gives them their names, then syncs those: in this order a crash leaves no
// name without its content, and no file without its ticket. Each of these is one step for
// all of them. What went wrong with a file alone is its outcome.
func (r *Receiver) land(all []*arrival) error {
	landing := slices.DeleteFunc(slices.Clone(all), func(a *arrival) bool { return !a.land() })
	defer func() {
		for _, a := range landing {
			a.landed()
		}
	}()
	good := r.syncSmall(landing)
	if len(good) == 0 {
		return nil
	}
	inbox, err := r.export.OpenRoot(mover.Inbox) // once, and not for each file three times
	if err != nil {
		return err
	}
	defer inbox.Close()
	if good, err = unblock(inbox, good); err != nil {
		return err
	}
	var changes []durable.Change
	for _, a := range good {
		changes = append(changes, a.set())
		for _, id := range a.used() {
			if u := r.ticket(id); u.ID != "" { // else it has expired, and is forgotten
				changes = append(changes, u.set())
			}
		}
	}
	if err := r.ledger.Commit(changes...); err != nil {
		return noSpace(err)
	}
	for _, a := range good {
		a.failed(a.renameIn(inbox, path.Base(a.part), path.Base(a.File.Name)))
	}
	if err := durable.SyncDir(inbox, "."); err != nil {
		return fmt.Errorf("%w: %w", errUnsynced, err)
	}
	return nil
}

// land keeps who would remove a small file waiting until landed, unless it is removed.
func (a *arrival) land() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome = nil
	if a.gone {
		a.outcome = errGone
	}
	a.landing = !a.gone
	return a.landing
}

func (a *arrival) landed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.landing = false
	a.changed.Broadcast()
}

func (a *arrival) result() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.outcome
}

// failed keeps err.
func (a *arrival) failed(err error) {
	if err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome = err
}

// syncSmall syncs the contents of small files, and returns those that the disk took.
func (r *Receiver) syncSmall(all []*arrival) (good []*arrival) {
	errs := make([]error, len(all))
	if err := r.syncTogether(all); err == nil {
		for i, a := range all { // nothing is left to be written: it only tells the file's errors
			errs[i] = disk.WaitBack(a.data, 0, a.File.Size)
		}
	} else if !errors.Is(err, errors.ErrUnsupported) {
		for i := range all {
			errs[i] = err
		}
	} else {
		var work sync.WaitGroup
		turns := make(chan struct{}, syncsAtOnce)
		for i, a := range all {
			turns <- struct{}{}
			work.Go(func() {
				errs[i] = a.data.Sync()
				<-turns
			})
		}
		work.Wait()
	}
	for i, a := range all {
		if errs[i] != nil {
			a.failed(fmt.Errorf("%w: %w", errUnsynced, errs[i]))
			continue
		}
		good = append(good, a)
	}
	return good
}

// syncTogether syncs the file system of the export, if that is worth it; else, and where it
// does not sync what is beneath, the error is errors.ErrUnsupported.
func (r *Receiver) syncTogether(all []*arrival) error {
	if len(all) < manySmall {
		return errors.ErrUnsupported
	}
	for _, a := range all {
		disk.WriteBack(a.data, 0, a.File.Size)
	}
	return disk.SyncFS(all[0].data)
}

// unblock removes files that have the names of small ones about to land, and of which nobody
// knows: after a crash they would pass for these. It returns those whose names are free.
func unblock(inbox *os.Root, all []*arrival) (free []*arrival, err error) {
	removed := false
	for _, a := range all {
		_, err := inbox.Lstat(path.Base(a.File.Name))
		if err == nil {
			removed = true
			err = inbox.Remove(path.Base(a.File.Name))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.failed(err)
			continue
		}
		free = append(free, a)
	}
	if removed {
		err = durable.SyncDir(inbox, ".")
	}
	return free, err
}

// full reports whether as much is in flight on the lane as window blocks are: more blocks
// where files are small, so that they need no more round trips than a large one.
func (l *lane) full(window int) bool {
	if len(l.flight) < window {
		return false
	}
	left := int64(window) * mover.BlockSize
	for b := range l.flight {
		left -= int64(blockLen(b.file.size, b.index))
	}
	return left <= 0
}
