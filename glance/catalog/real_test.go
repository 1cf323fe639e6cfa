package catalog

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestReal holds the same of Debian's Keystone and Glance. It runs when
// GLANCE_DTN_REAL is set, against what the OS_* variables name, or such lines of
// export in the file $GLANCE_DTN_SANDBOX_ENV, or else a sandbox of its own.
func TestReal(t *testing.T) {
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs Debian's OpenStack packages; `make test` runs it")
	}
	env := realEnv(t)
	c, err := Open(t.Context(), Options{Env: env})
	if err != nil {
		t.Fatal(err)
	}
	if err := reach(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var expire func()
	if p := c.session.provider; p.ReauthFunc != nil {
		expire = func() { p.SetToken("ended") }
	}
	behave(t, c, expire)
}

// realEnv returns the variables that say where Glance is, and who is admin.
func realEnv(t *testing.T) func(string) string {
	t.Helper()
	if name := os.Getenv("GLANCE_DTN_SANDBOX_ENV"); name != "" {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return exports(string(text))
	}
	if os.Getenv("OS_AUTH_URL")+os.Getenv("OS_ENDPOINT") != "" {
		return os.Getenv
	}
	dir := t.TempDir()
	t.Cleanup(func() { sandbox(t, "down", dir) })
	sandbox(t, "up", dir)
	return exports(sandbox(t, "env", dir, "A"))
}

func sandbox(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("../../deploy/sandbox/sandbox", args...)
	cmd.Env = append(os.Environ(), "SANDBOX_PARTS=openstack")
	var trouble strings.Builder
	cmd.Stderr = &trouble
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sandbox %q: %v\n%s", args, err, trouble.String())
	}
	return string(out)
}

// exports reads lines such as: export OS_USERNAME=admin OS_PASSWORD='x'.
func exports(text string) func(string) string {
	vars := map[string]string{}
	for word := range strings.FieldsSeq(text) {
		if k, v, assigned := strings.Cut(word, "="); assigned {
			vars[k] = strings.Trim(v, `'"`)
		}
	}
	return func(k string) string { return vars[k] }
}
