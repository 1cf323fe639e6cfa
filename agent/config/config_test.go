package config

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

const examples = "../../deploy/examples/"

// noEnv is an empty environment.
func noEnv(string) string { return "" }

func env(m map[string]string) func(string) string {
	return func(k string) string { return m[k] }
}

// write returns the path of a configuration file with this text.
func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const smallAgent = `
site: A
export: /mnt/dtn
dtn: {url: https://dtn-a.example.org:7443}
`

const smallDTN = `
site: A
export: /export/glance
address: dtn-a.example.org:7444
`

func TestEveryFaultIsReportedAtOnceByItsKey(t *testing.T) {
	_, errAgent := LoadAgent("testdata/wrong-agent.yaml", env(map[string]string{
		"GLANCE_DTN_TRANSFER__PIPELINING": "many",
		"GLANCE_DTN_GLANCE__DATADIRS":     "/one",
	}))
	_, errDTN := LoadDTN("testdata/wrong-dtn.yaml", noEnv)
	for name, err := range map[string]error{"wrong-agent": errAgent, "wrong-dtn": errDTN} {
		if err == nil {
			t.Fatalf("%s.yaml was accepted", name)
		}
		wd, _ := os.Getwd()
		got := strings.ReplaceAll(err.Error(), wd, "") + "\n"
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s: the error tells a secret:\n%s", name, got)
		}
		golden := "testdata/" + name + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestThreeMistakesAreThreeLines(t *testing.T) {
	_, err := LoadAgent(write(t, `
site: A
export: /mnt/dtn
dtn: {ulr: https://dtn-a.example.org:7443}
keep: forever
rules: [{name: all, to: [C]}]
`), noEnv)
	if err == nil {
		t.Fatal("accepted")
	}
	_, faults, _ := strings.Cut(err.Error(), "\n")
	lines := strings.Split(faults, "\n")
	if len(lines) != 3 {
		t.Fatalf("got %d lines, want 3:\n%s", len(lines), faults)
	}
	for i, want := range []string{"dtn.ulr: is not a key; did you mean url?", "keep: ", "rules[0].to: C: "} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is %q, want it to begin with %q", i, lines[i], want)
		}
	}
}

func TestAFileThatIsNoConfiguration(t *testing.T) {
	for name, text := range map[string]string{
		"a password":     "hunter2\n",
		"a list":         "- hunter2\n",
		"a broken block": "site: A\n  export: hunter2: x\n",
		"a key twice":    "site: hunter2\nsite: B\n",
	} {
		_, err := LoadAgent(write(t, text), noEnv)
		if err == nil {
			t.Errorf("%s was accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error tells the content: %v", name, err)
		}
	}
	if _, err := LoadDTN(filepath.Join(t.TempDir(), "none.yaml"), noEnv); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("a missing file: got %v, want one that says it does not exist", err)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

func TestDefaultsStandWhereTheFileIsSilent(t *testing.T) {
	path := write(t, smallAgent)
	got, err := LoadAgent(path, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultAgent()
	want.Site, want.Export, want.DTN.URL = "A", "/mnt/dtn", "https://dtn-a.example.org:7443"
	dir := filepath.Dir(path)
	want.TLS = TLS{CA: dir + "/ca.pem", Cert: dir + "/agent.pem", Key: dir + "/agent.key"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("agent: got\n%+v\nwant\n%+v", got, want)
	}

	path = write(t, smallDTN)
	gotDTN, err := LoadDTN(path, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	wantDTN := DefaultDTN()
	wantDTN.Site, wantDTN.Export, wantDTN.Address = "A", "/export/glance", "dtn-a.example.org:7444"
	dir = filepath.Dir(path)
	wantDTN.TLS = TLS{CA: dir + "/ca.pem", Cert: dir + "/dtn.pem", Key: dir + "/dtn.key"}
	if !reflect.DeepEqual(gotDTN, wantDTN) {
		t.Errorf("dtn: got\n%+v\nwant\n%+v", gotDTN, wantDTN)
	}
}

func TestTheExamplesShowTheDefaults(t *testing.T) {
	got, err := LoadAgent(examples+"agent.yaml", noEnv)
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := filepath.Abs(examples)
	want := DefaultAgent()
	want.Site, want.Export, want.DTN.URL = "A", "/mnt/dtn", "https://dtn-a.example.org:7443"
	want.TLS = TLS{CA: dir + "/ca.pem", Cert: dir + "/agent.pem", Key: dir + "/agent.key"}
	want.Glance.Datadirs = []string{}
	want.Peers = []Peer{{Name: "B", URL: "https://ctrl-b.example.org:7442", Jobs: defaultJobs}}
	want.Rules = []Rule{{Name: "public", To: []string{"B"}, Match: Match{
		Names: []string{}, IDs: []string{}, Tags: []string{}, Visibility: []string{"public"}, Owners: []string{},
		Properties: map[string]string{},
	}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("agent.yaml: got\n%+v\nwant\n%+v", got, want)
	}

	gotDTN, err := LoadDTN(examples+"dtn.yaml", noEnv)
	if err != nil {
		t.Fatal(err)
	}
	wantDTN := DefaultDTN()
	wantDTN.Site, wantDTN.Export, wantDTN.Address = "A", "/export/glance", "dtn-a.example.org:7444"
	wantDTN.TLS = TLS{CA: dir + "/ca.pem", Cert: dir + "/dtn.pem", Key: dir + "/dtn.key"}
	if !reflect.DeepEqual(gotDTN, wantDTN) {
		t.Errorf("dtn.yaml: got\n%+v\nwant\n%+v", gotDTN, wantDTN)
	}
}

func TestTheExamplesNameEveryKey(t *testing.T) {
	for file, typ := range map[string]reflect.Type{
		"agent.yaml": reflect.TypeFor[Agent](),
		"dtn.yaml":   reflect.TypeFor[DTN](),
	} {
		data, err := os.ReadFile(examples + file)
		if err != nil {
			t.Fatal(err)
		}
		var check func(typ reflect.Type)
		check = func(typ reflect.Type) {
			for key, field := range fieldsOf(typ) {
				if !strings.Contains(string(data), key+":") {
					t.Errorf("%s does not show the key %s of %v", file, key, typ)
				}
				if field.Kind() == reflect.Slice {
					field = field.Elem()
				}
				if field.Kind() == reflect.Struct {
					check(field)
				}
			}
		}
		check(typ)
	}
}

func TestTheEnvironmentWinsOverTheFile(t *testing.T) {
	got, err := LoadAgent(write(t, smallAgent+"watch: {scan: 5m, listing: 20s}\n"), env(map[string]string{
		"GLANCE_DTN_SITE":          "7",
		"GLANCE_DTN_DTN__URL":      "https://other.example.org:1",
		"GLANCE_DTN_WATCH__SCAN":   "30s",
		"GLANCE_DTN_DELIVER__JOBS": "5",
		"GLANCE_DTN_TLS__KEY":      "/run/secrets/key",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got.Site != "7" || got.DTN.URL != "https://other.example.org:1" || got.Watch.Scan != 30*time.Second ||
		got.Watch.Listing != 20*time.Second || got.Deliver.Jobs != 5 || got.TLS.Key != "/run/secrets/key" {
		t.Errorf("got %+v", got)
	}
}

func TestPathsAreRelativeToTheFile(t *testing.T) {
	path := write(t, `
site: A
export: export
dtn: {url: https://dtn-a.example.org:7443}
glance: {datadirs: [store, /abs/store], password_file: ../password}
state: {embedded: jobs}
control: a.sock
`)
	got, err := LoadAgent(path, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	for want, is := range map[string]string{
		dir + "/export": got.Export, dir + "/store": got.Glance.Datadirs[0], "/abs/store": got.Glance.Datadirs[1],
		filepath.Dir(dir) + "/password": got.Glance.PasswordFile, dir + "/jobs": got.State.Embedded, dir + "/a.sock": got.Control,
	} {
		if is != want {
			t.Errorf("got %s, want %s", is, want)
		}
	}
	if got.Glance.CloudsFile != "" {
		t.Errorf("the empty clouds_file became %q", got.Glance.CloudsFile)
	}
}

func TestAnEtcdClusterReplacesTheEmbeddedOne(t *testing.T) {
	got, err := LoadAgent(write(t, smallAgent+`
state: {endpoints: ["https://etcd1:2379"], ca: ca.pem, cert: c.pem, key: c.key, username: u, password_file: p}
`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if got.State.Embedded != "" || got.State.Prefix != "/glance-dtn" {
		t.Errorf("got %+v", got.State)
	}
}

func TestRulesKeepTheCaseOfProperties(t *testing.T) {
	got, err := LoadAgent(write(t, smallAgent+`
metrics: ""
peers: [{name: B, url: "https://b.example.org:7442", jobs: 3, may_pull: true}, {name: b, url: "https://c.example.org"}]
rules:
  - name: all
    to: [B]
    match:
      names: ["deb.*"]
      ids: [0AF9B1B6-0000-4000-8000-000000000001]
      properties: {os_Distro: Debian, "img.Hash": "1"}
      max_size: 20GiB
`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if got.Metrics != "" {
		t.Errorf("metrics is %q, want it off", got.Metrics)
	}
	if want := (Peer{Name: "b", URL: "https://c.example.org", Jobs: 2}); got.Peers[1] != want {
		t.Errorf("got peer %+v, want %+v", got.Peers[1], want)
	}
	r := got.AgentRules()[0]
	if r.Name != "all" || !reflect.DeepEqual(r.To, []string{"B"}) {
		t.Errorf("got rule %+v", r)
	}
	if want := map[string]string{"os_Distro": "Debian", "img.Hash": "1"}; !reflect.DeepEqual(r.Match.Properties, want) {
		t.Errorf("got properties %v, want %v", r.Match.Properties, want)
	}
	if want := []glance.ImageID{"0af9b1b6-0000-4000-8000-000000000001"}; !reflect.DeepEqual(r.Match.IDs, want) || r.Match.MaxSize != 20<<30 {
		t.Errorf("got match %+v", r.Match)
	}
}

func TestValidateNeedsNoFile(t *testing.T) {
	if err := DefaultAgent().Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("the bare defaults of an agent lack site, export and dtn.url, got:\n%v", err)
	}
	d := DefaultDTN()
	d.Site, d.Export, d.Address = "A", "/export", "[2001:db8::1]:7444"
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
}

// A site that has a certificate has a configuration, and the other way round.
func TestSitesAreNamedAsInCertificates(t *testing.T) {
	for name, good := range map[string]bool{
		"A": true, "7": true, "paris_2-eu": true, strings.Repeat("x", 32): true,
		"-A": false, "_A": false, "paris.eu": false, strings.Repeat("x", 33): false, "a b": false,
	} {
		d := DefaultDTN()
		d.Site, d.Export, d.Address = name, "/export", "dtn.example.org:7444"
		if err := d.Validate(); (err == nil) != good {
			t.Errorf("configuration of %q: %v", name, err)
		}
		if err := (pki.Identity{Site: name, Role: pki.DTN}).Validate(); (err == nil) != good {
			t.Errorf("certificate of %q: %v", name, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1048576": 1 << 20, "1MiB": 1 << 20, "1 GiB": 1 << 30, "3kB": 3000, "2TB": 2e12, "7KiB": 7168, "1TiB": 1 << 40,
	} {
		got, err := size(reflect.ValueOf(text))
		if err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "1.5GiB", "GiB", "1gib", "9999999TiB", "0x10"} {
		if got, err := size(reflect.ValueOf(text)); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
	for size, want := range map[Size]string{0: "0", 1 << 30: "1GiB", 5 << 20: "5MiB", 1000: "1kB", 1023: "1023"} {
		if got := size.String(); got != want {
			t.Errorf("%d is %q, want %q", int64(size), got, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(smallAgent)
	f.Add("peers: [null, {jobs: {}}]\nrules: [{match: {properties: {1: x}}}]\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := LoadAgent(write(t, text), noEnv)
		if err == nil && a.Validate() != nil {
			t.Errorf("accepted, but not valid: %v", a.Validate())
		}
	})
}
