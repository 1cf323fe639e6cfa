// Package mounted times the writing and reading of files on a mounted file system,
// as programs see it: through the kernel's client, whose options decide.
//
// A server that does not answer holds whoever uses a hard mount of it: then these
// functions return only when it answers again, whatever their context says.
package mounted

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Prefix is what the names of scratch files begin with, for those who make some: one
// that is older than a measurement takes was left by a process that was killed, and
// may be removed.
const Prefix = ".glance-dtn-sweep-"

// Test is how much to write or read.
type Test struct {
	Bytes int64         // at least 1
	Limit time.Duration // after which no more than a first MiB is written or read; 0: none
	Zeros bool          // write zeros instead of bytes that cannot be compressed
}

// Result is what was written or read, and in which time.
type Result struct {
	Bytes   int64
	Elapsed time.Duration // from open to close, for Write with fsync
}

// Rate is in bits per second; 0 if nothing was moved.
func (r Result) Rate() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return 8 * float64(r.Bytes) / r.Elapsed.Seconds()
}

// block is what one call reads or writes: as much as the largest rsize or wsize, so
// that a mount with the option sync can use it.
const block = 1 << 20

// Write makes a new file of t.Bytes, or of as much as is written within t.Limit, and
// has the server make it stable: write, fsync, close. The file stays, also on an
// error; its name must be free.
func Write(ctx context.Context, name string, t Test) (Result, error) {
	data := content(t.Zeros)
	r, err := timed(func() (n int64, err error) {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		for over := after(t.Limit); n < t.Bytes && (n == 0 || !over()); {
			if err := ctx.Err(); err != nil {
				return n, context.Cause(ctx)
			}
			done, err := f.Write(data(n)[:min(block, t.Bytes-n)])
			n += int64(done)
			if err != nil {
				return n, err
			}
		}
		return n, f.Sync()
	})
	if err != nil {
		return r, fmt.Errorf("time writing: %w", err)
	}
	return r, nil
}

// Read reads a file from its start: t.Bytes, or as much as the file has or t.Limit
// allows. What the client has cached of it is dropped before, as far as nobody uses
// it otherwise (POSIX_FADV_DONTNEED of posix_fadvise(2)).
func Read(ctx context.Context, name string, t Test) (Result, error) {
	r, err := timed(func() (n int64, err error) {
		f, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return 0, fmt.Errorf("drop the cache of %s: %w", name, err)
		}
		buffer := make([]byte, block)
		for over := after(t.Limit); n < t.Bytes && (n == 0 || !over()); {
			if err := ctx.Err(); err != nil {
				return n, context.Cause(ctx)
			}
			done, err := f.Read(buffer[:min(block, t.Bytes-n)])
			n += int64(done)
			if err == io.EOF {
				return n, nil
			} else if err != nil {
				return n, err
			}
		}
		return n, nil
	})
	if err != nil {
		return r, fmt.Errorf("time reading: %w", err)
	}
	if r.Bytes == 0 {
		return r, fmt.Errorf("time reading: %s is empty", name)
	}
	return r, nil
}

func timed(move func() (int64, error)) (Result, error) {
	start := time.Now()
	n, err := move()
	return Result{n, time.Since(start)}, err
}

// after returns a function that tells whether the time is over.
func after(limit time.Duration) func() bool {
	start := time.Now()
	return func() bool { return limit > 0 && time.Since(start) >= limit }
}

// period is odd, so that no two aligned blocks of 4 KiB or more are alike in the first
// 4 GiB.
const period = 1<<20 + 7

// content returns a function that gives a block's bytes by its offset in the file.
func content(zeros bool) func(offset int64) []byte {
	b := make([]byte, period+block)
	if zeros {
		return func(int64) []byte { return b[:block] }
	}
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(b[:period]) // never fails
	copy(b[period:], b)
	return func(offset int64) []byte { return b[offset%period:][:block] }
}
