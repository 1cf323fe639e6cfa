package localcopy

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/internal/disk"
	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

const (
	image = "11111111-0000-4000-8000-000000000001"
	job   = "0123456789abcdef0123"
	name  = "outbox/" + job
)

// site is a store and an export in directories of one filesystem.
type site struct {
	*Copier
	store, export string
}

func newSite(t testing.TB, mode Mode) site {
	dir := t.TempDir()
	s := site{store: filepath.Join(dir, "store"), export: filepath.Join(dir, "export")}
	for _, d := range []string{s.store, s.export, filepath.Join(s.export, "outbox"), filepath.Join(s.export, "inbox")} {
		if err := os.Mkdir(d, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	s.Copier = New(Options{Open: func() (*os.Root, error) { return os.OpenRoot(s.export) }, Mode: mode, Find: func(id string) (string, int64, error) {
		path := filepath.Join(s.store, id)
		info, err := os.Lstat(path)
		if err != nil {
			return "", 0, err
		}
		return path, info.Size(), nil
	}})
	return s
}

// put writes the image's file and returns what Glance says of it.
func (s site) put(t testing.TB, data []byte) mover.File {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.store, image), data, 0o640); err != nil {
		t.Fatal(err)
	}
	return fileOf(data)
}

func fileOf(data []byte) mover.File {
	return mover.File{Name: name, Size: int64(len(data)), Digest: digest.Digest{Algo: "sha512", Value: fmt.Sprintf("%x", sha512.Sum512(data))}}
}

// random returns the same bytes every time.
func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	return data
}

// outbox lists what lies in the outbox, hidden names too.
func (s site) outbox(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.export, "outbox"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func ignore(int64) {}

func (s site) stage(t *testing.T, f mover.File, want string) {
	t.Helper()
	how, err := s.Stage(t.Context(), image, f, ignore)
	if err != nil || how != want {
		t.Fatalf("Stage: got %q, %v, want %q", how, err, want)
	}
	got, err := os.ReadFile(filepath.Join(s.export, f.Name))
	if err != nil {
		t.Fatal(err)
	}
	if is := fileOf(got); is != f {
		t.Fatalf("the staged file is %+v, want %+v", is, f)
	}
	if names := s.outbox(t); !slices.Equal(names, []string{job}) {
		t.Fatalf("the outbox holds %v, want %s", names, job)
	}
}

// fails stages and returns the error; nothing may be left.
func (s site) fails(t *testing.T, f mover.File) error {
	t.Helper()
	how, err := s.Stage(t.Context(), image, f, ignore)
	if err == nil {
		t.Fatalf("Stage: got %q, want an error", how)
	}
	if names := s.outbox(t); len(names) > 0 {
		t.Errorf("the outbox holds %v after %v", names, err)
	}
	return err
}

func TestStageLinksWhereItCan(t *testing.T) {
	s := newSite(t, Auto)
	f := s.put(t, random(3<<20+5))
	s.stage(t, f, "hard link")
	a, _ := os.Stat(filepath.Join(s.store, image))
	b, _ := os.Stat(filepath.Join(s.export, name))
	if !os.SameFile(a, b) {
		t.Error("it is another file")
	}
	s.stage(t, f, "staged before")
	if err := os.Remove(filepath.Join(s.store, image)); err != nil {
		t.Fatal(err)
	}
	s.stage(t, f, "staged before") // the image may be gone by now
}

func TestStageCopiesEverySize(t *testing.T) {
	for _, size := range []int{0, 1, mover.BlockSize - 1, mover.BlockSize, mover.BlockSize + 1, 5*mover.BlockSize + 17} {
		s := newSite(t, Copy)
		f := s.put(t, random(size))
		var moved []int64
		how, err := s.Stage(t.Context(), image, f, func(n int64) { moved = append(moved, n) })
		if err != nil || how != "copy" {
			t.Fatalf("%d bytes: got %q, %v", size, how, err)
		}
		if size > 0 && (moved[len(moved)-1] != f.Size || !slices.IsSorted(moved)) {
			t.Errorf("%d bytes: reported %v", size, moved)
		}
		s.stage(t, f, "staged before")
	}
}

func TestACopyKeepsHoles(t *testing.T) {
	s := newSite(t, Copy)
	data := make([]byte, 32<<20)
	copy(data[16<<20:], random(100))
	s.put(t, nil)
	store, err := os.OpenFile(filepath.Join(s.store, image), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.WriteAt(data[16<<20:16<<20+100], 16<<20)
	if err := errors.Join(err, store.Truncate(int64(len(data))), store.Close()); err != nil {
		t.Fatal(err)
	}
	f := fileOf(data)
	s.free = func(*os.File) (int64, error) { return 2 << 20, nil } // enough for what is not a hole
	s.stage(t, f, "copy, 99 % holes")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.export, name), &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got > 2<<20 {
		t.Errorf("the copy takes %d bytes, want at most one block of %d", got, mover.BlockSize)
	}
}

// Zeros that the source has as data become holes too, in grains and at the end.
func TestZerosAreNotWritten(t *testing.T) {
	s := newSite(t, Copy)
	data := make([]byte, 3*mover.BlockSize+5)
	for _, at := range []int{0, 3 * grain, mover.BlockSize - 1, 2*mover.BlockSize + grain} {
		data[at] = 1
	}
	s.stage(t, s.put(t, data), "copy, 91 % holes")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.export, name), &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got > 5*grain {
		t.Errorf("the copy takes %d bytes, want at most 4 grains of %d", got, grain)
	}
}

// Where the server does not copy, the kernel does, and says nothing: as on a disk.
func TestAServerSideCopyIsOneThatTheServerDid(t *testing.T) {
	for name, atOnceErr := range map[string]error{"the kernel copies": nil, "no NFS 4.2": errors.New("not on a mount of NFS 4.2")} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, Auto)
			s.atOnce = func() (int64, error) { return mover.BlockSize, atOnceErr }
			s.ways = []way{{serverSide, serverCopy}, {copied, copyFile}}
			data := append(random(12<<20), make([]byte, 12<<20)...)
			s.put(t, data[:12<<20])
			if err := os.Truncate(filepath.Join(s.store, image), int64(len(data))); err != nil {
				t.Fatal(err)
			}
			s.stage(t, fileOf(data), "copy, 50 % holes")
		})
	}
}

func TestAFileIsForTheGroupWhateverTheUmask(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	s := newSite(t, Copy)
	f := s.put(t, random(10))
	s.stage(t, f, "copy")
	if info, err := os.Stat(filepath.Join(s.export, name)); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v (%v), want 0640", info.Mode(), err)
	}
}

func TestStageTakesTheNextWay(t *testing.T) {
	for _, no := range []error{unix.EXDEV, unix.EPERM, unix.EMLINK, unix.EOPNOTSUPP} {
		s := newSite(t, Auto)
		refuse := func(context.Context, *task) error { return fmt.Errorf("link: %w", no) }
		s.ways = []way{{hardLink, refuse}, {reflink, refuse}, {copied, copyFile}}
		s.stage(t, s.put(t, random(1000)), "copy")
	}
	s := newSite(t, Auto)
	s.ways = []way{{hardLink, func(context.Context, *task) error { return unix.EIO }}, {copied, copyFile}}
	if err := s.fails(t, s.put(t, random(1000))); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO: it is no reason for another way", err)
	}
}

// What the DTN or the network says after a file was made is no reason for another way.
func TestAFailureToAskTheDTNIsNoReasonForAnotherWay(t *testing.T) {
	for _, no := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		s := newSite(t, Auto)
		s.settle = func(context.Context, string, int64) (mover.Settled, error) {
			return mover.Settled{}, fmt.Errorf("dial tcp: connect: %w", no)
		}
		s.ways = []way{{hardLink, linkFile}, {copied, func(context.Context, *task) error { t.Errorf("%v: copied", no); return nil }}}
		if how, err := s.Stage(t.Context(), image, s.put(t, random(1000)), ignore); !errors.Is(err, no) {
			t.Errorf("got %q, %v, want %v", how, err, no)
		}
	}
}

// An NFS mount that is stale says so of every call.
func TestWhatIsStaleIsToldInOneLine(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(1000))
	source := filepath.Join(s.store, image)
	for _, c := range []struct{ at, cure string }{{source, "umount --lazy " + s.store + " && mount " + s.store}, {job, "umount --lazy " + s.export + " && mount " + s.export}} {
		stale := func(op string) error { return &fs.PathError{Op: op, Path: c.at, Err: unix.ESTALE} }
		s.ways = []way{{copied, func(context.Context, *task) error { return errors.Join(stale("write"), stale("close")) }}}
		err := s.fails(t, f)
		if !errors.Is(err, unix.ESTALE) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), source+" ") || !strings.HasSuffix(err.Error(), c.cure) {
			t.Errorf("got %q, want one line that begins with %s and ends with %q", err, source, c.cure)
		}
	}
}

func TestAReflinkIsWholeOrRefused(t *testing.T) {
	s := newSite(t, Auto)
	s.ways = []way{{reflink, cloneFile}}
	f := s.put(t, random(mover.BlockSize))
	how, err := s.Stage(t.Context(), image, f, ignore)
	if err == nil {
		s.stage(t, f, before)
	} else if !unsupported(err) || len(s.outbox(t)) > 0 {
		t.Errorf("got %q, %v and %v in the outbox", how, err, s.outbox(t))
	}
}

func TestAStoreOnAnotherFilesystemIsCopied(t *testing.T) {
	s := newSite(t, Auto)
	other, err := os.MkdirTemp("/dev/shm", "localcopy")
	if err != nil {
		t.Skip("no second filesystem to write to:", err)
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(other, &a), unix.Stat(s.export, &b)); err != nil || a.Dev == b.Dev {
		t.Skip("no second filesystem:", err)
	}
	data := random(1000)
	path := filepath.Join(other, image)
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
	s.find = func(string) (string, int64, error) { return path, int64(len(data)), nil }
	s.stage(t, fileOf(data), "copy")
}

func TestStageTellsWhatIsWrongWithTheImage(t *testing.T) {
	for _, mode := range []Mode{Auto, Copy} {
		s := newSite(t, mode)
		data := random(2000)
		if err := s.fails(t, fileOf(data)); !errors.Is(err, mover.ErrNoFile) {
			t.Errorf("%s, no file: got %v", mode, err)
		}
		s.find = func(string) (string, int64, error) { return filepath.Join(s.store, image), 2000, nil } // deleted since
		if err := s.fails(t, fileOf(data)); !errors.Is(err, mover.ErrNoFile) {
			t.Errorf("%s, file deleted: got %v", mode, err)
		}
		s.put(t, data[:1999])
		if err := s.fails(t, fileOf(data)); !errors.Is(err, mover.ErrTruncated) {
			t.Errorf("%s, file truncated: got %v", mode, err)
		}
		s.put(t, append(data, 0))
		if err := s.fails(t, fileOf(data)); !errors.Is(err, mover.ErrTruncated) {
			t.Errorf("%s, file too long: got %v", mode, err)
		}
		s.find = func(string) (string, int64, error) { return filepath.Join(s.store, "unmounted", image), 2000, nil }
		if err := s.fails(t, fileOf(data)); errors.Is(err, mover.ErrNoFile) || failure.IsPermanent(err) {
			t.Errorf("%s, datadir gone: got %v, want an error that passes", mode, err)
		}
		s.find = func(string) (string, int64, error) { return "", 0, errors.New("the store hangs") }
		if err := s.fails(t, fileOf(data)); errors.Is(err, mover.ErrNoFile) {
			t.Errorf("%s, store unreadable: got %v", mode, err)
		}
	}
}

func TestACopyProvesTheContent(t *testing.T) {
	s := newSite(t, Copy)
	data := random(2 << 20)
	f := fileOf(data)
	data[1<<20] ^= 1
	s.put(t, data)
	err := s.fails(t, f)
	m, ok := errors.AsType[*digest.MismatchError](err)
	if !ok || m.Want != f.Digest || m.Got != fileOf(data).Digest {
		t.Errorf("got %v, want a *digest.MismatchError with both digests", err)
	}
	f.Digest.Algo = "crc32"
	if err := s.fails(t, f); !strings.Contains(err.Error(), "crc32") {
		t.Errorf("an unknown algorithm: got %v", err)
	}
}

func TestAFileThatShrinksWhileItIsCopied(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(2*inFlight<<20))
	_, err := s.Stage(t.Context(), image, f, func(int64) { os.Truncate(filepath.Join(s.store, image), 1<<20+7) })
	if !errors.Is(err, mover.ErrTruncated) || len(s.outbox(t)) > 0 {
		t.Errorf("got %v and %v in the outbox", err, s.outbox(t))
	}
}

func TestACancelledCopyLeavesNothing(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(4<<20))
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the claim was lost")
	_, err := s.Stage(ctx, image, f, func(int64) { cancel(stop) })
	if !errors.Is(err, stop) || len(s.outbox(t)) > 0 {
		t.Errorf("got %v and %v in the outbox", err, s.outbox(t))
	}
}

func TestAFullExport(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(1<<20))
	s.free = func(*os.File) (int64, error) { return 4096, nil }
	err := s.fails(t, f)
	if !errors.Is(err, mover.ErrSpace) || !strings.Contains(err.Error(), "1048576") || !strings.Contains(err.Error(), "4096") {
		t.Errorf("seen beforehand: got %v, want ErrSpace with both sizes", err)
	}
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT} { // seen on the way
		s.ways = []way{{copied, func(_ context.Context, t *task) error {
			return t.create(func(*os.File) error { return &fs.PathError{Op: "write", Err: full} })
		}}}
		if err := s.fails(t, f); !errors.Is(err, mover.ErrSpace) || !errors.Is(err, full) {
			t.Errorf("%v: got %v, want ErrSpace", full, err)
		}
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	data := random(1 << 20)
	onto := &task{file: fileOf(data), report: ignore}
	src, err := os.Open(filepath.Join(s.store, image))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := onto.copyData(t.Context(), full, src); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write that fails: got %v, want ENOSPC", err)
	}
}

func TestFreeSpaceIsThatOfTheFilesystem(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if n, err := free(dir); err != nil || n <= 0 {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestStageCleansUpAfterACrash(t *testing.T) {
	s := newSite(t, Copy)
	f := s.put(t, random(1000))
	box := filepath.Join(s.export, "outbox")
	const other, mine, theirs = "ffffffffffffffffffff", ".dotfile", ".ffffffffffffffffffff.1.stage"
	for _, n := range []string{job, "." + job + ".0.stage", "." + other + ".0.stage", theirs, mine} {
		if err := os.WriteFile(filepath.Join(box, n), []byte("half"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-stale - time.Minute)
	for _, n := range []string{"." + other + ".0.stage", mine} {
		if err := os.Chtimes(filepath.Join(box, n), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if how, err := s.Stage(t.Context(), image, f, ignore); err != nil || how != copied {
		t.Fatalf("got %q, %v", how, err)
	}
	want := []string{mine, theirs, job}
	if got := s.outbox(t); !slices.Equal(got, want) {
		t.Errorf("the outbox holds %v, want %v", got, want)
	}
}

func TestNamesOutsideTheOutboxAreRefused(t *testing.T) {
	s := newSite(t, Auto)
	f := s.put(t, random(10))
	for _, n := range []string{"../" + job, "outbox/../" + job, "outbox/..", "outbox", "outbox/", "/outbox/x", "inbox/x", "outbox/a/b", "outbox/.x", job, ""} {
		f.Name = n
		if how, err := s.Stage(t.Context(), image, f, ignore); !failure.IsPermanent(err) {
			t.Errorf("Stage %q: got %q, %v, want a permanent error", n, how, err)
		}
		if err := s.Unstage(t.Context(), n); !failure.IsPermanent(err) {
			t.Errorf("Unstage %q: got %v, want a permanent error", n, err)
		}
	}
}

func TestSymbolicLinksAreRefused(t *testing.T) {
	for _, mode := range []Mode{Auto, Copy} {
		s := newSite(t, mode)
		data := random(10)
		secret := filepath.Join(s.store, "secret")
		if err := os.WriteFile(secret, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(secret, filepath.Join(s.store, image)); err != nil {
			t.Fatal(err)
		}
		if err := s.fails(t, fileOf(data)); !failure.IsPermanent(err) {
			t.Errorf("%s, in the store: got %v, want a permanent error", mode, err)
		}
		os.Remove(filepath.Join(s.store, image))
		f := s.put(t, data)
		if err := os.Symlink(secret, filepath.Join(s.export, name)); err != nil {
			t.Fatal(err)
		}
		if how, err := s.Stage(t.Context(), image, f, ignore); !failure.IsPermanent(err) {
			t.Errorf("%s, in the outbox: got %q, %v, want a permanent error", mode, how, err)
		}
		if file, err := s.Open(name); !failure.IsPermanent(err) {
			t.Errorf("Open: got %v, %v, want a permanent error", file, err)
		}
	}
	s := newSite(t, Auto)
	outbox := filepath.Join(s.export, "outbox")
	if err := errors.Join(os.Remove(outbox), os.Symlink(s.store, outbox)); err != nil {
		t.Fatal(err)
	}
	if how, err := s.Stage(t.Context(), image, s.put(t, random(10)), ignore); err == nil {
		t.Errorf("an outbox that is a link: got %q", how)
	}
}

func TestUnstage(t *testing.T) {
	s := newSite(t, Auto)
	f := s.put(t, random(1000))
	s.stage(t, f, "hard link")
	half := filepath.Join(s.export, "outbox", "."+job+".0.stage")
	if err := os.WriteFile(half, []byte("half"), 0o640); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Unstage(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if names := s.outbox(t); len(names) > 0 {
			t.Errorf("left: %v", names)
		}
	}
	if got, err := os.ReadFile(filepath.Join(s.store, image)); err != nil || int64(len(got)) != f.Size {
		t.Errorf("the store's file: %d bytes, %v", len(got), err)
	}
}

func TestStagedListsJobsOnly(t *testing.T) {
	s := newSite(t, Auto)
	if names, err := s.Staged(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("an empty outbox: got %v, %v", names, err)
	}
	s.stage(t, s.put(t, random(10)), "hard link")
	for _, n := range []string{"README", "." + job + ".0.stage", strings.ToUpper(job), job + "0"} {
		if err := os.WriteFile(filepath.Join(s.export, "outbox", n), nil, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := s.Staged(t.Context()); err != nil || !reflect.DeepEqual(names, []string{name}) {
		t.Errorf("got %v, %v, want %s", names, err, name)
	}
}

func TestOpenReadsArrivalsUnderEitherName(t *testing.T) {
	s := newSite(t, Auto)
	inbox := filepath.Join(s.export, "inbox")
	part := filepath.Join(inbox, "."+job+".part")
	if err := os.WriteFile(part, []byte("0123456789"), 0o640); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open("inbox/." + job + ".part")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(part, filepath.Join(inbox, job)); err != nil { // it has arrived
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if n, err := f.ReadAt(buf, 3); n != 4 || string(buf) != "3456" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	g, err := s.Open("inbox/" + job)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if _, err := s.Open("inbox/." + job + ".part"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old name: got %v, want fs.ErrNotExist", err)
	}
	for _, n := range []string{"inbox/../store/x", "../store/" + image, "inbox", "inbox/", "inbox/a/b", "store/x", "/etc/passwd", ""} {
		if f, err := s.Open(n); !failure.IsPermanent(err) {
			t.Errorf("%q: got %v, %v, want a permanent error", n, f, err)
		}
	}
}

func TestAMissingExport(t *testing.T) {
	s := newSite(t, Auto)
	f := s.put(t, random(10))
	if err := os.RemoveAll(s.export); err != nil {
		t.Fatal(err)
	}
	_, errStage := s.Stage(t.Context(), image, f, ignore)
	_, errStaged := s.Staged(t.Context())
	_, errOpen := s.Open("inbox/" + job)
	for what, err := range map[string]error{
		"Stage": errStage, "Unstage": s.Unstage(t.Context(), name), "Staged": errStaged, "Open": errOpen,
	} {
		if err == nil || errors.Is(err, mover.ErrNoFile) || failure.IsPermanent(err) {
			t.Errorf("%s: got %v, want an error that passes", what, err)
		}
	}
	if _, err := os.Stat(s.export); err == nil {
		t.Error("the export was made")
	}
}

// A mount that goes away while a copy is made leaves a directory of this machine behind.
func TestACopyStaysOnTheExportThatWasOpened(t *testing.T) {
	for _, mode := range []Mode{Auto, Copy} {
		s := newSite(t, mode)
		f := s.put(t, random(3*mover.BlockSize))
		export := s.Copier.export
		s.Copier.export = func() (*os.Root, error) {
			root, err := export()
			return root, errors.Join(err, os.Rename(s.export, s.export+".mount"), os.MkdirAll(filepath.Join(s.export, "outbox"), 0o750))
		}
		if _, err := s.Stage(t.Context(), image, f, ignore); err != nil {
			t.Fatal(err)
		}
		if names := s.outbox(t); len(names) > 0 {
			t.Errorf("%s: written beneath the mount: %v", mode, names)
		}
		s.export += ".mount"
		if names := s.outbox(t); len(names) != 1 {
			t.Errorf("%s: the export has %v, want the copy", mode, names)
		}
	}
}

// BenchmarkStage tells what a copy that is hashed on the way takes of the time of
// dd bs=1M conv=fsync, in turns, median of 5: goal 1.05 at most where a core is free.
func BenchmarkStage(b *testing.B) {
	s := newSite(b, Copy)
	f := s.put(b, random(512<<20))
	for b.Loop() {
		ratio, spread := s.againstDD(b, f, 5)
		b.ReportMetric(ratio, "time/dd")
		b.ReportMetric(spread, "spread")
	}
}

// againstDD stages a file and has dd copy it, in turns, and returns how the times are
// to each other: the median, and the range.
func (s site) againstDD(t testing.TB, f mover.File, rounds int) (median, spread float64) {
	t.Helper()
	box := filepath.Join(s.export, "outbox")
	var ratios []float64
	src, err := os.Open(filepath.Join(s.store, image))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for range rounds {
		disk.Drop(src, 0, 0)
		began := time.Now()
		if out, err := exec.CommandContext(t.Context(), "dd", "bs=1M", "conv=fsync", "if="+filepath.Join(s.store, image), "of="+filepath.Join(box, "dd")).CombinedOutput(); err != nil {
			t.Fatalf("dd: %v: %s", err, out)
		}
		dd := time.Since(began)
		disk.Drop(src, 0, 0)
		began = time.Now()
		how, err := s.Stage(t.Context(), image, f, ignore)
		if err != nil || how != copied {
			t.Fatalf("Stage: got %q, %v", how, err)
		}
		staged := time.Since(began)
		t.Logf("dd %.1f MB/s, staged %.1f MB/s", 1e-6*float64(f.Size)/dd.Seconds(), 1e-6*float64(f.Size)/staged.Seconds())
		ratios = append(ratios, staged.Seconds()/dd.Seconds())
		if err := errors.Join(os.Remove(filepath.Join(box, "dd")), s.Unstage(t.Context(), name)); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(ratios)
	return ratios[rounds/2], ratios[rounds-1] - ratios[0]
}

func TestReadingOnceLeavesThePageCacheFree(t *testing.T) {
	const piece, pieces = 8 << 20, 10
	s := newSite(t, Auto)
	var fs unix.Statfs_t
	if err := unix.Statfs(s.export, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("a filesystem in memory (%v)", err)
	}
	file, err := os.Create(filepath.Join(s.export, "inbox", job))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	block := random(piece)
	for range pieces {
		if _, err := file.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open("inbox/" + job)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, piece)
	for i := range int64(pieces) {
		if n, err := f.ReadAt(got, i*piece); n != piece || !bytes.Equal(got, block) {
			t.Fatalf("piece %d: %d bytes (%v) or other ones", i, n, err)
		}
	}
	cached := cachedPages(t, file)
	if most := (forgetBehind + 2*piece) / os.Getpagesize(); cached > most {
		t.Errorf("%d pages are in the page cache, want at most %d", cached, most)
	}
}

// cachedPages counts the pages of a file that are in this machine's page cache.
func cachedPages(t *testing.T, file *os.File) (n int) {
	t.Helper()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	page := int64(os.Getpagesize())
	for off := int64(0); off < info.Size(); off += page {
		is, err := cached(file, off, min(page, info.Size()-off))
		if err != nil {
			t.Fatal(err)
		}
		if is {
			n++
		}
	}
	return n
}

func TestACopyLeavesThePageCacheFree(t *testing.T) {
	s := newSite(t, Copy)
	var fs unix.Statfs_t
	if err := unix.Statfs(s.export, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("a filesystem in memory (%v)", err)
	}
	f := s.put(t, random(2*syncEvery+5*mover.BlockSize))
	if how, err := s.Stage(t.Context(), image, f, ignore); err != nil || how != copied {
		t.Fatalf("got %q, %v", how, err)
	}
	staged, err := os.Open(filepath.Join(s.export, name))
	if err != nil {
		t.Fatal(err)
	}
	defer staged.Close()
	if n := cachedPages(t, staged); n > 0 {
		t.Errorf("%d pages are in the page cache, want none", n)
	}
}
