package stream

import (
	"fmt"
	"sync"
	"testing"

	"github.com/glance-dtn/glance-dtn/mover"
)

// BenchmarkSmall moves 2,000 files of 100 KiB over loopback, 256 at once, both ends in
// this process. cpu-µs/file is the user and system time of both.
func BenchmarkSmall(b *testing.B) {
	const files, size = 2000, 100 << 10
	r := newRig(b)
	r.rig.Engine.(*Engine).Dial = nil
	var staged []mover.File
	for i := range files {
		staged = append(staged, r.stage(b, fmt.Sprint("image", i), size))
	}
	b.SetBytes(files * size)
	before := cpu(b)
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		paused := cpu(b)
		var requests []mover.Request
		for _, f := range staged {
			_ = r.recv().Drop(mover.Inbox + f.Name[len(mover.Outbox):])
			requests = append(requests, r.request(b, f))
		}
		before += cpu(b) - paused
		b.StartTimer()
		var work sync.WaitGroup
		places := make(chan struct{}, 256)
		for _, req := range requests {
			places <- struct{}{}
			work.Go(func() {
				if err := r.rig.Engine.Move(b.Context(), req, func(mover.Progress) {}); err != nil {
					b.Error(err)
				}
				<-places
			})
		}
		work.Wait()
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N*files), "cpu-µs/file")
}
