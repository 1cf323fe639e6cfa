package probe

import (
	"context"
	"fmt"
	"syscall"

	"github.com/vmware/go-nfs-client/nfs"
	"github.com/vmware/go-nfs-client/nfs/rpc"
)

// The procedures: RFC 1813 section 3 (NFS) and 5 (MOUNT), RFC 1833 section 3 (portmapper).
var (
	pmapGetport = procedure{"GETPORT", rpc.PmapProg, rpc.PmapVers, rpc.PmapProcGetPort}

	mountMnt    = procedure{"MNT", nfs.MountProg, nfs.MountVers, nfs.MountProc3MNT}
	mountUmnt   = procedure{"UMNT", nfs.MountProg, nfs.MountVers, nfs.MountProc3UMNT}
	mountExport = procedure{"EXPORT", nfs.MountProg, nfs.MountVers, nfs.MountProc3Export}

	nfsNull    = procedure{"NULL", nfs.Nfs3Prog, nfs.Nfs3Vers, 0}
	nfsGetattr = procedure{"GETATTR", nfs.Nfs3Prog, nfs.Nfs3Vers, 1}
	nfsLookup  = procedure{"LOOKUP", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3Lookup}
	nfsAccess  = procedure{"ACCESS", nfs.Nfs3Prog, nfs.Nfs3Vers, 4}
	nfsRead    = procedure{"READ", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3Read}
	nfsWrite   = procedure{"WRITE", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3Write}
	nfsCreate  = procedure{"CREATE", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3Create}
	nfsRemove  = procedure{"REMOVE", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3Remove}
	nfsFsstat  = procedure{"FSSTAT", nfs.Nfs3Prog, nfs.Nfs3Vers, 18}
	nfsFsinfo  = procedure{"FSINFO", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3FSInfo}
	nfsCommit  = procedure{"COMMIT", nfs.Nfs3Prog, nfs.Nfs3Vers, nfs.NFSProc3Commit}
)

const (
	maxHandle  = 64      // NFS3_FHSIZE
	maxPath    = 1024    // MNTPATHLEN
	maxExports = 1 << 20 // bytes of EXPORT's reply
)

// Status is an nfsstat3 or mountstat3 other than OK (RFC 1813 sections 2.6 and
// 5.1.5). It wraps the syscall.Errno of the same meaning, so that errors.Is
// answers for syscall.ENOSPC, fs.ErrPermission, fs.ErrNotExist and the like.
type Status uint32

var statuses = map[Status]struct {
	name  string
	errno syscall.Errno
}{
	1: {"PERM", syscall.EPERM}, 2: {"NOENT", syscall.ENOENT}, 5: {"IO", syscall.EIO}, 6: {"NXIO", syscall.ENXIO},
	13: {"ACCES", syscall.EACCES}, 17: {"EXIST", syscall.EEXIST}, 18: {"XDEV", syscall.EXDEV}, 19: {"NODEV", syscall.ENODEV},
	20: {"NOTDIR", syscall.ENOTDIR}, 21: {"ISDIR", syscall.EISDIR}, 22: {"INVAL", syscall.EINVAL}, 27: {"FBIG", syscall.EFBIG},
	28: {"NOSPC", syscall.ENOSPC}, 30: {"ROFS", syscall.EROFS}, 31: {"MLINK", syscall.EMLINK},
	63: {"NAMETOOLONG", syscall.ENAMETOOLONG}, 66: {"NOTEMPTY", syscall.ENOTEMPTY}, 69: {"DQUOT", syscall.EDQUOT},
	70: {"STALE", syscall.ESTALE}, 71: {"REMOTE", syscall.EREMOTE}, 10001: {"BADHANDLE", syscall.ESTALE},
	10002: {"NOT_SYNC", syscall.EAGAIN}, 10003: {"BAD_COOKIE", syscall.EINVAL}, 10004: {"NOTSUPP", syscall.ENOTSUP},
	10005: {"TOOSMALL", syscall.EINVAL}, 10006: {"SERVERFAULT", syscall.EIO}, 10007: {"BADTYPE", syscall.EINVAL},
	10008: {"JUKEBOX", syscall.EAGAIN},
}

func (s Status) Error() string {
	if known, ok := statuses[s]; ok {
		return fmt.Sprintf("%s (%v)", known.name, known.errno)
	}
	return fmt.Sprintf("status %d", uint32(s))
}

func (s Status) Unwrap() error {
	if known, ok := statuses[s]; ok {
		return known.errno
	}
	return nil
}

// Stability is how far a WRITE's data has to be, or is, before the server
// answers: stable_how of RFC 1813 section 3.3.7. A greater one promises more.
type Stability uint32

const (
	Unstable Stability = iota // anywhere; COMMIT makes it stable
	DataSync                  // the data is in stable storage, and what is needed to find it
	FileSync                  // the data and all of the file's attributes are
)

func (s Stability) String() string {
	switch s {
	case Unstable:
		return "UNSTABLE"
	case DataSync:
		return "DATA_SYNC"
	case FileSync:
		return "FILE_SYNC"
	}
	return fmt.Sprintf("stable_how %d", uint32(s))
}

// Verifier is a server's write verifier: it changes when data that was not
// committed may have been lost, which is at every restart. (NFS-Ganesha's is the
// second in which it started: of two starts within one, the second is not seen.)
type Verifier [8]byte

// status makes a call whose results begin with a status, and returns those after OK.
func (c *conn) status(ctx context.Context, p procedure, args any, data []byte, limit int) (*results, error) {
	r, err := c.call(ctx, p, args, data, limit)
	if err != nil {
		return nil, err
	}
	var s Status
	if err := r.decode(&s); err != nil {
		return nil, c.malformed(p, err)
	}
	if s != 0 {
		return nil, fmt.Errorf("%s: %s: %w", c.nc.RemoteAddr(), p.name, s)
	}
	return r, nil
}

// simple makes a call without bulk data and decodes what follows the status into v.
func (c *conn) simple(ctx context.Context, p procedure, args, v any) error {
	r, err := c.status(ctx, p, args, nil, smallReply)
	if err != nil {
		return err
	}
	if err := r.decode(v); err != nil {
		return c.malformed(p, err)
	}
	return nil
}

func (c *conn) malformed(p procedure, err error) error {
	return fmt.Errorf("%s: reply to %s: %w", c.nc.RemoteAddr(), p.name, err)
}

// getport returns a program's TCP port; 0 when it is not registered.
func (c *conn) getport(ctx context.Context, prog, vers uint32) (int, error) {
	r, err := c.call(ctx, pmapGetport, rpc.Mapping{Prog: prog, Vers: vers, Prot: rpc.IPProtoTCP}, nil, smallReply)
	if err != nil {
		return 0, err
	}
	var port uint32
	if err := r.decode(&port); err != nil {
		return 0, c.malformed(pmapGetport, err)
	}
	if port > 65535 {
		return 0, c.malformed(pmapGetport, fmt.Errorf("%w: port %d", ErrProtocol, port))
	}
	return int(port), nil
}

// mnt returns a directory's handle and the authentication flavors that its export takes.
func (c *conn) mnt(ctx context.Context, dir string) (fh []byte, flavors []uint32, err error) {
	r, err := c.status(ctx, mountMnt, struct{ Dir string }{dir}, nil, smallReply)
	if err != nil {
		return nil, nil, err
	}
	if fh, err = r.opaque(maxHandle); err == nil {
		err = r.decode(&flavors)
	}
	if err != nil {
		return nil, nil, c.malformed(mountMnt, err)
	}
	return fh, flavors, nil
}

func (c *conn) umnt(ctx context.Context, dir string) error {
	_, err := c.call(ctx, mountUmnt, struct{ Dir string }{dir}, nil, smallReply)
	return err
}

func (c *conn) exports(ctx context.Context) ([]Export, error) {
	r, err := c.call(ctx, mountExport, struct{}{}, nil, maxExports)
	if err != nil {
		return nil, err
	}
	var all []Export
	err = r.list(func() error {
		dir, err := r.opaque(maxPath)
		e := Export{Dir: string(dir)}
		if err != nil {
			return err
		}
		err = r.list(func() error {
			group, err := r.opaque(maxPath)
			e.Groups = append(e.Groups, string(group))
			return err
		})
		all = append(all, e)
		return err
	})
	if err != nil {
		return nil, c.malformed(mountExport, err)
	}
	return all, nil
}

// list reads a linked list: each element follows TRUE, the end is FALSE.
func (r *results) list(element func() error) error {
	for {
		var more bool
		if err := r.decode(&more); err != nil || !more {
			return err
		}
		if err := element(); err != nil {
			return err
		}
	}
}

func (c *conn) null(ctx context.Context) error {
	_, err := c.call(ctx, nfsNull, struct{}{}, nil, smallReply)
	return err
}

func (c *conn) getattr(ctx context.Context, fh []byte) (attr nfs.Fattr, err error) {
	err = c.simple(ctx, nfsGetattr, struct{ FH []byte }{fh}, &attr)
	return attr, err
}

func (c *conn) access(ctx context.Context, fh []byte, want Access) (Access, error) {
	var res struct {
		Attr   nfs.PostOpAttr
		Access Access
	}
	err := c.simple(ctx, nfsAccess, struct {
		FH   []byte
		Want Access
	}{fh, want}, &res)
	return res.Access & want, err
}

func (c *conn) fsinfo(ctx context.Context, fh []byte) (info nfs.FSInfo, err error) {
	err = c.simple(ctx, nfsFsinfo, struct{ FH []byte }{fh}, &info)
	return info, err
}

type fsstat struct {
	Attr                                   nfs.PostOpAttr
	Tbytes, Fbytes, Abytes, Tfiles, Ffiles uint64
	Afiles                                 uint64
	Invarsec                               uint32
}

func (c *conn) fsstat(ctx context.Context, fh []byte) (stat fsstat, err error) {
	err = c.simple(ctx, nfsFsstat, struct{ FH []byte }{fh}, &stat)
	return stat, err
}

func (c *conn) lookup(ctx context.Context, dir []byte, name string) ([]byte, error) {
	r, err := c.status(ctx, nfsLookup, nfs.Diropargs3{FH: dir, Filename: name}, nil, smallReply)
	if err != nil {
		return nil, err
	}
	fh, err := r.opaque(maxHandle)
	if err != nil {
		return nil, c.malformed(nfsLookup, err)
	}
	return fh, nil
}

// create makes a file that was not there, with mode 0600, and returns its handle, or
// nil if the server does not tell it. It uses GUARDED and not
// EXCLUSIVE: that one guards against a call that is sent twice, which a conn never
// does, it leaves the mode to a second call, and not all servers have it.
func (c *conn) create(ctx context.Context, dir []byte, name string) ([]byte, error) {
	const guarded = 1
	r, err := c.status(ctx, nfsCreate, struct {
		Where nfs.Diropargs3
		How   uint32
		Attr  nfs.Sattr3
	}{nfs.Diropargs3{FH: dir, Filename: name}, guarded, nfs.Sattr3{Mode: nfs.SetMode{SetIt: true, Mode: 0o600}}}, nil, smallReply)
	if err != nil {
		return nil, err
	}
	var known bool
	if err = r.decode(&known); err == nil && !known {
		return nil, nil
	}
	var fh []byte
	if err == nil {
		fh, err = r.opaque(maxHandle)
	}
	if err != nil {
		return nil, c.malformed(nfsCreate, err)
	}
	return fh, nil
}

func (c *conn) remove(ctx context.Context, dir []byte, name string) error {
	_, err := c.status(ctx, nfsRemove, nfs.Diropargs3{FH: dir, Filename: name}, nil, smallReply)
	return err
}

// written is WRITE3resok without the attributes.
type written struct {
	Count     uint32
	Committed Stability
	Verifier  Verifier
}

// writeAt writes data at offset, or, as the RFC allows, the first Count bytes of it,
// which are 1 at least. Committed is never less than asked for.
func (c *conn) writeAt(ctx context.Context, fh []byte, offset int64, how Stability, data []byte) (written, error) {
	r, err := c.status(ctx, nfsWrite, struct {
		FH     []byte
		Offset uint64
		Count  uint32
		How    Stability
	}{fh, uint64(offset), uint32(len(data)), how}, data, smallReply)
	if err != nil {
		return written{}, err
	}
	var res struct {
		Wcc     nfs.WccData
		Written written
	}
	err = r.decode(&res)
	w := res.Written
	switch {
	case err != nil:
	case w.Count == 0 || int64(w.Count) > int64(len(data)):
		err = fmt.Errorf("%w: %d of %d bytes are written", ErrProtocol, w.Count, len(data))
	case w.Committed > FileSync || w.Committed < how:
		err = fmt.Errorf("%w: %v is answered to a write that asks for %v", ErrProtocol, w.Committed, how)
	}
	if err != nil {
		return written{}, c.malformed(nfsWrite, err)
	}
	return w, nil
}

// readAt reads size bytes at offset, or fewer: none only together with eof.
func (c *conn) readAt(ctx context.Context, fh []byte, offset int64, size int) (data []byte, eof bool, err error) {
	r, err := c.status(ctx, nfsRead, struct {
		FH     []byte
		Offset uint64
		Count  uint32
	}{fh, uint64(offset), uint32(size)}, nil, size+smallReply)
	if err != nil {
		return nil, false, err
	}
	var res struct {
		Attr  nfs.PostOpAttr
		Count uint32
		EOF   bool
	}
	if err = r.decode(&res); err == nil {
		data, err = r.opaque(size)
	}
	switch {
	case err != nil:
	case int64(res.Count) != int64(len(data)):
		err = fmt.Errorf("%w: %d bytes of data and a count of %d", ErrProtocol, len(data), res.Count)
	case len(data) == 0 && !res.EOF:
		err = fmt.Errorf("%w: no data before the end of the file", ErrProtocol)
	}
	if err != nil {
		return nil, false, c.malformed(nfsRead, err)
	}
	return data, res.EOF, nil
}

// commit makes the whole file stable.
func (c *conn) commit(ctx context.Context, fh []byte) (Verifier, error) {
	var res struct {
		Wcc      nfs.WccData
		Verifier Verifier
	}
	err := c.simple(ctx, nfsCommit, struct {
		FH     []byte
		Offset uint64
		Count  uint32
	}{FH: fh}, &res)
	return res.Verifier, err
}
