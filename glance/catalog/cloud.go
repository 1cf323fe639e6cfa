package catalog

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"
)

// cloud is who logs in where, and which endpoint is meant.
type cloud struct {
	auth         gophercloud.AuthOptions
	tls          *tls.Config
	region       string
	availability string
}

// fromEnv is the name under which the environment stands in for a clouds.yaml.
const fromEnv = "environment"

// readCloud reads clouds.yaml or the environment and checks what can be checked
// without a network.
func readCloud(o Options) (cloud, error) {
	name := cmp.Or(o.Cloud, o.Env("OS_CLOUD"))
	var opts []clouds.ParseOption
	if name != "" {
		opts = append(opts, clouds.WithCloudName(name))
		if file := cmp.Or(o.CloudsFile, o.Env("OS_CLIENT_CONFIG_FILE")); file != "" {
			opts = append(opts, clouds.WithLocations(file))
		}
	} else {
		text, err := environment(o.Env)
		if err != nil {
			return cloud{}, err
		}
		name = fromEnv
		opts = append(opts, clouds.WithCloudName(name), clouds.WithCloudsYAML(bytes.NewReader(text)))
	}
	if o.PasswordFile != "" {
		b, err := os.ReadFile(o.PasswordFile)
		if err != nil {
			return cloud{}, fmt.Errorf("password file: %w", err)
		}
		opts = append(opts, clouds.WithPassword(strings.TrimRight(string(b), "\r\n")))
	}
	opts = append(opts,
		clouds.WithRegion(cmp.Or(o.Region, o.Env("OS_REGION_NAME"))),
		clouds.WithEndpointType(cmp.Or(o.Interface, o.Env("OS_INTERFACE"), o.Env("OS_ENDPOINT_TYPE"))))
	auth, endpoint, t, err := clouds.Parse(opts...)
	if err != nil {
		return cloud{}, err
	}
	// Without it the first token's end is the daemon's end. A token given as such
	// cannot be renewed.
	auth.AllowReauth = auth.TokenID == ""
	c := cloud{auth: auth, tls: t, region: endpoint.Region, availability: string(endpoint.Availability)}
	if err := errors.Join(checkInterface(o.Interface), checkURL("auth_url", auth.IdentityEndpoint), checkLogin(auth)); err != nil {
		return cloud{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// checkLogin reports what Keystone could not even be asked with.
func checkLogin(auth gophercloud.AuthOptions) error {
	scope, err := auth.ToTokenV3ScopeMap()
	if err == nil {
		_, err = auth.ToTokenV3CreateMap(scope)
	}
	return err
}

func checkInterface(name string) error {
	if slices.Contains([]string{"", "public", "internal", "admin"}, name) {
		return nil
	}
	return fmt.Errorf("interface %q is not public, internal or admin", name)
}

func checkURL(key, s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%s %q is not an http or https URL", key, s)
	}
	return nil
}

// environment writes the OS_* variables as a clouds.yaml with one cloud: JSON is
// YAML, and the environment means what the same words mean there.
func environment(env func(string) string) ([]byte, error) {
	if env("OS_AUTH_URL") == "" {
		return nil, errors.New("no cloud is named and OS_AUTH_URL is not set; set glance.cloud to an entry of clouds.yaml, or the OS_* variables")
	}
	kind := env("OS_AUTH_TYPE")
	if known := []string{"", "password", "v3password", "token", "v3token", "v3applicationcredential"}; !slices.Contains(known, kind) {
		return nil, fmt.Errorf("OS_AUTH_TYPE %q is not supported; use password, token, v3applicationcredential or admin_token", kind)
	}
	c := clouds.Cloud{
		AuthInfo: &clouds.AuthInfo{
			AuthURL:                     env("OS_AUTH_URL"),
			Token:                       env("OS_TOKEN"),
			Username:                    env("OS_USERNAME"),
			UserID:                      env("OS_USER_ID"),
			Password:                    env("OS_PASSWORD"),
			ProjectName:                 cmp.Or(env("OS_PROJECT_NAME"), env("OS_TENANT_NAME")),
			ProjectID:                   cmp.Or(env("OS_PROJECT_ID"), env("OS_TENANT_ID")),
			UserDomainName:              env("OS_USER_DOMAIN_NAME"),
			UserDomainID:                env("OS_USER_DOMAIN_ID"),
			ProjectDomainName:           env("OS_PROJECT_DOMAIN_NAME"),
			ProjectDomainID:             env("OS_PROJECT_DOMAIN_ID"),
			DomainName:                  env("OS_DOMAIN_NAME"),
			DomainID:                    env("OS_DOMAIN_ID"),
			SystemScope:                 env("OS_SYSTEM_SCOPE"),
			TrustID:                     env("OS_TRUST_ID"),
			ApplicationCredentialID:     env("OS_APPLICATION_CREDENTIAL_ID"),
			ApplicationCredentialName:   env("OS_APPLICATION_CREDENTIAL_NAME"),
			ApplicationCredentialSecret: env("OS_APPLICATION_CREDENTIAL_SECRET"),
		},
		CACertFile:     env("OS_CACERT"),
		ClientCertFile: env("OS_CERT"),
		ClientKeyFile:  env("OS_KEY"),
	}
	if slices.Contains([]string{"1", "true"}, strings.ToLower(env("OS_INSECURE"))) {
		c.Verify = new(false)
	}
	return json.Marshal(clouds.Clouds{Clouds: map[string]clouds.Cloud{fromEnv: c}})
}
