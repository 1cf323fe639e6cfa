package sandbox

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/internal/nettest"
)

// gridServer starts Debian's GridFTP server on a port of loopback, and returns how to kill it.
func gridServer(t *testing.T, address string) (kill func()) {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("globus-gridftp-server", "-s", "-p", port, "-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1",
		"-c", "/dev/null", "-C", t.TempDir(), "-aa", "-anonymous-user", "root", "-allow-root", "-home-dir", "/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return kill
		}
		if time.Since(began) > time.Minute {
			kill()
			t.Fatal(err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l := nettest.Listen(t, "127.0.0.1:0")
	defer l.Close()
	return l.Addr().String()
}

// Files go from a GridFTP server to another, of which the receiving site's daemon sees no
// more than what it writes to the export. A site whose server is away waits for it.
func TestByGridFTP(t *testing.T) {
	b := shared(t)
	if out, err := exec.Command("./sandbox", "install", "globus-gridftp-server-progs", "globus-gass-copy-progs").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	servers := map[string]string{"A": freeAddress(t), "B": freeAddress(t)}
	for site, server := range servers {
		b.configure(t, "dtn", site, func(conf string) string {
			if site == "B" { // takes files by GridFTP alone
				conf = without(conf, "address:")
			}
			return conf + fmt.Sprintf("gridftp: {url: \"ftp://%s%s\"}\n", server, b.env[site]["GLANCE_DTN_SANDBOX_EXPORT"])
		})
	}
	t.Cleanup(gridServer(t, servers["A"]))
	killB := gridServer(t, servers["B"])

	id := b.create(t, "A", "by-gridftp", 60*mib, nil)
	j := b.await(t, "A", b.push(t, id), agent.Verified)
	if j.Image.Size != 60*mib || !strings.HasPrefix(j.Offer.Address, "ftp://") {
		t.Errorf("it was sent to %s", j.Offer.Address)
	}
	b.wantDelivered(t, id, 60*mib)

	killB()
	late := b.create(t, "A", "late", 20*mib, nil)
	job := b.push(t, late)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if j := b.job(t.Context(), "A", job); strings.Contains(j.Reason, "globus-gridftp-server running") {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the job does not say what is wrong: %s %q", j.State, j.Reason)
		}
	}
	t.Cleanup(gridServer(t, servers["B"]))
	b.await(t, "A", job, agent.Verified)
	b.wantDelivered(t, late, 20*mib)
}
