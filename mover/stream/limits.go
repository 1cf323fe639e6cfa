package stream

import (
	"context"
	"errors"
	"io"
	"maps"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
	"github.com/glance-dtn/glance-dtn/mover/stream/tcp"
)

const (
	// obeyEvery bounds how long a link goes on that a limit would have end.
	obeyEvery = 250 * time.Millisecond

	// laneTime is how long a block may take on a lane: of a low rate few lanes have more
	// than many, and none of them is taken for still.
	laneTime = 10 * time.Second
)

// lanesFor is how many lanes a rate is enough for.
func lanesFor(r mover.Rate) int {
	n := min(float64(r)/8*laneTime.Seconds()/mover.BlockSize, 2*mover.MaxParallelism)
	return max(int(n), 1)
}

// waits returns what err waits for; nil: it is a failure.
func waits(err error) *mover.Wait {
	w, _ := errors.AsType[*mover.Wait](err)
	return w
}

// limited begins a wait for what may move to or from a site, empty: all together. It
// returns what ends that.
func (m *meter) limited(site string) (over func()) {
	a := limitedSite
	if site == "" {
		a = limitedAll
	}
	was := m.begin(a)
	return func() { m.begin(was) }
}

// limitOf names the limit that lanes of a site have waited for longest; empty: they have not.
func limitOf(p *pace.Pacer, site string, s spent) string {
	switch {
	case s.limited() == 0:
		return ""
	case s[limitedAll] >= s[limitedSite]:
		return p.Name("")
	}
	return p.Name(site)
}

// toll is what a lane of the link pays.
func (l *link) toll(n *lane) *pace.Toll {
	return &pace.Toll{Pacer: l.engine.Pacer, Site: l.site, Waits: n.out.meter.limited, Alive: func() error {
		n.wrote.Store(time.Now().UnixNano()) // it is not still
		return n.tls.NetConn().SetWriteDeadline(time.Time{})
	}}
}

// told notes the receiver's limit.
func (l *link) told(r mover.Rate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.theirs = r; r == 0 {
		l.theirs = mover.Unlimited
	}
}

// obey ends the link while nothing may be sent, and bounds its lanes. It returns false
// when the link has ended.
func (l *link) obey() bool {
	if w := l.engine.Pacer.Shut(l.site); w != nil {
		l.fail(w)
		return false
	}
	rate := l.engine.Pacer.Rate(l.site)
	l.mu.Lock()
	defer l.mu.Unlock()
	if limit := min(rate, l.theirs); limit != l.limit {
		l.limit, l.most = limit, lanesFor(limit)
		for n := range l.lanes {
			n.smooth(limit)
		}
		l.changed.Broadcast()
	}
	return l.err == nil
}

// smooth has the kernel send what a limit lets through in even steps. It is given a
// quarter more, so that the limit itself is kept by the tokens, which all lanes share.
func (n *lane) smooth(limit mover.Rate) {
	if limit == mover.Unlimited {
		limit = 0
	}
	tcp.Pace(n.out.Conn, 1.25*float64(limit))
}

func (l *link) obeying(ctx context.Context) {
	tick := time.NewTicker(obeyEvery)
	defer tick.Stop()
	for l.obey() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// obey ends the link's files while nothing may come from its site.
func (l *incoming) obey() {
	w := l.receiver.opts.Pacer.Shut(l.site)
	if w == nil {
		return
	}
	l.mu.Lock()
	files := maps.Clone(l.files)
	l.mu.Unlock()
	for n, a := range files {
		a.fail(seat{l, n}, w)
	}
}

// welcome is the answer to a good hello.
func (r *Receiver) welcome(site string) answer {
	a := answer{Block: mover.BlockSize}
	if rate := r.opts.Pacer.Rate(site); rate != mover.Unlimited {
		a.Rate = rate
	}
	return a
}

// fill reads what comes next of a block, as fast as the limits allow: TCP holds the
// sender back.
func (b *blocks) fill(room []byte) error {
	if err := b.toll.Take(len(room)); err != nil {
		return err
	}
	_ = b.patience()
	_, err := io.ReadFull(b.conn, room)
	return err
}
