package stream

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeBack has the kernel start to write a part of f to disk, so that the fsync
// at the end is short. It is a hint: what it cannot do, fsync does.
func writeBack(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}
