package stream

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
)

// TestAFolderIsFoundAgain replaces the directory behind one that is open.
func TestAFolderIsFoundAgain(t *testing.T) {
	dir := t.TempDir()
	at, file := filepath.Join(dir, "inbox"), filepath.Join(dir, "inbox/file")
	replace := func(name string) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(at), os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, name), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	export := roottest.Open(t, dir)
	synctest.Test(t, func(t *testing.T) {
		var f folder
		tries := 0
		look := func() (found *os.Root, err error) {
			tries = 0
			err = f.use(export, "inbox/file", func(dir *os.Root, base string) error {
				tries++
				found = dir
				_, err := dir.Lstat(base)
				return err
			})
			return found, err
		}
		if _, err := look(); err == nil || tries != 0 {
			t.Fatalf("where no folder is: %d tries, %v", tries, err)
		}
		replace("file")
		first, err := look()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := look(); err != nil || again != first {
			t.Errorf("a file at the same time has a folder of its own, %v", err)
		}
		replace("file")
		second, err := look()
		if err != nil || second == first || tries != 2 {
			t.Errorf("another folder with the file is found after %d tries, want 2: %v", tries, err)
		}
		if _, err := first.Lstat("."); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the folder before is open: %v", err)
		}
		replace("another")
		if _, err := look(); !errors.Is(err, os.ErrNotExist) || tries != 2 {
			t.Errorf("another folder without the file is found after %d tries, want 2: %v", tries, err)
		}
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if third, err := look(); err != nil || third == second || tries != 1 {
			t.Errorf("after that: %d tries, %v", tries, err)
		}
		now, err := look()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(folderFor)
		if later, err := look(); err != nil || later == now {
			t.Errorf("a second later the same folder is used, %v", err)
		}
	})
}

// TestAFolderIsOpenWhileItIsUsed has many use one while it is forgotten time and again.
func TestAFolderIsOpenWhileItIsUsed(t *testing.T) {
	export := roottest.Open(t, t.TempDir())
	if err := export.MkdirAll("inbox/file", 0o755); err != nil {
		t.Fatal(err)
	}
	var f folder
	var work sync.WaitGroup
	wrong := errors.New("wrong")
	for i := range 8 {
		work.Go(func() {
			for range 200 {
				err := f.use(export, "inbox/file", func(dir *os.Root, base string) error {
					if _, err := dir.Lstat(base); err != nil || i > 0 {
						return err
					}
					return wrong
				})
				if err != nil && (i > 0 || err != wrong) {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if users := f.now; users != nil && users.users != 1 {
		t.Errorf("%d users are left", users.users-1)
	}
}
