package jobs

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
)

// What a child is told in its environment.
const (
	childRole  = "GLANCE_DTN_TEST_ROLE"
	childPlace = "GLANCE_DTN_TEST_PLACE"
)

// child plays an agent until it is killed. It prints one line for each thing done.
func child(role string) int {
	err := map[string]func(context.Context, string) error{"write": write, "work": work, "weigh": weigh}[role](context.Background(), os.Getenv(childPlace))
	fmt.Fprintln(os.Stderr, role, err)
	return 1
}

// write creates and updates jobs in the directory without an end.
func write(ctx context.Context, dir string) error {
	s, err := OpenEmbedded(ctx, dir, quiet)
	if err != nil {
		return err
	}
	there := 0
	for _, err := range s.All(ctx) {
		if err != nil {
			return err
		}
		there++
	}
	for n := there; ; n++ {
		if err := s.Create(ctx, sample(n)); err != nil {
			return err
		}
		j, err := s.Get(ctx, sample(n).ID)
		if err != nil {
			return err
		}
		c, err := s.Claim(ctx, j, "send/B", 1)
		if err != nil {
			return err
		}
		if _, err := c.Update(ctx, j.Enter(agent.Verified, oclock, "")); err != nil {
			return err
		}
		fmt.Println(n)
		c.Release()
	}
}

// work claims the one job in the etcd at the endpoint and holds it.
func work(ctx context.Context, endpoint string) error {
	s, err := OpenRemote(ctx, Options{Endpoints: []string{endpoint}, Prefix: "/glance-dtn", Site: "A", Log: quiet})
	if err != nil {
		return err
	}
	s.ttl = shortTTL
	for j, err := range s.All(ctx) {
		if err != nil {
			return err
		}
		c, err := s.Claim(ctx, j, "send/B", 1)
		if err != nil {
			return err
		}
		fmt.Println("claimed")
		<-c.Context().Done()
	}
	return nil
}

// weigh fills the directory with 1,000 jobs and prints this process's memory in KiB.
func weigh(ctx context.Context, dir string) error {
	s, err := OpenEmbedded(ctx, dir, quiet)
	if err != nil {
		return err
	}
	for n := range 1000 {
		if err := s.Create(ctx, sample(n)); err != nil {
			return err
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	fmt.Println(strings.Fields(rss)[0])
	return s.Close()
}

// startChild starts a child and returns its lines, which end with it. wait returns
// when nothing is left of it.
func startChild(t testing.TB, role, place string) (lines *bufio.Scanner, kill, wait func()) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role, childPlace+"="+place)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { cmd.Process.Kill() }
	wait = sync.OnceFunc(func() { cmd.Wait() })
	t.Cleanup(func() { kill(); wait() })
	return bufio.NewScanner(out), kill, wait
}

func TestNothingIsLostByKill(t *testing.T) {
	t.Parallel()
	dir, done := t.TempDir(), map[string]bool{}
	for round := range 6 {
		lines, kill, wait := startChild(t, "write", dir)
		some := 1 + rand.IntN(100)
		if round%2 == 1 { // while it opens the store, or soon after
			time.AfterFunc(rand.N(400*time.Millisecond), kill)
		}
		for lines.Scan() {
			done[lines.Text()] = true
			if some--; some == 0 { // in the middle of work
				kill()
			}
		}
		wait()
	}
	s, err := OpenEmbedded(t.Context(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	for line := range done {
		n, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(err)
		}
		if j := get(t, s, sample(n).ID); j.State != agent.Verified {
			t.Errorf("job %d was reported as verified and is %s", n, j.State)
		}
	}
	claimJob(t, s, get(t, s, sample(0).ID)).Release() // what died held the only place
	keys, err := s.etcd.Get(t.Context(), s.prefix+"slots/send/B/0")
	if err != nil || keys.Count != 0 {
		t.Errorf("a dead process holds a place: %v %v", keys, err)
	}
}

func TestTheJobOfAKilledWorkerIsFreeAfterItsLease(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	s := e.open(t, claimTTL)
	j := create(t, s, 1)
	lines, kill, _ := startChild(t, "work", e.endpoint)
	if !lines.Scan() {
		t.Fatal("the child did not claim the job")
	}
	_, err := s.Claim(t.Context(), j, "send/B", 1)
	wantErr(t, "claim while the worker lives", err, agent.ErrBusy)
	kill()
	takeOver(t, e, j).Release()
}

func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		lines, _, _ := startChild(b, "weigh", b.TempDir())
		if !lines.Scan() {
			b.Fatal("the child ended without a result")
		}
		kib, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(kib/1024, "MiB-RSS")
	}
}

func BenchmarkCreate(b *testing.B) {
	s := embedded(b)(b, claimTTL)
	for n := 0; b.Loop(); n++ {
		if err := s.Create(b.Context(), sample(n)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	s := embedded(b)(b, claimTTL)
	j := create(b, s, 0)
	for b.Loop() {
		var err error
		if j, err = s.Update(b.Context(), j); err != nil {
			b.Fatal(err)
		}
	}
}
