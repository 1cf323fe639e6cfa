package pace

import (
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// sends limits what goes to a site, or to all together, at all times.
func sends(site string, r mover.Rate) mover.Limit {
	return mover.Limit{Site: site, Send: r, Receive: mover.Unlimited}
}

// toll is one that waits for as long as it takes, and tells nobody.
func toll(p *Pacer, site string) *Toll {
	return &Toll{Pacer: p, Site: site, Alive: func() error { return nil }, Waits: func(string) func() { return func() {} }}
}

// takes takes n bytes in pieces.
func (t *Toll) takes(n int) error {
	for piece := range slices.Chunk(make([]byte, n), 256<<10) {
		if err := t.Take(len(piece)); err != nil {
			return err
		}
	}
	return nil
}

func TestConnectionsShareALimit(t *testing.T) {
	const n, rate = 10 << 20, 80e6
	for name, c := range map[string]struct {
		limits mover.Limits
		want   mover.Rate // of what goes to B and C together
	}{
		"of the site":               {mover.Limits{sends("B", rate)}, rate},
		"of all sites":              {mover.Limits{sends("", rate)}, rate},
		"the strictest":             {mover.Limits{sends("", 2*rate), sends("B", rate)}, rate},
		"of each":                   {mover.Limits{sends("B", 2*rate), sends("B", rate)}, rate},
		"not of another":            {mover.Limits{sends("C", 1), sends("B", rate)}, rate},
		"not of the other way":      {mover.Limits{{Site: "B", Send: rate, Receive: 1}}, rate},
		"a record in some seconds":  {mover.Limits{sends("B", 64e3)}, 64e3},
		"faster than a timer tells": {mover.Limits{sends("B", 100e9)}, 100e9},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New(mover.Send, c.limits)
				began := time.Now()
				var taking sync.WaitGroup
				for range 4 {
					taking.Go(func() {
						if err := toll(p, "B").takes(n / 4); err != nil {
							t.Error(err)
						}
					})
				}
				taking.Wait()
				want := time.Duration(n * 8 / float64(c.want) * float64(time.Second))
				if took := time.Since(began); took < want-want/50-burst || took > want+want/50+time.Millisecond {
					t.Errorf("%d bytes took %v at %v, want %v", n, took, c.want, want)
				}
			})
		})
	}
}

// TestALateTimerCostsNothing has each wait end a while after its time.
func TestALateTimerCostsNothing(t *testing.T) {
	for _, rate := range []mover.Rate{64e3, 20e6, 8e9} {
		now := time.Now()
		b := New(mover.Send, mover.Limits{sends("B", rate)}).bucket("B")
		began, n := now, 0
		for range 1000 {
			for wait := b.need(now, b.step()); wait > 0; wait = b.need(now, b.step()) {
				now = now.Add(wait + burst/2)
			}
			n += b.step()
		}
		want := time.Duration(float64(n) * 8 / float64(rate) * float64(time.Second))
		if took := now.Sub(began); took > want+burst || took < want-time.Millisecond {
			t.Errorf("%d bytes took %v at %v, want %v", n, took, rate, want)
		}
	}
}

func TestStepsAreShort(t *testing.T) {
	for rate, want := range map[mover.Rate]int{0: leastStep, 1: leastStep, 1e6: leastStep, 16e6: 40_000, 8e9: 20_000_000, mover.Unlimited: mostStep} {
		p := New(mover.Send, mover.Limits{sends("B", rate)})
		if got := toll(p, "B").Step(math.MaxInt32); got != want {
			t.Errorf("at %v: %d bytes at once, want %d", rate, got, want)
		}
		if got := toll(p, "B").Step(10); got != 10 {
			t.Errorf("at %v: %d of 10 bytes at once", rate, got)
		}
		if got := toll(p, "C").Step(1 << 20); got != 1<<20 {
			t.Errorf("at %v to another site: %d bytes at once", rate, got)
		}
	}
}

// TestAChangeActsOnWhoWaits has limits change while a connection waits for its tokens.
func TestAChangeActsOnWhoWaits(t *testing.T) {
	for name, c := range map[string]struct {
		was, is mover.Limits
		least   time.Duration // for as long as the first limit lasts
	}{
		"faster":    {mover.Limits{sends("B", 1)}, mover.Limits{sends("B", 80e6)}, 5 * time.Second},
		"none":      {mover.Limits{sends("B", 0)}, nil, 5 * time.Second},
		"of others": {mover.Limits{sends("", 0)}, mover.Limits{sends("C", 0)}, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := New(mover.Send, c.was)
				time.AfterFunc(c.least, func() { p.Set(c.is) })
				began := time.Now()
				if err := toll(p, "B").takes(1 << 20); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < c.least || took > c.least+2*lookEvery {
					t.Errorf("it took %v, want as long as the first limit was there, %v", took, c.least)
				}
			})
		})
	}
}

// TestAWindowBeginsByTheClock changes nothing but the time.
func TestAWindowBeginsByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // from midnight on
		w, err := mover.ParseWindow("", "00:01-00:02", "UTC")
		if err != nil {
			t.Fatal(err)
		}
		p := New(mover.Send, mover.Limits{sends("B", 8e6), {Site: "B", Window: w}})
		if err := toll(p, "B").takes(1000); err != nil {
			t.Error(err)
		}
		if wait := p.Shut("B"); wait != nil || p.Rate("B") != 8e6 {
			t.Errorf("before: %v, at %v", wait, p.Rate("B"))
		}
		time.Sleep(time.Minute)
		wait := p.Shut("B")
		if wait == nil || !strings.Contains(wait.Reason, "a limit lets nothing go to site B until") || time.Until(wait.Until).Round(time.Second) != time.Minute || p.Rate("B") != 0 {
			t.Errorf("in it: %v, at %v", wait, p.Rate("B"))
		}
		if wait := p.Shut("C"); wait != nil || p.Rate("C") != mover.Unlimited {
			t.Errorf("to another site: %v, at %v", wait, p.Rate("C"))
		}
		if err := toll(p, "B").takes(1000); err != nil || time.Until(wait.Until) > 0 || time.Since(wait.Until) > lookEvery {
			t.Errorf("1000 bytes go %v after its end: %v", time.Since(wait.Until), err)
		}
	})
}

// TestAWaitEndsWithItsConnection has two connections wait, of which one is alone at the
// bucket.
func TestAWaitEndsWithItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, gone := New(mover.Send, mover.Limits{sends("", 0)}), errors.New("gone")
		var taking sync.WaitGroup
		for range 2 {
			began := time.Now()
			one := toll(p, "B")
			one.Alive = func() error {
				if time.Since(began) >= time.Minute {
					return gone
				}
				return nil
			}
			taking.Go(func() {
				if err := one.Take(1); !errors.Is(err, gone) || time.Since(began) > time.Minute+lookEvery {
					t.Errorf("it ended after %v: %v", time.Since(began), err)
				}
			})
		}
		taking.Wait()
		p.Set(nil)
		if err := toll(p, "B").Take(1); err != nil {
			t.Errorf("the next one: %v", err)
		}
	})
}

// TestWaitsAreTold holds that each wait is told of the limit that is waited for, and ends.
func TestWaitsAreTold(t *testing.T) {
	for limit, want := range map[string]string{"": "", "B": "B"} {
		synctest.Test(t, func(t *testing.T) {
			waited := map[string]time.Duration{}
			one := toll(New(mover.Send, mover.Limits{sends(limit, 8e6)}), "B")
			one.Waits = func(site string) func() {
				began := time.Now()
				return func() { waited[site] += time.Since(began) }
			}
			began := time.Now()
			if err := one.takes(1 << 20); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); waited[want] != took || len(waited) != 1 {
				t.Errorf("a limit of %q: %v of %v were told", limit, waited, took)
			}
		})
	}
}

func TestLimitsHaveNames(t *testing.T) {
	send, receive := New(mover.Send, mover.Limits{sends("B", 8e6), sends("", 2e9)}), New(mover.Receive, mover.Limits{{Site: "B", Receive: 0}})
	for _, c := range []struct {
		p          *Pacer
		site, want string
	}{
		{send, "B", "8Mbit/s to site B"}, {send, "", "2Gbit/s to all sites"}, {send, "C", ""},
		{receive, "B", "0 from site B"}, {receive, "", ""}, {nil, "B", ""},
	} {
		if got := c.p.Name(c.site); got != c.want {
			t.Errorf("the limit of %q is %q, want %q", c.site, got, c.want)
		}
	}
}

func TestWithoutAPacerAllGoes(t *testing.T) {
	var p *Pacer
	if w, r := p.Shut("B"), p.Rate("B"); w != nil || r != mover.Unlimited {
		t.Errorf("%v, at %v", w, r)
	}
	for _, one := range []*Toll{nil, {}, {Pacer: New(mover.Send, nil), Site: "B"}} {
		if n, err := one.Step(1<<30), one.Take(1<<30); n != 1<<30 || err != nil {
			t.Errorf("%d bytes at once, %v", n, err)
		}
	}
}
