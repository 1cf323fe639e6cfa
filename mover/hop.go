package mover

import "context"

// Hop is what the DTN of site From has seen of its path to that of Site.
type Hop struct {
	From string `json:"from" doc:"site whose DTN has seen it"`
	SeenPath
}

// Scout is an Engine that can ask a relay, over the connections that files go over.
type Scout interface {
	// Onward tells what the relay has seen of its paths to the sites to which it passes
	// files of this one on. It is an error when the relay cannot be reached or takes
	// nothing from this site now. The relay's mode does not matter.
	Onward(ctx context.Context, r Relay) ([]Hop, error)
}
