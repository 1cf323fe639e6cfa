package agent

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
)

// A change of a job is one line that says what it means, with nothing empty in it.
func TestWhatAChangeOfAJobLogs(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	pending := Job{ID: "1", Kind: Send, Peer: "B", Image: glance.Image{ID: "x", Name: "debian-12"}}.Enter(Pending, now, "")
	waits := pending
	waits.Reason, waits.NotBefore = "site B is full", now.Add(time.Minute)
	failed := waits
	failed.Attempts++
	undo := cancelling(pending, "cancelled by an operator at site A")
	parked := pending.Enter(Parked, now, "no room")
	parked.Reason = "no room"
	for _, c := range []struct {
		what           string
		old, now       Job
		want, not, too string
	}{
		{"a leg", pending, pending.Enter(Offered, now, ""), `msg=job `, "note=", "state=offered"},
		{"a leg with a note", pending, pending.Enter(Staged, now, "hard link"), `msg=job `, "err=", `note="hard link"`},
		{"waiting", pending, waits, `msg="a job waits"`, "0001", `err="site B is full"`},
		{"a failure", pending, failed, `level=WARN msg="a leg failed`, "0001", "attempts=1"},
		{"parking", pending, parked, `level=ERROR msg="a job needs a person"`, "0001", `next="glance-dtn retry 1"`},
		{"cancelling", pending, undo, `msg=job `, "0001", `note="cancelled by an operator at site A"`},
		{"cancelled", undo, undone(undo), `msg=job `, "0001", `note="cancelled by an operator at site A"`},
	} {
		var b bytes.Buffer
		a := &Agent{Options: Options{JobLog: slog.New(slog.NewTextHandler(&b, nil))}}
		a.logChange(c.old, c.now)
		got := b.String()
		if strings.Count(got, "\n") != 1 || !strings.Contains(got, c.want) || !strings.Contains(got, c.too) || strings.Contains(got, c.not) {
			t.Errorf("%s: logged %q, want %s, %s and no %s", c.what, got, c.want, c.too, c.not)
		}
	}
}

// A program that reads the answers finds a list where a list is promised, also an empty one.
func TestEmptyListsAreNotNull(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		o, err := w.a.agent().Overview(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows, err := w.a.agent().Compare(t.Context(), nil, Match{})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal([]any{o, rows})
		if err != nil || bytes.Contains(text, []byte("null")) || !bytes.Contains(text, []byte(`"store_faults":[]`)) {
			t.Errorf("got %s, %v", text, err)
		}
	})
}
