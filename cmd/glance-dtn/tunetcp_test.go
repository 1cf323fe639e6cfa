package main

import (
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/tuning/hosttcp"
)

var tcpOutput = tunedTCP{
	Bandwidth: 10e9, RTT: 0.2, Buffers: hosttcp.Buffers{BDP: 250e6, Socket: 256 << 20, System: 512 << 20},
	Settings: []hosttcp.Change{
		{Key: "a.set", From: "1\t2", To: "1 3", Status: hosttcp.ToSet, KISTI: "k", ESnet: "e", Reason: "because", Source: "RFC 1", Later: []string{"/etc/sysctl.d/zzz.conf"}},
		{Key: "b.kept", From: "1", To: "1", Status: hosttcp.Kept, Reason: "never mind", Source: "RFC 2"},
		{Key: "c.absent", Status: hosttcp.Absent, Reason: "what for", Source: "RFC 3"},
		{Key: "d.fixed", From: "1", To: "2", Status: hosttcp.ReadOnly, Reason: "why", Source: "RFC 4"},
		{Key: "e.refused", From: "1", To: "2", Status: hosttcp.Refused, Error: "invalid argument", Reason: "why else", Source: "RFC 5"},
	},
	Advice: []hosttcp.Advice{{
		About: "rings", Now: "rx 1", Want: "rx 2", Reason: "room", Source: "ESnet", Command: []string{"ethtool -G eth0 rx 2"},
		Undo: []string{"ethtool -G eth0 rx 1"}, Keep: "a link file",
	}},
}

func TestTheTableSaysWhatAndWhy(t *testing.T) {
	const want = `10 Gbit/s with an RTT of 200.0 ms: 238.4 MiB on the way on the full path.
A socket has to hold 256.0 MiB of it, for which the kernel takes 512.0 MiB.

SETTING    STATUS     NOW  PLAN
a.set      to set     1 2  1 3
b.kept     kept       1    -
c.absent   absent     -    -
d.fixed    read-only  1    2
e.refused  refused    1    2

a.set: because.
  (RFC 1)
  /etc/sysctl.d/zzz.conf sets it, too, and is read later when the host starts: take it out there.

c.absent: what for.
  (RFC 3)

d.fixed: why.
  (RFC 4)

e.refused: why else.
  (RFC 5)
  The kernel says: invalid argument.

What others have for such a path:

SETTING  KISTI 2017  ESNET
a.set    k           e

Advice, which you follow by hand:

rings: rx 1, better rx 2: room.
  (ESnet)
    ethtool -G eth0 rx 2
  taken back by: ethtool -G eth0 rx 1
  kept by: a link file
`
	var out strings.Builder
	if err := newCLI(&out, &out).tcpTable(tcpOutput); err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}

// TestTheTableFitsAPipe has the longest key, and the longest values beside one that is set.
func TestTheTableFitsAPipe(t *testing.T) {
	long := tunedTCP{Settings: []hosttcp.Change{
		{Key: "net.ipv4.tcp_allowed_congestion_control", From: "reno cubic", To: "reno cubic bbr", Status: hosttcp.ToSet},
		{Key: "net.ipv4.tcp_rmem", From: "4096\t131072\t536870912", To: "4096 131072 1073741824", Status: hosttcp.ToSet, KISTI: "4096 87380 1073741824", ESnet: "4096 131072 1073741824"},
	}}
	var out strings.Builder
	if err := newCLI(&out, &out).tcpTable(long); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if n := len(line) - 1; n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestADryRunIsADiff(t *testing.T) {
	const want = `-a.set = 1 2
+a.set = 1 3
 c.absent: absent
 d.fixed = 1: read-only, would be 2
 e.refused = 1: refused, would be 2
`
	var out strings.Builder
	if err := newCLI(&out, &out).tcpDiff(tcpOutput.Settings); err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}

func TestTheExitCodeSaysWhetherAllWasSet(t *testing.T) {
	for _, c := range []struct {
		all  []hosttcp.Status
		want int
	}{
		{[]hosttcp.Status{hosttcp.Set, hosttcp.Kept, hosttcp.Absent}, exitDone},
		{[]hosttcp.Status{hosttcp.Kept}, exitDone},
		{[]hosttcp.Status{hosttcp.Set, hosttcp.ReadOnly}, exitPartly},
		{[]hosttcp.Status{hosttcp.Set, hosttcp.Refused}, exitPartly},
		{[]hosttcp.Status{hosttcp.Kept, hosttcp.ReadOnly}, exitPartly}, // the second --apply says what the first did
		{[]hosttcp.Status{hosttcp.Absent, hosttcp.NotPermitted}, exitFailed},
	} {
		var changes []hosttcp.Change
		for _, s := range c.all {
			changes = append(changes, hosttcp.Change{Status: s})
		}
		if got := tcpCode(changes); got != c.want {
			t.Errorf("%v: %d, want %d", c.all, got, c.want)
		}
	}
}
