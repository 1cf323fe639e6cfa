package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Sparse reports whether a file takes less room than its size.
func Sparse(f *os.File, size int64) bool {
	room, known := roomOf(f)
	return known && room < size
}

// Allocated reports whether a file has room on its disk for all its bytes.
func Allocated(f *os.File, size int64) bool {
	room, known := roomOf(f)
	return known && room >= size
}

func roomOf(f *os.File) (n int64, known bool) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Blocks * 512, err == nil
}

// Hole reports whether a part of f was never written. A file system that cannot tell has no
// holes. It moves f's offset.
func Hole(f *os.File, off, n int64) bool {
	data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // no data up to the file's end, wherever that is by now
		data, err = unix.Seek(int(f.Fd()), 0, unix.SEEK_END)
	}
	return err == nil && data >= off+n
}

// Punch makes a part of f zeros that take no room.
func Punch(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// allocStep is how much room is asked for at once, so that each call is short.
const allocStep = 1 << 30

// Allocate has the file system keep room for f's bytes, which are so many. One that cannot
// is no failure.
func Allocate(f *os.File, size int64) (done bool, err error) {
	for off := int64(0); off < size; off += allocStep {
		for {
			err = unix.Fallocate(int(f.Fd()), 0, off, min(allocStep, size-off))
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		switch {
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			return false, nil
		case err != nil:
			return false, os.NewSyscallError("fallocate", err)
		}
	}
	return true, nil
}

// Cached returns how many bytes of a part of f are in the page cache. Nobody knows before
// Linux 6.5, nor of a file that this user might not write.
func Cached(f *os.File, off, n int64) (bytes int64, known bool) {
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &st, 0)
	return min(int64(st.Cache)*int64(os.Getpagesize()), n), err == nil
}

// Cold reports whether reading the last byte of a part of the file would wait for the
// disk. Where the file system cannot tell, it would not. To ask has the kernel read some of
// it ahead: [Cached] is better where it is known.
func Cold(f *os.File, off, n int64) bool {
	var b [1]byte
	_, err := unix.Preadv2(int(f.Fd()), [][]byte{b[:]}, off+n-1, unix.RWF_NOWAIT)
	return errors.Is(err, unix.EAGAIN)
}

// Drop has the page cache give up a part of f; 0 bytes: all from off on. It is a hint: what
// is not written yet stays, as does what others have mapped.
func Drop(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
}

// WriteBack has the kernel start to write a part of f to disk, so that the fsync
// at the end is short. It is a hint: what it cannot do, fsync does.
func WriteBack(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// WaitBack is WriteBack to its end, where the file system can do that. It does not make the
// part durable, but the disk's error that it returns is one that fsync will not tell of
// again.
func WaitBack(f *os.File, off, n int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := unix.SyncFileRange(int(f.Fd()), off, n, all)
	for _, cannot := range []error{unix.ENOSYS, unix.EINVAL, unix.ENOTSUP, unix.ESPIPE} {
		if errors.Is(err, cannot) {
			return nil
		}
	}
	return os.NewSyscallError("sync_file_range", err)
}

// SyncFS syncs the file system that holds f: what was written to any of its files, and the
// names. It is errors.ErrUnsupported where that does not reach the disk, such as on the
// network, or is not known to.
func SyncFS(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
	}
	return errors.ErrUnsupported
}
