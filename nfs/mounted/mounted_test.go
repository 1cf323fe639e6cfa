package mounted

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWrite(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes int64
		zeros bool
	}{{"less than a block", 1000, false}, {"blocks and a rest", 3<<20 + 5, false}, {"zeros", 2 << 20, true}} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "f")
			r, err := Write(t.Context(), name, Test{Bytes: c.bytes, Zeros: c.zeros})
			if err != nil || r.Bytes != c.bytes || r.Rate() <= 0 {
				t.Fatalf("result %+v, %v, want %d bytes", r, err, c.bytes)
			}
			data, err := os.ReadFile(name)
			if err != nil || int64(len(data)) != c.bytes {
				t.Fatalf("the file has %d bytes (%v), want %d", len(data), err, c.bytes)
			}
			if got := bytes.Equal(data, make([]byte, c.bytes)); got != c.zeros {
				t.Errorf("the file is zeros: %v, want %v", got, c.zeros)
			}
			if len(data) > 2<<20 && bytes.Equal(data[:1<<20], data[1<<20:2<<20]) {
				t.Error("two blocks of random data are alike")
			}
			r, err = Read(t.Context(), name, Test{Bytes: 1 << 40})
			if err != nil || r.Bytes != c.bytes || r.Rate() <= 0 {
				t.Errorf("read %+v, %v, want %d bytes", r, err, c.bytes)
			}
			r, err = Read(t.Context(), name, Test{Bytes: 700})
			if err != nil || r.Bytes != 700 {
				t.Errorf("read %+v, %v, want 700 bytes", r, err)
			}
		})
	}
}

func TestLimitEndsBetweenBlocks(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	r, err := Write(t.Context(), name, Test{Bytes: 1 << 50, Limit: 30 * time.Millisecond})
	if err != nil || r.Bytes == 0 || r.Bytes%block != 0 {
		t.Fatalf("wrote %+v, %v, want some blocks", r, err)
	}
	if r, err := Read(t.Context(), name, Test{Bytes: 1 << 50, Limit: time.Nanosecond}); err != nil || r.Bytes != block {
		t.Errorf("read %+v within a nanosecond, %v, want one block", r, err)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	if err := os.WriteFile(name, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), name, Test{Bytes: 1}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("writing to a file that is there: %v", err)
	}
	if text, err := os.ReadFile(name); string(text) != "mine" {
		t.Errorf("the file that was there has %q, %v", text, err)
	}
	if _, err := Read(t.Context(), filepath.Join(dir, "none"), Test{Bytes: 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading no file: %v", err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if _, err := Write(ctx, filepath.Join(dir, "g"), Test{Bytes: 1}); !errors.Is(err, stopped) {
		t.Errorf("writing after the context has ended: %v", err)
	}
	if _, err := Read(ctx, name, Test{Bytes: 1}); !errors.Is(err, stopped) {
		t.Errorf("reading after the context has ended: %v", err)
	}
}
