package nfs

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Stats are the counters of one NFS mount, from /proc/PID/mountstats (fs/nfs/super.c
// and net/sunrpc/stats.c of Linux). They start at zero when it is mounted; mounts
// that share a superblock share them.
type Stats struct {
	Source  string
	Point   string
	Type    string
	Options Options       // of the superblock, so without noatime and the like
	Age     time.Duration // since it was mounted, in whole seconds
	Bytes   Bytes
	Ops     map[string]Op // by procedure, as in READ, WRITE, COMMIT; those of the version mounted
}

// Bytes are the bytes of a mount: those that programs read and wrote through the
// page cache and around it (O_DIRECT), and those that the server sent and received.
type Bytes struct {
	Read, Written             int64
	DirectRead, DirectWritten int64
	ServerRead, ServerWritten int64
}

// Op are the counters of one procedure.
type Op struct {
	Ops      int64 // requests that are done
	Trans    int64 // requests sent, with those sent anew
	Timeouts int64 // of the kind that soft mounts end with
	Sent     int64 // bytes, with RPC headers
	Received int64 // bytes, with RPC headers
	Errors   int64 // those that ended with an error; 0 where the kernel does not count them

	// Sums over all requests, in whole milliseconds: before it was sent, until it
	// was answered, and from its beginning to its end.
	Queue, RTT, Execute time.Duration
}

// Sub returns what happened since before, the same mount's earlier counters. It
// fails where they are not: it was mounted anew, or is another mount.
func (s Stats) Sub(before Stats) (Stats, error) {
	if s.Source != before.Source || s.Point != before.Point {
		return Stats{}, fmt.Errorf("counters of %s on %s and of %s on %s have no difference", s.Source, s.Point, before.Source, before.Point)
	}
	d := s
	d.Age -= before.Age
	d.Bytes = s.Bytes.sub(before.Bytes)
	d.Ops = map[string]Op{}
	anew := d.Age < 0
	for name, o := range s.Ops {
		o = o.sub(before.Ops[name])
		anew = anew || o.Ops < 0 || o.Trans < 0
		d.Ops[name] = o
	}
	for name := range before.Ops { // another version of NFS has other procedures
		_, still := s.Ops[name]
		anew = anew || !still
	}
	if anew {
		return Stats{}, fmt.Errorf("%s was mounted anew between two samples of its counters: begin the measurement again", s.Point)
	}
	return d, nil
}

func (b Bytes) sub(c Bytes) Bytes {
	return Bytes{
		b.Read - c.Read, b.Written - c.Written,
		b.DirectRead - c.DirectRead, b.DirectWritten - c.DirectWritten,
		b.ServerRead - c.ServerRead, b.ServerWritten - c.ServerWritten,
	}
}

func (o Op) sub(p Op) Op {
	return Op{
		Ops: o.Ops - p.Ops, Trans: o.Trans - p.Trans, Timeouts: o.Timeouts - p.Timeouts,
		Sent: o.Sent - p.Sent, Received: o.Received - p.Received, Errors: o.Errors - p.Errors,
		Queue: o.Queue - p.Queue, RTT: o.RTT - p.RTT, Execute: o.Execute - p.Execute,
	}
}

// ParseMountstats reads /proc/PID/mountstats, of which it returns the NFS mounts, in
// order: of two on one mount point, the later one is on top.
func ParseMountstats(r io.Reader) ([]Stats, error) {
	var all []Stats
	var s *Stats // of the block that is read; nil in one that is not of NFS
	perOp := false
	err := eachLine(r, func(line string) error {
		if !strings.HasPrefix(line, "\t") {
			s, perOp = nil, false
			if !strings.HasPrefix(line, "device ") {
				return nil
			}
			head, err := parseDevice(line)
			if err == nil && IsNFS(head.Type) {
				all = append(all, head)
				s = &all[len(all)-1]
			}
			return err
		}
		if s == nil {
			return nil
		}
		name, values, _ := strings.Cut(strings.TrimLeft(line, "\t "), ":")
		var err error
		switch {
		case perOp:
			s.Ops[name], err = parseOp(values)
		case name == "opts":
			s.Options = parseField(strings.Trim(values, "\t"))
		case name == "age":
			s.Age, err = parseAge(values)
		case name == "bytes":
			s.Bytes, err = parseBytes(values)
		case strings.TrimRight(name, " ") == "per-op statistics":
			perOp = true
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", name, s.Point, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mountstats: %w", err)
	}
	return all, nil
}

// parseDevice reads "device SOURCE mounted on POINT with fstype TYPE statvers=V".
func parseDevice(line string) (Stats, error) {
	f := strings.Split(line, " ")
	if len(f) < 8 || !slices.Equal([]string{f[2], f[3], f[5], f[6]}, []string{"mounted", "on", "with", "fstype"}) {
		return Stats{}, fmt.Errorf("want device SOURCE mounted on POINT with fstype TYPE, got %q", line)
	}
	return Stats{Source: unescape(f[1]), Point: unescape(f[4]), Type: f[7], Ops: map[string]Op{}}, nil
}

func parseAge(values string) (time.Duration, error) {
	n, err := counters(values, 1)
	if err != nil {
		return 0, err
	}
	return span(n[0], time.Second), nil
}

func parseBytes(values string) (Bytes, error) {
	n, err := counters(values, 6)
	if err != nil {
		return Bytes{}, err
	}
	return Bytes{Read: n[0], Written: n[1], DirectRead: n[2], DirectWritten: n[3], ServerRead: n[4], ServerWritten: n[5]}, nil
}

func parseOp(values string) (Op, error) {
	n, err := counters(values, 8)
	if err != nil {
		return Op{}, err
	}
	o := Op{
		Ops: n[0], Trans: n[1], Timeouts: n[2], Sent: n[3], Received: n[4],
		Queue: span(n[5], time.Millisecond), RTT: span(n[6], time.Millisecond), Execute: span(n[7], time.Millisecond),
	}
	if len(n) > 8 {
		o.Errors = n[8]
	}
	return o, nil
}

// span is n units, or as many as a Duration holds.
func span(n int64, unit time.Duration) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(unit))) * unit
}

// counters reads at least so many numbers.
func counters(values string, least int) ([]int64, error) {
	f := fields(values)
	if len(f) < least {
		return nil, fmt.Errorf("want %d numbers, got %q", least, values)
	}
	n := make([]int64, len(f))
	for i := range f {
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil || v < 0 {
			return nil, fmt.Errorf("%q is not a counter", f[i])
		}
		n[i] = v
	}
	return n, nil
}
