package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
)

// names lists the directory dir under root.
func names(t *testing.T, root *os.Root, dir string) []string {
	t.Helper()
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestWriteFileReplacesWholeAndLeavesNothingElse(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	if err := root.Mkdir("sub", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"a longer first content", "short", ""} {
		if err := WriteFile(root, "sub/f", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := root.ReadFile("sub/f")
		if err != nil || string(got) != content {
			t.Fatalf("got %q, %v, want %q", got, err, content)
		}
	}
	if got := names(t, root, "sub"); !slices.Equal(got, []string{"f"}) {
		t.Errorf("directory holds %q, want f alone", got)
	}
	info, err := root.Stat("sub/f")
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestWriteFileGetsPastWhatACrashLeft(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	if err := root.WriteFile("victim", []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.Symlink("victim", ".f.tmp"); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(root, "f", []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := root.ReadFile("victim"); err != nil || string(got) != "untouched" {
		t.Errorf("a link under the temporary name was followed: %q, %v", got, err)
	}
	if got := names(t, root, "."); !slices.Equal(got, []string{"f", "victim"}) {
		t.Errorf("directory holds %q, want f and victim", got)
	}
}

func TestWriteFileThatFailsLeavesTheOldContent(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	if err := root.MkdirAll("f/child", 0o700); err != nil { // cannot be replaced by a file
		t.Fatal(err)
	}
	if err := WriteFile(root, "f", []byte("new"), 0o600); err == nil {
		t.Fatal("a directory was replaced by a file")
	}
	if got := names(t, root, "."); !slices.Equal(got, []string{"f"}) {
		t.Errorf("directory holds %q, want f alone", got)
	}
}

func TestWriteFileStaysUnderRoot(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	if err := WriteFile(root, "../f", []byte("x"), 0o600); err == nil {
		t.Error("wrote outside the root")
	}
}

func TestRemoveMayBeRepeated(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	if err := WriteFile(root, "f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(root, "f"); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, root, "."); len(got) != 0 {
		t.Errorf("directory holds %q, want nothing", got)
	}
}

func TestSyncDirNeedsTheDirectory(t *testing.T) {
	if err := SyncDir(roottest.Open(t, t.TempDir()), "missing"); err == nil {
		t.Error("a missing directory was synced")
	}
}

func TestIsTempKnowsTheNamesOfWriteFile(t *testing.T) {
	for name, want := range map[string]bool{tempName("f"): true, tempName("sub/f"): true, "f": false, "f.tmp": false, ".f": false} {
		if got := IsTemp(name); got != want {
			t.Errorf("IsTemp(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestADirectoryIsLockedOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := LockDir(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v, %v, want ErrLocked", second, err)
	}
	lock.Close()
	lock, err = LockDir(dir)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	lock.Close()
}
