package config

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/internal/pki"
	"github.com/glance-dtn/glance-dtn/mover"
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
	want.Peers = []Peer{{Name: "B", URL: "https://ctrl-b.example.org:7442", Jobs: defaultJobs, Via: Via{Mode: "cut", Among: []Third{}}, Relays: []string{}}}
	want.Rules = []Rule{{Name: "public", To: []string{"B"}, Match: Match{
		Names: []string{}, IDs: []string{}, Tags: []string{}, Visibility: []string{"public"}, Owners: []string{},
		Properties: map[string]string{},
	}, Priority: "normal"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("agent.yaml: got\n%+v\nwant\n%+v", got, want)
	}

	gotDTN, err := LoadDTN(examples+"dtn.yaml", noEnv)
	if err != nil {
		t.Fatal(err)
	}
	wantDTN := DefaultDTN()
	wantDTN.Relay.Routes = []Route{}
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
	path := write(t, "site: A\nexport: /export\naddress: a:1\ntuning: {advise: true}\n")
	dtn, err := LoadDTN(path, env(map[string]string{"GLANCE_DTN_TUNING__CORRECT": "false", "GLANCE_DTN_TUNING__ADVISE": "0"}))
	if err != nil || dtn.Tuning.Correct || dtn.Tuning.Advise {
		t.Errorf("got %+v, %v", dtn.Tuning, err)
	}
	_, err = LoadDTN(path, env(map[string]string{"GLANCE_DTN_TUNING__CORRECT": "no"}))
	if err == nil || !strings.Contains(err.Error(), "tuning.correct: set by GLANCE_DTN_TUNING__CORRECT: must be true or false") {
		t.Errorf("got %v", err)
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
  - {name: golden, to: [B], priority: high}
`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if got.Metrics != "" {
		t.Errorf("metrics is %q, want it off", got.Metrics)
	}
	if want := (Peer{Name: "b", URL: "https://c.example.org", Jobs: 2}); !reflect.DeepEqual(got.Peers[1], want) {
		t.Errorf("got peer %+v, want %+v", got.Peers[1], want)
	}
	r := got.AgentRules()[0]
	if r.Name != "all" || !reflect.DeepEqual(r.To, []string{"B"}) || r.Priority != "" {
		t.Errorf("got rule %+v", r)
	}
	if p := got.AgentRules()[1].Priority; p != mover.PriorityHigh {
		t.Errorf("the second rule's priority is %q", p)
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

// A DTN is connected to, or connects itself.
func TestACallbackTakesThePlaceOfAnAddress(t *testing.T) {
	for text, want := range map[string]string{
		"callback: [dtn-b:7444, \"[2001:db8::1]:7444\"]":                  "",
		"callback: [dtn-b:7444]\naddress: dtn-a:7444":                     "callback: contradicts address",
		"callback: [dtn-b:7444, dtn-b]":                                   "callback[1]: \"dtn-b\" must be host:port",
		"callback: [callback://B]":                                        "callback[0]:",
		"callback: [dtn-b:7444, dtn-b:7444]":                              "callback[1]: dtn-b:7444 is there twice",
		"callback: []":                                                    "where they cannot, see callback",
		"callback: [dtn-b:7444]\ngridftp: {url: ftp://dtn-a:2811/export}": "",
	} {
		_, err := LoadDTN(write(t, "site: A\nexport: /export\n"+text+"\n"), noEnv)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %q", text, err, want)
		}
	}
}

// One of two agents can be connected to.
func TestAPeerIsConnectedToOrConnects(t *testing.T) {
	for peer, want := range map[string]string{
		"url: callback": "",
		"url: https://ctrl-b:7442, callback: true": "",
		"url: callback, callback: true":            "peers[0].callback: contradicts url",
		"callback: true":                           "peers[0].url: is missing",
		"url: Callback":                            "peers[0].url: must be https",
	} {
		_, err := LoadAgent(write(t, "site: A\nexport: /export\ndtn: {url: https://dtn-a:7443}\npeers: [{name: B, "+peer+"}]\n"), noEnv)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %q", peer, err, want)
		}
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
		"0": 0, "1048576": 1 << 20, "1MiB": 1 << 20, "1 GiB": 1 << 30, "3kB": 3000, "2TB": 2e12, "7KiB": 7168, "1TiB": 1 << 40, "1G": 1 << 30, "1GB": 1e9,
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

// TestAWayIsChosenAmongRelays where the configuration says so, and says what it has to.
func TestAWayIsChosenAmongRelays(t *testing.T) {
	a, err := LoadAgent(write(t, smallAgent+`
peers:
  - {name: B, url: "https://b.example.org", via: {mode: auto, among: [{site: R, address: "r:1"}, {site: S, address: "s:1"}]}}
`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Peers[0].Via.Relays(), []mover.Relay{{Site: "R", Address: "r:1"}, {Site: "S", Address: "s:1"}}; !slices.Equal(got, want) || a.Peers[0].Relay() != (mover.Relay{}) {
		t.Errorf("got %+v and %+v, want %+v alone", got, a.Peers[0].Relay(), want)
	}
	_, err = LoadAgent(write(t, smallAgent+`
peers:
  - {name: B, url: "https://b.example.org", via: {mode: auto, among: [{site: B, address: "r:1"}, {site: R}, {site: R, address: "r:1"}]}}
  - {name: C, url: "https://c.example.org", via: {mode: auto}}
  - {name: D, url: "https://d.example.org", via: {mode: auto, site: R, address: "r:1"}}
  - {name: E, url: "https://e.example.org", via: {site: R, address: "r:1", among: [{site: S, address: "s:1"}]}}
  - {name: F, url: "https://f.example.org", via: auto}
`), noEnv)
	for _, want := range []string{
		"peers[0].via.among[0].site: B is not a third site", "peers[0].via.among[1].address: must be host:port", "peers[0].via.among[2].site: R is there already",
		"peers[1].via.among: is missing", "peers[2].via.site: contradicts mode: auto", "peers[3].via.among: has a meaning only with mode: auto",
		"peers[4].via: must be a block of keys, such as {mode: auto, among: ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

// TestRelays has all three sites say that files of A go through R to B.
func TestRelays(t *testing.T) {
	a, err := LoadAgent(write(t, smallAgent+`
peers:
  - {name: B, url: "https://b.example.org", via: {site: R, address: "dtn-r.example.org:7444"}, relays: [R, S]}
`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Peers[0].Relay(), (mover.Relay{Site: "R", Address: "dtn-r.example.org:7444", Mode: mover.CutThrough}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if (Peer{Via: Via{Mode: "cut"}}).Relay() != (mover.Relay{}) {
		t.Error("without a site there is a relay")
	}
	_, err = LoadAgent(write(t, smallAgent+`
peers:
  - {name: B, url: "https://b.example.org", via: {site: B, address: nowhere, mode: fast}, relays: [A, B]}
  - {name: C, url: "https://c.example.org", via: {address: "r:1"}}
`), noEnv)
	for _, want := range []string{
		"peers[0].via.mode: ", "peers[0].via.site: B is not a third site", "peers[0].via.address: must be host:port",
		"peers[0].relays[0]: A is not a third site", "peers[0].relays[1]: B is not", "peers[1].via.site: is missing",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
	d := DefaultDTN()
	d.Site, d.Export, d.Address = "R", "/export", "dtn-r.example.org:7444"
	d.Relay = Relay{Space: 1 << 30, Keep: time.Hour, Routes: []Route{{From: "A", To: []string{"B", "C"}}}}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	for way, want := range map[[2]string]bool{{"A", "B"}: true, {"A", "C"}: true, {"B", "A"}: false, {"B", "C"}: false} {
		if got := d.Relay.Allows(way[0], way[1]); got != want {
			t.Errorf("from %s to %s: %v, want %v", way[0], way[1], got, want)
		}
	}
	for want, r := range map[string]Relay{
		"relay.space: is missing":               {Routes: []Route{{From: "A", To: []string{"B"}}}},
		"relay.space: must not":                 {Space: -1},
		"relay.routes: is missing":              {Space: 1},
		"relay.keep: must be positive":          {Space: 1, Keep: -time.Hour},
		"relay.routes[0].from: R is not a":      {Space: 1, Routes: []Route{{From: "R", To: []string{"B"}}}},
		"relay.routes[0].to: is missing":        {Space: 1, Routes: []Route{{From: "A"}}},
		"relay.routes[0].to[1]: A is not a thi": {Space: 1, Routes: []Route{{From: "A", To: []string{"B", "A"}}}},
	} {
		d.Relay = r
		if err := d.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: no %q in\n%v", r, want, err)
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

func TestLimitsAreReadAsTheyAreWritten(t *testing.T) {
	got, err := LoadDTN(write(t, smallDTN+`
limits:
  - {site: B, days: mon-fri, hours: 22:00-06:00, zone: UTC, send: 200Mbit/s}
  - {send: 0, receive: 1.5Gbit/s}
`), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	night, err := mover.ParseWindow("mon-fri", "22:00-06:00", "UTC")
	if err != nil {
		t.Fatal(err)
	}
	want := mover.Limits{
		{Site: "B", Window: night, Send: 2e8, Receive: mover.Unlimited},
		{Send: 0, Receive: 15e8},
	}
	if ls := got.MoverLimits(); !reflect.DeepEqual(ls, want) {
		t.Errorf("got\n%+v\nwant\n%+v", ls, want)
	}
	if got, err := LoadDTN(write(t, smallDTN), noEnv); err != nil || got.MoverLimits() != nil {
		t.Errorf("limits %+v, %v where none are set", got.Limits, err)
	}
}
