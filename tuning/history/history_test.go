package history

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
)

func outcome(n int) tuning.Outcome {
	return tuning.Outcome{
		ID: fmt.Sprintf("A/%03d", n), Ended: time.Unix(1.8e9+int64(n), 500).UTC(), Engine: mover.Stream,
		Condition: tuning.Condition{
			Path: tuning.Path{Bandwidth: 1e10 / 3, RTT: 50 * time.Millisecond, Buffer: 64 << 20, Loss: 1e-5, Congestion: "cubic"},
			Load: tuning.Load{Files: 1 + n, Size: 1e9},
		},
		Steps: []tuning.Step{
			{PCP: mover.PCP{Pipelining: 4, Concurrency: 2, Parallelism: 1}, Lasted: time.Second, Bytes: 1e8},
			{PCP: mover.PCP{Pipelining: 4, Concurrency: 2, Parallelism: 8}, Lasted: 3 * time.Second, Bytes: 9e8, Retransmits: 1448, Bottleneck: mover.Network},
		},
	}
}

func open(t *testing.T, root *os.Root, most int) *History {
	t.Helper()
	h, err := Open(root, "history", most, func(err error) { t.Errorf("damage: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func record(t *testing.T, h *History, outcomes ...tuning.Outcome) {
	t.Helper()
	if _, err := h.Record(outcomes...); err != nil {
		t.Fatal(err)
	}
}

func wantIDs(t *testing.T, h *History, want ...string) {
	t.Helper()
	var got []string
	for _, o := range h.All() {
		got = append(got, o.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("it holds %q, want %q", got, want)
	}
}

func TestWhatIsForgottenStaysAway(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	h := open(t, root, 100)
	theirs, alike := outcome(2), outcome(3)
	theirs.ID, alike.ID = "B/2", "BA/3"
	record(t, h, outcome(1), theirs, alike)
	for _, want := range []int{1, 0} {
		if n, err := h.Forget("B"); n != want || err != nil {
			t.Errorf("%d were dropped (%v), want %d", n, err, want)
		}
	}
	wantIDs(t, h, "A/001", "BA/3")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, root, 100)
	wantIDs(t, h, "A/001", "BA/3")
	record(t, h, theirs)
	wantIDs(t, h, "A/001", "B/2", "BA/3")
}

func TestWhatIsRecordedSurvives(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	h := open(t, root, 100)
	if n, err := h.Record(outcome(2), outcome(1), outcome(2)); n != 2 || err != nil {
		t.Errorf("%d were added (%v), want 2", n, err)
	}
	changed := outcome(1)
	changed.Engine = mover.GridFTP
	if n, err := h.Record(changed); n != 0 || err != nil { // a transfer ends once
		t.Errorf("%d were added (%v), and it was known", n, err)
	}
	record(t, h, outcome(3))
	// As after a crash: nothing is closed.
	h = open(t, root, 100)
	all := h.All()
	if want := []tuning.Outcome{outcome(1), outcome(2), outcome(3)}; !reflect.DeepEqual(all, want) {
		t.Errorf("it holds\n%+v, want\n%+v", all, want)
	}
}

func TestTheLatestAreKept(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	h := open(t, root, 32)
	for n := range 100 {
		record(t, h, outcome((n*37)%100))
		if all := h.All(); len(all) > 32 {
			t.Fatalf("%d outcomes, want 32 at most", len(all))
		}
	}
	var late []tuning.Outcome
	for n := range 200 {
		late = append(late, outcome(100+n))
	}
	record(t, h, late...)
	all := open(t, root, 32).All()
	if len(all) < 30 || all[len(all)-1].ID != "A/299" || all[0].ID != fmt.Sprintf("A/%03d", 300-len(all)) {
		t.Errorf("%d outcomes from %s to %s, want the latest 30 at least", len(all), all[0].ID, all[len(all)-1].ID)
	}
	record(t, h, outcome(1)) // older than what is kept
	if again := h.All(); len(again) > 32 {
		t.Errorf("%d outcomes, want 32 at most", len(again))
	}
}

func TestWhatIsNotValidAddsNothing(t *testing.T) {
	h := open(t, roottest.Open(t, t.TempDir()), 10)
	bad := outcome(2)
	bad.RTT = 0
	if _, err := h.Record(outcome(1), bad); err == nil || !strings.Contains(err.Error(), `record the outcome of "A/002": rtt 0s`) {
		t.Errorf("an outcome without a round trip time: %v", err)
	}
	wantIDs(t, h)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Record(outcome(1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("recorded after Close: %v", err)
	}
	wantIDs(t, h)
}

func TestAgentsShareWhatTheyKnow(t *testing.T) {
	a, b := open(t, roottest.Open(t, t.TempDir()), 100), open(t, roottest.Open(t, t.TempDir()), 100)
	record(t, a, outcome(1), outcome(2))
	record(t, b, outcome(2), outcome(3))
	for range 2 {
		record(t, b, a.All()...)
		record(t, a, b.All()...)
	}
	wantIDs(t, a, "A/001", "A/002", "A/003")
	wantIDs(t, b, "A/001", "A/002", "A/003")
}

func TestManyRecordAtOnce(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	h := open(t, root, 1000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 10 {
				if _, err := h.Record(outcome(10*i+n), outcome(n)); err != nil {
					t.Error(err)
				}
				h.All()
			}
		})
	}
	wg.Wait()
	if all := open(t, root, 1000).All(); len(all) != 80 {
		t.Errorf("%d outcomes, want 80", len(all))
	}
}

func TestObservationsAreThoseOfOneEngine(t *testing.T) {
	other := outcome(2)
	other.Engine = mover.GridFTP
	got := Observations([]tuning.Outcome{outcome(1), other}, mover.Stream, 2*time.Second)
	if len(got) != 1 || got[0].Throughput != 2.4e9 || got[0].PCP.Parallelism != 8 {
		t.Errorf("observations %+v, want the long step of the first outcome", got)
	}
}

func TestCSVHasAll(t *testing.T) {
	odd := outcome(2)
	odd.ID, odd.Congestion = "a \"b\",\nc", "bbr"
	want := []tuning.Outcome{outcome(1), odd}
	var text bytes.Buffer
	if err := WriteCSV(&text, want); err != nil {
		t.Fatal(err)
	}
	const line = "A/001,2027-01-15T08:00:01.0000005Z,stream,3.3333333333333335e+09,50000000,67108864,1e-05,cubic,2,1000000000,4,2,8,3000000000,900000000,1448,network\n"
	if !strings.Contains(text.String(), line) {
		t.Errorf("the CSV has no line %q:\n%s", line, &text)
	}
	got, err := ReadCSV(&text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("written and read again: %v\n%+v, want\n%+v", err, got, want)
	}
}

func TestACSVMayBeginWithComments(t *testing.T) {
	odd := outcome(1)
	odd.ID = "#1" // no comment
	var text bytes.Buffer
	if err := WriteCSV(&text, []tuning.Outcome{odd}); err != nil {
		t.Fatal(err)
	}
	const comments = "# how it was measured,\n# by whom \"and\" where\n"
	got, err := ReadCSV(strings.NewReader(comments + text.String()))
	if err != nil || !reflect.DeepEqual(got, []tuning.Outcome{odd}) {
		t.Errorf("%+v, %v, want %+v", got, err, odd)
	}
	wrong := comments + strings.Replace(text.String(), "50000000", "fast", 1)
	if _, err := ReadCSV(strings.NewReader(wrong)); err == nil || !strings.Contains(err.Error(), "line 4: rtt_ns: ") {
		t.Errorf("a wrong line below comments: %v", err)
	}
}

func TestAWrongCSVIsRefusedWithItsLine(t *testing.T) {
	var text bytes.Buffer
	if err := WriteCSV(&text, []tuning.Outcome{outcome(1), outcome(2)}); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(text.String(), "\n")
	for _, c := range []struct{ text, says string }{
		{"", "no header"},
		{"a,b\n", "the header is not"},
		{strings.Join(lines[1:], ""), "the header is not"},
		{lines[0] + strings.Replace(lines[1], "50000000", "fast", 1), "line 2: rtt_ns: "},
		{lines[0] + strings.Replace(lines[1], "50000000", "0", 1), "rtt 0s: must be above 0"},
		{lines[0] + lines[1] + strings.Replace(lines[2], "cubic", "reno", 1), "line 3: it does not agree"},
		{lines[0] + lines[1] + lines[3] + lines[2], `line 4: transfer "A/001" was above already`},
		{lines[0] + lines[1] + "x\n", "wrong number of fields"},
		{lines[0] + strings.Replace(lines[1], "cubic,2", "cubic,0", 1) + lines[3], "line 2: files 0"},
	} {
		if got, err := ReadCSV(strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.says) || got != nil {
			t.Errorf("%q: %v, %v, want an error that says %q", c.text, got, err, c.says)
		}
	}
}

func FuzzCSV(f *testing.F) {
	var text bytes.Buffer
	if err := WriteCSV(&text, []tuning.Outcome{outcome(1), outcome(2)}); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add(append([]byte("# a comment\n"), text.Bytes()...))
	f.Fuzz(func(t *testing.T, text []byte) {
		outcomes, err := ReadCSV(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, o := range outcomes {
			if err := o.Validate(); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
		var out bytes.Buffer
		if err := WriteCSV(&out, outcomes); err != nil {
			t.Fatal(err)
		}
		again, err := ReadCSV(&out)
		if err != nil || !reflect.DeepEqual(again, outcomes) {
			t.Errorf("%q: written and read again: %v\n%+v\n%+v", text, err, again, outcomes)
		}
	})
}
