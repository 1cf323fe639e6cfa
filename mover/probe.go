package mover

import (
	"context"
	"time"
)

// What a probe takes at most, of its sender and of its receiver.
const (
	MaxProbeTime  = 30 * time.Second
	MaxProbeBytes = 64 << 30
)

// MinProbeBytes is how many bytes tell something of a path.
const MinProbeBytes = 16 << 20

// What a probe takes when nobody says.
const (
	DefaultProbeTime  = 5 * time.Second
	DefaultProbeBytes = 16 << 30
)

// Prober is an Engine that measures paths without files.
type Prober interface {
	// Probe measures the path to a destination's DTN, or to the one that passes files on to
	// it, with bytes that are thrown away there. It adds no load where files move to the same
	// DTN. report is called now and then, never concurrently. When ctx is done both ends are
	// soon. Where nothing may move now the error is a *Wait, as it is when the other end has
	// no place for a probe.
	Probe(ctx context.Context, r ProbeRequest, report func(Probing)) (Probed, error)
}

// ProbeRequest asks a DTN to measure the path to another one.
type ProbeRequest struct {
	Destination Destination   `json:"destination" doc:"with a ticket for a probe"`
	Time        time.Duration `json:"time_ns,omitempty" minimum:"0" maximum:"30000000000" doc:"that load is put on the path; 0: 5 s"`
	Bytes       int64         `json:"bytes,omitempty" minimum:"0" maximum:"68719476736" doc:"that are sent at most, 16 MiB or more; 0: 16 GiB"`
	Parallelism int           `json:"parallelism,omitempty" minimum:"0" maximum:"16" doc:"connections; 0: as many as a transfer would have"`
}

// ProbePhase is a part of a probe.
type ProbePhase string

// The phases, in their order.
const (
	ProbeConnect ProbePhase = "connect" // both DTNs prove who they are
	ProbeIdle    ProbePhase = "idle"    // round trips without load
	ProbeOne     ProbePhase = "one"     // one connection sends
	ProbeAll     ProbePhase = "all"     // as many as a transfer would have
)

// Probing is how far a probe is.
type Probing struct {
	Phase       ProbePhase    `json:"phase" enum:"connect,idle,one,all"`
	Connections int           `json:"connections" doc:"that send"`
	Loaded      time.Duration `json:"loaded_ns" doc:"for how long there has been load"`
	Time        time.Duration `json:"time_ns" doc:"for how long there will be at most"`
	Bytes       int64         `json:"bytes" doc:"that have arrived"`
	Rate        float64       `json:"rate" doc:"bits per second that arrive now"`
}

// Probed is what a probe has found. A rate of 0 was not measured.
type Probed struct {
	At          time.Time     `json:"at"`
	Site        string        `json:"site" doc:"of the DTN at its end"`
	Idle        time.Duration `json:"idle_rtt_ns" doc:"least round trip time before there was load"`
	Loaded      time.Duration `json:"loaded_rtt_ns,omitempty" doc:"round trip time beside the load, median"`
	One         float64       `json:"one,omitempty" doc:"bits per second that arrived over one connection"`
	All         float64       `json:"all,omitempty" doc:"bits per second that arrived over as many connections as a transfer would have"`
	Connections int           `json:"connections,omitempty" doc:"how many these are"`
	Bytes       int64         `json:"bytes,omitempty" doc:"that arrived"`
	Loss        float64       `json:"loss" doc:"share of the bytes that had to be sent again after slow start, 0 to 1"`
	Busy        bool          `json:"busy,omitempty" doc:"files moved on this path, so that no load was put on it, or no more"`
	Short       bool          `json:"short,omitempty" doc:"its bytes had arrived before its time was over, maybe before TCP had opened its windows: the path may bring more"`

	Path Path `json:"-"` // all of its connections together; what is counted, after slow start alone
}

// ProbeEvent is what a DTN tells of a probe: how far it is, and at last one of the others.
type ProbeEvent struct {
	Progress *Probing  `json:"progress,omitempty"`
	Path     *SeenPath `json:"path,omitempty" doc:"what is known of the path now"`
	Problem  *Problem  `json:"problem,omitempty" doc:"why it was not measured"`
}
