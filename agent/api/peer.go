package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
)

// peerTime is how long an answer of the peer API may take.
const peerTime = 2 * time.Minute

// PeerServer serves the peer API to agents, by whose certificates it knows the
// sites. Serve it on a TLS listener that verifies clients, such as
// tls.NewListener(l, keyring.ServerTLS(nil)): without one every caller is refused. cs
// takes the connections of agents that take none.
func PeerServer(a Agent, cs *Callbacks, log *slog.Logger) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("POST "+callbackPath, cs)
	mux.Handle("/", peerRoutes(a))
	return newServer(onlyAgents(mux), peerTime, log)
}

type (
	offerInput   struct{ Body agent.Offer }
	requestInput struct {
		Body struct {
			Image string `json:"image" minLength:"1" doc:"id, or a name that only one image has"`
		}
	}
	probeTicketInput struct {
		Body struct {
			Via string `json:"via,omitempty" maxLength:"32" doc:"the site whose DTN passes files on, and is probed; left out: none"`
		}
	}
	idInput struct {
		ID agent.JobID `path:"id" maxLength:"64"`
	}
)

// peer holds the operations of the peer API.
type peer struct{ agent Agent }

func peerRoutes(a Agent) http.Handler {
	p, r := peer{a}, newRoutes("glance-dtn agent, peers")
	huma.Register(r.api, r.op(http.MethodPost, "/v1/offers", "offer", "Offer an image; may be repeated"), p.offer)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/deliveries/{id}", "get-delivery", "Tell how far a delivery is"), p.delivery)
	huma.Register(r.api, r.op(http.MethodDelete, "/v1/deliveries/{id}", "cancel-delivery", "Undo a delivery; nothing happens when there is none"), p.cancelDelivery)
	huma.Register(r.api, r.streaming(r.op(http.MethodGet, "/v1/inventory", "inventory", "List this site's images as JSON lines"),
		linesMedia, reflect.TypeFor[glance.Image]()), p.inventory)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/health", "health", "Tell what is wrong at this site that images of others wait for"), p.health)
	huma.Register(r.api, r.op(http.MethodPost, "/v1/requests", "request", "Ask for an image; answers this site's job"), p.request)
	huma.Register(r.api, r.op(http.MethodGet, "/v1/requests/{id}", "get-request", "Get the job that sends an image to the site that asks"), p.sending)
	huma.Register(r.api, r.op(http.MethodPost, "/v1/probes", "probe-ticket", "Ask for the right to probe the path to this site's DTN, and where that is"), p.probeTicket)
	return r.handler()
}

func (p peer) offer(ctx context.Context, in *offerInput) (*output[agent.Grant], error) {
	return answer(p.agent.Offer(ctx, caller(ctx), in.Body))
}

func (p peer) delivery(ctx context.Context, in *idInput) (*output[agent.Delivery], error) {
	return answer(p.agent.Delivery(ctx, caller(ctx), in.ID))
}

func (p peer) cancelDelivery(ctx context.Context, in *idInput) (*struct{}, error) {
	if err := p.agent.CancelDelivery(ctx, caller(ctx), in.ID); err != nil {
		return nil, problemOf(err)
	}
	return nil, nil
}

func (p peer) inventory(ctx context.Context, _ *noInput) (*streamResponse, error) {
	return lines(p.agent.Inventory(ctx, caller(ctx))), nil
}

func (p peer) health(ctx context.Context, _ *noInput) (*output[agent.Health], error) {
	return answer(p.agent.Health(ctx, caller(ctx)))
}

func (p peer) request(ctx context.Context, in *requestInput) (*output[agent.Job], error) {
	j, err := p.agent.Request(ctx, caller(ctx), in.Body.Image)
	return answer(j.WithoutTicket(), err)
}

func (p peer) sending(ctx context.Context, in *idInput) (*output[agent.Job], error) {
	j, err := p.agent.Sending(ctx, caller(ctx), in.ID)
	return answer(j.WithoutTicket(), err)
}

func (p peer) probeTicket(ctx context.Context, in *probeTicketInput) (*output[mover.Destination], error) {
	return answer(p.agent.ProbeTicket(ctx, caller(ctx), in.Body.Via))
}

type callerKey struct{}

// caller is the site whose agent asks.
func caller(ctx context.Context) string {
	return ctx.Value(callerKey{}).(string)
}

// onlyAgents lets agents through to h, whatever their site: what a site may do is the Agent's to say.
func onlyAgents(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := identity(r)
		if err == nil && id.Role != pki.Agent {
			err = fmt.Errorf("the %v may not use the agents' API; only agents may", id)
		}
		if err != nil {
			p := problemOf(fmt.Errorf("%w: %w", agent.ErrForbidden, err))
			answerJSON(w, p.Status, problemMedia, p)
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, id.Site)))
	})
}

func identity(r *http.Request) (pki.Identity, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return pki.Identity{}, errors.New("a client certificate is needed; issue one with: glance-dtn pki issue")
	}
	return pki.IdentityOf(r.TLS.VerifiedChains[0][0])
}
