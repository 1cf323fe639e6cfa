package mover

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
)

// The engines, by Request.Engine.
const (
	Stream  = "stream"  // our own data plane; its address is host:port
	GridFTP = "gridftp" // third-party transfers between GridFTP servers; its address is an ExportURL
)

// EngineFor returns the engine that an address is for.
func EngineFor(address string) string {
	if strings.Contains(address, "://") {
		return GridFTP
	}
	return Stream
}

// CheckAddress reports an address that is for no engine.
func CheckAddress(address string) error {
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
