package catalog

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
)

// behave holds what any Glance has to do for this package, the stand-in as well as
// the real one. expire, unless nil, ends every token given so far.
func behave(t *testing.T, c *Catalog, expire func()) {
	t.Run("an image is offered to nobody before Finish, and is then as its source", func(t *testing.T) {
		want := sample(t, c)
		made, err := c.Create(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		if made.Status != glance.Queued || made.Visibility != "private" || !made.Hidden || made.Protected {
			t.Errorf("created %+v; want it queued, private, hidden, not protected", made)
		}
		data := random(t, 3<<20+7)
		if err := c.Upload(t.Context(), want.ID, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
		proven, err := c.Image(t.Context(), want.ID)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha512.Sum512(data)
		if got := (digest.Digest{Algo: "sha512", Value: fmt.Sprintf("%x", sum)}); proven.Hash != got || proven.Size != int64(len(data)) || proven.Status != glance.Active {
			t.Errorf("uploaded %+v; want %d bytes with %v", proven, len(data), got)
		}
		for range 2 {
			done, err := c.Finish(t.Context(), want)
			if err != nil {
				t.Fatal(err)
			}
			if d := want.MetadataDiff(done); len(d) > 0 {
				t.Errorf("finished image differs in %q: %+v", d, done)
			}
			if _, left := done.Properties[glance.PropJob]; left {
				t.Errorf("%s is still there", glance.PropJob)
			}
		}
		if got := read(t, c, want.ID); !bytes.Equal(got, data) {
			t.Error("the data read back differ")
		}
		held, err := c.Holding(t.Context(), proven)
		if err != nil || len(held) != 1 || held[0].ID != want.ID {
			t.Errorf("Holding = %v, %v; want the one image", held, err)
		}
		proven.Size++
		if held, err := c.Holding(t.Context(), proven); err != nil || len(held) != 0 {
			t.Errorf("Holding with another size = %v, %v; want none", held, err)
		}
		listed := find(t, c, proven.CreatedAt, want.ID)
		if d := want.MetadataDiff(listed); len(d) > 0 {
			t.Errorf("listed image differs in %q: %+v", d, listed)
		}
	})

	t.Run("a listing has hidden images, and only those that changed since", func(t *testing.T) {
		i := queued(t, c)
		find(t, c, time.Time{}, i.ID)
		find(t, c, i.UpdatedAt, i.ID)
		for o, err := range c.Images(t.Context(), i.UpdatedAt.Add(time.Minute)) {
			if err != nil || o.ID == i.ID {
				t.Errorf("listed %v, %v; want it left out", o.ID, err)
			}
		}
	})

	t.Run("an id is never given twice", func(t *testing.T) {
		i := queued(t, c)
		if _, err := c.Create(t.Context(), i); !errors.Is(err, glance.ErrIDUsed) {
			t.Errorf("while it is there: %v, want ErrIDUsed", err)
		}
		for range 2 {
			if err := c.Delete(t.Context(), i.ID); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Create(t.Context(), i); !errors.Is(err, glance.ErrIDUsed) {
			t.Errorf("after it was deleted: %v, want ErrIDUsed", err)
		}
		if _, err := c.Image(t.Context(), i.ID); !errors.Is(err, glance.ErrNoImage) {
			t.Errorf("deleted image: %v, want ErrNoImage", err)
		}
		if err := c.Upload(t.Context(), i.ID, bytes.NewReader([]byte("x")), 1); !errors.Is(err, glance.ErrNoImage) {
			t.Errorf("upload of a deleted image: %v, want ErrNoImage", err)
		}
	})

	t.Run("a record that another job made is taken over with all its metadata", func(t *testing.T) {
		i := queued(t, c)
		want := i
		want.Name, want.MinRAM, want.Tags = "other", 128, []string{"lts", "new"}
		want.Properties = map[string]string{"os_distro": "debian", "a/b~c": "d", glance.PropJob: "fedcba98765432100000"}
		got, err := c.Adopt(t.Context(), i, want)
		if err != nil {
			t.Fatal(err)
		}
		if d := want.MetadataDiff(got); len(d) > 0 || got.Properties[glance.PropJob] != want.Properties[glance.PropJob] {
			t.Errorf("the record differs in %q: %+v", d, got)
		}
		if again, err := c.Adopt(t.Context(), got, want); err != nil || !again.UpdatedAt.Equal(got.UpdatedAt) {
			t.Errorf("once more: %+v, %v; want no change", again, err)
		}
		if err := c.Delete(t.Context(), i.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Adopt(t.Context(), i, want); !errors.Is(err, glance.ErrNoImage) {
			t.Errorf("a deleted image: %v, want ErrNoImage", err)
		}
	})

	t.Run("a source that fails leaves the image queued and may be sent anew", func(t *testing.T) {
		data := random(t, 4<<20)
		broken := errors.New("the export is gone")
		for _, tt := range []struct {
			name   string
			source io.Reader
			want   error
		}{
			{"fails", io.MultiReader(bytes.NewReader(data[:1<<20]), failing{broken}), broken},
			{"fails at once", failing{broken}, broken},
			{"is short", bytes.NewReader(data[:2<<20]), io.ErrUnexpectedEOF},
			{"is empty", bytes.NewReader(nil), io.ErrUnexpectedEOF},
		} {
			t.Run(tt.name, func(t *testing.T) {
				i := queued(t, c)
				if err := c.Upload(t.Context(), i.ID, tt.source, int64(len(data))); !errors.Is(err, tt.want) {
					t.Fatalf("Upload: %v, want %v", err, tt.want)
				}
				eventually(t, "the image is queued again", func() bool { return status(t, c, i.ID) == glance.Queued })
				if err := c.Upload(t.Context(), i.ID, bytes.NewReader(data), int64(len(data))); err != nil {
					t.Fatal(err)
				}
				if got := read(t, c, i.ID); !bytes.Equal(got, data) {
					t.Error("the data read back differ")
				}
			})
		}
	})

	t.Run("an upload that is cancelled leaves the image queued", func(t *testing.T) {
		i := queued(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		source := readerFunc(func(p []byte) (int, error) { // endless, cancelled while it runs
			cancel()
			return len(p), nil
		})
		if err := c.Upload(ctx, i.ID, source, 1<<40); !errors.Is(err, context.Canceled) {
			t.Errorf("Upload: %v, want Canceled", err)
		}
		eventually(t, "the image is queued again", func() bool { return status(t, c, i.ID) == glance.Queued })
	})

	t.Run("only a queued image takes data, and never more than size", func(t *testing.T) {
		i := queued(t, c)
		source := bytes.NewReader([]byte("12345more"))
		if err := c.Upload(t.Context(), i.ID, source, 5); err != nil {
			t.Fatal(err)
		}
		if got := read(t, c, i.ID); string(got) != "12345" {
			t.Errorf("data %q, want 12345", got)
		}
		if rest, _ := io.ReadAll(source); string(rest) != "more" {
			t.Errorf("left %q of the source, want \"more\"", rest)
		}
		if err := c.Upload(t.Context(), i.ID, bytes.NewReader([]byte("x")), 1); !errors.Is(err, glance.ErrNotQueued) {
			t.Errorf("second upload: %v, want ErrNotQueued", err)
		}
	})

	t.Run("an empty image", func(t *testing.T) {
		i := queued(t, c)
		if err := c.Upload(t.Context(), i.ID, bytes.NewReader(nil), 0); err != nil {
			t.Fatal(err)
		}
		if now, err := c.Image(t.Context(), i.ID); err != nil || now.Status != glance.Active || now.Size != 0 || now.Hash.IsZero() {
			t.Errorf("%+v, %v; want it active, of 0 bytes, with a hash", now, err)
		}
	})

	t.Run("Finish refuses an image without data", func(t *testing.T) {
		i := queued(t, c)
		if _, err := c.Finish(t.Context(), i); err == nil {
			t.Error("a queued image was finished")
		}
	})

	t.Run("protection is lifted from our own half-made images only", func(t *testing.T) {
		ours, theirs := queued(t, c), queued(t, c)
		for id, ch := range map[glance.ImageID][]change{
			ours.ID:   {{"replace", "/protected", true}},
			theirs.ID: {{"replace", "/protected", true}, {Op: "remove", Path: "/" + glance.PropJob}},
		} {
			if _, err := c.patch(t.Context(), "protect", id, ch); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Delete(t.Context(), ours.ID); err != nil {
			t.Error(err)
		}
		if err := c.Delete(t.Context(), theirs.ID); !errors.Is(err, errKept) {
			t.Errorf("delete a protected image: %v, want it refused", err)
		}
	})

	t.Run("limits and bad metadata are refused for good", func(t *testing.T) {
		i := sample(t, c)
		for n := range 129 {
			i.Properties[fmt.Sprintf("p%d", n)] = "x"
		}
		if _, err := c.Create(t.Context(), i); !errors.Is(err, errLimits) {
			t.Errorf("130 properties: %v, want the limit named", err)
		}
	})

	if expire == nil {
		return
	}
	t.Run("a token that has ended is renewed, before an upload as well", func(t *testing.T) {
		i := queued(t, c)
		expire()
		data := random(t, 1<<20)
		if err := c.Upload(t.Context(), i.ID, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
		expire()
		if got := read(t, c, i.ID); !bytes.Equal(got, data) {
			t.Error("the data read back differ")
		}
	})
}

// sample is an image as it may come from another site, not yet made, removed at the end.
func sample(t *testing.T, c *Catalog) glance.Image {
	t.Helper()
	b := random(t, 16)
	id, err := glance.ParseImageID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if now, err := c.Image(ctx, id); err == nil && now.Protected {
			c.patch(ctx, "unprotect", id, []change{{"replace", "/protected", false}})
		}
		if err := c.Delete(ctx, id); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	return glance.Image{
		ID: id, Name: "Ubuntu 24.04 ü", DiskFormat: "raw", ContainerFormat: "bare", MinDisk: 3, MinRAM: 64,
		Visibility: "public", Protected: true, Tags: []string{"everywhere", "lts"},
		Properties: map[string]string{
			"os_distro": "ubuntu", "owner_specified.openstack.md5": "x", "hw_disk_bus": "virtio", glance.PropJob: "0123456789abcdef0123",
		},
	}
}

// queued is a sample that has been created.
func queued(t *testing.T, c *Catalog) glance.Image {
	t.Helper()
	i, err := c.Create(t.Context(), sample(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func read(t *testing.T, c *Catalog, id glance.ImageID) []byte {
	t.Helper()
	r, err := c.Data(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func status(t *testing.T, c *Catalog, id glance.ImageID) glance.Status {
	t.Helper()
	i, err := c.Image(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i.Status
}

// find returns an image from the listing, where it must be exactly once.
func find(t *testing.T, c *Catalog, since time.Time, id glance.ImageID) glance.Image {
	t.Helper()
	var found []glance.Image
	for i, err := range c.Images(t.Context(), since) {
		if err != nil {
			t.Fatal(err)
		}
		if i.ID == id {
			found = append(found, i)
		}
	}
	if len(found) != 1 {
		t.Fatalf("image %s is in the listing %d times, want once", id, len(found))
	}
	return found[0]
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
