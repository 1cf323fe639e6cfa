// Package stream is the mover's own data plane: files over parallel connections, in
// blocks that are proven one by one and need not be sent twice.
//
// Engine sends. All it sends to one DTN at a time goes over one link: a control
// connection, and lanes for blocks. A lane takes the next block of any file, so no file
// waits for another to end, a slow lane holds nothing up, and a dead one costs only
// what it had in flight.
//
// Receiver takes files in. A block is written where it belongs under a hidden
// name, then noted in a journal with its checksum, then answered for. A
// hasher follows the part without a gap, so that the whole file's digest is known
// soon after the last block. Only then is the file synced and given its name.
package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/mover/stream/pace"
)

// What Engine does when nobody says otherwise.
const (
	NearParallelism    = 2 // where the receiver is near: more connections bring nothing and cost CPU
	BBRParallelism     = 4 // where lost packets do not slow a connection down
	DefaultParallelism = 16
	DefaultPipelining  = 8
	DefaultConcurrency = 4
	DefaultStall       = 2 * time.Minute
)

// near is a time for opening a TCP connection that no wide area path reaches. Tests put
// another one in its place.
var near = 2 * time.Millisecond

// Engine sends files to a Receiver. It implements mover.Engine. Its fields are not
// changed once Move was called.
type Engine struct {
	Root *os.Root // the export

	// TLS gives the configuration of a new connection: the certificate of this
	// DTN, and the authorities. The server's name is that in the destination's address.
	TLS func() *tls.Config

	// Protection of the files that it sends; empty: mover.Private.
	Protection mover.Protection

	// Compression of blocks; empty: mover.Auto.
	Compression mover.Compression

	// Congestion is the congestion control of connections, as tcp(7) names it, or as this
	// package does; empty: AutoCongestion. See CheckCongestion.
	Congestion string

	// Dial opens a TCP connection; nil: a net.Dialer with keep-alives.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Callbacks are the DTNs that take no connections; nil: this one cannot send to such.
	Callbacks *Callbacks

	// Stall is how long a connection may owe an answer; 0: DefaultStall.
	Stall time.Duration

	// Pacer keeps what is sent within the DTN's limits, which Site names; nil: there are none.
	Pacer *pace.Pacer
	Site  string

	laneBlocks  int    // that a lane carries; 0: maxLaneBlocks
	ahead       uint32 // blocks that a move may be ahead of another one of the same file; 0: by the memory there is
	linkFiles   int    // on a link at once; 0: maxFiles
	compressAll bool   // whatever it brings
	offerAll    bool   // however near the receiver is

	outbox folder

	mu        sync.Mutex // guards what follows
	links     map[linkKey]*link
	moving    map[string]moving // by Request.Key
	companies map[inode]*company
}

var (
	_ mover.Engine   = (*Engine)(nil)
	_ mover.Adjuster = (*Engine)(nil)
)

func (e *Engine) dialer() func(ctx context.Context, network, address string) (net.Conn, error) {
	if e.Dial != nil {
		return e.Dial
	}
	return (&net.Dialer{Timeout: 15 * time.Second}).DialContext
}

// Move implements mover.Engine. Moves to the same DTN that run at once share their
// connections: r.PCP's Parallelism is how many there are if nobody asks for more, its
// Concurrency how many files' blocks take turns on them. It fails when the connections
// have died, when the receiver refuses, or when the source is not what r says.
func (e *Engine) Move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	if err := e.move(ctx, r, report); err != nil {
		return fmt.Errorf("move %s to %s: %w", r.Source.Name, r.Destination.Address, crowded(err))
	}
	return nil
}

func (e *Engine) move(ctx context.Context, r mover.Request, report func(mover.Progress)) error {
	if w := e.Pacer.Shut(""); w != nil {
		return w
	}
	file, err := e.openSource(r.Source)
	if err != nil {
		return err
	}
	src := newSource(e, file, r.Source.Size)
	defer src.release()
	via := r.Destination.Via
	if err := via.Validate(mover.Stream); err != nil {
		return err
	}
	k := linkKey{cmp.Or(via.Address, r.Destination.Address), cmp.Or(e.Protection, mover.Private), via.Site}
	if err := k.protection.Validate(); err != nil {
		return err
	}
	l := e.join(k)
	defer e.leave(l)
	select {
	case <-l.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return l.move(ctx, r, src, report)
}

// join returns the link of that name, a new one if there is none that works.
func (e *Engine) join(k linkKey) *link {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.links[k]
	if l == nil || l.failed() {
		l = newLink(e, k)
		if e.links == nil {
			e.links = map[linkKey]*link{}
		}
		e.links[k] = l
	}
	l.users++
	return l
}

// leave ends a link with its last user.
func (e *Engine) leave(l *link) {
	e.mu.Lock()
	l.users--
	last := l.users == 0
	if last && e.links[l.key] == l {
		delete(e.links, l.key)
	}
	e.mu.Unlock()
	if last {
		l.close()
	}
}

// clamp returns n, def where n is not said, at most limit.
func clamp(n, def, limit int) int {
	if n <= 0 {
		n = def
	}
	return min(n, limit)
}
