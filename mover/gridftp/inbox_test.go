package gridftp

import (
	"context"
	"crypto/rand"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// site is an inbox whose looks a test takes one by one, and the files of a sender. A
// ticket is the JSON of what it says.
type site struct {
	t      *testing.T
	export string // as the inbox sees it
	server string // as a GridFTP server does: the same files
	state  string
	*Inbox
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, mover.Inbox), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, export: dir, server: dir, state: t.TempDir()}
	s.restart()
	return s
}

// restart makes the inbox anew on what is left.
func (s *site) restart() {
	s.t.Helper()
	var err error
	s.Inbox, err = NewInbox(roottest.Open(s.t, s.export), roottest.Open(s.t, s.state), InboxOptions{
		Check: func(token string) (t mover.Ticket, err error) { return t, json.Unmarshal([]byte(token), &t) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// looks takes a look at the inbox, and waits for what comes of it.
func (s *site) looks() {
	s.t.Helper()
	var work sync.WaitGroup
	err := s.look(s.t.Context(), &work)
	work.Wait()
	if err != nil {
		s.t.Error(err)
	}
}

func fileOf(content string) mover.File {
	h := sha512.New()
	h.Write([]byte(content))
	return mover.File{Name: "inbox/image", Size: int64(len(content)), Digest: digest.Of("sha512", h)}
}

func (s *site) writes(name, content string) {
	s.t.Helper()
	write(s.t, filepath.Join(s.server, name), []byte(content))
}

func (s *site) offers(session, ticketID string, f mover.File) {
	s.t.Helper()
	token, err := json.Marshal(mover.Ticket{ID: ticketID, Site: "B", From: "A", File: f})
	if err != nil {
		s.t.Fatal(err)
	}
	s.puts(offerName(f.Name), offer{Session: session, From: "A", File: f, Ticket: string(token)})
}

func (s *site) puts(name string, v any) {
	s.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	s.writes(name, string(data))
}

// says checks the answer of a session, and returns it.
func (s *site) says(session, state string, code mover.Code) (a answer) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.server, answerName(session)))
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	if err != nil || a.State != state || a.Code != code {
		s.t.Errorf("the answer is %+v (%v), want %s %s", a, err, state, code)
	}
	return a
}

func (s *site) has(name string, want bool) {
	s.t.Helper()
	if _, err := os.Lstat(filepath.Join(s.server, name)); errors.Is(err, fs.ErrNotExist) == want {
		s.t.Errorf("%s: %v, want it there: %v", name, err, want)
	}
}

// arrives has a file come as it should.
func (s *site) arrives(session, ticketID, content string) mover.File {
	s.t.Helper()
	f := fileOf(content)
	s.offers(session, ticketID, f)
	s.looks()
	s.says(session, answerOpen, "")
	s.writes(partName(f.Name), content)
	s.puts(manifestName(f.Name), manifest{Session: session, File: f})
	s.looks()
	return f
}

func TestAFileIsToldFromItsOfferOn(t *testing.T) {
	s := newSite(t)
	f := fileOf("content")
	if all := s.Arrivals(); len(all) != 0 {
		t.Errorf("%v", all)
	}
	changed := s.Changed()
	s.offers("s1", "t1", f)
	s.looks()
	select {
	case <-changed:
	default:
		t.Error("nobody was told that a file is expected")
	}
	if a, err := s.Arrival(f.Name); err != nil || a.File != f || a.State != mover.Arriving || a.Proven != 0 || a.Path != "inbox/.image.part" {
		t.Errorf("%+v, %v", a, err)
	}
	if n := s.Promised(); n != f.Size {
		t.Errorf("%d bytes are promised, want %d", n, f.Size)
	}
	s.writes(partName(f.Name), "content")
	s.looks() // no manifest, so it may not be all
	s.has(f.Name, false)
	s.puts(manifestName(f.Name), manifest{Session: "s1", File: f})
	s.looks()
	s.says("s1", answerArrived, "")
	if a, err := s.Arrival(f.Name); err != nil || a.State != mover.Arrived || a.Proven != f.Size || a.Path != f.Name {
		t.Errorf("%+v, %v", a, err)
	}
	if b, err := s.Blocks(f.Name, 0); err != nil || len(b.Sums) != 1 || b.Sums[0] != digest.OfBlock([]byte("content")) {
		t.Errorf("blocks %v, %v", b, err)
	}
	if b, err := s.Blocks(f.Name, 7); err != nil || b.Sums == nil || len(b.Sums) != 0 {
		t.Errorf("blocks from the 7th: %v, %v", b, err)
	}
	for _, gone := range []string{offerName(f.Name), manifestName(f.Name), partName(f.Name)} {
		s.has(gone, false)
	}
}

func TestWhatIsNotWhatTheTicketSaysIsRemoved(t *testing.T) {
	for name, content := range map[string]string{"another content": "CONTENT", "less": "cont", "more": "content and more", "nothing": ""} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			f := fileOf("content")
			s.offers("s1", "t1", f)
			s.looks()
			if content != "" {
				s.writes(partName(f.Name), content)
			}
			s.puts(manifestName(f.Name), manifest{Session: "s1", File: f})
			s.looks()
			s.says("s1", answerRefused, mover.CodeContent)
			s.has(f.Name, false)
			s.has(partName(f.Name), false)
			s.has(manifestName(f.Name), false)
			if _, err := s.Arrival(f.Name); !errors.Is(err, mover.ErrNoArrival) {
				t.Errorf("got %v, want that it is forgotten", err)
			}
		})
	}
}

// TestACrashBetweenTheNameAndTheAnswer holds that the sender learns after a restart that
// its file is there.
func TestACrashBetweenTheNameAndTheAnswer(t *testing.T) {
	s := newSite(t)
	f := s.arrives("s1", "t1", "content")
	if err := os.Remove(filepath.Join(s.server, answerName("s1"))); err != nil {
		t.Fatal(err)
	}
	s.puts(manifestName(f.Name), manifest{Session: "s1", File: f}) // it had not been removed
	s.restart()
	if a, err := s.Arrival(f.Name); err != nil || a.State != mover.Arrived {
		t.Errorf("after the restart: %+v, %v", a, err)
	}
	s.looks()
	s.says("s1", answerArrived, "")
	s.has(f.Name, true)
	s.has(manifestName(f.Name), false)
}

func TestWhatLiesThereIsToldByItsBlocks(t *testing.T) {
	s := newSite(t)
	f := fileOf("content")
	s.offers("s1", "t1", f)
	s.looks()
	s.writes(partName(f.Name), "cont")
	s.restart()
	s.offers("s2", "t2", f)
	s.looks()
	a := s.says("s2", answerOpen, "")
	if len(a.Sums) != 1 || a.Sums[0] != digest.OfBlock([]byte("cont")) {
		t.Errorf("told %v", a.Sums)
	}
	s.says("s1", answerRefused, "")
	s.puts(manifestName(f.Name), manifest{Session: "s1", File: f}) // the old session's
	s.looks()
	s.has(partName(f.Name), true)
	s.has(manifestName(f.Name), false)
	s.says("s1", answerRefused, "")
}

// held is a context that holds up who asks it, until it is let go.
type held struct {
	context.Context
	asked chan struct{}
	letGo chan struct{}
}

func (c held) Err() error {
	c.asked <- struct{}{}
	<-c.letGo
	return nil
}

// TestAnOfferThatIsRepeatedIsSurveyedOnce holds while the survey is under way; after it
// another offer is answered anew.
func TestAnOfferThatIsRepeatedIsSurveyedOnce(t *testing.T) {
	s := newSite(t)
	f := fileOf("content")
	s.offers("s1", "t1", f)
	s.looks()
	s.writes(partName(f.Name), "cont")
	for range 2 {
		if err := os.Remove(filepath.Join(s.server, answerName("s1"))); err != nil {
			t.Fatal(err)
		}
		c := held{t.Context(), make(chan struct{}, 100), make(chan struct{})}
		var work sync.WaitGroup
		for range 3 {
			s.offers("s1", "t1", f)
			if err := s.look(c, &work); err != nil {
				t.Error(err)
			}
			s.has(offerName(f.Name), false)
		}
		close(c.letGo)
		work.Wait()
		if n := len(c.asked); n != 2 { // behind the only block, and at the end
			t.Errorf("a survey asks %d times whether to go on, want 2: is there more than one?", n)
		}
		if a := s.says("s1", answerOpen, ""); len(a.Sums) != 1 {
			t.Errorf("told %v", a.Sums)
		}
	}
}

// TestNoAnswerOutlivesItsArrival drops one while it is surveyed.
func TestNoAnswerOutlivesItsArrival(t *testing.T) {
	s := newSite(t)
	f := fileOf("content")
	s.offers("s1", "t1", f)
	s.looks()
	s.writes(partName(f.Name), "cont")
	s.offers("s1", "t1", f)
	c := held{t.Context(), make(chan struct{}, 100), make(chan struct{})}
	var work sync.WaitGroup
	if err := s.look(c, &work); err != nil {
		t.Error(err)
	}
	if err := s.Drop(f.Name); err != nil {
		t.Error(err)
	}
	close(c.letGo)
	work.Wait()
	s.says("s1", answerRefused, mover.CodeTicket)
}

// TestARefusalIsNotTakenAsItComes holds what a receiver cannot do with one.
func TestARefusalIsNotTakenAsItComes(t *testing.T) {
	err := answer{State: answerRefused, Code: "made up", Error: strings.Repeat("no\n", 1<<20)}.err()
	if mover.CodeOf(err) != mover.CodeOther || len(err.Error()) > 1<<10 || strings.Contains(err.Error(), "\n") {
		t.Errorf("got code %s and %d bytes: %.20q", mover.CodeOf(err), len(err.Error()), err)
	}
}

func TestDropSpendsTheTicketAlsoOverARestart(t *testing.T) {
	s := newSite(t)
	f := s.arrives("s1", "t1", "content")
	for range 2 {
		if err := s.Drop(f.Name); err != nil {
			t.Fatal(err)
		}
	}
	s.has(f.Name, false)
	s.says("s1", answerRefused, mover.CodeTicket)
	s.restart()
	s.offers("s2", "t1", f)
	s.looks()
	s.says("s2", answerRefused, mover.CodeTicket)
	s.arrives("s3", "t3", "content")
	s.says("s3", answerArrived, "")
}

// TestMessagesOfStrangers holds what whoever may write to the inbox cannot do.
func TestMessagesOfStrangers(t *testing.T) {
	s := newSite(t)
	f := fileOf("content")
	s.writes("secret", "content")
	s.writes("inbox/.half.offer", `{"session":"s1","file":{"na`)
	s.writes("inbox/.huge.offer", strings.Repeat(" ", 2*maxMessage)+"{}")
	s.puts("inbox/.image.manifest", manifest{Session: "never-offered", File: f})
	s.puts("inbox/.evil.offer", offer{Session: "../../state/x", From: "A", File: f})
	if err := os.Symlink("../secret", filepath.Join(s.server, "inbox/.link.offer")); err != nil {
		t.Fatal(err)
	}
	s.looks()
	s.says("never-offered", answerRefused, "")
	s.has("inbox/.half.offer", true)
	s.has("inbox/.evil.offer", false)
	if all := s.Arrivals(); len(all) != 0 {
		t.Errorf("%v", all)
	}
	if entries, err := os.ReadDir(s.state); err != nil || len(entries) != 2 {
		t.Errorf("the state holds %v, %v", entries, err)
	}
	for _, name := range []string{"half", "huge"} { // nobody writes them any more
		old := time.Now().Add(-2 * stale)
		if err := os.Chtimes(filepath.Join(s.server, "inbox", "."+name+".offer"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	s.looks()
	s.has("inbox/.half.offer", false)
	s.has("inbox/.huge.offer", false)

	s.offers("s1", "t1", f) // and a link in place of the data
	s.looks()
	if err := os.Symlink("../secret", filepath.Join(s.server, partName(f.Name))); err != nil {
		t.Fatal(err)
	}
	s.puts(manifestName(f.Name), manifest{Session: "s1", File: f})
	s.looks()
	s.says("s1", answerRefused, mover.CodeName)
	s.has(f.Name, false)
	s.has("secret", true)
}

func TestOldAnswersAndTicketsAreForgotten(t *testing.T) {
	s := newSite(t)
	s.arrives("s1", "t1", "content") // its ticket has no end, so it has expired long ago
	name := filepath.Join(s.server, answerName("s1"))
	old := time.Now().Add(-2 * keepAnswers)
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(time.Now()); err != nil {
		t.Fatal(err)
	}
	s.has(answerName("s1"), false)
	s.restart()
	if len(s.tickets) != 0 {
		t.Errorf("tickets %v are kept", s.tickets)
	}
	s.has("inbox/image", true)
}

// TestTheEndOfTheInboxLeavesWhatItProves holds that a file that is being proven when the
// process stops is proven by the next.
func TestTheEndOfTheInboxLeavesWhatItProves(t *testing.T) {
	s := newSite(t)
	f := fileOf(rand.Text())
	s.offers("s1", "t1", f)
	s.looks()
	s.writes(partName(f.Name), strings.Repeat("x", int(f.Size)))
	s.puts(manifestName(f.Name), manifest{Session: "s1", File: f})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var work sync.WaitGroup
	if err := s.look(ctx, &work); err != nil {
		t.Error(err)
	}
	work.Wait()
	s.has(manifestName(f.Name), true)
	s.has(partName(f.Name), true)
	s.restart()
	s.looks()
	s.says("s1", answerRefused, mover.CodeContent)
}
