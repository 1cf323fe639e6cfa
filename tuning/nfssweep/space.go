// Package nfssweep finds the rsize and wsize of an NFS mount by experiment. It
// decides what to measure next and what the figures mean; measuring is the caller's.
//
// A [Space] says what may be tried. [Sweep] tries all of it, [Search] at most a
// third, [Analyse] makes medians, spreads and knees of what either observed, and
// [Report.Advise] says what to mount with. The knee of a curve, not its maximum, is
// the advice: beyond it a larger size takes memory and adds latency for nothing.
package nfssweep

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Op is what a measurement does.
type Op string

// The two operations. Read is of a file that the client has not cached.
const (
	Write Op = "write"
	Read  Op = "read"
)

// Mode is sync or async, of a server (exports(5)) or of a client (nfs(5)).
type Mode string

// Empty is what is in force and not known.
const (
	Sync  Mode = "sync"
	Async Mode = "async"
)

// Data is what files are made of.
type Data string

// Zero is what /dev/zero gives, which some servers do not store. Random can neither
// be compressed nor deduplicated.
const (
	Random Data = "random"
	Zero   Data = "zero"
)

// Corner is all of a setting but the size: what one curve is about. An empty field
// stands for what is in force.
type Corner struct {
	Op       Op     `json:"op"`
	Server   Mode   `json:"server,omitempty"`
	Client   Mode   `json:"client,omitempty"`
	Version  string `json:"vers,omitempty"`     // as the option vers of nfs(5)
	NConnect int    `json:"nconnect,omitempty"` // connections, as the option of nfs(5)
	Data     Data   `json:"data,omitempty"`
}

// Setting is what is measured at once.
type Setting struct {
	Corner
	Size int64 `json:"size"` // rsize or wsize, in bytes
}

// String names a setting in a line: write 8K, server sync, client async.
func (s Setting) String() string {
	return strings.Join(append([]string{string(s.Op) + " " + Size(s.Size)}, s.parts()...), ", ")
}

// parts names what is set, besides the operation and what is usual.
func (c Corner) parts() []string {
	var p []string
	if c.Data == Random {
		c.Data = ""
	}
	for _, f := range []struct{ name, value string }{
		{"server ", string(c.Server)}, {"client ", string(c.Client)}, {"vers=", c.Version}, {"nconnect=", c.connections()}, {"", string(c.Data)},
	} {
		if f.value != "" {
			p = append(p, f.name+f.value)
		}
	}
	return p
}

func (c Corner) connections() string {
	if c.NConnect == 0 {
		return ""
	}
	return strconv.Itoa(c.NConnect)
}

// Size returns bytes as the seed of this experiment and dd(1) name them: 8K, 1M.
func Size(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dM", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dK", n>>10)
	}
	return strconv.FormatInt(n, 10)
}

// Space is what may be tried: every combination. An empty list of modes, versions,
// connections or data means what is in force.
type Space struct {
	Ops      []Op
	Sizes    []int64 // in bytes, ascending; 1 KiB to 1 MiB is what Linux has
	Servers  []Mode
	Clients  []Mode
	Versions []string
	NConnect []int
	Data     []Data
	Reps     int // how often each setting is measured by Sweep
}

// Octaves are the powers of two from 1 KiB to 1 MiB: what Linux can have as rsize
// and wsize, besides other multiples of a page.
func Octaves() []int64 {
	var sizes []int64
	for n := int64(1 << 10); n <= 1<<20; n *= 2 {
		sizes = append(sizes, n)
	}
	return sizes
}

// Validate reports every fault at once.
func (s Space) Validate() error {
	var faults []error
	fault := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	ascending := slices.IsSorted(s.Sizes) && unique(s.Sizes)
	fault(len(s.Ops) == 0, "no operation: want write, read or both")
	fault(len(s.Sizes) == 0 || !ascending || s.Sizes[0] < 1, "sizes %v: want at least one, all above 0, in ascending order", s.Sizes)
	fault(s.Reps < 1, "%d repetitions: want 1 at least", s.Reps)
	fault(!unique(s.Ops) || !unique(s.Servers) || !unique(s.Clients) || !unique(s.Versions) || !unique(s.NConnect) || !unique(s.Data),
		"something is to be measured twice: name each operation, mode, version, number of connections and kind of data once")
	for _, n := range s.NConnect {
		fault(n < 1 || n > 16, "nconnect %d: want 1 to 16", n)
	}
	return errors.Join(faults...)
}

func unique[T cmp.Ordered](list []T) bool {
	sorted := slices.Sorted(slices.Values(list))
	return len(slices.Compact(sorted)) == len(list)
}

// Corners lists the curves, in the order of the lists.
func (s Space) Corners() []Corner {
	var all []Corner
	for _, op := range s.Ops {
		for _, server := range orInForce(s.Servers) {
			for _, client := range orInForce(s.Clients) {
				for _, version := range orInForce(s.Versions) {
					for _, n := range orInForce(s.NConnect) {
						for _, data := range orInForce(s.Data) {
							all = append(all, Corner{op, server, client, version, n, data})
						}
					}
				}
			}
		}
	}
	return all
}

func orInForce[T any](list []T) []T {
	if len(list) == 0 {
		return make([]T, 1)
	}
	return list
}

// Measurements is how many Sweep takes.
func (s Space) Measurements() int { return len(s.Corners()) * len(s.Sizes) * s.Reps }
