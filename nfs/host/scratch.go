package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	point, err := h.scratchPoint()
	if err != nil {
		return err
	}
	if err := h.clear(ctx, point, true); err != nil {
		return fmt.Errorf("unmount what an earlier scratch mount has left: %w", err)
	}
	if err := os.MkdirAll(h.path(point), 0o700); err != nil {
		return err
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

// Unscratch unmounts what a Scratch that was killed has left, and says so in a sentence;
// nothing where there is nothing. In a dry run it only says it.
func (h *Host) Unscratch(ctx context.Context, dryRun bool) (says []string, err error) {
	point, err := h.scratchPoint()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	mounts, err := h.mounts()
	if err != nil || len(stack(mounts, point)) == 0 {
		return nil, err
	}
	says = []string{fmt.Sprintf("Unmount %s.", point)}
	if dryRun {
		return says, nil
	}
	lock, err := lockDir(h.path(filepath.Dir(point)))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := h.clear(ctx, point, true); err != nil {
		return nil, err
	}
	return says, nil
}

// scratchPoint returns the mount point of Scratch, as the kernel tells it; fs.ErrNotExist
// where there was never one. It does not touch what is mounted there, whose server may
// not answer.
func (h *Host) scratchPoint() (string, error) {
	dir, err := filepath.EvalSymlinks(h.path(filepath.Join(h.dir, "scratch")))
	if err != nil {
		return "", err
	}
	return filepath.Join(strings.TrimPrefix(dir, h.root), "mnt"), nil
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
