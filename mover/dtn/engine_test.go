package dtn

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/glance-dtn/glance-dtn/mover"
)

// TestTheAddressNamesTheEngine holds that a site is sent to in the way that its address is
// for, where the request does not say another.
func TestTheAddressNamesTheEngine(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		grid := &fakeEngine{}
		r.opt.Engines[mover.GridFTP] = grid
		s := r.server(t)
		stop := run(t, s)
		defer stop()
		toURL, toPort := request("url"), request("port")
		toURL.Engine, toPort.Engine = "", ""
		toURL.Destination.Address = "gsiftp://dtn-b.example.org:2811/export/glance"
		for _, req := range []mover.Request{toURL, toPort} {
			if a := ask(t, s, "POST", "/v1/transfers", req); a.status != http.StatusAccepted {
				t.Errorf("%s: %d %s", req.Destination.Address, a.status, a.body)
			}
		}
		synctest.Wait()
		if got := grid.started(); !slices.Equal(got, []string{"url"}) {
			t.Errorf("the GridFTP engine ran %v", got)
		}
		if got := r.engine.started(); !slices.Equal(got, []string{"port"}) {
			t.Errorf("the stream engine ran %v", got)
		}
	})
}
