package client_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// TestManyTransfersAreSubmittedAndFollowed submits more than one batch holds, with some
// that are refused, and hears their ends across a restart of the DTN.
func TestManyTransfersAreSubmittedAndFollowed(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2=", http2), func(t *testing.T) {
			s := start(t)
			c := s.client(t, http2, s.certificate(t, pki.Agent, "A"))
			var all []mover.Request
			for i := range mover.MaxBatch + 10 {
				all = append(all, request(fmt.Sprint("k", i)))
			}
			other := request("k0")
			other.Source.Size++
			unnamed := request("k5")
			unnamed.Source.Name = "inbox/x"
			all = append(all, other, unnamed, request("bad"), request("slow"))
			var ids []mover.TransferID
			for range 2 { // the same again
				ids = nil
				done, err := c.SubmitAll(t.Context(), all)
				if err != nil || len(done) != len(all) {
					t.Fatalf("%d answers, %v", len(done), err)
				}
				for i, d := range done {
					switch n := i - mover.MaxBatch - 10; {
					case n == 0:
						if !errors.Is(d.Err, mover.ErrKeyConflict) {
							t.Errorf("a key used for another one: %v", d.Err)
						}
					case n == 1:
						if mover.CodeOf(d.Err) != mover.CodeName || !failure.IsPermanent(d.Err) {
							t.Errorf("a name outside the outbox: %v", d.Err)
						}
					case d.Err != nil || d.ID == "":
						t.Errorf("%s: %+v", all[i].Key, d)
					default:
						ids = append(ids, d.ID)
					}
				}
			}
			left := map[mover.TransferID]bool{}
			for _, id := range ids {
				left[id] = true
			}
			slow, bad, broken := ids[len(ids)-1], ids[len(ids)-2], 0
			for st, err := range c.Follow(t.Context()) {
				if err != nil {
					if broken++; broken == 1 && !strings.Contains(err.Error(), s.url) {
						t.Errorf("%v: want the URL", err)
					}
					if broken == 1 {
						s.serve(t, strings.TrimPrefix(s.url, "https://"))
					}
					continue
				}
				if want := st.ID != bad; st.State.Final() && want != (st.State == mover.Done) {
					t.Errorf("%s is %s", st.Key, st.State)
				}
				if st.State.Final() {
					delete(left, st.ID)
				}
				if len(left) == 1 && left[slow] && broken == 0 && st.State.Final() {
					s.stop()
					s.http.Close()
					close(s.release)
				}
				if len(left) == 0 {
					break
				}
			}
			if broken == 0 {
				t.Error("the stream did not break")
			}
		})
	}
}

func TestABatchThatIsNotAnsweredIsAnError(t *testing.T) {
	s := start(t)
	c := s.client(t, false, s.certificate(t, pki.Agent, "B"))
	if done, err := c.SubmitAll(t.Context(), []mover.Request{request("k")}); mover.CodeOf(err) != mover.CodeAuth || len(done) != 0 {
		t.Errorf("a stranger: %v, %v", done, err)
	}
	for st, err := range c.Follow(t.Context()) {
		if mover.CodeOf(err) != mover.CodeAuth {
			t.Errorf("a stranger is told %+v, %v", st, err)
		}
		break
	}
	if done, err := c.SubmitAll(t.Context(), nil); err != nil || len(done) != 0 {
		t.Errorf("nothing to submit: %v, %v", done, err)
	}
}
