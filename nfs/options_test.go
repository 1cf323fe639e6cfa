package nfs

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseOptionsSplitsAtCommas(t *testing.T) {
	for list, want := range map[string]Options{
		"":                        nil,
		",,":                      nil,
		"rw":                      {"rw"},
		"rw,,vers=3,":             {"rw", "vers=3"},
		`context="a:s0:c1,c2",rw`: {`context="a:s0:c1,c2"`, "rw"},
		`a",b`:                    {`a"`, "b"},
		`"a","b,c"d,e`:            {`"a"`, `"b,c"d`, "e"},
	} {
		if got := ParseOptions(list); !slices.Equal(got, want) {
			t.Errorf("ParseOptions(%q) = %q, want %q", list, got, want)
		}
	}
}

func TestGetTellsTheLast(t *testing.T) {
	o := ParseOptions("rsize=1,ro,rsize=2")
	if v, found := o.Get("rsize"); v != "2" || !found {
		t.Errorf("Get(rsize) = %q, %v, want 2", v, found)
	}
	if v, found := o.Get("ro"); v != "" || !found {
		t.Errorf("Get(ro) = %q, %v, want it found", v, found)
	}
	if _, found := o.Get("size"); found {
		t.Error("Get(size) finds what is not there")
	}
}

func TestWithReplacesWhatContradicts(t *testing.T) {
	for _, tt := range []struct{ list, with, want string }{
		{"", "sync", "sync"},
		{"rw,async,x-systemd.automount", "sync", "rw,x-systemd.automount,sync"},
		{"rsize=1,_netdev,rsize=2,wsize=3", "rsize=4", "_netdev,wsize=3,rsize=4"},
		{"nfsvers=4.2,soft", "vers=3,hard", "vers=3,hard"},
		{"v4.1,tcp,relatime", "vers=3,proto=rdma,noatime", "vers=3,proto=rdma,noatime"},
		{"ro,sync,no_wdelay,root_squash", "rw,async,wdelay,no_root_squash", "rw,async,wdelay,no_root_squash"},
		{"acl,secure_locks", "no_acl,no_auth_nlm", "no_acl,no_auth_nlm"},
		{"timeo=600,retrans=2", "", "timeo=600,retrans=2"},
	} {
		o := ParseOptions(tt.list)
		if got := o.With(ParseOptions(tt.with)...).String(); got != tt.want {
			t.Errorf("%q with %q = %q, want %q", tt.list, tt.with, got, tt.want)
		}
		if o.String() != tt.list {
			t.Errorf("With changed its receiver from %q to %q", tt.list, o)
		}
	}
}

func mustMount(t *testing.T, list string) MountOptions {
	t.Helper()
	m, err := ParseOptions(list).Mount()
	if err != nil {
		t.Fatalf("%q: %v", list, err)
	}
	return m
}

func TestMountOptionsHaveTheDefaultsOfTheManual(t *testing.T) {
	want := MountOptions{
		NConnect: 1, Recovery: "hard", Timeo: 60 * time.Second, Retrans: 2,
		AcRegMin: 3 * time.Second, AcRegMax: 60 * time.Second, AcDirMin: 30 * time.Second, AcDirMax: 60 * time.Second,
		LookupCache: "all", LocalLock: "none",
	}
	if got := mustMount(t, "defaults,_netdev"); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := mustMount(t, "udp"); got.Timeo != 1100*time.Millisecond || got.Retrans != 3 {
		t.Errorf("over UDP timeo is %v and retrans %d, want 1.1 s and 3", got.Timeo, got.Retrans)
	}
}

func TestMountOptionsMean(t *testing.T) {
	for list, change := range map[string]func(*MountOptions){
		"ro":                             func(m *MountOptions) { m.ReadOnly = true },
		"ro,rw":                          func(m *MountOptions) {},
		"sync,noatime":                   func(m *MountOptions) { m.Sync, m.NoAtime = true, true },
		"sync,async":                     func(m *MountOptions) {},
		"noac,async":                     func(m *MountOptions) { m.Sync = true; m.AcRegMin, m.AcRegMax, m.AcDirMin, m.AcDirMax = 0, 0, 0, 0 },
		"noac,ac":                        func(m *MountOptions) {},
		"vers=4,minorversion=1":          func(m *MountOptions) { m.Version, m.Port = "4.1", 2049 },
		"nfsvers=4.2":                    func(m *MountOptions) { m.Version, m.Port = "4.2", 2049 },
		"v3":                             func(m *MountOptions) { m.Version = "3" },
		"proto=tcp6,port=2050":           func(m *MountOptions) { m.Proto, m.Port = "tcp6", 2050 },
		"mountproto=tcp,mountport=20048": func(m *MountOptions) { m.MountProto, m.MountPort = "tcp", 20048 },
		"rdma,sec=krb5p,nconnect=16":     func(m *MountOptions) { m.Proto, m.Sec, m.NConnect = "rdma", "krb5p", 16 },
		"rsize=8192,wsize=4294967295":    func(m *MountOptions) { m.RSize, m.WSize = 8192, 1<<32-1 },
		"soft,timeo=15,retrans=0":        func(m *MountOptions) { m.Recovery, m.Timeo, m.Retrans = "soft", 1500*time.Millisecond, 0 },
		"softerr,timeo=600":              func(m *MountOptions) { m.Recovery = "softerr" },
		"acregmin=1,acdirmax=9":          func(m *MountOptions) { m.AcRegMin, m.AcDirMax = time.Second, 9*time.Second },
		"acregmin=1,actimeo=5": func(m *MountOptions) {
			m.AcRegMin, m.AcRegMax, m.AcDirMin, m.AcDirMax = 5*time.Second, 5*time.Second, 5*time.Second, 5*time.Second
		},
		"lookupcache=pos":         func(m *MountOptions) { m.LookupCache = "positive" },
		"nolock":                  func(m *MountOptions) { m.LocalLock = "all" },
		"nolock,local_lock=flock": func(m *MountOptions) { m.LocalLock = "flock" },
		"nolock,lock":             func(m *MountOptions) {},
	} {
		want := mustMount(t, "")
		change(&want)
		if got := mustMount(t, list); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", list, got, want)
		}
	}
}

func TestMountOptionsRefuseWhatCannotBe(t *testing.T) {
	for _, option := range []string{
		"rsize=", "rsize=8k", "rsize=-1", "wsize=4294967296", "timeo=0", "timeo=x", "retrans=-1", "nconnect=0", "nconnect=17",
		"port=65536", "mountport=x", "minorversion=3", "actimeo=-1", "acregmin=x", "acregmax=1s", "acdirmin", "acdirmax=2147483648",
		"lookupcache=some", "local_lock=",
	} {
		name, _, _ := strings.Cut(option, "=")
		if _, err := ParseOptions("rw," + option).Mount(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got error %v, want one that names it", option, err)
		}
	}
}

// TestDifferencesOfRealMounts asks as the mounts of testdata/mounts were asked for.
func TestDifferencesOfRealMounts(t *testing.T) {
	granted := map[string]Options{}
	for _, e := range readEntries(t, "mounts") {
		granted[e.Point] = e.Options
	}
	const v3 = "vers=3,proto=tcp,nolock,port=2049,mountport=20048,mountproto=tcp"
	for _, tt := range []struct {
		point, asked string
		want         []string
	}{
		{"/run/m/v3", v3, nil},
		{"/run/m/v3", v3 + ",rw,async,hard,rsize=0,timeo=600", nil},
		{"/run/m/v3", v3 + ",sync,rsize=2097152", []string{"sync: asked for sync, granted async", "rsize: asked for 2097152, granted 1048576"}},
		{"/run/m/v3sync", v3 + ",sync,rsize=8192,wsize=12288,noatime,nosharecache", nil},
		{"/run/m/v3sync", "async,atime", []string{"sync: asked for async, granted sync", "noatime: asked for atime, granted noatime"}},
		{"/run/m/with space", v3 + ",soft,timeo=50,retrans=3,actimeo=5,lookupcache=positive", nil},
		{"/run/m/with space", "actimeo=6,retrans=4", []string{
			"acregmin: asked for 6, granted 5", "acregmax: asked for 6, granted 5", "acdirmin: asked for 6, granted 5", "acdirmax: asked for 6, granted 5",
			"retrans: asked for 4, granted 3",
		}},
		{"/run/m/tab\tback\\slash#hash", v3 + ",hard,noac,nodev,nosuid,noexec,nosharecache", nil},
		{"/run/m/v42", "vers=4.2,nconnect=4,rsize=131072,wsize=65536", nil},
		{"/run/m/v42", "vers=4,sec=krb5:sys,port=2049", nil},
		{"/run/m/v42", "vers=3,sec=krb5", []string{"vers: asked for 3, granted 4.2", "sec: asked for krb5, granted sys"}},
		{"/run/m/v41", "vers=4.1,ro,nosharecache,local_lock=posix,timeo=100", []string{"local_lock: asked for posix, granted none"}},
		{"/run/m/v42b", "vers=4.2,nosharecache,nconnect=1", []string{"nconnect: asked for 1, granted 4"}},
		{"/run/m/v6", v3 + ",proto=tcp6,mountproto=tcp6", nil},
		{"/run/m/stack", v3 + ",nosharecache,rsize=4096", nil},
	} {
		d, err := Differences(ParseOptions(tt.asked), granted[tt.point])
		if err != nil {
			t.Errorf("%s: %v", tt.point, err)
		}
		var got []string
		for _, one := range d {
			got = append(got, one.String())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s, asked for %s:\ngot  %q\nwant %q", tt.point, tt.asked, got, tt.want)
		}
	}
}

func TestDifferencesNeedOptionsThatCanBe(t *testing.T) {
	good, bad := Options{"rsize=8192"}, Options{"rsize=x"}
	if _, err := Differences(bad, good); err == nil || !strings.Contains(err.Error(), "asked") {
		t.Errorf("asked for nonsense: got error %v", err)
	}
	if _, err := Differences(good, bad); err == nil || !strings.Contains(err.Error(), "granted") {
		t.Errorf("granted nonsense: got error %v", err)
	}
}

func TestCompared(t *testing.T) {
	for option, want := range map[string]bool{"rsize=1024": true, "async": true, "noac": true, "nolock": true, "nosharecache": false, "fsc": false, "": false} {
		if got := Compared(option); got != want {
			t.Errorf("Compared(%q) is %v, want %v", option, got, want)
		}
	}
}

// TestEveryFieldIsCompared holds that no field of MountOptions is forgotten in
// mountFields.
func TestEveryFieldIsCompared(t *testing.T) {
	if got, want := len(mountFields), reflect.TypeFor[MountOptions]().NumField(); got != want {
		t.Errorf("%d of %d fields of MountOptions are compared", got, want)
	}
}

func TestGrantedSizeIsWhatTheKernelGranted(t *testing.T) {
	f, err := os.Open("testdata/sizes")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var version string
		var limit, asked, rsize, wsize int64
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if _, err := fmt.Sscan(lines.Text(), &version, &limit, &asked, &rsize, &wsize); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		rows++
		if got := grantedSize(asked, limit, 4096); got != rsize || got != wsize {
			t.Errorf("vers=%s, limit %d: %d becomes %d, the kernel said rsize=%d,wsize=%d", version, limit, asked, got, rsize, wsize)
		}
	}
	if rows < 100 {
		t.Errorf("testdata/sizes has %d rows", rows)
	}
}

func TestGrantedSizeFollowsThePage(t *testing.T) {
	for _, tt := range []struct{ asked, limit, page, want int64 }{
		{100000, 1 << 20, 65536, 65536},
		{20000, 1 << 20, 65536, 16384},
		{1 << 22, 1 << 22, 4096, 1 << 20},
		{8192, 511, 4096, 8192}, // a limit without sense is ignored
		{8192, 512, 4096, 4096},
	} {
		if got := grantedSize(tt.asked, tt.limit, tt.page); got != tt.want {
			t.Errorf("asked for %d of at most %d, pages of %d: %d, want %d", tt.asked, tt.limit, tt.page, got, tt.want)
		}
	}
	if got := GrantedSize(1<<20, 1<<19); got != 1<<19 {
		t.Errorf("GrantedSize(1 MiB, 512 KiB) = %d", got)
	}
}

func TestExportOptionsMean(t *testing.T) {
	defaults := ExportOptions{Sync: true, WDelay: true, ReadOnly: true, Secure: true, RootSquash: true, Hide: true, AnonUID: 65534, AnonGID: 65534, Sec: "sys"}
	for list, change := range map[string]func(*ExportOptions){
		"":                            func(*ExportOptions) {},
		"rw,async,no_wdelay,insecure": func(e *ExportOptions) { e.ReadOnly, e.Sync, e.WDelay, e.Secure = false, false, false, false },
		"async,sync,rw,ro":            func(*ExportOptions) {},
		"no_root_squash,all_squash,subtree_check,nohide,crossmnt": func(e *ExportOptions) {
			e.RootSquash, e.AllSquash, e.SubtreeCheck, e.Hide, e.CrossMount = false, true, true, false, true
		},
		"anonuid=-2,anongid=4294967294,fsid=root": func(e *ExportOptions) { e.AnonUID, e.AnonGID, e.FSID = 1<<32-2, 1<<32-2, "root" },
		"sec=krb5p:sys,rw":                        func(e *ExportOptions) { e.Sec, e.ReadOnly = "krb5p:sys", false },
		"rw,sec=sys,ro,sec=krb5p,rw,async":        func(e *ExportOptions) { e.Sync = false },
	} {
		want := defaults
		change(&want)
		if got, err := ParseOptions(list).Export(); err != nil || got != want {
			t.Errorf("%q:\ngot  %+v, %v\nwant %+v", list, got, err, want)
		}
	}
	for _, bad := range []string{"anonuid=x", "anongid=", "anonuid=4294967296"} {
		if _, err := ParseOptions(bad).Export(); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: got error %v, want one that names it", bad, err)
		}
	}
}
