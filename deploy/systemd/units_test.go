package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unit is a unit file: the words of each of its keys.
type unit map[string][]string

func read(t *testing.T, name string) unit {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	u := unit{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			u[key] = append(u[key], strings.Fields(value)...)
		}
	}
	return u
}

// The agent starts after the mount, with or without it, and outlives it: see
// systemd.unit(5) on what Requires=, BindsTo= and RequiresMountsFor= stop.
func TestTheAgentStartsAfterItsMountAndOutlivesIt(t *testing.T) {
	u := read(t, "glance-dtn-agent.service")
	const mount = "mnt-dtn.mount" // what systemd-escape --path --suffix=mount makes of /mnt/dtn
	if !slices.Contains(u["After"], mount) || !slices.Contains(u["Wants"], mount) {
		t.Errorf("After=%q, Wants=%q, want %s in both", u["After"], u["Wants"], mount)
	}
	for _, key := range []string{"Requires", "Requisite", "BindsTo", "PartOf", "RequiresMountsFor"} {
		if len(u[key]) > 0 {
			t.Errorf("%s=%q stops the agent when its mount is lost", key, u[key])
		}
	}
	if want := []string{"-/mnt/dtn"}; !slices.Equal(u["ReadWritePaths"], want) {
		t.Errorf("ReadWritePaths=%q, want %q: what is missing must not keep the agent from saying so", u["ReadWritePaths"], want)
	}
}

func TestTheDTNStartsWithItsDisk(t *testing.T) {
	u := read(t, "glance-dtn-dtn.service")
	if want := []string{"/export/glance"}; !slices.Equal(u["RequiresMountsFor"], want) {
		t.Errorf("RequiresMountsFor=%q, want %q", u["RequiresMountsFor"], want)
	}
	if want := []string{"-/export/glance"}; !slices.Equal(u["ReadWritePaths"], want) {
		t.Errorf("ReadWritePaths=%q, want %q: a drop-in with another path must not fail for want of this one", u["ReadWritePaths"], want)
	}
}

// TestUnitsAreRight holds that systemd understands every line.
func TestUnitsAreRight(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil && os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skipf("%v; `make test` installs it", err)
	} else if err != nil {
		t.Fatal(err)
	}
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("found %v, %v", units, err)
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "glance-dtn")
	if err := os.WriteFile(binary, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range units {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/glance-dtn", binary)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), verify, "verify", "--man=no", file).CombinedOutput(); err != nil || strings.Contains(string(out), name) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
