package host

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/nfs"
)

// Wish names options that are to hold for a mount or for an export of this host.
type Wish struct {
	Mount string // the mount point of an NFS mount; empty: the wish is about Export

	Export string // the path of an export, as exportfs -s prints it
	Client string // of the export, as exportfs -s prints it; empty: all its clients

	// Options are those that are to hold, as in sync or rsize=1048576. What
	// contradicts them goes, everything else stays.
	Options nfs.Options
}

// How a change is made.
const (
	KindExport  = "export"  // the server's table of exports; clients notice nothing
	KindRemount = "remount" // mount -o remount; programs notice nothing
	KindMount   = "mount"   // umount and mount; programs with open files are in the way
)

// Change is one step of a plan.
type Change struct {
	Kind   string `json:"kind"`
	Target string `json:"target"`           // mount point, or path of the export
	Client string `json:"client,omitempty"` // of the export
	Source string `json:"source,omitempty"` // of the mount

	// Asked is the wish; From are all options that hold, To those that will.
	Asked nfs.Options `json:"asked"`
	From  nfs.Options `json:"from"`
	To    nfs.Options `json:"to"`

	// File is the file of our own that has the change, and Text what it will say of
	// it; empty where no file is needed or none would help.
	File string `json:"file,omitempty"`
	Text string `json:"text,omitempty"`
	// Lasts says that the change holds after a restart of this host.
	Lasts bool `json:"lasts"`

	// Says is the change in sentences, for a person.
	Says string `json:"says"`
}

// key names what the change is about.
func (c Change) key() string { return key(c.Kind, c.Target, c.Client) }

func key(kind, target, client string) string {
	if kind == KindExport {
		return "export " + target + " to " + client
	}
	return "mount " + target
}

// Plan returns the changes that make the wishes hold, in their order; none where
// they do already. It fails where a wish is about what is not there or cannot be
// changed, and says what is there.
func Plan(s State, wishes ...Wish) ([]Change, error) {
	var changes []Change
	seen := map[string]bool{}
	for _, w := range wishes {
		plan := planMount
		if w.Mount == "" {
			plan = planExport
		}
		planned, err := plan(s, w)
		if err != nil {
			return nil, err
		}
		for _, c := range planned {
			if seen[c.key()] {
				return nil, fmt.Errorf("%s is in two wishes: put their options into one", c.key())
			}
			seen[c.key()] = true
			changes = append(changes, c)
		}
	}
	return changes, nil
}

func planExport(s State, w Wish) ([]Change, error) {
	if s.ExportsFault != nil {
		return nil, s.ExportsFault
	}
	if err := checkOptions(w.Options); err != nil {
		return nil, fmt.Errorf("export %s: %w", w.Export, err)
	}
	var changes []Change
	var there []string
	found := false
	for _, e := range s.Exports {
		for _, c := range e.Clients {
			there = append(there, nfs.JoinSource(c.Host, e.Path))
			if e.Path != w.Export || w.Client != "" && c.Host != w.Client {
				continue
			}
			found = true
			if holds(c.Options, w.Options, func(string) bool { return false }) {
				continue
			}
			to := c.Options.With(w.Options...)
			if _, err := to.Export(); err != nil {
				return nil, fmt.Errorf("export %s: %w", w.Export, err)
			}
			change := Change{
				Kind: KindExport, Target: e.Path, Client: c.Host,
				Asked: w.Options, From: c.Options, To: to,
			}
			if err := lastingExport(s, &change); err != nil {
				return nil, err
			}
			changes = append(changes, change)
		}
	}
	switch {
	case !found && len(there) == 0:
		return nil, fmt.Errorf("this host exports nothing: export %s first (exports(5))", w.Export)
	case !found:
		return nil, fmt.Errorf("%s is not exported to %s: the table has %s", w.Export, either(w.Client == "", "anyone", w.Client), strings.Join(there, ", "))
	}
	return changes, nil
}

// lastingExport says how long the change of an export holds, and completes it.
func lastingExport(s State, c *Change) error {
	c.Says = fmt.Sprintf("Export %s to %s with %s instead of %s, at once and for mounted clients too.",
		c.Target, c.Client, only(c.To, c.From), only(c.From, c.To))
	before, behind := elsewhere(s, c.Target, c.Client)
	if before != "" {
		c.Says += fmt.Sprintf(" It holds until the next exportfs -r or restart of the NFS server: %s exports it too, and is read first; to keep the change, write %s there.", before, only(c.To, c.From))
	} else {
		var err error
		if c.Text, err = nfs.FormatExports(nfs.Export{Path: c.Target, Clients: []nfs.Client{{Host: c.Client, Options: c.To}}}); err != nil {
			return err
		}
		c.File, c.Lasts = ownExports, true
		c.Says += fmt.Sprintf(" %s keeps it.", ownExports)
		if behind != "" {
			c.Says += fmt.Sprintf(" exportfs -r will call it a duplicate of the one in %s and end with status 1, but use it.", behind)
		}
	}
	if slices.Contains(c.To, "async") && !slices.Contains(c.From, "async") {
		c.Says += " With async, what clients were told to be on disk is lost when this server loses power."
	}
	return nil
}

// elsewhere returns the files besides our own that export path to the client, or to
// one that the table does not know by that name: the first that is read before our
// own and the first that is read after it.
func elsewhere(s State, exported, client string) (before, behind string) {
	var hosts []string
	for _, e := range s.Exports {
		for _, c := range e.Clients {
			if e.Path == exported && c.Host != client {
				hosts = append(hosts, c.Host)
			}
		}
	}
	for _, f := range s.Files {
		for _, e := range f.Exports {
			is := func(c nfs.Client) bool { return !slices.Contains(hosts, c.Host) }
			if f.Name == ownExports || e.Path != exported || !slices.ContainsFunc(e.Clients, is) {
				continue
			}
			first := &behind
			if f.Name == exportsFile || versionOrder(f.Name, ownExports) < 0 {
				first = &before
			}
			if *first == "" {
				*first = f.Name
			}
		}
	}
	return before, behind
}

func planMount(s State, w Wish) ([]Change, error) {
	m, err := s.At(w.Mount)
	if err != nil {
		return nil, err
	}
	if err := checkOptions(w.Options); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Point, err)
	}
	if all := stack(s.Mounts, m.Point); len(all) > 1 {
		under := all[len(all)-2]
		return nil, fmt.Errorf("%s of type %s is mounted at %s too, under %s: unmount that first (for autofs, take its line out of the maps of automount(8))", under.Source, under.Type, m.Point, m.Source)
	}
	if m.Root != "/" {
		return nil, fmt.Errorf("%s is a bind mount of %s in %s: change the mount that it was made from", m.Point, m.Root, m.Source)
	}
	from := m.Again()
	if d, err := nfs.Differences(w.Options, from); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Point, err)
	} else if len(d) == 0 && holds(from, w.Options, nfs.Compared) {
		return nil, nil
	}
	to := from.With(w.Options...)
	if _, err := to.Mount(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Point, err)
	}
	c := Change{
		Kind: KindMount, Target: m.Point, Source: m.Source,
		Asked: w.Options, From: from, To: to,
	}
	was, is := only(from, to), only(to, from)
	if remountable(from, to) {
		c.Kind = KindRemount
		c.Says = fmt.Sprintf("Remount %s with %s instead of %s.", m.Point, is, was)
		var shared []string
		for _, other := range s.Mounts {
			if other.Device == m.Device && other.ID != m.ID {
				shared = append(shared, other.Point)
			}
		}
		if len(shared) > 0 {
			c.Says += fmt.Sprintf(" Except for noatime that holds for %s too, which has its superblock.", strings.Join(shared, ", "))
		}
	} else {
		c.Says = fmt.Sprintf("Unmount %s and mount it again with %s instead of %s.", m.Point, is, was)
	}
	if err := lastingMount(s, &c); err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Point, err)
	}
	return []Change{c}, nil
}

// lastingMount says how long the change of a mount holds, and completes it.
func lastingMount(s State, c *Change) (err error) {
	entry := nfs.Entry{Source: c.Source, Point: c.Target, Type: "nfs", Options: c.To}
	unit := UnitName(c.Target)
	known := s.Units[c.Target]
	at := slices.IndexFunc(s.Fstab, func(e nfs.Entry) bool { return e.Point == c.Target })
	switch {
	case s.Systemd && known.Path != "" && !known.Ours:
		c.File, c.Lasts = path.Join(unitDir, unit+".d", dropIn), true
		c.Text, err = mountDropIn(c.To, unseen(known.Options))
		c.Says += fmt.Sprintf(" %s keeps it.", c.File)
	case s.FstabFault != nil && known.Path == "" && c.Kind == KindMount:
		return s.FstabFault
	case s.Systemd && known.Path == "" && c.Kind == KindMount && at >= 0:
		// Our own unit would stand before the one that systemd is about to make.
		return fmt.Errorf("systemd does not know yet what %s says of it: run systemctl daemon-reload, then plan again", fstabFile)
	case s.Systemd && (known.Ours || c.Kind == KindMount):
		c.File, c.Lasts = path.Join(unitDir, unit), known.Enabled
		c.Text, err = mountUnit(entry, unseen(known.Options))
		if c.Lasts {
			c.Says += fmt.Sprintf(" %s keeps it.", c.File)
		} else {
			c.Says += fmt.Sprintf(" The mount was made by hand, so nothing makes it when this host starts, as before; systemctl enable %s would.", unit)
		}
	case !s.Systemd && c.Kind == KindMount:
		if at >= 0 && s.Fstab[at].Source == c.Source {
			entry.Options = slices.Concat(c.To, unseen(s.Fstab[at].Options))
		}
		c.File, c.Text = s.fstab, entry.String()+"\n"
		fallthrough
	default:
		c.Says += " It holds until somebody unmounts it or this host restarts"
		if at >= 0 {
			c.Says += fmt.Sprintf(": to keep it, change the line of %s", fstabFile)
		}
		c.Says += "."
	}
	return err
}

// unseen returns those options of a file that say how something is mounted: a live
// mount does not show them, and what stands for the file has to keep them. With
// retry= mount.nfs(8) tries for longer, without nofail the host's start waits for
// the mount (systemd.mount(5)), _netdev and x-... are for other programs.
func unseen(o nfs.Options) nfs.Options {
	return slices.DeleteFunc(slices.Clone(o), func(option string) bool { return !isUnseen(option) })
}

func isUnseen(option string) bool {
	name, _, _ := strings.Cut(option, "=")
	return slices.Contains([]string{"bg", "fg", "retry", "nofail", "_netdev", "auto", "noauto", "comment"}, name) ||
		strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}

// checkOptions refuses what is no option of a mount or an export.
func checkOptions(o nfs.Options) error {
	if len(o) == 0 {
		return errors.New("no option is wished for")
	}
	for _, option := range o {
		name, _, _ := strings.Cut(option, "=")
		switch {
		case name == "" || strings.ContainsAny(option, "\n\x00()") || !slices.Equal(nfs.ParseOptions(option), nfs.Options{option}):
			return fmt.Errorf("%q is not one option", option)
		case isUnseen(option), slices.Contains([]string{"remount", "bind", "move", "defaults", "user", "nouser", "users", "nousers", "owner", "group"}, name):
			return fmt.Errorf("option %q is about how something is mounted, not about a mount that is there", option)
		}
	}
	return nil
}

// holds reports whether all options stand in the list, those aside that are judged
// in another way.
func holds(list, options nfs.Options, judged func(option string) bool) bool {
	return !slices.ContainsFunc(options, func(o string) bool { return !judged(o) && !shows(list, o) })
}

// silent are the defaults of which a mount shows the opposites alone.
var silent = strings.Fields("suid dev exec acl cto rdirplus resvport sharecache")

// shows reports whether an option stands in the list, or is a default that nothing
// there contradicts.
func shows(list nfs.Options, option string) bool {
	return slices.Contains(list, option) || slices.Contains(silent, option) && len(list.With(option)) > len(list)
}

// vfs are the options that mount -o remount changes: those of the VFS; see mount(8),
// "Filesystem-independent mount options".
var vfs = strings.Fields(`ro rw sync async noatime atime relatime norelatime strictatime nostrictatime
	nodiratime diratime nosuid suid nodev dev noexec exec`)

// flags returns the options of the VFS, complete for those that are either way, so
// that a remount takes nothing from the mount that it does not say.
func flags(o nfs.Options) nfs.Options {
	all := nfs.Options{"rw", "async"}
	return all.With(slices.DeleteFunc(slices.Clone(o), func(option string) bool { return !slices.Contains(vfs, option) })...)
}

// remountable reports whether nothing but options of the VFS differ.
func remountable(a, b nfs.Options) bool {
	rest := func(o nfs.Options) nfs.Options {
		o = slices.DeleteFunc(slices.Clone(o), func(option string) bool { return slices.Contains(vfs, option) })
		slices.Sort(o)
		return o
	}
	return slices.Equal(rest(a), rest(b))
}

// only returns those options of a that b has not, for a sentence.
func only(a, b nfs.Options) string {
	o := without(a, b)
	if len(o) == 0 {
		return "the default"
	}
	return o.String()
}

func either[T any](is bool, yes, no T) T {
	if is {
		return yes
	}
	return no
}
