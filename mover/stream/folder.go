package stream

import (
	"os"
	"path"
	"sync"
	"time"
)

// folderFor is for how long a folder is kept open.
const folderFor = time.Second

// folder is a directory of an export that is kept open for a moment, so that many small
// files are not looked up from the export on, each. One that has taken its place since is
// found after that, or when something fails. All files that it is used for are in the same
// directory: those of a Receiver are, which takes no names from elsewhere.
type folder struct {
	mu    sync.Mutex // guards what follows
	now   *opened
	until time.Time
}

// opened closes with its last user.
type opened struct {
	*os.Root
	users int // itself, while it is the folder's, is one
}

// use calls do with the directory of the file of this name under export, and the file's
// name there, perhaps again if that fails.
func (f *folder) use(export *os.Root, name string, do func(dir *os.Root, base string) error) error {
	dir, base := path.Split(name)
	for {
		o, fresh, err := f.enter(export, path.Clean(dir))
		if err != nil {
			return err
		}
		err = do(o.Root, base)
		if f.leave(o, err); err == nil || fresh {
			return err
		}
	}
}

func (f *folder) enter(export *os.Root, dir string) (o *opened, fresh bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != nil && time.Now().Before(f.until) {
		f.now.users++
		return f.now, false, nil
	}
	root, err := export.OpenRoot(dir)
	if err != nil {
		return nil, false, err
	}
	f.forget()
	f.now, f.until = &opened{root, 2}, time.Now().Add(folderFor)
	return f.now, true, nil
}

// leave takes note of what became of a use.
func (f *folder) leave(o *opened, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && f.now == o {
		f.forget()
	}
	o.free()
}

// forget has the directory opened anew. The caller holds mu.
func (f *folder) forget() {
	if f.now != nil {
		f.now.free()
		f.now = nil
	}
}

// free counts a user less. The caller holds the folder's mu.
func (o *opened) free() {
	if o.users--; o.users == 0 {
		_ = o.Close() // nothing was written to it
	}
}
