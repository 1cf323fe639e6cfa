package mover

import (
	"math"
	"time"
)

// SeenPath is what a DTN has seen of the path to one address, while its transfers
// and probes used it.
type SeenPath struct {
	Address     string        `json:"address" doc:"data address of the destination, or of the DTN that passes files on to it"`
	Site        string        `json:"site,omitempty" doc:"of the DTN there, as its certificate says"`
	Since       time.Time     `json:"since" doc:"when it was first seen"`
	Seen        time.Time     `json:"seen" doc:"when it was last seen"`
	Congestion  string        `json:"congestion,omitempty" doc:"congestion control that was in use"`
	Connections int           `json:"connections" doc:"that were in use"`
	MinRTT      time.Duration `json:"min_rtt_ns" doc:"least round trip time"`
	RTT         time.Duration `json:"rtt_ns" doc:"smoothed round trip time"`
	MSS         int64         `json:"mss,omitempty" doc:"bytes of a segment at most"`
	Loss        float64       `json:"loss" doc:"share of the bytes that had to be sent again, 0 to 1; what was seen longer ago counts less"`
	Best        float64       `json:"best" doc:"bits per second, the most that arrived in some seconds, all connections together"`
	Recent      float64       `json:"recent,omitempty" doc:"as best, of late: what is longer ago counts less"`
	Rate        float64       `json:"rate" doc:"bits per second that arrived in the last seconds of which this is known"`
	SendLimited float64       `json:"send_limited" doc:"share of the time that connections waited for a larger send buffer, 0 to 1"`
	RecvLimited float64       `json:"receive_limited" doc:"share of the time that they waited for a larger receive window"`

	Probe *Probed `json:"probe,omitempty" doc:"what the last probe has found, by itself; it is part of the figures above too, beside what transfers have shown"`

	BDP   int64   `json:"bdp" doc:"bytes in flight that fill the path at the best rate: bandwidth-delay product"`
	Bound float64 `json:"bound,omitempty" doc:"bits per second that this loss leaves one connection whose congestion control goes by loss, by Mathis et al.; 0: there was none"`
}

// Bounded returns p with what follows from what was seen: the bandwidth-delay product, and
// the bound of Mathis, Semke, Mahdavi and Ott (CCR 27(3), 1997): MSS/RTT·√(3/2)/√loss.
func (p SeenPath) Bounded() SeenPath {
	p.BDP = int64(p.Best / 8 * p.MinRTT.Seconds())
	p.Bound = 0
	if p.Loss > 0 && p.MinRTT > 0 {
		p.Bound = 8 * float64(p.MSS) / p.MinRTT.Seconds() * math.Sqrt(1.5/p.Loss)
	}
	return p
}

// Forgotten is what was dropped from a DTN's history.
type Forgotten struct {
	Outcomes int `json:"outcomes" doc:"that were dropped"`
}

// Imported is what became of outcomes that were given to a DTN's history.
type Imported struct {
	Outcomes int `json:"outcomes" doc:"that were given"`
	New      int `json:"new" doc:"of them, that were not known, and not older than what is kept"`
}
