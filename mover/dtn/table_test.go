package dtn

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestBrokenRecordsAreSetAside(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	good := submit(t, s, request("good"))
	broken := map[string]string{"." + string(good) + ".json.tmp": `{"request":`} // what a crash leaves
	for key, hurt := range map[string]func(string) string{
		"truncated":     func(s string) string { return s[:len(s)/2] },
		"empty":         func(string) string { return "" },
		"trailing":      func(s string) string { return s + "{}" },
		"unknown-field": func(s string) string { return strings.Replace(s, "{", `{"from_the_future":1,`, 1) },
		"unknown-state": func(s string) string { return strings.Replace(s, `"queued"`, `"dreaming"`, 1) },
		"other-key":     func(s string) string { return strings.Replace(s, "other-key", "another-key", 1) },
	} {
		name := recordName(submit(t, s, request(key)))
		data, err := r.opt.State.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		broken[strings.TrimPrefix(name, transfersDir+"/")] = hurt(string(data))
	}
	data, err := r.opt.State.ReadFile(recordName(good))
	if err != nil {
		t.Fatal(err)
	}
	broken["copy.json"] = string(data)
	for name, content := range broken {
		if err := r.opt.State.WriteFile("transfers/"+name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = r.server(t)
	if all, _, _ := s.table.since(0); len(all) != 1 || all[0].ID != good {
		t.Errorf("loaded %+v, want the good one alone", all)
	}
	for name, content := range broken {
		aside, err := r.opt.State.ReadFile("transfers/" + name + ".broken")
		if err != nil || string(aside) != content {
			t.Errorf("%s was not kept aside: %q, %v", name, aside, err)
		}
		if n := strings.Count(r.logs.String(), `"file":"transfers/`+name+`"`); n != 1 {
			t.Errorf("%d warnings about %s, want 1", n, name)
		}
	}
	submit(t, s, request("truncated")) // its agent's way out
	before := r.logs.String()
	r.server(t)
	if after := strings.TrimPrefix(r.logs.String(), before); strings.Contains(after, "set aside") {
		t.Errorf("set aside again:\n%s", after)
	}
}

func TestFinishedTransfersAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.engine.scripts["stays"] = untilStopped
		s := r.server(t)
		stop := run(t, s)
		stays, goes := submit(t, s, request("stays")), submit(t, s, request("goes"))
		time.Sleep(DefaultKeep - time.Minute)
		wantState(t, s, goes, mover.Done)
		time.Sleep(time.Hour)
		synctest.Wait()
		if _, _, ok := s.table.get(goes); ok {
			t.Error("a transfer is remembered for longer than Keep")
		}
		if _, err := r.opt.State.Stat(recordName(goes)); err == nil {
			t.Error("its record is still there")
		}
		wantState(t, s, stays, mover.Running)
		stop()
	})
}

func TestTheTableIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		tab, err := openTable(r.opt.State, limits{keep: DefaultKeep, finished: 3, unfinished: 2}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if _, _, err := tab.submit(request(fmt.Sprint("k", i))); err != nil {
				t.Fatal(err)
			}
			if _, ok := tab.next(t.Context(), func() {}); !ok {
				t.Fatal("nothing to run")
			}
			tab.end(transferID(fmt.Sprint("k", i)), nil, false)
			time.Sleep(time.Second)
		}
		records, err := fs.ReadDir(r.opt.State.FS(), transfersDir)
		if got := tab.counts()[mover.Done]; got != 3 || err != nil || len(records) != 3 {
			t.Errorf("%d finished, %d records, %v, want 3 of both", got, len(records), err)
		}
		if _, _, ok := tab.get(transferID("k1")); ok {
			t.Error("an older one was kept instead of a newer one")
		}

		for _, key := range []string{"a", "b"} {
			if _, _, err := tab.submit(request(key)); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := tab.submit(request("c")); err != errFull {
			t.Errorf("a third waiting transfer: %v, want %v", err, errFull)
		}
		if _, fresh, err := tab.submit(request("a")); err != nil || fresh {
			t.Errorf("one that waits already: fresh %v, %v", fresh, err)
		}
	})
}

func TestRecordsSayWhereTheTransferStands(t *testing.T) {
	r := newRig(t)
	id := submit(t, r.server(t), request("k"))
	info, err := r.opt.State.Stat(recordName(id))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the record, which holds a ticket, has mode %v, %v, want 0600", info.Mode(), err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	good, err := json.Marshal(record{Request: request("k"), Status: mover.Status{ID: transferID("k"), State: mover.Queued}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte(`{"request":{"key":"k"},"status":{"state":"done"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			return
		}
		if r.Status.ID != transferID(r.Request.Key) {
			t.Errorf("accepted a record of transfer %s with key %q", r.Status.ID, r.Request.Key)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("accepted what cannot be stored: %v", err)
		}
		if back, err := decodeRecord(again); err != nil || back.Request != r.Request {
			t.Errorf("stored and read again: %+v, %v, want %+v", back, err, r)
		}
	})
}
