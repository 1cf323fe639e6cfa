package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/mover"
)

// History returns what transfers of this site's DTN have achieved, as CSV.
func (a *Agent) History(ctx context.Context) (csv string, err error) { return a.Mover.History(ctx) }

// ImportHistory adds what transfers have achieved, here or at other sites, to what this
// site's DTN knows: all of a CSV as History returns it, or nothing.
func (a *Agent) ImportHistory(ctx context.Context, csv string) (mover.Imported, error) {
	return a.Mover.ImportHistory(ctx, csv)
}

// ForgetHistory drops what a site's DTN has seen from what this site's DTN knows.
func (a *Agent) ForgetHistory(ctx context.Context, site string) (mover.Forgotten, error) {
	return a.Mover.ForgetHistory(ctx, site)
}

// named is peer for this site's operators: to them the error tells which peers there are.
func (a *Agent) named(site string) (PeerSite, error) {
	p, err := a.peer(site)
	if err != nil {
		names := []string{}
		for _, p := range a.settings.Load().Peers {
			names = append(names, p.Name)
		}
		err = fmt.Errorf("%w, which has %s", err, cmp.Or(strings.Join(names, ", "), "none"))
	}
	return p, err
}

// SitePath is a path that transfers of this site's DTN have used, or a probe.
type SitePath struct {
	mover.SeenPath
	Sites []string `json:"sites,omitempty" doc:"that it leads to, as far as jobs and probes tell"`
}

// Paths tells what transfers and probes of this site's DTN have seen of the paths that they use.
func (a *Agent) Paths(ctx context.Context) ([]SitePath, error) {
	seen, err := a.Mover.Paths(ctx)
	if err != nil {
		return nil, err
	}
	sites := map[string][]string{} // by address
	if err := a.eachJob(ctx, func(j Job) error {
		p, err := a.peer(j.Peer)
		address := cmp.Or(j.Route.Relay.Address, p.Via.Address, j.Offer.Address)
		if err == nil && address != "" && j.Kind == Send && !slices.Contains(sites[address], j.Peer) {
			sites[address] = append(sites[address], j.Peer)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	all := make([]SitePath, len(seen))
	for i, p := range seen {
		if sites[p.Address] == nil && p.Probe != nil {
			sites[p.Address] = a.sitesAt(p.Address, p.Probe.Site)
		}
		slices.Sort(sites[p.Address])
		all[i] = SitePath{p, sites[p.Address]}
	}
	return all, nil
}
