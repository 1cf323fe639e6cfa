// Package jobs keeps the agent's jobs in etcd, in a member inside this process or
// in the operator's own cluster; several agents may share one cluster.
//
// All keys lie under one prefix:
//
//	jobs/ID          the job, JSON; see record
//	claims/ID        who works on it
//	slots/SLOT/N     which job holds the Nth place of a slot
//	progress/ID      how far the worker is, JSON of agent.Progress
//
// The last three belong to the worker's lease and vanish with it. Whatever
// changes a job compares the job's revision in the same transaction, and a
// worker's change also compares that the claim is still its own. A process that
// was stopped for longer than its lease and then goes on can therefore do no
// harm here.
package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/glance-dtn/glance-dtn/agent"
)

const (
	claimTTL = 15 * time.Second // the lease of a claim

	attempt  = 4 * time.Second  // one call's time
	patience = 10 * time.Second // how long a call is repeated while etcd is away

	keysPage = 1000 // keys listed at once
	jobsPage = 100  // jobs read at once; etcd takes 128 operations in a transaction
)

var (
	errClosed = errors.New("the job store is closed")
	errSilent = errors.New("etcd does not answer")
)

// Store is an agent.Store. Its methods may be called by several goroutines.
//
// While etcd is away, as when its leader changes, a call is repeated for up to ten
// seconds. That is safe for a change whose first answer was lost: it is found
// to be done when it was. A change that returns an error other than those
// of agent may have been made or not.
type Store struct {
	etcd   *clientv3.Client
	prefix string // ends in a slash
	ttl    time.Duration
	log    *slog.Logger

	stop func() error // ends etcd, or the connection to it

	calls  sync.RWMutex // held for reading by every call, and by Close
	closed bool         // under calls
}

var _ agent.Store = (*Store)(nil)

// Close waits for calls that are under way, for a few seconds, and closes the
// store. Claims that were not released end. It may be called twice.
func (s *Store) Close() error {
	s.calls.Lock()
	defer s.calls.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.stop()
}

func (s *Store) job(id agent.JobID) string      { return s.prefix + "jobs/" + string(id) }
func (s *Store) claim(id agent.JobID) string    { return s.prefix + "claims/" + string(id) }
func (s *Store) progress(id agent.JobID) string { return s.prefix + "progress/" + string(id) }
func (s *Store) slot(name string) string        { return s.prefix + "slots/" + name + "/" }

// Create stores a new job: agent.ErrExists when its id is taken.
func (s *Store) Create(ctx context.Context, j agent.Job) error {
	rev, _, err := s.write(ctx, j, clientv3.Compare(clientv3.CreateRevision(s.job(j.ID)), "=", 0))
	if err == nil && rev == 0 {
		err = agent.ErrExists
	}
	if err != nil {
		return fmt.Errorf("create job %s: %w", j.ID, err)
	}
	return nil
}

// Get returns a job with its Rev: agent.ErrNoJob when there is none, agent.ErrRecord when
// it is one that this agent cannot read.
func (s *Store) Get(ctx context.Context, id agent.JobID) (agent.Job, error) {
	r, err := try(ctx, s, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.etcd.Get(ctx, s.job(id))
	})
	if err == nil && len(r.Kvs) == 0 {
		err = agent.ErrNoJob
	}
	if err != nil {
		return agent.Job{}, fmt.Errorf("get job %q: %w", id, err)
	}
	j, _, err := decode(id, r.Kvs[0].Value, r.Kvs[0].ModRevision)
	return j, err
}

// All yields the jobs that exist throughout the call, each as it is when it is
// read, in order of creation. A record that cannot be read is yielded as an
// error with a Job that has only its ID, and the sequence goes on; after an
// error with an empty Job it ends.
func (s *Store) All(ctx context.Context) iter.Seq2[agent.Job, error] {
	return func(yield func(agent.Job, error) bool) {
		keys, _, err := s.list(ctx)
		if err != nil {
			yield(agent.Job{}, fmt.Errorf("list jobs: %w", err))
			return
		}
		slices.SortFunc(keys, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
		for page := range slices.Chunk(keys, jobsPage) {
			var ops []clientv3.Op
			for _, kv := range page {
				ops = append(ops, clientv3.OpGet(string(kv.Key)))
			}
			r, err := s.txn(ctx, nil, ops, nil)
			if err != nil {
				yield(agent.Job{}, fmt.Errorf("list jobs: %w", err))
				return
			}
			for _, one := range r.Responses {
				for _, kv := range one.GetResponseRange().Kvs { // none when it was deleted meanwhile
					id := s.jobID(kv)
					j, _, err := decode(id, kv.Value, kv.ModRevision)
					if err != nil {
						j = agent.Job{ID: id}
					}
					if !yield(j, err) {
						return
					}
				}
			}
		}
	}
}

func (s *Store) jobID(kv *mvccpb.KeyValue) agent.JobID {
	return agent.JobID(strings.TrimPrefix(string(kv.Key), s.job("")))
}

// list returns the keys of all jobs without their values. A job that is created
// or deleted after rev may be among them or not.
func (s *Store) list(ctx context.Context) (keys []*mvccpb.KeyValue, rev int64, err error) {
	from, end := s.job(""), clientv3.GetPrefixRangeEnd(s.job(""))
	for {
		r, err := try(ctx, s, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return s.etcd.Get(ctx, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(keysPage))
		})
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		keys = append(keys, r.Kvs...)
		if !r.More {
			return keys, rev, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// Update replaces a job whose Rev is still the stored one and returns it with its
// new Rev: agent.ErrStale when it was changed or deleted meanwhile. It does not
// ask for a claim, so that a person's cancel gets in while a worker is busy: that
// worker's next Claim.Update returns agent.ErrStale, and it has to read the job anew.
func (s *Store) Update(ctx context.Context, j agent.Job) (agent.Job, error) {
	rev, _, err := s.write(ctx, j, s.unchanged(j))
	if err == nil && rev == 0 {
		err = agent.ErrStale
	}
	return updated(j, rev, err)
}

func (s *Store) unchanged(j agent.Job) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(s.job(j.ID)), "=", j.Rev)
}

func updated(j agent.Job, rev int64, err error) (agent.Job, error) {
	if err != nil {
		return agent.Job{}, fmt.Errorf("update job %s: %w", j.ID, err)
	}
	j = inUTC(j)
	j.Rev = rev
	return j, nil
}

// write stores j when all guards hold and returns its new revision, or 0 when one
// does not; then holder is the create revision of the job's claim, 0 without
// one. One of the guards must not hold any more once j is stored: a repeated
// write then fails and finds its own mark.
func (s *Store) write(ctx context.Context, j agent.Job, guards ...clientv3.Cmp) (rev, holder int64, err error) {
	value, mark, err := encode(inUTC(j))
	if err != nil {
		return 0, 0, err
	}
	r, err := s.txn(ctx, guards,
		[]clientv3.Op{clientv3.OpPut(s.job(j.ID), value)},
		[]clientv3.Op{clientv3.OpGet(s.job(j.ID)), clientv3.OpGet(s.claim(j.ID))})
	if err != nil {
		return 0, 0, err
	}
	if r.Succeeded {
		return r.Header.Revision, 0, nil
	}
	for _, kv := range r.Responses[0].GetResponseRange().Kvs {
		if _, stored, err := decode(j.ID, kv.Value, kv.ModRevision); err == nil && stored == mark {
			return kv.ModRevision, 0, nil
		}
	}
	for _, kv := range r.Responses[1].GetResponseRange().Kvs {
		holder = kv.CreateRevision
	}
	return 0, holder, nil
}

// Delete removes a job in a final state: agent.ErrBadState for another one,
// agent.ErrStale when it changed meanwhile, nil when it is gone already.
func (s *Store) Delete(ctx context.Context, j agent.Job) error {
	err := s.delete(ctx, j)
	if err != nil {
		return fmt.Errorf("delete job %s: %w", j.ID, err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, j agent.Job) error {
	if !j.State.Final() {
		return fmt.Errorf("it is %s: %w", j.State, agent.ErrBadState)
	}
	r, err := s.txn(ctx, []clientv3.Cmp{s.unchanged(j)},
		[]clientv3.Op{clientv3.OpDelete(s.job(j.ID))},
		[]clientv3.Op{clientv3.OpGet(s.job(j.ID), clientv3.WithKeysOnly())})
	if err == nil && !r.Succeeded && r.Responses[0].GetResponseRange().Count > 0 {
		err = agent.ErrStale
	}
	return err
}

// txn runs one transaction. It must be safe to repeat.
func (s *Store) txn(ctx context.Context, when []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	return try(ctx, s, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.etcd.Txn(ctx).If(when...).Then(then...).Else(otherwise...).Commit()
	})
}

// try calls etcd until it answers, ctx ends, or patience does. The call must be
// safe to repeat and honour its context.
func try[T any](ctx context.Context, s *Store, call func(context.Context) (T, error)) (T, error) {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = 50*time.Millisecond, time.Second
	return backoff.Retry(ctx, func() (T, error) {
		s.calls.RLock()
		defer s.calls.RUnlock()
		if s.closed {
			return *new(T), backoff.Permanent(errClosed)
		}
		c, cancel := context.WithTimeoutCause(ctx, attempt, errSilent)
		defer cancel()
		v, err := call(c)
		if err != nil && c.Err() != nil {
			err = context.Cause(c)
		} else if err != nil && !away(err) {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(pauses), backoff.WithMaxElapsedTime(patience))
}

// alive returns errSilent, or errClosed when the store is closed.
func (s *Store) alive() error {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return errClosed
	}
	return errSilent
}

// away reports whether err means that etcd may answer a moment later.
func away(err error) bool {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.Unavailable || errors.Is(err, rpctypes.ErrTooManyRequests)
	}
	return status.Code(err) == codes.Unavailable
}
