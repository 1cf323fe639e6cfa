// Package probe measures an NFS version 3 server (RFC 1813) over TCP without root
// and without a kernel mount: what it allows, how fast it answers, how fast it
// reads and writes at any size, depth and stability, whether it has restarted, and
// whether its acknowledgements wait for the disk.
//
// A server gives such a client what it gives the kernel's: the figures lack only
// the client's own page cache. Exports need the option insecure (exports(5)), or
// Options.ReservedPort.
package probe

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmware/go-nfs-client/nfs"
	"github.com/vmware/go-nfs-client/nfs/rpc"

	xdr "github.com/rasky/go-xdr/xdr2"
)

// Options name an export and say as whom to use it.
type Options struct {
	Host   string // name or address
	Export string // absolute path of a directory, as a client mounts it; Exports does not need it

	NFSPort   int // 0: ask the portmapper
	MountPort int // of the MOUNT service; 0: ask the portmapper
	// PortmapPort is where the portmapper listens; 0: 111.
	PortmapPort int

	// UID and GID are whom the calls are made as (AUTH_SYS), 0 being root, whom
	// most exports squash. GIDs are supplementary groups, at most 16.
	UID, GID uint32
	GIDs     []uint32

	// ReservedPort calls from a port below 1024, which exports without the option
	// insecure want. It needs root or CAP_NET_BIND_SERVICE.
	ReservedPort bool
	// Connections is how many TCP connections the calls are spread over, as the
	// mount option nconnect of nfs(5) does: 1 to 16; 0 is 1.
	Connections int
	// Timeout is how long one call may take, 0: 10 s; making a connection takes no longer
	// than that, and 10 s at most.
	Timeout time.Duration

	// Making is told the name of each scratch file before it is made, if it is not nil, so
	// that somebody can remove what a killed probe has left. Where it fails none is made.
	Making func(name string) error
	// Gone is told the name of each of these that is surely not there, if it is not nil:
	// the server has refused to make it, or it was removed.
	Gone func(name string) error
}

const (
	defaultTimeout = 10 * time.Second
	maxConnections = 16 // as the kernel's client
	authNull       = 0
	authSys        = 1
)

// Errors of Dial and Exports that a caller may want to tell apart.
var (
	// ErrNotRegistered says that the portmapper does not know NFS or MOUNT.
	ErrNotRegistered = errors.New("not registered with the portmapper")
	// ErrFlavor says that the export does not take AUTH_SYS, but Kerberos, say.
	ErrFlavor = errors.New("the export does not take AUTH_SYS credentials")
)

func (o Options) withDefaults() (Options, error) {
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(o.Host == "", "Host is empty")
	for name, port := range map[string]int{"NFSPort": o.NFSPort, "MountPort": o.MountPort, "PortmapPort": o.PortmapPort} {
		fault(port < 0 || port > 65535, "%s is %d: want 0 to 65535", name, port)
	}
	fault(len(o.GIDs) > 16, "GIDs are %d: AUTH_SYS carries 16", len(o.GIDs))
	fault(o.Connections < 0 || o.Connections > maxConnections, "Connections is %d: want 1 to %d", o.Connections, maxConnections)
	fault(o.Timeout < 0, "Timeout is %v: want more than 0", o.Timeout)
	o.Connections = max(o.Connections, 1)
	if o.PortmapPort == 0 {
		o.PortmapPort = rpc.PmapPort
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	return o, errors.Join(faults...)
}

// cred is the AUTH_SYS credential: RFC 5531 appendix A. rpc.NewAuthUnix is not
// used, since it makes everybody a member of group 0.
func (o Options) cred() (rpc.Auth, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "glance-dtn"
	}
	var body strings.Builder
	_, err = xdr.Marshal(&body, struct {
		Stamp    uint32
		Machine  string
		UID, GID uint32
		GIDs     []uint32
	}{rand.Uint32(), host[:min(len(host), 255)], o.UID, o.GID, o.GIDs})
	return rpc.Auth{Flavor: authSys, Body: []byte(body.String())}, err
}

// dial connects to a port of the host.
func (o Options) dial(ctx context.Context, port int) (*conn, error) {
	cred, err := o.cred()
	if err != nil {
		return nil, fmt.Errorf("encode the credentials: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, min(o.Timeout, defaultTimeout))
	defer cancel()
	nc, err := o.connect(ctx, net.JoinHostPort(o.Host, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return newConn(nc, cred, o.Timeout), nil
}

func (o Options) connect(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	if !o.ReservedPort {
		return d.DialContext(ctx, "tcp", addr)
	}
	const low, high = 512, 1024 // as bindresvport(3), which leaves the ports below to the old services
	for _, i := range rand.Perm(high - low) {
		d.LocalAddr = &net.TCPAddr{Port: low + i}
		nc, err := d.DialContext(ctx, "tcp", addr)
		switch {
		case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EADDRNOTAVAIL):
			continue
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("%w: a reserved port needs root or CAP_NET_BIND_SERVICE", err)
		}
		return nc, err
	}
	return nil, fmt.Errorf("dial %s: all ports from %d to %d are in use here", addr, low, high-1)
}

// port returns fixed, or what the portmapper says.
func (o Options) port(ctx context.Context, fixed int, service string, prog, vers uint32) (int, error) {
	if fixed != 0 {
		return fixed, nil
	}
	c, err := o.dial(ctx, o.PortmapPort)
	if err != nil {
		return 0, fmt.Errorf("ask the portmapper for the port of %s (or name the port): %w", service, err)
	}
	defer c.Close()
	port, err := c.getport(ctx, prog, vers)
	if err == nil && port == 0 {
		err = fmt.Errorf("%s version %d is %w of %s: start it, or name its port", service, vers, ErrNotRegistered, o.Host)
	}
	return port, err
}

func (o Options) dialMount(ctx context.Context) (*conn, error) {
	port, err := o.port(ctx, o.MountPort, "MOUNT", nfs.MountProg, nfs.MountVers)
	if err != nil {
		return nil, err
	}
	return o.dial(ctx, port)
}

// mount returns the handle of the exported directory. The server's mount list is
// for people to read (RFC 1813 section 5), so the entry is taken back at once, and
// a probe that dies leaves none.
func (o Options) mount(ctx context.Context) ([]byte, error) {
	c, err := o.dialMount(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	fh, flavors, err := c.mnt(ctx, o.Export)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: the server must export %s to this host, with the option insecure unless a reserved port is used", err, o.Export)
	} else if err != nil {
		return nil, err
	}
	if len(flavors) > 0 && !slices.Contains(flavors, authSys) && !slices.Contains(flavors, authNull) {
		return nil, fmt.Errorf("%s: flavors %v: %w: export it with sec=sys to this host", o.Export, flavors, ErrFlavor)
	}
	return fh, c.umnt(ctx, o.Export)
}

// Export is a directory that a server exports, and to whom; no groups: everybody.
type Export struct {
	Dir    string
	Groups []string
}

// Exports asks a server for its exports, as showmount(8) does.
func Exports(ctx context.Context, o Options) ([]Export, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("options of the NFS probe: %w", err)
	}
	c, err := o.dialMount(ctx)
	if err != nil {
		return nil, fmt.Errorf("exports of %s: %w", o.Host, err)
	}
	defer c.Close()
	return c.exports(ctx)
}

// Probe is one export. Its methods may be called at once, though figures taken at
// once disturb each other. Its calls are never sent twice; a connection that was
// lost is made anew by the next call.
type Probe struct {
	opt     Options
	nfsPort int
	root    []byte

	conns []slot
}

type slot struct {
	mu sync.Mutex // guards c, also while it is dialled
	c  *conn      // nil before the first call
}

// Dial asks for the export's handle and connects to its server. Close is needed
// if, and only if, the error is nil.
func Dial(ctx context.Context, o Options) (*Probe, error) {
	o, err := o.withDefaults()
	if err == nil && !strings.HasPrefix(o.Export, "/") {
		err = fmt.Errorf("Export is %q: want an absolute path", o.Export)
	}
	if err != nil {
		return nil, fmt.Errorf("options of the NFS probe: %w", err)
	}
	p := &Probe{opt: o, conns: make([]slot, o.Connections)}
	if err := p.dial(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("probe %s:%s: %w", o.Host, o.Export, err), p.Close())
	}
	return p, nil
}

func (p *Probe) dial(ctx context.Context) (err error) {
	if p.root, err = p.opt.mount(ctx); err != nil {
		return err
	}
	if p.nfsPort, err = p.opt.port(ctx, p.opt.NFSPort, "NFS", nfs.Nfs3Prog, nfs.Nfs3Vers); err != nil {
		return err
	}
	for i := range p.conns {
		c, err := p.conn(ctx, i)
		if err != nil {
			return err
		}
		if err := c.null(ctx); err != nil {
			return err
		}
	}
	_, err = p.getattr(ctx)
	if _, ok := errors.AsType[*AuthError](err); ok {
		err = fmt.Errorf("%w: use a reserved port (as root), or export with the option insecure", err)
	}
	return err
}

func (p *Probe) getattr(ctx context.Context) (nfs.Fattr, error) {
	c, err := p.conn(ctx, 0)
	if err != nil {
		return nfs.Fattr{}, err
	}
	return c.getattr(ctx, p.root)
}

// conn returns the i-th connection, made anew if it is lost.
func (p *Probe) conn(ctx context.Context, i int) (*conn, error) {
	s := &p.conns[i%len(p.conns)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil && !s.c.failed() {
		return s.c, nil
	}
	if s.c != nil {
		_ = s.c.Close()
		s.c = nil
	}
	c, err := p.opt.dial(ctx, p.nfsPort)
	if err != nil {
		return nil, err
	}
	s.c = c
	return c, nil
}

// Close ends the connections. No other method may be running or be called after.
func (p *Probe) Close() error {
	var all []error
	for i := range p.conns {
		if c := p.conns[i].c; c != nil {
			all = append(all, c.Close())
		}
	}
	return errors.Join(all...)
}

// Limits are what the server says of itself in FSINFO (RFC 1813 section 3.3.19),
// in bytes, and as it said it: 0 and odd values included.
type Limits struct {
	ReadMax, ReadPref, ReadMult    int64 // rtmax, rtpref, rtmult
	WriteMax, WritePref, WriteMult int64 // wtmax, wtpref, wtmult
	DirPref                        int64 // dtpref
	MaxFileSize                    int64
	TimeDelta                      time.Duration // granularity of file times
}

// Space is FSSTAT (RFC 1813 section 3.3.18) in bytes and files. Avail is what the
// caller may still use, Free what is not used.
type Space struct {
	Total, Free, Avail                int64
	TotalFiles, FreeFiles, AvailFiles int64
}

// Info is what an idle server tells.
type Info struct {
	Limits Limits
	Space  Space
	Null   Latency // of NULL: the network and the server's RPC layer
	FSInfo Latency // of FSINFO: and its file system layer
}

// Info asks for limits and space, and times so many calls of NULL and of FSINFO, one
// after the other and 1 of each at least; 31 are enough for a P90.
func (p *Probe) Info(ctx context.Context, calls int) (Info, error) {
	c, err := p.conn(ctx, 0)
	if err != nil {
		return Info{}, err
	}
	var info nfs.FSInfo
	var null, fsinfo []time.Duration
	for range max(calls, 1) {
		err := timed(&null, func() error { return c.null(ctx) })
		if err != nil {
			return Info{}, err
		}
		err = timed(&fsinfo, func() (err error) { info, err = c.fsinfo(ctx, p.root); return err })
		if err != nil {
			return Info{}, err
		}
	}
	s, err := c.fsstat(ctx, p.root)
	if err != nil {
		return Info{}, err
	}
	return Info{
		Limits: Limits{
			ReadMax: int64(info.RTMax), ReadPref: int64(info.RTPref), ReadMult: int64(info.RTMult),
			WriteMax: int64(info.WTMax), WritePref: int64(info.WTPref), WriteMult: int64(info.WTMult),
			DirPref: int64(info.DTPref), MaxFileSize: clamp(info.Size),
			TimeDelta: time.Duration(info.TimeDelta.Seconds)*time.Second + time.Duration(info.TimeDelta.Nseconds),
		},
		Space: Space{
			Total: clamp(s.Tbytes), Free: clamp(s.Fbytes), Avail: clamp(s.Abytes),
			TotalFiles: clamp(s.Tfiles), FreeFiles: clamp(s.Ffiles), AvailFiles: clamp(s.Afiles),
		},
		Null: latency(null), FSInfo: latency(fsinfo),
	}, nil
}

func clamp(v uint64) int64 { return int64(min(v, math.MaxInt64)) }

// Access is a set of rights to the exported directory: ACCESS of RFC 1813 section 3.3.4.
type Access uint32

const (
	AccessRead    Access = 1 << iota // list
	AccessLookup                     // look a name up
	AccessModify                     // rename, or replace an entry
	AccessExtend                     // make new entries
	AccessDelete                     // remove entries
	AccessExecute                    // means nothing for a directory

	// AccessWrite is what a scratch file needs.
	AccessWrite = AccessLookup | AccessExtend | AccessDelete
)

// Access returns which rights the server gives to the caller's UID and GID in the
// exported directory. It is a hint: only the operation itself is proof.
func (p *Probe) Access(ctx context.Context) (Access, error) {
	c, err := p.conn(ctx, 0)
	if err != nil {
		return 0, err
	}
	return c.access(ctx, p.root, AccessRead|AccessLookup|AccessModify|AccessExtend|AccessDelete|AccessExecute)
}

// Latency sums up the durations of N calls; the quantiles are by nearest rank.
type Latency struct {
	N                     int
	Min, Median, P90, Max time.Duration
}

// latency sorts d.
func latency(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	slices.Sort(d)
	rank := func(percent int) time.Duration { return d[(len(d)*percent+99)/100-1] }
	return Latency{N: len(d), Min: d[0], Median: rank(50), P90: rank(90), Max: d[len(d)-1]}
}

func timed(all *[]time.Duration, call func() error) error {
	start := time.Now()
	err := call()
	*all = append(*all, time.Since(start))
	return err
}
