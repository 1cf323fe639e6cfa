package agent

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// questions is how often B's DTN has been asked for an arrival since it was last called.
func (w *world) questions() (n int) {
	w.locked(func() {
		n = w.b.counts["landing.Arrival"]
		w.b.counts["landing.Arrival"] = 0
	})
	return n
}

// silence has B's DTN announce nothing any more, or again.
func (w *world) silence(mute bool) {
	w.locked(func() {
		w.b.mute = mute
		w.b.stir()
	})
}

// An image of 2 MB takes 6 s to arrive here. Where that is announced, its DTN is asked when
// the job begins and now and then; else all the time.
func TestArrivalsAreAnnouncedOrAskedFor(t *testing.T) {
	const few, many = 8, 20 // questions in 6 s
	for _, c := range []struct {
		name         string
		first, later bool // half way: the DTN is mute
		min, max     int
	}{
		{"announced", false, false, 1, few},
		{"asked for", true, true, 2 * many, 1000},
		{"the stream goes away", false, true, many, 1000},
		{"the stream comes back", true, false, many, 3 * many},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.pace = 50 * time.Millisecond
				w.silence(c.first)
				data := bytesOf(2_000_000)
				id := w.a.upload("x", data)
				jobs, err := w.a.agent().Push(t.Context(), string(id), []string{"B"}, "")
				if err != nil {
					t.Fatal(err)
				}
				w.b.await(NewJobID(Receive, id, sum(data), "A"), Arriving)
				time.Sleep(2 * time.Second)
				w.silence(c.later)
				w.a.await(jobs[0].ID, Verified)
				if j := w.b.job(id); j.State != Verified || j.Attempts > 0 || len(j.History) != len(Receive.Way()) {
					t.Errorf("the delivery is %s after %d failures: %v", j.State, j.Attempts, j.History)
				}
				if n := w.questions(); n < c.min || n > c.max {
					t.Errorf("asked %d times, want %d to %d", n, c.min, c.max)
				}
				w.wantDelivered(id, data)
			})
		})
	}
}

// The last block and the end of its file may be announced as one.
func TestTheEndIsHeardOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := bytesOf(2*mover.BlockSize + 1)
		size := int64(len(data))
		o := &oneFile{data: data, arrival: mover.Arrival{State: mover.Arriving, Proven: mover.BlockSize, Since: time.Unix(1, 0)}}
		a := &Agent{Options: Options{Landing: o, Stager: o}}
		a.inbox.tell(map[string]mover.Arrival{"inbox/x": o.arrival}, true)
		start := time.Now()
		c, err := a.arriving(t.Context(), mover.File{Name: "inbox/x", Size: size, Digest: sum(data)}, newPace())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() {
			a.inbox.tell(map[string]mover.Arrival{"inbox/x": {State: mover.Arrived, Proven: size, Since: time.Unix(1, 0)}}, true)
		})
		n, err := io.Copy(io.Discard, held(c, size, func(int64) {}))
		if took := time.Since(start); n != size || err != nil || took != time.Second {
			t.Errorf("%d bytes, %v, after %v; want %d as soon as they are announced", n, err, took, size)
		}
	})
}

// A file that nobody sends yet is not asked for all the time, and taken up as soon as it
// is announced.
func TestAnExpectedFileIsWaitedForInSilence(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		const name = "inbox/x"
		sight := w.b.agent().sight(name, pollMax)
		time.Sleep(time.Second) // for the stream to be there
		w.questions()
		came := time.Now().Add(time.Hour)
		time.AfterFunc(time.Hour, func() {
			w.locked(func() {
				w.b.inbox[name] = &arrival{file: mover.File{Name: name}, state: mover.Arriving, since: time.Now()}
				w.b.stir()
			})
		})
		for {
			if arr, err := sight.next(t.Context()); err == nil {
				if arr.File.Name != name || !time.Now().Equal(came) {
					t.Errorf("%+v is seen %v after it came", arr, time.Since(came))
				}
				break
			}
		}
		if n, want := w.questions(), int(time.Hour/pollSafe)+2; n > want {
			t.Errorf("asked %d times in an hour, want %d", n, want)
		}
	})
}

// answers is a DTN that tells of one file what a test says, and can do something else
// while it is asked.
type answers struct {
	Landing
	arr       mover.Arrival
	asked     int
	meanwhile func()
}

func (l *answers) Arrival(context.Context, string) (mover.Arrival, error) {
	l.asked++
	arr := l.arr
	if l.meanwhile != nil {
		l.meanwhile()
	}
	if arr.Since.IsZero() {
		return arr, mover.ErrNoArrival
	}
	return arr, nil
}

func TestSight(t *testing.T) {
	const name = "inbox/x"
	at := func(since time.Duration, proven int64) mover.Arrival {
		return mover.Arrival{File: mover.File{Name: name}, State: mover.Arriving, Proven: proven, Moved: proven, Since: time.Unix(1e9, 0).Add(since)}
	}
	end := at(0, 9)
	end.State = mover.Arrived
	type files = map[string]mover.Arrival
	for _, c := range []struct {
		name  string
		do    func(dtn *answers, b *inbox, next func(want mover.Arrival))
		asked int
		took  time.Duration
	}{
		{"an announcement that was there before is asked for all the same", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			dtn.arr = at(0, 2)
			b.tell(files{name: at(0, 1)}, true)
			next(at(0, 2))
		}, 1, 0},
		{"what is announced is not asked for", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			dtn.arr = at(0, 1)
			b.tell(nil, true)
			next(at(0, 1))
			for proven := range int64(10) {
				time.AfterFunc(time.Second, func() { b.tell(files{name: at(0, proven+2)}, true) })
				next(at(0, proven+2))
			}
			time.AfterFunc(time.Second, func() { b.tell(files{name: end}, true) })
			next(end)
		}, 1, 11 * time.Second},
		{"the end comes while the DTN is asked", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			dtn.arr = at(0, 8)
			b.tell(files{name: at(0, 8)}, true)
			dtn.meanwhile = func() { b.tell(files{name: end}, true) }
			next(at(0, 8))
			next(end)
		}, 1, 0},
		{"what was dropped is asked for before it is believed", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			dtn.arr = at(0, 1)
			b.tell(files{name: at(0, 1)}, true)
			next(at(0, 1))
			b.tell(files{}, true) // it was not there yet
			next(at(0, 1))
			dtn.arr = mover.Arrival{}
			b.tell(files{name: at(0, 2)}, true)
			next(at(0, 2))
			b.tell(files{}, true)
			next(mover.Arrival{})
		}, 3, 0},
		{"another file of that name is asked for", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			dtn.arr = at(time.Hour, 1) // the earlier one was dropped
			b.tell(nil, true)
			next(at(time.Hour, 1))
			b.tell(files{name: end}, true) // late
			next(at(time.Hour, 1))
			b.tell(files{name: at(time.Hour, 2)}, true)
			next(at(time.Hour, 2))
		}, 2, 0},
		{"a DTN that announces nothing is asked all the same", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			b.tell(nil, true)
			for range 4 {
				next(mover.Arrival{})
			}
		}, 4, 3 * pollSafe},
		{"a DTN that is not heard is asked later and later while nothing moves", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			for range 4 {
				next(mover.Arrival{})
			}
			dtn.arr = at(0, 1)
			next(at(0, 1))
			dtn.arr = at(0, 2)
			next(at(0, 2))
		}, 6, pollMin + pollMin*5/4 + pollMin*5/4*5/4 + pollMin*5/4*5/4*5/4 + pollMin},
		{"when the stream goes away the DTN is asked, and not any more when it is back", func(dtn *answers, b *inbox, next func(mover.Arrival)) {
			dtn.arr = at(0, 1)
			b.tell(files{name: at(0, 1)}, true)
			next(at(0, 1))
			time.AfterFunc(time.Second, func() { b.tell(nil, false) })
			next(at(0, 1))
			time.AfterFunc(pollMin/2, func() { b.tell(files{name: at(0, 2)}, true) })
			next(at(0, 2))
			time.AfterFunc(pollSafe/2, func() { b.tell(files{name: end}, true) })
			next(end)
		}, 2, time.Second + pollMin/2 + pollSafe/2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &Agent{Options: Options{Landing: &answers{}}}
				dtn := a.Landing.(*answers)
				sight, start := a.sight(name, pollMax), time.Now()
				c.do(dtn, &a.inbox, func(want mover.Arrival) {
					t.Helper()
					if arr, err := sight.next(t.Context()); arr != want || (err == nil) == want.Since.IsZero() {
						t.Errorf("got %+v, %v, want %+v", arr, err, want)
					}
				})
				if took := time.Since(start); dtn.asked != c.asked || took != c.took {
					t.Errorf("asked %d times in %v, want %d in %v", dtn.asked, took, c.asked, c.took)
				}
			})
		})
	}
}

// TestASiteIsToldThatAnothersDTNDoesNotAnswer until it does, by that site's agent.
func TestASiteIsToldThatAnothersDTNDoesNotAnswer(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		told := func() *Silence {
			t.Helper()
			time.Sleep(10 * time.Second)
			o, err := w.a.agent().Overview(t.Context())
			if err != nil || len(o.Peers) != 1 || !o.Peers[0].OK {
				t.Fatalf("%+v, %v", o.Peers, err)
			}
			return o.Peers[0].DTN
		}
		if s := told(); s != nil {
			t.Errorf("while it answers: %+v", s)
		}
		began := time.Now()
		w.silence(true)
		first, second := told(), told()
		if first == nil || second == nil || second.Error != "connection refused" || second.Since.Sub(began) > 2*time.Second || !first.Since.Equal(second.Since) {
			t.Errorf("while it does not: %+v, then %+v", first, second)
		}
		w.silence(false)
		if s := told(); s != nil {
			t.Errorf("when it answers again: %+v", s)
		}
		if _, err := w.a.agent().Health(t.Context(), "stranger"); !errors.Is(err, ErrForbidden) {
			t.Errorf("a stranger is told: %v", err)
		}
	})
}
