package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/glance-dtn/glance-dtn/mover"
)

// ErrShortID says that the beginning of an id is that of several transfers.
var ErrShortID = errors.New("their ids begin so; give more of the id")

// Transfer is a transfer of this site's DTN, and what it is for.
type Transfer struct {
	mover.Status
	Job   JobID  `json:"job,omitempty" doc:"none: no job of this agent's"`
	Image string `json:"image,omitempty" doc:"name of the job's image, or its id"`
	To    string `json:"to,omitempty" doc:"the job's site, or that to which a file is passed on"`
	From  string `json:"from,omitempty" doc:"the site of a file that is passed on; none: it is this site's own"`
}

// Transfers lists what this site's DTN moves and has moved, oldest first, and after that
// what passes through it.
func (a *Agent) Transfers(ctx context.Context) ([]Transfer, error) {
	all, err := a.Mover.Transfers(ctx, "")
	if err != nil {
		return nil, err
	}
	jobs := map[JobID]Job{}
	if err := a.eachJob(ctx, func(j Job) error {
		jobs[j.ID] = j
		return nil
	}); err != nil {
		return nil, err
	}
	list := make([]Transfer, len(all))
	for i, s := range all {
		list[i] = transferOf(s, jobs)
	}
	passages, err := a.Mover.Passages(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range passages {
		list = append(list, Transfer{From: p.From, To: p.To, Status: mover.Status{
			ID: p.ID, State: p.State, Source: p.File, Moved: p.Moved, Waiting: p.Waiting, Created: p.Since, Priority: p.Priority,
		}})
	}
	return list, nil
}

// transferOf joins a transfer with the job that has submitted it: its key is the job's id
// and round.
func transferOf(s mover.Status, jobs map[JobID]Job) Transfer {
	t := Transfer{Status: s}
	id, _, _ := strings.Cut(s.Key, ".")
	if j, ok := jobs[JobID(id)]; ok {
		t.Job, t.Image, t.To = j.ID, j.Image.Name, j.Peer
		if t.Image == "" {
			t.Image = string(j.Image.ID)
		}
	}
	return t
}

// Adjust changes what a transfer uses, while it runs or waits; what is zero stays. The id
// is the transfer's, or as much of its beginning as no other transfer has that has not
// ended. mover.ErrNoTransfer, ErrShortID.
func (a *Agent) Adjust(ctx context.Context, id mover.TransferID, p mover.PCP) (Transfer, error) {
	all, err := a.Transfers(ctx)
	if err != nil {
		return Transfer{}, err
	}
	found := slices.DeleteFunc(slices.Clone(all), func(t Transfer) bool {
		return t.State.Final() || !strings.HasPrefix(string(t.ID), string(id))
	})
	if i := slices.IndexFunc(all, func(t Transfer) bool { return t.ID == id }); i >= 0 {
		found = all[i : i+1]
	}
	switch {
	case len(found) == 0:
		return Transfer{}, fmt.Errorf("transfer %s, which has not ended: %w", id, mover.ErrNoTransfer)
	case len(found) > 1:
		return Transfer{}, fmt.Errorf("%d transfers: %w", len(found), ErrShortID)
	}
	t := found[0]
	t.Status, err = a.Mover.Adjust(ctx, t.ID, p)
	return t, err
}
