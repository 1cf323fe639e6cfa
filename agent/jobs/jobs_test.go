package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// A process of this binary with child set in its environment plays an agent
// that will be killed.
func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.DiscardHandler)

// cluster opens stores that share their jobs.
type cluster func(t testing.TB, ttl time.Duration) *Store

// onEtcd runs a test on the embedded etcd and, where it is installed, on
// Debian's etcd-server as an operator's own.
func onEtcd(t *testing.T, test func(t *testing.T, open cluster)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, embedded(t))
	})
	t.Run("external", func(t *testing.T) {
		t.Parallel()
		e := startExternal(t)
		test(t, func(t testing.TB, ttl time.Duration) *Store { return e.open(t, ttl) })
	})
}

func embedded(t testing.TB) cluster {
	s, err := OpenEmbedded(t.Context(), t.TempDir(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return func(_ testing.TB, ttl time.Duration) *Store {
		return &Store{etcd: s.etcd, prefix: s.prefix, ttl: ttl, log: quiet, stop: func() error { return nil }}
	}
}

func closeStore(t testing.TB, s *Store) {
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// external is an etcd process that listens on a socket.
type external struct {
	endpoint string
	*exec.Cmd
}

func startExternal(t testing.TB) *external {
	path, err := exec.LookPath("etcd")
	if err != nil && os.Getenv("GLANCE_DTN_REAL") != "" {
		t.Fatal("no etcd here: apt-get install etcd-server")
	}
	if err != nil {
		t.Skip("no etcd here: apt-get install etcd-server; `make test` does")
	}
	dir, err := os.MkdirTemp("", "etcd") // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &external{"unix://" + filepath.Join(dir, "client:1"), exec.Command(path, "--name=a", "--data-dir=data",
		"--listen-client-urls=unix://client:1", "--advertise-client-urls=unix://client:1",
		"--listen-peer-urls=unix://peer:1", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=a=http://127.0.0.1:2380", "--log-level=error")}
	e.Dir, e.Stderr = dir, t.Output()
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Process.Kill()
		e.Wait()
	})
	return e
}

func (e *external) open(t testing.TB, ttl time.Duration) *Store {
	s := e.site(t, "A")
	s.ttl = ttl
	return s
}

// site opens the store of a site.
func (e *external) site(t testing.TB, name string) *Store {
	s, err := OpenRemote(t.Context(), Options{Endpoints: []string{e.endpoint}, Prefix: "/glance-dtn", Site: name, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

var oclock = time.Date(2026, 11, 21, 12, 0, 0, 123, time.UTC)

// sample returns a job as large as jobs are, with every kind of field set.
func sample(n int) agent.Job {
	image := glance.Image{
		ID: glance.ImageID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)), Name: "Ubuntu 24.04 \u2665", Status: glance.Active,
		Size: 1 << 30, Hash: digest.Digest{Algo: "sha512", Value: fmt.Sprintf("%0128d", n)}, DiskFormat: "qcow2",
		Tags: []string{"lts"}, Properties: map[string]string{"os_distro": "ubuntu", "hw_disk_bus": "virtio"},
		CreatedAt: oclock.Add(-time.Hour), UpdatedAt: oclock.Add(-time.Minute),
	}
	j := agent.Job{Kind: agent.Send, Peer: "B", Image: image, Created: oclock, Offer: agent.Grant{Verdict: agent.Accept, Ticket: "t"}}
	j.ID = agent.NewJobID(j.Kind, image.ID, image.Hash, j.Peer)
	return j.Enter(agent.Pending, oclock, "found by a scan")
}

func create(t testing.TB, s *Store, n int) agent.Job {
	t.Helper()
	if err := s.Create(t.Context(), sample(n)); err != nil {
		t.Fatal(err)
	}
	return get(t, s, sample(n).ID)
}

func get(t testing.TB, s *Store, id agent.JobID) agent.Job {
	t.Helper()
	j, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func claimJob(t testing.TB, s *Store, j agent.Job) agent.Claim {
	t.Helper()
	c, err := s.Claim(t.Context(), j, "send/B", 100)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Release)
	return c
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

// await polls until cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited too long until %s", what)
		case <-tick.C:
		}
	}
}

// end waits for the end of a claim and returns its cause.
func end(t testing.TB, c agent.Claim) error {
	t.Helper()
	select {
	case <-c.Context().Done():
		return context.Cause(c.Context())
	case <-time.After(time.Minute):
		t.Fatal("the claim does not end")
		return nil
	}
}

// flaky loses answers: a transaction is done but its first answer is an error.
type flaky struct {
	clientv3.KV
	lost *int
	err  error
}

type flakyTxn struct {
	clientv3.Txn
	kv flaky
}

func (f flaky) Txn(ctx context.Context) clientv3.Txn { return flakyTxn{f.KV.Txn(ctx), f} }

func (f flakyTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { return flakyTxn{f.Txn.If(cs...), f.kv} }
func (f flakyTxn) Then(ops ...clientv3.Op) clientv3.Txn { return flakyTxn{f.Txn.Then(ops...), f.kv} }
func (f flakyTxn) Else(ops ...clientv3.Op) clientv3.Txn { return flakyTxn{f.Txn.Else(ops...), f.kv} }

func (f flakyTxn) Commit() (*clientv3.TxnResponse, error) {
	r, err := f.Txn.Commit()
	if err == nil && *f.kv.lost > 0 {
		*f.kv.lost--
		return nil, f.kv.err
	}
	return r, err
}
