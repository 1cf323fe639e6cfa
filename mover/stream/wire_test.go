package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestBlocksCoverTheFile(t *testing.T) {
	for _, size := range []int64{0, 1, mover.BlockSize - 1, mover.BlockSize, mover.BlockSize + 1, 5*mover.BlockSize + 7, maxBlocks * mover.BlockSize} {
		n := blockCount(size)
		if n == 0 {
			if size != 0 {
				t.Errorf("%d bytes are no block", size)
			}
			continue
		}
		last := blockLen(size, n-1)
		if end := blockStart(n-1) + int64(last); last == 0 || end != size {
			t.Errorf("%d blocks of a file of %d bytes end at %d", n, size, end)
		}
	}
}

// FuzzHeader holds that a header is written back as it was read, and that one that fits
// a file names a block inside it.
func FuzzHeader(f *testing.F) {
	for _, h := range []header{{kindBlock, 1, 2, 5}, {kind: kindPing}, {kind: 77}} {
		f.Add(h.bytes(), int64(2*mover.BlockSize+5))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) != headerSize || size < 0 || size > maxBlocks*mover.BlockSize {
			t.Skip()
		}
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if again := h.bytes(); !bytes.Equal(b, again) {
			t.Errorf("%x was read as %+v", b, h)
		}
		if h.fits(size) == nil && (h.length == 0 || h.length > mover.BlockSize || blockStart(h.index)+int64(h.length) > size) {
			t.Errorf("%+v of a file of %d bytes", h, size)
		}
	})
}

// FuzzHello holds that a hello is read as it was written, and nothing long is held.
func FuzzHello(f *testing.F) {
	f.Add(hello{Version: version, Link: "s", Lane: true, Protection: mover.Safe}.bytes())
	f.Add(binary.BigEndian.AppendUint32(nil, maxHello+1))
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, err := readHello(bytes.NewReader(h.bytes())); again != h || err != nil {
			t.Errorf("%+v was read again as %+v, %v", h, again, err)
		}
	})
}

// FuzzTickets holds that a ticket is read as it was meant, whatever went before it.
func FuzzTickets(f *testing.F) {
	f.Add("", "header.claims.signature")
	f.Add("header.claims.signature", "header.other.signature")
	f.Add("header.claims", "header")
	f.Add("grün", "grüßt")
	f.Fuzz(func(t *testing.T, before, ticket string) {
		if len(ticket) > maxOpen/2 {
			t.Skip()
		}
		b := opening{Ticket: ticket, Size: 1}.after(before).bytes(1)
		r := bytes.NewReader(b)
		h, err := readHeader(r)
		if err != nil || h.kind != kindOpen || h.file != 1 {
			t.Fatalf("%+v, %v", h, err)
		}
		o, err := readOpening(r, h)
		if err != nil || r.Len() > 0 {
			t.Fatalf("%v, and %d bytes are left", err, r.Len())
		}
		if o, err := o.whole(before); err != nil || o != (opening{Ticket: ticket, Size: 1}) {
			t.Errorf("%q after %q was read as %+v, %v", ticket, before, o, err)
		}
	})
}

func TestATicketIsSentAsFarAsItIsNew(t *testing.T) {
	o := opening{Ticket: "header.new.signature"}.after("header.old.signature")
	if want := (opening{Same: len("header."), Ticket: "new.signature"}); o != want {
		t.Errorf("%+v is sent, want %+v", o, want)
	}
	long := strings.Repeat("x", maxOpen)
	if o, err := (opening{Same: len(long), Ticket: "y"}).whole(long); err == nil {
		t.Errorf("a ticket grows to %d bytes", len(o.Ticket))
	}
}

func TestHelloOfAnotherReleaseSaysSo(t *testing.T) {
	_, err := readHello(bytes.NewReader(hello{Version: version + 1}.bytes()))
	if err == nil || !strings.Contains(err.Error(), "same release") {
		t.Errorf("got %v", err)
	}
}

func TestLongMessagesAreNotRead(t *testing.T) {
	if _, err := readHello(bytes.NewReader(binary.BigEndian.AppendUint32(nil, maxHello+1))); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("hello: %v", err)
	}
	if _, err := readAnswer(strings.NewReader(""), maxAnswer+1); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("answer: %v", err)
	}
}

func TestAnswerToTheLongestFileFits(t *testing.T) {
	have := newBitmap(maxBlocks)
	for i := range have {
		have[i] = 0xff
	}
	b := answer{Block: mover.BlockSize, Have: have}.bytes(1)
	if len(b) > maxAnswer {
		t.Errorf("%d bytes, at most %d are read", len(b), maxAnswer)
	}
	var a answer
	if err := json.Unmarshal(b[headerSize:], &a); err != nil || !a.Have.has(maxBlocks-1) {
		t.Errorf("the last block is missing: %v", err)
	}
}

// TestARefusalIsNotTakenAsItComes holds what a peer cannot do with one.
func TestARefusalIsNotTakenAsItComes(t *testing.T) {
	long := strings.Repeat("no\n", 1<<20)
	err := answer{Code: "made up", Error: long}.err()
	if mover.CodeOf(err) != mover.CodeOther || len(err.Error()) > 1<<10 || strings.Contains(err.Error(), "\n") {
		t.Errorf("got code %s and %d bytes: %.20q", mover.CodeOf(err), len(err.Error()), err)
	}
	if err := (answer{Code: mover.CodeSpace, Error: "no space"}).err(); mover.CodeOf(err) != mover.CodeSpace || err.Error() != "no space" {
		t.Errorf("got code %s and %v", mover.CodeOf(err), err)
	}
	if a := refusal(errors.New(long)); len(a.Error) > 1<<10 {
		t.Errorf("%d bytes are passed on", len(a.Error))
	}
	synctest.Test(t, func(t *testing.T) {
		for wait, want := range map[time.Duration]time.Duration{1: time.Second, time.Minute: time.Minute, math.MaxInt64: time.Hour} {
			w := waits(answer{Code: mover.CodeOther, Error: long, Wait: wait}.err())
			if w == nil || time.Until(w.Until) != want || len(w.Reason) > 2<<10 {
				t.Errorf("a wait of %v: %.100v, want %v", wait, w, want)
			}
		}
	})
}

// FuzzJournal holds that whatever is found in a journal claims only blocks of the file, and
// nothing by a torn record.
func FuzzJournal(f *testing.F) {
	one := journalRecord(3, digest.Block{7})
	f.Add(one, uint32(4))
	f.Add(append(one, one[:20]...), uint32(3))
	f.Fuzz(func(t *testing.T, b []byte, n uint32) {
		claims := 0
		err := parseJournal(bytes.NewReader(b), n, func(i uint32, _ digest.Block) {
			if claims++; i >= n {
				t.Errorf("block %d of %d", i, n)
			}
		})
		if most := len(b) / recordSize; err != nil || claims > most {
			t.Errorf("%d claims, %v; want %d at most", claims, err, most)
		}
	})
}
