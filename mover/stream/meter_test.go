package stream

import (
	"cmp"
	"context"
	"hash"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/glance-dtn/glance-dtn/mover"
)

func TestBottleneckIsWhatIsWaitedForLongest(t *testing.T) {
	const s = time.Second
	for name, c := range map[string]struct {
		here  spent
		there times
		want  mover.Bottleneck
	}{
		"nothing known":         {spent{}, times{}, mover.Bottleneck{}},
		"only the sender known": {spent{carrying: s}, times{}, mover.Bottleneck{}},
		"source disk":           {spent{reading: 3 * s, carrying: s}, times{Wait: 9 * s, CPU: s}, mover.Bottleneck{Place: mover.SourceDisk, Share: 0.75}},
		"source CPU":            {spent{computing: 3 * s, carrying: s}, times{Wait: 9 * s, CPU: s}, mover.Bottleneck{Place: mover.SourceCPU, Share: 0.75}},
		"path takes no more":    {spent{computing: s, carrying: 9 * s}, times{Wait: 4 * s, CPU: s}, mover.Bottleneck{Place: mover.Network, Share: 0.8}},
		"window is full":        {spent{computing: s, owed: 9 * s}, times{Wait: 4 * s, CPU: s}, mover.Bottleneck{Place: mover.Network, Share: 0.8}},
		"destination CPU":       {spent{carrying: s}, times{Wait: s, CPU: 3 * s}, mover.Bottleneck{Place: mover.DestinationCPU, Share: 0.75}},
		"destination disk":      {spent{carrying: s}, times{Wait: s, Disk: 3 * s}, mover.Bottleneck{Place: mover.DestinationDisk, Share: 0.75}},
		"a limit here":          {spent{limitedAll: s, limitedSite: 2 * s, carrying: s}, times{Wait: 9 * s, CPU: s}, mover.Bottleneck{Place: mover.Limited, Limit: "ours", Share: 0.75}},
		"a limit there":         {spent{carrying: s}, times{Wait: s, Limited: 3 * s}, mover.Bottleneck{Place: mover.Limited, Limit: "theirs", Share: 0.75}},
		"all is sent":           {spent{resting: 15 * s}, times{Wait: 15 * s, Disk: s}, mover.Bottleneck{Place: mover.DestinationDisk, Share: 1}},
	} {
		if got := bottleneck(c.here, c.there, "ours", "theirs"); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestAWaitForTheHashIsWhatTheHashDoes(t *testing.T) {
	lanes := spent{carrying: 1, computing: 2, writing: 3, behind: 40}
	got := timesOf(lanes, spent{computing: 1, writing: 3, resting: 100})
	if want := (times{Wait: 1, CPU: 2 + 10, Disk: 3 + 30}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestAMeterTellsWhatStillGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(meter)
		m.begin(computing)
		time.Sleep(time.Second)
		if was := m.begin(carrying); was != computing {
			t.Errorf("%d has ended, want %d", was, computing)
		}
		time.Sleep(2 * time.Second)
		if got, want := m.take(), (spent{computing: time.Second, carrying: 2 * time.Second}); got != want {
			t.Errorf("%v, want %v", got, want)
		}
		time.Sleep(3 * time.Second)
		if got, want := m.take(), (spent{carrying: 3 * time.Second}); got != want {
			t.Errorf("then %v, want %v", got, want)
		}
	})
}

// slowConn takes a moment for what is written to it.
type slowConn struct{ net.Conn }

const moment = 100 * time.Millisecond

func (c slowConn) Write(b []byte) (int, error) {
	if len(b) > 64<<10 {
		time.Sleep(moment)
	}
	return c.Conn.Write(b)
}

type slowHash struct{ hash.Hash }

func (h slowHash) Write(b []byte) (int, error) {
	time.Sleep(moment)
	return h.Hash.Write(b)
}

// TestTheSlowestPlaceIsNamed makes one place after the other slow, in a time of its own
// where all else takes none.
func TestTheSlowestPlaceIsNamed(t *testing.T) {
	for _, p := range []mover.Protection{mover.Private, mover.Safe} {
		for place, slow := range map[mover.Place]func(r *rig){
			mover.SourceDisk: func(*rig) {
				slowed = func(a activity) {
					if a == reading {
						time.Sleep(moment)
					}
				}
			},
			mover.Network: func(r *rig) {
				e := r.rig.Engine.(*Engine)
				dial := e.Dial
				e.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := dial(ctx, network, address)
					return slowConn{c}, err
				}
			},
			mover.DestinationCPU: func(*rig) {}, // below
			mover.DestinationDisk: func(*rig) {
				slowed = func(a activity) {
					if a == writing {
						time.Sleep(moment)
					}
				}
			},
		} {
			t.Run(string(p)+"/"+string(place), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newPipeRig(t)
					r.rig.Engine.(*Engine).Protection, r.opts.Protection = p, p
					defer func() { slowed = nil }()
					slow(r)
					r.start(t, "")
					defer r.stop()
					req := r.request(t, r.stage(t, "image", 60*mover.BlockSize))
					req.PCP = mover.PCP{Parallelism: 2}
					var once sync.Once
					var last mover.Progress
					err := r.rig.Engine.Move(t.Context(), req, func(p mover.Progress) {
						last = p
						if place == mover.DestinationCPU {
							once.Do(func() {
								a := r.recv().lookup("inbox/image")
								a.mu.Lock()
								defer a.mu.Unlock()
								a.hash = slowHash{a.hash}
							})
						}
					})
					if err != nil {
						t.Fatal(err)
					}
					if b := last.Way.Bottleneck; b.Place != place || b.Share < 0.6 || b.Share > 1 {
						t.Errorf("%+v, want the %s", b, place)
					}
					if w := last.Way; w.Wire < 58*mover.BlockSize || w.Wire > 61*mover.BlockSize || w.Lanes != 2 {
						t.Errorf("%d bytes on the wire by %d lanes", w.Wire, w.Lanes)
					}
				})
			})
		}
	}
}

func TestABufferThatIsTooSmallIsNamed(t *testing.T) {
	const s = time.Second
	for name, c := range map[string]struct {
		path mover.Path
		want string // of the advice
	}{
		"large enough":   {mover.Path{Busy: 100 * s, SendLimited: 24 * s, RecvLimited: 24 * s}, ""},
		"too early":      {mover.Path{Busy: 4 * s, SendLimited: 4 * s}, ""},
		"near":           {mover.Path{MinRTT: near - 1, Busy: 100 * s, RecvLimited: 90 * s}, ""},
		"send buffer":    {mover.Path{Busy: 100 * s, SendLimited: 43 * s, RecvLimited: s}, "waited 43 % of the time: raise the third value of net.ipv4.tcp_wmem here, which is 4194304,"},
		"receive window": {mover.Path{Busy: 100 * s, SendLimited: s, RecvLimited: 90 * s}, "waited 90 % of the time: raise the third value of net.ipv4.tcp_rmem there"},
	} {
		c.path.MinRTT = cmp.Or(c.path.MinRTT, near)
		if got := advice(c.path, 4194304); !strings.Contains(got, c.want) || got == "" != (c.want == "") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
