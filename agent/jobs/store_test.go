package jobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/glance-dtn/glance-dtn/agent"
)

func TestAJobComesBackAsItWasStored(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s := open(t, claimTTL)
		want := sample(1)
		want.Created = time.Now().In(time.FixedZone("east", 7200)) // with a monotonic reading
		if err := s.Create(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		got := get(t, s, want.ID)
		if !got.Created.Equal(want.Created) || got.Created.Location() != time.UTC {
			t.Errorf("created %v, want %v in UTC", got.Created, want.Created)
		}
		want.Created, want.Rev = got.Created, got.Rev
		if got.Rev == 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v with a Rev", got, want)
		}
		updated, err := s.Update(t.Context(), got.Enter(agent.Offered, time.Now(), "accepted"))
		if err != nil {
			t.Fatal(err)
		}
		if again := get(t, s, want.ID); !reflect.DeepEqual(updated, again) {
			t.Errorf("Update returned %+v, Get %+v", updated, again)
		}
	})
}

func TestChangesCompareTheRevision(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s, other, ctx := open(t, claimTTL), open(t, claimTTL), t.Context()
		j := create(t, s, 1)
		wantErr(t, "create a job twice", other.Create(ctx, j), agent.ErrExists)
		_, err := s.Get(ctx, "none")
		wantErr(t, "get a job that is not there", err, agent.ErrNoJob)

		newer, err := other.Update(ctx, j)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Update(ctx, j)
		wantErr(t, "update an old revision", err, agent.ErrStale)
		wantErr(t, "delete a job that is not final", s.Delete(ctx, newer), agent.ErrBadState)
		final, err := s.Update(ctx, newer.Enter(agent.Verified, oclock, ""))
		if err != nil {
			t.Fatal(err)
		}
		old := final
		old.Rev = newer.Rev
		wantErr(t, "delete an old revision", s.Delete(ctx, old), agent.ErrStale)
		for range 2 {
			if err := s.Delete(ctx, final); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		_, err = s.Update(ctx, final)
		wantErr(t, "update a deleted job", err, agent.ErrStale)
		_, err = s.Get(ctx, j.ID)
		wantErr(t, "get a deleted job", err, agent.ErrNoJob)
	})
}

func TestAllYieldsInOrderOfCreation(t *testing.T) {
	t.Parallel()
	onEtcd(t, func(t *testing.T, open cluster) {
		s := open(t, claimTTL)
		var want []agent.JobID
		for n := range 2*jobsPage + 1 {
			j := sample(n)
			if err := s.Create(t.Context(), j); err != nil {
				t.Fatal(err)
			}
			want = append(want, j.ID)
		}
		if _, err := s.Update(t.Context(), get(t, s, want[0])); err != nil {
			t.Fatal(err)
		}
		var got []agent.JobID
		for j, err := range s.All(t.Context()) {
			if err != nil || j.Rev == 0 {
				t.Fatalf("got Rev %d, error %v", j.Rev, err)
			}
			got = append(got, j.ID)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestAllGoesOnAfterARecordThatCannotBeRead(t *testing.T) {
	t.Parallel()
	s := embedded(t)(t, claimTTL)
	first := create(t, s, 1)
	if _, err := s.etcd.Put(t.Context(), s.job("newer"), `{"v":2}`); err != nil {
		t.Fatal(err)
	}
	last := create(t, s, 2)
	var got []agent.JobID
	for j, err := range s.All(t.Context()) {
		if bad := j.ID == "newer"; bad != (err != nil) {
			t.Errorf("job %s: error %v", j.ID, err)
		}
		got = append(got, j.ID)
	}
	if want := []agent.JobID{first.ID, "newer", last.ID}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAChangeWhoseAnswerWasLostIsDoneOnce(t *testing.T) {
	t.Parallel()
	open := embedded(t)
	s, sure := open(t, claimTTL), open(t, claimTTL)
	lost := 0
	client := clientv3.NewCtxClient(t.Context())
	client.KV, client.Lease = flaky{s.etcd.KV, &lost, rpctypes.ErrTimeout}, s.etcd.Lease
	s.etcd = client
	ctx := t.Context()

	lost = 2
	j := create(t, s, 1)
	lost = 2
	j, err := s.Update(ctx, j.Enter(agent.Offered, oclock, ""))
	if err != nil {
		t.Fatalf("update: %v", err)
	}
	if got := get(t, sure, j.ID); got.Rev != j.Rev {
		t.Errorf("update returned revision %d, stored is %d", j.Rev, got.Rev)
	}
	// The read that Claim begins with loses its answer, then the claim itself.
	lost = 2
	c := claimJob(t, s, j)
	lost = 1
	if j, err = c.Update(ctx, j.Enter(agent.Verified, oclock, "")); err != nil {
		t.Errorf("update by the claim: %v", err)
	}
	lost = 1
	if err := s.Delete(ctx, j); err != nil {
		t.Errorf("delete: %v", err)
	}
	lost = 1
	if err := s.Create(ctx, j); err != nil {
		t.Errorf("create again: %v", err)
	}
	if lost != 0 {
		t.Errorf("%d answers were not asked for", lost)
	}
	lost = 1
	wantErr(t, "create what another created", s.Create(ctx, j), agent.ErrExists)
}

func TestAClosedStoreSaysSo(t *testing.T) {
	t.Parallel()
	s, err := OpenEmbedded(t.Context(), t.TempDir(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	j := create(t, s, 1)
	c, err := s.Claim(t.Context(), j, "send/B", 1)
	if err != nil {
		t.Fatal(err)
	}
	watch := s.Watch(t.Context())
	for range 2 {
		closeStore(t, s)
	}
	for e, err := range watch {
		if !errors.Is(err, errClosed) {
			t.Errorf("Watch yields %+v, %v", e, err)
		}
	}
	_, err = c.Update(t.Context(), j)
	wantErr(t, "update", err, errClosed)
	_, err = s.Get(t.Context(), j.ID)
	wantErr(t, "get", err, errClosed)
	c.Release()
}

func TestOneProcessAtATimeHasADirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "agent")
	s, err := OpenEmbedded(t.Context(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	_, err = OpenEmbedded(t.Context(), dir, quiet)
	if err == nil || !strings.Contains(err.Error(), "another agent, or a --once that still runs") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got error %v", err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v, want 0700 (%v)", info.Mode(), err)
	}
}

func TestADirectoryThatCannotBeMadeIsToldWithItsKey(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenEmbedded(t.Context(), filepath.Join(file, "agent"), quiet)
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "state.embedded has to be a directory") {
		t.Errorf("got error %v, want the directory and state.embedded in it", err)
	}
}

func TestADirectoryThatWasNeverCompleteIsMadeAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := OpenEmbedded(stopped, dir, quiet)
	wantErr(t, "open that was stopped", err, context.Canceled)
	if err := os.RemoveAll(filepath.Join(dir, newDir)); err != nil {
		t.Fatal(err)
	}
	// The log as etcd creates it, without the first entries: it would wait for a leader for ever.
	log, err := wal.Create(zap.NewNop(), filepath.Join(dir, newDir, "member", "wal"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := OpenEmbedded(t.Context(), dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, 1)
	closeStore(t, s)
}

func TestAnEtcdThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	endpoint := "unix://" + filepath.Join(t.TempDir(), "none")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := OpenRemote(ctx, Options{Endpoints: []string{endpoint}, Prefix: "/x", Site: "A"})
	if err == nil || !strings.Contains(err.Error(), endpoint) || !strings.Contains(err.Error(), "state.endpoints") {
		t.Errorf("got error %v", err)
	}
}

func TestSitesThatShareAClusterDoNotShareJobs(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	a, other := e.site(t, "A"), e.site(t, "B")
	j := create(t, a, 1)
	if err := other.Create(t.Context(), j); err != nil {
		t.Errorf("the same job at another site: %v", err)
	}
	for j, err := range e.site(t, "C").All(t.Context()) {
		t.Errorf("a third site sees %v, %v", j.ID, err)
	}
}
