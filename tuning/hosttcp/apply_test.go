package hosttcp

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/glance-dtn/glance-dtn/internal/durable"
)

// fake is a host of files, whose settings are those of debian.
func fake(t *testing.T) *Host {
	t.Helper()
	h := New(filepath.Join(t.TempDir(), "state"))
	h.root = t.TempDir()
	h.nic = func(string) (NIC, error) { return NIC{}, nil }
	for key, v := range debian().Values {
		put(t, h, sysctls+"/"+file(key), v.Text+"\n")
	}
	put(t, h, "/proc/sys/kernel/osrelease", "6.1.0\n")
	put(t, h, "/proc/meminfo", "MemTotal:       67108864 kB\nMemFree: 1 kB\n")
	put(t, h, "/lib/modules/6.1.0/modules.dep", "kernel/net/ipv4/tcp_htcp.ko.xz: \nkernel/net/ipv4/tcp_bbr.ko: kernel/a.ko\nkernel/net/sched/sch_fq.ko.zst:\n")
	return h
}

func put(t *testing.T, h *Host, name, text string) {
	t.Helper()
	name = h.path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// settingsOf returns all settings as they are.
func settingsOf(t *testing.T, h *Host) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, key := range keys {
		v, err := h.value(key)
		if err != nil {
			t.Fatal(err)
		}
		all[key] = v.Text
	}
	return all
}

func planned(t *testing.T, h *Host, gbits float64, rtt time.Duration) []Change {
	t.Helper()
	s, err := h.Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	changes, err := Plan(wan(gbits, rtt), s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func applied(t *testing.T, h *Host, gbits float64, rtt time.Duration) map[string]Change {
	t.Helper()
	changes, err := h.Apply(t.Context(), planned(t, h, gbits, rtt))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Change{}
	for _, c := range changes {
		all[c.Key] = c
	}
	return all
}

// restored undoes, and fails where anything is not as it was.
func restored(t *testing.T, h *Host, before map[string]string) {
	t.Helper()
	did, err := h.Undo()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("undone: %q", did)
	for key, now := range settingsOf(t, h) {
		if now != before[key] {
			t.Errorf("%s is %q, was %q", key, now, before[key])
		}
	}
	for _, name := range []string{h.path(ownDir), filepath.Join(h.dir, recordName)} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if did, err := h.Undo(); err != nil || len(did) > 0 {
		t.Errorf("undone twice: %q, %v", did, err)
	}
}

func TestApplySetsAtOnceAndForTheNextStart(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	got := applied(t, h, 10, 200*time.Millisecond)
	if c := got["net.ipv4.tcp_rmem"]; c.Status != Set || c.From != "4096\t131072\t6291456" || settingsOf(t, h)[c.Key] != "4096 131072 536870912" {
		t.Errorf("%+v, the setting is %q", c, settingsOf(t, h)[c.Key])
	}
	text, err := os.ReadFile(h.path(ownFile()))
	if err != nil {
		t.Fatal(err)
	}
	for key, c := range got {
		if line := "\n" + key + " = " + c.To + "\n"; strings.Contains(string(text), line) != (c.Status == Set) {
			t.Errorf("%s is %s, and the file says\n%s", key, c.Status, text)
		}
	}
	if i, j := strings.Index(string(text), keyCongestion), strings.Index(string(text), keyAllowed); i > j {
		t.Error("a congestion control is allowed before it is loaded")
	}
	if says, err := h.Undoable(); err != nil || !slices.Contains(says, "Set net.ipv4.tcp_rmem back to 4096\t131072\t6291456.") {
		t.Errorf("undoable: %q, %v", says, err)
	}
	restored(t, h, before)
}

func TestASecondPathUpdatesTheFirst(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	applied(t, h, 10, 200*time.Millisecond)
	if changes := planned(t, h, 10, 200*time.Millisecond); slices.ContainsFunc(changes, func(c Change) bool { return c.Status != Kept }) {
		t.Errorf("the same path again: %+v", changes)
	}
	got := applied(t, h, 1, time.Millisecond)
	if c := got["net.core.rmem_max"]; c.Status != Set || c.To != "2097152" {
		t.Errorf("%+v, want the second path's", c)
	}
	if c := got[keyCongestion]; c.To != "cubic" {
		t.Errorf("%+v, want a local path to have what there was", c)
	}
	text, _ := os.ReadFile(h.path(ownFile()))
	if strings.Contains(string(text), "536870912") || strings.Contains(string(text), keyCongestion) || !strings.Contains(string(text), "net.core.rmem_max = 2097152\n") {
		t.Errorf("the file has the first path's settings:\n%s", text)
	}
	restored(t, h, before)
}

// killedAt applies, and dies before or after an effect on the host: the first of which is
// 0. It returns false where it came to its end before that.
func killedAt(t *testing.T, h *Host, at int, gbits float64, rtt time.Duration) (killed bool) {
	t.Helper()
	changes := planned(t, h, gbits, rtt)
	step := 0
	dies := func() {
		if step++; step == at+1 {
			panic("killed")
		}
	}
	h.set = func(key, value string) error {
		dies()
		err := h.write(key, value)
		dies()
		return err
	}
	defer func() {
		h.set = h.write
		killed = recover() != nil
	}()
	_, _ = h.Apply(t.Context(), changes)
	return false
}

// TestAfterACrashUndoRestores what a first Apply has changed, or an update.
func TestAfterACrashUndoRestores(t *testing.T) {
	for _, update := range []bool{false, true} {
		every := 2
		if update {
			every = 5
		}
		for at := 0; ; at += every {
			h := fake(t)
			before := settingsOf(t, h)
			if update {
				applied(t, h, 1, 100*time.Millisecond)
			}
			killed := killedAt(t, h, at, 10, 200*time.Millisecond)
			restored(t, h, before)
			if !killed {
				if at < 10 {
					t.Errorf("it has no more than %d effects", at)
				}
				break
			}
		}
	}
}

// TestAfterACrashApplyCompletes what was begun, also for the host's next start, or does
// what another path needs.
func TestAfterACrashApplyCompletes(t *testing.T) {
	for _, rtt := range []time.Duration{200 * time.Millisecond, time.Millisecond} {
		whole := fake(t)
		applied(t, whole, 10, rtt)
		want, err := os.ReadFile(whole.path(ownFile()))
		if err != nil {
			t.Fatal(err)
		}
		sorted := func(text []byte) string {
			lines := strings.Split(string(text), "\n")[2:] // behind header and checksum
			slices.Sort(lines)
			return strings.Join(lines, "\n")
		}
		for at := 1; killedAt(t, fake(t), at, 10, 200*time.Millisecond); at += 4 {
			h := fake(t)
			before := settingsOf(t, h)
			killedAt(t, h, at, 10, 200*time.Millisecond)
			applied(t, h, 10, rtt)
			if got, err := os.ReadFile(h.path(ownFile())); err != nil || sorted(got) != sorted(want) {
				t.Errorf("killed at %d: %v, the file says\n%s\nwant\n%s", at, err, got, want)
			}
			restored(t, h, before)
		}
	}
}

// TestAfterARestartUndoRestores holds for a host that has started with our file, and for
// one whose power failed before there was one.
func TestAfterARestartUndoRestores(t *testing.T) {
	for _, withFile := range []bool{true, false} {
		h := fake(t)
		before := settingsOf(t, h)
		got := applied(t, h, 10, 200*time.Millisecond)
		for key, text := range before {
			if c := got[key]; withFile && c.Status == Set {
				text = strings.ReplaceAll(c.To, " ", "\t")
			}
			if err := h.write(key, text); err != nil {
				t.Fatal(err)
			}
		}
		restored(t, h, before)
	}
}

func TestWhatSomebodyElseHasSetSinceStays(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	applied(t, h, 10, 200*time.Millisecond)
	theirs := "4096 131072 99999999"
	if err := h.write("net.ipv4.tcp_rmem", theirs); err != nil {
		t.Fatal(err)
	}
	did, err := h.Undo()
	if err != nil || !slices.Contains(did, "Leave net.ipv4.tcp_rmem at "+theirs+", which somebody else has set.") {
		t.Errorf("%q, %v", did, err)
	}
	now := settingsOf(t, h)
	if now["net.ipv4.tcp_rmem"] != theirs || now["net.ipv4.tcp_wmem"] != before["net.ipv4.tcp_wmem"] {
		t.Errorf("%q", now)
	}
}

// TestWhatSomebodyElseHasSetIsWhatUndoPutsBack where Apply comes after them.
func TestWhatSomebodyElseHasSetIsWhatUndoPutsBack(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	applied(t, h, 10, 200*time.Millisecond)
	before["net.ipv4.tcp_rmem"] = "4096 131072 1000000"
	if err := h.write("net.ipv4.tcp_rmem", before["net.ipv4.tcp_rmem"]); err != nil {
		t.Fatal(err)
	}
	applied(t, h, 10, 100*time.Millisecond)
	restored(t, h, before)
}

func TestAnEditedFileIsNeitherReplacedNorRemoved(t *testing.T) {
	h := fake(t)
	applied(t, h, 10, 200*time.Millisecond)
	now := settingsOf(t, h)
	text, err := os.ReadFile(h.path(ownFile()))
	if err != nil {
		t.Fatal(err)
	}
	edited := string(text) + "vm.swappiness = 1\n"
	put(t, h, ownFile(), edited)
	changes := planned(t, h, 10, 100*time.Millisecond)
	_, applyErr := h.Apply(t.Context(), changes)
	_, undoErr := h.Undo()
	for what, err := range map[string]error{"Apply": applyErr, "Undo": undoErr} {
		if err == nil || !strings.Contains(err.Error(), ownFile()+" is not as glance-dtn has written it") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if text, _ := os.ReadFile(h.path(ownFile())); string(text) != edited {
		t.Errorf("the file is now\n%s", text)
	}
	for key, value := range settingsOf(t, h) {
		if value != now[key] {
			t.Errorf("%s was set to %q", key, value)
		}
	}
}

// TestWhatTheKernelRefusesKeepsNothingElseFromBeingSet, with each of its answers.
func TestWhatTheKernelRefusesKeepsNothingElseFromBeingSet(t *testing.T) {
	for errno, want := range map[error]Status{unix.EINVAL: Refused, unix.ENOENT: Refused, unix.EPERM: NotPermitted, unix.EROFS: ReadOnly} {
		h := fake(t)
		before := settingsOf(t, h)
		h.set = func(key, value string) error {
			if key == keyCongestion {
				return errno
			}
			return h.write(key, value)
		}
		got := applied(t, h, 10, 200*time.Millisecond)
		if c := got[keyCongestion]; c.Status != want || c.Error == "" || c.From != "cubic" {
			t.Errorf("%v: %+v, want %s", errno, c, want)
		}
		if c := got["net.ipv4.tcp_rmem"]; c.Status != Set {
			t.Errorf("%v: %+v, want it set", errno, c)
		}
		if text, _ := os.ReadFile(h.path(ownFile())); strings.Contains(string(text), keyCongestion) {
			t.Errorf("%v: the host's next start is to try it again:\n%s", errno, text)
		}
		restored(t, h, before)
	}
}

func TestWhatTheKernelMakesOfAValueIsTold(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	h.set = func(key, value string) error {
		if key == "net.core.rmem_max" && value == "536870912" {
			value = "1000000"
		}
		return h.write(key, value)
	}
	if c := applied(t, h, 10, 200*time.Millisecond)["net.core.rmem_max"]; c.Status != Set || c.To != "1000000" {
		t.Errorf("%+v, want what it is", c)
	}
	restored(t, h, before)
}

func TestAnInterruptedApplyChangesNothing(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	changes := planned(t, h, 10, 200*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	h.set = func(key, value string) error {
		cancel()
		return h.write(key, value)
	}
	if _, err := h.Apply(ctx, changes); !errors.Is(err, context.Canceled) || !strings.HasSuffix(err.Error(), "everything is as it was") {
		t.Errorf("%v", err)
	}
	restored(t, h, before)
}

func TestAFileThatCannotBeWrittenChangesNothing(t *testing.T) {
	h := fake(t)
	before := settingsOf(t, h)
	changes := planned(t, h, 10, 200*time.Millisecond)
	put(t, h, ownDir, "no directory")
	if _, err := h.Apply(t.Context(), changes); err == nil {
		t.Error("nothing was said")
	}
	if err := os.Remove(h.path(ownDir)); err != nil {
		t.Fatal(err)
	}
	restored(t, h, before)
}

func TestAnOldPlanIsRefused(t *testing.T) {
	h := fake(t)
	changes := planned(t, h, 10, 200*time.Millisecond)
	if err := h.write("net.ipv4.tcp_wmem", "1 2 3"); err != nil {
		t.Fatal(err)
	}
	before := settingsOf(t, h)
	if _, err := h.Apply(t.Context(), changes); err == nil || err.Error() != "net.ipv4.tcp_wmem is not any more as it was planned for: plan again" {
		t.Errorf("%v", err)
	}
	restored(t, h, before)
}

func TestOneAtATime(t *testing.T) {
	h := fake(t)
	changes := planned(t, h, 10, 200*time.Millisecond)
	lock, err := durable.LockDir(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := h.Apply(t.Context(), changes); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
}

func TestFilesOfOthersAreTold(t *testing.T) {
	h := fake(t)
	put(t, h, "/usr/lib/sysctl.d/50-default.conf", "net.core.default_qdisc = fq_codel\n")
	put(t, h, "/usr/lib/sysctl.d/10-hidden.conf", "net.core.rmem_max = 1\n")
	put(t, h, "/etc/sysctl.d/10-hidden.conf", "")
	put(t, h, "/etc/sysctl.d/zzz.conf", "net.ipv4.tcp_rmem = 1 2 3\n")
	put(t, h, "/etc/sysctl.conf", "net.core.wmem_max = 1\n")
	got := applied(t, h, 10, 200*time.Millisecond)
	for key, want := range map[string][2][]string{
		keyQdisc:            {{"/usr/lib/sysctl.d/50-default.conf"}, nil},
		"net.core.rmem_max": {nil, nil},
		"net.ipv4.tcp_rmem": {{"/etc/sysctl.d/zzz.conf"}, {"/etc/sysctl.d/zzz.conf"}},
		"net.core.wmem_max": {{"/etc/sysctl.conf"}, {"/etc/sysctl.conf"}},
	} {
		if c := got[key]; !slices.Equal(c.Files, want[0]) || !slices.Equal(c.Later, want[1]) {
			t.Errorf("%s: %q, of them later %q, want %q", key, c.Files, c.Later, want)
		}
	}
	if _, err := h.Undo(); err != nil {
		t.Fatal(err)
	}
	if all, err := os.ReadDir(h.path(ownDir)); err != nil || len(all) != 2 {
		t.Errorf("others' files: %v, %v", all, err)
	}
}

func TestAHostIsRead(t *testing.T) {
	h := fake(t)
	put(t, h, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
	s, err := h.Read(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory != 64<<30 || s.Governor != "powersave" || !slices.Equal(s.Modules, []string{"sch_fq", "tcp_bbr", "tcp_htcp"}) {
		t.Errorf("%+v", s)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(`{"settings": [{"key": "net.core.rmem_max", "before": "1", "set": ["2"]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		h := New(t.TempDir())
		if err := os.WriteFile(filepath.Join(h.dir, recordName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := h.kept(); err == nil {
			for _, s := range r.Settings {
				_ = s.holds("1")
			}
		}
	})
}
