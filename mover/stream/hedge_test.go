package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// farConn takes a time for each long write, a piece of a block.
type farConn struct {
	net.Conn
	takes  func(piece int) time.Duration
	pieces int
	closed chan struct{}
	once   *sync.Once
}

func (c *farConn) Write(b []byte) (int, error) {
	if len(b) >= pieceSize {
		c.pieces++
		select {
		case <-time.After(c.takes(c.pieces)):
		case <-c.closed:
		}
	}
	return c.Conn.Write(b)
}

func (c *farConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestAnUnluckyConnectionDoesNotHoldTheEnd moves over lanes of which one becomes slow, or
// takes nothing more, in the middle of a block.
func TestAnUnluckyConnectionDoesNotHoldTheEnd(t *testing.T) {
	const blocks, piece = 32, 5 * time.Millisecond
	for name, unlucky := range map[string]func(int) time.Duration{
		"silent": func(n int) time.Duration {
			if n > 20 {
				return time.Hour
			}
			return piece
		},
		"slow": func(n int) time.Duration { return 100 * piece },
	} {
		for _, p := range []mover.Protection{mover.Private, mover.Safe, mover.Clear} {
			t.Run(name+"/"+string(p), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newPipeRig(t)
					e := r.rig.Engine.(*Engine)
					r.opts.Protection, e.Protection = p, p
					dial, conns := e.Dial, 0
					var mu sync.Mutex
					e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
						time.Sleep(10 * near)
						c, err := dial(ctx, network, address)
						mu.Lock()
						defer mu.Unlock()
						far := &farConn{Conn: c, takes: func(int) time.Duration { return piece }, closed: make(chan struct{}), once: new(sync.Once)}
						if conns++; conns == 2 {
							far.takes = unlucky
						}
						return far, err
					}
					r.start(t, "")
					defer r.stop()
					req := r.request(t, r.stage(t, "image", blocks*mover.BlockSize))
					req.PCP.Parallelism = 4
					begin := time.Now()
					var last mover.Progress
					if err := e.Move(t.Context(), req, func(p mover.Progress) { last = p }); err != nil {
						t.Fatal(err)
					}
					took, least := time.Since(begin), blocks*(mover.BlockSize/pieceSize)*piece/4
					if took > 3*least {
						t.Errorf("it took %v, want not much more than %v", took, least)
					}
					if w := last.Way.Wire; w < blocks*mover.BlockSize || w > (blocks+8)*mover.BlockSize {
						t.Errorf("%d bytes on the wire for %d blocks", w, blocks)
					}
				})
			})
		}
	}
}

// TestTheCopyThatIsWholeFirstIsTheBlock sends a block over two lanes at once. Only a lane
// that still brings it when the other one has ends.
func TestTheCopyThatIsWholeFirstIsTheBlock(t *testing.T) {
	for _, firstWins := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) { // where a write ends when it was read
			s, second := twoLanes(t)
			b := s.block(0)
			half := len(b) / 2
			write(t, s.lane, b[:half])
			write(t, second, b[:half])
			if firstWins {
				write(t, s.lane, b[half:])
				s.hears(kindProven, 0)
				write(t, second, b[half:])
				s.hears(kindProven, 0)
			} else {
				write(t, second, b[half:])
				s.hears(kindProven, 0)
				if _, err := s.lane.Read(make([]byte, 1)); err == nil {
					t.Error("the lane that lost goes on")
				}
			}
			s.lane = second
			if a := s.last(1); !a.Done {
				t.Errorf("the end is %+v", a)
			}
		})
	}
}

// TestALaneThatHasABlockWholeIsNotCutForIt has a slow disk hold a block that has come, and
// another copy come meanwhile.
func TestALaneThatHasABlockWholeIsNotCutForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writeAt = func(f *os.File, b []byte, off int64) (int, error) {
			time.Sleep(10 * time.Second)
			return f.WriteAt(b, off)
		}
		defer func() { writeAt = (*os.File).WriteAt }()
		s, second := twoLanes(t)
		b := s.block(0)
		half := len(b) / 2
		write(t, s.lane, b[:half])
		write(t, second, b[:half])
		write(t, s.lane, b[half:])
		synctest.Wait() // the disk has it
		write(t, second, b[half:])
		for range 2 {
			s.hears(kindProven, 0)
		}
		if a := s.last(1); !a.Done {
			t.Errorf("the end is %+v", a)
		}
	})
}

// TestADamagedSecondCopyIsNoBlock damages a copy that comes before the other one, or after
// it: then the block is there all the same.
func TestADamagedSecondCopyIsNoBlock(t *testing.T) {
	for _, first := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s, second := twoLanes(t)
			b := s.block(0)
			half := len(b) / 2
			write(t, s.lane, b[:half])
			bad := bytes.Clone(b)
			bad[len(bad)/3] ^= 1
			write(t, second, bad[:half])
			if first {
				write(t, second, bad[half:])
				s.hears(kindAgain, 0)
			}
			write(t, s.lane, b[half:])
			s.hears(kindProven, 0)
			if !first {
				write(t, second, bad[half:])
				s.hears(kindProven, 0)
			}
			s.lane = second
			if a := s.last(1); !a.Done {
				t.Errorf("the end is %+v", a)
			}
		})
	}
}

// twoLanes opens a file of two blocks, for which there are two lanes.
func twoLanes(t *testing.T) (s *sender, second *tls.Conn) {
	t.Helper()
	r := newPipeRig(t)
	r.start(t, "")
	t.Cleanup(r.stop)
	s, _ = r.open(t, r.request(t, r.stage(t, "image", mover.BlockSize+1)), "link")
	second, _ = r.greet(t, "link", true)
	t.Cleanup(func() { s.control.Close() })
	return s, second
}

func (s *sender) hears(k kind, index uint32) {
	s.t.Helper()
	if h, _ := hear(s.t, s.control); h.kind != k || h.index != index {
		s.t.Fatalf("the receiver says %+v, want kind %d of block %d", h, k, index)
	}
}
