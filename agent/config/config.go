// Package config is the configuration of both daemons: what can be set, what it
// is when it is not set, and everything that is wrong with it, told at once.
// Loading is a pure function of the file and the environment, so a running daemon
// can load a new configuration, refuse it, and keep the old one.
//
// The environment wins over the file: GLANCE_DTN_ and the key in capitals, with
// two underscores between levels, as in GLANCE_DTN_DTN__URL for dtn.url. This works
// for single values, not for lists; an empty variable counts as not set.
//
// Secrets are never part of a configuration, only names of the files that hold
// them, and no value that could be one is repeated in an error.
package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/mover"
)

// Size is a number of bytes. In a file it is a whole number, alone or with one of
// the units KiB, MiB, GiB, TiB, PiB, which may be written K, M, G, T, P (powers of
// 1024), and kB, MB, GB, TB, PB (powers of 1000).
type Size int64

// Agent is agent.yaml. Relative paths in it are relative to the file.
type Agent struct {
	// Site is this site's name, by which its peers know it: up to 32 letters, digits,
	// '-' and '_', the first a letter or a digit, the same as in the certificates. Required.
	Site string `mapstructure:"site"`
	// Log says how much is logged to standard error, and how it looks.
	Log Log `mapstructure:"log"`
	// Glance is this site's image service.
	Glance Glance `mapstructure:"glance"`
	// Export is the directory where the DTN's export is mounted here. Staged files
	// go to its outbox, arrivals come from its inbox. Required.
	Export string `mapstructure:"export"`
	// Mount says whether Export has to be mounted: required, it must itself be a mount
	// point; none, it is a plain directory of this machine; auto, the mount that it was on
	// when it was last well must be there. Whatever it says, Export must bear the marker
	// that the DTN has made. The default is auto.
	Mount string `mapstructure:"mount"`
	// DTN is this site's data transfer node.
	DTN DTNClient `mapstructure:"dtn"`
	// TLS names the certificates. The agent's carries the URI
	// spiffe://glance-dtn/site/SITE/agent; `glance-dtn pki` makes them.
	TLS TLS `mapstructure:"tls"`
	// Listen is host:port of the API for the peers, with mutual TLS. An empty host
	// means every address. The default is ":7442".
	Listen string `mapstructure:"listen"`
	// Control is the unix socket of the control API, mode 0600, for the command line
	// on this machine. The default is /run/glance-dtn/agent.sock.
	Control string `mapstructure:"control"`
	// Metrics is host:port of plain HTTP with /metrics, /healthz and /readyz. Empty
	// turns it off. The default is 127.0.0.1:9442.
	Metrics string `mapstructure:"metrics"`
	// State is where jobs are kept.
	State State `mapstructure:"state"`
	// Peers are the other sites: those that images are sent to, and those that
	// images may come from. No other site is talked to. The default is none.
	Peers []Peer `mapstructure:"peers"`
	// Rules say which images are sent where by themselves. The default is none:
	// images are sent only when a person or a peer asks.
	Rules []Rule `mapstructure:"rules"`
	// Watch is how changes are noticed.
	Watch Watch `mapstructure:"watch"`
	// Deliver is how arrived images are put into Glance.
	Deliver Deliver `mapstructure:"deliver"`
	// Retry is how soon something that failed is tried again.
	Retry Retry `mapstructure:"retry"`
	// Transfer is how files are moved.
	Transfer Transfer `mapstructure:"transfer"`
	// Keep is how long a finished job can still be looked at. The default is 720h, 30 days.
	Keep time.Duration `mapstructure:"keep"`
}

// Log is the log of a daemon.
type Log struct {
	// Level is the least that is logged: debug, info, warn or error. The default is info.
	Level string `mapstructure:"level"`
	// Format is text, json, or auto: text on a terminal, JSON otherwise. The default is auto.
	Format string `mapstructure:"format"`
}

// Glance is how the agent reaches its site's image service.
type Glance struct {
	// Cloud is the entry of clouds.yaml to use. The default is empty: the OS_*
	// variables of the environment are used.
	Cloud string `mapstructure:"cloud"`
	// CloudsFile is the clouds.yaml. The default is empty: it is looked for in the
	// working directory, ~/.config/openstack and /etc/openstack.
	CloudsFile string `mapstructure:"clouds_file"`
	// Region is this site's region in Keystone's catalog. The default is empty: the
	// one of clouds.yaml or OS_REGION_NAME, or the only one there is.
	Region string `mapstructure:"region"`
	// Interface is the endpoint to use: public, internal or admin. The default is public.
	Interface string `mapstructure:"interface"`
	// PasswordFile holds the password and nothing else. The default is empty: the
	// password is in clouds.yaml or OS_PASSWORD.
	PasswordFile string `mapstructure:"password_file"`
	// Datadirs are the directories of Glance's filesystem store. The default is
	// none: they are asked from Glance and, if it does not tell, read from Conf.
	Datadirs []string `mapstructure:"datadirs"`
	// Conf is glance-api's configuration. The default is /etc/glance/glance-api.conf.
	Conf string `mapstructure:"conf"`
}

// DTNClient is how the agent reaches its DTN.
type DTNClient struct {
	// URL is the DTN's API, https://host:port. Required.
	URL string `mapstructure:"url"`
}

// TLS names a daemon's certificates, in PEM.
type TLS struct {
	// CA holds the certificates that the other side's must be signed by. The default is ca.pem.
	CA string `mapstructure:"ca"`
	// Cert is the daemon's certificate. The default is agent.pem for the agent, dtn.pem for the DTN.
	Cert string `mapstructure:"cert"`
	// Key is its private key. The default is agent.key for the agent, dtn.key for the DTN.
	Key string `mapstructure:"key"`
}

// State is where the agent keeps its jobs: in an etcd of its own, or in the
// operator's.
type State struct {
	// Embedded is the directory of the agent's own etcd. The default, when no
	// endpoints are given, is /var/lib/glance-dtn/agent. It excludes Endpoints.
	Embedded string `mapstructure:"embedded"`
	// Endpoints are the URLs of an etcd cluster, which several agents of one site may share.
	Endpoints []string `mapstructure:"endpoints"`
	// Prefix is what all keys in the cluster begin with. The site's name always comes
	// next, so that several sites may share a cluster. The default is /glance-dtn.
	Prefix string `mapstructure:"prefix"`
	// CA holds the certificates that the cluster's must be signed by. The default is
	// empty: those that the system trusts.
	CA string `mapstructure:"ca"`
	// Cert and Key are the client certificate for the cluster. The default is none.
	Cert string `mapstructure:"cert"`
	Key  string `mapstructure:"key"`
	// Username is the user in etcd. The default is none.
	Username string `mapstructure:"username"`
	// PasswordFile holds the user's password and nothing else.
	PasswordFile string `mapstructure:"password_file"`
}

// URLCallback is the Peer.URL of a site whose agent connects to this one instead.
const URLCallback = "callback"

// Peer is another site.
type Peer struct {
	// Name is the site's name, as in its own configuration and certificates. Required.
	Name string `mapstructure:"name"`
	// URL is its agent's API, https://host:port; callback where this agent cannot connect to
	// that one, which then has to connect to this one. Required.
	URL string `mapstructure:"url"`
	// Callback keeps connections to its agent, over which that one asks this one: for a site
	// that the other cannot connect to. There this site's url is callback. The default is false.
	Callback bool `mapstructure:"callback"`
	// Jobs is how many images of one priority are sent to it at once, 1 to 64. The default is 2.
	Jobs int `mapstructure:"jobs"`
	// MayPull allows the site to ask for any image of this one. The default is false.
	MayPull bool `mapstructure:"may_pull"`
	// Via is the DTN of a third site, which files to this one go through. Its operator
	// allows it in relay.routes, and the peer's in relays. The default is none.
	Via Via `mapstructure:"via"`
	// Relays are the sites whose DTNs may pass files of this peer on to this site. The
	// default is none: they come from the peer itself.
	Relays []string `mapstructure:"relays"`
}

// Via is a DTN that passes files on.
type Via struct {
	// Site is its site, as in its certificate. Empty: files go straight to the peer.
	Site string `mapstructure:"site"`
	// Address is host:port of its data plane.
	Address string `mapstructure:"address"`
	// Mode is when it passes a file on: cut, each block as soon as it is there; store, the
	// whole, once its digest was found right. With auto it is chosen for each file whether that
	// goes straight or through one of Among, and in which mode: by what the DTNs have seen of
	// the paths, and straight where that is not enough. The default is cut.
	Mode string `mapstructure:"mode"`
	// Among are the DTNs that auto chooses from, instead of Site and Address. The default is none.
	Among []Third `mapstructure:"among"`
}

// Third is the DTN of a third site.
type Third struct {
	// Site is its site, as in its certificate. Required.
	Site string `mapstructure:"site"`
	// Address is host:port of its data plane. Required.
	Address string `mapstructure:"address"`
}

// ViaAuto is the Via.Mode that chooses.
const ViaAuto = "auto"

// Rule sends the images it selects to sites.
type Rule struct {
	// Name is for logs and messages; no two rules share one. Required.
	Name string `mapstructure:"name"`
	// To lists the names of peers. Required.
	To []string `mapstructure:"to"`
	// Match selects the images. The default is every image.
	Match Match `mapstructure:"match"`
	// Priority of the jobs that it makes: low, normal or high. Of the jobs to a site and of
	// the DTN's transfers the higher go first, and transfers give their places to higher
	// ones. Of several rules the highest counts. The default is normal.
	Priority string `mapstructure:"priority"`
}

// Match selects images: every field that is set must hold, and of several values
// in one field one must hold. The default of each is not set.
type Match struct {
	// Names are regular expressions (RE2), each for the whole name.
	Names []string `mapstructure:"names"`
	// IDs are image ids.
	IDs []string `mapstructure:"ids"`
	// Tags are image tags.
	Tags []string `mapstructure:"tags"`
	// Visibility is any of public, community, shared and private.
	Visibility []string `mapstructure:"visibility"`
	// Owners are project ids of this site.
	Owners []string `mapstructure:"owners"`
	// Properties must all have these values. Their names keep their case.
	Properties map[string]string `mapstructure:"properties"`
	// MaxSize is the largest size that is sent; 0 means any.
	MaxSize Size `mapstructure:"max_size"`
}

// Watch is how changes are noticed. None of these has to be right for images to
// arrive, they only decide how soon.
type Watch struct {
	// Scan is the time between two looks at the names and sizes in the datadirs. The default is 1m.
	Scan time.Duration `mapstructure:"scan"`
	// Listing is the time between two requests to Glance for what has changed. The default is 15s.
	Listing time.Duration `mapstructure:"listing"`
	// Reconcile is the time between two comparisons of everything. The default is 10m.
	Reconcile time.Duration `mapstructure:"reconcile"`
	// Stuck is how long an image may be saving or importing before that is reported. The default is 1h.
	Stuck time.Duration `mapstructure:"stuck"`
}

// Deliver is how arrived images are put into Glance.
type Deliver struct {
	// Jobs is how many images of one site and priority are uploaded to Glance at once, 1 to
	// 64. The default is 2.
	Jobs int `mapstructure:"jobs"`
	// OnDeletedID is what to do with an image whose id was deleted here, which Glance
	// never gives again: park the job until a person decides, or new-id: deliver it
	// under another id, with the property glance_dtn_source_id. The default is park.
	OnDeletedID string `mapstructure:"on_deleted_id"`
	// Owner is who owns the image here: agent, the project that the agent works in,
	// or source, the project with the same id as at the source. The default is agent.
	Owner string `mapstructure:"owner"`
}

// Retry is how soon something that failed is tried again: after Min, then after
// longer and longer, but never longer than Max.
type Retry struct {
	// Min is the first wait. The default is 1s.
	Min time.Duration `mapstructure:"min"`
	// Max is the longest wait. The default is 5m.
	Max time.Duration `mapstructure:"max"`
}

// Transfer is how files are moved.
type Transfer struct {
	// Pipelining is how many blocks are sent on a connection before an answer is
	// waited for, up to 64. The default is 0: the DTN chooses.
	Pipelining int `mapstructure:"pipelining"`
	// Parallelism is the number of connections for one file, up to 16. The default is 0: the DTN chooses.
	Parallelism int `mapstructure:"parallelism"`
	// Stage is how a file gets onto the export: auto (hard link, reflink or a copy made by
	// the NFS server where that can be, else copy) or copy. A hard link has the owner and
	// mode of Glance's file: it is one only if the DTN's user is in its group. The default
	// is auto.
	Stage string `mapstructure:"stage"`
}

// DTN is dtn.yaml. Relative paths in it are relative to the file.
type DTN struct {
	// Site is the name of the site that this DTN serves, the same as in its agent's
	// configuration and in the certificates. Required.
	Site string `mapstructure:"site"`
	// Log says how much is logged to standard error, and how it looks.
	Log Log `mapstructure:"log"`
	// Export is the directory that the agent mounts. Files are sent from its outbox
	// and arrive in its inbox. Required.
	Export string `mapstructure:"export"`
	// Listen is host:port of the API for the site's own agent, with mutual TLS. An
	// empty host means every address. The default is ":7443".
	Listen string `mapstructure:"listen"`
	// Data is host:port of the data plane for other sites' DTNs, with mutual TLS. The default is ":7444".
	Data string `mapstructure:"data"`
	// Address is host:port by which other sites' DTNs reach Data. Required, unless
	// Callback is given or gridftp.url is set: then Data is not opened.
	Address string `mapstructure:"address"`
	// Callback is for a DTN that other sites cannot connect to: host:port of the data planes
	// of the DTNs that files come from. It keeps a connection to each, over which that one
	// asks it for those that carry files. It excludes Address. The default is none.
	Callback []string `mapstructure:"callback"`
	// GridFTP sends files to the DTNs that take them by GridFTP, and takes them itself
	// where neither Address nor Callback is given. The default is none.
	GridFTP GridFTP `mapstructure:"gridftp"`
	// State is the directory where transfers and arrivals are kept. The default is /var/lib/glance-dtn/dtn.
	State string `mapstructure:"state"`
	// TLS names the certificates. The DTN's carries the URI
	// spiffe://glance-dtn/site/SITE/dtn; `glance-dtn pki` makes them.
	TLS TLS `mapstructure:"tls"`
	// Metrics is host:port of plain HTTP with /metrics, /healthz and /readyz. Empty
	// turns it off. The default is 127.0.0.1:9443.
	Metrics string `mapstructure:"metrics"`
	// Transfers is how many files are sent at once, 1 to 64, those of up to 1 MiB not
	// counted. The default is 4.
	Transfers int `mapstructure:"transfers"`
	// Protection is what keeps a file's bytes from harm on their way: private (TLS), safe
	// (nobody changes them unseen, who listens reads them) or clear. Files are sent in
	// it, and none is taken in less. The default is private.
	Protection string `mapstructure:"protection"`
	// Compression of files on their way: auto, where on the path at hand it saves more time
	// than it takes; or off. The default is auto.
	Compression string `mapstructure:"compression"`
	// Congestion is the TCP congestion control of connections that files are sent over: the
	// kernel's name of one, such as htcp; host, what the host uses by itself; or auto, bbr to
	// a site that is not near where the kernel offers it, else the host's, or cubic where that
	// is bbr. The default is auto.
	Congestion string `mapstructure:"congestion"`
	// Tuning is how the DTN finds what transfers move fastest with, where nobody has set it.
	Tuning Tuning `mapstructure:"tuning"`
	// Delta has other sites' DTNs send only what their images do not share with those that
	// arrived here before.
	Delta Delta `mapstructure:"delta"`
	// Reserve is the space on the export that is never given to arrivals. The default is 1GiB.
	Reserve Size `mapstructure:"reserve"`
	// Relay passes files on from one site to another, through this one. The default is none.
	Relay Relay `mapstructure:"relay"`
	// Limits are how much the data plane may move, and when. At any time the strictest that
	// matches rules: of those for one site over what moves to and from it, of those for all
	// sites over the sum. A daemon takes changes of them on SIGHUP. The default is none.
	Limits []Limit `mapstructure:"limits"`
}

// Relay is what a DTN does for two other sites whose own path is worse. The agents of both
// have to name it, too: see via and relays of their peers. The site that files come from is
// told what this DTN has seen of its paths to those that they may go to.
type Relay struct {
	// Space is what files on their way may take of the export, all together. In store mode
	// a file takes its size, in cut mode no more than a quarter of this. Required with Routes.
	Space Size `mapstructure:"space"`
	// Keep is how long what a file has brought here stays when it cannot go on, because a
	// limit lets nothing through, the destination does not answer, or nobody brings the
	// rest. After two hours it gives its room to files that need it. The default is 72h.
	Keep time.Duration `mapstructure:"keep"`
	// Routes say between which sites. The default is none.
	Routes []Route `mapstructure:"routes"`
}

// Route lets files pass, one way.
type Route struct {
	// From is the site that they come from. Required.
	From string `mapstructure:"from"`
	// To lists the sites that they may go to. Required.
	To []string `mapstructure:"to"`
}

// Limit bounds what moves at certain times. GridFTP keeps none.
type Limit struct {
	// Site is the other site. The default is empty: all sites together.
	Site string `mapstructure:"site"`
	// Days are when it holds, such as mon-fri or sat,sun. The default is empty: every day.
	Days string `mapstructure:"days"`
	// Hours are when it holds, such as 08:00-18:00; 22:00-06:00 ends on the day after those
	// in Days. The default is empty: all day.
	Hours string `mapstructure:"hours"`
	// Zone is the time zone of Days and Hours, such as Europe/Berlin. The default is empty:
	// that of this machine.
	Zone string `mapstructure:"zone"`
	// Send is the rate at which files are sent, such as 200Mbit/s, at least 64kbit/s; 0:
	// none are, and transfers wait. The default is unlimited.
	Send mover.Rate `mapstructure:"send"`
	// Receive is the rate at which files are taken, as Send.
	Receive mover.Rate `mapstructure:"receive"`
}

// Tuning is how a DTN finds pipelining and parallelism of transfers for which neither the
// agent's configuration nor an operator says them.
type Tuning struct {
	// Correct has transfers that take long corrected while they run, from what they achieve.
	// The default is true.
	Correct bool `mapstructure:"correct"`
	// Advise has transfers begin with what was best before, as far as the DTN's history tells.
	// The default is true.
	Advise bool `mapstructure:"advise"`
	// Parallelism is the most connections to one destination of a transfer that is corrected
	// or advised, 1 to 16. The default is 16.
	Parallelism int `mapstructure:"parallelism"`
}

// Delta is what a DTN keeps of images that were delivered.
type Delta struct {
	// Keep is how much of them is kept on the export, those that were used last. They give
	// way to arrivals, not to what is staged, for which the export needs room besides. The
	// default is 0, off: only its operator knows how much of an export may be taken.
	Keep Size `mapstructure:"keep"`
}

// GridFTP is how files move between GridFTP servers. This site's server shows the export;
// it may run on another host than the DTN daemon, which starts globus-url-copy.
type GridFTP struct {
	// URL is the export as the site's GridFTP server shows it to other sites' servers:
	// gsiftp://host:port/path, or ftp://host:port/path, which protects nothing.
	URL string `mapstructure:"url"`
	// Cert and Key are the certificate for GridFTP servers and its private key, in PEM.
	// GSI wants RSA keys, those of the authorities included.
	Cert string `mapstructure:"cert"`
	Key  string `mapstructure:"key"`
	// Proxy is a file with a proxy certificate, instead of Cert and Key.
	Proxy string `mapstructure:"proxy"`
	// CertDir holds the trusted authorities under their hashes, with their signing
	// policies. The default is /etc/grid-security/certificates.
	CertDir string `mapstructure:"cert_dir"`
	// Protection of the data on its way: private, encrypted; safe, it cannot be changed;
	// or clear, only the ends prove who they are. The default is private.
	Protection string `mapstructure:"protection"`
	// Buffer is the size of the TCP buffers of data connections, at most 1GiB. The default
	// is 0: the systems of the servers choose.
	Buffer Size `mapstructure:"buffer"`
}

// DefaultAgent is the configuration of an empty agent.yaml. What is required is empty.
func DefaultAgent() Agent {
	return Agent{
		Log:      Log{Level: "info", Format: "auto"},
		Glance:   Glance{Interface: "public", Conf: "/etc/glance/glance-api.conf"},
		Mount:    "auto",
		TLS:      TLS{CA: "ca.pem", Cert: "agent.pem", Key: "agent.key"},
		Listen:   ":7442",
		Control:  "/run/glance-dtn/agent.sock",
		Metrics:  "127.0.0.1:9442",
		State:    State{Embedded: defaultState, Prefix: "/glance-dtn"},
		Watch:    Watch{Scan: time.Minute, Listing: 15 * time.Second, Reconcile: 10 * time.Minute, Stuck: time.Hour},
		Deliver:  Deliver{Jobs: 2, OnDeletedID: "park", Owner: "agent"},
		Retry:    Retry{Min: time.Second, Max: 5 * time.Minute},
		Transfer: Transfer{Stage: "auto"},
		Keep:     30 * 24 * time.Hour,
	}
}

const (
	defaultState = "/var/lib/glance-dtn/agent"
	defaultJobs  = 2 // of a peer
)

// DefaultDTN is the configuration of an empty dtn.yaml. What is required is empty.
func DefaultDTN() DTN {
	return DTN{
		Log:       Log{Level: "info", Format: "auto"},
		Listen:    ":7443",
		Data:      ":7444",
		State:     "/var/lib/glance-dtn/dtn",
		TLS:       TLS{CA: "ca.pem", Cert: "dtn.pem", Key: "dtn.key"},
		Metrics:   "127.0.0.1:9443",
		Transfers: 4, Protection: "private", Compression: "auto", Congestion: "auto",
		Tuning:  Tuning{Correct: true, Advise: true, Parallelism: mover.MaxParallelism},
		Reserve: 1 << 30, Relay: Relay{Keep: 72 * time.Hour},
		GridFTP: GridFTP{CertDir: "/etc/grid-security/certificates", Protection: "private"},
	}
}

// LoadAgent returns the agent's configuration: the defaults, overlaid by the file
// at path and then by the environment, valid and with absolute paths. The error
// names the file and then, a line each, everything that is wrong, beginning with
// the key as it was typed.
func LoadAgent(path string, env func(string) string) (Agent, error) {
	a := DefaultAgent()
	a.State.Embedded = "" // the default only where there are no endpoints either
	err := load(path, env, &a, func(dir string, f *faults) {
		if a.State.Embedded == "" && len(a.State.Endpoints) == 0 {
			a.State.Embedded = defaultState
		}
		resolve(dir, &a.Glance.CloudsFile, &a.Glance.PasswordFile, &a.Glance.Conf, &a.Export, &a.Control,
			&a.TLS.CA, &a.TLS.Cert, &a.TLS.Key,
			&a.State.Embedded, &a.State.CA, &a.State.Cert, &a.State.Key, &a.State.PasswordFile)
		for i := range a.Glance.Datadirs {
			resolve(dir, &a.Glance.Datadirs[i])
		}
		a.validate(f)
	})
	return a, err
}

// LoadDTN returns the DTN's configuration, as LoadAgent does the agent's.
func LoadDTN(path string, env func(string) string) (DTN, error) {
	d := DefaultDTN()
	err := load(path, env, &d, func(dir string, f *faults) {
		resolve(dir, &d.Export, &d.State, &d.TLS.CA, &d.TLS.Cert, &d.TLS.Key,
			&d.GridFTP.Cert, &d.GridFTP.Key, &d.GridFTP.Proxy, &d.GridFTP.CertDir)
		d.validate(f)
	})
	return d, err
}

// AgentRules returns the rules as the agent takes them. The configuration must be valid.
func (a Agent) AgentRules() []agent.Rule {
	var rules []agent.Rule
	for _, r := range a.Rules {
		m := agent.Match{
			Names: r.Match.Names, Tags: r.Match.Tags, Visibility: r.Match.Visibility,
			Owners: r.Match.Owners, Properties: r.Match.Properties, MaxSize: int64(r.Match.MaxSize),
		}
		for _, id := range r.Match.IDs {
			m.IDs = append(m.IDs, glance.ImageID(strings.ToLower(id)))
		}
		rule := agent.Rule{Name: r.Name, Match: m, To: r.To, Priority: mover.Priority(r.Priority)}
		if rule.Priority == mover.PriorityNormal {
			rule.Priority = "" // the same, and a peer of a version without priorities takes the offer
		}
		rules = append(rules, rule)
	}
	return rules
}

// Relays returns the relays of Via that a way is chosen from. The configuration must be valid.
func (v Via) Relays() (all []mover.Relay) {
	for _, r := range v.Among {
		all = append(all, mover.Relay{Site: r.Site, Address: r.Address})
	}
	return all
}

// Relay returns Via as the mover takes it. The configuration must be valid.
func (p Peer) Relay() mover.Relay {
	if p.Via.Site == "" {
		return mover.Relay{}
	}
	return mover.Relay{Site: p.Via.Site, Address: p.Via.Address, Mode: mover.RelayMode(p.Via.Mode)}
}

// Allows reports whether files of the one site may pass to the other.
func (r Relay) Allows(from, to string) bool {
	return slices.ContainsFunc(r.Routes, func(o Route) bool { return o.From == from && slices.Contains(o.To, to) })
}

// MoverLimits returns the limits as the data plane takes them. The configuration must be
// valid.
func (d DTN) MoverLimits() mover.Limits {
	var ls mover.Limits
	for _, l := range d.Limits {
		w, _ := mover.ParseWindow(l.Days, l.Hours, l.Zone) // Validate knows no fault of it
		ls = append(ls, mover.Limit{Site: l.Site, Window: w, Send: l.Send, Receive: l.Receive})
	}
	return ls
}

// String returns the size with the largest unit that loses nothing.
func (s Size) String() string {
	for _, u := range units {
		if s >= Size(u.bytes) && int64(s)%u.bytes == 0 {
			return fmt.Sprintf("%d%s", int64(s)/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d", int64(s))
}
