package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// State is what is wrong with an export.
type State string

// The states.
const (
	Gone     State = "gone"      // it is not mounted
	Unmarked State = "unmarked"  // there is no marker: never was this DTN's export, or was emptied
	Replaced State = "replaced"  // another export is mounted
	Stale    State = "stale"     // the server does not know the mounted directory any more
	ReadOnly State = "read-only" // mounted or exported so
	Hung     State = "hung"      // it does not answer
	Failing  State = "failing"   // it answers with errors
	Refused  State = "refused"   // this user may not use it
	Full     State = "full"      // no room for a byte
)

// Trouble is why an export cannot be used now.
type Trouble struct {
	State State
	Dir   string
	Why   string // completes "export Dir ..."
	Next  string // what a person may do
	Err   error  // of the call that failed, or nil
}

// Error says what is wrong, and what to do.
func (t *Trouble) Error() string {
	s := fmt.Sprintf("export %s %s", t.Dir, t.Why)
	if t.Next != "" {
		s += "; " + t.Next
	}
	return s
}

func (t *Trouble) Unwrap() error { return t.Err }

// remount is the command that makes a mount anew; --lazy, because what is stale may be in use.
func remount(dir string) string { return fmt.Sprintf("umount --lazy %s && mount %s", dir, dir) }

// explain makes a Trouble of what the system says when the export on m is used.
func explain(dir string, m nfs.Mount, err error) error {
	if t, ok := errors.AsType[*Trouble](err); ok {
		return t
	}
	t := &Trouble{State: Failing, Dir: dir, Err: err}
	server, _, sourceErr := nfs.SplitSource(m.Source)
	if sourceErr != nil {
		server = m.Source
	}
	is := func(errnos ...syscall.Errno) bool {
		return slices.ContainsFunc(errnos, func(e syscall.Errno) bool { return errors.Is(err, e) })
	}
	switch {
	case is(syscall.ESTALE):
		t.State, t.Why = Stale, "is stale: "+server+" does not know the mounted directory any more"
		t.Next = "export it there as it was (exports(5)), or mount it anew: " + remount(dir)
	case is(syscall.EROFS) && slices.Contains(m.Effective(), "ro"):
		t.State, t.Why = ReadOnly, "is mounted read-only"
		t.Next = "see dmesg for an error that made it so, then: mount -o remount,rw " + dir
	case is(syscall.EROFS):
		t.State, t.Why = ReadOnly, "is read-only at "+server
		t.Next = "export it rw there (exports(5)), or see its dmesg for why the disk is read-only"
	case is(syscall.ENOTCONN, syscall.ECONNABORTED):
		t.State, t.Why = Gone, "has lost the process that served it in user space"
		t.Next = "mount it anew: " + remount(dir)
	case is(syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNREFUSED):
		t.State, t.Why = Hung, "is not reached: "+server+" does not answer"
		t.Next = "is it up, and the network to it?"
	case is(syscall.EIO):
		t.Why = "answers with an I/O error"
		t.Next = "see dmesg here, and the disk of " + server
		if _, soft := m.Super.Get("soft"); soft {
			t.Next += "; it is mounted soft, so the server may only have been away: mount it hard"
		}
	case is(syscall.ENODEV, syscall.ENXIO): // what autofs(5) says when it could not mount
		t.State, t.Why = Gone, "could not be mounted"
		t.Next = "see why: mount " + dir
	case is(syscall.EACCES, syscall.EPERM):
		t.State, t.Why = Refused, "may not be used by this user: "+brief(dir, err)
		t.Next = "put it into the directory's group, with the same number on both hosts; of root see root_squash in exports(5)"
	case is(syscall.ENOSPC, syscall.EDQUOT):
		t.State, t.Why = Full, "is full"
		t.Next = "free space at " + server
	case errors.Is(err, fs.ErrNotExist):
		t.State, t.Why = Gone, "is not there"
		t.Next = "make the directory and mount the DTN's export on it"
	case errors.Is(err, errNoMarker):
		t.State, t.Why = Unmarked, "cannot be told from others: "+err.Error()
	default:
		t.Why = "cannot be used: " + brief(dir, err)
		if _, told := errors.AsType[syscall.Errno](err); told { // otherwise a sentence of our own
			t.Next = "see the mount here, and /readyz of the DTN"
		}
	}
	return t
}

// brief is an error without the directory's name, which the sentence has already.
func brief(dir string, err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == dir {
		err = e.Err
	}
	return err.Error()
}

// hung is told of an export that has not answered a look.
func hung(dir string, m nfs.Mount, found bool, since time.Time) error {
	t := &Trouble{State: Hung, Dir: dir, Why: "has not answered since " + since.UTC().Format(time.RFC3339)}
	t.Next = "is its server up, and the network to it?"
	if found && nfs.IsNFS(m.Type) {
		t.Next = fmt.Sprintf("is %s up, and the network to it? If it never comes back, umount --force --lazy %s and mount what takes its place", m.Source, dir)
	}
	return t
}
