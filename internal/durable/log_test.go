package durable

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/internal/roottest"
)

// reopen returns a log and what it held, as after a crash of who had it open.
func reopen(t *testing.T, root *os.Root) (l *Log, held map[string]string, damage []error) {
	t.Helper()
	held = map[string]string{}
	l, err := OpenLog(root, "log", func(key string, value []byte) error {
		if string(value) == `"refused"` {
			return errors.New("not this one")
		}
		held[key] = string(value)
		return nil
	}, func(err error) { damage = append(damage, err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, held, damage
}

func commit(t *testing.T, l *Log, changes ...Change) {
	t.Helper()
	if err := l.Commit(changes...); err != nil {
		t.Fatal(err)
	}
}

func wantHeld(t *testing.T, root *os.Root, want map[string]string) *Log {
	t.Helper()
	l, held, damage := reopen(t, root)
	if !maps.Equal(held, want) || len(damage) > 0 {
		t.Errorf("it holds %v, damage %v; want %v", held, damage, want)
	}
	return l
}

func TestALogHoldsTheLatestOfEachKey(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	l, _, _ := reopen(t, root)
	commit(t, l, Set("a", 1), Set("b", 1), Set("gone", 1))
	commit(t, l, Set("a", 2), Set("a", 3), Change{Key: "gone"})
	l = wantHeld(t, root, map[string]string{"a": "3", "b": "1"})
	commit(t, l, Set("c d\n", "x y\n"), Change{Key: "b"}, Change{Key: "never"})
	wantHeld(t, root, map[string]string{"a": "3", "c d\n": `"x y\n"`})
	info, err := root.Stat("log")
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

// TestACrashLosesALineOrNone cuts the log at every byte of its last line.
func TestACrashLosesALineOrNone(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	l, _, _ := reopen(t, root)
	commit(t, l, Set("a", 1))
	before := l.size
	commit(t, l, Set("a", 2), Set("b", 2))
	whole, err := root.ReadFile("log")
	if err != nil {
		t.Fatal(err)
	}
	for n := before; n <= int64(len(whole)); n++ {
		for _, tail := range []string{"", "\x00\x00\n"} {
			if (n == int64(len(whole)) || n%5 > 0) && tail != "" {
				continue
			}
			if err := root.WriteFile("log", append(whole[:n:n], tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"a": "1"}
			if n == int64(len(whole)) {
				want = map[string]string{"a": "2", "b": "2"}
			}
			l := wantHeld(t, root, want)
			commit(t, l, Set("after", true))
			want["after"] = "true"
			wantHeld(t, root, want).Close()
		}
	}
}

func TestWhatIsDamagedIsToldAndKept(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	l, _, _ := reopen(t, root)
	commit(t, l, Set("lost", 1))
	commit(t, l, Set("refused", "refused"), Set("a", 1))
	commit(t, l, Set("b", 1))
	whole, err := root.ReadFile("log")
	if err == nil {
		whole[5] ^= 1
		err = root.WriteFile("log", whole, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // who does not go on changes nothing
		l, held, damage := reopen(t, root)
		if want := map[string]string{"a": "1", "b": "1"}; !maps.Equal(held, want) {
			t.Errorf("it holds %v, want %v", held, want)
		}
		text := errors.Join(damage...).Error()
		if len(damage) != 2 || !strings.Contains(text, "log: line 1: ") || !strings.Contains(text, "line 2: refused: not this one") {
			t.Errorf("damage told: %v", damage)
		}
		l.Close()
	}
	l, _, _ = reopen(t, root)
	commit(t, l, Set("c", 1))
	wantHeld(t, root, map[string]string{"a": "1", "b": "1", "c": "1"})
	if kept, err := root.ReadFile("log.broken"); err != nil || string(kept) != string(whole) {
		t.Errorf("the damaged one was not kept: %q, %v", kept, err)
	}
}

func TestALogDoesNotGrowForever(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	l, _, _ := reopen(t, root)
	value := strings.Repeat("x", 64<<10)
	want := map[string]string{}
	for i := range 100 {
		key := fmt.Sprint("k", i%3)
		commit(t, l, Set(key, value), Set("n", i), Set(fmt.Sprint("once", i), i), Change{Key: fmt.Sprint("once", i-1)})
		want[key] = `"` + value + `"`
		info, err := root.Stat("log")
		if limit := int64(2*4*(64<<10) + 2*minGarbage); err != nil || info.Size() > limit {
			t.Fatalf("%d bytes after %d changes, %v", info.Size(), i, err)
		}
	}
	want["n"], want["once99"] = "99", "99"
	wantHeld(t, root, want)
	if got := names(t, root, "."); len(got) != 1 {
		t.Errorf("directory holds %q, want the log alone", got)
	}
}

func TestALogGoesOnAfterTheDiskFailed(t *testing.T) {
	root := roottest.Open(t, t.TempDir())
	l, _, _ := reopen(t, root)
	commit(t, l, Set("a", 1))
	file := l.file
	readOnly, err := root.Open("log") // writes to it fail
	if err != nil {
		t.Fatal(err)
	}
	l.file = readOnly
	if err := l.Commit(Set("a", 2)); err == nil {
		t.Fatal("the disk failed, and nobody noticed")
	}
	// Half of what failed may be there.
	if _, err := file.WriteString("00000000 [{"); err != nil {
		t.Fatal(err)
	}
	file.Close()
	commit(t, l, Set("b", 1))
	wantHeld(t, root, map[string]string{"a": "1", "b": "1"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(Set("c", 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a commit after Close: %v", err)
	}
}

// TestAGroupDoesTogetherWhatComesMeanwhile has many come while one is being done.
func TestAGroupDoesTogetherWhatComesMeanwhile(t *testing.T) {
	began, goOn := make(chan []int), make(chan error)
	g := NewGroup(func(items []int) error {
		began <- items
		return <-goOn
	})
	errs := make(chan error, 101)
	go func() { errs <- g.Do(0) }()
	if got := <-began; len(got) != 1 {
		t.Errorf("the first waited for others: %v", got)
	}
	waiting := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.next == nil {
			return 0
		}
		return len(g.next.items)
	}
	for i := range 100 {
		go func() { errs <- g.Do(i+1, -i-1) }()
		for waiting() < 2*(i+1) {
			runtime.Gosched()
		}
	}
	goOn <- nil
	got := <-began
	for i, n := range got {
		if want := (i/2 + 1) * (1 - 2*(i%2)); n != want {
			t.Fatalf("number %d is %d, want %d", i, n, want)
		}
	}
	wrong := errors.New("wrong")
	goOn <- wrong
	told := 0
	for range 101 {
		if <-errs == wrong {
			told++
		}
	}
	if len(got) != 200 || told != 100 {
		t.Errorf("%d were done at once and %d told of the error, want 200 and 100", len(got), told)
	}
}

func FuzzDecodeLine(f *testing.F) {
	f.Add(encodeLine([]Change{Set("a", 1), {Key: "b"}}))
	f.Add([]byte("00000000 \n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		changes, err := decodeLine(line)
		if err != nil {
			return
		}
		if again, err := decodeLine(encodeLine(changes)); err != nil || len(again) != len(changes) {
			t.Errorf("%q: written and read again: %v, %v", line, again, err)
		}
	})
}
