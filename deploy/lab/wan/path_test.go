package wan

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestTheLinkTakesItsTimeForEachPacket(t *testing.T) {
	// 1538 bytes of wire in 12.304 µs.
	l := newLink(Path{Delay: 10 * time.Millisecond, Rate: 1e9}, 0)
	const each = 12304 * time.Nanosecond
	for i := range 3 {
		due, fate := l.send(0, 1500)
		if want := 10*time.Millisecond + time.Duration(i+1)*each; fate != passes || due != want {
			t.Errorf("packet %d of a burst: %v, fate %d, want %v", i, due, fate, want)
		}
	}
	if due, _ := l.send(time.Second, 1500); due != time.Second+each+10*time.Millisecond {
		t.Errorf("a packet after a rest: %v, want it to wait for nobody", due)
	}
}

func TestWithoutARateThereIsOnlyTheDelay(t *testing.T) {
	l := newLink(Path{Delay: time.Millisecond}, 0)
	for range 10_000 {
		if due, fate := l.send(5, 1500); fate != passes || due != time.Millisecond+5 {
			t.Fatalf("due %v, fate %d, want all at once", due, fate)
		}
	}
}

func TestAFullQueueDropsWhatComes(t *testing.T) {
	for _, c := range []struct {
		name string
		path Path
		want int // packets of 1538 bytes of wire
	}{
		{"as told", Path{Rate: 1e9, Queue: 10 * 1538}, 10},
		{"a bandwidth-delay product", Path{Rate: 1e9, Delay: 25 * time.Millisecond}, 6_250_000 / 1538},
		{"64 KiB at least", Path{Rate: 1e6}, 65536 / 1538},
	} {
		l := newLink(c.path, 0)
		n := 0
		for {
			if _, fate := l.send(0, 1500); fate == overflows {
				break
			}
			n++
		}
		if n != c.want {
			t.Errorf("%s: the queue took %d packets, want %d", c.name, n, c.want)
		}
		wait := time.Duration(1538 * l.perByte)
		if _, fate := l.send(wait, 1500); fate != passes {
			t.Errorf("%s: no place after one packet has left", c.name)
		}
	}
}

func TestLossIsRandomAndRepeatable(t *testing.T) {
	const n = 2_000_000
	for _, loss := range []float64{0, 0.0001, 0.01, 0.5, 1} {
		fates := func(seed uint64) (all []int, pairs float64) {
			l := newLink(Path{Loss: loss, Seed: seed}, 0)
			last := -2
			for i := range n {
				if _, fate := l.send(0, 1500); fate == lost {
					all = append(all, i)
					if last == i-1 {
						pairs++
					}
					last = i
				}
			}
			return all, pairs
		}
		got, pairs := fates(1)
		for what, c := range map[string]struct{ got, want float64 }{
			"losses":                {float64(len(got)), n * loss},
			"losses after a loss":   {pairs, n * loss * loss},
			"losses of half of all": {float64(countBelow(got, n/2)), n * loss / 2},
		} {
			// Five standard deviations of a Poisson distribution, with room for a rare one.
			if math.Abs(c.got-c.want) > 5*math.Sqrt(c.want)+3 {
				t.Errorf("loss %v: %s: %v, want about %v", loss, what, c.got, c.want)
			}
		}
		again, _ := fates(1)
		other, _ := fates(2)
		if len(again) != len(got) {
			t.Errorf("loss %v: the same seed lost %d and %d packets", loss, len(got), len(again))
		}
		if loss == 0.01 && countCommon(got, other) > n/1000 {
			t.Errorf("another seed lost %d of the same packets", countCommon(got, other))
		}
	}
}

func countBelow(all []int, limit int) (n int) {
	for _, i := range all {
		if i < limit {
			n++
		}
	}
	return n
}

func countCommon(a, b []int) (n int) {
	in := map[int]bool{}
	for _, i := range a {
		in[i] = true
	}
	for _, i := range b {
		if in[i] {
			n++
		}
	}
	return n
}

func TestPathSaysAllThatCannotBe(t *testing.T) {
	err := Path{Delay: -1, Rate: math.NaN(), Queue: 100, Loss: 1.5, MTU: 100}.Validate()
	for _, want := range []string{"delay", "rate", "queue", "loss", "MTU"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it to name %s", err, want)
		}
	}
	if err := (Path{}).Validate(); err != nil {
		t.Errorf("a path that does nothing: %v", err)
	}
}
