package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holder is a process that keeps a mount from being unmounted.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	What    string `json:"what"` // as in "fd /mnt/image" or "cwd /mnt": see proc(5)
}

// BusyError says that a mount is in use.
type BusyError struct {
	Dir     string
	Holders []Holder // those that this user may see
	Mounts  []string // mount points on it
}

func (e *BusyError) Error() string {
	var by []string
	for _, h := range e.Holders {
		by = append(by, fmt.Sprintf("process %d (%s) has %s", h.PID, h.Command, h.What))
	}
	if len(e.Mounts) > 0 {
		return fmt.Sprintf("%s is in use: %s is mounted on it: unmount that first", e.Dir, strings.Join(e.Mounts, ", "))
	}
	if len(by) == 0 {
		return e.Dir + " is in use, and no process is seen to hold it: look for swap files, loop devices (losetup -a) and exports (exportfs -s) below it, or force a lazy unmount"
	}
	return fmt.Sprintf("%s is in use: %s: stop what uses it, or force a lazy unmount, with which open files stay on the old mount", e.Dir, strings.Join(by, "; "))
}

// Holders returns the processes that have a working directory, a root directory, a
// program or an open or mapped file below dir, each once, as far as this user may
// see. It reads links and does not follow them, so that a server that does not
// answer does not hang it. Processes in other mount namespaces are told too: theirs
// may be copies of the mount, which hold it as well. What is not a process, like a
// swap file, is not seen: umount(8) has the last word.
func (h *Host) Holders(dir string) ([]Holder, error) {
	proc := h.path("/proc")
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("look who uses %s: %w", dir, err)
	}
	var holders []Holder
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p := filepath.Join(proc, e.Name())
		if what := uses(p, dir); what != "" {
			command, _ := os.ReadFile(filepath.Join(p, "comm")) // none: it has just ended
			holders = append(holders, Holder{pid, string(bytes.TrimSpace(command)), what})
		}
	}
	return holders, nil
}

// uses returns the first thing below dir that the process of /proc/PID has; errors
// are processes that have ended, and those of others.
func uses(p, dir string) string {
	at := func(name string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
	for _, link := range []string{"cwd", "root", "exe"} {
		if to, err := os.Readlink(filepath.Join(p, link)); err == nil && at(to) {
			return link + " " + to
		}
	}
	fds, _ := os.ReadDir(filepath.Join(p, "fd"))
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(p, "fd", fd.Name())); err == nil && at(to) {
			return "fd " + to
		}
	}
	maps, _ := os.ReadFile(filepath.Join(p, "maps"))
	for line := range strings.Lines(string(maps)) {
		// address, permissions, offset, device, inode, and the path, which may have spaces
		if _, to, found := strings.Cut(strings.TrimSuffix(line, "\n"), " /"); found && at("/"+to) {
			return "map /" + to
		}
	}
	return ""
}
