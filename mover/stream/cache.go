package stream

import "github.com/glance-dtn/glance-dtn/internal/disk"

// A source that lay on the disk alone when it was opened leaves nothing in the page cache:
// else it is somebody's, and stays. So it does while others send it at the same time. A
// receiver leaves all that it wrote where it is: the agent reads it through NFS soon after.
const (
	maxWarm   = 64 // blocks that are kept behind the one that is sent: what is on its way cannot be dropped
	dropEvery = 16 // blocks
)

// samples is how many blocks are looked at to know where a file is: to have the kernel look
// at 4 GiB takes it 90 ms, in which nothing moves. Where it does not tell, each costs a small
// read if it is on the disk.
const samples = 16

// isCold reports whether most of the file is on the disk alone.
func (s *source) isCold() bool {
	blocks := blockCount(s.size)
	step := max(1, blocks/samples)
	cold, looked := 0, 0
	for i := uint32(0); i < blocks; i += step {
		off, n := blockStart(i), int64(blockLen(s.size, i))
		cached, known := disk.Cached(s.File, off, n)
		if looked++; known && cached <= n/2 || !known && disk.Cold(s.File, off, n) {
			cold++
		}
	}
	return cold > looked/2
}

// sent drops what lies well behind block i, which was read and sent.
func (s *source) sent(i uint32) {
	if s.cold && i > maxWarm && i%dropEvery == 0 && s.company.alone() {
		disk.Drop(s.File, 0, blockStart(i-maxWarm))
	}
}
