package dtn

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	sightingsName = "paths.log" // under the state directory
	sightEvery    = 5 * time.Second
	saveEvery     = time.Minute
	sightFades    = 0.98 // what counts of a sighting after the next one: half of it after three minutes of transfers
)

// sighting is what is known of one path. Bytes and times fade.
type sighting struct {
	Path                         mover.SeenPath `json:"path"`
	Sent, Resent                 float64
	Busy, SendLimited, RecvLimit float64 // seconds

	links map[time.Time]look // the last one at each, by when the link began: at most maxLinks
	old   bool               // the disk has another one
}

// look is how a link was at a time.
type look struct {
	mover.Path
	at time.Time
}

// sightings are the paths that transfers and probes have used, maxPaths at most: those that
// were used last. They are kept over restarts, but for the last minute before a crash.
type sightings struct {
	records *durable.Log
	log     *slog.Logger
	storing sync.Mutex // or what is newer could be stored first

	mu    sync.Mutex // guards what follows
	paths map[string]*sighting
	gone  []string // since the last save
}

func openSightings(dir *os.Root, log *slog.Logger) (s *sightings, err error) {
	s = &sightings{log: log, paths: map[string]*sighting{}}
	s.records, err = durable.OpenLog(dir, sightingsName, func(key string, value []byte) error {
		one := new(sighting)
		if err := json.Unmarshal(value, one); err != nil {
			return err
		}
		s.paths[key] = one
		return nil
	}, func(err error) {
		log.Warn("what was seen of a path cannot be read and is left out", "err", err)
	})
	return s, err
}

// add takes what a transfer that runs reports of the path to an address. Those that share
// their connections tell the same.
func (s *sightings) add(now time.Time, address string, w mover.Way) {
	p := w.Path
	if p.Since.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of(address, now)
	one.look(p, now)
	seen := &one.Path
	seen.Seen, seen.Congestion, seen.RTT, seen.MSS = now.UTC(), p.Congestion, p.RTT, p.MSS
	seen.Connections, seen.Site = w.Lanes, cmp.Or(w.Site, seen.Site)
	if seen.MinRTT == 0 || p.MinRTT > 0 && p.MinRTT < seen.MinRTT {
		seen.MinRTT = p.MinRTT
	}
}

// of is what is known of the path to an address, to be added to. The caller holds mu.
func (s *sightings) of(address string, now time.Time) *sighting {
	one := s.paths[address]
	if one == nil {
		one = &sighting{Path: mover.SeenPath{Address: address, Since: now.UTC()}}
		s.paths[address] = one
		s.bound()
	}
	return one
}

// look counts what has happened on a link since the last look at it. The connections of
// several links, which differ in site, are none of each other's.
func (s *sighting) look(p mover.Path, now time.Time) {
	last, known := s.links[p.Since]
	took := now.Sub(last.at)
	if known && p.Sent >= last.Sent && took < sightEvery {
		return
	}
	if s.links == nil {
		s.links = map[time.Time]look{}
	}
	s.links[p.Since] = look{p, now}
	for len(s.links) > maxLinks {
		oldest := p.Since
		for t, l := range s.links {
			if l.at.Before(s.links[oldest].at) {
				oldest = t
			}
		}
		delete(s.links, oldest)
	}
	if !known || p.Sent < last.Sent {
		return
	}
	sent, resent := p.Sent-last.Sent, p.Retransmits-last.Retransmits
	s.count(mover.Path{Sent: sent, Retransmits: resent,
		Busy: p.Busy - last.Busy, SendLimited: p.SendLimited - last.SendLimited, RecvLimited: p.RecvLimited - last.RecvLimited})
	s.Path.Rate = 8 * float64(max(0, sent-resent)) / took.Seconds()
	s.Path.Best = max(s.Path.Best, s.Path.Rate)
	s.Path.Recent = max(s.Path.Recent*sightFades, s.Path.Rate)
}

// count takes what was counted in some time.
func (s *sighting) count(p mover.Path) {
	s.old = true
	faded := func(old *float64, more float64) { *old = *old*sightFades + max(0, more) }
	faded(&s.Sent, float64(p.Sent))
	faded(&s.Resent, float64(p.Retransmits))
	faded(&s.Busy, p.Busy.Seconds())
	faded(&s.SendLimited, p.SendLimited.Seconds())
	faded(&s.RecvLimit, p.RecvLimited.Seconds())
	portion := func(part, of float64) float64 {
		if of <= 0 {
			return 0
		}
		return min(1, part/of)
	}
	s.Path.Loss = portion(s.Resent, s.Sent)
	s.Path.SendLimited, s.Path.RecvLimited = portion(s.SendLimited, s.Busy), portion(s.RecvLimit, s.Busy)
}

// bound drops the paths that were not used for longest. The caller holds mu.
func (s *sightings) bound() {
	for len(s.paths) > maxPaths {
		var oldest *sighting
		for _, one := range s.paths {
			if !one.Path.Seen.IsZero() && (oldest == nil || one.Path.Seen.Before(oldest.Path.Seen)) { // else it is the new one
				oldest = one
			}
		}
		delete(s.paths, oldest.Path.Address)
		s.gone = append(s.gone, oldest.Path.Address)
	}
}

// all returns what is known, by address.
func (s *sightings) all() []mover.SeenPath {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []mover.SeenPath{}
	for _, one := range s.paths {
		all = append(all, one.Path.Bounded())
	}
	slices.SortFunc(all, func(a, b mover.SeenPath) int { return cmp.Compare(a.Address, b.Address) })
	return all
}

// saving writes down what is new, now and then and when ctx is done.
func (s *sightings) saving(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if err := s.save(); err != nil {
			s.log.Warn("what was seen of paths cannot be stored; a restart forgets it", "err", err)
		}
	}
}

func (s *sightings) save() error {
	s.storing.Lock()
	defer s.storing.Unlock()
	var changes []durable.Change
	s.mu.Lock()
	for _, address := range s.gone {
		if s.paths[address] == nil {
			changes = append(changes, durable.Change{Key: address})
		}
	}
	for address, one := range s.paths {
		if one.old {
			changes = append(changes, durable.Set(address, *one))
			one.old = false
		}
	}
	s.gone = nil
	s.mu.Unlock()
	err := s.records.Commit(changes...)
	if err != nil { // the next one tries again
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range changes {
			if one := s.paths[c.Key]; one != nil {
				one.old = true
			} else {
				s.gone = append(s.gone, c.Key)
			}
		}
	}
	return err
}
