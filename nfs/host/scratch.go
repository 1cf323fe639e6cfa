package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// Scratch mounts source (host:/path) with the options at a mount point of its own,
// calls use with that, and unmounts it. The mount shares neither options nor page
// cache with others of the same server (nosharecache of nfs(5)); it does share the
// connections, and so the nconnect of the first one. It is unmounted also when use
// fails, and lazily where use has left files open, which is an error. What a killed
// process has left is unmounted by the next call. One Scratch runs at a time in a
// state directory: durable.ErrLocked.
func (h *Host) Scratch(ctx context.Context, source string, options nfs.Options, use func(dir string) error) (err error) {
	if _, _, err := nfs.SplitSource(source); err != nil {
		return err
	}
	if _, err := options.Mount(); err != nil {
		return fmt.Errorf("scratch mount of %s: %w", source, err)
	}
	dir := filepath.Join(h.dir, "scratch")
	lock, err := lockDir(h.path(dir))
	if err != nil {
		return err
	}
	defer lock.Close()
	point := filepath.Join(dir, "mnt")
	if err := os.MkdirAll(h.path(point), 0o700); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(h.path(point)) // as the kernel will tell it
	if err != nil {
		return err
	}
	point = strings.TrimPrefix(real, h.root)
	if err := h.clear(ctx, point, true); err != nil {
		return fmt.Errorf("unmount what an earlier scratch mount has left: %w", err)
	}
	defer func() {
		err = errors.Join(err, h.clear(context.WithoutCancel(ctx), point, false))
	}()
	o := options.With("nosharecache", "retry=0") // fail at once
	if _, err := h.sys.run(ctx, "mount", "-t", "nfs", "-o", o.String(), source, point); err != nil {
		return err
	}
	return use(point)
}

// clear unmounts all that is mounted at point. A busy mount is unmounted lazily,
// which is an error unless it is expected.
func (h *Host) clear(ctx context.Context, point string, expected bool) error {
	mounts, err := h.mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(stack(mounts, point)) {
		err := h.unmount(ctx, m, expected)
		if err != nil && !expected {
			err = errors.Join(err, h.unmount(ctx, m, true))
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}
