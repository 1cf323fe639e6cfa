package config

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestGridFTPTakesThePlaceOfAnAddress(t *testing.T) {
	const base = "site: A\nexport: /export/glance\n"
	for text, fault := range map[string]string{
		"gridftp: {url: gsiftp://dtn-a:2811/export/glance, cert: a.pem, key: a.key}":                       "",
		"gridftp: {url: gsiftp://dtn-a:2811/export/glance, proxy: p.pem}":                                  "",
		"gridftp: {url: ftp://dtn-a:2811/export/glance}":                                                   "",
		"address: dtn-a:7444\ngridftp: {url: ftp://dtn-a:2811/export/glance, buffer: 64MiB}":               "",
		"address: dtn-a\ngridftp: {url: ftp://dtn-a:2811/export/glance}":                                   "address:",
		"gridftp: {cert_dir: certs}":                                                                       "address:",
		"address: dtn-a:7444\ngridftp: {buffer: 1MiB}":                                                     "gridftp.url: is missing",
		"gridftp: {url: gsiftp://dtn-a:2811/export/glance}":                                                "gridftp.cert: is missing",
		"gridftp: {url: gsiftp://dtn-a:2811/export/glance, cert: a.pem}":                                   "gridftp.cert: and gridftp.key",
		"gridftp: {url: https://dtn-a:2811/export/glance}":                                                 "gridftp.url:",
		"gridftp: {url: gsiftp://dtn-a:2811/export/glance, cert: a.pem, key: a.key, protection: somewhat}": "gridftp.protection:",
		"gridftp: {url: gsiftp://dtn-a:2811/export/glance, cert: a.pem, key: a.key, parallelism: 4}":       "gridftp.parallelism: is not a key",
	} {
		got, err := LoadDTN(write(t, base+text), noEnv)
		switch {
		case fault == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case fault != "" && (err == nil || !strings.Contains(err.Error(), "\n"+fault)):
			t.Errorf("%s: got %v, want a fault of %q", text, err, fault)
		case fault == "" && (!filepath.IsAbs(got.GridFTP.CertDir) || got.GridFTP.Cert != "" && !filepath.IsAbs(got.GridFTP.Cert)):
			t.Errorf("%s: paths are not absolute: %+v", text, got.GridFTP)
		}
	}
}
