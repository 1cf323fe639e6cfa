package mover

import (
	"errors"
	"fmt"
	"time"
)

// Relay is the DTN of a third site, to which a file goes instead of its destination, and
// which passes it on. The zero Relay is none.
type Relay struct {
	Site    string    `json:"site" minLength:"1" doc:"whose DTN it is; its certificate has to say so"`
	Address string    `json:"address" minLength:"1" doc:"host:port of its data plane"`
	Mode    RelayMode `json:"mode" enum:"store,cut"`
}

// Passage is a file that a DTN passes on from one site to another, or that rests there.
type Passage struct {
	ID       TransferID    `json:"id" doc:"of this DTN's alone, and no transfer's"`
	File     File          `json:"file" doc:"its name is the one at the relay"`
	From     string        `json:"from"`
	To       string        `json:"to"`
	Mode     RelayMode     `json:"mode" enum:"store,cut"`
	State    TransferState `json:"state" enum:"running,queued" doc:"queued: nobody brings it now, and it waits here for somebody who does"`
	Moved    int64         `json:"moved" doc:"bytes proven at the destination, as far as this passage knows"`
	Here     int64         `json:"here" doc:"bytes proven here, those that have gone on included"`
	Waiting  string        `json:"waiting,omitempty" doc:"why it is queued, for a person"`
	Since    time.Time     `json:"since" doc:"when it began to run, or to rest"`
	Kept     time.Time     `json:"kept,omitzero" doc:"until when, to some minutes, what rests is kept at most, without a restart of the DTN"`
	Priority Priority      `json:"priority,omitempty" enum:"low,normal,high"`
}

// Passed is what a DTN has passed on from one site to another since it started.
type Passed struct {
	From, To string
	Files    int64
	Bytes    int64 // proven at the destination
}

// RelayMode is when a relay passes a file on.
type RelayMode string

// The modes.
const (
	StoreForward RelayMode = "store" // once it has the whole and has found its digest right
	CutThrough   RelayMode = "cut"   // each block once it is proven there; it keeps those the destination does not have yet
)

// Validate reports a relay that files of this engine cannot take. None is right for all.
func (r Relay) Validate(engine string) error {
	switch {
	case r == Relay{}:
		return nil
	case engine != Stream:
		return fmt.Errorf("a file goes through a relay by %s only, not by %s", Stream, engine)
	case r.Site == "":
		return errors.New("the relay's site is missing")
	case r.Mode != StoreForward && r.Mode != CutThrough:
		return fmt.Errorf("a relay's mode is %s or %s, not %q", StoreForward, CutThrough, r.Mode)
	case EngineFor(r.Address) != Stream:
		return fmt.Errorf("a relay's address is host:port, not %q", r.Address)
	}
	return CheckAddress(r.Address)
}
