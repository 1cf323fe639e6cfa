package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/glance-dtn/glance-dtn/agent"
)

// rewatch is the pause before a broken watch is opened again.
const rewatch = 500 * time.Millisecond

// Watch yields what is created, changed, deleted or reported after Watch was
// called, until ctx ends: whoever calls Watch and then All misses nothing. The
// sequence can be ranged over once and leaves no goroutine behind.
//
// Several changes of one job may be yielded as the last of them, and after
// etcd was away for long every job may be yielded again. A record that cannot be
// read is yielded as an error with a Job that has only its ID, and the
// sequence goes on; after an error with an empty Event it ends.
func (s *Store) Watch(ctx context.Context) iter.Seq2[agent.Event, error] {
	keys, rev, err := s.list(ctx)
	w := &watch{s: s, rev: rev, known: map[agent.JobID]bool{}, news: make(chan struct{}, 1), waiting: map[topic]item{}}
	for _, kv := range keys {
		w.known[s.jobID(kv)] = true
	}
	return func(yield func(agent.Event, error) bool) {
		if err != nil {
			if ctx.Err() == nil {
				yield(agent.Event{}, fmt.Errorf("watch jobs: %w", err))
			}
			return
		}
		w.yield(ctx, yield)
	}
}

// watch stands between etcd, whose client would keep every event for a slow
// reader, and the reader: it keeps the last of each topic.
type watch struct {
	s *Store

	// of the goroutine in follow
	rev   int64                // everything up to it was seen
	known map[agent.JobID]bool // the jobs there are at rev

	news    chan struct{} // something is waiting
	mu      sync.Mutex
	waiting map[topic]item
	order   []topic
}

// topic is what a later item replaces an earlier one of. The zero topic is that
// of the watch's end.
type topic struct {
	job      agent.JobID
	progress bool
}

type item struct {
	event agent.Event
	err   error
}

func (w *watch) yield(ctx context.Context, yield func(agent.Event, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() {
		if err := w.follow(ctx); err != nil && ctx.Err() == nil {
			w.put(topic{}, item{err: fmt.Errorf("watch jobs: %w", err)})
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.news:
		}
		for t, i := range w.take() {
			if ctx.Err() != nil || !yield(i.event, i.err) || t == (topic{}) {
				return
			}
		}
	}
}

func (w *watch) put(t topic, i item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.waiting[t]; !ok {
		w.order = append(w.order, t)
	}
	w.waiting[t] = i
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// take empties the watch and yields what was waiting, oldest topic first.
func (w *watch) take() iter.Seq2[topic, item] {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting, order := w.waiting, w.order
	w.waiting, w.order = map[topic]item{}, nil
	return func(yield func(topic, item) bool) {
		for _, t := range order {
			if !yield(t, waiting[t]) {
				return
			}
		}
	}
}

// follow keeps a watch open until ctx ends or etcd refuses it.
func (w *watch) follow(ctx context.Context) error {
	for {
		err := w.stream(ctx)
		if errors.Is(err, rpctypes.ErrCompacted) {
			err = w.relist(ctx)
		}
		if err != nil && !errors.Is(err, errSilent) && !away(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rewatch):
		}
	}
}

// stream puts every event after rev until the watch breaks.
func (w *watch) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range w.s.etcd.Watch(ctx, w.s.prefix, clientv3.WithPrefix(), clientv3.WithRev(w.rev+1)) {
		if err := r.Err(); err != nil {
			return err
		}
		for _, e := range r.Events {
			w.see(e)
			w.rev = e.Kv.ModRevision
		}
	}
	return w.s.alive()
}

// see puts what an event says, if it is about a job.
func (w *watch) see(e *clientv3.Event) {
	kind, name, _ := strings.Cut(strings.TrimPrefix(string(e.Kv.Key), w.s.prefix), "/")
	id := agent.JobID(name)
	switch {
	case kind == "jobs" && e.Type == mvccpb.DELETE:
		delete(w.known, id)
		w.put(topic{job: id}, item{event: agent.Event{Gone: id}})
	case kind == "jobs":
		j, _, err := decode(id, e.Kv.Value, e.Kv.ModRevision)
		w.putJob(id, j, err)
	case kind == "progress" && e.Type == mvccpb.PUT:
		var p agent.Progress
		if json.Unmarshal(e.Kv.Value, &p) == nil { // a report is not worth an error
			w.put(topic{job: id, progress: true}, item{event: agent.Event{Progress: &p}})
		}
	}
}

func (w *watch) putJob(id agent.JobID, j agent.Job, err error) {
	if err != nil {
		j = agent.Job{ID: id}
	}
	w.known[id] = true
	w.put(topic{job: id}, item{event: agent.Event{Job: &j}, err: err})
}

// relist puts every job as it is now, and those that are gone, because the events
// that would tell the difference are not kept any more.
func (w *watch) relist(ctx context.Context) error {
	keys, rev, err := w.s.list(ctx)
	if err != nil {
		return err
	}
	gone := w.known
	w.known = make(map[agent.JobID]bool, len(keys))
	for _, kv := range keys {
		id := w.s.jobID(kv)
		w.known[id] = true
		delete(gone, id)
	}
	for id := range gone {
		w.put(topic{job: id}, item{event: agent.Event{Gone: id}})
	}
	for j, err := range w.s.All(ctx) {
		if j.ID == "" {
			return err
		}
		w.putJob(j.ID, j, err)
	}
	w.rev = rev
	return nil
}
