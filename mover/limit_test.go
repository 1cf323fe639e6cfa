package mover

import (
	"testing"
	"time"
	_ "time/tzdata" // the machine may have none
)

func window(t *testing.T, days, hours, zone string) Window {
	t.Helper()
	w, err := ParseWindow(days, hours, zone)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func at(t *testing.T, zone, text string) time.Time {
	t.Helper()
	z, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	when, err := time.ParseInLocation("2006-01-02 15:04:05", text, z)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

// In 2026 summer time begins in Berlin on Sunday, 29 March, when 02:00 becomes 03:00, and
// ends on Sunday, 25 October, when 03:00 becomes 02:00.
func TestWindowsFollowTheClockOnTheWall(t *testing.T) {
	const zone = "Europe/Berlin"
	for _, c := range []struct {
		days, hours, at string
		holds           bool
		next            string
	}{
		{"mon-fri", "08:00-18:00", "2026-03-02 07:59:59", false, "2026-03-02 08:00:00"}, // a Monday
		{"mon-fri", "08:00-18:00", "2026-03-02 08:00:00", true, "2026-03-02 18:00:00"},
		{"mon-fri", "08:00-18:00", "2026-03-02 17:59:59", true, "2026-03-02 18:00:00"},
		{"mon-fri", "08:00-18:00", "2026-03-02 18:00:00", false, "2026-03-03 08:00:00"},
		{"mon-fri", "08:00-18:00", "2026-03-06 18:00:00", false, "2026-03-09 08:00:00"}, // over the week end
		{"sat,sun", "", "2026-03-06 23:59:59", false, "2026-03-07 00:00:00"},
		{"sat,sun", "", "2026-03-08 23:59:59", true, "2026-03-09 00:00:00"},
		{"fri-mon", "12:00-13:00", "2026-03-09 12:30:00", true, "2026-03-09 13:00:00"}, // days past the week's end
		{"fri-mon", "12:00-13:00", "2026-03-10 12:30:00", false, "2026-03-13 12:00:00"},
		{"fri", "22:00-06:00", "2026-03-07 05:59:59", true, "2026-03-07 06:00:00"}, // Friday's goes on
		{"fri", "22:00-06:00", "2026-03-07 22:30:00", false, "2026-03-13 22:00:00"},
		{"", "22:00-06:00", "2026-03-07 23:00:00", true, "2026-03-08 06:00:00"},
		{"", "18:00-24:00", "2026-03-07 23:59:59", true, "2026-03-08 00:00:00"},
		{"", "18:00-24:00", "2026-03-08 00:00:00", false, "2026-03-08 18:00:00"},
		{"", "24:00-06:00", "", false, ""},
		{"", "22:00-06:00", "2026-03-29 01:59:59", true, "2026-03-29 06:00:00"}, // summer time begins
		{"", "22:00-06:00", "2026-10-25 01:59:59", true, "2026-10-25 06:00:00"}, // and ends
		{"sun", "08:00-18:00", "2026-03-29 08:00:00", true, "2026-03-29 18:00:00"},
		{"sun", "02:30-03:00", "2026-03-26 12:00:00", false, "2026-04-05 02:30:00"}, // skipped once
	} {
		w, err := ParseWindow(c.days, c.hours, zone)
		if c.at == "" {
			if err == nil {
				t.Errorf("%q %q is a window", c.days, c.hours)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		now := at(t, zone, c.at)
		if got := w.Holds(now); got != c.holds {
			t.Errorf("%q %q at %s: it holds: %v", c.days, c.hours, c.at, got)
		}
		if got, want := w.next(now), at(t, zone, c.next); !got.Equal(want) {
			t.Errorf("%q %q at %s changes next at %v, want %v", c.days, c.hours, c.at, got, want)
		}
	}
}

func TestANightIsAnHourLongerOrShorterWithTheClock(t *testing.T) {
	w := window(t, "", "22:00-06:00", "Europe/Berlin")
	for day, want := range map[string]time.Duration{"2026-03-28": 7 * time.Hour, "2026-06-01": 8 * time.Hour, "2026-10-24": 9 * time.Hour} {
		begin, end := w.on(at(t, "Europe/Berlin", day+" 12:00:00"), 0)
		if got := end.Sub(begin); got != want {
			t.Errorf("the night after %s has %v, want %v", day, got, want)
		}
	}
}

func TestAWindowIsInItsZone(t *testing.T) {
	now := at(t, "UTC", "2026-06-01 23:30:00")
	if !window(t, "tue", "08:00-09:00", "Asia/Tokyo").Holds(now) {
		t.Error("half past eight on Tuesday in Tokyo is not in the window")
	}
	if window(t, "mon", "", "Asia/Tokyo").Holds(now) || !window(t, "mon", "", "UTC").Holds(now) {
		t.Error("the day is not that of the zone")
	}
}

func TestTheStrictestLimitRules(t *testing.T) {
	day := window(t, "", "08:00-18:00", "UTC")
	ls := Limits{
		{Window: Window{Zone: time.UTC}, Send: 1e9, Receive: Unlimited},
		{Window: day, Send: 5e8, Receive: 3e8},
		{Site: "B", Window: day, Send: 2e8, Receive: Unlimited},
		{Site: "B", Window: Window{Zone: time.UTC}, Send: 4e8, Receive: Unlimited},
	}
	noon, night := at(t, "UTC", "2026-06-01 12:00:00"), at(t, "UTC", "2026-06-01 20:00:00")
	for _, c := range []struct {
		at   time.Time
		site string
		d    Direction
		want Rate
	}{
		{noon, "", Send, 5e8}, {night, "", Send, 1e9}, {noon, "", Receive, 3e8}, {night, "", Receive, Unlimited},
		{noon, "B", Send, 2e8}, {night, "B", Send, 4e8}, {noon, "C", Send, Unlimited},
	} {
		if got := ls.At(c.at, c.site, c.d); got != c.want {
			t.Errorf("%s with site %q at %v: %v, want %v", c.d, c.site, c.at, got, c.want)
		}
	}
	if got := ls.Next(noon); !got.Equal(at(t, "UTC", "2026-06-01 18:00:00")) {
		t.Errorf("the limits change at %v", got)
	}
	if w := ls.Shut(noon, "B", Send); w != nil {
		t.Errorf("something may move, and it says: %v", w)
	}
	if (Limits{}).At(noon, "B", Send) != Unlimited || !(Limits{}).Next(noon).IsZero() {
		t.Error("no limits limit")
	}
}

func TestAShutWindowSaysUntilWhen(t *testing.T) {
	zone := time.UTC
	ls := Limits{
		{Site: "B", Window: window(t, "mon-fri", "08:00-18:00", "UTC"), Send: 0, Receive: Unlimited},
		{Site: "B", Window: window(t, "", "18:00-20:00", "UTC"), Send: 0, Receive: Unlimited},
		{Site: "C", Window: Window{Zone: zone}, Send: Unlimited, Receive: 0},
		{Window: window(t, "sun", "", "UTC"), Send: 0, Receive: 0},
	}
	monday := at(t, "UTC", "2026-06-01 12:00:00")
	w := ls.Shut(monday, "B", Send)
	if w == nil || !w.Until.Equal(at(t, "UTC", "2026-06-01 20:00:00")) || w.Reason != "a limit lets nothing go to site B until Mon 20:00 UTC" {
		t.Errorf("to B on Monday: %+v", w)
	}
	if w := ls.Shut(monday, "B", Receive); w != nil {
		t.Errorf("from B on Monday: %v", w)
	}
	if w := ls.Shut(monday, "", Send); w != nil {
		t.Errorf("to any site on Monday: %v", w)
	}
	w = ls.Shut(at(t, "UTC", "2026-06-07 12:00:00"), "B", Send)
	if w == nil || !w.Until.Equal(at(t, "UTC", "2026-06-08 00:00:00")) || w.Reason != "a limit lets nothing go to any site until Mon 00:00 UTC" {
		t.Errorf("to B on Sunday: %+v", w)
	}
	w = ls.Shut(monday, "C", Receive)
	if w == nil || w.Reason != "a limit lets nothing go from site C at any time; change limits in the DTN's configuration" {
		t.Errorf("from C: %+v", w)
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]Rate{
		"200Mbit/s": 2e8, "1.5 Gbit/s": 15e8, "64kbit/s": 64e3, "0": 0, "0Mbit/s": 0, "unlimited": Unlimited, "1Tbit/s": 1e12, "8bit/s": 8,
	} {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
		if back, err := ParseRate(got.String()); err != nil || back != got {
			t.Errorf("%q, written as %q, is %v, %v", text, got.String(), back, err)
		}
	}
	for rate, want := range map[Rate]string{
		124e7: "1.24 Gbit/s", 940e6: "940 Mbit/s", 999.6e6: "1 Gbit/s", 49392372: "49.4 Mbit/s", 1e13: "10 Tbit/s", 12: "12 bit/s", Unlimited: "unlimited",
	} {
		if got := rate.Brief(); got != want {
			t.Errorf("%v is %q for a person, want %q", rate, got, want)
		}
	}
	for _, text := range []string{"", "200", "200MB/s", "-1Mbit/s", "Mbit/s", "NaNMbit/s", "InfMbit/s", "1e300Gbit/s"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestHoursAndDaysThatAreNone(t *testing.T) {
	for _, c := range [][3]string{
		{"mon-", "", ""}, {"monday", "", ""}, {"mon;tue", "", ""}, {"", "8-18", ""}, {"", "08:00", ""}, {"", "08:00-08:00", ""},
		{"", "08:00-25:00", ""}, {"", "", "Mars/Olympus"},
	} {
		if w, err := ParseWindow(c[0], c[1], c[2]); err == nil {
			t.Errorf("%q is %+v", c, w)
		}
	}
}
