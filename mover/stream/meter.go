package stream

import (
	"cmp"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

// activity is what a lane, or what follows it, does at a moment.
type activity int

const (
	resting     activity = iota // nobody waits for it
	computing                   // proof, TLS
	reading                     // waits for the source's disk
	carrying                    // waits for the connection: to take bytes, or to bring some
	owed                        // has all in flight that it may have
	writing                     // waits for the destination's disk
	behind                      // waits for the hash to follow
	limitedAll                  // waits for what may move to or from all sites together
	limitedSite                 // waits for what may move to or from the other site
	activities
)

// spent is how long each activity took.
type spent [activities]time.Duration

func (s *spent) add(other spent) {
	for a, d := range other {
		s[a] += d
	}
}

// limited is how long limits were waited for.
func (s *spent) limited() time.Duration { return s[limitedAll] + s[limitedSite] }

// meter measures how the time of one goroutine goes, which alone begins activities.
type meter struct {
	calls int           // of disk
	cpu   time.Duration // that disk last saw a call take

	mu    sync.Mutex // guards what follows
	spent spent
	now   activity
	since time.Time
}

// slowed is called where a disk is waited for; tests set it.
var slowed func(activity)

// begin ends one activity and begins another. It returns the one that has ended.
func (m *meter) begin(a activity) activity {
	was, _ := m.switchTo(a)
	return was
}

// switchTo is begin, and tells when that was.
func (m *meter) switchTo(a activity) (was activity, at time.Time) {
	at = time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	was = m.now
	m.charge(at)
	m.now = a
	return was, at
}

// charge books the time up to t. The caller holds mu.
func (m *meter) charge(t time.Time) {
	if !m.since.IsZero() {
		m.spent[m.now] += t.Sub(m.since)
	}
	m.since = t
}

// probeEvery is how many calls of disk share one look at the thread's clock, which costs
// as much as a small copy does. It is odd, so that each of the two calls for a block has its turn.
const probeEvery = 17

// disk calls f, which reads or writes a piece of a file: what it takes beyond the
// processor's time is a wait for the disk, since a copy from or to the page cache is none.
// Then it goes on with what was before.
func (m *meter) disk(a activity, f func() error) error {
	probe := m.calls%probeEvery == 0
	m.calls++
	var cpu time.Duration
	if probe {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cpu = threadTime()
	}
	was, began := m.switchTo(a)
	if slowed != nil {
		slowed(a)
	}
	err := f()
	_, ended := m.switchTo(was)
	if probe {
		m.cpu = threadTime() - cpu
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copying := min(m.cpu, ended.Sub(began))
	m.spent[a] -= copying
	m.spent[computing] += copying
	return err
}

// take returns what was spent since the last call, what still goes on included.
func (m *meter) take() spent {
	t := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.charge(t)
	s := m.spent
	m.spent = spent{}
	for a := range s {
		s[a] = max(0, s[a]) // the processor's time is booked later than it passes
	}
	return s
}

// times is what the receiver tells of a link's last moments: how long its lanes waited
// for bytes, computed, and waited for the disk, all together; and how much may come now.
type times struct {
	Wait time.Duration `json:"wait"`
	CPU  time.Duration `json:"cpu"`
	Disk time.Duration `json:"disk"`

	Limited time.Duration `json:"limited,omitempty"` // waited because of By
	By      string        `json:"by,omitempty"`      // a limit, for a person

	Rate mover.Rate `json:"rate,omitempty"` // as in answer
}

// timesOf sums up what lanes and what follows them have spent. A lane that waits for the
// hash waits for what the hash does meanwhile.
func timesOf(lanes, followers spent) times {
	t := times{
		Wait: lanes[carrying],
		CPU:  lanes[computing],
		Disk: lanes[writing],

		Limited: lanes.limited(),
	}
	disk := 0.0
	if busy := followers[writing] + followers[computing]; busy > 0 {
		disk = float64(followers[writing]) / float64(busy)
	}
	onDisk := time.Duration(disk * float64(lanes[behind]))
	t.Disk += onDisk
	t.CPU += lanes[behind] - onDisk
	return t
}

// bottleneck is the place that was waited for longest. A lane that cannot get rid of its
// bytes waits for the network only as far as those at the other end wait for bytes: else
// for them. None is named while too little is known. Ours and theirs are the limits that
// the two DTNs wait for.
func bottleneck(here spent, there times, ours, theirs string) mover.Bottleneck {
	lanes := share(here[carrying]+here[owed], here[reading], here[computing], here.limited())
	if lanes == nil {
		lanes = make([]float64, 4)
	}
	ends := share(max(0, there.Wait-here[resting]), there.CPU, there.Disk, there.Limited) // what is not to be sent is not waited for
	if ends == nil {
		return mover.Bottleneck{}
	}
	waits := []mover.Bottleneck{
		{Place: mover.SourceDisk, Share: lanes[1]},
		{Place: mover.SourceCPU, Share: lanes[2]},
		{Place: mover.Network, Share: min(lanes[0], ends[0])},
		{Place: mover.DestinationCPU, Share: ends[1]},
		{Place: mover.DestinationDisk, Share: ends[2]},
		{Place: mover.Limited, Limit: ours, Share: lanes[3]},
		{Place: mover.Limited, Limit: theirs, Share: ends[3]},
	}
	return slices.MaxFunc(waits, func(a, b mover.Bottleneck) int { return cmp.Compare(a.Share, b.Share) })
}

// share returns each duration's part of their sum; nil when there is none.
func share(all ...time.Duration) []float64 {
	var sum time.Duration
	for _, d := range all {
		sum += d
	}
	if sum <= 0 {
		return nil
	}
	parts := make([]float64, len(all))
	for i, d := range all {
		parts[i] = float64(d) / float64(sum)
	}
	return parts
}
