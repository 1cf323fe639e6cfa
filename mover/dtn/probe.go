package dtn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/glance-dtn/glance-dtn/mover"
)

type probeInput struct{ Body mover.ProbeRequest }

// probePath measures a path, and tells how far it is, at least every second, until it tells
// what is known of the path or why that could not be measured. Who goes away ends it.
func (s *Server) probePath(ctx context.Context, in *probeInput, send sse.Sender) {
	var sending sync.Mutex
	last := mover.Probing{Phase: mover.ProbeConnect}
	tell := func(p *mover.Probing) {
		sending.Lock()
		defer sending.Unlock()
		if p != nil {
			last = *p
		}
		_ = send.Data(mover.ProbeEvent{Progress: &last}) // who has gone ends ctx
	}
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(eventEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				tell(nil)
			}
		}
	})
	path, err := s.probe(ctx, in.Body, func(p mover.Probing) { tell(&p) })
	close(done)
	telling.Wait()
	if err != nil {
		if ctx.Err() == nil { // else who asked does not want it any more
			s.opt.Log.Warn("a path was not probed", "address", in.Body.Destination.Address, "err", err)
		}
		_ = send.Data(mover.ProbeEvent{Problem: probeProblem(err)})
		return
	}
	_ = send.Data(mover.ProbeEvent{Path: &path})
}

func probeProblem(err error) *mover.Problem {
	p, ok := errors.AsType[*mover.Problem](err)
	if _, waits := errors.AsType[*mover.Wait](err); !ok && waits {
		p = problem(http.StatusServiceUnavailable, mover.CodeOf(err), err.Error())
	} else if !ok {
		p = problem(http.StatusBadGateway, mover.CodeOf(err), err.Error())
	}
	return p
}

// probe measures the path to where a request goes, one at a time, and notes what it finds.
func (s *Server) probe(ctx context.Context, r mover.ProbeRequest, report func(mover.Probing)) (mover.SeenPath, error) {
	d := r.Destination
	name := mover.EngineFor(d.Address)
	e, ok := s.opt.Engines[name].(mover.Prober)
	if !ok {
		return mover.SeenPath{}, problem(http.StatusUnprocessableEntity, "", fmt.Sprintf("the path to %s cannot be probed: engine %s moves files only", d.Address, name))
	}
	if r.Bytes > 0 && r.Bytes < mover.MinProbeBytes {
		return mover.SeenPath{}, problem(http.StatusUnprocessableEntity, "", fmt.Sprintf("%d bytes tell nothing of a path: let it be %d or more", r.Bytes, mover.MinProbeBytes))
	}
	if !s.probing.TryLock() {
		return mover.SeenPath{}, problem(http.StatusServiceUnavailable, "", "this DTN probes a path already; ask again when that has ended, in a few minutes at most")
	}
	defer s.probing.Unlock()
	found, err := e.Probe(ctx, r, report)
	if err != nil {
		return mover.SeenPath{}, err
	}
	path := s.sightings.probed(d, found)
	if err := s.sightings.save(); err != nil {
		s.opt.Log.Warn("what was seen of paths cannot be stored; a restart forgets it", "err", err)
	}
	return path, nil
}

// probed takes what a probe has found of the path to a destination, or to the DTN that
// passes files on to it, as it takes what transfers see, and returns what is known now. Only
// one that had all of its connections for all of its time shows that a path brings less than
// was known. One without load does not replace what another has measured.
func (s *sightings) probed(d mover.Destination, found mover.Probed) mover.SeenPath {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of(cmp.Or(d.Via.Address, d.Address), found.At)
	seen, p := &one.Path, found.Path
	found.Path = mover.Path{}
	rate, measured := max(found.One, found.All), seen.Probe != nil && max(seen.Probe.One, seen.Probe.All) > 0
	if rate > 0 || !measured {
		seen.Probe = &found
	}
	seen.Seen, seen.Site, one.old = found.At, cmp.Or(found.Site, seen.Site), true
	if seen.MinRTT == 0 || found.Idle < seen.MinRTT {
		seen.MinRTT = found.Idle
	}
	seen.Recent, seen.Best = max(seen.Recent, rate), max(seen.Best, rate)
	if whole := found.All > 0 && !found.Busy && !found.Short; rate > 0 && (whole || seen.Rate == 0) {
		seen.RTT, seen.Connections, seen.Rate, seen.Recent = found.Loaded, found.Connections, rate, rate
	}
	if p.Sent > 0 {
		seen.Congestion, seen.MSS, seen.RTT = p.Congestion, p.MSS, p.RTT
		one.count(p)
	}
	told := seen.Bounded()
	told.Probe = &found
	return told
}
