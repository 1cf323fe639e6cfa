package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// Compare tells how the images here that m selects stand at the peers; all peers when none
// is named. A peer that does not answer is Unknown, and holds up no other one.
func (a *Agent) Compare(ctx context.Context, peers []string, m Match) ([]Comparison, error) {
	if len(peers) == 0 {
		for _, p := range a.settings.Load().Peers {
			peers = append(peers, p.Name)
		}
	}
	return a.compare(ctx, peers, m, func([]Comparison) error { return nil })
}

// compare is Compare with the peers named. It calls each with what one has told, as it comes.
func (a *Agent) compare(ctx context.Context, peers []string, m Match, each func([]Comparison) error) ([]Comparison, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	sites := make([]PeerSite, len(peers))
	for i, name := range peers {
		var err error
		if sites[i], err = a.named(name); err != nil {
			return nil, err
		}
	}
	local, err := collect(a.Catalog.Images(ctx, time.Time{}))
	if err != nil {
		return nil, err
	}
	type way struct {
		image glance.ImageID
		peer  string
	}
	under := map[way]JobID{}
	err = a.eachJob(ctx, func(j Job) error {
		if j.Kind == Send && !j.State.Final() {
			under[way{j.Image.ID, j.Peer}] = j.ID
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	here, bySite := index(local), map[string][]Comparison{}
	for t := range inquire(ctx, sites) {
		if t.err != nil {
			bySite[t.site] = []Comparison{{Peer: t.site, Relation: Unknown, Detail: t.err.Error()}}
			continue
		}
		there := index(t.images)
		rows := slices.DeleteFunc(compareImages(local, t.images, t.site), func(c Comparison) bool {
			img, ok := here[c.ID]
			if !ok {
				img = there[c.ID]
			}
			return !m.Selects(img)
		})
		for i, c := range rows {
			rows[i].Job = under[way{c.ID, c.Peer}]
		}
		if err := each(rows); err != nil {
			return nil, err
		}
		for i, c := range rows {
			if l := here[c.ID]; !c.Planned {
				rows[i].Detail = cmp.Or(a.leftThere(ctx, c, l), a.leftHere(ctx, l), c.Detail)
			}
		}
		bySite[t.site] = rows
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	out := []Comparison{}
	for _, name := range peers {
		out = append(out, bySite[name]...)
	}
	return out, nil
}

// compareImages tells how the local images stand at a peer, and what that has
// beyond them. It does no I/O. The order is by name and id.
func compareImages(local, remote []glance.Image, peer string) []Comparison {
	there := index(remote)
	bySource := map[glance.ImageID]glance.Image{}
	for _, r := range remote {
		if s := r.SourceID(); s != r.ID {
			bySource[s] = r
		}
	}
	var out []Comparison
	seen := map[glance.ImageID]bool{}
	for _, l := range local {
		c := Comparison{ID: l.ID, Name: l.Name, Size: l.Size, Peer: peer}
		r, ok := there[l.ID]
		if !ok {
			if r, ok = bySource[l.ID]; !ok {
				r, ok = there[l.SourceID()]
			}
		}
		if ok {
			seen[r.ID] = true
		}
		diff := l.MetadataDiff(r)
		switch {
		case l.Properties[glance.PropJob] != "":
			c.Relation, c.Detail = Unready, "here: half made"
		case l.Status != glance.Active:
			c.Relation, c.Detail = Unready, "here: "+string(l.Status)
		case !ok:
			c.Relation = Missing
		case r.Properties[glance.PropJob] != "":
			c.Relation, c.Detail, c.half = Unready, "at "+peer+": half made", true
			if r.Status == glance.Queued {
				c.maker = JobID(r.Properties[glance.PropJob])
			}
		case r.Status != glance.Active && r.Status != glance.Deactivated:
			c.Relation, c.Detail = Unready, "at "+peer+": "+string(r.Status)
		case !l.SameContent(r):
			c.Relation, c.Detail = Conflict, fmt.Sprintf("here %s, at %s %s", l.Hash.Short(), peer, r.Hash.Short())
		case len(diff) > 0:
			c.Relation, c.Detail = Differs, strings.Join(diff, ", ")
		default:
			c.Relation = Same
		}
		out = append(out, c)
	}
	for _, r := range remote {
		if !seen[r.ID] {
			out = append(out, Comparison{ID: r.ID, Name: r.Name, Size: r.Size, Peer: peer, Relation: Extra})
		}
	}
	slices.SortFunc(out, func(x, y Comparison) int { return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID)) })
	return out
}

// leftThere says of an empty record that a delivery of ours has made at a peer why it is there
// and what to do, where no job goes on with it or waits for a person; otherwise nothing. img is
// the image here. What the peer has was read before: a job that is made meanwhile counts.
func (a *Agent) leftThere(ctx context.Context, c Comparison, img glance.Image) string {
	if c.maker == "" || c.maker != NewJobID(Receive, img.ID, img.Hash, a.Site) {
		return ""
	}
	j, err := a.Store.Get(ctx, NewJobID(Send, img.ID, img.Hash, c.Peer))
	switch {
	case errors.Is(err, ErrNoJob):
		return left("no job of site "+a.Site+" goes on with it", img.ID, a.Site, c.Peer)
	case err == nil && j.State == Cancelled:
		return left(j.Reason, img.ID, a.Site, c.Peer)
	}
	return ""
}

// leftHere is the same for an image of this site.
func (a *Agent) leftHere(ctx context.Context, img glance.Image) string {
	id := JobID(img.Properties[glance.PropJob])
	if id == "" || img.Status != glance.Queued {
		return ""
	}
	j, err := a.Store.Get(ctx, id)
	if err != nil || j.State != Cancelled {
		return ""
	}
	return left(j.Reason, j.Image.ID, j.Peer, a.Site)
}

// left says that the empty record of an image stays at its destination, and what to do.
func left(why string, id glance.ImageID, from, to string) string {
	return fmt.Sprintf("%s; its empty record stays at site %s, hidden, for the next delivery; if site %s has the image and does not offer it again by itself, there: glance-dtn push %s --to %s; if the image is not wanted, leave the record: site %s removes it when no peer has the image and the job is older than keep", why, to, from, id, to, to)
}
