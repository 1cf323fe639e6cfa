package mover

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Progress is how far a Move has come, and what is known of its way.
type Progress struct {
	Moved int64 // bytes proven at the destination, those of an earlier attempt included
	Way   Way
}

// Way is what a running move's way is like. An engine leaves zero what it cannot tell.
type Way struct {
	Wire       int64      `json:"wire,omitempty" doc:"bytes that this run has put on the wire, blocks that were sent again included"`
	Through    int64      `json:"through,omitempty" doc:"bytes proven at the destination, of a file that a relay passes on: the transfer counts as moved what is proven at the relay"`
	Lanes      int        `json:"lanes,omitempty" doc:"connections that carry its bytes"`
	Site       string     `json:"site,omitempty" doc:"of the DTN at the other end of them, as its certificate says: a relay's, where it goes through one"`
	PCP        PCP        `json:"pcp,omitzero" doc:"in force; of a transfer that waits, what was set for it"`
	Origin     string     `json:"origin,omitempty" doc:"where the PCP comes from that it began with: as asked, history and by which method, or default, and why none of history"`
	Tuned      string     `json:"tuned,omitempty" doc:"why that, where it is corrected while it moves, or why it is not"`
	Path       Path       `json:"path,omitzero" doc:"the connections to its destination, all together"`
	Bottleneck Bottleneck `json:"bottleneck,omitzero" doc:"what it waits for most of the time"`
	Advice     string     `json:"advice,omitempty" doc:"what an operator can do about it"`
}

// Path is a sample of the connections to one destination, from TCP_INFO (tcp(7)).
type Path struct {
	Since       time.Time     `json:"since,omitzero" doc:"when Sent and Retransmits were 0: another time, another path"`
	Congestion  string        `json:"congestion,omitempty" doc:"congestion control in use"`
	RTT         time.Duration `json:"rtt_ns,omitempty" doc:"smoothed round trip time, mean of the connections"`
	MinRTT      time.Duration `json:"min_rtt_ns,omitempty" doc:"least round trip time that was seen"`
	MSS         int64         `json:"mss,omitempty" doc:"bytes of a segment at most"`
	Rate        float64       `json:"rate,omitempty" doc:"bits per second that the destination has acknowledged of late, all connections together"`
	Window      int64         `json:"window,omitempty" doc:"bytes that may be in flight, all congestion windows together"`
	Sent        int64         `json:"sent,omitempty" doc:"bytes sent since the first connection was opened, the ones sent again included"`
	Retransmits int64         `json:"retransmits,omitempty" doc:"bytes of them that were sent again"`
	Busy        time.Duration `json:"busy_ns,omitempty" doc:"time that connections had something to send, summed up; of it:"`
	SendLimited time.Duration `json:"send_limited_ns,omitempty" doc:"the send buffer was too small"`
	RecvLimited time.Duration `json:"receive_limited_ns,omitempty" doc:"the destination's receive window was too small"`
}

// Plus adds what is counted on another connection to what is counted in p.
func (p Path) Plus(one Path) Path {
	p.Sent += one.Sent
	p.Retransmits += one.Retransmits
	p.Busy += one.Busy
	p.SendLimited += one.SendLimited
	p.RecvLimited += one.RecvLimited
	return p
}

// Place is a part of a file's way that can be the slowest.
type Place string

// The places, in the order in which a byte comes to them.
const (
	SourceDisk      Place = "source disk"
	SourceCPU       Place = "source CPU"
	Network         Place = "network"
	DestinationCPU  Place = "destination CPU"
	DestinationDisk Place = "destination disk"
	Limited         Place = "limit" // none of them: what a DTN's configuration allows

	// What an image's whole way has beside a move:
	LocalCopy         Place = "local copy"         // to the source's export
	DestinationExport Place = "destination export" // read by the agent there
	Glance            Place = "Glance"             // at the destination

	Coming Place = "move" // what a delivery waits for whose bytes have yet to come
)

var movePlaces = []Place{SourceDisk, SourceCPU, Network, DestinationCPU, DestinationDisk, Limited}

// maxLimit is how long the text of a limit may be: longer than any that a DTN writes, and
// what a relay repeats it in still fits a message of the data plane.
const maxLimit = 140

// OfMove reports whether b is what a move can wait for, as one that another DTN tells need
// not be. The text of its limit may then be shown to a person.
func (b Bottleneck) OfMove() bool {
	strange := func(r rune) bool { return !unicode.IsPrint(r) }
	return slices.Contains(movePlaces, b.Place) && b.Share >= 0 && b.Share <= 1 &&
		len(b.Limit) <= maxLimit && !strings.ContainsFunc(b.Limit, strange)
}

// Bottleneck is the place that a leg waits for most of the time. It is measured.
type Bottleneck struct {
	Place Place   `json:"place" enum:"source disk,source CPU,network,destination CPU,destination disk,limit,local copy,destination export,Glance,move"`
	Limit string  `json:"limit,omitempty" doc:"which, where that is what holds it back: how much, for whom, set where"`
	From  string  `json:"from,omitempty" doc:"site of the relay, where it is on the way from there"`
	Share float64 `json:"share" doc:"of the time of the last seconds, or of all of it once it has ended, 0 to 1"`
}

// String is as in "network, 82 %" or "limit of 200Mbit/s to site B, set at site A, 97 %";
// empty when none is known.
func (b Bottleneck) String() string {
	if b.Place == "" {
		return ""
	}
	return fmt.Sprintf("%s, %.0f %%", b.Name(), 100*b.Share)
}

// Name is the place, or the limit, which says where it is itself.
func (b Bottleneck) Name() string {
	switch {
	case b.Limit != "":
		return fmt.Sprintf("%s of %s", b.Place, b.Limit)
	case b.From != "":
		return fmt.Sprintf("%s from %s on", b.Place, b.From)
	}
	return string(b.Place)
}
