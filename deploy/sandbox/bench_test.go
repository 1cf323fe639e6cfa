package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/glance-dtn/glance-dtn/deploy/lab"
)

// rounds is how often each side of a comparison is measured, in turn.
const rounds = 5

// BenchmarkEndToEnd measures one 1 GiB image of random bytes: the whole job A → B,
// against a plain `curl -T` of the same file into the same Glance B, in turn.
// Goal: at most 1.35 times the PUT. "hard link" stages without copying, as where the
// datadir lies on the export; "copy" is a datadir on a disk of its own.
func BenchmarkEndToEnd(b *testing.B) {
	for _, stage := range []string{"auto", "copy"} {
		b.Run("stage="+stage, func(b *testing.B) {
			x := up(b, "SANDBOX_STAGE="+stage, "SANDBOX_FAST=0")
			const size = 1 << 30
			file := filepath.Join(x.dir, "image")
			f, err := os.Create(file)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(f, content("bench", size).open()); err != nil {
				b.Fatal(err)
			}
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				var jobs, puts, ratios []float64
				spent := map[string][]float64{}
				for range rounds {
					put := x.put(b, file)
					before := x.spent(b)
					job := x.wholeJob(b, "bench", size)
					for part, now := range x.spent(b) {
						spent[part] = append(spent[part], now-before[part])
					}
					puts, jobs, ratios = append(puts, put), append(jobs, job), append(ratios, job/put)
					b.Logf("curl -T %.2f s, whole job %.2f s, ratio %.2f", put, job, job/put)
				}
				b.ReportMetric(median(puts), "s/put")
				b.ReportMetric(median(jobs), "s/job")
				b.ReportMetric(median(ratios), "ratio")
				for part, seconds := range spent {
					b.ReportMetric(median(seconds), "cpu-s/"+part)
				}
			}
		})
	}
}

// put is the time curl takes to upload the file into Glance B.
func (b *box) put(t testing.TB, file string) float64 {
	t.Helper()
	settle(t)
	text := `{"name":"put","disk_format":"raw","container_format":"bare"}`
	_, out := b.glance(t, "B", "POST", "/v2/images", jsonText(text))
	var i image
	if err := json.Unmarshal(out, &i); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	cmd := exec.Command("curl", "-sSf", "-T", file, "-H", "X-Auth-Token: "+b.auth(t), "-H", "Content-Type: application/octet-stream",
		b.env["B"]["GLANCE_DTN_SANDBOX_GLANCE_URL"]+"/v2/images/"+i.str("id")+"/file")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("curl: %v %s", err, out)
	}
	took := time.Since(began).Seconds()
	b.remove(t, "B", i.str("id"))
	return took
}

// wholeJob is the time from the push of an image at A until it is verified at B.
func (b *box) wholeJob(t testing.TB, name string, size int64) float64 {
	t.Helper()
	id := b.create(t, "A", name, size, nil)
	settle(t)
	began := time.Now()
	cmd := exec.Command(os.Getenv("GLANCE_DTN"), "push", id, "--to", "B", "--wait")
	cmd.Env = append(os.Environ(), "GLANCE_DTN_CONTROL="+b.env["A"]["GLANCE_DTN_CONTROL"])
	legs, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("push: %v\n%s", err, legs)
	}
	took := time.Since(began).Seconds()
	t.Logf("%s", legs)
	b.remove(t, "A", id)
	b.remove(t, "B", id)
	return took
}

// parts are the processes on the way of an image. Glance A's work is its upload there,
// which the job does not wait for.
var parts = []string{"agentA", "dtnA", "dtnB", "agentB", "glanceB"}

// spent is the processor time that each part has used so far, its children's included,
// in seconds.
func (b *box) spent(t testing.TB) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, part := range parts {
		pid := b.pid(t, part)
		children, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(strings.Fields(string(children)), pid) {
			n, err := strconv.Atoi(p)
			if err != nil {
				t.Fatal(err)
			}
			process, err := procfs.NewProc(n)
			if err != nil {
				t.Fatal(err)
			}
			stat, err := process.Stat()
			if err != nil {
				t.Fatal(err)
			}
			all[part] += stat.CPUTime()
		}
	}
	return all
}

// pid is the process of a part.
func (b *box) pid(t testing.TB, part string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "run", part+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))[0]
}

// settle makes both sides of a comparison begin alike: the disk has finished what the
// last measurement left to it, and as much memory as either side fills with pages of
// files has just been touched.
func settle(t testing.TB) {
	t.Helper()
	if err := exec.Command("sync").Run(); err != nil {
		t.Fatal(err)
	}
	lab.Touch(t, 4<<30)
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

// BenchmarkMemory measures the largest resident size of each daemon while a 4 GiB
// image goes from A to B. Goals: agent 120 MiB, dtn 80 MiB.
func BenchmarkMemory(b *testing.B) {
	x := up(b, "SANDBOX_FAST=0")
	for b.Loop() {
		x.wholeJob(b, "large", 4<<30)
		for _, part := range parts[:4] {
			b.ReportMetric(x.peak(b, part), "MiB/"+part)
		}
	}
}

// peak is a part's VmHWM in MiB.
func (b *box) peak(t testing.TB, part string) float64 {
	t.Helper()
	status, err := os.ReadFile("/proc/" + b.pid(t, part) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.Fields(text)[0])
			if err != nil {
				t.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	t.Fatalf("%s has no VmHWM", part)
	return 0
}

// BenchmarkFullPass measures what one reconcile pass over 1,000 images known at both
// sites asks of each real Glance. Goal: at most 20 requests a site.
func BenchmarkFullPass(b *testing.B) {
	x := up(b, "SANDBOX_AUTH=none", "SANDBOX_FAST=0")
	for n := range 1000 {
		id := x.create(b, "A", fmt.Sprint("many-", n), 100, nil)
		text := fmt.Sprintf(`{"id":%q,"name":"many-%d","disk_format":"raw","container_format":"bare","visibility":"public"}`, id, n)
		x.glance(b, "B", "POST", "/v2/images", jsonText(text))
		x.glance(b, "B", "PUT", "/v2/images/"+id+"/file", content(fmt.Sprint("many-", n), 100))
	}
	// Only now the rule that sends all of them, and a long interval between listings, so that
	// what is counted is the pass at the start.
	conf := filepath.Join(x.dir, "A", "agent.yaml")
	text, err := os.ReadFile(conf)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(conf, append(text, "rules: [{name: all, to: [B]}]\n"...), 0o600); err != nil {
		b.Fatal(err)
	}
	x.sandbox(b, "stop", x.dir, "agentB")
	x.start(b, "agentB", "GLANCE_DTN_WATCH__LISTING=1h", "GLANCE_DTN_WATCH__RECONCILE=1h")
	for b.Loop() {
		before := map[string]float64{"A": x.requests(b, "A"), "B": x.requests(b, "B")}
		x.sandbox(b, "stop", x.dir, "agentA")
		before["A"] = 0
		began := time.Now()
		x.start(b, "agentA", "GLANCE_DTN_WATCH__LISTING=1h", "GLANCE_DTN_WATCH__RECONCILE=1h")
		x.awaitLog(b, "agentA", "full pass", 1000)
		b.ReportMetric(time.Since(began).Seconds(), "s/start-and-pass")
		for _, site := range []string{"A", "B"} {
			b.ReportMetric(x.requests(b, site)-before[site], "requests/"+site)
		}
	}
}

// requests is how many calls the site's agent has made to its Glance, by its own metrics.
func (b *box) requests(t testing.TB, site string) float64 {
	t.Helper()
	res, err := http.Get(b.env[site]["GLANCE_DTN_SANDBOX_AGENT_METRICS"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var n float64
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "glance_dtn_agent_glance_requests_total{") {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			if err != nil {
				t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// awaitLog waits until the newest start of the part has logged such a line about so many images.
func (b *box) awaitLog(t testing.TB, part, message string, images int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(b.dir, "log", part+".log"))
		if err != nil {
			t.Fatal(err)
		}
		run := string(text[max(0, strings.LastIndex(string(text), "agent started")):])
		if strings.Contains(run, message) && strings.Contains(run, fmt.Sprintf("images=%d ", images)) {
			return
		}
	}
	t.Fatalf("%s did not log %q", part, message)
}
