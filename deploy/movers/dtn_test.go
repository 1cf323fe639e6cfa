package movers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/client"
)

// local is the path of the benchmarks of glance-dtn alone.
func (o options) local() path { return o.paths()[0] }

// asked returns the options, and skips where nothing real is asked for.
func asked(b *testing.B) options {
	b.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		b.Skip("needs root and the movers; `make bench-movers` runs it")
	}
	o, err := readOptions(os.Getenv)
	if err != nil {
		b.Fatal(err)
	}
	return o
}

// BenchmarkMoversResume kills both DTNs when half of the file is there, starts them again,
// and compares how long the rest takes with how long the whole does. Goal: at most 0.55.
func BenchmarkMoversResume(b *testing.B) {
	for _, protection := range []mover.Protection{mover.Clear, mover.Safe, mover.Private} {
		b.Run(string(protection), func(b *testing.B) {
			o := asked(b)
			r := newRig(b, o.local(), load{"one", 1, o.size})
			var ratios []float64
			for b.Loop() {
				for range o.rounds {
					whole := r.measure(peer{name: "whole", arrivals: mover.Inbox, start: glanceDTN(protection, false, mover.PCP{})}, o.limit)
					if whole.Error != "" {
						b.Fatal(whole.Error)
					}
					ratios = append(ratios, r.resume(b, o, protection)/whole.Seconds)
				}
			}
			b.ReportMetric(median(ratios), "of-the-whole's-time")
		})
	}
}

// resume returns how many seconds the second half takes, from the start of the sender on,
// which goes on by itself.
func (r *rig) resume(b *testing.B, o options, protection mover.Protection) float64 {
	b.Helper()
	in := r.recv.Path(inDir)
	if err := os.RemoveAll(in); err != nil {
		b.Fatal(err)
	}
	lab.Touch(b, r.size+r.size/4)
	start, agents, err := r.install(protection)
	if err != nil {
		b.Fatal(err)
	}
	r.begin()
	if err := errors.Join(start(r.recv), start(r.send)); err != nil {
		b.Fatal(err)
	}
	move, err := r.thirdParty(agents["A"], agents["B"], false, mover.PCP{}, "")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), o.limit)
	defer cancel()
	first, cut := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- move(first) }()
	// By its own word: room for the whole file is taken before its first byte.
	there, hangUp, err := r.api("B", r.recv, agents["B"])
	if err != nil {
		b.Fatal(err)
	}
	defer hangUp()
	var came int64
	for ; came < r.size/2; time.Sleep(2 * time.Millisecond) {
		a, err := there.Arrival(ctx, mover.Inbox+"/"+r.files[0].Name)
		if err != nil && !errors.Is(err, mover.ErrNoArrival) {
			b.Fatal(err)
		}
		came = a.Moved
	}
	r.end()
	cut()
	<-ended
	r.begin()
	defer r.end()
	if err := start(r.recv); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	if err := start(r.send); err != nil {
		b.Fatal(err)
	}
	started := time.Since(begin)
	if err := move(ctx); err != nil {
		b.Fatal(err)
	}
	seconds := time.Since(begin).Seconds()
	b.Logf("%s: cut at %.3f of the file; %.2f s, of which %.2f s until the sender's API answered",
		protection, float64(came)/float64(r.size), seconds, started.Seconds())
	if err := r.compare(filepath.Join(in, mover.Inbox)); err != nil {
		b.Fatal(err)
	}
	return seconds
}

// BenchmarkMoversSparse moves a file of which three parts of five are holes, and tells how
// many bytes went over the wire, headers of packets included. Goal: at most 0.42 of its size.
func BenchmarkMoversSparse(b *testing.B) {
	o := asked(b)
	r := newRig(b, o.local(), load{"none", 0, 0})
	const part = 4 << 20
	name := "image-sparse"
	f, err := os.Create(filepath.Join(r.send.Path(outDir), name))
	if err != nil {
		b.Fatal(err)
	}
	size := o.size / 2
	random := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < size; off += part {
		if off/part%5 < 2 {
			if _, err := io.CopyN(io.NewOffsetWriter(f, off), random, min(part, size-off)); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		b.Fatal(err)
	}
	r.files, r.size = []mover.File{{Name: name, Size: size}}, size
	for b.Loop() {
		before := r.sent(b)
		out := r.measure(peer{arrivals: mover.Inbox, start: glanceDTN(mover.Private, false, mover.PCP{})}, o.limit)
		if out.Error != "" {
			b.Fatal(out.Error)
		}
		b.ReportMetric(float64(r.sent(b)-before)/float64(size), "of-the-size-on-the-wire")
		there, err := arrived(filepath.Join(r.recv.Path(inDir), mover.Inbox))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(there)/float64(size), "of-the-size-in-the-destination's-memory")
	}
}

// sent is how many bytes the sender's interface has sent.
func (r *rig) sent(b *testing.B) int64 {
	b.Helper()
	text := r.send.Run(b, "cat", "/sys/class/net/"+r.recv.Name+"/statistics/tx_bytes")
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// TestAStoppedRunCountsWhatTheDTNHasMoved has a DTN that takes room for two files, and is
// stopped amid them.
func TestAStoppedRunCountsWhatTheDTNHasMoved(t *testing.T) {
	all := []mover.Status{{ID: "1", State: mover.Done, Moved: 5 << 20}, {ID: "2", State: mover.Running, Moved: 3 << 20}}
	ctx, stop := context.WithCancel(t.Context())
	mux := http.NewServeMux()
	tell := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	mux.HandleFunc("POST /v1/batches", func(w http.ResponseWriter, _ *http.Request) {
		tell(w, []mover.Submitted{{Status: &all[0]}, {Status: &all[1]}})
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		stop()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /v1/transfers", func(w http.ResponseWriter, _ *http.Request) { tell(w, all) })
	s := httptest.NewServer(mux)
	defer s.Close()
	dtn, err := client.New(s.URL, s.Client())
	if err != nil {
		t.Fatal(err)
	}
	err = moved(ctx, dtn, make([]mover.Request, 2))
	if got, told := errors.AsType[*stopped](err); !told || got.moved != 8<<20 || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was stopped after %d bytes", err, 8<<20)
	}
}
