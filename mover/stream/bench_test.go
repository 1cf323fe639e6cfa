package stream

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

// BenchmarkMove moves 1 GiB over loopback, disk to disk (TMPDIR says which), both
// ends in this process. cpu-s/GiB is the user and system time of both. With sha512 the
// receiver checks the whole file's digest.
func BenchmarkMove(b *testing.B) {
	for _, d := range []string{"none", "sha512"} {
		for _, p := range []mover.Protection{mover.Clear, mover.Safe, mover.Private} {
			for _, n := range []int{1, 2, 4} {
				b.Run(fmt.Sprintf("digest=%s/protection=%s/parallelism=%d", d, p, n), func(b *testing.B) {
					benchmarkMove(b, d, p, n)
				})
			}
		}
	}
}

func benchmarkMove(b *testing.B, algo string, p mover.Protection, parallelism int) {
	const size = 1 << 30
	r := newRig(b)
	r.opts.Protection = mover.Clear
	r.restart(b)
	e := r.rig.Engine.(*Engine)
	e.Protection, e.Dial = p, nil // the kernel moves only what it finds to be TCP
	file := r.stage(b, "image", size)
	if algo == "none" {
		file.Digest = digest.Digest{}
	}
	b.SetBytes(size)
	before := cpu(b)
	for b.Loop() {
		req := r.request(b, file)
		req.PCP.Parallelism = parallelism
		if err := r.rig.Engine.Move(b.Context(), req, func(mover.Progress) {}); err != nil {
			b.Fatal(err)
		}
		if err := r.recv().Drop("inbox/image"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpu(b)-before).Seconds()/float64(b.N)*(1<<30)/size, "cpu-s/GiB")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
