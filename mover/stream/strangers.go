package stream

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// strangers bounds the connections that have shown no certificate yet, in all and from one
// place. Who comes when there are too many in all takes the place of an old one: those who
// shake hands are strangers for two round trips, and those who say nothing keep nobody out.
type strangers struct {
	all, each int

	mu     sync.Mutex // guards what follows
	inside []stranger // the oldest is the first
}

type stranger struct {
	conn net.Conn
	from netip.Prefix
}

// enter lets a connection in, which leaves again, and returns the one that has to go: none
// where there is room, c itself where there are too many from its place, or else the oldest.
func (g *strangers) enter(c net.Conn, from netip.Prefix) (out net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := 0
	for _, s := range g.inside {
		if s.from == from {
			here++
		}
	}
	if here >= g.each {
		return c
	}
	if len(g.inside) >= g.all {
		out = g.inside[0].conn
		g.inside = slices.Delete(g.inside, 0, 1)
	}
	g.inside = append(g.inside, stranger{c, from})
	return out
}

// leave takes a connection out. It returns false when that had to go before.
func (g *strangers) leave(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.inside, func(s stranger) bool { return s.conn == c })
	if i >= 0 {
		g.inside = slices.Delete(g.inside, i, i+1)
	}
	return i >= 0
}
