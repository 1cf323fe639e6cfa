package world

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/glance-dtn/glance-dtn/agent"
	"github.com/glance-dtn/glance-dtn/deploy/kernel/guest"
	"github.com/glance-dtn/glance-dtn/glance"
	"github.com/glance-dtn/glance-dtn/glance/glancetest"
	"github.com/glance-dtn/glance-dtn/mover"
	"github.com/glance-dtn/glance-dtn/nfs/probe"
)

const mib = 1 << 20

// image is one that site A has.
type image struct {
	id   glance.ImageID
	data []byte
}

// add gives site A an image of random bytes that nobody has seen, until the test ends.
func (w *world) add(t *testing.T, size int) image {
	t.Helper()
	i := image{glance.ImageID(fmt.Sprintf("%08x-0000-4000-8000-000000000000", rand.Uint32())), make([]byte, size)}
	rand.NewChaCha8(sha512.Sum512_256([]byte(i.id))).Read(i.data)
	w.a.glance.Add(t, glance.Image{ID: i.id, Name: "random", DiskFormat: "raw", ContainerFormat: "bare"}, i.data)
	t.Cleanup(func() { // the guest's memory is small
		for _, name := range []string{w.a.glance.Path(i.id), w.a.ctrl.Path(filepath.Join(w.a.store, string(i.id))), w.b.glance.Path(i.id)} {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	return i
}

func (w *world) push(t *testing.T, i image) agent.JobID {
	t.Helper()
	jobs, err := w.a.control.Push(t.Context(), string(i.id), []string{"B"}, "")
	if err != nil {
		t.Fatal(err)
	}
	return jobs[0].ID
}

// delivered waits for the job's end. It holds that Glance B has the image's bytes,
// and that the image was staged once, whatever happened meanwhile.
func (w *world) delivered(t *testing.T, id agent.JobID, i image) agent.Job {
	t.Helper()
	j := w.a.awaitJob(t, id, agent.Verified, agent.Parked)
	t.Logf("%s in %v:%s", j.State, j.Since().Sub(j.Created).Round(time.Millisecond), history(j))
	if j.State != agent.Verified {
		t.Fatalf("the job is parked: %s", j.Reason)
	}
	sum := sha512.Sum512(i.data)
	status, hash := w.b.glance.Attribute(i.id, "status"), w.b.glance.Attribute(i.id, "os_hash_value")
	if status != "active" || hash != hex.EncodeToString(sum[:]) {
		t.Errorf("image %s at B is %v with the hash %v, want it active with %x", i.id, status, hash, sum)
	}
	wantFile(t, w.b.glance.Path(i.id), i.data)
	if n := len(notes(j, agent.Offered)); n != 1 {
		t.Errorf("the image was to be staged %d times, want once", n)
	}
	return j
}

// staging is the file that is being copied for a job, as the DTN's disk has it.
func (w *world) staging(id agent.JobID) (name string, ok bool) {
	names, err := filepath.Glob(w.a.server.Path(filepath.Join(w.a.server.Dir, mover.Outbox, "."+string(id)+".*")))
	if err != nil || len(names) != 1 {
		return "", false
	}
	return names[0], true
}

// awaitStaging waits until the DTN's server has a few blocks of the copy.
func (w *world) awaitStaging(t *testing.T, id agent.JobID) (name string) {
	t.Helper()
	await(t, "nothing is being copied for job "+string(id), func() string {
		var ok bool
		if name, ok = w.staging(id); !ok {
			return "no file"
		}
		var st syscall.Stat_t
		if err := syscall.Stat(name, &st); err != nil {
			return err.Error()
		}
		if got := st.Blocks * 512; got < 2*mib {
			return fmt.Sprintf("%s has %d bytes", name, got)
		}
		return ""
	})
	return name
}

// slow makes the networks of site A and of the wide area so slow that a leg can be
// met on its way, until the test ends.
func (w *world) slow(t *testing.T) {
	t.Helper()
	for _, link := range []struct {
		from     *guest.Machine
		to, rate string
	}{{w.a.ctrl, w.a.server.Name, "20mbit"}, {w.WAN, w.b.server.Name, "40mbit"}} {
		link.from.Run(t, "tc", "qdisc", "add", "dev", link.to, "root", "netem", "rate", link.rate, "limit", "100000")
		t.Cleanup(func() { link.from.Run(t, "tc", "qdisc", "delete", "dev", link.to, "root") })
	}
}

func TestKernelImagesGoOverNFS(t *testing.T) {
	guest.Need(t)
	began := time.Now()
	w := newWorld(t)
	t.Logf("two sites are ready after %v", time.Since(began).Round(time.Millisecond))
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"sync or async is told by the DTN and found out by the controller", w.syncOrAsync},
		{"staged by a copy through NFS", w.byCopy},
		{"staged in place", w.inPlace},
		{"the power of DTN A fails", w.powerFails},
		{"the NFS server of site A restarts while an image is staged", w.serverRestarts},
		{"the mount of site A is taken away and comes back", w.mountTaken},
		{"the NFS server of site A does not answer", w.serverHangs},
		{"daemons are killed in the legs over NFS", w.killed},
	} {
		if !t.Run(c.name, c.test) {
			return // what it leaves behind is no world for the next
		}
	}
	w.wantClean(t)
}

// wantClean holds that no export has a copy left.
func (w *world) wantClean(t *testing.T) {
	t.Helper()
	for _, s := range []*site{&w.a, &w.b} {
		for _, box := range []string{mover.Outbox, mover.Inbox} {
			await(t, "copies are left on an export", func() string {
				files, err := os.ReadDir(s.server.Path(filepath.Join(s.server.Dir, box)))
				if err == nil && len(files) == 0 {
					return ""
				}
				return fmt.Sprintf("%s of %s has %v (%v)", box, s.server.Name, files, err)
			})
		}
	}
}

// syncOrAsync: the DTN knows whether its export is sync or async, and the agent
// notes it. The controller finds the same by measuring.
func (w *world) syncOrAsync(t *testing.T) {
	t.Cleanup(func() { w.a.server.Export(t, "sync") })
	for _, c := range []struct {
		options string
		note    bool
		class   probe.SyncClass
	}{{"sync", false, probe.Sync}, {"async", true, probe.Async}} {
		w.a.server.Export(t, c.options)
		checks, err := w.a.control.Checks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		noted := slices.ContainsFunc(checks, func(k agent.Check) bool { return k.OK && strings.Contains(k.Note, "the export is async") })
		if noted != c.note {
			t.Errorf("%s: noted %v, want %v: %+v", c.options, noted, c.note, checks)
		}
		var got probe.SyncReport
		for try := 0; try < 10 && got.Class == probe.SyncUnknown; try++ { // other work on the host blurs the figures
			w.a.ctrl.Within(t, func() { got, err = w.measure(t.Context()) })
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s, measured %v: %s", c.options, got.Class, got.Reason)
		}
		if got.Class != c.class {
			t.Errorf("%s, measured %v", c.options, got.Class)
		}
	}
}

// measure asks the server of site A, on the machine where it is called.
func (w *world) measure(ctx context.Context) (r probe.SyncReport, err error) {
	p, err := probe.Dial(ctx, probe.Options{Host: w.a.server.Addr.String(), Export: w.a.server.Dir})
	if err != nil {
		return r, err
	}
	defer p.Close()
	return p.SyncClass(ctx)
}

// byCopy: the datadir is on another file system than the export.
func (w *world) byCopy(t *testing.T) {
	i := w.add(t, 20*mib+12345)
	j := w.delivered(t, w.push(t, i), i)
	if how := notes(j, agent.Staged)[0]; !strings.HasPrefix(how, "copy") || strings.Contains(how, "again") {
		t.Errorf("staged by %q, want a copy of which nothing was lost", how)
	}
}

// inPlace: the datadir lies on the export.
func (w *world) inPlace(t *testing.T) {
	i := w.add(t, 8*mib)
	onExport := w.a.ctrl.Path(filepath.Join(w.a.store, string(i.id)))
	if err := errors.Join(os.WriteFile(onExport, i.data, 0o640), os.Remove(w.a.glance.Path(i.id))); err != nil {
		t.Fatal(err)
	}
	j := w.delivered(t, w.push(t, i), i)
	if how := notes(j, agent.Staged)[0]; !strings.HasPrefix(how, "hard link") {
		t.Errorf("staged by %q, want a hard link", how)
	}
	wantFile(t, onExport, i.data)
}

// powerFails: the export of DTN A is async, so NFS acknowledges, to stay, what a power
// cut then takes. First it takes a file that is being copied, and the copy is made
// anew. Then it takes some of what was written of a whole copy: the agent finds out
// and writes that again, before the image is staged. What is staged stays.
func (w *world) powerFails(t *testing.T) {
	w.a.server.Export(t, "async")
	t.Cleanup(func() { w.a.server.Export(t, "sync") })
	guest.Here().Run(t, "sysctl", "-qw", "vm.dirty_writeback_centisecs=0") // disks get what is synced
	t.Cleanup(func() { guest.Here().Run(t, "sysctl", "-qw", "vm.dirty_writeback_centisecs=500") })
	w.a.server.Run(t, "mount", "-o", "remount,commit=300", w.a.server.Dir)
	w.a.server.Run(t, "sync", "--file-system", w.a.server.Dir) // the journal's transaction of now would be written after 5 s still
	w.slow(t)
	i := w.add(t, 8*mib)
	w.a.dtn.kill() // so that nobody syncs the copy
	id := w.push(t, i)
	name := w.awaitStaging(t, id)
	w.a.server.CutPower(t)
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the power cut left %s (%v)", name, err)
	}
	t.Log("the power cut took the file")

	name = w.awaitStaging(t, id)
	w.a.server.Run(t, "sync", "--file-system", w.a.server.Dir) // the disk has the file, and the first of its blocks
	copied := w.a.ctrl.Path(filepath.Join(w.a.mount, mover.Outbox, filepath.Base(name)))
	await(t, "the server has not got the copy", func() string {
		acknowledged(t, copied)
		if lost := differ(t, name, i.data); lost > 0 {
			return fmt.Sprintf("%d blocks are missing", lost)
		}
		return ""
	})
	acknowledged(t, copied)
	t.Logf("NFS has acknowledged all %d blocks of the copy", blocks(i.data))

	w.a.server.CutPower(t)
	lost := differ(t, name, i.data)
	t.Logf("the power cut took %d of them", lost)
	if lost == 0 || lost == blocks(i.data) {
		t.Fatalf("the power cut took %d of %d blocks, want some", lost, blocks(i.data))
	}
	w.a.dtn.start(t)
	if j := w.a.awaitJob(t, id, agent.Staged, agent.Moved, agent.Verified); j.State != agent.Staged {
		t.Fatalf("the image was moved before it was seen staged:%s", history(j))
	}
	w.a.dtn.kill()
	w.a.server.CutPower(t)
	w.a.dtn.start(t)
	j := w.delivered(t, id, i)
	if how, want := notes(j, agent.Staged)[0], fmt.Sprintf("%d blocks that the DTN had lost written again", lost); !strings.Contains(how, want) {
		t.Errorf("staged by %q, want %q", how, want)
	}
	for line := range strings.Lines(w.a.agent.said(t)) {
		if strings.Contains(line, "job="+string(id)) {
			t.Logf("agent A: %s", strings.TrimSpace(line))
		}
	}
}

// acknowledged has the client give all that it has of a file to the server, to stay.
func acknowledged(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func blocks(data []byte) int { return (len(data) + mover.BlockSize - 1) / mover.BlockSize }

// differ counts the blocks of data that a file has not got.
func differ(t *testing.T, name string, data []byte) (n int) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += mover.BlockSize {
		end := min(len(data), off+mover.BlockSize)
		if end > len(got) || !bytes.Equal(got[off:end], data[off:end]) {
			n++
		}
	}
	return n
}

// serverRestarts: the copy waits for the server and goes on.
func (w *world) serverRestarts(t *testing.T) {
	w.slow(t)
	i := w.add(t, 8*mib)
	id := w.push(t, i)
	name := w.awaitStaging(t, id)
	w.a.server.Stop(t)
	if lost := differ(t, name, i.data); lost == 0 {
		t.Error("the copy was made before the server was stopped")
	}
	if j := w.a.awaitJob(t, id, agent.Offered, agent.Staged); j.State != agent.Offered {
		t.Errorf("the image is %s without a server", j.State)
	}
	w.a.server.Start(t)
	w.delivered(t, id, i)
}

// killed: the agents crash, each while it reads or writes an export, and so does
// the DTN whose file is read. What was done is not done twice.
func (w *world) killed(t *testing.T) {
	w.slow(t)
	i := w.add(t, 8*mib)
	made := w.b.glance.Count(glancetest.Create)
	id := w.push(t, i)
	w.awaitStaging(t, id)
	w.a.agent.kill()
	w.a.agent.start(t)
	await(t, "Glance B gets nothing", func() string {
		if status := w.b.glance.Attribute(i.id, "status"); status != "saving" {
			return fmt.Sprint(status)
		}
		return ""
	})
	w.b.agent.kill()
	w.b.dtn.kill()
	w.b.dtn.start(t)
	w.b.agent.start(t)
	w.delivered(t, id, i)
	if n := w.b.glance.Count(glancetest.Create) - made; n != 1 {
		t.Errorf("%d images were made at B, want 1", n)
	}
}

// paused waits until the job waits for its site's export, and returns the reason.
func (s *site) paused(t *testing.T, id agent.JobID, says string) (why string) {
	t.Helper()
	await(t, "the job does not wait for the export", func() string {
		j, err := s.control.Job(t.Context(), id)
		if why = j.Reason; err == nil && j.Attempts == 0 && strings.HasPrefix(why, "export "+s.mount+" ") && strings.Contains(why, says) {
			return ""
		}
		return fmt.Sprintf("%s, %d attempts: %s (%v)", j.State, j.Attempts, j.Reason, err)
	})
	t.Log(why)
	return why
}

// wantExport waits until the agent's own check of its export says this; "" for well.
func (s *site) wantExport(t *testing.T, says string) {
	t.Helper()
	await(t, "the check of the export", func() string {
		checks, err := s.control.Checks(t.Context())
		if slices.ContainsFunc(checks, func(c agent.Check) bool {
			return c.Name == "export" && c.OK == (says == "") && strings.Contains(c.Error, says)
		}) {
			return ""
		}
		return fmt.Sprintf("%+v, %v", checks, err)
	})
}

// mountTaken holds that a site whose mount is gone writes nothing beneath it, says why
// its jobs wait, and goes on by itself.
func (w *world) mountTaken(t *testing.T) {
	i := w.add(t, 6*mib)
	w.a.ctrl.Run(t, "umount", "--lazy", w.a.mount)
	id := w.push(t, i)
	w.a.paused(t, id, "is not mounted, and was before ("+w.a.server.Source()+")")
	w.a.wantExport(t, "is not mounted")
	if names, err := os.ReadDir(w.a.ctrl.Path(w.a.mount)); err != nil || len(names) > 0 {
		t.Errorf("beneath the mount lie %v, %v, want nothing", names, err)
	}
	w.a.ctrl.Run(t, "mount", "-t", "nfs", "-o", "vers=3,nolock", w.a.server.Source(), w.a.mount)
	w.delivered(t, id, i)
	w.a.wantExport(t, "")
}

// serverHangs holds the same of a hard mount whose server does not answer.
func (w *world) serverHangs(t *testing.T) {
	i := w.add(t, 6*mib)
	w.a.server.Stop(t)
	w.a.wantExport(t, "has not answered since")
	id := w.push(t, i)
	w.a.paused(t, id, "has not answered since")
	w.a.server.Start(t)
	w.delivered(t, id, i)
	w.a.wantExport(t, "")
}
