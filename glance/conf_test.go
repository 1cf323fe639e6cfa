package glance

import (
	"path"
	"slices"
	"strings"
	"testing"
)

func TestDatadirs(t *testing.T) {
	for _, tt := range []struct {
		name, conf string
		want       []string
	}{
		{"an empty file means Glance's own defaults", "", []string{"/var/lib/glance/images"}},
		{"one store", "[glance_store]\nstores = file,http\nfilesystem_store_datadir = /srv/images/\n", []string{"/srv/images"}},
		{"a store without a datadir", "[DEFAULT]\nenabled_backends = a:file\n[a]\n", []string{"/var/lib/glance/images"}},
		{"no file store", "[glance_store]\nstores = rbd\nfilesystem_store_datadir = /x\n", nil},
		{"no file backend", "[DEFAULT]\nenabled_backends = ceph:rbd\n[glance_store]\nfilesystem_store_datadir = /x\n", nil},
		{
			"backends, each in its own section, those of other kinds left out",
			"[DEFAULT]\nenabled_backends = fast:file, ceph:rbd , slow:file\n" +
				"[slow]\nfilesystem_store_datadir: '/srv/slow'\n[fast]\nfilesystem_store_datadir=\"/srv/fast\"\n" +
				"[os_glance_staging_store]\nfilesystem_store_datadir = /staging\n",
			[]string{"/srv/fast", "/srv/slow"},
		},
		{"enabled_backends over two lines", "[DEFAULT]\nenabled_backends = a:file,\n    b:file\n[a]\nfilesystem_store_datadir=/a\n[b]\nfilesystem_store_datadir=/b\n", []string{"/a", "/b"}},
		{
			"several directories, the highest priority first, equal ones as written",
			"[glance_store]\nfilesystem_store_datadir =\nfilesystem_store_datadirs = /low\nfilesystem_store_datadirs = /high:200\n" +
				"filesystem_store_datadirs = /mid : 100\nfilesystem_store_datadirs = /low2:0\n",
			[]string{"/high", "/mid", "/low", "/low2"},
		},
		{"the last of a repeated option holds", "[glance_store]\nfilesystem_store_datadir=/a\nfilesystem_store_datadir=/b\n", []string{"/b"}},
		{
			"variables, from the section, from DEFAULT, from another section",
			"[DEFAULT]\nstate_path = ${top}/glance\ntop = /srv\nenabled_backends = a:file,b:file,c:file\n" +
				"[a]\nfilesystem_store_datadir = $state_path/images\n[b]\ntop = /b\nfilesystem_store_datadir = $top/i\n" +
				"[c]\nfilesystem_store_datadir = ${b.top}/$$5\n",
			[]string{"/srv/glance/images", "/b/i", "/b/$5"},
		},
		{"comments, odd spacing and Windows line ends", "# a\r\n; b\r\n[glance_store]\r\nfilesystem_store_datadir   =   /a b   \r\n", []string{"/a b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Datadirs(strings.NewReader(tt.conf))
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestDatadirsRefuses(t *testing.T) {
	for _, tt := range []struct{ conf, want string }{
		{"[glance_store\n", "line 1 is not a [section]"},
		{"[glance_store]\n  /x\n", "line 2 continues nothing"},
		{"[DEFAULT]\nnonsense\n", "line 2 is not name = value"},
		{"[glance_store]\nfilesystem_store_datadirs = /a:high\n", "the priority is not a number"},
		{"[glance_store]\nfilesystem_store_datadir = $state_path/images\n", "$state_path is not set in this file"},
		{"[glance_store]\na = $b\nb = $a\nfilesystem_store_datadir = $a\n", "refer to each other without end"},
		{"[glance_store]\nfilesystem_store_datadir = /$a\na = " + strings.Repeat("x", 5000) + "\n", "longer than a path can be"},
		{"[glance_store]\nfilesystem_store_datadir = images\n", "not an absolute path"},
	} {
		if got, err := Datadirs(strings.NewReader(tt.conf)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %q, %v; want an error with %q", tt.conf, got, err, tt.want)
		}
	}
}

func FuzzDatadirs(f *testing.F) {
	f.Add("[DEFAULT]\nenabled_backends = a:file, b:file\nx=/y\n[a]\nfilesystem_store_datadir = $x/${x}\n[b]\nfilesystem_store_datadirs = /p:3\n")
	f.Add("[glance_store]\na = $a$a$a\nfilesystem_store_datadir = $a\n")
	f.Fuzz(func(t *testing.T, conf string) {
		dirs, err := Datadirs(strings.NewReader(conf))
		if err != nil && dirs != nil {
			t.Errorf("directories %q beside the error %v", dirs, err)
		}
		for _, d := range dirs {
			if !path.IsAbs(d) || path.Clean(d) != d {
				t.Errorf("%q is not a clean absolute path", d)
			}
		}
	})
}
