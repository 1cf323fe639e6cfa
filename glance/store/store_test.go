package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

const (
	id1 = glance.ImageID("11111111-0000-4000-8000-000000000001")
	id2 = glance.ImageID("22222222-0000-4000-8000-000000000002")
	id3 = glance.ImageID("33333333-0000-4000-8000-000000000003")
)

func put(t *testing.T, dir, name, data string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o640); err != nil {
		t.Fatal(err)
	}
}

// pathsAndSizes is what of files does not depend on the time.
func pathsAndSizes(files []File) map[string]int64 {
	m := map[string]int64{}
	for _, f := range files {
		m[f.Path] = f.Size
	}
	return m
}

func TestScanListsOnlyImageFiles(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	put(t, a, string(id1), "one")
	put(t, b, string(id1), "in the second datadir")
	put(t, b, string(id2), "")
	put(t, a, "README", "x")
	put(t, a, "."+string(id3), "x")
	put(t, a, strings.ToUpper("aaaaaaaa-0000-4000-8000-000000000003"), "x")
	if err := os.Mkdir(filepath.Join(a, string(id3)), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(b, string(id2)), filepath.Join(a, string(id2))); err != nil {
		t.Fatal(err)
	}
	files, err := Scan([]string{a, b})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{filepath.Join(a, string(id1)): 3, filepath.Join(b, string(id2)): 0}
	if got := pathsAndSizes(files); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if files[0].ID != id1 || files[0].ModTime.IsZero() {
		t.Errorf("got %+v first, want %s with its time", files[0], id1)
	}
}

func TestScanTellsAMissingDatadirAndListsTheOthers(t *testing.T) {
	a, gone := t.TempDir(), filepath.Join(t.TempDir(), "gone")
	put(t, a, string(id1), "one")
	files, err := Scan([]string{gone, a})
	if err == nil || !strings.Contains(err.Error(), gone) {
		t.Errorf("got error %v, want one that names %s", err, gone)
	}
	if len(files) != 1 {
		t.Errorf("got %v, want the file of the other datadir", files)
	}
}

func TestFindTakesTheFirstDatadir(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	put(t, a, string(id1), "one")
	put(t, b, string(id1), "second")
	put(t, b, string(id2), "two")
	for id, want := range map[glance.ImageID]string{id1: a, id2: b} {
		f, err := Find([]string{a, b}, id)
		if err != nil || f.Path != filepath.Join(want, string(id)) || f.ID != id || f.Size != 3 {
			t.Errorf("%s: got %+v, %v, want it in %s", id, f, err, want)
		}
	}
}

func TestFindTellsNoFileFromNoDatadir(t *testing.T) {
	a, gone := t.TempDir(), filepath.Join(t.TempDir(), "gone")
	bare := t.TempDir()
	put(t, a, string(id2), "two")
	if _, err := Find([]string{a}, id1); !errors.Is(err, ErrNoFile) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a datadir with other files: got %v, want ErrNoFile", err)
	}
	for _, dirs := range [][]string{{bare}, {a, bare}, {bare, a}} {
		_, err := Find(dirs, id1)
		if !errors.Is(err, ErrEmpty) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), bare+" is empty: is it mounted?") {
			t.Errorf("an empty datadir: got %v, want ErrEmpty alone, with its name", err)
		}
	}
	if _, err := Find([]string{a, gone}, id1); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing datadir: got %v, want an error that does not say the file is missing", err)
	}
	put(t, a, string(id1), "one")
	if _, err := Find([]string{gone, a}, id1); err != nil {
		t.Errorf("a missing datadir beside the right one: got %v", err)
	}
}

func TestFindRefusesWhatIsNotAPlainFile(t *testing.T) {
	a, outside := t.TempDir(), t.TempDir()
	put(t, outside, "secret", "secret")
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(a, string(id1))); err != nil {
		t.Fatal(err)
	}
	if f, err := Find([]string{a}, id1); err == nil || errors.Is(err, ErrNoFile) {
		t.Errorf("a symbolic link: got %+v, %v, want a refusal", f, err)
	}
	for _, id := range []glance.ImageID{"../secret", "", "README"} {
		if f, err := Find([]string{a}, id); err == nil || errors.Is(err, ErrNoFile) {
			t.Errorf("%q: got %+v, %v, want a refusal", id, f, err)
		}
	}
}

func TestCompare(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	old, young := now.Add(-time.Hour), now.Add(-time.Minute)
	image := func(s glance.Status, size int64, at time.Time) []glance.Image {
		return []glance.Image{{ID: id1, Status: s, Size: size, UpdatedAt: at}}
	}
	file := func(size int64, at time.Time) []File {
		return []File{{ID: id1, Path: "/store/1", Size: size, ModTime: at}}
	}
	for name, c := range map[string]struct {
		files  []File
		images []glance.Image
		want   Kind
	}{
		"all well":                     {file(3, old), image(glance.Active, 3, old), ""},
		"deactivated is well":          {file(3, old), image(glance.Deactivated, 3, old), ""},
		"queued without data":          {nil, image(glance.Queued, 0, old), ""},
		"being uploaded":               {file(2, young), image(glance.Saving, 0, young), ""},
		"a long upload":                {file(2, old), image(glance.Saving, 0, old), ""},
		"being imported":               {file(2, old), image(glance.Importing, 0, old), ""},
		"just written, not yet listed": {file(2, young), nil, ""},
		"just active, not yet scanned": {nil, image(glance.Active, 3, young), ""},
		"just active, scanned before":  {file(2, old), image(glance.Active, 3, young), ""},
		"orphan":                       {file(2, old), nil, FileWithoutImage},
		"in the way of an upload":      {file(2, old), image(glance.Queued, 0, old), FileWithoutImage},
		"file gone":                    {nil, image(glance.Active, 3, old), ImageWithoutFile},
		"file gone, deactivated":       {nil, image(glance.Deactivated, 3, old), ImageWithoutFile},
		"truncated":                    {file(2, old), image(glance.Active, 3, old), WrongSize},
	} {
		got := Compare(c.files, c.images, now)
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s: got %+v, want no fault", name, got)
		case c.want != "" && (len(got) != 1 || got[0].Kind != c.want || got[0].ID != id1 || got[0].Note == ""):
			t.Errorf("%s: got %+v, want %s", name, got, c.want)
		case c.want != "" && (got[0].Path != "") != (len(c.files) > 0):
			t.Errorf("%s: got path %q", name, got[0].Path)
		}
	}
}

func TestCompareSortsByImage(t *testing.T) {
	now := time.Now()
	old := now.Add(-time.Hour)
	got := Compare(
		[]File{{ID: id3, ModTime: old}, {ID: id1, ModTime: old}},
		[]glance.Image{{ID: id2, Status: glance.Active, Size: 1, UpdatedAt: old}}, now)
	if len(got) != 3 || got[0].ID != id1 || got[1].ID != id2 || got[2].ID != id3 {
		t.Errorf("got %+v", got)
	}
}
