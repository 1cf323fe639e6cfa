package stream

import "time"

// Where nothing else is left to be sent, a lane without work sends a block once more that
// is late on another one: one unlucky connection must not hold the end of a file (hedged
// requests: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013). Whichever copy is whole
// first at the receiver is the block.

// absence is how long blocks were sent and not answered for of late: the mean, and the mean
// deviation from it (RFC 6298, 2).
type absence struct{ mean, deviation time.Duration }

func (a *absence) add(d time.Duration) {
	if a.mean == 0 {
		a.mean, a.deviation = d, d/2
		return
	}
	a.deviation += ((a.mean - d).Abs() - a.deviation) / 4
	a.mean += (d - a.mean) / 8
}

// late is when a block is; 0: nobody knows.
func (a absence) late() time.Duration { return max(2*a.mean, a.mean+4*a.deviation) }

// hedge returns the block that n, which has nothing to do, should send once more, the one
// that is late for longest; nil: none is, but one may be after the time told. What a passage
// has brought is not sent twice: it is gone from here once it is through. The caller holds mu.
func (l *link) hedge(n *lane, now time.Time) (f *outgoing, i uint32, wait time.Duration) {
	late := max(l.away.late(), 2*l.rtt)
	if len(n.flight) > 0 || l.rtt < near || l.away.mean == 0 {
		return nil, 0, 0
	}
	var oldest time.Duration
	for m := range l.lanes {
		for b, sent := range m.flight {
			age := now.Sub(sent)
			if age <= oldest || b.file.onward != nil || b.file.over() || len(l.carriers(b)) > 1 {
				continue
			}
			f, i, oldest = b.file, b.index, age
		}
	}
	if f != nil && oldest <= late {
		return nil, 0, late - oldest + time.Millisecond
	}
	return f, i, 0
}

// carriers are the lanes on which b is in flight. The caller holds mu.
func (l *link) carriers(b flying) (all []*lane) {
	for n := range l.lanes {
		if _, carries := n.flight[b]; carries {
			all = append(all, n)
		}
	}
	return all
}

// landed takes b, which was answered for, off the lanes that carry it, and reports whether
// any does. Where several do nobody knows which of them brought it. The caller holds mu.
func (l *link) landed(b flying, now time.Time) bool {
	n, all := blockLen(b.file.size, b.index), l.carriers(b)
	for _, m := range all {
		if m.worked = true; len(all) == 1 {
			l.away.add(now.Sub(m.flight[b]))
			m.heard = now
		}
		delete(m.flight, b)
	}
	if len(all) == 0 {
		return false
	}
	l.fruitless = 0
	l.compression.lost(len(all)-1, now)
	l.compression.heard(int64(n), len(l.lanes), now)
	return true
}

// pause waits for a change of the link, as long as told at most; 0: for as long as it takes.
// The caller holds mu.
func (l *link) pause(most time.Duration) {
	if most > 0 {
		defer time.AfterFunc(most, func() {
			l.mu.Lock() // once somebody waits for it
			defer l.mu.Unlock()
			l.changed.Broadcast()
		}).Stop()
	}
	l.changed.Wait()
}

// begun reports whether block i, which came on s, is being written by another lane.
func (a *arrival) begun(s seat, i uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.holder == s && a.writing[i] != nil
}

// holds reports whether block i has come meanwhile.
func (a *arrival) holds(i uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.proven.has(i)
}

// second takes another copy of a block that has begun to come on another lane. Only when
// it is whole, and the other still not, is that lane cut and this copy written.
func (b *blocks) second(a *arrival, at seat, h header) error {
	whole, err := b.read(h, a)
	if err != nil {
		return err
	}
	if !whole {
		k := kindAgain
		if a.holds(h.index) {
			k = kindProven
		}
		at.tell(k, h.index)
		return nil
	}
	mine, there := a.reserve(at, h.index, b.cut)
	if !mine {
		if there {
			at.tell(kindProven, h.index)
		}
		return nil
	}
	b.put(a, at, h)
	return nil
}
