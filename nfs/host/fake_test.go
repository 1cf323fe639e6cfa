package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// fake is a system whose files are below a directory and whose mounts and exports
// are kept as a kernel and exportfs(8) keep them, with faults on request.
type fake struct {
	linux
	t      *testing.T
	mounts []nfs.Mount
	nextID int
	table  []nfs.Export
	units  map[string]string // unit files that systemd knows, by name
	limit  string            // the largest rsize that the server grants

	systemd bool

	busy   bool   // umount says so
	idle   int    // so often systemctl start does nothing
	starts string // what systemctl start mounts
	hangs  bool   // systemctl start is cut off, and systemd goes on trying
	// hanging has the options that systemd will mount point with in the end.
	hanging nfs.Options
	steps   []string
	// The step with this number, from 1, fails before or after its effect; then no
	// other one is done if it is a crash.
	failAt       int
	after, crash bool
}

const (
	source = "dtn.example.org:/export/glance"
	point  = "/mnt/dtn"
	mount0 = "vers=3,rsize=131072,wsize=131072,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=192.0.2.1,mountvers=3,mountport=31415,mountproto=udp,local_lock=none,addr=192.0.2.1"
	export = "/export/glance"
	table0 = "sync,wdelay,hide,no_subtree_check,sec=sys,rw,secure,no_root_squash,no_all_squash"
)

var errFault = errors.New("injected")

// newFake returns a host with one mount and two exports.
func newFake(t *testing.T) (*Host, *fake) {
	t.Helper()
	f := &fake{linux: linux{root: t.TempDir()}, t: t, nextID: 100, units: map[string]string{}, limit: "1048576", starts: source}
	f.put("/var/lib/glance-dtn/lock", "") // which stays
	f.put("/etc/exports", "/srv/other 192.0.2.0/24(ro)\n")
	f.put("/etc/fstab", source+" "+point+" nfs vers=3 0 0\n")
	f.table = []nfs.Export{
		{Path: export, Clients: []nfs.Client{{Host: "ctrl.example.org", Options: nfs.ParseOptions(table0)}}},
		{Path: "/srv/other", Clients: []nfs.Client{{Host: "192.0.2.0/24", Options: nfs.ParseOptions("sync,wdelay,hide,no_subtree_check,sec=sys,ro,secure,root_squash,no_all_squash")}}},
	}
	f.mounts = []nfs.Mount{{ID: 1, Parent: 1, Device: "8:1", Root: "/", Point: "/", Options: nfs.Options{"rw"}, Type: "ext4", Source: "/dev/sda1", Super: nfs.Options{"rw"}}}
	f.mount(source, point, nfs.ParseOptions("rw,relatime,"+mount0))
	return &Host{dir: "/var/lib/glance-dtn", root: f.root, sys: f}, f
}

func (f *fake) put(name, text string) {
	f.t.Helper()
	name = filepath.Join(f.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

// withSystemd has systemd manage the host, with a unit for the mount unless it is
// empty.
func (f *fake) withSystemd(unit string) {
	f.systemd = true
	f.put("/run/systemd/system/x", "")
	f.put(unitDir+"/x", "")
	if unit != "" {
		f.units[UnitName(point)] = unit
		f.put(unit, "[Mount]\nOptions=vers=3\n")
	} else {
		f.put("/etc/fstab", "")
	}
}

// withAutomount has systemd make the mount when it is used.
func (f *fake) withAutomount() {
	f.withSystemd("/run/systemd/generator/mnt-dtn.mount")
	f.mounts = slices.Insert(f.mounts, 1, nfs.Mount{ID: 51, Parent: 1, Device: "0:9", Root: "/", Point: point, Type: "autofs", Source: "systemd-1", Super: nfs.Options{"rw"}})
	f.mounts[2].Parent = 51
	f.show()
}

// mount mounts as the kernel does, what it fills in included.
func (f *fake) mount(source, point string, o nfs.Options) {
	size, found := o.Get("rsize")
	if !found || len(size) > len(f.limit) || len(size) == len(f.limit) && size > f.limit {
		o = o.With("rsize=" + f.limit)
	}
	own, super := nfs.Options{"rw"}, nfs.Options{"rw"}
	for _, option := range o {
		if isUnseen(option) {
			continue
		}
		switch name, _, _ := strings.Cut(option, "="); name {
		case "ro", "noatime", "relatime":
			own = own.With(option)
		case "rw", "async", "mountaddr", "addr", "mountvers", "mountport", "mountproto", "namlen":
		default:
			super = append(super, option)
		}
	}
	super = append(super, nfs.ParseOptions("namlen=255,mountaddr=192.0.2.1,mountvers=3,mountport=31415,mountproto=udp,addr=192.0.2.1")...)
	slices.Sort(super[1:]) // some fixed order
	f.nextID++
	parent := 1
	for _, m := range f.mounts {
		if m.Point == point {
			parent = m.ID
		}
	}
	f.mounts = append(f.mounts, nfs.Mount{ID: f.nextID, Parent: parent, Device: fmt.Sprintf("0:%d", f.nextID), Root: "/", Point: point, Options: own, Type: "nfs", Source: source, Super: super})
	f.show()
}

// show writes the mounts where the kernel does.
func (f *fake) show() {
	var b strings.Builder
	for _, m := range f.mounts {
		b.WriteString(m.String() + "\n")
	}
	f.put("/proc/self/mountinfo", b.String())
}

// step does one thing that changes the system, unless it is to fail.
func (f *fake) step(what string, do func() error) error {
	f.steps = append(f.steps, what)
	n := len(f.steps)
	if f.failAt > 0 && (n == f.failAt && !f.after || f.crash && n > f.failAt) {
		return fmt.Errorf("%s: %w", what, errFault)
	}
	err := do()
	if n == f.failAt {
		err = errors.Join(err, fmt.Errorf("%s: %w", what, errFault))
	}
	return err
}

func (f *fake) write(name, text string) error {
	return f.step("write "+name, func() error { return f.linux.write(name, text) })
}

func (f *fake) remove(name string, dir bool) error {
	return f.step("remove "+name, func() error { return f.linux.remove(name, dir) })
}

func (f *fake) run(ctx context.Context, name string, args ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	line := name + " " + strings.Join(args, " ")
	switch {
	case name == "systemctl" && len(args) > 1 && strings.HasPrefix(args[len(args)-1], "-") && args[len(args)-2] != "--":
		return "", fmt.Errorf("%s: invalid option", line)
	case line == "exportfs -s":
		if f.table == nil {
			return "", exec.ErrNotFound
		}
		var b strings.Builder
		for _, e := range f.table {
			b.WriteString(e.String() + "\n")
		}
		return b.String(), nil
	case strings.HasPrefix(line, "systemctl show --property=ActiveState "):
		if f.hanging != nil {
			return "activating\n", nil
		}
		return "inactive\n", nil
	case strings.HasPrefix(line, "systemctl show "):
		unit, state := args[len(args)-1], ""
		if _, err := os.Lstat(filepath.Join(f.root, unitDir, "remote-fs.target.wants", unit)); err == nil {
			state = "enabled"
		}
		var dropIns []string
		if name := filepath.Join(unitDir, unit+".d", dropIn); f.units[unit] != "" {
			if _, err := os.Stat(filepath.Join(f.root, name)); err == nil {
				dropIns = append(dropIns, name)
			}
		}
		return fmt.Sprintf("UnitFileState=%s\nDropInPaths=%s\nFragmentPath=%s\n", state, strings.Join(dropIns, " "), f.units[unit]), nil
	}
	return "", f.step(line, func() error { return f.do(line, name, args) })
}

func (f *fake) do(line, name string, args []string) error {
	last := args[len(args)-1]
	switch {
	case strings.HasPrefix(line, "exportfs -i -o "):
		for i, e := range f.table {
			if c := e.Clients[0]; last == nfs.JoinSource(c.Host, e.Path) {
				f.table[i].Clients = []nfs.Client{{Host: c.Host, Options: exportfsOrder(nfs.ParseOptions(args[2]))}}
				return nil
			}
		}
		return fmt.Errorf("%s: not in the table", last)
	case name == "umount":
		i := f.top(last)
		if i < 0 {
			return fmt.Errorf("umount: %s: not mounted", last)
		}
		if f.busy && args[0] != "-l" {
			return fmt.Errorf("umount.nfs: %s: device is busy", last)
		}
		f.mounts = slices.Delete(f.mounts, i, i+1)
		f.show()
		return nil
	case strings.HasPrefix(line, "mount --fstab "):
		entries, err := parseFile(filepath.Join(f.root, args[1]), nfs.ParseFstab)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Point == last {
				return f.nfsMount(e.Source, e.Point, e.Options)
			}
		}
		return fmt.Errorf("mount: %s: can't find in %s", last, args[1])
	case strings.HasPrefix(line, "mount -t nfs -o remount,"):
		i := f.top(last)
		if i < 0 || f.mounts[i].Source != args[4] {
			return fmt.Errorf("mount: %s: not mounted", last)
		}
		m := &f.mounts[i]
		o := nfs.ParseOptions(args[3])[1:]
		m.Super = slices.DeleteFunc(m.Super, func(s string) bool { return s == "sync" })
		m.Options = nfs.Options{"rw"}
		for _, option := range o {
			switch option {
			case "sync":
				m.Super = append(m.Super, option)
				slices.Sort(m.Super[1:])
			case "ro", "noatime", "relatime":
				m.Options = m.Options.With(option)
			case "rw", "async":
			default:
				return fmt.Errorf("mount.nfs: an incorrect mount option was specified: %s", option)
			}
		}
		f.show()
		return nil
	case strings.HasPrefix(line, "mount -t nfs -o "):
		return f.nfsMount(args[4], last, nfs.ParseOptions(args[3]))
	case line == "systemctl daemon-reload":
		name := UnitName(point)
		if own := filepath.Join(unitDir, name); f.units[name] == "" || f.units[name] == own {
			f.units[name] = ""
			if _, err := os.Stat(filepath.Join(f.root, own)); err == nil {
				f.units[name] = own
			}
		}
		return nil
	case strings.HasPrefix(line, "systemctl start "):
		if f.top(point) >= 0 {
			return nil
		}
		var o nfs.Options
		for _, file := range []string{f.units[last], filepath.Join(unitDir, last+".d", dropIn)} {
			text, _ := os.ReadFile(filepath.Join(f.root, file))
			for l := range strings.Lines(string(text)) {
				if list, found := strings.CutPrefix(l, "Options="); found {
					o = nfs.ParseOptions(strings.TrimSpace(list))
				}
			}
		}
		if o == nil {
			return fmt.Errorf("unit %s not found", last)
		}
		if f.idle--; f.idle >= 0 {
			return nil
		}
		if f.hangs {
			f.hanging = o
			return errors.New("it took more than 3m0s")
		}
		return f.nfsMount(f.starts, point, o)
	case strings.HasPrefix(line, "systemctl stop --job-mode=ignore-dependencies "):
		f.hanging = nil
		return nil
	}
	return fmt.Errorf("unexpected command %q", line)
}

func (f *fake) nfsMount(source, point string, o nfs.Options) error {
	if slices.Contains(o, "nosuchoption") {
		return errors.New("mount.nfs: an incorrect mount option was specified")
	}
	f.mount(source, point, o)
	return nil
}

// top returns the index of the mount that is seen at point, an automount aside, or -1.
func (f *fake) top(point string) int {
	for i, m := range slices.Backward(f.mounts) {
		if m.Point == point && m.Type != "autofs" {
			return i
		}
	}
	return -1
}

// exportfsOrder puts options into the order in which exportfs(8) prints them.
func exportfsOrder(o nfs.Options) nfs.Options {
	e, err := o.Export()
	if err != nil {
		return nil
	}
	access := "rw"
	if e.ReadOnly {
		access = "ro"
	}
	mode := "async"
	if e.Sync {
		mode = "sync"
	}
	return nfs.ParseOptions(mode + strings.TrimPrefix(strings.ReplaceAll(table0, "sec=sys,rw", "sec=sys,"+access), "sync"))
}

// snapshot is all that an undo has to restore, as text: files, mounts and table. Of
// the mounts, what the kernel fills in is left out.
func (f *fake) snapshot() string {
	var b strings.Builder
	err := filepath.WalkDir(f.root, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(name, f.root)
		if strings.HasPrefix(rel, "/var/lib/glance-dtn/scratch") || strings.HasPrefix(rel, "/proc") {
			return nil
		}
		if d.IsDir() {
			fmt.Fprintf(&b, "%s/\n", rel)
			return nil
		}
		text, err := os.ReadFile(name)
		fmt.Fprintf(&b, "%s: %q\n", rel, text)
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, m := range f.mounts {
		fmt.Fprintf(&b, "%s on %s: %s\n", m.Source, m.Point, m.Again())
	}
	for _, e := range f.table {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}
