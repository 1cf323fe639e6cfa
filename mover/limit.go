package mover

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rate is in bits per second. Of what moves 0 is nothing.
type Rate float64

// Unlimited is above every rate.
var Unlimited = Rate(math.Inf(1))

var rateUnits = []struct {
	name string
	bits float64
}{{"Tbit/s", 1e12}, {"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"kbit/s", 1e3}, {"bit/s", 1}}

// ParseRate reads what String writes: a number and its unit, 0 or unlimited.
func ParseRate(s string) (Rate, error) {
	switch s = strings.TrimSpace(s); s {
	case "0":
		return 0, nil
	case "unlimited":
		return Unlimited, nil
	}
	for _, u := range rateUnits {
		if text, ok := strings.CutSuffix(s, u.name); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err == nil && n >= 0 && n <= 1e9 {
				return Rate(n * u.bits), nil
			}
			break
		}
	}
	return 0, errors.New("must be a rate, such as 200Mbit/s or 1.5Gbit/s; 0, nothing; or unlimited")
}

// String returns the rate with the largest unit of which there is one.
func (r Rate) String() string {
	if r == 0 {
		return "0"
	}
	if math.IsInf(float64(r), 1) {
		return "unlimited"
	}
	for _, u := range rateUnits {
		if float64(r) >= u.bits {
			return strconv.FormatFloat(float64(r)/u.bits, 'f', -1, 64) + u.name
		}
	}
	return strconv.FormatFloat(float64(r), 'f', -1, 64) + "bit/s"
}

// Brief is the rate for a person, in three digits: 1.24 Gbit/s.
func (r Rate) Brief() string {
	if math.IsInf(float64(r), 1) {
		return r.String()
	}
	for _, u := range []struct {
		name string
		bits Rate
	}{{"Tbit/s", 1e12}, {"Gbit/s", 1e9}, {"Mbit/s", 1e6}, {"kbit/s", 1e3}} {
		if r >= 0.9995*u.bits { // so that three digits are none more
			return fmt.Sprintf("%.3g %s", float64(r/u.bits), u.name)
		}
	}
	return fmt.Sprintf("%.3g bit/s", float64(r))
}

// Window is a part of each week, by the clock on a wall in a time zone. The zero
// Window is all of it.
type Window struct {
	Days     []time.Weekday // on which it begins; none: on all
	From, To time.Duration  // after midnight. To is up to 24h, and before From where it ends on the next day; both 0: all day
	Zone     *time.Location // nil: this machine's
}

// ParseWindow reads days such as "mon-fri" or "sat,sun", hours such as "08:00-18:00" or
// "22:00-06:00", and the name of a time zone. What is empty is every day, all day, and
// this machine's zone.
func ParseWindow(days, hours, zone string) (w Window, err error) {
	var faults []error
	if w.Days, err = parseDays(days); err != nil {
		faults = append(faults, err)
	}
	if w.From, w.To, err = parseHours(hours); err != nil {
		faults = append(faults, err)
	}
	if zone != "" {
		if w.Zone, err = time.LoadLocation(zone); err != nil {
			faults = append(faults, fmt.Errorf("%w; a zone is named as in /usr/share/zoneinfo (package tzdata), such as Europe/Berlin", err))
		}
	}
	return w, errors.Join(faults...)
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func parseDays(s string) (days []time.Weekday, err error) {
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(strings.ToLower(s), ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, to := slices.Index(weekdays, first), slices.Index(weekdays, last)
		if !isRange {
			to = from
		}
		if from < 0 || to < 0 {
			return nil, fmt.Errorf("%q must be days or ranges of them, such as mon-fri or sat,sun", s)
		}
		for d := from; ; d = (d + 1) % 7 {
			days = append(days, time.Weekday(d))
			if d == to {
				break
			}
		}
	}
	slices.Sort(days)
	return slices.Compact(days), nil
}

func parseHours(s string) (from, to time.Duration, err error) {
	if s == "" {
		return 0, 0, nil
	}
	first, last, ok := strings.Cut(s, "-")
	from, ok1 := parseClock(first)
	to, ok2 := parseClock(last)
	if !ok || !ok1 || !ok2 || from == to || from == 24*time.Hour {
		return 0, 0, fmt.Errorf("%q must be two different times, such as 08:00-18:00, or 22:00-06:00 past midnight", s)
	}
	return from, to, nil
}

// parseClock reads hh:mm, 24:00 included.
func parseClock(s string) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if s == "24:00" {
		return 24 * time.Hour, true
	}
	t, err := time.Parse("15:04", s)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err == nil
}

// on returns the window that begins on the day of at, plus so many. Without one both
// are equal. A time that the clock skips, as summer time begins, is an hour off.
func (w Window) on(at time.Time, plus int) (begin, end time.Time) {
	zone := w.Zone
	if zone == nil {
		zone = time.Local
	}
	year, month, day := at.In(zone).Date()
	clock := func(day int, d time.Duration) time.Time {
		return time.Date(year, month, day, int(d/time.Hour), int(d%time.Hour/time.Minute), 0, 0, zone)
	}
	day += plus
	begin = clock(day, w.From)
	if len(w.Days) > 0 && !slices.Contains(w.Days, time.Date(year, month, day, 12, 0, 0, 0, zone).Weekday()) {
		return begin, begin
	}
	if w.To <= w.From {
		day++
	}
	return begin, clock(day, w.To)
}

// Holds reports whether the time is in the window, whose end is not.
func (w Window) Holds(at time.Time) bool {
	for plus := -1; plus <= 0; plus++ {
		if begin, end := w.on(at, plus); !at.Before(begin) && at.Before(end) {
			return true
		}
	}
	return false
}

// next is the first time after at when the window begins or ends.
func (w Window) next(at time.Time) time.Time {
	var first time.Time
	for plus := -1; plus <= 15; plus++ { // a week may be missing: the clock skips its window
		begin, end := w.on(at, plus)
		if !begin.Before(end) {
			continue
		}
		for _, t := range []time.Time{begin, end} {
			if t.After(at) && (first.IsZero() || t.Before(first)) {
				first = t
			}
		}
	}
	return first
}

// Limit is how much may move in a window, to and from one site or all of them together.
type Limit struct {
	Site          string // empty: all sites together
	Window        Window
	Send, Receive Rate
}

// Direction is which of a limit's rates is meant.
type Direction string

// The directions, seen from this DTN.
const (
	Send    Direction = "send"
	Receive Direction = "receive"
)

// In returns the limit's rate in a direction.
func (l Limit) In(d Direction) Rate {
	if d == Receive {
		return l.Receive
	}
	return l.Send
}

// Limits are a DTN's. Of those whose window holds the strictest rules.
type Limits []Limit

// At is the rate that rules at a time for a site, or, where that is empty, for all sites
// together. What moves keeps both.
func (ls Limits) At(at time.Time, site string, d Direction) Rate {
	rate := Unlimited
	for _, l := range ls {
		if l.Site == site && l.Window.Holds(at) {
			rate = min(rate, l.In(d))
		}
	}
	return rate
}

// Next is when a limit begins or ends next after a time; zero: there are none.
func (ls Limits) Next(at time.Time) time.Time {
	var first time.Time
	for _, l := range ls {
		if t := l.Window.next(at); first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first
}

// Shut tells why nothing may move now in a direction between this DTN and a site, or,
// where that is empty, any; nil: something may.
func (ls Limits) Shut(now time.Time, site string, d Direction) *Wait {
	shut := func(at time.Time) (string, bool) {
		if ls.At(at, "", d) == 0 {
			return "any site", true
		}
		return "site " + site, site != "" && ls.At(at, site, d) == 0
	}
	who, is := shut(now)
	if !is {
		return nil
	}
	to := map[Direction]string{Send: "to", Receive: "from"}[d]
	for at := ls.Next(now); at.Before(now.AddDate(0, 0, 16)); at = ls.Next(at) {
		if _, is := shut(at); !is {
			return &Wait{Until: at, Reason: fmt.Sprintf("a limit lets nothing go %s %s until %s", to, who, at.Format("Mon 15:04 MST"))}
		}
	}
	return &Wait{Until: now.AddDate(0, 0, 7), Reason: fmt.Sprintf("a limit lets nothing go %s %s at any time; change limits in the DTN's configuration", to, who)}
}

// Wait is the error of what cannot move now, though nothing is wrong: it is tried again.
type Wait struct {
	Until  time.Time
	Reason string // for a person
}

func (w *Wait) Error() string { return w.Reason }

// Priority says which of the transfers that wait goes first. Empty is PriorityNormal.
type Priority string

// The priorities.
const (
	PriorityLow    Priority = "low"
	PriorityNormal Priority = "normal"
	PriorityHigh   Priority = "high"
)

// Rank is higher for what goes first.
func (p Priority) Rank() int {
	switch p {
	case PriorityLow:
		return -1
	case PriorityHigh:
		return 1
	}
	return 0
}

// Validate reports a priority that there is not.
func (p Priority) Validate() error {
	switch p {
	case "", PriorityLow, PriorityNormal, PriorityHigh:
		return nil
	}
	return fmt.Errorf("priority %q: it is one of low, normal and high", p)
}
