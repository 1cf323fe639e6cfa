package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
)

// thirdEnv makes the test binary one of the three DTNs of a relayed transfer, to be killed.
// It names a directory whose last element is the site: A sends once what request.json
// says, R passes it on, B takes it.
const thirdEnv = "STREAM_TEST_THIRD"

func third(dir string) {
	if err := runThird(dir); err != nil {
		fmt.Println("failed", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
}

func runThird(dir string) error {
	keys, err := pki.Files{CA: dir + "/../ca/ca.pem", Cert: dir + "/keys/dtn.pem", Key: dir + "/keys/dtn.key"}.Load(nil)
	if err != nil {
		return err
	}
	open := func(name string) *os.Root {
		root, openErr := os.OpenRoot(dir + "/" + name)
		err = errors.Join(err, openErr)
		return root
	}
	e := &Engine{Root: open("export"), TLS: func() *tls.Config { return keys.ClientTLS(pki.Identity{Role: pki.DTN}) }}
	site := filepath.Base(dir)
	if site == "A" {
		var r mover.Request
		b, readErr := os.ReadFile(dir + "/request.json")
		if err = errors.Join(err, readErr, json.Unmarshal(b, &r)); err != nil {
			return err
		}
		err := e.Move(context.Background(), r, func(p mover.Progress) { fmt.Println(p.Moved) })
		if err == nil {
			fmt.Println("done")
		}
		return err
	}
	r, err := NewReceiver(open("export"), open("state"), ReceiverOptions{
		TLS: keys.ServerTLS(nil),
		Check: func(token, _ string) (mover.Ticket, error) {
			return ticket.Verify(keys.Roots(), site, token, time.Now())
		},
		Relay: &RelayOptions{
			Site: site, Box: open("box"), State: open("boxstate"), Engine: e, Space: 1 << 30, ahead: 32,
			Check: func(token string) (mover.Ticket, error) { return ticket.VerifyAny(keys.Roots(), token, time.Now()) },
			Allow: func(from, to string) bool { return from == "A" && to == "B" },
		},
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return r.Serve(context.Background(), l)
}

// process is one of the three, until it is killed.
type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	kill  func()
}

func startThird(t *testing.T, dir string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), thirdEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, lines: bufio.NewScanner(out)}
	p.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	t.Cleanup(p.kill)
	return p
}

// hop is a TCP proxy that counts what goes towards the server. Its address stays.
type hop struct {
	net.Listener
	sent atomic.Int64
	to   atomic.Value // the server's address
}

func newHop(t *testing.T) *hop {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hop{Listener: l}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { h.carry(c) })
		}
	})
	return h
}

func (h *hop) carry(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", h.to.Load().(string))
	if err != nil {
		return
	}
	defer s.Close()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(io.MultiWriter(s, counter{&h.sent}), c)
		s.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(c, s)
		c.Close()
	})
	both.Wait()
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// TestKilledOnTheWayThroughARelay kills each of the three DTNs, further on each time. The
// file arrives, and on neither hop much more is sent than it has.
func TestKilledOnTheWayThroughARelay(t *testing.T) {
	for _, c := range []struct {
		victim string
		mode   mover.RelayMode
	}{{"A", mover.CutThrough}, {"R", mover.CutThrough}, {"B", mover.CutThrough}, {"R", mover.StoreForward}} {
		t.Run(c.victim+" "+string(c.mode), func(t *testing.T) { killed(t, c.victim, c.mode) })
	}
}

func killed(t *testing.T, victim string, mode mover.RelayMode) {
	r := prepare(t)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	if err := pki.InitCA(ca, "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.ca, err = pki.LoadCA(ca); err != nil {
		t.Fatal(err)
	}
	for _, site := range []string{"A", "R", "B"} {
		for _, d := range []string{"keys", "export/outbox", "state", "box", "boxstate"} {
			if err := os.MkdirAll(filepath.Join(dir, site, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := pki.Issue(ca, pki.Identity{Site: site, Role: pki.DTN}, []string{"127.0.0.1"}, time.Hour, filepath.Join(dir, site, "keys")); err != nil {
			t.Fatal(err)
		}
	}
	const size = 160*mover.BlockSize + 1
	r.rig.Source = filepath.Join(dir, "A", "export")
	f := r.stage(t, "image", size)
	toR, toB := newHop(t), newHop(t)
	in := f
	in.Name = mover.Inbox + "/image"
	token, err := ticket.Sign(r.issue(t, "B", pki.Agent), mover.Ticket{ID: "1", Site: "B", From: "A", Via: "R", Address: toB.Addr().String(), File: in, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(mover.Request{
		Key: "1", Source: f, PCP: mover.PCP{Pipelining: 2, Parallelism: 2},
		Destination: mover.Destination{Address: toB.Addr().String(), Ticket: token, Via: mover.Relay{Site: "R", Address: toR.Addr().String(), Mode: mode}},
	})
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "A", "request.json"), b, 0o600)); err != nil {
		t.Fatal(err)
	}
	running := map[string]*process{}
	serve := func(site string, h *hop) {
		if running[site] == nil {
			p := startThird(t, filepath.Join(dir, site))
			if !p.lines.Scan() {
				t.Fatal("site", site, "does not start")
			}
			h.to.Store(p.lines.Text())
			running[site] = p
		}
	}
	move := func(at int64) (end string) {
		serve("R", toR)
		serve("B", toB)
		a := startThird(t, filepath.Join(dir, "A"))
		running["A"] = a
		for a.lines.Scan() {
			end = a.lines.Text()
			if n, err := strconv.ParseInt(end, 10, 64); err == nil && n >= at && running[victim] != nil {
				running[victim].kill()
				delete(running, victim)
			}
		}
		a.kill()
		return end
	}
	for _, at := range []int64{1, size / 3, 2 * size / 3} {
		if end := move(at); running[victim] != nil || end == "done" {
			t.Fatalf("site %s was to be killed at %d bytes: %s", victim, at, end)
		}
	}
	if end := move(size + 1); end != "done" {
		t.Fatal("at last:", end)
	}
	got, err := os.ReadFile(filepath.Join(dir, "B/export/inbox/image"))
	want, wantErr := os.ReadFile(filepath.Join(dir, "A/export/outbox/image"))
	if err = errors.Join(err, wantErr); err != nil || string(got) != string(want) {
		t.Errorf("%d wrong bytes arrived: %v", len(got), err)
	}
	for name, h := range map[string]*hop{"to the relay": toR, "from the relay": toB} {
		if sent := h.sent.Load(); sent > size+64*mover.BlockSize {
			t.Errorf("%d bytes were sent %s for %d", sent, name, int64(size))
		}
	}
}
