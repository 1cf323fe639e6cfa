package dtn

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// onwardTime is how long a relay may take to answer what it has seen: who asks has a file
// that waits to go.
const onwardTime = 10 * time.Second

type onwardInput struct {
	Site    string `path:"site" maxLength:"32" doc:"whose DTN the relay is"`
	Address string `query:"address" required:"true" maxLength:"512" doc:"host:port of its data plane"`
}

func (s *Server) onward(ctx context.Context, in *onwardInput) (*output[[]mover.Hop], error) {
	scout, ok := s.opt.Engines[mover.Stream].(mover.Scout)
	if !ok {
		return nil, problem(http.StatusUnprocessableEntity, "", fmt.Sprintf("this DTN has no engine %s, by which alone files go through a relay", mover.Stream))
	}
	r := mover.Relay{Site: in.Site, Address: in.Address, Mode: mover.CutThrough}
	if err := r.Validate(mover.Stream); err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "", err.Error())
	}
	ctx, cancel := context.WithTimeoutCause(ctx, onwardTime, fmt.Errorf("no answer within %v", onwardTime))
	defer cancel()
	hops, err := scout.Onward(ctx, r)
	if err != nil {
		return nil, problem(http.StatusBadGateway, mover.CodeOf(err), err.Error())
	}
	return &output[[]mover.Hop]{append([]mover.Hop{}, hops...)}, nil
}

// Sighted takes what a file that passes on through this DTN sees of the path to an address.
func (s *Server) Sighted(address string, w mover.Way) { s.sightings.add(time.Now(), address, w) }

// Seen tells what this DTN's transfers, and the files that pass through it, have seen of paths.
func (s *Server) Seen() []mover.SeenPath { return s.sightings.all() }
