package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/mover"
)

func TestAWatchEndsWellWhenAFileHasPassed(t *testing.T) {
	passage := agent.Transfer{From: "B", To: "C", Status: mover.Status{ID: "eeeeeeeeeeeeeeeeeeee", State: mover.Running, Source: mover.File{Name: "inbox/C~B~alma-9"}}}
	for _, c := range []struct{ format, want string }{
		{"table", "eeeeeeeeee  alma-9: B → C  is no longer here\n"},
		{"json", `{"id":"eeeeeeeeeeeeeeeeeeee",`},
	} {
		synctest.Test(t, func(t *testing.T) {
			lists := [][]agent.Transfer{{passage}, {passage}, {}}
			var b bytes.Buffer
			err := (&cli{out: &b, format: c.format}).watchTransfers(t.Context(), func(context.Context) (list []agent.Transfer, err error) {
				list, lists = lists[0], lists[1:]
				return list, nil
			}, "ee")
			if err != nil || !strings.HasPrefix(b.String(), c.want) || strings.Count(b.String(), "\n") != 1 {
				t.Errorf("%s: %v, after\n%s", c.format, err, b.String())
			}
		})
	}
}

// The summary's size and time are those that its rate is the quotient of.
func TestTheSummaryOfAResumedTransfer(t *testing.T) {
	for _, c := range []struct {
		st   mover.Status
		want string
	}{
		{mover.Status{Moved: 2e9, Rate: 1.6e9, Ran: 10 * time.Second}, "1.9 GiB in 10.0 s, 1.6 Gbit/s"},
		{mover.Status{Moved: 2e9, Rate: 0.8e9, Ran: 10 * time.Second}, "1.9 GiB, 953.7 MiB of it in 10.0 s, 800 Mbit/s"},
		{mover.Status{Moved: 2e9, Ran: 100 * time.Millisecond}, "1.9 GiB, 0 B of it in 0.1 s, -"},
		{mover.Status{Moved: 2e9, Ran: 300 * time.Second, Via: mover.Relay{Site: "R"}}, "1.9 GiB in 5 min, -"}, // moved tells of the relay
		{mover.Status{Moved: 1e6, Rate: 1.6e6, Ran: 10 * time.Second}, "976.6 KiB in 10.0 s, 1.6 Mbit/s"},      // some came twice
		{mover.Status{Moved: 1e6}, "976.6 KiB"},
	} {
		got := (&cli{}).summary(agent.Transfer{Image: "debian-12", To: "B", Job: "j", Status: c.st})
		if !strings.HasSuffix(got, "  "+c.want) {
			t.Errorf("%q, want %q at its end", got, c.want)
		}
	}
}

// A DTN that is restarted ends no watch; one that stays away does.
func TestAWatchGoesOnWhileTheDTNIsAway(t *testing.T) {
	running := agent.Transfer{Image: "debian-12", To: "B", Job: "j", Status: mover.Status{ID: "aaaaaaaaaaaaaaaaaaaa", State: mover.Running}}
	done := running
	done.State = mover.Done
	away := errors.New("the DTN does not answer")
	for _, c := range []struct {
		away int // how often it is asked in vain
		want error
	}{{30, nil}, {1000, away}} {
		synctest.Test(t, func(t *testing.T) {
			var out, notes bytes.Buffer
			asked := 0
			err := (&cli{out: &out, err: &notes, format: "table"}).watchTransfers(t.Context(), func(context.Context) ([]agent.Transfer, error) {
				switch asked++; {
				case asked == 1:
					return []agent.Transfer{running}, nil
				case asked <= 1+c.away:
					return nil, away
				}
				return []agent.Transfer{done}, nil
			}, "aa")
			if err != c.want || notes.String() != "the DTN does not answer; this goes on when it does\n" || (err == nil) != strings.Contains(out.String(), "done") {
				t.Errorf("away for %d s: %v, %q, after\n%s", c.away, err, notes.String(), out.String())
			}
		})
	}
	err := (&cli{format: "table"}).watchTransfers(t.Context(), func(context.Context) ([]agent.Transfer, error) { return nil, away }, "")
	if err != away {
		t.Errorf("away from the beginning: %v", err)
	}
}

// What is drawn over and over neither wraps nor scrolls off.
func TestTheTransfersFitInATerminal(t *testing.T) {
	var list []agent.Transfer
	for i := range 40 {
		list = append(list, agent.Transfer{Image: strings.Repeat("é", 60), To: "B", Job: "j", Status: mover.Status{
			ID: mover.TransferID(fmt.Sprintf("%020x", i)), State: mover.Queued, Waiting: strings.Repeat("its turn ", 10), Source: mover.File{Size: 1 << 30}}})
	}
	for _, c := range []struct {
		transfers, height, lines int
		last                     string
	}{{40, 10, 9, "and 33 more"}, {8, 10, 9, "0000000000"}, {9, 10, 9, "and 2 more"}, {40, 2, 3, "and 39 more"}, {0, 10, 1, "TRANSFER"}} {
		lines := strings.Split(transferPicture(list[:c.transfers], time.Now(), 80, c.height), "\n")
		if len(lines) != c.lines || !strings.HasPrefix(lines[len(lines)-1], c.last) {
			t.Errorf("%d transfers on %d lines: %q", c.transfers, c.height, lines)
		}
		for _, l := range lines {
			if n := text.StringWidthWithoutEscSequences(l); n > 80 {
				t.Errorf("%d columns: %q", n, l)
			}
		}
	}
}

// A narrow terminal keeps what a watch is for.
func TestANarrowTerminalShowsTheRestAndTheBottleneck(t *testing.T) {
	list := []agent.Transfer{{Image: "rocky-9", To: "B", Job: "j", Status: mover.Status{
		ID: "817f2a100f", State: mover.Running, Source: mover.File{Size: 1 << 30}}}}
	for width, want := range map[int]string{
		200: "TRANSFER    IMAGE        STATE    MOVED           RATE  LANES  RTT  RESENT  ETA  BOTTLENECK",
		94:  "TRANSFER    IMAGE        STATE    MOVED           RATE  RESENT  ETA  BOTTLENECK",
		80:  "TRANSFER    IMAGE        STATE    MOVED           RATE  ETA  BOTTLENECK",
	} {
		if got, _, _ := strings.Cut(transferPicture(list, time.Now(), width, 24), "\n"); strings.TrimSpace(got) != want {
			t.Errorf("%d columns:\n%s\nwant\n%s", width, got, want)
		}
	}
}
