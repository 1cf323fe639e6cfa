package stream

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// A file that goes to several destinations at once is read once: the first to come to a
// block reads it from the disk, and the others from the page cache. That holds while it
// is still there. So whoever is ahead waits for the others, once there is more between
// them than the memory can be trusted to keep.

const (
	apart      = 4               // times as slow, and a move is not waited for
	silent     = 5 * time.Second // nor one of which no block was sent for so long
	companions = time.Second     // between looks at what holds a move back
)

// inode is a file, whatever its names.
type inode struct{ dev, ino uint64 }

// company is the moves of one file by one Engine.
type company struct {
	engine  *Engine
	key     inode
	sources int    // that are open; the engine's mutex guards it
	ahead   uint32 // blocks that one may be ahead of another; 0: any

	mu      sync.Mutex // guards what follows; nothing else is locked while it is held
	members map[*outgoing]*companion
	stop    func() // ends looking, and waits for that; nil: nobody looks
}

// companion is a move in a company.
type companion struct {
	link  *link
	since time.Time
}

// company returns that of a file, for another source of it; nil: the file cannot be told.
func (e *Engine) company(f *os.File) *company {
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	key := inode{uint64(st.Dev), st.Ino}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.companies[key]
	if c == nil {
		c = &company{engine: e, key: key, ahead: e.ahead, members: map[*outgoing]*companion{}}
		if c.ahead == 0 && info.Size() > mover.BlockSize { // nobody is ahead within one block
			c.ahead = uint32(min(available()/4/blockStart(1), maxBlocks))
		}
		if e.companies == nil {
			e.companies = map[inode]*company{}
		}
		e.companies[key] = c
	}
	c.sources++
	return c
}

// available is the memory that can be had without swapping, page cache included, bytes;
// 0: nobody knows.
func available() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var n int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &n); err == nil {
			return n << 10
		}
	}
	return 0
}

// disband takes a source from a company.
func (c *company) disband() {
	if c == nil {
		return
	}
	e := c.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.sources--; c.sources == 0 {
		delete(e.companies, c.key)
	}
}

// alone reports whether the file has no other source.
func (c *company) alone() bool {
	if c == nil {
		return false
	}
	c.engine.mu.Lock()
	defer c.engine.mu.Unlock()
	return c.sources == 1
}

// join has a file on a link sent in company.
func (c *company) join(f *outgoing, l *link) {
	if c == nil || c.ahead == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[f] = &companion{link: l, since: time.Now()}
	if len(c.members) == 2 {
		ctx, cancel := context.WithCancel(context.Background())
		var looking sync.WaitGroup
		looking.Go(func() { c.look(ctx) })
		c.stop = func() { cancel(); looking.Wait() }
	}
}

// leave undoes join, and returns when nothing of it runs.
func (c *company) leave(f *outgoing) {
	if c == nil || c.ahead == 0 {
		return
	}
	c.mu.Lock()
	delete(c.members, f)
	stop := func() {}
	if len(c.members) == 1 {
		stop, c.stop = c.stop, nil
	}
	c.mu.Unlock()
	c.wake()
	stop()
}

// look has the moves see now and then whether they are still held back: what they wait
// for may be nothing that happens.
func (c *company) look(ctx context.Context) {
	tick := time.NewTicker(companions)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.wake()
		}
	}
}

func (c *company) wake() {
	c.mu.Lock()
	var links []*link
	for _, m := range c.members {
		links = append(links, m.link)
	}
	c.mu.Unlock()
	for _, l := range links {
		l.mu.Lock()
		l.changed.Broadcast()
		l.mu.Unlock()
	}
}

// passed tells the others that f has sent a block. One may miss it: look makes up for that.
func (c *company) passed(f *outgoing) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.members[f] == nil {
		return
	}
	for other, m := range c.members {
		if other != f {
			m.link.changed.Broadcast()
		}
	}
}

// holds reports whether f should wait for another one: that is as far behind as it may
// be, and comes on. One that is further behind has to read the disk itself anyhow.
func (c *company) holds(f *outgoing, now time.Time) bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	me := c.members[f]
	if me == nil {
		return false
	}
	at := f.dealt.Load()
	for other, m := range c.members {
		behind := at - min(at, other.dealt.Load())
		if behind < c.ahead || behind > c.ahead+c.ahead/8 {
			continue
		}
		if now.Sub(time.Unix(0, other.lately.Load())) < silent && apart*other.pace(m.since, now) >= f.pace(me.since, now) {
			return true
		}
	}
	return false
}

// pace is how many blocks were passed in a second.
func (f *outgoing) pace(since, now time.Time) float64 {
	return float64(f.dealt.Load()) / max(now.Sub(since).Seconds(), 1e-3)
}
