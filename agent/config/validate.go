package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// faults collects what is wrong with a configuration. Of a key that is wrong in
// itself, what follows from that is not told as well.
type faults struct {
	list []error
	keys []string
}

// add reports a fault of a key, unless one is known of it or of what it is part of.
func (f *faults) add(key, format string, args ...any) {
	if f.has(key) {
		return
	}
	f.mark(key)
	f.list = append(f.list, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
}

// mark says that a key is known to be wrong.
func (f *faults) mark(key string) { f.keys = append(f.keys, key) }

func (f *faults) has(key string) bool {
	return slices.ContainsFunc(f.keys, func(k string) bool {
		rest, ok := strings.CutPrefix(key, k)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

func (f *faults) err() error { return errors.Join(f.list...) }

// decoding adds what the decoder found: a tree whose nodes are lists of errors or
// carry the name of a key.
func (f *faults) decoding(err error) {
	switch e := err.(type) {
	case nil:
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			f.decoding(err)
		}
	case interface {
		Name() string
		Unwrap() error
	}:
		f.add(e.Name(), "%w", e.Unwrap())
	default:
		if inner := errors.Unwrap(err); inner != nil {
			f.decoding(inner)
			return
		}
		f.list = append(f.list, err)
	}
}

// Validate reports everything that is wrong, a line each, beginning with the key.
func (a Agent) Validate() error {
	f := new(faults)
	a.validate(f)
	return f.err()
}

// Validate reports everything that is wrong, a line each, beginning with the key.
func (d DTN) Validate() error {
	f := new(faults)
	d.validate(f)
	return f.err()
}

func (a Agent) validate(f *faults) {
	f.site("site", a.Site)
	a.Log.validate(f)
	f.oneOf("glance.interface", a.Glance.Interface, "public", "internal", "admin")
	f.required("export", a.Export, "the directory where the DTN's export is mounted")
	f.oneOf("mount", a.Mount, "auto", "required", "none")
	f.httpsURL("dtn.url", a.DTN.URL)
	a.TLS.validate(f)
	f.listen("listen", a.Listen)
	f.required("control", a.Control, "the path of the control socket")
	if len(a.Control) > 107 {
		f.add("control", "is %d bytes long as an absolute path; a socket's path has at most 107", len(a.Control))
	}
	f.metrics(a.Metrics)
	a.State.validate(f)
	a.validatePeers(f)
	a.validateRules(f)
	f.positive("watch.scan", a.Watch.Scan)
	f.positive("watch.listing", a.Watch.Listing)
	f.positive("watch.reconcile", a.Watch.Reconcile)
	f.positive("watch.stuck", a.Watch.Stuck)
	f.within("deliver.jobs", a.Deliver.Jobs, 1, 64)
	f.oneOf("deliver.on_deleted_id", a.Deliver.OnDeletedID, "park", "new-id")
	f.oneOf("deliver.owner", a.Deliver.Owner, "agent", "source")
	f.positive("retry.min", a.Retry.Min)
	f.positive("retry.max", a.Retry.Max)
	if a.Retry.Max < a.Retry.Min && !f.has("retry.min") {
		f.add("retry.max", "is shorter than retry.min")
	}
	f.within("transfer.pipelining", a.Transfer.Pipelining, 0, mover.MaxPipelining)
	f.within("transfer.parallelism", a.Transfer.Parallelism, 0, mover.MaxParallelism)
	f.oneOf("transfer.stage", a.Transfer.Stage, "auto", "copy")
	f.positive("keep", a.Keep)
}

func (d DTN) validate(f *faults) {
	f.site("site", d.Site)
	d.Log.validate(f)
	f.required("export", d.Export, "the directory that the agent mounts")
	f.listen("listen", d.Listen)
	f.listen("data", d.Data)
	if d.Listen == d.Data && !strings.HasSuffix(d.Data, ":0") {
		f.add("data", "is the same as listen; it needs a port of its own")
	}
	switch {
	case len(d.Callback) > 0 && d.Address != "":
		f.add("callback", "contradicts address: leave address out where other sites cannot reach the data plane, callback where they can")
	case len(d.Callback) == 0 && (d.Address != "" || d.GridFTP.URL == "") && !isHostPort(d.Address):
		f.add("address", "must be host:port by which other sites reach the data plane, such as dtn-a.example.org:7444; where they cannot, see callback")
	}
	for i, a := range d.Callback {
		if !isHostPort(a) {
			f.add(fmt.Sprintf("callback[%d]", i), "%q must be host:port of the data plane of another site's DTN, such as dtn-b.example.org:7444", a)
		} else if slices.Contains(d.Callback[:i], a) {
			f.add(fmt.Sprintf("callback[%d]", i), "%s is there twice", a)
		}
	}
	d.Relay.validate(d.Site, f)
	if len(d.Relay.Routes) > 0 && d.Address == "" {
		f.add("relay.routes", "have no meaning without address: the sending site's DTN connects to this one's data plane")
	}
	d.GridFTP.validate(f)
	f.required("state", d.State, "a directory")
	d.TLS.validate(f)
	f.metrics(d.Metrics)
	f.within("transfers", d.Transfers, 1, 64)
	f.oneOf("protection", d.Protection, string(mover.Clear), string(mover.Safe), string(mover.Private))
	f.oneOf("compression", d.Compression, string(mover.Auto), string(mover.Off))
	f.required("congestion", d.Congestion, "auto, host, or a congestion control of the kernel's")
	f.within("tuning.parallelism", d.Tuning.Parallelism, 1, mover.MaxParallelism)
	if d.Delta.Keep < 0 {
		f.add("delta.keep", "must not be negative")
	}
	if d.Reserve < 0 {
		f.add("reserve", "must not be negative")
	}
	for i, l := range d.Limits {
		l.validate(fmt.Sprintf("limits[%d]", i), d.Site, f)
	}
}

// leastRate is enough for a block to arrive before its connection is taken for still.
const leastRate mover.Rate = 64e3

func (l Limit) validate(at, site string, f *faults) {
	if l.Site != "" {
		f.site(at+".site", l.Site)
		if l.Site == site {
			f.add(at+".site", "%s is this site itself", l.Site)
		}
	}
	window := func(key, days, hours, zone string) {
		if _, err := mover.ParseWindow(days, hours, zone); err != nil {
			f.add(at+"."+key, "%w", err)
		}
	}
	window("days", l.Days, "", "")
	window("hours", "", l.Hours, "")
	window("zone", "", "", l.Zone)
	rate := func(key string, r mover.Rate) {
		if r != 0 && r < leastRate {
			f.add(at+"."+key, "is less than %v; 0 means nothing at all", leastRate)
		}
	}
	rate("send", l.Send)
	rate("receive", l.Receive)
	if l.Send == mover.Unlimited && l.Receive == mover.Unlimited {
		f.add(at, "limits nothing: set send, receive or both")
	}
}

func (g GridFTP) validate(f *faults) {
	f.oneOf("gridftp.protection", g.Protection, "private", "safe", "clear")
	if g.Buffer < 0 || g.Buffer > 1<<30 {
		f.add("gridftp.buffer", "must be between 0 and 1GiB; 0 means that the servers' systems choose")
	}
	if (g.Cert == "") != (g.Key == "") {
		f.add("gridftp.cert", "and gridftp.key are given together or not at all")
	}
	if g.Cert != "" && g.Proxy != "" {
		f.add("gridftp.proxy", "contradicts gridftp.cert: leave one of them out")
	}
	if g.URL == "" {
		if g.Cert != "" || g.Proxy != "" || g.Buffer != 0 {
			f.add("gridftp.url", "is missing: the export as this site's GridFTP server shows it")
		}
		return
	}
	u, err := mover.ParseExportURL(g.URL)
	switch {
	case err != nil:
		f.add("gridftp.url", "%w", err)
	case u.Scheme == "gsiftp" && g.Cert == "" && g.Proxy == "":
		f.add("gridftp.cert", "is missing: a certificate that GridFTP servers know, or gridftp.proxy")
	}
}

func (l Log) validate(f *faults) {
	f.oneOf("log.level", l.Level, "debug", "info", "warn", "error")
	f.oneOf("log.format", l.Format, "auto", "text", "json")
}

func (t TLS) validate(f *faults) {
	f.required("tls.ca", t.CA, "a PEM file")
	f.required("tls.cert", t.Cert, "a PEM file")
	f.required("tls.key", t.Key, "a PEM file")
}

func (s State) validate(f *faults) {
	if len(s.Endpoints) == 0 {
		f.required("state.embedded", s.Embedded, "a directory, or state.endpoints")
		for _, k := range []struct{ key, value string }{
			{"ca", s.CA}, {"cert", s.Cert}, {"key", s.Key}, {"username", s.Username}, {"password_file", s.PasswordFile},
		} {
			if k.value != "" {
				f.add("state."+k.key, "has a meaning only with state.endpoints")
			}
		}
	} else if s.Embedded != "" {
		f.add("state.embedded", "contradicts state.endpoints: jobs are kept in one place, leave one of them out")
	}
	if !strings.HasPrefix(s.Prefix, "/") {
		f.add("state.prefix", "must begin with /")
	}
	for i, e := range s.Endpoints {
		if u, err := url.Parse(e); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
			f.add(fmt.Sprintf("state.endpoints[%d]", i), "must be https://host:port or http://host:port, without a user")
		}
	}
	if len(s.Endpoints) > 0 && (s.Cert == "") != (s.Key == "") {
		f.add("state.cert", "and state.key are given together or not at all")
	}
	if len(s.Endpoints) > 0 && (s.Username == "") != (s.PasswordFile == "") {
		f.add("state.username", "and state.password_file are given together or not at all")
	}
}

func (a Agent) validatePeers(f *faults) {
	seen := map[string]int{}
	for i, p := range a.Peers {
		key := fmt.Sprintf("peers[%d]", i)
		f.site(key+".name", p.Name)
		if first, ok := seen[p.Name]; ok && p.Name != "" {
			f.add(key+".name", "%s is peers[%d] already", p.Name, first)
		} else if p.Name != "" && p.Name == a.Site {
			f.add(key+".name", "%s is this site itself", p.Name)
		} else {
			seen[p.Name] = i
		}
		if p.URL != URLCallback {
			f.httpsURL(key+".url", p.URL)
		} else if p.Callback {
			f.add(key+".callback", "contradicts url: one of the two agents has to be one that can be connected to")
		}
		f.within(key+".jobs", p.Jobs, 1, 64)
		p.validateRelays(key, a.Site, f)
	}
}

func (p Peer) validateRelays(key, own string, f *faults) {
	p.Via.validate(key+".via", own, p.Name, f)
	for i, s := range p.Relays {
		f.third(fmt.Sprintf("%s.relays[%d]", key, i), s, own, p.Name)
	}
}

func (v Via) validate(key, own, peer string, f *faults) {
	relay := func(at, site, address string) {
		f.third(at+".site", site, own, peer)
		f.address(at+".address", address, "by which this site's DTN reaches the relay's data plane, such as dtn-r.example.org:7444")
	}
	if v.Mode != "" || v.Site != "" || v.Address != "" {
		f.oneOf(key+".mode", v.Mode, string(mover.CutThrough), string(mover.StoreForward), ViaAuto)
	}
	switch single := v.Site != "" || v.Address != ""; {
	case v.Mode != ViaAuto && len(v.Among) > 0:
		f.add(key+".among", "has a meaning only with mode: %s", ViaAuto)
	case v.Mode != ViaAuto && single:
		relay(key, v.Site, v.Address)
	case v.Mode == ViaAuto && single:
		f.add(key+".site", "contradicts mode: %s, which chooses: put site and address into %s.among", ViaAuto, key)
	case v.Mode == ViaAuto && len(v.Among) == 0:
		f.add(key+".among", "is missing: the DTNs to choose from, such as [{site: R, address: dtn-r.example.org:7444}]")
	}
	for i, r := range v.Among {
		at := fmt.Sprintf("%s.among[%d]", key, i)
		relay(at, r.Site, r.Address)
		if slices.ContainsFunc(v.Among[:i], func(o Third) bool { return o.Site == r.Site }) {
			f.add(at+".site", "%s is there already", r.Site)
		}
	}
}

// third checks the name of a site that is neither of the other two.
func (f *faults) third(key, name string, others ...string) {
	f.site(key, name)
	if name != "" && slices.Contains(others, name) {
		f.add(key, "%s is not a third site", name)
	}
}

func (r Relay) validate(own string, f *faults) {
	switch {
	case r.Space < 0:
		f.add("relay.space", "must not be negative")
	case len(r.Routes) > 0 && r.Space == 0:
		f.add("relay.space", "is missing: what files on their way may take of the export, such as 50GiB")
	case len(r.Routes) == 0 && r.Space > 0:
		f.add("relay.routes", "is missing: between which sites files may pass, such as [{from: A, to: [B]}]")
	}
	if r.Keep <= 0 {
		f.add("relay.keep", "must be positive, such as 72h")
	}
	for i, o := range r.Routes {
		key := fmt.Sprintf("relay.routes[%d]", i)
		f.third(key+".from", o.From, own)
		if len(o.To) == 0 {
			f.add(key+".to", "is missing: the sites that files may go to")
		}
		for j, to := range o.To {
			f.third(fmt.Sprintf("%s.to[%d]", key, j), to, own, o.From)
		}
	}
}

func (a Agent) validateRules(f *faults) {
	seen := map[string]int{}
	for i, r := range a.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		f.required(key+".name", r.Name, "a name for logs")
		if first, ok := seen[r.Name]; ok && r.Name != "" {
			f.add(key+".name", "%s is rules[%d] already", r.Name, first)
		} else {
			seen[r.Name] = i
		}
		f.peers(key+".to", r.To, a.Peers)
		r.Match.validate(key+".match.", f)
		f.oneOf(key+".priority", r.Priority, string(mover.PriorityLow), string(mover.PriorityNormal), string(mover.PriorityHigh))
	}
}

// peers checks the sites that a rule sends to.
func (f *faults) peers(key string, to []string, peers []Peer) {
	if len(to) == 0 {
		f.add(key, "is missing: the peers to send to")
	}
	var names, unknown []string
	for i, p := range peers {
		if f.has("peers") || f.has(fmt.Sprintf("peers[%d].name", i)) {
			return // which names there are is not known
		}
		names = append(names, p.Name)
	}
	for _, t := range to {
		if !slices.Contains(names, t) {
			unknown = append(unknown, t)
		}
	}
	if len(unknown) > 0 {
		f.add(key, "%s: not among the peers (%s)", strings.Join(unknown, ", "), strings.Join(names, ", "))
	}
}

func (m Match) validate(at string, f *faults) {
	for i, n := range m.Names {
		if _, err := agent.CompileName(n); err != nil {
			f.add(fmt.Sprintf("%snames[%d]", at, i), "%w", err)
		}
	}
	for i, id := range m.IDs {
		if _, err := glance.ParseImageID(id); err != nil {
			f.add(fmt.Sprintf("%sids[%d]", at, i), "%w", err)
		}
	}
	for i, v := range m.Visibility {
		f.oneOf(fmt.Sprintf("%svisibility[%d]", at, i), v, "public", "community", "shared", "private")
	}
	if m.MaxSize < 0 {
		f.add(at+"max_size", "must not be negative; 0 means any size")
	}
}

func (f *faults) required(key, value, what string) {
	if value == "" {
		f.add(key, "is missing: %s", what)
	}
}

func (f *faults) site(key, name string) {
	if name == "" {
		f.add(key, "is missing: the site's name")
	} else if err := pki.CheckSite(name); err != nil {
		f.add(key, "%w", err)
	}
}

func (f *faults) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		f.add(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (f *faults) within(key string, n, least, most int) {
	if n < least || n > most {
		f.add(key, "%d is not between %d and %d", n, least, most)
	}
}

func (f *faults) positive(key string, d time.Duration) {
	if d <= 0 {
		f.add(key, "must be longer than 0")
	}
}

// httpsURL checks an address that is called with mutual TLS. It does not repeat
// the URL, which may hold a password.
func (f *faults) httpsURL(key, s string) {
	u, err := url.Parse(s)
	switch {
	case s == "":
		f.add(key, "is missing: https://host:port")
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() != "" && !isPort(u.Port()) ||
		u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		f.add(key, "must be https://host:port and nothing more")
	}
}

func (f *faults) listen(key, s string) {
	if _, port, err := net.SplitHostPort(s); err != nil || !isPort(port) {
		f.add(key, "%q must be host:port or :port", s)
	}
}

// address checks where others reach something.
func (f *faults) address(key, s, what string) {
	if !isHostPort(s) {
		f.add(key, "must be host:port %s", what)
	}
}

func (f *faults) metrics(s string) {
	if s != "" {
		f.listen("metrics", s)
	}
}

// isHostPort reports whether s is something to connect to.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && host != "" && isPort(port) && port != "0"
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}
