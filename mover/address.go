package mover

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/glance-dtn/glance-dtn/internal/pki"
)

// The engines, by Request.Engine.
const (
	Stream  = "stream"  // our own data plane; its address is host:port, or a CallbackAddress
	GridFTP = "gridftp" // third-party transfers between GridFTP servers; its address is an ExportURL
)

const callbackScheme = "callback://"

// CallbackAddress is the address of a site whose DTN takes no connections. It keeps one to
// the DTN of each site that may send to it, and is asked over that one for others.
func CallbackAddress(site string) string { return callbackScheme + site }

// CallbackSite returns the site of a CallbackAddress, or that address is none.
func CallbackSite(address string) (site string, ok bool) {
	return strings.CutPrefix(address, callbackScheme)
}

// EngineFor returns the engine that an address is for.
func EngineFor(address string) string {
	if _, ok := CallbackSite(address); ok {
		return Stream
	}
	if strings.Contains(address, "://") {
		return GridFTP
	}
	return Stream
}

// CheckAddress reports an address that is for no engine.
func CheckAddress(address string) error {
	if site, ok := CallbackSite(address); ok {
		return pki.CheckSite(site)
	}
	if EngineFor(address) == GridFTP {
		_, err := ParseExportURL(address)
		return err
	}
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
		return fmt.Errorf("%q is not host:port", address)
	}
	return nil
}

// ExportURL is an export as a GridFTP server shows it. Its parts hold nothing that could
// be taken for a wildcard, an option or an escape.
type ExportURL struct{ Scheme, Host, Path string }

var (
	urlHost = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	urlPath = regexp.MustCompile(`^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$`)
)

// ParseExportURL reads one: gsiftp, or ftp where nothing has to be protected.
func ParseExportURL(s string) (ExportURL, error) {
	u, err := url.Parse(s)
	if err != nil || u.User != nil {
		return ExportURL{}, errors.New("this is not the URL of an export; a user or a password has no place in it")
	}
	if u.Scheme != "gsiftp" && u.Scheme != "ftp" || !urlHost.MatchString(u.Host) || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return ExportURL{}, fmt.Errorf("%q is not the URL of an export, such as gsiftp://dtn-a.example.org:2811/export/glance", s)
	}
	p := strings.TrimSuffix(u.Path, "/")
	if !urlPath.MatchString(p) || u.RawPath != "" {
		return ExportURL{}, fmt.Errorf("%q has not the path of an export: names of letters, digits and . _ -", s)
	}
	return ExportURL{u.Scheme, u.Host, p}, nil
}

// File returns the URL of a file of the export.
func (u ExportURL) File(name string) string { return u.Scheme + "://" + u.Host + u.Path + "/" + name }
