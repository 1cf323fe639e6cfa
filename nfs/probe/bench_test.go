package probe

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// BenchmarkDepth compares eight outstanding WRITEs of 1 MiB with one, UNSTABLE and
// with the COMMIT, on NFS-Ganesha: on loopback and over paths of 1 and 4 ms. The ratio
// is of runs in turns, so that what else the machine does falls on both. Beside it, per
// depth: the processors that client and server together keep busy, and the COMMIT's
// part of the time, which no depth makes shorter. On loopback the two are what bounds
// the ratio: depth 1 has few moments in which both sides wait.
func BenchmarkDepth(b *testing.B) {
	g := startGanesha(b)
	b.Run("loopback", func(b *testing.B) { depths(b, g, g.dial("/export")) })
	for _, rtt := range []time.Duration{time.Millisecond, 4 * time.Millisecond} {
		far := delay(b, ganeshaNFS, rtt/2)
		b.Run(fmt.Sprintf("rtt=%v", rtt), func(b *testing.B) {
			depths(b, g, g.dial("/export", func(o *Options) { o.NFSPort = far }))
		})
	}
}

func depths(b *testing.B, g *ganesha, p *Probe) {
	seconds, cpu, commits := map[int]float64{}, map[int]float64{}, map[int]float64{}
	var bytes int64
	err := p.Scratch(b.Context(), func(f *File) error {
		test := WriteTest{Size: 1 << 20, Total: 64 << 20, Stability: Unstable, Commit: true}
		write := func(depth int) error {
			test.Depth = depth
			before := busy(b, os.Getpid(), g.cmd.Process.Pid)
			r, err := f.Write(b.Context(), test)
			cpu[depth] += busy(b, os.Getpid(), g.cmd.Process.Pid) - before
			seconds[depth] += r.Elapsed.Seconds()
			commits[depth] += r.Commit.Seconds()
			return err
		}
		if err := write(1); err != nil { // the file has its blocks now
			return err
		}
		clear(seconds)
		for b.Loop() {
			for range 4 {
				for _, depth := range []int{1, 8} {
					if err := write(depth); err != nil {
						return err
					}
				}
				bytes += test.Total
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(bytes)/1e6/seconds[1], "MB/s-depth1")
	b.ReportMetric(float64(bytes)/1e6/seconds[8], "MB/s-depth8")
	b.ReportMetric(seconds[1]/seconds[8], "depth8/depth1")
	for _, depth := range []int{1, 8} {
		b.ReportMetric(cpu[depth]/seconds[depth], fmt.Sprintf("processors-depth%d", depth))
		b.ReportMetric(commits[depth]/seconds[depth], fmt.Sprintf("commit-depth%d", depth))
	}
}

// busy returns the processor time that processes have used, in seconds.
func busy(b *testing.B, pids ...int) (sum float64) {
	for _, pid := range pids {
		p, err := procfs.NewProc(pid)
		if err != nil {
			b.Fatal(err)
		}
		stat, err := p.Stat()
		if err != nil {
			b.Fatal(err)
		}
		sum += stat.CPUTime()
	}
	return sum
}

// delay returns a port from which all bytes reach the port to, and come back, later
// by each way's delay, until the connections through it are closed.
func delay(tb testing.TB, to int, each time.Duration) int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to})
			if err != nil {
				tb.Error(err)
				near.Close()
				return
			}
			all.Go(func() { later(far, near, each) })
			all.Go(func() { later(near, far, each) })
		}
	})
	tb.Cleanup(func() { ln.Close(); all.Wait() })
	return ln.Addr().(*net.TCPAddr).Port
}

// later copies from src to dst until either ends.
func later(dst, src net.Conn, delay time.Duration) {
	type chunk struct {
		due  time.Time
		data []byte
	}
	way := make(chan chunk, 1024)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way)
		for {
			data := make([]byte, 256<<10)
			n, err := src.Read(data)
			if n > 0 {
				way <- chunk{time.Now().Add(delay), data[:n]}
			}
			if err != nil {
				return
			}
		}
	})
	var err error
	for c := range way {
		time.Sleep(time.Until(c.due))
		if err == nil {
			if _, err = dst.Write(c.data); err != nil {
				src.Close() // and the reader ends
			}
		}
	}
	dst.Close()
	reader.Wait()
}
