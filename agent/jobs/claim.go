package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/glance-dtn/glance-dtn/agent"
)

// progressEvery is the least time between two reports of one claim that are stored.
const progressEvery = time.Second

// Claim takes the job and a place in the slot in one transaction. It returns
// agent.ErrBusy when another worker has the job, agent.ErrFull when the slot is full,
// agent.ErrStale when j.Rev is not the stored one, and agent.ErrNoJob.
func (s *Store) Claim(ctx context.Context, j agent.Job, slot string, limit int) (agent.Claim, error) {
	c, err := s.take(ctx, j, slot, limit)
	if err != nil {
		return nil, fmt.Errorf("claim job %s: %w", j.ID, err)
	}
	return c, nil
}

func (s *Store) take(ctx context.Context, j agent.Job, slot string, limit int) (*claim, error) {
	place, err := s.vacancy(ctx, j, slot, limit)
	if err != nil {
		return nil, err
	}
	var asked time.Time
	lease, err := try(ctx, s, func(ctx context.Context) (*clientv3.LeaseGrantResponse, error) {
		asked = time.Now()
		return s.etcd.Grant(ctx, int64(s.ttl/time.Second))
	})
	if err != nil {
		return nil, err
	}
	created, err := s.occupy(ctx, j, slot, limit, place, lease.ID)
	if err != nil {
		s.revoke(ctx, j.ID, lease.ID)
		return nil, err
	}
	return s.newClaim(ctx, j.ID, lease.ID, created, asked.Add(safe(lease.TTL))), nil
}

// vacancy returns the key of a free place in the slot, or why j cannot be claimed now.
func (s *Store) vacancy(ctx context.Context, j agent.Job, slot string, limit int) (string, error) {
	r, err := s.txn(ctx, // a slot has many keys: it is read only for a job that is free
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.job(j.ID)), ">", 0), s.unchanged(j), absent(s.claim(j.ID))},
		[]clientv3.Op{clientv3.OpGet(s.slot(slot), clientv3.WithPrefix(), clientv3.WithKeysOnly())},
		[]clientv3.Op{clientv3.OpGet(s.job(j.ID), clientv3.WithKeysOnly())})
	if err != nil {
		return "", err
	}
	found := r.Responses[0].GetResponseRange().Kvs
	switch {
	case r.Succeeded:
	case len(found) == 0:
		return "", agent.ErrNoJob
	case found[0].ModRevision != j.Rev:
		return "", agent.ErrStale
	default:
		return "", agent.ErrBusy
	}
	taken := map[int]bool{}
	for _, kv := range found {
		if n, err := strconv.Atoi(strings.TrimPrefix(string(kv.Key), s.slot(slot))); err == nil {
			taken[n] = true
		}
	}
	if len(taken) >= limit { // places beyond the limit count too: it may have been higher
		return "", agent.ErrFull
	}
	n := 0
	for taken[n] {
		n++
	}
	return s.slot(slot) + strconv.Itoa(n), nil
}

// occupy takes the job and the place, or another place when it was taken
// meanwhile, and returns the create revision of the claim.
func (s *Store) occupy(ctx context.Context, j agent.Job, slot string, limit int, place string, lease clientv3.LeaseID) (int64, error) {
	for {
		r, err := s.txn(ctx,
			[]clientv3.Cmp{s.unchanged(j), absent(s.claim(j.ID)), absent(place)},
			[]clientv3.Op{
				clientv3.OpPut(s.claim(j.ID), holder(), clientv3.WithLease(lease)),
				clientv3.OpPut(place, string(j.ID), clientv3.WithLease(lease)),
			},
			[]clientv3.Op{clientv3.OpGet(s.claim(j.ID))})
		if err != nil {
			return 0, err
		}
		if r.Succeeded {
			return r.Header.Revision, nil
		}
		for _, kv := range r.Responses[0].GetResponseRange().Kvs {
			if kv.Lease == int64(lease) { // it was done, only the answer was lost
				return kv.CreateRevision, nil
			}
		}
		if place, err = s.vacancy(ctx, j, slot, limit); err != nil {
			return 0, err
		}
	}
}

func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

// holder says to whoever looks into etcd which process has a claim.
func holder() string {
	host, _ := os.Hostname()
	return host + "/" + strconv.Itoa(os.Getpid())
}

// safe is how long after a request for a lease of ttl seconds was sent its holder
// may go on. etcd counts from a later moment, so at least a third of the ttl is
// left to wind up in before another may claim.
func safe(ttl int64) time.Duration { return time.Duration(ttl) * time.Second * 2 / 3 }

// revoke ends a lease and everything under it, even when ctx has ended. Where
// that fails the lease ends by itself.
func (s *Store) revoke(ctx context.Context, id agent.JobID, lease clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attempt)
	defer cancel()
	_, err := try(ctx, s, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return s.etcd.Revoke(ctx, lease)
	})
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.log.Warn("claim not released, it ends by itself", "job", id, "err", err)
	}
}

// claim is an agent.Claim. Two goroutines serve it: keep and tell.
type claim struct {
	s       *Store
	id      agent.JobID
	lease   clientv3.LeaseID
	created int64 // create revision of the claim's key, which no other claim has

	ctx     context.Context // what Context returns
	lose    context.CancelCauseFunc
	reports chan agent.Progress // the newest, not yet stored
	serving sync.WaitGroup
	release func()
}

func (s *Store) newClaim(ctx context.Context, id agent.JobID, lease clientv3.LeaseID, created int64, until time.Time) *claim {
	c := &claim{s: s, id: id, lease: lease, created: created, reports: make(chan agent.Progress, 1)}
	c.ctx, c.lose = context.WithCancelCause(ctx)
	c.release = sync.OnceFunc(func() {
		c.lose(nil)
		c.serving.Wait()
		s.revoke(ctx, id, lease)
	})
	c.serving.Go(func() { c.keep(until) })
	c.serving.Go(c.tell)
	return c
}

// Context ends, with the cause agent.ErrLost, when the claim could not be renewed,
// before another worker can have it; with ctx, given to Claim; and by Release.
func (c *claim) Context() context.Context { return c.ctx }

// Update stores j while the claim holds and j.Rev is the stored one, and returns it
// with its new Rev. agent.ErrLost: another may work on the job, leave it.
// agent.ErrStale: somebody changed or deleted the job, read it anew.
func (c *claim) Update(ctx context.Context, j agent.Job) (agent.Job, error) {
	mine := clientv3.Compare(clientv3.CreateRevision(c.s.claim(j.ID)), "=", c.created)
	rev, holder, err := c.s.write(ctx, j, c.s.unchanged(j), mine)
	switch {
	case err != nil || rev != 0:
	case holder != c.created:
		err = agent.ErrLost
	default:
		err = agent.ErrStale
	}
	return updated(j, rev, err)
}

// Progress hands p to be stored and returns at once. Of reports that come faster
// than one a second the newest is stored.
func (c *claim) Progress(p agent.Progress) {
	for {
		select {
		case c.reports <- p:
			return
		default:
		}
		select {
		case <-c.reports:
		default:
		}
	}
}

// Release gives the claim up, at once or, when etcd does not answer within a few
// seconds, by leaving its lease to end. It may be called twice.
func (c *claim) Release() { c.release() }

// keep renews the lease until the claim ends, and ends the claim at the moment
// until which it is known to be safe. That moment does not wait for etcd.
func (c *claim) keep(until time.Time) {
	end := time.AfterFunc(time.Until(until), func() { c.lose(agent.ErrLost) })
	defer end.Stop()
	tick := time.NewTicker(c.s.ttl / 3)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		until, err := c.renew()
		switch {
		case err == nil:
			end.Reset(time.Until(until))
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			c.lose(agent.ErrLost)
		}
	}
}

// renew renews the lease and returns until when the claim is safe.
func (c *claim) renew() (time.Time, error) {
	return try(c.ctx, c.s, func(ctx context.Context) (time.Time, error) {
		// While etcd is away KeepAliveOnce asks again without a pause. TimeToLive does
		// not, so it goes first.
		if _, err := c.s.etcd.TimeToLive(ctx, c.lease); err != nil {
			return time.Time{}, err
		}
		asked := time.Now()
		r, err := c.s.etcd.KeepAliveOnce(ctx, c.lease)
		if err != nil {
			return time.Time{}, err
		}
		return asked.Add(safe(r.TTL)), nil
	})
}

// tell stores reports of progress. One that cannot be stored is dropped.
func (c *claim) tell() {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-c.ctx.Done():
			return
		case p := <-c.reports:
			c.put(p)
		}
		pause.Reset(progressEvery)
	}
}

func (c *claim) put(p agent.Progress) {
	p.Job, p.At = c.id, p.At.Round(0).UTC()
	value, err := json.Marshal(p)
	if err != nil {
		return
	}
	try(c.ctx, c.s, func(ctx context.Context) (*clientv3.PutResponse, error) {
		return c.s.etcd.Put(ctx, c.s.progress(c.id), string(value), clientv3.WithLease(c.lease))
	})
}
