package nfs

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func readStats(t testing.TB, name string) map[string]Stats {
	t.Helper()
	all, err := ParseMountstats(strings.NewReader(read(t, name)))
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]Stats{}
	for _, s := range all {
		by[s.Point] = s
	}
	return by
}

// TestStatsCountWhatWasDone reads the counters around three known commands: 8 writes
// of 1 MiB and an fsync; 64 writes of 16 KiB through a synchronous mount whose wsize
// is 12 KiB; a file of 8 MiB read over NFSv4.1.
func TestStatsCountWhatWasDone(t *testing.T) {
	before, after := readStats(t, "mountstats-before"), readStats(t, "mountstats-after")
	for _, tt := range []struct {
		point, op      string
		ops            int64
		sent, received int64 // at least
		bytes          Bytes
		commits        int64
	}{
		{"/run/m/v3", "WRITE", 8, 8 << 20, 8 * 100, Bytes{Written: 8 << 20, ServerWritten: 8 << 20}, 1},
		{"/run/m/v3sync", "WRITE", 128, 1 << 20, 128 * 100, Bytes{Written: 1 << 20, ServerWritten: 1 << 20}, 64},
		{"/run/m/v41", "READ", 8, 8 * 100, 8 << 20, Bytes{Read: 8 << 20, ServerRead: 8 << 20}, 0},
		{"/run/m/with space", "WRITE", 0, 0, 0, Bytes{}, 0},
	} {
		d, err := after[tt.point].Sub(before[tt.point])
		if err != nil {
			t.Errorf("%s: %v", tt.point, err)
			continue
		}
		if o := d.Ops[tt.op]; o.Ops != tt.ops || o.Trans != tt.ops || o.Timeouts != 0 || o.Errors != 0 ||
			o.Sent < tt.sent || o.Received < tt.received || o.Execute < o.RTT {
			t.Errorf("%s: %s counted %+v, want %d requests", tt.point, tt.op, o, tt.ops)
		}
		if got := d.Ops["COMMIT"].Ops; got != tt.commits {
			t.Errorf("%s: %d COMMIT, want %d", tt.point, got, tt.commits)
		}
		if d.Bytes != tt.bytes {
			t.Errorf("%s: bytes %+v, want %+v", tt.point, d.Bytes, tt.bytes)
		}
		if d.Age < 0 || d.Age > 10*time.Second {
			t.Errorf("%s: %v passed", tt.point, d.Age)
		}
	}
}

func TestStatsTellOfTheMount(t *testing.T) {
	all, mounts := readStats(t, "mountstats-after"), mustMountinfo(t, read(t, "mountinfo"))
	n := 0
	for _, m := range mounts {
		if !IsNFS(m.Type) {
			continue
		}
		n++
		s := all[m.Point]
		if s.Source != m.Source || s.Type != m.Type || len(s.Ops) < 20 {
			t.Errorf("%s: got %s of type %s with %d procedures", m.Point, s.Source, s.Type, len(s.Ops))
		}
		for _, option := range m.Super {
			if name, _, _ := strings.Cut(option, "="); name != "addr" && !slices.Contains(s.Options, option) {
				t.Errorf("%s: mountstats have no %s: %s", m.Point, option, s.Options)
			}
		}
	}
	if n != len(all) || n < 10 {
		t.Errorf("%d NFS mounts, counters of %d", n, len(all))
	}
}

const oneMount = "no device mounted on / with fstype rootfs\n" +
	"device h:/a\\040b mounted on /m with fstype nfs statvers=1.1\n" +
	"\topts:\trw,vers=3\n\tage:\t7\n\tbytes:\t1 2 3 4 5 6 7 8 \n\tper-op statistics\n" +
	"\t       WRITE: 9 10 1 1000 200 3 40 50\n\t      COMMIT: 1 1 0 10 20 0 5 6 2\n\n" +
	"device none mounted on /m2 with fstype tmpfs\n"

func TestParseMountstats(t *testing.T) {
	all, err := ParseMountstats(strings.NewReader(oneMount))
	if err != nil || len(all) != 1 {
		t.Fatalf("got %+v, %v", all, err)
	}
	s := all[0]
	if s.Source != "h:/a b" || s.Point != "/m" || s.Options.String() != "rw,vers=3" || s.Age != 7*time.Second || s.Bytes != (Bytes{1, 2, 3, 4, 5, 6}) {
		t.Errorf("got %+v", s)
	}
	ms := time.Millisecond
	if got, want := s.Ops["WRITE"], (Op{9, 10, 1, 1000, 200, 0, 3 * ms, 40 * ms, 50 * ms}); got != want {
		t.Errorf("WRITE: got %+v, want %+v", got, want)
	}
	if got, want := s.Ops["COMMIT"], (Op{1, 1, 0, 10, 20, 2, 0, 5 * ms, 6 * ms}); got != want {
		t.Errorf("COMMIT: got %+v, want %+v", got, want)
	}
	for change, want := range map[[2]string]string{
		{"mounted on /m with", "with"}: "line 2: want device SOURCE",
		{"age:\t7", "age:\tx"}:         `line 4: age of /m: "x" is not a counter`,
		{"bytes:\t1 2 3", "bytes:\t1"}: "line 5: bytes of /m: want 6 numbers",
		{"3 40 50", "3 40"}:            "line 7: WRITE of /m: want 8 numbers",
		{"9 10 1", "9 -10 1"}:          `"-10" is not a counter`,
	} {
		text := strings.Replace(oneMount, change[0], change[1], 1)
		if change[0] == "bytes:\t1 2 3" {
			text = strings.Replace(oneMount, "1 2 3 4 5 6 7 8", "1 2 3 4 5", 1)
		}
		if _, err := ParseMountstats(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q for %q: got error %v, want one with %q", change[1], change[0], err, want)
		}
	}
}

func TestSubKnowsAnotherMount(t *testing.T) {
	s := func(source string, age time.Duration, ops int64) Stats {
		return Stats{Source: source, Point: "/m", Age: age, Ops: map[string]Op{"READ": {Ops: ops, Trans: ops}}}
	}
	for _, tt := range []struct {
		name        string
		now, before Stats
		want        string
	}{
		{"another source", s("b:/", 2, 2), s("a:/", 1, 1), "no difference"},
		{"younger than before", s("a:/", 1, 2), s("a:/", 2, 1), "mounted anew"},
		{"fewer requests than before", s("a:/", 2, 1), s("a:/", 1, 2), "mounted anew"},
		{"a procedure that went away", Stats{Source: "a:/", Point: "/m", Age: 3}, s("a:/", 1, 2), "mounted anew"},
	} {
		if _, err := tt.now.Sub(tt.before); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := (Stats{}).Sub(Stats{Ops: map[string]Op{"READ": {}}}); err == nil {
		t.Error("a mount without procedures is taken for one with them")
	}
	now := s("a:/", 2, 5)
	now.Ops["WRITE"] = Op{Ops: 3}
	d, err := now.Sub(s("a:/", 1, 1))
	if err != nil || d.Ops["READ"].Ops != 4 || d.Ops["WRITE"].Ops != 3 || d.Age != 1 {
		t.Errorf("got %+v, %v", d, err)
	}
	if now.Ops["READ"].Ops != 5 {
		t.Error("Sub changed its receiver")
	}
}

func FuzzMountstats(f *testing.F) {
	f.Add(oneMount)
	f.Add(read(f, "mountstats-after"))
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParseMountstats(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range all {
			if !IsNFS(s.Type) || s.Age < 0 {
				t.Errorf("%+v is no NFS mount's", s)
			}
			d, err := s.Sub(s)
			if err != nil {
				t.Fatal(err)
			}
			if d.Age != 0 || d.Bytes != (Bytes{}) {
				t.Errorf("the difference to itself is %+v", d)
			}
			for name, o := range d.Ops {
				if o != (Op{}) {
					t.Errorf("the difference of %s to itself is %+v", name, o)
				}
			}
		}
	})
}
