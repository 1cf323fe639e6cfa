package dtn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// fakeHistory keeps what it is told, and advises what it is set to.
type fakeHistory struct {
	mu     sync.Mutex
	loads  []Load
	asked  []Condition
	advice mover.PCP
	csv    string
	broken error
}

func (h *fakeHistory) Record(loads ...Load) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken == nil {
		h.loads = append(h.loads, loads...)
	}
	return h.broken
}

func (h *fakeHistory) Advise(engine string, c Condition) (mover.PCP, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, c)
	return h.advice, "history of " + engine
}

func (h *fakeHistory) Export() ([]byte, error) { return []byte(h.csv), h.broken }

func (h *fakeHistory) Import(csv []byte) (mover.Imported, error) {
	if h.broken == nil {
		h.csv = string(csv)
	}
	return mover.Imported{Outcomes: 3, New: 2}, h.broken
}

func (h *fakeHistory) Forget(site string) (mover.Forgotten, error) {
	if h.broken == nil {
		h.csv = "without " + site
	}
	return mover.Forgotten{Outcomes: 5}, h.broken
}

func (h *fakeHistory) recorded() []Load {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.loads)
}

// learning gives the rig's servers a history.
func (r *rig) learning(t *testing.T) (*Server, *fakeHistory) {
	h := &fakeHistory{}
	r.opt.History = h
	return r.server(t), h
}

var usual = mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 16}

// sample is a report of a second: so many bytes more, with a PCP, on a link of so many bytes.
type sample struct {
	bytes, resent int64
	pcp           mover.PCP
	waits         mover.Place
}

// moving is a run that makes reports, one a second after the first one, of a link that began then.
func moving(before int64, samples ...sample) func(context.Context, func(mover.Progress)) error {
	return func(ctx context.Context, report func(mover.Progress)) error {
		p := mover.Progress{Moved: before, Way: mover.Way{PCP: samples[0].pcp, Path: mover.Path{
			Since: time.Now().UTC(), RTT: 60 * time.Millisecond, MinRTT: 50 * time.Millisecond, Congestion: "cubic", MSS: 1448,
		}}}
		report(p)
		for _, s := range samples {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
			p.Moved += s.bytes
			p.Way.Wire += s.bytes + 100
			p.Way.Path.Sent += s.bytes + s.resent
			p.Way.Path.Retransmits += s.resent
			p.Way.Bottleneck.Place = s.waits
			report(p)
			p.Way.PCP = s.pcp
			report(p)
		}
		return nil
	}
}

func times(n int, s sample) []sample { return slices.Repeat([]sample{s}, n) }

// sized is a request of a file of so many bytes.
func sized(key string, size int64) mover.Request {
	r := request(key)
	r.Source.Size = size
	return r
}

// TestALoadsPCPIsTheMostOfThoseThatMove has the file end first whose PCP is the larger one.
func TestALoadsPCPIsTheMostOfThoseThatMove(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		less := mover.PCP{Pipelining: 9, Concurrency: 4, Parallelism: 12}
		r.engine.scripts["a"] = moving(0, times(5, sample{1e6, 0, usual, mover.Network})...)
		r.engine.scripts["b"] = moving(0, times(10, sample{1e6, 0, less, mover.Network})...)
		s, h := r.learning(t)
		defer run(t, s)()
		submit(t, s, sized("a", 30e6))
		submit(t, s, sized("b", 30e6))
		time.Sleep(20 * time.Second)
		var got []mover.PCP
		for _, l := range h.recorded() {
			for _, step := range l.Steps {
				got = append(got, step.PCP)
			}
		}
		if want := []mover.PCP{{Pipelining: 9, Concurrency: 4, Parallelism: 16}, less}; !slices.Equal(got, want) {
			t.Errorf("the steps of the load are %+v, want %+v", got, want)
		}
	})
}

func TestALoadIsRecordedAsItWas(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		more := mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 12}
		r.engine.scripts["a"] = moving(1e6, slices.Concat(
			times(10, sample{1e6, 1000, usual, mover.Network}),
			times(1, sample{1e6, 0, more, mover.Network}), // in force from the end of this second on
			times(5, sample{2e6, 0, more, mover.DestinationDisk}),
			times(3, sample{0, 0, more, mover.DestinationDisk}), // the end is silent
		)...)
		s, h := r.learning(t)
		defer run(t, s)()
		began := time.Now()
		submit(t, s, sized("a", 30e6))
		time.Sleep(20 * time.Second)
		got := h.recorded()
		if len(got) != 1 {
			t.Fatalf("%d loads are recorded, want one: %+v", len(got), got)
		}
		l := got[0]
		if want := fmt.Sprintf("A/%s/%d", transferID("a"), began.UnixMicro()); l.ID != want || !l.Ended.Equal(began.Add(19*time.Second)) || l.Engine != mover.Stream {
			t.Errorf("it is %s of %s, ended %s, want %s", l.ID, l.Engine, l.Ended, want)
		}
		if c := l.Condition; c.RTT != 50*time.Millisecond || c.Bandwidth != 16e6 || c.Congestion != "cubic" || c.Files != 1 || c.Size != 29e6 || c.Loss <= 0 {
			t.Errorf("its condition is %+v", c)
		}
		want := []Step{
			{PCP: usual, Lasted: 11 * time.Second, Bytes: 11e6, Retransmits: 10_000, Bottleneck: mover.Network},
			{PCP: more, Lasted: 5 * time.Second, Bytes: 10e6, Bottleneck: mover.DestinationDisk},
		}
		if !slices.Equal(l.Steps, want) {
			t.Errorf("its steps are\n%+v, want\n%+v", l.Steps, want)
		}
	})
}

// TestFilesThatShareConnectionsAreOneLoad of small files, of which more come than there are places.
func TestFilesThatShareConnectionsAreOneLoad(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Small = 10
		s, h := r.learning(t)
		var all []mover.Request
		for i := range 50 {
			key := fmt.Sprint("k", i)
			r.engine.scripts[key] = moving(0, sample{1000, 0, usual, mover.Network})
			all = append(all, sized(key, 1000))
		}
		if a := ask(t, s, "POST", "/v1/batches", all); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		stop := run(t, s)
		time.Sleep(10 * time.Second)
		got := h.recorded()
		stop()
		if len(got) != 1 || got[0].Files != 50 || got[0].Size != 1000 || len(got[0].Steps) != 1 {
			t.Fatalf("%+v, want one load of 50 files", got)
		}
		if st := got[0].Steps[0]; st.Bytes != 50_000 || st.Lasted != 5*time.Second {
			t.Errorf("its step is %+v", st)
		}
	})
}

func TestWhatNothingCanBeLearntOfIsNotRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		script  func(context.Context, func(mover.Progress)) error
		request func(*mover.Request)
	}{
		"no path": {script: func(_ context.Context, report func(mover.Progress)) error {
			report(mover.Progress{})
			time.Sleep(5 * time.Second)
			report(mover.Progress{Moved: 1e6, Way: mover.Way{Wire: 1e6, PCP: usual}})
			return nil
		}},
		"over at once": {script: func(_ context.Context, report func(mover.Progress)) error {
			p := mover.Progress{Way: mover.Way{PCP: usual, Path: mover.Path{Since: time.Now(), MinRTT: time.Second}}}
			report(p)
			time.Sleep(100 * time.Millisecond)
			p.Moved, p.Way.Wire = 1e6, 1e6
			report(p)
			return nil
		}},
		"nothing moved": {script: func(ctx context.Context, report func(mover.Progress)) error {
			_ = moving(1e6, times(5, sample{0, 0, usual, mover.Network})...)(ctx, report)
			return errors.New("broken")
		}},
		"by a relay": {script: moving(0, times(5, sample{1e6, 0, usual, mover.Network})...), request: func(r *mover.Request) {
			r.Destination.Via = mover.Relay{Site: "C", Address: "dtn-c.example.org:7444", Mode: "cut"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.engine.scripts["a"] = c.script
				s, h := r.learning(t)
				defer run(t, s)()
				req := sized("a", 30e6)
				if c.request != nil {
					c.request(&req)
				}
				submit(t, s, req)
				time.Sleep(10 * time.Second)
				if got := h.recorded(); len(got) > 0 {
					t.Errorf("recorded: %+v", got)
				}
			})
		})
	}
}

// TestALoadIsOfWhatMoves without what has ended before it moved, nor, when a part of it is
// over, a relay that was used in that part.
func TestALoadIsOfWhatMoves(t *testing.T) {
	for name, c := range map[string]struct {
		lasts   time.Duration
		relayed bool
		want    int // loads that are told
	}{
		"one never began":                       {time.Minute, false, 1},
		"one was passed on":                     {time.Minute, true, 0},
		"one was passed on, in the part before": {loadLasts + time.Minute, true, 1},
	} {
		ls := &loads{
			known: func(string) (mover.SeenPath, bool) { return mover.SeenPath{Best: 1e9, MinRTT: second}, true },
			found: func(string, found) {}, queue: func(course) (int, int64) { return 0, 0 }, limit: func(time.Time) mover.Rate { return 1e9 },
			log: slog.New(slog.DiscardHandler), ended: make(chan Load, 9), open: map[course]*load{}, told: map[course]told{},
		}
		a, b := sized("a", 30e9), sized("b", 90e9)
		if c.relayed {
			b.Destination.Via = mover.Relay{Site: "B", Address: a.Destination.Address, Mode: mover.CutThrough}
		}
		ls.begin(a, epoch)
		ls.begin(b, epoch)
		ls.left(b)
		for i := range int64(c.lasts / second) {
			ls.report(a, mover.Progress{Moved: i * 1e6, Way: mover.Way{PCP: usual, Wire: i * 1e6}}, epoch.Add(time.Duration(i)*second))
		}
		ls.left(a)
		ls.close()
		n := 0
		for l := range ls.ended {
			if n++; l.Condition.Files != 1 || l.Condition.Size > a.Source.Size {
				t.Errorf("%s: %+v", name, l.Condition)
			}
		}
		if n != c.want {
			t.Errorf("%s: %d loads are told, want %d", name, n, c.want)
		}
	}
}

// TestWhatWasNotOnTheWireDoesNotCount: of a file that is compressed, the path carried less.
func TestWhatWasNotOnTheWireDoesNotCount(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["a"] = func(_ context.Context, report func(mover.Progress)) error {
			p := mover.Progress{Way: mover.Way{PCP: usual, Path: mover.Path{Since: time.Now(), MinRTT: time.Millisecond}}}
			report(p)
			for range 4 {
				time.Sleep(time.Second)
				p.Moved, p.Way.Wire = p.Moved+1e6, p.Way.Wire+3e5
				report(p)
			}
			return errors.New("broken") // what had moved by then did
		}
		s, h := r.learning(t)
		defer run(t, s)()
		submit(t, s, sized("a", 30e6))
		time.Sleep(10 * time.Second)
		if got := h.recorded(); len(got) != 1 || len(got[0].Steps) != 1 || got[0].Steps[0].Bytes != 1.2e6 {
			t.Errorf("%+v, want one load with 1.2 MB", got)
		}
	})
}

// TestALongLoadIsToldInParts, the last one as the DTN stops.
func TestALongLoadIsToldInParts(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["a"] = moving(0, times(2000, sample{1e6, 10, usual, mover.Network})...)
		s, h := r.learning(t)
		stop := run(t, s)
		submit(t, s, sized("a", 2e9))
		time.Sleep(25*time.Minute + time.Millisecond)
		stop()
		var bytes, resent int64
		ids := map[string]bool{}
		for _, l := range h.recorded() {
			ids[l.ID] = true
			if len(l.Steps) != 1 || l.Files != 1 {
				t.Errorf("a part is %+v", l)
			}
			bytes, resent = bytes+l.Steps[0].Bytes, resent+l.Steps[0].Retransmits
		}
		if len(ids) != 3 || bytes != 1500e6 || resent != 15000 {
			t.Errorf("%d parts with %d bytes, %d sent again; want 3 with 1.5 GB, 15000", len(ids), bytes, resent)
		}
	})
}

// TestAPCPOfAMomentIsNoStep: one that joins brings another for less than a second.
func TestAPCPOfAMomentIsNoStep(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		less := mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 4}
		r.engine.scripts["a"] = moving(0, times(20, sample{1e6, 0, less, mover.Network})...)
		r.engine.scripts["b"] = func(_ context.Context, report func(mover.Progress)) error {
			p := mover.Progress{Way: mover.Way{PCP: usual}}
			report(p)
			time.Sleep(300 * time.Millisecond)
			p.Way.PCP = less
			report(p)
			time.Sleep(3 * time.Second)
			p.Moved, p.Way.Wire = 1e6, 1e6
			report(p)
			return nil
		}
		s, h := r.learning(t)
		defer run(t, s)()
		submit(t, s, sized("a", 30e6))
		time.Sleep(5500 * time.Millisecond)
		submit(t, s, sized("b", 1e6))
		time.Sleep(20 * time.Second)
		got := h.recorded()
		if len(got) != 1 || got[0].Files != 2 || !slices.Equal(got[0].Steps, []Step{{PCP: less, Lasted: 20 * time.Second, Bytes: 21e6, Bottleneck: mover.Network}}) {
			t.Errorf("%+v, want one step of 20 s", got)
		}
	})
}

func TestLoadsThatTellTheSameDoNotFillTheHistory(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		for i := range 60 {
			r.engine.scripts[fmt.Sprint("k", i)] = moving(0, times(2, sample{1e6, 0, usual, mover.Network})...)
		}
		s, h := r.learning(t)
		defer run(t, s)()
		for i := range 60 {
			submit(t, s, sized(fmt.Sprint("k", i), 2e6))
			time.Sleep(3 * time.Second)
		}
		if got := h.recorded(); len(got) != 3 {
			t.Errorf("of 3 minutes %d loads are recorded, want 3", len(got))
		}
	})
}

func TestAHistoryThatFailsHoldsUpNothing(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["a"] = moving(0, times(5, sample{1e6, 0, usual, mover.Network})...)
		s, h := r.learning(t)
		h.broken = errors.New("the disk is full")
		defer run(t, s)()
		id := submit(t, s, sized("a", 5e6))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		wantState(t, s, id, mover.Done)
		if text := r.logs.String(); !strings.Contains(text, "cannot be kept") || !strings.Contains(text, "the disk is full") {
			t.Errorf("the log says nothing of it: %s", text)
		}
	})
}

func TestATransferBeginsAsHistoryAdvises(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		for _, key := range []string{"first", "second", "third"} {
			r.engine.scripts[key] = moving(0, times(15, sample{1e6, 0, usual, mover.Network})...)
		}
		h := &fakeHistory{advice: mover.PCP{Pipelining: 16, Parallelism: 6}}
		r.opt.History, r.opt.Transfers = h, 1
		s, e := r.steer(t)
		defer run(t, s)()
		ids := []mover.TransferID{submit(t, s, sized("first", 15e6))}
		time.Sleep(time.Second)
		ids = append(ids, submit(t, s, sized("second", 15e6)))
		asked := sized("third", 15e6)
		asked.PCP.Parallelism = 2
		ids = append(ids, submit(t, s, asked))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got, want := e.said(), "[move first {0 0 0} move second {16 0 6} move third {0 0 2}]"; got != want {
			t.Errorf("the engine was told %s, want %s", got, want)
		}
		for i, want := range []string{"default: the path was not seen yet", "history of stream", "as asked"} {
			if got := status(t, s, ids[i]).Way.Origin; got != want {
				t.Errorf("transfer %d tells %q, want %q", i+1, got, want)
			}
		}
		if !strings.Contains(r.logs.String(), `"origin":"history of stream"`) {
			t.Errorf("the log does not tell where the PCP came from: %s", r.logs)
		}
		if len(h.asked) != 1 || h.asked[0].Files != 2 || h.asked[0].Size != 15e6 || h.asked[0].Bandwidth != 8e6 || h.asked[0].RTT != 50*time.Millisecond {
			t.Errorf("it was asked for %+v, want one load of 2 files", h.asked)
		}
	})
}

// TestOneAdviceDoesForABatch: the queue is not counted for each of many.
func TestOneAdviceDoesForABatch(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Small = 1
		s, h := r.learning(t)
		s.sightings.add(time.Now(), request("a").Destination.Address, mover.Way{Path: mover.Path{Since: time.Now(), MinRTT: time.Second}})
		s.sightings.learn(request("a").Destination.Address, found{bits: 1e9})
		var all []mover.Request
		for i := range 100 {
			all = append(all, sized(fmt.Sprint("k", i), 1000))
		}
		ask(t, s, "POST", "/v1/batches", all)
		defer run(t, s)()
		synctest.Wait()
		if len(h.asked) != 1 || h.asked[0].Files != 100 {
			t.Errorf("asked for %+v, want 100 files once", h.asked)
		}
	})
}

// TestShortLoadsTellOfLossesToo: those of less than sightEvery are seen by nobody else.
func TestShortLoadsTellOfLossesToo(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["a"] = moving(0, times(3, sample{9e5, 1e5, usual, ""})...)
		s, h := r.learning(t)
		defer run(t, s)()
		submit(t, s, sized("a", 27e5))
		time.Sleep(10 * time.Second)
		if got := h.recorded(); len(got) != 1 || got[0].Loss != 0.1 || got[0].Bandwidth != 7.2e6 {
			t.Errorf("%+v, want a loss of 0.1 and 7.2 Mbit/s", got)
		}
	})
}

func TestALimitIsThePathsBandwidth(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Limits = func() mover.Limits { return mover.Limits{{Send: 5e6, Receive: mover.Unlimited}} }
		r.engine.scripts["a"] = moving(0, times(10, sample{1e6, 0, usual, mover.Network})...)
		s, h := r.learning(t)
		defer run(t, s)()
		submit(t, s, sized("a", 10e6))
		time.Sleep(time.Minute)
		if got := h.recorded(); len(got) != 1 || got[0].Bandwidth != 5e6 {
			t.Errorf("%+v, want a bandwidth of 5 Mbit/s", got)
		}
	})
}

func TestHistoryOverTheAPI(t *testing.T) {
	r := newRig(t)
	s, h := r.learning(t)
	h.csv = "id,ended\n"
	if a := ask(t, s, "GET", "/v1/history", nil); a.status != 200 || a.body != "id,ended\n" || a.header.Get("Content-Type") != "text/csv" {
		t.Errorf("export: %d %s %q", a.status, a.header.Get("Content-Type"), a.body)
	}
	var got mover.Imported
	a := ask(t, s, "POST", "/v1/history", "a,b\n1,2\n")
	if a.decode(t, &got); a.status != 200 || got != (mover.Imported{Outcomes: 3, New: 2}) || h.csv != "a,b\n1,2\n" {
		t.Errorf("import: %d %s, and the history has %q", a.status, a.body, h.csv)
	}
	var gone mover.Forgotten
	a = ask(t, s, "DELETE", "/v1/history/B", nil)
	if a.decode(t, &gone); a.status != 200 || gone.Outcomes != 5 || h.csv != "without B" {
		t.Errorf("forget: %d %s, and the history has %q", a.status, a.body, h.csv)
	}
	h.broken = failure.Permanently(errors.New("line 7: no"))
	if p := wantProblem(t, ask(t, s, "POST", "/v1/history", "x"), 422, mover.ProblemInvalid); p.Detail != "line 7: no" {
		t.Errorf("a wrong line: %+v", p)
	}
	h.broken = errors.New("disk")
	wantProblem(t, ask(t, s, "POST", "/v1/history", "x"), 500, mover.ProblemInternal)
	wantProblem(t, ask(t, s, "GET", "/v1/history", nil), 500, mover.ProblemInternal)
	wantProblem(t, ask(t, s, "DELETE", "/v1/history/B", nil), 500, mover.ProblemInternal)
	wantProblem(t, ask(t, s, "POST", "/v1/history", strings.Repeat("x", maxImport+1)), 413, mover.ProblemTooLarge)

	r.opt.History = nil
	s = newRig(t).server(t)
	wantProblem(t, ask(t, s, "GET", "/v1/history", nil), 404, mover.ProblemNotFound)
	wantProblem(t, ask(t, s, "DELETE", "/v1/history/B", nil), 404, mover.ProblemNotFound)
	wantProblem(t, ask(t, s, "POST", "/v1/history", "x"), 404, mover.ProblemNotFound)
}
