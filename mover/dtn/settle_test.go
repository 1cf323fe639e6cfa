package dtn

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestSettleTellsWhatTheDiskHas(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	data := bytes.Repeat([]byte("glance"), 400_000) // a little over two blocks
	var sums []digest.Block
	for b := range slices.Chunk(data, mover.BlockSize) {
		sums = append(sums, digest.OfBlock(b))
	}
	out := r.opt.Export
	if err := out.MkdirAll(mover.Outbox, 0o770); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"outbox/copy", "outbox/.copy.stage"} {
		if err := out.WriteFile(name, data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]mover.Settled{
		"copy/settle":               {Size: int64(len(data)), Sums: sums},
		".copy.stage/settle?from=1": {Size: int64(len(data)), Sums: sums[1:]},
		"copy/settle?from=3":        {Size: int64(len(data)), Sums: []digest.Block{}},
	} {
		var got mover.Settled
		a := ask(t, s, "POST", "/v1/outbox/"+name, nil)
		a.decode(t, &got)
		if a.status != http.StatusOK || got.Size != want.Size || !slices.Equal(got.Sums, want.Sums) {
			t.Errorf("%s: %d %s, want %+v", name, a.status, a.body, want)
		}
	}
	if told, err := settle(t.Context(), out, "outbox/copy", 0, time.Nanosecond); !errors.Is(err, errSettling) {
		t.Errorf("in no time: %+v, %v; want errSettling", told, err)
	}
}

// TestSettleTellsWhatItMayNotRead is about a hard link of Glance's own file.
func TestSettleTellsWhatItMayNotRead(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	out := r.opt.Export
	if err := errors.Join(out.Chmod(".", 0o755), out.MkdirAll(mover.Outbox, 0o755), out.WriteFile("outbox/copy", nil, 0o400), out.Chmod("outbox/copy", 0)); err != nil {
		t.Fatal(err)
	}
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread()   // never unlocked: the thread ends with this goroutine
		_ = unix.Setfsuid(65534) // not as root, who may read all
		answers <- ask(t, s, "POST", "/v1/outbox/copy/settle", nil)
	}()
	if a := <-answers; a.status != http.StatusUnprocessableEntity || !strings.Contains(a.body, string(mover.CodeSource)) || !strings.Contains(a.body, "may not read outbox/copy") {
		t.Errorf("%d %s, want 422 with the code %s", a.status, a.body, mover.CodeSource)
	}
}

func TestSettleRefuses(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	out := r.opt.Export
	if err := out.MkdirAll("outbox/dir", 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", out.Name()+"/outbox/link"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{
		"none":         http.StatusNotFound,
		"link":         http.StatusUnprocessableEntity,
		"dir":          http.StatusUnprocessableEntity,
		"..%2finbox":   http.StatusUnprocessableEntity,
		"a%2fb":        http.StatusUnprocessableEntity,
		"..":           http.StatusTemporaryRedirect, // by the router, to what does not exist
		"none?from=-1": http.StatusUnprocessableEntity,
	} {
		path := "/v1/outbox/" + name + "/settle"
		if name == "none?from=-1" {
			path = "/v1/outbox/none/settle?from=-1"
		}
		if a := ask(t, s, "POST", path, nil); a.status != want {
			t.Errorf("%s: %d %s, want %d", name, a.status, a.body, want)
		}
	}
}
