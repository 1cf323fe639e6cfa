package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/outage"
	"github.com/glance-dtn/glance-dtn/mover"
)

// peerPatience is how long a peer may take for an answer, and be silent in a stream.
const peerPatience = time.Minute

// PeerClient asks another site's agent. Its errors name the site and where its agent is; an
// *outage.Error says that this does not answer.
type PeerClient struct{ c *client }

var _ agent.Peer = (*PeerClient)(nil)

// NewPeerClient returns a client of the site's agent at baseURL. hc shows our
// certificate and knows whom to expect: keyring.Transport(pki.Identity{Site: site, Role: pki.Agent}).
func NewPeerClient(site, baseURL string, hc *http.Client) *PeerClient {
	return newPeerClient(site, baseURL, baseURL, hc)
}

// newPeerClient is for an agent whose address for an operator is at; empty: it has none here.
func newPeerClient(site, baseURL, at string, hc *http.Client) *PeerClient {
	daemon := outage.Daemon{Name: "site " + site + "'s agent", Unit: "glance-dtn-agent", URL: at}
	return &PeerClient{&client{
		base:    strings.TrimRight(baseURL, "/"),
		hc:      hc,
		daemon:  daemon,
		most:    maxPeerAnswer,
		timeout: peerPatience,
		say: func(err error) error {
			_, silent := errors.AsType[*outage.Error](err)
			switch {
			case err == nil || silent:
				return err
			case errors.Is(err, errTooSlow): // in the middle of its answer
				return daemon.Explain(errTooSlow)
			case errors.Is(err, errInvalid): // a newer agent there will understand: the error is not permanent
				return fmt.Errorf("site %s's agent (%s) does not understand this request: is its version older? %v", site, baseURL, err)
			}
			return fmt.Errorf("site %s (%s): %w", site, baseURL, err)
		},
	}}
}

// Offer asks the peer to take an image. It may be repeated.
func (p *PeerClient) Offer(ctx context.Context, o agent.Offer) (agent.Grant, error) {
	return ask[agent.Grant](ctx, p.c, http.MethodPost, "/v1/offers", o)
}

// Delivery returns the state of the peer's job; agent.ErrNoJob.
func (p *PeerClient) Delivery(ctx context.Context, id agent.JobID) (agent.Delivery, error) {
	return ask[agent.Delivery](ctx, p.c, http.MethodGet, deliveryPath(id), nil)
}

// CancelDelivery asks the peer to undo its job; nil when there is none.
func (p *PeerClient) CancelDelivery(ctx context.Context, id agent.JobID) error {
	return p.c.call(ctx, http.MethodDelete, deliveryPath(id), nil, nil)
}

// Inventory yields the peer's images.
func (p *PeerClient) Inventory(ctx context.Context) iter.Seq2[glance.Image, error] {
	return getLines[glance.Image](ctx, p.c, "/v1/inventory")
}

// Health tells what is wrong at the peer's site. An agent of an older version does not know.
func (p *PeerClient) Health(ctx context.Context) (agent.Health, error) {
	return ask[agent.Health](ctx, p.c, http.MethodGet, "/v1/health", nil)
}

// Request asks the peer to send us an image, named by id or by unique name. It
// returns the peer's job.
func (p *PeerClient) Request(ctx context.Context, image string) (agent.Job, error) {
	var in requestInput
	in.Body.Image = image
	return ask[agent.Job](ctx, p.c, http.MethodPost, "/v1/requests", in.Body)
}

// Sending returns the peer's job that sends an image to us; agent.ErrNoJob.
func (p *PeerClient) Sending(ctx context.Context, id agent.JobID) (agent.Job, error) {
	return ask[agent.Job](ctx, p.c, http.MethodGet, "/v1/requests/"+url.PathEscape(string(id)), nil)
}

// ProbeTicket asks for the right to probe the path to the peer's DTN, or to that of the site
// via, which passes files on to it; empty: none does.
func (p *PeerClient) ProbeTicket(ctx context.Context, via string) (mover.Destination, error) {
	var in probeTicketInput
	in.Body.Via = via
	return ask[mover.Destination](ctx, p.c, http.MethodPost, "/v1/probes", in.Body)
}

func deliveryPath(id agent.JobID) string { return "/v1/deliveries/" + url.PathEscape(string(id)) }
