package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// chooseFastest takes the way whose slowest hop was the fastest, and the present one where
// no other is twice as fast.
func chooseFastest(j Journey) (Route, error) {
	rates := map[string]float64{}
	for _, h := range j.Hops {
		switch {
		case h.From == j.From && h.Site == j.To:
			rates[""] = h.Best
		case h.From == j.From:
			for _, on := range j.Hops {
				if on.From == h.Site && on.Site == j.To {
					rates[h.Site] = min(h.Best, on.Best)
				}
			}
		}
	}
	best, at := "none", 0.0
	for by, r := range rates {
		if r > at {
			best, at = by, r
		}
	}
	if j.Present != nil && 2*rates[j.Present.Site] > at {
		best = j.Present.Site
	}
	switch best {
	case "none":
		return Route{}, errors.New("nothing is measured")
	case "":
		return Route{Why: "direct is best"}, nil
	}
	return Route{Relay: mover.Relay{Site: best, Mode: mover.CutThrough}, Why: "through " + best + " is best"}, nil
}

// barred ends a transfer that does not come through.
func (s *site) barred(via mover.Relay, end func(mover.Code, error)) bool {
	if s.bars == nil {
		return false
	}
	code, err := s.bars(via)
	if err != nil {
		end(code, err)
	}
	return err != nil
}

func (m moverOf) Onward(_ context.Context, r mover.Relay) (hops []mover.Hop, err error) {
	post, pre := m.call("mover.Onward")
	if pre != nil {
		return nil, pre
	}
	m.w.locked(func() {
		if m.onward != nil {
			hops, err = m.onward(r)
		}
	})
	return hops, post(err)
}

// seenPath is what is seen of a path to a site, of this rate.
func seenPath(to string, rate float64) mover.SeenPath {
	return mover.SeenPath{Site: to, Seen: time.Now(), Best: rate, MinRTT: 10 * time.Millisecond, Connections: 4}
}

var relayR = mover.Relay{Site: "R", Address: "dtn-r.example.org:7444"}

// auto lets site A choose between the direct way and site R for B, with rates of A → B,
// A → R and R → B; 0: it was not measured.
func (w *world) auto(direct, first, second float64) {
	w.a.set(func(p *PeerSite) { p.Among = []mover.Relay{relayR} })
	w.b.set(func(p *PeerSite) { p.Relays = []string{"R"} })
	w.measured(direct, first, second)
}

func (w *world) measured(direct, first, second float64) {
	w.locked(func() {
		w.a.seen = []mover.SeenPath{seenPath("B", direct), seenPath("R", first)}
		w.a.onward = func(r mover.Relay) ([]mover.Hop, error) {
			if r != relayR {
				return nil, fmt.Errorf("there is no relay %+v", r)
			}
			return []mover.Hop{{From: "elsewhere", SeenPath: seenPath("C", 1e12)}, {From: "elsewhere", SeenPath: seenPath("B", second)}}, nil
		}
	})
}

// push sends an image of its own from A to B, and returns the job at its end.
func (w *world) push(name string) Job {
	w.t.Helper()
	w.a.upload(name, bytesOf(100_000+16*int(name[0])+int(name[1]))) // other content than the last one
	jobs, err := w.a.agent().Push(w.t.Context(), name, []string{"B"}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.a.await(jobs[0].ID, Verified, Parked)
}

// wantWay pushes an image, which has to arrive through that relay; "": straight.
func (w *world) wantWay(name, relay string) {
	w.t.Helper()
	if j := w.push(name); j.State != Verified || j.Route.Relay.Site != relay {
		w.t.Errorf("image %s: the job is %s, %+v, want it to go through %q", name, j.State, j.Route, relay)
	}
}

// ways are those of the transfers for an image, in the order in which they were submitted.
func (w *world) ways(j Job) (all []mover.Relay) {
	w.locked(func() {
		var moves []*move
		for _, m := range w.a.moves {
			if id, _, _ := strings.Cut(m.req.Key, "."); JobID(id) == j.ID {
				moves = append(moves, m)
			}
		}
		slices.SortFunc(moves, func(a, b *move) int { return a.st.Started.Compare(b.st.Started) })
		for _, m := range moves {
			all = append(all, m.req.Destination.Via)
			var tk mover.Ticket
			if err := json.Unmarshal([]byte(m.req.Destination.Ticket), &tk); err != nil || tk.Via != m.req.Destination.Via.Site && m.req.Destination.Via.Site != "" {
				w.t.Errorf("the ticket is for a way through %q, the transfer goes through %q, %v", tk.Via, m.req.Destination.Via.Site, err)
			}
		}
	})
	return all
}

// movedNote is how the job says that its file has moved.
func movedNote(j Job) string {
	i := slices.IndexFunc(j.History, func(c Change) bool { return c.State == Moved })
	if i < 0 {
		return ""
	}
	return j.History[i].Note
}

func TestTheWayIsChosenByWhatWasMeasured(t *testing.T) {
	for _, c := range []struct {
		what                  string
		direct, first, second float64
		by, why               string
	}{
		{"a lossy direct path", 1e6, 1e9, 1e9, "R", "through R is best"},
		{"a slow second half", 1e8, 1e9, 1e6, "", "direct is best"},
		{"no figures of the direct path", 0, 1e9, 1e9, "", "direct: A → B is not measured"},
		{"no figures of the way to the relay", 1e6, 0, 1e9, "", "direct: A → R is not measured"},
		{"no figures of the way on", 1e6, 1e9, 0, "", "direct: R → B is not measured"},
	} {
		t.Run(c.what, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.auto(c.direct, c.first, c.second)
				j := w.push("debian")
				want := mover.Relay{}
				if c.by != "" {
					want = mover.Relay{Site: "R", Address: relayR.Address, Mode: mover.CutThrough}
				}
				if got := w.ways(j); j.State != Verified || len(got) != 1 || got[0] != want {
					t.Fatalf("%s: the job is %s (%s), its ways %+v", c.what, j.State, j.Reason, got)
				}
				if j.Route.Relay != want || j.Route.Why != c.why || !strings.HasSuffix(movedNote(j), c.why) {
					t.Errorf("the job says %+v, its history %q", j.Route, movedNote(j))
				}
			})
		})
	}
}

// TestOldFiguresCountUntilThereAreNewer: else a quiet month would leave the direct way as
// the only one that is measured again, for good.
func TestOldFiguresCountUntilThereAreNewer(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		time.Sleep(30 * 24 * time.Hour)
		w.wantWay("one", "R")
		w.locked(func() { w.a.seen = append(w.a.seen, seenPath("B", 1e11)) })
		time.Sleep(surveyFor)
		w.wantWay("two", "")
	})
}

// TestAnOutageOfTheDestinationIsNoRelaysFault: when files arrive again by a way that had
// failed like the others, those are not left out for hours.
func TestAnOutageOfTheDestinationIsNoRelaysFault(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		down := true
		w.locked(func() {
			w.a.bars = func(mover.Relay) (mover.Code, error) {
				if down {
					return mover.CodeOther, errors.New("the destination is away")
				}
				return "", nil
			}
		})
		w.a.upload("one", bytesOf(100_000))
		jobs, err := w.a.agent().Push(t.Context(), "one", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		w.locked(func() { down = false })
		if j := w.a.await(jobs[0].ID, Verified, Parked); j.State != Verified || j.Route.Relay.Site != "" {
			t.Fatalf("the job is %s, %+v", j.State, j.Route)
		}
		w.wantWay("two", "R")
	})
}

// refusing answers all offers but the first with a refusal.
type refusing struct {
	Peer
	offers *atomic.Int64
}

func (r refusing) Offer(ctx context.Context, o Offer) (Grant, error) {
	if r.offers.Add(1) > 1 {
		return Grant{Verdict: Refuse, Reason: "an operator has cancelled it"}, nil
	}
	return r.Peer.Offer(ctx, o)
}

// TestARefusalForAnotherReasonIsNotOfTheWay: nothing is sent then, and the relay is not left out.
func TestARefusalForAnotherReasonIsNotOfTheWay(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.a.set(func(p *PeerSite) { p.Peer = refusing{p.Peer, new(atomic.Int64)} })
		j := w.push("one")
		if got := w.ways(j); j.State != Parked || len(got) > 0 || j.Reason != "site B refuses: an operator has cancelled it" {
			t.Errorf("the job is %s (%s), its ways %+v", j.State, j.Reason, got)
		}
		if ways, err := w.a.agent().Ways(t.Context(), "B", "", 5); err != nil || len(ways.Unknown) > 0 || ways.Route.Relay.Site != "R" {
			t.Errorf("%+v, %v", ways, err)
		}
	})
}

// slowly is a DTN that takes its time to ask a relay.
type slowly struct{ Mover }

func (m slowly) Onward(ctx context.Context, r mover.Relay) ([]mover.Hop, error) {
	time.Sleep(time.Second)
	return m.Mover.Onward(ctx, r)
}

func TestJobsThatBeginTogetherAskOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		o := w.a.agent().Options
		o.Mover = slowly{o.Mover}
		a, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		for range 3 {
			asking.Go(func() {
				if hops, err := a.seen(t.Context(), relayR, surveyFor); err != nil || len(hops) != 2 {
					t.Errorf("%+v, %v", hops, err)
				}
			})
		}
		asking.Wait()
		w.locked(func() {
			if n := w.a.counts["mover.Onward"]; n != 1 {
				t.Errorf("the relay was asked %d times", n)
			}
		})
	})
}

// TestAWayThatIsSetIsNotLeftOut whatever it did while it was one of several.
func TestAWayThatIsSetIsNotLeftOut(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.a.agent().setBack("B", relayR, "it was away")
		w.a.set(func(p *PeerSite) {
			p.Among, p.Via = nil, mover.Relay{Site: "R", Address: relayR.Address, Mode: mover.CutThrough}
		})
		if got, err := w.a.agent().Ways(t.Context(), "B", "", 5); err != nil || len(got.Unknown) > 0 || len(got.Hops) != 3 {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// TestARelayThatFailsIsLeftForTheDirectWay also where it refuses, which without a choice
// needs a person; it is tried again later, and after longer and longer.
func TestARelayThatFailsIsLeftForTheDirectWay(t *testing.T) {
	for _, code := range []mover.Code{mover.CodeOther, mover.CodeAuth, mover.CodeTicket, mover.CodeSpace} {
		t.Run(string(code), func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.auto(1e6, 1e9, 1e9)
				broken := true
				w.locked(func() {
					w.a.bars = func(via mover.Relay) (mover.Code, error) {
						if broken && via.Site == "R" {
							return code, errors.New("the relay is no good")
						}
						return "", nil
					}
				})
				j := w.push("one")
				if got := w.ways(j); j.State != Verified || len(got) != 2 || got[0].Site != "R" || got[1].Site != "" {
					t.Fatalf("the job is %s (%s), its ways %+v", j.State, j.Reason, got)
				}
				if !strings.HasPrefix(j.Route.Why, "direct: the way through R has failed and is left out for ") {
					t.Errorf("the job says %q", j.Route.Why)
				}
				if !slices.ContainsFunc(j.History, func(c Change) bool { return strings.Contains(c.Note, "the relay is no good") }) {
					t.Errorf("the history does not say what was wrong: %+v", j.History)
				}
				if got := w.ways(w.push("two")); len(got) != 1 || got[0].Site != "" {
					t.Errorf("right after that the ways are %+v", got)
				}
				ways, err := w.a.agent().Ways(t.Context(), "B", "", 5)
				if err != nil || !slices.ContainsFunc(ways.Unknown, func(u string) bool { return strings.HasSuffix(u, ": the relay is no good") }) {
					t.Errorf("%+v, %v", ways, err)
				}
				time.Sleep(setBackMin)
				if got := w.ways(w.push("three")); len(got) != 2 || got[0].Site != "R" || got[1].Site != "" {
					t.Errorf("after a while the ways are %+v", got)
				}
				time.Sleep(setBackMin)
				if got := w.ways(w.push("four")); len(got) != 1 || got[0].Site != "" {
					t.Errorf("after the second failure the ways are %+v", got)
				}
				w.locked(func() { broken = false })
				time.Sleep(setBackMin)
				if got := w.ways(w.push("five")); len(got) != 1 || got[0].Site != "R" {
					t.Errorf("of a relay that works again the ways are %+v", got)
				}
			})
		})
	}
}

// TestARelayThatDoesNotAnswerIsNotWaitedFor takes the direct way, and the relay when that
// is back.
func TestARelayThatDoesNotAnswerIsNotWaitedFor(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.locked(func() {
			w.a.onward = func(mover.Relay) ([]mover.Hop, error) {
				return nil, fmt.Errorf("GET https://dtn: %w", &mover.Problem{Status: 502, Detail: "connection refused"})
			}
		})
		if j := w.push("one"); j.Route.Why != "direct: the DTN of site R cannot be asked: connection refused" || len(w.ways(j)) != 1 {
			t.Errorf("%+v, %+v", j.Route, w.ways(j))
		}
		w.measured(1e6, 1e9, 1e9)
		time.Sleep(surveyFor)
		w.wantWay("two", "")
		time.Sleep(muteFor)
		w.wantWay("three", "R")
	})
}

// TestTheOwnDTNIsAskedAgainAtOnce: its silence says nothing of a way.
func TestTheOwnDTNIsAskedAgainAtOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.inject(func(o op, after bool) fate {
			if o.site == "A" && o.name == "mover.Paths" && o.nth == 0 {
				return fail
			}
			return live
		})
		begun := time.Now()
		if j := w.push("one"); j.State != Verified || j.Route.Relay.Site != "R" || time.Since(begun) > muteFor {
			t.Errorf("after %v the job is %s (%s), %+v", time.Since(begun), j.State, j.Reason, j.Route)
		}
	})
}

// TestADirectWayThatFailsIsLeftForARelay where that was measured, and nothing else is.
func TestADirectWayThatFailsIsLeftForARelay(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e9, 1e6, 1e6)
		shut := true
		w.locked(func() {
			w.a.bars = func(via mover.Relay) (mover.Code, error) {
				if shut && via.Site == "" {
					return mover.CodeOther, errors.New("no route to host")
				}
				return "", nil
			}
		})
		j := w.push("one")
		if got := w.ways(j); j.State != Verified || len(got) != 2 || got[0].Site != "" || got[1].Site != "R" {
			t.Fatalf("the job is %s (%s), its ways %+v", j.State, j.Reason, got)
		}
		if !strings.HasPrefix(j.Route.Why, "through R is best; the direct way has failed and is left out for ") {
			t.Errorf("the job says %q", j.Route.Why)
		}
		w.locked(func() { shut = false })
		time.Sleep(setBackMin)
		w.wantWay("two", "")
	})
}

// TestNothingIsLeftForWhatIsNoWaysFault has the destination refuse a transfer.
func TestNothingIsLeftForWhatIsNoWaysFault(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e9, 1e6, 1e6)
		n := 0
		w.locked(func() {
			w.a.bars = func(mover.Relay) (mover.Code, error) {
				if n++; n == 1 {
					return mover.CodeSpace, errors.New("no space at the destination")
				}
				return "", nil
			}
		})
		if got := w.ways(w.push("one")); len(got) != 2 || got[0] != got[1] || got[0].Site != "" {
			t.Errorf("the ways are %+v", got)
		}
	})
}

// TestAPeerThatTakesNothingFromARelayGetsItStraight though the relay would be faster.
func TestAPeerThatTakesNothingFromARelayGetsItStraight(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.b.set(func(p *PeerSite) { p.Relays = nil })
		j := w.push("one")
		if got := w.ways(j); j.State != Verified || len(got) != 1 || got[0].Site != "" || !strings.Contains(j.Route.Why, "set peers: relays there") {
			t.Fatalf("the job is %s (%s), its ways %+v, %+v", j.State, j.Reason, got, j.Route)
		}
		asked := w.count("catalog.Room")
		if w.push("two"); w.count("catalog.Room") > asked+1 {
			t.Error("B is asked for a way again that it has just refused")
		}
	})
}

// TestAChosenWayFindsWhatHasArrivedAlready has a transfer fail after the whole has come:
// with the ticket for the next one B says so. What was waited for until then is not forgotten.
func TestAChosenWayFindsWhatHasArrivedAlready(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.locked(func() {
			w.a.hang = make(chan struct{})
			time.AfterFunc(time.Minute, func() { close(w.a.hang) })
			w.a.bars = func(mover.Relay) (mover.Code, error) {
				for _, j := range w.b.jobs {
					f := mover.File{Name: j.FileName(), Size: j.Image.Size, Digest: j.Image.Hash}
					w.b.inbox[f.Name] = &arrival{file: f, state: mover.Arrived, since: time.Now(), data: w.a.files[string(j.Image.ID)]}
				}
				return mover.CodeSource, errors.New("the source is gone")
			}
		})
		j := w.push("one")
		if got := w.ways(j); j.State != Verified || len(got) != 1 || got[0].Site != "R" || j.Note() != "site B has it already" {
			t.Errorf("the job is %s (%s), its ways %+v, %+v", j.State, j.Reason, got, j.History)
		}
		if j.Waited.Place != mover.LocalCopy || j.Waited.For < time.Minute {
			t.Errorf("the job has waited longest for %+v, want the local copy", j.Waited)
		}
	})
}

// count is how often B's mechanism was called.
func (w *world) count(name string) (n int) {
	w.locked(func() { n = w.b.counts[name] })
	return n
}

// TestThePresentWayIsToldToWhoeverChooses, so that figures that differ by little change
// nothing.
func TestThePresentWayIsToldToWhoeverChooses(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.push("one")
		w.measured(1.5e9, 1e9, 1e9) // faster, but not by enough
		time.Sleep(surveyFor)
		w.wantWay("two", "R")
		w.measured(3e9, 1e9, 1e9)
		time.Sleep(surveyFor)
		w.wantWay("three", "")
	})
}

// TestAChosenWayOutlivesACrash kills the agent when the transfer was submitted and the job
// does not know of it: what was submitted is found again, and not sent twice.
func TestAChosenWayOutlivesACrash(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 1e9)
		w.inject(func(o op, after bool) fate {
			if o.name == "mover.Submit" && o.nth == 0 && after {
				return kill
			}
			return live
		})
		data := bytesOf(100_000)
		id := w.a.upload("debian", data)
		jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n == 0; time.Sleep(time.Millisecond) {
			w.locked(func() { n = w.a.counts["mover.Submit"] })
		}
		time.Sleep(time.Second)
		w.a.set(func(p *PeerSite) { p.Among = []mover.Relay{relayR} }) // of the agent after the crash
		j := w.a.await(jobs[0].ID, Verified, Parked)
		if got := w.ways(j); j.State != Verified || len(got) != 1 || got[0].Site != "R" {
			t.Errorf("the job of image %s is %s (%s), its ways %+v", id, j.State, j.Reason, got)
		}
	})
}

// TestARenewedTicketIsForTheSameRelay has a transfer wait for longer than its ticket lives.
func TestARenewedTicketIsForTheSameRelay(t *testing.T) {
	for _, chosen := range []bool{false, true} {
		run(t, func(t *testing.T, w *world) {
			if w.auto(1e6, 1e9, 1e9); !chosen {
				w.a.set(func(p *PeerSite) {
					p.Among, p.Via = nil, mover.Relay{Site: "R", Address: relayR.Address, Mode: mover.StoreForward}
				})
			}
			w.locked(func() { w.a.waits = "noon" })
			w.a.upload("debian", bytesOf(100_000))
			jobs, err := w.a.agent().Push(t.Context(), "debian", []string{"B"}, "")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * ticketLife)
			w.measured(1e6, 1e9, 1e9)
			w.locked(func() { w.a.waits = "" })
			j := w.a.await(jobs[0].ID, Verified, Parked)
			if got := w.ways(j); j.State != Verified || len(got) < 2 || slices.ContainsFunc(got, func(r mover.Relay) bool { return r.Site != "R" }) {
				t.Errorf("chosen %v: the job is %s (%s), its ways %+v", chosen, j.State, j.Reason, got)
			}
		})
	}
}

// TestWaysAreTold for a peer that chooses, one with a relay, and one without.
func TestWaysAreTold(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.auto(1e6, 1e9, 0)
		id := w.a.upload("debian", bytesOf(1000))
		got, err := w.a.agent().Ways(t.Context(), "B", "debian", 0)
		if err != nil || got.From != "A" || got.To != "B" || !got.Chosen || got.Size != 1000 || got.Present != nil ||
			len(got.Hops) != 1 || got.Hops[0].From != "A" || got.Hops[0].Site != "B" || !slices.Equal(got.Unknown, []string{"R → B is not measured"}) || got.Route.Why != "direct: R → B is not measured" {
			t.Errorf("%+v, %v", got, err)
		}
		w.measured(1e6, 1e9, 1e9) // told without a wait: somebody looks
		w.a.set(func(p *PeerSite) {
			p.Among, p.Via = nil, mover.Relay{Site: "R", Address: relayR.Address, Mode: mover.CutThrough}
		})
		if got, err = w.a.agent().Ways(t.Context(), "B", string(id), 0); err != nil || got.Chosen || got.Route.Relay != w.a.agent().settings.Load().Peers[0].Via || len(got.Hops) != 3 || len(got.Unknown) > 0 {
			t.Errorf("%+v, %v", got, err)
		}
		w.a.set(func(p *PeerSite) { p.Via = mover.Relay{} })
		if got, err = w.a.agent().Ways(t.Context(), "B", "", 5); err != nil || len(got.Hops) != 1 || got.Size != 5 || len(got.Unknown) > 0 {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err = w.a.agent().Ways(t.Context(), "Z", "", 5); !errors.Is(err, ErrNoPeer) {
			t.Errorf("of a site that is no peer: %v", err)
		}
		if _, err = w.a.agent().Ways(t.Context(), "B", "none", 0); !errors.Is(err, glance.ErrNoImage) {
			t.Errorf("of an image that there is not: %v", err)
		}
		text, err := json.Marshal(got)
		if err != nil || strings.Contains(string(text), "null") {
			t.Errorf("%s, %v", text, err)
		}
	})
}
