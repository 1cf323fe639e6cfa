package dtn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/internal/durable"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestBrokenRecordsAreLeftOutAndKept(t *testing.T) {
	r := newRig(t)
	s := r.server(t)
	good := submit(t, s, request("good"))
	records, err := durable.OpenLog(r.opt.State, recordsName, func(string, []byte) error { return nil }, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer records.Close()
	broken := 0
	for key, hurt := range map[string]func(string) string{
		"empty":         func(string) string { return "{}" },
		"number":        func(string) string { return "7" },
		"unknown-field": func(s string) string { return strings.Replace(s, "{", `{"from_the_future":1,`, 1) },
		"unknown-state": func(s string) string { return strings.Replace(s, `"queued"`, `"dreaming"`, 1) },
		"other-key":     func(s string) string { return strings.Replace(s, "other-key", "another-key", 1) },
		"copy":          func(s string) string { return strings.ReplaceAll(s, string(transferID("copy")), string(good)) },
	} {
		c := durable.Set(string(transferID(key)), record{Request: request(key), Status: mover.Status{ID: transferID(key), Key: key, State: mover.Queued}})
		c.Value = json.RawMessage(hurt(string(c.Value)))
		if err := records.Commit(c); err != nil {
			t.Fatal(err)
		}
		broken++
	}
	before, err := r.opt.State.ReadFile(recordsName)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(before), "present_rate") {
		t.Error("a rate that is 0 is stored: releases that do not know it read no record")
	}
	s = r.server(t)
	if all, _, _ := s.table.since(0); len(all) != 1 || all[0].ID != good {
		t.Errorf("loaded %+v, want the good one alone", all)
	}
	if n := strings.Count(r.logs.String(), "cannot be read and is left out"); n != broken {
		t.Errorf("%d warnings about %d records", n, broken)
	}
	submit(t, s, request("empty")) // its agent's way out
	if kept, err := r.opt.State.ReadFile(recordsName + ".broken"); err != nil || string(kept) != string(before) {
		t.Errorf("they were not kept aside: %d bytes of %d, %v", len(kept), len(before), err)
	}
	told := r.logs.String()
	if all, _, _ := r.server(t).table.since(0); len(all) != 2 {
		t.Errorf("loaded %+v, want the good one and the new one", all)
	}
	if after := strings.TrimPrefix(r.logs.String(), told); strings.Contains(after, "left out") {
		t.Errorf("left out again:\n%s", after)
	}
}

// TestWhatOlderRecordsToldIsShort has records that hold what a peer said as it came.
func TestWhatOlderRecordsToldIsShort(t *testing.T) {
	r := newRig(t)
	records, err := durable.OpenLog(r.opt.State, recordsName, func(string, []byte) error { return nil }, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	long := "no\x1b[2J" + strings.Repeat("x", 3<<20)
	old := mover.Status{State: mover.Failed, Ended: time.Now(), Code: mover.Code(long), Error: long, Waiting: long}
	for key, s := range map[string]mover.Status{"failed": old, "waits": {State: mover.Queued, Waiting: long}} {
		s.ID, s.Key = transferID(key), key
		if err := records.Commit(durable.Set(string(s.ID), record{Request: request(key), Status: s})); err != nil {
			t.Fatal(err)
		}
	}
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	s := r.server(t)
	want := mover.Told(long)
	if got := wantState(t, s, transferID("failed"), mover.Failed); got.Error != want || got.Code != mover.CodeOther {
		t.Errorf("%d bytes of error and %d of code are told, want %d and %q", len(got.Error), len(got.Code), len(want), mover.CodeOther)
	}
	if got := wantState(t, s, transferID("waits"), mover.Queued); got.Waiting != want || got.Code != "" {
		t.Errorf("%d bytes of what it waits for and code %.40q are told, want %d and none", len(got.Waiting), got.Code, len(want))
	}
	for _, key := range []string{"failed", "waits"} {
		if kept, err := json.Marshal(s.table.byID[transferID(key)].record); err != nil || len(kept) > 8<<10 {
			t.Errorf("%s: %d bytes are kept in memory, %v", key, len(kept), err)
		}
	}
}

func TestAFailureReadsTheSameAfterARestart(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		long := errors.New("the relay: " + mover.Told(strings.Repeat("x", 3<<20)))
		r.engine.scripts["fails"] = func(context.Context, func(mover.Progress)) error { return long }
		s := r.server(t)
		stop := run(t, s)
		id := submit(t, s, request("fails"))
		synctest.Wait()
		want := mover.Told(long.Error())
		if got := wantState(t, s, id, mover.Failed).Error; got != want {
			t.Errorf("%d bytes are told, want %d", len(got), len(want))
		}
		stop()
		if got := wantState(t, r.server(t), id, mover.Failed).Error; got != want {
			t.Errorf("%d bytes are told after a restart, want %d", len(got), len(want))
		}
	})
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
		if _, _, ok := r.server(t).table.get(goes); ok {
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
			if _, ok := tab.next(t.Context(), false, func(error) {}); !ok {
				t.Fatal("nothing to run")
			}
			tab.end(transferID(fmt.Sprint("k", i)), nil, false)
			time.Sleep(time.Second)
		}
		records := r.server(t).table.counts()[mover.Done]
		if got := tab.counts()[mover.Done]; got != 3 || records != 3 {
			t.Errorf("%d finished, %d records, want 3 of both", got, records)
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

func TestRecordsAreNobodyElses(t *testing.T) {
	r := newRig(t)
	submit(t, r.server(t), request("k"))
	info, err := r.opt.State.Stat(recordsName)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the records, one of which holds a ticket, has mode %v, %v, want 0600", info.Mode(), err)
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
		if back, err := decodeRecord(again); err != nil || back.Request != r.Request || back.Status.Error != r.Status.Error {
			t.Errorf("stored and read again: %+v, %v, want %+v", back, err, r)
		}
	})
}
