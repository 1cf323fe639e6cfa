package main

import (
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// A bar tells the rate of the last seconds, without bytes that an earlier attempt had
// moved, and starts anew with each leg.
func TestBarShowsTheRunningLeg(t *testing.T) {
	now := time.Unix(1e9, 0)
	j := agent.Job{State: agent.Staged, Image: glance.Image{Size: 1 << 30}}
	check := func(l leg, title, numbers string) {
		t.Helper()
		if got := l.title(now); got != title {
			t.Errorf("title %q, want %q", got, title)
		}
		if got := l.numbers(now); got != numbers {
			t.Errorf("numbers %q, want %q", got, numbers)
		}
	}
	l := leg{}.enter(j, now)
	now = now.Add(3 * time.Second)
	check(l, "move", "3.0 s")

	l = l.advance(agent.Progress{State: agent.Staged, Total: 1 << 30}, now) // the transfer has not begun
	check(l, "move", "3.0 s")
	now = now.Add(time.Second)
	l = l.advance(agent.Progress{State: agent.Staged, Moved: 512 << 20, Total: 1 << 30}, now)
	check(l, "move", "512.0 MiB / 1.0 GiB")
	now = now.Add(2 * time.Second)
	l = l.advance(agent.Progress{State: agent.Staged, Moved: 768 << 20, Total: 1 << 30}, now)
	check(l, "move", "768.0 MiB / 1.0 GiB  134 MB/s  ETA 2 s")

	l = l.advance(agent.Progress{State: agent.Offered, Moved: 1, Total: 2}, now)
	check(l, "move", "768.0 MiB / 1.0 GiB  134 MB/s  ETA 2 s")

	for range 10 {
		now = now.Add(time.Second)
		l = l.advance(agent.Progress{State: agent.Staged, Moved: l.moved + 10<<20, Total: 1 << 30, Bottleneck: mover.Bottleneck{Place: mover.Network, Share: 0.8}}, now)
	}
	check(l, "move", "868.0 MiB / 1.0 GiB  10 MB/s  ETA 16 s  network")

	j.Reason = "site B does not answer"
	check(l.enter(j, now), "move", "site B does not answer")

	j.State, j.Reason = agent.Moved, ""
	check(l.enter(j, now), "deliver", "0.0 s")
	j.State = agent.Verified
	check(l.enter(j, now), "active", "")
}
