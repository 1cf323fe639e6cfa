package catalog

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// TestReal needs a Keystone and a Glance, and an admin: named by the OS_*
// variables, or by such lines of export in the file $GLANCE_DTN_SANDBOX_ENV. It
// runs when GLANCE_DTN_REAL is set, and then fails when there is none.
func TestReal(t *testing.T) {
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("GLANCE_DTN_REAL is not set")
	}
	env := realEnv(t)
	if env("OS_AUTH_URL")+env("OS_ENDPOINT") == "" {
		t.Fatal("GLANCE_DTN_REAL is set, but neither GLANCE_DTN_SANDBOX_ENV nor OS_* says where Glance is; see deploy/sandbox")
	}
	c, err := Open(t.Context(), Options{Env: env})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	var expire func()
	if p := c.session.provider; p.ReauthFunc != nil {
		expire = func() { p.SetToken("ended") }
	}
	behave(t, c, expire)
}

// realEnv reads lines such as: export OS_USERNAME=admin OS_PASSWORD='x'.
func realEnv(t *testing.T) func(string) string {
	t.Helper()
	name := os.Getenv("GLANCE_DTN_SANDBOX_ENV")
	if name == "" {
		return os.Getenv
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	vars := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		for word := range strings.FieldsSeq(strings.TrimPrefix(lines.Text(), "export ")) {
			k, v, _ := strings.Cut(word, "=")
			vars[k] = strings.Trim(v, `'"`)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return func(k string) string { return vars[k] }
}
