package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/failure"
	"github.com/glance-dtn/glance-dtn/mover"
)

// probeTicketLife is how long the right to probe a path lasts. A relay's clock may differ
// from ours.
const probeTicketLife = 10 * time.Minute

// ProbeEvent is how far the probe of a path is, or, at its end, what is known of that path.
type ProbeEvent struct {
	Progress *mover.Probing `json:"progress,omitempty"`
	Path     *SitePath      `json:"path,omitempty"`
}

// Probe has this site's DTN measure the path to a peer's, or to the relay that files to that
// site go through, under load for so long and with so many bytes at most; 0: as the DTN does
// when nobody says. Where the agent chooses, it measures the path to the peer and to each
// relay, one after the other. Each ends with an event that has the path; an error at the end
// says which had none. Who stops ranging ends the probe. ErrNoPeer.
func (a *Agent) Probe(ctx context.Context, site string, load time.Duration, bytes int64) iter.Seq2[ProbeEvent, error] {
	return func(yield func(ProbeEvent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		p, err := a.named(site)
		if err != nil {
			yield(ProbeEvent{}, err)
			return
		}
		ways := []mover.Relay{p.Via}
		if len(p.Among) > 0 {
			ways = slices.Concat([]mover.Relay{{}}, p.Among)
		}
		gone := false
		var failed error
		for _, via := range ways {
			path, err := a.probe(ctx, p, via, mover.ProbeRequest{Time: load, Bytes: bytes}, func(p mover.Probing) {
				if !gone && !yield(ProbeEvent{Progress: &p}, nil) {
					gone = true
					cancel()
				}
			})
			if err != nil {
				failed = errors.Join(failed, err)
			}
			if gone || err == nil && !yield(ProbeEvent{Path: &path}, nil) {
				return
			}
		}
		if failed != nil {
			yield(ProbeEvent{}, failed)
		}
	}
}

// probe measures the path to a peer, or to a relay.
func (a *Agent) probe(ctx context.Context, p PeerSite, via mover.Relay, r mover.ProbeRequest, report func(mover.Probing)) (_ SitePath, err error) {
	site := p.Name
	r.Destination, err = p.Peer.ProbeTicket(ctx, via.Site)
	if err != nil {
		return SitePath{}, err
	}
	if mover.EngineFor(r.Destination.Address) != mover.Stream {
		return SitePath{}, failure.Permanently(fmt.Errorf("site %s takes files by GridFTP, at %s: a GridFTP server moves files and cannot be probed; `glance-dtn paths` shows what transfers see", site, r.Destination.Address))
	}
	if via != (mover.Relay{}) {
		via.Mode = cmp.Or(via.Mode, mover.CutThrough) // a choice has none yet
		site = via.Site
	}
	r.Destination.Via, r.Parallelism = via, a.settings.Load().PCP.Parallelism
	seen, err := a.Mover.Probe(ctx, r, report)
	if err != nil {
		return SitePath{}, fmt.Errorf("site %s: %w", site, err)
	}
	return SitePath{seen, a.sitesAt(seen.Address, site)}, nil
}

// sitesAt are the peers that the path to an address leads to: those that files reach, or may
// reach, through the relay there, or else the one whose DTN is there.
func (a *Agent) sitesAt(address, site string) (sites []string) {
	for _, p := range a.settings.Load().Peers {
		chosen := slices.ContainsFunc(p.Among, func(r mover.Relay) bool { return r.Address == address })
		if chosen || p.Via.Address == address || p.Via.Address == "" && p.Name == site {
			sites = append(sites, p.Name)
		}
	}
	slices.Sort(sites)
	return sites
}

// ProbeTicket answers a peer that wants to probe the path to our DTN, or to that of the site
// which passes its files on to us.
func (a *Agent) ProbeTicket(ctx context.Context, from, via string) (mover.Destination, error) {
	peer, err := a.asker(from)
	if err != nil {
		return mover.Destination{}, err
	}
	if via != "" && !slices.Contains(peer.Relays, via) {
		return mover.Destination{}, fmt.Errorf("%w: site %s takes nothing of site %s by way of site %s: set peers: relays there, or leave out peers: via at site %s", ErrForbidden, a.Site, from, via, from)
	}
	c, err := a.Landing.Capabilities(ctx)
	if err != nil {
		return mover.Destination{}, fmt.Errorf("ask the DTN of site %s: %w", a.Site, err)
	}
	token, err := a.Signer.Sign(mover.Ticket{ID: randomID(), Site: a.Site, From: from, Via: via, Probe: true, Expires: time.Now().Add(probeTicketLife)})
	if err != nil {
		return mover.Destination{}, fmt.Errorf("sign the ticket: %w", err)
	}
	return mover.Destination{Address: c.Address, Ticket: token}, nil
}
