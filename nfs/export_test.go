package nfs

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustExports(t testing.TB, text string) []Export {
	t.Helper()
	e, err := ParseExports(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestParseExports(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []Export
	}{
		{"nothing", " \n# /a *(rw)\n\t# /b\n", nil},
		{"hosts of every kind", "/a h.example.org *.example.org @net 10.0.0.0/8 10.0.0.0/255.0.0.0 fd00::/64(ro) ::1 gss/krb5(rw)\n", []Export{{"/a", []Client{
			{"h.example.org", nil}, {"*.example.org", nil}, {"@net", nil}, {"10.0.0.0/8", nil}, {"10.0.0.0/255.0.0.0", nil},
			{"fd00::/64", Options{"ro"}}, {"::1", nil}, {"gss/krb5", Options{"rw"}},
		}}}},
		{"defaults come first", "/a -ro,sync h(rw) g\n", []Export{{"/a", []Client{{"h", Options{"ro", "sync", "rw"}}, {"g", Options{"ro", "sync"}}}}}},
		{"a space before the options gives them to everyone", "/a h (rw)", []Export{{"/a", []Client{{"h", nil}, {"*", Options{"rw"}}}}}},
		{"octal and quotes", `/a\040b c` + "\n" + `"/a b"  c` + "\n" + `/a" "b c`, []Export{{"/a b", []Client{{"c", nil}}}, {"/a b", []Client{{"c", nil}}}, {"/a b", []Client{{"c", nil}}}}},
		{"a line goes on", "/a \\\n  h(rw) \\\n\n/b h", []Export{{"/a", []Client{{"h", Options{"rw"}}}}, {"/b", []Client{{"h", nil}}}}},
		{"a comment does not", "# c \\\n/a h # rest \\\n/b h", []Export{{"/a", []Client{{"h", nil}}}, {"/b", []Client{{"h", nil}}}}},
		{"a number sign within a word", "/a#b h#c", []Export{{"/a#b", []Client{{"h#c", nil}}}}},
		{"an escaped number sign begins no comment", `/a \043h`, []Export{{"/a", []Client{{"#h", nil}}}}},
		{"a backslash of its own", `/a\b h`, []Export{{`/a\b`, []Client{{"h", nil}}}}},
		{"empty options", "/a h() g(,rw,)", []Export{{"/a", []Client{{"h", nil}, {"g", Options{"rw"}}}}}},
		{"Windows line ends", "/a h(rw)\r\n", []Export{{"/a", []Client{{"h", Options{"rw"}}}}}},
	} {
		if got, err := ParseExports(strings.NewReader(tt.text)); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\ngot  %q, %v\nwant %q", tt.name, got, err, tt.want)
		}
	}
}

func TestParseExportsSaysWhatIsWrongAndWhere(t *testing.T) {
	for text, want := range map[string]string{
		"\n\na h":       "line 3: \"a\" is not an absolute path",
		"/a":            "line 1: /a is exported to no client",
		"/a -rw":        "line 1: /a is exported to no client",
		"/a \\\n h\n/b": "line 3: /b is exported to no client",
		"/a h -rw":      "default options stand before",
		"/a -a)b h":     "parenthesis",
		"/a h(rw":       "want host(option,option)",
		"/a h(rw)x":     "want host(option,option)",
		"/a \"\"":       "empty name",
		"/a \"h\n":      "line 1: a quotation mark is not closed",
		"/a h\n/b \"h":  "line 2: a quotation mark is not closed",
		"/ok h\n\"\" h": "line 2: \"\" is not an absolute path",
	} {
		if _, err := ParseExports(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", text, err, want)
		}
	}
}

func TestFormatExports(t *testing.T) {
	exports := []Export{
		{"/srv/glance", []Client{{"10.0.0.0/8", Options{"rw", "sync", "no_subtree_check"}}, {"fd00::/64", nil}}},
		{"/srv/a b\\\"#\n", []Client{{"*", Options{"refer=/x y@h"}}}},
	}
	const want = "/srv/glance 10.0.0.0/8(rw,sync,no_subtree_check) fd00::/64\n" +
		`/srv/a\040b\134\042\043\012 *(refer=/x\040y@h)` + "\n"
	got, err := FormatExports(exports...)
	if err != nil || got != want {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
	if again := mustExports(t, got); !reflect.DeepEqual(again, exports) {
		t.Errorf("read again: %q, want %q", again, exports)
	}
}

func TestFormatExportsRefusesWhatTheFormatCannotSay(t *testing.T) {
	for _, e := range []Export{
		{},
		{"/a", nil},
		{"a", []Client{{"h", nil}}},
		{"/a", []Client{{"", nil}}},
		{"/a", []Client{{"-rw", nil}}},
		{"/a", []Client{{"h(rw)", nil}}},
		{"/a", []Client{{"h(rw", nil}, {"g", nil}}},
		{"/a", []Client{{"h", Options{"ro)"}}}},
		{"/a", []Client{{"h", Options{"ro,rw"}}}},
		{"/a", []Client{{"h", Options{""}}}},
	} {
		if got, err := FormatExports(e); err == nil {
			t.Errorf("%q is printed as %q", e, got)
		}
	}
}

// TestExportOptionsAreThoseInEffect holds that this package reads an exports(5) file
// as exportfs does: what it makes of the file is what exportfs -v shows, and -s too.
func TestExportOptionsAreThoseInEffect(t *testing.T) {
	for _, name := range []string{"", "-wrapped"} {
		inEffect, err := ParseExportfs(strings.NewReader(read(t, "exportfs"+name+"-v")))
		if err != nil {
			t.Fatal(err)
		}
		find := func(path, host string) (Options, bool) {
			for _, e := range inEffect {
				for _, c := range e.Clients {
					if e.Path == path && c.Host == host {
						return c.Options, true
					}
				}
			}
			return nil, false
		}
		clients := 0
		seen := map[[2]string]bool{}
		for _, e := range mustExports(t, read(t, "exports"+name)) {
			for _, c := range e.Clients {
				if seen[[2]string{e.Path, c.Host}] { // exportfs takes the first
					continue
				}
				seen[[2]string{e.Path, c.Host}] = true
				clients++
				o, found := find(e.Path, c.Host)
				if !found {
					t.Errorf("exportfs%s-v has no %s for %s", name, e.Path, c.Host)
					continue
				}
				got, err := c.Options.Export()
				want, err2 := o.Export()
				if err != nil || err2 != nil || got != want {
					t.Errorf("%s for %s:\nin the file %+v, %v\nin effect   %+v, %v", e.Path, c.Host, got, err, want, err2)
				}
			}
		}
		shown := 0
		for _, e := range mustExports(t, read(t, "exportfs"+name+"-s")) {
			for _, c := range e.Clients {
				shown++
				if o, found := find(e.Path, c.Host); !found || !slices.Equal(o, c.Options) && !slices.Equal(o, c.Options.With("subtree_check")) {
					t.Errorf("%s for %s: exportfs -s shows %s, -v %s", e.Path, c.Host, c.Options, o)
				}
			}
		}
		if clients != shown || clients < 8 {
			t.Errorf("%d clients in the file, %d in effect", clients, shown)
		}
	}
}

func TestParseExportfs(t *testing.T) {
	const text = "/a b           \t10.0.0.1(rw,no_subtree_check)\n" +
		"/a/path/with\ttab/name\n\t\t<world>(ro)\n" +
		"/a b           \t@net(ro)\n"
	want := []Export{
		{"/a b", []Client{{"10.0.0.1", Options{"rw", "no_subtree_check"}}, {"@net", Options{"ro", "subtree_check"}}}},
		{"/a/path/with\ttab/name", []Client{{"*", Options{"ro", "subtree_check"}}}},
	}
	if got, err := ParseExportfs(strings.NewReader(text)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q, %v\nwant %q", got, err, want)
	}
	for text, want := range map[string]string{
		"exportfs: something\n/a \th(rw)\n": "line 2: no client follows",
		"/a\n":                              "no client follows",
		"a\n\t\th\n":                        "not an absolute path",
		"/a\n\t\th(rw\n":                    "want host(option,option)",
		"\t\th(rw)\n":                       "not an absolute path",
	} {
		if _, err := ParseExportfs(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want one with %q", text, err, want)
		}
	}
}

func TestAcknowledges(t *testing.T) {
	exports := mustExports(t, `
/srv 10.0.0.0/8(async) *(sync)
/srv/glance *(rw)
/srv/glance/late a(sync) b(async) c(sync)
/srv/bad *(fsid=0,anonuid=x)
`)
	for dir, want := range map[string]struct{ sync, known bool }{
		"/srv/glance":            {true, true},
		"/srv/glance/a/b/":       {true, true},
		"/srv/glance/late/inbox": {false, true},
		"/srv/glances":           {false, true},
		"/srv":                   {false, true},
		"/":                      {false, false},
		"/home":                  {false, false},
	} {
		if sync, known, err := Acknowledges(exports, dir); sync != want.sync || known != want.known || err != nil {
			t.Errorf("%s: sync %v, known %v, %v; want %+v", dir, sync, known, err, want)
		}
	}
	if _, known, err := Acknowledges(exports, "/srv/bad"); known || err == nil || !strings.Contains(err.Error(), "/srv/bad") {
		t.Errorf("/srv/bad: known %v, %v; want an error that names it", known, err)
	}
}

func FuzzExports(f *testing.F) {
	for _, name := range []string{"exports", "exports-wrapped", "exportfs-s", "exportfs-v"} {
		f.Add(read(f, name))
	}
	f.Add(`/a\040b -ro h(rw,x="a,b") \` + "\n (sync) # c\n\"/q \" @n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = ParseExportfs(strings.NewReader(text))
		exports, err := ParseExports(strings.NewReader(text))
		if err != nil {
			return
		}
		printed, err := FormatExports(exports...)
		if err != nil {
			t.Fatalf("%q is read and cannot be printed: %v", text, err)
		}
		if again := mustExports(t, printed); !reflect.DeepEqual(again, exports) {
			t.Errorf("read    %q\nprinted %q\nagain   %q", exports, printed, again)
		}
	})
}
