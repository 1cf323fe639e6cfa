package gridftp

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/movertest"
)

// fakeName is what the test binary is called when it is to stand in for globus-url-copy
// between servers that show this machine's files: enough of it to run the suite anywhere.
const fakeName = "globus-url-copy"

// fake installs the stand-in and returns its path.
func fake(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), fakeName)
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	return program
}

// fakeCopy is the stand-in's main.
func fakeCopy(args []string) int {
	option := func(name string) int64 {
		if i := slices.Index(args, name); i >= 0 {
			n, _ := strconv.ParseInt(args[i+1], 10, 64)
			return n
		}
		return 0
	}
	from, to := args[len(args)-2], args[len(args)-1]
	fail := func(at, format string, a ...any) int {
		text := fmt.Sprintf(format, a...)
		fmt.Fprintf(os.Stderr, "debug: fault on connection to %s: the server responded with an error\nerror: the server responded with an error\n500-%s\n500 End.\n", at, text)
		return 1
	}
	for _, u := range []string{from, to} {
		if p, err := url.Parse(u); err == nil && p.Port() == "1" {
			return fail(u, "Unable to connect to %s: Connection refused", p.Host)
		}
	}
	local := func(u string) string {
		p, _ := url.Parse(u)
		return p.Path
	}
	var src io.Reader = os.Stdin
	if from != "-" {
		f, err := os.Open(local(from))
		if err != nil {
			return fail(from, "Unable to open file %s: No such file or directory", local(from))
		}
		src = f
	}
	if to == "-" {
		_, _ = io.Copy(os.Stdout, src)
		return 0
	}
	if from == "-" {
		f, err := os.Create(local(to))
		if err != nil {
			return fail(to, "Unable to open file %s: %v", local(to), err)
		}
		_, _ = io.Copy(f, src)
		return 0
	}
	dst, err := os.OpenFile(local(to), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fail(to, "Unable to open file %s: %v", local(to), err)
	}
	file, off, length := src.(*os.File), option("-off"), option("-len")
	buf := make([]byte, mover.BlockSize)
	for done := int64(0); done < length; {
		n, err := file.ReadAt(buf[:min(int64(len(buf)), length-done)], off+done)
		if n == 0 {
			break // as a real one: what there is not is not sent
		}
		if _, err := dst.WriteAt(buf[:n], off+done); err != nil {
			return fail(to, "System error in write: %v", err)
		}
		done += int64(n)
		fmt.Fprintf(os.Stderr, "debug: response from %s:\n111 Range Marker %d-%d\n", to, done-int64(n), done)
		if err != nil {
			break
		}
		if off == 0 && option("-p") == 2 && done == 40*mover.BlockSize {
			fakeStall(file, local(to), length)
		}
	}
	return 0
}

// fakeStall is a path that moves nothing more, until either end has lost its file.
func fakeStall(src *os.File, dst string, length int64) {
	for {
		info, err := src.Stat()
		_, gone := os.Stat(dst)
		if err != nil || info.Size() < length || gone != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// newFakeRig is a rig between two exports that the stand-in reaches.
func newFakeRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	return assemble(t, dir, Client{Program: fake(t)}, "ftp://localhost:2"+dir+"/a", "ftp://localhost:3"+dir+"/b", "ftp://localhost:1"+dir+"/b")
}

// TestSuiteWithoutServers runs the suite with the stand-in: what the engine and the inbox
// tell each other is the same.
func TestSuiteWithoutServers(t *testing.T) {
	movertest.Run(t, func(t *testing.T) movertest.Rig { return newFakeRig(t).Rig })
}

func TestAnOfferThatNobodyTakesUp(t *testing.T) {
	r := newFakeRig(t)
	r.stopInbox()
	r.engine().Stall = time.Nanosecond
	err := r.moves(t)
	if mover.CodeOf(err) != mover.CodeOther || !strings.Contains(err.Error(), "does glance-dtn dtn run at the receiving site") {
		t.Errorf("got %v", err)
	}
}

func TestASiteIsReachedByTheSchemeThatThisOneSendsBy(t *testing.T) {
	r := newFakeRig(t)
	r.Address = strings.Replace(r.Address, "ftp://", "gsiftp://", 1)
	if err := r.moves(t); mover.CodeOf(err) != mover.CodeAuth || !strings.Contains(err.Error(), "the same scheme") {
		t.Errorf("got %v (code %s), want code %s", err, mover.CodeOf(err), mover.CodeAuth)
	}
}
