package stream

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/delta"
	"github.com/glance-dtn/glance-dtn/mover/stream/bases"
)

// What an offer of chunks goes by.
const (
	minOffer    = 4    // blocks that a file has at least
	offerChunks = 4096 // told at once: about a GiB of them in 16 messages
	offerAhead  = 4    // messages that are not answered yet
	maxOutrun   = 4    // messages in a row before which the path was faster
	maxOffer    = offerChunks * delta.RecordSize
	offerFirst  = 256 << 20 // bytes of which a sixteenth has to be there already
)

// offer is what a receiver with bases is told of a file's chunks, so that it says which
// parts of the file it has. A block waits for that, and goes without those parts.
type offer struct {
	mu      sync.Mutex // guards what follows
	changed sync.Cond
	asked   [][]delta.Chunk // not answered yet
	next    int64           // where the first of them begins
	known   delta.Spans     // what the receiver has
	bytes   int64           // of known
	literal bitmap          // blocks that the receiver could not make from it
	outrun  int             // times in a row that the path was found to be faster than the cutting
	over    bool            // nothing more is told or waited for
}

func newOffer(blocks uint32) *offer {
	o := &offer{literal: newBitmap(blocks)}
	o.changed.L = &o.mu
	return o
}

// missing returns the parts of a block that the receiver does not have; false: it is to
// have all.
func (o *offer) missing(i uint32, off, n int64) ([]delta.Span, bool) {
	if o == nil {
		return nil, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.literal.has(i) {
		return nil, false
	}
	parts := o.known.Missing(off, n)
	return parts, len(parts) != 1 || parts[0].Len != n
}

// refuse takes note that block i is to be sent as it is.
func (o *offer) refuse(i uint32) {
	if o != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.literal.add(i)
	}
}

// ask waits until more may be told, takes note of what is, and reports whether it is still
// wanted.
func (o *offer) ask(chunks []delta.Chunk) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.asked) >= offerAhead && !o.over {
		o.changed.Wait()
	}
	o.asked = append(o.asked, chunks)
	return !o.over
}

// hear takes the receiver's answer to what it was told first. It returns where the parts
// of the file end that are decided.
func (o *offer) hear(have bitmap) (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return o.next, nil
	}
	if len(o.asked) == 0 {
		return 0, errors.New("the receiver answers for chunks that it was not told")
	}
	for i, c := range o.asked[0] {
		if n := int64(c.Len); have.has(uint32(i)) {
			o.known.Add(o.next, n)
			o.bytes += n
		}
		o.next += int64(c.Len)
	}
	o.asked = o.asked[1:]
	o.changed.Broadcast()
	return o.next, nil
}

// end ends it: what is known stays.
func (o *offer) end() {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over, o.asked = true, nil
	o.changed.Broadcast()
}

// pays reports whether to go on: the receiver has some of the file, and the path is not for
// long faster than the file is cut. speed and pace are in bytes per second; 0: not known.
func (o *offer) pays(speed, pace float64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.outrun++; speed == 0 || pace < speed {
		o.outrun = 0
	}
	return (o.next < offerFirst || o.bytes >= o.next/16) && o.outrun < maxOutrun
}

// worthOffering reports whether a file's chunks are told to a receiver that has bases. A
// swift path takes the bytes sooner than they are cut. The caller holds mu.
func (l *link) worthOffering(f *outgoing) bool {
	return (!l.swift() || l.engine.offerAll) && f.left >= minOffer
}

// offer has the receiver say which parts of f it has. The caller holds mu.
func (l *link) offer(f *outgoing) {
	f.offer = newOffer(blockCount(f.size))
	f.held, f.todo, f.ready = f.todo, newBitmap(blockCount(f.size)), 0
	f.source.use()
	l.work.Go(func() {
		defer f.source.release()
		if err := l.tellChunks(f); err != nil {
			f.offer.end() // who sends the blocks finds out what is wrong
			l.mu.Lock()
			defer l.mu.Unlock()
			f.free(f.size)
			l.changed.Broadcast()
		}
	})
}

var errNoOffer = errors.New("nothing more is offered")

// tellChunks cuts f and tells its chunks.
func (l *link) tellChunks(f *outgoing) error {
	var chunks []delta.Chunk
	var speed float64
	told, begin := uint32(0), time.Now()
	var at, since int64 // bytes cut; of them, before begin
	tell := func() error {
		pays := f.offer.pays(speed, l.compression.rate()) || l.engine.offerAll
		if !pays || !l.goesOn(f) || !f.offer.ask(chunks) {
			return errNoOffer
		}
		list := make([]byte, headerSize, headerSize+len(chunks)*delta.RecordSize)
		for _, c := range chunks {
			list = c.AppendTo(list)
		}
		header{kindChunks, f.id, told, uint32(len(list) - headerSize)}.put(list)
		told += uint32(len(chunks))
		chunks = nil
		return l.tell(list)
	}
	for c, err := range delta.Cut(io.NewSectionReader(f.source.File, 0, f.size)) {
		if err != nil {
			return err
		}
		at += int64(c.Len)
		if chunks = append(chunks, c); len(chunks) == offerChunks {
			if took := time.Since(begin).Seconds(); took > 0 {
				speed = float64(at-since) / took
			}
			if err := tell(); err != nil {
				return err
			}
			begin, since = time.Now(), at
		}
	}
	if at != f.size {
		return errShort
	}
	if len(chunks) == 0 {
		return nil
	}
	return tell()
}

// goesOn reports whether a file still needs its link.
func (l *link) goesOn(f *outgoing) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil && !f.over()
}

// chunksHad takes the receiver's answer to chunks of f. The caller holds mu.
func (l *link) chunksHad(f *outgoing, have bitmap) error {
	if f.offer == nil {
		return fmt.Errorf("the receiver answers for chunks of file %d, of which it was not told any", f.id)
	}
	upTo, err := f.offer.hear(have)
	f.free(upTo)
	return err
}

// free has the blocks sent that were held and end before a place in the file.
func (f *outgoing) free(upTo int64) {
	for ; f.freed < blockCount(f.size) && blockStart(f.freed)+int64(blockLen(f.size, f.freed)) <= upTo; f.freed++ {
		if f.held.has(f.freed) {
			f.held.remove(f.freed)
			f.put(f.freed)
		}
	}
}

// lends returns what bases have of a file on the link, as far as its chunks were told; nil:
// none were.
func (l *incoming) lends(file uint32) *bases.Loan {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.loans[file]
}

// chunks answers for chunks of a file. An error is the link's.
func (l *incoming) chunks(h header) error {
	if h.length > uint32(maxOffer) {
		return fmt.Errorf("%d bytes of chunks at once", h.length)
	}
	list := make([]byte, h.length)
	if _, err := io.ReadFull(l.control, list); err != nil {
		return err
	}
	chunks, err := delta.ParseList(list)
	if err != nil {
		return err
	}
	l.mu.Lock()
	a := l.files[h.file]
	l.mu.Unlock()
	if a == nil { // it has ended: this was on its way
		return nil
	}
	if a.relayed { // what its destination has only that could tell, and it was not asked for
		l.had(h, newBitmap(uint32(len(chunks))))
		return nil
	}
	from := l.lends(h.file)
	if from == nil {
		from = l.receiver.bases.Lend(a.File.Size)
		if !l.takeLoan(h.file, from) {
			from.Close()
			return nil
		}
	}
	have := newBitmap(uint32(len(chunks)))
	if err := from.Tell(chunks, have.add); err != nil {
		return err
	}
	l.had(h, have)
	return nil
}

// had answers for the chunks that h told.
func (l *incoming) had(h header, have bitmap) {
	l.say.add(append(header{kindHad, h.file, h.index, uint32(len(have))}.bytes(), have...))
}

// takeLoan keeps a loan for a file, unless that has ended.
func (l *incoming) takeLoan(file uint32, from *bases.Loan) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files[file] == nil {
		return false
	}
	l.loans[file] = from
	return true
}

// endLoan ends what a file takes from bases. The caller holds mu.
func (l *incoming) endLoan(file uint32) {
	if from := l.loans[file]; from != nil {
		delete(l.loans, file)
		from.Close()
	}
}
