package wan

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// large is what a TUN device gives for a TCP segment of n bytes, in packets of size.
func large(n, size int) []byte {
	b := make([]byte, vnetHeader+20+32+n)
	b[0], b[vnetGSOType] = needsSum, gsoTCPv4|gsoECN
	binary.NativeEndian.PutUint16(b[vnetHeadLen:], 999) // what is in the first buffer: no help
	binary.NativeEndian.PutUint16(b[vnetGSOSize:], uint16(size))
	binary.NativeEndian.PutUint16(b[6:], 20)          // where the checksum begins
	binary.NativeEndian.PutUint16(b[8:], tcpChecksum) // and where it stands from there
	ip := b[vnetHeader:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], 65530) // the identification is to wrap around
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	tcp := ip[20:]
	binary.BigEndian.PutUint32(tcp[4:], 1<<32-3000) // as is the sequence number
	tcp[12] = 8 << 4
	tcp[tcpFlags] = flagCWR | flagPSH | flagFIN | 1<<4
	for i := range n {
		tcp[32+i] = byte(i * 7)
	}
	return b
}

func TestALargeSegmentIsCutAsTheNetworkCardDoes(t *testing.T) {
	const n, size = 10_000, 1448 // seven packets, the last of 1312
	p, err := parse(large(n, size))
	if err != nil || p.segments != 7 {
		t.Fatalf("%d segments, %v, want 7", p.segments, err)
	}
	payload := p.bytes[vnetHeader+52:]
	for _, c := range []struct {
		first, end int
		flags      byte
	}{
		{0, 1, flagCWR}, {1, 2, 0}, {2, 5, 0}, {6, 7, flagPSH | flagFIN}, {3, 7, flagPSH | flagFIN}, {0, 6, flagCWR},
	} {
		got := p.cut([]byte("before"), c.first, c.end)[len("before"):]
		ip, tcp := got[vnetHeader:], got[vnetHeader+20:]
		from, to := c.first*size, min(c.end*size, n)
		if !bytes.Equal(tcp[32:], payload[from:to]) {
			t.Errorf("%v: %d bytes of payload, want those from %d to %d", c, len(tcp)-32, from, to)
		}
		if got, want := binary.BigEndian.Uint32(tcp[4:]), uint32(1<<32-3000+from); got != want {
			t.Errorf("%v: sequence number %d, want %d", c, got, want)
		}
		if got, want := binary.BigEndian.Uint16(ip[4:]), uint16((65530+c.first)&0xffff); got != want {
			t.Errorf("%v: identification %d, want %d", c, got, want)
		}
		if got, want := tcp[tcpFlags], c.flags|1<<4; got != want {
			t.Errorf("%v: flags %b, want %b", c, got, want)
		}
		if got := int(binary.BigEndian.Uint16(ip[2:])); got != len(ip) {
			t.Errorf("%v: IP length %d, want %d", c, got, len(ip))
		}
		if sum(0, ip[:20]) != 0xffff {
			t.Errorf("%v: wrong checksum of the IP header", c)
		}
		pseudo := append(bytes.Clone(ip[12:20]), 0, unix.IPPROTO_TCP, byte(len(tcp)>>8), byte(len(tcp)))
		if got, want := binary.BigEndian.Uint16(tcp[tcpChecksum:]), sum(0, pseudo); got != want {
			t.Errorf("%v: checksum of the pseudo header %x, want %x", c, got, want)
		}
		wantSize, wantType := uint16(size), byte(gsoTCPv4|gsoECN)
		if c.end-c.first == 1 {
			wantSize, wantType = 0, gsoNone
		}
		if got[vnetGSOType] != wantType || binary.NativeEndian.Uint16(got[vnetGSOSize:]) != wantSize {
			t.Errorf("%v: offload %v, want type %d and size %d", c, got[:vnetHeader], wantType, wantSize)
		}
		if head := binary.NativeEndian.Uint16(got[vnetHeadLen:]); head != 52 {
			t.Errorf("%v: headers of %d bytes, want 52", c, head)
		}
		want := 0
		for i := c.first; i < c.end; i++ {
			want += p.length(i) - 52
		}
		if len(tcp)-32 != want {
			t.Errorf("%v: the lengths of its segments are %d, its payload is %d", c, want, len(tcp)-32)
		}
	}
	if got := p.cut(nil, 0, 7); !bytes.Equal(got, p.bytes) {
		t.Error("a packet that lost nothing was changed")
	}
}

func TestSegmentsThatAreLostSplitAPacket(t *testing.T) {
	p, err := parse(large(10*1448, 1448))
	if err != nil {
		t.Fatal(err)
	}
	const rate = 1e9
	for _, c := range []struct {
		name string
		set  func(*link)
		path Path
		want []int // bytes of payload, in segments
		left Counts
	}{
		{"none", func(*link) {}, Path{Rate: rate}, []int{10}, Counts{Sent: 10}},
		{"the first", func(l *link) { l.spare, l.loss = 0, 1e-12 }, Path{Rate: rate}, []int{9}, Counts{Sent: 10, Lost: 1}},
		{"one in the middle", func(l *link) { l.spare, l.loss = 4, 1e-12 }, Path{Rate: rate}, []int{4, 5}, Counts{Sent: 10, Lost: 1}},
		{"the last", func(l *link) { l.spare, l.loss = 9, 1e-12 }, Path{Rate: rate}, []int{9}, Counts{Sent: 10, Lost: 1}},
		{"all", func(*link) {}, Path{Rate: rate, Loss: 1}, nil, Counts{Sent: 10, Lost: 10}},
		{"those without a place", func(*link) {}, Path{Rate: rate, Queue: 3 * 1538}, []int{3}, Counts{Sent: 10, Overflowed: 7}},
		// At 50 Mbit/s a packet takes 246 µs: two of them are as many as may wait for each other.
		{"a slow link", func(*link) {}, Path{Rate: 5e7}, []int{2, 2, 2, 2, 2}, Counts{Sent: 10}},
	} {
		d := &direction{link: newLink(c.path, 0)}
		c.set(d.link)
		d.send(0, p, &buffers{})
		var got []int
		last := arrival{}
		for {
			a, ok := d.waiting.first()
			if !ok {
				break
			}
			d.waiting.pop()
			if a.due < last.due {
				t.Errorf("%s: a packet is due at %v, the one before at %v", c.name, a.due, last.due)
			}
			last = a
			got = append(got, (len(a.bytes)-vnetHeader-52)/1448)
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: arrived in packets of %v segments, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: arrived in packets of %v segments, want %v", c.name, got, c.want)
			}
		}
		if counts := d.counts(); counts != c.left {
			t.Errorf("%s: %+v, want %+v", c.name, counts, c.left)
		}
	}
}

func TestWhatIsDeliveredLateIsCounted(t *testing.T) {
	p, err := parse(large(10*1448, 1448))
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	const delay = 5 * time.Millisecond
	d := &direction{link: newLink(Path{Delay: delay}, 0)}
	for _, c := range []struct {
		after time.Duration
		want  Counts
	}{
		{tardy, Counts{Sent: 10}},
		{tardy + 1, Counts{Sent: 20, Late: 10}},
	} {
		d.send(0, p, &buffers{})
		if err := d.deliver(ends[1], delay+c.after, &buffers{}); err != nil {
			t.Fatal(err)
		}
		if got := d.counts(); got != c.want {
			t.Errorf("delivered %v after its time: %+v, want %+v", c.after, got, c.want)
		}
	}
}

func TestPacketsThatAreNotUnderstoodAreRefused(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"short":               func(b []byte) []byte { return b[:20] },
		"UDP":                 func(b []byte) []byte { b[vnetHeader+9] = unix.IPPROTO_UDP; return b },
		"IPv6":                func(b []byte) []byte { b[vnetHeader] = 0x65; return b },
		"another offload":     func(b []byte) []byte { b[vnetGSOType] = 5; return b },
		"no size":             func(b []byte) []byte { b[vnetGSOSize], b[vnetGSOSize+1] = 0, 0; return b },
		"a whole checksum":    func(b []byte) []byte { b[0] = 0; return b },
		"headers alone":       func(b []byte) []byte { return b[:vnetHeader+52] },
		"a long TCP header":   func(b []byte) []byte { b[vnetHeader+20+12] = 0xf0; return b[:vnetHeader+52] },
		"a short IP header":   func(b []byte) []byte { b[vnetHeader] = 0x44; return b },
		"a cut IP header":     func(b []byte) []byte { b[vnetHeader] = 0x4f; return b[:vnetHeader+60] },
		"a cut virtio header": func(b []byte) []byte { return b[:5] },
	} {
		if _, err := parse(change(large(5000, 1448))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTheQueueOfPacketsKeepsTheirOrder(t *testing.T) {
	var f fifo
	next, want := byte(0), byte(0)
	for round := range 2000 {
		for range round%7 + 1 {
			f.push(arrival{bytes: []byte{next}})
			next++
		}
		for range round % 8 {
			a, ok := f.first()
			if !ok {
				break
			}
			if a.bytes[0] != want {
				t.Fatalf("packet %d came, want %d", a.bytes[0], want)
			}
			want++
			f.pop()
		}
	}
	for {
		a, ok := f.first()
		if !ok {
			break
		}
		if a.bytes[0] != want {
			t.Fatalf("packet %d came at the end, want %d", a.bytes[0], want)
		}
		want++
		f.pop()
	}
	if next != want {
		t.Errorf("%d packets came of %d", want, next)
	}
}
