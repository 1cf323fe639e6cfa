package nfs

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func mustMountinfo(t testing.TB, text string) []Mount {
	t.Helper()
	m, err := ParseMountinfo(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func readEntries(t testing.TB, name string) []Entry {
	t.Helper()
	e, err := ParseFstab(strings.NewReader(read(t, name)))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// escaped is a capture as newer kernels would have written it, who escape # too.
func escaped(capture string) string { return strings.ReplaceAll(capture, "#", `\043`) }

func TestMountinfoIsPrintedAsTheKernelDoes(t *testing.T) {
	var b strings.Builder
	for _, m := range mustMountinfo(t, read(t, "mountinfo")) {
		b.WriteString(m.String() + "\n")
	}
	if want := escaped(read(t, "mountinfo")); b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestParseMountinfo(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		want       Mount
	}{
		{
			"optional fields", `36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue`,
			Mount{36, 35, "98:0", "/mnt1", "/mnt 2", Options{"rw", "noatime"}, []string{"master:1", "shared:2"}, "ext3", "/dev/root", Options{"rw", "errors=continue"}},
		},
		{
			"an empty source", `36 35 0:1 / /x rw - tmpfs  rw`,
			Mount{36, 35, "0:1", "/", "/x", Options{"rw"}, nil, "tmpfs", "", Options{"rw"}},
		},
		{
			"backslashes and spaces that are not escaped", `36 35 0:1 / /x rw - 9p C:\134 rw,path=C:\;uid=0,a b`,
			Mount{36, 35, "0:1", "/", "/x", Options{"rw"}, nil, "9p", `C:\`, Options{"rw", `path=C:\;uid=0`, "a b"}},
		},
		{
			"commas, quoted and escaped", `36 35 0:1 / /x rw - nfs4 [::1]:/e rw,context="u:r:t:s0:c1,c2",x=a\054b`,
			Mount{36, 35, "0:1", "/", "/x", Options{"rw"}, nil, "nfs4", "[::1]:/e", Options{"rw", `context="u:r:t:s0:c1,c2"`, "x=a,b"}},
		},
	} {
		got := mustMountinfo(t, tt.line+"\n")
		if len(got) != 1 || !reflect.DeepEqual(got[0], tt.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
	for line, want := range map[string]string{
		"36 35 0:1 / /x rw":                                         "at least 10 fields",
		"36 35 0:1 / /x rw a b c d e":                               "want - and three fields",
		"36 35 0:1 / /x rw a b - tmpfs":                             "want - and three fields",
		"x 35 0:1 / /x rw - tmpfs none rw":                          `mount id "x"`,
		"1 2 0:1 / / rw - a b rw\n36 x 0:1 / /x rw - tmpfs none rw": `line 2: parent's mount id "x"`,
	} {
		if _, err := ParseMountinfo(strings.NewReader(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", line, err, want)
		}
	}
}

// TestEffectiveIsWhatMountsShows compares the two texts of one kernel.
func TestEffectiveIsWhatMountsShows(t *testing.T) {
	entries, mounts := readEntries(t, "mounts"), mustMountinfo(t, read(t, "mountinfo"))
	if len(entries) != len(mounts) || len(mounts) < 20 {
		t.Fatalf("%d mounts in one text, %d in the other", len(entries), len(mounts))
	}
	for i, m := range mounts {
		e := entries[i]
		if m.Type == "hostfs" {
			continue // has a source in only one of them
		}
		if e.Source != m.Source || e.Point != m.Point || e.Type != m.Type {
			t.Errorf("line %d is %v and %v", i+1, e, m)
		}
		got, want := slices.Sorted(slices.Values(m.Effective())), slices.Sorted(slices.Values(e.Options))
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", m.Point, got, want)
		}
	}
	ro := Mount{Options: Options{"rw", "relatime"}, Super: Options{"ro", "vers=3"}}
	if got := ro.Effective().String(); got != "ro,relatime,vers=3" {
		t.Errorf("a read-only file system is mounted %s", got)
	}
}

func TestAgainLeavesOutWhatWasFilledIn(t *testing.T) {
	again := map[string]string{}
	for _, m := range mustMountinfo(t, read(t, "mountinfo")) {
		again[m.Point] = m.Again().String()
	}
	for point, want := range map[string]string{
		"/run/m/v3sync": "rw,noatime,sync,vers=3,rsize=8192,wsize=12288,hard,nolock,nosharecache,proto=tcp,port=2049,timeo=600,retrans=2,sec=sys,mountport=20048,mountproto=tcp,local_lock=all",
		"/run/m/v42":    "rw,relatime,vers=4.2,rsize=131072,wsize=65536,hard,proto=tcp,nconnect=4,timeo=600,retrans=2,sec=sys,local_lock=none",
	} {
		if again[point] != want {
			t.Errorf("%s:\ngot  %s\nwant %s", point, again[point], want)
		}
	}
	noPort := Mount{Options: Options{"rw"}, Super: ParseOptions("rw,seclabel,vers=3,mountaddr=192.0.2.1,mountvers=3,mountport=46231,mountproto=udp,addr=192.0.2.1")}
	if got := noPort.Again().String(); got != "rw,vers=3" {
		t.Errorf("without a port, got %s, want the portmapper asked for the port of mountd too", got)
	}
}

func TestCovering(t *testing.T) {
	mounts := mustMountinfo(t, read(t, "mountinfo"))
	for name, want := range map[string]int{
		"/":                        16,
		"/run":                     20,
		"/run/m":                   20,
		"/run/m/v3":                29,
		"/run/m/v3/a/b":            29,
		"/run/m/v3x":               20,
		"/run/m/v3sync/":           30,
		"/run/m/with space/x":      31,
		"/run/m/v3/../v42/glance":  35,
		"/run/m/bind/x":            39,
		"/run/m/stack/x":           41,
		"/etc/exports":             26,
		"/var/lib/nfs/rpc_pipefs/": 28,
	} {
		if got, found := Covering(mounts, name); !found || got.ID != want {
			t.Errorf("%s lies on mount %d, %v, want %d", name, got.ID, found, want)
		}
	}
}

func TestCoveringSeesWhatIsHidden(t *testing.T) {
	const root = "1 1 0:1 / / rw - rootfs rootfs rw\n20 1 0:2 / / rw - ext4 /dev/sda rw\n"
	for _, tt := range []struct {
		name, text, path string
		want             int
	}{
		{"a mount over the root", root, "/x", 20},
		{"a mount hidden by a later one above it", root + "21 20 0:3 / /a/b rw - nfs h:/b rw\n22 20 0:4 / /a rw - nfs h:/a rw\n", "/a/b/c", 22},
		{"a mount on the one that hides", root + "21 20 0:3 / /a rw - nfs h:/a rw\n22 21 0:4 / /a rw - nfs h:/a2 rw\n23 22 0:5 / /a/b rw - nfs h:/b rw\n24 21 0:6 / /a/b rw - nfs h:/old rw\n", "/a/b", 23},
		{"lines in another order", "22 21 0:4 / /a rw - nfs h:/a2 rw\n21 20 0:3 / /a rw - nfs h:/a rw\n" + root, "/a", 22},
		{"a root that is not listed", "21 20 0:3 / /a rw - nfs h:/a rw\n", "/a/b", 21},
		{"ids that go in circles", "4 9 0:1 / / rw - a b rw\n5 4 0:1 / / rw - a b rw\n4 5 0:1 / / rw - a b rw\n", "/x", 4},
	} {
		if got, found := Covering(mustMountinfo(t, tt.text), tt.path); !found || got.ID != tt.want {
			t.Errorf("%s: got mount %d, %v, want %d", tt.name, got.ID, found, tt.want)
		}
	}
	if got, found := Covering(mustMountinfo(t, "21 20 0:3 / /a rw - nfs h:/a rw\n"), "/b"); found {
		t.Errorf("/b lies on %v", got)
	}
	if got, found := Covering(nil, "/b"); found {
		t.Errorf("without mounts /b lies on %v", got)
	}
}

func TestIsNFS(t *testing.T) {
	for fstype, want := range map[string]bool{"nfs": true, "nfs4": true, "nfsd": false, "fuse.nfs": false, "ext4": false, "": false} {
		if IsNFS(fstype) != want {
			t.Errorf("IsNFS(%q) = %v", fstype, !want)
		}
	}
}

func TestSplitSource(t *testing.T) {
	for source, want := range map[string][2]string{
		"h:/e":                 {"h", "/e"},
		"h:/":                  {"h", "/"},
		"10.0.0.1:/a:/b c":     {"10.0.0.1", "/a:/b c"},
		"[::1]:/e":             {"::1", "/e"},
		"[fe80::1%eth0]:/a]:/": {"fe80::1%eth0", "/a]:/"},
	} {
		host, dir, err := SplitSource(source)
		if err != nil || host != want[0] || dir != want[1] {
			t.Errorf("SplitSource(%q) = %q, %q, %v, want %q", source, host, dir, err, want)
		}
		if got := JoinSource(host, dir); got != source {
			t.Errorf("JoinSource(%q, %q) = %q, want %q", host, dir, got, source)
		}
	}
	for _, bad := range []string{"", "h", ":/e", "h:e", "/dev/sda", "/a:/b", "::1:/e", "[::1]/e", "[]:/e", "[h]:/e", "[::1:/e", "h]:/e", "-o:/e", "--bind:/e"} {
		if host, dir, err := SplitSource(bad); err == nil {
			t.Errorf("SplitSource(%q) = %q, %q, want an error", bad, host, dir)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(read(f, "mountinfo"), "/run/m/stack/x")
	f.Add("4 9 0:1 / / rw shared:1 - a b\\040c rw,\"a,b\",c\\054\\042\n5 4 0:1 / / rw - a  \n4 5 0:1 / / rw - a b rw\n", "/")
	f.Fuzz(func(t *testing.T, text, name string) {
		mounts, err := ParseMountinfo(strings.NewReader(text))
		if err != nil {
			return
		}
		var b strings.Builder
		for _, m := range mounts {
			b.WriteString(m.String() + "\n")
			if host, dir, err := SplitSource(m.Source); err == nil && JoinSource(host, dir) != m.Source {
				t.Errorf("source %q is split into %q and %q", m.Source, host, dir)
			}
			_, _ = m.Effective().Mount()
		}
		if again := mustMountinfo(t, b.String()); !reflect.DeepEqual(again, mounts) {
			t.Errorf("read    %+v\nprinted %q\nagain   %+v", mounts, b.String(), again)
		}
		if m, found := Covering(mounts, name); found && m.Point != "/" && !strings.HasPrefix(name, m.Point) && !strings.Contains(name, ".") && !strings.Contains(name, "//") {
			t.Errorf("%q lies on %q", name, m.Point)
		}
	})
}

func TestOnlyNFS42CopiesAtTheServer(t *testing.T) {
	mounts := mustMountinfo(t, read(t, "mountinfo"))
	for name, want := range map[string]int64{
		"/run/m/v42": 256 << 10, "/run/m/v42/outbox": 256 << 10, "/run/m/v42b": 2 << 20,
		"/run/m/v3": 0, "/run/m/v41": 0, "/run/m": 0, "/": 0,
	} {
		if n, err := CopyAtOnce(mounts, name); n != want || (err == nil) != (want > 0) {
			t.Errorf("%s: got %d, %v, want %d", name, n, err, want)
		}
	}
	over := append(mounts, Mount{ID: 1000, Parent: 35, Point: "/run/m/v42", Type: "nfs", Super: Options{"vers=3", "rsize=131072"}})
	if n, err := CopyAtOnce(over, "/run/m/v42"); err == nil {
		t.Errorf("beneath another mount: got %d, want an error", n)
	}
}
