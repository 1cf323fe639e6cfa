package main

import (
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/digest"
	"github.com/glance-dtn/glance-dtn/mover"
)

const debian = glance.ImageID("6f0c1e9a-4f0b-4a51-9a3e-7ce7c3a3d1f2")

func TestVerdictSaysWhatBecameOfAJobAndWhatToDo(t *testing.T) {
	at := time.Unix(1e9, 0)
	base := agent.Job{ID: "0123456789abcdef0123", Kind: agent.Send, Peer: "B", Created: at, Image: glance.Image{
		ID: debian, Name: "debian-12", Size: 1 << 30, Hash: digest.Digest{Algo: "sha512", Value: "0011223344556677"}}}
	begun := base.Enter(agent.Pending, at, "")
	sent := begun.Enter(agent.Offered, at, "").Enter(agent.Staged, at, "").Enter(agent.Moved, at, "").Enter(agent.Verified, at.Add(8200*time.Millisecond), "")
	parked := begun.Enter(agent.Parked, at, "")
	parked.Reason = "site B refuses: quota; raise it"
	cancelled := begun.Enter(agent.Cancelled, at, "")
	cancelled.Reason = "cancelled by an operator at site B"
	waits := begun
	waits.Reason = "site B does not answer"
	renamed := sent
	renamed.DeliverAs = "7f0c1e9a-4f0b-4a51-9a3e-7ce7c3a3d1f2"
	here := base
	here.Kind = agent.Receive
	here = here.Enter(agent.Expected, at, "").Enter(agent.Arriving, at, "").Enter(agent.Verified, at.Add(time.Second), "")

	slow := sent
	slow.Waited = agent.Waited{Place: mover.Glance, For: 5700 * time.Millisecond}
	limited := sent
	limited.Waited = agent.Waited{Place: mover.Limited, Limit: "1Gbit/s to site B, set at site A", For: 8 * time.Second}
	quick := sent
	quick.Waited = agent.Waited{Place: mover.Glance, For: 57 * time.Millisecond}

	refused := here.Enter(agent.Parked, at, "")
	refused.Reason, refused.Site = "no room in Glance", "A"

	const name = "debian-12 (6f0c1e9a-4f0b-4a51-9a3e-7ce7c3a3d1f2)"
	for _, c := range []struct {
		what string
		job  agent.Job
		want string
	}{
		{"sent", sent, name + " is active at B, sha512 001122334455…, 1.0 GiB in 8.2 s (131 MB/s)"},
		{"had", begun.Enter(agent.Verified, at, ""), name + " is active at B, sha512 001122334455…, 1.0 GiB, nothing had to be moved"},
		{"had, sent earlier", sent.Enter(agent.Pending, at, "").Enter(agent.Verified, at, ""), name + " is active at B, sha512 001122334455…, 1.0 GiB, nothing had to be moved"},
		{"sent under another id", renamed, name + " is active at B as 7f0c1e9a-4f0b-4a51-9a3e-7ce7c3a3d1f2, sha512 001122334455…, 1.0 GiB in 8.2 s (131 MB/s)"},
		{"sent to a slow Glance", slow, name + " is active at B, sha512 001122334455…, 1.0 GiB in 8.2 s (131 MB/s); bottleneck: Glance, 5.7 s of it"},
		{"sent within a limit", limited, name + " is active at B, sha512 001122334455…, 1.0 GiB in 8.2 s (131 MB/s); bottleneck: limit of 1Gbit/s to site B, set at site A, 8.0 s of it"},
		{"sent, and nothing was slow", quick, name + " is active at B, sha512 001122334455…, 1.0 GiB in 8.2 s (131 MB/s)"},
		{"received", here, name + " is active here, sha512 001122334455…, 1.0 GiB in 1.0 s (1.07 GB/s)"},
		{"parked", parked, name + " → B is parked: site B refuses: quota; raise it\n  then: glance-dtn retry 0123456789abcdef0123"},
		{"parked here", refused, name + " ← B is parked: no room in Glance\n  then, at site B: glance-dtn push 6f0c1e9a-4f0b-4a51-9a3e-7ce7c3a3d1f2 --to A"},
		{"being cancelled", begun.Enter(agent.Cancelling, at, "cancelled by an operator at site B"), name + " → B is cancelling: cancelled by an operator at site B"},
		{"cancelled", cancelled, name + " → B is cancelled: cancelled by an operator at site B"},
		{"waits", waits, name + " → B is pending: site B does not answer"},
	} {
		if got := verdict(c.job); got != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", c.what, got, c.want)
		}
	}
}

func TestExitCodeTellsDoneFailedPartlyPerson(t *testing.T) {
	job := func(s agent.State) agent.Job { return agent.Job{State: s} }
	for _, c := range []struct {
		want int
		jobs []agent.Job
	}{
		{exitDone, nil},
		{exitDone, []agent.Job{job(agent.Verified), job(agent.Verified)}},
		{exitPartly, []agent.Job{job(agent.Verified), job(agent.Parked)}},
		{exitPartly, []agent.Job{job(agent.Verified), job(agent.Cancelled)}},
		{exitPerson, []agent.Job{job(agent.Parked), job(agent.Cancelled)}},
		{exitFailed, []agent.Job{job(agent.Cancelled)}},
		{exitFailed, []agent.Job{job(agent.Moved)}},
	} {
		if got := codeFor(c.jobs); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.jobs, got, c.want)
		}
	}
}
