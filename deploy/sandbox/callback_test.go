package sandbox

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/glance-dtn/glance-dtn/agent"
)

// configure restarts a daemon of a site with its configuration edited, and as it was after the test.
func (b *box) configure(t *testing.T, role, site string, edit func(string) string) {
	t.Helper()
	file := filepath.Join(b.dir, site, role+".yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) {
		b.sandbox(t, "stop", b.dir, role+site)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		b.start(t, role+site)
	}
	put(edit(string(before)))
	t.Cleanup(func() { put(string(before)) })
}

// without is the configuration without the line that begins so.
func without(conf, begin string) string {
	var rest strings.Builder
	for line := range strings.Lines(conf) {
		if !strings.HasPrefix(line, begin) {
			rest.WriteString(line)
		}
	}
	return rest.String()
}

// Site B takes no connections: neither its DTN nor its agent is one that A knows where to
// find. Images go both ways, and after everything at A was killed.
func TestASiteThatTakesNoConnections(t *testing.T) {
	b := shared(t)
	url := regexp.MustCompile(`url: "https://[0-9.:]+", may_pull`)
	b.configure(t, "agent", "A", func(conf string) string { return url.ReplaceAllString(conf, "url: callback, may_pull") })
	b.configure(t, "agent", "B", func(conf string) string { return strings.Replace(conf, "may_pull: true", "callback: true", 1) })
	conf, err := os.ReadFile(filepath.Join(b.dir, "A", "dtn.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	data := regexp.MustCompile(`(?m)^address: (.*)$`).FindStringSubmatch(string(conf))[1]
	b.configure(t, "dtn", "B", func(conf string) string {
		return without(conf, "address:") + "callback: [\"" + data + "\"]\n"
	})

	id := b.create(t, "A", "to-a-site-behind", 40*mib, nil)
	j := b.await(t, "A", b.push(t, id), agent.Verified)
	if j.Offer.Address != "callback://B" {
		t.Errorf("it was sent to %s", j.Offer.Address)
	}
	b.wantDelivered(t, id, 40*mib)

	late := b.create(t, "A", "to-a-site-behind-2", 20*mib, nil)
	job := b.push(t, late)
	for _, part := range []string{"agentA", "dtnA"} {
		b.kill(t, part)
		b.start(t, part)
	}
	b.await(t, "A", job, agent.Verified)
	b.wantDelivered(t, late, 20*mib)

	back := b.create(t, "B", "from-a-site-behind", 10*mib, nil)
	jobs, err := b.control["B"].Push(t.Context(), back, []string{"A"}, "")
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, "B", jobs[0].ID, agent.Verified)
	b.remove(t, "A", back)
	b.remove(t, "B", back)
}
