package sandbox

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/agent/api"
	"github.com/glance-dtn/glance-dtn/mover"
)

// box is a sandbox that runs: two real sites on loopback. Its methods look at it
// from outside, with net/http and the daemons' public interfaces alone.
type box struct {
	dir     string
	env     map[string]map[string]string // by site
	control map[string]*api.ControlClient
	mu      sync.Mutex
	token   string
}

// one is the sandbox that the tests share which need no settings of their own. It
// starts no job by itself.
var one struct {
	sync.Once
	box *box
}

func TestMain(m *testing.M) {
	code := m.Run()
	if one.box != nil {
		if out, err := exec.Command("./sandbox", "down", one.box.dir).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "sandbox down: %v\n%s", err, out)
			code = 1
		}
		if code == 0 {
			_ = os.RemoveAll(one.box.dir)
		} else {
			fmt.Fprintf(os.Stderr, "the logs are kept in %s/log\n", one.box.dir)
		}
	}
	os.Exit(code)
}

func shared(t testing.TB) *box {
	t.Helper()
	needReal(t)
	one.Do(func() { one.box = raise(t) })
	if one.box == nil {
		t.Fatal("the shared sandbox did not come up")
	}
	return one.box
}

// needReal skips the test where GLANCE_DTN_REAL is not set: `make test` sets it.
func needReal(t testing.TB) {
	t.Helper()
	if os.Getenv("GLANCE_DTN_REAL") == "" {
		t.Skip("needs Debian's OpenStack packages; `make test` runs it")
	}
}

// up returns a new sandbox with these settings, and takes it down after the test.
func up(t testing.TB, settings ...string) *box {
	t.Helper()
	needReal(t)
	b := raise(t, settings...)
	t.Cleanup(func() {
		b.sandbox(t, "down", b.dir)
		if t.Failed() {
			t.Logf("the logs are kept in %s/log", b.dir)
			return
		}
		_ = os.RemoveAll(b.dir)
	})
	return b
}

func raise(t testing.TB, settings ...string) *box {
	t.Helper()
	dir, err := os.MkdirTemp("", "gdtn-box") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	b := &box{dir: dir, env: map[string]map[string]string{}, control: map[string]*api.ControlClient{}}
	cmd := exec.Command("./sandbox", "up", dir)
	cmd.Env = append(os.Environ(), append([]string{"SANDBOX_FAST=1", "SANDBOX_RULES=none"}, settings...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = exec.Command("./sandbox", "down", dir).Run()
		t.Fatalf("sandbox up: %v\n%s\nthe logs are kept in %s/log", err, out, dir)
	}
	for _, site := range []string{"A", "B"} {
		b.env[site] = map[string]string{}
		for line := range strings.Lines(b.sandbox(t, "env", dir, site)) {
			k, v, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
			b.env[site][k] = strings.ReplaceAll(v, `\`, "")
		}
		b.control[site] = api.NewControlClient(b.env[site]["GLANCE_DTN_CONTROL"])
	}
	return b
}

func (b *box) sandbox(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("./sandbox", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sandbox %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(out)
}

// kill ends a part as a power cut would.
func (b *box) kill(t testing.TB, part string) {
	t.Helper()
	b.signal(t, part, syscall.SIGKILL)
	b.sandbox(t, "stop", b.dir, part, "-9")
}

// signal sends a signal to all processes of a part.
func (b *box) signal(t testing.TB, part string, s syscall.Signal) {
	t.Helper()
	file := filepath.Join(b.dir, "run", part+".pid")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(text))[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-pid, s); err != nil {
		t.Fatalf("%v to %s: %v", s, part, err)
	}
}

func (b *box) start(t testing.TB, part string, env ...string) {
	t.Helper()
	b.sandbox(t, append([]string{"start", b.dir, part}, env...)...)
}

// ---- Glance, seen by an independent client

type image map[string]any

func (i image) str(key string) string { s, _ := i[key].(string); return s }

// glance does one call of the image API as the admin: a JSON text is posted, another body is image data. It
// returns the answer's code and body.
func (b *box) glance(t testing.TB, site, method, path string, body body) (int, []byte) {
	t.Helper()
	for range 2 { // the second time with a new token, and the body from its start
		req, err := http.NewRequestWithContext(t.Context(), method, b.env[site]["GLANCE_DTN_SANDBOX_GLANCE_URL"]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Auth-Token", b.auth(t))
		if body.open != nil {
			req.Body, req.ContentLength = io.NopCloser(body.open()), body.size
			req.Header.Set("Content-Type", body.media)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusUnauthorized {
			return res.StatusCode, out
		}
		b.mu.Lock()
		b.token = ""
		b.mu.Unlock()
	}
	t.Fatalf("%s %s: 401 with a new token", method, path)
	return 0, nil
}

// body is what a call sends; the zero body is none.
type body struct {
	media string
	size  int64
	open  func() io.Reader
}

func jsonText(text string) body {
	return body{"application/json", int64(len(text)), func() io.Reader { return strings.NewReader(text) }}
}

// content is random bytes that follow from their name.
func content(name string, size int64) body {
	seed := sha512.Sum512_256([]byte(name))
	return body{"application/octet-stream", size, func() io.Reader { return io.LimitReader(rand.NewChaCha8(seed), size) }}
}

func (b *box) auth(t testing.TB) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.token != "" {
		return b.token
	}
	e := b.env["A"]
	if e["OS_TOKEN"] != "" {
		return e["OS_TOKEN"]
	}
	body := fmt.Sprintf(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":%q,"domain":{"id":"default"},"password":%q}}},"scope":{"project":{"name":"admin","domain":{"id":"default"}}}}}`, e["OS_USERNAME"], e["OS_PASSWORD"])
	res, err := http.Post(e["OS_AUTH_URL"]+"/auth/tokens", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	b.token = res.Header.Get("X-Subject-Token")
	if b.token == "" {
		t.Fatalf("Keystone gave no token: %s", res.Status)
	}
	return b.token
}

// create makes an image with this content and more fields, and returns its id.
func (b *box) create(t testing.TB, site, name string, size int64, more map[string]any) (id string) {
	t.Helper()
	meta := map[string]any{"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public"}
	maps.Copy(meta, more)
	text, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	code, out := b.glance(t, site, "POST", "/v2/images", jsonText(string(text)))
	var i image
	if err := json.Unmarshal(out, &i); code != 201 || err != nil {
		t.Fatalf("create image: %d %s", code, out)
	}
	if code, out := b.glance(t, site, "PUT", "/v2/images/"+i.str("id")+"/file", content(name, size)); code != 204 {
		t.Fatalf("upload: %d %s", code, out)
	}
	return i.str("id")
}

func (b *box) show(t testing.TB, site, id string) image {
	t.Helper()
	code, out := b.glance(t, site, "GET", "/v2/images/"+id, body{})
	if code == http.StatusNotFound {
		return nil
	}
	var i image
	if err := json.Unmarshal(out, &i); code != 200 || err != nil {
		t.Fatalf("show image: %d %s", code, out)
	}
	return i
}

// readBack returns the sha512 and length of what Glance serves.
func (b *box) readBack(t testing.TB, site, id string) (string, int64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", b.env[site]["GLANCE_DTN_SANDBOX_GLANCE_URL"]+"/v2/images/"+id+"/file", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", b.auth(t))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	h := sha512.New()
	n, err := io.Copy(h, res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("read image %s at %s: %s %v", id, site, res.Status, err)
	}
	return hex.EncodeToString(h.Sum(nil)), n
}

func (b *box) remove(t testing.TB, site, id string) {
	t.Helper()
	if code, out := b.glance(t, site, "DELETE", "/v2/images/"+id, body{}); code != 204 {
		t.Fatalf("delete: %d %s", code, out)
	}
}

// ---- jobs

func (b *box) push(t testing.TB, id string) agent.JobID {
	t.Helper()
	jobs, err := b.control["A"].Push(t.Context(), id, []string{"B"}, "")
	if err != nil {
		t.Fatal(err)
	}
	return jobs[0].ID
}

// job returns the newest state of the job, or a zero one while its agent does not answer.
func (b *box) job(ctx context.Context, site string, id agent.JobID) agent.Job {
	j, err := b.control[site].Job(ctx, id)
	if err != nil {
		return agent.Job{}
	}
	return j
}

// await polls until the job is in one of the states.
func (b *box) await(t testing.TB, site string, id agent.JobID, states ...agent.State) agent.Job {
	t.Helper()
	var j agent.Job
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if j = b.job(t.Context(), site, id); slices.Contains(states, j.State) {
			return j
		}
	}
	t.Fatalf("job %s is %s (%s), want %v", id, j.State, j.Reason, states)
	return j
}

// wantDelivered fails unless B serves the image bit for bit, once, and neither export has a file left.
func (b *box) wantDelivered(t testing.TB, id string, size int64) {
	t.Helper()
	at, bt := b.show(t, "A", id), b.show(t, "B", id)
	if bt == nil || bt.str("status") != "active" {
		t.Fatalf("image %s at B: %v", id, bt)
	}
	sum, n := b.readBack(t, "B", id)
	if n != size || sum != at.str("os_hash_value") || sum != bt.str("os_hash_value") {
		t.Errorf("read back from B: %d bytes %s; A has %v, B says %v", n, sum, at["os_hash_value"], bt["os_hash_value"])
	}
	unlike := []string{"checksum", "created_at", "updated_at", "locations", "direct_url", "stores", "owner", "os_glance_importing_to_stores", "os_glance_failed_import"}
	for _, i := range []image{at, bt} { // a set, in whatever order
		if tags, ok := i["tags"].([]any); ok {
			slices.SortFunc(tags, func(x, y any) int { return strings.Compare(fmt.Sprint(x), fmt.Sprint(y)) })
		}
	}
	for k, v := range at {
		if got := bt[k]; !slices.Contains(unlike, k) && fmt.Sprint(got) != fmt.Sprint(v) {
			t.Errorf("%s is %v at B, %v at A", k, got, v)
		}
	}
	if _, ours := bt["glance_dtn_job"]; ours {
		t.Error("the image at B still has the property glance_dtn_job")
	}
	b.wantClean(t)
}

// wantClean fails unless both exports are empty, a little later at the most.
func (b *box) wantClean(t testing.TB) {
	t.Helper()
	var left []string
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		left = nil
		for _, site := range []string{"A", "B"} {
			for _, folder := range []string{"outbox", "inbox"} {
				entries, err := os.ReadDir(filepath.Join(b.env[site]["GLANCE_DTN_SANDBOX_EXPORT"], folder))
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				for _, e := range entries {
					left = append(left, site+"/"+folder+"/"+e.Name())
				}
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left on the exports: %v", left)
}

const mib = 1 << 20

// ---- the main job

func TestUploadAtAIsServedByB(t *testing.T) {
	b := up(t, "SANDBOX_RULES=all")
	t.Run("by the rules, with all its properties", func(t *testing.T) {
		id := b.create(t, "A", "debian-12", 20*mib, map[string]any{
			"min_disk": 2, "min_ram": 512, "tags": []string{"golden", "x y"}, "os_distro": "debian", "hw_disk_bus": "virtio",
			"owner_specified.openstack.md5": "", "os_hidden": true, "protected": true,
		})
		for end := time.Now().Add(2 * time.Minute); b.show(t, "B", id).str("status") != "active" && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
		for j, err := range b.control["A"].Jobs(t.Context()) {
			if err == nil && string(j.Image.ID) == id {
				b.await(t, "A", j.ID, agent.Verified)
			}
		}
		b.wantDelivered(t, id, 20*mib)
	})
	t.Run("an empty image", func(t *testing.T) {
		id := b.create(t, "A", "empty", 0, nil)
		b.await(t, "A", b.push(t, id), agent.Verified)
		b.wantDelivered(t, id, 0)
	})
	t.Run("pull from the other side", func(t *testing.T) {
		id := b.create(t, "B", "from-b", 3*mib, nil)
		j, err := b.control["A"].Pull(t.Context(), "from-b", "B")
		if err != nil {
			t.Fatal(err)
		}
		b.await(t, "B", j.ID, agent.Verified)
		if sum, _ := b.readBack(t, "A", id); sum != b.show(t, "B", id).str("os_hash_value") {
			t.Errorf("A serves %s", sum)
		}
	})
	t.Run("another id with the same content moves no byte", func(t *testing.T) {
		first := b.create(t, "A", "twin", 8*mib, nil)
		b.await(t, "A", b.push(t, first), agent.Verified)
		text := `{"name":"twin","disk_format":"raw","container_format":"bare"}`
		_, out := b.glance(t, "A", "POST", "/v2/images", jsonText(text))
		var i image
		if err := json.Unmarshal(out, &i); err != nil {
			t.Fatal(err)
		}
		b.glance(t, "A", "PUT", "/v2/images/"+i.str("id")+"/file", content("twin", 8*mib))
		j := b.await(t, "A", b.push(t, i.str("id")), agent.Verified)
		if slices.ContainsFunc(j.History, func(c agent.Change) bool { return c.State == agent.Staged }) {
			t.Errorf("the file was staged though B has its bytes: %v", j.History)
		}
		b.wantDelivered(t, i.str("id"), 8*mib)
	})
}

// Each daemon is killed in each leg, and started again: the image arrives once and whole.
func TestKilledInEachLeg(t *testing.T) {
	b := shared(t)
	const size = 120 * mib
	for _, when := range []agent.State{agent.Offered, agent.Staged, agent.Moved} {
		for _, part := range []string{"agentA", "agentB", "dtnA", "dtnB"} {
			t.Run(string(when)+"/"+part, func(t *testing.T) {
				id := b.create(t, "A", "killed-"+string(when)+part, size, nil)
				job := b.push(t, id)
				way := agent.Send.Way()
				if when == agent.Moved { // which would be short: Glance B keeps up with the move
					b.await(t, "A", job, way[slices.Index(way, agent.Staged):]...)
					resume := b.pause(t, "glanceB")
					defer resume()
					time.AfterFunc(2*time.Second, resume)
				}
				// A short leg may be over before it is seen: then the next is the one that is hit.
				seen := b.await(t, "A", job, way[slices.Index(way, when):]...).State
				if seen == agent.Verified {
					t.Fatalf("the job was verified before it was seen %s", when)
				}
				if seen != when {
					t.Logf("killed when %s", seen)
				}
				b.kill(t, part)
				b.start(t, part)
				j := b.await(t, "A", job, agent.Verified, agent.Parked)
				if j.State != agent.Verified {
					t.Fatalf("the job is parked: %s", j.Reason)
				}
				b.wantDelivered(t, id, size)
				b.remove(t, "A", id)
				b.remove(t, "B", id)
			})
		}
	}
}

// pause stops a part where it is, until resume is called.
func (b *box) pause(t *testing.T, part string) (resume func()) {
	t.Helper()
	pid, err := strconv.Atoi(b.pid(t, part))
	if err == nil {
		err = syscall.Kill(-pid, syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = syscall.Kill(-pid, syscall.SIGCONT) }
}

// The receiving site is away while the image is on its way.
func TestPeerDown(t *testing.T) {
	b := shared(t)
	for _, part := range []string{"agentB", "dtnB", "glanceB"} {
		t.Run(part, func(t *testing.T) {
			b.sandbox(t, "stop", b.dir, part)
			id := b.create(t, "A", "down-"+part, 30*mib, nil)
			job := b.push(t, id)
			for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if j := b.job(t.Context(), "A", job); j.Reason != "" {
					t.Logf("meanwhile: %s", j.Reason)
					break
				}
			}
			b.start(t, part)
			b.await(t, "A", job, agent.Verified)
			b.wantDelivered(t, id, 30*mib)
		})
	}
}

// A token that lives shorter than the upload takes.
func TestTokenExpiresDuringUploads(t *testing.T) {
	b := up(t, "SANDBOX_TOKEN_LIFE=3")
	for n := range 2 {
		const size = 700 * mib
		id := b.create(t, "A", fmt.Sprint("long-", n), size, nil)
		began := time.Now()
		b.await(t, "A", b.push(t, id), agent.Verified)
		t.Logf("%d MiB in %v with tokens of 3 s", size/mib, time.Since(began).Round(time.Millisecond))
		b.wantDelivered(t, id, size)
		b.remove(t, "A", id)
		b.remove(t, "B", id)
	}
}

func TestTrouble(t *testing.T) {
	b := shared(t)
	storeFile := func(site, id string) string { return filepath.Join(b.env[site]["GLANCE_DTN_SANDBOX_STORE"], id) }

	t.Run("a damaged file never becomes active at B", func(t *testing.T) {
		id := b.create(t, "A", "damaged", 5*mib, nil)
		f, err := os.OpenFile(storeFile("A", id), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("damage"), 3*mib)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		job := b.push(t, id)
		for j := (agent.Job{}); !j.State.Final(); time.Sleep(20 * time.Millisecond) {
			if b.show(t, "B", id).str("status") == "active" {
				t.Fatal("the damaged image is active at B")
			}
			j = b.job(t.Context(), "A", job)
			if j.State == agent.Parked && !strings.Contains(j.Reason, "wrong content") {
				t.Errorf("parked: %s", j.Reason)
			}
		}
		if _, err := b.control["A"].Cancel(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		b.await(t, "A", job, agent.Cancelled)
		b.wantClean(t)
	})
	t.Run("a missing and a truncated file", func(t *testing.T) {
		missing, short := b.create(t, "A", "missing", mib, nil), b.create(t, "A", "short", mib, nil)
		if err := errors.Join(os.Remove(storeFile("A", missing)), os.Truncate(storeFile("A", short), 1000)); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{missing, short} {
			if j := b.await(t, "A", b.push(t, id), agent.Parked, agent.Verified); j.State != agent.Parked || !strings.Contains(j.Reason, "restore the file") {
				t.Errorf("image %s: %s: %s", id, j.State, j.Reason)
			}
		}
	})
	t.Run("a file without an image", func(t *testing.T) {
		name := "0f0f0f0f-1111-4222-8333-444444444444"
		if err := os.WriteFile(storeFile("A", name), []byte("orphan"), 0o640); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(storeFile("A", name), old, old); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
			o, err := b.control["A"].Overview(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(o.Store, func(f agent.StoreFault) bool { return string(f.ID) == name }) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("not reported: %+v", o.Store)
			}
		}
		for j, err := range b.control["A"].Jobs(t.Context()) {
			if err != nil || string(j.Image.ID) == name {
				t.Errorf("a job for an orphan: %v %v", j.ID, err)
			}
		}
	})
	t.Run("other content under the id at B", func(t *testing.T) {
		id := b.create(t, "A", "conflict", mib, nil)
		text := fmt.Sprintf(`{"id":%q,"name":"mine","disk_format":"raw","container_format":"bare"}`, id)
		b.glance(t, "B", "POST", "/v2/images", jsonText(text))
		b.glance(t, "B", "PUT", "/v2/images/"+id+"/file", content("other", mib))
		before, _ := b.readBack(t, "B", id)
		if j := b.await(t, "A", b.push(t, id), agent.Parked, agent.Verified); j.State != agent.Parked || !strings.Contains(j.Reason, "conflict") {
			t.Errorf("%s: %s", j.State, j.Reason)
		}
		if after, _ := b.readBack(t, "B", id); after != before {
			t.Error("the image at B was changed")
		}
	})
	t.Run("deleted at A in flight", func(t *testing.T) {
		id := b.create(t, "A", "deleted", 200*mib, nil)
		job := b.push(t, id)
		b.await(t, "A", job, agent.Staged)
		b.remove(t, "A", id)
		if j := b.await(t, "A", job, agent.Cancelled, agent.Verified); j.State != agent.Cancelled {
			t.Logf("the image was faster: %s", j.State)
		}
		b.wantClean(t)
		if b.show(t, "B", id).str("status") == "active" && b.job(t.Context(), "A", job).State == agent.Cancelled {
			t.Log("B had it whole already; deletions are not replicated")
		}
	})
	t.Run("an id that B has deleted", func(t *testing.T) {
		id := b.create(t, "A", "burnt", 2*mib, nil)
		b.await(t, "A", b.push(t, id), agent.Verified)
		b.remove(t, "B", id)
		job := b.push(t, id)
		if j := b.await(t, "A", job, agent.Parked); !strings.Contains(j.Reason, "site B refuses") || !strings.Contains(j.Reason, "on_deleted_id: new-id") {
			t.Errorf("parked: %s", j.Reason)
		}
		b.sandbox(t, "stop", b.dir, "agentB")
		b.start(t, "agentB", "GLANCE_DTN_DELIVER__ON_DELETED_ID=new-id")
		defer func() {
			b.sandbox(t, "stop", b.dir, "agentB")
			b.start(t, "agentB")
		}()
		if _, err := b.control["A"].Retry(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		j := b.await(t, "A", job, agent.Verified)
		got := b.show(t, "B", string(j.DeliverAs))
		if string(j.DeliverAs) == id || got.str("glance_dtn_source_id") != id || got.str("status") != "active" {
			t.Errorf("delivered as %s: %v", j.DeliverAs, got)
		}
		sum, _ := b.readBack(t, "B", string(j.DeliverAs))
		if sum != b.show(t, "A", id).str("os_hash_value") {
			t.Errorf("B serves %s", sum)
		}
	})
}

// The store lies on another filesystem, or links are not wanted: the local copy is a copy,
// and the DTN says that its own disk has it.
func TestStagedByCopy(t *testing.T) {
	b := shared(t)
	b.sandbox(t, "stop", b.dir, "agentA")
	b.start(t, "agentA", "GLANCE_DTN_TRANSFER__STAGE=copy")
	defer func() {
		b.sandbox(t, "stop", b.dir, "agentA")
		b.start(t, "agentA")
	}()
	id := b.create(t, "A", "copied", 20*mib, nil)
	j := b.await(t, "A", b.push(t, id), agent.Verified)
	if !slices.ContainsFunc(j.History, func(c agent.Change) bool { return c.State == agent.Staged && c.Note == "copy" }) {
		t.Errorf("it was not staged by a copy: %+v", j.History)
	}
	b.wantDelivered(t, id, 20*mib)
}

// limitB sets the MiB of images that Keystone allows at site B. Keystone's catalog comes
// from a file here, and its API keeps limits of services in its database only.
func (b *box) limitB(t *testing.T, mib int64) {
	t.Helper()
	const script = `
import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=10) as db:
    db.execute("DELETE FROM registered_limit")
    for n, (name, limit) in enumerate([("image_size_total", int(sys.argv[2])), ("image_stage_total", 10**6),
                                       ("image_count_total", 10**6), ("image_count_uploading", 10**6)], 1):
        db.execute("INSERT INTO registered_limit VALUES (?, 'image', 'siteB', ?, ?, NULL, ?)", (f"limit{n}", name, limit, n))`
	out, err := exec.Command("/usr/bin/python3", "-c", script, filepath.Join(b.dir, "keystone/keystone.db"), strconv.FormatInt(mib, 10)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Keystone keeps limits, and site B's is passed: the image waits before a byte moves.
func TestQuota(t *testing.T) {
	b := shared(t)
	b.await(t, "A", b.push(t, b.create(t, "A", "before", 3*mib, nil)), agent.Verified)
	conf := filepath.Join(b.dir, "B/glance-api.conf")
	before, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			t.Fatal(err)
		}
		b.sandbox(t, "stop", b.dir, "glanceB")
		b.start(t, "glanceB")
	}
	url := b.env["B"]["OS_AUTH_URL"]
	restart([]byte(strings.Replace(string(before), "[DEFAULT]\n", "[DEFAULT]\nuse_keystone_limits = True\n", 1) + `
[oslo_limit]
auth_type = password
auth_url = ` + url + `
username = admin
password = sandbox
user_domain_id = default
system_scope = all
endpoint_id = siteB-image-public
`))
	defer restart(before)
	b.limitB(t, 2)
	id := b.create(t, "A", "too-much", 5*mib, nil)
	job := b.push(t, id)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		j := b.job(t.Context(), "A", job)
		if strings.Contains(j.Reason, "site B: quota: ") && strings.Contains(j.Reason, "limit image_size_total is 2") && j.State == agent.Pending {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %s", j.State, j.Reason)
		}
	}
	b.limitB(t, 1<<20)
	if _, err := b.control["A"].Retry(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	b.await(t, "A", job, agent.Verified)
	b.wantDelivered(t, id, 5*mib)
}

// The export is full: the DTN keeps its reserve, so a large reserve is a full disk.
func TestExportFull(t *testing.T) {
	b := shared(t)
	b.sandbox(t, "stop", b.dir, "dtnB")
	b.start(t, "dtnB", "GLANCE_DTN_RESERVE=900TiB")
	id := b.create(t, "A", "big", 10*mib, nil)
	job := b.push(t, id)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		j := b.job(t.Context(), "A", job)
		if strings.Contains(j.Reason, "no space") && strings.Contains(j.Reason, "site B") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %s", j.State, j.Reason)
		}
	}
	b.sandbox(t, "stop", b.dir, "dtnB")
	b.start(t, "dtnB")
	if _, err := b.control["A"].Retry(t.Context(), job); err != nil && !errors.Is(err, agent.ErrBadState) {
		t.Fatal(err)
	}
	b.await(t, "A", job, agent.Verified)
	b.wantDelivered(t, id, 10*mib)
}

// The mount of A's export is taken away: what lies in its place is not the DTN's.
func TestExportGoneAndBack(t *testing.T) {
	b := shared(t)
	export := b.env["A"]["GLANCE_DTN_SANDBOX_EXPORT"]
	away := export + ".away"
	if err := errors.Join(os.Rename(export, away), os.MkdirAll(filepath.Join(export, "outbox"), 0o770)); err != nil {
		t.Fatal(err)
	}
	back := sync.OnceFunc(func() {
		if err := errors.Join(os.Remove(filepath.Join(export, "outbox")), os.Remove(export), os.Rename(away, export)); err != nil {
			t.Errorf("something was written where no export is: %v", err)
		}
	})
	defer back()
	id := b.create(t, "A", "waits", 10*mib, nil)
	job := b.push(t, id)
	var j agent.Job
	for end := time.Now().Add(2 * time.Minute); !j.Paused; time.Sleep(50 * time.Millisecond) {
		if j = b.job(t.Context(), "A", job); time.Now().After(end) || j.State.Final() {
			t.Fatalf("%s: %s", j.State, j.Reason)
		}
	}
	if !strings.HasPrefix(j.Reason, "export "+export+" ") || !strings.Contains(j.Reason, ".glance-dtn-export") || j.State != agent.Offered || j.Attempts > 0 {
		t.Errorf("%s, %d attempts: %s", j.State, j.Attempts, j.Reason)
	}
	checks, err := b.control["A"].Checks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(checks, func(c agent.Check) bool { return c.Name == "export" && c.Error == j.Reason }) {
		t.Errorf("the checks: %+v, want that the export is not there", checks)
	}
	t.Log(j.Reason)
	back()
	b.await(t, "A", job, agent.Verified)
	b.wantDelivered(t, id, 10*mib)
}

// glance-api dies in the middle of our upload: Glance leaves the image in saving for ever.
func TestGlanceKilledDuringUpload(t *testing.T) {
	b := shared(t)
	b.sandbox(t, "stop", b.dir, "agentB")
	b.start(t, "agentB", "GLANCE_DTN_DELIVER__ON_DELETED_ID=new-id", "GLANCE_DTN_WATCH__STUCK=3s")
	defer func() {
		b.sandbox(t, "stop", b.dir, "agentB")
		b.start(t, "agentB")
	}()
	const size = 300 * mib
	id := b.create(t, "A", "glance-dies", size, nil)
	job := b.push(t, id)
	for end := time.Now().Add(2 * time.Minute); b.show(t, "B", id).str("status") != "saving"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no upload at B; the job is %+v", b.job(t.Context(), "A", job))
		}
	}
	b.kill(t, "glanceB")
	b.start(t, "glanceB")
	j := b.await(t, "A", job, agent.Verified, agent.Parked)
	if j.State != agent.Verified {
		t.Fatalf("parked: %s", j.Reason)
	}
	sum, n := b.readBack(t, "B", string(j.DeliverAs))
	if n != size || sum != b.show(t, "A", id).str("os_hash_value") {
		t.Errorf("B serves %d bytes %s as %s", n, sum, j.DeliverAs)
	}
	b.wantClean(t)
}

// Glance at B stands still in the middle of our upload, until A names it as what is waited for.
func TestSlowGlanceIsNamed(t *testing.T) {
	b := shared(t)
	const size = 200 * mib
	id := b.create(t, "A", "glance-stands-still", size, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	events := b.control["A"].Watch(ctx)
	job := b.push(t, id)
	for b.show(t, "B", id).str("status") != "saving" {
		if j := b.job(ctx, "A", job); ctx.Err() != nil || j.State.Final() {
			t.Fatalf("no upload at B; the job is %+v", j)
		}
	}
	b.signal(t, "glanceB", syscall.SIGSTOP)
	stopped := true
	goOn := func() {
		if stopped {
			b.signal(t, "glanceB", syscall.SIGCONT)
			stopped = false
		}
	}
	defer goOn()
	named := false
	for e, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		if p := e.Progress; p != nil && p.Job == job && p.Bottleneck.Place == mover.Glance && p.Bottleneck.Share > 0.9 {
			named = true
			break
		}
	}
	if !named {
		t.Errorf("A has not named it; the job is %+v", b.job(t.Context(), "A", job))
	}
	goOn()
	j := b.await(t, "A", job, agent.Verified)
	if j.Waited.Place != mover.Glance || j.Waited.For < time.Second {
		t.Errorf("at the end A says %+v", j.Waited)
	}
	b.wantDelivered(t, id, size)
}

// Bulk replication without a daemon at A, as cron does it.
func TestReplicateOnce(t *testing.T) {
	b := shared(t)
	ids := []string{}
	for n := range 5 {
		ids = append(ids, b.create(t, "A", fmt.Sprint("once-", n), 2*mib+int64(n), map[string]any{"tags": []string{"once"}}))
	}
	b.sandbox(t, "stop", b.dir, "agentA")
	defer b.start(t, "agentA")
	once := func(args ...string) (stdout, stderr string, err error) {
		cmd := exec.Command(os.Getenv("GLANCE_DTN"), append(args, "--to", "B", "--once")...)
		cmd.Env = os.Environ()
		for k, v := range b.env["A"] {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		var out, progress bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &progress
		err = cmd.Run()
		return out.String(), progress.String(), err
	}
	out, progress, err := once("replicate", "--tag", "once", "-o", "json")
	if err != nil {
		t.Fatalf("replicate --once: %v\n%s%s", err, out, progress)
	}
	if strings.Contains(out, `"ticket"`) {
		t.Errorf("a ticket is shown: %s", out)
	}
	for n, id := range ids {
		b.wantDelivered(t, id, 2*mib+int64(n))
	}

	// Why a job is parked is told once, by the verdict.
	short := b.create(t, "A", "once-short", mib, nil)
	if err := os.Truncate(filepath.Join(b.env["A"]["GLANCE_DTN_SANDBOX_STORE"], short), 1000); err != nil {
		t.Fatal(err)
	}
	out, progress, err = once("push", short)
	if err == nil || strings.Count(out, "restore the file") != 1 || !strings.Contains(progress, "parked") ||
		strings.Contains(progress, "restore the file") || strings.Contains(progress, "level=") {
		t.Errorf("push --once of a damaged image: %v\n%s%s", err, out, progress)
	}
}

// "up" of a sandbox that is up does nothing; "status" tells of every part.
func TestUpTwiceAndStatus(t *testing.T) {
	b := shared(t)
	before := b.sandbox(t, "status", b.dir)
	b.sandbox(t, "up", b.dir)
	pids := func(status string) (all []string) {
		for line := range strings.Lines(status) {
			f := strings.Fields(line)
			if len(f) < 4 || f[1] != "running" {
				t.Errorf("status: %s", line)
				continue
			}
			all = append(all, f[0]+" "+f[3])
		}
		return all
	}
	x, y := pids(before), pids(b.sandbox(t, "status", b.dir))
	if len(x) != 7 || !slices.Equal(x, y) {
		t.Errorf("parts before the second up: %v, after: %v", x, y)
	}
}
