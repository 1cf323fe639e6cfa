package stream

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestFarPathsUseBBR holds that the kernel is asked for it on every connection of a link
// whose receiver is not near.
func TestFarPathsUseBBR(t *testing.T) {
	r := newRig(t)
	r.wires.plain = true
	e := r.rig.Engine.(*Engine)
	dial := e.Dial
	var mu sync.Mutex
	var conns []*net.TCPConn
	e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil {
			mu.Lock()
			conns = append(conns, c.(*net.TCPConn))
			mu.Unlock()
			time.Sleep(2 * near) // fake
		}
		return c, err
	}
	f := r.stage(t, "image", 40*mover.BlockSize)
	var once sync.Once
	var used []string
	err := e.Move(t.Context(), r.request(t, f), func(n int64) {
		if n == 0 {
			return
		}
		once.Do(func() {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range conns {
				used = append(used, controlOf(t, c))
			}
			if !congestion(conns[0], bbr) {
				used = nil
				t.Log("this kernel, or its owner, does not let us have it")
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range used {
		if name != bbr {
			t.Errorf("a connection of %d uses %s", len(used), name)
		}
	}
}

// controlOf is the name of the algorithm that controls c's congestion.
func controlOf(t *testing.T, c *net.TCPConn) (name string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		})
	}
	if err != nil {
		t.Error(err)
	}
	return name
}

// tcp returns the two ends of a connection.
func tcp(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	_ = a.SetDeadline(time.Now().Add(time.Minute))
	_ = b.SetDeadline(time.Now().Add(time.Minute))
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// TestADiskThatTakesNothing has the kernel find that a block cannot be written: the
// sender is told so, and the lane goes on with the next file's.
func TestADiskThatTakesNothing(t *testing.T) {
	a, _ := unfollowed(t, 3*mover.BlockSize)
	a.File.Digest, a.hash = digest.Digest{}, nil
	disk := a.data
	defer disk.Close()
	var err error
	if a.data, err = os.Open(disk.Name()); err != nil { // for reading alone
		t.Fatal(err)
	}
	ours, theirs := tcp(t)
	l := a.holder.link
	l.receiver, l.last, l.files[1] = &Receiver{opts: ReceiverOptions{Idle: time.Minute}}, 2, a
	b := &blocks{link: l, conn: theirs, proof: &proof{protection: mover.Clear}, frame: new(frame)}
	defer b.close()
	var writing sync.WaitGroup
	writing.Go(func() {
		for file := range uint32(2) {
			_, _ = ours.Write(append(header{kindBlock, file + 1, 0, mover.BlockSize}.bytes(), make([]byte, mover.BlockSize)...))
		}
	})
	defer writing.Wait()
	l.say.text = nil
	for range 2 { // the second is of a file that has ended
		if err := b.take(); err != nil {
			t.Errorf("the lane ends: %v", err)
			theirs.Close()
			return
		}
	}
	said := bytes.NewReader(l.say.text)
	h, err := readHeader(said)
	if err != nil || h.kind != kindAnswer {
		t.Fatalf("the sender is told %+v, %v", h, err)
	}
	if a, err := readAnswer(said, h.length); err != nil || !strings.Contains(a.Error, "write block 0") {
		t.Errorf("the sender is told %+v, %v", a, err)
	}
}

// TestASourceThatCannotBeRead has the kernel find that: it is the file's fault, and the
// lane's others go on.
func TestASourceThatCannotBeRead(t *testing.T) {
	ours, theirs := tcp(t)
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "image"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(mover.BlockSize); err != nil {
		t.Fatal(err)
	}
	f := &outgoing{id: 1, size: mover.BlockSize, source: &source{File: file}}
	n := &lane{conn: ours, proof: &proof{protection: mover.Clear}}
	if err := n.send(f, 0); !errors.Is(err, errSource) {
		t.Errorf("got %v, want that %v", err, errSource)
	}
	file.Close()
	if f.source.File, err = os.Open(file.Name()); err != nil {
		t.Fatal(err)
	}
	defer f.source.Close()
	theirs.Close()
	for err == nil { // the peer's kernel answers some time after the first
		err = n.sendDirect(ours, f, header{kind: kindBlock, file: 1, length: mover.BlockSize})
	}
	if errors.Is(err, errSource) {
		t.Errorf("a dead connection: %v", err)
	}
}

// TestAFileThatBecameShorterHasNoHole has a file with holes end before the block that is
// sent.
func TestAFileThatBecameShorterHasNoHole(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const size = 4 * mover.BlockSize
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	s := newSource(file, size)
	if !s.hole(3*mover.BlockSize, mover.BlockSize) {
		t.Skip("this file system has no holes")
	}
	for _, size := range []int64{3*mover.BlockSize + 1, mover.BlockSize} {
		if err := file.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if s.hole(3*mover.BlockSize, mover.BlockSize) {
			t.Errorf("a file of %d bytes has a hole behind them", size)
		}
	}
}
