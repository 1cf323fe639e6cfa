package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// victimEnv makes the test binary a receiver to be killed. It names its directory, and
// callsEnv the address that it calls where it takes no connections.
const (
	victimEnv = "STREAM_TEST_VICTIM"
	callsEnv  = "STREAM_TEST_CALLS"
)

// victimFilesEnv is how many files it may have open.
const victimFilesEnv = "STREAM_TEST_VICTIM_FILES"

// victim serves dir's b and state until it is killed, and says where.
func victim(dir string) {
	if err := runVictim(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runVictim(dir string) error {
	if n, err := strconv.ParseUint(os.Getenv(victimFilesEnv), 10, 64); err == nil {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	keys, err := pki.Files{CA: dir + "/ca/ca.pem", Cert: dir + "/ca/dtn.pem", Key: dir + "/ca/dtn.key"}.Load(nil)
	if err != nil {
		return err
	}
	export, err := os.OpenRoot(dir + "/b")
	if err != nil {
		return err
	}
	state, err := os.OpenRoot(dir + "/state")
	if err != nil {
		return err
	}
	r, err := NewReceiver(export, state, ReceiverOptions{
		TLS: keys.ServerTLS(nil),
		Check: func(token, _ string) (mover.Ticket, error) {
			return ticket.Verify(keys.Roots(), "B", token, time.Now())
		},
	})
	if err != nil {
		return err
	}
	if address := os.Getenv(callsEnv); address != "" {
		fmt.Println(mover.CallbackAddress("B"))
		e := &Engine{TLS: func() *tls.Config { return keys.ClientTLS(pki.Identity{Role: pki.DTN}) }}
		return NewCaller(r, e, []string{address}).Run(context.Background())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return r.Serve(context.Background(), l)
}

// startVictim returns the victim's address, and how to kill it.
func startVictim(t *testing.T, dir, calls string) (address string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+dir, callsEnv+"="+calls)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal("the victim does not start:", err)
	}
	return strings.TrimSpace(line), kill
}

// TestReceiverKilled kills the receiver's process time and again, further on each
// time, and once when all is proven. The file arrives, and little is sent twice.
func TestReceiverKilled(t *testing.T) {
	r := newRig(t)
	r.stop()
	receiverKilled(t, r, func() string { return "" })
}

// TestCallerKilled is TestReceiverKilled where the receiver connects to the sender.
func TestCallerKilled(t *testing.T) {
	r := prepareCallback(t, mover.Private)
	receiverKilled(t, r.rig, func() string {
		r.openDoor(t, "127.0.0.1:0")
		return r.door
	})
}

// receiverKilled has the receiver connect to the address that door returns, if any.
func receiverKilled(t *testing.T, r *rig, door func() string) {
	dir := filepath.Dir(r.state)
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.ca, err = pki.LoadCA(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Issue(ca, pki.Identity{Site: "B", Role: pki.DTN}, []string{"127.0.0.1"}, time.Hour, ca); err != nil {
		t.Fatal(err)
	}
	agent := r.issue(t, "B", pki.Agent)
	r.rig.Sign = func(tk mover.Ticket) (string, error) { return ticket.Sign(agent, tk) }
	engine := r.engine(t, r.rig.Source, r.issue(t, "A", pki.DTN))
	engine.Callbacks = r.rig.Engine.(*Engine).Callbacks
	calls := door()

	const size = 48*mover.BlockSize + 1
	req := r.request(t, r.stage(t, "image", size))
	req.PCP = mover.PCP{Pipelining: 2, Parallelism: 2}
	for _, at := range []int64{1, size / 3, 2 * size / 3, size} {
		var kill func()
		req.Destination.Address, kill = startVictim(t, dir, calls)
		err := engine.Move(t.Context(), req, func(p mover.Progress) {
			if p.Moved >= at {
				kill()
			}
		})
		kill()
		if err == nil && at < size {
			t.Errorf("killed at %d bytes, and the move succeeded", at)
		}
		if code := mover.CodeOf(err); err != nil && code != mover.CodeOther {
			t.Errorf("killed at %d bytes: %v (code %s)", at, err, code)
		}
	}
	address, _ := startVictim(t, dir, calls)
	req.Destination.Address = address
	if err := engine.Move(t.Context(), req, func(mover.Progress) {}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "b/inbox/image"))
	want, wantErr := os.ReadFile(filepath.Join(dir, "a/outbox/image"))
	if err = errors.Join(err, wantErr); err != nil || string(got) != string(want) {
		t.Errorf("%d wrong bytes arrived: %v", len(got), err)
	}
	if sent := r.wires.sent.Load(); sent > size+32*mover.BlockSize {
		t.Errorf("%d bytes were sent for %d", sent, int64(size))
	}
}
