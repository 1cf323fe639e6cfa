package agent

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// away is a site that does not answer, which it takes some time to find out.
type away struct {
	Peer
	takes time.Duration // 0: answerSoon
}

var errAway = errors.New("the agent at ctrl-c:7442 does not answer")

func (a away) Inventory(context.Context) iter.Seq2[glance.Image, error] {
	return func(yield func(glance.Image, error) bool) {
		time.Sleep(cmp.Or(a.takes, answerSoon))
		yield(glance.Image{}, errAway)
	}
}

func (away) Offer(context.Context, Offer) (Grant, error) {
	time.Sleep(answerSoon)
	return Grant{}, errAway
}

func (away) Health(context.Context) (Health, error) { return Health{}, errAway }

// TestASiteThatIsAwayHoldsUpNoOther replicates, compares and pushes while two of three sites
// do not answer.
func TestASiteThatIsAwayHoldsUpNoOther(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.a.settings
		s.Peers = append(slices.Clone(s.Peers), PeerSite{Name: "C", Peer: away{}, Jobs: 1}, PeerSite{Name: "D", Peer: away{}, Jobs: 1})
		a := w.a.agent()
		if err := a.Reload(s); err != nil {
			t.Fatal(err)
		}
		data := bytesOf(50_000)
		id := w.a.upload("debian", data)
		asked := time.Now()
		began := asked
		soon := func() {
			t.Helper()
			if took := time.Since(began); took != answerSoon {
				t.Errorf("it took %v, as if the sites were asked one after the other", took)
			}
			began = time.Now()
		}

		rows, err := a.Replicate(t.Context(), Match{}, []string{"C", "B", "D"}, "", false)
		soon()
		if err != nil || len(rows) != 3 || rows[0] != (Comparison{Peer: "C", Relation: Unknown, Detail: errAway.Error()}) || !rows[1].Planned || rows[2].Peer != "D" {
			t.Fatalf("%+v, %v", rows, err)
		}
		if j := w.a.await(rows[1].Job, Verified); !j.Created.Equal(asked) {
			t.Errorf("the job to site B was made %v after site B had answered", j.Created.Sub(asked))
		}
		if _, err := a.Replicate(t.Context(), Match{}, []string{"B", "Z"}, "", false); !errors.Is(err, ErrNoPeer) {
			t.Errorf("to a site that is no peer: %v", err)
		}

		began = time.Now()
		rows, err = a.Compare(t.Context(), nil, Match{})
		soon()
		if err != nil || len(rows) != 3 || rows[0].Relation != Same || rows[1].Relation != Unknown || rows[2].Relation != Unknown {
			t.Errorf("%+v, %v", rows, err)
		}

		w.locked(func() {
			img := clone(w.a.images[id].Image)
			for _, site := range []string{"C", "D"} {
				w.a.put(Job{ID: NewJobID(Send, id, img.Hash, site), Kind: Send, Peer: site, Image: img, Created: began}.Enter(Verified, began, ""))
			}
		})
		jobs, err := a.Push(t.Context(), string(id), []string{"C", "D"}, "")
		soon()
		if err != nil || len(jobs) != 2 || jobs[0].Peer != "C" || jobs[1].Peer != "D" {
			t.Errorf("%+v, %v", jobs, err)
		}
	})
}

// TestAListingWaitsForNoSite uploads an image that no hint tells of while a full pass waits for
// a site.
func TestAListingWaitsForNoSite(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.a.settings
		s.Peers = append(slices.Clone(s.Peers), PeerSite{Name: "C", Peer: away{takes: time.Minute}, Jobs: 1})
		s.Rules = []Rule{{Name: "all", To: []string{"B", "C"}}}
		w.a.upload("first", bytesOf(100))
		if err := w.a.agent().Reload(s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		data := bytesOf(200)
		id := w.a.upload("second", data)
		time.Sleep(2 * s.Listing)
		if j := w.a.job(id); j.ID == "" {
			t.Error("there is no job for the second image yet")
		}
	})
}
