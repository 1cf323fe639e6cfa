// Package store looks at the directories of a Glance filesystem store: which files
// are there, what changed, and what does not fit to what Glance says.
//
// Glance writes an image straight to DATADIR/ID, without a temporary name, so a
// file says nothing about whether its image is complete. And inotify sees only
// what is written on this machine: on NFS not what other controllers write. Hence
// inotify and the periodic scan both only give hints, and the scan is the one
// that misses nothing.
//
// Nothing here writes to a store, follows a symbolic link in one, or takes for an
// image what is not a regular file named by a UUID.
package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// File is an image's file in a store.
type File struct {
	ID      glance.ImageID
	Path    string
	Size    int64
	ModTime time.Time
}

var (
	// ErrNoFile says that no datadir has a file for the image. It is an fs.ErrNotExist.
	ErrNoFile = fmt.Errorf("no file in the store: %w", fs.ErrNotExist)
	// ErrEmpty says that nothing at all lies in a datadir. A mount point looks like
	// this while nothing is mounted there, so it says nothing about the image.
	ErrEmpty = errors.New("is empty: is it mounted?")
)

// Scan lists the files in the datadirs by id. Of an image that lies in several of
// them, the first one counts. When a datadir cannot be read, the error says which,
// and the files of the others are returned with it.
func Scan(dirs []string) ([]File, error) {
	var files []File
	var errs []error
	for _, dir := range dirs {
		found, err := scanDir(dir)
		files, errs = append(files, found...), append(errs, err)
	}
	slices.SortStableFunc(files, func(a, b File) int { return cmp.Compare(a.ID, b.ID) })
	files = slices.CompactFunc(files, func(a, b File) bool { return a.ID == b.ID })
	return files, errors.Join(errs...)
}

// Find returns the image's file from the first datadir that has one. It is
// ErrNoFile only when every datadir could be looked at and holds something else; an
// empty one is ErrEmpty, which may pass.
func Find(dirs []string, id glance.ImageID) (File, error) {
	if !isID(string(id)) {
		return File{}, fmt.Errorf("find image %q: not an image id", id)
	}
	var errs []error
	for _, dir := range dirs {
		f, err := findIn(dir, id)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = occupied(dir)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		errs = append(errs, ErrNoFile)
	}
	return File{}, fmt.Errorf("find image %s: %w", id, errors.Join(errs...))
}

// open opens a datadir. Its error is not an fs.ErrNotExist: that a datadir is not
// there says nothing about the files that were in it.
func open(dir string) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("datadir %s is not there; is it mounted?", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("datadir: %w", err)
	}
	return root, nil
}

func findIn(dir string, id glance.ImageID) (File, error) {
	root, err := open(dir)
	if err != nil {
		return File{}, err
	}
	defer root.Close()
	info, err := root.Lstat(string(id))
	if err != nil {
		return File{}, err
	}
	if !info.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s is not a regular file", filepath.Join(dir, string(id)))
	}
	return file(dir, id, info), nil
}

// occupied returns nil when something lies in the datadir, ErrEmpty when nothing does.
func occupied(dir string) error {
	root, err := open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("datadir: %w", err)
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if err == io.EOF {
		return fmt.Errorf("datadir %s %w", dir, ErrEmpty)
	}
	if err != nil {
		return fmt.Errorf("datadir %s: %w", dir, err)
	}
	return nil
}

func scanDir(dir string) ([]File, error) {
	root, err := open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("datadir: %w", err)
	}
	defer d.Close()
	var files []File
	for {
		names, err := d.Readdirnames(1000)
		for _, name := range names {
			if !isID(name) {
				continue
			}
			info, err := root.Lstat(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted since
			}
			if err != nil {
				return nil, fmt.Errorf("datadir %s: %w", dir, err)
			}
			if info.Mode().IsRegular() {
				files = append(files, file(dir, glance.ImageID(name), info))
			}
		}
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("datadir %s: %w", dir, err)
		}
	}
}

func file(dir string, id glance.ImageID, info fs.FileInfo) File {
	return File{ID: id, Path: filepath.Join(dir, string(id)), Size: info.Size(), ModTime: info.ModTime()}
}

// isID reports whether name is an image id as Glance writes it.
func isID(name string) bool {
	id, err := glance.ParseImageID(name)
	return err == nil && string(id) == name
}
