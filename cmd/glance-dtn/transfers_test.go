package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"

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
