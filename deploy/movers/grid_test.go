package movers

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/deploy/lab/wan"
	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/tuning"
	"github.com/glance-dtn/glance-dtn/tuning/history"
)

const (
	gridControl  = "cubic" // with which the number of connections matters
	gridLimit    = 6 * time.Second
	gridSettings = "congestion: host\ncompression: \"off\"\ntuning: {correct: false}\n"
)

// gridPaths are spread over round trip times, rates and losses, from the first few on.
func gridPaths() (all []wan.Path) {
	for i, p := range []struct {
		rtt  time.Duration // ms
		rate float64       // Mbit/s
		loss float64       // percent
	}{
		{100, 1000, 0.1}, {1, 1000, 0}, {20, 300, 0.1}, {50, 100, 0.1},
		{5, 300, 0}, {100, 100, 0}, {20, 1000, 0}, {50, 1000, 0.01},
		{1, 100, 0.1}, {100, 300, 0.01}, {5, 1000, 0.01}, {20, 100, 0.01},
	} {
		all = append(all, wan.Path{Delay: p.rtt * time.Millisecond / 2, Rate: p.rate * 1e6, Loss: p.loss / 100, Seed: uint64(i)})
	}
	return all
}

// gridLoads are many small files, several of some blocks, and a large one: as much as the
// path carries in two or three seconds. Shorter runs are all start and end.
func gridLoads(p wan.Path) []load {
	second := int64(p.Rate / 8)
	return []load{
		{"small", int(3 * second / 2 / (100 << 10)), 100 << 10},
		{"medium", int(3 * second / (8 << 20)), 8 << 20},
		{"large", 1, min(3*second>>20, 256) << 20},
	}
}

// gridPCPs are those that a load is measured with. How many files take turns is varied in
// the middle alone: on connections that all files share it hardly matters.
func gridPCPs(l load) (all []mover.PCP) {
	for _, parallelism := range []int{1, 4, 16} {
		for _, pipelining := range []int{1, 4, 16} {
			all = append(all, mover.PCP{Pipelining: pipelining, Concurrency: min(4, l.count), Parallelism: parallelism})
		}
	}
	if l.count > 1 {
		for _, concurrency := range []int{1, 16} {
			all = append(all, mover.PCP{Pipelining: 4, Concurrency: concurrency, Parallelism: 4})
		}
	}
	return all
}

// point is a row of the grid.
type point struct {
	path  wan.Path
	load  load
	pcp   mover.PCP
	round int
}

func (p point) condition() tuning.Condition {
	return tuning.Condition{
		Path: tuning.Path{Bandwidth: p.path.Rate, RTT: 2 * p.path.Delay, Buffer: maxBuffer, Loss: p.path.Loss, Congestion: gridControl},
		Load: tuning.Load{Files: p.load.count, Size: p.load.size},
	}
}

// where is a name for go test -bench, too.
func (p point) where() string {
	return fmt.Sprintf("%v-%gM-%g%%/%s", 2*p.path.Delay, p.path.Rate/1e6, 100*p.path.Loss, p.load.name)
}

func (p point) String() string {
	return fmt.Sprintf("%s/%d-%d-%d/%d", p.where(), p.pcp.Pipelining, p.pcp.Concurrency, p.pcp.Parallelism, p.round)
}

// gridPoints are all rows, in the order in which they are measured: by rounds, and in each
// those of one condition together, shuffled, so that what drifts meets all PCPs alike.
func gridPoints(rounds int) (all [][]point) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range rounds {
		for _, p := range gridPaths() {
			p.Seed += uint64(round) << 32
			for _, l := range gridLoads(p) {
				var together []point
				for _, pcp := range gridPCPs(l) {
					together = append(together, point{p, l, pcp, round})
				}
				random.Shuffle(len(together), func(i, j int) { together[i], together[j] = together[j], together[i] })
				all = append(all, together)
			}
		}
	}
	return all
}

// A row has measured the emulator instead of the path if more than this share of its
// packets was late. Then it says that the emulator was its bottleneck.
const (
	emulator = "emulator"
	mostLate = 0.05
)

// BenchmarkGrid measures what the engine achieves with each PCP of a grid on emulated
// paths, and adds the rows to a file of the form of tuning/history. Those that are there
// are not measured again, unless they have measured the emulator.
func BenchmarkGrid(b *testing.B) {
	asked(b)
	rounds, err := positive(cmp.Or(os.Getenv("GRID_ROUNDS"), "1"))
	if err != nil {
		b.Fatalf("GRID_ROUNDS: %v", err)
	}
	g, err := openGrid(cmp.Or(os.Getenv("GRID_FILE"), filepath.Join("..", "advice", "testdata", "grid.csv")))
	if err != nil {
		b.Fatal(err)
	}
	all := gridPoints(rounds)
	left := 0
	for i := range all {
		all[i] = slices.DeleteFunc(all[i], func(p point) bool { return g.has(p.String()) })
		left += len(all[i])
	}
	var took time.Duration
	done := 0
	for _, together := range all {
		if len(together) == 0 {
			continue
		}
		b.Run(together[0].where(), func(b *testing.B) {
			for b.Loop() {
				begin := time.Now()
				var e *wan.Emulator
				r := newRig(b, path{control: gridControl, connect: func(tb testing.TB, send, recv *lab.Machine) {
					e = lab.ConnectOver(tb, together[0].path, send, "10.0.0.1/24", recv, "10.0.0.2/24")
				}}, together[0].load)
				r.settings = gridSettings
				for _, p := range together {
					o := r.gridRow(b, e, p)
					if err := g.add(o); err != nil {
						b.Fatal(err)
					}
					took += time.Since(begin)
					begin = time.Now()
					done, left = done+1, left-1
					b.Logf("%s: %.1f Mbit/s %s; %d rows are left, about %.0f min", p, o.Steps[0].Throughput()/1e6, o.Steps[0].Bottleneck, left, (took / time.Duration(done) * time.Duration(left)).Minutes())
				}
			}
		})
	}
	again := 0
	for _, o := range g.rows {
		if !g.has(o.ID) {
			again++
		}
	}
	if again > 0 {
		b.Logf("%d rows have measured the emulator instead of the path: have them measured again when nothing else runs here", again)
	}
}

func (r *rig) gridRow(b *testing.B, e *wan.Emulator, p point) tuning.Outcome {
	b.Helper()
	sent, late := packets(e.Counts())
	out := r.measure(peer{name: p.String(), arrivals: mover.Inbox, start: glanceDTN(mover.Clear, false, p.pcp)}, gridLimit)
	if out.Error != "" {
		b.Fatalf("%s: %s", p, out.Error)
	}
	allSent, allLate := packets(e.Counts())
	step := tuning.Step{PCP: p.pcp, Lasted: time.Duration(out.Seconds * float64(time.Second)), Bytes: out.Bytes, Retransmits: out.Retransmits * tuning.MSS}
	if float64(allLate-late) > mostLate*float64(allSent-sent) {
		step.Bottleneck = emulator
	}
	return tuning.Outcome{ID: p.String(), Ended: time.Now().UTC().Truncate(time.Second), Engine: mover.Stream, Condition: p.condition(), Steps: []tuning.Step{step}}
}

// packets are those of both directions.
func packets(there, back wan.Counts) (sent, late int64) {
	return there.Sent + back.Sent, there.Late + back.Late
}

// gridFile is rows in a file, below comments that tell how they were measured.
type gridFile struct {
	name     string
	comments []string
	rows     []tuning.Outcome
}

// openGrid reads a file, which need not be there.
func openGrid(name string) (*gridFile, error) {
	g := &gridFile{name: name}
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		if g.rows, err = history.ReadCSV(bytes.NewReader(text)); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		g.comments = append(g.comments, line)
	}
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return nil, err
	}
	line := fmt.Sprintf("# make grid-pcp, %s, Linux %s, %d processors; %s, data clear, files in memory\n",
		time.Now().UTC().Format(time.DateOnly), unix.ByteSliceToString(system.Release[:]), runtime.NumCPU(), gridControl)
	if !slices.Contains(g.comments, line) {
		g.comments = append(g.comments, line)
	}
	return g, nil
}

// has reports whether there is a row of that ID that has measured the path.
func (g *gridFile) has(id string) bool {
	return slices.ContainsFunc(g.rows, func(o tuning.Outcome) bool { return o.ID == id && o.Steps[0].Bottleneck != emulator })
}

// add writes the file with one row more, in place of one of the same ID.
func (g *gridFile) add(o tuning.Outcome) error {
	g.rows = slices.DeleteFunc(g.rows, func(old tuning.Outcome) bool { return old.ID == o.ID })
	g.rows = append(g.rows, o)
	var text bytes.Buffer
	for _, line := range g.comments {
		text.WriteString(line)
	}
	if err := history.WriteCSV(&text, g.rows); err != nil {
		return err
	}
	return durable.WritePath(g.name, text.Bytes(), 0o644)
}

func TestTheGridHasEachRowOnce(t *testing.T) {
	seen := map[string]bool{}
	all := gridPoints(2)
	for i, together := range all {
		for _, p := range together {
			if seen[p.String()] {
				t.Errorf("%s is there twice", p)
			}
			seen[p.String()] = true
			o := tuning.Outcome{ID: p.String(), Ended: time.Unix(1e9, 0), Condition: p.condition(), Steps: []tuning.Step{{PCP: p.pcp, Lasted: 1}}}
			if err := errors.Join(o.Validate(), p.path.Validate()); err != nil {
				t.Errorf("%s: %v", p, err)
			}
			if p.where() != together[0].where() || p.path != together[0].path {
				t.Errorf("%s is measured together with %s", p, together[0])
			}
		}
		if half := len(all) / 2; i >= half && together[0].path.Seed == all[i-half][0].path.Seed {
			t.Errorf("%s loses the same packets as the round before", together[0])
		}
	}
	if n := len(seen); n != 2*12*(11+11+9) {
		t.Errorf("%d rows", n)
	}
}

// TestAGridGoesOn holds that a file that was begun keeps its rows and comments, and that
// a row that has measured the emulator is measured again.
func TestAGridGoesOn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "testdata", "grid.csv")
	points := gridPoints(1)[0]
	outcome := func(p point, bytes int64, place mover.Place) tuning.Outcome {
		return tuning.Outcome{ID: p.String(), Ended: time.Unix(1e9, 0).UTC(), Engine: mover.Stream, Condition: p.condition(),
			Steps: []tuning.Step{{PCP: p.pcp, Lasted: time.Second, Bytes: bytes, Bottleneck: place}}}
	}
	good, poor := outcome(points[0], 1, ""), outcome(points[1], 2, emulator)
	begun, err := openGrid(name)
	if err == nil {
		err = errors.Join(begun.add(good), begun.add(poor))
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	const comment = "# another day\n"
	if err := os.WriteFile(name, append([]byte(comment), text...), 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := openGrid(name)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false} {
		if id := points[i].String(); g.has(id) != want {
			t.Errorf("%s is there: %v, want %v", id, !want, want)
		}
	}
	if err := g.add(outcome(points[1], 3, "")); err != nil {
		t.Fatal(err)
	}
	again, err := openGrid(name)
	if err != nil {
		t.Fatal(err)
	}
	want := []tuning.Outcome{good, outcome(points[1], 3, "")}
	if !reflect.DeepEqual(again.rows, want) {
		t.Errorf("%+v, want %+v", again.rows, want)
	}
	ours := func(c string) bool { return strings.HasPrefix(c, "# make grid-pcp, ") } // another one where the day has ended meanwhile
	if c := again.comments; len(c) < 2 || c[0] != comment || len(slices.DeleteFunc(slices.Clone(c[1:]), ours)) > 0 {
		t.Errorf("comments %q", c)
	}
	if err := os.WriteFile(name, []byte("no grid\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openGrid(name); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a file that is no grid: %v", err)
	}
}
