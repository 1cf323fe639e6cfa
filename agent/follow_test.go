package agent

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// oneFile is an inbox with one arrival, and the export that has it.
type oneFile struct {
	Landing
	Stager
	arrival mover.Arrival
	data    []byte
}

func (o *oneFile) Arrival(context.Context, string) (mover.Arrival, error) { return o.arrival, nil }

// BlockCheck knows the blocks of the data as they are when it is called.
func (o *oneFile) BlockCheck(string) func(context.Context, int64, []byte) error {
	data := o.data
	return func(_ context.Context, i int64, block []byte) error {
		off := i * mover.BlockSize
		return digest.Check(sum(data[off:off+int64(len(block))]), sum(block))
	}
}

func (o *oneFile) Open(string) (ReaderAtCloser, error) { return readable(o.data), nil }

type readable []byte

func (r readable) ReadAt(p []byte, off int64) (int, error) { return copy(p, r[off:]), nil }
func (readable) Close() error                              { return nil }

// TestTheProofIsOfTheArrivalThatWasRead has the DTN find the first arrival wrong, drop it
// and get the right one, all while Glance still takes what was read of the first.
func TestTheProofIsOfTheArrivalThatWasRead(t *testing.T) {
	good := bytesOf(3 * mover.BlockSize)
	bad := append([]byte(nil), good...)
	bad[0] ^= 1
	size := int64(len(good))
	o := &oneFile{data: bad, arrival: mover.Arrival{State: mover.Arriving, Proven: size, Moved: size, Since: time.Unix(1, 0)}}
	a := &Agent{Options: Options{Landing: o, Stager: o}}
	c, err := a.arriving(t.Context(), mover.File{Name: "inbox/x", Size: size, Digest: sum(good)}, newPace())
	if err != nil {
		t.Fatal(err)
	}
	r := held(c, size, func(int64) {})
	if _, err := io.ReadFull(r, make([]byte, mover.BlockSize)); err != nil {
		t.Fatal(err)
	}
	o.data, o.arrival = good, mover.Arrival{State: mover.Arrived, Proven: size, Moved: size, Since: time.Unix(60, 0)}
	if n, err := io.Copy(io.Discard, r); !errors.Is(err, mover.ErrNoArrival) {
		t.Errorf("%d more bytes, %v; want %v", n, err, mover.ErrNoArrival)
	}
}
