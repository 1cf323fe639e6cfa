package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

var (
	errOver    = errors.New("the upload is over")
	errNoSpace = fmt.Errorf("%w; make room in the store or raise the quota", glance.ErrQuota)
	errStore   = errors.New("Glance may not write to its store, or the store is down: check the owner and the mount of its datadir")
)

// Upload gives a queued image its data: exactly size bytes of r, sent with that
// Content-Length. It never sends r twice; a token that has ended is renewed before
// r is touched. When r fails first, or ctx ends, the connection is cut, Glance puts
// the image back to queued, and r's error is wrapped. After any error the image may
// be in any state. Upload does not return while a Read of r is running, nor reads r
// afterwards. glance.ErrNotQueued, glance.ErrNoImage, glance.ErrQuota.
func (c *Catalog) Upload(ctx context.Context, id glance.ImageID, r io.Reader, size int64) error {
	doing := "upload image " + string(id)
	now, err := c.Image(ctx, id) // which renews the token, too
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if now.Status != glance.Queued {
		return fmt.Errorf("%s: %w: it is %s", doing, glance.ErrNotQueued, now.Status)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up := newUpload(r, size, watch(c.stall, cancel))
	resp, err := c.send(ctx, request{
		doing:       doing,
		method:      http.MethodPut,
		path:        imagePath(id, "file"),
		contentType: asBytes,
		upload:      up,
		means: map[int]error{
			http.StatusNotFound:              glance.ErrNoImage,
			http.StatusGone:                  glance.ErrNoImage,
			http.StatusConflict:              glance.ErrNotQueued,
			http.StatusRequestEntityTooLarge: errNoSpace,
			http.StatusServiceUnavailable:    errStore,
		},
	})
	left, readErr := up.end()
	if err == nil {
		resp.Body.Close()
	}
	switch {
	case readErr != nil:
		return fmt.Errorf("%s: read what to upload: %w", doing, readErr)
	case err != nil:
		return err
	case left > 0:
		return fmt.Errorf("%s: Glance answered %s with %d of %d bytes not sent", doing, resp.Status, left, size)
	}
	return nil
}

// upload is the body of a PUT that is sent once.
type upload struct {
	size int64
	dog  *watchdog

	mu    sync.Mutex // held while the source is read
	r     io.Reader
	left  int64
	used  bool
	over  bool
	fault error // the source's
}

func newUpload(r io.Reader, size int64, dog *watchdog) *upload {
	return &upload{size: size, dog: dog, r: io.LimitReader(r, size), left: size}
}

// attach makes u the body of req. Glance says before the body is sent whether it
// wants it: a refused token or an image that takes no data costs no byte.
func (u *upload) attach(req *http.Request) {
	req.GetBody = nil
	req.ContentLength = u.size
	req.Header.Set("X-Openstack-Image-Size", strconv.FormatInt(u.size, 10))
	if u.size == 0 {
		req.Body = http.NoBody
		return
	}
	req.Body = io.NopCloser(u)
	req.Header.Set("Expect", "100-continue")
}

// Read fails when the source ends before its size, so that the connection is cut
// and not ended.
func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return 0, errOver
	}
	u.used = true
	u.dog.pause()
	n, err := u.r.Read(p)
	u.dog.resume()
	u.left -= int64(n)
	if err == io.EOF && u.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		u.fault = err
	}
	return n, err
}

// begun reports whether a byte of the source may be gone.
func (u *upload) begun() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.used
}

// end waits for a running Read and lets no other begin: net/http may go on reading
// after it has returned an answer. It returns the bytes that were not read and the
// source's error.
func (u *upload) end() (left int64, fault error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dog.stop()
	u.over = true
	return u.left, u.fault
}

// watchdog cancels what stands still.
type watchdog struct {
	limit time.Duration
	timer *time.Timer
}

// watch cancels, with a cause that says so, once limit has passed; it starts running.
func watch(limit time.Duration, cancel context.CancelCauseFunc) *watchdog {
	return &watchdog{limit, time.AfterFunc(limit, func() { cancel(&stalledError{limit}) })}
}

func (w *watchdog) pause()  { w.timer.Stop() }
func (w *watchdog) resume() { w.timer.Reset(w.limit) }
func (w *watchdog) stop()   { w.timer.Stop() }

// stalledError says that Glance moved no byte for some time.
type stalledError struct{ limit time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("Glance moved no byte for %.0f s; is its store's mount hung, or the image's file shorter than it says?", e.limit.Seconds())
}
