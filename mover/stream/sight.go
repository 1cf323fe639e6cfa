package stream

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

// sightEvery is how often a link looks at its way. What was seen counts half as much after
// as long again.
const sightEvery = time.Second

// sight is what a link knows of its way. The link's mutex guards it.
type sight struct {
	looks      int // so far
	last       time.Time
	here       spent // by the lanes of late
	there      times // by those at the receiver
	heard      time.Time
	bottleneck mover.Bottleneck
	path       mover.Path
	ended      mover.Path // what is counted of the lanes that have ended
	advice     string
}

// looking looks at the way now and then until ctx is done.
func (l *link) looking(ctx context.Context) {
	tick := time.NewTicker(sightEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.mu.Lock()
			l.look()
			l.changed.Broadcast()
			l.mu.Unlock()
		}
	}
}

// look takes note of what the way is like. The caller holds mu.
func (l *link) look() {
	s, now := &l.sight, time.Now()
	for a := range s.here {
		s.here[a] = faded(s.here[a], now.Sub(s.last))
	}
	s.last, s.looks = now, s.looks+1
	path := mover.Path{Since: s.path.Since}.Plus(s.ended)
	seen := 0
	for n := range l.lanes {
		s.here.add(n.out.meter.take())
		if n.look() {
			path = joined(path, n.path, seen)
			seen++
		}
	}
	if seen == 0 {
		path.Congestion, path.MSS, path.RTT, path.MinRTT = s.path.Congestion, s.path.MSS, s.path.RTT, s.path.MinRTT
	}
	if path.Since.IsZero() && path.Sent > 0 {
		path.Since = now.UTC()
	}
	s.path = path
	ours, theirs := "", ""
	if by := limitOf(l.engine.Pacer, l.site, s.here); by != "" {
		ours = by + ", set at site " + l.engine.Site
	}
	if s.there.By != "" {
		theirs = s.there.By + ", set at site " + l.site
	}
	if b := bottleneck(s.here, s.there, ours, theirs); b.OfMove() { // what the receiver tells may be anything
		s.bottleneck = b
	}
	if s.advice == "" && s.bottleneck.Place == mover.Network {
		s.advice = cmp.Or(advice(s.path, tcp.SendBuffer()), lossAdvice(s.path, l.rtt, l.engine.Congestion))
	}
}

// What TCP has to wait for its buffers before that is worth a word.
const (
	leastBusy   = 5 * time.Second
	leastWaited = 0.25
)

// advice says which buffer is too small for the path, if one is. The kernel makes them
// larger by itself, up to a limit; send is that of this DTN, in bytes. A near path is full
// with the smallest: who waits there waits for a program that does not read.
func advice(p mover.Path, send int) string {
	if p.Busy < leastBusy || p.MinRTT < near {
		return ""
	}
	sends, receives := float64(p.SendLimited)/float64(p.Busy), float64(p.RecvLimited)/float64(p.Busy)
	switch {
	case max(sends, receives) < leastWaited:
		return ""
	case sends > receives:
		return fmt.Sprintf("the path holds more than this DTN's TCP send buffers, for which connections waited %.0f %% of the time: "+
			"raise the third value of net.ipv4.tcp_wmem here, which is %d, to twice that", 100*sends, send)
	}
	return fmt.Sprintf("the path holds more than the TCP receive buffers at the destination's DTN, for which connections waited %.0f %% of the time: "+
		"raise the third value of net.ipv4.tcp_rmem there to twice what it is", 100*receives)
}

// joined is the path of some connections and of one more.
func joined(p, one mover.Path, some int) mover.Path {
	p.Congestion, p.MSS = one.Congestion, one.MSS
	p.RTT += (one.RTT - p.RTT) / time.Duration(some+1)
	if some == 0 || one.MinRTT < p.MinRTT {
		p.MinRTT = one.MinRTT
	}
	p.Rate += one.Rate
	p.Window += one.Window
	return p.Plus(one)
}

// look takes note of the lane's path, and reports whether it is known. The link's mutex
// is held.
func (n *lane) look() bool {
	if p, ok := tcp.PathOf(n.out.Conn); ok {
		n.path = p
	}
	return n.path != mover.Path{}
}

// part keeps what is known of a lane's path before it is cut.
func (l *link) part(n *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.look() {
		l.sight.path.Congestion, l.sight.path.MSS, l.sight.path.RTT, l.sight.path.MinRTT = n.path.Congestion, n.path.MSS, n.path.RTT, n.path.MinRTT
	}
}

// way is what f's way is like. The caller holds mu.
func (l *link) way(f *outgoing) mover.Way {
	if f.done && f.size > mover.BlockSize {
		l.look() // a short one has ended before the first look
	}
	slow := l.sight.bottleneck
	if f.onwards.Bottleneck.Place != "" && (f.moved == f.size || f.ready > 0 && f.full()) {
		slow = f.onwards.Bottleneck
		slow.From = l.site
	}
	return mover.Way{
		Wire: f.wire.Load(), Through: min(blockStart(f.onwards.Blocks), f.size), Lanes: len(l.lanes), Site: l.site, PCP: f.pcp(),
		Path: l.sight.path, Bottleneck: slow, Advice: l.sight.advice,
	}
}

// hearTimes takes the receiver's word on what it has waited for, and on its limit.
func (l *link) hearTimes(h header) error {
	var t times
	if err := readJSON(l.control, h.length, maxTimes, &t); err != nil {
		return err
	}
	l.told(t.Rate)
	l.mu.Lock()
	defer l.mu.Unlock()
	s, now := &l.sight, time.Now()
	old := now.Sub(s.heard)
	s.heard = now
	s.there = times{
		Wait: faded(s.there.Wait, old) + t.Wait,
		CPU:  faded(s.there.CPU, old) + t.CPU,
		Disk: faded(s.there.Disk, old) + t.Disk,

		Limited: faded(s.there.Limited, old) + t.Limited, By: cmp.Or(t.By, s.there.By),
	}
	return nil
}

// faded is what d counts when as much time has passed.
func faded(d, passed time.Duration) time.Duration {
	return time.Duration(float64(d) * math.Exp2(-passed.Seconds()/sightEvery.Seconds()))
}

// waits is what n does without a block to send. The caller holds mu.
func (l *link) waits(n *lane) activity {
	if len(n.flight) > 0 {
		for _, f := range l.files {
			if !f.over() && f.ready > 0 {
				return owed
			}
		}
	}
	return resting
}
