package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
)

// system is what a Host changes the world by.
type system interface {
	// run ends within its patience. Its error has what the command wrote to stderr;
	// errors.Is(err, exec.ErrNotFound) where the command is not installed.
	run(ctx context.Context, name string, args ...string) (stdout string, err error)
	// write replaces a file and makes its directory; durable.WriteFile.
	write(name, text string) error
	// remove removes a file, if it is there, and whatever write has left of it; then
	// its directory, if that is asked for and it is empty.
	remove(name string, dir bool) error
}

// linux is the system that this process runs on. Files are below root.
type linux struct{ root string }

// patience is how long a command may take: longer than mount(8) tries to reach a
// server, which is two minutes (retry= of nfs(5)), so that its own words are told.
const patience = 3 * time.Minute

func (linux) run(ctx context.Context, name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/usr/sbin/" + name) // cron's PATH has no sbin
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = exec.ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it took more than %v", patience))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	// mount(8) starts mount.nfs(8): a group of their own, so that both are killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
		if said := strings.TrimSpace(stderr.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
	}
	return stdout.String(), err
}

func (l linux) write(name, text string) error {
	return durable.WritePath(filepath.Join(l.root, name), []byte(text), 0o644)
}

func (l linux) remove(name string, dirToo bool) error {
	dir, base := filepath.Split(filepath.Join(l.root, name))
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	others := 0
	for _, e := range entries {
		if e.Name() == base || strings.HasPrefix(e.Name(), "."+base+".") && durable.IsTemp(e.Name()) {
			err = errors.Join(err, durable.Remove(root, e.Name()))
		} else {
			others++
		}
	}
	if err == nil && dirToo && others == 0 {
		err = os.Remove(dir)
	}
	if err != nil {
		return fmt.Errorf("in %s: %w", dir, err)
	}
	return nil
}
