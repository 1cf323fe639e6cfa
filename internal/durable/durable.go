// Package durable changes small files so that the change survives a power
// failure once the function has returned nil.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// tempSuffix ends the name of a file that WriteFile has not renamed yet.
const tempSuffix = ".tmp"

// WriteFile replaces name under root with data and mode perm (before umask). A
// reader sees the old content or the new, never a mixture. If it returns an
// error, name may hold either. Calls for the same name must not overlap.
//
// The order is: unlink what a crash left of the temporary file, openat(O_EXCL) it
// beside name, write, fsync, close, renameat, fsync of the directory. A fsync
// that failed is never repeated: the file is written anew or not at all.
func WriteFile(root *os.Root, name string, data []byte, perm os.FileMode) error {
	temp := tempName(name)
	if err := writeTemp(root, temp, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, removeIfThere(root, temp)))
	}
	if err := root.Rename(temp, name); err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, removeIfThere(root, temp)))
	}
	return SyncDir(root, path.Dir(name))
}

// WritePath is WriteFile by a path, whose directories it makes where they are missing.
func WritePath(path string, data []byte, perm os.FileMode) error {
	dir, base := filepath.Split(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := WriteFile(root, base, data, perm); err != nil {
		return fmt.Errorf("in %s: %w", dir, err)
	}
	return nil
}

// IsTemp reports whether name is one that WriteFile uses before it renames. Such
// a file is what a crash left of a write that nobody was told had succeeded.
func IsTemp(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, ".") && strings.HasSuffix(base, tempSuffix)
}

// Remove removes name; nil when it is not there. After a crash name may be back
// unless Remove had returned nil.
func Remove(root *os.Root, name string) error {
	if err := removeIfThere(root, name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return SyncDir(root, path.Dir(name))
}

// SyncDir makes the creations, renames and removals in the directory name durable.
func SyncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", name, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", name, err)
	}
	return nil
}

func tempName(name string) string {
	dir, base := path.Split(name)
	return dir + "." + base + tempSuffix
}

func writeTemp(root *os.Root, temp string, data []byte, perm os.FileMode) error {
	if err := removeIfThere(root, temp); err != nil {
		return err
	}
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func removeIfThere(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
