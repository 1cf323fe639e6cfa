package stream

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// gate bounds what is open, in all and from one place, so that whoever holds many keeps
// nobody else out.
type gate[place comparable] struct {
	all, each int

	mu     sync.Mutex // guards what follows
	inside int
	from   map[place]int
}

// enter lets a connection in, unless there are too many. Who came in leaves again.
func (g *gate[place]) enter(from place) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside >= g.all || g.from[from] >= g.each {
		return false
	}
	if g.from == nil {
		g.from = map[place]int{}
	}
	g.inside++
	g.from[from]++
	return true
}

func (g *gate[place]) leave(from place) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.from[from]--; g.from[from] == 0 {
		delete(g.from, from)
	}
}

// origin is the place that a connection comes from: an IPv4 address, or the 64 bits
// of a network in which an IPv6 host chooses its address freely.
func origin(a net.Addr) netip.Prefix {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // of another network than IP: all are one place
	}
	ip, bits := p.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	place, _ := ip.Prefix(bits) // bits are never too many
	return place
}

// Bounded returns l with at most all of its connections open at once, and each of those from
// one place. What comes beyond is closed, and log is told.
func Bounded(l net.Listener, all, each int, log *slog.Logger) net.Listener {
	return &bounded{l, gate[netip.Prefix]{all: all, each: each}, log}
}

type bounded struct {
	net.Listener
	gate gate[netip.Prefix]
	log  *slog.Logger
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		place := origin(c.RemoteAddr())
		if b.gate.enter(place) {
			return &inside{c, sync.OnceFunc(func() { b.gate.leave(place) })}, nil
		}
		b.log.Warn("too many connections", "listen", b.Addr().String(), "peer", c.RemoteAddr().String(), "limit", b.gate.all, "from_one_place", b.gate.each)
		_ = c.Close()
	}
}

// inside is a connection that leaves its gate when it is closed.
type inside struct {
	net.Conn
	leave func()
}

func (c *inside) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
