package main

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"glance-dtn": main})
}

// The scripts run the real binary. Where a script has an agent.json, a fakeAgent
// with that scenario answers on its control socket.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: *update,
		Setup:         setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":      exits,
			"eventually": eventually,
		},
	})
}

func setup(env *testscript.Env) error {
	env.Setenv("TZ", "UTC")
	dir, err := os.MkdirTemp("", "gdtn") // a socket's path is short
	if err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	env.Setenv("SOCKET", socket)
	data, err := os.ReadFile(filepath.Join(env.WorkDir, "agent.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	f := &fakeAgent{seen: make(chan agent.JobID, 100)}
	if err := json.Unmarshal(data, f); err != nil {
		return err
	}
	l, err := api.ListenControl(socket)
	if err != nil {
		return err
	}
	s := api.ControlServer(f, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	env.Defer(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			env.T().Log("control server: ", err)
			env.T().FailNow()
		}
	})
	env.Setenv("GLANCE_DTN_CONTROL", socket)
	return nil
}

// exits runs a command and wants this exit code: exits CODE COMMAND ARG...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// eventually runs a command until it succeeds: eventually COMMAND ARG...
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually COMMAND ARG...")
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v: %v", args, err)
		}
	}
}
