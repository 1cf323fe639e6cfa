// Package pace keeps what moves between this DTN and others within its limits: a token
// bucket for each site, and one for all together.
package pace

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	// lookEvery bounds how long a change of the limits, or the end of who waits for
	// tokens, goes unnoticed.
	lookEvery = 250 * time.Millisecond

	// burst is for how long at a rate there is what moves at once: short, so that TCP sees
	// an even flow, and longer than a timer is late. A bucket holds as much once more: what
	// a late timer has left unused is made up for.
	burst = 20 * time.Millisecond

	// leastStep is what moves at once at the lowest rates: a record of TLS. At the highest
	// it is mostStep.
	leastStep = 16 << 10
	mostStep  = 1 << 30
)

// Pacer keeps what moves in one direction within a DTN's limits: all connections to one
// site together, and those to all sites. It counts what its callers do. A nil one lets
// everything go.
type Pacer struct {
	direction mover.Direction
	none      atomic.Bool // there are no limits

	mu      sync.Mutex // guards what follows; taken before that of a bucket
	limits  mover.Limits
	next    time.Time // when others of them may rule
	buckets map[string]*bucket
}

// New returns a Pacer of one direction.
func New(d mover.Direction, ls mover.Limits) *Pacer {
	p := &Pacer{direction: d, buckets: map[string]*bucket{}}
	p.Set(ls)
	return p
}

// Set has other limits rule, over what moves now as well.
func (p *Pacer) Set(ls mover.Limits) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = ls
	p.none.Store(len(ls) == 0)
	p.rule(time.Now())
}

// Limits returns those that rule.
func (p *Pacer) Limits() mover.Limits {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limits
}

// rule gives the buckets the rates that rule now. The caller holds mu.
func (p *Pacer) rule(now time.Time) {
	p.next = p.limits.Next(now)
	for site, b := range p.buckets {
		b.set(now, p.limits.At(now, site, p.direction))
	}
}

// bucket returns a site's bucket, with the rate that rules now.
func (p *Pacer) bucket(site string) *bucket {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.next.IsZero() && !now.Before(p.next) {
		p.rule(now)
	}
	b := p.buckets[site]
	if b == nil {
		b = &bucket{turn: make(chan struct{}, 1), tokens: rate.NewLimiter(rate.Inf, 0)}
		b.set(now, p.limits.At(now, site, p.direction))
		p.buckets[site] = b
	}
	return b
}

// Shut tells why nothing may move now between this DTN and a site; nil: something may.
func (p *Pacer) Shut(site string) *mover.Wait {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limits.Shut(time.Now(), site, p.direction)
}

// Rate is what may move now between this DTN and a site.
func (p *Pacer) Rate(site string) mover.Rate {
	if p == nil {
		return mover.Unlimited
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	return min(p.limits.At(now, "", p.direction), p.limits.At(now, site, p.direction))
}

// Name names, for a person, the limit of a site now, or that of all together, of which the
// site is empty. Where there is none, so is the name.
func (p *Pacer) Name(site string) string {
	if p == nil {
		return ""
	}
	rate := p.bucket(site).limit()
	if rate == mover.Unlimited {
		return ""
	}
	who := "all sites"
	if site != "" {
		who = "site " + site
	}
	return fmt.Sprintf("%v %s %s", rate, map[mover.Direction]string{mover.Send: "to", mover.Receive: "from"}[p.direction], who)
}

// Toll is what one connection pays to a Pacer for its bytes. A nil one pays nothing, as does
// one without a Pacer. It is used by one goroutine at a time.
type Toll struct {
	Pacer *Pacer
	Site  string // the other end's

	// Alive is called often during a wait; an error ends that.
	Alive func() error

	// Waits is told when a wait for a site's tokens begins, empty for those of all
	// together, and what it returns is called when that wait is over.
	Waits func(site string) (over func())
}

func (t *Toll) free() bool { return t == nil || t.Pacer == nil || t.Pacer.none.Load() }

// Step is how much of n bytes to go on with at once.
func (t *Toll) Step(n int) int {
	if t.free() {
		return n
	}
	return min(n, t.Pacer.bucket("").step(), t.Pacer.bucket(t.Site).step())
}

// Take waits until n bytes may go. That none may at all is not its concern: who moves
// files ends them then, see Shut. Its only error is that of Alive.
func (t *Toll) Take(n int) error {
	if t.free() {
		return nil
	}
	for left := n; left > 0; {
		n := t.Step(left)
		for _, site := range []string{"", t.Site} {
			if err := t.wait(site, n); err != nil {
				return err
			}
		}
		left -= n
	}
	return nil
}

// wait takes n tokens out of one bucket. Of those who wait for tokens one does at a time.
func (t *Toll) wait(site string, n int) error {
	b := t.Pacer.bucket(site)
	if b.limit() == mover.Unlimited {
		return nil
	}
	defer t.Waits(site)()
	for in := false; !in; {
		select {
		case b.turn <- struct{}{}:
			in = true
		case <-time.After(lookEvery):
			if err := t.Alive(); err != nil {
				return err
			}
		}
	}
	defer func() { <-b.turn }()
	for {
		wait := t.Pacer.bucket(site).need(time.Now(), n)
		if wait == 0 {
			return nil
		}
		time.Sleep(min(wait, lookEvery))
		if err := t.Alive(); err != nil {
			return err
		}
	}
}

// bucket holds the tokens of one site, or of all together: bytes.
type bucket struct {
	turn chan struct{} // held by who waits for tokens

	mu     sync.Mutex // guards what follows
	rate   mover.Rate
	tokens *rate.Limiter
}

// set gives the bucket another rate.
func (b *bucket) set(now time.Time, r mover.Rate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate = r; r == 0 || r == mover.Unlimited {
		return
	}
	b.tokens.SetLimitAt(now, rate.Limit(float64(r)/8))
	b.tokens.SetBurstAt(now, 2*stepOf(r))
}

// stepOf is what moves at once at a rate.
func stepOf(r mover.Rate) int {
	return int(max(leastStep, min(float64(r)/8*burst.Seconds(), mostStep)))
}

func (b *bucket) step() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return stepOf(b.rate)
}

func (b *bucket) limit() mover.Rate {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rate
}

// need takes n tokens, a step at most, and returns 0, or it tells how long it takes
// until there are so many.
func (b *bucket) need(now time.Time, n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.rate == mover.Unlimited:
		return 0
	case b.rate == 0:
		return lookEvery
	}
	n = min(n, b.tokens.Burst()) // the rate may be lower than when n was chosen
	if b.tokens.AllowN(now, n) {
		return 0
	}
	missing := float64(n) - b.tokens.TokensAt(now)
	return max(time.Duration(missing*8/float64(b.rate)*float64(time.Second)), time.Microsecond)
}
