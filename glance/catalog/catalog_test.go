package catalog

import (
	"testing"

	"github.com/glance-dtn/glance-dtn/glance/glancetest"
)

// site is a stand-in site: Keystone, Glance, and a catalog that logs in as admin.
func site(t *testing.T) (*Catalog, *glancetest.Glance, *glancetest.Keystone) {
	t.Helper()
	k, g := glancetest.NewKeystone(t), glancetest.New(t, "")
	g.Token = k.Valid
	k.Endpoint("siteA", "public", g.URL)
	c, err := Open(t.Context(), Options{Env: env(map[string]string{
		"OS_AUTH_URL": k.URL, "OS_USERNAME": "admin", "OS_PASSWORD": "secret", "OS_PROJECT_NAME": "admin",
		"OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default", "OS_REGION_NAME": "siteA",
	})})
	if err != nil {
		t.Fatal(err)
	}
	return c, g, k
}

func env(vars map[string]string) func(string) string {
	return func(k string) string { return vars[k] }
}

func TestStandIn(t *testing.T) {
	c, _, k := site(t)
	behave(t, c, k.Expire)
}
