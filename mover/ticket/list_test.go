package ticket

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

func many(now time.Time, n int) (all []mover.Ticket) {
	for i := range n {
		t := valid(now)
		t.ID, t.File.Name = fmt.Sprint("t-", i), fmt.Sprint("inbox/image-", i)
		all = append(all, t)
	}
	return all
}

func signedAll(t testing.TB, cert tls.Certificate, all []mover.Ticket) []string {
	t.Helper()
	tokens, err := SignAll(cert, all)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func TestEachTicketOfAListStandsForItself(t *testing.T) {
	ca, now := newCA(t), time.Now()
	agent := issue(t, ca, "B", pki.Agent)
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 250} {
		want := many(now, n)
		tokens := signedAll(t, agent, want)
		if len(tokens) != n {
			t.Fatalf("%d tickets have %d tokens", n, len(tokens))
		}
		var v Verifier
		for i, token := range tokens {
			for what, verify := range map[string]func() (mover.Ticket, error){
				"Verify":    func() (mover.Ticket, error) { return Verify(ca.Pool(), "B", token, now) },
				"VerifyAny": func() (mover.Ticket, error) { return VerifyAny(ca.Pool(), token, now) },
				"Verifier":  func() (mover.Ticket, error) { return v.Verify(ca.Pool(), "B", token, now) },
			} {
				got, err := verify()
				if got.Expires = got.Expires.UTC(); err != nil || got != want[i] {
					t.Errorf("%s of ticket %d of %d: %+v, %v", what, i, n, got, err)
				}
			}
		}
	}
	bad := many(now, 3)
	bad[1].From = ""
	if _, err := SignAll(agent, bad); err == nil || !strings.Contains(err.Error(), "may send") {
		t.Errorf("a ticket that names no sender is signed: %v", err)
	}
}

func TestAListHoldsNothingElse(t *testing.T) {
	ca, now := newCA(t), time.Now()
	agent := issue(t, ca, "B", pki.Agent)
	all := many(now, 5)
	all[3].Site = "C"
	all[4].Expires = now.Add(-time.Hour).Truncate(time.Second)
	tokens := signedAll(t, agent, all)
	cut := func(token string) (list, claims, way string) {
		parts := strings.Split(token, listMark)
		return parts[0], parts[1], parts[2]
	}
	join := func(parts ...string) string { return strings.Join(parts, listMark) }
	list, body, way := cut(tokens[0])
	_, otherBody, otherWay := cut(tokens[1])
	foreign, foreignBody, foreignWay := cut(signedAll(t, issue(t, newCA(t), "B", pki.Agent), many(now, 5))[0])
	theirs, theirBody, theirWay := cut(signedAll(t, issue(t, ca, "C", pki.Agent), many(now, 5))[0])
	alone, err := Sign(agent, all[0])
	if err != nil {
		t.Fatal(err)
	}
	forged := all[0]
	forged.File.Name = "inbox/another"
	c, err := claimsOf(forged)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	deep := encoding.EncodeToString(make([]byte, 32*(maxDepth+1)))
	var v Verifier
	for name, f := range map[string]struct{ token, want string }{
		"another's claims":       {join(list, otherBody, way), "not on the list"},
		"another's way":          {join(list, body, otherWay), "not on the list"},
		"no way":                 {join(list, body, ""), "not on the list"},
		"half a way":             {join(list, body), "not on the list"},
		"half a hash":            {join(list, body, way[:20]), "malformed"},
		"too deep":               {join(list, body, deep), "malformed"},
		"more than one line":     {join(list, body, way+"\n"), "malformed"},
		"something behind it":    {join(list, body, way, ""), "malformed"},
		"forged claims":          {join(list, encoding.EncodeToString(text), way), "not on the list"},
		"the list alone":         {list, "exp claim is required"},
		"a ticket for a list":    {join(alone, body, way), "no list"},
		"another authority":      {join(foreign, foreignBody, foreignWay), "certificate is not accepted"},
		"another site's agent":   {join(theirs, theirBody, theirWay), "signed by the agent of site C"},
		"another site's list":    {join(theirs, body, way), "signed by the agent of site C"},
		"for another site":       {tokens[3], `for site "C"`},
		"expired":                {tokens[4], "expired 1 h"},
		"a damaged signature":    {join(list[:len(list)-4]+"AAAA", body, way), "signature is invalid"},
		"claims that are no map": {join(list, encoding.EncodeToString([]byte("[]")), way), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // with what is remembered, too
				if _, err := v.Verify(ca.Pool(), "B", tokens[0], now); err != nil {
					t.Fatal(err)
				}
				_, err := v.Verify(ca.Pool(), "B", f.token, now)
				refused(t, err, f.want)
				_, err = Verify(ca.Pool(), "B", f.token, now)
				refused(t, err, f.want)
			}
		})
	}
}

// TestASignedListIsRememberedForWhomItIsGood has a list remembered, and everything that
// would refuse it without that.
func TestASignedListIsRememberedForWhomItIsGood(t *testing.T) {
	ca, now := newCA(t), time.Now()
	roots, agent := ca.Pool(), issue(t, ca, "B", pki.Agent)
	all := many(now, 3)
	for i := range all {
		all[i].Expires = now.Add(3 * time.Hour).Truncate(time.Second)
	}
	tokens := signedAll(t, agent, all)
	var v Verifier
	for _, token := range tokens {
		if _, err := v.Verify(roots, "B", token, now); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.lists) != 1 {
		t.Fatalf("%d lists are remembered, want 1", len(v.lists))
	}
	for what, verify := range map[string]func() (mover.Ticket, error){
		"other authorities":     func() (mover.Ticket, error) { return v.Verify(newCA(t).Pool(), "B", tokens[0], now) },
		"another site":          func() (mover.Ticket, error) { return v.Verify(roots, "C", tokens[0], now) },
		"its certificate ended": func() (mover.Ticket, error) { return v.Verify(roots, "B", tokens[0], now.Add(2*time.Hour)) },
		"it had not begun":      func() (mover.Ticket, error) { return v.Verify(roots, "B", tokens[0], now.Add(-2*time.Hour)) },
	} {
		if got, err := verify(); mover.CodeOf(err) != mover.CodeTicket {
			t.Errorf("%s: %+v, %v, want code ticket", what, got, err)
		}
	}
	for range 2 * maxLists {
		if _, err := v.Verify(roots, "B", signedAll(t, agent, all)[1], now); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.lists); n == 0 || n > maxLists {
		t.Errorf("%d lists are remembered, want up to %d", n, maxLists)
	}
}

// TestASignerGivesEachItsOwnTicket asks for many at the same time.
func TestASignerGivesEachItsOwnTicket(t *testing.T) {
	ca, now := newCA(t), time.Now()
	agent := issue(t, ca, "B", pki.Agent)
	s := NewSigner(func() tls.Certificate { return agent })
	var work sync.WaitGroup
	for _, want := range many(now, 50) {
		work.Go(func() {
			token, err := s.Sign(want)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := Verify(ca.Pool(), "B", token, now)
			if got.Expires = got.Expires.UTC(); err != nil || got != want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
	work.Wait()
	if _, err := s.Sign(mover.Ticket{}); err == nil {
		t.Error("a ticket for nothing is signed")
	}
	a, b := &order{claims: claims{Ticket: valid(now)}}, &order{claims: claims{Ticket: valid(now)}}
	if err := s.group.Do(a, b); err != nil {
		t.Fatal(err)
	}
	one, _, ok := strings.Cut(a.token, listMark)
	if two, _, _ := strings.Cut(b.token, listMark); !ok || one != two {
		t.Errorf("what is asked for together has two signatures:\n%s\n%s", a.token, b.token)
	}
}
