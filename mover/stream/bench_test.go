package stream

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// BenchmarkMove moves 256 MiB over loopback, disk to disk (TMPDIR says which), both
// ends in this process. cpu-s/GiB is the user and system time of both.
func BenchmarkMove(b *testing.B) {
	for _, n := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("parallelism=%d", n), func(b *testing.B) { benchmarkMove(b, n) })
	}
}

func benchmarkMove(b *testing.B, parallelism int) {
	const size = 256 << 20
	r := newRig(b)
	file := r.stage(b, "image", size)
	b.SetBytes(size)
	before := cpu(b)
	for b.Loop() {
		req := r.request(b, file)
		req.PCP.Parallelism = parallelism
		if err := r.rig.Engine.Move(b.Context(), req, func(int64) {}); err != nil {
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
