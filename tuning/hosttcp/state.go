package hosttcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// keys are the settings that are looked at, in the order in which they are set.
var keys = []string{
	keyCongestion, keyAllowed, keyAvailable, keyQdisc,
	"net.core.rmem_max", "net.core.wmem_max", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", keyTCPMem,
	"net.ipv4.tcp_mtu_probing", "net.ipv4.tcp_no_metrics_save",
	"net.ipv4.tcp_window_scaling", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_sack", "net.ipv4.tcp_moderate_rcvbuf",
	"net.core.netdev_max_backlog", "net.core.netdev_budget", "net.core.netdev_budget_usecs",
}

// Value is one setting as it is.
type Value struct {
	Text string // as the kernel writes it, without the newline
	// Status is empty for one that this process may set, else Absent, ReadOnly or
	// NotPermitted.
	Status Status
	// Before is what it was before the first Apply, where it has what Apply gave it.
	Before *string
}

// State is what decides on this host's TCP at one moment.
type State struct {
	Values  map[string]Value // of all settings; those of the network namespace of the calling thread
	Modules []string         // congestion controls (tcp_...) and queueing disciplines (sch_...) that the kernel would load
	Memory  int64            // bytes
	Page    int64            // bytes of a page of memory

	// Files has, by setting, the files of others that set it when the host starts; Later
	// has those of them that are read after our own.
	Files, Later map[string][]string

	NIC      NIC    // the one that the path begins with
	Governor string // of the first CPU's frequency; empty: the host does not say
}

// Host changes the TCP of this host.
type Host struct {
	dir  string
	root string                        // above all files; tests have one
	set  func(key, value string) error // Host.write; tests break it
	nic  func(name string) (NIC, error)
}

// New returns a Host that keeps its undo record in dir, an absolute path, which is made,
// for this user alone, when it is first needed.
func New(dir string) *Host {
	h := &Host{dir: filepath.Clean(dir), root: "/"}
	h.set, h.nic = h.write, h.readNIC
	return h
}

func (h *Host) path(name string) string { return filepath.Join(h.root, name) }

// Files of the system.
const (
	sysctls = "/proc/sys"
	ownDir  = "/etc/sysctl.d"
	ownName = "zz-glance-dtn.conf" // behind 99-sysctl.conf, which is /etc/sysctl.conf
)

// Read tells the state of this host, with the NIC of that name; empty: the one that the
// default route leaves by, if there is one. It changes nothing.
func (h *Host) Read(ctx context.Context, nic string) (State, error) {
	s := State{Values: map[string]Value{}, Page: int64(os.Getpagesize())}
	kept, err := h.kept()
	if err != nil {
		return State{}, err
	}
	for _, key := range keys {
		v, err := h.value(key)
		if err != nil {
			return State{}, err
		}
		for _, k := range kept.Settings {
			if k.Key == key && k.holds(v.Text) {
				v.Before = &k.Before
			}
		}
		s.Values[key] = v
	}
	if s.Files, s.Later, err = h.elsewhere(); err != nil {
		return State{}, err
	}
	if s.NIC, err = h.nic(nic); err != nil {
		return State{}, err
	}
	s.Modules, s.Memory = h.modules(), h.memory()
	s.Governor = h.line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
	return s, ctx.Err()
}

// file is the name of a setting's file below /proc/sys.
func file(key string) string { return strings.ReplaceAll(key, ".", "/") }

// value reads a setting and finds out, without changing it, whether it could be set.
func (h *Host) value(key string) (Value, error) {
	root, err := os.OpenRoot(h.path(sysctls))
	if err != nil {
		return Value{}, err
	}
	defer root.Close()
	f, err := root.Open(file(key))
	if errors.Is(err, fs.ErrNotExist) {
		return Value{Status: Absent}, nil
	} else if err != nil {
		return Value{}, err
	}
	text, err := io.ReadAll(f)
	info, statErr := f.Stat()
	if err := errors.Join(err, statErr, f.Close()); err != nil {
		return Value{}, fmt.Errorf("read %s: %w", key, err)
	}
	v := Value{Text: strings.TrimSuffix(string(text), "\n")}
	w, err := root.OpenFile(file(key), os.O_WRONLY, 0)
	switch {
	case err == nil:
		err = w.Close()
	case errors.Is(err, unix.EROFS), info.Mode()&0o222 == 0:
		v.Status, err = ReadOnly, nil
	case errors.Is(err, fs.ErrPermission):
		v.Status, err = NotPermitted, nil
	}
	return v, err
}

// write sets a setting.
func (h *Host) write(key, value string) error {
	root, err := os.OpenRoot(h.path(sysctls))
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(file(key), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// line is the one line of a file; empty where it cannot be read.
func (h *Host) line(name string) string {
	text, _ := os.ReadFile(h.path(name))
	return strings.TrimSpace(string(text))
}

// memory returns the bytes of memory that this host has; 0: not known.
func (h *Host) memory() int64 {
	for l := range strings.Lines(h.line("/proc/meminfo")) {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// modules returns those of State.Modules.
func (h *Host) modules() (all []string) {
	dir := path.Join("/lib/modules", h.line("/proc/sys/kernel/osrelease"))
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		for l := range strings.Lines(h.line(path.Join(dir, name))) {
			file, _, _ := strings.Cut(l, ".ko")
			if dir, name := path.Split(file); strings.HasSuffix(dir, "net/ipv4/") && strings.HasPrefix(name, "tcp_") || strings.HasSuffix(dir, "net/sched/") {
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// elsewhere returns, by setting, the files of others that set it when the host starts;
// sysctl.d(5).
func (h *Host) elsewhere() (all, later map[string][]string, err error) {
	all, later = map[string][]string{}, map[string][]string{}
	seen := map[string]bool{ownName: true}
	read := func(name string, isLater bool) error {
		text, err := os.ReadFile(h.path(name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		} else if err != nil {
			return err
		}
		for _, key := range settings(string(text)) {
			if !slices.Contains(all[key], name) {
				all[key] = append(all[key], name)
				if isLater {
					later[key] = append(later[key], name)
				}
			}
		}
		return nil
	}
	for _, dir := range []string{ownDir, "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"} {
		entries, err := os.ReadDir(h.path(dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			if seen[e.Name()] || !strings.HasSuffix(e.Name(), ".conf") { // one of the same name is hidden by the first
				continue
			}
			seen[e.Name()] = true
			if err := read(path.Join(dir, e.Name()), e.Name() > ownName); err != nil {
				return nil, nil, err
			}
		}
	}
	return all, later, read("/etc/sysctl.conf", true) // by sysctl --system; systemd knows it as 99-sysctl.conf
}

// settings returns the settings that a file of sysctl.d(5) names, with dots.
func settings(text string) (all []string) {
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		name, _, found := strings.Cut(l, "=")
		if !found || strings.ContainsAny(l[:1], "#;") {
			continue
		}
		name = strings.TrimSpace(strings.TrimPrefix(name, "-"))
		if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
			name = strings.NewReplacer("/", ".", ".", "/").Replace(name)
		}
		all = append(all, name)
	}
	return all
}
