package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAStrangersRefusalSaysWhoItIsAndWhatToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		a := &Agent{Options: Options{Site: "A", Log: slog.New(slog.NewTextHandler(&b, nil))}}
		a.settings.Store(&Settings{Peers: []PeerSite{{Name: "B"}}})
		ctx := t.Context()
		const says = "the certificate is that of the agent of site C, which is no peer of site A: " +
			"add C to peers: in the configuration of site A's agent, or take A out of peers: in that of site C's"
		asks := func() {
			t.Helper()
			errs := map[string]error{}
			_, errs["offer"] = a.Offer(ctx, "C", Offer{})
			_, errs["request"] = a.Request(ctx, "C", "debian")
			_, errs["health"] = a.Health(ctx, "C")
			_, errs["probe"] = a.ProbeTicket(ctx, "C", "")
			_, errs["inventory"] = collect(a.Inventory(ctx, "C"))
			for what, err := range errs {
				if !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), says) {
					t.Errorf("%s: %v, want %v: %s", what, err, ErrForbidden, says)
				}
			}
		}
		logged := func(want int) {
			t.Helper()
			if got := strings.Count(b.String(), "level=WARN"); got != want {
				t.Errorf("%d warnings, want %d:\n%s", got, want, &b)
			}
		}
		asks()
		asks()
		logged(1)
		if got := b.String(); !strings.Contains(got, "site=C ") || !strings.Contains(got, says) {
			t.Errorf("logged %q, want the site and %s", got, says)
		}
		time.Sleep(refusedEvery)
		asks()
		logged(2)

		for i := range 2 * maxRefused {
			_, _ = a.Health(ctx, fmt.Sprint("site-", i))
		}
		logged(1 + maxRefused)
		time.Sleep(refusedEvery)
		_, _ = a.Health(ctx, "another")
		logged(2 + maxRefused)

		if _, err := a.Health(ctx, "B"); err != nil {
			t.Errorf("a peer: %v", err)
		}
		logged(2 + maxRefused)
	})
}
