package nfs

import (
	"reflect"
	"strings"
	"testing"
)

func TestMountsArePrintedAsTheKernelDoes(t *testing.T) {
	var b strings.Builder
	for _, e := range readEntries(t, "mounts") {
		b.WriteString(e.String() + "\n")
	}
	if want := escaped(read(t, "mounts")); b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestParseFstab(t *testing.T) {
	const text = "# /etc/fstab\n\n" +
		"\tUUID=x / ext4 errors=remount-ro\t0 1\n" +
		"h:/srv/a\\040b  /mnt/a\\040b nfs vers=4.2,_netdev,nofail,x-systemd.requires=a.mount 0\n" +
		"[::1]:/e /mnt/e nfs defaults\n" +
		"UUID=y /data xfs\n" +
		"UUID=z /more xfs ro 0 2 # new disk\n" +
		"/swap none swap sw 0 0"
	want := []Entry{
		{"UUID=x", "/", "ext4", Options{"errors=remount-ro"}, 0, 1},
		{"h:/srv/a b", "/mnt/a b", "nfs", Options{"vers=4.2", "_netdev", "nofail", "x-systemd.requires=a.mount"}, 0, 0},
		{"[::1]:/e", "/mnt/e", "nfs", nil, 0, 0},
		{"UUID=y", "/data", "xfs", nil, 0, 0},
		{"UUID=z", "/more", "xfs", Options{"ro"}, 0, 2},
		{"/swap", "none", "swap", Options{"sw"}, 0, 0},
	}
	got, err := ParseFstab(strings.NewReader(text))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q, %v\nwant %q", got, err, want)
	}
	if got, want := want[2].String(), "[::1]:/e /mnt/e nfs defaults 0 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseFstabSaysWhatIsWrongAndWhere(t *testing.T) {
	for text, want := range map[string]string{
		"a /b":             "line 1: want source",
		"\na b nfs rw":     `line 2: mount point "b" is not an absolute path`,
		" /x tmpfs rw 0 0": `mount point "tmpfs" is not an absolute path`,
		"a /b nfs rw x":    `field 5, "x", is not a number`,
		"a /b nfs rw 0 0x": `field 6, "0x", is not a number`,
		"a /b nfs rw # c":  `field 5, "#", is not a number`,
	} {
		if _, err := ParseFstab(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", text, err, want)
		}
	}
}

func FuzzFstab(f *testing.F) {
	f.Add(read(f, "mounts"))
	f.Add("# c\nh:/a\\040b /m nfs \"a,b\",c\\054d,e\\042 0\na /b xfs\na /b xfs , 0 0 # c\n\\043x none swap def\\141ults")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := ParseFstab(strings.NewReader(text))
		if err != nil {
			return
		}
		var b strings.Builder
		for _, e := range entries {
			b.WriteString(e.String() + "\n")
		}
		again, err := ParseFstab(strings.NewReader(b.String()))
		if err != nil || !reflect.DeepEqual(again, entries) {
			t.Errorf("read    %q\nprinted %q\nagain   %q, %v", entries, b.String(), again, err)
		}
	})
}
