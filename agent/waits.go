package agent

import (
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// Waited is the place that an image's way has waited for longest, and for how long.
type Waited struct {
	Place mover.Place   `json:"place"`
	Limit string        `json:"limit,omitempty" doc:"which, where that is what held it back"`
	From  string        `json:"from,omitempty" doc:"site of the relay, where it is on the way from there"`
	For   time.Duration `json:"for_ns"`
}

// or returns what was waited for longer: w, or the bottleneck of a leg that took so long.
func (w Waited) or(b mover.Bottleneck, took time.Duration) Waited {
	if d := time.Duration(b.Share * float64(took)); d > w.For {
		return Waited{b.Place, b.Limit, b.From, d}
	}
	return w
}

// Name is the place as a mover.Bottleneck names it.
func (w Waited) Name() string {
	return mover.Bottleneck{Place: w.Place, Limit: w.Limit, From: w.From}.Name()
}

// legWaits is what a leg waits for while it is done.
type legWaits struct {
	reason     string // why its transfer does not run, or the peer's job does not go on
	bottleneck mover.Bottleneck
}

// occupation is what a delivery does at a moment.
type occupation int

const (
	uploading occupation = iota // waits for Glance
	coming                      // waits until bytes are proven
	reading                     // reads the export, and compares with what the DTN tells
	occupations
)

// paceEvery is how often a delivery tells what it waits for; of what is over sooner no
// bottleneck is worth a word.
const paceEvery = time.Second

// pace measures how the time of a delivery goes.
type pace struct {
	began time.Time

	mu    sync.Mutex // guards what follows
	now   occupation
	since time.Time
	spent [occupations]time.Duration
	told  [occupations]time.Duration // of it, what present has told of
}

func newPace() *pace {
	now := time.Now()
	return &pace{began: now, since: now}
}

// begin ends one occupation and begins another. It returns the one that has ended.
func (p *pace) begin(o occupation) (was occupation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.charge()
	was, p.now = p.now, o
	return was
}

// charge books the time up to now. The caller holds mu.
func (p *pace) charge() {
	now := time.Now()
	p.spent[p.now] += now.Sub(p.since)
	p.since = now
}

// present is the bottleneck since it was last asked for.
func (p *pace) present() mover.Bottleneck {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.charge()
	var lately [occupations]time.Duration
	for o, d := range p.spent {
		lately[o] = d - p.told[o]
	}
	p.told = p.spent
	return slowest(lately)
}

// whole is the bottleneck of all of it, and how long that took.
func (p *pace) whole() (b mover.Bottleneck, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.charge()
	if took = p.since.Sub(p.began); took >= paceEvery {
		b = slowest(p.spent)
	}
	return b, took
}

func slowest(spent [occupations]time.Duration) mover.Bottleneck {
	var all, most time.Duration
	place := mover.Glance
	for o, d := range spent {
		all += d
		if d > most {
			most, place = d, [occupations]mover.Place{mover.Glance, mover.Coming, mover.DestinationExport}[o]
		}
	}
	if all == 0 {
		return mover.Bottleneck{}
	}
	return mover.Bottleneck{Place: place, Share: float64(most) / float64(all)}
}

// ticking calls f again and again, until the returned function is called, after which none runs.
func ticking(every time.Duration, f func()) (stop func()) {
	ended := make(chan struct{})
	var calling sync.WaitGroup
	calling.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				f()
			}
		}
	})
	return func() {
		close(ended)
		calling.Wait()
	}
}
