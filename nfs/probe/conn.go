package probe

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	xdr "github.com/rasky/go-xdr/xdr2"
	"github.com/vmware/go-nfs-client/nfs/rpc"
)

// Errors of the ONC RPC layer (RFC 5531). AuthError and VersionError have fields.
var (
	// ErrProtocol is what all errors wrap that say that the server's bytes are
	// not what the RFCs allow. The call has failed; its effect is not known.
	ErrProtocol = errors.New("the server breaks the protocol")
	// ErrLost says that the connection ended before the answer came. The effect
	// of the call is not known; the next call makes a new connection.
	ErrLost = errors.New("the connection is lost")

	ErrProgramUnavailable   = errors.New("PROG_UNAVAIL: the server does not have this program")
	ErrProcedureUnavailable = errors.New("PROC_UNAVAIL: the server does not have this procedure")
	ErrGarbageArgs          = errors.New("GARBAGE_ARGS: the server cannot decode the arguments")
	ErrSystem               = errors.New("SYSTEM_ERR: the server has an error of its own, such as no memory: see its log")
)

// AuthError is the server's refusal of our credentials: auth_stat of RFC 5531 section 9.
type AuthError struct{ Stat uint32 }

func (e *AuthError) Error() string {
	name := map[uint32]string{
		1: "AUTH_BADCRED", 2: "AUTH_REJECTEDCRED", 3: "AUTH_BADVERF", 4: "AUTH_REJECTEDVERF",
		5: "AUTH_TOOWEAK", 6: "AUTH_INVALIDRESP", 7: "AUTH_FAILED",
	}[e.Stat]
	if name == "" {
		name = fmt.Sprintf("auth_stat %d", e.Stat)
	}
	return "the server refuses the credentials: " + name
}

// VersionError is RPC_MISMATCH (What is "RPC") or PROG_MISMATCH (What is "program"):
// the server has the versions from Low to High only.
type VersionError struct {
	What      string
	Low, High uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("the server has %s versions %d to %d only", e.What, e.Low, e.High)
}

// procedure is one remote procedure; its name is for errors.
type procedure struct {
	name             string
	prog, vers, proc uint32
}

const (
	msgCall  = 0
	msgReply = 1

	rpcVersion   = 2
	lastFragment = 1 << 31

	smallReply = 64 << 10 // limit of any reply but those of READ and EXPORT
)

// conn is one TCP connection to one RPC server, with any number of outstanding
// calls. A call that times out or is cancelled does not disturb the others: its
// late reply is read and dropped. A conn that has failed stays so.
type conn struct {
	nc      net.Conn
	cred    rpc.Auth
	timeout time.Duration // of each call
	out     chan outgoing
	done    chan struct{} // closed once err is set
	workers sync.WaitGroup

	mu      sync.Mutex // guards what follows
	err     error
	xid     uint32
	waiting map[uint32]waiter
}

type outgoing struct {
	xid    uint32
	record net.Buffers
}

type waiter struct {
	limit int // bytes of the reply
	reply chan []byte
}

// newConn takes nc over. Close ends the two goroutines that it starts.
func newConn(nc net.Conn, cred rpc.Auth, timeout time.Duration) *conn {
	c := &conn{
		nc: nc, cred: cred, timeout: timeout,
		out: make(chan outgoing), done: make(chan struct{}), xid: rand.Uint32(), waiting: map[uint32]waiter{},
	}
	c.workers.Go(c.write)
	c.workers.Go(c.read)
	return c
}

// Close fails the outstanding calls with ErrLost.
func (c *conn) Close() error {
	c.fail(net.ErrClosed)
	c.workers.Wait()
	return nil
}

// failed reports whether no further call can succeed.
func (c *conn) failed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrLost, err)
	_ = c.nc.Close() // the first error is the one that tells
	close(c.done)
}

// call sends args, an XDR structure, and then data as variable-length opaque
// unless it is nil, and returns the results that follow an accepted reply's
// header. The reply may have as many bytes as limit. Nobody may change data, not
// even after call returned. It fails with context.DeadlineExceeded when the
// server has not answered within the connection's timeout.
func (c *conn) call(ctx context.Context, p procedure, args any, data []byte, limit int) (*results, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	reply, err := c.exchange(ctx, p, args, data, limit)
	if err == nil {
		var r *results
		if r, err = accepted(reply); err == nil {
			return r, nil
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer in %v: %w", time.Since(start).Round(time.Millisecond), err)
	}
	return nil, fmt.Errorf("%s: %s: %w", c.nc.RemoteAddr(), p.name, err)
}

func (c *conn) exchange(ctx context.Context, p procedure, args any, data []byte, limit int) ([]byte, error) {
	w := waiter{limit, make(chan []byte, 1)}
	xid := c.expect(w)
	defer c.take(xid)
	record, err := encodeCall(xid, p, c.cred, args, data)
	if err != nil {
		return nil, err
	}
	select {
	case c.out <- outgoing{xid, record}:
	case <-c.done:
		return nil, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case reply := <-w.reply:
		return reply, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.done:
		select {
		case reply := <-w.reply: // came just before the end
			return reply, nil
		default:
			return nil, c.err
		}
	}
}

func (c *conn) expect(w waiter) (xid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		c.xid++
		if _, used := c.waiting[c.xid]; !used {
			c.waiting[c.xid] = w
			return c.xid
		}
	}
}

func (c *conn) take(xid uint32) (waiter, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.waiting[xid]
	delete(c.waiting, xid)
	return w, ok
}

func (c *conn) expected(xid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.waiting[xid]
	return ok
}

// write sends one record after the other. It is a goroutine of its own because a
// record that was begun has to be ended, whatever becomes of its call.
func (c *conn) write() {
	for {
		select {
		case <-c.done:
			return
		case o := <-c.out:
			if !c.expected(o.xid) {
				continue // given up before a byte was sent
			}
			if _, err := o.record.WriteTo(c.nc); err != nil {
				c.fail(err)
				return
			}
		}
	}
}

func (c *conn) read() {
	r := bufio.NewReaderSize(c.nc, 64<<10)
	for {
		if err := c.readReply(&record{r: r}); err != nil {
			c.fail(err)
			return
		}
	}
}

// readReply hands one record to the call that waits for it, or drops it. An error
// means that the stream is of no further use.
func (c *conn) readReply(r *record) error {
	var xid [4]byte
	if n, err := io.ReadFull(r, xid[:]); err != nil {
		if r.last && r.left == 0 {
			return fmt.Errorf("%w: a record of %d bytes", ErrProtocol, n)
		}
		return err
	}
	w, ok := c.take(binary.BigEndian.Uint32(xid[:]))
	if !ok {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	reply, err := r.readAll(w.limit)
	if err != nil {
		return err
	}
	w.reply <- reply
	return nil
}

// record reads one record from its fragments: RFC 5531 section 11.
type record struct {
	r    io.Reader
	left int  // bytes of the fragment that are not yet read
	last bool // it is the record's last fragment
}

// advance goes to the next byte of the record; io.EOF when there is none.
func (r *record) advance() error {
	for r.left == 0 {
		if r.last {
			return io.EOF
		}
		var mark [4]byte
		if _, err := io.ReadFull(r.r, mark[:]); err != nil {
			return cut(err)
		}
		m := binary.BigEndian.Uint32(mark[:])
		r.left, r.last = int(m&^lastFragment), m&lastFragment != 0
	}
	return nil
}

func (r *record) Read(p []byte) (int, error) {
	if err := r.advance(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, cut(err)
}

// readAll returns the rest of the record, which may have limit bytes.
func (r *record) readAll(limit int) ([]byte, error) {
	var body []byte
	for {
		if err := r.advance(); err == io.EOF {
			return body, nil
		} else if err != nil {
			return nil, err
		}
		have := len(body)
		if r.left > limit-have {
			return nil, fmt.Errorf("%w: a reply of %d bytes or more where %d are the most", ErrProtocol, have+r.left, limit)
		}
		body = slices.Grow(body, r.left)[:have+r.left]
		if _, err := io.ReadFull(r.r, body[have:]); err != nil {
			return nil, cut(err)
		}
		r.left = 0
	}
}

// cut tells the end of the stream from the end of a record, which is io.EOF.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func encodeCall(xid uint32, p procedure, cred rpc.Auth, args any, data []byte) (net.Buffers, error) {
	var head bytes.Buffer
	head.Write(make([]byte, 4)) // the record mark
	_, err := xdr.Marshal(&head, struct {
		XID, Type uint32
		Header    rpc.Header
		Args      any
	}{xid, msgCall, rpc.Header{Rpcvers: rpcVersion, Prog: p.prog, Vers: p.vers, Proc: p.proc, Cred: cred, Verf: rpc.AuthNull}, args})
	if err != nil {
		return nil, fmt.Errorf("encode the arguments: %w", err)
	}
	record := net.Buffers{nil}
	size := 0
	if data != nil {
		head.Write(binary.BigEndian.AppendUint32(nil, uint32(len(data))))
		padding := make([]byte, -len(data)&3)
		record = append(record, data, padding)
		size = len(data) + len(padding)
	}
	record[0] = head.Bytes()
	binary.BigEndian.PutUint32(record[0], lastFragment|uint32(head.Len()-4+size))
	return record, nil
}

// accepted decodes a reply from behind its xid to its results: RFC 5531 section 9.
func accepted(reply []byte) (*results, error) {
	r := &results{reply}
	var head struct{ Type, Stat uint32 }
	if err := r.decode(&head); err != nil {
		return nil, err
	}
	if head.Type != msgReply {
		return nil, fmt.Errorf("%w: a message of type %d for a reply", ErrProtocol, head.Type)
	}
	switch head.Stat {
	case rpc.MsgAccepted:
		return r, r.acceptStat()
	case rpc.MsgDenied:
		return nil, r.rejectStat()
	default:
		return nil, fmt.Errorf("%w: reply_stat %d", ErrProtocol, head.Stat)
	}
}

func (r *results) acceptStat() error {
	var a struct {
		Verf rpc.Auth
		Stat uint32
	}
	if err := r.decode(&a); err != nil {
		return err
	}
	switch a.Stat {
	case rpc.Success:
		return nil
	case rpc.ProgUnavail:
		return ErrProgramUnavailable
	case rpc.ProgMismatch:
		return r.mismatch("program")
	case rpc.ProcUnavail:
		return ErrProcedureUnavailable
	case rpc.GarbageArgs:
		return ErrGarbageArgs
	case rpc.SystemErr:
		return ErrSystem
	default:
		return fmt.Errorf("%w: accept_stat %d", ErrProtocol, a.Stat)
	}
}

func (r *results) rejectStat() error {
	var stat uint32
	if err := r.decode(&stat); err != nil {
		return err
	}
	switch stat {
	case rpc.RpcMismatch:
		return r.mismatch("RPC")
	case 1: // AUTH_ERROR
		e := new(AuthError)
		if err := r.decode(&e.Stat); err != nil {
			return err
		}
		return e
	default:
		return fmt.Errorf("%w: reject_stat %d", ErrProtocol, stat)
	}
}

func (r *results) mismatch(what string) error {
	var v struct{ Low, High uint32 }
	if err := r.decode(&v); err != nil {
		return err
	}
	return &VersionError{what, v.Low, v.High}
}

// results are XDR (RFC 4506) that a server sent. Nothing in them makes a method
// allocate more than a small multiple of their own size.
type results struct{ rest []byte }

// decode reads v, a pointer, from what is left.
func (r *results) decode(v any) error {
	in := bytes.NewReader(r.rest)
	_, err := xdr.UnmarshalLimited(in, v, uint(max(1, len(r.rest)))) // 0 would be no limit
	r.rest = r.rest[len(r.rest)-in.Len():]
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// opaque reads variable-length opaque data of at most limit bytes, without copying it.
func (r *results) opaque(limit int) ([]byte, error) {
	var n uint32
	if err := r.decode(&n); err != nil {
		return nil, err
	}
	if int64(n) > int64(min(limit, len(r.rest))) {
		return nil, fmt.Errorf("%w: opaque data of %d bytes where %d are left and %d are the most", ErrProtocol, n, len(r.rest), limit)
	}
	data := r.rest[:n:n]
	r.rest = r.rest[min(len(r.rest), int(n)+int(-n&3)):]
	return data, nil
}
