package mover

import "testing"

func TestAddressesAndTheirEngines(t *testing.T) {
	for address, engine := range map[string]string{
		"dtn-b:7444": Stream, "[2001:db8::1]:7444": Stream,
		"gsiftp://dtn-b.example.org:2811/export/glance": GridFTP, "gsiftp://dtn-b/export/glance/": GridFTP,
		CallbackAddress("B"): Stream, CallbackAddress("7444"): Stream, "callback:7444": Stream,
		"ftp://192.0.2.1:2811/x": GridFTP, "gsiftp://[2001:db8::1]:2811/x": GridFTP,
	} {
		if err := CheckAddress(address); err != nil || EngineFor(address) != engine {
			t.Errorf("%s: %v, engine %s, want %s", address, err, EngineFor(address), engine)
		}
	}
	for _, address := range []string{
		"", "dtn-b", ":7444", "http://dtn-b/x", "gsiftp://dtn-b", "gsiftp://dtn-b/", "gsiftp:///x", "gsiftp://u:p@dtn-b/x", "gsiftp://dtn-b/x?y", "gsiftp://dtn-b/x#y",
		"gsiftp://dtn-b/../x", "gsiftp://dtn-b/x/../y", "gsiftp://dtn-b//x", "gsiftp://dtn-b/x*", "gsiftp://dtn-b/%2e%2e/x", "gsiftp://dtn-b/%2Fx", "gsiftp://dtn-b/a b",
		"gsiftp://dtn-b:x/y", "gsiftp://-b*/y", "gsiftp://dtn-b/x\n", "file:///etc/passwd", "-vb://x/y",
		"callback://", "callback://B/x", "callback://B:7444", "callback://../B", "Callback://B",
	} {
		if err := CheckAddress(address); err == nil {
			t.Errorf("%q was accepted", address)
		}
	}
}

func FuzzExportURL(f *testing.F) {
	f.Add("gsiftp://dtn-b:2811/export/glance")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseExportURL(s)
		if err != nil {
			return
		}
		again, err := ParseExportURL(u.File("inbox"))
		if err != nil || again.Host != u.Host || again.Path != u.Path+"/inbox" {
			t.Errorf("%q: its file %q is %v, %v", s, u.File("inbox"), again, err)
		}
	})
}
