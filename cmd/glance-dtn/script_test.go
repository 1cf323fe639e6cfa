package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

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
		Cmds:          map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "nfsserver": nfsserver},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
	})
}

func setup(env *testscript.Env) error {
	env.Setenv("TZ", "UTC")
	data, err := os.ReadFile(filepath.Join(env.WorkDir, "agent.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	socket, stop, err := serveFake(data)
	if err != nil {
		return err
	}
	env.Setenv("GLANCE_DTN_CONTROL", socket)
	env.Defer(func() {
		if err := stop(); err != nil {
			env.T().Log("control server: ", err)
			env.T().FailNow()
		}
	})
	return nil
}

// serveFake serves a fakeAgent with this scenario until stop is called.
func serveFake(scenario []byte) (socket string, stop func() error, err error) {
	f := &fakeAgent{seen: make(chan agent.JobID, 100)}
	if err := json.Unmarshal(scenario, f); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "gdtn") // a socket's path is short
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "s")
	l, err := api.ListenControl(socket)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := api.ControlServer(f, slog.New(slog.DiscardHandler))
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	return socket, func() error {
		err := s.Close()
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return errors.Join(err, os.RemoveAll(dir))
	}, nil
}

// An interrupt ends the waiting and says so; the job stays with the agent.
func TestInterruptEndsTheWaiting(t *testing.T) {
	socket, stop, err := serveFake([]byte(`{"stays": true, "overall": {"peers": [{"name": "B", "ok": true}]},
		"images": [{"id": "11111111-1111-4111-8111-111111111111", "name": "debian-12"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	p := start(t, []string{"TZ=UTC"}, "push", "debian-12", "--to", "B", "--wait", "--control", socket)
	p.logged("12:00:00      0.0 s  debian-12 → B  pending")
	p.signal(os.Interrupt)
	if code, log := p.ends(); code != exitInterrupted || !strings.Contains(log, "glance-dtn: interrupted") {
		t.Errorf("exit code %d, stderr\n%s", code, log)
	}
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
