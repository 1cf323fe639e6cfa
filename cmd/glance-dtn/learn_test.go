package main

import (
	"context"
	cryptorand "crypto/rand"
	"crypto/sha512"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/internal/roottest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
	"github.com/glance-dtn/glance-dtn/mover/dtn"
	"github.com/glance-dtn/glance-dtn/mover/ticket"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/history"
)

func newMemory(t *testing.T, state *os.Root, conf config.Tuning) *memory {
	t.Helper()
	m, err := openMemory(state, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// loadOf is a load of so many seconds with a PCP, on a path of 1 Gbit/s and 50 ms.
func loadOf(n int, p mover.PCP, mbits float64) dtn.Load {
	return dtn.Load{
		ID: fmt.Sprintf("A/%d", n), Ended: time.Unix(1.8e9+int64(n), 0).UTC(), Engine: mover.Stream,
		Condition: dtn.Condition{Bandwidth: 1e9, RTT: 50 * time.Millisecond, Loss: 0.001, Congestion: "cubic", Files: 2, Size: 1e9},
		Steps:     []dtn.Step{{PCP: p, Lasted: 20 * time.Second, Bytes: int64(mbits * 1e6 / 8 * 20), Retransmits: 7, Bottleneck: mover.Network}},
	}
}

var (
	atFirst = mover.PCP{Pipelining: 8, Concurrency: 4, Parallelism: 16} // as our data plane begins
	found   = mover.PCP{Pipelining: 23, Concurrency: 4, Parallelism: 11}
)

// running runs m in a bubble until the test's end.
func running(t *testing.T, m *memory) {
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestAdviceFollowsFromHistory(t *testing.T) {
	conf := config.Tuning{Advise: true, Parallelism: 16}
	state := roottest.Open(t, t.TempDir())
	given := loadOf(0, atFirst, 1).Condition
	wantAdvice := func(t *testing.T, m *memory, c dtn.Condition, want mover.PCP, origin string) {
		t.Helper()
		if got, why := m.Advise(mover.Stream, c); got != want || !strings.HasPrefix(why, origin) {
			t.Errorf("advised %v, %q; want %v, %q", got, why, want, origin)
		}
	}
	learnt := mover.PCP{Pipelining: 23, Parallelism: 11}
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, state, conf)
		wantAdvice(t, m, given, mover.PCP{}, "default: history is being read")
		running(t, m)
		synctest.Wait()
		wantAdvice(t, m, given, mover.PCP{}, "default: history has 0 rows, a fuzzy model needs 60")
		if err := m.Record(loadOf(1, atFirst, 300), loadOf(2, found, 700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		wantAdvice(t, m, given, learnt, "history, nearest: history has 2 rows, ")
		elsewhere := given
		elsewhere.RTT, elsewhere.Bandwidth = 100*time.Microsecond, 1e10
		wantAdvice(t, m, elsewhere, mover.PCP{}, "default: ")
		if got, why := m.Advise(mover.GridFTP, given); got != (mover.PCP{}) || why != "default: nothing is learnt of gridftp" {
			t.Errorf("for GridFTP: %v, %q", got, why)
		}
		wantAdvice(t, m, dtn.Condition{}, mover.PCP{}, "default: advise a PCP: ")
		bbr := given
		bbr.Congestion = "bbr" // no loss slows it down: what was best with another one is not
		wantAdvice(t, m, bbr, mover.PCP{}, "default: history has 2 rows")
	})
	t.Run("after a restart, within another limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(t, state, config.Tuning{Advise: true, Parallelism: 4})
			running(t, m)
			synctest.Wait()
			wantAdvice(t, m, given, mover.PCP{Pipelining: 23, Parallelism: 4}, "history, nearest: ")
		})
	})
	t.Run("turned off", func(t *testing.T) {
		m := newMemory(t, state, config.Tuning{Parallelism: 16})
		if err := m.Run(t.Context()); err != nil {
			t.Error(err)
		}
		wantAdvice(t, m, given, mover.PCP{}, "default: tuning.advise is off")
	})
}

// TestNoAdviceIsBelowTheDefault: rules for GridFTP count files, of which one needs no pipelining.
func TestNoAdviceIsBelowTheDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, roottest.Open(t, t.TempDir()), config.Tuning{Advise: true, Parallelism: 16})
		one := mover.PCP{Pipelining: 1, Concurrency: 64, Parallelism: 3}
		if err := m.Record(loadOf(1, one, 300), loadOf(2, atFirst, 200)); err != nil {
			t.Fatal(err)
		}
		running(t, m)
		synctest.Wait()
		if got, why := m.Advise(mover.Stream, loadOf(0, atFirst, 1).Condition); got != (mover.PCP{Pipelining: 8, Parallelism: 3}) {
			t.Errorf("advised %v, %q", got, why)
		}
	})
}

// TestAFitWaitsForEnoughThatIsNew: a fit for each row would cost a processor.
func TestAFitWaitsForEnoughThatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, roottest.Open(t, t.TempDir()), config.Tuning{Advise: true, Parallelism: 16})
		var all []dtn.Load
		for n := range 50 {
			all = append(all, loadOf(n, atFirst, 300))
		}
		if err := m.Record(all...); err != nil {
			t.Fatal(err)
		}
		running(t, m)
		synctest.Wait()
		for n, last := 50, m.advisor.Load(); n < 58; n++ {
			if err := m.Record(loadOf(n, found, 700)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			now := m.advisor.Load()
			if fits := n == 53 || n == 57; fits != (now != last) {
				t.Errorf("with %d outcomes: another fit is %v, want %v", n+1, now != last, fits)
			}
			last = now
		}
	})
}

// TestWhatIsForgottenIsNotLearntFrom has more left than a fit would wait for.
func TestWhatIsForgottenIsNotLearntFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, roottest.Open(t, t.TempDir()), config.Tuning{Advise: true, Parallelism: 16})
		var all []dtn.Load
		for n := range 40 {
			all = append(all, loadOf(n, atFirst, 300))
		}
		theirs := loadOf(41, found, 700)
		theirs.ID = "B/41"
		if err := m.Record(append(all, theirs)...); err != nil {
			t.Fatal(err)
		}
		running(t, m)
		synctest.Wait()
		given := loadOf(0, atFirst, 1).Condition
		if got, why := m.Advise(mover.Stream, given); got.Parallelism != found.Parallelism {
			t.Fatalf("advised %v, %q", got, why)
		}
		for _, want := range []int{1, 0} {
			if got, err := m.Forget("B"); got.Outcomes != want || err != nil {
				t.Errorf("%+v, %v; want %d dropped", got, err, want)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got, why := m.Advise(mover.Stream, given); got != (mover.PCP{}) {
			t.Errorf("advised %v, %q, from what was forgotten", got, why)
		}
	})
}

// TestLearningIsNeverMuchWorseThanTheDefault has DTNs learn from their own transfers alone, of
// which the longer ones are corrected, in a world where throughput is what connections have
// in flight by the round trip time, with noise. What it learns there must pay where there is
// something to be learnt, and do no harm elsewhere.
func TestLearningIsNeverMuchWorseThanTheDefault(t *testing.T) {
	paths := []dtn.Condition{
		{Bandwidth: 1e10, RTT: 200 * time.Microsecond, Congestion: "cubic"},
		{Bandwidth: 1e9, RTT: 300 * time.Microsecond, Congestion: "cubic"},
		{Bandwidth: 1e10, RTT: 100 * time.Millisecond, Loss: 1e-4, Congestion: "bbr"}, // more in flight pays
		{Bandwidth: 1e9, RTT: 50 * time.Millisecond, Loss: 1e-3, Congestion: "bbr"},
		{Bandwidth: 1e9, RTT: 50 * time.Millisecond, Loss: 1e-3, Congestion: "cubic"},
		{Bandwidth: 1e10, RTT: 30 * time.Millisecond, Loss: 1e-6, Congestion: "cubic"},
	}
	const pays = 2 // of them
	for _, noise := range []float64{0.05, 0.25} {
		random := rand.New(rand.NewPCG(7, 7))
		m := newMemory(t, roottest.Open(t, t.TempDir()), config.Tuning{Advise: true, Parallelism: 16})
		const buffer = 64 << 20
		m.wmem = filepath.Join(t.TempDir(), "tcp_wmem")
		write(t, m.wmem, fmt.Sprintln(4096, 16384, buffer))
		achieved := func(c dtn.Condition, p mover.PCP) float64 {
			rtt := c.RTT.Seconds()
			window := min(float64(buffer)/2, m.condition(c).LossWindow(), float64(p.Pipelining)*mover.BlockSize)
			one := min(8*window/(rtt+0.0005), 5e9) // a core
			rate := min(c.Bandwidth, float64(p.Parallelism)*one) * (1 - 0.002*float64(p.Parallelism))
			bits := 8 * float64(c.Size) * float64(c.Files)
			return bits / (bits/rate + rtt*(3+math.Log2(1+rate*rtt/8/float64(p.Parallelism)/14480)))
		}
		var gain, times [6]float64
		for n := range 400 {
			i := random.IntN(len(paths))
			c := paths[i]
			c.Files, c.Size = 1+random.IntN(4), int64(1e8*math.Exp2(6*random.Float64()))
			origin, begins := usual(c), usual(c)
			if m.advisor.Load() != nil {
				advised, _ := m.Advise(mover.Stream, c)
				begins = origin.With(advised)
			}
			rate, before := achieved(c, begins), achieved(c, origin)
			if rate < 0.9*before {
				t.Errorf("noise %v, transfer %d, %+v: %v achieves %.0f %% of the default", noise, n, c, begins, 100*rate/before)
			}
			if n >= 200 {
				gain[i], times[i] = gain[i]+math.Log(rate/before), times[i]+1
			}
			step := func(p mover.PCP, lasted float64) dtn.Step {
				noisy := achieved(c, p) * math.Exp(noise*random.NormFloat64())
				return dtn.Step{PCP: p, Lasted: time.Duration(lasted * 1e9), Bytes: int64(noisy * lasted / 8)}
			}
			l := dtn.Load{ID: fmt.Sprint(n), Ended: time.Unix(1.8e9+int64(n), 0), Engine: mover.Stream, Condition: c}
			if lasts := 8 * float64(c.Size) * float64(c.Files) / rate; lasts < 20 {
				l.Steps = []dtn.Step{step(begins, lasts)}
			} else {
				tried := begins
				tried.Parallelism = max(1, begins.Parallelism/2)
				if random.IntN(2) == 0 {
					tried.Pipelining, tried.Parallelism = min(mover.MaxPipelining, 2*begins.Pipelining), min(mover.MaxParallelism, 2*begins.Parallelism)
				}
				l.Steps = []dtn.Step{step(begins, 8), step(tried, 12)}
			}
			if err := m.Record(l); err != nil {
				t.Fatal(err)
			}
			if n%20 == 19 {
				m.learn()
			}
		}
		for i, c := range paths {
			mean := math.Exp(gain[i]/times[i]) - 1
			t.Logf("noise %v: %s, %s, %s: %+.1f %%", noise, mover.Rate(c.Bandwidth), c.RTT, c.Congestion, 100*mean)
			if mean < -0.05 || i == pays && mean < 0.1 {
				t.Errorf("noise %v: %+v: %+.1f %% by what was learnt", noise, c, 100*mean)
			}
		}
	}
}

// TestALongHistoryIsLearntInPart keeps the steps of an outcome together.
func TestALongHistoryIsLearntInPart(t *testing.T) {
	var outcomes []tuning.Outcome
	for n := range outcomesKept {
		o := tuning.Outcome{ID: fmt.Sprint(n), Engine: mover.Stream, Steps: []tuning.Step{{PCP: atFirst, Lasted: time.Minute, Bytes: int64(2*n + 1)}, {PCP: found, Lasted: time.Minute, Bytes: int64(2*n + 2)}}}
		outcomes = append(outcomes, o)
	}
	rows := lessons(outcomes)
	if n := len(rows); n < rowsLearnt-10 || n > rowsLearnt {
		t.Fatalf("%d rows, want %d", n, rowsLearnt)
	}
	for i := 0; i < len(rows); i += 2 {
		if first, second := rows[i].Throughput, rows[i+1].Throughput; second <= first || second > first*3 || i > 0 && first <= rows[i-1].Throughput {
			t.Fatalf("row %d and the next are not of one outcome: %v, %v", i, first, second)
		}
	}
	if last := rows[len(rows)-1].Throughput; last < 0.99*outcomes[len(outcomes)-1].Steps[1].Throughput() {
		t.Errorf("the last ones are left out")
	}
}

func TestHistoryGoesOutAndIn(t *testing.T) {
	m, other := newMemory(t, roottest.Open(t, t.TempDir()), config.Tuning{}), newMemory(t, roottest.Open(t, t.TempDir()), config.Tuning{})
	if err := m.Record(loadOf(1, atFirst, 300), loadOf(2, found, 700)); err != nil {
		t.Fatal(err)
	}
	csv, err := m.Export()
	if err != nil {
		t.Fatal(err)
	}
	if want := "A/2,2027-01-15T08:00:02Z,stream,1e+09,50000000," + fmt.Sprint(largestBuffer(m.wmem)) + ",0.001,cubic,2,1000000000,23,4,11,20000000000,1750000000,7,network\n"; !strings.Contains(string(csv), want) {
		t.Errorf("the CSV has no line %q:\n%s", want, csv)
	}
	for i, want := range []mover.Imported{{Outcomes: 2, New: 2}, {Outcomes: 2}} {
		if got, err := other.Import(csv); got != want || err != nil {
			t.Errorf("import %d: %+v, %v, want %+v", i+1, got, err, want)
		}
	}
	if again, err := other.Export(); string(again) != string(csv) || err != nil {
		t.Errorf("it came out as\n%s", again)
	}
	lines := strings.SplitAfter(string(csv), "\n")
	_, err = other.Import([]byte(lines[0] + strings.Replace(lines[1], "A/1", "A/3", 1) + "x\n"))
	if again, _ := other.Export(); !failure.IsPermanent(err) || !strings.Contains(err.Error(), "line 3") || string(again) != string(csv) {
		t.Errorf("a wrong line: %v, and it has\n%s", err, again)
	}
}

// TestTheLargestBufferIsTheKernels has it change while the DTN runs, as by tune tcp --apply.
func TestTheLargestBufferIsTheKernels(t *testing.T) {
	m := memory{wmem: filepath.Join(t.TempDir(), "tcp_wmem")}
	if got := m.condition(dtn.Condition{}).Buffer; got != 4<<20 {
		t.Errorf("of no kernel: %d", got)
	}
	for text, want := range map[string]int64{"4096\t16384\t67108864\n": 64 << 20, "4096\t16384\t134217728\n": 128 << 20} {
		write(t, m.wmem, text)
		if got := m.condition(dtn.Condition{}).Buffer; got != want {
			t.Errorf("%d, want the third value of %q", got, text)
		}
	}
}

// TestADTNLearnsFromItsTransfers runs the daemons of two sites: with a wide area between them
// where tests may make machines, or else with a limit in its place.
func TestADTNLearnsFromItsTransfers(t *testing.T) {
	siteA, siteB := sitesOver(t, wan.Path{Delay: 20 * time.Millisecond, Rate: 1e8, Loss: 0.001})
	confA, far := "data: "+siteA.address+":0\naddress: dtn-a.example.org:7444\ncongestion: cubic\n", siteA.machine != nil
	if !far {
		confA += "limits: [{send: 80Mbit/s}]\n"
	}
	_, b := siteB.run("data: " + siteB.address + ":0\naddress: dtn-b.example.org:7444")
	daemon, started := siteA.run(confA)
	dtnA := siteA.api(started)
	data := make([]byte, 16<<20)
	_, _ = cryptorand.Read(data)
	h := sha512.New()
	h.Write(data)
	move := func(base string) mover.Status {
		t.Helper()
		f := mover.File{Name: mover.Outbox + "/" + base, Size: int64(len(data)), Digest: digest.Of("sha512", h)}
		write(t, filepath.Join(siteA.dir, "export", f.Name), string(data))
		in := f
		in.Name = mover.Inbox + "/" + base
		token, err := ticket.Sign(siteB.ring().Certificate(), mover.Ticket{ID: base, Site: "B", From: "A", File: in, Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		id, err := dtnA.Submit(t.Context(), mover.Request{Key: base, Source: f, Destination: mover.Destination{Address: b["data"].(string), Ticket: token}})
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(daemonTime); ; time.Sleep(20 * time.Millisecond) {
			s, err := dtnA.Status(t.Context(), id)
			switch {
			case err != nil:
				t.Fatal(err)
			case s.State == mover.Done:
				return s
			case s.State.Final() || time.Now().After(end):
				t.Fatalf("%+v", s)
			}
		}
	}
	known := func(n int) []tuning.Outcome {
		t.Helper()
		for end := time.Now().Add(daemonTime); ; time.Sleep(20 * time.Millisecond) {
			csv, err := dtnA.History(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all, err := history.ReadCSV(strings.NewReader(csv))
			if err != nil {
				t.Fatal(err)
			}
			if len(all) == n {
				return all
			}
			if time.Now().After(end) {
				t.Fatalf("%d outcomes, want %d: %+v", len(all), n, all)
			}
		}
	}

	first := move("first")
	if got, want := first.Way.Origin, "default: the path was not seen yet"; got != want {
		t.Errorf("the first transfer began with %q, want %q", got, want)
	}
	o := known(1)[0]
	if err := o.Validate(); err != nil || !strings.HasPrefix(o.ID, "A/"+string(first.ID)+"/") || o.Engine != mover.Stream || o.Files != 1 || o.Size != int64(len(data)) || o.Bandwidth > 100e6 || o.Buffer < 4096 {
		t.Errorf("its outcome is %+v, %v", o, err)
	}
	step := o.Steps[0]
	if len(o.Steps) != 1 || step.PCP != first.Way.PCP || step.Bytes != int64(len(data)) || step.Throughput() < 0.5*o.Bandwidth || step.Throughput() > 100e6 {
		t.Errorf("its steps are %+v, the PCP was %v", o.Steps, first.Way.PCP)
	}
	if far && (o.RTT < 40*time.Millisecond || o.RTT > time.Second || step.Retransmits == 0 || step.Retransmits > step.Bytes/2 || step.Bottleneck != mover.Network || o.Congestion != "cubic") {
		t.Errorf("of the wide area it tells %+v", o)
	}

	// What another site has found in the same condition is what the next one begins with.
	theirs := func(id string, p mover.PCP, times float64) tuning.Outcome {
		theirs, s := o, step
		s.PCP, s.Bytes = p, int64(times*float64(s.Bytes))
		theirs.ID, theirs.Steps = id, []tuning.Step{s}
		return theirs
	}
	one, begins := step.PCP, usual(dtn.Condition{RTT: o.RTT, Congestion: o.Congestion})
	one.Parallelism = 1
	var csv strings.Builder
	if err := history.WriteCSV(&csv, []tuning.Outcome{theirs("B/1", one, 2), theirs("B/2", begins, 0.9)}); err != nil {
		t.Fatal(err)
	}
	for _, fresh := range []int{2, 0} {
		if got, err := dtnA.ImportHistory(t.Context(), csv.String()); got != (mover.Imported{Outcomes: 2, New: fresh}) || err != nil {
			t.Errorf("%+v, %v, want two outcomes, %d new", got, err, fresh)
		}
	}
	if _, err := dtnA.ImportHistory(t.Context(), csv.String()+"x\n"); !failure.IsPermanent(err) || !strings.Contains(err.Error(), "line 4") {
		t.Errorf("a wrong line: %v", err)
	}
	stranger := *siteA
	stranger.dir = siteB.dir
	for name, call := range map[string]func(*client.Client) error{
		"export": func(c *client.Client) error { _, err := c.History(t.Context()); return err },
		"import": func(c *client.Client) error { _, err := c.ImportHistory(t.Context(), csv.String()); return err },
		"forget": func(c *client.Client) error { _, err := c.ForgetHistory(t.Context(), "Z"); return err },
	} {
		if err := call(dtnA); err != nil {
			t.Errorf("%s by site A's agent: %v", name, err)
		}
		if err := call(stranger.api(started)); !alerted(err) {
			t.Errorf("%s by site B's agent: %v, want its certificate refused", name, err)
		}
	}

	// A restart keeps all, and the next transfer has learnt from them.
	daemon.signal(os.Interrupt)
	if code, log := daemon.ends(); code != 0 {
		t.Fatal(code, log)
	}
	daemon, started = siteA.run(confA)
	dtnA = siteA.api(started)
	daemon.logged("history learnt")
	known(3)
	second := move("second")
	if got, want := second.Way.Origin, "history, nearest: history has 3 rows, "; !strings.HasPrefix(got, want) {
		t.Errorf("the second transfer began with %q, want %q", got, want)
	}
	if p := second.Way.PCP; p != one {
		t.Errorf("it used %+v, and the first %+v", p, first.Way.PCP)
	}
	if all := known(4); !slices.ContainsFunc(all, func(o tuning.Outcome) bool {
		return strings.HasPrefix(o.ID, "A/"+string(second.ID)) && o.Steps[0].PCP.Parallelism == 1
	}) {
		t.Errorf("it is not known: %+v", all)
	}
}
