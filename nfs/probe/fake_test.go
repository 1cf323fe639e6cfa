package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	xdr "github.com/rasky/go-xdr/xdr2"
	"github.com/vmware/go-nfs-client/nfs"
	"github.com/vmware/go-nfs-client/nfs/rpc"
)

// fake is a portmapper, MOUNT and NFS server on one port. It keeps files, and a
// test may have it answer a procedure otherwise. A file's handle is its name.
type fake struct {
	t    testing.TB
	addr *net.TCPAddr

	mu       sync.Mutex // guards what follows
	files    map[string][]byte
	verifier Verifier
	flavors  []uint32
	limits   nfs.FSInfo
	on       map[string]func(fakeCall) []byte // by procedure name
	fragment int                              // most bytes of a fragment; 0: one fragment
	conns    map[net.Conn]bool
	calls    map[string]int
	accepted int // connections
}

// fakeCall is one call. A handler returns the whole reply message, or nil for none.
type fakeCall struct {
	f    *fake
	xid  uint32
	cred rpc.Auth
	args *results
	nc   net.Conn
	p    procedure
}

var procedures = []procedure{
	pmapGetport, mountMnt, mountUmnt, mountExport, nfsNull, nfsGetattr, nfsLookup, nfsAccess,
	nfsRead, nfsWrite, nfsCreate, nfsRemove, nfsFsstat, nfsFsinfo, nfsCommit,
}

func newFake(t testing.TB) *fake {
	return &fake{
		t: t, files: map[string][]byte{}, verifier: Verifier{1}, flavors: []uint32{authSys},
		limits: nfs.FSInfo{RTMax: 1 << 20, RTPref: 1 << 20, RTMult: 512, WTMax: 1 << 20, WTPref: 1 << 20, WTMult: 512, Size: math.MaxUint64},
		on:     map[string]func(fakeCall) []byte{}, conns: map[net.Conn]bool{}, calls: map[string]int{},
	}
}

// listen serves on loopback until the test ends.
func (f *fake) listen() *fake {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = ln.Addr().(*net.TCPAddr)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.accepted++
			f.conns[nc] = true
			f.mu.Unlock()
			serving.Go(func() { f.serve(nc) })
		}
	})
	f.t.Cleanup(func() {
		ln.Close()
		f.cut()
		serving.Wait()
	})
	return f
}

// cut ends all connections.
func (f *fake) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for nc := range f.conns {
		nc.Close()
	}
	clear(f.conns)
}

// restart ends all connections, loses nothing, and has a new verifier.
func (f *fake) restart() {
	f.set(func() { f.verifier[0]++ })
	f.cut()
}

func (f *fake) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.files))
}

func (f *fake) count(p procedure) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[p.name]
}

// set changes the server while it serves.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// answer has h answer p from now on.
func (f *fake) answer(p procedure, h func(fakeCall) []byte) {
	f.set(func() { f.on[p.name] = h })
}

func (f *fake) options() Options {
	return Options{Host: "127.0.0.1", Export: "/export", NFSPort: f.addr.Port, MountPort: f.addr.Port, UID: 1000, GID: 1000, Timeout: 20 * time.Second}
}

func (f *fake) dial(change ...func(*Options)) *Probe {
	f.t.Helper()
	o := f.options()
	for _, c := range change {
		c(&o)
	}
	p, err := Dial(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { p.Close() })
	return p
}

func (f *fake) serve(nc net.Conn) {
	defer nc.Close()
	var calls sync.WaitGroup
	defer calls.Wait()
	var writing sync.Mutex
	for {
		msg, err := (&record{r: nc}).readAll(1 << 30)
		if err != nil {
			return
		}
		calls.Go(func() {
			if reply := f.handle(nc, msg); reply != nil {
				writing.Lock()
				defer writing.Unlock()
				_, _ = nc.Write(f.mark(reply)) // the client may be gone
			}
		})
	}
}

// mark cuts a message into fragments.
func (f *fake) mark(msg []byte) []byte {
	f.mu.Lock()
	most := f.fragment
	f.mu.Unlock()
	if most == 0 {
		most = len(msg)
	}
	var b []byte
	for len(msg) > most {
		b = binary.BigEndian.AppendUint32(b, uint32(most))
		b = append(b, msg[:most]...)
		b = binary.BigEndian.AppendUint32(b, 0) // an empty one in between is allowed
		msg = msg[most:]
	}
	b = binary.BigEndian.AppendUint32(b, lastFragment|uint32(len(msg)))
	return append(b, msg...)
}

func (f *fake) handle(nc net.Conn, msg []byte) []byte {
	var head struct {
		XID, Type uint32
		Header    rpc.Header
	}
	c := fakeCall{f: f, args: &results{msg}, nc: nc}
	if err := c.args.decode(&head); err != nil {
		f.t.Errorf("a call that cannot be decoded: %v", err)
		return nil
	}
	c.xid, c.cred = head.XID, head.Header.Cred
	for _, p := range procedures {
		if p.prog == head.Header.Prog && p.vers == head.Header.Vers && p.proc == head.Header.Proc {
			f.mu.Lock()
			f.calls[p.name]++
			answer := f.on[p.name]
			f.mu.Unlock()
			c.p = p
			if answer == nil {
				answer = fakeCall.own
			}
			return answer(c)
		}
	}
	return c.reply(rpc.MsgAccepted, rpc.AuthNull, uint32(rpc.ProcUnavail))
}

// reply is a reply message of these XDR values.
func (c fakeCall) reply(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range append([]any{c.xid, uint32(msgReply)}, values...) {
		if i, ok := v.(int); ok {
			v = uint32(i)
		}
		if _, err := xdr.Marshal(&b, v); err != nil {
			c.f.t.Errorf("encode %T: %v", v, err)
		}
	}
	return b.Bytes()
}

// success is the reply of an executed procedure.
func (c fakeCall) success(values ...any) []byte {
	return c.reply(append([]any{rpc.MsgAccepted, rpc.AuthNull, rpc.Success}, values...)...)
}

func (c fakeCall) decode(v any) {
	if err := c.args.decode(v); err != nil {
		c.f.t.Errorf("decode %T: %v", v, err)
	}
}

var (
	noAttr = nfs.PostOpAttr{}
	noWcc  = nfs.WccData{}
)

// own is what an honest server answers.
func (c fakeCall) own() []byte {
	f := c.f
	f.mu.Lock()
	defer f.mu.Unlock()
	var named nfs.Diropargs3
	var at struct {
		FH     []byte
		Offset uint64
		Count  uint32
	}
	switch c.p {
	case pmapGetport:
		return c.success(uint32(f.addr.Port))
	case mountMnt:
		return c.success(0, []byte("root"), f.flavors)
	case mountExport:
		return c.success(true, "/export", true, "10.0.0.0/8", true, "ctrl", false, true, "/all", false, false)
	case nfsNull, mountUmnt:
		return c.success()
	case nfsGetattr:
		var fh []byte
		c.decode(&fh)
		return c.success(0, nfs.Fattr{Type: nfs.NF3Reg, Filesize: uint64(len(f.files[string(fh)]))})
	case nfsAccess:
		return c.success(0, noAttr, AccessLookup|AccessExtend|AccessDelete|1<<20)
	case nfsFsinfo:
		return c.success(0, f.limits)
	case nfsFsstat:
		return c.success(0, fsstat{Tbytes: 1 << 40, Fbytes: 1 << 39, Abytes: math.MaxUint64, Tfiles: 9, Ffiles: 8, Afiles: 7})
	case nfsCreate:
		c.decode(&named)
		if _, exists := f.files[named.Filename]; exists {
			return c.success(nfs.NFS3ErrExist, noWcc)
		}
		f.files[named.Filename] = []byte{}
		return c.success(0, nfs.PostOpFH3{IsSet: true, FH: []byte(named.Filename)}, noAttr, noWcc)
	case nfsLookup:
		c.decode(&named)
		if _, exists := f.files[named.Filename]; !exists {
			return c.success(nfs.NFS3ErrNoEnt, noAttr)
		}
		return c.success(0, []byte(named.Filename), noAttr, noAttr)
	case nfsRemove:
		c.decode(&named)
		if _, exists := f.files[named.Filename]; !exists {
			return c.success(nfs.NFS3ErrNoEnt, noWcc)
		}
		delete(f.files, named.Filename)
		return c.success(0, noWcc)
	case nfsRead:
		c.decode(&at)
		content := f.files[string(at.FH)]
		from, to := min(int(at.Offset), len(content)), min(int(at.Offset)+int(at.Count), len(content))
		return c.success(0, noAttr, to-from, to == len(content), content[from:to])
	case nfsWrite:
		c.decode(&at)
		var how Stability
		var data []byte
		c.decode(&how)
		c.decode(&data)
		f.put(string(at.FH), int(at.Offset), data)
		return c.success(0, noWcc, len(data), how, f.verifier)
	case nfsCommit:
		return c.success(0, noWcc, f.verifier)
	}
	return nil
}

func (f *fake) put(name string, offset int, data []byte) {
	b := f.files[name]
	if grow := offset + len(data) - len(b); grow > 0 {
		b = append(b, make([]byte, grow)...)
	}
	copy(b[offset:], data)
	f.files[name] = b
}

// pipe is a conn whose server end the test holds; it works in a synctest bubble.
func pipe(t *testing.T, timeout time.Duration) (*conn, net.Conn) {
	near, far := net.Pipe()
	c := newConn(near, rpc.AuthNull, timeout)
	t.Cleanup(func() { far.Close(); c.Close() })
	return c, far
}

func want(t *testing.T, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func wantError(t *testing.T, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want one that is %q", err, target)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}
