package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/glance-dtn/glance-dtn/agent/config"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/dtn"
	"github.com/glance-dtn/glance-dtn/mover/stream"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/history"
	"github.com/glance-dtn/glance-dtn/tuning/pcp"
)

// Bounds of what a DTN learns from.
const (
	outcomesKept = 4000
	rowsLearnt   = 1000            // of parts of them: memory is small, and more teach little
	learnFrom    = 5 * time.Second // a part of a transfer: of one that is shorter its start is too much
	learnAnew    = 16              // once this part of what is known is new
	learnRest    = 20              // times as long as a fit took there is none
)

// memory is the history of a site's transfers, and the advice that follows from it. It
// implements dtn.History.
type memory struct {
	history *history.History
	most    mover.PCP // that is advised; zero: nothing is
	log     *slog.Logger
	wmem    string // the file of the kernel that bounds this host's TCP buffers, tcp_wmem

	fresh   atomic.Int64  // outcomes that were added since the last fit; more, where some were forgotten
	news    chan struct{} // holds one when some were
	advisor atomic.Pointer[pcp.Improver]
}

// openMemory opens the history under state.
func openMemory(state *os.Root, t config.Tuning, log *slog.Logger) (*memory, error) {
	h, err := history.Open(state, "history.log", outcomesKept, func(err error) {
		log.Warn("what a transfer achieved cannot be read and is left out", "err", err)
	})
	if err != nil {
		return nil, fmt.Errorf("history of transfers: %w", err)
	}
	m := &memory{history: h, log: log, wmem: "/proc/sys/net/ipv4/tcp_wmem", news: make(chan struct{}, 1)}
	if t.Advise {
		m.most = mover.PCP{Pipelining: mover.MaxPipelining, Concurrency: 1, Parallelism: t.Parallelism}
	}
	return m, nil
}

// largestBuffer reads tcp_wmem: the third value bounds what the kernel gives a connection.
// That of the destination nobody tells. Linux begins with 4 MiB.
func largestBuffer(file string) int64 {
	text, err := os.ReadFile(file)
	if f := strings.Fields(string(text)); err == nil && len(f) == 3 {
		if n, err := strconv.ParseInt(f[2], 10, 64); err == nil && n > 0 {
			return n
		}
	}
	return 4 << 20
}

func (m *memory) Close() error { return m.history.Close() }

// Run fits the advice to what is known, and again when enough of it is new, until ctx is
// done. A fit takes a processor for a second where history is long; nobody waits for it.
func (m *memory) Run(ctx context.Context) error {
	if m.most == (mover.PCP{}) {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(learnRest * m.learn()):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.news:
		}
	}
}

// learn fits the advice to what is known, if enough of it is new, and returns how long that
// took.
func (m *memory) learn() time.Duration {
	fresh, began := m.fresh.Load(), time.Now()
	outcomes := m.history.All()
	if m.advisor.Load() != nil && fresh*learnAnew < int64(len(outcomes)) {
		return 0
	}
	m.fresh.Add(-fresh)
	rows := lessons(outcomes)
	m.advisor.Store(pcp.NewImprover(rows, m.most, usuals[:]...))
	took := time.Since(began)
	m.log.Info("history learnt", "rows", len(rows), "seconds", took.Seconds())
	return took
}

// lessons are the rows that advice for our own data plane follows from. How many files take
// turns makes no connections there, as GridFTP's concurrency does, and is left out.
func lessons(outcomes []tuning.Outcome) []tuning.Observation {
	rows := history.Observations(outcomes, mover.Stream, learnFrom)
	if all := len(rows); all > rowsLearnt { // whole outcomes: their steps are compared
		some := make([]tuning.Outcome, len(outcomes)*rowsLearnt/all)
		for i := range some {
			some[i] = outcomes[i*len(outcomes)/len(some)]
		}
		rows = history.Observations(some, mover.Stream, learnFrom)
	}
	for i := range rows {
		rows[i].Condition, rows[i].PCP.Concurrency = windowed(rows[i].Condition), 1
	}
	return rows
}

// windowed has losses count as the buffer: either is what one connection may have in flight.
func windowed(c tuning.Condition) tuning.Condition {
	c.Buffer = int64(min(float64(c.Buffer), c.LossWindow()))
	return c
}

// usuals are what our data plane begins with when nobody says anything: where the
// destination is near, where BBR is in use, and elsewhere.
var usuals = [3]mover.PCP{
	{Pipelining: stream.DefaultPipelining, Concurrency: 1, Parallelism: stream.NearParallelism},
	{Pipelining: stream.DefaultPipelining, Concurrency: 1, Parallelism: stream.BBRParallelism},
	{Pipelining: stream.DefaultPipelining, Concurrency: 1, Parallelism: stream.DefaultParallelism},
}

func usual(c dtn.Condition) mover.PCP {
	switch {
	case c.RTT < 2*time.Millisecond:
		return usuals[0]
	case strings.HasPrefix(c.Congestion, "bbr"):
		return usuals[1]
	}
	return usuals[2]
}

// Record implements dtn.History.
func (m *memory) Record(loads ...dtn.Load) error {
	outcomes := make([]tuning.Outcome, len(loads))
	for i, l := range loads {
		outcomes[i] = tuning.Outcome{ID: l.ID, Ended: l.Ended, Engine: l.Engine, Condition: m.condition(l.Condition)}
		for _, s := range l.Steps {
			outcomes[i].Steps = append(outcomes[i].Steps, tuning.Step(s))
		}
	}
	_, err := m.add(outcomes)
	return err
}

func (m *memory) add(outcomes []tuning.Outcome) (added int, err error) {
	if added, err = m.history.Record(outcomes...); added > 0 {
		m.renewed(added)
	}
	return added, err
}

// renewed has the next fit begin once so many are enough.
func (m *memory) renewed(outcomes int) {
	m.fresh.Add(int64(outcomes))
	select {
	case m.news <- struct{}{}:
	default:
	}
}

func (m *memory) condition(c dtn.Condition) tuning.Condition {
	return tuning.Condition{
		Path: tuning.Path{Bandwidth: c.Bandwidth, RTT: c.RTT, Buffer: largestBuffer(m.wmem), Loss: min(c.Loss, 1), Congestion: c.Congestion},
		Load: tuning.Load{Files: c.Files, Size: c.Size},
	}
}

// Advise implements dtn.History. Published rules are for GridFTP, whose pipelining counts
// files and not blocks: without history the engine's own defaults are better. Nor is there
// ever less in flight on a connection than by default, which costs nothing.
func (m *memory) Advise(engine string, c dtn.Condition) (mover.PCP, string) {
	a := m.advisor.Load()
	switch {
	case m.most == mover.PCP{}:
		return mover.PCP{}, "default: tuning.advise is off"
	case engine != mover.Stream:
		return mover.PCP{}, "default: nothing is learnt of " + engine
	case a == nil:
		return mover.PCP{}, "default: history is being read"
	}
	advice, pays, err := a.Improve(windowed(m.condition(c)), usual(c))
	switch {
	case err != nil:
		return mover.PCP{}, "default: " + err.Error()
	case advice.By == tuning.Heuristic:
		return mover.PCP{}, "default: " + advice.Why
	case !pays:
		return mover.PCP{}, fmt.Sprintf("default: history has nothing better (%s: %s)", advice.By, advice.Why)
	}
	return mover.PCP{
		Pipelining:  max(advice.PCP.Pipelining, stream.DefaultPipelining),
		Parallelism: advice.PCP.Parallelism,
	}, fmt.Sprintf("history, %s: %s", advice.By, advice.Why)
}

// Export implements dtn.History.
func (m *memory) Export() ([]byte, error) {
	outcomes := m.history.All()
	var b bytes.Buffer
	err := history.WriteCSV(&b, outcomes)
	return b.Bytes(), err
}

// Forget implements dtn.History. The next fit is without what was forgotten, however little
// that was.
func (m *memory) Forget(site string) (mover.Forgotten, error) {
	dropped, err := m.history.Forget(site)
	if dropped > 0 {
		m.renewed(outcomesKept)
	}
	return mover.Forgotten{Outcomes: dropped}, err
}

// Import implements dtn.History.
func (m *memory) Import(csv []byte) (mover.Imported, error) {
	outcomes, err := history.ReadCSV(bytes.NewReader(csv))
	if err != nil {
		return mover.Imported{}, failure.Permanently(err)
	}
	added, err := m.add(outcomes)
	return mover.Imported{Outcomes: len(outcomes), New: added}, err
}
