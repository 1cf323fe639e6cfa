package nfs

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options is a list of options as mount(8) and exports(5) write it, each "name" or
// "name=value", in order. Where two contradict each other, the later one holds.
type Options []string

// ParseOptions splits a comma-separated list, as it stands behind mount -o. Commas
// within double quotes do not split (SELinux contexts have them), empty options are
// left out.
func ParseOptions(list string) Options {
	var o Options
	quoted, start := false, 0
	for i := 0; i <= len(list); i++ {
		switch {
		case i == len(list) || list[i] == ',' && !quoted:
			if start < i {
				o = append(o, list[start:i])
			}
			start = i + 1
		case list[i] == '"':
			quoted = !quoted && strings.IndexByte(list[i+1:], '"') >= 0
		}
	}
	return o
}

// String returns the list as mount -o and exports(5) take it.
func (o Options) String() string { return strings.Join(o, ",") }

// Get returns the value of the last option of that name, empty for one without a
// value, and whether there is one.
func (o Options) Get(name string) (value string, found bool) {
	for _, option := range slices.Backward(o) {
		if n, v, _ := strings.Cut(option, "="); n == name {
			return v, true
		}
	}
	return "", false
}

// With returns a new list in which the given options hold: they stand at its end,
// and what they replace is gone, such as async and an older sync where sync is
// given. In an export with several sec= lists it is not for the options that these
// lists hold (ro, rw, root_squash, all_squash, secure and their opposites).
func (o Options) With(options ...string) Options {
	given := map[string]bool{}
	for _, option := range options {
		given[subject(option)] = true
	}
	with := slices.DeleteFunc(slices.Clone(o), func(option string) bool { return given[subject(option)] })
	return append(with, options...)
}

// subject names what an option decides on: its own name, or the first of the names
// that contradict each other or mean the same.
func subject(option string) string {
	name, _, _ := strings.Cut(option, "=")
	if s, known := subjects[name]; known {
		return s
	}
	return name
}

var subjects = func() map[string]string {
	m := map[string]string{}
	for _, names := range []string{
		"rw ro",
		"sync async",
		"noatime atime relatime norelatime strictatime nostrictatime",
		"nosuid suid",
		"nodev dev",
		"noexec exec",
		"noauto auto",
		"user nouser users nousers",
		// nfs(5)
		"vers nfsvers minorversion v2 v3 v4 v4.0 v4.1 v4.2",
		"proto tcp udp rdma",
		"hard soft softerr",
		"softreval nosoftreval",
		"bg fg",
		"ac noac",
		"acl noacl no_acl",
		"cto nocto",
		"fsc nofsc",
		"intr nointr",
		"lock nolock",
		"rdirplus nordirplus",
		"resvport noresvport",
		"sharecache nosharecache",
		// exports(5)
		"all_squash no_all_squash",
		"crossmnt nocrossmnt",
		"hide nohide",
		"mountpoint mp",
		"pnfs no_pnfs",
		"root_squash no_root_squash",
		"secure insecure",
		"secure_locks insecure_locks auth_nlm no_auth_nlm",
		"subtree_check no_subtree_check",
		"wdelay no_wdelay",
	} {
		same := strings.Fields(names)
		for _, name := range same {
			m[name] = same[0]
		}
	}
	return m
}()

// MountOptions is what a list of options means to the NFS client of Linux: those
// that this project decides on, with the defaults of nfs(5) for what is not said.
// Of a live mount mount -o remount changes ReadOnly, NoAtime and Sync; it refuses to
// change the others, which need umount and mount.
type MountOptions struct {
	ReadOnly bool
	NoAtime  bool

	// Sync says that write(2) returns when the server has the data, instead of when
	// the page cache has. noac implies it.
	Sync bool

	Version    string // "3", "4.2", ...; empty: the highest that the server offers
	Proto      string // "tcp", "tcp6", "udp", "udp6", "rdma"; empty: tcp
	Port       int    // of NFS; 0: what the server's portmapper says; NFSv4 has 2049
	MountProto string // of the MOUNT service, as Proto; NFSv3 only
	MountPort  int    // of the MOUNT service; 0: what the portmapper says; NFSv3 only
	Sec        string // security flavours, separated by colons; empty: what the server offers
	NConnect   int    // connections to the server, 1 to 16

	// RSize and WSize are the most bytes that one READ and one WRITE carry; 0: what
	// the server prefers. See GrantedSize for what becomes of them.
	RSize, WSize int64

	Recovery string        // "hard": try for ever; "soft" and "softerr": give up with EIO or ETIMEDOUT
	Timeo    time.Duration // before a request is sent anew; a multiple of 100 ms
	Retrans  int           // requests sent anew before Recovery decides

	// How long attributes of files and directories are taken from the cache: at
	// least, at most. Whole seconds; noac makes them 0.
	AcRegMin, AcRegMax, AcDirMin, AcDirMax time.Duration

	LookupCache string // "all", "positive" or "none"
	LocalLock   string // locks that the server does not see: "none", "flock", "posix", "all"; nolock: "all"
}

const maxInt32 = math.MaxInt32

// Mount reads the options of an NFS mount. It fails where a value is none that the
// option can have, and does not judge options that MountOptions does not name.
func (o Options) Mount() (MountOptions, error) {
	m := MountOptions{
		NConnect: 1, Recovery: "hard", Timeo: -1, Retrans: -1,
		AcRegMin: 3 * time.Second, AcRegMax: time.Minute, AcDirMin: 30 * time.Second, AcDirMax: time.Minute,
		LookupCache: "all",
	}
	var noac, nolock bool
	var minor string
	for _, option := range o {
		name, value, _ := strings.Cut(option, "=")
		var fault error
		number := func(least, most int64) int64 {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < least || n > most {
				fault = fmt.Errorf("option %q: want %s=N with N from %d to %d", option, name, least, most)
			}
			return n
		}
		word := func(words ...string) string {
			if !slices.Contains(words, value) {
				fault = fmt.Errorf("option %q: want %s= one of %s", option, name, strings.Join(words, ", "))
			}
			return value
		}
		seconds := func() time.Duration { return time.Duration(number(0, maxInt32)) * time.Second }
		switch name {
		case "ro", "rw":
			m.ReadOnly = name == "ro"
		case "sync", "async":
			m.Sync = name == "sync"
		case "noatime", "atime", "relatime", "strictatime":
			m.NoAtime = name == "noatime"
		case "vers", "nfsvers":
			m.Version, minor = value, ""
		case "v2", "v3", "v4", "v4.0", "v4.1", "v4.2":
			m.Version, minor = name[1:], ""
		case "minorversion":
			minor = strconv.FormatInt(number(0, 2), 10)
		case "proto":
			m.Proto = value
		case "tcp", "udp", "rdma":
			m.Proto = name
		case "port":
			m.Port = int(number(0, math.MaxUint16))
		case "mountproto":
			m.MountProto = value
		case "mountport":
			m.MountPort = int(number(0, math.MaxUint16))
		case "sec":
			m.Sec = value
		case "nconnect":
			m.NConnect = int(number(1, 16))
		case "rsize":
			m.RSize = number(0, math.MaxUint32)
		case "wsize":
			m.WSize = number(0, math.MaxUint32)
		case "hard", "soft", "softerr":
			m.Recovery = name
		case "timeo":
			m.Timeo = time.Duration(number(1, maxInt32)) * 100 * time.Millisecond
		case "retrans":
			m.Retrans = int(number(0, maxInt32))
		case "actimeo":
			m.AcRegMin = seconds()
			m.AcRegMax, m.AcDirMin, m.AcDirMax = m.AcRegMin, m.AcRegMin, m.AcRegMin
		case "acregmin":
			m.AcRegMin = seconds()
		case "acregmax":
			m.AcRegMax = seconds()
		case "acdirmin":
			m.AcDirMin = seconds()
		case "acdirmax":
			m.AcDirMax = seconds()
		case "ac", "noac":
			noac = name == "noac"
		case "lookupcache":
			if m.LookupCache = word("all", "pos", "positive", "none"); value == "pos" {
				m.LookupCache = "positive"
			}
		case "lock", "nolock":
			nolock = name == "nolock"
		case "local_lock":
			m.LocalLock = word("none", "flock", "posix", "all")
		}
		if fault != nil {
			return MountOptions{}, fault
		}
	}
	if m.Version == "4" && minor != "" {
		m.Version = "4." + minor
	}
	if strings.HasPrefix(m.Version, "4") && m.Port == 0 {
		m.Port = 2049
	}
	if noac {
		m.Sync = true
		m.AcRegMin, m.AcRegMax, m.AcDirMin, m.AcDirMax = 0, 0, 0, 0
	}
	if m.LocalLock == "" {
		m.LocalLock = "none"
		if nolock {
			m.LocalLock = "all"
		}
	}
	udp := strings.HasPrefix(m.Proto, "udp")
	if m.Timeo < 0 {
		m.Timeo = time.Minute
		if udp {
			m.Timeo = 1100 * time.Millisecond
		}
	}
	if m.Retrans < 0 {
		m.Retrans = 2
		if udp {
			m.Retrans = 3
		}
	}
	return m, nil
}

// Difference is an option of which a mount has another value than was asked for.
type Difference struct {
	Option  string `json:"option"`
	Asked   string `json:"asked"`
	Granted string `json:"granted"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: asked for %s, granted %s", d.Option, d.Asked, d.Granted)
}

// Differences compares the options that a mount was asked for with those that /proc
// tells of it (Mount.Effective, the Options of an Entry). The kernel refuses few: it
// rounds rsize and wsize, takes nconnect from an earlier mount of the same server,
// leaves out what it does not do, and says nothing. Only what was said is compared,
// in its order, and of it only what MountOptions names.
func Differences(asked, granted Options) ([]Difference, error) {
	a, err := asked.Mount()
	if err != nil {
		return nil, fmt.Errorf("options asked for: %w", err)
	}
	g, err := granted.Mount()
	if err != nil {
		return nil, fmt.Errorf("options granted: %w", err)
	}
	var d []Difference
	seen := map[string]bool{}
	for _, option := range asked {
		about := subject(option)
		for _, f := range mountFields {
			if seen[f.option] || !slices.Contains(f.subjects, about) {
				continue
			}
			seen[f.option] = true
			if was, is := f.value(a), f.value(g); was != is && !serverChooses(f.option, was, is) {
				d = append(d, Difference{f.option, was, is})
			}
		}
	}
	return d, nil
}

// Compared reports whether Differences can tell if an option, "name" or
// "name=value", was granted.
func Compared(option string) bool {
	about := subject(option)
	for _, f := range mountFields {
		if slices.Contains(f.subjects, about) {
			return true
		}
	}
	return false
}

// serverChooses reports whether asked leaves granted to the server's choice.
func serverChooses(option, asked, granted string) bool {
	switch option {
	case "vers":
		return asked == "4" && strings.HasPrefix(granted, "4.")
	case "sec":
		return slices.Contains(strings.Split(asked, ":"), granted)
	case "rsize", "wsize", "port", "mountport":
		return asked == "0"
	}
	return false
}

// mountFields has the fields of MountOptions, as /proc shows them, and the subjects
// that decide on each.
var mountFields = []struct {
	option   string
	subjects []string
	value    func(MountOptions) string
}{
	{"ro", []string{"rw"}, func(m MountOptions) string { return either(m.ReadOnly, "ro", "rw") }},
	{"sync", []string{"sync", "ac"}, func(m MountOptions) string { return either(m.Sync, "sync", "async") }},
	{"noatime", []string{"noatime"}, func(m MountOptions) string { return either(m.NoAtime, "noatime", "atime") }},
	{"vers", []string{"vers"}, func(m MountOptions) string { return m.Version }},
	{"proto", []string{"proto"}, func(m MountOptions) string { return m.Proto }},
	{"port", []string{"port"}, func(m MountOptions) string { return strconv.Itoa(m.Port) }},
	{"mountproto", []string{"mountproto"}, func(m MountOptions) string { return m.MountProto }},
	{"mountport", []string{"mountport"}, func(m MountOptions) string { return strconv.Itoa(m.MountPort) }},
	{"sec", []string{"sec"}, func(m MountOptions) string { return m.Sec }},
	{"nconnect", []string{"nconnect"}, func(m MountOptions) string { return strconv.Itoa(m.NConnect) }},
	{"rsize", []string{"rsize"}, func(m MountOptions) string { return strconv.FormatInt(m.RSize, 10) }},
	{"wsize", []string{"wsize"}, func(m MountOptions) string { return strconv.FormatInt(m.WSize, 10) }},
	{"hard", []string{"hard"}, func(m MountOptions) string { return m.Recovery }},
	{"timeo", []string{"timeo"}, func(m MountOptions) string { return strconv.FormatInt(int64(m.Timeo/(100*time.Millisecond)), 10) }},
	{"retrans", []string{"retrans"}, func(m MountOptions) string { return strconv.Itoa(m.Retrans) }},
	{"acregmin", []string{"acregmin", "actimeo", "ac"}, func(m MountOptions) string { return inSeconds(m.AcRegMin) }},
	{"acregmax", []string{"acregmax", "actimeo", "ac"}, func(m MountOptions) string { return inSeconds(m.AcRegMax) }},
	{"acdirmin", []string{"acdirmin", "actimeo", "ac"}, func(m MountOptions) string { return inSeconds(m.AcDirMin) }},
	{"acdirmax", []string{"acdirmax", "actimeo", "ac"}, func(m MountOptions) string { return inSeconds(m.AcDirMax) }},
	{"lookupcache", []string{"lookupcache"}, func(m MountOptions) string { return m.LookupCache }},
	{"local_lock", []string{"local_lock", "lock"}, func(m MountOptions) string { return m.LocalLock }},
}

func either(is bool, yes, no string) string {
	if is {
		return yes
	}
	return no
}

func inSeconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// Bounds of the Linux client on rsize and wsize (include/linux/nfs_xdr.h).
const (
	minIOSize     = 1 << 10
	defaultIOSize = 4 << 10
	maxIOSize     = 1 << 20
)

// GrantedSize predicts the rsize or wsize that this host's kernel makes of the one
// asked for, 0 for none, in bytes. The limit is the server's: rtmax or wtmax of
// FSINFO (RFC 1813, 3.3.19) where a size is asked for, rtpref or wtpref where none
// is; for the Linux server all are /proc/fs/nfsd/max_block_size. A size below 1024
// becomes 4096, one below a page the power of two below it, any other a multiple of
// a page, and none is above 1 MiB (nfs_io_size in fs/nfs/internal.h, Linux 6.1 and
// later over TCP; before, and over UDP, all are powers of two).
func GrantedSize(asked, limit int64) int64 { return grantedSize(asked, limit, int64(os.Getpagesize())) }

func grantedSize(asked, limit, page int64) int64 {
	if asked == 0 {
		return ioSize(limit, page)
	}
	size := ioSize(asked, page)
	if limit >= 512 && size > limit { // the client ignores a smaller limit
		size = ioSize(limit, page)
	}
	return size
}

func ioSize(size, page int64) int64 {
	switch {
	case size < minIOSize:
		size = defaultIOSize
	case size > maxIOSize:
		size = maxIOSize
	}
	if size >= page {
		return size - size%page
	}
	power := int64(minIOSize)
	for power*2 <= size {
		power *= 2
	}
	return power
}

// ExportOptions is what a list of options means to the NFS server of Linux: those
// that this project decides on, with the defaults of exports(5) for what is not said.
type ExportOptions struct {
	// Sync says that the server answers when its disk has the data. Without, a
	// power failure loses what clients were told to be safe.
	Sync bool

	WDelay       bool // wait for related writes before one is put on disk; only with Sync
	ReadOnly     bool
	Secure       bool // clients must use ports below 1024
	RootSquash   bool // root is AnonUID
	AllSquash    bool // everyone is AnonUID
	SubtreeCheck bool
	Hide         bool // file systems mounted below are not part of this export
	CrossMount   bool // file systems mounted below are exported with it

	AnonUID, AnonGID uint32
	FSID             string // "root", a number or a UUID; empty: from the device
	Sec              string // security flavours, separated by colons
}

// Export reads the options of one client of an export. It fails where a value is
// none that the option can have, and does not judge options that ExportOptions does
// not name. Where several sec= lists have options of their own, it tells the first.
func (o Options) Export() (ExportOptions, error) {
	e := ExportOptions{
		Sync: true, WDelay: true, ReadOnly: true, Secure: true, RootSquash: true, Hide: true,
		AnonUID: 65534, AnonGID: 65534, Sec: "sys",
	}
	lists := 0
	for _, option := range o {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "sync", "async":
			e.Sync = name == "sync"
		case "wdelay", "no_wdelay":
			e.WDelay = name == "wdelay"
		case "subtree_check", "no_subtree_check":
			e.SubtreeCheck = name == "subtree_check"
		case "hide", "nohide":
			e.Hide = name == "hide"
		case "crossmnt", "nocrossmnt":
			e.CrossMount = name == "crossmnt"
		case "fsid":
			e.FSID = value
		case "anonuid", "anongid":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < math.MinInt32 || n > math.MaxUint32 {
				return ExportOptions{}, fmt.Errorf("option %q: want %s=N with N a user or group id", option, name)
			}
			if name == "anonuid" {
				e.AnonUID = uint32(n)
			} else {
				e.AnonGID = uint32(n)
			}
		case "sec":
			if lists++; lists == 1 {
				e.Sec = value
			}
		}
		if lists > 1 {
			continue
		}
		switch name {
		case "ro", "rw":
			e.ReadOnly = name == "ro"
		case "secure", "insecure":
			e.Secure = name == "secure"
		case "root_squash", "no_root_squash":
			e.RootSquash = name == "root_squash"
		case "all_squash", "no_all_squash":
			e.AllSquash = name == "all_squash"
		}
	}
	return e, nil
}
