package gridftp

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/mover"
)

// fault is a run of globus-url-copy that failed.
type fault struct {
	url   string   // that it failed at; empty: not known
	words []string // what was said
	exit  error
}

func (f *fault) Error() string {
	said := mover.Told(cmp.Or(strings.Join(f.words, ": "), f.exit.Error()))
	if f.url == "" {
		return "globus-url-copy: " + said
	}
	return f.url + ": " + said
}

// trouble is what a server or globus-url-copy says when something is wrong, and what
// follows from it.
type trouble struct {
	says   string
	code   mover.Code
	advice string
}

// What every refusal of its kind begins with; the reason comes last.
const (
	anyGSS   = "GSS failure"
	anyLogin = "530 "
)

// Where both ends have the same trouble, it is told apart by the end that had it.
var (
	authTroubles = []trouble{
		{"Could not map", mover.CodeAuth, "add the sending DTN's subject to that server's grid-mapfile, for the account that owns the export"},
		{"Could not verify credential: certificate has expired", mover.CodeAuth, "renew that certificate or proxy"},
		{"credential has expired", mover.CodeAuth, "renew that certificate or proxy"},
		{"Can't get the local trusted CA certificate", mover.CodeAuth, "put the CA of that server, with its signing policy, into gridftp.cert_dir"},
		{"Could not verify credential", mover.CodeAuth, "that server does not trust the CA of gridftp.cert: put the CA, with its signing policy, into its certificates directory"},
		{"key size too small", mover.CodeAuth, "GSI delegates with RSA alone: gridftp.cert and its CA need RSA keys of 2048 bits or more, which glance-dtn pki does not make"},
		{"signing algorithm used by the certificate cannot", mover.CodeAuth, "GSI delegates with RSA alone: gridftp.cert and its CA need RSA keys of 2048 bits or more, which glance-dtn pki does not make"},
		{"Valid credentials could not be found", mover.CodeAuth, "set gridftp.cert and gridftp.key, or gridftp.proxy, to files that the DTN's user may read"},
		{"Login incorrect", mover.CodeAuth, "that server does not let this DTN in"},
		{anyGSS, mover.CodeAuth, "see gridftp.cert, gridftp.cert_dir, and the clocks of both hosts"},
		{anyLogin, mover.CodeAuth, "that server does not let this DTN in"},
	}
	sourceTroubles = []trouble{
		{"No such file or directory", mover.CodeSource, "it is not staged, or gridftp.url is not this export"},
		{"Permission denied", mover.CodeName, "the account of this DTN's GridFTP server may not read the staged file: put it into the group that owns the outbox, or set transfer.stage: copy in the agent's configuration"},
		{"not allowed", mover.CodeName, "this DTN's GridFTP server has restrict_paths without the outbox"},
		{"Unable to connect to", mover.CodeOther, "the sending server does not reach that data port: open the receiving server's port_range to it"},
	}
	targetTroubles = []trouble{
		{"No space left on device", mover.CodeSpace, "make room there"},
		{"Disk quota exceeded", mover.CodeSpace, "make room there"},
		{"No such file or directory", mover.CodeName, "the address is not the receiving site's export (gridftp.url there), or its inbox is not there"},
		{"Permission denied", mover.CodeName, "the account that this DTN is mapped to may not write to the receiving site's inbox"},
		{"not allowed", mover.CodeName, "the receiving server has restrict_paths without the inbox"},
		{"Read-only file system", mover.CodeOther, "mount it for writing"},
	}
	pathTroubles = []trouble{
		{"Connection refused", mover.CodeOther, "is globus-gridftp-server running there, on this port?"},
		{"timed out", mover.CodeOther, "does a firewall drop what goes there?"},
		{"No route to host", mover.CodeOther, "is the network to it up?"},
		{"getaddrinfo", mover.CodeOther, "that host's name cannot be looked up"},
		{"end-of-file", mover.CodeOther, "the server closed the connection; its log says why"},
	}
)

// explain gives what was said a code, and what to do next.
func (f *fault) explain(source, target string) error {
	lists := [][]trouble{authTroubles, pathTroubles}
	switch f.url {
	case source:
		lists = [][]trouble{authTroubles, sourceTroubles, pathTroubles}
	case target:
		lists = [][]trouble{authTroubles, targetTroubles, pathTroubles}
	}
	for _, list := range lists {
		for _, t := range list {
			if line, ok := f.said(t.says); ok {
				if t.says == anyLogin || t.says == anyGSS {
					line = f.lastSaid()
				}
				return mover.Coded(t.code, fmt.Errorf("%s: %s; %s", f.url, line, t.advice))
			}
		}
	}
	return f
}

// said returns the first line that holds words, without the codes of FTP.
func (f *fault) said(words string) (string, bool) {
	for _, line := range f.words {
		if strings.Contains(line, words) {
			return uncoded(line), true
		}
	}
	return "", false
}

// lastSaid returns the last line that says something.
func (f *fault) lastSaid() string {
	for _, line := range slices.Backward(f.words) {
		if line = uncoded(line); line != "" && line != "End." {
			return line
		}
	}
	return ""
}

// uncoded returns a line, as it may be told, without the codes of FTP that it begins with.
func uncoded(line string) string {
	for len(line) >= 4 && strings.Trim(line[:3], "0123456789") == "" && (line[3] == '-' || line[3] == ' ') {
		line = line[4:]
	}
	return mover.Told(strings.TrimSpace(line))
}

// missing turns the fault of a file that is not there into fs.ErrNotExist.
func (f *fault) missing() error {
	if line, ok := f.said("No such file or directory"); ok {
		return fmt.Errorf("%s: %s: %w", f.url, line, fs.ErrNotExist)
	}
	return f.explain(f.url, "")
}
